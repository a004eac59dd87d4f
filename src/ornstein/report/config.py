"""What a run is made of: the fields of config.yaml, their defaults, and the errors when one is wrong."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ornstein.io import atomic_write
from ornstein.report.names import nearest


class Fields(BaseModel):
    """Fields of a config, fixed once read (`model_copy` makes another): those that it does not have are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class Read(Fields):
    """How the data are read: each field for the kinds of data that know it."""

    kind: Literal["array", "images", "table", "series"] | None = None
    label: str | None = None
    drop: tuple[str, ...] = ()
    size: int | None = Field(default=None, ge=1, le=16384)
    channels: Literal[1, 3] | None = None
    series: str | None = None
    time: str | None = None
    step: float | str | None = None
    split: str | None = None


class Net(Fields):
    """The network: `mlp` for any shape, `unet` for images and series, `dit` for images.

    `auto` is unet for images from 16 pixels and series from 8 times, else mlp.

    Without width and depth it has that of its kind: 256 and 3 layers (mlp), 32 and 1 block (unet), 192 and 6 (dit).
    """

    kind: Literal["auto", "mlp", "unet", "dit"] = "auto"
    width: int | None = Field(default=None, ge=4, le=16384)
    depth: int | None = Field(default=None, ge=1, le=1024)
    patch: int = Field(default=2, ge=1, le=16384)


class Loss(Fields):
    """The objective, and the published techniques that are a switch of it.

    kind: `plain`, or `hybrid`, which learns the variances too. time: the law of the training times. penalty: of an
    error. perturb: noise on the label's embedding, in training only. shared_times: up to this t the network is told
    one time an interval.
    """

    kind: Literal["plain", "hybrid"] = "plain"
    time: Literal["auto", "uniform", "logit_normal", "lognormal_sigma", "u_shaped"] = "auto"
    penalty: Literal["square", "pseudo_huber"] = "square"
    weighting: Literal["auto", "min_snr"] = "auto"
    perturb: float = Field(default=0.0, ge=0)
    shared_times: float = Field(default=0.0, ge=0, lt=1)


class Config(Fields):
    """A run: its data, model and training. Every field has a default; `event` and `labels` are read from the data."""

    data: str = "digits"
    read: Read = Read()
    held_out: float = Field(default=0.2, gt=0, lt=1)
    net: Net = Net()
    process: Literal["edm", "flow", "vp", "subvp", "ve", "cosine"] = "edm"
    predicts: Literal["edm", "x0", "noise", "velocity", "v", "score"] = "edm"
    loss: Loss = Loss()
    drop: float = Field(default=0.1, ge=0, le=1)
    steps: int = Field(default=1200, ge=1, le=10**9)
    batch_size: int = Field(default=256, ge=1, le=10**7)
    accumulate: int = Field(default=1, ge=1, le=10**7)
    lr: float = Field(default=1e-3, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int | None = Field(default=None, ge=0, le=10**9)
    clip: float | None = Field(default=1.0, gt=0)
    ema: float | tuple[float, ...] = 0.99
    lengths: tuple[float, ...] = ()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    recompute: bool = False
    deterministic: bool = False
    sharding: Literal["replicate", "shard"] = "replicate"
    every: int | None = Field(default=None, ge=1, le=10**9)
    watch: int = Field(default=16, ge=0, le=1024)
    keep: int = Field(default=0, ge=0, le=10**9)
    trackers: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    event: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    labels: int | None = Field(default=None, ge=0)

    @field_validator("ema")
    @classmethod
    def _decays(cls, ema: float | tuple[float, ...]) -> float | tuple[float, ...]:
        decays = ema if isinstance(ema, tuple) else (ema,)
        if not decays or len(set(decays)) < len(decays) or not all(0 <= decay < 1 for decay in decays):
            raise ValueError("one decay in [0, 1), or several different ones")
        return ema

    @field_validator("lengths")
    @classmethod
    def _lengths(cls, lengths: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(lengths)) < len(lengths) or not all(0 < length < 12**-0.5 for length in lengths):
            raise ValueError("different shares of the run between 0 and 0.288")
        return lengths

    @model_validator(mode="after")
    def _together(self) -> Config:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} does not divide into accumulate {self.accumulate} passes")
        if self.loss.kind == "hybrid" and self.predicts not in ("noise", "x0", "v"):
            raise ValueError("loss.kind hybrid learns the variances of a discrete chain: predicts noise, x0 or v")
        if self.loss.kind == "hybrid" and (self.loss.perturb or self.process not in ("vp", "cosine")):
            raise ValueError("loss.kind hybrid needs process vp or cosine, and takes no perturb")
        if self.loss.shared_times and self.predicts == "edm":
            raise ValueError(
                "loss.shared_times changes the time told to the network, which predicts edm has of its own"
            )
        return self


