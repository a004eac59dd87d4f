"""Every linear operator against its own dense matrix: adjoint, pseudo-inverse, SVD, systems, float32, batches.

The matrix itself is compared with independent definitions in test_linops_definitions.py. Bounds: a chain of a few sums
of at most 100 numbers loses well under 100 eps of the norm of its result, an inverse that times the condition number.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from operators import F64, LINEAR, Plain, binary, close, condition, draw, sizes, times, written_out
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ornstein.linops import (
    Blur,
    Clipping,
    Downsample,
    LinearOperator,
    Mask,
    Matrix,
    Operator,
    Radon,
    Separable,
    Stack,
    Truncated,
    check,
)
from ornstein.numerics.conjugate_gradients import cg, cgls

EPS = torch.finfo(F64).eps
every = pytest.mark.parametrize("name", LINEAR)
FEW = ["mask-each", "blur-null", "fourier-coils", "hadamard", "deficient", "composed-each", "stack"]
both_ways = pytest.mark.parametrize(("name", "how"), [*((n, "svd") for n in LINEAR), *((n, "cg") for n in FEW)])


def inputs(operator: LinearOperator, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    return draw(3, *operator.event, seed=2).to(dtype), draw(3, *operator.measured, seed=3).to(dtype)


@every
def test_forward_and_adjoint_are_the_matrix_and_its_transpose(name: str) -> None:
    a = LINEAR[name]()
    (x, y), matrix = inputs(a), written_out(a)
    close(a(x), times(matrix, x, *a.measured), 100 * EPS, float(matrix.norm() * x.norm()))
    close(a.adjoint(y), times(matrix.mT, y, *a.event), 100 * EPS, float(matrix.norm() * y.norm()))
    close(LinearOperator.transpose(a, y), a.adjoint(y), 100 * EPS, float(matrix.norm() * y.norm()))  # by autograd


@every
def test_pseudo_inverse_range_and_null_space(name: str) -> None:
    a = LINEAR[name]()
    (x, y), matrix = inputs(a), written_out(a)
    inverse = torch.linalg.pinv(matrix, rtol=1e-9)
    bound = 100 * EPS * condition(matrix)
    close(a.pinv(y), times(inverse, y, *a.event), bound, float(inverse.norm() * y.norm()))
    close(a.range(x), times(inverse @ matrix, x, *a.event), bound, float(x.norm()))
    close(a.null(x), x - times(inverse @ matrix, x, *a.event), bound, float(x.norm()))
    close(a(a.null(x)), torch.zeros(3, *a.measured, dtype=F64), bound, float(matrix.norm() * x.norm()))


@every
def test_svd(name: str) -> None:
    """s are the singular values, U diag(s) V^T the operator, V orthonormal, U too where s > 0 and empty elsewhere."""
    a = LINEAR[name]()
    svd, matrix, (m, d) = a.svd, written_out(a), sizes(a)
    assert svd is not None
    assert svd.s.dtype == F64
    assert svd.s.shape in ((d,), (3, d))
    s = svd.s.expand(3, d)
    wanted = torch.nn.functional.pad(torch.linalg.svdvals(matrix), (0, max(0, d - m)))
    close(s.sort(descending=True).values, wanted[:, :d], 100 * EPS)
    eye = torch.eye(d, dtype=F64)
    v = torch.stack([svd.v(e.expand(3, d)).flatten(1) for e in eye], -1)
    u = torch.stack([svd.u(e.expand(3, d)).flatten(1) for e in eye], -1)
    close(v @ v.mT, eye.expand(3, d, d), 100 * EPS)
    close(u.mT @ u, torch.diag_embed((s > 0).double()), 100 * EPS, d**0.5)
    close(u @ (s[..., None] * v.mT), matrix, 100 * EPS)
    x, y = inputs(a)
    close(svd.vt(x), times(v.mT, x, d), 100 * EPS)
    close(svd.ut(y), times(u.mT, y, d), 100 * EPS, float(y.norm()))
    close(svd.filter(lambda s: s**2, x), a.adjoint(a(x)), 100 * EPS, float(matrix.norm() ** 2 * x.norm()))


SCALES = {
    "numbers": (0.3, 2.0),
    "each": (torch.tensor([0.3, 1.0, 5.0], dtype=F64), torch.tensor([2.0, 0.0, 0.1], dtype=F64)),
}


@pytest.mark.parametrize(
    ("name", "how", "scales"),
    [
        *((n, "svd", "each") for n in LINEAR),
        *((n, "cg", "each") for n in FEW),
        *((n, how, "numbers") for n in ("blur-null", "stack") for how in ("svd", "cg")),
    ],
)
def test_systems(name: str, scales: str, how: str) -> None:
    """(ridge + weight A^T A)^-1 and (r2 A A^T + sigma2_y)^-1, by the SVD and by conjugate gradients from A alone.

    Conjugate gradients stop at a residual of 100 eps of the right side, an error of that times the condition."""
    whole = LINEAR[name]()
    a = Plain(whole) if how == "cg" else whole
    (b, r), matrix, (m, d) = inputs(a), written_out(whole), sizes(a)
    ridge, weight = (torch.as_tensor(scale, dtype=F64).expand(3)[:, None, None] for scale in SCALES[scales])
    normal = ridge * torch.eye(d, dtype=F64) + weight * matrix.mT @ matrix
    gram = ridge * torch.eye(m, dtype=F64) + weight * matrix @ matrix.mT
    kappa = 1 + float((weight.flatten() * torch.linalg.matrix_norm(matrix, 2) ** 2 / ridge.flatten()).max())
    close(a.solve(b, *SCALES[scales]), times(torch.linalg.inv(normal), b, *a.event), 200 * EPS * kappa)
    close(a.gram_solve(r, *SCALES[scales]), times(torch.linalg.inv(gram), r, *a.measured), 200 * EPS * kappa)
    wanted = times(matrix.mT @ torch.linalg.inv(gram), r, *a.event)
    close(a.gain(r, *SCALES[scales]), wanted, 200 * EPS * kappa, float(matrix.norm() / ridge.min() * r.norm()))


@both_ways
def test_gram_of_an_exact_measurement_is_the_pseudo_inverse(name: str, how: str) -> None:
    """At sigma2_y = 0 for one sample of the batch; A^T of it is then A^+ r/r2, what A^T (...)^-1 r tends to."""
    whole = LINEAR[name]()
    a = Plain(whole) if how == "cg" else whole
    (_, r), matrix = inputs(a), written_out(whole)
    got = a.gram_solve(r, torch.tensor([0.0, 0.7, 0.0], dtype=F64), 2.0)
    bound = 1000 * EPS * condition(matrix) ** 2
    inverse = torch.linalg.pinv(2 * matrix @ matrix.mT, rtol=1e-12)
    wanted = times(inverse, r, *a.measured)
    for i in (0, 2):
        close(got[i], wanted[i], bound, float(inverse.norm() * r.norm()))
    close(a.adjoint(got)[2], a.pinv(r)[2] / 2, bound, float(torch.linalg.pinv(matrix, rtol=1e-9).norm() * r.norm()))
    close(got[1], whole.gram_solve(r, 0.7, 2.0)[1], bound)
    close(a.gain(r, 0.0, 2.0), a.pinv(r) / 2, bound, float(torch.linalg.pinv(matrix, rtol=1e-9).norm() * r.norm()))


@pytest.mark.parametrize("name", ["blur-null", "fourier-plain", "tall", "deficient", "wide"])
def test_small_noise_does_not_blow_up_rounding(name: str) -> None:
    """In float32 with sigma2_y = 1e-8, where 6e-8 |r| of rounding divided by sigma2_y is 6 |r|: `gain` for any r, and
    `gram_solve` for an r that is an A x but for rounding, are right to eps times the condition of A. (That rounding,
    eps |r|, comes out of `gram_solve` as eps |r|/sigma2_y and is itself rounded: another eps^2 |A| |r|/sigma2_y.)"""
    a, matrix = LINEAR[name](), written_out(LINEAR[name]())
    x, r = inputs(a, torch.float32)
    least = 1 / float(torch.linalg.matrix_norm(torch.linalg.pinv(matrix, rtol=1e-9), 2).max())
    eps = torch.finfo(torch.float32).eps
    allowed = 20 * eps * condition(matrix) / least
    close(a.gain(r, 1e-8, 1.0).double(), a.gain(r.double(), 1e-8, 1.0), allowed, float(r.norm()))
    r = a(x)
    wanted, allowed = a.gain(r.double(), 1e-8, 1.0), allowed + eps**2 * float(matrix.norm()) / 1e-8
    close(a.adjoint(a.gram_solve(r, 1e-8, 1.0)).double(), wanted, allowed, float(r.norm()))


@pytest.mark.parametrize("name", FEW)
def test_by_conjugate_gradients_from_the_forward_map_alone(name: str) -> None:
    """cgls stops at |A^T residual| <= 100 eps |A^T y|: an error of 100 eps kappa^2 |A^+| |y| at most."""
    whole = LINEAR[name]()
    a, (x, y), kappa = Plain(whole), inputs(whole), condition(written_out(whole))
    scale = float(torch.linalg.pinv(written_out(whole), rtol=1e-9).norm() * y.norm())
    close(a.pinv(y), whole.pinv(y), 200 * EPS * kappa**2, scale)
    close(a.null(x), whole.null(x), 200 * EPS * kappa**2, float(x.norm()))


@every
def test_norm(name: str) -> None:
    """By the SVD, and by power iteration: it rises, and where it stops it is between the norm and 1 % less, whatever
    is close to the largest singular value."""
    a = LINEAR[name]()
    largest = float(torch.linalg.svdvals(written_out(a)).max())
    assert a.norm() == pytest.approx(largest, rel=100 * EPS)
    assert 0.99 * largest <= Plain(a).norm(tolerance=1e-5) <= largest * (1 + 1e-12)


# -- precision and batches


@contextmanager
def no_double() -> Iterator[None]:
    class Refuse(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for o in out if isinstance(out, (tuple, list)) else (out,):
                wide = isinstance(o, Tensor) and o.dtype in (F64, torch.complex128) and o.dim() > 0
                assert not wide, f"{func} made a float64 tensor"
            return out

    with Refuse():
        yield


ONE_EACH = torch.tensor([0.3, 1.0, 5.0], dtype=F64)


def everything(a: LinearOperator, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    one = ONE_EACH
    return {
        "forward": a(x),
        "adjoint": a.adjoint(y),
        "pinv": a.pinv(y),
        "null": a.null(x),
        "solve": a.solve(x, one, 2.0),
        "gram": a.gram_solve(y, 0.3, one),
        "exact": a.gram_solve(y, 0.0, one),
        "gain": a.gain(y, 0.3, one),
    }


@every
def test_float32_differs_by_rounding_only(name: str) -> None:
    """And makes no float64 tensor once the operator's constants are where the state is."""
    a = LINEAR[name]()
    x, y = inputs(a, torch.float32)
    everything(a, x, y)
    with no_double():
        got = everything(a, x, y)
    bound = 100 * torch.finfo(torch.float32).eps
    kappa, norm = condition(written_out(a)), float(torch.linalg.matrix_norm(written_out(a), 2).max())
    least = norm / kappa
    worst = {"forward": norm, "adjoint": norm, "pinv": kappa / least, "null": kappa, "solve": 4 * norm**2 / 0.3**2}
    worst |= {"gain": 10 * norm**3 / 0.3**2, "gram": 10 * norm**2 / 0.3**2, "exact": kappa / least**2 / 0.3}
    for key, twin in everything(a, x.double(), y.double()).items():
        assert got[key].dtype == torch.float32
        close(got[key].double(), twin, bound, (worst[key] + 4) * float(x.norm() + y.norm()))


