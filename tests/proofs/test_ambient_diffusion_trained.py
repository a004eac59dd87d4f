"""What noisy data are worth: a tenth clean and the rest noisy, against the tenth alone and against all clean."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

import ornstein as orn
from ornstein.training import Ambient
from worlds import F64, at, ring


@pytest.mark.proof("ambient-diffusion-training")
def test_ambient_diffusion_training(proof: Callable[..., None]) -> None:
    """A network trained alike on five sets of 1,000 points of a known mixture, noise 0.4, the modes' own width 0.3.

    w2: of 2,000 samples to 2,000 of the truth, less the distance of two sets of the truth (in squares, then the root).
    rms: of the denoiser to the exact posterior mean, over log-SNR 4, 2, 0 and -2. The order that must come out:

        all clean < a tenth clean + the rest noisy (ambient) < the tenth alone,    and both rivals with the noisy data,
        all noisy (ambient, stopped at their level) and the same mixture taken for clean, lie above the ambient mixture.
    """
    world, process, n, noise = ring(0.3), orn.VP(), 1000, 0.4
    x = world.sample(n, seed=1).float()
    noisy = x + noise * torch.randn(n, 2, generator=torch.Generator().manual_seed(5))
    tenth, std = n // 10, torch.full((n,), noise)
    mixed, mixed_std = torch.cat([x[:tenth], noisy[tenth:]]), std.clone().index_fill_(0, torch.arange(tenth), 0.0)
    truth, again = world.sample(2000, seed=77), world.sample(2000, seed=5)
    floor = orn.metrics.wasserstein2(again, truth) ** 2
    oracle = world.denoiser(process)

    def judge(data: torch.Tensor, given: torch.Tensor | None, end: float | None = None) -> tuple[float, float]:
        torch.manual_seed(0)
        model = orn.Denoiser(orn.nets.MLP(features=2, width=64, depth=3), process, "v")
        cond, objective = (None, None) if given is None else ({"noise_std": given}, Ambient())
        options = {"steps": 3000, "batch_size": 256, "lr": 2e-3, "seed": 0, "progress": False}
        orn.fit(model, data, cond=cond, objective=objective, **options)
        out = orn.sample(model, (2000, 2), grid=orn.LogSNR(end=end), steps=30, seed=3).x
        squares = []
        for log_snr in (4.0, 2.0, 0.0, -2.0):
            level = process.level(process.time(torch.tensor(log_snr, dtype=F64)))
            state = at(process, level, world, 2000, seed=9).float()
            with torch.no_grad():
                squares.append((model(state, level).x0 - oracle(state, level).x0).square().sum(1).mean())
        w2 = orn.metrics.wasserstein2(out, truth) ** 2 - floor
        return math.sqrt(max(w2, 0.0)), float(torch.stack(squares).mean().sqrt())

    sets = {
        "all_clean": judge(x, None),
        "mixed": judge(mixed, mixed_std),
        "tenth": judge(x[:tenth], None),
        "all_noisy": judge(noisy, std, end=-2 * math.log(noise)),
        "taken_for_clean": judge(mixed, None),
    }
    w2, rms = ({key: row[i] for key, row in sets.items()} for i in (0, 1))
    proof(
        figures={**{f"w2_{key}": v for key, v in w2.items()}, **{f"rms_{key}": v for key, v in rms.items()}},
        thresholds={
            "w2_mixed": (w2["all_clean"], min(w2[key] for key in ("tenth", "all_noisy", "taken_for_clean"))),
            "rms_mixed": (rms["all_clean"], min(rms["tenth"], rms["taken_for_clean"])),
        },
        seed=0,
    )
