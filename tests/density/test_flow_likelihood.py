"""The likelihood whose gradient is known: against the reference integrator, differences of itself, and exact scores."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein.density import FlowLikelihood, log_likelihood
from worlds import F64, normal, ring, shaken

WORLD = ring(0.3)


def start_of(process: orn.GaussianProcess, log_snr: float = 10.0) -> float:
    return float(process.time(torch.tensor(log_snr, dtype=F64)))


def crooked(process: orn.GaussianProcess, dim: int = 3, **options: Any) -> orn.Denoiser:
    """A network whose answers are the score of no density."""
    net = shaken(orn.nets.MLP(dim, width=8, depth=1, **options)).double()
    return orn.Denoiser(net, process, "velocity")


@pytest.mark.parametrize("process", [orn.Flow(), orn.EDM()], ids=lambda p: type(p).__name__)
def test_it_is_the_likelihood(process: orn.GaussianProcess) -> None:
    """The reference integrator's number to 2e-3 in 16 steps, and of order 4: twice the steps leave a 16th of the
    error, a tenth where further orders still count."""
    x, start = WORLD.sample(4, seed=1).to(F64), start_of(process)
    model = WORLD.denoiser(process)
    truth = log_likelihood(model, x, start=start, rtol=1e-6, atol=1e-6).log_prob
    errors = [float((FlowLikelihood(model, x, start=start, steps=n)(x)[0] - truth).abs().max()) for n in (8, 16, 32)]
    assert errors[1] < 2e-3
    assert errors[0] > 10 * errors[1]
    assert errors[1] > 10 * errors[2]


def test_the_gradient_is_that_of_the_number() -> None:
    """By central differences of 1e-5, of a network that has no score: to 1e-8, at any number of steps. Its x0 seen at
    the start as a score is something else."""
    process = orn.VP()
    model, x, start = crooked(process), 0.5 * normal(4, 3), start_of(process, 6.0)
    for steps in (1, 3):
        likelihood = FlowLikelihood(model, x, start=start, steps=steps)
        gradient = likelihood(x)[1]
        for i, along in enumerate(torch.eye(3, dtype=F64)):
            above, below = (likelihood(x + step * along)[0] for step in (1e-5, -1e-5))
            torch.testing.assert_close((above - below) / 2e-5, gradient[:, i], rtol=1e-6, atol=1e-8)
    alpha = process.level(start).alpha
    assert float((alpha * model(alpha * x, start).score - gradient).detach().abs().max()) > 1


def test_signs_are_right_on_average() -> None:
    """v'Jv over all 2^d vectors of signs is the trace, to rounding; and so is their gradient."""
    process = orn.Flow()
    model, x = crooked(process), normal(4, 3)
    likelihood = FlowLikelihood(model, x, start=0.01, steps=3)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=F64)] * 3)
    signs = corners[:, None].expand(8, 4, 3)
    for found, wanted in zip(likelihood(x, signs), likelihood(x), strict=True):
        torch.testing.assert_close(found, wanted)
    one = likelihood(x, signs[:1])[0]
    assert float((one - likelihood(x)[0]).abs().max()) > 1e-3


def test_each_sample_on_its_own_with_its_condition() -> None:
    process = orn.Flow()
    model = crooked(process, conditions={"c": 2})
    x, cond = normal(4, 3), {"c": normal(4, 2, seed=3)}
    whole = FlowLikelihood(model, x, cond=cond, start=0.01, steps=3)(x)
    alone = FlowLikelihood(model, x[:1], cond={"c": cond["c"][:1]}, start=0.01, steps=3)(x[:1])
    for all_of_them, one in zip(whole, alone, strict=True):
        torch.testing.assert_close(all_of_them[:1], one)
    images = normal(2, 1, 2, 3)
    flat = orn.exact.Gaussian(torch.zeros(6, dtype=F64), std=0.7).denoiser(process, predicts="v")
    shaped = orn.exact.Gaussian(torch.zeros(1, 2, 3, dtype=F64), std=0.7).denoiser(process, predicts="v")
    a = FlowLikelihood(shaped, images, steps=4)(images)
    b = FlowLikelihood(flat, images.reshape(2, 6), steps=4)(images.reshape(2, 6))
    torch.testing.assert_close(a[0], b[0])
    torch.testing.assert_close(a[1].reshape(2, 6), b[1])


def test_memory_does_not_grow_and_evaluations_are_counted() -> None:
    """Tensors that wait for a gradient at once are as many for 3 steps as for 12; of each step's 4 evaluations one goes
    there, and one with its products and their gradient back."""
    process, calls, alive = orn.Flow(), 0, {"now": 0, "most": 0}

    class Kept:
        def __init__(self, value: Tensor) -> None:
            self.value = value
            alive["now"] += 1
            alive["most"] = max(alive.values())

        def __del__(self) -> None:
            alive["now"] -= 1

    def net(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.tanh(x) * t[:, None]

    model, x, most = orn.Denoiser(net, process, "velocity"), normal(4, 2), []
    for steps in (3, 12):
        likelihood = FlowLikelihood(model, x, start=0.01, steps=steps)
        calls, alive["most"] = 0, 0
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.value):
            likelihood(x)
        assert calls == 2 * 4 * steps
        assert likelihood.cost(2) == 4 * steps * (1 + 2 * (1 + 2))
        most.append(alive["most"])
    assert most[0] == most[1] > 0


def test_flow_likelihood_refusals() -> None:
    x = normal(2, 2)
    model = WORLD.denoiser(orn.Flow(), predicts="v")
    with pytest.raises(ValueError, match="steps=0"):
        FlowLikelihood(model, x, steps=0)
    with pytest.raises(ValueError, match="start=1"):
        FlowLikelihood(model, x, start=1.0)
    with pytest.raises(ValueError, match="GaussianProcess"):
        FlowLikelihood(orn.Denoiser(lambda x, t: x, orn.TwoSided()), x)
    reverting = WORLD.denoiser(orn.MeanReverting())
    with pytest.raises(ValueError, match="shift"):
        FlowLikelihood(reverting, x, cond={"mean": normal(2, 2)})
    assert math.isfinite(float(FlowLikelihood(model, x, steps=1)(x)[0].sum()))
