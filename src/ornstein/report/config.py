"""What a run is made of: the fields of config.yaml, their defaults, and the errors when one is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ornstein.io import atomic_write
from ornstein.report.names import nearest


class Net(BaseModel):
    """The network: `mlp` for any shape, `unet` and `dit` for images (channels, height, width)."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["mlp", "unet", "dit"] = "mlp"
    width: int = Field(default=256, ge=4)
    depth: int = Field(default=3, ge=1)


class Config(BaseModel):
    """A run: its data, model and training. Every field has a default; `event` and `labels` are read from the data."""

    model_config = ConfigDict(extra="forbid")

    data: str = "digits"
    held_out: float = Field(default=0.2, gt=0, lt=1)
    net: Net = Net()
    process: Literal["edm", "flow", "vp", "subvp", "ve", "cosine"] = "edm"
    predicts: Literal["edm", "x0", "noise", "velocity", "v", "score"] = "edm"
    drop: float = Field(default=0.1, ge=0, le=1)
    steps: int = Field(default=1200, ge=1)
    batch_size: int = Field(default=256, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    ema: float = Field(default=0.99, ge=0, lt=1)
    seed: int = 0
    event: tuple[int, ...] | None = None
    labels: int | None = None


def absolute(data: str) -> str:
    """A path to data as any folder can read it; names of built-in data stay."""
    return str(Path(data).resolve()) if Path(data).suffix else data


def make_config(values: Mapping[str, Any], source: str) -> Config:
    """A checked config; ValueError names the source, the field and what it may be, or the nearest real field."""
    try:
        return Config(**values)
    except ValidationError as error:
        raise ValueError("; ".join(f"{source}: {_explain(problem)}" for problem in error.errors())) from error


def read_config(path: str | Path) -> Config:
    """The config in a YAML file."""
    return make_config(read_values(path), str(path))


def read_values(path: str | Path) -> dict[str, Any]:
    """The fields that a YAML file sets."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict | None):
        raise ValueError(f"{path} must hold fields (`steps: 1000`), not {values!r}")
    return values or {}


def write_config(path: str | Path, config: Config) -> None:
    """Write all fields as YAML, whole or not at all."""
    atomic_write(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())


def _explain(problem: Mapping[str, Any]) -> str:
    *parents, last = (str(part) for part in problem["loc"])
    where = ".".join([*parents, last])
    if problem["type"] == "extra_forbidden":
        fields = Net.model_fields if parents == ["net"] else Config.model_fields
        return f"unknown field {where!r}; {nearest(last, fields)}"
    if problem["type"] == "literal_error":
        given = problem["input"]
        allowed = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{where} {given!r} is unknown; {nearest(str(given), allowed)}"
    message = problem["msg"]
    return f"{where}: {message[0].lower()}{message[1:]}, got {problem['input']!r}"
