"""Other libraries' deterministic samplers around one exact denoiser, each on its own levels.

A peer is `peer(denoise, z, steps) -> (y, first, last)`: it starts from y = first z in the frame y = x/alpha = x0 +
(sigma/alpha) noise, asks `denoise(y, sigma/alpha)` for x0, and ends in y at the level `last`. Libraries that are not
installed are left out, with a line that says so.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

import numpy as np
import torch
from overhead import k_diffusion_sampling
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
Peer = Callable[[Denoise, Tensor, int], tuple[Tensor, float, float]]
F64 = torch.float64
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # the betas of latent diffusion


def diffusers(name: str, **options: object) -> Peer:
    """A scheduler, told noise; the denoiser is asked at the scheduler's own levels, so that no timestep is rounded."""
    class_ = getattr(importlib.import_module("diffusers"), name)

    def run(denoise: Denoise, z: Tensor, steps: int) -> tuple[Tensor, float, float]:
        s = class_(**options)
        s.set_timesteps(steps)
        own = getattr(s, "sigmas", None)
        own = None if own is None or len(own) < len(s.timesteps) or hasattr(s, "sigmas_interpol") else own.double()
        kept = s.alphas_cumprod.double()
        table = (0.5 * torch.log((1 - kept) / kept)).numpy()
        exploding = float(s.init_noise_sigma) != 1  # whether states are kept in the frame y
        first = x = None
        for i, t in enumerate(s.timesteps):
            sigma = math.exp(np.interp(float(t), range(len(table)), table)) if own is None else float(own[i])
            scale = 1.0 if exploding else math.sqrt(1 + sigma**2)
            if x is None:
                first, x = sigma, sigma * z / scale
            if exploding:
                s.scale_model_input(x, t)
            y = x * scale
            x = s.step((y - denoise(y, sigma)) / sigma, t, x).prev_sample
        if getattr(s, "sigmas", None) is not None:
            last = float(s.sigmas[-1])
        else:
            end = float(s.final_alpha_cumprod)
            last = math.sqrt((1 - end) / end)
        assert x is not None
        assert first is not None
        return x if exploding else x * math.sqrt(1 + last**2), first, last

    return run


