"""Fitted posteriors: densities of the families, one fit for each measurement, units, bounds, refusals."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein import linops
from ornstein.inverse import Family, Measurement, Normal, RealNVP, ScorePrior, restore
from ornstein.random import as_noise
from worlds import F64, normal

A, STD, FLOW = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.3, -1.0]], dtype=F64), 0.4, orn.Flow()
OPERATOR = linops.Matrix(A)
WORLD = orn.exact.Gaussian(0.5 * normal(3, seed=6), std=torch.tensor([0.5, 1.0, 1.5], dtype=F64))
Y = WORLD.sample(3, seed=3).to(F64) @ A.mT + STD * normal(3, 2, seed=4)
QUICK: dict[str, Any] = {"gradient": "score", "particles": 4}


def shaken(family: Family, count: int, dim: int) -> Any:
    """A law with parameters of size 0.4."""
    law, g = family.law(count, dim).to(F64), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in law.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=g))
    return law


@pytest.mark.parametrize("family", [Normal(), Normal(0), Normal(2), RealNVP(3, 8)], ids=repr)
@pytest.mark.parametrize("dim", [2, 5])
def test_the_density_is_that_of_the_samples(family: Family, dim: int) -> None:
    """log q(x(z)) = log N(z; 0, I) - log |dx/dz| where x has as many numbers as z; of low rank, the normal density of
    the covariance that the map has. Before it is fitted a law is N(0, I), F of 0.1 apart."""
    law, z = shaken(family, 2, dim), normal(2, 4, shaken(family, 2, dim).noise)
    with torch.no_grad():
        x = law(z)
        found = law.log_prob(x)
    if law.noise == dim and family != Normal(0):
        for m in range(2):
            for n in range(4):

                def path(v: Tensor, m: int = m) -> Tensor:
                    ends: Tensor = law(v.expand(2, 1, -1))[m, 0]
                    return ends

                jacobian = torch.autograd.functional.jacobian(path, z[m, n])
                truth = -(z[m, n] ** 2).sum() / 2 - dim * math.log(2 * math.pi) / 2 - torch.linalg.slogdet(jacobian)[1]
                torch.testing.assert_close(found[m, n], truth)
    else:
        with torch.no_grad():
            rows = law(torch.eye(law.noise, dtype=F64).expand(2, -1, -1)) - law(z[:, :1] * 0)
        for m in range(2):
            truth = torch.distributions.MultivariateNormal(law.mean[m, 0].detach(), rows[m].mT @ rows[m])
            torch.testing.assert_close(found[m], truth.log_prob(x[m]))
    fresh = family.law(2, dim).to(F64)
    start = fresh(z)[..., :dim].detach()
    torch.testing.assert_close(start, z[..., :dim], rtol=0, atol=0.3 if family == Normal(2) else 1e-12)
    with torch.no_grad():
        law.get_parameter("mean")[1] += 1
        torch.testing.assert_close(law.log_prob(x)[0], found[0])
        assert float((law.log_prob(x)[1] - found[1]).abs().min()) > 1e-3


def test_every_number_is_moved_and_read_by_couplings() -> None:
    """In four layers: the Jacobian of each output in each input is not zero."""
    law = shaken(RealNVP(4, 8), 1, 5)
    jacobian = torch.autograd.functional.jacobian(lambda v: law(v[None, None])[0, 0], normal(5))
    assert float(jacobian.abs().min()) > 1e-8


@pytest.mark.parametrize("family", [Normal(), RealNVP(2, 4)], ids=repr)
def test_a_fit_for_each_measurement(family: Family) -> None:
    """Whatever else is in the batch, and however many are asked: whole fits of `particles` samples each."""
    model, method = WORLD.denoiser(FLOW), ScorePrior(family, **QUICK)
    options: dict[str, Any] = {"method": method, "noise": STD, "steps": 5, "seed": 5}
    whole = restore(model, OPERATOR, Y, samples=6, **options)
    assert whole.samples.shape == (3, 6, 3)
    first = restore(model, OPERATOR, Y[:1], samples=2, **options)
    torch.testing.assert_close(first.samples, whole.samples[:1, :2])
    fitted = method.posterior(model, OPERATOR, Y, noise=STD, steps=5, seed=5)
    torch.testing.assert_close(fitted.samples, whole.samples[:, :4])
    torch.testing.assert_close(fitted.residual, whole.residual[:, :4])
    assert whole.nfe == first.nfe == 5
    flow = ScorePrior(family, particles=4, flow_steps=2, probes=2)
    assert restore(model, OPERATOR, Y, method=flow, noise=STD, steps=2, seed=5).nfe == 2 * 4 * 2 * (1 + 2 * 3)
    assert restore(model, OPERATOR, Y, method=flow, noise=STD, nfe=130, seed=5).nfe == 112
    exact = ScorePrior(family, particles=4, flow_steps=2, probes=None)
    assert restore(model, OPERATOR, Y, method=exact, noise=STD, steps=1, seed=5).nfe == 4 * 2 * (1 + 2 * 4)


def test_both_gradients_are_the_score_of_blurred_data() -> None:
    """log p of x0 + s noise at x, s = e^(-end/2): here 0.22. The flow's in 12 steps, to 1e-3, by the trace or one sign,
    of which nothing remains in the gradient where the Jacobian is constant."""
    world, x = orn.exact.Gaussian(torch.ones(3, dtype=F64), std=torch.tensor([0.5, 1, 1.5], dtype=F64)), normal(4, 3)
    truth = -(x - 1) / (torch.tensor([0.5, 1, 1.5], dtype=F64) ** 2 + math.exp(-3.0))
    for options in ({"gradient": "score"}, {"probes": None}, {"probes": 1}):
        method: Any = ScorePrior(end=3.0, flow_steps=12, **options)
        gradient, _ = method._prior(world.denoiser(FLOW), x, None, as_noise(0, batch=4, dtype=F64))
        torch.testing.assert_close(gradient(x), truth, rtol=0, atol=1e-3)


class Scaled(nn.Module):
    """The exact velocity of the world, in units (x - 2)/3 of the world's own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = WORLD.denoiser(FLOW)

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        answer: Tensor = self.inner(x, t.to(F64)).velocity
        return answer


