"""Mean-reverting restoration: MR samplers at 5 to 20 evaluations beside Euler-Maruyama at 100 and 1,000.

    python benchmarks/processes/restoration.py [--mnist FILE [--steps N]] [--only NAME ...]

Claim (Li et al. 2025, 2502.07856): semi-analytic solvers of the mean-reverting reverse SDE and its flow restore in 5 to
20 evaluations what the Euler-Maruyama method, the published sampler of that process, needs 10 to 20 times as many for.

Baseline: Euler-Maruyama in equal steps of t, "plain" as published, whose last step adds noise as every other. Beside it
the library's, whose last step is to the predicted x0 (where sigma = 0), and that on the grid of the others, equal steps
of log-SNR: they tell how much of a gain is the last step's and the grid's. All begin in the process's own end law.

Worlds, all of damaged digits (blur and noise, or a square erased and noise):
  gaussian  one Gaussian fitted to 8 x 8 digits; given a damaged one the law of the true one is known, and so is the law
            of what a sampler returns, by propagation through its table: error = the Wasserstein distance of the two,
            root mean square of a pixel of contrast 1. No sampling. `gain` is the number of Euler-Maruyama's steps that
            have the error of a sampler's budget, over that budget, `gain_plain` the same of the plain one. `exact flow`
            is the error of the flow itself from the end law, where deterministic samplers end; error_inside and
            gain_inside (over plain) begin in the law of x_1 instead, which no user has.
  mixture   ten Gaussians, one a class, damaged digits that they were not fitted to: 96 samples of each of 6. error =
            sliced Wasserstein distance to as many exact samples (`exact samples`: of two such sets), mean_error = that
            of the mean of the samples to the exact mean, psnr of the samples to the truth in dB.
  network   a small network trained on pairs of 8 x 8 digits: no truth but the digit itself and the network's own limit:
            psnr of a sample and of the mean of 4, and distance = root mean square of a pixel to the end of the same
            start: by UniPC in 200 steps, or where there is noise by MR SDE 2 in 400 on the same Brownian path.
  mnist     the same on 28 x 28 digits from FILE, an npz with train_images and test_images.

Writes benchmarks/results/restoration.json and restoration.png. `run` gives the gaussian world alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import ornstein as orn
from ornstein.processes import Level
from ornstein.solvers import BrownianPath, EulerMaruyama, Grid, LogSNR, SDEDPMSolverPP, Solver, Uniform, UniPC, Writer

RESULTS = Path(__file__).parents[1] / "results"
F64 = torch.float64
PROCESS = orn.MeanReverting()
BUDGETS = (5, 10, 20)
SLOW = (5, 10, 20, 50, 100, 200, 500, 1000)
EULER, PLAIN = "Euler-Maruyama", "Euler-Maruyama, plain"


class Plain(EulerMaruyama):
    """Euler-Maruyama to t = 0 by the same step throughout."""

    def write(self, table: Writer, grid: Level) -> None:
        x = table.state
        for t, s in pairwise(grid):
            p, h, g2 = table.evaluate(x, t), t.t - s.t, PROCESS.diffusion2(t.t)
            x = table.step(x - h * p.velocity + (h * g2 / 2) * p.score + torch.sqrt(h * g2) * table.noise(t, s), s)


SAMPLERS: dict[str, tuple[Solver, Grid]] = {
    "MR ODE 1": (orn.DPMSolverPP(order=1), LogSNR()),
    "MR ODE 2": (orn.DPMSolverPP(order=2), LogSNR()),
    "MR ODE 3": (orn.DPMSolverPP(order=3, start="published"), LogSNR()),
    "UniPC 2": (UniPC(order=2), LogSNR()),
    "UniPC 2 to 8": (UniPC(order=2), LogSNR(end=8.0)),  # a last level that suits these noisy digits at few steps
    "MR SDE 1": (SDEDPMSolverPP(order=1), LogSNR()),
    "MR SDE 2": (SDEDPMSolverPP(order=2), LogSNR()),
}
SLOW_ONES: dict[str, tuple[Solver, Grid]] = {
    PLAIN: (Plain(), Uniform()),
    EULER: (EulerMaruyama(), Uniform()),
    "Euler-Maruyama, log-SNR": (EulerMaruyama(), LogSNR()),
    "Euler, ODE": (EulerMaruyama(diffusion=0.0), Uniform()),
}
RUNS = [
    *((name, budget) for name in SAMPLERS for budget in BUDGETS),
    *((name, budget) for name in SLOW_ONES for budget in SLOW),
]
SAMPLED = [run for run in RUNS if run[1] <= 100 or run in ((PLAIN, 1000), (EULER, 1000))]


def method(name: str) -> tuple[Solver, Grid]:
    return {**SAMPLERS, **SLOW_ONES}[name]


def psnr(x: Tensor, truth: Tensor) -> float:
    return float(-10 * (x - truth).square().mean().log10())


@cache
def digits() -> tuple[Tensor, Tensor, Tensor]:
    """1,500 digits to fit with their labels, and 297 others, (n, 64) in [0, 1]."""
    data = load_digits()
    order = torch.randperm(len(data.data), generator=torch.Generator().manual_seed(0))
    x, label = torch.from_numpy(data.data)[order].to(F64) / 16, torch.from_numpy(data.target)[order]
    return x[:1500], label[:1500], x[1500:]


def operators() -> dict[str, tuple[Tensor, float]]:
    """The damages as y = A x + noise std z: a blur of (1, 2, 1)/4 each way, and the middle 4 x 4 pixels erased."""
    line = torch.eye(8, dtype=F64) / 2
    line = line + (torch.diag(torch.ones(7, dtype=F64), 1) + torch.diag(torch.ones(7, dtype=F64), -1)) / 4
    keep = torch.ones(8, 8, dtype=F64)
    keep[2:6, 2:6] = 0
    return {"blur": (torch.kron(line, line), 0.1), "mask": (torch.diag(keep.flatten()), 0.1)}


def damaged(a: Tensor, std: float, truth: Tensor, seed: int) -> Tensor:
    z = torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return truth @ a.T + std * z


def spread(x: Tensor) -> Tensor:
    return torch.cov(x.T) + 0.05**2 * torch.eye(64, dtype=F64)


def gaussian() -> list[dict[str, Any]]:
    """Exact laws of samples, mean square over eight damaged digits and both damages."""
    train, _, held = digits()
    prior, cases = orn.exact.Gaussian(train.mean(0), cov=spread(train)), []
    for a, std in operators().values():
        laws = [prior.posterior(y, a, std).moments() for y in damaged(a, std, held[:8], 1)]
        variance, basis = torch.linalg.eigh(laws[0][1])  # the same for every y
        cases.append((variance, torch.stack([mean for mean, _ in laws]) @ basis))

    def errors(name: str, steps: int) -> tuple[float, float]:
        solver, grid = method(name)
        table, total = solver.compile(PROCESS, grid(PROCESS, steps=steps)), [0.0, 0.0]
        for variance, means in cases:
            for part in torch.arange(64).split(16):  # a response holds all of a long table
                v, start = variance[part], table.start
                found = orn.response(table, torch.ones(len(part), dtype=F64), v)
                # centred states: the end law knows nothing of the data, and what comes out is linear in their mean
                for i, (mean, spread) in enumerate(((0.0, 0.0), (start.alpha, start.alpha**2 * v))):
                    off = (found.mean(mean) - 1) * means[:, part]
                    width = found.variance(spread + start.sigma**2).sqrt() - v.sqrt()
                    total[i] += float((off.square().mean(0) + width.square()).sum()) / 64 / len(cases)
        return math.sqrt(total[0]), math.sqrt(total[1])

    rows = []
    for name, n in RUNS:
        error, inside = errors(name, n)
        rows.append({"world": "gaussian", "sampler": name, "nfe": n, "error": error, "error_inside": inside})
    for name, error, gain in (
        (EULER, "error", "gain"),
        (PLAIN, "error", "gain_plain"),
        (PLAIN, "error_inside", "gain_inside"),
    ):
        slow = {row["nfe"]: row[error] for row in rows if row["sampler"] == name}
        for row in rows:
            row[gain] = steps_of(row[error], slow) / row["nfe"]
    end, total = PROCESS.level(1.0), 0.0
    for variance, means in cases:
        gain = (variance / (end.alpha**2 * variance + end.sigma**2)).sqrt()
        width = (end.sigma * gain - variance.sqrt()).square()
        total += float(((end.alpha * gain * means).square().mean(0) + width).mean()) / len(cases)
    return [*rows, {"world": "gaussian", "sampler": "exact flow", "nfe": 0, "error": math.sqrt(total)}]


def steps_of(error: float, slow: dict[int, float]) -> float:
    """The number of steps at which a method's error falls to `error`: log-linear between those measured and beyond."""
    steps, errors = np.log(list(slow)), np.log(list(slow.values()))
    at = int(np.clip(np.searchsorted(-errors, -math.log(error)), 1, len(steps) - 1))
    slope = (steps[at] - steps[at - 1]) / (errors[at] - errors[at - 1])
    return float(np.exp(steps[at - 1] + slope * (math.log(error) - errors[at - 1])))


