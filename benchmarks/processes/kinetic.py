"""Kinetic-optimal paths: the energy of a path by the data it is for, and what it is worth to a sampler.

Claim: the Gaussian path of the least kinetic energy depends on the data by one function, beats published paths, and
tends to the straight (cond-OT) path as n/sqrt(d) -> 0 (Shaul et al. 2023, 2306.06626). Baselines: cond-OT (`Flow`), the
trigonometric path (`Cosine`), VP from t = 0.001, where its energy is still finite.

Figures. `energy_<path>`: per entry, for 12 points in the plane, 1,000 points in the plane, 200 of the digits (8 x 8,
centred and of unit second moment). `bend` and `turn_gap`, lists over dimensions `d` for 16 normal points: the largest
distance of the optimum's alpha from 1 - t, and pi/2 less its turn; `turn_rate`: the slope of the latter against log d.
`bend_many`: the same for n = 4 sqrt(d) points, where n/sqrt(d) does not fall. `w1_<path>`, lists over Euler steps
`steps`: the sliced W1 to a six-mode ring of samples by its exact denoiser in equal steps of t; `w1_floor` is that
of two sets of its own samples, as many.
"""

from __future__ import annotations

import math

import torch

import ornstein as orn
from ornstein.density import separation
from ornstein.metrics import sliced_wasserstein
from ornstein.processes import KineticOptimal, Separation

STEPS = (4, 8, 16)
DIMS = (64, 256, 1024, 4096)


def run() -> dict[str, float | list[float]]:
    figures: dict[str, float | list[float]] = {"d": [float(d) for d in DIMS], "steps": [float(n) for n in STEPS]}

    def normal(n: int, d: int) -> torch.Tensor:
        return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    sets = {"few": normal(12, 2), "many": normal(1_000, 2), "digits": _digits(200)}
    for name, data in sets.items():
        of = Separation.of(data, draws=1024)
        figures[f"energy_kinetic_optimal_{name}"] = of.energy(KineticOptimal(of))
        for path, process in {"cond_ot": orn.Flow(), "cosine": orn.Cosine()}.items():
            figures[f"energy_{path}_{name}"] = of.energy(process)
        figures[f"energy_vp_{name}"] = of.energy(orn.VP(), start=1e-3)

    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    fixed = [KineticOptimal.of(normal(16, d), draws=1024) for d in DIMS]
    growing = [KineticOptimal.of(normal(4 * round(math.sqrt(d)), d), draws=1024) for d in DIMS]
    for name, paths in {"bend": fixed, "bend_many": growing}.items():
        figures[name] = [float((path.alpha(t) - (1 - t)).abs().max()) for path in paths]
    gaps = [math.pi / 2 - path.turn for path in fixed]
    figures["turn_gap"], figures["turn_rate"] = gaps, math.log(gaps[-1] / gaps[0]) / math.log(DIMS[-1] / DIMS[0])

    angles = torch.arange(6, dtype=torch.float64) * math.pi / 3
    world = orn.exact.GaussianMixture(2 * torch.stack([angles.cos(), angles.sin()], 1), 0.2)
    best = KineticOptimal(separation(world.denoiser(orn.Flow()), world.sample(4_000, seed=0), seed=1))
    truth = world.sample(4_000, seed=2)
    figures["w1_floor"] = float(sliced_wasserstein(world.sample(4_000, seed=4), truth, 50, 0, p=1.0))
    for path, process in {"kinetic_optimal": best, "cond_ot": orn.Flow(), "cosine": orn.Cosine()}.items():
        distances = []
        for steps in STEPS:
            solver, grid = orn.solvers.Euler(variable="t"), orn.Uniform()
            options = {"solver": solver, "grid": grid, "steps": steps, "seed": 3, "dtype": torch.float64}
            made = orn.sample(world.denoiser(process), (4_000, 2), **options).x
            distances.append(float(sliced_wasserstein(made, truth, 50, 0, p=1.0)))
        figures[f"w1_{path}"] = distances
    return figures


def _digits(n: int) -> torch.Tensor:
    from sklearn.datasets import load_digits

    data = torch.tensor(load_digits().data[:n], dtype=torch.float64)
    data = data - data.mean(0)
    return data / data.square().mean().sqrt()


if __name__ == "__main__":
    print(run())
