"""Adaptors: anyone's sampler as a candidate. Nothing is imported but what the sampler under test itself comes from."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..processes import EDM, VP, Cosine, Flow, GaussianProcess
from ..solvers import Grid, Karras, LogSNR, Quadratic, Solver, Uniform, sample
from .candidate import PROBE, Candidate, Claims, Outcome, even, karras, preserving
from .oracle import Oracle, State

ADAPTORS = ("auto", "callable", "k-diffusion", "azula", "diffusers", "solver")


def named(fn: Any) -> str:
    """What to call an object."""
    return str(getattr(fn, "__qualname__", None) or type(fn).__qualname__)


def merged(claims: Claims | None, **guesses: Any) -> Claims:
    """The claims given, and for those left open what the adaptor reads off the object."""
    claims = claims or Claims()
    return Claims(**{k: v if (v := getattr(claims, k)) is not None else guesses.get(k) for k in vars(claims)})


class Called(Candidate):
    """fn(denoise, x, sigmas, [generator]) -> x in the frame x = x0 + sigma noise, with denoise(x, sigma) -> x0."""

    own_levels = False

    def __init__(self, fn: Callable[..., Any], claims: Claims, options: Mapping[str, Any], levels: Any = karras):
        self.fn, self.claims, self.options, self.levels = fn, claims, dict(options), levels
        self.name = named(fn) + _written(options)
        self.takes_generator = "generator" in _parameters(fn)

    def run(self, oracle: Oracle, z: Tensor, steps: int, *, probe: bool = False, seed: int = 0) -> Outcome:
        sigmas = (even if probe else self.levels)(steps).to(z.dtype if z.dtype == torch.float64 else torch.float32)
        x = z * sigmas[0].to(z)
        return Outcome(State(_tensor(self.call(oracle, x, sigmas, seed)), 1.0, float(sigmas[-1])))

    def call(self, oracle: Oracle, x: Tensor, sigmas: Tensor, seed: int) -> Any:
        given = dict(self.options)
        if self.takes_generator:
            given["generator"] = torch.Generator().manual_seed(seed)
        return self.fn(lambda x, sigma: oracle(x, 1.0, sigma), x, sigmas, **given)

    def plain(self, steps: int) -> tuple[Tensor, Tensor]:
        sigmas = self.levels(steps)
        return torch.ones_like(sigmas), sigmas

    def settings(self) -> Iterator[tuple[str, Candidate]]:
        def uniform(steps: int) -> Tensor:
            return torch.linspace(10.0, 0.0, steps + 1, dtype=torch.float64)

        for name, levels in {"Karras levels": karras, "equal log-SNR, no zero": even, "uniform sigma": uniform}.items():
            yield name, type(self)(self.fn, self.claims, self.options, levels)


class KDiffusion(Called):
    """fn(model, x, sigmas, extra_args, disable) of k-diffusion, or fn(model, x, sigma_min, sigma_max, n)."""

    def __init__(self, fn: Callable[..., Any], claims: Claims, options: Mapping[str, Any], levels: Any = karras):
        super().__init__(fn, claims, options, levels)
        self.takes_generator = False
        self.by_ends = "sigma_min" in _parameters(fn)
        self.own_levels = self.by_ends

    def call(self, oracle: Oracle, x: Tensor, sigmas: Tensor, seed: int) -> Any:
        def model(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
            return oracle(x, 1.0, sigma)

        given = {"disable": True, **self.options}
        if not self.by_ends:
            return self.fn(model, x, sigmas, **given)
        if "n" in _parameters(self.fn):
            given["n"] = len(sigmas) - 1
        return self.fn(model, x, float(sigmas[sigmas > 0].min()), float(sigmas[0]), **given)

    def run(self, oracle: Oracle, z: Tensor, steps: int, *, probe: bool = False, seed: int = 0) -> Outcome:
        outcome = super().run(oracle, z, steps, probe=probe, seed=seed)
        if not self.by_ends:
            return outcome
        sigmas = (even if probe else self.levels)(steps)
        return Outcome(State(outcome.end.x, 1.0, float(sigmas[sigmas > 0].min())))


class Azula(Candidate):
    """A sampler class of azula, Sampler(denoiser, steps=N)(x): its levels are those of the denoiser's schedule, which
    here has equal steps of log-SNR and preserves variance."""

    own_levels = False

    def __init__(self, cls: Callable[..., Any], claims: Claims, options: Mapping[str, Any]) -> None:
        self.cls, self.claims, self.options = cls, claims, dict(options)
        self.name = named(cls) + _written(options)

    def run(self, oracle: Oracle, z: Tensor, steps: int, *, probe: bool = False, seed: int = 0) -> Outcome:
        model = _AzulaDenoiser(oracle, PROBE if probe else (-2 * math.log(80.0), -2 * math.log(0.002)))
        precise = torch.promote_types(z.dtype, torch.float32)
        sampler = self.cls(model, steps=steps, silent=True, dtype=precise, **self.options)
        (_, first), (alpha, last) = (model.schedule(torch.tensor(t, dtype=torch.float64)) for t in (1.0, 0.0))
        return Outcome(State(_tensor(sampler(z * first.to(z))), alpha, last))

    def plain(self, steps: int) -> tuple[Tensor, Tensor]:
        return _AzulaDenoiser(None, (-2 * math.log(80.0), -2 * math.log(0.002))).schedule(
            torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        )


class _AzulaDenoiser:
    """What azula's samplers ask of a denoiser: `schedule(t)` and the `mean` of a call."""

    def __init__(self, oracle: Oracle | None, ends: tuple[float, float]) -> None:
        self.oracle, self.ends = oracle, ends
        self.mean: Tensor | None = None

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_snr = self.ends[1] + (self.ends[0] - self.ends[1]) * t
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

    def __call__(self, x: Tensor, t: Tensor, **_: Any) -> Any:
        assert self.oracle is not None
        answer = type(self)(None, self.ends)
        answer.mean = self.oracle(x, *self.schedule(t.double()))
        return answer


