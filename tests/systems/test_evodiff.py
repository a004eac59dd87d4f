"""EVODiff: the correction of least variance, what it falls back to, and the published coefficients."""

import itertools

import pytest
import torch

import ornstein as orn
from orders import MIDDLE, PROCESSES, WORLDS, check_order
from ornstein.solvers import EVODiff, UniPC
from worlds import F64, normal, ring

BASE = orn.DPMSolverPP(order=2)
CONVEX, PUBLISHED = EVODiff(), EVODiff(variant="published")
THETAS = torch.linspace(0, 1, 1001, dtype=F64)


def steps(solver):
    """(x_s, the state without slope, w/2 D_p, w/2 D_n) of each corrected step, from the answers of an opaque denoiser
    and the states at the grid's points alone."""
    process, world = orn.VP(), ring()
    exact, answers = world.denoiser(process), []

    def net(x, t):
        answers.append(exact(x, t).x0)
        return answers[-1]

    grid = orn.LogSNR(start=-6.0, end=6.0, to_data=False)(process, 8)
    x = process.prior((32, 2), seed=1, dtype=F64)
    out = orn.sample(orn.Denoiser(net, process, "x0"), x_init=x, solver=solver, grid=grid.t, trajectory=True)
    assert len(answers) == out.nfe == 8
    states, h = out.trajectory, grid.log_snr.diff() / 2
    for k in range(1, 7):  # of 8: the first has no past, the last no evaluation after it
        t, s = grid[k], grid[k + 1]
        w = s.alpha * -torch.expm1(-h[k])
        euler = s.sigma / t.sigma * states[k] + w * answers[k]
        back = w / 2 * h[k] / h[k - 1] * (answers[k] - answers[k - 1])
        yield states[k + 1], euler, back, w / 2 * (answers[k + 1] - answers[k])


def excess(solver):
    """(by how much |D|^2 misses the least over theta in [0, 1], how far D is off the segment; how many theta lie
    inside), relative, over all samples and steps."""
    miss, off, inside = [], [], []
    for x, euler, back, ahead in steps(solver):
        used, change = x - euler, ahead - back
        theta = ((used - back) * change).sum(1) / (change**2).sum(1)
        least = (back + THETAS[:, None, None] * change).square().sum(2).min(0).values
        miss.append((used.square().sum(1) - least) / back.square().sum(1))
        off.append((used - back - theta[:, None] * change).norm(dim=1) / back.norm(dim=1))
        inside.append((theta > 1e-6) & (theta < 1 - 1e-6))
    return torch.cat(miss), torch.cat(off), torch.cat(inside)


@pytest.mark.system("evodiff", rival="DPM-Solver++ 2M, the base; UniPC, whose correction is fixed; the published code")
def test_evodiff():
    """What it is: D lies between the two estimates and |D|^2 is least there, for each sample; a search over 1001 theta
    comes no lower. The rival's theta is 0, which misses the least by more than half of |D_p|^2 for some.

    What is claimed, errors at the endpoint below those of DPM-Solver++ 2M at 5, 10 and 15 evaluations, does not hold.
    64 starts on two worlds, VP and EDM; mean logarithms of the ratio of errors, in pairs, 3 standard errors of the mean
    apart from 0. Above 0 in all four at 10 and 15; below it on the ring at 5 alone. UniPC, which costs the same and
    corrects by fixed weights, is ahead of it in all four at 10 and 15. The published coefficients are behind 2M
    wherever the difference shows, 11 times of 12; on the ring with VP at 10 it does not."""
    miss, off, inside = excess(CONVEX)
    assert float(off.max()) < 1e-9
    assert float(miss.max()) < 1e-9
    assert 0.1 < float(inside.double().mean()) < 0.9
    assert float(excess(BASE)[0].max()) > 0.5

    for name, process in itertools.product(WORLDS, (orn.VP(), orn.EDM())):
        world, fixed = WORLDS[name], UniPC(order=2)
        x = process.prior((64, *world.event), seed=0, dtype=F64)
        truth = world.flow(process, x, 1.0, 0.0, rtol=1e-8, atol=1e-9)
        for n in (5, 10, 15):
            log = {}
            for solver in (BASE, fixed, CONVEX, PUBLISHED):
                out = orn.sample(world.denoiser(process), x_init=x, solver=solver, steps=n)
                assert out.nfe == n
                log[solver] = (out.x - truth).norm(dim=1).log()

            def behind(solver, other, log=log):  # in standard errors
                gap = log[solver] - log[other]
                return float(gap.mean() / gap.std()) * 8

            if n > 5:
                assert behind(CONVEX, BASE) > 3, (name, process, n)
                assert behind(CONVEX, fixed) > 3, (name, process, n)
            elif name == "ring":
                assert behind(CONVEX, BASE) < -3, process
            if (name, process, n) != ("ring", orn.VP(), 10):
                assert behind(PUBLISHED, BASE) > 3, (name, process, n)


