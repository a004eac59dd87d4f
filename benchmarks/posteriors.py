"""How far each method of `orn.inverse` is from the posterior, where the posterior is known.

    python benchmarks/posteriors.py [--worlds "mixture, 2-D" ...] [--methods MMPS TDS ...] [--table]

Priors: a Gaussian and a mixture in 2-D, both built on digits in 64-D, a low-rank mixture in 256-D. Five linear
operators and three noises each; the posterior is another mixture, in closed form. In 2-D also two that are not linear,
with the posterior by quadrature. A method is given a denoiser as an opaque callable, the operator and y. Each runs at
50 and 200 evaluations (gradient passes counted); those that claim the posterior also at a most accurate setting.

One measurement, many samples (5,000; in 256-D 1,000):

    mean         |mean - mean*| / sqrt(tr C*)              covariance    |C - C*|_F / |C*|_F
    C2ST         accuracy of a logistic regression that is told coordinates, their squares (in 2-D products), distances
                 from and shares of the true components; above the threshold of its null at level 5 % / 60 cells: wrong

and the same of exact samples, as the floor. The classifier's power is tried on two wrong posteriors: covariance times
1.2, and a tenth of the weight moved between the heaviest components. No classifier can call more than 1/2 + TV/2 of
either rightly (.533 of the first in 2-D, .55 of the second), which is found from the densities: a cell has power where
both are detected with half of that excess or more, else its C2ST reads "no power".

Many measurements, few samples: 90 % coverage of each entry, and simulation-based calibration: the ranks of the truth's
projections on five directions among the samples, uniform for the posterior (chi-square, the least of five p-values
times five).

Rows are written as they come, and a row that is there is not run again. Writes benchmarks/results/posteriors.json and
posteriors.png; `--table` prints the tables of docs/inverse.md from them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ornstein as orn
from ornstein import inverse, linops
from ornstein.metrics import c2st

RESULTS = Path(__file__).parent / "results" / "posteriors.json"
F64 = torch.float64
PROCESS = orn.VP()
NOISES = (0.05, 0.2, 1.0)
LEVEL = 0.05 / 60  # of a test, for 5 % over the cells of a method
MEASUREMENTS, RANKED, DIRECTIONS, BINS = 96, 19, 5, 10
SAMPLES = {2: 5_000, 64: 5_000, 256: 1_000}
MOST = {2: 1_000, 64: 600, 256: 600}  # evaluations of the most accurate setting


# -- the priors


def gaussian_2d() -> orn.exact.GaussianMixture:
    return orn.exact.Gaussian(torch.tensor([0.5, -0.3]), cov=torch.tensor([[1.0, 0.7], [0.7, 0.8]]))


def mixture_2d() -> orn.exact.GaussianMixture:
    angles = torch.arange(6, dtype=F64) * math.pi / 3
    means = 1.5 * torch.stack([angles.cos(), angles.sin()], 1)
    return orn.exact.GaussianMixture(means, torch.full((6,), 0.3, dtype=F64), torch.tensor([1.0, 2, 3, 1, 2, 3]))


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.as_tensor(data.data / 8 - 1).reshape(-1, 1, 8, 8), torch.as_tensor(data.target)


def gaussian_64d() -> orn.exact.GaussianMixture:
    x, _ = digits()
    cov = torch.cov(x.flatten(1).mT) + 0.05**2 * torch.eye(64)
    return orn.exact.Gaussian(x.mean(0), cov=cov)


def mixture_64d() -> orn.exact.GaussianMixture:
    """A component a digit: its mean, its six greatest directions, and 0.15 in all."""
    x, label = digits()
    means, factors = [], []
    for k in range(10):
        own = x[label == k].flatten(1)
        _, s, v = torch.linalg.svd(own - own.mean(0), full_matrices=False)
        means.append(own.mean(0).reshape(1, 8, 8))
        factors.append(v[:6].mT * s[:6] / math.sqrt(len(own)))
    return orn.exact.GaussianMixture(torch.stack(means), torch.full((10,), 0.15), factors=torch.stack(factors))


def low_rank_256d() -> orn.exact.GaussianMixture:
    rng = torch.Generator().manual_seed(0)
    means = 0.7 * torch.randn(8, 1, 16, 16, generator=rng, dtype=F64)
    factors = torch.randn(8, 256, 8, generator=rng, dtype=F64) * torch.logspace(0, -1, 8, dtype=F64)
    return orn.exact.GaussianMixture(means, torch.full((8,), 0.1, dtype=F64), factors=factors)


WORLDS: dict[str, Callable[[], orn.exact.GaussianMixture]] = {
    "Gaussian, 2-D": gaussian_2d,
    "mixture, 2-D": mixture_2d,
    "Gaussian, 64-D": gaussian_64d,
    "mixture, 64-D": mixture_64d,
    "low rank, 256-D": low_rank_256d,
}


def operators(event: tuple[int, ...]) -> dict[str, linops.LinearOperator]:
    """Five linear operators for events (2,) or images."""
    rng = torch.Generator().manual_seed(1)
    if event == (2,):
        return {
            "mask": linops.Mask(torch.tensor([1.0, 0.0], dtype=F64)),
            "sum": linops.Matrix(torch.tensor([[1.0, 1.0]], dtype=F64)),
            "identity": linops.Matrix(torch.eye(2, dtype=F64)),
            "ill-conditioned": linops.Matrix(torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=F64)),
            "three of two": linops.Matrix(torch.tensor([[1.0, 0.0], [0.3, -0.5], [0.2, 0.2]], dtype=F64)),
        }
    d = math.prod(event)
    seen = (torch.rand(event, generator=rng) < 0.5).to(F64)
    return {
        "mask": linops.Mask(seen),
        "blur": linops.Blur.gaussian(0.8, event),
        "downsample": linops.Downsample(2, event),
        "Hadamard": linops.Hadamard(torch.randperm(d, generator=rng)[: d // 4], event),
        "matrix": linops.Matrix(torch.randn(d // 4, d, generator=rng, dtype=F64) / math.sqrt(d), event),
    }


def matrix_of(operator: linops.LinearOperator) -> Tensor:
    """(m, d) on flattened events."""
    d = math.prod(operator.event)
    return operator(torch.eye(d, dtype=F64).reshape(d, *operator.event)).flatten(1).mT


# -- posteriors


@dataclass
class Truth:
    """A posterior of which everything is known: samples, moments, density, and what a classifier may be told."""

    sample: Callable[[int, int], Tensor]
    mean: Tensor
    cov: Tensor
    log_prob: Callable[[Tensor], Tensor]
    features: Callable[[Any], Any]
    moved: Truth | None = None  # a tenth of the weight moved


def truth_of(world: orn.exact.GaussianMixture, weights: Tensor | None = None) -> Truth:
    """A mixture's own."""
    mean, cov = world.moments()
    mean, d = mean.flatten(), world.dim
    white = torch.linalg.inv(torch.linalg.cholesky(cov + 1e-12 * torch.eye(d)))
    means = world.means.reshape(-1, d)
    weight = world.weights
    heavy = weight > 1e-4
    parts = [orn.exact.Gaussian(means[k], cov=world.covariance.dense()[k]) for k in heavy.nonzero().flatten().tolist()]

    def features(x: Any) -> Any:
        flat = torch.as_tensor(x, dtype=F64).flatten(1)
        z = (flat - mean) @ white.mT
        told = [z, z**2]
        if d == 2:
            told += [z[:, :1] * z[:, 1:], z**3, z**4]
        if len(parts) > 1:
            logs = torch.stack([part.log_prob(flat) for part in parts], 1) + weight[heavy].log()
            told += [logs.softmax(1), (logs.logsumexp(1, keepdim=True) - logs).clamp(max=50.0)]
        told.append(world.log_prob(flat.reshape(-1, *world.event))[:, None])
        return torch.cat(told, 1).numpy()

    moved = None
    if weights is None and len(means) > 1:
        first, second = weight.topk(2).indices.tolist()
        shifted = weight.clone()
        amount = min(0.1, float(weight[first]))
        shifted[first], shifted[second] = shifted[first] - amount, shifted[second] + amount
        other = orn.exact.GaussianMixture(
            world.means.reshape(-1, *world.event), weights=shifted.clamp_min(1e-300), covs=world.covariance.dense()
        )
        moved = truth_of(other, shifted)
    return Truth(
        lambda n, seed: world.sample(n, seed=seed).to(F64),
        mean,
        cov,
        lambda x: world.log_prob(x.reshape(-1, *world.event)),
        features,
        moved,
    )