def mixture(images: int = 6, count: int = 96) -> list[dict[str, Any]]:
    """Samples of the exact posterior of a mixture: means over digits, half of them blurred, half with a part erased."""
    train, label, held = digits()
    parts = [train[label == k] for k in range(10)]
    prior = orn.exact.GaussianMixture(
        torch.stack([part.mean(0) for part in parts]),
        covs=torch.stack([spread(part) for part in parts]),
        weights=torch.tensor([float(len(part)) for part in parts]),
    )
    damages, total = list(operators().values()), dict[tuple[str, int], list[tuple[float, ...]]]()
    for i in range(images):
        (a, std), truth = damages[i % 2], held[i]
        y = damaged(a, std, truth[None], i)[0]
        posterior = prior.posterior(y, a, std)
        exact, again = (posterior.sample(count, seed=seed).to(F64) for seed in (1, 2))
        mean = posterior.moments()[0]

        def judge(x: Tensor, exact: Tensor = exact, mean: Tensor = mean, truth: Tensor = truth) -> tuple[float, ...]:
            law = orn.metrics.sliced_wasserstein(x, exact, 64, 0)
            return law, float((x.mean(0) - mean).square().mean().sqrt()), psnr(x, truth), psnr(x.mean(0), truth)

        cond, model = {"mean": y.expand(count, 64)}, posterior.denoiser(PROCESS)
        total.setdefault(("exact samples", 0), []).append(judge(again))
        for name, nfe in SAMPLED:
            solver, grid = method(name)
            x = orn.sample(model, (count, 64), cond=cond, solver=solver, grid=grid, steps=nfe, seed=i, dtype=F64).x
            total.setdefault((name, nfe), []).append(judge(x))
    keys = ("error", "mean_error", "psnr", "psnr_of_mean")
    return [
        {"world": "mixture", "sampler": name, "nfe": nfe, **dict(zip(keys, np.mean(found, 0).tolist(), strict=True))}
        for (name, nfe), found in total.items()
    ]


