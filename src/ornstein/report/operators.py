"""What a person names in one word: a measurement operator, a method of restoration; and damage for a trial."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ornstein import inverse
from ornstein.inverse import Method
from ornstein.linops import (
    Blur,
    Colour,
    Downsample,
    Fourier,
    GaussianNoise,
    Hadamard,
    LinearOperator,
    Mask,
    Radon,
    Separable,
)
from ornstein.random import Seed, generator
from ornstein.report.names import nearest

Event = tuple[int, ...]


def box(event: Event, size: int | None = None, top: int | None = None, left: int | None = None) -> LinearOperator:
    """a square of `size` pixels a side is not seen, half the image and in its middle unless said"""
    _image("box", event)
    height, width = event[-2:]
    size = min(height, width) // 2 if size is None else size
    top, left = ((side - size) // 2 if at is None else at for side, at in ((height, top), (width, left)))
    if not (size > 0 and 0 <= top <= height - size and 0 <= left <= width - size):
        raise ValueError(f"a box of {size} pixels at row {top}, column {left} is not in an image of {height} x {width}")
    seen = torch.ones(height, width, dtype=torch.bool)
    seen[top : top + size, left : left + size] = False
    return Mask(seen, event)


def random(event: Event, keep: float = 0.5, seed: int = 0) -> LinearOperator:
    """a share of the pixels is seen, the same of every image"""
    shape = event[-2:] if len(event) == 3 else event
    return Mask(_lowest(torch.rand(shape, generator=generator(seed)), keep), event)


def mask(event: Event, file: str) -> LinearOperator:
    """what is 1 in FILE is seen, what is 0 is not: an array of the image's shape (.npy, or the first one of an .npz)"""
    path = Path(file).expanduser()
    try:
        loaded = np.load(path, allow_pickle=False)
        seen = loaded if isinstance(loaded, np.ndarray) else loaded[loaded.files[0]]
        return Mask(torch.from_numpy(np.ascontiguousarray(seen, dtype=np.float32)), event)
    except OSError:
        raise
    except Exception as error:  # a damaged file meets any error of zipfile, zlib or numpy
        raise ValueError(f"{path} is no mask for events {event}: {error}") from error


def downsample(event: Event, factor: int = 2) -> LinearOperator:
    """means of squares of `factor` pixels a side: super-resolution"""
    _image("downsample", event)
    return Downsample(factor, event)


def blur(event: Event, std: float = 1.0) -> LinearOperator:
    """a Gaussian blur of width `std` pixels, the image going round"""
    _image("blur", event)
    return Blur.gaussian(std, event)


def fourier(event: Event, keep: float = 0.3, centre: float = 0.1, seed: int = 0) -> LinearOperator:
    """a share of the frequencies, of all those that are lowest a share `centre`: magnetic resonance"""
    _image("fourier", event)
    height, width = event[-2:]
    down, across = (torch.fft.fftfreq(side, 1 / side, dtype=torch.float64) for side in (height, width))
    distance = (down[:, None] ** 2 + across**2).flatten()
    chance = torch.rand(height, width, generator=generator(seed), dtype=torch.float64)
    mirrored = chance.flip(0, 1).roll((1, 1), (0, 1))  # of a real image a frequency tells its mirror image too
    order = torch.maximum(chance, mirrored).flatten()
    order[_lowest(distance, centre)] -= 1
    return Fourier(_lowest(order, keep).reshape(height, width), event)


def radon(event: Event, views: int = 8, degrees: float = 180.0) -> LinearOperator:
    """line integrals from `views` directions, spread evenly over `degrees`: tomography"""
    _image("radon", event)
    if views < 1 or not 0 < degrees <= 180:
        raise ValueError(f"radon has at least 1 view, over at most 180 degrees: got views={views}, degrees={degrees}")
    return Radon(torch.arange(views, dtype=torch.float64) * (math.radians(degrees) / views), event)


def hadamard(event: Event, keep: float = 0.25, seed: int = 0) -> LinearOperator:
    """a share of the patterns of black and white, the sum of all pixels first: a single-pixel camera"""
    padded = tuple(1 << (side - 1).bit_length() for side in event)
    d = math.prod(padded)
    order = torch.rand(d, generator=generator(seed))
    order[0] = -1
    patterns = _lowest(order, keep, of=math.prod(event)).nonzero()[:, 0]
    camera = Hadamard(patterns, padded)
    if padded == event:
        return camera
    pads = [None if new == old else torch.eye(new, old) for new, old in zip(padded, event, strict=True)]
    around = camera @ Separable(pads, event)  # zeros around the image, to powers of 2
    assert isinstance(around, LinearOperator)
    return around


def colour(event: Event) -> LinearOperator:
    """grey, the mean of the colours: colourisation"""
    if len(event) != 3 or event[0] == 1:
        raise ValueError(f"colour needs images with colours: events are {event}")
    return Colour(event)


