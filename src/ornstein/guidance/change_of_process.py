"""A denoiser of one process read as a denoiser of another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._types import VIEWS, Cond, View
from ..denoiser import BaseDenoiser, Call
from ..errors import ViewError
from ..prediction import heads_of
from ..processes import GaussianProcess, Level, broadcast
from .wrapped import Wrapped


class ChangeOfProcess(Wrapped):
    """P(x, t) from P'(k x, t'),    SNR'(t') = SNR(t),    k = alpha'(t')/alpha(t) = sigma'(t')/sigma(t)

    Every linear-Gaussian process is every other with its states scaled and its clock changed: k x_t is x'_t', so the
    posterior means of x0 and of the noise are the same, and the answer in any view follows from the inner model's by
    one linear relation. A diffusion model becomes a flow with straight paths on which any grid of `Flow` may be used,
    and which can be trained further as one: `ChangeOfProcess(model, orn.Flow())`.

    Exact wherever the inner process has the level. Beyond its ends the inner model is asked at the nearest level it
    knows, with its x0 and noise combined as (x, t) demand; of the data in the state, the part alpha'/sigma' of the end
    is then mistaken (0.7 % for `VP`, 1.2 % for `EDM`).

    Args:
        model: a denoiser of one GaussianProcess, without a shift.
        process: the GaussianProcess to read it in, without a shift.
        predicts: the view to answer in, by default "velocity".

    Source: Kingma et al. 2021 (2107.00630), section 5.1 (equivalence of processes); Lee, Lin, Fanti 2024 (2405.20320),
    section 4.3, for training on from a diffusion model.
    """

    def __init__(self, model: BaseDenoiser, process: GaussianProcess, predicts: View = "velocity") -> None:
        super().__init__(model)
        for role, one in (("model", model.process), ("process", process)):
            if not isinstance(one, GaussianProcess):
                raise ValueError(f"the change is from one GaussianProcess to another: the {role} has {one!r}")
            if type(one).shift is not GaussianProcess.shift:
                raise ValueError(f"{one!r} has a mean that does not come from x0: its states cannot be scaled")
        if predicts not in VIEWS:
            raise ViewError(f"predicts={predicts!r} is no view: choose from {', '.join(VIEWS)}")
        self.process, self.predicts, self.heads = process, predicts, {}

    def bind(self, levels: Any, x: Tensor, cond: Cond) -> Sequence[Call]:
        inner, scale = self._inside(levels)
        # the state as the inner level has it: (alpha, sigma) of the outer one wherever both have the level
        alpha, sigma = inner.alpha / scale, inner.sigma / scale
        score = self.model.predicts == "score"
        (p, q), (a, b) = inner.rows("noise" if score else self.model.predicts), levels.rows(self.predicts)
        determinant = alpha * q - sigma * p
        c_x, c_p = (a * q - b * p) / determinant, (alpha * b - sigma * a) / determinant
        if score:
            c_p = -inner.sigma * c_p
        if not bool((c_x.isfinite() & c_p.isfinite()).all()):
            raise ViewError(
                f"{self.predicts} of {self.process!r} cannot be formed from {self.model.predicts} of "
                f"{self.model.process!r} at one of these levels: start or end a little inside"
            )
        rows = zip(scale, c_x, c_p, self.model.bind(inner, x, cond), strict=True)
        return [partial(_answer, *row) for row in rows]

    def cost(self, levels: Any) -> list[int]:
        return self.model.cost(self._inside(levels)[0])

    def _inside(self, levels: Level) -> tuple[Level, Tensor]:
        """The inner process's levels, and k."""
        process: Any = self.model.process
        ends = process.level([1.0, 0.0])
        t = process.time(levels.log_snr.clamp(*ends.log_snr.clamp(-1400, 1400).tolist()))
        for end, where in ((1.0, levels.log_snr <= ends.log_snr[0]), (0.0, levels.log_snr >= ends.log_snr[1])):
            t = torch.where(where, end, t)
        inner: Level = process.level(t.clamp(0, 1))
        return inner, torch.hypot(inner.alpha, inner.sigma) / torch.hypot(levels.alpha, levels.sigma)


def _answer(scale: Tensor, c_x: Tensor, c_p: Tensor, call: Call, x: Tensor) -> Tensor:
    main: Tensor = heads_of(call(broadcast(scale, x) * x))["main"]
    return broadcast(c_x, x) * x + broadcast(c_p, x) * main
