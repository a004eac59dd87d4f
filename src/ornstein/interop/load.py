"""Models that people have, as denoisers in one line."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._extras import require
from ..denoiser import Codec, Denoiser, Scaling
from ..processes import LinearProcess
from .autoencoder import Autoencoder
from .file import load_model
from .hub import own_file
from .network import CONVENTIONS, TEXT, class_of, network_of, plain
from .schedule import FLOWS, PublishedGrid, Schedule, schedule_of

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")


class Pretrained(Denoiser):
    """A published model: a `Denoiser` that remembers how it was published.

    schedule: its process, question and times (`schedule.grid` visits the times of its own scheduler).
    event: the shape of one state, (channels, height, width) or of a video, where the configuration says it.
    pipeline: the pipeline that it came with, or None.
    null: the null condition for `orn.CFG`; where it is the empty text it is encoded when first asked for.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        *,
        codec: Codec | None = None,
        event: tuple[int, ...] | None = None,
        pipeline: Any = None,
        null: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            network_of(network, schedule),
            schedule.process,
            schedule.predicts,
            precondition=schedule.precondition,
            timestep=schedule.timestep,
            scaling=codec,
            null=null,
        )
        self.schedule, self.event, self.pipeline = schedule, event, pipeline

    _null: Mapping[str, Any] | None

    @property
    def null(self) -> Mapping[str, Any] | None:
        """Values of the condition that stand for "no condition"."""
        if self._null is None and self._reads_texts:
            self._null = self._texts([""], null=True)
        return self._null

    @null.setter
    def null(self, value: Mapping[str, Any] | None) -> None:
        self._null = value

    @property
    def _reads_texts(self) -> bool:
        pipeline = self.__dict__.get("pipeline")
        known, encoders = type(pipeline).__name__ in TEXTS, ("text_encoder", "text_encoder_2", "text_encoder_3")
        return known and any(getattr(pipeline, name, None) is not None for name in encoders)

    def encode(self, prompt: str | Sequence[str]) -> dict[str, Tensor]:
        """cond for texts, by the text encoders of the model's pipeline: one row a text.

        Sizes are those of the model's own resolution, and the guidance of a distilled model is 3.5: both are entries of
        the mapping, and may be replaced. Raises ValueError where there are no text encoders.
        """
        if not self._reads_texts:
            kind = "no pipeline" if self.pipeline is None else f"a {type(self.pipeline).__name__}"
            raise ValueError(
                f"this model has {kind} to encode texts with: give cond by the names of the network's arguments, or "
                f"load one of {', '.join(TEXTS)} with its text encoders"
            )
        return self._texts([prompt] if isinstance(prompt, str) else list(prompt))

    def _texts(self, prompts: list[str], *, null: bool = False) -> dict[str, Any]:
        with torch.no_grad():
            found = TEXTS[type(self.pipeline).__name__](self.pipeline, prompts, null)
        like = next(self.parameters())  # the network's come first
        return {
            name: value.to(like if value.is_floating_point() else like.device) if isinstance(value, Tensor) else value
            for name, value in found.items()
        }


