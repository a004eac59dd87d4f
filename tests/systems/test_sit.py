"""SiT: one velocity, learned once; the diffusion of the sampler is chosen afterwards."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.solvers import EulerMaruyama, StochasticHeun
from worlds import F64, at, ring

WORLD = ring(0.3)
INTERPOLANTS = [orn.Flow(), orn.Cosine(), orn.VP()]  # the paper's linear, GVP and VP
DIFFUSIONS = {
    "flow": 0.0,
    "sigma": lambda level: level.sigma,
    "decreasing": lambda level: (1 - level.t) ** 2,
    "increasing-decreasing": lambda level: torch.sin(math.pi * level.t) ** 2,
    "KL": 1.0,  # g^2
}


class Unpaid(orn.Solver):
    """The rival: noise of variance sigma^2 added to the flow, without the score that pays for it."""

    def write(self, table, grid):
        x = table.state
        for i in range(len(grid) - 1):
            t, h = grid[i], grid.t[i] - grid.t[i + 1]
            noise = torch.sqrt(h * t.sigma) * table.noise(t, grid[i + 1])
            x = table.step(x - h * table.evaluate(x, t).velocity + noise, grid[i + 1])


@pytest.mark.system("sit", rival="the same noise without its share of the score")
def test_sit():
    c, levels = torch.tensor([0.1, 0.7, 5.0], dtype=F64), orn.LogSNR(start=-3.0, end=3.0, to_data=False)
    for process in INTERPOLANTS:
        # a network of the velocity answers for the score: the views agree
        t = torch.tensor([0.2, 0.5, 0.9], dtype=F64)
        x = at(process, process.level(t), WORLD, 3)
        learned, truth = WORLD.denoiser(process, predicts="velocity"), WORLD.score(x, process, process.level(t))
        plain = orn.Denoiser(lambda x, s, learned=learned: learned.forward(x, s.to(F64)), process, predicts="velocity")
        torch.testing.assert_close(plain(x, t).score, truth, rtol=1e-6, atol=1e-6)

        # every diffusion has the marginals of the process: on Gaussian data the error of the last variance, computed
        # without sampling, falls as a second order does (by 4, up to the next order); the rival stays a constant away
        def defect(solver, steps, process=process):
            grid = levels(process, steps=steps)
            out = orn.response(solver.compile(process, grid), 0.0, c)
            start, end = (level.alpha**2 * c + level.sigma**2 for level in (grid[0], grid[-1]))
            return float((out.variance(start) - end).norm())

        rival = defect(Unpaid(), 60)
        for name, diffusion in DIFFUSIONS.items():
            coarse, fine = (defect(StochasticHeun(diffusion), steps) for steps in (30, 60))
            assert fine < coarse / 3, (process, name)
            assert rival > 10 * fine, (process, name)

    # and on a mixture, from pure noise to data: each mean squared radius is the truth's to 4 standard errors and 2 %
    n, radius = 500, float((WORLD.means**2).sum(1).mean() + 2 * 0.09)
    for diffusion in DIFFUSIONS.values():
        solver = EulerMaruyama(diffusion)
        out = orn.sample(WORLD.denoiser(orn.Flow()), (n, 2), solver=solver, steps=60, seed=0, dtype=F64).x
        squared = out.square().sum(1)
        assert abs(float(squared.mean()) - radius) < 4 * float(squared.std()) / math.sqrt(n) + 0.02 * radius