@both_ways
def test_results_do_not_depend_on_the_batch(name: str, how: str) -> None:
    """Beside a sample of zeros and one a million times as large; rows(index) of an operator with a batch."""
    whole = LINEAR[name]()
    (x, y), scale = inputs(whole), torch.tensor([1.0, 0.0, 1e6], dtype=F64)
    x, y = (v * scale.reshape(-1, *[1] * (v.dim() - 1)) for v in (x, y))

    def parts(a: LinearOperator, x: Tensor, y: Tensor) -> list[Tensor]:
        return [a(x), a.adjoint(y), a.pinv(y), a.solve(x, 0.5), a.gram_solve(y, 0.5, 1.0), a.gram_solve(y, 0.0, 1.0)]

    together = parts(whole if how == "svd" else Plain(whole), x, y)
    for i in range(3):
        index = torch.tensor([i])
        one = whole.rows(index)
        assert isinstance(one, LinearOperator)
        assert (one is whole) == (whole.batch is None)
        alone = parts(one if how == "svd" else Plain(one), x[index], y[index])
        for a, b in zip(together, alone, strict=True):
            close(a[index], b, 1e-10)


@every
def test_gradients_flow_through_everything(name: str) -> None:
    """The gradient of <c, M x> with respect to x is M^T c for each linear map M; and where the SVD was first made
    without gradients, or in inference mode."""
    a = LINEAR[name]()
    x, y = inputs(a)
    with torch.inference_mode():
        everything(a, x, y)
    wanted = {"solve": a.solve(x, ONE_EACH, 2.0), "gram": a.gram_solve(y, 0.3, ONE_EACH), "null": a.null(x)}
    x, y = x.requires_grad_(), y.requires_grad_()
    for key, value in wanted.items():  # symmetric maps
        free = y if key == "gram" else x
        (pulled,) = torch.autograd.grad((everything(a, x, y)[key] * free.detach()).sum(), free)
        close(pulled, value, 1e-9, float(value.norm() + free.detach().norm()))
    (pulled,) = torch.autograd.grad((a(x) * y).sum(), x)
    close(pulled, a.adjoint(y.detach()), 100 * EPS, float(written_out(a).norm() * y.detach().norm()))
    (pushed,) = torch.autograd.grad((a.adjoint(y) * x).sum(), y)
    close(pushed, a(x.detach()), 100 * EPS, float(written_out(a).norm() * x.detach().norm()))


