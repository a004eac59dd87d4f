"""PMRF: the posterior mean, carried to the law of the data: less error than a sample of the posterior."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import linops
from ornstein.inverse import PMRF, restore
from ornstein.metrics import frechet_from_moments
from ornstein.processes import TwoSided, indi
from worlds import F64, normal

DIM, STD = 6, 0.3
Q, U, V = (torch.linalg.qr(normal(DIM, DIM, seed=k)).Q for k in (1, 2, 3))
COV = Q @ torch.diag(torch.linspace(0.3, 1.5, DIM, dtype=F64) ** 2) @ Q.mT
GAINS = torch.diag(torch.tensor([1.0, 0.9, 0.6, 0.3, 0.1, 0.05], dtype=F64))
ZERO, EYE = torch.zeros(DIM, dtype=F64), torch.eye(DIM, dtype=F64)


class Problem:
    """x0 ~ N(0, COV), y = A x0 + 0.3 noise, all in closed form: f(y) = K y, whose covariance is also that of f and x0.

    The flow is the rectified flow of its own coupling, of which the method sees the velocity alone."""

    def __init__(self, a: Tensor, noise_level: float) -> None:
        self.a, self.noise_level = a, noise_level
        measured = a @ COV @ a.mT + STD**2 * EYE
        self.k = COV @ a.mT @ torch.linalg.inv(measured)
        self.known = self.k @ measured @ self.k.mT
        self.mmse = float((COV - self.known).trace())
        self.least = self.mmse + frechet_from_moments(ZERO, self.known, ZERO, COV)
        self.flow = self.rectified(self.known + noise_level**2 * EYE, self.known)

    def rectified(self, start: Tensor, cross: Tensor) -> orn.Denoiser:
        """The exact flow from N(0, start), whose covariance with x0 is `cross`."""
        ends = (orn.exact.Gaussian(ZERO, cov=c) for c in (COV, start))
        oracle = orn.exact.TwoSidedMixture(*ends, cross=cross[None, None]).denoiser(TwoSided(), "velocity")
        return orn.Denoiser(
            lambda x, t, cond=None: oracle(x, t[0].double()).velocity, indi(self.noise_level), "velocity"
        )

    def judge(self, flow: orn.Denoiser, start: Tensor, cross: Tensor, steps: int) -> tuple[float, float]:
        """The squared error of samples, and their W2^2 to the data: the flow is a matrix M, read off a basis."""
        options = {"solver": orn.Euler(), "grid": orn.Uniform(), "steps": steps, "cond": {"end": torch.zeros_like(EYE)}}
        m = orn.sample(flow, x_init=EYE, **options).x.mT
        made = m @ start @ m.mT
        return float((COV + made - 2 * m @ cross.mT).trace()), frechet_from_moments(ZERO, made, ZERO, COV)


@pytest.mark.system("pmrf", rival="a sample of the posterior; and the rectified flow from y itself")
def test_pmrf() -> None:
    """Gaussian data and noise: MMSE and the least error D of any map to the law of the data are known.

    Through `restore` the error is what the flow's matrix says (4,000 pairs, 5 standard errors), and the rival's, of
    samples of the exact posterior, 2 MMSE. Where A and the covariance have the same eigenvectors the flow's paths do
    not cross, and Euler's method tends to D at order 1: in 25, 50, 100 steps the gap halves, and twice the last less
    the one before (Richardson) is D to 0.2 %; W2^2 falls by 4. With other eigenvectors the paths cross: the error stays
    above D, by 4 %, but far below 2 MMSE; that of the flow from y to x0 is above it.
    """
    s = 1e-3
    for crossing, a in enumerate((Q @ GAINS @ Q.mT, U @ GAINS @ V.mT)):
        problem = Problem(a, s)
        start = problem.known + s**2 * EYE
        rows = [problem.judge(problem.flow, start, problem.known, steps) for steps in (25, 50, 100)]
        error = [row[0] for row in rows]
        final = 2 * error[2] - error[1]
        assert error[2] - error[1] == pytest.approx((error[1] - error[0]) / 2, rel=0.15)
        assert [rows[i][1] / rows[i + 1][1] for i in (0, 1)] == pytest.approx([4, 4], rel=0.2)
        assert rows[2][1] < 1e-3
        if crossing:
            assert 1.02 * problem.least < final < 1.06 * problem.least
        else:
            assert final == pytest.approx(problem.least, rel=2e-3)
        assert final < 0.75 * 2 * problem.mmse
        y_law, with_x = a @ COV @ a.mT + STD**2 * EYE, COV @ a.mT
        rival = problem.judge(problem.rectified(y_law, with_x), y_law, with_x, 100)[0]
        assert (rival > 2 * problem.mmse) == bool(crossing)

        n = 4000
        x = normal(n, DIM, seed=5) @ torch.linalg.cholesky(COV).mT
        y = x @ a.mT + STD * normal(n, DIM, seed=6)
        options = {"noise": STD, "seed": 0, "steps": 25, "dtype": F64}
        out = restore(problem.flow, linops.Matrix(a), y, method=PMRF(lambda y, k=problem.k: y @ k.mT), **options)
        assert out.nfe == 26

        def agrees(samples: Tensor, expected: float, x: Tensor = x, n: int = n) -> bool:
            each = (samples - x).square().sum(1)
            return abs(float(each.mean()) - expected) < 5 * float(each.std()) / math.sqrt(n)

        assert agrees(out.samples[:, 0], error[0])
        drawn = y @ problem.k.mT + normal(n, DIM, seed=7) @ torch.linalg.cholesky(COV - problem.known).mT
        assert agrees(drawn, 2 * problem.mmse)  # of the posterior, exactly
        assert not agrees(out.samples[:, 0], 2 * problem.mmse)
        assert not agrees(y @ problem.k.mT, error[0])
