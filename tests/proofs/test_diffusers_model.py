"""A UNet2DModel trained by diffusers' own recipe, saved, loaded in one line, and sampled by every solver."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from sklearn.datasets import load_digits

import ornstein as orn
from phases import ALONE

STEPS, BATCH, COUNT, SEED = 1500, 64, 64, 0


def train(folder: Path, images: torch.Tensor) -> diffusers.UNet2DModel:
    """The recipe of diffusers' unconditional training example: noise prediction, AdamW, warm-up and cosine, clipped
    gradients, EMA; returns the untrained network."""
    torch.manual_seed(SEED)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(24, 48),
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    untrained = diffusers.UNet2DModel.from_config(unet.config)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, clip_sample=False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, betas=(0.95, 0.999), weight_decay=1e-6)
    rate = get_cosine_schedule_with_warmup(optimizer, 100, STEPS)
    ema = EMAModel(unet.parameters(), decay=0.999, use_ema_warmup=True)
    for _ in range(STEPS):
        x = images[torch.randint(len(images), (BATCH,))]
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (BATCH,))
        loss = torch.nn.functional.mse_loss(unet(scheduler.add_noise(x, noise, t), t).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
    ema.copy_to(unet.parameters())
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(folder)
    return untrained


def solvers() -> dict[str, orn.Solver]:
    """Every solver of the library that its defaults make, that needs no model to be made and no momentum."""
    kinds = {
        name: kind
        for name, kind in vars(orn.solvers).items()
        if inspect.isclass(kind) and issubclass(kind, orn.Solver) and not inspect.isabstract(kind) and name not in ALONE
    }
    made = {}
    for name, kind in kinds.items():
        parameters = inspect.signature(kind).parameters.values()
        if all(p.default is not inspect.Parameter.empty for p in parameters) and not hasattr(kind, "calibrate"):
            made[name] = kind()
    return made


@pytest.mark.proof("diffusers-model")
def test_diffusers_model(tmp_path: Path, proof: Callable[..., None]) -> None:
    """In 50 steps every deterministic solver ends within 0.06 (root mean square over pixels in [0, 1]) of a fine
    solution from the same noise, where the noise itself decides 0.3; stochastic ones make the same law: their Frechet
    distance to data is at most twice that of the fine solution plus the distance of two halves of the data, which
    itself is below ten such distances. The rival is the network before training."""
    data = torch.tensor(load_digits().images / 16, dtype=torch.float32)[:, None]
    untrained = train(tmp_path / "run", 2 * data - 1)
    model = orn.interop.load(tmp_path / "run")
    assert model.event == (1, 8, 8)
    x = model.process.prior((COUNT, *model.event), seed=SEED)
    fine = orn.sample(model, x_init=x, solver=orn.DPMSolverPP(order=3), steps=300).x
    other = orn.sample(model, x_init=x.flip(0), solver=orn.DPMSolverPP(order=3), steps=300).x
    spread = float((fine - other).square().mean().sqrt())
    halves = orn.metrics.frechet_distance(data[::2], data[1::2])
    large = {"shape": (256, *model.event), "seed": SEED}
    reference = orn.metrics.frechet_distance(orn.sample(model, steps=40, **large).x, data)
    rival = orn.interop.load(untrained, scheduler=diffusers.DDPMScheduler())
    rival.scaling = model.scaling
    figures = {
        "spread": spread,
        "frechet": reference,
        "frechet_halves_of_data": halves,
        "frechet_untrained": orn.metrics.frechet_distance(orn.sample(rival, steps=40, **large).x, data),
    }
    thresholds: dict[str, tuple[float | None, float | None]] = {
        "frechet": (None, 10 * halves),
        "frechet_untrained": (100 * halves, None),
        "spread": (0.2, None),
    }
    grid = orn.LogSNR(end=7.0)
    for name, solver in solvers().items():
        table = solver.compile(model.process, grid(model.process, steps=4))
        assert isinstance(table, orn.Table)
        if table.noises:
            out = orn.sample(model, solver=solver, grid=grid, nfe=60, **large).x
            figures[f"frechet_{name}"] = orn.metrics.frechet_distance(out, data)
            thresholds[f"frechet_{name}"] = (None, 2 * reference + halves)
        else:
            out = orn.sample(model, x_init=x, solver=solver, grid=grid, steps=50).x
            figures[f"distance_{name}"] = float((out - fine).square().mean().sqrt())
            thresholds[f"distance_{name}"] = (None, 0.06)
    proof(figures=figures, thresholds=thresholds, seed=SEED)