@pytest.mark.parametrize("name", ["mask-each", "blur", "fourier-real", "radon", "hadamard", "each-matrix", "stack"])
def test_operators_can_be_copied_and_sent(name: str) -> None:
    a = LINEAR[name]()
    x, y = inputs(a)
    wanted = everything(a, x, y)  # with the SVD made
    for other in (copy.deepcopy(a), pickle.loads(pickle.dumps(a))):
        for key, value in everything(other, x, y).items():
            assert torch.equal(value, wanted[key]), key


def test_a_kernel_can_ask_for_a_gradient() -> None:
    """Blind deblurring: d|Blur(k) x|^2/2 / dk is the correlation of y with x, by finite differences."""
    x, k = draw(2, 1, 5, 6), draw(3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda k: Blur(k, (1, 5, 6))(x), k)


# -- composition


def test_composition_and_stack_are_products_and_blocks() -> None:
    a, b = Downsample(2, (1, 4, 6)), Blur(draw(3, 3), (1, 4, 6))
    close((a @ b).matrix(), a.matrix() @ b.matrix(), 100 * EPS)
    stack = Stack([a, b])
    close(stack.matrix(), torch.cat([a.matrix(), b.matrix()]), 100 * EPS)
    x = draw(2, 1, 4, 6)
    assert torch.equal(stack.join([a(x), b(x)]), stack(x))
    for part, wanted in zip(stack.split(stack(x)), (a(x), b(x)), strict=True):
        assert torch.equal(part, wanted)
    with pytest.raises(ValueError, match="as many measurements"):
        stack.join([a(x)])
    with pytest.raises(ValueError, match=r"takes \(1, 4, 6\), and .* gives \(1, 2, 3\)"):
        b @ a
    with pytest.raises(ValueError, match="one event"):
        Stack([a, Mask(binary(4, 4))])
    with pytest.raises(ValueError, match="at least one"):
        Stack([])
    with pytest.raises(ValueError, match=r"batches of . and . samples"):
        Mask(binary(2, 3, 4), (3, 4)) @ Mask(binary(3, 3, 4), (3, 4))


