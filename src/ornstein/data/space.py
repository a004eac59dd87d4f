"""What kind of thing the user's samples are: how they become states, and how they leave as what they came as."""

from __future__ import annotations

import io
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ..denoiser import Codec
from ..io import atomic_write


@dataclass(frozen=True)
class Space(ABC):
    """The user's side of a model: user tensor (n, *event) <-> codec <-> states, and user tensor -> arrays and files.

    A space is written to JSON and read back from it; reading checks every field and executes nothing.

    Args:
        event: the shape of one of the user's samples.
        labels: the names of the classes, in the order of their numbers; empty without labels.
        bounds: the least and greatest value that a sample may have, or None.
    """

    kind: ClassVar[str]
    formats: ClassVar[tuple[str, ...]]
    """The endings of the files that `save` writes."""

    event: tuple[int, ...]
    labels: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """The space as what JSON can hold."""
        return {"kind": self.kind, **asdict(self)}

    @staticmethod
    def from_json(value: Any) -> Space:
        """The space that `to_json` wrote; ValueError names what is not as it should be."""
        from . import KINDS  # which knows every kind

        if not isinstance(value, Mapping) or value.get("kind") not in list(KINDS):
            raise ValueError(f"a space has a kind, one of {', '.join(KINDS)}: got {value!r:.100}")
        made: Space = read(KINDS[value["kind"]], {k: v for k, v in value.items() if k != "kind"}, value["kind"])
        return made

    @abstractmethod
    def codec(self, x: Tensor | None = None) -> Codec:
        """A codec fitted to training samples; without them an unfitted one, for a state_dict to be loaded into."""

    def state_event(self, codec: Codec) -> tuple[int, ...]:
        """The shape of one state of the model: what its network is built for."""
        return self.event

    @property
    def conditions(self) -> dict[str, int]:
        """The conditions that `cond` makes, with their channels."""
        return {}

    def cond(self, x: Tensor) -> dict[str, Tensor]:
        """The conditions that training needs from user samples (n, *event)."""
        return {}

    def complete(self, n: int) -> dict[str, Tensor]:
        """The conditions under which the model gives n samples that lack nothing."""
        return {}

    @abstractmethod
    def to_user(self, x: Tensor, labels: Tensor | None = None) -> Any:
        """User samples (n, *event) as what the user gave: an array or a DataFrame."""

    def save(self, path: str | Path, x: Tensor, labels: Tensor | None = None) -> None:
        """Write user samples (n, *event) in the format that the ending of `path` names, whole or not at all."""
        self.check_format(path)
        target = Path(path).expanduser()
        getattr(self, f"_write_{target.suffix[1:].lower() or 'folder'}")(target, x.detach().cpu(), labels)

    def check_format(self, path: str | Path) -> None:
        """ValueError, with the formats there are, if `save` cannot write such a file."""
        suffix = Path(path).suffix.lower()
        if suffix not in self.formats:
            known = " or ".join(name or "a folder" for name in self.formats)
            raise ValueError(f"{path}: samples of kind {self.kind} {self.event} are written as {known}")

    def _write_npz(self, path: Path, x: Tensor, labels: Tensor | None) -> None:
        arrays = {"x": self.to_user(x)} | ({} if labels is None else {"y": labels.cpu().numpy()})
        write_arrays(path, arrays)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """An .npz of plain arrays, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    atomic_write(path, buffer.getvalue())


def read(kind: Any, value: Any, where: str) -> Any:
    """`value`, from JSON, as the annotated type `kind`: a dataclass, tuple, union, number or string, all checked."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__"):
        hints, known = typing.get_type_hints(kind), {f.name for f in fields(kind)}
        if not isinstance(value, Mapping) or not set(value) <= known:
            raise ValueError(f"{where} has fields {', '.join(sorted(known))}: got {value!r:.100}")
        try:
            return kind(**{name: read(hints[name], v, f"{where}.{name}") for name, v in value.items()})
        except TypeError as error:
            raise ValueError(f"{where}: {error}") from error
    if origin is tuple and isinstance(value, list | tuple):
        each = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(each) == len(value):
            return tuple(read(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(each, value, strict=True)))
    elif origin in (typing.Union, types.UnionType):
        exact = [k for k in arguments if type(value) is k]  # True is no int, and 1 no float, where both may stand
        for option in exact or arguments:
            try:
                return read(option, value, where)
            except ValueError:
                continue
    elif origin is typing.Literal and type(value) is str and value in arguments:
        return value
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    name = kind.__name__ if type(kind) is type else str(kind)
    raise ValueError(f"{where} is {name}: got {value!r:.100}")
