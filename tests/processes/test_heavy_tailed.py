"""PFGM++'s noise, end law and exact denoisers against closed forms and integrals written out here."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.exact.heavy_tailed import nodes
from ornstein.numerics.gamma import gamma_quantile
from ornstein.numerics.quadrature import gauss_legendre
from ornstein.processes import PFGMPP
from worlds import F64, normal, ring

KS = 2.23  # the limit law of sqrt(n) sup|F_n - F| is above it with probability 2 exp(-2 * 2.23^2) = 1e-4


def ks(u):
    """sqrt(n) times the distance of the empirical law of u from the uniform one."""
    u, n = u.sort().values, len(u)
    i = torch.arange(n, dtype=F64)
    return math.sqrt(n) * float(torch.maximum((i + 1) / n - u, u - i / n).max())


def test_gamma_numbers_of_normal_ones():
    """w = -log(1 - Phi) for shape 1, w with erf(sqrt w) = Phi for shape 1/2, and Erlang's sum for 64."""
    z = torch.linspace(-7, 7, 57, dtype=F64)
    torch.testing.assert_close(gamma_quantile(1.0, z), -torch.special.log_ndtr(-z), rtol=1e-13, atol=0)
    root = gamma_quantile(0.5, z).sqrt()
    phi, rest = torch.special.log_ndtr(z).exp(), torch.special.log_ndtr(-z).exp()
    torch.testing.assert_close(torch.erf(root), phi, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.erfc(root)[z < 5], rest[z < 5], rtol=1e-12, atol=0)
    w = gamma_quantile(64.0, z)
    terms = torch.arange(64, dtype=F64) * w.log()[:, None] - torch.lgamma(torch.arange(64, dtype=F64) + 1)
    erlang = torch.logsumexp(terms, 1) - w  # log(1 - P(64, w))
    # torch's incomplete gamma function is good to 2e-9 here, which makes 2e-10 of w
    torch.testing.assert_close(erlang[z > 0], torch.special.log_ndtr(-z[z > 0]), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("d", [0.5, 1, 3, 40])
@pytest.mark.parametrize("dim", [1, 2, 4])
def test_the_noise_has_the_kernels_law(dim, d):
    """b = |noise|^2/(|noise|^2 + D) ~ Beta(N/2, D/2): for even N 1 - (1-b)^(D/2) [1 + b D/2 if N = 4], for N = 1 by
    quadrature. Up to D = 3, a D wrong by (D + 1)/5 and standard normal noise are rejected at the same n."""
    n, process = 20_000, PFGMPP(aux_dim=d)
    noise = process.draw_noise((n, dim), orn.Noise(3, batch=n, dtype=F64), None)

    def uniform(noise, d):
        b = (noise.square().sum(1) / (noise.square().sum(1) + d)).clamp_max(1)
        if dim == 1:  # int_0^b s^(-1/2) (1-s)^(D/2-1) ds with s = sin^2 phi: 2 int cos^(D-1)
            phi = torch.asin(b.sqrt())
            points, weights = gauss_legendre(60)
            total = math.sqrt(math.pi) * math.gamma(d / 2) / math.gamma((d + 1) / 2)
            if d < 1:  # the integrand is singular at the end: by its complement u = (pi/2 - phi)^d, smooth
                rest = (math.pi / 2 - phi)[:, None]
                v = rest**d * (points + 1) / 2  # psi = v^(1/d), d psi = psi^(1-d)/d dv
                psi = v ** (1 / d)
                slope = torch.where(psi > 0, (psi.sin() / psi) ** (d - 1), 1.0) / d
                return 1 - 2 * (slope * weights).sum(1) * rest[:, 0] ** d / 2 / total
            at = phi[:, None] * (points + 1) / 2
            return 2 * (at.cos() ** (d - 1) * weights).sum(1) * phi / 2 / total
        tail = (1 - b) ** (d / 2)
        return 1 - tail * (1 if dim == 2 else 1 + b * d / 2)

    assert ks(uniform(noise, d)) < KS
    if d < 40:
        assert ks(uniform(noise, d + (d + 1) / 5)) > KS
        assert ks(uniform(normal(n, dim), d)) > KS
    if dim == 2:  # in every direction alike
        assert ks(torch.atan2(noise[:, 1], noise[:, 0]) / (2 * math.pi) + 0.5) < KS
        assert ks(((noise[:, 0] * noise[:, 1]).sign() * uniform(noise, d) + 1) / 2) < KS  # radius and direction apart


def test_the_end_law_has_this_density():
    """log_prior over the radius: 2 pi r p(r) integrates to 1 and to the Beta law's share within any radius."""
    for base in (orn.EDM(20.0), orn.VP()):
        for d in (1.0, 5.0, 1000.0):
            process, sigma = PFGMPP(base, d), float(base.level(1.0).sigma)
            y, weights = gauss_legendre(400)  # of log r from 1e-9 to R
            for share in (0.3, 0.999):
                edge = math.sqrt(d * math.expm1(-2 / d * math.log1p(-share)))  # 1 - (1 + r^2/D)^(-D/2) = share
                low, high = math.log(1e-9), math.log(edge)
                r = torch.exp(low + (high - low) * (y + 1) / 2) * sigma
                x = torch.stack([r * 0.6, r * 0.8], 1)
                total = (2 * math.pi * r**2 * process.log_prior(x).exp() * weights).sum() * (high - low) / 2
                assert float(total) == pytest.approx(share, abs=1e-10)
    reverting = PFGMPP(orn.MeanReverting(), 4)  # a shift moves it
    mean, x = normal(3, 2), normal(3, 2, seed=1)
    end = reverting.shift(reverting.level(1.0).t, {"mean": mean})
    plain = PFGMPP(orn.EDM(float(reverting.level(1.0).sigma)), 4)
    torch.testing.assert_close(reverting.log_prior(x, {"mean": mean}), plain.log_prior(x - end))


def test_draws_are_those_of_their_seeds():
    """Each sample's noise is fixed by its own seed, in any batch; float32 is float64 rounded; halves make a batch."""
    process = PFGMPP(aux_dim=2)
    whole = process.prior((5, 3), seed=[4, 8, 15, 16, 23])
    assert torch.equal(process.prior((2, 3), seed=[16, 8]), whole[[3, 1]])
    wide = process.prior((5, 3), seed=[4, 8, 15, 16, 23], dtype=F64)
    torch.testing.assert_close(whole.double(), wide, rtol=3e-7, atol=0)
    torch.manual_seed(0)
    assert len(set((whole / wide.float()).flatten().tolist())) < 15  # one width a sample, the direction normal
    x0 = normal(6, 3)
    all_of_it = process.corrupt(x0, 0.3, seed=orn.Noise(1, batch=6, dtype=F64)).x
    share = orn.random.Share(2, 5, 6)
    torch.testing.assert_close(
        process.corrupt(x0[2:5], 0.3, seed=orn.Noise(1, batch=3, dtype=F64, share=share)).x, all_of_it[2:5]
    )
    draw = process.corrupt(x0, 0.5, seed=2)
    torch.testing.assert_close(draw.x, x0 + 40 * draw.noise)
    torch.testing.assert_close(draw.target("velocity"), 80 * draw.noise)


def by_integral(world, d, sigma, x, power=None):
    """E[x0 | x] in one dimension by equal steps of x0 against the kernel itself, with no width in it: its poles are
    sigma sqrt(D) > 0.08 from the line, so the rule's error is e^(-2 pi 0.08/6e-3)."""
    x0 = torch.linspace(-6, 6, 2_001, dtype=F64)
    prior = world.log_prob(x0[:, None])
    kernel = -((1 + d) / 2 if power is None else power) * torch.log((x - x0) ** 2 + d * sigma**2)
    r = torch.softmax(prior + kernel, 1)
    return r @ x0[:, None]


@pytest.mark.parametrize("d", [0.7, 4, 128, 1e5])
def test_the_mixture_by_quadrature(d):
    """Against the integral over x0 of prior times kernel (power (N + D)/2; another power is told apart), and against
    steps twice and half as long; points, whose weights are closed, as mixtures of no width."""
    world = orn.exact.GaussianMixture(
        torch.tensor([[-2.0], [0.5], [2.5]], dtype=F64), torch.tensor([0.5, 0.2, 0.3], dtype=F64),
        torch.tensor([0.3, 0.5, 0.2], dtype=F64),
    )  # fmt: skip
    process = PFGMPP(aux_dim=d)
    model = world.denoiser(process)
    x = torch.linspace(-5, 5, 17, dtype=F64)[:, None]
    for sigma in (0.1, 3.0, 30.0):
        found = model(x, sigma / 80)
        truth = by_integral(world, d, sigma, x)
        # the sum of terms as large as (N + D)/2 log(D sigma^2) is rounded: 1e-16 of that, and twice in this judge
        torch.testing.assert_close(found.x0, truth, rtol=0, atol=1e-11 + 2e-14 * d)
        assert float((by_integral(world, d, sigma, x, d / 2) - truth).abs().max()) > min(1e-3, 1e-2 / d)
        torch.testing.assert_close(x - found.x0, sigma * found.noise, rtol=1e-9, atol=1e-9)
        fine = world.denoiser(process)
        fine._nodes = nodes(d, 1, step=0.5)
        torch.testing.assert_close(found.x0, fine(x, sigma / 80).x0, rtol=0, atol=1e-11 + 2e-14 * d)
        fine._nodes = nodes(d, 1, step=4.0)  # and a rule that is too coarse is seen to be
        assert float((fine(x, sigma / 80).x0 - found.x0).abs().max()) > 1e-9

    points, blobs = orn.exact.Empirical(ring().means, weights=ring().weights), ring(0.0)
    x0 = blobs.sample(20, seed=1, dtype=F64)
    label = {"label": torch.arange(20) % 7 - 1}
    for t in (0.002 / 80, 0.5 / 80, 1.0):
        state = process.corrupt(x0, t, seed=1).x
        for view in ("x0", "noise", "v", "velocity"):
            for cond in (None, label):
                one, other = (w.denoiser(process, view).forward(state, t, cond) for w in (points, blobs))
                torch.testing.assert_close(one, other, rtol=1e-9 + 2e-15 * d, atol=1e-10 + 2e-14 * d)


@pytest.mark.parametrize("base", [orn.EDM(), orn.VP(), orn.Flow(), orn.MeanReverting()], ids=lambda p: type(p).__name__)
def test_any_schedule_any_view(base):
    """alpha x0 + sigma noise + shift is the state in every view and with a time a sample; derivatives are right."""
    process, cond = PFGMPP(base, 12), {"mean": normal(5, 2, seed=9)}
    cond = cond if isinstance(base, orn.MeanReverting) else None
    for world in (ring(), orn.exact.Empirical(ring().means)):
        x, t = normal(5, 2), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=F64)
        level, shift = process.level(t), process.shift(t, cond)
        p = world.denoiser(process)(x, t, cond)
        mean = p.x0 * level.alpha[:, None] + p.noise * level.sigma[:, None]
        torch.testing.assert_close(mean if shift is None else mean + shift, x)
        for view in ("noise", "velocity", "v"):
            native = world.denoiser(process, view)
            torch.testing.assert_close(native(x, t, cond).view(view), p.view(view), rtol=1e-9, atol=1e-9)
            for i in range(5):
                row = None if cond is None else {"mean": cond["mean"][i : i + 1]}
                torch.testing.assert_close(
                    native.forward(x[i : i + 1], float(t[i]), row)[0], native.forward(x, t, cond)[i]
                )
        model = world.denoiser(process, "noise")
        v, h = normal(5, 2, seed=3), 1e-6
        _, forward = torch.func.jvp(lambda x: model.forward(x, t, cond), (x,), (v,))
        by_difference = (model.forward(x + h * v, t, cond) - model.forward(x - h * v, t, cond)) / (2 * h)
        torch.testing.assert_close(forward, by_difference, rtol=1e-5, atol=1e-6)
        (pulled,) = torch.autograd.grad(model.forward(x.requires_grad_(), t, cond), x, v)
        assert float((pulled * v).sum()) == pytest.approx(float((forward * v).sum()), rel=1e-9)


