"""Gaussian mixtures: the world in which nearly every claim can be checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from .._extras import require
from ..processes import Level
from .covariance import Covariance, Products, Spectrum, Split, column, over
from .world import Law, World

_DIGITS = 1e5  # what |x|^2 may exceed a component's variance by
_BLOCK = 2**22  # variances made at once of many levels


class GaussianMixture(World):
    """p(x0) = sum_k w_k N(x0; mu_k, C_k), and everything that follows from it.

    With centred xc = x - shift, d_k = xc - alpha mu_k and S_k = alpha^2 C_k + sigma^2 I, for every level:

        log p_t(x) = logsumexp_k [log w_k + log N(d_k; 0, S_k)],      r_k = the softmax of the same terms
        E[x0 | x] = sum_k r_k (mu_k + alpha C_k S_k^-1 d_k),          score = -sum_k r_k S_k^-1 d_k
        Cov[x0 | x] = sum_k r_k (sigma^2 C_k S_k^-1 + m_k m_k^T) - m m^T,   m_k, m: the means of the component, of all

    Args:
        means: (k, *event).
        stds: standard deviations, () or (k,) isotropic, (k, *event) diagonal; 0 makes a point mass.
        weights: (k,) positive, normalised here; uniform by default.
        covs: (k, d, d) full covariances of the flattened event, d the product of its sizes.
        factors: (k, d, r) low-rank covariances F_k F_k^T + stds_k^2 I, stds (k,) or 0 if not given.
        labels: (k,) the label of each component, its index by default.
    """

    def __init__(
        self,
        means: Tensor,
        stds: Tensor | float | int | None = None,
        weights: Tensor | None = None,
        *,
        covs: Tensor | None = None,
        factors: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        if means.dim() < 1 or len(means) == 0:
            raise ValueError(f"means have one row a component, (k, *event): got {tuple(means.shape)}")
        dtype = means.dtype if means.is_floating_point() else torch.get_default_dtype()
        super().__init__(len(means), means.shape[1:], dtype, labels, weights)
        self.means = _double("means", means).reshape(len(means), self.dim)
        self.covariance = self._covariance(stds, covs, factors)
        self._casts: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Covariance, Products]] = {}

    def _covariance(self, stds: Tensor | float | int | None, covs: Tensor | None, factors: Tensor | None) -> Covariance:
        k, d = self.means.shape
        if covs is not None and (stds is not None or factors is not None):
            raise ValueError("covs says everything: give neither stds nor factors with it")
        if covs is not None:
            if covs.shape != (k, d, d):
                raise ValueError(
                    f"covs of {k} components in {d} dimensions have shape {(k, d, d)}: {tuple(covs.shape)}"
                )
            return Covariance.full(_double("covs", covs))
        if stds is None and factors is None:
            raise ValueError("a mixture needs the width of its components: give stds, covs or factors")
        std = _double("stds", 0.0 if stds is None else stds)
        if bool((std < 0).any()):
            raise ValueError(f"stds must not be negative: got {float(std.min()):.6g}")
        if std.shape in ((), (k,)):
            floor = (std**2).expand(k)
            if factors is None:
                return Covariance.isotropic(floor, d)
            if factors.dim() != 3 or factors.shape[:2] != (k, d):
                raise ValueError(f"factors have shape ({k}, {d}, rank): got {tuple(factors.shape)}")
            return Covariance.low_rank(_double("factors", factors), floor)
        if std.shape != (k, *self.event) or factors is not None:
            allowed = f"({k},)" if factors is not None else f"({k},) or {(k, *self.event)}"
            raise ValueError(f"stds have shape {allowed}: got {tuple(std.shape)}")
        return Covariance.diagonal((std**2).reshape(k, d))

    @classmethod
    def fit(
        cls, data: Tensor, components: int, *, shape: str = "full", tries: int = 1, seed: int = 0
    ) -> GaussianMixture:
        """The mixture of greatest likelihood for data (n, *event), found by expectation and maximisation.

        shape: of the covariances, "full", "diagonal" or "isotropic". tries: starts from k-means, the best of which is
        kept. Source: Dempster, Laird, Rubin 1977, as scikit-learn has it.
        """
        shapes = {"full": "full", "diagonal": "diag", "isotropic": "spherical"}
        if shape not in shapes:
            raise ValueError(f"shape={shape!r}: choose {', '.join(shapes)}")
        if not 1 <= components <= len(data):
            raise ValueError(
                f"components={components} of a mixture for {len(data)} samples: at least 1, at most one each"
            )
        estimator = require("sklearn.mixture", extra="metrics").GaussianMixture
        options = {"covariance_type": shapes[shape], "n_init": tries, "random_state": seed % 2**32}
        found = estimator(components, **options).fit(_double("data", data).reshape(len(data), -1).numpy())
        means, weights, spread = (
            torch.as_tensor(part, dtype=torch.float64) for part in (found.means_, found.weights_, found.covariances_)
        )
        means = means.reshape(-1, *data.shape[1:])
        if shape == "full":
            mixture = GaussianMixture(means, weights=weights, covs=spread)
        else:
            mixture = GaussianMixture(means, spread.sqrt().reshape(means.shape if shape == "diagonal" else -1), weights)
        mixture.dtype = data.dtype
        return mixture

    @classmethod
    def _of(cls, prior: GaussianMixture, means: Tensor, covariance: Covariance, log_weights: Tensor) -> GaussianMixture:
        """A mixture with the event, labels and dtype of `prior` and laws of its own."""
        new = GaussianMixture(means.reshape(-1, *prior.event), stds=0.0, labels=prior.labels)
        new.covariance, new.dtype = covariance, prior.dtype
        new.log_weights = log_weights.log_softmax(0)
        return new

    @property
    def singular(self) -> bool:
        return self.covariance.smallest == 0

    @cached_property
    def scale(self) -> float:
        """The largest coordinate or standard deviation."""
        widest = torch.cat([self.covariance.values.flatten(), self.covariance.floor]).max().sqrt()
        return max(float(self.means.abs().max()), float(widest)) or 1.0

    def _cast(self, like: Tensor) -> tuple[Tensor, Covariance, Products]:
        """Means and bases in the dtype and on the device of `like`, made once."""
        key = (like.dtype, like.device)
        if key not in self._casts:
            with torch.inference_mode(False):  # what is kept must serve gradients too
                means = self.means.to(device=key[1], dtype=key[0])
                covariance = self.covariance.to(means)
                self._casts[key] = (means, covariance, Products(means, covariance))
        return self._casts[key]

    def _law(self, alpha: Tensor, sigma: Tensor, like: Tensor, label: Tensor | None) -> Law:
        return _MixtureLaw(self, alpha, sigma, like, label)

    def _bound(
        self, levels: Level, a: Tensor, c: Tensor, like: Tensor, label: Tensor | None
    ) -> Iterable[Callable[[Tensor], Tensor]]:
        if label is not None or levels.alpha.dim() != 1:
            yield from super()._bound(levels, a, c, like, label)
            return
        block = max(1, _BLOCK // (len(self.means) + self.covariance.values.numel()))
        parts = (torch.split(part, block) for part in (levels.alpha, levels.sigma, a, c))
        for alpha, sigma, own, other in zip(*parts, strict=True):
            yield from _MixtureLaw(self, alpha, sigma, like, None).each(own, other)

    def _draw(self, component: Tensor, seed: torch.Generator) -> Tensor:
        z = torch.randn(len(component), self.dim, dtype=torch.float64, generator=seed, device=seed.device).cpu()
        x = self.means[component]
        for k in sorted(set(component.tolist())):
            rows = component == k
            x[rows] += self.covariance[k : k + 1].apply(torch.sqrt, z[rows][:, None]).squeeze(1)
        return x

    def moments(self) -> tuple[Tensor, Tensor]:
        mean = self.weights @ self.means
        apart = self.means - mean
        within = torch.einsum("k,kde->de", self.weights, self.covariance.dense())
        return mean.reshape(self.event), within + (self.weights[:, None] * apart).mT @ apart

    def posterior(
        self, y: Tensor, a: Tensor, noise_std: float | int | Tensor | None = None, noise_cov: Tensor | None = None
    ) -> GaussianMixture:
        """The law of x0 given y = A x0 + e, e ~ N(0, R): another mixture.

            mu_k' = mu_k + K_k (y - A mu_k),   C_k' = (I - K_k A) C_k,   w_k' ~ w_k N(y; A mu_k, A C_k A^T + R)

        y: (m,); a: (m, d) on the flattened event; noise_std: () or (m,), may be 0 where A C A^T has full rank, or
        noise_cov: R (m, m).
        """
        y, a, r = measurement(y, a, noise_std, noise_cov, self.dim)
        covariance, gain, factor = self.covariance.condition(a, r)
        residual = y - self.means @ a.mT
        white = torch.linalg.solve_triangular(factor, residual[..., None], upper=False).squeeze(-1)
        evidence = -white.square().sum(1) / 2 - factor.diagonal(dim1=1, dim2=2).log().sum(1)
        means = self.means + (gain @ residual[..., None]).squeeze(-1)
        return GaussianMixture._of(self, means, covariance, self.log_weights + evidence)


class Gaussian(GaussianMixture):
    """p(x0) = N(x0; mean, C): a mixture of one. Every x_t is Gaussian and every flow is linear.

    Args:
        mean: (*event).
        cov: (d, d) of the flattened event; or
        std: () isotropic or (*event) diagonal; or
        factor: (d, r) for F F^T + std^2 I.
    """

    def __init__(
        self,
        mean: Tensor,
        cov: Tensor | None = None,
        std: Tensor | float | int | None = None,
        *,
        factor: Tensor | None = None,
    ) -> None:
        one = [None if part is None else part[None] for part in (cov, factor)]
        stds = std if std is None or torch.as_tensor(std).dim() == 0 else torch.as_tensor(std)[None]
        super().__init__(mean[None], stds, covs=one[0], factors=one[1])


class _At(NamedTuple):
    """What the shares of the components depend on beside x: alpha, log w_k N(0; 0, S_k) up to a common part, 1/S_k, and
    whether squares of differences may be made from products."""

    alpha: Tensor
    log_terms: Tensor
    precision: Spectrum
    by_products: bool


class _MixtureLaw(Law):
    def __init__(
        self, world: GaussianMixture, alpha: Tensor, sigma: Tensor, like: Tensor, label: Tensor | None
    ) -> None:
        self.world = world
        self.means, self.cov_cast, self._products = world._cast(like)
        # one level for all, or one a sample in front of (k, r)
        self.alpha, self.sigma = (_wide(c.to("cpu", torch.float64)) for c in (alpha, sigma))
        # S = alpha^2 C + sigma^2 I. Where it is exactly singular nothing is random: there 1/S counts as 0 in a mean,
        # and as enormous in a density, so that the nearest component wins and nothing overflows.
        s = world.covariance.spectrum(lambda c: self.alpha**2 * c + self.sigma**2)
        self._divisor = Spectrum(*(torch.where(part > 0, part, torch.inf) for part in s))
        least = world.scale**2 * (1e-200 if like.dtype == torch.float64 else 1e-24)
        s = Spectrum(*(part.clamp_min(least) for part in s))
        self._told = self._told_by_products(s)
        log_terms = world.log_weights - world.covariance.log_volume(s) / 2 - world.dim / 2 * math.log(2 * math.pi)
        if label is not None:
            host = label.cpu()[:, None]
            log_terms = torch.where((host == world.labels) | (host < 0), log_terms, -torch.inf)
        # The common part, of the size of d, would cost digits in float32.
        base = log_terms.amax(-1, keepdim=True)
        precision = Spectrum(*(1 / part for part in s)).to(like)
        alpha = self.alpha if self.alpha.dim() == 0 else self.alpha.to(like)
        self._at = _At(alpha, (log_terms - base).to(like), precision, bool(self._told.all()))
        self._base = (base.squeeze(-1) - world._log_mass(label)).to(like)

    def _told_by_products(self, s: Spectrum) -> Tensor:
        """Whether squares of differences may be made from products: where no component is so narrow, beside where the
        states are, that it would cost more than five digits. Along axes (a diagonal covariance) there is no basis."""
        world = self.world
        if world.covariance.rank == world.dim:
            return torch.tensor(world.covariance.basis is not None)
        reach = self.alpha**2 * world.dim * world.scale**2 + world.dim * self.sigma**2
        return (reach <= _DIGITS * s.outside).all(-2, keepdim=True)

    def _filter(self, a: Tensor | float, c: Tensor | float) -> Spectrum:
        """a alpha C S^-1 - c S^-1: what a E[x0 | x] + c score does to the residual of a component."""
        values, floor = self.world.covariance.values, self.world.covariance.floor[:, None]
        inside, outside = ((a * self.alpha * part - c) for part in (values, floor))
        return Spectrum(inside / self._divisor.inside, outside / self._divisor.outside).to(self.means)

    def _split(self, at: _At, x: Tensor) -> Split:
        return self.cov_cast.split(x[:, None] - at.alpha * self.means)

    def _terms(self, at: _At, x: Tensor) -> tuple[Tensor, Callable[[Tensor, Spectrum], Tensor]]:
        """The log of each share, up to the common part, and mix(r, f) = sum_k r_k f(C_k) (xc - alpha mu_k)."""
        if at.by_products:
            products, apart = self._products, self._products.apart(x, at.alpha)
            terms = at.log_terms - products.quadratic(at.precision, apart) / 2
            return terms, lambda r, f: products.mix(r, f, apart)
        covariance, split = self.cov_cast, self._split(at, x)
        terms = at.log_terms - covariance.quadratic(at.precision, split) / 2
        return terms, lambda r, f: covariance.mix(r, f, split)

    def pair(self, x: Tensor) -> tuple[Tensor, Tensor]:
        terms, mix = self._terms(self._at, x)
        r = terms.softmax(-1)
        return r @ self.means + mix(r, self._filter(1.0, 0.0)), mix(r, self._filter(0.0, 1.0))

    def combine(self, a: Tensor, c: Tensor) -> Callable[[Tensor], Tensor]:
        return partial(self._combined, self._at, column(a, self.means), self._filter(_wide(a), _wide(c)))

    def each(self, a: Tensor, c: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
        """`combine` of every level, of a law that was given levels where others have samples: made at once, each is as
        if it had been made alone."""
        at, told = self._at, self._told.expand(len(self.alpha), 1, 1).flatten()
        parts = (self.alpha.flatten(), at.log_terms, *at.precision, told, a, *self._filter(_wide(a), _wide(c)))
        for alpha, log_terms, inside, outside, by_products, own, *spectrum in zip(*parts, strict=True):
            one = _At(alpha, log_terms, Spectrum(inside, outside), bool(by_products))
            yield partial(self._combined, one, own, Spectrum(*spectrum))

    def _combined(self, at: _At, a: Tensor, spectrum: Spectrum, x: Tensor) -> Tensor:
        terms, mix = self._terms(at, x)
        r = terms.softmax(-1)
        return a * (r @ self.means) + mix(r, spectrum)

    def log_prob(self, x: Tensor) -> Tensor:
        return self._terms(self._at, x)[0].logsumexp(-1) + self._base

    def cov(self, x: Tensor) -> Tensor:
        r = self._terms(self._at, x)[0].softmax(-1)
        means = self.means + self.cov_cast.join(self._filter(1.0, 0.0), self._split(self._at, x))
        apart = means - torch.einsum("bk,bkd->bd", r, means)[:, None]
        rest = self.world.covariance.dense(lambda c: over(self.sigma**2 * c, self.alpha**2 * c + self.sigma**2)).to(x)
        within = torch.einsum("bk,kde->bde" if rest.dim() == 3 else "bk,bkde->bde", r, rest)
        return within + torch.einsum("bk,bkd,bke->bde", r, apart, apart)


def measurement(
    y: Tensor, a: Tensor, noise_std: float | int | Tensor | None, noise_cov: Tensor | None, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, A, R) of y = A x + e in float64, checked."""
    y, a = _double("y", y), _double("A", a)
    if a.dim() != 2 or a.shape[1] != dim or y.shape != (a.shape[0],):
        raise ValueError(
            f"a measurement is y (m,) = A x with A (m, {dim}) on the flattened event: "
            f"got y {tuple(y.shape)} and A {tuple(a.shape)}"
        )
    if noise_std is not None and noise_cov is not None:
        raise ValueError("give the noise of the measurement once: noise_std or noise_cov")
    if noise_cov is not None:
        r = _double("noise_cov", noise_cov)
        if r.shape != (len(y), len(y)):
            raise ValueError(f"noise_cov has shape {(len(y), len(y))}: got {tuple(r.shape)}")
        return y, a, Covariance.full(r[None]).dense()[0]
    if noise_std is None:
        raise ValueError("give the noise of the measurement, noise_std or noise_cov (noise_std=0 where it is exact)")
    std = _double("noise_std", noise_std)
    if bool((std < 0).any()) or std.shape not in ((), y.shape):
        raise ValueError(f"noise_std is not negative, () or {tuple(y.shape)}: got {std.tolist()}")
    return y, a, torch.diag((std**2).expand(len(y)))


def _double(name: str, value: Tensor | float | int) -> Tensor:
    value = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name} must be finite: got {float(value[~value.isfinite()].flatten()[0])}")
    return value


def _wide(coefficient: Tensor) -> Tensor:
    return coefficient if coefficient.dim() == 0 else coefficient[:, None, None]