def test_composition_with_a_nonlinear_operator_is_an_operator() -> None:
    a = Clipping((1, 4, 6), scale=3.0) @ Blur(draw(3, 3), (1, 4, 6))
    assert isinstance(a, Operator)
    assert not isinstance(a, LinearOperator)
    x = draw(2, 1, 4, 6)
    assert torch.equal(a(x), (3 * Blur(draw(3, 3), (1, 4, 6))(x)).clamp(-1, 1))


def test_rows_of_a_product_solve_as_hard() -> None:
    a = LINEAR["composed-each"]()
    a.tolerance, a.limit = 0.1, 7
    one = a.rows(torch.tensor([1]))
    assert isinstance(one, LinearOperator)
    assert (one.tolerance, one.limit) == (0.1, 7)


def test_truncation_forgets_small_singular_values_only() -> None:
    whole = Blur.gaussian(1.2, (1, 6, 6))
    s, kept = whole.svd.s, Truncated(whole, 0.1).svd.s
    assert torch.equal(kept, torch.where(s > 0.1 * s.max(), s, 0.0))
    assert 0 < int((kept == 0).sum()) < 36
    with pytest.raises(ValueError, match="no SVD"):
        Truncated(Plain(whole), 0.1)
    with pytest.raises(ValueError, match=r"rcond is in \[0, 1\)"):
        Truncated(whole, 1.0)