def denoise(event: Event) -> LinearOperator:
    """all is seen, through noise"""
    return Mask(torch.ones(event, dtype=torch.bool), event)


OPERATORS: dict[str, Callable[..., LinearOperator]] = {
    made.__name__: made for made in (box, random, mask, downsample, blur, fourier, radon, hadamard, colour, denoise)
}


def methods() -> dict[str, Callable[..., Method]]:
    """The methods of orn.inverse that need nothing but numbers, by their names in small letters."""
    every = (getattr(inverse, name) for name in inverse.__all__)
    return {
        kind.__name__.lower(): kind
        for kind in every
        if isinstance(kind, type) and issubclass(kind, Method) and _free(kind)
    }


def operator_named(text: str, event: Event) -> LinearOperator:
    """The operator of words such as `box`, `downsample:4` or `radon:views=6,degrees=90`."""
    made: LinearOperator = named("operator", text, OPERATORS, event)
    return made


def method_named(text: str) -> Method:
    """The method of words such as `mmps` or `dps:zeta=0.3`."""
    made: Method = named("method", text, methods())
    return made


def damaged(operator: LinearOperator, x: Tensor, noise: float, seed: Seed) -> Tensor:
    """y = A x + noise z of clean x (n, *event); 0, without noise, where the operator measures nothing."""
    clean = operator(x)
    probe = torch.randn(1, *operator.event, generator=generator(0), dtype=operator.dtype)
    nothing = (operator(probe) == 0).to(clean.device)
    return torch.where(nothing, 0.0, GaussianNoise(noise).sample(clean, seed))


def named(what: str, text: str, known: Mapping[str, Callable[..., Any]], *first: Any) -> Any:
    """NAME, NAME:VALUE of the first option, or NAME:KEY=VALUE,KEY=VALUE: known[NAME](*first, **options).

    Errors: ValueError for a name or an option that does not exist, or a value of another kind.
    """
    name, _, rest = text.partition(":")
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; {nearest(name, known)}")
    make = known[name]
    kinds = kinds_of(make)
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, given, value = part.partition("=")
        if not given and not options and kinds:
            key, value = next(iter(kinds)), part
        if key not in kinds:
            raise ValueError(f"{name} has no option {key!r}; {nearest(key, kinds) if kinds else 'it has none'}")
        options[key] = _value(f"{name}:{key}", value, kinds[key])
    needed = [key for key, default in defaults_of(make).items() if default is inspect.Parameter.empty]
    if missing := [key for key in needed if key not in options]:
        raise ValueError(f"{name} needs {missing[0]}: {name}:{missing[0]}=...")
    return make(*first, **options)


def listed(known: Mapping[str, Callable[..., Any]]) -> list[list[str]]:
    """A row for each: its name, its options with their defaults, what it is."""
    rows = []
    for name, make in known.items():
        about = inspect.getmodule(make) if isinstance(make, type) else make
        text = (inspect.getdoc(about) or "").partition("\n")[0].rstrip(".")
        options = [
            key if default is inspect.Parameter.empty or default is None else f"{key}={default}"
            for key, default in defaults_of(make).items()
        ]
        rows.append([name, ",".join(options), text])
    return rows


def kinds_of(make: Callable[..., Any]) -> dict[str, type]:
    """The options that are a number, a word or a switch, with their types."""
    hints = typing.get_type_hints(make)
    found = {}
    for key in inspect.signature(make).parameters:
        kind = hints.get(key)
        parts = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        plain = [part for part in parts if part in (int, float, bool, str)]
        if plain and key != "event":
            found[key] = float if float in plain else plain[0]
    return found


def defaults_of(make: Callable[..., Any]) -> dict[str, Any]:
    """The options of `kinds_of` with their defaults."""
    parameters = inspect.signature(make).parameters
    return {key: parameters[key].default for key in kinds_of(make)}


def _free(kind: Any) -> bool:
    """Whether it is made without arguments."""
    return (
        is_dataclass(kind)
        and not inspect.isabstract(kind)
        and all(not f.init or f.default is not MISSING or f.default_factory is not MISSING for f in fields(kind))
    )


def _value(name: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError
        return value
    except (ValueError, KeyError):
        said = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise ValueError(f"{name} is {said}: got {text!r}") from None


def _image(name: str, event: Event) -> None:
    if len(event) != 3:
        raise ValueError(f"{name} is for images (channels, height, width): the run's samples are {event}")


def _lowest(score: Tensor, share: float, of: int | None = None) -> Tensor:
    """Where the lowest `share` of the numbers are; of `of` numbers, if it is not all of them."""
    if not 0 < share <= 1:
        raise ValueError(f"a share that is kept is above 0 and at most 1: got {share}")
    count = min(max(1, round(share * (of or score.numel()))), score.numel())
    return score <= score.flatten().kthvalue(count).values
