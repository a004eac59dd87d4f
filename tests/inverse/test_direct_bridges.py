"""Direct bridges and flows that begin at a measurement: their step, its limits, what restores and what is refused."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein import linops
from ornstein.inverse import CDDB, DDNM, DDS, DPS, PMRF, DirectBridge, Measurement, restore
from ornstein.processes import I2SB, BrownianBridge, Interpolant, Reverting, TwoSided, indi
from worlds import F64, normal, ring

A = torch.tensor([[0.6, 0.5], [0.0, 0.3]], dtype=F64)
OPERATOR = linops.Matrix(A)
PAIRS = orn.exact.TwoSidedMixture(ring(), ring(0.3))


def model(process: Any = None, scaling: Any = None) -> orn.Denoiser:
    """E[x0 | x_t] of independent rings: no bridge of anything, and as good as any to tell states apart."""

    def net(x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return PAIRS.posterior_mean(x, Interpolant(), t[0].double().clamp(1e-6, 1 - 1e-6))[0]

    return orn.Denoiser(net, process or BrownianBridge(0.5), "x0", scaling=scaling)


def start(process: Any, n: int) -> dict[str, Any]:
    end = normal(n, 2, seed=9)
    return {"x_init": end} if isinstance(process, TwoSided) else {"cond": {"end": end}, "shape": (n, 2)}


@pytest.mark.parametrize(
    ("process", "twin"),
    [
        (I2SB(), orn.DDPM()),
        (BrownianBridge(0.3), orn.DDPM()),
        (indi(0.2), orn.DDIM()),
        (TwoSided(), orn.DDIM()),
        (orn.processes.Residual(mean="end"), orn.DDIM()),
    ],
)
def test_on_these_bridges_the_step_has_a_name(process: Any, twin: orn.Solver) -> None:
    options: dict[str, Any] = {"grid": orn.Uniform(), "steps": 7, "seed": 3, "dtype": F64, **start(process, 4)}
    found = orn.sample(model(process), solver=DirectBridge(), **options)
    torch.testing.assert_close(found.x, orn.sample(model(process), solver=twin, **options).x)
    assert found.nfe == 7


@pytest.mark.parametrize(
    "process",
    [I2SB(), indi(0.2), indi(0.2, brownian=True), orn.MeanReverting(), orn.VP(), orn.processes.Residual()],
    ids=["i2sb", "indi", "brownian", "mean-reverting", "vp", "residual"],
)
def test_each_step_keeps_the_law_of_its_level(process: Any) -> None:
    """For data at a point: from the law of x_0.8 in three unequal steps to that of x_0.1, in mean and variance; and to
    the data themselves."""
    grid = process.level([0.8, 0.7, 0.3, 0.1])
    found = orn.response(DirectBridge().compile(process, grid), torch.full((1,), 1.5, dtype=F64), 0.0)
    first, last = grid[0], grid[-1]
    torch.testing.assert_close(found.mean(1.5 * first.alpha), (1.5 * last.alpha)[None])
    torch.testing.assert_close(found.variance(first.sigma**2), last.sigma[None] ** 2)
    whole = orn.response(DirectBridge().compile(process, process.level([0.8, 0.0])), torch.ones(1, dtype=F64), 0.0)
    assert float(whole.mean(0.3)) == pytest.approx(1.0)
    assert float(whole.variance(1.0)) == pytest.approx(0.0, abs=1e-12)


def test_what_is_put_in_place_of_x0() -> None:
    """x0 + step A^T (y - A x0), or x0 less step times the gradient of |y - A x0(x)|^2/2 at the state."""
    net, x, y = model(), normal(5, 2, seed=1).requires_grad_(), normal(5, 2, seed=2)
    cond, measurement = {"end": y}, Measurement(OPERATOR, y, linops.GaussianNoise(0.0))
    x0 = net(x, 0.4, cond).x0
    found = CDDB(0.7).denoiser(net, measurement)(x.detach(), 0.4, cond).x0
    torch.testing.assert_close(found, (x0 + 0.7 * (y - x0 @ A.mT) @ A).detach())
    (slope,) = torch.autograd.grad((y - x0 @ A.mT).square().sum() / 2, x)
    deep = CDDB(0.7, deep=True).denoiser(net, measurement)(x.detach(), 0.4, cond).x0
    torch.testing.assert_close(deep, (x0 - 0.7 * slope).detach())
    assert float((deep - found).detach().abs().max()) > 0.05


def test_the_deep_step_lies_where_the_data_do() -> None:
    """Data in 2 of 8 dimensions: J^T v lies in their span, A^T (y - A x0) does not."""
    basis = torch.linalg.qr(normal(8, 2, seed=1)).Q
    data = orn.exact.Gaussian(torch.zeros(8, dtype=F64), std=0.0, factor=basis)
    oracle = data.denoiser(orn.VP())
    operator, y = linops.Matrix(0.3 * normal(3, 8, seed=2)), normal(4, 3, seed=3)
    measurement, x = Measurement(operator, y, linops.GaussianNoise(0.0)), normal(4, 8, seed=4)

    def outside(deep: bool) -> float:
        moved = CDDB(0.1, deep).denoiser(oracle, measurement)(x, 0.5).x0 - oracle(x, 0.5).x0
        return float(((moved - moved @ basis @ basis.mT).norm(dim=1) / moved.norm(dim=1)).max())

    assert outside(True) < 1e-12
    assert outside(False) > 0.3


def test_limits() -> None:
    """No measurement, or a step of next to nothing, is the bridge itself; of the identity without noise x0' is y."""
    net, cond, n = model(), {"end": normal(4, 2, seed=9)}, 4
    plain = orn.sample(net, (n, 2), solver=DirectBridge(), grid=orn.Uniform(), steps=6, seed=0, cond=cond, dtype=F64)

    def run(operator: Any, method: CDDB) -> Tensor:
        measurement = Measurement(operator, normal(n, *operator.measured, seed=2), linops.GaussianNoise(0.0))
        return method.run(net, measurement, cond, steps=6, seed=0, dtype=F64).x

    nothing, everything = linops.Mask(torch.zeros(2, dtype=F64)), linops.Matrix(torch.eye(2, dtype=F64))
    for deep in (False, True):
        torch.testing.assert_close(run(nothing, CDDB(1.0, deep)), plain.x)
        torch.testing.assert_close(run(OPERATOR, CDDB(1e-12, deep)), plain.x)
        assert float((run(OPERATOR, CDDB(1.0, deep)) - plain.x).abs().max()) > 0.05
    torch.testing.assert_close(run(everything, CDDB()), normal(n, 2, seed=2))


