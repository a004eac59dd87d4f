"""The numbers of a tuned table: any of them make a table that is consistent and whose times fall."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import TableError
from ..processes import GaussianProcess, Level
from ..solvers.schedule_search import angle
from ..solvers.table import Evaluation, Gaussian, Output, ProductTable, Register, Table, Writer

_REACH = 0.99  # of the way to a neighbour


@dataclass(frozen=True, eq=False)
class Coefficients:
    """x_(m+1) = keep_m x_m + sum_(j <= m) weights_mj x0(e_j) + fresh_m z_m,    e_m asked at x_m and level asked_m

    with keep_m alpha_m + sum_j weights_mj = alpha_(m+1) and keep_m^2 sigma_m^2 + fresh_m^2 = sigma_(m+1)^2: a denoiser
    of constant x0 is followed exactly, in law where there is noise.

    levels: (n + 1,), of the states; asked: (n,); keep, fresh: (n,); weights: (n, n), lower triangular; float64.
    """

    levels: Level
    asked: Level
    keep: Tensor
    weights: Tensor
    fresh: Tensor

    def __getitem__(self, k: int) -> Coefficients:
        """One of several."""
        return Coefficients(self.levels[k], self.asked[k], self.keep[k], self.weights[k], self.fresh[k])

    def table(self, process: GaussianProcess, name: str) -> Table:
        """The table, named."""
        writer = Writer(name, self.levels[0], process)
        x, known = writer.state, list[Evaluation]()
        for m, (keep, weights, fresh) in enumerate(zip(self.keep, self.weights, self.fresh, strict=True)):
            known.append(writer.evaluate(x, self.asked[m]))
            value = keep * x
            for w, e in zip(weights.tolist(), known, strict=False):
                value = value + w * e.x0
            if float(fresh) > 0:
                value = value + fresh * writer.noise(self.levels[m], self.levels[m + 1])
            x = writer.step(value, self.levels[m + 1])
        return writer.table()


def reduce(table: Table | ProductTable) -> Coefficients:
    """The same sampler in the form of `Coefficients`: every register as a sum over the start, all x0 and all noise.

    Raises TableError for tables that have no such form: adaptive rows, states that are not consistent, times that do
    not fall from one evaluation to the next (Heun's, which asks twice at one level), noise that is used again.
    """
    if not isinstance(table, Table):
        raise TableError(f"{table.solver}: a table of several components is not tuned")
    if table.adaptive:
        raise TableError(f"{table.solver} has rows that depend on the data: it is no list of numbers to tune")
    n, size = table.nfe, 1 + table.nfe + len(table.noises)
    parts = {0: torch.eye(size, dtype=torch.float64)[0]}  # of r_m: start, x0 of each evaluation, noises
    for kind, m in table.order:
        if kind == "row":
            parts[m] = torch.zeros(size, dtype=torch.float64)
            for atom, c in table.rows[m].terms.items():
                c = torch.as_tensor(c, dtype=torch.float64)
                if c.dim():
                    raise TableError(
                        f"{table.solver} has coefficients of shape {tuple(c.shape)}: only scalars are tuned"
                    )
                match atom:
                    case Register():
                        parts[m] += c * parts[atom.index]
                    case Gaussian():
                        parts[m][1 + n + atom.index] += c
                    case Output():
                        e = table.evaluations[atom.evaluation]
                        if atom.view == "raw" or atom.head != "main":
                            raise TableError(f"{table.solver} reads {atom}: only views of the answer are tuned")
                        c_x, c_p = e.level.conversion("x0", atom.view)
                        parts[m] += c * c_x * parts[e.register]
                        parts[m][1 + e.index] += c * c_p
    registers = [e.register for e in table.evaluations] + [table.result.index]
    rows = [table.rows[m].level for m in registers]
    found = [level for level in rows if level is not None]
    if len(found) < n + 1 or not all(bool((a.t > b.t).all()) for a, b in pairwise(found)):
        raise TableError(f"{table.solver}: the times of its evaluations do not fall one by one from noise to data")
    levels, asked = Level.stack(found), Level.stack([e.level for e in table.evaluations])
    own = torch.stack([parts[m] for m in registers])
    keep = torch.where(levels.sigma[1:] > 0, own[1:, 0] / own[:-1, 0], torch.zeros(()).to(own))
    step = own[1:] - keep[:, None] * own[:-1]
    weights, noise = step[:, 1 : 1 + n], step[:, 1 + n :]
    again = bool(((noise.abs() > 1e-12) & (own[:-1, 1 + n :].abs() > 1e-12)).any())
    made = Coefficients(levels, asked, keep, weights, noise.square().sum(1).sqrt())
    mean = keep * levels.alpha[:-1] + weights.sum(1) - levels.alpha[1:]
    spread = torch.hypot(keep * levels.sigma[:-1], made.fresh) - levels.sigma[1:]
    if again or not bool((torch.hypot(mean, spread) <= 1e-8 * torch.hypot(levels.alpha, levels.sigma)[1:]).all()):
        raise TableError(f"{table.solver} does not follow a constant x0 exactly: begin with one that does, as DPM++ 2M")
    return made


@dataclass(frozen=True, eq=False)
class Parameters:
    """theta -> Coefficients near those of a named table, theta = 0: free numbers, float64, all of order one.

        phi_(m+1) = phi_n + (phi_m - phi_n) sigmoid(a_m)                     times of the states, falling
        asked_m   = phi_m + tanh(b_m) (distance to the neighbour on that side)
        weights   = (alpha_(m+1) - keep_m alpha_m) q_m,   sum_j q_mj = 1     q_mj free for j < m
        keep_m    = cos(psi_m) sigma_(m+1)/sigma_m,   fresh_m = sin(psi_m) sigma_(m+1)

    in the angle phi = atan2(sigma, alpha). q are weights as a multistep method's: (1) is DDIM's. psi is free where the
    named table has noise.

    window: evaluations that a row may look back on, that at its own state included; older weights go to the newest.
    rank: of the change of q over (row, age), in place of a free number each: q_m,m-i = named + sum_k u_mk v_ki.

    Source: the form is that of non-stationary solvers, Shaul et al. 2024 (2403.01329); consistency by construction, the
    angle and the noise are ours.
    """

    process: GaussianProcess
    named: Coefficients
    window: int | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        for name in ("window", "rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: at least 1, or None for no limit")

    @cached_property
    def steps(self) -> int:
        return len(self.named.keep)

    @cached_property
    def slots(self) -> tuple[tuple[str, int, int], ...]:
        """What each number of theta is: (kind, row, index)."""
        return tuple(self._slots())

    def _slots(self) -> Iterator[tuple[str, int, int]]:
        n, past = self.steps, min(self.window or self.steps, self.steps) - 1
        yield from (("time", m, 0) for m in range(n - 1))
        yield from (("asked", m, 0) for m in range(n))
        yield from (("noise", m, 0) for m in range(n) if float(self.named.fresh[m]) > 0)
        if self.rank is None:
            yield from (("weight", m, age) for m in range(1, n) for age in range(1, min(m, past) + 1))
        else:
            rank = min(self.rank, past)
            yield from (("left", m, k) for m in range(1, n) for k in range(rank))
            yield from (("right", age, k) for age in range(1, past + 1) for k in range(rank))

    def __len__(self) -> int:
        return len(self.slots)

    @cached_property
    def begin(self) -> Tensor:
        """theta of the named table: 0, but for the right factors of a low rank, which are unit vectors."""
        return torch.tensor(
            [float(kind == "right" and row == k + 1) for kind, row, k in self.slots], dtype=torch.float64
        )

    @cached_property
    def first(self) -> tuple[int, ...]:
        """The first evaluation that each number of theta has a say in."""
        return tuple(row if kind in ("time", "asked") else row + 1 for kind, row, _ in self.slots)

    @cached_property
    def _base(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(a, b, psi, q) of the named table."""
        c, n = self.named, self.steps
        phi = angle(c.levels)
        share = ((phi[1:-1] - phi[-1]) / (phi[:-2] - phi[-1])).clamp(1e-6, 1 - 1e-6)
        off = angle(c.asked) - phi[:-1]
        reach = _neighbours(phi, off)
        b = torch.where(reach > 0, off / reach, 0.0).clamp(-_REACH, _REACH)
        psi = torch.atan2(c.fresh, c.keep * c.levels.sigma[:-1])
        q = c.weights / (c.levels.alpha[1:] - c.keep * c.levels.alpha[:-1])[:, None]
        if self.window is not None:
            rows, columns = torch.arange(n)[:, None], torch.arange(n)
            q = torch.where(rows - columns < self.window, q, 0.0)
        return torch.logit(share), torch.atanh(b), psi, q

    @cached_property
    def _places(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """For each kind of number where it stands in theta, its rows and its indices."""
        found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for own in dict.fromkeys(kind for kind, _, _ in self.slots):
            here = [(i, row, index) for i, (kind, row, index) in enumerate(self.slots) if kind == own]
            places, rows, indices = torch.tensor(here).T
            found[own] = places, rows, indices
        return found

    def inside(self, theta: Tensor) -> Tensor:
        """theta with b_0 <= 0: no level is above the first, and past that bound nothing would change any more."""
        base = self._base[1]
        most = [-float(base[0]) if (kind, row) == ("asked", 0) else torch.inf for kind, row, _ in self.slots]
        return theta.minimum(torch.tensor(most, dtype=theta.dtype))

    def coefficients(self, theta: Tensor) -> Coefficients:
        """The table of theta (P,), or tables of (K, P), then with K as first axis of all parts."""
        if theta.dim() == 1:
            return self.coefficients(theta[None])[0]
        count, n = len(theta), self.steps
        a, b, psi, q = (part.expand(count, *part.shape).clone() for part in self._base)
        factors = {kind: theta.new_zeros(count, n + 1, n + 1) for kind in ("left", "right")}
        for kind, (places, rows, indices) in self._places.items():
            own = theta[:, places]
            match kind:
                case "time":
                    a[:, rows] += own
                case "asked":
                    b[:, rows] += own
                case "noise":
                    psi[:, rows] += own
                case "weight":
                    q[:, rows, rows - indices] += own
                case _:
                    factors[kind][:, rows, indices] = own
        if self.rank is not None:
            change = factors["left"] @ factors["right"].mT  # by row and age
            for m in range(1, n):
                ages = torch.arange(1, m + 1)
                q[:, m, m - ages] += change[:, m, ages]
        newest = torch.arange(n)
        q[:, newest, newest] += 1 - q.sum(2)
        ends = self.named.levels
        phi = angle(ends).expand(count, n + 1).clone()
        for m in range(n - 1):
            phi[:, m + 1] = phi[:, -1] + (phi[:, m] - phi[:, -1]) * torch.sigmoid(a[:, m])
        share = torch.tanh(b)
        asked = phi[:, :-1] + share * _neighbours(phi, share)
        levels = _join(ends[0], self._level(phi[:, 1:-1]), ends[-1])
        top = asked >= phi[:, :1]
        called = _choose(top, ends[0], self._level(torch.where(top, phi[:, :1] / 2, asked)))
        sigma, alpha = levels.sigma, levels.alpha
        keep = torch.cos(psi) * sigma[:, 1:] / sigma[:, :-1]
        weights = (alpha[:, 1:] - keep * alpha[:, :-1])[..., None] * q
        fresh = torch.where(self.named.fresh > 0, torch.sin(psi).abs() * sigma[:, 1:], 0.0)
        return Coefficients(levels, called, keep, weights, fresh)

    def _level(self, phi: Tensor) -> Level:
        return self.process.level(self.process.time(-2 * torch.log(torch.tan(phi))).clamp(0, 1))


def _join(first: Level, inner: Level, last: Level) -> Level:
    """Levels (K, n - 1) between two ends."""
    names, count = [part.name for part in fields(Level)], len(inner)
    ends = [[getattr(end, name).expand(count, 1) for end in (first, last)] for name in names]
    return Level(*(torch.cat([a, getattr(inner, name), b], 1) for name, (a, b) in zip(names, ends, strict=True)))


def _choose(where: Tensor, one: Level, other: Level) -> Level:
    return Level(*(torch.where(where, getattr(one, f.name), getattr(other, f.name)) for f in fields(Level)))


def _neighbours(phi: Tensor, side: Tensor) -> Tensor:
    """The distance from each of phi_0, ..., phi_(n-1) to the next one down, or, where side > 0, up."""
    down = phi[..., :-1] - phi[..., 1:]
    up = torch.cat([torch.zeros_like(down[..., :1]), down[..., :-1]], -1)
    return torch.where(side > 0, up, down)
