"""A tuned table, with what it was tuned on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from torch import Tensor

from ..denoiser import BaseDenoiser
from ..errors import CheckpointError
from ..io.tensors import load_tensors, save_tensors
from ..solvers.table import Table
from .fingerprint import covered, describe, fingerprint


@dataclass(frozen=True, eq=False)
class TunedTable:
    """A table and its figures on starts that it was not tuned on: gain = error/named_error, below 1.

    It samples as `sample(model, shape, table=tuned)`, checked by `check` on the way.

    table: an ordinary `Table`, which samples alone too.
    errors, named_errors: (validation starts,) the distance of each start's endpoint to the flow's, the root mean square
        over the event, in model units: of this table, and of the named one that it began with.
    tuned_on: nfe, process, fingerprint of the model, guidance, the named table, objective, the numbers of starts,
        network evaluations spent, seed. Anything that JSON holds.
    """

    table: Table
    errors: Tensor
    named_errors: Tensor
    tuned_on: Mapping[str, Any]

    @property
    def error(self) -> float:
        """Root mean square of `errors`, infinite where the table diverges."""
        return _rms(self.errors)

    @property
    def named_error(self) -> float:
        """Root mean square of `named_errors`, infinite where that table diverges."""
        return _rms(self.named_errors)

    @property
    def gain(self) -> float:
        """error/named_error: 1 where tuning found nothing better."""
        error, before = self.error, self.named_error
        return error / before if before > 0 and math.isfinite(min(error, before)) else 1.0

    @property
    def nfe(self) -> int:
        return self.table.nfe

    def check(self, model: BaseDenoiser) -> Table:
        """The table, for a model: refused for another process (TableError), with a warning for another model or
        guidance than it was tuned on, where it is a consistent sampler still, but may not be the best. Scales between
        two that it was tuned on are no other guidance."""
        self.table.check_process(model.process)
        if fingerprint(model) != self.tuned_on["fingerprint"]:
            warnings.warn(
                f"this table was tuned for another model ({self.tuned_on['fingerprint']}) than this one "
                f"({fingerprint(model)}): it samples, but a named solver may be better; tune again",
                stacklevel=2,
            )
        elif not covered(describe(model), self.tuned_on["guidance"]):
            warnings.warn(
                f"this table was tuned with guidance {self.tuned_on['guidance']}, this model has {describe(model)}: "
                "it samples, but a named solver may be better; tune again",
                stacklevel=2,
            )
        return self.table

    def save(self, path: str | PathLike[str]) -> None:
        """Write table and figures as one safetensors file with JSON inside, exactly and atomically."""
        tensors = {"errors": self.errors, "named_errors": self.named_errors}
        save_tensors(
            path, tensors, {"table": self.table.to_json(), "tuned_on": dict(self.tuned_on)}, kind="tuned-table"
        )

    @classmethod
    def load(cls, path: str | PathLike[str]) -> TunedTable:
        """Read what `.save` wrote; a CheckpointError says why a file is refused."""
        tensors, metadata = load_tensors(path, kind="tuned-table")
        try:
            table, tuned_on = Table.from_json(metadata["table"]), dict(metadata["tuned_on"])
            return cls(table, tensors["errors"], tensors["named_errors"], tuned_on)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is a damaged tuned table: {error}") from error

    def __str__(self) -> str:
        on = self.tuned_on
        spent = on["evaluations"]
        return (
            f"tuned table of {self.nfe} evaluations for {on['process']}: error {self.error:.4g}, "
            f"{self.gain:.2f} of {on['named']} ({self.named_error:.4g}), on {on['validation']} starts kept apart; "
            f"{spent['lessons']} network evaluations for {on['starts'] + on['validation']} lessons, {spent['tuning']} "
            f"for tuning"
        )


def _rms(errors: Tensor) -> float:
    value = float(errors.square().mean().sqrt())
    return value if value < math.inf else math.inf  # nan too