def load(
    source: Any,
    *,
    scheduler: Any = None,
    null: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    net: nn.Module | None = None,
    classes: Sequence[type] = (),
    **options: Any,
) -> Denoiser:
    """A saved model as a `Denoiser`: a file of ours, or a diffusers model exactly as it was published.

        model = orn.load("model.safetensors")                               # what orn.save wrote
        model = orn.load("hub:user/name")                                   # what orn.interop.push_to_hub sent

        model = orn.load("google/ddpm-cifar10-32")                          # a hub name, or a folder
        out = orn.sample(model, shape=(16, *model.event), steps=10)         # any solver, any grid; images in [0, 1]

        model = orn.load(pipe)                                              # a pipeline that is there already
        model = orn.load(unet, scheduler=scheduler)                         # a network and its scheduler

    A file of ours is opened as `orn.interop.load_model` says; a model of diffusers comes as a `Pretrained`.
    Latent models keep their autoencoder: states are latents, samples leave as images in [0, 1] (not clamped).
    Conditions travel in `cond` under the names of the network's arguments; `model.encode(texts)` makes them where the
    pipeline has text encoders, and the empty text is then the null condition of `orn.CFG`. The configuration of the
    scheduler is read by `schedule_of`; its clipping of x0 is not applied (`model.schedule.clip` says what it was).

    Args:
        source: a file, or a folder or hub name ("hub:user/name") with one; a pipeline, a network, a folder of either,
            or a hub name.
        scheduler: the scheduler, its configuration or its folder, where the source does not bring one.
        null: values of cond that stand for "no condition", where the model does not bring them.
        dtype, device: of all that is loaded; a pipeline or network that was there already is itself moved.
        net, classes: for a file of ours with classes of the user's: the network, or the classes by their names.
        options: passed to `from_pretrained` (revision, variant, subfolder, local_files_only, ...). Only safetensors
            files are read, never pickles.

    Raises ValueError for sources that are no such model, pickles among them; FileNotFoundError where files miss.
    """
    own = own_file(source, options) if isinstance(source, (str, Path)) else None
    if own is not None:
        if scheduler is not None or options:
            raise ValueError(f"{own} knows its process: {', '.join(options or ['scheduler'])} is for other models")
        model = load_model(own, net=net, classes=classes, dtype=dtype, device=device)
        model.null = model.null if null is None else null
        return model
    if net is not None or classes:
        raise ValueError("net and classes are for files that orn.save wrote")
    if isinstance(source, (str, Path)):
        source, scheduler = _open(str(source), scheduler, dtype, options)
    elif options:
        raise ValueError(
            f"{', '.join(options)}: for a folder or a hub name, this {type(source).__name__} is there already"
        )
    pipeline = source if hasattr(source, "components") else None
    network = source if pipeline is None else _network_in(pipeline)
    if not isinstance(network, nn.Module) or not hasattr(plain(network), "config"):
        raise ValueError(
            f"load takes a diffusers pipeline, network, folder or hub name: got {type(source).__name__}; any other "
            "callable becomes a denoiser by orn.Denoiser(net, process, predicts, timestep=...)"
        )
    if scheduler is None:
        scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is None:
        raise ValueError(f"{type(source).__name__} does not say its schedule: give scheduler=, an object or its folder")
    if isinstance(scheduler, (str, Path)):
        scheduler = _json(Path(scheduler), "scheduler_config.json")
    schedule = schedule_of(scheduler)
    kind = class_of(network)
    if kind is not None and CONVENTIONS[kind].even and schedule.grid.config["_class_name"] in FLOWS:
        schedule = replace(schedule, grid=EvenGrid(schedule.grid.config))
    codec = None if pipeline is None else _codec(pipeline, network, schedule)
    made = Pretrained(network, schedule, codec=codec, event=_event(network), pipeline=pipeline, null=null)
    if (dtype, device) != (None, None):
        (made if pipeline is None else pipeline).to(**_given(dtype=dtype, device=device))
        made.to(device=device)  # the codec's own numbers
    if null is None and kind == "DiTTransformer2DModel":
        config: Any = plain(network).config
        made.null = {"class_labels": config.num_embeds_ada_norm}  # the class after the last
    return made.eval()


@dataclass(frozen=True)
class EvenGrid(PublishedGrid):
    """The N times 1, 1 - 1/N, ..., 1/N and 0, shifted as configured: what some pipelines pass to their scheduler in
    place of its own times."""

    __repr__ = PublishedGrid.__repr__

    def times(self, process: LinearProcess, steps: int) -> Tensor:
        times = self.shifted(torch.linspace(1, 1 / steps, steps, dtype=torch.float64))
        return torch.cat([times, times.new_zeros(1)])


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _network_in(pipeline: Any) -> Any:
    """The one network of a pipeline."""
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    if network is None:
        raise ValueError(f"{type(pipeline).__name__} has no unet or transformer: is it a diffusion model?")
    boundary = getattr(pipeline.config, "boundary_ratio", None)
    if boundary is not None:
        raise ValueError(
            f"{type(pipeline).__name__} with boundary_ratio={boundary} has two networks, for times above and below: "
            "load them one by one, orn.load(pipe.transformer, scheduler=pipe.scheduler)"
        )
    return network


