"""Seeds and streams of noise: every random number has a name that the caller can say again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Seed: TypeAlias = int | torch.Generator | Sequence[int] | Tensor | None

_BLOCK = 8  # registers drawn at once for per-sample seeds, for speed: the numbers do not depend on it


def derive(seed: int, *path: int | str) -> int:
    """A child seed of 63 bits, the same on every machine: `derive(seed, "batch", step)` names one stateless stream."""
    names = tuple(part if isinstance(part, str) else index(part) for part in (seed, *path))  # numpy prints its own way
    digest = hashlib.sha256(repr(names).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int | torch.Generator | None, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` from a seed (a generator is returned as it is; None draws a fresh seed)."""
    if isinstance(seed, torch.Generator):
        return seed
    made = torch.Generator(device=device)
    made.manual_seed(fresh_seed() if seed is None else seed)
    return made


def fresh_seed() -> int:
    """A seed drawn from torch's global generator, so that `torch.manual_seed` governs runs without a seed."""
    return int(torch.randint(2**62, ()).item())


@dataclass(frozen=True)
class Interval:
    """What a noise covers: (start, end) on a named clock, with as many values as there are times; a Brownian path
    reads from it which of its increments is meant. The clock "snr" is alpha^2/sigma^2, rising towards data."""

    clock: str
    start: float | tuple[Any, ...]
    end: float | tuple[Any, ...]


@dataclass(frozen=True)
class Share:
    """Rows `start` to `stop` of a batch of `total`: what one process, or one pass of accumulation, takes of it.

    What is drawn for a batch is drawn for all of it and then cut, so it does not depend on how the batch is shared.
    """

    start: int
    stop: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= self.total:
            raise ValueError(f"a share of {self.total} rows lies among them: got {self.start} to {self.stop}")

    def __len__(self) -> int:
        return self.stop - self.start

    def __call__(self, rows: Tensor) -> Tensor:
        """The share of a tensor (total, ...)."""
        return rows[self.start : self.stop]


class Noise:
    """A stream of standard normal tensors for one run.

    Numbers are drawn in float32 and then cast, so that a float32 run and its float64 twin share their noise.

    Args:
        seed: an int or a `torch.Generator` (one stream for the batch, drawn on its device), a sequence or 1-D integer
            tensor with one seed a sample (each sample's numbers then depend on its own seed alone, bit for bit,
            whatever the batch; drawn on the host in blocks), or None (a fresh seed, readable as `.seed`).
        batch: number of samples; must match per-sample seeds.
        dtype, device: of the tensors returned.
        share: of a larger batch, whose numbers for an int or generator are drawn and cut.
    """

    def __init__(
        self,
        seed: Seed = None,
        *,
        batch: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        share: Share | None = None,
    ) -> None:
        if share is not None and len(share) != batch:
            raise ValueError(f"a share of {len(share)} rows for a batch of {batch}")
        self.share = share
        self.batch, self.dtype, self.device = batch, dtype, torch.device(device)
        if seed is None:
            seed = fresh_seed()
        if isinstance(seed, Tensor):
            seed = seed.tolist()
        if not isinstance(seed, torch.Generator) and not hasattr(seed, "__len__"):
            seed = index(seed)  # numpy's integers too
        if isinstance(seed, (int, torch.Generator)):
            self.seed: int | torch.Generator | tuple[int, ...] = seed
            self._start = seed.get_state() if isinstance(seed, torch.Generator) else None
        else:
            seeds = tuple(index(s) for s in seed)
            if len(seeds) != batch:
                raise ValueError(f"{len(seeds)} per-sample seeds for a batch of {batch}: give one seed a sample")
            self.seed = seeds
        self.rewind()

    def rewind(self) -> None:
        """Return to the beginning of the stream: the same calls then give the same numbers."""
        if isinstance(self.seed, torch.Generator):
            assert self._start is not None
            self.seed.set_state(self._start)
            self._generator = self.seed
        elif isinstance(self.seed, int):
            self._generator = generator(self.seed, self.device)
        # per-sample streams: one for each event shape, under seeds of their own: (generators, rows left of the block)
        self._streams: dict[tuple[int, ...], tuple[list[np.random.Generator], list[Tensor]]] = {}

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers of `shape` = (batch, *event)."""
        shape = tuple(shape)
        if shape[0] != self.batch:
            raise ValueError(f"noise of shape {shape} asked of a stream for a batch of {self.batch}")
        if isinstance(self.seed, tuple):
            drawn = self._per_sample(shape[1:])
        else:
            whole = shape if self.share is None else (self.share.total, *shape[1:])
            drawn = torch.randn(whole, generator=self._generator, device=self._generator.device, dtype=torch.float32)
            drawn = drawn if self.share is None else self.share(drawn)
        return drawn.to(device=self.device, dtype=self.dtype)

    def increment(self, shape: Sequence[int], interval: Interval) -> Tensor:
        """Standard normal numbers for an interval of a clock: fresh ones here, those of one path in a path."""
        return self.normal(shape)

    def _per_sample(self, event: tuple[int, ...]) -> Tensor:
        if event not in self._streams:
            assert isinstance(self.seed, tuple)
            # torch's own generator reads 32 bits of a seed: two of 100,000 samples would be the same
            own = [np.random.Generator(np.random.Philox(key=derive(s, *event))) for s in self.seed]
            self._streams[event] = (own, [])
        generators, rows = self._streams[event]
        if not rows:
            drawn = [g.standard_normal((_BLOCK, *event), dtype=np.float32) for g in generators]
            block = torch.from_numpy(np.stack(drawn, axis=1))
            rows.extend(reversed(block.unbind(0)))
        return rows.pop()


def as_noise(
    seed: Seed | Noise, *, batch: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Noise:
    """`seed` as a stream; a stream is passed through."""
    if not isinstance(seed, Noise):
        return Noise(seed, batch=batch, dtype=dtype, device=device)
    if seed.batch != batch:
        raise ValueError(f"a stream of noise for a batch of {seed.batch} was given to a batch of {batch}")
    return seed
