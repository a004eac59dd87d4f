"""The loop: one answer whichever process and view carry it, honest counts, no synchronisation, flat memory."""

import itertools
import math
import subprocess
import sys
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ornstein as orn
from ornstein.solvers import Loop, Solver
from ornstein.solvers import solver as solver_module
from worlds import F64, normal, ring

WORLD = ring()
GRID = orn.LogSNR(start=-4.0, end=6.0, to_data=False)
VIEWS = ["x0", "noise", "score", "velocity", "v"]


class Linear(orn.BaseDenoiser):
    """x0 = x/2: as little work as a denoiser can do."""

    def __init__(self, process, predicts="x0"):
        super().__init__()
        self.process, self.predicts = process, predicts

    def bind(self, levels, x, cond):
        return [lambda x: x * 0.5] * len(levels)


# One answer


@pytest.mark.parametrize("solver", [orn.DDIM(), orn.Heun(), orn.DPMSolverPP(order=3), orn.DDPM()], ids=repr)
@pytest.mark.parametrize("process", [orn.VP(), orn.EDM(), orn.Flow()], ids=repr)
def test_samples_do_not_depend_on_the_predicted_view(solver, process):
    """The exact answers are the same function of x, and the conversions add rounding alone: 6 decades of level make
    condition numbers up to e^4/2, so 1e-16 becomes at most some 1e-12."""
    x = normal(6, 2)
    runs = [
        orn.sample(WORLD.denoiser(process, predicts=v), x_init=x, solver=solver, grid=GRID, steps=7, seed=0).x
        for v in VIEWS
    ]
    for other in runs[1:]:
        torch.testing.assert_close(other, runs[0], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("solver", [orn.DDIM(), orn.DDIM(eta=0.7), orn.Heun(), orn.DPMSolverPP(order=3)], ids=repr)
def test_samples_do_not_depend_on_the_process_that_carries_them(solver):
    """In the frame x/alpha all paths with equal sigma/alpha are one; on one log-SNR grid from one x/alpha they end in
    one x/alpha. Euler steps in t, which differs, are its rival."""
    u, ends = normal(6, 2) * math.exp(2), {}
    for process in (orn.VP(), orn.SubVP(), orn.VE(), orn.EDM(), orn.Flow(), orn.Cosine(), orn.Cosine(0.008)):
        for method in (solver, orn.Euler()):
            levels = GRID(process, steps=7)
            x = u * levels.alpha[0]
            out = orn.sample(WORLD.denoiser(process), x_init=x, solver=method, grid=levels, seed=0).x / levels.alpha[-1]
            ends.setdefault(method, []).append(out)
    for other in ends[solver][1:]:
        torch.testing.assert_close(other, ends[solver][0], rtol=1e-8, atol=1e-8)
    assert max(float((other - ends[orn.Euler()][0]).abs().max()) for other in ends[orn.Euler()]) > 1e-3


def test_a_mean_reverting_run_is_an_ordinary_one_in_centred_coordinates():
    """y = x - mean turns the process into alpha (x0 - mean) + sigma noise: same samples, shifted, for every view."""

    @dataclass(frozen=True)
    class Centred(orn.GaussianProcess):
        twin: orn.GaussianProcess

        def alpha(self, t):
            return self.twin.alpha(t)

        def sigma(self, t):
            return self.twin.sigma(t)

    process = orn.MeanReverting(noise_level=0.5)
    plain, mean = Centred(process), torch.tensor([0.7, -0.4], dtype=F64)
    moved = orn.exact.Gaussian(torch.tensor([1.0, 2.0], dtype=F64), std=0.4)
    centred = orn.exact.Gaussian(torch.tensor([1.0, 2.0], dtype=F64) - mean, std=0.4)
    noise, cond = normal(5, 2), {"mean": mean.expand(5, 2)}
    for view in VIEWS:
        for solver in (orn.DPMSolverPP(order=2), orn.Heun(), orn.DDIM(eta=1.0)):
            grid = torch.linspace(0.9, 0.1, 6, dtype=F64)
            a = orn.sample(
                moved.denoiser(process, predicts=view), x_init=mean + noise, cond=cond, solver=solver, grid=grid, seed=0
            )
            b = orn.sample(centred.denoiser(plain, predicts="x0"), x_init=noise, solver=solver, grid=grid, seed=0)
            torch.testing.assert_close(a.x - mean, b.x, rtol=1e-9, atol=1e-10)
    out = orn.sample(moved.denoiser(process), (5, 2), cond=cond, steps=20, seed=1, dtype=F64, trajectory=True)
    torch.testing.assert_close(out.trajectory[-1], out.x)
    # hooks see and return states as the process has them, shift included
    options = {"x_init": mean + noise, "cond": cond, "grid": grid, "seed": 0}
    free = orn.sample(moved.denoiser(process), **options, trajectory=True)
    torch.testing.assert_close(free.trajectory[-1], free.x)
    same = orn.sample(moved.denoiser(process), **options, hooks=[lambda moment: moment.x + 0])
    torch.testing.assert_close(same.x, free.x)
    with pytest.raises(ValueError, match="needs its mean"):
        orn.sample(moved.denoiser(process), (5, 2), steps=3)


def test_float32_differs_from_float64_by_rounding_only():
    """40 steps each round a few times: the difference is a small multiple of eps = 1.2e-7, stretched by the flow."""
    for solver in (orn.DPMSolverPP(order=2), orn.DDIM(eta=1.0)):
        a, b = (
            orn.sample(WORLD.denoiser(orn.Flow()), (200, 2), solver=solver, steps=40, seed=5, dtype=dtype).x
            for dtype in (torch.float32, F64)
        )
        assert a.dtype == torch.float32
        assert float((a.double() - b).abs().median()) < 100 * torch.finfo(torch.float32).eps


# Two strains


class CFGPlusPlus(Solver):
    """x_s = alpha_s x0_guided + sigma_s noise_uncond (Chung et al. 2024, 2406.08070): two views of two channels."""

    def write(self, table, grid):
        x = table.state
        for t, s in itertools.pairwise(grid):
            p = table.evaluate(x, t)
            x = table.step(s.alpha * p.x0 + s.sigma * p.head("uncond").noise, s)


def test_strain_a_solver_of_two_views_of_two_channels():
    process, labels = orn.Flow(), torch.tensor([0, 1, 2, 3, 4])
    oracle, cond = WORLD.denoiser(process, predicts="velocity"), {"label": labels}
    oracle.null = {"label": orn.nets.NULL}
    guided = orn.CFG(oracle, 0.6)
    start = normal(5, 2)
    grid = torch.linspace(0.95, 0.05, 9, dtype=F64)
    out = orn.sample(guided, x_init=start, cond=cond, solver=CFGPlusPlus(), grid=grid)
    x = plain = start
    for t, s in itertools.pairwise(grid):
        c, u = oracle(x, t, cond), oracle(x, t, oracle.without(cond))
        x = (1 - s) * (u.x0 + 0.6 * (c.x0 - u.x0)) + s * u.noise
        g = guided(plain, t, cond)
        plain = (1 - s) * g.x0 + s * g.noise
    torch.testing.assert_close(out.x, x, rtol=1e-9, atol=1e-10)
    assert float((out.x - plain).abs().max()) > 1e-2  # DDIM on CFG, its nearest relative
    assert out.nfe == 16
    with pytest.raises(orn.TableError, match="head 'uncond'"):
        orn.sample(oracle, x_init=start, cond=cond, solver=CFGPlusPlus(), grid=grid)


def test_a_table_serves_denoisers_whose_heads_answer_in_different_views():
    table = CFGPlusPlus().compile(orn.Flow(), orn.Uniform(0.9, 0.1)(orn.Flow(), steps=3))
    for view in ("x0", "noise", "score"):
        net = lambda x, t: {"main": 0.5 * x, "uncond": 0.2 * x}  # noqa: E731
        model = orn.Denoiser(net, orn.Flow(), heads={"uncond": view})
        used = orn.sample(model, x_init=normal(2, 2), table=table, dtype=F64).x
        fresh = orn.sample(model, x_init=normal(2, 2), solver=CFGPlusPlus(), grid=orn.Uniform(0.9, 0.1), steps=3).x
        assert torch.equal(used, fresh)


class State(NamedTuple):
    position: object
    angle: object


class Joint(orn.BaseDenoiser):
    """The exact denoiser of two correlated scalars under two processes: x = A x0 + S noise, E[x0|x] = C A K^-1 x."""

    def __init__(self, process, cov):
        super().__init__()
        self.process, self.predicts, self.cov = process, "x0", cov

    def bind(self, levels, x, cond):
        def call(x, a, s):
            gain = self.cov @ a @ torch.linalg.inv(a @ self.cov @ a + s @ s)
            return State(*((torch.cat(list(x), 1) @ gain.T)[:, i : i + 1] for i in range(2)))

        diagonal = [
            [torch.diag(torch.stack([getattr(c, name)[e] for c in levels.components])) for name in ("alpha", "sigma")]
            for e in range(len(levels))
        ]
        return [lambda x, a=a, s=s: call(x, a, s) for a, s in diagonal]


def test_strain_a_state_of_two_components_with_a_process_each():
    """A correlated Gaussian pair, one component under VP and one under Flow, sampled back by one denoiser.

    The whole map is linear, so the law of the result is computed from its matrix, not sampled: started from the exact
    joint law at t = 0.98 and solved by 400 steps of order 2, it is the data's covariance to 1e-3. With the components
    denoised apart (the rival) the correlation that the data have is lost.
    """
    cov = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=F64)
    product = orn.Product(State(orn.VP(), orn.Flow()))
    # equal times are very different levels for the two: a grid that both can step along
    times = torch.cat([torch.linspace(0.98, 0.02, 200, dtype=F64), torch.logspace(-1.8, -4, 200, dtype=F64)])
    ends = product.level(times[:1])
    a, s = (torch.diag(torch.stack([getattr(c, n)[0] for c in ends.components])) for n in ("alpha", "sigma"))
    start = torch.linalg.cholesky(a @ cov @ a + s @ s)

    def law(denoiser, solver):
        basis = torch.eye(2, dtype=F64)
        out = orn.sample(denoiser, x_init=State(basis[:, :1], basis[:, 1:]), solver=solver, grid=times)
        assert out.nfe == len(times) - 1
        matrix = torch.cat(list(out.x), 1).T @ start
        return matrix @ matrix.T

    for solver in (orn.DPMSolverPP(order=2), [orn.DPMSolverPP(order=2), orn.DPMSolverPP(order=2)]):
        torch.testing.assert_close(law(Joint(product, cov), solver), cov, rtol=0, atol=1e-3)
    apart = law(Joint(product, torch.diag(cov.diagonal())), orn.DPMSolverPP(order=2))
    assert abs(float(apart[0, 1]) - 0.6) > 0.1
    mixed = law(Joint(product, cov), [orn.DPMSolverPP(order=2), orn.DDIM()])
    assert 1e-4 < float((mixed - cov).abs().max()) < 0.1  # a component with a solver of lower order shows it

    shape = State((4, 1), (4, 1))
    out = orn.sample(Joint(product, cov), shape, solver=orn.DDIM(eta=1.0), steps=5, seed=0, trajectory=True, dtype=F64)
    assert isinstance(out.x, State)
    assert out.trajectory.position.shape == (6, 4, 1)
    assert not torch.equal(out.x.position, out.x.angle)


