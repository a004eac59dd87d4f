"""Noise that is a function of time: what a level tells does not depend on how densely the function is looked at.

Claim: diffusing functions with Gaussian-process noise keeps the task the same at every resolution (Biloš et al. 2022,
2211.02590). Baseline: the same schedule with white noise. The data are smooth functions (RBF, length 0.3) on [0, 1],
the denoisers exact, so the figures are; what a trained network makes of it is in the proof
`stochastic-process-diffusion-training`.

Figures, lists over `points` on [0, 1]: `error_<noise>`, the mean squared error of E[x0 | x_t] where alpha = sigma, for
data of variance 1: under white noise it falls as 1/points, under continuous noise it has a limit. `jump_<noise>`, the
mean of squared differences of x_t between neighbours there, over its variance: 0 in the limit of a continuous one.
`half_<noise>`: the sigma/alpha at which half the variance is known, which a schedule has to cover.
"""

from __future__ import annotations

import math

import torch

from ornstein.exact import Functions
from ornstein.processes import OU, RBF, Kernel

POINTS = (4, 8, 16, 32, 64, 128, 256)


def run() -> dict[str, float | list[float]]:
    data = Functions(RBF(0.3, 1e-6))
    noises: dict[str, Kernel] = {"ou": OU(0.5), "rbf": RBF(0.1, 1e-6), "white": OU(1e-9)}
    figures: dict[str, float | list[float]] = {"points": [float(n) for n in POINTS]}
    for name, kernel in noises.items():
        errors, jumps, halves = [], [], []
        for n in POINTS:
            times = torch.linspace(0, 1, n, dtype=torch.float64)[None]
            c, noise = data.covariance(times)[0], kernel(times)[0]

            def error(s: float, c: torch.Tensor = c, noise: torch.Tensor = noise, n: int = n) -> float:
                return float((c - c @ torch.linalg.solve(c + s**2 * noise, c)).trace()) / n

            errors.append(error(1.0))
            beside = (c + noise).diagonal(1)
            jumps.append(float((2 - beside).mean()))
            low, high = math.log(1e-3), math.log(1e3)
            for _ in range(40):
                middle = (low + high) / 2
                low, high = (middle, high) if error(math.exp(middle)) < 0.5 else (low, middle)
            halves.append(math.exp(low))
        figures[f"error_{name}"], figures[f"jump_{name}"], figures[f"half_{name}"] = errors, jumps, halves
    return figures


if __name__ == "__main__":
    for name, value in run().items():
        print(name, value)
