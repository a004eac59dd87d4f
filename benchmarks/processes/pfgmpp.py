"""PFGM++: small D forgives errors made along the way.

Claim: noise of standard deviation strength * sigma, added to the state after each step of Heun's sampler, hurts less
the smaller D is (Xu et al. 2023, 2302.04265, section 5, by FID of trained networks). Baseline: EDM, which is D
without end, under the same noise. Here the denoisers are exact, of a mixture of six blobs in 8 dimensions, so that the
noise is the only error: what is measured is the sampler's own forgiveness.

Figures, a list over D = `aux_dims` and last EDM: `excess_<strength>`, the squared MMD between 400 samples and the
data, less that between two sets of data; `distance_<strength>`, the mean over samples of the squared distance to the
nearest blob's centre by its covariance, over dimension (1 for data; with no noise Heun's own error adds 0.14);
`spread`, the noise of `excess`.
"""

from __future__ import annotations

from typing import Any

import torch

import ornstein as orn
from ornstein.processes import PFGMPP
from ornstein.solvers import Moment

AUX_DIMS = (4.0, 16.0, 64.0, 256.0)
STRENGTHS = (0.0, 0.1, 0.2, 0.4)
DIM, BLOBS, N, STEPS = 8, 6, 400, 18


def run() -> dict[str, float | list[float]]:
    f64 = torch.float64
    g = torch.Generator().manual_seed(0)
    means = torch.randn(BLOBS, DIM, generator=g, dtype=f64)
    world = orn.exact.GaussianMixture(means, 0.3)
    data, other = (world.sample(N, seed=s, dtype=f64) for s in (1, 2))
    width = orn.metrics.median_distance(data, other)
    floor = orn.metrics.mmd(data, other, [width])
    figures: dict[str, float | list[float]] = {"aux_dims": list(AUX_DIMS), "spread": abs(floor)}
    processes: list[Any] = [*(PFGMPP(aux_dim=d) for d in AUX_DIMS), orn.EDM()]
    for strength in STRENGTHS:
        excess, distance = [], []
        for process in processes:
            noise = torch.Generator().manual_seed(4)

            def disturb(
                moment: Moment,
                p: orn.processes.AffineProcess = process,
                g: torch.Generator = noise,
                a: float = strength,
            ) -> torch.Tensor | None:
                if not moment.on_grid or moment.level is None:
                    return None
                z = torch.randn(moment.x.shape, generator=g, dtype=f64)
                moved: torch.Tensor = moment.x + a * p.level(moment.level.t).sigma * z
                return moved

            out = orn.sample(
                world.denoiser(process), (N, DIM), solver=orn.Heun(), grid=orn.Karras(), steps=STEPS, seed=3, dtype=f64,
                hooks=[disturb] if strength else [],
            ).x  # fmt: skip
            excess.append(orn.metrics.mmd(out, data, [width]) - floor)
            distance.append(float((torch.cdist(out, means).amin(1).square() / (0.3**2 * DIM)).mean()))
        figures[f"excess_{strength:g}"], figures[f"distance_{strength:g}"] = excess, distance
    return figures


if __name__ == "__main__":
    for name, value in run().items():
        print(name, value)
