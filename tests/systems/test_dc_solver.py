"""DC-Solver: re-timed outputs, their ratios found on ten starts, and told for budgets and scales never searched."""

import pytest
import torch

import ornstein as orn
from orders import WORLDS
from ornstein.solvers import CosineGrid
from ornstein.solvers.exponential import secant_weights, transfer
from ornstein.tuning.dc_solver import DCSolver, Ratios, line_minimum
from ornstein.tuning.found import compiled
from ornstein.tuning.lessons import teach
from worlds import F64, normal, ring

PROCESS = orn.VP()


@pytest.mark.parametrize("process", [orn.VP(), orn.EDM(), orn.MeanReverting()], ids=repr)
def test_ratios_of_one_are_unipc(process):
    """To rounding, for every order, with ratios of one or none; any other ratio moves the end."""
    model = ring().denoiser(process)
    cond = {"mean": normal(6, 2, seed=4)} if isinstance(process, orn.MeanReverting) else None
    x = process.prior((6, 2), seed=1, cond=cond, dtype=F64)

    def end(solver):
        return orn.sample(model, x_init=x, solver=solver, grid=orn.LogSNR(), steps=6, cond=cond).x

    for order, variant in ((1, "bh1"), (2, "bh2"), (3, "bh1"), (3, "vary_coeff")):
        wanted = end(orn.UniPC(order=order, variant=variant, start="published"))
        for ratios in ((), (1.0,) * 4):
            own = end(DCSolver(order, variant, ratios=ratios))
            torch.testing.assert_close(own, wanted, rtol=1e-11, atol=1e-11)
    for i in range(4):
        ratios = tuple(1.2 if j == i else 1.0 for j in range(4))
        assert float((end(DCSolver(ratios=ratios)) - end(DCSolver())).abs().max()) > 1e-4, i


@pytest.mark.parametrize("degree", [1, 2])
def test_the_last_output_is_read_at_the_ratio_s_time(degree):
    """x0(t) = p(t), a polynomial of the interpolation's degree: the step to data lands on p(t') with
    t' = rho t_i + (1 - rho) t_(i-1) exactly, where UniPC lands on p(t_i)."""
    c = torch.tensor([0.4, -1.1, 0.7][: degree + 1], dtype=F64)

    def p(t):
        return (c * t[..., None] ** torch.arange(degree + 1, dtype=F64)).sum(-1)

    model = orn.Denoiser(lambda x, t: p(t)[:, None].expand_as(x), PROCESS, "x0")
    times = [1.0, 0.7, 0.5, 0.2, 0.0]
    x = PROCESS.prior((3, 2), seed=0, dtype=F64)
    for rho in (0.4, 1.0, 1.7):
        ratios = (1.0,) * (3 - degree) + (rho,)
        out = orn.sample(model, x_init=x, solver=DCSolver(degree=degree, ratios=ratios), grid=times)
        at = torch.tensor(rho * 0.2 + (1 - rho) * 0.5, dtype=F64)
        torch.testing.assert_close(out.x, p(at).expand(3, 2), rtol=0, atol=1e-12)


def test_a_replaced_output_stays_in_the_buffer():
    """x0(t) = t, re-timed at rho_1 = 0.5 to the mean of t_0 and t_1. The last step, of UniP-2, reads t_2 at t_2 and
    that mean at t_1: from x_2 its value is known in closed form, and differs from what t_1 itself would give."""
    model = orn.Denoiser(lambda x, t: t[:, None].expand_as(x), PROCESS, "x0")
    times = [0.9, 0.6, 0.4, 0.2]
    x = PROCESS.prior((2, 2), seed=0, dtype=F64)
    solver = DCSolver(order=2, degree=1, ratios=(0.5, 1.0))
    path = orn.sample(model, x_init=x, solver=solver, grid=times, trajectory=True).trajectory
    _, before, t, s = PROCESS.level(torch.tensor(times, dtype=F64))
    w = secant_weights(t, s, before)
    kept = transfer(t, s) * path[2] + w[0] * 0.4
    torch.testing.assert_close(path[3], kept + w[1] * 0.75, rtol=0, atol=1e-12)
    assert float((path[3] - kept - w[1] * 0.6).abs().min()) > 1e-3


def lower(own, other):
    """By how many standard errors the mean difference, in pairs, is below 0."""
    gain = other - own
    return float(gain.mean() / gain.std()) * len(gain) ** 0.5


