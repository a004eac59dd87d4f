"""Covariances known by their spectrum, so that every function of them is one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


def over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, and 0 for 0/0: a direction in which nothing is random."""
    return torch.where(denominator > 0, numerator / denominator, 0.0)


def column(coefficient: Tensor, like: Tensor) -> Tensor:
    """A coefficient () or (batch,) that multiplies (batch, d): a scalar stays on the host, a column is like `like`."""
    return coefficient if coefficient.dim() == 0 else coefficient.to(like)[:, None]


class Spectrum(NamedTuple):
    """The values of f(C_k) on its basis (..., k, r) and on the complement of it (..., k, 1)."""

    inside: Tensor
    outside: Tensor

    def to(self, like: Tensor) -> Spectrum:
        """The values in the dtype and on the device of `like`."""
        return Spectrum(self.inside.to(like), self.outside.to(like))


class Split(NamedTuple):
    """v = Q coords + rest, the rest None where Q spans the whole space."""

    coords: Tensor
    rest: Tensor | None


class Apart(NamedTuple):
    """v_k = x - alpha mu_k, told by its coordinates on the bases and its square; see `Products`."""

    coords: Tensor
    square: Tensor
    x: Tensor
    alpha: Tensor


class Products:
    """v_k = x - alpha mu_k for x (b, d) and alpha () or (b, 1, 1), with nothing made of the size (b, k, d):

        Q_k^T v_k = Q_k^T x - alpha Q_k^T mu_k,      |v_k|^2 = |x|^2 - 2 alpha x . mu_k + alpha^2 |mu_k|^2

    The work is in products of matrices. A square has lost the digits by which |x|^2 exceeds it.
    """

    def __init__(self, means: Tensor, covariance: Covariance) -> None:
        k, d = means.shape
        basis = means.new_zeros(k, d, 0) if covariance.basis is None else covariance.basis
        self.means, self.squares, self.whole = means, (means**2).sum(-1), covariance.rank == d
        self.frame, self.origin = basis.permute(1, 0, 2).flatten(1), torch.einsum("kd,kdr->kr", means, basis)

    def apart(self, x: Tensor, alpha: Tensor) -> Apart:
        coords = (x @ self.frame).reshape(*x.shape[:-1], *self.origin.shape) - alpha * self.origin
        alpha = alpha.squeeze(-1) if alpha.dim() else alpha
        if self.whole:
            return Apart(coords, x[..., :0], x, alpha)
        square = (x**2).sum(-1, keepdim=True) - 2 * alpha * (x @ self.means.mT) + alpha**2 * self.squares
        return Apart(coords, square, x, alpha)

    def quadratic(self, spectrum: Spectrum, v: Apart) -> Tensor:
        """v_k^T f(C_k) v_k, (b, k)."""
        inside, outside = spectrum
        if self.whole:
            return (inside * v.coords**2).sum(-1)
        return ((inside - outside) * v.coords**2).sum(-1) + outside.squeeze(-1) * v.square

    def mix(self, weights: Tensor, spectrum: Spectrum, v: Apart) -> Tensor:
        """sum_k weights_k f(C_k) v_k, (b, d)."""
        inside, outside = spectrum
        inner = inside if self.whole else inside - outside
        total = (weights[..., None] * inner * v.coords).flatten(-2) @ self.frame.mT
        if self.whole:
            return total
        outer = weights * outside.squeeze(-1)
        return total + outer.sum(-1, keepdim=True) * v.x - v.alpha * (outer @ self.means)