def test_a_projection_keeps_a_product_state_in_its_space():
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])

    def project(state, cond):
        return State(state.position * cond["mask"], state.angle)

    product = orn.Product(State(orn.VP(), orn.Flow()), project=project)
    net = lambda x, t, cond: State(x.position + 1, x.angle)  # noqa: E731 - leaves the space on purpose
    model = orn.Denoiser(net, product, predicts="x0")
    out = orn.sample(
        model, State((2, 3), (2, 1)), cond={"mask": mask}, solver=orn.DDIM(eta=1.0), steps=4, seed=0, trajectory=True
    )
    assert bool((out.trajectory.position * (1 - mask) == 0).all())
    assert bool((out.trajectory.position[:, mask.bool()] != 0).all())


# Cost


class Count(TorchDispatchMode):
    SYNC = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item")

    def __init__(self):
        super().__init__()
        self.calls, self.synced = Counter(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        if name in self.SYNC:
            self.synced.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "solver",
    [orn.Euler(), orn.Heun(), orn.DDIM(), orn.DDIM(eta=1.0), *(orn.DPMSolverPP(order=k) for k in (2, 3))],
    ids=repr,
)
@pytest.mark.parametrize("predicts", ["x0", "velocity"])
def test_a_step_makes_few_calls_and_none_that_synchronises(solver, predicts):
    """At most one ATen call for each coefficient of the row and six more, the network's own single call among them."""
    process = orn.Flow()
    table = solver.compile(process, GRID(process, steps=20))
    with torch.no_grad():
        loop = Loop(Linear(process, predicts), table, normal(64, 2))
        noise = orn.Noise(0, batch=64, dtype=F64)
        with Count() as count:
            loop.run(noise)
    assert count.synced == []
    assert sum(count.calls.values()) <= table.nonzeros + 6 * table.steps
    assert count.calls["mul"] >= table.nfe  # the network ran