def test_one_call_for_many_measurements() -> None:
    """What else is in the batch does not matter; each has an end and an operator of its own; units are the user's."""
    net, y, end = model(), normal(3, 2, seed=1), normal(3, 2, seed=2)
    options: dict[str, Any] = {"method": CDDB(0.5), "steps": 5, "seed": 5, "dtype": F64}
    whole = restore(net, OPERATOR, y, samples=2, cond={"end": end}, **options)
    first = restore(net, OPERATOR, y[1:2], samples=2, cond={"end": end[1:2]}, **options)
    assert float((whole.samples[1] - first.samples[0]).abs().max()) > 1e-3  # another row, other noise
    first = restore(net, OPERATOR, y[:1], samples=3, cond={"end": end[:1]}, **options)
    torch.testing.assert_close(first.samples[:, :2], whole.samples[:1])
    assert (whole.nfe, restore(net, OPERATOR, y, cond={"end": end}, **options | {"method": CDDB(deep=True)}).nfe) == (
        5,
        10,
    )
    torch.testing.assert_close(
        restore(net, OPERATOR, y, samples=2, cond={"end": end}, solver=orn.DDPM(), **options).samples, whole.samples
    )
    matrices = torch.stack([A, A.mT, -A])
    own = restore(net, linops.Matrix(matrices), y, samples=2, cond={"end": end}, **options)
    torch.testing.assert_close(own.samples[0], whole.samples[0])
    assert float((own.samples[1] - whole.samples[1]).abs().max()) > 1e-2
    scaled = model(scaling=orn.Scaling(2.0, 3.0))
    origin = torch.full((2,), 2.0, dtype=F64) @ A.mT
    found = restore(scaled, OPERATOR, 3 * y + origin, samples=2, cond={"end": end}, **options)
    torch.testing.assert_close(found.samples, 3 * whole.samples + 2)


def test_other_methods_on_bridges() -> None:
    """What changes x0, or pulls at it, runs on every bridge; what needs fresh noise or a score does not between two
    laws of data."""
    y, end = normal(3, 2, seed=1), normal(3, 2, seed=2)
    for method in (DDS(), DPS(0.1), DDNM()):
        out = restore(model(), OPERATOR, y, method=method, cond={"end": end}, steps=8, seed=0, dtype=F64)
        assert bool(out.samples.isfinite().all())
    assert float(out.residual.max()) < 1e-12
    between: dict[str, Any] = {"x_init": end, "steps": 4, "dtype": F64}
    assert float(restore(model(TwoSided()), OPERATOR, y, method=DDNM(eta=0.0), **between).residual.max()) < 1e-12
    for stochastic in (DDNM(eta=0.5), DPS()):
        with pytest.raises(ValueError, match="noise"):
            restore(model(TwoSided()), OPERATOR, y, method=stochastic, **between)