def absolute(data: str) -> str:
    """A path to data as any folder can read it; names of built-in data and of data sets elsewhere stay."""
    try:
        path = Path(data).expanduser()
    except RuntimeError as error:
        raise ValueError(f"data {_shown(data)}: there is no such home folder") from error
    if "\0" in data:
        raise ValueError(f"data {_shown(data)}: a path holds no character of code 0")
    return str(path.resolve()) if ":" not in data and (path.suffix or path.is_dir()) else data


def make_config(values: Mapping[str, Any], source: str) -> Config:
    """A checked config; ValueError names the source, the field and what it may be, or the nearest real field."""
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        found = {_where(problem): _explain(problem) for problem in reversed(error.errors())}
        raise ValueError("; ".join(f"{source}: {text}" for text in [*reversed(found.values())][:5])) from error


def read_config(path: str | Path) -> Config:
    """The config in a YAML file."""
    return make_config(read_values(path), str(path))


def read_values(path: str | Path) -> dict[str, Any]:
    """The fields that a YAML file sets."""
    try:
        values = _parsed(Path(path).read_bytes().decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a YAML file: {_short(str(error), 300)}") from error
    if not isinstance(values, dict | None):
        raise ValueError(f"{path} must hold fields (`steps: 1000`), not {_shown(values)}")
    _check_names(values, str(path))
    return values or {}


def _check_names(value: Any, where: str) -> None:
    """Refuse a field, at any depth, whose name is no text: YAML has numbers, dates and nothing for names too."""
    seen, left = set[int](), [value]
    while left:
        nest = left.pop()
        if id(nest) in seen or not isinstance(nest, (dict, list)):  # an anchor may loop, or say much in few words
            continue
        seen.add(id(nest))
        for key in nest if isinstance(nest, dict) else ():
            if not isinstance(key, str):
                raise ValueError(f"{where}: the name of a field is a word, not {_shown(key)}")
        left.extend(nest.values() if isinstance(nest, dict) else nest)


class _Loader(yaml.SafeLoader):
    """YAML of plain values: no tag makes an object. A field that is given twice is refused."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def _parsed(text: str) -> Any:
    """The value of a YAML text; ValueError for whatever a text can do to the parser."""
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except Exception as error:  # a tag on a value that is none of its kind meets any error of the constructors
        raise ValueError(f"a value is none of its kind ({error})") from error
    finally:
        if loader is not None:
            loader.dispose()


def write_config(path: str | Path, config: Config) -> None:
    """Write all fields as YAML, whole or not at all."""
    atomic_write(path, dumped(config).encode())


def dumped(config: Config) -> str:
    """All fields as YAML."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def merged(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with those of `given` that are not None over them, nests within nests."""
    out = dict(values)
    for key, value in given.items():
        if isinstance(value, Mapping):
            within = out.get(key, {})
            inner = merged(within, value) if isinstance(within, Mapping) else within
            if inner or key in out:
                out[key] = inner
        elif value is not None:
            out[key] = value
    return out


def set_field(values: dict[str, Any], field: str) -> None:
    """Set `name=value` or `name.name=value` in place, the value as YAML has it."""
    name, sign, text = field.partition("=")
    if not sign or not all(name.split(".")):
        raise ValueError(f"--set {_short(field)}: give field=value, as in loss.kind=hybrid")
    try:
        value = _parsed(text)
    except ValueError as error:
        raise ValueError(f"--set {_short(field)}: {_shown(text)} is no YAML value") from error
    _check_names(value, f"--set {_short(field)}")
    *parents, last = name.split(".")
    for parent in parents:
        within = values.setdefault(parent, {})
        if not isinstance(within, dict):
            raise ValueError(f"--set {_short(field)}: {parent!r} has no fields")
        values = within
    values[last] = value


def _explain(problem: Mapping[str, Any]) -> str:
    where = _where(problem)
    *parents, last = where.split(".")
    if problem["type"] == "extra_forbidden":
        rooms: dict[str, type[Fields]] = {"net": Net, "read": Read, "loss": Loss}
        within = rooms.get(parents[0], Config) if parents else Config
        return f"unknown field {where!r}; {nearest(last, within.model_fields)}"
    if problem["type"] == "literal_error":
        given = problem["input"]
        allowed = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        hint = nearest(_short(given), allowed) if isinstance(given, str) else f"choose from {', '.join(allowed)}"
        return f"{where} {_shown(given)} is unknown; {hint}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    return f"{where}: {message[0].lower()}{message[1:]}, got {_shown(problem['input'])}"


def _where(problem: Mapping[str, Any]) -> str:
    """The field that a problem is in; which of its types was tried is left out."""
    return ".".join(_short(str(part)) for part in problem["loc"] if part not in ("float", "str", "tuple[float, ...]"))


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80
_REPR.maxlevel, _REPR.maxlist, _REPR.maxtuple, _REPR.maxdict = 2, 4, 4, 4


def _shown(value: Any) -> str:
    """How a value prints, however large, deep or looped it is."""
    return _REPR.repr(value)


def _short(text: str, most: int = 80) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]}..."