# -- conjugate gradients


def test_one_step_is_the_gradient_step_and_d_steps_are_exact() -> None:
    m = draw(4, 6, 6)
    m, b, x = m @ m.mT + torch.eye(6, dtype=F64), draw(4, 6, seed=1), draw(4, 6, seed=2)

    def apply(v: Tensor) -> Tensor:
        return times(m, v, 6)

    r = b - apply(x)
    length = (r * r).sum(1) / (r * apply(r)).sum(1)
    close(cg(apply, b, x, limit=1).x, x + length[:, None] * r, 10 * EPS)
    kappa = condition(m)
    solved = cg(apply, b, x, limit=12)
    close(solved.x, torch.linalg.solve(m, b), 100 * EPS * kappa)
    assert int(cg(apply, b, tolerance=1e-6).steps.max()) <= 6
    early = cg(apply, b, limit=3)  # what 3 steps minimise: <x, M x>/2 - <b, x> over span(b, M b, M^2 b)
    krylov = torch.stack([b, apply(b), apply(apply(b))], -1)
    small = torch.linalg.solve(krylov.mT @ m @ krylov, krylov.mT @ b[..., None])
    close(early.x, (krylov @ small).squeeze(-1), 1e4 * EPS * kappa)
    residual = (b - apply(early.x)).norm(dim=1) / b.norm(dim=1)
    close(early.residual, residual, 100 * EPS * kappa)


