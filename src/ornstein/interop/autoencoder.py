"""The autoencoder of a latent model: images to latents and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser import Codec


class Autoencoder(Codec):
    """z = (E(2 image - 1) - shift) scale,    image = (D(z/scale + shift) + 1)/2

    with the encoder's mean for E and images in [0, 1]. scale and shift are the model's `scaling_factor` and
    `shift_factor`, or its `latents_mean` and `latents_std` for each channel. Images leave as they are decoded: clamp
    them before they are shown. Videos are (n, channels, frames, height, width).

    Args:
        module: the autoencoder, of any class of diffusers'.
        frames_first: latents of videos are (n, frames, channels, height, width).
        still: an autoencoder of videos is used for images, of one frame.
        raw: states are the latents themselves, neither scaled nor quantised (Kandinsky's MoVQ); otherwise a
            vector-quantised model decodes the nearest entries of its codebook.

    Raises ValueError for images outside [0, 1].
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, module: nn.Module, *, frames_first: bool = False, still: bool = False, raw: bool = False
    ) -> None:
        super().__init__()
        self.module, self.frames_first, self.still, self.raw = module, frames_first, still, raw
        own: Any = module
        config = own.config
        scale = torch.tensor(float(getattr(config, "scaling_factor", None) or 1.0))
        shift = torch.tensor(float(getattr(config, "shift_factor", None) or 0.0))
        mean, std = (_found(own, name) for name in ("latents_mean", "latents_std"))
        if raw:
            scale = torch.ones(())
        elif mean is not None and std is not None:
            shift, scale = mean, scale / std
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def encode(self, x: Tensor) -> Tensor:
        """Images (n, channels, height, width) in [0, 1] to latents."""
        low, high = float(x.min()), float(x.max())
        if not (x.is_floating_point() and low >= -0.01 and high <= 1.01):
            raise ValueError(
                f"images are floats in [0, 1]: got {x.dtype} from {low:.4g} to {high:.4g} "
                "(divide bytes by 255; of images in [-1, 1] take (x + 1)/2)"
            )
        with self._precise() as own:
            encoded = own.encode((2 * self._one_frame(x) - 1).to(own.dtype))
        if hasattr(encoded, "latent_dist"):
            z = encoded.latent_dist.mode()
        else:
            z = encoded.latents if hasattr(encoded, "latents") else encoded.latent
        latents: Tensor = z.to(x.dtype)
        latents = (latents - _fit(self.shift, latents)) * _fit(self.scale, latents)
        return self._turned(latents[:, :, 0] if self.still else latents)

    def decode(self, x: Tensor) -> Tensor:
        """Latents to images (n, channels, height, width), in [0, 1] but for overshoot."""
        x = self._one_frame(self._turned(x))
        z = x / _fit(self.scale, x) + _fit(self.shift, x)
        own: Any = self.module
        options: dict[str, Any] = {}
        if getattr(own.config, "timestep_conditioning", False):
            options["temb"] = torch.zeros(len(x), device=x.device)  # the latents are clean
        if self.raw:
            options["force_not_quantize"] = True
        with self._precise() as own:
            decoded: Tensor = own.decode(z.to(own.dtype), **options).sample
        image = (decoded.to(x.dtype) + 1) / 2
        return image[:, :, 0] if self.still else image

    def _turned(self, z: Tensor) -> Tensor:
        return z.transpose(1, 2) if self.frames_first else z

    def _one_frame(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2) if self.still else x

    @contextmanager
    def _precise(self) -> Iterator[Any]:
        """The module; in float32 for as long as it is used, where it overflows in half precision and says so."""
        own: Any = self.module
        dtype = own.dtype
        upcast = dtype == torch.float16 and getattr(own.config, "force_upcast", False)
        try:
            yield own.float() if upcast else own
        finally:
            if upcast:
                own.to(dtype)


def _found(own: Any, name: str) -> Tensor | None:
    """A vector over the channels, from the configuration or the buffers."""
    value = getattr(own.config, name, None)
    value = own._buffers.get(name) if value is None else value
    return None if value is None else torch.as_tensor(value, dtype=torch.float32).detach().clone().reshape(-1)


def _fit(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x).reshape(-1, *(1,) * (x.dim() - 2))