class Diffusers(Candidate):
    """A scheduler of diffusers, driven as a pipeline drives it.

    The network is told a timestep, whose level is read off the scheduler's own alphas_cumprod (between timesteps, in
    log sigma), or for flow-matching schedulers is timestep/num_train_timesteps. To probe an order, a scheduler is
    built on betas whose every selected timestep has an exact level, so that no rounding hides the order. x0 is not
    clipped: a clip to [-1, 1] is a statement about images.
    """

    ORDERS = {"EulerDiscrete": 1, "DDIMScheduler": 1, "FlowMatchEuler": 1, "HeunDiscrete": 2, "KDPM2Discrete": 2}

    def __init__(self, cls: type, claims: Claims, options: Mapping[str, Any], vary: bool) -> None:
        self.cls, self.options, self.vary = cls, dict(options), vary
        self.accepts = _parameters(cls)
        if "clip_sample" in self.accepts:
            self.options.setdefault("clip_sample", False)
        self.name = cls.__name__ + _written(options)
        made = self.make()
        if not hasattr(made, "alphas_cumprod") and "shift" not in made.config:
            raise ValueError(f"{cls.__name__} has neither alphas_cumprod nor a flow's shift: no level of its timesteps")
        self.takes_generator = "generator" in _parameters(made.step)
        order = getattr(made.config, "solver_order", None)
        order = order or next((k for name, k in self.ORDERS.items() if cls.__name__.startswith(name)), None)
        self.claims = merged(claims, order=order)

    def make(self, **options: Any) -> Any:
        return self.cls(**{**self.options, **options})

    def run(self, oracle: Oracle, z: Tensor, steps: int, *, probe: bool = False, seed: int = 0) -> Outcome:
        scheduler = self.make(**self.exact(steps)) if probe else self.make()
        flow = straight(scheduler)
        scheduler.set_timesteps(steps)
        predicts = "flow_prediction" if flow else getattr(scheduler.config, "prediction_type", "epsilon")
        given = {"generator": torch.Generator().manual_seed(seed)} if self.takes_generator else {}
        x = z * float(getattr(scheduler, "init_noise_sigma", 1.0))
        for t in scheduler.timesteps:
            seen = x if flow else scheduler.scale_model_input(x, t)
            alpha, sigma = self.level(scheduler, float(t))
            x0 = oracle(seen, alpha, sigma)
            noise = (seen - alpha * x0) / sigma if sigma else torch.zeros_like(seen)
            match predicts:
                case "epsilon":
                    output = noise
                case "sample":
                    output = x0
                case "v_prediction":
                    output = alpha * noise - sigma * x0
                case "flow_prediction":
                    output = noise - x0
                case other:
                    raise ValueError(f"prediction_type {other!r} is not known to the referee")
            x = scheduler.step(output, t, x, **given).prev_sample
        return Outcome(State(_tensor(x), *self.last(scheduler)), len(scheduler.timesteps))

    def level(self, scheduler: Any, t: float) -> tuple[float, float]:
        """(alpha, sigma) at a timestep."""
        if straight(scheduler):
            part = t / scheduler.config.num_train_timesteps
            return 1 - part, part
        kept = scheduler.alphas_cumprod.double()
        logs = (0.5 * torch.log((1 - kept) / kept)).numpy()
        return preserving(math.exp(float(np.interp(t, np.arange(len(logs)), logs))))

    def last(self, scheduler: Any) -> tuple[float, float]:
        """(alpha, sigma) of the state after the last step, in the scheduler's own scale."""
        if straight(scheduler):
            return 1 - float(scheduler.sigmas[-1]), float(scheduler.sigmas[-1])
        if hasattr(scheduler, "sigmas") and len(scheduler.sigmas) != len(scheduler.alphas_cumprod):
            end = float(scheduler.sigmas[-1])
            return preserving(end) if float(scheduler.init_noise_sigma) == 1 else (1.0, end)
        kept = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
        return math.sqrt(kept), math.sqrt(1 - kept)

    def exact(self, steps: int) -> dict[str, Any]:
        """Options with which timesteps are levels of equal log-SNR steps, whether N or N + 1 of them are placed."""
        if "trained_betas" not in self.accepts or self.options.get("use_flow_sigmas"):
            return {}
        product = max(steps * (steps - 1), 1)
        total = product * -(-1000 // product) + 1
        kept = torch.sigmoid(torch.linspace(PROBE[1], PROBE[0], total, dtype=torch.float64))
        betas = 1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])
        options: dict[str, Any] = {"trained_betas": betas.numpy(), "num_train_timesteps": total}
        if "final_sigmas_type" in self.accepts:
            options["final_sigmas_type"] = "sigma_min"
        known = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
        options.update({name: False for name in known if name in self.options})
        return options

    def plain(self, steps: int) -> tuple[Tensor, Tensor]:
        made = self.make()
        total = made.config.num_train_timesteps
        last, least = (total, total / steps) if straight(made) else (total - 1, 0.0)
        pairs = [self.level(made, t) for t in torch.linspace(last, least, steps).tolist()] + [(1.0, 0.0)]
        alpha, sigma = torch.tensor(pairs, dtype=torch.float64).unbind(1)
        return alpha, sigma

    def settings(self) -> Iterator[tuple[str, Candidate]]:
        if not self.vary:
            yield "as configured", self
            return
        spaced: list[dict[str, Any]] = [{}]
        grids = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
        spaced += [{name: True} for name in grids if name in self.accepts]
        spaced += [{"timestep_spacing": v} for v in ("leading", "trailing") if "timestep_spacing" in self.accepts]
        finals = [{"final_sigmas_type": v} for v in ("zero", "sigma_min") if "final_sigmas_type" in self.accepts]
        orders = [{"solver_order": k} for k in (1, 2, 3) if "solver_order" in self.accepts]
        for parts in itertools.product(spaced, finals or [{}], orders or [{}]):
            options = {**self.options, **{k: v for part in parts for k, v in part.items()}}
            try:
                candidate = Diffusers(self.cls, Claims(), options, vary=False)
            except (ValueError, NotImplementedError, ImportError):
                continue  # a combination that is refused in words is no fault
            yield _written({k: v for k, v in options.items() if k != "clip_sample"}), candidate


