"""Methods of the same name beside deepinv's and azula's, around one exact denoiser, against the exact posterior.

    python benchmarks/restoration_peers.py

World: ten Gaussians on images of digits, 8 x 8 in [-1, 1], standard deviation 0.15 each, so that any posterior is
known. Twelve measurements, six of a box inpainting and six of a circular blur, with noise of 0.1; 24 samples of
each by every method, each with 100 evaluations of the same denoiser in float64 (deepinv asks in float32) and equally
many gradient passes. Where a method has a free number (the length of DPS's step, the weights of DiffPIR) each library
takes the best of its own list, chosen by the sliced Wasserstein distance on 8 samples of each of four other
measurements. Theirs step in equal times of the VP process as they come; ours choose between that and log-SNR.

Figures, means over measurements with standard errors:
  mean_error  root mean square of a pixel, mean of the samples to the exact mean; without the part that so few samples
              of the exact law would have (`exact samples`, the same figure of exact ones, is about 0)
  spread      mean square distance of a sample to the exact mean, over the exact law's: 1 is right
  distance    sliced Wasserstein distance of the samples to as many exact ones
and for each pair the difference of ours to theirs over its standard error, paired by measurement: above 2, ours is
worse, and `worse` says so. Libraries that are not installed are left out, with a line that says so. Writes
benchmarks/results/restoration-peers.json.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor

import ornstein as orn
from ornstein import inverse
from ornstein.inverse.dps import ascent
from ornstein.linops import Blur, GaussianNoise, LinearOperator, Mask, Truncated
from ornstein.report.operators import damaged

PLACE = Path(__file__).parent / "results" / "restoration-peers.json"
F64, EVENT, FLOW = torch.float64, (1, 8, 8), orn.Flow()
NFE, SAMPLES, FEW, NOISE, CASES, TRIALS = 100, 24, 8, 0.1, 6, 2
Restorer = Callable[["Task", Tensor, int], Tensor]
"""(task, y, seed) -> one sample for each y (n, *EVENT)."""


@dataclass(frozen=True)
class Task:
    """A measurement of the world; the calls of its denoiser are counted."""

    world: orn.exact.GaussianMixture
    name: str
    calls: list[float]

    @cached_property
    def kernel(self) -> Tensor:
        line = torch.exp(-(torch.arange(-2, 3, dtype=F64) ** 2) / 2)
        return torch.outer(line, line) / line.sum() ** 2

    @cached_property
    def seen(self) -> Tensor:
        seen = torch.ones(8, 8, dtype=F64)
        seen[2:6, 2:6] = 0
        return seen

    @cached_property
    def operator(self) -> LinearOperator:
        return Mask(self.seen.bool(), EVENT) if self.name == "box" else Blur(self.kernel, EVENT)

    def denoise(self, x: Tensor, sigma: Any) -> Tensor:
        """E[x0 | x = x0 + sigma z], in the dtype of x, with gradients."""
        self.calls.append(s := float(torch.as_tensor(sigma).flatten()[0]))
        t = s / (1 + s)
        mean: Tensor = self.world.posterior_mean(x.to(F64) * (1 - t), FLOW, t)
        return mean.to(x.dtype)


def world() -> orn.exact.GaussianMixture:
    data = load_digits()
    x = torch.from_numpy(data.data).reshape(-1, *EVENT) / 16
    means = torch.stack([x[data.target == k].mean(0) for k in range(10)])
    return orn.exact.GaussianMixture(2 * means - 1, 0.15)


def ours(method: inverse.Method, grid: orn.solvers.Grid, least: float = 0.0) -> Restorer:
    """`least`: singular values up to here, of the largest, count as 0."""

    def run(task: Task, y: Tensor, seed: int) -> Tensor:
        operator = Truncated(task.operator, least) if least else task.operator
        model, options = task.world.denoiser(orn.VP()), {"steps": NFE, "grid": grid, "progress": False}
        out = orn.restore(model, operator, y, method=method, noise=NOISE, seed=seed, **options)
        passes = getattr(method.denoiser(model, _one(task)), "passes", 0)
        task.calls.extend([math.nan] * (out.nfe // (1 + passes)))
        return out.samples[:, 0]

    return run


def _one(task: Task) -> inverse.Measurement:
    return inverse.Measurement(task.operator, torch.zeros(1, *EVENT, dtype=F64), GaussianNoise(NOISE))


def azula(make: Callable[[Any, Task, Tensor], Any], alone: bool = False) -> Restorer:
    """A sampler of azula on its VP schedule; `alone`: it takes norms over the batch, so that rows go one by one."""
    denoise, noise = importlib.import_module("azula.denoise"), importlib.import_module("azula.noise")

    def run(task: Task, y: Tensor, seed: int) -> Tensor:
        class Ours(denoise.Denoiser):  # type: ignore[misc, name-defined]
            schedule = noise.VPSchedule()

            def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
                alpha, sigma = self.schedule(t)
                x = (x_t / alpha).reshape(-1, *EVENT)
                return denoise.DiracPosterior(mean=task.denoise(x, sigma / alpha).reshape(x_t.shape))

        torch.manual_seed(seed)
        rows = []
        for part in y.flatten(1).split(1 if alone else len(y)):
            sampler = make(Ours(), task, part)
            rows.append(sampler(sampler.init(part.shape, dtype=F64)))
        if alone:
            del task.calls[NFE:]
        return torch.cat(rows).reshape(-1, *EVENT)

    return run


AZULA: dict[str, Any] = {"steps": NFE, "silent": True, "dtype": F64}


def flat(task: Task) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A and A^+ on flat vectors."""
    a = task.operator
    return (lambda x: a(x.reshape(-1, *EVENT)).flatten(1), lambda y: a.pinv(y.reshape(-1, *EVENT)).flatten(1))