def test_refusals() -> None:
    y = normal(2, 2, seed=1)
    cubic = linops.Function(lambda u: u**3, (2,), (2,))

    def refused(match: str, method: Any, net: Any = None, operator: Any = OPERATOR, **options: Any) -> None:
        with pytest.raises(ValueError, match=re.escape(match)):
            restore(net or model(), operator, y, method=method, **{"cond": {"end": y}, "steps": 2, **options})

    with pytest.raises(ValueError, match="step=0"):
        CDDB(0.0)
    refused("is for linear operators", CDDB(), operator=cubic)
    refused("it stays below 2/|A|^2 = ", CDDB(5.0))
    refused("needs its end in the condition", CDDB(), cond=None)
    refused("is for a model of a direct bridge", CDDB(), net=ring().denoiser(orn.VE()), cond=None)
    refused("is for a model of a direct bridge", CDDB(), net=PAIRS.denoiser(Interpolant()), x_init=y)
    with pytest.raises(ValueError, match="x0 fades away"):
        orn.sample(ring().denoiser(orn.VE()), (4, 2), solver=DirectBridge(), steps=2)
    with pytest.raises(ValueError, match="without noise it is the path of TwoSided"):
        indi(0.0)
    with pytest.raises(ValueError, match="this grid rises"):
        DirectBridge().compile(I2SB(), I2SB().level([0.1, 0.4]))
    flow = flow_of(0.3)
    refused("train a model of indi()", PMRF(torch.nn.Identity()), net=ring().denoiser(orn.VP()))
    refused("the mean answers (2, 1) for events (2, 2)", PMRF(lambda y: y[:, :1]), net=flow)
    refused("cond is a mapping", PMRF(nn.Identity()), net=flow, cond=y)
    refused("nfe=1: the mean takes one", PMRF(nn.Identity()), net=flow, steps=None, nfe=1)


def flow_of(noise_level: float, scaling: Any = None) -> orn.Denoiser:
    """The velocity of the ring's own flow from noise."""
    oracle = ring().denoiser(orn.Flow())
    net = lambda x, t, cond=None: oracle(x, t[0].double()).velocity  # noqa: E731
    return orn.Denoiser(net, indi(noise_level), "velocity", scaling=scaling)


def test_from_a_mean_of_zero_it_is_the_flow_from_noise() -> None:
    """f = 0 and s = 1: x_t = (1 - t) x0 + t noise, whatever was measured, and however."""
    cubic = linops.BlackBox(lambda u: u[:, :1] ** 3, (2,), (1,))
    y, calls = normal(3, 1, seed=1), list[int]()

    def mean(y: Tensor) -> Tensor:
        calls.append(len(y))
        return torch.zeros(len(y), 2, dtype=y.dtype)

    options: dict[str, Any] = {"steps": 12, "seed": 4, "dtype": F64}
    out = restore(flow_of(1.0), cubic, y, method=PMRF(mean), noise=0.1, samples=2, **options)
    assert (calls, out.nfe) == ([6], 13)
    seeds = [orn.random.derive(4, "restore", i, k) for i in range(3) for k in range(2)]
    prior = ring().denoiser(orn.Flow())
    plain = orn.sample(prior, (6, 2), solver=orn.Euler(), grid=orn.Uniform(), **options | {"seed": seeds})
    torch.testing.assert_close(out.samples.flatten(0, 1), plain.x)
    budget: dict[str, Any] = {"method": PMRF(mean), "nfe": 9, "dtype": F64}
    assert restore(flow_of(1.0), cubic, y, **budget).nfe == 9
    assert restore(flow_of(1.0), cubic, y, solver=orn.Heun(variable="t"), **budget).nfe in (8, 9)


def test_it_starts_at_the_mean_and_its_samples_differ_by_the_noise() -> None:
    """The state at t = 1 is f(y) + s noise; what else is in the batch does not matter; f is in the model's units, and
    other conditions are left alone."""
    y, seen = normal(3, 2, seed=1), list[Tensor]()

    def net(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        assert set(cond) == {"end", "label"}
        seen.append(x)
        return x - cond["end"]

    def flow(s: float, **options: Any) -> orn.Denoiser:
        return orn.Denoiser(net, indi(s), "velocity", **options)

    given: dict[str, Any] = {"cond": {"label": torch.arange(3)}, "steps": 4, "seed": 1, "dtype": F64}
    whole = restore(flow(1e-3), OPERATOR, y, method=PMRF(lambda y: 2 * y), samples=50, **given)
    spread = (seen[0].reshape(3, 50, 2) - 2 * y[:, None]) / 1e-3
    assert float(spread.std()) == pytest.approx(1.0, abs=5 / math.sqrt(2 * 300))
    assert float(spread.mean()) == pytest.approx(0.0, abs=5 / math.sqrt(300))
    assert float(whole.std.max()) < 5e-3
    alone = {**given, "cond": {"label": torch.arange(1)}}
    first = restore(flow(1e-3), OPERATOR, y[:1], method=PMRF(lambda y: 2 * y), samples=2, **alone)
    torch.testing.assert_close(first.samples, whole.samples[:1, :2])
    origin = torch.full((2,), 2.0, dtype=F64) @ A.mT
    scaled = flow(1e-3, scaling=orn.Scaling(2.0, 3.0))
    found = restore(scaled, OPERATOR, 3 * y + origin, method=PMRF(lambda y: 2 * y), samples=50, **given)
    torch.testing.assert_close(found.samples, 3 * whole.samples + 2)


def test_these_are_bridges() -> None:
    assert isinstance(indi(0.1), Reverting)
    assert indi(0.1, mean="blurred").mean == "blurred"
    assert indi(0.1).level(1.0).alpha == 0  # so that its start is its end law
