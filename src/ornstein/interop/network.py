"""Networks of diffusers as functions of (x, t, cond)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._types import Cond
from .schedule import Schedule

# What a class of networks is told in place of the scheduler's timestep, as its own pipeline does it.
TOLD: dict[str, Callable[[Tensor], Tensor]] = {
    "FluxTransformer2DModel": lambda t: t / 1000,
    "AuraFlowTransformer2DModel": lambda t: t / 1000,
    "QwenImageTransformer2DModel": lambda t: t / 1000,
    "Lumina2Transformer2DModel": lambda t: 1 - t / 1000,
    "LuminaNextDiT2DModel": lambda t: 1 - t / 1000,
}
TOWARDS_DATA = ("Lumina2Transformer2DModel", "LuminaNextDiT2DModel")
"""Classes whose velocity points towards data."""


class Network(nn.Module):
    """A diffusers network called as net(x, t, cond), in the conventions of its own pipeline.

    cond maps the names of the network's arguments (encoder_hidden_states, class_labels, pooled_projections, ...) to
    tensors with the batch as their first axis; names that it expects among its `added_cond_kwargs` (text_embeds,
    time_ids, ...) stand there too. The answer is a tensor, or the heads "main" and "variance" where the network has
    twice the channels of its input.
    """

    def __init__(self, module: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.module = module
        own: Any = module
        self.parameters_of: Mapping[str, inspect.Parameter] = inspect.signature(own.forward).parameters
        state = [name for name in ("sample", "hidden_states", "x") if name in self.parameters_of]
        if not state or "timestep" not in self.parameters_of:
            raise ValueError(
                f"{type(module).__name__} is no denoising network of a known kind: its forward takes "
                f"{', '.join(self.parameters_of)}; wrap it yourself, orn.Denoiser(lambda x, t: ..., process, predicts)"
            )
        self.state = state[0]
        scale = float(getattr(own.config, "timestep_scale", None) or 1.0)
        self.told: Callable[[Tensor], Tensor] = TOLD.get(type(module).__name__, lambda t: scale * t)
        self.sign = schedule.sign * (-1.0 if type(module).__name__ in TOWARDS_DATA else 1.0)

    def forward(self, x: Tensor, t: Tensor, cond: Cond = None) -> Tensor | dict[str, Tensor]:
        own: Any = self.module
        arguments = {self.state: x, "timestep": self.told(t), **self.arguments(cond)}
        answer: Tensor = own(**arguments, return_dict=False)[0]
        return self.read(x, answer)

    def arguments(self, cond: Cond) -> dict[str, Any]:
        """The network's keyword arguments from cond."""
        if cond is not None and not isinstance(cond, Mapping):
            raise ValueError(f"cond of this model maps names of its network's arguments to tensors: got {cond!r:.80}")
        known: dict[str, Any] = {}
        added: dict[str, Any] = {}
        for name, value in (cond or {}).items():
            (known if name in self.parameters_of else added)[name] = value
        if added and "added_cond_kwargs" not in self.parameters_of:
            accepted = [name for name in self.parameters_of if name not in (self.state, "timestep", "return_dict")]
            raise ValueError(f"this network takes no {', '.join(added)}: it takes {', '.join(accepted)}")
        missing = [
            name
            for name, parameter in self.parameters_of.items()
            if parameter.default is inspect.Parameter.empty
            and parameter.kind is not inspect.Parameter.VAR_KEYWORD
            and name not in (self.state, "timestep", "self", *known)
        ]
        if missing:
            raise ValueError(
                f"this network needs cond with {', '.join(missing)} (see model.encode, or its own pipeline)"
            )
        return {**known, "added_cond_kwargs": added} if added else known

    def read(self, x: Tensor, answer: Tensor) -> Tensor | dict[str, Tensor]:
        """The answer in the schedule's sign, and the variance apart."""
        if answer.shape[1] == 2 * x.shape[1]:
            main, variance = answer.chunk(2, dim=1)
            return {"main": self.sign * main if self.sign < 0 else main, "variance": variance}
        return self.sign * answer if self.sign < 0 else answer


class PackedNetwork(Network):
    """A network of Flux's kind: its tokens are 2 x 2 patches of the latent, and it is told where each of them stands.

    cond: encoder_hidden_states, pooled_projections, txt_ids (tokens, 3) repeated for the batch, and guidance (batch,)
    where the model was distilled with it.
    """

    def forward(self, x: Tensor, t: Tensor, cond: Cond = None) -> Tensor | dict[str, Tensor]:
        own: Any = self.module
        b, c, h, w = x.shape
        if h % 2 or w % 2:
            raise ValueError(f"the latents of this model are cut into 2 x 2 patches: got {h} x {w}")
        patches = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)
        rows, columns = torch.meshgrid(torch.arange(h // 2), torch.arange(w // 2), indexing="ij")
        where = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).to(x)
        arguments = self.arguments({**(cond or {}), "img_ids": where})
        if arguments["txt_ids"].dim() == 3:  # the batch repeats it
            arguments["txt_ids"] = arguments["txt_ids"][0]
        answer: Tensor = own(**{self.state: patches, "timestep": self.told(t), **arguments}, return_dict=False)[0]
        cells = answer.reshape(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
        return self.read(x, cells)


PACKED = ("FluxTransformer2DModel",)


def network_of(module: nn.Module, schedule: Schedule) -> Network:
    """The adaptor for a network's class."""
    return (PackedNetwork if type(module).__name__ in PACKED else Network)(module, schedule)
