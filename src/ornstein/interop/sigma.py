"""Networks that are told the noise level and answer the denoised state: Karras et al.'s, and k-diffusion's models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._types import Cond
from ..denoiser import BaseDenoiser, Codec, Denoiser
from ..processes import EDM, GaussianProcess, broadcast


class _SigmaNetwork(nn.Module):
    """net(x, sigma, **cond), called as net(x, t, cond)."""

    def __init__(self, net: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        if isinstance(cond, Mapping):
            x0 = self.net(x, sigma, **cond)
        else:
            x0 = self.net(x, sigma) if cond is None else self.net(x, sigma, cond)
        return x0.to(x.dtype)  # EDM's networks answer in float32 whatever they are asked in


def from_sigma(
    net: Callable[..., Tensor],
    sigma_max: float = 80.0,
    *,
    scaling: Codec | None = None,
    null: Mapping[str, Any] | None = None,
) -> Denoiser:
    """x0 = net(x, sigma, **cond),    x = x0 + sigma noise,    0 < sigma <= sigma_max

    as a `Denoiser` of the process EDM(sigma_max).

        model = orn.interop.from_sigma(edm_net, scaling=orn.Scaling(0.5, 0.5))     # trained on images in [-1, 1]
        out = orn.sample(model, shape=(16, 3, 32, 32), grid=orn.Karras(), solver=orn.Heun(), steps=18,
                         cond={"class_labels": one_hot})

    The network is called with sigma of shape (batch,). A mapping as cond becomes its keyword arguments; any other
    condition is passed as the third argument.

    Args:
        net: a callable, such as EDM's published networks or k-diffusion's `Denoiser` and its wrappers of others.
        sigma_max: where sampling begins.
        scaling, null: as in `Denoiser`.

    Source: Karras et al. 2022 (2206.00364).
    """
    if not callable(net):
        raise ValueError(f"net is called as net(x, sigma): got {type(net).__name__}")
    return Denoiser(
        _SigmaNetwork(net), EDM(sigma_max), "x0", timestep=lambda level: level.sigma, scaling=scaling, null=null
    )


class SigmaModel(nn.Module):
    """model(y, sigma, **cond) = E[x0 | y],    y = x0 + sigma noise: what `to_sigma` makes of a denoiser.

    With alpha(t) and sigma(t) of the denoiser's process, t solves sigma(t)/alpha(t) = sigma and its state is
    alpha(t) y.
    """

    def __init__(self, denoiser: BaseDenoiser) -> None:
        super().__init__()
        process = getattr(denoiser, "process", None)
        if not isinstance(denoiser, BaseDenoiser) or not isinstance(process, GaussianProcess):
            raise ValueError(f"to_sigma takes a denoiser of one state of a GaussianProcess: got {denoiser!r:.80}")
        if type(process).shift is not GaussianProcess.shift:
            raise ValueError(f"{process!r} has a mean that does not come from x0: it is no x0 + sigma noise")
        self.denoiser = denoiser

    def forward(self, x: Tensor, sigma: float | Tensor, **cond: Any) -> Tensor:
        """x0, of the shape of x (batch, *event), from sigma (batch,) or a scalar; it waits for a sigma on a device."""
        process: Any = self.denoiser.process
        s = torch.as_tensor(sigma, dtype=torch.float64, device="cpu")
        most = float(torch.exp(-process.level(1.0).log_snr / 2))
        if not bool(((s > 0) & (s <= most * (1 + 1e-5))).all()):
            raise ValueError(
                f"{process!r} knows noise levels in (0, {most:.6g}]: got {float(s.min()):.6g} ... {float(s.max()):.6g}"
            )
        # the largest, rounded to float32, is still the largest
        level = process.level(process.time(-2 * s.log()).clamp(0, 1))
        state = x if isinstance(process, EDM) else broadcast(level.alpha, x) * x
        x0: Tensor = self.denoiser(state, level, cond or None).x0
        return x0


def to_sigma(denoiser: BaseDenoiser) -> SigmaModel:
    """Any denoiser without a shift as model(x, sigma, **cond) -> x0, in the frame x = x0 + sigma noise.

        model = orn.interop.to_sigma(orn.CFG(denoiser, 4.0))
        x0 = k_diffusion.sampling.sample_euler(model, x, sigmas, extra_args={"label": label})

    x and sigma are as in k-diffusion's samplers: (batch, *event) and (batch,), in the model's units. Keyword arguments
    become cond.

    Raises ValueError for processes with a shift, and for noise levels that the process does not reach.

    Source: Karras et al. 2022 (2206.00364), table 1: the scaling s(t) and the noise level sigma(t).
    """
    return SigmaModel(denoiser)
