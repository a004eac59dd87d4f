"""One file a model: everything that it needs to sample again, and nothing that could run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._extras import require
from .._types import VIEWS
from ..data import SeriesCodec, TableCodec
from ..denoiser import BaseDenoiser, Codec, Denoiser, EDMPrecondition, Scaling
from ..errors import CheckpointError
from ..io import load_tensors, save_tensors
from ..io.recipe import Known, build, pack, recipe_of, unpack
from ..nets import MLP, DiT, Joined, Probability, SetTransformer, UNet
from ..processes import NAMED, Process
from .network import plain

NETS = (MLP, UNet, DiT, Joined, Probability, SetTransformer)
CODECS = (Scaling, SeriesCodec, TableCodec)
_KINDS: dict[str, type] = {"net": nn.Module, "process": Process, "precondition": EDMPrecondition, "scaling": Codec}
_OPTIONAL = ("precondition", "scaling")
_BUFFER = "buffer/"
_COMPILED = "_orig_mod."


def save(
    model: BaseDenoiser,
    path: str | os.PathLike[str],
    *,
    card: Mapping[str, Any] | None = None,
    classes: Sequence[type] = (),
) -> None:
    """file = (weights, how the model was made, card): `orn.load(path)` gives the model back, bit for bit.

        orn.save(model, "model.safetensors", card={"data": "digits"})
        model = orn.load("model.safetensors")

    Args:
        model: an `orn.Denoiser`. A guided one is made again in a line: save the model inside.
        path: of a safetensors file, written whole or not at all.
        card: anything that JSON holds, for people: data, training, figures. `orn.interop.read_card(path)` reads it.
        classes: your own classes of networks, processes (frozen dataclasses) or codecs, which the file names but does
            not hold: `orn.load(path, classes=[...])` needs them too. A network that is no `orn.nets.Net` does not say
            how it was made: `orn.load(path, net=MyNet(...))` then.

    Raises ValueError for a model that the file could not give back, before anything is written.
    """
    check_denoiser(model)
    assert isinstance(model, Denoiser)
    tensors: dict[str, Tensor] = {}
    weights = {key.replace(_COMPILED, ""): tensor for key, tensor in model.state_dict().items()}
    try:
        recipe = _recipe(model, classes, tensors)
        metadata = json.loads(json.dumps({"model": recipe, "card": dict(card or {})}))
        tensors |= weights
        if recipe["net"]["arguments"] is not None:
            again = _make(metadata["model"], tensors, _known(classes), None)
            _check_same(weights, again.state_dict())
            before, after = _unsaved(model), _unsaved(again)
            _check_same(before, after)
            tensors |= {key: buffer for key, buffer in before.items() if not _identical(buffer, after[key])}
    except CheckpointError as error:
        raise ValueError(
            f"this model is not what it was made as: {error}. orn.save_weights(model, path) keeps its weights alone"
        ) from error
    except TypeError as error:
        raise ValueError(f"the card is not what JSON can hold: {error}") from error
    save_tensors(path, tensors, metadata, kind="model")


def load_model(
    path: str | os.PathLike[str],
    *,
    net: nn.Module | None = None,
    classes: Sequence[type] = (),
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Denoiser:
    """The model that `orn.save` wrote, in evaluation mode; `orn.load` calls this.

    A file from anywhere is safe to open: it is data, whole and unchanged by its checksum, and names classes of this
    library (or of `classes`) with arguments in JSON, which are checked against the weights before anything large is
    made. What does not fit is a CheckpointError that says what; a file that does not exist a FileNotFoundError.
    """
    name = os.fspath(path)
    tensors, metadata = _read(name)
    try:
        model = _make(metadata["model"], tensors, _known(classes), net)
        _fill(model, tensors)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{name} is refused: {error}") from error
    return model.to(device=device, dtype=dtype).eval()


def read_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The card that `orn.save` was given."""
    return dict(_read(os.fspath(path))[1]["card"])