def _codec(pipeline: Any, network: nn.Module, schedule: Schedule) -> Codec | None:
    kind = class_of(network)
    if getattr(pipeline, "vocoder", None) is not None:
        return None  # sound leaves as latents
    for name in ("vae", "vqvae", "movq"):
        if getattr(pipeline, name, None) is not None:
            return Autoencoder(
                getattr(pipeline, name),
                frames_first=kind == "CogVideoXTransformer3DModel",
                still=kind == "QwenImageTransformer2DModel",
                raw=name == "movq",
            )
    return None if schedule.predicts == "score" else Scaling(0.5, 0.5)  # pixel models are trained on [-1, 1]


def _open(name: str, scheduler: Any, dtype: torch.dtype | None, options: dict[str, Any]) -> tuple[Any, Any]:
    """A pipeline, or a network with its scheduler, from a folder or the hub."""
    path = Path(name)
    if path.suffix.lower() in PICKLES:
        raise ValueError(
            f"{name} is a pickle, which runs whatever code it holds: this library never opens one. Where you trust it, "
            "load it into its network yourself, and give that to orn.load(network, scheduler=...), or write it with "
            "save_pretrained(..., safe_serialization=True)"
        )
    if path.is_file():
        raise ValueError(f"{name} is one file: give the folder that holds model_index.json or config.json")
    if not options.get("use_safetensors", True):
        raise ValueError("use_safetensors=False would open pickles, which this library never does")
    diffusers = require("diffusers", extra="diffusers")
    more = {**_given(torch_dtype=dtype), **options, "use_safetensors": True}
    if path.exists():
        folder = path / str(options.get("subfolder", ""))
        if (folder / "model_index.json").exists():
            _json(folder, "model_index.json")  # its damage has a name
            return _pretrained(diffusers.DiffusionPipeline, name, more), scheduler
        kind = _json(folder, "config.json", "model_index.json").get("_class_name")
        if not isinstance(kind, str) or not hasattr(diffusers, kind):
            raise ValueError(f"{folder / 'config.json'} is of the class {kind!r}, which diffusers does not have")
        network = _pretrained(getattr(diffusers, kind), name, more)
        places = (folder, folder.parent / "scheduler", folder / "scheduler")
        beside = [place for place in places if (place / "scheduler_config.json").exists()]
        return network, scheduler if scheduler is not None or not beside else beside[0]
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise FileNotFoundError(f"there is no folder {name}, and it is no hub name like 'google/ddpm-cifar10-32'")
    if "subfolder" not in options:
        return _pretrained(diffusers.DiffusionPipeline, name, more), scheduler
    if scheduler is None:
        raise ValueError(f"of {name} only {options['subfolder']} is asked for: give its scheduler= too")
    return _pretrained(diffusers.AutoModel, name, more), scheduler