def straight(scheduler: Any) -> bool:
    """Whether a scheduler of diffusers is one of flow models: its state is (1 - t) x0 + t noise."""
    return not hasattr(scheduler, "alphas_cumprod") or bool(getattr(scheduler.config, "use_flow_sigmas", False))


class Ours(Candidate):
    """One of this library's solvers, on a process and a grid."""

    takes_generator = True
    ORDERS = {"PNDM": 2, "HB": 1}
    """Documented orders of those whose `order` is a number of predictions, at most."""

    def __init__(self, solver: Solver, claims: Claims, process: GaussianProcess, grid: Grid) -> None:
        order = getattr(solver, "order", None)
        known = min(order, self.ORDERS.get(type(solver).__name__, order)) if isinstance(order, int) else None
        self.claims = merged(claims, order=known)
        self.solver, self.process, self.grid = solver, process, grid
        self.name = f"{solver!r} of {process!r}"

    def run(self, oracle: Oracle, z: Tensor, steps: int, *, probe: bool = False, seed: int = 0) -> Outcome:
        process = self.process
        grid = self.grid
        if probe:  # as far as the process reaches
            deepest, highest = (float(process.log_snr(torch.tensor(t, dtype=torch.float64))) for t in (1.0, 0.0))
            grid = LogSNR(start=max(PROBE[0], deepest + 0.1), end=min(PROBE[1], highest - 0.1), to_data=False)
        levels = grid(process, steps=steps)

        def net(x: Tensor, t: Tensor) -> Tensor:
            level = process.level(t.double())
            return oracle(x, level.alpha, level.sigma)

        model = Denoiser(net, process, "x0")
        start = z * float(levels.sigma[0])
        out = sample(model, x_init=start, solver=self.solver, grid=levels, seed=seed, progress=False)
        return Outcome(State(_tensor(out.x), levels.alpha[-1], levels.sigma[-1]), out.nfe)

    def plain(self, steps: int) -> tuple[Tensor, Tensor]:
        levels = self.grid(self.process, steps=steps)
        return levels.alpha, levels.sigma

    def settings(self) -> Iterator[tuple[str, Candidate]]:
        variants: list[tuple[GaussianProcess, Grid]] = [(process, self.grid) for process in (Flow(), EDM(), Cosine())]
        variants += [(self.process, grid) for grid in (LogSNR(), Karras(), Uniform(), Quadratic())]
        for process, grid in variants:
            yield f"{process!r} on {grid!r}", Ours(self.solver, self.claims, process, grid)