def k_diffusion(name: str, grid: str, least: float, largest: float, **options: object) -> Peer:
    sampling = k_diffusion_sampling()
    sampler = getattr(sampling, "sample_" + name)

    def run(denoise: Denoise, z: Tensor, steps: int) -> tuple[Tensor, float, float]:
        def model(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
            return denoise(x, float(sigma.flatten()[0]))

        with torch.no_grad():
            if name == "dpm_fast":  # takes evaluations, and ends at the least level
                return sampler(model, largest * z, least, largest, steps, disable=True), largest, least
            sigmas = getattr(sampling, "get_sigmas_" + grid)(steps, least, largest).double()
            return sampler(model, float(sigmas[0]) * z, sigmas, disable=True, **options), float(sigmas[0]), 0.0

    return run


def azula(name: str, schedule: str, **options: object) -> Peer:
    noise, sample = importlib.import_module("azula.noise"), importlib.import_module("azula.sample")
    denoise_module = importlib.import_module("azula.denoise")

    class Exact(denoise_module.Denoiser):  # type: ignore[misc, name-defined]
        def __init__(self, denoise: Denoise) -> None:
            super().__init__()
            self.schedule, self.denoise = getattr(noise, schedule)(), denoise

        def forward(self, x: Tensor, t: Tensor, **_: object) -> object:
            alpha, sigma = self.schedule(t)
            return denoise_module.DiracPosterior(mean=self.denoise(x / alpha, float(sigma / alpha)))

    def run(denoise: Denoise, z: Tensor, steps: int) -> tuple[Tensor, float, float]:
        model = Exact(denoise)
        (alpha, sigma), (alpha_0, sigma_0) = (model.schedule(torch.tensor(t, dtype=F64)) for t in (1.0, 0.0))
        x = getattr(sample, name)(model, steps=steps, silent=True, dtype=F64, **options)(sigma * z)
        return x / alpha_0, float(sigma / alpha), float(sigma_0 / alpha_0)

    return run


def flow_matching(method: str) -> Peer:
    solver = importlib.import_module("flow_matching.solver")

    def run(denoise: Denoise, z: Tensor, steps: int) -> tuple[Tensor, float, float]:
        def velocity(x: Tensor, t: Tensor) -> Tensor:  # x = t x0 + (1 - t) noise
            part = float(t)
            x0 = denoise(x / part if part else x, (1 - part) / part if part else math.inf)
            return x0 - (x - part * x0) / (1 - part) if part < 1 else x0

        times = torch.linspace(0, 1, steps + 1, dtype=F64)
        ode = solver.ODESolver(velocity)
        return ode.sample(x_init=z, step_size=None, method=method, time_grid=times), math.inf, 0.0

    return run


def _diffusers() -> dict[str, tuple[str, dict[str, object]]]:
    noise: dict[str, object] = {"prediction_type": "epsilon"}
    trailing, karras = {"timestep_spacing": "trailing"}, {"use_karras_sigmas": True}
    plain = {"default": {}, "trailing": trailing}
    spaced = {**plain, "Karras": karras, "exponential": {"use_exponential_sigmas": True}}
    found: dict[str, tuple[str, dict[str, object]]] = {}

    def add(label: str, name: str, settings: dict[str, dict[str, object]], **options: object) -> None:
        for setting, more in settings.items():
            for betas, own in (("linear", {}), ("SD", SD)):
                full = {**noise, **own, **options, **more}
                found[f"diffusers {label}, {betas} {setting}"] = (name, full)

    add("DDIM", "DDIMScheduler", plain, clip_sample=False)
    add("PNDM", "PNDMScheduler", plain)
    add("PLMS", "PNDMScheduler", plain, skip_prk_steps=True)
    add("Euler", "EulerDiscreteScheduler", spaced)
    add("Heun", "HeunDiscreteScheduler", spaced)
    add("KDPM2", "KDPM2DiscreteScheduler", plain)
    add("LMS", "LMSDiscreteScheduler", spaced)
    for order in (2, 3):
        add(f"DPM++ {order}M", "DPMSolverMultistepScheduler", spaced, solver_order=order)
        add(f"UniPC {order}", "UniPCMultistepScheduler", spaced, solver_order=order)
        add(f"DEIS {order}", "DEISMultistepScheduler", spaced, solver_order=order)
    add(
        "DPM 2M",
        "DPMSolverMultistepScheduler",
        spaced,
        solver_order=2,
        algorithm_type="dpmsolver",
        final_sigmas_type="sigma_min",
    )
    for order in (2, 3):
        add(f"DPM++ {order}S", "DPMSolverSinglestepScheduler", {"default": {}, "Karras": karras}, solver_order=order)
    return found


def peers() -> dict[str, Peer]:
    """Every peer that this machine has."""
    made: dict[str, Peer] = {}

    def add(label: str, make: Callable[[], Peer], library: str) -> None:
        if library in missing:
            return
        try:
            made[label] = make()
        except Exception as error:  # another release, or none
            print(f"left out: {label}: {type(error).__name__}: {error}")

    missing = set()
    for library, load in {
        "diffusers": lambda: importlib.import_module("diffusers"),
        "k-diffusion": k_diffusion_sampling,
        "azula": lambda: importlib.import_module("azula.sample"),
        "flow_matching": lambda: importlib.import_module("flow_matching.solver"),
    }.items():
        try:
            load()
        except Exception as error:
            missing.add(library)
            print(f"left out: all of {library}: {type(error).__name__}: {error}")

    for label, (name, options) in _diffusers().items():
        add(label, lambda name=name, options=options: diffusers(name, **options), "diffusers")
    silent = {"noise_sampler": lambda *_: 0.0}  # not asked where eta is 0
    ends = {"Karras": ("karras", 0.002, 80.0), "SD Karras": ("karras", 0.0292, 14.615)}
    ends |= {"exponential": ("exponential", 0.002, 80.0), "SD exponential": ("exponential", 0.0292, 14.615)}
    functions: dict[str, dict[str, object]] = {name: {} for name in ("euler", "heun", "dpm_2", "lms", "dpmpp_2m")}
    functions |= {f"dpmpp_{name}": {"eta": 0.0, **silent} for name in ("2s_ancestral", "3m_sde")}
    for setting, place in ends.items():
        for name, more in functions.items():
            label = f"k-diffusion {name}{', eta 0' if more else ''}, {setting}"
            add(label, lambda name=name, place=place, more=more: k_diffusion(name, *place, **more), "k-diffusion")
    for setting in ("exponential", "SD exponential"):
        place = ends[setting]
        add(f"k-diffusion dpm_fast, {setting}", lambda place=place: k_diffusion("dpm_fast", *place), "k-diffusion")
    for schedule in ("VP", "Cosine", "Rectified", "Decay"):
        for name in ("DDIM", "Heun"):
            make = lambda name=name, schedule=schedule: azula(f"{name}Sampler", f"{schedule}Schedule")  # noqa: E731
            add(f"azula {name}, {schedule}", make, "azula")
        for name in ("REAB", "vAB", "xEAB", "zAB", "zEAB"):
            for order in (2, 3):
                add(
                    f"azula {name} {order}, {schedule}",
                    lambda n=name, s=schedule, k=order: azula(f"{n}Sampler", f"{s}Schedule", order=k),
                    "azula",
                )
    for method in ("euler", "midpoint", "heun3", "rk4"):
        add(f"flow_matching {method}", lambda method=method: flow_matching(method), "flow_matching")
    return made