def _pretrained(kind: Any, name: str, options: dict[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():  # newer versions call torch_dtype otherwise, and say so
            warnings.filterwarnings("ignore", message=".*torch_dtype")
            return kind.from_pretrained(name, **options)
    except OSError as error:
        where = (
            "the folder lacks a file, or one is damaged"
            if Path(name).exists()
            else "it is not here, and the hub did not give it"
        )
        raise FileNotFoundError(
            f"{name} could not be loaded: {where}. Only safetensors weights are read; a folder of .bin files is to be "
            f"converted first, by save_pretrained(..., safe_serialization=True). ({error})"
        ) from error


def _json(folder: Path, *names: str) -> dict[str, Any]:
    """The configuration in a file, or in the first of a folder's `names`."""
    file = folder if folder.is_file() else folder / names[0]
    if not file.exists():
        found = ", ".join(sorted(p.name for p in folder.glob("*"))[:8]) if folder.is_dir() else "no such folder"
        raise FileNotFoundError(f"{folder} has no {' or '.join(names)} ({found or 'it is empty'})")
    try:
        data = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file} is no configuration")
    return data


def _event(network: nn.Module) -> tuple[int, ...] | None:
    """The shape of one state, as far as the configuration tells."""
    own: Any = plain(network)
    config: Any = own.config
    kind = class_of(network)
    channels: Any = getattr(config, "in_channels", None)
    size: Any = getattr(config, "sample_size", None)
    if kind in ("FluxTransformer2DModel", "QwenImageTransformer2DModel"):
        return (channels // 4, 128, 128)  # what their pipelines draw
    if kind == "CogVideoXTransformer3DModel":
        frames, p = (config.sample_frames - 1) // config.temporal_compression_ratio + 1, config.patch_size_t or 1
        return (-(-frames // p) * p, channels, config.sample_height, config.sample_width)
    if channels is None or size is None:
        return None
    return (channels, size, size) if isinstance(size, int) else (channels, *size)


def _read(
    names: Sequence[str | None], pipe: Any, prompts: list[str], null: bool, *, images: str = "images", **options: Any
) -> dict[str, Any]:
    """The results of `encode_prompt`, named in order."""
    options |= {f"num_{images}_per_prompt": 1, "device": pipe._execution_device}
    taken = inspect.signature(pipe.encode_prompt).parameters
    if "do_classifier_free_guidance" in taken:
        options["do_classifier_free_guidance"] = False
    found = pipe.encode_prompt(prompts, **options)
    return {name: value for name, value in zip(names, found, strict=False) if name is not None and value is not None}


def _stable_diffusion_xl(pipe: Any, prompts: list[str], null: bool) -> dict[str, Any]:
    if null and pipe.config.force_zeros_for_empty_prompt:
        return {TEXT: 0.0, "text_embeds": 0.0}
    found = _read((TEXT, None, "text_embeds"), pipe, prompts, null)
    if null:
        return found
    side = pipe.default_sample_size * pipe.vae_scale_factor
    # the original size, the corner of the crop and the size of the target, as at its native resolution
    ids = torch.tensor([[side, side, 0, 0, side, side]], dtype=found["text_embeds"].dtype)
    return {**found, "time_ids": ids.repeat(len(prompts), 1)}


def _flux(pipe: Any, prompts: list[str], null: bool) -> dict[str, Any]:
    found = _read((TEXT, "pooled_projections"), pipe, prompts, null, prompt_2=None)
    if pipe.transformer.config.guidance_embeds and not null:
        found["guidance"] = torch.full((len(prompts),), 3.5)  # its pipeline's
    return found


def _pixart(pipe: Any, prompts: list[str], null: bool) -> dict[str, Any]:
    found = _read((TEXT, "encoder_attention_mask"), pipe, prompts, null, **_defaults(pipe, "max_sequence_length"))
    if pipe.transformer.config.use_additional_conditions and not null:
        side = float(pipe.transformer.config.sample_size * pipe.vae_scale_factor)
        found["resolution"] = torch.tensor([[side, side]]).repeat(len(prompts), 1)
        found["aspect_ratio"] = torch.ones(len(prompts), 1)
    return found


def _sana(pipe: Any, prompts: list[str], null: bool) -> dict[str, Any]:
    options = _defaults(pipe, "max_sequence_length", *(() if null else ("complex_human_instruction",)))
    return _read((TEXT, "encoder_attention_mask"), pipe, prompts, null, **options)


def _defaults(pipe: Any, *names: str) -> dict[str, Any]:
    """What the pipeline itself takes for options that are not named; its encode_prompt may take other ones."""
    called = inspect.signature(type(pipe).__call__).parameters
    return {name: called[name].default for name in names}


def _video(names: Sequence[str | None], pipe: Any, prompts: list[str], null: bool) -> dict[str, Any]:
    return _read(names, pipe, prompts, null, images="videos", **_defaults(pipe, "max_sequence_length"))


_TEXT, _MASKED = (TEXT,), (TEXT, "encoder_attention_mask")
TEXTS: dict[str, Callable[[Any, list[str], bool], dict[str, Any]]] = {
    "StableDiffusionPipeline": partial(_read, _TEXT),
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
    "StableDiffusion3Pipeline": partial(_read, (TEXT, None, "pooled_projections"), prompt_2=None, prompt_3=None),
    "FluxPipeline": _flux,
    "PixArtAlphaPipeline": _pixart,
    "PixArtSigmaPipeline": _pixart,
    "SanaPipeline": _sana,
    "AuraFlowPipeline": partial(_read, _TEXT),
    "CogVideoXPipeline": partial(_video, _TEXT),
    "WanPipeline": partial(_video, _TEXT),
    "LTXPipeline": partial(_video, _MASKED),
}
"""Pipelines whose texts `Pretrained.encode` can read."""
