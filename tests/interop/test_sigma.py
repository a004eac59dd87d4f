"""Networks told a noise level, both ways: Karras et al.'s as denoisers, and denoisers as k-diffusion's models."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import ornstein as orn
from ornstein.interop import from_sigma, schedule_of, to_sigma
from worlds import F64, normal, ring

PROCESSES = {
    "EDM": orn.EDM(20.0),
    "VP": orn.VP(),
    "SubVP": orn.SubVP(),
    "Flow": orn.Flow(),
    "Cosine": orn.Cosine(),
    "DiscreteTime": schedule_of({"_class_name": "DDPMScheduler"}).process,
}
SIGMAS = torch.tensor([0.05, 0.3, 1.0, 7.0, 0.002], dtype=F64)


def exact(x, sigma):
    """E[x0 | x0 + sigma n = x] for the ring, from Bayes' rule: the centres of its modes are weighed by their densities
    under the widened normals, and each mode shrinks x towards its centre."""
    world = ring()
    weights, means, var = world.weights / world.weights.sum(), world.means, 0.15**2
    wide = (var + sigma**2).reshape(-1, 1)
    far = -((x[:, None] - means) ** 2).sum(-1) / (2 * wide)
    chance = torch.softmax(far + weights.log(), 1)
    towards = means + var / wide[..., None] * (x[:, None] - means)
    return (chance[..., None] * towards).sum(1)


def euler(model, x, sigmas, **extra):
    """The sampler of Karras et al. (their algorithm 1 without the correction), as k-diffusion writes it."""
    for s, after in pairwise(sigmas):
        x = x + (after - s) * (x - model(x, s.expand(len(x)), **extra)) / s
    return x


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("predicts", ["x0", "noise", "v", "velocity", "score"])
def test_a_denoiser_of_any_process_as_a_model_of_sigma(name, predicts):
    """The posterior mean depends on the frame x0 + sigma n alone: whatever process and view, it is Bayes' rule's.

    A view loses at most its condition number, which is below 1e6 at these levels: 1e-15 becomes 1e-9.
    """
    process = PROCESSES[name]
    model = to_sigma(ring().denoiser(process, predicts=predicts))
    x0 = ring().sample(5, seed=3).to(F64)
    x = x0 + SIGMAS[:, None] * normal(5, 2)
    torch.testing.assert_close(model(x, SIGMAS), exact(x, SIGMAS), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model(x, 0.3), exact(x, torch.full((5,), 0.3, dtype=F64)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_an_euler_loop_over_the_model_is_our_ddim(name):
    """In the frame x/alpha, Euler in sigma is DDIM: the same states but for rounding, whatever the process."""
    process = PROCESSES[name]
    denoiser = ring().denoiser(process)
    sigmas = torch.exp(torch.linspace(2, -4, 9, dtype=F64))
    levels = process.level(process.time(-2 * sigmas.log()))
    y = 8 * normal(4, 2)
    ours = orn.sample(denoiser, x_init=levels.alpha[0] * y, solver=orn.DDIM(), grid=levels).x / levels.alpha[-1]
    torch.testing.assert_close(euler(to_sigma(denoiser), y, sigmas), ours, rtol=1e-9, atol=1e-9)
    rival = euler(lambda x, s: denoiser(x, process.time(-2 * s.log())).x0, y, sigmas)  # the state not scaled by alpha
    assert name == "EDM" or float((rival - ours).abs().max()) > 1e-3


def test_round_trips():
    """net -> denoiser -> net answers as the net itself does; so does a denoiser that went the other way."""
    net = torch.nn.Linear(2, 2, dtype=F64)

    def model(x, sigma, label=None):
        return net(x) / (1 + sigma[:, None]) + (0 if label is None else label[:, None])

    x, label = normal(5, 2), normal(5, seed=1)
    back = to_sigma(from_sigma(model))
    torch.testing.assert_close(back(x, SIGMAS), model(x, SIGMAS), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(back(x, SIGMAS, label=label), model(x, SIGMAS, label), rtol=1e-13, atol=1e-13)
    denoiser = ring().denoiser(orn.VP())
    again = from_sigma(to_sigma(denoiser), 20.0)
    level = again.process.level(SIGMAS / 20)
    torch.testing.assert_close(again(x, level).x0, exact(x, SIGMAS), rtol=1e-9, atol=1e-9)


def test_published_networks_of_karras_as_denoisers():
    """Sampled by our Heun on their grid, which is their algorithm 1, written here by hand; labels third, or by name."""

    class Net(torch.nn.Module):
        """As EDM's published networks: any sigma that reshapes to the batch, one-hot labels third, float32 out."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x, sigma, class_labels=None, force_fp32=False, **model_kwargs):
            sigma = sigma.to(torch.float32).reshape(-1, 1)
            shift = 0 if class_labels is None else class_labels.to(torch.float32) @ torch.eye(2)
            return ((x.to(torch.float32) - shift) / (1 + sigma**2) + shift).to(torch.float32)

    net, steps, rho = Net(), 6, 7.0
    labels = torch.eye(2)[torch.tensor([0, 1, 1])]
    i = torch.arange(steps, dtype=F64)
    high, low = 80 ** (1 / rho), 0.002 ** (1 / rho)
    sigmas = torch.cat([(high + i / (steps - 1) * (low - high)) ** rho, torch.zeros(1, dtype=F64)])
    start = 80 * normal(3, 2)
    x = start
    for s, after in pairwise(sigmas):
        d = (x - net(x, s.expand(3), labels)) / s
        following = x + (after - s) * d
        if after > 0:
            following = x + (after - s) * (d + (following - net(following, after.expand(3), labels)) / after) / 2
        x = following
    model = from_sigma(net, scaling=orn.Scaling(0.5, 0.5))
    grid = sigmas / 80
    for cond in (labels, {"class_labels": labels}):
        out = orn.sample(model, x_init=start, grid=grid, solver=orn.Heun(), cond=cond)
        assert out.x.dtype == F64
        # the network rounds to float32, six steps of it from 80 down: a few 1e-7 of each state, which sigma bounds
        torch.testing.assert_close(out.x, x / 2 + 0.5, rtol=0, atol=1e-5)
    assert [name for name, _ in model.named_parameters()] == ["net.net.weight"]
    assert float((orn.sample(model, x_init=start, grid=grid, solver=orn.Heun()).x - x / 2 - 0.5).abs().max()) > 1e-2


