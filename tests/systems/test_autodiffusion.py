"""AutoDiffusion: evolution finds times whose samples have the right law, by any distance between laws."""

import itertools
from dataclasses import replace
from random import Random

import pytest
import torch
from torch import nn

import ornstein as orn
from orders import WORLDS
from ornstein.metrics import frechet_distance, mmd
from ornstein.solvers import Quadratic
from ornstein.tuning.autodiffusion import AutoDiffusion
from ornstein.tuning.evolution import evolve
from ornstein.tuning.found import Judge, compiled
from ornstein.tuning.lessons import teach
from ornstein.tuning.objectives import Endpoint
from ornstein.tuning.skipping import Skipping, residual_blocks
from worlds import F64, ring

PROCESS = orn.VP()


@pytest.mark.system("autodiffusion", rival="uniform and quadratic times; the median of as many random subsets")
@pytest.mark.parametrize("name", ["ring", "mixture"])
def test_autodiffusion(name):
    """4 steps of DDIM, times out of 100. In each of 5 fresh sets of 400 starts, beside fresh data: the MMD^2 of the
    found times is below that of uniform and of quadratic ones, and below that of the median of 15 random subsets. Of
    five sets alike, so long a run has probability 1/32 by chance, for each rival."""
    world = WORLDS[name]
    model = world.denoiser(PROCESS)
    lessons = teach(model, (200, *world.event), seed=1, dtype=F64, steps=20)
    search = AutoDiffusion(population=15, generations=6)
    found = search.search(lessons, 4)
    assert found.judged <= 15 * 7
    assert found.evaluations == found.judged * 200 * 4
    rng = Random(5)
    random = [sorted(rng.sample(range(1, 100), 3)) for _ in range(15)]
    subsets = [[1.0, *(1 - i / 100 for i in subset), 0.0] for subset in random]
    grids = [found.grid, orn.Uniform(), Quadratic(), *subsets]
    for seed in range(5):
        x = PROCESS.prior((400, *world.event), seed=100 + seed, dtype=F64)
        data = world.sample(400, seed=200 + seed).to(F64)

        def distance(grid, x=x, data=data):
            steps = 4 if isinstance(grid, orn.Grid) else None
            out = orn.sample(model, x_init=x, solver=orn.DDIM(), grid=grid, steps=steps)
            return mmd(out.x, data, bandwidths=[0.5 * world.dim**0.5])

        own, uniform, quadratic, *others = map(distance, grids)
        assert own < min(uniform, quadratic), (own, uniform, quadratic)
        assert own < sorted(others)[7]


def test_any_measure_and_any_solver():
    """The Frechet distance to the flow's endpoints, and DPM-Solver++: what is searched for is what gets better; the
    same seed finds the same times, all of them among the candidates."""
    model = ring().denoiser(PROCESS)
    lessons = teach(model, (64, 2), seed=1, dtype=F64, steps=20)
    search = AutoDiffusion(orn.DPMSolverPP(), count=40, population=8, generations=3, parents=4)
    found = search.search(lessons, 3, frechet_distance)
    assert found == search.search(lessons, 3, frechet_distance)
    assert found.value == frechet_distance(lessons.run(found.table), lessons.ends)
    even = compiled(orn.DPMSolverPP(), PROCESS, [1.0, 1 - 13 / 40, 1 - 27 / 40, 0.0])
    assert found.value <= frechet_distance(lessons.run(even), lessons.ends)
    times = torch.tensor(found.grid.schedules[0], dtype=F64) * 40
    torch.testing.assert_close(times, times.round(), rtol=0, atol=1e-12)
    out = orn.sample(model, x_init=lessons.starts, table=found.table)
    torch.testing.assert_close(out.x, lessons.run(found.table))
    assert out.nfe == 3


def test_the_candidates_are_the_times_of_the_fine_grid():
    """The first subset is the evenly spread one; of as many steps as the fine grid has there is one, the whole."""
    lessons = teach(ring().denoiser(PROCESS), (8, 2), dtype=F64, steps=10)
    even = AutoDiffusion(count=40, population=1, generations=0).search(lessons, 4)
    assert even.grid.schedules[0] == pytest.approx((1.0, 0.75, 0.5, 0.25, 0.0), abs=1e-12)
    whole = AutoDiffusion(count=5, population=3, generations=1, parents=1).search(lessons, 5)
    assert whole.grid.schedules[0] == pytest.approx((1.0, 0.8, 0.6, 0.4, 0.2, 0.0), abs=1e-12)
    assert whole.judged == 1


def test_evolution_finds_the_best_subset_of_few_trials():
    """3 of 19 points with a known optimum: the best of all 969 subsets, from at most 250 trials, each run once."""
    wanted = (4, 9, 15)
    tried = []

    def judge(subset):
        tried.append(subset)
        return sum(abs(a - b) for a, b in zip(subset, wanted, strict=True))

    def child(best, rng):
        chosen = {min(max(i + rng.randint(-2, 2), 1), 19) for i in rng.choice(best)}
        while len(chosen) < 3:
            chosen.add(rng.randint(1, 19))
        return tuple(sorted(chosen))

    first = list(itertools.combinations(range(1, 20), 3))[::97]
    found = evolve(judge, first, child, population=19, parents=6, generations=14, seed=0)
    assert (found.best, found.value) == (wanted, 0)
    assert len(tried) == len(set(tried)) == len(found.judged) <= 250


