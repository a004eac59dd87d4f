"""Learned schedules: the bound and the samples of 8 steps on data of varying scale, by schedule.

Claim: a schedule learned with the model, for each condition, needs no tuning and beats fixed ones (Della Maggiora et
al. 2023, 2312.02246). Baselines: one learned schedule for all conditions (as VDM's), and the log-SNR linear in t.

Gaussian data in 4 dimensions of scale 0.05, 0.5 or 5, which the condition tells; a small MLP; between the log-SNRs of
-9 and 9. Figures: `gap_<schedule>`, the bound of 8 steps less the entropy, in nats per entry, on held-out data, with
its standard error; `gap_least`, that of a perfect network under the best schedules, in closed form; `exact_gap_<name>`
for a perfect network under one schedule for all: the best there is ("one"), linear, linear beta and cosine.
`spread_<schedule>`, lists over the scales: the standard deviation of 4,000 samples by DDPM in 8 steps over the true.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein.processes import LearnedSchedule
from ornstein.training import ScheduleBound

STDS, DIM, STEPS, LOW, HIGH = torch.tensor([0.05, 0.5, 5.0]), 4, 8, -9.0, 9.0


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 16), nn.Tanh())

    def forward(self, cond: dict[str, Tensor]) -> Tensor:
        features: Tensor = self.layers(cond["scale"])
        return features


def run() -> dict[str, float | list[float]]:
    figures: dict[str, float | list[float]] = {"scales": STDS.tolist()}
    t, stds = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64), STDS.double()
    one = LearnedSchedule(LOW, HIGH)
    optimizer = torch.optim.Adam(one.parameters(), lr=5e-2)
    for k in range(600):
        optimizer.param_groups[0]["lr"] = 5e-2 * (1 - k / 600)
        optimizer.zero_grad()
        _gap(one.at(t).log_snr[:, None], stds).backward()
        optimizer.step()
    figures["exact_gap_one"] = float(_gap(one.log_snr(t)[:, None], stds))
    figures["exact_gap_linear"] = float(_gap((HIGH + (LOW - HIGH) * t)[:, None], stds))
    for name, fixed in {"vp": orn.VP(), "cosine": orn.Cosine()}.items():
        first, last = fixed.time(torch.tensor([HIGH, LOW], dtype=torch.float64))
        figures[f"exact_gap_{name}"] = float(_gap(fixed.log_snr(first + t * (last - first))[:, None], stds))
    depth = torch.log1p(stds**2 * math.exp(HIGH)), torch.log1p(stds**2 * math.exp(LOW))
    best = torch.log(torch.expm1(depth[0] + (depth[1] - depth[0]) * t[:, None])) - 2 * stds.log()
    figures["gap_least"] = float(_gap(best, stds))

    train, held = _data(20_000, 1), _data(20_000, 2)
    entropy = 3 * float(held[1]["scale"].mean()) + (1 + math.log(2 * math.pi)) / 2
    for name in ("each", "one", "linear"):
        torch.manual_seed(0)
        by: dict[str, Any] = {"condition": Scale(), "features": 16} if name == "each" else {}
        process = LearnedSchedule(LOW, HIGH, **by)
        process.curve.requires_grad_(name != "linear")  # as it begins, linear to within a hundredth
        net = orn.nets.MLP(DIM, conditions={"scale": 1}, width=64, depth=2)
        model = orn.Denoiser(net, process, predicts="v", timestep=process.timestep)
        settings: dict[str, Any] = {"steps": 800, "batch_size": 512, "lr": 3e-3, "seed": 0, "progress": False}
        orn.fit(model, train[0], cond=train[1], objective=ScheduleBound(steps=STEPS), **settings)
        with torch.no_grad():
            losses, _ = ScheduleBound(steps=STEPS).losses(model, *held, seed=3)
        figures[f"gap_{name}"] = float(losses.mean()) - entropy
        figures[f"gap_{name}_error"] = float(losses.std()) / math.sqrt(len(losses))
        ratios = []
        for std in STDS:
            cond = {"scale": (std.log() / 3).expand(4_000, 1)}
            grid = process.grid(STEPS, cond if name == "each" else None)
            x = orn.sample(model, (4_000, DIM), cond=cond, grid=grid, solver=orn.DDPM(), seed=4).x
            ratios.append(float(x.std() / std))
        figures[f"spread_{name}"] = ratios
    return figures


def _gap(log_snr: Tensor, std: Tensor) -> Tensor:
    """The mean over the scales of the bound of these steps less the entropy, per entry, of a perfect network."""
    u = std**2 * log_snr.exp()
    steps = ((u[:-1] - u[1:]) / (1 + u[1:])).sum(0) / 2
    prior, recon = log_snr[-1].exp() * std**2 / 2, -(log_snr[0] + 2 * std.log()) / 2
    return (steps + prior + recon).mean()


def _data(n: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    std = STDS[torch.randint(0, 3, (n,), generator=g)][:, None]
    return std * torch.randn(n, DIM, generator=g), {"scale": std.log() / 3}


if __name__ == "__main__":
    print(run())