def azula_dps(zeta: float) -> Restorer:
    guidance = importlib.import_module("azula.guidance")
    return azula(lambda model, task, y: guidance.DPSSampler(model, y, flat(task)[0], zeta=zeta, **AZULA), alone=True)


def azula_pigdm() -> Restorer:
    guidance = importlib.import_module("azula.guidance")
    return azula(lambda model, task, y: guidance.PGDMSampler(model, y, *flat(task), eta=1.0, **AZULA))


def azula_mmps() -> Restorer:
    guidance, sample = importlib.import_module("azula.guidance"), importlib.import_module("azula.sample")
    covariance = importlib.import_module("azula.linalg.covariance")

    def make(model: Any, task: Task, y: Tensor) -> Any:
        cov = covariance.IsotropicCovariance(torch.tensor(NOISE**2, dtype=F64))
        inner = guidance.MMPSDenoiser(model, y, flat(task)[0], cov, solver="cg", iterations=3)
        return sample.DDIMSampler(inner, eta=1.0, **AZULA)

    return azula(make)


def azula_diffpir(weight: float, eta: float) -> Restorer:
    guidance, sample = importlib.import_module("azula.guidance"), importlib.import_module("azula.sample")

    def make(model: Any, task: Task, y: Tensor) -> Any:
        options = {"lmbda": weight, "solver": "cg", "iterations": 8}
        return sample.DDIMSampler(
            guidance.DiffPIRDenoiser(model, y, flat(task)[0], NOISE**2, **options), eta=eta, **AZULA
        )

    return azula(make)


def deepinv(make: Callable[[Any, Any, Any], Any]) -> Restorer:
    """A method of deepinv, whose images and measurements are in [0, 1]: x = (u + 1)/2."""
    physics, models = importlib.import_module("deepinv.physics"), importlib.import_module("deepinv.models")

    def run(task: Task, y: Tensor, seed: int) -> Tensor:
        class Ours(models.Denoiser):  # type: ignore[misc, name-defined]
            def forward(self, x: Tensor, sigma: Any, *_: Any, **__: Any) -> Tensor:
                return (task.denoise(2 * x - 1, 2 * torch.as_tensor(sigma)) + 1) / 2

        noise = physics.GaussianNoise(NOISE / 2)
        if task.name == "box":
            made = physics.Inpainting(EVENT, mask=task.seen[None].float(), noise_model=noise)
        else:
            made = physics.BlurFFT(EVENT, filter=task.kernel[None, None].float(), noise_model=noise)
        ones = task.operator(torch.ones(1, *EVENT, dtype=F64))
        given = ((y + ones) / 2).float()
        x = torch.rand(2, *EVENT)
        torch.testing.assert_close(made.A(x), task.operator(x), rtol=1e-4, atol=1e-5)
        torch.manual_seed(seed)
        x = make(Ours(), made, given)
        return (2 * x - 1).to(F64)

    return run