class NoDoubles(TorchDispatchMode):
    """Refuses float64 tensors on the device of the state; "meta" stands for an accelerator that has none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                assert tensor.dtype != F64, func
        return out


@pytest.mark.parametrize("solver", [orn.DDIM(eta=1.0), orn.DPMSolverPP(order=3), orn.Heun()], ids=repr)
def test_no_float64_tensor_reaches_the_device(solver):
    process = orn.MeanReverting()
    net = torch.nn.Linear(2, 2, device="meta")
    model = orn.Denoiser(lambda x, t, cond: net(x) * t[:, None], process, precondition=orn.EDMPrecondition())
    x, cond = torch.empty(4, 2, device="meta"), {"mean": torch.empty(4, 2, device="meta")}
    times = torch.linspace(1, 0, 6, dtype=F64)[:, None].expand(6, 4)
    with torch.no_grad():
        for grid in (orn.LogSNR()(process, steps=5), process.level(times)):
            loop = None
            with NoDoubles():
                loop = Loop(model, solver.compile(process, grid), x, cond)
                assert loop.run(_MetaNoise()).dtype == torch.float32


class _MetaNoise(orn.Noise):
    def __init__(self):
        super().__init__(0, batch=4)

    def normal(self, shape):
        return torch.empty(shape, device="meta")


def test_memory_is_flat_in_the_number_of_steps():
    """The largest number of tensors of the state's size alive at an evaluation is the same for 10 and 200 steps."""

    class Alive(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.made, self.peak = weakref.WeakSet(), 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape == (64, 33):
                self.made.add(out.untyped_storage())
                self.peak = max(self.peak, len(self.made))
            return out

    peaks = []
    for steps in (10, 100):
        with Alive() as alive:
            orn.sample(Linear(orn.Flow()), (64, 33), solver=orn.DPMSolverPP(order=3), steps=steps, seed=0)
        peaks.append(alive.peak)
    assert peaks[0] == peaks[1] <= 6  # the start, the state, three evaluations, and one in the making


def test_nfe_is_what_was_run():
    class Counted(torch.nn.Module):
        rows = 0

        def forward(self, x, t, cond=None):
            self.rows += len(x)
            return x * 0.3

    for solver, expected in ((orn.Heun(), 2 * 7 - 1), (orn.DDIM(), 7), (orn.DPMSolverPP(order=3), 7)):
        net = Counted()
        out = orn.sample(orn.Denoiser(net, orn.VP()), (5, 2), solver=solver, steps=7, seed=0)
        assert out.nfe == expected == net.rows / 5
    for nfe in (1, 4, 9, 10, 33):
        out = orn.sample(orn.Denoiser(Counted(), orn.VP()), (5, 2), solver=orn.Heun(), nfe=nfe, seed=0)
        assert nfe - 1 <= out.nfe <= nfe
    with pytest.raises(ValueError, match="nfe=0 is too few"):
        orn.sample(orn.Denoiser(Counted(), orn.VP()), (5, 2), solver=orn.Heun(), nfe=0)


@pytest.mark.parametrize(
    "solver",
    [orn.DDIM(), orn.Heun(), orn.RK4(), orn.solvers.PNDM(), orn.DPMSolver(order=3)],
    ids=lambda s: type(s).__name__,
)
def test_nfe_takes_the_most_steps_that_fit(solver, monkeypatch):
    """As trying every number of steps does, with a few tables compiled. (PNDM's first steps cost 4 each.)"""
    process, tables = orn.VP(), []
    compile_table = solver_module.compile_table

    def counted(*args):
        tables.append(compile_table(*args))
        return tables[-1]

    monkeypatch.setattr(solver_module, "compile_table", counted)
    grid = lambda n: orn.LogSNR()(process, n)  # noqa: E731
    cost = {n: sum(WORLD.denoiser(process).cost(compile_table(solver, process, grid(n)).levels)) for n in range(1, 26)}
    for nfe in (4, 13, 24):
        if cost[1] <= nfe:
            found = solver_module.steps_within(nfe, solver, WORLD.denoiser(process), grid)
            assert found == max(n for n in cost if cost[n] <= nfe)
    tables.clear()
    assert solver_module.steps_within(100, solver, WORLD.denoiser(process), grid)
    assert len(tables) <= 4


def test_nfe_on_a_grid_that_ends():
    """Heun fits below its end; DDIM would go beyond it, and is told so."""

    def grid(n):
        if n > 70:
            raise ValueError("no more than 70 steps")
        return orn.LogSNR()(orn.VP(), n)

    model = WORLD.denoiser(orn.VP())
    assert solver_module.steps_within(100, orn.Heun(), model, grid) == 50
    with pytest.raises(ValueError, match="no more than 70"):
        solver_module.steps_within(100, orn.DDIM(), model, grid)


# Noise


def test_per_sample_seeds_fix_each_sample_whatever_the_batch():
    oracle, seeds = WORLD.denoiser(orn.VP()), torch.tensor([11, 12, 13, 14, 15, 16])
    run = lambda s: orn.sample(oracle, (len(s), 2), solver=orn.DDPM(), steps=30, seed=s, dtype=F64).x  # noqa: E731
    whole = run(seeds)
    torch.testing.assert_close(
        torch.cat([run(seeds[:1]), run(seeds[1:5]), run(seeds[5:])]), whole, rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(run(seeds.flip(0)).flip(0), whole, rtol=1e-9, atol=1e-9)
    assert len(torch.unique((whole * 1e3).round(), dim=0)) == 6
    with pytest.raises(ValueError, match="6 per-sample seeds for a batch of 5"):
        orn.sample(oracle, (5, 2), seed=seeds)


def test_a_seed_repeats_a_run_and_is_reported():
    oracle = WORLD.denoiser(orn.VP())
    first = orn.sample(oracle, (8, 2), solver=orn.DDPM(), steps=5)
    again = orn.sample(oracle, (8, 2), solver=orn.DDPM(), steps=5, seed=first.seed)
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, orn.sample(oracle, (8, 2), solver=orn.DDPM(), steps=5).x)
    given = torch.Generator().manual_seed(3)
    a = orn.sample(oracle, (8, 2), solver=orn.DDPM(), steps=5, seed=given).x
    b = orn.sample(oracle, (8, 2), solver=orn.DDPM(), steps=5, seed=given).x
    assert not torch.equal(a, b)  # a generator goes on


def test_per_sample_times_are_each_samples_own_run():
    """A grid (N+1, batch) gives every sample what it would have got alone, for each kind of solver."""
    process = orn.Flow()
    times = torch.stack([torch.linspace(0.9, 0.1, 5, dtype=F64), torch.linspace(0.7, 0.0, 5, dtype=F64) ** 2 + 0.01], 1)
    x = normal(2, 2)
    for view in ("x0", "velocity"):
        for solver in (orn.Euler(), orn.DDIM(), orn.Heun(), orn.DPMSolverPP(order=2), orn.DPMSolverPP(order=3)):
            oracle = WORLD.denoiser(process, predicts=view)
            both = orn.sample(oracle, x_init=x, solver=solver, grid=times).x
            for i in range(2):
                alone = orn.sample(oracle, x_init=x[i : i + 1], solver=solver, grid=times[:, i]).x
                torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-9, atol=1e-10)