def for_callable(fn: Callable[..., Any], claims: Claims | None = None, **options: Any) -> Candidate:
    """A plain sampler fn(denoise, x, sigmas) -> x, or fn(denoise, x, sigmas, generator) -> x.

    x (batch, *event) is x0 + sigma noise at sigmas[0], sigmas (N + 1,) fall, mostly to 0, and denoise(x, sigma) is
    E[x0 | x] for sigma a number or (batch,). `options` are passed on.
    """
    if not callable(fn):
        raise ValueError(f"a sampler is called as fn(denoise, x, sigmas): got {fn!r}")
    return Called(fn, claims or Claims(), options)


def for_k_diffusion(fn: Callable[..., Any], claims: Claims | None = None, **options: Any) -> Candidate:
    """A function of k_diffusion.sampling; `options` are passed on (eta=0.0, order=3)."""
    name, orders = named(fn), {"euler": 1, "heun": 2, "dpm_2": 2, "dpmpp_2m": 2, "dpmpp_2s": 2, "dpmpp_3m": 3}
    if "sde" in name or "ancestral" in name:
        order = None if options.get("eta", 1.0) else next((k for n, k in orders.items() if n in name), None)
    elif "lms" in name:
        order = int(options.get("order", 4))
    else:
        order = next((k for n, k in orders.items() if n in name), None)
    return KDiffusion(fn, merged(claims, order=order), options)


def for_azula(cls: Callable[..., Any], claims: Claims | None = None, **options: Any) -> Candidate:
    """A sampler class of azula; `options` are given to its constructor (order=3)."""
    known = {"EulerSampler": 1, "DDIMSampler": 1, "HeunSampler": 2}
    parameters = _parameters(cls)
    declared = parameters["order"].default if "order" in parameters else known.get(named(cls))
    order = options.get("order", declared)
    if options.get("eta"):
        order = None
    return Azula(cls, merged(claims, order=order), options)