def test_units_are_the_users_and_the_density_counts_them() -> None:
    """log p of y in units three times as large is less by log 3 for each of its two numbers."""
    model = orn.Denoiser(Scaled(), FLOW, "velocity", scaling=orn.Scaling(2.0, 3.0))
    method, y = ScorePrior(**QUICK), Y[:2]
    options: dict[str, Any] = {"steps": 6, "seed": 5, "dtype": F64}
    own = method.posterior(WORLD.denoiser(FLOW), OPERATOR, y, noise=STD, **options)
    wide = torch.full((3,), 2.0, dtype=F64) @ A.mT + 3 * y
    found = method.posterior(model, OPERATOR, wide, noise=3 * STD, **options)
    torch.testing.assert_close(found.samples, 3 * own.samples + 2)
    torch.testing.assert_close(found.log_weight, own.log_weight - 2 * math.log(3), rtol=0, atol=1e-3)


def test_a_nonlinear_operator_with_its_own_noise() -> None:
    """Counts of e^(x_1 + x_2 / 2), against quadrature in the two of the three numbers that matter: the bound is below
    log p(y), by 0.1 at most, and the mean within 0.1 posterior deviations: the posterior is nearly normal."""
    plane = orn.exact.Gaussian(torch.zeros(2, dtype=F64), std=torch.tensor([0.5, 1.0], dtype=F64))
    counted = linops.Function(lambda x: (x[:, :1] + x[:, 1:] / 2).exp(), (2,), (1,))
    noise, y = linops.PoissonNoise(3.0), torch.tensor([[7 / 3]], dtype=F64)
    axis = torch.linspace(-6, 6, 241, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    log_joint = plane.log_prob(grid) + noise.log_prob(y.expand(len(grid), 1), counted(grid))
    evidence = log_joint.logsumexp(0) + 2 * math.log(0.05)
    weights = log_joint.softmax(0)[:, None]
    mean = (weights * grid).sum(0)
    std = (weights * (grid - mean) ** 2).sum(0).sqrt()
    method = ScorePrior(gradient="score", particles=32, lr=0.1)
    found = method.posterior(plane.denoiser(FLOW), counted, y, noise=noise, seed=1, steps=200)
    assert -0.1 < float(found.bound - evidence) < 3 * float(found.error)
    with torch.no_grad():
        fitted = found.law(torch.zeros(1, 1, 2, dtype=F64))[0, 0]
    assert float(((fitted - mean) / std).abs().max()) < 0.1


def test_score_prior_refusals() -> None:
    model = WORLD.denoiser(FLOW)

    def refused(match: str, *, operator: Any = OPERATOR, **options: Any) -> None:
        with pytest.raises(ValueError, match=re.escape(match)):
            restore(model, operator, Y, **{"method": ScorePrior(**QUICK), "noise": STD, "seed": 0, **options})

    refused("give the noise of y", noise=0.0)
    refused("has no gradient", operator=linops.BlackBox(lambda u: u[:, :2], (3,), (2,)))
    refused("grid: a fit has the options", grid=orn.LogSNR())
    refused("solver, tol: a fit has the options", tol=0.1, solver=orn.DDIM())
    refused("steps or nfe, not both", steps=2, nfe=4)
    refused("steps=0", steps=0)
    refused("nfe=3: one step of this fit takes 280", nfe=3, method=ScorePrior(flow_steps=14))
    for match, options in (
        ("gradient='adjoint': choose from flow, score", {"gradient": "adjoint"}),
        ("particles=0", {"particles": 0}),
        ("probes=0", {"probes": 0}),
        ("lr=-1", {"lr": -1.0}),
    ):
        with pytest.raises(ValueError, match=re.escape(match)):
            ScorePrior(**options)
    with pytest.raises(ValueError, match="rank=-1"):
        Normal(-1)
    with pytest.raises(ValueError, match="layers=0"):
        RealNVP(0)
    with pytest.raises(ValueError, match="choose Normal"):
        RealNVP().law(1, 1)
    with pytest.raises(ValueError, match="no table of steps"):
        ScorePrior().solver(Measurement(OPERATOR, Y, linops.GaussianNoise(STD)))
    broken = orn.Denoiser(lambda x, t: x * torch.nan, FLOW, "velocity")
    with pytest.raises(orn.NonFiniteError, match="step 0 of 3"):
        restore(broken, OPERATOR, Y, method=ScorePrior(**QUICK), noise=STD, steps=3, debug=True)
    with pytest.raises(orn.NonFiniteError, match="debug=True tells"):
        restore(broken, OPERATOR, Y, method=ScorePrior(**QUICK), noise=STD, steps=3)
