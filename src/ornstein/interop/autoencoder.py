"""The autoencoder of a latent model: images to latents and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser import Codec


class Autoencoder(Codec):
    """z = (E(2 image - 1) - shift) scale,    image = (D(z/scale + shift) + 1)/2

    with the encoder's mean for E and images in [0, 1]. scale and shift are the model's `scaling_factor` and
    `shift_factor`, or its `latents_mean` and `latents_std` for each channel. Images leave as they are decoded: clamp
    them before they are shown. For video, latents are (n, channels, frames, height, width), or with `frames_first`
    (n, frames, channels, height, width).
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, module: nn.Module, *, frames_first: bool = False) -> None:
        super().__init__()
        self.module, self.frames_first = module, frames_first
        own: Any = module
        config = own.config
        scale = torch.tensor(float(getattr(config, "scaling_factor", None) or 1.0))
        shift = torch.tensor(float(getattr(config, "shift_factor", None) or 0.0))
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is not None and std is not None:
            shift = torch.as_tensor(mean, dtype=torch.float32).reshape(-1)
            scale = scale / torch.as_tensor(std, dtype=torch.float32).reshape(-1)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def _fit(self, value: Tensor, x: Tensor) -> Tensor:
        return value.to(x).reshape(-1, *(1,) * (x.dim() - 2))

    def _turned(self, z: Tensor) -> Tensor:
        return z.transpose(1, 2) if self.frames_first else z

    def encode(self, x: Tensor) -> Tensor:
        """Images (n, channels, height, width) in [0, 1] to latents."""
        low, high = float(x.min()), float(x.max())
        if not (x.is_floating_point() and low >= -0.01 and high <= 1.01):
            raise ValueError(f"images are floats in [0, 1]: got {x.dtype} from {low:.4g} to {high:.4g}")
        own: Any = self.module
        encoded = own.encode((2 * x - 1).to(own.dtype))
        if hasattr(encoded, "latent_dist"):
            z = encoded.latent_dist.mode()
        else:
            z = encoded.latents if hasattr(encoded, "latents") else encoded.latent
        latents: Tensor = z.to(x.dtype)
        return self._turned((latents - self._fit(self.shift, latents)) * self._fit(self.scale, latents))

    def decode(self, x: Tensor) -> Tensor:
        """Latents to images (n, channels, height, width), in [0, 1] but for overshoot."""
        own: Any = self.module
        x = self._turned(x)
        z = x / self._fit(self.scale, x) + self._fit(self.shift, x)
        decoded: Tensor = own.decode(z.to(own.dtype)).sample
        return (decoded.to(x.dtype) + 1) / 2