def quadrature(
    log_density: Callable[[Tensor], Tensor], low: float = -4.0, high: float = 4.0, cells: int = 800
) -> Truth:
    """A law in the plane from its log-density, known up to a constant, on a fine grid."""
    width = (high - low) / cells
    axis = low + width * (torch.arange(cells, dtype=F64) + 0.5)
    points = torch.cartesian_prod(axis, axis)
    log = log_density(points)
    p = (log - log.max()).exp()
    p = p / p.sum()
    constant = float(log.max()) + math.log(float((log - log.max()).exp().sum()) * width**2)
    mean = p @ points
    centred = points - mean
    cov = (centred * p[:, None]).mT @ centred
    white = torch.linalg.inv(torch.linalg.cholesky(cov))

    def sample(n: int, seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        chosen = torch.multinomial(p, n, replacement=True, generator=rng)
        return points[chosen] + width * (torch.rand(n, 2, generator=rng, dtype=F64) - 0.5)

    def features(x: Any) -> Any:
        flat = torch.as_tensor(x, dtype=F64)
        z = (flat - mean) @ white.mT
        bumps = [torch.exp(-((z - torch.tensor(c)) ** 2).sum(1, keepdim=True)) for c in _CENTRES]
        told = [z, z**2, z[:, :1] * z[:, 1:], z**3, z**4, log_density(flat)[:, None].clamp(min=-50.0), *bumps]
        return torch.cat(told, 1).numpy()

    return Truth(sample, mean, cov, lambda x: log_density(x) - constant, features)


_CENTRES = [(a, b) for a in (-1.5, -0.5, 0.5, 1.5) for b in (-1.5, -0.5, 0.5, 1.5)]


# -- the methods


class Opaque(orn.BaseDenoiser):
    """A denoiser of which nothing but its answers is known."""

    def __init__(self, inner: orn.BaseDenoiser) -> None:
        super().__init__()
        self.process, self.predicts = PROCESS, "x0"
        object.__setattr__(self, "_bind", inner.bind)

    def bind(self, levels: Any, x: Any, cond: Any) -> Any:
        return self._bind(levels, x, None)


@dataclass(frozen=True)
class Entry:
    """A method in the table: how it is made for a prior of standard deviation `std` in d dimensions and a number of
    evaluations; what it claims."""

    make: Callable[[float, int, int], Any]
    claims: bool
    accurate: int | None = None  # None: not run
    linear: bool = True
    options: tuple[tuple[str, Any], ...] = ()  # of the most accurate setting


SECOND = (("solver", orn.DPMSolverPP(order=2)), ("grid", orn.LogSNR(end=12.0)))  # of order 2, to less noise
ENTRIES: dict[str, Entry] = {
    "MMPS": Entry(lambda std, d, nfe: inverse.MMPS(iterations=2 if d == 2 else 5), True, 400, options=SECOND),
    "PiGDM": Entry(lambda std, d, nfe: inverse.PiGDM(prior=std), True, 1_000),
    "DPS": Entry(lambda std, d, nfe: inverse.DPS(), True, 1_000, linear=False),
    "DAPS": Entry(lambda std, d, nfe: inverse.DAPS(prior=std), True, 1_000, linear=False),
    "TDS": Entry(lambda std, d, nfe: inverse.TDS(prior=std, particles=1_000), True, 1_000, linear=False),
    "AFDPS": Entry(lambda std, d, nfe: inverse.AFDPS(prior=std, particles=1_000), True, 1_000, linear=False),
    "Langevin": Entry(
        lambda std, d, nfe: inverse.Langevin(inverse.TDS(prior=std, particles=1_000), moves=nfe // 2, width=std),
        True,
        600,
        linear=False,
    ),
    "EnKG": Entry(lambda std, d, nfe: inverse.EnKG(particles=1_000), True, 400, linear=False),
    "DDRM": Entry(lambda std, d, nfe: inverse.DDRM(), False),
    "DiffPIR": Entry(lambda std, d, nfe: inverse.DiffPIR(), False),
    "DDS": Entry(lambda std, d, nfe: inverse.DDS(), False),
    "DDNM": Entry(lambda std, d, nfe: inverse.DDNM(), False),
    "MCG": Entry(lambda std, d, nfe: inverse.MCG(), False),
    "RePaint": Entry(lambda std, d, nfe: inverse.RePaint(), False),
    "CDIM": Entry(lambda std, d, nfe: inverse.CDIM(), False),
    "CoPaint": Entry(lambda std, d, nfe: inverse.CoPaint(), False),
    "REDDiff": Entry(lambda std, d, nfe: inverse.REDDiff(), False, linear=False),
}
SETTINGS = {"50": 50, "200": 200, "accurate": None}
NONLINEAR = "not linear, 2-D"


# -- judging


def classifier(features: Callable[[Any], Any]) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    return make_pipeline(FunctionTransformer(features), StandardScaler(), LogisticRegression(max_iter=200))


def tell(truth: Truth, exact: Tensor, found: Tensor) -> Any:
    return c2st(exact.flatten(1), found.flatten(1), 0, classifier(truth.features), level=LEVEL)


def best(truth: Truth, log_prob: Callable[[Tensor], Tensor], n: int = 20_000) -> float:
    """The accuracy of the best classifier between a posterior and another density: 1/2 + TV/2, Monte Carlo."""
    x = truth.sample(n, 77)
    ratio = (log_prob(x) - truth.log_prob(x)).exp()
    return 0.5 + 0.5 * float((1 - ratio).clamp_min(0).mean())


def power(truth: Truth, count: int) -> dict[str, Any]:
    """What the classifier says of the two wrong posteriors, and what any could."""
    exact, other = truth.sample(count, 11), truth.sample(count, 12)
    stretch, d = math.sqrt(1.2), len(truth.mean)
    mean = truth.mean.reshape(other.shape[1:])

    def wide(x: Tensor) -> Tensor:
        return truth.log_prob((x - mean) / stretch + mean) - d * math.log(stretch)

    wrong = tell(truth, exact, mean + stretch * (other - mean))
    row = {"wide": wrong.accuracy, "wide_best": best(truth, wide), "threshold": wrong.threshold}
    seen = wrong.detected and wrong.accuracy - 0.5 >= 0.5 * (row["wide_best"] - 0.5)
    if truth.moved is not None:
        wrong = tell(truth, exact, truth.moved.sample(count, 13))
        row |= {"moved": wrong.accuracy, "moved_best": best(truth, truth.moved.log_prob)}
        seen = seen and wrong.detected and wrong.accuracy - 0.5 >= 0.5 * (row["moved_best"] - 0.5)
    return {**row, "power": bool(seen)}


def judge(truth: Truth, exact: Tensor, found: Tensor) -> dict[str, Any]:
    flat = found.flatten(1)
    if not bool(flat.isfinite().all()):
        return {"finite": False}
    own = torch.cov(flat.mT)
    verdict = tell(truth, exact, found)
    return {
        "mean": float((flat.mean(0) - truth.mean).norm() / truth.cov.trace().sqrt()),
        "covariance": float((own - truth.cov).norm() / truth.cov.norm()),
        "c2st": verdict.accuracy,
        "detected": bool(verdict.detected),
    }


def calibration(samples: Tensor, truth: Tensor) -> dict[str, float]:
    """Coverage and the p-value of uniform ranks: samples (n, K, *event) of the posteriors of truth (n, *event)."""
    n, k = samples.shape[:2]
    flat, true = samples.reshape(n, k, -1), truth.reshape(n, -1)
    low, high = torch.quantile(flat, torch.tensor([0.05, 0.95], dtype=flat.dtype), dim=1)
    inside = ((true >= low) & (true <= high)).to(F64).mean(1)
    rng = torch.Generator().manual_seed(3)
    directions = torch.randn(flat.shape[2], DIRECTIONS, generator=rng, dtype=F64)
    ranks = (flat @ directions < (true @ directions)[:, None]).sum(1)  # (n, directions), 0 .. K
    expected, p = n / BINS, 1.0
    for column in ranks.unbind(1):
        counts = torch.bincount(column * BINS // (k + 1), minlength=BINS).to(F64)
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        p = min(p, float(torch.special.gammaincc(torch.tensor((BINS - 1) / 2), torch.tensor(chi2 / 2))))
    return {
        "coverage": float(inside.mean()),
        "coverage_error": float(inside.std() / math.sqrt(n)),
        "calibration_p": min(1.0, p * DIRECTIONS),
    }


# -- cells


@dataclass
class Cell:
    """One prior, operator and noise."""

    world: str
    operator: str
    std: float
    prior: orn.exact.GaussianMixture
    forward: linops.Operator
    y: Tensor
    truth: Truth

    @property
    def key(self) -> list[Any]:
        return [self.world, self.operator, self.std]


def nonlinear(event: tuple[int, ...]) -> dict[str, linops.Operator]:
    a = torch.tensor([[1.0, 0.4], [-0.3, 0.9]], dtype=F64)
    return {
        "|A x|": linops.Function(lambda x: (x @ a.mT).abs(), event, (2,)),
        "clipping": linops.Clipping(event, scale=1.0, low=-0.7, high=0.7),
    }


def cells(name: str) -> Iterator[Cell]:
    prior = WORLDS[name]()
    event = tuple(prior.event)
    known = operators(event)
    for label, operator in known.items():
        a = matrix_of(operator)
        rows = a.abs().sum(1) > 0
        for std in NOISES:
            x = prior.sample(1, seed=21).to(F64)
            rng = torch.Generator().manual_seed(22)
            clean = operator(x)
            y = clean + std * torch.randn(clean.shape, generator=rng, dtype=F64)
            posterior = prior.posterior(y.flatten()[rows], a[rows], noise_std=std)
            yield Cell(name, label, std, prior, operator, y, truth_of(posterior))
    if event == (2,):
        for label, other in nonlinear(event).items():
            for std in NOISES:
                x = prior.sample(1, seed=21).to(F64)
                rng = torch.Generator().manual_seed(22)
                y = other(x) + std * torch.randn(1, 2, generator=rng, dtype=F64)
                noise = linops.GaussianNoise(std)

                def log_density(u: Tensor, y: Tensor = y, other: Any = other, noise: Any = noise) -> Tensor:
                    return prior.log_prob(u) + noise.log_prob(y.expand(len(u), -1), other(u))

                yield Cell(name, label, std, prior, other, y, quadrature(log_density))


@cache
def scale(name: str) -> float:
    """The standard deviation of a prior's entries, root mean square, as methods are told it."""
    return float((WORLDS[name]().moments()[1].diagonal().mean()).sqrt())


def run(cell: Cell, name: str, setting: str) -> dict[str, Any]:
    entry, d = ENTRIES[name], cell.prior.dim
    nfe = SETTINGS[setting] or min(entry.accurate or 0, MOST[d])
    method = entry.make(scale(cell.world), d, nfe)
    model = Opaque(cell.prior.denoiser(PROCESS))
    count = SAMPLES[d]
    options: dict[str, Any] = {"noise": cell.std, "nfe": nfe, "progress": False}
    options["dtype"] = F64 if d == 2 else torch.float32
    options |= dict(entry.options) if setting == "accurate" else {}
    begun = time.perf_counter()
    restore = partial(orn.restore, model, method=method, **options)
    found = restore(cell.forward, cell.y, samples=count, seed=5)
    row: dict[str, Any] = {"evaluations": found.nfe, "seconds": round(time.perf_counter() - begun, 2)}
    row |= judge(cell.truth, cell.truth.sample(count, 11), found.samples[0])
    ess = getattr(found, "ess", None)
    if ess is not None:
        row["ess"] = float(ess.mean())
    if setting == "200":
        x = cell.prior.sample(MEASUREMENTS, seed=31).to(F64)
        rng = torch.Generator().manual_seed(32)
        clean = cell.forward(x)
        y = clean + cell.std * torch.randn(clean.shape, generator=rng, dtype=F64)
        if method.particles > 1:
            restore = partial(orn.restore, model, method=_smaller(method), **options)
        row |= calibration(restore(cell.forward, y, samples=RANKED, seed=6).samples, x)
    return row


def _smaller(method: Any) -> Any:
    """Populations of 64, of which the calibration takes 19 each."""
    if isinstance(method, inverse.Langevin):
        return replace(method, begin=_smaller(method.begin))
    return replace(method, particles=64)


# -- results


def load() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"power": [], "rows": []}


def save(kind: str, row: dict[str, Any]) -> None:
    results = load()
    results[kind].append(row)
    text = json.dumps(results, indent=1)
    part = RESULTS.with_suffix(".part")
    part.write_text(text + "\n")
    part.replace(RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--methods", nargs="+", default=["exact", *ENTRIES], choices=["exact", *ENTRIES])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--operators", nargs="+", help="of all by default")
    parser.add_argument("--table", action="store_true")
    chosen = parser.parse_args()
    if chosen.table:
        print(tables(load()))
        picture(load())
        return
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for world in chosen.worlds:
        for cell in cells(world):
            if chosen.operators and cell.operator not in chosen.operators:
                continue
            base = {"world": world, "operator": cell.operator, "std": cell.std}
            results = load()
            if not any(all(r[k] == v for k, v in base.items()) for r in results["power"]):
                save("power", {**base, **power(cell.truth, SAMPLES[cell.prior.dim])})
            done = {(r["method"], r["setting"]) for r in results["rows"] if all(r[k] == v for k, v in base.items())}
            for name in chosen.methods:
                linear = isinstance(cell.forward, linops.LinearOperator)
                for setting in chosen.settings if name != "exact" else ["accurate"]:
                    entry = ENTRIES.get(name)
                    if (name, setting) in done or (entry and entry.linear and not linear):
                        continue
                    if entry and setting == "accurate" and entry.accurate is None:
                        continue
                    try:
                        if name == "exact":
                            count = SAMPLES[cell.prior.dim]
                            row = judge(cell.truth, cell.truth.sample(count, 11), cell.truth.sample(count, 12))
                        else:
                            row = run(cell, name, setting)
                    except ValueError as refused:
                        row = {"refused": str(refused)[:200]}
                    save("rows", {**base, "method": name, "setting": setting, **row})
                    shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
                    print(world, cell.operator, cell.std, name, setting, shown, flush=True)
    picture(load())


def tables(results: dict[str, Any]) -> str:
    """A table to choose from, a column a world; then for each world, and for what is not linear, all figures."""
    powers = {(r["world"], r["operator"], r["std"]): r["power"] for r in results["power"]}
    worlds = [w for w in WORLDS if any(r["world"] == w and "c2st" in r for r in results["rows"])]
    lines = [
        "| method | evaluations | of them gradients | " + " | ".join(worlds) + " |",
        "|---" * (3 + len(worlds)) + "|",
    ]
    for name, setting in _settings():
        cells, spent = [], []
        for world in worlds:
            own = _rows(results, world, name, setting)
            spent += [r["evaluations"] for r in own if "evaluations" in r]
            judged = [r for r in own if powers[r["world"], r["operator"], r["std"]]]
            passed = sum(not r["detected"] for r in judged)
            cells.append(f"{_median([r['c2st'] for r in own]):.3f}, {passed} of {len(judged)}" if own else "")
        if any(cells) and (name == "exact" or (spent and ENTRIES[name].claims)):
            counts = f"{_range(spent)} | {gradients(name):.0%}" if spent else " | "
            lines.append(f"| {name} | {counts} | {' | '.join(cells)} |")
    for title, where in {**{w: [w] for w in worlds}, NONLINEAR: [w for w in worlds if w.endswith("2-D")]}.items():
        lines += [
            f"\n## {title}\n",
            "| method | evaluations | mean | covariance | C2ST | passes | coverage of 90 % | calibrated | ESS |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name, setting in _settings():
            own = [r for world in where for r in _rows(results, world, name, setting, linear=title != NONLINEAR)]
            if not own:
                continue
            judged = [r for r in own if powers[r["world"], r["operator"], r["std"]]]
            passed = sum(not r["detected"] for r in judged)
            cover = [r["coverage"] for r in own if "coverage" in r]
            calm = sum(r["calibration_p"] > LEVEL for r in own if "calibration_p" in r)
            ess = [r["ess"] for r in own if "ess" in r]
            figures = [f"{_median([r[key] for r in own]):.3f}" for key in ("mean", "covariance", "c2st")]
            told = f"{_median(cover):.2f} | {calm} of {len(cover)}" if cover else " | "
            weight = f"{min(ess):.0f} to {max(ess):.0f}" if ess else ""
            spent = _range([r.get("evaluations", 0) for r in own])
            lines.append(
                f"| {name} | {spent} | {' | '.join(figures)} | {passed} of {len(judged)} | {told} | {weight} |"
            )
    return "\n".join(lines)


def gradients(name: str) -> float:
    """The share of a method's evaluations that are gradient passes through the network."""
    prior, event = gaussian_2d(), (2,)
    method = ENTRIES[name].make(1.0, 2, 100)
    if isinstance(method, inverse.Langevin):  # half of its evaluations are moves, without gradients
        return 0.5 * _passes(method.begin, prior, event)
    return _passes(method, prior, event)


def _passes(method: Any, prior: orn.exact.GaussianMixture, event: tuple[int, ...]) -> float:
    identity = linops.Matrix(torch.eye(2, dtype=F64))
    measurement = inverse.Measurement(identity, torch.zeros(1, *event, dtype=F64), linops.GaussianNoise(0.1))
    passes = getattr(method.denoiser(prior.denoiser(PROCESS), measurement), "passes", 0)
    return passes / (1 + passes)


def _settings() -> Iterator[tuple[str, str]]:
    yield "exact", "accurate"
    for name in ENTRIES:
        for setting in SETTINGS:
            yield name, setting


def _rows(results: dict[str, Any], world: str, name: str, setting: str, linear: bool = True) -> list[dict[str, Any]]:
    wanted = {"world": world, "method": name, "setting": setting}
    own = [r for r in results["rows"] if wanted.items() <= r.items() and "c2st" in r]
    return [r for r in own if (r["operator"] not in ("|A x|", "clipping")) is linear]


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def _median(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=F64).median())


def picture(results: dict[str, Any]) -> None:
    """C2ST of every method over evaluations, a panel for each world."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    worlds = [w for w in WORLDS if any(r["world"] == w for r in results["rows"])]
    figure, axes = plt.subplots(1, len(worlds), figsize=(3.6 * len(worlds), 4.2), sharey=True, squeeze=False)
    colours = plt.get_cmap("tab20")
    for axis, world in zip(axes[0], worlds, strict=True):
        for i, name in enumerate(ENTRIES):
            points = []
            for setting in SETTINGS:
                own = [
                    r
                    for r in results["rows"]
                    if r["world"] == world and r["method"] == name and r["setting"] == setting and "c2st" in r
                ]
                if own:
                    points.append((_median([r["evaluations"] for r in own]), _median([r["c2st"] for r in own])))
            if points:
                style = "-o" if ENTRIES[name].claims else ":x"
                axis.plot(*zip(*points, strict=True), style, color=colours(i), label=name, markersize=4)
        axis.axhline(0.5, color="grey", linewidth=0.8)
        axis.set(title=world, xscale="log", xlabel="evaluations a sample", xlim=(40, 1_200), ylim=(0.47, 1.01))
        axis.set_xticks([50, 200, 600, 1_000], ["50", "200", "600", "1000"])
        axis.minorticks_off()
    axes[0][0].set_ylabel("C2ST accuracy, median over cells (0.5 is the posterior)")
    known = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    axes[0][-1].legend(known.values(), known, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(RESULTS.with_suffix(".png"), dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