def test_trained_as_the_base_is():
    """EDM's precondition, times and weighting take it as they are: the loss of a new network is theirs."""
    torch.manual_seed(0)
    net = orn.nets.MLP(features=2, width=16, depth=1)
    model = orn.Denoiser(net, PFGMPP(aux_dim=4), precondition=orn.EDMPrecondition(sigma_data=1.0))
    objective = orn.training.Objective(orn.training.LogNormalSigma())
    x = ring().sample(64, seed=0).float()
    loss = objective(model, x, seed=1)
    assert float(loss) == float(objective(model, x, seed=1))
    # a new network answers 0, so it is EDM's loss: E (c_skip (x0 + sigma noise) - x0)^2/c_out^2
    t = objective.losses(model, x, seed=1)[1]
    sigma = (80 * t).float()[:, None]
    draw = model.process.corrupt(x, t, seed=orn.Noise(orn.random.derive(1, "noise"), batch=64))
    answer = (x + sigma * draw.noise) / (1 + sigma**2)
    torch.testing.assert_close(loss, ((answer - x) ** 2 * (1 + sigma**2) / sigma**2).mean())


def test_what_it_does_not_have():
    with pytest.raises(ValueError, match="aux_dim=0"):
        PFGMPP(aux_dim=0)
    with pytest.raises(ValueError, match="Gaussian process"):
        PFGMPP(PFGMPP())
    process = PFGMPP(aux_dim=2)
    model = ring().denoiser(process)
    with pytest.raises(orn.ViewError, match="not Gaussian"):
        _ = model(normal(2, 2), 0.3).score
    with pytest.raises(orn.ViewError, match="no score"):
        ring().denoiser(process, "score")
    for solver in (orn.EulerMaruyama(), orn.DDPM()):
        with pytest.raises(ValueError, match=r"does not have|no diffusion"):
            orn.sample(model, (2, 2), solver=solver, steps=4)
    with pytest.raises(ValueError, match="label 9"):
        model(normal(2, 2), 0.3, {"label": torch.tensor([0, 9])})
