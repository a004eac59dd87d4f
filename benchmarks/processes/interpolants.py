"""Stochastic interpolants and alpha-blending: what latent noise costs and gives, and deblending against DDIM.

Claim 1: the diffusion is chosen after training, and forgives a velocity that is not exact (Albergo, Boffi,
Vanden-Eijnden 2023, 2303.08797). Baseline: the flow of the same networks. `mmd_epsilon`: MMD^2 (kernel of width 0.5) to
fresh data of 2,000 samples by 60 steps of order 2, over `epsilon`, the multiples of 2 gamma for epsilon^2; networks of
one short training (`good`), and of a tenth of it (`poor`). `bound_<...>`: the bound on the divergence by the networks'
own errors, int E |error of the drift|^2/(2 epsilon^2) dt on [0.01, 0.99]; of the flow there is none.

Claim 2: latent noise makes the velocity smoother in x. Baseline: none of it, the straight interpolant. On the exact
world, over `noise_level`: `straightness`, S of the exact flow, and `nfe_1e-2`, the least evaluations of Heun's method
in t (equal steps) that bring the median distance to the exact flow below 0.01.

Claim 3: deblending is better and more stable than DDIM (Heitz, Belcour, Chambon 2023, 2305.03486). Baseline: DDIM of
the same exact denoiser under the cosine and the VP schedule, equal steps of t. `deblending`, `ddim_cosine`, `ddim_vp`:
root mean square distance to the exact flow of each over `steps`. DDIM of the linear schedule is deblending itself.
"""

from __future__ import annotations

import torch

import ornstein as orn
from ornstein.exact import GaussianMixture, TwoSidedMixture
from ornstein.processes import Interpolant, TwoSided
from ornstein.training import Shuffled

EPSILONS = (0.0, 0.25, 1.0, 4.0)
NOISE_LEVELS = (0.0, 0.25, 1.0, 2.0)
STEPS = (4, 8, 16, 32, 64)


def ring() -> GaussianMixture:
    angles = torch.arange(6, dtype=torch.float64) * torch.pi / 3
    return GaussianMixture(2 * torch.stack([angles.cos(), angles.sin()], 1), 0.3, torch.tensor([1.0, 2, 3, 1, 2, 3]))


def run() -> dict[str, float | list[float]]:
    lumps = GaussianMixture(torch.tensor([[-1.0, 0.5], [1.5, -0.5]], dtype=torch.float64), 0.5)
    world = TwoSidedMixture(ring(), lumps)
    figures: dict[str, float | list[float]] = {
        "epsilon": list(EPSILONS),
        "noise_level": list(NOISE_LEVELS),
        "steps": [float(n) for n in STEPS],
    }
    figures |= _diffusions(world)
    figures |= _latent_noise(world)
    return figures | _deblending()


def _diffusions(world: TwoSidedMixture) -> dict[str, float | list[float]]:
    process = Interpolant()
    figures: dict[str, float | list[float]] = {}
    x0, x1 = world.sample(20_000, seed=1, dtype=torch.float32)
    held0, held1 = world.sample(2_000, seed=2, dtype=torch.float32)
    level = process.level(0.01 + 0.98 * (torch.arange(2_000).double() + 0.5) / 2_000)
    x = process.corrupt(held0, level, held1, seed=3).x
    exact, gamma = world.denoiser(process)(x, level), level.sigma.float()[:, None]
    for name, steps in (("good", 2000), ("poor", 200)):
        models = []
        for view in ("velocity", "noise"):
            torch.manual_seed(0)
            model = orn.Denoiser(orn.nets.MLP(features=2, width=64, depth=3), process, view)
            options = {"steps": steps, "batch_size": 256, "lr": 2e-3, "seed": 0, "progress": False}
            orn.fit(model, x0, cond={"x1": x1}, objective=Shuffled(), **options)
            models.append(model)
        both = orn.Heads(models[0], latent=models[1])
        with torch.no_grad():
            found = both(x, level)
            drifts = [found.velocity - exact.velocity - e * gamma * (found.score - exact.score) for e in EPSILONS[1:]]
        figures[f"bound_{name}"] = [
            float((drift.square() / (4 * e * gamma)).sum(1).mean())
            for e, drift in zip(EPSILONS[1:], drifts, strict=True)
        ]
        outs = [
            orn.sample(both, x_init=held1, solver=orn.solvers.StochasticHeun(e), steps=60, seed=4).x for e in EPSILONS
        ]
        figures[f"mmd_{name}"] = [orn.metrics.mmd(out, held0, [0.5]) for out in outs]
    return figures


def _latent_noise(world: TwoSidedMixture) -> dict[str, float | list[float]]:
    straight, needed = [], []
    x1 = world.sample(400, seed=5, dtype=torch.float64)[1]
    times = torch.linspace(1, 0, 101, dtype=torch.float64)
    for noise_level in NOISE_LEVELS:
        process = Interpolant(noise_level=noise_level)
        model, heun = world.denoiser(process), orn.Heun(variable="t")
        truth = orn.sample(model, x_init=x1, solver=heun, grid=times, trajectory=True)
        straight.append(orn.metrics.straightness(truth.trajectory, times))
        steps = 2
        while True:
            out = orn.sample(model, x_init=x1, solver=heun, grid=orn.Uniform(), steps=steps)
            if float((out.x - truth.x).norm(dim=1).median()) < 0.01 or steps >= 64:
                break
            steps += 1
        needed.append(float(out.nfe))
    return {"straightness": straight, "nfe_1e-2": needed}


def _deblending() -> dict[str, float | list[float]]:
    figures: dict[str, float | list[float]] = {}
    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    methods: dict[str, tuple[TwoSided | orn.GaussianProcess, orn.Solver]] = {
        "deblending": (TwoSided(), orn.Euler()),
        "ddim_cosine": (orn.Cosine(), orn.DDIM()),
        "ddim_vp": (orn.VP(), orn.DDIM()),
    }
    normal = GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), 1.0)
    for name, (process, solver) in methods.items():
        model: orn.BaseDenoiser
        if isinstance(process, TwoSided):
            model = TwoSidedMixture(ring(), normal).denoiser(process)
        else:
            model = ring().denoiser(process)
        grid = torch.linspace(1, 0, 1025, dtype=torch.float64)
        truth = orn.sample(model, x_init=noise, solver=orn.UniPC(), grid=grid).x
        outs = [orn.sample(model, x_init=noise, solver=solver, grid=orn.Uniform(), steps=n).x for n in STEPS]
        figures[name] = [float((out - truth).square().sum(1).mean().sqrt()) for out in outs]
    return figures