def test_cgls_loses_the_condition_and_not_its_square() -> None:
    """With kappa = 1e6 its error stays near eps kappa |x| = 2e-10; that of cg on A^T A is eps kappa^2 = 2e-4."""
    u, v = (torch.linalg.qr(draw(8, 8, seed=seed)).Q for seed in (0, 1))
    a = u @ torch.diag(torch.logspace(0, -6, 8, dtype=F64)) @ v.mT
    x = draw(1, 8, seed=2)
    y = times(a, x, 8)
    one = cgls(lambda x: times(a, x, 8), lambda y: times(a.mT, y, 8), y, limit=200).x
    other = cg(lambda x: times(a.mT @ a, x, 8), times(a.mT, y, 8), limit=200).x
    assert float((one - x).norm() / x.norm()) < 1e-8 < float((other - x).norm() / x.norm())


# -- refusals


def test_shapes_dtypes_and_batches_are_checked_by_one_error() -> None:
    a = Downsample(2, (1, 4, 6))
    for call in (a, a.range, a.null, lambda x: a.solve(x, 1.0)):
        with pytest.raises(ValueError, match=r"\(batch, 1, 4, 6\): got \(2, 4, 6\)"):
            call(draw(2, 4, 6))
    for call in (a.adjoint, a.pinv, lambda y: a.gram_solve(y, 1.0, 1.0), a.check_measurement):
        with pytest.raises(ValueError, match=r"\(batch, 1, 2, 3\): got \(1, 2, 3\)"):
            call(draw(1, 2, 3))
    with pytest.raises(ValueError, match="real and floating"):
        a(torch.ones(1, 1, 4, 6, dtype=torch.long))
    each = Mask(binary(3, 2, 2), (2, 2))
    with pytest.raises(ValueError, match=r"2 samples and .*rows\(index\)"):
        each(draw(2, 2, 2))

    class Wrong(LinearOperator):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2]

    with pytest.raises(ValueError, match=r"answered \(1, 2\) for 1 samples, not \(1, 3\)"):
        Wrong((4,), (3,))(draw(1, 4))
    with pytest.raises(ValueError, match="event is the shape of one sample"):
        Wrong((), (3,))
    with pytest.raises(ValueError, match="measured is the shape of one sample"):
        Wrong((2,), (0,))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_measurements_must_be_finite(bad: float) -> None:
    a, y = Mask(binary(2, 3)), draw(4, 2, 3)
    torch.testing.assert_close(a.check_measurement(y), a(y), rtol=0, atol=0)  # 0 where nothing is seen
    y[1, 0, 0] = bad
    with pytest.raises(ValueError, match="1 of 24 entries are NaN or infinite"):
        a.check_measurement(y)
    for build in (lambda: Matrix(y[1]), lambda: Blur(y[1], (4, 4)), lambda: Radon(y[1, 0], (3, 3))):
        with pytest.raises(ValueError, match="finite"):
            build()


def test_singular_systems_are_refused() -> None:
    seen, all_seen = Mask(torch.tensor([1.0, 0.0])), Mask(torch.ones(2))
    b = draw(2, 2)
    assert torch.equal(all_seen.solve(b, 0.0), b)
    for a in (seen, Plain(Downsample((2,), (2,)))):
        with pytest.raises(ValueError, match=r"singular: ridge = 0 .* pinv"):
            a.solve(b, 0.0)
    one, other = torch.tensor([0.0, 2.0]), torch.tensor([3.0, 0.0])  # each sample has one of them
    close(all_seen.solve(b, one, other), b / torch.tensor([[3.0], [2.0]]), 4 * EPS)
    each = Mask(torch.tensor([[1.0, 1.0], [1.0, 0.0]]), (2,))
    close(each.solve(b, one, 3.0), b / torch.tensor([[3.0, 3.0], [5.0, 2.0]]), 4 * EPS)
    with pytest.raises(ValueError, match="singular"):
        each.solve(b, one.flip(0), 3.0)
    with pytest.raises(ValueError, match="singular"):
        all_seen.solve(b, torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"singular: both r2 and sigma2_y are 0"):
        seen.gram_solve(b, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"singular: both r2 and sigma2_y are 0"):
        seen.gain(b, torch.tensor([1.0, 0.0]), 0.0)
    with pytest.raises(RuntimeError, match=r"relative residual .* singular"):  # square, its null space is not known
        Plain(seen).solve(b, 0.0)
    short = Plain(Matrix(draw(3, 2)))
    short.limit = 1
    for call in (lambda: short.solve(b, 0.1), lambda: short.pinv(draw(2, 3)), lambda: short.gain(draw(2, 3), 0.1, 1.0)):
        with pytest.raises(RuntimeError, match=r"after 1 steps, wanted 2\.2.e-14; .* operator\.limit"):
            call()
    short.tolerance = 0.9
    assert bool(short.pinv(draw(2, 3)).isfinite().all())
    for name, value in (("ridge", -1.0), ("ridge", torch.nan), ("weight", torch.tensor([1.0, -2.0]))):
        with pytest.raises(ValueError, match=f"{name} must be finite and not negative"):
            seen.solve(b, **{"ridge": 1.0, name: value})
    with pytest.raises(ValueError, match=r"r2 is a number or one a sample, \(2,\): got shape \(3,\)"):
        seen.gram_solve(b, 1.0, torch.ones(3))


