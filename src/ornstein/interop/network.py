"""Networks of diffusers as functions of (x, t, cond)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._extras import require
from .._types import Cond
from .schedule import Schedule

ADDED = ("text_embeds", "time_ids", "image_embeds", "resolution", "aspect_ratio")
"""Conditions that a network takes within its `added_cond_kwargs`."""
TEXT = "encoder_hidden_states"


class Network(nn.Module):
    """A diffusers network called as net(x, t, cond), in the conventions of its own pipeline: see `CONVENTIONS`.

    cond maps the names of the network's arguments (encoder_hidden_states, class_labels, pooled_projections, ...) to
    tensors with the batch as their first axis; names that it expects among its `added_cond_kwargs` (text_embeds,
    time_ids, ...) stand there too. Where a token stands is worked out here. The answer is a tensor, or the heads "main"
    and "variance" where the network has twice the channels of its input.
    """

    supplied: tuple[str, ...] = ()
    """Arguments that `places` gives."""

    def __init__(self, module: nn.Module, schedule: Schedule, convention: Convention) -> None:
        super().__init__()
        self.module = module
        own: Any = plain(module)
        self.config: Any = own.config
        self.forward_parameters: Mapping[str, inspect.Parameter] = inspect.signature(own.forward).parameters
        self.state = "sample" if "sample" in self.forward_parameters else "hidden_states"
        self.told, self.sign = convention.told, schedule.sign * convention.sign
        scale: Any = getattr(self.config, "timestep_scale", None)
        self.time_scale = float(scale or 1.0)
        self.required = {*self._required(), *convention.needs}
        self.check_channels()

    def check_channels(self) -> None:
        """Refuse networks that want more than the state, such as a mask to fill."""
        config: Any = self.config
        taken, given = (getattr(config, name, None) for name in ("in_channels", "out_channels"))
        if taken is not None and given is not None and given not in (taken, 2 * taken):
            raise ValueError(
                f"this network takes {taken} channels and answers {given}: it sees more than the state (an image to "
                "fill, edit or animate). Wrap it yourself: orn.Denoiser(lambda x, t, cond: ..., process, predicts)"
            )

    def _required(self) -> set[str]:
        """Names without which the network cannot run, from its signature and its configuration."""
        config = self.config
        own = ("self", "timestep", "return_dict", self.state, *self.supplied)
        names = {
            name
            for name, parameter in self.forward_parameters.items()
            if parameter.default is inspect.Parameter.empty and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        } - {*own}
        added = getattr(config, "addition_embed_type", None)
        projected = getattr(config, "encoder_hid_dim_type", None)
        if projected == "image_proj" or getattr(config, "class_embed_type", None) == "simple_projection":
            names.discard(TEXT)  # it is None then: the image or the class says everything
        if getattr(config, "num_class_embeds", None) or getattr(config, "class_embed_type", None):
            names.add("class_labels")
        names |= {"text_embeds", "time_ids"} if added == "text_time" else set()
        names |= {"image_embeds"} if "image" in (added, str(projected).partition("_")[0]) else set()
        names |= {"resolution", "aspect_ratio"} if getattr(config, "use_additional_conditions", None) else set()
        return names | ({"guidance"} if getattr(config, "guidance_embeds", None) else set())

    def forward(self, x: Tensor, t: Tensor, cond: Cond = None) -> Tensor | dict[str, Tensor]:
        own: Any = self.module
        arguments = self.arguments(cond)
        inputs = {self.state: self.pack(x), "timestep": self.told(t) * self.time_scale, **self.places(x, arguments)}
        answer = self.unpack(own(**{**arguments, **inputs}, return_dict=False)[0], x)
        if answer.shape[1] == 2 * x.shape[1]:
            main, variance = answer.chunk(2, dim=1)
            return {"main": self._signed(main), "variance": variance}
        return self._signed(answer)

    def _signed(self, answer: Tensor) -> Tensor:
        return -answer if self.sign < 0 else answer

    def arguments(self, cond: Cond) -> dict[str, Any]:
        """The network's keyword arguments from cond."""
        if cond is not None and not isinstance(cond, Mapping):
            raise ValueError(f"cond of this model maps names of its network's arguments to tensors: got {cond!r:.80}")
        taken, names = self.forward_parameters, dict(cond or {})
        hidden = (self.state, "timestep", "return_dict", "added_cond_kwargs", *self.supplied)
        known = {name: names.pop(name) for name in list(names) if name in taken and name not in hidden}
        added = {name: names.pop(name) for name in list(names) if name in ADDED and "added_cond_kwargs" in taken}
        if names:
            accepted = [name for name in taken if name not in hidden and name not in ("args", "kwargs")]
            accepted += sorted(self.required & set(ADDED))
            raise ValueError(f"this network takes no {', '.join(map(str, names))}: it takes {', '.join(accepted)}")
        missing = sorted(self.required - {*known, *added})
        if missing:
            raise ValueError(
                f"this network needs cond with {', '.join(missing)}: model.encode(texts) makes it where the pipeline "
                "has text encoders"
            )
        if TEXT in taken and taken[TEXT].default is inspect.Parameter.empty:
            known.setdefault(TEXT, None)
        return {**known, "added_cond_kwargs": added} if added else known

    def pack(self, x: Tensor) -> Tensor:
        """What the network is given for the state."""
        return x

    def unpack(self, answer: Tensor, x: Tensor) -> Tensor:
        """The network's answer in the shape of the state (but perhaps of twice its channels)."""
        return answer

    def places(self, x: Tensor, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments that follow from the shape of the state alone."""
        return {}


class FramesFirst(Network):
    """CogVideoX: states (n, frames, channels, height, width), rotary embeddings of the tokens' places."""

    supplied = ("image_rotary_emb",)

    def places(self, x: Tensor, arguments: Mapping[str, Any]) -> dict[str, Any]:
        config = self.config
        if not config.use_rotary_positional_embeddings:
            return {}
        embeddings = require("diffusers.models.embeddings", extra="diffusers")
        p, p_t = config.patch_size, config.patch_size_t
        frames, grid = x.shape[1], (x.shape[3] // p, x.shape[4] // p)
        most = (config.sample_height // p, config.sample_width // p)
        if p_t is None:
            where = {"crops_coords": centred(grid, most), "temporal_size": frames}
        else:
            where = {"crops_coords": None, "temporal_size": -(-frames // p_t), "grid_type": "slice", "max_size": most}
        rotary = embeddings.get_3d_rotary_pos_embed(
            embed_dim=config.attention_head_dim, grid_size=grid, device=x.device, **where
        )
        return {"image_rotary_emb": rotary}


class RotaryImage(Network):
    """HunyuanDiT: rotary embeddings of the tokens' places, as for 512 x 512 images."""

    supplied = ("image_rotary_emb",)

    def places(self, x: Tensor, arguments: Mapping[str, Any]) -> dict[str, Any]:
        embeddings = require("diffusers.models.embeddings", extra="diffusers")
        config = self.config
        p: int = config.patch_size
        grid, side = (x.shape[2] // p, x.shape[3] // p), 512 // 8 // p
        rotary = embeddings.get_2d_rotary_pos_embed(
            config.attention_head_dim, centred(grid, (side, side)), grid, device=x.device, output_type="pt"
        )
        return {"image_rotary_emb": rotary}


def centred(grid: tuple[int, int], most: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The corners of the largest box of the grid's shape inside `most`, in its middle."""
    (h, w), (height, width) = grid, most
    if h / w > height / width:
        size = (height, round(height / h * w))
    else:
        size = (round(width / w * h), width)
    top, left = (round((whole - part) / 2.0) for whole, part in zip(most, size, strict=True))
    return (top, left), (top + size[0], left + size[1])


class Patches(Network):
    """Networks whose tokens are 2 x 2 patches of the latent, and which are told where each of them stands.

    Flux's is told (0, row, column) of each token, and zeros for the text's; guidance (batch,) is wanted in cond where
    the model was distilled with it.
    """

    supplied = ("img_ids",)

    def check_channels(self) -> None:
        taken, given = self.config.in_channels, self.config.out_channels
        if given is not None and given != taken:
            raise ValueError(f"this network takes {taken} channels and answers {given}: it sees more than the state")

    def pack(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        if h % 2 or w % 2:
            raise ValueError(f"the latents of this model are cut into 2 x 2 patches: got {h} x {w}")
        return x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)

    def unpack(self, answer: Tensor, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return answer.reshape(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)

    def places(self, x: Tensor, arguments: Mapping[str, Any]) -> dict[str, Any]:
        texts, given = arguments[TEXT], arguments.get("txt_ids")
        rows, columns = torch.meshgrid(torch.arange(x.shape[2] // 2), torch.arange(x.shape[3] // 2), indexing="ij")
        where = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).to(x)
        return {"img_ids": where, "txt_ids": texts.new_zeros(texts.shape[1], 3) if given is None else given[0]}


class ShapedPatches(Patches):
    """QwenImage: 2 x 2 patches as in `Patches`, told the shape of the image."""

    supplied = ("img_shapes",)

    def check_channels(self) -> None:
        taken, given = self.config.in_channels, self.config.out_channels
        if given is not None and 4 * given != taken:
            raise ValueError(
                f"this network takes {taken} channels and answers {4 * given}: it sees more than the state"
            )

    def places(self, x: Tensor, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {"img_shapes": [[(1, x.shape[2] // 2, x.shape[3] // 2)]] * x.shape[0]}


class Cells(Network):
    """LTX: every cell of the latent (n, channels, frames, height, width) is a token; 25 frames a second, as its own
    pipeline takes it, and 8 x 32 x 32 of the video in a cell."""

    supplied = ("num_frames", "height", "width", "rope_interpolation_scale", "video_coords")

    def pack(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)

    def unpack(self, answer: Tensor, x: Tensor) -> Tensor:
        return answer.transpose(1, 2).reshape(x.shape)

    def places(self, x: Tensor, arguments: Mapping[str, Any]) -> dict[str, Any]:
        frames, height, width = x.shape[2:]
        return {"num_frames": frames, "height": height, "width": width, "rope_interpolation_scale": (8 / 25, 32, 32)}


def step(t: Tensor) -> Tensor:
    """The scheduler's timestep itself, 0 ... 1000."""
    return t


def unit(t: Tensor) -> Tensor:
    """t/1000: sigma, for a flow."""
    return t / 1000


def rising(t: Tensor) -> Tensor:
    """1 - t/1000, which is 1 at data."""
    return 1 - t / 1000


@dataclass(frozen=True)
class Convention:
    """What a class of networks is told of the scheduler's timestep, which way its answer points, and what it needs.

    sign: -1 where the velocity points towards data.
    needs: names in cond without which it cannot run, though its signature has a default for them.
    even: whether its pipeline lays the N times of a flow evenly from 1 to 1/N, whatever the scheduler would do.
    """

    told: Callable[[Tensor], Tensor] = step
    sign: float = 1.0
    needs: tuple[str, ...] = ()
    adaptor: type[Network] = field(default=Network)
    even: bool = False


_POOLED = (TEXT, "pooled_projections")
CONVENTIONS: dict[str, Convention] = {
    "UNet2DModel": Convention(),
    "UNet2DConditionModel": Convention(),
    "DiTTransformer2DModel": Convention(needs=("class_labels",)),
    "PixArtTransformer2DModel": Convention(needs=(TEXT,)),
    "HunyuanDiT2DModel": Convention(
        needs=(TEXT, "text_embedding_mask", "encoder_hidden_states_t5", "text_embedding_mask_t5"), adaptor=RotaryImage
    ),
    "CogVideoXTransformer3DModel": Convention(adaptor=FramesFirst),
    "SD3Transformer2DModel": Convention(needs=_POOLED),
    "SanaTransformer2DModel": Convention(),
    "WanTransformer3DModel": Convention(),
    "AuraFlowTransformer2DModel": Convention(unit, needs=(TEXT,)),
    "FluxTransformer2DModel": Convention(unit, needs=_POOLED, adaptor=Patches, even=True),
    "QwenImageTransformer2DModel": Convention(unit, needs=(TEXT,), adaptor=ShapedPatches, even=True),
    "LTXVideoTransformer3DModel": Convention(adaptor=Cells, even=True),
    "Lumina2Transformer2DModel": Convention(rising, -1.0, even=True),
}
"""The classes that are known, each proven against its own pipeline. No other class of diffusers' is guessed at; a class
of the user's own that is called as a UNet2DModel is (sample, timestep) is taken to be trained like one."""


def plain(module: nn.Module) -> nn.Module:
    """The module as it was before torch.compile."""
    inside = getattr(module, "_orig_mod", module)
    return inside if isinstance(inside, nn.Module) else module


def class_of(module: nn.Module) -> str | None:
    """The known class that a network is of."""
    return next((kind.__name__ for kind in type(plain(module)).__mro__ if kind.__name__ in CONVENTIONS), None)


def _own(module: nn.Module) -> bool:
    """Whether it is a class of the user's, called as diffusers' first networks are."""
    theirs = type(module).__module__.startswith("diffusers.")
    return not theirs and {"sample", "timestep"} <= set(inspect.signature(module.forward).parameters)


def network_of(module: nn.Module, schedule: Schedule) -> Network:
    """The adaptor for a network."""
    name = class_of(module) or ("UNet2DModel" if _own(plain(module)) else None)
    if name is None:
        raise ValueError(
            f"{type(plain(module)).__name__} is no denoising network whose conventions are known: those are "
            f"{', '.join(CONVENTIONS)}. Wrap it yourself: with s = orn.interop.schedule_of(scheduler), "
            "orn.Denoiser(lambda x, t: ..., s.process, s.predicts, timestep=s.timestep)"
        )
    convention = CONVENTIONS[name]
    return convention.adaptor(module, schedule, convention)