# Hooks, trajectories, gradients


def test_inversion_and_back():
    """A rising grid runs the flow from data to noise; the two errors are of order 2 and small."""
    process, oracle = orn.VP(), WORLD.denoiser(orn.VP())
    x = WORLD.sample(6, seed=2).to(F64) * 0.999
    up = GRID(process, steps=300).t.flip(0)
    there = orn.sample(oracle, x_init=x, grid=up, solver=orn.DPMSolverPP(order=2)).x
    back = orn.sample(oracle, x_init=there, grid=up.flip(0), solver=orn.DPMSolverPP(order=2)).x
    assert float((back - x).abs().max()) < 1e-3
    ddim = orn.sample(oracle, x_init=x, grid=up, solver=orn.DDIM()).x  # of order 1, to the same place
    assert 1e-4 < float((ddim - there).abs().max()) < 0.2
    for solver in (orn.DDPM(), orn.DDIM(eta=1.0)):
        with pytest.raises(ValueError, match="noise"):
            orn.sample(oracle, x_init=x, grid=up, solver=solver)


def test_trajectories_and_hooks_see_every_row():
    oracle, seen = WORLD.denoiser(orn.VP()), []

    def look(moment):
        seen.append((moment.row, moment.on_grid, sorted(moment.registers), float(moment.level.t)))
        if moment.on_grid and float(moment.level.t) == 0:
            return moment.x.clamp(-1, 1)
        return None

    out = orn.sample(oracle, (3, 2), solver=orn.Heun(), steps=3, seed=0, hooks=[look], trajectory=True, dtype=F64)
    free = orn.sample(oracle, (3, 2), solver=orn.Heun(), steps=3, seed=0, dtype=F64)
    assert torch.equal(out.x, free.x.clamp(-1, 1))
    assert [row for row, *_ in seen] == [1, 2, 3, 4, 5]
    assert [on_grid for _, on_grid, *_ in seen] == [False, True, False, True, True]
    assert [t for *_, t in seen] == [float(out.table.rows[m].level.t) for m in (2, 2, 4, 4, 5)]
    assert seen[0][2] == [0, 1]
    assert out.trajectory.shape == (4, 3, 2)
    assert torch.equal(out.trajectory[-1], out.x)


