"""Models that people have, as denoisers in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._extras import require
from .._types import Cond
from ..denoiser import Codec, Denoiser, Scaling
from .autoencoder import Autoencoder
from .network import network_of
from .schedule import Schedule, schedule_of

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")


class Pretrained(Denoiser):
    """A published model: a `Denoiser` that remembers how it was published.

    schedule: its process, question and times (`schedule.grid` visits the times of its own scheduler).
    event: the shape of one state, (channels, height, width), where the configuration says it.
    pipeline: the pipeline that it came with, or None.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        *,
        codec: Codec | None = None,
        event: tuple[int, ...] | None = None,
        pipeline: Any = None,
        null: Cond = None,
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

    def encode(self, prompt: str | Sequence[str]) -> dict[str, Tensor]:
        """cond for texts, by the text encoders of the model's pipeline: one row a text."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        kind = type(self.pipeline).__name__
        if kind not in TEXTS:
            raise ValueError(
                f"{'this model has no pipeline' if self.pipeline is None else kind + ' is not known'}: build cond from "
                f"the network's arguments yourself, or load one of {', '.join(TEXTS)}"
            )
        with torch.no_grad():
            return TEXTS[kind](self.pipeline, prompts)


def load(
    source: Any,
    *,
    scheduler: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> Pretrained:
    """A diffusers model as a `Denoiser`, exactly as it was published.

        model = orn.load("google/ddpm-cifar10-32")                          # a hub name, or a folder
        out = orn.sample(model, shape=(16, *model.event), steps=10)         # any solver, any grid; images in [0, 1]

        model = orn.load(pipe)                                              # a pipeline that is there already
        model = orn.load(unet, scheduler=scheduler)                         # a network and its scheduler

    Latent models keep their autoencoder: states are latents, samples leave as images in [0, 1] (not clamped).
    Conditions travel in `cond` under the names of the network's arguments; `model.encode(texts)` makes them where the
    pipeline has text encoders, and the empty text is then the null condition of `orn.CFG`. The configuration of the
    scheduler is read by `schedule_of`; its clipping of x0 is not applied (`model.schedule.clip` says what it was).

    Args:
        source: a pipeline, a network, a folder of either, or a hub name.
        scheduler: the scheduler, its configuration or its folder, where the source does not bring one.
        dtype, device: of the networks.
        options: passed to `from_pretrained` (revision, variant, subfolder, local_files_only, ...). Only safetensors
            files are read, never pickles.

    Raises ValueError for sources that are no such model, pickles among them; FileNotFoundError where files miss.
    """
    if isinstance(source, (str, Path)):
        source, scheduler = _open(str(source), scheduler, dtype, options)
    own: Any = source
    pipeline = own if hasattr(own, "components") else None
    if pipeline is not None:
        network = getattr(own, "unet", None) or getattr(own, "transformer", None)
        if network is None or getattr(own, "scheduler", None) is None:
            raise ValueError(
                f"{type(own).__name__} has no unet or transformer with a scheduler: is it a diffusion model?"
            )
        scheduler = scheduler or own.scheduler
        if device is not None:
            own.to(device)
    elif isinstance(own, nn.Module) and hasattr(own, "config"):
        network = own.to(device) if device is not None else own
        if scheduler is None:
            raise ValueError(
                f"{type(own).__name__} does not say its schedule: give scheduler=, an object or its folder"
            )
    else:
        raise ValueError(
            f"load takes a diffusers pipeline, network, folder or hub name: got {type(own).__name__}; any other "
            "callable becomes a denoiser by orn.Denoiser(net, process, predicts, timestep=...)"
        )
    if isinstance(scheduler, (str, Path)):
        scheduler = _json(Path(scheduler), "scheduler_config.json")
    if dtype is not None:
        network = network.to(dtype)
    schedule = schedule_of(scheduler)
    vae = getattr(own, "vae", None) or getattr(own, "vqvae", None)
    codec: Codec | None = None
    if vae is not None:
        codec = Autoencoder(vae, frames_first=type(network).__name__.startswith("CogVideoX"))
    elif pipeline is not None and schedule.predicts != "score":
        codec = Scaling(0.5, 0.5)  # pixel models are trained on [-1, 1]
    if codec is not None and device is not None:
        codec.to(device)
    model = Pretrained(network, schedule, codec=codec, event=_event(network), pipeline=pipeline)
    model.null = _null(model, network)
    return model.eval()


def _open(name: str, scheduler: Any, dtype: torch.dtype | None, options: dict[str, Any]) -> tuple[Any, Any]:
    """A pipeline, or a network with its scheduler, from a folder or the hub."""
    path = Path(name)
    if path.suffix in PICKLES:
        raise ValueError(
            f"{name} is a pickle, which runs whatever code it holds: this library never opens one. Where you trust it, "
            "load it into its network yourself, and give that to orn.load(network, scheduler=...), or write it with "
            "save_pretrained(..., safe_serialization=True)"
        )
    if path.is_file():
        raise ValueError(f"{name} is one file: give the folder that holds model_index.json or config.json")
    diffusers = require("diffusers", extra="diffusers")
    more = {"use_safetensors": True, "torch_dtype": dtype, **options}
    folder = path / str(options["subfolder"]) if "subfolder" in options else path
    if path.exists() and not (path / "model_index.json").exists():
        kind = _json(folder, "config.json").get("_class_name")
        if not hasattr(diffusers, str(kind)):
            raise ValueError(f"{folder / 'config.json'} is of the class {kind!r}, which diffusers does not have")
        beside = [
            place for place in (folder, folder.parent / "scheduler") if (place / "scheduler_config.json").exists()
        ]
        network = _pretrained(getattr(diffusers, str(kind)), name, more)
        return network, scheduler if scheduler is not None or not beside else beside[0]
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1):
        raise FileNotFoundError(f"there is no folder {name}, and it is no hub name like 'google/ddpm-cifar10-32'")
    return _pretrained(diffusers.DiffusionPipeline, name, more), scheduler


def _pretrained(kind: Any, name: str, options: dict[str, Any]) -> Any:
    try:
        return kind.from_pretrained(name, **options)
    except OSError as error:
        where = "the folder lacks a file" if Path(name).exists() else "it is not here, and the hub did not give it"
        raise FileNotFoundError(
            f"{name} could not be loaded: {where}. Only safetensors weights are read; a folder of .bin files is to be "
            f"converted first, by save_pretrained(..., safe_serialization=True). ({error})"
        ) from error


def _json(folder: Path, name: str) -> dict[str, Any]:
    file = folder if folder.is_file() else folder / name
    if not file.exists():
        found = ", ".join(sorted(p.name for p in folder.glob("*"))[:8]) if folder.is_dir() else "no such folder"
        raise FileNotFoundError(f"{folder} has no {name} ({found or 'it is empty'})")
    try:
        data = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file} is no configuration")
    return data


def _event(network: Any) -> tuple[int, ...] | None:
    """(channels, height, width) of one state, as far as the configuration tells."""
    config = network.config
    channels, size = getattr(config, "in_channels", None), getattr(config, "sample_size", None)
    if channels is not None and type(network).__name__ == "FluxTransformer2DModel":
        channels, size = channels // 4, 128
    if channels is None or size is None:
        return None
    return (channels, size, size) if isinstance(size, int) else (channels, *size)


def _null(model: Pretrained, network: Any) -> Cond:
    """The null condition: the class after the last, or the empty text."""
    classes = getattr(network.config, "num_embeds_ada_norm", None)
    if type(network).__name__ == "DiTTransformer2DModel":
        return {"class_labels": classes}
    has_texts = type(model.pipeline).__name__ in TEXTS and getattr(model.pipeline, "text_encoder", None) is not None
    return model.encode("") if has_texts else None


def _first(pipe: Any, prompts: list[str], names: Sequence[str | None], **options: Any) -> dict[str, Tensor]:
    """The results of `encode_prompt`, named in order; None is left out."""
    found = pipe.encode_prompt(prompts, num_images_per_prompt=1, device=pipe._execution_device, **options)
    return {name: value for name, value in zip(names, found, strict=False) if name is not None and value is not None}


def _stable_diffusion(pipe: Any, prompts: list[str]) -> dict[str, Tensor]:
    return _first(pipe, prompts, ["encoder_hidden_states"], do_classifier_free_guidance=False)


def _stable_diffusion_xl(pipe: Any, prompts: list[str]) -> dict[str, Tensor]:
    found = _first(pipe, prompts, ["encoder_hidden_states", None, "text_embeds"], do_classifier_free_guidance=False)
    side = pipe.default_sample_size * pipe.vae_scale_factor
    # the original size, the corner of the crop and the size of the target, as at its native resolution
    ids = torch.tensor([[side, side, 0, 0, side, side]], dtype=found["text_embeds"].dtype)
    return {**found, "time_ids": ids.expand(len(prompts), -1).to(found["text_embeds"].device)}


def _stable_diffusion_3(pipe: Any, prompts: list[str]) -> dict[str, Tensor]:
    names = ["encoder_hidden_states", None, "pooled_projections"]
    return _first(pipe, prompts, names, prompt_2=None, prompt_3=None, do_classifier_free_guidance=False)


def _flux(pipe: Any, prompts: list[str]) -> dict[str, Tensor]:
    found = _first(pipe, prompts, ["encoder_hidden_states", "pooled_projections", "txt_ids"], prompt_2=None)
    found["txt_ids"] = found["txt_ids"][None].expand(len(prompts), -1, -1)
    if pipe.transformer.config.guidance_embeds:
        found["guidance"] = torch.full((len(prompts),), 3.5, device=found["txt_ids"].device)
    return found


def _masked(pipe: Any, prompts: list[str]) -> dict[str, Tensor]:
    names = ["encoder_hidden_states", "encoder_attention_mask"]
    return _first(pipe, prompts, names, do_classifier_free_guidance=False)


TEXTS: dict[str, Callable[[Any, list[str]], dict[str, Tensor]]] = {
    "StableDiffusionPipeline": _stable_diffusion,
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
    "StableDiffusion3Pipeline": _stable_diffusion_3,
    "FluxPipeline": _flux,
    "PixArtAlphaPipeline": _masked,
    "PixArtSigmaPipeline": _masked,
    "SanaPipeline": _masked,
    "AuraFlowPipeline": _stable_diffusion,
    "CogVideoXPipeline": _stable_diffusion,
}
"""Pipelines whose texts `Pretrained.encode` can read."""
