"""Fits under the likelihood of the flow: of an exact model, by a normalising flow, and of a trained network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import linops
from ornstein.inverse import Fitted, Normal, RealNVP, ScorePrior
from worlds import F64, normal, ring

FLOW = orn.Flow()
WORLD, PROJECTION, STD = ring(0.5), torch.tensor([[1.0, 0.3]], dtype=F64), 0.5
Y = torch.tensor([[0.3], [2.0]], dtype=F64)


def log_joint(x: Tensor, y: Tensor) -> Tensor:
    """log p(y | x) + log p(x) of the ring."""
    misfit = (y - x @ PROJECTION.mT) / STD
    return WORLD.log_prob(x) - misfit.square().sum(1) / 2 - math.log(STD * math.sqrt(2 * math.pi))


def gaps(fitted: Fitted, ys: Tensor) -> list[float]:
    """KL(q || posterior) for each y, with the exact densities: 20,000 samples, evidence by quadrature."""
    axis = torch.linspace(-6, 6, 601, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    weight = next(fitted.law.parameters())
    found = []
    with torch.no_grad():
        z = normal(len(ys), 20_000, fitted.law.noise, seed=3).to(weight)
        x = fitted.law(z)
        log_q = fitted.law.log_prob(x).double()
    for i, y in enumerate(ys):
        evidence = log_joint(grid, y).logsumexp(0) + 2 * math.log(0.02)
        found.append(float(evidence - (log_joint(x[i].double(), y) - log_q[i]).mean()))
    return found


@pytest.mark.proof("score-prior-fits")
def test_score_prior_trained(proof: Callable[..., None]) -> None:
    """A correlated Gaussian, the fit following the gradient of the flow's likelihood: mean (in posterior standard
    deviations) and covariance (relative) as in tests/systems, to 2e-2, the error that 6 steps of the flow leave in the
    gradient (1e-2) over the smallest precision.

    One number of a ring of six modes measured: one posterior has two modes, the other is bent. How far each fit is from
    it, in nats of KL, by the exact densities: a normal law, and a normalising flow, which has to halve it.

    The bent one again, with a network that learned the ring: the gradient of its likelihood, with one random sign a
    step, against its score at the noise of e^-6 and e^-3, which cost a hundredth. The first is to be nearer to the
    exact posterior than either. (The other tells little: a normal law finds one of its modes or the other.)
    """
    figures: dict[str, float] = {}
    basis = torch.linalg.qr(normal(3, 3, seed=5)).Q
    cov = basis @ torch.diag(torch.linspace(0.4, 2.0, 3, dtype=F64) ** 2) @ basis.mT
    gaussian, a = orn.exact.Gaussian(0.5 * normal(3, seed=6), cov=cov), torch.tensor([[1.0, 0.5, 0], [0, 0.3, -1.0]])
    a = a.to(F64)
    y = gaussian.sample(1, seed=3).to(F64) @ a.mT + 0.4 * normal(1, 2, seed=4)
    mean, cov = gaussian.posterior(y[0], a, noise_std=0.4).moments()
    method = ScorePrior(Normal(), 8, probes=None, flow_steps=6, lr=0.1)
    law = method.posterior(gaussian.denoiser(FLOW), linops.Matrix(a), y, noise=0.4, seed=0, steps=320).law
    with torch.no_grad():
        ends = law(torch.cat([torch.zeros(1, 3, dtype=F64), torch.eye(3, dtype=F64)])[None])[0]
    rows, miss = ends[1:] - ends[0], ends[0] - mean
    figures["mean"] = float(miss @ torch.linalg.solve(cov, miss)) ** 0.5
    figures["cov"] = float((torch.linalg.solve(cov, rows.mT @ rows) - torch.eye(3, dtype=F64)).abs().max())

    def fit(model: orn.BaseDenoiser, y: Tensor, steps: int, **options: Any) -> list[float]:
        operator = linops.Matrix(PROJECTION.to(y))
        found = ScorePrior(**options).posterior(model, operator, y, noise=STD, seed=0, steps=steps)
        return gaps(found, y.to(F64))

    exact: dict[str, Any] = {"gradient": "score", "particles": 64}
    figures["normal_0"], figures["normal_1"] = fit(WORLD.denoiser(FLOW), Y, 400, **exact)
    figures["flow_0"], figures["flow_1"] = fit(WORLD.denoiser(FLOW), Y, 1000, family=RealNVP(), **exact)

    torch.manual_seed(0)
    net = orn.Denoiser(orn.nets.MLP(2, width=64, depth=3), FLOW, "velocity")
    data = WORLD.sample(20_000, seed=5).float()
    orn.fit(net, data, steps=3000, batch_size=256, lr=2e-3, ema=0.99, seed=0, progress=False)
    for name, options in (
        ("net_likelihood", {"gradient": "flow", "flow_steps": 8}),
        ("net_score_6", {"gradient": "score"}),
        ("net_score_3", {"gradient": "score", "end": 6.0}),
    ):
        (figures[name],) = fit(net, Y[1:].float(), 200, particles=32, lr=0.1, **options)
    proof(
        figures=figures,
        thresholds={
            "mean": (None, 2e-2),
            "cov": (None, 2e-2),
            "flow_0": (None, figures["normal_0"] / 2),
            "flow_1": (None, figures["normal_1"] / 2),
            "net_likelihood": (None, min(figures["net_score_6"], figures["net_score_3"])),
        },
        seed=0,
    )