def deepinv_sde(fidelity: str, **options: Any) -> Restorer:
    """Posterior sampling by deepinv's VP diffusion, DDPM steps; the data term named."""
    sampling = importlib.import_module("deepinv.sampling")

    def make(denoiser: Any, physics: Any, y: Tensor) -> Tensor:
        steps = sampling.DDPMSolver(timesteps=torch.linspace(1, 0, NFE + 1, dtype=F64))
        sde = sampling.VariancePreservingDiffusion(alpha=1.0, device="cpu", dtype=F64)
        term = getattr(sampling, fidelity)(denoiser=denoiser, **options)
        model = sampling.PosteriorDiffusion(
            data_fidelity=term, denoiser=denoiser, sde=sde, solver=steps, dtype=F64, device="cpu"
        )
        answer: Tensor = model(y, physics, x_init=tuple(y.shape), seed=None)
        return answer

    return deepinv(make)


def deepinv_ddrm() -> Restorer:
    sampling, numpy = importlib.import_module("deepinv.sampling"), importlib.import_module("numpy")
    return deepinv(lambda model, physics, y: sampling.DDRM(model, sigmas=numpy.linspace(1, 0, NFE))(y, physics))


def deepinv_diffpir(weight: float, zeta: float) -> Restorer:
    sampling, optim = importlib.import_module("deepinv.sampling"), importlib.import_module("deepinv.optim")

    def make(denoiser: Any, physics: Any, y: Tensor) -> Tensor:
        options = {"sigma": NOISE / 2, "max_iter": NFE, "zeta": zeta, "lambda_": weight / 2}
        answer: Tensor = sampling.DiffPIR(denoiser, optim.data_fidelity.L2(), **options)(y, physics)
        return answer

    return deepinv(make)


@dataclass(frozen=True)
class Rooted(orn.solvers.Grid):
    """t = 1 - sqrt(i/N), deepinv's times of DiffPIR."""

    def times(self, process: Any, steps: int) -> Tensor:
        return 1 - torch.sqrt(torch.linspace(0, 1, steps + 1, dtype=F64))


GRIDS = (orn.LogSNR(), orn.Uniform())
ZETAS = (0.3, 1.0, 3.0)
PIR = [(14.0, 0.1), (14.0, 1.0), (1.0, 0.1), (1.0, 1.0)]  # weight, share of fresh noise: deepinv's own first
METHODS: dict[str, list[inverse.Method]] = {
    "DPS": [inverse.DPS(zeta=zeta) for zeta in ZETAS],
    "PiGDM": [inverse.PiGDM(prior=prior) for prior in (1.0, 0.5)],
    "MMPS": [inverse.MMPS(iterations=3)],
    "DDRM": [inverse.DDRM()],
    "DiffPIR": [inverse.DiffPIR(weight=weight, zeta=zeta) for weight, zeta in PIR],
}
OURS: dict[str, list[tuple[str, Callable[[], Restorer]]]] = {
    name: [
        (f"{method!r}, {type(grid).__name__}", lambda method=method, grid=grid: ours(method, grid))
        for method in made
        for grid in GRIDS
    ]
    for name, made in METHODS.items()
}
PEERS: dict[str, dict[str, list[tuple[str, Callable[[], Restorer]]]]] = {
    "azula": {
        "DPS": [(f"zeta={z}", lambda z=z: azula_dps(z)) for z in ZETAS],
        "PiGDM": [("", azula_pigdm)],
        "MMPS": [("cg, iterations=3", azula_mmps)],
        "DiffPIR": [(f"lmbda={w}, eta={z}", lambda w=w, z=z: azula_diffpir(w, z)) for w, z in PIR],
    },
    "deepinv": {
        "DPS": [(f"weight={w}", lambda w=w: deepinv_sde("DPSDataFidelity", weight=w)) for w in (30.0, 100.0, 300.0)],
        "PiGDM": [("", lambda: deepinv_sde("PiGDMDataFidelity", cg_max_iter=20))],
        "MMPS": [("cg_max_iter=3", lambda: deepinv_sde("MomentMatchingDataFidelity"))],
        "DDRM": [("", deepinv_ddrm)],
        "DiffPIR": [(f"lambda={w / 2}, zeta={z}", lambda w=w, z=z: deepinv_diffpir(w, z)) for w, z in PIR],
    },
}