@pytest.mark.parametrize("process", [*PROCESSES, orn.VE()], ids=repr)
def test_falls_back_to_its_base(process):
    """Where the two estimates agree, D_n = D_p, the step is 2M's to rounding: x0 linear in lambda and free of x. The
    published coefficients are not. Where x0 does not change at all, 0/0, it is the exact solution."""
    cond = {"mean": normal(5, 3, seed=2)} if isinstance(process, orn.MeanReverting) else None
    slope, level = normal(3, seed=3), normal(3, seed=4)
    grid = orn.LogSNR(start=-5.0, end=5.0, to_data=False)
    x = normal(5, 3)

    def end(solver, slope, grid=grid):
        def net(x, t, c=None):
            still = not bool(slope.any())  # there log-SNR may be infinite
            moved = 0 if still else slope * process.log_snr(t)[:, None] / 2
            return level + moved + 0 * x

        model = orn.Denoiser(net, process, "x0")
        return orn.sample(model, x_init=x, cond=cond, solver=solver, grid=grid, steps=9).x

    torch.testing.assert_close(end(CONVEX, slope), end(BASE, slope), rtol=1e-11, atol=1e-11)
    assert float((end(PUBLISHED, slope) - end(BASE, slope)).norm()) > 0.1
    torch.testing.assert_close(end(CONVEX, 0 * slope), end(orn.DDIM(), 0 * slope), rtol=1e-11, atol=1e-11)
    for solver in (CONVEX, PUBLISHED):  # zeros to the last digit
        nothing = orn.Denoiser(lambda x, t, c=None: 0 * x, process, "x0")
        ends = [orn.sample(nothing, x_init=x, cond=cond, solver=v, grid=grid, steps=9).x for v in (solver, orn.DDIM())]
        torch.testing.assert_close(ends[0], ends[1], rtol=1e-11, atol=1e-11)
    data = end(CONVEX, 0 * slope, orn.LogSNR())
    torch.testing.assert_close(data, level.expand_as(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_order(process, name):
    """2, whatever theta is between 0 and 1; the published weights do not sum to one, and leave 1."""
    check_order(name, process, CONVEX, 2, (20, 40, 80), grid=MIDDLE)
    check_order(name, process, PUBLISHED, 1, (40, 80, 160), grid=MIDDLE)


def test_order_from_noise():
    check_order("ring", orn.VP(), CONVEX, 2, (40, 80, 160))
    check_order("mixture", orn.VP(), CONVEX, 2, (40, 80, 160))


@pytest.mark.parametrize("solver", [CONVEX, PUBLISHED], ids=repr)
def test_each_sample_is_on_its_own(solver):
    """Coefficients depend on the sample alone; float32 and images too."""
    process = orn.Flow()
    x = process.prior((6, 2), seed=0, dtype=F64)
    model = ring().denoiser(process)

    def end(x):
        return orn.sample(model, x_init=x, solver=solver, steps=9).x

    torch.testing.assert_close(end(x)[2:4], end(x[2:4]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(end(x.float()), end(x).float(), rtol=1e-3, atol=1e-3)
    image = orn.Denoiser(lambda x, t: torch.tanh(3 * x), process, "x0")
    wide, flat = x.reshape(2, 1, 2, 3), x.reshape(2, 6)
    wide, flat = (orn.sample(image, x_init=v, solver=solver, steps=9).x for v in (wide, flat))
    torch.testing.assert_close(wide.flatten(1), flat, rtol=1e-10, atol=1e-10)
    bare, wide = (orn.sample(image, x_init=v, solver=solver, steps=9).x for v in (x[:, 0], x[:, :1]))
    torch.testing.assert_close(bare, wide[:, 0], rtol=1e-10, atol=1e-10)


def test_times_of_its_own_for_each_sample_and_inversion():
    process, world = orn.VP(), ring()
    model = world.denoiser(process)
    x = process.prior((2, 2), seed=0, dtype=F64)
    grids = [orn.LogSNR(start=-5.0, end=end, to_data=False)(process, 12).t for end in (4.0, 6.0)]
    both = orn.sample(model, x_init=x, solver=CONVEX, grid=torch.stack(grids, 1)).x
    for i, grid in enumerate(grids):
        alone = orn.sample(model, x_init=x[i : i + 1], solver=CONVEX, grid=grid).x
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="one set of times"):
        orn.sample(model, x_init=x, solver=PUBLISHED, grid=torch.stack(grids, 1))
    data = world.sample(8, seed=0).to(F64)
    times = orn.LogSNR(start=-5.0, end=5.0, to_data=False)(process, 80).t
    there = orn.sample(model, x_init=data, solver=CONVEX, grid=times.flip(0)).x
    back = orn.sample(model, x_init=there, solver=CONVEX, grid=times).x
    assert float((back - data).norm(dim=1).median()) < 1e-2


def test_refusals():
    with pytest.raises(ValueError, match="variant='least': choose convex or published"):
        EVODiff(variant="least")
