"""The referee of every solver is judged first: its numbers, its order, its error control and its refusals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein.numerics import dop853 as rk
from ornstein.numerics.dop853 import dop853

F64 = torch.float64
Tree = tuple  # a rooted tree is the sorted tuple of its subtrees


def dense(rows: dict[int, float] | tuple[dict[int, float], ...]) -> np.ndarray:
    if isinstance(rows, dict):
        return np.array([rows.get(i, 0.0) for i in range(12)])
    return np.stack([np.zeros(12), *map(dense, rows)])


def trees(order: int) -> list[Tree]:
    """All rooted trees with `order` nodes: 1, 1, 2, 4, 9, 20, 48, 115, 286."""
    return [()] if order == 1 else sorted({tuple(sorted(f)) for f in forests(order - 1)})


def forests(nodes: int) -> list[Tree]:
    if nodes == 0:
        return [()]
    return [(tree, *rest) for n in range(1, nodes + 1) for tree in trees(n) for rest in forests(nodes - n)]


def nodes(tree: Tree) -> int:
    return 1 + sum(map(nodes, tree))


def gamma(tree: Tree) -> float:
    return nodes(tree) * math.prod(map(gamma, tree))


def weight(tree: Tree) -> np.ndarray:
    """The elementary weight of each stage."""
    return np.prod([dense(rk.A) @ weight(sub) for sub in tree], axis=0) if tree else np.ones(12)


def defect(weights: np.ndarray, order: int) -> float:
    """The largest violated order condition |b . Phi(tree) - 1 / gamma(tree)| among trees of one order."""
    return max(abs(weights @ weight(tree) - 1 / gamma(tree)) for tree in trees(order))


def test_numbers_are_the_published_ones():
    from scipy.integrate._ivp import dop853_coefficients as published

    assert np.array_equal(dense(rk.A), published.A[:12, :12])
    assert np.array_equal(np.array(rk.C), published.C[:12])
    assert np.array_equal(dense(rk.B), published.B)
    assert np.array_equal(dense(rk.E5), published.E5[:12])
    assert np.array_equal(dense(rk.E3), published.E3[:12])


def test_all_two_hundred_order_conditions():
    assert [len(trees(order)) for order in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]
    # The numbers carry 30 digits and the stages reach 40, so rounding leaves some 40 * 12 * eps.
    rounding = 500 * np.finfo(float).eps
    assert np.abs(dense(rk.A).sum(1) - np.array(rk.C)).max() < rounding
    b, b5, b3 = dense(rk.B), dense(rk.B) - dense(rk.E5), dense(rk.B) - dense(rk.E3)
    for weights, order in ((b, 8), (b5, 5), (b3, 3)):
        assert max(defect(weights, p) for p in range(1, order + 1)) < rounding
        assert defect(weights, order + 1) > 1e-6  # and no more than its order


def kepler(t: float, y: Tensor) -> Tensor:
    """Two bodies, (batch, 4) = position and velocity."""
    q, p = y[:, :2], y[:, 2:]
    return torch.cat([p, -q / q.norm(dim=1, keepdim=True) ** 3], 1)


def ellipse(e: float) -> Tensor:
    """Period 2 pi, eccentricity e, at the pericentre."""
    return torch.tensor([[1 - e, 0, 0, math.sqrt((1 + e) / (1 - e))]], dtype=F64)


def fixed(y: Tensor, count: int) -> Tensor:
    h = 2 * math.pi / count
    for i in range(count):
        y = rk.step(kepler, i * h, y, kepler(i * h, y), h)[0]
    return y


def test_measured_order_is_eight(monkeypatch: pytest.MonkeyPatch):
    start = ellipse(0.1)

    def order() -> float:
        errors = [float((fixed(start, n) - start).norm()) for n in (32, 64)]
        return math.log2(errors[0] / errors[1])

    # At 32 to 64 steps an orbit the errors are 6e-10 and 3e-12, far above rounding; at half of them the order is 7.8.
    assert abs(order() - 8) < 0.2
    monkeypatch.setattr(rk, "B", {i: rk.B.get(i, 0.0) - e for i, e in rk.E5.items()})
    assert order() < 6.5  # the embedded rule, the nearest simpler relative


@pytest.mark.parametrize("rtol", [1e-6, 1e-9, 1e-12])
def test_error_follows_the_tolerance_forward_and_backward(rtol: float):
    start = torch.cat([ellipse(e) for e in (0.0, 0.4, 0.7)])
    there = dop853(kepler, start, 0.0, math.pi, rtol=rtol, atol=rtol / 100)
    apocentre = start * torch.tensor([-1.0, 1, 1, -1], dtype=F64)
    e = torch.tensor([0.0, 0.4, 0.7], dtype=F64)
    apocentre[:, 0] = -(1 + e)
    apocentre[:, 3] = -((1 - e) / (1 + e)).sqrt()
    # A local error of rtol per step, some 30 steps, and Kepler's growth of phase errors at e = 0.7 (about 30).
    bound = 1000 * rtol
    assert (there.y - apocentre).norm(dim=1).max() < bound
    back = dop853(kepler, there.y, math.pi, 0.0, rtol=rtol, atol=rtol / 100)
    assert (back.y - start).norm(dim=1).max() < 2 * bound
    assert there.evaluations == 2 + 12 * there.steps + 11 * there.rejected


def test_agrees_with_scipy():
    from scipy.integrate import solve_ivp

    start = ellipse(0.6)
    ours = dop853(kepler, start, 0.0, 5.0, rtol=1e-12, atol=1e-14)
    truth = solve_ivp(
        lambda t, y: kepler(t, torch.tensor(y)[None])[0].numpy(),
        (0, 5),
        start[0].numpy(),
        "DOP853",
        rtol=1e-12,
        atol=1e-14,
    )
    assert np.abs(ours.y[0].numpy() - truth.y[:, -1]).max() < 1e-10
    # The same formulas and the same control choose much the same steps.
    assert 0.7 < ours.evaluations / truth.nfev < 1.4


def test_the_worst_sample_decides():
    """With a root mean square over the whole batch one hard sample among many easy ones would be lost."""
    calm = ellipse(0.0).expand(999, 4)
    hard = ellipse(0.7)
    alone = dop853(kepler, hard, 0.0, 2 * math.pi, rtol=1e-9, atol=1e-11)
    together = dop853(kepler, torch.cat([calm, hard]), 0.0, 2 * math.pi, rtol=1e-9, atol=1e-11)
    # Only the guess of the first step differs; diluted 1000 times the error would grow by up to sqrt(1000).
    assert (together.y[-1:] - hard).norm() < 3 * (alone.y - hard).norm()
    assert abs(together.steps - alone.steps) <= 2


def test_time_is_passed_and_ended_exactly():
    seen: list[float] = []

    def field(t: float, y: Tensor) -> Tensor:
        seen.append(t)
        return torch.full_like(y, 9 * t**8)

    out = dop853(field, torch.zeros(2, 3, 1, dtype=F64), 2.0, -1.0)
    assert torch.allclose(out.y, torch.full_like(out.y, -1.0 - 2.0**9), rtol=1e-13)
    assert seen[-1] == -1.0
    assert max(seen) == 2.0
    assert min(seen) == -1.0


def test_gradient_of_the_map():
    start = ellipse(0.3).requires_grad_()
    (gradient,) = torch.autograd.grad(dop853(kepler, start, 0.0, 1.0).y.sum(), start)
    for i, eps in itertools.product(range(4), [1e-4]):
        bump = torch.zeros(1, 4, dtype=F64)
        bump[0, i] = eps
        with torch.no_grad():
            up, down = (dop853(kepler, start + sign * bump, 0.0, 1.0).y.sum() for sign in (1, -1))
        assert abs(gradient[0, i] - (up - down) / (2 * eps)) < 1e-5  # eps^2 times third derivatives of order 100


def test_nothing_to_do():
    y = torch.ones(2, 3, dtype=F64)
    out = dop853(kepler, y, 0.5, 0.5)
    assert out.y is y
    assert out.evaluations == 0


def test_refusals():
    y = torch.ones(2, 3, dtype=F64)
    with pytest.raises(ValueError, match=r"float64.*float32"):
        dop853(kepler, y.float(), 0.0, 1.0)
    with pytest.raises(ValueError, match="rtol=0"):
        dop853(kepler, y, 0.0, 1.0, rtol=0.0)
    with pytest.raises(ValueError, match="inf"):
        dop853(kepler, y, 0.0, math.inf)
    with pytest.raises(FloatingPointError, match="first time"):
        dop853(lambda t, y: y * math.nan, y, 0.0, 1.0)
    with pytest.raises(FloatingPointError, match="underflows"):
        dop853(lambda t, y: y * y, y, 0.0, 2.0)  # y = 1 / (1 - t)
    with pytest.raises(FloatingPointError, match="underflows"):
        dop853(lambda t, y: y if t < 0.5 else y * math.nan, y, 0.0, 1.0)
    with pytest.raises(RuntimeError, match="20 steps"):
        dop853(lambda t, y: 1e5 * (math.cos(t) - y), y, 0.0, 1.0, max_steps=20)