@dataclass(frozen=True)
class ScoreDPS(inverse.Method):
    """deepinv's DPS: the gradient of weight |y - A x0(x)| is added to the score, so that its step is the solver's."""

    weight: float

    def denoiser(self, model: orn.BaseDenoiser, measurement: inverse.Measurement) -> orn.BaseDenoiser:
        return inverse.Pulled(model, measurement, lambda x0, _: self.weight * ascent(measurement, x0), into=True)

    def solver(self, measurement: inverse.Measurement) -> orn.Solver:
        return orn.DDIM(eta=1.0)


EXPLAINED: dict[tuple[str, str], tuple[str, list[tuple[str, Callable[[], Restorer]]]]] = {
    ("DPS", "deepinv"): (
        "theirs adds the gradient to the score, so that its step shrinks with the noise of the level; ours is the "
        "published step of one length, as azula's",
        [
            (f"into the score, weight {w}", lambda w=w, grid=grid: ours(ScoreDPS(w), grid))
            for w in (15.0, 50.0, 150.0)
            for grid in GRIDS
        ],
    ),
    ("DDRM", "deepinv"): (
        "theirs counts singular values below the noise as not measured, which the paper does not",
        [("of Truncated(A, noise)", lambda grid=grid: ours(inverse.DDRM(), grid, NOISE)) for grid in GRIDS],
    ),
    ("DiffPIR", "deepinv"): (
        "ours, chosen by its distance, weighs the measurement more and is narrower on the box, with smaller mean error "
        "and distance; their lambda 7, of images in [0, 1] and levels of [-1, 1], is the paper's 3.5",
        [
            ("weight 3.5", lambda grid=grid: ours(inverse.DiffPIR(weight=3.5, zeta=1.0), grid))
            for grid in (*GRIDS, Rooted())
        ],
    ),
}
"""Why a pair is worse where it is, and ours made to do as theirs, which is then not."""


@dataclass(frozen=True)
class Judge:
    """Figures of samples for each of some measurements of a task."""

    task: Task
    y: Tensor
    mean: Tensor
    variance: Tensor
    exact: Tensor
    again: Tensor

    @classmethod
    def of(cls, task: Task, seed: int, count: int, samples: int) -> Judge:
        x = task.world.sample(count, seed=seed, dtype=F64)
        y = damaged(task.operator, x, NOISE, seed)
        a = task.operator.matrix()
        laws = [task.world.posterior(one.flatten(), a, NOISE) for one in y]
        moments = [law.moments() for law in laws]
        draws = [torch.stack([law.sample(samples, seed=s, dtype=F64).flatten(1) for law in laws]) for s in (1, 2)]
        mean = torch.stack([m.flatten() for m, _ in moments])
        return cls(task, y, mean, torch.stack([c.diagonal().mean() for _, c in moments]), *draws)

    def samples(self, restorer: Restorer, seed: int) -> Tensor:
        self.task.calls.clear()
        x = restorer(self.task, self.y.repeat_interleave(self.exact.shape[1], 0), seed)
        return x.reshape(self.exact.shape)

    def figures(self, x: Tensor) -> dict[str, Tensor]:
        off = (x.mean(1) - self.mean).square().mean(1) - x.var(1).mean(1) / x.shape[1]
        distances = [orn.metrics.sliced_wasserstein(a, b, 64, 0) for a, b in zip(x, self.exact, strict=True)]
        return {
            "mean_error2": off,
            "spread": (x - self.mean[:, None]).square().mean((1, 2)) / self.variance,
            "distance": torch.tensor(distances, dtype=F64),
        }


