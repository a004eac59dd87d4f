"""The gradient of a likelihood: log p of data under the probability flow, differentiated along its path."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..prediction import heads_of
from ..processes import GaussianProcess, broadcast

_GRADING = 2.0  # angles phi_i ~ (i/N)^2: data are as narrow as the angle at which their structure begins


class FlowLikelihood:
    """log p(x) = log p_1(x_1) + integral of div(du/dphi) dphi + constants, and its gradient in x, for x at `start`.

        du/dphi = v/rho,   u = x/rho,   rho = hypot(alpha, sigma),   phi = atan2(sigma, alpha)

    the flow and the angle of `log_likelihood`, in `steps` steps of the classical Runge-Kutta method, four evaluations
    each, on the model's own device and in the dtype of x. The gradient is that of the number computed, not of its
    limit: backwards step by step, each done again with its graph, so that memory does not grow with steps. Unlike
    the score at `start`, it is the gradient of a density even where the network's score is of none.

    For the density itself, its error under control, ask `log_likelihood`. Levels and conditions are prepared once: it
    is asked of many x (batch, *event) of one shape.

    Args:
        model: any denoiser of a `GaussianProcess`, its network twice differentiable.
        x: any state of the shape, dtype and device of those to come, in the model's units.
        cond: of each of them.
        start: the time at which x is put, as in `log_likelihood`; by default the process's `finest`.
        steps: 16 give log p of modes of 0.3 on a circle of radius 2 to 2e-3 and its gradient to 1e-2, 24 to 5e-4 and
            2e-3.

    Source: Chen et al. 2018 (1806.07366), equation 8; Song et al. 2020 (2011.13456), appendix D.2.
    """

    def __init__(
        self, model: BaseDenoiser, x: Tensor, *, cond: Cond = None, start: float | None = None, steps: int = 24
    ) -> None:
        process = model.process
        if not isinstance(process, GaussianProcess) or process.shift(process.level(1.0).t, cond) is not None:
            raise ValueError(f"this likelihood is of a GaussianProcess without a shift: got {process!r}")
        if steps < 1:
            raise ValueError(f"steps={steps}: at least one along the flow")
        start = process.finest if start is None else start
        if not 0 <= start < 1:
            raise ValueError(f"start={start}: the time of the data, in [0, 1)")
        ends = process.level([start, 1.0])
        low, high = torch.atan2(ends.sigma, ends.alpha).tolist()
        # the ends and the middle of every step
        nodes = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** _GRADING
        phi = low + (high - low) * torch.stack([nodes[:-1], (nodes[:-1] + nodes[1:]) / 2], 1).flatten()
        t = process.time(-2 * torch.log(torch.tan(phi))).clamp(0, 1)
        levels = process.level(torch.cat([ends.t[:1], t[1:], ends.t[1:]]))
        rho = torch.hypot(levels.alpha, levels.sigma)
        self._model, self._process, self._cond, self._levels = model, process, cond, levels
        self._calls = model.bind(levels, x, cond)
        # v = c_x x_t + c_p answer, refused where the model cannot tell it
        self._v = [[broadcast(c, x) for c in column] for column in levels.conversion(model.predicts, "v")]
        self._rho = [broadcast(value, x) for value in rho]
        self._widths = [broadcast(width, x) for width in (high - low) * nodes.diff()]
        self._scale = broadcast(levels.alpha[0] / rho[0], x)  # u = alpha x/rho: the state at `start` of data x
        self._volume = float(x[0].numel() * torch.log(levels.alpha[0] * rho[-1] / rho[0]))

    def cost(self, probes: int) -> int:
        """Evaluations of the network for one call: there, and back with its products and the gradient of both.

        probes: how many signs, d without them.
        """
        each = self._model.cost(self._levels)
        evaluations = sum(each[:-1]) + sum(each[2::2]) + sum(each[1::2])  # every middle twice, every inner end twice
        return evaluations * (1 + 2 * (1 + probes))

    def __call__(self, x: Tensor, signs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(log p(x), its gradient): (batch,) and (batch, *event).

        signs: random signs v (m, *like x), the same along the path, whose mean v'Jv is on average the trace of J;
            without them it is exact, by d products with the Jacobian.
        """
        signs = _units(x) if signs is None else signs
        with torch.no_grad():
            path = [self._scale * x]
            for i in range(len(self._widths)):
                path.append(self._step(i, path[-1], None)[0])
        with torch.enable_grad():
            end = path[-1].requires_grad_()
            log_prob = self._process.log_prior(self._rho[-1] * end, self._cond) + self._volume
            (gradient,) = torch.autograd.grad(log_prob.sum(), end)
        log_prob = log_prob.detach()
        for i in reversed(range(len(self._widths))):
            with torch.enable_grad():
                u = path[i].requires_grad_()
                moved, gained = self._step(i, u, signs)
                (gradient,) = torch.autograd.grad([moved, gained], u, [gradient, torch.ones_like(gained)])
            log_prob = log_prob + gained.detach()
        return log_prob, self._scale * gradient

    def _step(self, i: int, u: Tensor, signs: Tensor | None) -> tuple[Tensor, Tensor]:
        """The state after step i, and the integral of the divergence over it."""
        h = self._widths[i]
        k1, d1 = self._slope(2 * i, u, signs)
        k2, d2 = self._slope(2 * i + 1, u + h / 2 * k1, signs)
        k3, d3 = self._slope(2 * i + 1, u + h / 2 * k2, signs)
        k4, d4 = self._slope(2 * i + 2, u + h * k3, signs)
        return u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), h.flatten() / 6 * (d1 + 2 * d2 + 2 * d3 + d4)

    def _slope(self, node: int, u: Tensor, signs: Tensor | None) -> tuple[Tensor, Tensor]:
        """du/dphi and its divergence."""
        rho = self._rho[node]
        slope = self._v[0][node] * u + self._v[1][node] * heads_of(self._calls[node](rho * u))["main"] / rho
        total = torch.zeros(len(u), dtype=u.dtype, device=u.device)
        if signs is None:
            return slope, total
        for v in signs:
            (pulled,) = torch.autograd.grad(slope, u, v, create_graph=True)
            total = total + (pulled * v).flatten(1).sum(1)
        return slope, total / len(signs)


def _units(x: Tensor) -> Tensor:
    """(d, *like x): sqrt(d) times each unit vector, for which the mean of v'Jv is the trace itself."""
    dim = x[0].numel()
    unit = math.sqrt(dim) * torch.eye(dim, dtype=x.dtype, device=x.device)
    return unit.reshape(dim, 1, *x.shape[1:]).expand(dim, *x.shape)