def run() -> dict[str, float | list[Any]]:
    """Gains over Euler-Maruyama on the exact Gaussian world, by sampler and budget, and its own error."""
    rows = gaussian()
    figures: dict[str, float | list[Any]] = {}
    for row in rows:
        key = row["sampler"].replace(" ", "_").replace(",", "").lower()
        figures[f"error_{key}_{row['nfe']}"] = row["error"]
        if row["sampler"] in SAMPLERS:
            figures |= {f"{gain}_{key}_{row['nfe']}": row[gain] for gain in ("gain", "gain_plain", "gain_inside")}
    return figures


class Beside(nn.Module):
    """A U-Net of two channels, the state and the damaged image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = orn.nets.UNet(2, width=width, levels=(1, 2, 2), blocks=1, attention=())

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        both = torch.stack([x, cond["mean"]], 1)
        answer: Tensor = self.net(both, t)[:, 0]
        return answer


def train(x: Tensor, size: int, width: int, steps: int) -> orn.Denoiser:
    """A network that is shown digits and damaged digits, damaged anew in each of eight copies."""
    scaling = orn.Scaling.of(x)
    spoilt = torch.cat([spoil(x, k, size) for k in range(8)])
    torch.manual_seed(0)
    event = tuple(x.shape[1:])
    small = x[0].numel() <= 64
    net = orn.nets.MLP(event, width=width, depth=3, conditions={"mean": event}) if small else Beside(width)
    model = orn.Denoiser(net, PROCESS, precondition=orn.EDMPrecondition(1.0), scaling=scaling)
    orn.fit(
        model,
        x.repeat(8, *(1,) * (x.dim() - 1)),
        cond={"mean": scaling.encode(spoilt)},
        objective=orn.training.Objective(orn.training.LogNormalSigma(-0.5, 1.2)),
        steps=steps,
        batch_size=128 if small else 64,
        lr=1e-3,
        seed=0,
        progress=False,
    )
    return model


def spoil(x: Tensor, seed: int, size: int, noise: float = 0.1) -> Tensor:
    """x (n, side, side) with a square of `size` erased at a place of its own in each, and noise."""
    rng, (n, side, _) = torch.Generator().manual_seed(seed), x.shape
    top, left = (torch.randint(0, side - size + 1, (n, 1, 1), generator=rng) for _ in range(2))
    row, column = torch.arange(side)[:, None], torch.arange(side)
    inside = (row >= top) & (row < top + size) & (column >= left) & (column < left + size)
    return torch.where(inside, 0.0, x) + noise * torch.randn(x.shape, generator=rng)


def network(world: str, x: Tensor, held: Tensor, size: int, width: int, steps: int, copies: int = 4) -> Any:
    """Rows, and what the picture shows: {title: images}."""
    began = time.process_time()
    model = train(x, size, width, steps)
    seconds = time.process_time() - began
    spoilt, scaling = spoil(held, 99, size), model.scaling
    assert scaling is not None
    given = {"mean": scaling.encode(spoilt).repeat(copies, 1, 1)}
    shape, rows, shown = (copies * len(held), *held.shape[1:]), [], {"truth": held, "damaged": spoilt}

    def restored(solver: Solver, grid: Grid, nfe: int) -> Tensor:
        path = BrownianPath(0, batch=shape[0])
        return orn.sample(model, shape, cond=given, solver=solver, grid=grid, steps=nfe, seed=path).x

    limits = {False: restored(UniPC(), LogSNR(), 200), True: restored(SDEDPMSolverPP(), LogSNR(), 400)}
    for name, nfe in SAMPLED:
        restoration = restored(*method(name), nfe)
        random = "ODE" not in name and "UniPC" not in name
        each = restoration.reshape(copies, *held.shape).clamp(0, 1)
        row = {
            "world": world,
            "sampler": name,
            "nfe": nfe,
            "psnr": psnr(each, held),
            "psnr_of_mean": psnr(each.mean(0), held),
        }
        row |= {"distance": float((restoration - limits[random]).square().mean().sqrt())}
        rows.append(row | {"psnr_of_input": psnr(spoilt.clamp(0, 1), held), "training_seconds": seconds})
        if (name, nfe) in PICTURED:
            shown[f"{name}\n{nfe}"] = each[0]
    return rows, shown


PICTURED = (
    (PLAIN, 10),
    (PLAIN, 100),
    (EULER, 10),
    (EULER, 100),
    ("MR SDE 2", 10),
    ("MR ODE 2", 10),
    ("UniPC 2 to 8", 5),
)


def small() -> Any:
    fit, _, held = digits()
    return network("network", fit.reshape(-1, 8, 8).float(), held[:48].reshape(-1, 8, 8).float(), 4, 256, 2500)


def mnist(path: str, steps: int) -> Any:
    with np.load(path) as data:
        x, held = (
            torch.from_numpy(data[name][:n]).float() / 255
            for name, n in (("train_images", 20_000), ("test_images", 12))
        )
    return network("mnist", x, held, 10, 24, steps)


def kept(images: Tensor, count: int = 3) -> list[str]:
    """A few images as bytes in hexadecimal."""
    return [
        bytes((255 * image.clamp(0, 1)).round().to(torch.uint8).flatten().tolist()).hex() for image in images[:count]
    ]


def plot(rows: list[dict[str, Any]], pictures: dict[str, list[str]], path: Path) -> None:
    """The exact errors over evaluations, and restored digits below."""
    figure = plt.figure(figsize=(11, 8.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.2, 1))
    labels = {"gaussian": "Wasserstein distance to the exact law", "mixture": "sliced Wasserstein distance to it"}
    for axis, (world, label) in zip(above.subplots(1, 2), labels.items(), strict=True):
        for i, name in enumerate((*SAMPLERS, *SLOW_ONES)):
            points = [(row["nfe"], row["error"]) for row in rows if (row["world"], row["sampler"]) == (world, name)]
            style = (
                {"marker": "o", "ms": 4} if name in SAMPLERS else {"ls": "--", "color": f"{0.2 * (i - len(SAMPLERS))}"}
            )
            if points:
                axis.loglog(*zip(*points, strict=True), label=name, **style)
        for row in rows:
            if row["world"] == world and row["sampler"] in ("exact samples", "exact flow"):
                axis.axhline(row["error"], color="k", lw=0.8, ls=":", label=row["sampler"])
        axis.set(title=f"damaged digits, exact denoiser: {world}", xlabel="evaluations", ylabel=label)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    if pictures:
        grid = below.subplots(3, len(pictures))
        for column, (title, images) in zip(grid.T, pictures.items(), strict=True):
            for axis, image in zip(column, images, strict=True):
                pixels = np.frombuffer(bytes.fromhex(image), np.uint8)
                axis.imshow(pixels.reshape(math.isqrt(len(pixels)), -1), cmap="gray_r", vmin=0, vmax=255)
                axis.set_axis_off()
            column[0].set_title(title, fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", help="an npz with train_images and test_images, 28 x 28 bytes")
    parser.add_argument("--steps", type=int, default=1000, help="of training on FILE")
    parser.add_argument("--only", nargs="*", help="names of worlds, all by default")
    arguments = parser.parse_args()
    path = RESULTS / "restoration.json"
    worlds: dict[str, Callable[[], Any]] = {"gaussian": gaussian, "mixture": mixture, "network": small}
    worlds |= {"mnist": lambda: mnist(arguments.mnist, arguments.steps)} if arguments.mnist else {}
    for name, make in worlds.items():
        if arguments.only and name not in arguments.only:
            continue
        made = make()
        found = json.loads(path.read_text()) if path.exists() else {"rows": [], "pictures": {}}
        if isinstance(made, tuple):
            made, shown = made
            found["pictures"] = {title: kept(images) for title, images in shown.items()}
        rows = [row for row in found["rows"] if row["world"] != name] + made
        found["rows"] = sorted(rows, key=lambda row: ("gaussian", "mixture", "network", "mnist").index(row["world"]))
        path.write_text(json.dumps(found, indent=1) + "\n")
        plot(found["rows"], found.get("pictures", {}), RESULTS / "restoration.png")


if __name__ == "__main__":
    main()