def for_diffusers(scheduler: Any, claims: Claims | None = None, **options: Any) -> Candidate:
    """A scheduler class of diffusers, or a scheduler as configured, with `options` besides.

    For a class alone the check of options tries its spacings, final sigmas and orders; otherwise only those given.
    """
    if isinstance(scheduler, type):
        return Diffusers(scheduler, claims or Claims(), options, vary=not options)
    kept = {k: v for k, v in scheduler.config.items() if not k.startswith("_") and v is not None}
    accepted = _parameters(type(scheduler))
    own = {k: v for k, v in kept.items() if k in accepted and k != "clip_sample"} | options
    candidate = Diffusers(type(scheduler), claims or Claims(), own, False)
    default = {k: p.default for k, p in accepted.items()}
    candidate.name = type(scheduler).__name__ + _written({k: v for k, v in own.items() if default[k] != v})
    return candidate


def for_solver(
    solver: Solver, claims: Claims | None = None, *, process: GaussianProcess | None = None, grid: Grid | None = None
) -> Candidate:
    """One of this library's solvers (default: VP on LogSNR)."""
    return Ours(solver, claims or Claims(), process or VP(), grid or LogSNR())


def adapt(fn: Any, adaptor: str = "auto", claims: Claims | None = None, **options: Any) -> Candidate:
    """The candidate for an object, by the adaptor named, or by what the object looks like.

    Raises ValueError for an unknown adaptor and for an object that is no sampler.
    """
    if isinstance(fn, Candidate):
        return fn
    if adaptor not in ADAPTORS:
        raise ValueError(f"adaptor={adaptor!r}: choose from {', '.join(ADAPTORS)}")
    if adaptor == "auto":
        adaptor = _kind(fn)
    makers: dict[str, Callable[..., Candidate]] = {
        "callable": for_callable,
        "k-diffusion": for_k_diffusion,
        "azula": for_azula,
        "diffusers": for_diffusers,
        "solver": _solver,
    }
    try:
        return makers[adaptor](fn, claims, **options)
    except TypeError as wrong:
        raise ValueError(f"{named(fn)} cannot be made with the options {dict(options)}: {wrong}") from wrong


def _solver(solver: Any, claims: Claims | None, **options: Any) -> Candidate:
    if options and not isinstance(solver, type):
        raise ValueError(f"{solver!r} has its options already: give its class with {', '.join(options)}")
    return for_solver(solver(**options) if isinstance(solver, type) else solver, claims)


def _kind(fn: Any) -> str:
    if isinstance(fn, Solver) or (isinstance(fn, type) and issubclass(fn, Solver)):
        return "solver"
    if hasattr(fn, "set_timesteps") and hasattr(fn, "step"):
        return "diffusers"
    if isinstance(fn, type) and hasattr(fn, "timesteps") and "denoiser" in _parameters(fn):
        return "azula"
    if callable(fn) and list(_parameters(fn))[:1] == ["model"]:
        return "k-diffusion"
    if callable(fn) and not isinstance(fn, type):
        return "callable"
    raise ValueError(
        f"{fn!r} is no sampler that the referee knows: give a diffusers scheduler, a k-diffusion function, an azula "
        "sampler class, one of our solvers, or fn(denoise, x, sigmas)"
    )


def load_object(path: str) -> Any:
    """The object that PKG:OBJECT names, PKG a module or a file ending in .py, OBJECT a dotted name in it."""
    module, colon, name = path.rpartition(":")
    if not colon or not module or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
        raise ValueError(f"{path!r} names no object: write PKG:OBJECT, as in diffusers:UniPCMultistepScheduler")
    if module.endswith(".py") and not Path(module).is_file():
        raise ValueError(f"there is no file {module}")
    try:
        loaded = _file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    except Exception as raised:
        raise ValueError(f"cannot import {module!r} of {path!r}: {type(raised).__name__}: {raised}") from raised
    found: Any = loaded
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{module!r} has no {name!r}")
        found = getattr(found, part)
    return found


def _file(path: Path) -> ModuleType:
    """A file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def _parameters(fn: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return {}


def _written(options: Mapping[str, Any]) -> str:
    """Options as they are written in a call."""
    parts = [f"{k}={named(v) if callable(v) else repr(v)}" for k, v in options.items()]
    return f"({', '.join(parts)})" if parts else ""


def _tensor(x: Any) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"a sampler returns a tensor: got {type(x).__name__}")
    return x.detach()