def test_transitions_are_the_gaussians_that_were_drawn_and_replay_with_gradient():
    """log_prob is that of the recorded states under independently computed means; the replayed gradient is that of
    log N by hand for a denoiser x0 = w x."""

    class Scaled(orn.BaseDenoiser):
        def __init__(self, w):
            super().__init__()
            self.process, self.predicts = orn.VP(), "x0"
            self.w = torch.nn.Parameter(torch.tensor(w, dtype=F64))

        def bind(self, levels, x, cond):
            return [lambda x: x * self.w] * len(levels)

    model, grid = Scaled(0.4), GRID(orn.VP(), steps=4)
    x = normal(3, 2)
    out, path = orn.record(model, x_init=x, solver=orn.DDPM(), grid=grid, seed=0)
    plain = orn.sample(model, x_init=x, solver=orn.DDPM(), grid=grid, seed=0)
    assert torch.equal(out.x, plain.x)
    assert torch.equal(orn.record(model, x_init=x, table=plain.table, seed=0)[1].log_prob, path.log_prob)
    assert path.rows == (1, 2, 3, 4)
    assert torch.equal(path.state[-1], out.x)

    states = [x, *path.state]
    w = torch.tensor(0.4, dtype=F64, requires_grad=True)
    log_prob = []
    for i in range(4):
        t, s = grid[i], grid[i + 1]
        fresh, kept = 1 - torch.exp(t.log_snr - s.log_snr), (s.sigma / t.sigma) ** 2
        mean = t.alpha / s.alpha * kept * states[i] + s.alpha * fresh * w * states[i]
        std = t.sigma * torch.sqrt(fresh * kept)
        log_prob.append(torch.distributions.Normal(mean, std).log_prob(states[i + 1]).sum(1))
    torch.testing.assert_close(path.log_prob, torch.stack(log_prob).detach(), rtol=1e-10, atol=1e-10)
    replayed = path.replay(model)
    torch.testing.assert_close(replayed.log_prob, path.log_prob, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(replayed.noise, path.noise, rtol=1e-10, atol=1e-10)
    (by_hand,) = torch.autograd.grad(torch.stack(log_prob).sum(), w)
    (found,) = torch.autograd.grad(replayed.log_prob.sum(), model.w)
    torch.testing.assert_close(found, by_hand, rtol=1e-9, atol=1e-9)
    assert abs(float(found)) > 1e-3
    other = path.replay(Scaled(0.5))
    assert torch.equal(other.state, path.state)
    assert float((other.log_prob - path.log_prob).detach().abs().max()) > 1e-3
    with pytest.raises(orn.TableError, match="draws no noise"):
        orn.record(model, x_init=x, solver=orn.DDIM(), grid=grid)
    with pytest.raises(orn.TableError, match="std for each sample"):
        orn.record(model, x_init=x, solver=orn.DDPM(), grid=grid.t[:, None].expand(5, 3))


@pytest.mark.parametrize("solver", [orn.DPMSolverPP(order=2), orn.DDIM(eta=1.0)], ids=repr)
def test_differentiable_runs_have_the_gradient_of_the_run(solver):
    oracle = WORLD.denoiser(orn.VP())
    x = normal(2, 2).requires_grad_()

    def end(x):
        return orn.sample(oracle, x_init=x, solver=solver, grid=GRID, steps=6, seed=0, differentiable=True).x

    (grad,) = torch.autograd.grad(end(x)[:, 0].sum(), x)
    step = torch.zeros_like(x)
    step[0, 1] = 1e-6
    with torch.no_grad():
        slope = (end(x + step)[0, 0] - end(x - step)[0, 0]) / 2e-6
    assert float(grad[0, 1]) == pytest.approx(float(slope), rel=1e-5, abs=1e-7)
    assert orn.sample(oracle, x_init=x, solver=solver, grid=GRID, steps=6).x.requires_grad is False


# Refusals


def test_nan_is_named_by_a_replay_with_the_same_noise():
    class Breaks(torch.nn.Module):
        def forward(self, x, t):
            return torch.where((t < 0.35)[:, None] & (torch.arange(len(x)) == 2)[:, None], torch.nan, x * 0.1)

    model = orn.Denoiser(Breaks(), orn.Flow(), predicts="x0")
    for debug in (False, True):
        with pytest.raises(orn.NonFiniteError, match=r"step 5 of 5, register r5 .*1 of 4 samples \(the first is 2\)"):
            orn.sample(model, (4, 2), solver=orn.DDIM(eta=1.0), grid=orn.Uniform(), steps=5, seed=0, debug=debug)


def test_the_replay_meets_the_same_noise():
    """A network that breaks where the noise drives a state far out: the replay names what `debug` sees as it goes."""
    model = orn.Denoiser(lambda x, t: torch.where(x.abs() > 1.5, torch.nan, x * 0.5), orn.VP(), predicts="x0")
    named = set()
    for seed in range(8):
        found = []
        for debug in (False, True):
            with pytest.raises(orn.NonFiniteError) as error:
                orn.sample(model, (3, 2), solver=orn.DDPM(), grid=orn.Uniform(), steps=12, seed=seed, debug=debug)
            found.append(str(error.value))
        assert found[0] == found[1]
        named.add(found[0])
    assert len(named) > 3


def test_bad_requests_are_refused_before_anything_runs():
    class Never(torch.nn.Module):
        def forward(self, x, t, cond=None):
            raise AssertionError("the network ran")

    model = orn.Denoiser(Never(), orn.Flow())
    good = {"shape": (3, 2)}
    for options, message in [
        ({}, "give the shape"),
        ({**good, "steps": 0}, "steps=0"),
        ({**good, "steps": 3, "nfe": 3}, "not both"),
        ({**good, "cond": {"label": torch.zeros(4)}}, r"cond\['label'\] has shape \(4,\).*batch of 3"),
        ({**good, "grid": [0.9, 0.0]}, "starts at t = 0.9: give x_init"),
        ({"shape": (2, 2), "grid": torch.tensor([[1.0, 0.9], [0.0, 0.0]])}, "starts at t = 0.9: give x_init"),
        ({**good, "grid": [1.0, 0.5, 0.0], "steps": 3}, "make 2 steps"),
        ({"shape": (3, 2), "x_init": torch.zeros(4, 2)}, "x_init has shape"),
        (
            {**good, "solver": orn.DDIM(), "table": orn.DDIM().compile(orn.Flow(), orn.Uniform()(orn.Flow(), 2))},
            "not both",
        ),
        ({**good, "solver": [orn.DDIM(), orn.DDIM()]}, "2 solvers"),
        ({**good, "grid": [1.0, 0.5, 0.0], "nfe": 2}, "know their number of steps"),
        ({**good, "grid": orn.Uniform()(orn.VP(), 4)}, "another process"),
        ({**good, "grid": torch.tensor([[1.0, 1.0], [0.0, 0.0]])}, "times for 2 samples, the batch is 3"),
        ({**good, "dtype": torch.int64}, "floating point"),
        ({"shape": 3}, "a shape is"),
        ({"shape": (3.0, 2)}, "a shape is"),
    ]:
        with pytest.raises(ValueError, match=message):
            orn.sample(model, **options)
    noisy = orn.Denoiser(Never(), orn.Flow(), predicts="noise")
    with pytest.raises(orn.ViewError, match="x0 cannot be formed from noise at t = 1"):
        orn.sample(noisy, (3, 2))
    with pytest.raises(orn.ViewError, match="velocity cannot be formed"):
        orn.sample(
            orn.Denoiser(Never(), orn.VP(), predicts="x0"),
            x_init=torch.zeros(2, 2),
            solver=orn.Euler(),
            grid=[0.0, 0.5],
        )
    for wrong in ({"eta": -1.0}, {"eta": math.nan}):
        with pytest.raises(ValueError, match="eta"):
            orn.DDIM(**wrong)
    with pytest.raises(ValueError, match="order=4"):
        orn.DPMSolverPP(order=4)


def test_things_of_the_wrong_kind_are_named():
    """In a process of its own, as users run it: while tests run the annotations refuse these first."""
    code = """
import numpy, torch, ornstein as orn
model = orn.exact.Gaussian(torch.zeros(2), std=1.0).denoiser(orn.Flow())
assert orn.sample(model, (3, 2), steps=2, seed=numpy.int64(3)).seed == 3
net = lambda x, t: x
for call, message in [
    (lambda: orn.sample(model, (3, 2), solver="ddim"), "a solver is an object"),
    (lambda: orn.sample(model, (3, 2), solver=orn.DDIM), "a solver is an object"),
    (lambda: orn.sample(model, (3, 2), grid="karras"), "a grid is an object"),
    (lambda: orn.sample(model, (3, 2), grid=orn.Karras), "a grid is an object"),
    (lambda: orn.DDIM().compile(orn.Flow(), [1.0, 0.5]), "compile takes levels"),
    (lambda: orn.Denoiser(net, orn.Flow), "a process is an object"),
    (lambda: orn.Denoiser(net, "flow"), "a process is an object"),
    (lambda: orn.Denoiser(net, orn.Flow(), heads={"gate": "eps"}), "gate='eps' is no view"),
]:
    try:
        call()
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_hook_is_held_to_shape_and_named_for_its_nan():
    oracle = WORLD.denoiser(orn.VP())
    with pytest.raises(ValueError, match=r"a hook returned \(1, 2\) for a state of \(3, 2\) at row 1"):
        orn.sample(oracle, (3, 2), solver=orn.DDIM(), steps=3, seed=0, hooks=[lambda m: m.x[:1]])
    for row in (2, 3):

        def broken(moment, row=row):
            return moment.x * math.nan if moment.row == row else None

        with pytest.raises(orn.NonFiniteError, match=f"step {row} of 3, register r{row} "):
            orn.sample(oracle, (3, 2), solver=orn.DDIM(), steps=3, seed=0, hooks=[broken])


def test_a_head_that_is_missing_at_one_level_is_never_another():
    """Outside its interval CFG runs one branch: a solver that reads the other there is refused, and gets no main."""

    class Uncond(Solver):
        def write(self, table, grid):
            x = table.state
            for t, s in itertools.pairwise(grid):
                p = table.evaluate(x, t).head("uncond")
                x = table.step(s.alpha * p.x0 + s.sigma * p.noise, s)

    guided, cond = orn.CFG(WORLD.denoiser(orn.Flow()), 2.0, interval=(0.5, 1.0)), {"label": torch.tensor([0, 1])}
    for solver in (Uncond(), CFGPlusPlus()):
        orn.sample(guided, x_init=normal(2, 2), cond=cond, solver=solver, grid=[0.9, 0.7, 0.4])
        with pytest.raises(orn.TableError, match="head 'uncond'"):
            orn.sample(guided, x_init=normal(2, 2), cond=cond, solver=solver, grid=[0.9, 0.7, 0.4, 0.2])


def test_a_network_of_the_wrong_shape_is_named():
    model = orn.Denoiser(lambda x, t: x[:, :1], orn.Flow())
    with pytest.raises(ValueError, match=r"returned \(3, 1\) for a state of \(3, 2\)"):
        orn.sample(model, (3, 2))


def test_evaluation_mode_and_scaling():
    """Samples leave in the user's units, and modules that were training are training again."""
    net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Identity())
    model = orn.Denoiser(lambda x, t: net(x), orn.Flow(), predicts="x0", scaling=orn.Scaling(3.0, 2.0))
    model.inner = net
    net[1].eval()
    out = orn.sample(model, (4, 2), seed=0, trajectory=True)
    model.scaling = None
    plain = orn.sample(model, (4, 2), seed=0, trajectory=True)
    torch.testing.assert_close(out.x, plain.x * 2 + 3)
    torch.testing.assert_close(out.trajectory, plain.trajectory * 2 + 3)
    assert [m.training for m in net] == [True, False]


