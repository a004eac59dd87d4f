"""Short diffusion times: what stopping early costs and saves, by T, with and without a fitted end law.

Claim: the bound of the likelihood is entropy + KL(p_T || end law) + score gap, the first gap falling with T and the
second rising, so that there is a best T; with an end law fitted to p_T it is much earlier, at no loss and for fewer
evaluations (Franzese et al. 2022, 2206.05173). Baselines: N(0, I) at the same T, and the whole path.

The data are a mixture of six modes in the plane, the network a small MLP trained on 5,000 of them.

Figures, lists over the times `T`: `score_gap`, `prior_gap_<law>`, `bound_<law>` and `nll_<law>`, in nats a sample, the
last by the model's flow on 200 held-out points; laws are "fitted" (6 components) and "normal". `entropy` of the
held-out points, `entropy_200` of those 200. `w1_<law>`: the sliced W1 to the world of 4,000 samples in 6 steps of the
default solver; `w1_whole`, a list over `steps`, that of the whole path from N(0, I); `w1_floor`, of the world itself.
"""

from __future__ import annotations

import functools
import math

import torch

import ornstein as orn
from ornstein.density import diffusion_times, end_law, log_likelihood
from ornstein.guidance import Shorter
from ornstein.metrics import sliced_wasserstein

TIMES = (0.1, 0.2, 0.3, 0.5, 1.0)
STEPS = (4, 6, 8, 12, 20)


def run() -> dict[str, float | list[float]]:
    angles = torch.arange(6, dtype=torch.float64) * math.pi / 3
    means = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    world = orn.exact.GaussianMixture(means.float(), 0.3, torch.tensor([1.0, 2, 3, 1, 2, 3]))
    data, held = world.sample(5_000, seed=0), world.sample(2_000, seed=1)
    process = orn.VP()
    torch.manual_seed(0)
    model = orn.Denoiser(orn.nets.MLP(2, width=64, depth=2), process, predicts="v")
    orn.fit(model, data, steps=1_500, batch_size=256, lr=3e-3, seed=0, progress=False)

    times = torch.tensor(TIMES, dtype=torch.float64)
    figures: dict[str, float | list[float]] = {"T": list(TIMES), "steps": [float(n) for n in STEPS]}
    figures["entropy"] = -float(world.log_prob(held).mean())
    truth = world.sample(4_000, seed=2)

    def far(denoiser: orn.BaseDenoiser, steps: int) -> float:
        made = orn.sample(denoiser, (4_000, 2), steps=steps, seed=3).x
        return float(sliced_wasserstein(made, truth, 50, 0, p=1.0))

    laws = {"fitted": functools.partial(end_law, process, data, components=6), "normal": None}
    for name, law in laws.items():
        found = diffusion_times(model, held, times, laws=law, truth=world, seed=4)
        assert found.prior_gap is not None
        assert found.score_gap is not None
        figures["score_gap"] = found.score_gap.tolist()
        figures[f"prior_gap_{name}"], figures[f"bound_{name}"] = found.prior_gap.tolist(), found.bound.tolist()
        short = [Shorter(model, t, end) for t, end in zip(TIMES, found.laws, strict=True)]
        points = held[:200]
        figures[f"nll_{name}"] = [
            -float(log_likelihood(one, points, start=1e-3, rtol=1e-3, atol=1e-3).log_prob.mean()) for one in short
        ]
        figures[f"w1_{name}"] = [far(one, 6) for one in short]
    figures["entropy_200"] = -float(world.log_prob(held[:200]).mean())
    figures["w1_whole"] = [far(model, steps) for steps in STEPS]
    figures["w1_floor"] = float(sliced_wasserstein(world.sample(4_000, seed=5), truth, 50, 0, p=1.0))
    return figures


if __name__ == "__main__":
    print(run())