class Covariance:
    """C_k = floor_k I + Q_k diag(values_k - floor_k) Q_k^T for k components in d dimensions.

    values: (k, r) eigenvalues on the orthonormal columns of `basis` (k, d, r); floor: (k,) on everything else. Without
    a basis r is 0 (isotropic) or d (diagonal, Q = I). Any function of C acts on the eigenvalues, so nothing is ever
    inverted or factored twice, and what tends to zero in one direction does not disturb the others.
    """

    def __init__(self, values: Tensor, floor: Tensor, dim: int, basis: Tensor | None = None) -> None:
        self.values, self.floor, self.dim, self.basis = values, floor, dim, basis

    @classmethod
    def isotropic(cls, variances: Tensor, dim: int) -> Covariance:
        """variances (k,) times the identity."""
        return cls(variances.new_zeros(len(variances), 0), variances, dim)

    @classmethod
    def diagonal(cls, variances: Tensor) -> Covariance:
        """variances (k, d) along the axes."""
        return cls(variances, variances.new_zeros(len(variances)), variances.shape[1])

    @classmethod
    def full(cls, matrices: Tensor) -> Covariance:
        """Any symmetric positive semi-definite matrices (k, d, d); the worst offender is named if one is not."""
        for k, matrix in enumerate(matrices):
            gap = float((matrix - matrix.mT).abs().max())
            if not gap <= 1e-6 * float(matrix.abs().max()):
                raise ValueError(
                    f"covariance {k} is not symmetric: entries differ from their mirror by up to {gap:.3g}"
                )
        values, basis = torch.linalg.eigh((matrices + matrices.mT) / 2)
        low, top = values[:, 0], values.abs().amax(1)
        if bool((low < -1e-6 * top).any()):  # float32 input is allowed its rounding
            k = int((low / top).argmin())
            raise ValueError(f"covariance {k} is not positive semi-definite: it has the eigenvalue {float(low[k]):.6g}")
        return cls(values.clamp_min(0), values.new_zeros(len(values)), values.shape[1], basis)

    @classmethod
    def low_rank(cls, factors: Tensor, floor: Tensor) -> Covariance:
        """floor_k I + F_k F_k^T with factors (k, d, r)."""
        basis, roots, _ = torch.linalg.svd(factors, full_matrices=False)
        return cls(floor[:, None] + roots**2, floor, factors.shape[1], basis)

    def __len__(self) -> int:
        return len(self.floor)

    def __getitem__(self, part: slice) -> Covariance:
        basis = None if self.basis is None else self.basis[part]
        return Covariance(self.values[part], self.floor[part], self.dim, basis)

    @property
    def rank(self) -> int:
        """r, the number of directions with an eigenvalue of their own."""
        return self.values.shape[1]

    @property
    def smallest(self) -> float:
        """The smallest of all eigenvalues; 0 means that some component has no density."""
        known = self.values if self.rank == self.dim else torch.cat([self.values, self.floor[:, None]], 1)
        return float(known.min())

    def to(self, like: Tensor) -> Covariance:
        """The basis in the dtype and on the device of `like`; eigenvalues stay in float64 on the host."""
        return Covariance(self.values, self.floor, self.dim, None if self.basis is None else self.basis.to(like))

    def spectrum(self, f: Function) -> Spectrum:
        """The eigenvalues of f(C); f may broadcast (k, r) to (..., k, r)."""
        return Spectrum(f(self.values), f(self.floor[:, None]))

    def split(self, v: Tensor) -> Split:
        """Coordinates of v (..., k, d) on the basis, and what is left."""
        if self.basis is None:
            return Split(v, None) if self.rank == self.dim else Split(v[..., :0], v)
        coords = torch.einsum("...kd,kdr->...kr", v, self.basis)
        if self.rank == self.dim:
            return Split(coords, None)
        return Split(coords, v - torch.einsum("...kr,kdr->...kd", coords, self.basis))

    def quadratic(self, spectrum: Spectrum, split: Split) -> Tensor:
        """v^T f(C) v, (..., k)."""
        total = (spectrum.inside * split.coords**2).sum(-1)
        return total if split.rest is None else total + (spectrum.outside * split.rest**2).sum(-1)

    def join(self, spectrum: Spectrum, split: Split) -> Tensor:
        """f(C) v, (..., k, d)."""
        inside = spectrum.inside * split.coords
        if self.basis is not None:
            inside = torch.einsum("...kr,kdr->...kd", inside, self.basis)
        if split.rest is None:
            return inside
        outside = spectrum.outside * split.rest
        return outside if self.rank == 0 else inside + outside

    def mix(self, weights: Tensor, spectrum: Spectrum, split: Split) -> Tensor:
        """sum_k weights_k f(C_k) v_k, (..., d): components are summed before anything returns from their bases."""
        if self.basis is None:
            return (weights[..., None] * self.join(spectrum, split)).sum(-2)
        inside = torch.einsum("...kr,kdr->...d", weights[..., None] * spectrum.inside * split.coords, self.basis)
        if split.rest is None:
            return inside
        return inside + (weights[..., None] * spectrum.outside * split.rest).sum(-2)

    def apply(self, f: Function, v: Tensor) -> Tensor:
        """f(C_k) v_k for v (..., k, d)."""
        cast = self.to(v)
        return cast.join(self.spectrum(f).to(v), cast.split(v))

    def logdet(self, f: Function) -> Tensor:
        """log det f(C_k), (..., k)."""
        return self.log_volume(self.spectrum(f))

    def log_volume(self, spectrum: Spectrum) -> Tensor:
        """The log-determinant of a function of C, (..., k), from its eigenvalues."""
        inside = spectrum.inside.log().sum(-1)
        if self.rank == self.dim:
            return inside
        return inside + (self.dim - self.rank) * spectrum.outside.log().squeeze(-1)

    def dense(self, f: Function = lambda values: values) -> Tensor:
        """The matrices f(C_k), (..., k, d, d)."""
        spectrum = self.spectrum(f)
        if self.basis is None:
            diagonal = spectrum.inside if self.rank else spectrum.outside.expand(*spectrum.outside.shape[:-1], self.dim)
            return torch.diag_embed(diagonal)
        inside = torch.einsum("kdr,...kr,ker->...kde", self.basis, spectrum.inside, self.basis)
        if self.rank == self.dim:
            return inside
        complement = torch.eye(self.dim, dtype=self.floor.dtype) - self.basis @ self.basis.mT
        return inside + spectrum.outside[..., None] * complement

    def condition(self, a: Tensor, r: Tensor) -> tuple[Covariance, Tensor, Tensor]:
        """Given y = A x + e, e ~ N(0, R): the posterior covariance, the gain K (k, d, m) and a factor of S (k, m, m).

            S = A C A^T + R,   K = C A^T S^-1,   C' = (I - K A) C (I - K A)^T + K R K^T

        Joseph's form stays positive. Off the span of Q_k and A^T nothing changes, so an isotropic or low-rank
        covariance keeps its floor and its rank grows by m at most. Source: Bucy, Joseph (1968).
        """
        spanning = None if self.rank == self.dim else a.mT.expand(len(self), -1, -1)
        if spanning is not None and self.basis is not None:
            spanning = torch.cat([self.basis, spanning], 2)
        if spanning is None or spanning.shape[2] >= self.dim:
            frame = torch.eye(self.dim, dtype=a.dtype).expand(len(self), -1, -1)
        else:
            frame = torch.linalg.qr(spanning).Q  # (k, d, r + m), orthonormal whatever the rank of what it spans
        inner = frame.mT @ self.apply(lambda c: c, frame.permute(2, 0, 1)).permute(1, 2, 0)
        seen = a @ frame
        s = seen @ inner @ seen.mT + r
        factor, failed = torch.linalg.cholesky_ex((s + s.mT) / 2)
        pivots = factor.diagonal(dim1=-2, dim2=-1) ** 2
        if bool(failed.any()) or bool((pivots <= 1e-14 * s.diagonal(dim1=-2, dim2=-1)).any()):
            raise ValueError("the measurement has no density: A C A^T + noise covariance is singular, add noise")
        gain = torch.cholesky_solve(seen @ inner, factor).mT
        left = torch.eye(inner.shape[1], dtype=a.dtype) - gain @ seen
        posterior = left @ inner @ left.mT + gain @ r @ gain.mT
        values, vectors = torch.linalg.eigh((posterior + posterior.mT) / 2)
        floor = self.floor if frame.shape[2] < self.dim else torch.zeros_like(self.floor)
        return Covariance(values.clamp_min(0), floor, self.dim, frame @ vectors), frame @ gain, factor