def test_guidance_and_conditions_pass_through():
    """Keyword arguments are conditions, so that a guided denoiser is one more model."""

    def net(x, t, cond):
        return cond["label"][:, None].expand_as(x)

    guided = orn.CFG(orn.Denoiser(net, orn.EDM(), "x0", null={"label": 0.0}), 3.0)
    x, label = normal(4, 2), torch.arange(4, dtype=F64)
    torch.testing.assert_close(to_sigma(guided)(x, 0.5, label=label), 3 * label[:, None].expand(4, 2))


@pytest.mark.parametrize("view", ["x0", "noise", "score", "velocity", "v"])
def test_any_callable_with_a_stated_convention(view):
    """A network of any question, told sigma, log-SNR, a timestep: the same posterior mean from each."""
    process = orn.VP()
    told = {
        "x0": lambda level: level.sigma,
        "noise": lambda level: 1000 * level.t - 1,
        "score": lambda level: level.log_snr,
        "velocity": lambda level: 1 - level.t,
        "v": lambda level: torch.atan2(level.sigma, level.alpha),
    }[view]
    t, world = torch.linspace(0.1, 0.9, 5, dtype=F64), ring()
    heard = []

    def net(x, label):
        heard.append(label)
        return world.denoiser(process)(x, t).view(view)

    x = normal(5, 2)
    p = orn.Denoiser(net, process, view, timestep=told)(x, t)
    torch.testing.assert_close(heard[0], told(process.level(t)), rtol=0, atol=0)
    torch.testing.assert_close(p.x0, world.denoiser(process)(x, t).x0, rtol=1e-9, atol=1e-9)
    rival = orn.Denoiser(net, process, "x0" if view != "x0" else "noise")(x, t)
    assert float((rival.x0 - p.x0).abs().max()) > 1e-2


def test_bad_input():
    model = to_sigma(ring().denoiser(orn.VP()))
    x = normal(3, 2)
    largest = float(torch.exp(-orn.VP().level(1.0).log_snr / 2))
    for bad in (0.0, -1.0, 1.01 * largest, float("nan")):
        with pytest.raises(ValueError, match=r"knows noise levels in \(0, 152\.1"):
            model(x, bad)
    model(x, torch.tensor(largest, dtype=torch.float32))  # rounded up, still the largest
    with pytest.raises(ValueError, match="one value a sample"):
        model(x, torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match="does not come from x0"):
        to_sigma(orn.Denoiser(lambda x, t: x, orn.MeanReverting(), "noise"))

    class Other(orn.BaseDenoiser):
        process = None

    with pytest.raises(ValueError, match="takes a denoiser of one state"):
        to_sigma(Other())
    with pytest.raises(ValueError, match="sigma_max must be positive"):
        from_sigma(lambda x, sigma: x, -1.0)