def test_a_head_that_is_no_view_is_read_as_it_came():
    """A network with a variance head, and a solver that draws each step with it as standard deviation."""

    class Learned(Solver):
        def write(self, table, grid):
            x = table.state
            for _, s in itertools.pairwise(grid):
                p = table.evaluate(x, s)
                x = table.step(p.x0 + 0.5 * p.head("spread").raw, s)

    model = orn.Denoiser(lambda x, t: {"main": -x, "spread": x + 3}, orn.Flow(), predicts="x0")
    x = normal(3, 2)
    out = orn.sample(model, x_init=x, solver=Learned(), grid=[0.9, 0.8])
    torch.testing.assert_close(out.x, -x + 0.5 * (x + 3))
    with pytest.raises(orn.TableError, match="the network returned main"):
        orn.sample(
            orn.Denoiser(lambda x, t: -x, orn.Flow(), predicts="x0"), x_init=x, solver=Learned(), grid=[0.9, 0.8]
        )


def test_a_replay_is_in_evaluation_mode_and_hooks_are_not_recorded():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5)).double()
    model = orn.Denoiser(lambda x, t: net(x), orn.VP(), predicts="x0")
    model.inner = net.train()
    _, path = orn.record(model, x_init=normal(3, 2), solver=orn.DDPM(), grid=GRID, steps=3, seed=0)
    torch.testing.assert_close(path.replay(model).log_prob, path.log_prob, rtol=1e-9, atol=1e-9)
    assert net.training
    with pytest.raises(orn.TableError, match="without hooks"):
        orn.record(model, x_init=normal(3, 2), solver=orn.DDPM(), grid=GRID, steps=3, hooks=[lambda moment: None])


