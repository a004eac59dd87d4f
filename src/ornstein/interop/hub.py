"""Models on the hub: one file and a card, sent and fetched."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from .._extras import require
from ..denoiser import BaseDenoiser, Denoiser
from ..io import atomic_write
from ..nets import MLP
from .file import check_denoiser, is_model, load_model, save

FILE = "model.safetensors"


def push_to_hub(
    model: BaseDenoiser,
    repo_id: str,
    *,
    card: Mapping[str, Any] | None = None,
    private: bool = False,
    token: str | None = None,
    message: str = "A model of ornstein",
) -> str:
    """hub/repo_id = (model.safetensors, README.md): the address, after which `orn.load("hub:" + repo_id)` loads it.

    The README is `model_card`'s. The repository is made if it is not there; `token` is that of the hub's own login by
    default. What the file could not give back is a ValueError before anything is sent; a hub that cannot be reached,
    or refuses, a ConnectionError that says so.
    """
    hub = require("huggingface_hub", extra="hub")
    with TemporaryDirectory() as folder:
        save_folder(model, folder, repo_id, card=card)
        with _reachable(f"{repo_id} could not be sent"):
            api = hub.HfApi(token=token)
            made = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message)
            return str(made)


def save_folder(
    model: BaseDenoiser, folder: str | os.PathLike[str], repo_id: str, *, card: Mapping[str, Any] | None = None
) -> None:
    """Write what `push_to_hub` sends into a folder, which `orn.load(folder)` loads too."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    save(model, place / FILE, card=card)
    atomic_write(place / "README.md", model_card(model, repo_id, card=card).encode())


def from_hub(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    net: nn.Module | None = None,
    classes: Sequence[type] = (),
) -> Denoiser:
    """The model that `push_to_hub` sent: `orn.load("hub:" + repo_id)`, of any branch, tag or commit."""
    return load_model(fetch(repo_id, revision=revision, token=token), net=net, classes=classes)


def fetch(repo_id: str, **options: Any) -> Path:
    """The file of a model on the hub, or in the cache of an earlier time; nothing but that file is asked for."""
    hub = require("huggingface_hub", extra="hub")
    with _reachable(f"{repo_id} was not found"):
        return Path(hub.hf_hub_download(repo_id, FILE, library_name="ornstein", **options))


def own_file(source: str | Path, options: dict[str, Any]) -> Path | None:
    """The file of ours that a source of `orn.load` means, or None; what it reads from the hub it takes of `options`."""
    name, path = str(source), Path(source)
    if name.startswith("hub:"):
        taken = {key: options.pop(key) for key in ("revision", "token", "local_files_only") if key in options}
        return fetch(name.removeprefix("hub:"), **taken)
    path = path if path.suffix == ".safetensors" else path / FILE
    if path == Path(source) and not path.exists():
        raise FileNotFoundError(f"there is no file {name}")
    return path if is_model(path) else None


def model_card(model: BaseDenoiser, repo_id: str, *, card: Mapping[str, Any] | None = None) -> str:
    """The README of a model: front matter for the hub, what it is, how to load it, and the entries of `card`.

    `card` may hold "license" (an identifier of the hub's), "tags" (a list), "event" (the shape of a sample, where the
    network does not say it), and any other entries, such as "training" and "figures", which become tables.
    """
    check_denoiser(model)
    assert isinstance(model, Denoiser)
    known = dict(card or {})
    tags = ["ornstein", "diffusion", type(model.process).__name__.lower(), *known.pop("tags", [])]
    head = {"library_name": "ornstein", "tags": list(dict.fromkeys(tags))}
    if "license" in known:
        head["license"] = known.pop("license")
    net: Any = model.net
    made_of = {
        "network": f"{type(net).__name__}, {sum(p.numel() for p in net.parameters()):,} parameters",
        "process": repr(model.process),
        "predicts": model.predicts,
        "precondition": repr(model.precondition) if model.precondition else "none",
        "null condition": repr(dict(model.null)) if model.null else "none: no classifier-free guidance",
    }
    tables = [_table(name, value) for name, value in {"Model": made_of, **known}.items() if name != "event"]
    return "\n".join(
        [
            "---",
            *(f"{key}: {json.dumps(value)}" for key, value in head.items()),  # JSON is YAML
            "---",
            "",
            f"# {repo_id.rpartition('/')[2]}",
            "",
            "A generative model of [Ornstein](https://pypi.org/project/ornstein/).",
            "",
            "```python",
            *_usage(model, repo_id, known.get("event")),
            *_back(repo_id, known.get("space")),
            "```",
            *tables,
            "",
        ]
    )


def _usage(model: Denoiser, repo_id: str, event: Any) -> list[str]:
    """Lines that load the model and sample it."""
    net: Any = model.net
    event = tuple(event) if event else _event(model)
    cond = []
    if getattr(net, "label", None) is not None:
        cond.append('"label": torch.zeros(4, dtype=torch.long)')
    for name, channels in getattr(net, "conditions", {}).items():
        flat = (channels,) if isinstance(net, MLP) else (channels, *event[1:])
        shape = event if channels in (0, math.prod(event)) else flat
        cond.append(f'"{name}": torch.{"ones" if name == "observed" else "zeros"}{(4, *shape)}')  # a whole series
    given = f", cond={{{', '.join(cond)}}}" if cond else ""
    return [
        *(["import torch"] if cond else []),
        "import ornstein as orn",
        f'model = orn.load("hub:{repo_id}")',
        f"x = orn.sample(model, shape={(4, *event)}{given}, steps=20, seed=0).x",
    ]


def _back(repo_id: str, space: Any) -> list[str]:
    """Lines that make a table of samples, as the data were; of arrays and images none."""
    if not isinstance(space, Mapping) or space.get("kind") not in ("table", "series"):
        return []
    return [
        "from ornstein.data import Space",
        "from ornstein.interop import read_card",
        "from ornstein.interop.hub import fetch",
        f'card = read_card(fetch("{repo_id}"))',
        'table = Space.from_json(card["space"]).to_user(x)',
    ]


def _event(model: Denoiser) -> tuple[int, ...]:
    net: Any = model.net
    made = getattr(net, "_made_with", {})
    if "features" in made:
        return (made["features"],) if isinstance(made["features"], int) else tuple(made["features"])
    if "size" in made:
        return (net.channels, *net.size)
    raise ValueError(f"a {type(net).__name__} does not say the shape of a sample: card={{'event': [1, 8, 8]}} does")


def _table(name: str, value: Any) -> str:
    rows = value if isinstance(value, Mapping) else {"": value}
    lines = [f"| {_cell(key)} | {_cell(own)} |" for key, own in rows.items()]
    return "\n".join(["", f"## {name[:1].upper()}{name[1:]}", "", "| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(own)}" for key, own in value.items())
    text = f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= 300 else f"{text[:300]}..."


@contextmanager
def _reachable(what: str) -> Iterator[None]:
    """The hub's errors as one that says what could not be done."""
    try:
        yield
    except (OSError, require("huggingface_hub.errors", extra="hub").HFValidationError) as error:
        reason = " ".join(str(error).split())
        raise ConnectionError(
            f"{what}: {reason:.300}. Is there a connection, the name right ('user/name'), and, for what is private, a "
            "token (`hf auth login`)? A file is loaded without the hub: orn.load('model.safetensors')"
        ) from error
