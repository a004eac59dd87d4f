"""Heun's method on the probability-flow ODE."""

from __future__ import annotations

from dataclasses import dataclass

from .runge_kutta import HEUN, RungeKutta


@dataclass(frozen=True)
class Heun(RungeKutta):
    """The trapezoidal rule in the noise level s = sigma/alpha, on y = x/alpha, where dy/ds = noise(x, t).

        y' = y_t + (s_s - s_t) n_t,      y_s = y_t + (s_s - s_t) (n_t + n(y', s))/2

    Order 2, two evaluations a step, 2N - 1 for a grid that goes to data: its last step is DDIM's, which ends in x0.
    For the EDM process this is the paper's sampler without churn; for any other the same in its own frame. A step
    from alpha = 0, where s is infinite, is DDIM's. Other variables: see `RungeKutta`.

    Source: Karras et al. 2022 (2206.00364), algorithm 1.
    """

    tableau = HEUN