def test_a_solver_that_diverges_is_worth_nothing():
    """Endpoints that are not finite count as infinitely bad, and are no error: nor are nan, by any measure."""
    oracle = teach(ring().denoiser(PROCESS), (4, 2), dtype=F64, steps=10)

    def judge_of(factor):
        model = orn.Denoiser(lambda x, t: x * factor, PROCESS, "x0")
        return Judge(type(oracle)(model, oracle.starts, oracle.ends, oracle.start, oracle.end))

    assert judge_of(torch.nan)(orn.DDIM(), [1.0, 0.5, 0.0]) == float("inf")
    judge = judge_of(torch.inf)
    assert judge(orn.DDIM(), [1.0, 0.5, 0.0]) == float("inf")
    assert (judge.judged, judge.evaluations) == (1, 8)


def test_refusals():
    lessons = teach(ring().denoiser(PROCESS), (4, 2), dtype=F64, steps=10)
    with pytest.raises(ValueError, match="2 to 100 steps"):
        AutoDiffusion().search(lessons, 101)
    with pytest.raises(ValueError, match="mutation=0"):
        AutoDiffusion(mutation=0.0)


class Window(nn.Module):
    """h + w(t) d, w a hat about its place: idle where t is further away than 1/4. The product with the matrix stands
    for the work of a block, and is what the share of multiply-adds is counted from."""

    def __init__(self, place):
        super().__init__()
        self.place, self.matrix = place, nn.Parameter(torch.eye(2, dtype=F64))

    def forward(self, h, t, d):
        w = (1 - 4 * (t[:, None] - self.place).abs()).clamp(min=0)
        return h + w * (d @ self.matrix)


class Windows(nn.Module):
    """The exact x0 of a world of modes of one width, x + sum_k w_k(t) (x0 - x), in five blocks, of which one or two
    have something to say at any time."""

    def __init__(self, world):
        super().__init__()
        self.means, self.weights, self.var = world.means, world.weights, 0.15**2
        self.blocks = nn.ModuleList(Window(k / 4) for k in range(5))

    def forward(self, x, t):
        level = PROCESS.level(t)
        alpha, var = (v[:, None, None] for v in (level.alpha, level.alpha**2 * self.var + level.sigma**2))
        apart = x[:, None] - alpha * self.means
        r = (self.weights.log() - (apart**2).sum(2) / (2 * var[..., 0])).softmax(1)[..., None]
        x0 = (r * (self.means + alpha * self.var / var * apart)).sum(1)
        h = x
        for block in self.blocks:
            h = block(h, t, x0 - x)
        return h


@pytest.mark.system("autodiffusion", rival="uniform and quadratic times; as many blocks at random; times alone")
def test_joint():
    """Within four evaluations of a network whose blocks are idle most of the time: on each of 5 fresh sets of starts
    times and blocks found together are better than uniform and quadratic times and those found alone, all for the
    whole network, and than as many blocks left out at random (each of 5 draws), to equal multiply-adds. The truth is
    the world's own flow. Of five sets alike, so long a run has probability 1/32 by chance, for each rival."""
    world = ring()
    model = orn.Denoiser(Windows(world), PROCESS, "x0")
    x = PROCESS.prior((200, 2), seed=0, dtype=F64)
    for t in (0.99, 0.4, 0.1):
        torch.testing.assert_close(model(x, t).x0, world.denoiser(PROCESS)(x, t).x0)
    lessons = teach(model, (128, 2), seed=1, dtype=F64, steps=20)
    blocks = residual_blocks(model, x[:2])
    assert blocks == {f"net.blocks.{k}": 0.2 for k in range(5)}
    asked, search = [0], AutoDiffusion(population=6, generations=2, parents=4)
    model.net.register_forward_pre_hook(lambda net, args: asked.append(len(args[0])))
    found = search.joint(lessons, 6, blocks, 4.1, Endpoint().value)  # blocks are fifths: no run is between 4 and 4.2
    assert found.evaluations == sum(asked)
    assert found.alone.table.nfe == 4 < found.table.nfe <= 6
    assert found.full == pytest.approx(sum(found.denoiser.shares(found.table.levels)))
    assert found.full <= 4 + 1e-9
    rng, times = Random(3), found.grid.schedules[0]
    random = []
    for _ in range(5):
        gone = {t: set(rng.sample(sorted(blocks), len(names))) for t, names in found.denoiser.plan.items()}
        random.append(Skipping(model, blocks, gone))
        assert sum(random[-1].shares(found.table.levels)) == pytest.approx(found.full)
    for seed in range(5):
        fresh = teach(model, (300, 2), seed=100 + seed, dtype=F64, steps=20)

        def error(model, times, fresh=fresh):
            return replace(fresh, denoiser=model).endpoint_error(compiled(orn.DDIM(), PROCESS, times))

        own = error(found.denoiser, times)
        whole = [grid(PROCESS, 4).t.tolist() for grid in (orn.Uniform(), Quadratic())]
        rivals = [error(model, grid) for grid in (*whole, found.alone.grid.schedules[0])]
        rivals += [error(other, times) for other in random]
        assert own < min(rivals), (own, rivals)
    with pytest.raises(ValueError, match=r"budget=1.9: 2 steps with the whole network take 2 "):
        search.joint(lessons, 6, blocks, 1.9)
    with pytest.raises(ValueError, match=r"budget=3: 6 steps without .* take 3.6 "):
        search.joint(lessons, 6, {name: blocks[name] for name in list(blocks)[:2]}, 3)
