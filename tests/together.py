"""Trainings as each of several processes runs them: `torchrun ... tests/together.py OUT FOLDER=KIND[:STEPS] ...`."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

import ornstein as orn
from ornstein.io import save_tensors
from ornstein.training import Fit, fit

torch.set_num_threads(1)

KINDS: dict[str, dict[str, Any]] = {
    "replicate": {},
    "shard": {"sharding": "shard"},
    "accumulate": {"accumulate": 2},
    "loader": {},
    "shard and recompute": {"sharding": "shard", "recompute": True, "ema": (0.5, 0.9), "accumulate": 2},
}


def train(kind: str, checkpoint: Path | None = None, steps: int = 6, **change: Any) -> tuple[Fit, orn.Denoiser]:
    """The same training whoever runs it."""
    torch.manual_seed(3)
    x, y = torch.randn(50, 3).double(), torch.arange(50) % 4
    net = orn.nets.MLP(3, labels=4, width=16, depth=2).double()
    with torch.no_grad():
        for p in net.parameters():  # a new network answers 0, and has no gradient in most of its weights
            p.add_(0.1 * torch.randn_like(p))
    model = orn.Denoiser(net, orn.Flow(), null={"label": orn.nets.NULL}, scaling=orn.Scaling(0.5, 2.0))
    data: dict[str, Any] = {"data": x, "cond": {"label": y}}
    if kind == "loader":
        items: Any = TensorDataset(x, y)
        data = {"data": DataLoader(items, batch_size=8, drop_last=True, shuffle=True, collate_fn=_collate)}
    options: dict[str, Any] = {"steps": 6, "batch_size": 8, "lr": 1e-2, "drop": {"label": 0.3}, "ema": 0.5, "every": 2}
    options |= KINDS[kind] | change
    lent: list[Any] = []

    def lend(step: int, training: Any) -> None:
        with training.average() as averaged:
            lent.append(orn.sample(averaged, (3, 3), cond={"label": torch.arange(3)}, steps=3, seed=0).x)
        if checkpoint is not None:  # what was done here, and by whom went before
            with checkpoint.with_name(f"steps{os.environ.get('RANK', 0)}").open("a") as file:
                file.write(f"{step} ")

    stop: list[Any] = [lend]
    if steps < 6:

        def end(step: int, _: object) -> None:
            if step == steps:
                raise KeyboardInterrupt

        stop = [lend, end]
    return fit(model, **data, **options, checkpoint=checkpoint, callbacks=stop, progress=False), model


def _collate(items: list[Any]) -> Any:
    return torch.stack([x for x, _ in items]), {"label": torch.stack([y for _, y in items])}


def _keep(out: Path, kind: str, steps: int, rank: int) -> None:
    """One training in its folder, and what this process ends with beside it."""
    out.mkdir(exist_ok=True)
    try:
        result, model = train(kind, out / "run.safetensors", steps)
    except KeyboardInterrupt:
        return
    tensors = {f"raw/{k}": v for k, v in result.raw.items()} | {f"model/{k}": v for k, v in model.state_dict().items()}
    for key, average in result.averages.items():
        tensors |= {f"{key}/{k}": v for k, v in average.items()}
    tensors["loss"] = result.history["loss"]
    save_tensors(out / f"rank{rank}.safetensors", tensors, kind="model")


if __name__ == "__main__":
    for task in sys.argv[2:]:
        print(f"{task}: process {os.environ['RANK']}", file=sys.stderr, flush=True)
        folder, kind, steps = re.fullmatch(r"(.+)=([^:]+):?(\d*)", task).groups()
        _keep(Path(sys.argv[1], folder), kind, int(steps or 6), int(os.environ["RANK"]))
    torch.distributed.destroy_process_group()