@pytest.mark.system("dc-solver", rival="UniPC of the same order on the same times")
@pytest.mark.parametrize("grid", [orn.Uniform(), CosineGrid()], ids=["uniform", "cosine"])
def test_dc_solver(grid):
    """5 evaluations, 64-D mixture, ratios of ten starts: on 400 fresh starts the mean endpoint error is below 0.7 of
    UniPC's, and below it by 3 standard errors in pairs. The starts are none on which the degree was chosen."""
    world = WORLDS["mixture"]
    model = world.denoiser(PROCESS)
    lessons = teach(model, (10, 64), seed=201, dtype=F64, steps=10)
    fresh = teach(model, (400, 64), seed=2001, dtype=F64, steps=80)
    found = DCSolver(order=3).calibrate(lessons, 5, grid)
    own = fresh.errors(found.table)
    base = fresh.errors(compiled(orn.UniPC(order=3, start="published"), PROCESS, grid(PROCESS, 5).t.tolist()))
    assert lower(own, base) > 3
    assert float(own.mean()) < 0.7 * float(base.mean())
    # three ratios, 12 runs each of 4, 5 and 5 evaluations, and 20 fine steps for each of 5
    assert found.judged == 36
    assert found.evaluations == 10 * (12 * (4 + 5 + 5) + 5 * 20)
    assert len(found.solver.ratios) == 3


def test_guided_ratios_for_a_pair_never_searched():
    """Classifier-free guidance of the mixture: ratios searched for 5 and 7 steps and scales 1 and 3 are told for
    6 steps and scale 2, and halve UniPC's error there."""
    world = WORLDS["mixture"]
    model = world.denoiser(PROCESS)

    def lessons(scale, n, seed, steps):
        cond = {"label": torch.arange(n) % 4}
        return teach(orn.CFG(model, scale), (n, 64), cond=cond, seed=seed, dtype=F64, steps=steps)

    searched = {}
    for scale in (1.0, 3.0):
        taught = lessons(scale, 10, 301, 10)
        for steps in (5, 7):
            searched[steps, scale] = DCSolver(order=3).calibrate(taught, steps, fine=6).solver
    ratios = Ratios.fit(searched)
    fresh, times = lessons(2.0, 200, 2002, 60), orn.Uniform()(PROCESS, 6).t.tolist()
    base, own = (compiled(DCSolver(order=3, ratios=r), PROCESS, times) for r in ((), ratios(6, 2.0)))
    assert lower(fresh.errors(own), fresh.errors(base)) > 3
    assert fresh.endpoint_error(own) < 0.6 * fresh.endpoint_error(base)


def test_the_cascade_reproduces_a_polynomial():
    """Ratios that are a polynomial of degree (2, 1, 1) in i/N, N and w are told exactly, anywhere."""
    c = normal(3, 2, 2, seed=1)

    def truth(n, w):
        u = torch.arange(2, n, dtype=F64) / n
        total = sum(c[i, j, k] * u**i * n**j * w**k for i in range(3) for j in range(2) for k in range(2))
        return tuple(total.tolist())

    searched = {(n, w): DCSolver(ratios=truth(n, w)) for n in (5, 6, 8) for w in (1.0, 2.0, 4.0)}
    ratios = Ratios.fit(searched, degrees=(2, 1, 1))
    assert ratios(7, 3.0) == pytest.approx(truth(7, 3.0), rel=1e-6)
    assert ratios(10, 5.0) == pytest.approx(truth(10, 5.0), rel=1e-6)
    del searched[5, 1.0]
    with pytest.raises(ValueError, match="8 searches: one for each of 3 steps and 3 scales"):
        Ratios.fit(searched)
    with pytest.raises(ValueError, match="has 0 ratios of degree 2, 3 of degree 2"):
        Ratios.fit({(5, 1.0): DCSolver()})


@pytest.mark.parametrize("wanted", [-0.2, 0.13, 1.0, 1.37, 2.4])
def test_the_line_search_comes_within_a_golden_section(wanted):
    """An interval of 1 about the best of five points, cut to the golden share five times: 0.618^5 = 0.09 are left."""
    asked = []
    best, least = line_minimum(lambda x: asked.append(x) or (x - wanted) ** 2)
    assert abs(best - wanted) < 0.09
    assert least == (best - wanted) ** 2
    assert len(asked) == len(set(asked)) == 12


def test_refusals():
    with pytest.raises(ValueError, match="order=4: choose 1, 2, 3"):
        DCSolver(4)
    with pytest.raises(ValueError, match="5 ratios: 6 steps take 4"):
        DCSolver(ratios=(1.0,) * 5).compile(PROCESS, orn.Uniform()(PROCESS, 6))
    lessons = teach(ring().denoiser(PROCESS), (4, 2), dtype=F64, steps=10)
    with pytest.raises(ValueError, match="steps=2: an interpolation of degree 2 re-times from 3 on"):
        DCSolver().calibrate(lessons, 2)
    with pytest.raises(ValueError, match=r"has its start at t = 0\.6, the lessons at 1"):
        DCSolver().calibrate(lessons, 4, orn.Uniform(start=0.6))