def is_model(path: Path) -> bool:
    """Whether there is a file that says it is of this library, or is too short to say anything; unchecked."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            head = file.read(min(size, 1 << 27))
    except OSError:
        return False
    return len(head) < max(size, 1) or b'"format":"ornstein"' in head


def check_denoiser(model: BaseDenoiser) -> None:
    """Refuse what is no plain `Denoiser`, and say what can be kept of it."""
    kind = type(model).__name__
    if type(model) is Denoiser:
        return
    if isinstance(getattr(model, "model", None), BaseDenoiser):
        way = f"save the model inside, .model, and make the {kind} again around what orn.load gives"
    elif hasattr(model, "pipeline"):
        way = "it keeps the format it came in: model.pipeline.save_pretrained(folder), which orn.load reads too"
    else:
        way = "orn.save_weights(model, path) keeps its weights"
    raise ValueError(f"a file holds an orn.Denoiser, and this is a {kind}: {way}")


def _known(classes: Sequence[type]) -> dict[str, Known]:
    own = {kind.__name__: kind for kind in classes}
    kinds: dict[str, tuple[type, ...]] = {
        "net": NETS, "process": (*NAMED, *NETS), "precondition": (EDMPrecondition,), "scaling": CODECS,
    }  # fmt: skip
    return {part: {**{kind.__name__: kind for kind in known}, **own} for part, known in kinds.items()}


def _recipe(model: Denoiser, classes: Sequence[type], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """How a denoiser is made, part by part."""
    known, recipe = _known(classes), dict[str, Any]()
    for part in known:
        value: Any = getattr(model, part)
        value = plain(value) if part == "net" else value
        try:
            recipe[part] = None if value is None else recipe_of(value, known[part], tensors, f"{part}.")
        except ValueError as error:
            kind = type(value).__name__
            net = f" or orn.load(path, net={kind}(...))" if part == "net" else ""
            raise ValueError(
                f"the {part} of this model cannot be written: {error}. Code never travels in a file: "
                f"orn.save_weights(model, path) keeps the weights alone, and orn.save(model, path, classes=[{kind}]) "
                f"writes a file for those who have the class, by orn.load(path, classes=[{kind}]){net}"
            ) from error
    told = model.timestep
    if told is not None and (getattr(told, "__func__", None), getattr(told, "__self__", None)) != (
        getattr(type(model.process), "timestep", 0),
        model.process,
    ):
        raise ValueError(
            f"the timestep of this model, {told!r:.80}, is a function, and code never travels in a file: use the "
            "process's own, timestep=process.timestep, or keep the weights alone by orn.save_weights(model, path)"
        )
    return {
        **recipe,
        "predicts": model.predicts,
        "timestep": None if told is None else "process",
        "null": pack(model.null, {}, tensors, "null"),
        "heads": pack(model.heads, {}, tensors, "heads"),
    }


def _make(recipe: Any, tensors: Mapping[str, Tensor], known: Mapping[str, Known], net: nn.Module | None) -> Denoiser:
    """The denoiser of a recipe, with weights as they fall; its network is tried first without memory for them."""
    if not isinstance(recipe, dict) or set(recipe) != {*known, "predicts", "timestep", "null", "heads"}:
        raise CheckpointError("it does not say how its model was made")
    with _quiet():
        made: dict[str, Any] = {
            part: None
            if recipe[part] is None and part in _OPTIONAL
            else _part(part, recipe[part], known[part], tensors)
            for part in known
            if part != "net" or net is None
        }
    made.setdefault("net", net)
    for part, value in made.items():
        if not isinstance(value, _KINDS[part]) and (value is not None or part not in _OPTIONAL):
            raise CheckpointError(f"its {part} is a {type(value).__name__}")
    told = recipe["timestep"]
    if told not in (None, "process") or (told and not hasattr(made["process"], "timestep")):
        raise CheckpointError(f"its timestep is {told!r:.80}, which {made['process']!r:.80} does not have")
    null, heads = (unpack(recipe.get(part), {}, tensors) for part in ("null", "heads"))
    for part, value in (("null", null), ("heads", heads)):
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"its {part} is {value!r:.80}")
    if null is not None and not all(isinstance(value, (int, float, Tensor)) for value in null.values()):
        raise CheckpointError(f"its null is {null!r:.80}, and not of numbers")
    for view in (recipe["predicts"], *(heads or {}).values()):
        if view not in VIEWS:
            raise CheckpointError(f"{view!r:.80} is no view: there are {', '.join(VIEWS)}")
    return Denoiser(
        made["net"],
        made["process"],
        recipe["predicts"],
        precondition=made["precondition"],
        timestep=made["process"].timestep if told else None,
        null=null,
        scaling=made["scaling"],
        heads=heads,
    )


def _part(part: str, recipe: Any, known: Known, tensors: Mapping[str, Tensor]) -> Any:
    """A part of a model. What takes memory by its arguments is made without any first, and compared with the file."""
    kind = recipe.get("class") if isinstance(recipe, dict) else None
    if isinstance(kind, str) and known.get(kind) in (*NETS, SeriesCodec, TableCodec):
        with torch.device("meta"), _Bounded(len(tensors), sum(tensor.numel() for tensor in tensors.values())):
            shapes = {f"{part}.{key}": tensor for key, tensor in build(recipe, known, tensors).state_dict().items()}
        _check_same(shapes, {key: tensor for key, tensor in tensors.items() if key.startswith(f"{part}.")})
    return build(recipe, known, tensors)


def _fill(model: Denoiser, tensors: Mapping[str, Tensor]) -> None:
    """Give the model the tensors of a file, in the file's types."""
    own = model.state_dict(keep_vars=True)
    _check_same(own, {key: tensor for key, tensor in tensors.items() if not key.startswith((_BUFFER, "recipe/"))})
    buffers = _unsaved(model)
    extra = {key: tensor for key, tensor in tensors.items() if key.startswith(_BUFFER)}
    _check_same({key: buffers[key] for key in extra if key in buffers}, extra)
    for key, tensor in {**own, **buffers}.items():
        if key in tensors:
            if tensor.is_floating_point() != tensors[key].is_floating_point():
                raise CheckpointError(f"{key} is of {tensors[key].dtype}, and this model's of {tensor.dtype}")
            tensor.data = tensors[key]


