"""One Brownian path under many runs: strong convergence can be seen, and solvers compared on the same noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..random import Interval, Noise, Seed, derive

_OCTAVES, _LEVELS = 128, 21  # the range 2^+-128 of SNR, halved 21 times in log SNR; both define the path, never change
_LOW, _HIGH = 2.0**-_OCTAVES, 2.0**_OCTAVES
_NEGLIGIBLE = 1e-20  # of an increment's variance, below which a term is left out

_Node = tuple[int | str, ...]


class BrownianPath(Noise):
    """z = (W(b) - W(a)) / sqrt(b - a): the increments of one Brownian motion W on the clock b = SNR = alpha^2/sigma^2.

        W(s) = sum_n h_n(s) z_n,     h_n(s) = sqrt((m - a)(b - m)/(b - a)) times the hat of height 1 on (a, m, b)

    Give it to `orn.sample(..., seed=path)`: runs with other grids, steps or solvers then follow the same path, which is
    what strong convergence and paired comparisons need. It is Lévy's construction on a tree of intervals of log-SNR
    (128 octaves each way, 21 halvings: cells of 2^-13 octave, in which one last bridge places every s), so the law is
    exact for all real times that do not share a cell; two ends in one cell (relative distance below 1e-4) get a normal
    of their own. W(s) depends on the seed and s alone, never on what was asked before. SNR = inf is a normal
    independent of all others, as its limit is.

    A run that draws twice for one interval (a second noise of a step, a restart, noise added back) gets an independent
    second path, which again is the same for all runs that draw in that pattern.

    Args: as `Noise`; a generator gives one draw as its seed. Numbers of the end law come from the ordinary stream. An
    increment takes about 12 draws of the state's size and keeps about 25 of them for the next. With one interval a
    sample the cost grows with the batch. Intervals on another clock than "snr" are refused. (torch reads 32 bits of a
    seed on the CPU: among n draws of a run, two share their numbers with a chance of n^2/2^33.)

    Source: P. Lévy 1948, the midpoint construction of Brownian motion; Li et al. 2020 (2001.01328) for a seeded tree.
    """

    def __init__(
        self, seed: Seed = None, *, batch: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        if isinstance(seed, torch.Generator):
            seed = int(torch.randint(2**62, (), generator=seed, device=seed.device).item())
        super().__init__(seed, batch=batch, dtype=dtype, device=device)
        self._source = torch.Generator("cpu" if isinstance(self.seed, tuple) else self.device)

    def rewind(self) -> None:
        super().rewind()
        self._sheets: dict[bool, list[Tensor]] = {False: [], True: []}  # where each path of a direction has come to
        self._kept: dict[_Node, Tensor] = {}

    def increment(self, shape: Sequence[int], interval: Interval) -> Tensor:
        """The path's normalised increment over `interval`, standard normal numbers of `shape` = (batch, *event)."""
        shape = tuple(shape)
        if interval.clock != "snr":
            raise ValueError(f"a path runs on the clock 'snr', this noise on {interval.clock!r}: use a plain seed")
        if shape[0] != self.batch:
            raise ValueError(f"noise of shape {shape} asked of a path for a batch of {self.batch}")
        start, end = (torch.tensor(v, dtype=torch.float64) for v in (interval.start, interval.end))
        if start.dim() > 1 or start.numel() not in (1, self.batch):
            raise ValueError(f"a path has one time a sample: got {tuple(start.shape)}, use a plain seed")
        start, end = start.reshape(-1), end.reshape(-1)
        if not bool(((start >= 0) & (end >= 0) & (start != end)).all()):
            raise ValueError(f"an interval runs between two different SNR, neither negative: got {interval}")
        sheet = (*self._sheet(start, end), *shape[1:])
        terms: dict[_Node, list[float]] = {}
        for i, (a, b) in enumerate(zip(start.tolist(), end.tolist(), strict=True)):
            for node, weight in _increment(min(a, b), max(a, b)).items():
                terms.setdefault(node, [0.0] * len(start))[i] = weight
        drawn = {}
        out = torch.zeros(shape, device=self.device, dtype=torch.float32)
        for node, c in terms.items():
            key = (*sheet, *node)
            drawn[key] = z = self._kept[key] if key in self._kept else self._node(shape, key)
            if len(c) == 1:
                out.add_(z, alpha=c[0])
            else:
                out.addcmul_(
                    z, torch.tensor(c, device=self.device, dtype=torch.float32).reshape(-1, *(1,) * (len(shape) - 1))
                )
        self._kept = drawn
        return out.to(self.dtype)

    def _sheet(self, start: Tensor, end: Tensor) -> tuple[int, int]:
        """The first path that has not passed this interval yet."""
        back = bool((end < start).any())
        sign = -1.0 if back else 1.0
        sheets = self._sheets[back]
        for number, reached in enumerate(sheets):
            if bool((sign * (start - reached) >= -1e-9 * start).all()):
                sheets[number] = end
                return int(back), number
        sheets.append(end)
        return int(back), len(sheets) - 1

    def _node(self, shape: tuple[int, ...], key: _Node) -> Tensor:
        if isinstance(self.seed, tuple):
            return torch.stack([self._draw(shape[1:], s, key) for s in self.seed]).to(self.device)
        assert isinstance(self.seed, int)
        return self._draw(shape, self.seed, key)

    def _draw(self, shape: tuple[int, ...], seed: int, key: _Node) -> Tensor:
        self._source.manual_seed(derive(seed, "brownian", *key))
        return torch.randn(shape, generator=self._source, device=self._source.device, dtype=torch.float32)


def _increment(a: float, b: float) -> dict[_Node, float]:
    """The coefficients of (W(b) - W(a))/sqrt(b - a) over the nodes; their squares add up to 1."""
    if b >= _HIGH:
        return {("beyond", a.hex(), b.hex()): 1.0}
    first, last = _value(a), _value(b)
    if any(node[0] == "leaf" and node in last for node in first):  # two times in one cell
        return {("within", a.hex(), b.hex()): 1.0}
    difference = dict(last)
    for node, c in first.items():
        difference[node] = difference.get(node, 0.0) - c
    length = b - a
    return {node: c / math.sqrt(length) for node, c in difference.items() if c * c > _NEGLIGIBLE * length}


def _value(s: float) -> dict[_Node, float]:
    """The coefficients of W(s) over the nodes: level by level the hat functions that are not zero at s."""
    if s == 0:
        return {}
    if s < _LOW:
        return {("low",): s / math.sqrt(_LOW), ("leaf", -1): math.sqrt(s * (_LOW - s) / _LOW)}
    found: dict[_Node, float] = {("low",): math.sqrt(_LOW), ("high",): (s - _LOW) / math.sqrt(_HIGH - _LOW)}
    exponents, cell = [-float(_OCTAVES), float(_OCTAVES)], 0
    for level in range(_LEVELS):
        middle = (exponents[0] + exponents[1]) / 2
        a, m, b = 2.0 ** exponents[0], 2.0**middle, 2.0 ** exponents[1]
        height = math.sqrt((m - a) * ((b - m) / (b - a)))
        found[level, cell] = height * ((s - a) / (m - a) if s < m else (b - s) / (b - m))
        if s == m:
            return found
        above = s > m
        exponents[not above] = middle
        cell = 2 * cell + above
    a, b = (2.0**e for e in exponents)
    found["leaf", cell] = math.sqrt((s - a) * (b - s) / (b - a))
    return found