def test_large_operators_are_not_written_out() -> None:
    a = Plain(Mask(torch.ones(2, 5000)))
    with pytest.raises(ValueError, match="written out up to"):
        a.matrix()
    big = Radon.views(2, (33, 33))
    assert big.svd is None
    y = big(draw(1, 33, 33))
    close(big(big.pinv(y)), y, 1e-9)
    assert check(big, samples=1).passed


def test_entries_that_are_not_seen_are_never_read() -> None:
    mask = binary(2, 3)
    a, y = Mask(mask), draw(2, 2, 3)
    dirty = torch.where(mask > 0, y, torch.nan)
    assert torch.equal(a.adjoint(dirty), mask * y)
    assert torch.equal(a.pinv(dirty), mask * y)


# -- what an operator is made of


def test_rounding_of_a_dtype_measures_nothing() -> None:
    """A product of rank 3 in float32 has six singular values, three of them rounding: its pseudo-inverse is torch's."""
    left, right = draw(2, 6, 3).float(), draw(2, 3, 7).float()
    y = draw(2, 6).float()
    for values in (left[0] @ right[0], left @ right):
        operator = Matrix(values)
        assert int((operator.svd.s > 0).sum()) == 3 * (values.numel() // 42)
        wanted = (torch.linalg.pinv(values) @ y[..., None]).squeeze(-1)
        assert float((operator.pinv(y) - wanted).norm() / wanted.norm()) < 1e-4
    chosen = Matrix(left @ right).rows(torch.tensor([1]))
    assert isinstance(chosen, Matrix)
    assert int((chosen.svd.s > 0).sum()) == 3
    one = Separable([left[0] @ right[0], None], (7, 2))
    assert one.svd is not None
    assert int((one.svd.s > 0).sum()) == 6
    assert int((Matrix((left[0] @ right[0]).double() + torch.eye(6, 7) * 1e-6).svd.s > 0).sum()) == 6  # told in float64


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_an_operator_is_not_changed_behind_its_back(dtype: torch.dtype) -> None:
    """What it was made of may change: the operator does not. A parameter does, and its pseudo-inverse with it."""
    x = draw(2, 3)
    values, mask = torch.eye(3, dtype=dtype), torch.tensor([True, False, True])
    matrix, hidden = Matrix(values), Mask(mask)
    values.mul_(3)
    mask.fill_(True)
    assert torch.equal(matrix(x), x)
    assert torch.equal(hidden(x)[:, 1], torch.zeros(2, dtype=F64))
    parameter = torch.nn.Parameter(torch.eye(3, dtype=F64))
    learned = Matrix(parameter)
    assert torch.equal(learned.pinv(learned(x)).detach(), x)
    with torch.no_grad():
        parameter.mul_(3)
    assert torch.equal(learned(x).detach(), 3 * x)
    torch.testing.assert_close(learned.pinv(learned(x)).detach(), x)