def _unsaved(model: Denoiser) -> dict[str, Tensor]:
    """Buffers that are no weights, for they follow from how a network was made; later casts may have changed them."""
    own = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name not in own}
    return {_BUFFER + name.replace(_COMPILED, ""): buffer for name, buffer in buffers.items()}


def _check_same(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse names or shapes that are not the model's."""
    for key in (*own, *found):
        if key not in found or key not in own:
            raise CheckpointError(f"{key!r} is not among the {'weights' if key in own else 'names'} of such a model")
        if own[key].shape != found[key].shape:
            raise CheckpointError(f"{key!r} has shape {tuple(found[key].shape)}, and the model {tuple(own[key].shape)}")


def _read(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors, metadata = load_tensors(name, kind="model")
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError, _unreadable()) as error:
        raise CheckpointError(f"{name} is refused: it is not laid out as a model's file ({error!r:.200})") from error
    if not isinstance(metadata, dict) or not {"model", "card"} <= set(metadata):
        raise CheckpointError(
            f"{name} holds weights alone, and not how their model was made: build it, and orn.load_weights(model, path)"
        )
    if not isinstance(metadata["card"], dict):
        raise CheckpointError(f"{name} is refused: its card is {metadata['card']!r:.80}")
    return tensors, metadata


def _unreadable() -> type[Exception]:
    """What safetensors raises; of that package only the error is needed here."""
    found: type[Exception] = require("safetensors", extra="train").SafetensorError
    return found


class _Bounded(TorchFunctionMode):
    """Work within what the weights of a file can need: so many calls of torch, so many numbers at once."""

    def __init__(self, tensors: int, numbers: int) -> None:
        super().__init__()
        self.calls, self.numbers = 200 * (tensors + 10), numbers + (1 << 24)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.calls -= 1
        if self.calls < 0 or (isinstance(made, Tensor) and made.numel() > self.numbers):
            raise CheckpointError("its network is larger than its weights")
        return made


@contextmanager
def _quiet() -> Iterator[None]:
    """Make networks on the host and in float32, and leave the caller's random numbers as they were."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(default)


def _identical(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.cpu(), b)