def test_live_coefficients_have_their_gradient():
    """A coefficient that requires a gradient, in a differentiable run: d x/d c by hand and by autograd."""

    class Tuned(Solver):
        def __init__(self, c):
            self.c = c

        def write(self, table, grid):
            x = table.state
            for t, s in itertools.pairwise(grid):
                x = table.step(s.sigma / t.sigma * x + self.c * table.evaluate(x, t).x0, s)

    c = torch.tensor(0.3, dtype=F64, requires_grad=True)
    model, x = orn.Denoiser(lambda x, t: 0.5 * x, orn.Flow(), predicts="x0"), normal(3, 2)
    for _ in range(2):  # nothing of a graph is kept from one run to the next
        out = orn.sample(model, x_init=x, solver=Tuned(c), grid=[0.8, 0.4, 0.2], differentiable=True).x
        (grad,) = torch.autograd.grad(out.sum(), c)
        torch.testing.assert_close(out, (0.5 + 0.5 * c) ** 2 * x)
        torch.testing.assert_close(grad, (0.5 + 0.5 * c.detach()) * x.sum())


@pytest.mark.parametrize("shape", [(3, 1), (1, 2), (3, 3)])
def test_a_mean_of_another_shape_is_refused_not_broadcast(shape):
    process, cond = orn.MeanReverting(), {"mean": torch.zeros(shape)}
    model, x = orn.Denoiser(lambda x, t, cond: x, process, predicts="x0"), torch.zeros(3, 2)
    for run in (
        lambda: orn.sample(model, (3, 2), cond=cond, steps=2),
        lambda: orn.sample(model, x_init=x, cond=cond, grid=[0.9, 0.1]),
        lambda: process.corrupt(x, 0.5, cond=cond),
        lambda: model(x, 0.5, cond).noise,
    ):
        with pytest.raises(
            ValueError, match=r"the mean in cond has shape .*, the state \(3, 2\)|must be the batch of 3"
        ):
            run()