def measured(made: Sequence[tuple[str, Callable[[], Restorer]]], judges: list[Judge], trials: list[Judge]) -> Any:
    """The best setting on the trials, and its figures on the rest: (setting, evaluations, {figure: (cases,)})."""
    chosen = made[0]
    if len(made) > 1:
        scores = [
            sum(
                float(trial.figures(trial.samples(make(), 5))["distance"].nan_to_num(math.inf).mean())
                for trial in trials
            )
            for _, make in made
        ]
        chosen = made[scores.index(min(scores))]
    name, make = chosen
    found = [judge.figures(judge.samples(make(), 7)) for judge in judges]
    return name, len(judges[0].task.calls), {key: torch.cat([part[key] for part in found]) for key in found[0]}


def shown(values: dict[str, Tensor]) -> dict[str, Any]:
    """Means and standard errors; of the mean's error the root, with its error by the rule for roots."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        mean, error = float(value.mean()), float(value.std() / math.sqrt(len(value)))
        if key == "mean_error2":
            root = math.sqrt(max(mean, 0.0))
            key, mean, error = "mean_error", root, error / (2 * root) if root else math.sqrt(error)
        out[key] = {"value": round(mean, 5), "standard_error": round(error, 5)}
    return out


def compared(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Any]:
    """How much worse `a` is than `b`, in standard errors of the paired difference."""
    out: dict[str, Any] = {}
    for key in a:
        bad, other = ((v[key].sub(1).abs() if key == "spread" else v[key]) for v in (a, b))
        gap = bad - other
        out[key.removesuffix("2")] = round(float(gap.mean() / (gap.std() / math.sqrt(len(gap))).clamp_min(1e-12)), 2)
    return {**out, "worse": [key for key, value in out.items() if value > 2]}


def main() -> None:
    tasks = [Task(world(), name, []) for name in ("box", "blur")]
    plan = ((3, CASES, SAMPLES), (4, TRIALS, FEW))
    judges, trials = ([Judge.of(task, seed, n, k) for task in tasks] for seed, n, k in plan)
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "machine": {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "platform": platform.machine()},
        "evaluations": NFE, "samples": SAMPLES, "measurements": 2 * CASES, "noise": NOISE, "rows": [], "pairs": [],
    }  # fmt: skip
    exact = [judge.figures(judge.again) for judge in judges]
    found["rows"].append({"library": "exact samples", **shown({k: torch.cat([e[k] for e in exact]) for k in exact[0]})})
    held: dict[str, dict[str, Tensor]] = {}
    for library, made in {"ornstein": OURS, **PEERS}.items():
        if library != "ornstein":
            try:
                found.setdefault("versions", {})[library] = importlib.import_module(library).__version__
            except Exception as error:
                print(f"left out: all of {library}: {type(error).__name__}: {error}")
                continue
        for name, settings in made.items():
            begun = time.process_time()
            try:
                setting, calls, values = measured(settings, judges, trials)
            except Exception as error:  # another release of theirs
                if library == "ornstein":
                    raise
                print(f"left out: {library} {name}: {type(error).__name__}: {error}")
                continue
            row = {"library": library, "method": name, "setting": setting, "evaluations": calls, **shown(values)}
            print(row)
            each = {key: [round(v, 6) for v in value.tolist()] for key, value in values.items()}
            found["rows"].append({**row, "seconds": round(time.process_time() - begun, 1), "each": each})
            if library == "ornstein":
                held[name] = values
            else:
                pair = {"method": name, "peer": library, "ours_over_theirs": compared(held[name], values)}
                if pair["ours_over_theirs"]["worse"] and (name, library) in EXPLAINED:
                    why, alike = EXPLAINED[name, library]
                    chosen, _, own = measured(alike, judges, trials)
                    tried = {"setting": chosen, **shown(own), "over_theirs": compared(own, values)}
                    pair |= {"explained": why, "ours_as_theirs": tried}
                found["pairs"].append(pair)
                print(found["pairs"][-1])
            PLACE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