class Normed(orn.Solver):
    """x_s = x_t + (s - t) |x|/|velocity| velocity: a row whose coefficient depends on the data."""

    def write(self, table, grid):
        x = table.state
        for t, s in itertools.pairwise(grid):
            velocity = table.evaluate(x, t).velocity

            def move(x, v, h=float(s.t - t.t)):
                return x + h * v * (x.norm(dim=1) / v.norm(dim=1))[:, None]

            x = table.apply(move, x, velocity, level=s, on_grid=True)


def test_rows_that_depend_on_the_data():
    """Against a hand-written loop; every sample has its own coefficient; what needs numbers refuses such a table."""
    process, x = orn.Flow(), normal(4, 2)
    oracle = ring().denoiser(process)
    table = Normed().compile(process, orn.Uniform(end=0.2)(process, steps=5))
    out = orn.sample(oracle, x_init=x, table=table, trajectory=True)
    for t, s in itertools.pairwise(torch.linspace(1, 0.2, 6, dtype=F64)):
        v = oracle(x, t).velocity
        x = x + (s - t) * v * (x.norm(dim=1) / v.norm(dim=1))[:, None]
    torch.testing.assert_close(out.x, x, rtol=1e-12, atol=1e-13)
    assert out.nfe == 5
    assert len(out.trajectory) == 6
    assert "move(r0, r1)" in str(table)
    with pytest.raises(orn.TableError, match="depend on the data"):
        table.to_json()
    with pytest.raises(orn.TableError, match="depend on the data"):
        orn.response(table, 0.0, 1.0)
    with pytest.raises(orn.TableError, match="no density"):
        orn.record(oracle, x_init=normal(4, 2), table=NoisyNormed().compile(process, process.level([1.0, 0.5])))


class NoisyNormed(Normed):
    def write(self, table, grid):
        super().write(table, grid)
        last = orn.solvers.table.Register(len(table._rows) - 1)
        table.step(last + 0.1 * table.noise(grid[0], grid[1]), grid[-1])


class Doubled(orn.Solver):
    """Euler and the midpoint rule on the same stage: their difference, carried to the end, estimates the error."""

    def write(self, table, grid):
        x, gap = table.state, None
        for t, s in itertools.pairwise(grid):
            h = s.t - t.t
            first = table.evaluate(x, t).velocity
            middle = table.level((t.t + s.t) / 2)
            second = table.evaluate(table.register(x + h / 2 * first, middle), middle).velocity
            local = h * (second - first)
            gap = table.register(local if gap is None else gap + local)
            x = table.step(x + h * second, s)
        table.error(gap)


def test_an_embedded_estimate_leaves_with_the_samples(tmp_path):
    """error is the root mean square over the event of the register that the solver marked, in the user's units."""
    process, x = orn.Flow(), normal(4, 2)
    oracle = ring().denoiser(process)
    table = Doubled().compile(process, orn.Uniform(end=0.2)(process, steps=5))
    table.save(tmp_path / "table.json")
    y, gap = x, torch.zeros_like(x)
    for t, s in itertools.pairwise(torch.linspace(1, 0.2, 6, dtype=F64)):
        first = oracle(y, t).velocity
        second = oracle(y + (s - t) / 2 * first, (s + t) / 2).velocity
        gap, y = gap + (s - t) * (second - first), y + (s - t) * second
    for known in (table, orn.Table.load(tmp_path / "table.json")):
        out = orn.sample(oracle, x_init=x, table=known)
        torch.testing.assert_close(out.x, y, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(out.error, gap.square().mean(1).sqrt(), rtol=1e-10, atol=1e-13)
    oracle.scaling = orn.Scaling(1.0, 3.0)
    torch.testing.assert_close(orn.sample(oracle, x_init=x, table=table).error, 3 * out.error)
    assert orn.sample(oracle, x_init=x, steps=3).error is None


def test_a_stepper_is_the_loop_with_the_network_outside():
    process, x = orn.VP(), normal(4, 2)
    oracle = ring().denoiser(process, predicts="noise")
    table = orn.DDIM(eta=1.0).compile(process, orn.LogSNR()(process, steps=4))
    run = orn.solvers.Stepper(table, process, "noise", x).stream(orn.Noise(5, batch=4, dtype=F64))
    index, state = next(run)
    for expected in range(3):
        assert index == expected
        index, state = run.send(oracle.forward(state, table.levels[index]))
    with pytest.raises(StopIteration) as stop:
        run.send(oracle.forward(state, table.levels[index]))
    truth = orn.sample(oracle, x_init=x, table=table, seed=5).x
    torch.testing.assert_close(stop.value.value, truth, rtol=1e-12, atol=1e-13)
