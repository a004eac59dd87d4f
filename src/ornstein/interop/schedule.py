"""Published scheduler configurations, read exactly: which process, which question, which times."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .._extras import require
from .._types import View
from ..denoiser import EDMPrecondition
from ..processes import EDM, DiscreteTime, Flow, GaussianProcess, Level, LinearProcess
from ..solvers.grids import Grid, Timesteps

PREDICTIONS: dict[str, View] = {
    "epsilon": "noise",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "velocity",
    "flow": "velocity",
}
"""The names of the question in a configuration, and ours."""


class ConfigError(ValueError):
    """A configuration that names something unknown, or whose fields contradict each other."""


@dataclass(frozen=True)
class _Habits:
    """How a class of discrete-time schedulers chooses its timesteps.

    extra: N + extra timesteps are laid out and the last dropped; rounded: whether linspace is; full_range: whether
    spacings of sigma begin at the ends of the table, and not at those of the N timesteps; whole: whether the network
    is told whole timesteps, rounded or truncated; defaults: what the class takes for fields that are not named.
    """

    extra: int = 0
    rounded: bool = True
    full_range: bool = False
    whole: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def ancestral(cls, **defaults: Any) -> _Habits:
        return cls(defaults={"timestep_spacing": "leading", **defaults})

    @classmethod
    def frame(cls, **defaults: Any) -> _Habits:
        return cls(rounded=False, defaults={"timestep_spacing": "linspace", **defaults})

    @classmethod
    def multistep(cls, **defaults: Any) -> _Habits:
        return cls(1, full_range=True, whole=True, defaults={"timestep_spacing": "linspace", **defaults})


_LDM = {"beta_start": 0.00085, "beta_end": 0.012}
_COG = {**_LDM, "beta_schedule": "scaled_linear", "set_alpha_to_one": True, "snr_shift_scale": 3.0}
DISCRETE: dict[str, _Habits] = {
    "DDPMScheduler": _Habits.ancestral(final="data"),
    "DDPMParallelScheduler": _Habits.ancestral(final="data"),
    "DDIMScheduler": _Habits.ancestral(set_alpha_to_one=True),
    "DDIMParallelScheduler": _Habits.ancestral(set_alpha_to_one=True),
    "CogVideoXDDIMScheduler": _Habits.ancestral(**_COG),
    "CogVideoXDPMScheduler": _Habits.ancestral(**_COG),
    "PNDMScheduler": _Habits.ancestral(set_alpha_to_one=False),
    "EulerDiscreteScheduler": _Habits.frame(),
    "EulerAncestralDiscreteScheduler": _Habits.frame(),
    "LMSDiscreteScheduler": _Habits.frame(),
    "HeunDiscreteScheduler": _Habits.frame(**_LDM),
    "KDPM2DiscreteScheduler": _Habits.frame(**_LDM),
    "KDPM2AncestralDiscreteScheduler": _Habits.frame(**_LDM),
    "DPMSolverMultistepScheduler": _Habits.multistep(),
    "DPMSolverSinglestepScheduler": _Habits.multistep(),
    "UniPCMultistepScheduler": _Habits.multistep(),
    "DEISMultistepScheduler": _Habits.multistep(final="first"),
    "SASolverScheduler": _Habits.multistep(final="first"),
}
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
EDMS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CosineDPMSolverMultistepScheduler")
KNOWN = (*DISCRETE, *FLOWS, *EDMS, "ScoreSdeVeScheduler")
_IN_FRAME = ("Euler", "Heun", "LMS", "KDPM2")  # classes that read sigma/alpha between timesteps linearly
_AWAY_FROM_ZERO = (*_IN_FRAME, "DPMSolver", "UniPC", "DEIS", "SASolver")  # keep a terminal SNR of zero at 2^-24


@dataclass(frozen=True)
class Schedule:
    """What a published configuration says about a model, in this library's words.

    process, predicts, precondition, timestep: the arguments of `Denoiser`; `sign` is -1 where the network answers the
        negative of that (a v under EDM's scales, a velocity towards data).
    grid: the times that its own sampler visits in N steps.
    clip: the range to which its own sampler clips x0, or None.
    variance: what a second half of the network's channels means ("learned", "learned_range"), or None.
    """

    process: GaussianProcess
    predicts: View
    grid: PublishedGrid
    timestep: Callable[[Level], Tensor] = field(repr=False, compare=False)
    precondition: EDMPrecondition | None = None
    sign: float = 1.0
    clip: float | None = None
    variance: str | None = None

    def at_resolution(self, tokens: int) -> Schedule:
        """The schedule for images of so many tokens, where the shift of the times grows with them.

        mu = base_shift + (tokens - base_len)/(max_len - base_len) (max_shift - base_shift), the shift is e^mu.
        """
        config = self.grid.config
        if not config.get("use_dynamic_shifting"):
            return self
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        base, top = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        return replace(self, grid=replace(self.grid, mu=base + (tokens - low) / (high - low) * (top - base)))


@dataclass(frozen=True)
class PublishedGrid(Grid):
    """The times that a published scheduler visits in N steps, and the end that it reaches.

    config: the scheduler's configuration.
    mu: the logarithm of the shift, for configurations that leave it to the resolution ("dynamic").
    """

    config: Mapping[str, Any] = field(repr=False, hash=False)
    mu: float | None = None

    def __repr__(self) -> str:
        return f"PublishedGrid({self.config['_class_name']}{'' if self.mu is None else f', mu={self.mu:.4g}'})"

    def times(self, process: LinearProcess, steps: int) -> Tensor:
        match process:
            case Flow():
                times = self._flow(steps)
                return torch.cat([times, times.new_zeros(1)])
            case DiscreteTime():
                return self._discrete(process, steps)
        times = process.time(-2 * self._sigmas(*_edm_range(self.config), steps).log())
        return times if _final(self.config) == "first" else torch.cat([times, times.new_zeros(1)])

    def timesteps(self, process: GaussianProcess, steps: int) -> Tensor:
        """What the published sampler tells its network at the N levels, with the roundings that it makes."""
        level, config = process.level(self.times(process, steps))[:steps], self.config
        habits = DISCRETE.get(config["_class_name"], _Habits())
        told = schedule_of(config).timestep
        if isinstance(process, DiscreteTime) and _spacing(config) == "steps":
            return told(level)
        smooth = config.get("beta_schedule") == "squaredcos_cap_v2" or _spacing(config) in ("exponential", "beta")
        if not habits.whole:
            return told(level)
        if isinstance(process, DiscreteTime) and not smooth:
            return told(level).round()
        return (told(level) + torch.where(level.t == 1, -1e-3, 1e-6)).floor()  # UniPC begins 1e-6 before noise

    def start_scale(self, start: Level) -> float:
        """The factor of standard normal numbers with which the published sampler begins at a level, in the state of
        the process: sqrt(alpha^2 + sigma^2), as if data had unit variance; sigma, as if it had none; 1 for flows."""
        config = self.config
        if _is_flow(config):
            return 1.0
        spacing = config.get("timestep_spacing", "linspace")
        bare = config["_class_name"].startswith(_IN_FRAME) and spacing != "leading"
        return float(start.sigma if bare else torch.hypot(start.alpha, start.sigma))

    def _discrete(self, process: DiscreteTime, steps: int) -> Tensor:
        habits = DISCRETE[self.config["_class_name"]]
        config = {**habits.defaults, **self.config}
        spacing = config["timestep_spacing"]
        if spacing == "linspace" and not habits.rounded:
            times = process.time_of(torch.linspace(process.steps - 1, 0, steps, dtype=torch.float64))
        else:
            offset = int(config.get("steps_offset", 0)) if spacing == "leading" else 0
            extra = 0 if spacing == "trailing" else habits.extra
            times = process.time_of(Timesteps(spacing, offset).chosen(process.steps, steps + extra)[:steps])
        first = process.time_of(0)[None]
        if _spacing(config) != "steps":
            ends = torch.cat([first / first, first]) if habits.full_range else times[[0, -1]]
            high, low = (-process.log_snr(ends) / 2).exp().tolist()
            low, high = float(config.get("sigma_min") or low), float(config.get("sigma_max") or high)
            times = process.time(-2 * self._sigmas(low, high, steps).log())
        last = first if _final(config) == "first" else 0 * first
        return torch.cat([times, last]) if float(times[-1]) > float(last) else times

    def _sigmas(self, low: float, high: float, steps: int) -> Tensor:
        """N noise levels sigma/alpha from high to low, in the spacing that the configuration names."""
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        match _spacing(self.config):
            case "karras":
                rho = float(self.config.get("rho", 7.0))
                a, b = high ** (1 / rho), low ** (1 / rho)
                return torch.pow(a + ramp * (b - a), rho)
            case "beta":
                beta = require("scipy.stats", extra="metrics").beta
                quantiles: Tensor = torch.as_tensor(beta.ppf(1 - ramp.numpy(), 0.6, 0.6))
                return low + quantiles * (high - low)
            case _:  # exponential; equal steps of lambda ("lu") are the same
                return torch.exp(math.log(high) + ramp * math.log(low / high))

    def _factor(self) -> float:
        """The factor of sigma/alpha by which the times of a flow are shifted."""
        config = self.config
        if not config.get("use_dynamic_shifting"):
            return float(config.get("shift", config.get("flow_shift", 1.0)))
        if self.mu is None:
            raise ConfigError(
                "the shift of these times depends on the resolution: take schedule.at_resolution(tokens).grid, "
                "with the number of tokens of the image"
            )
        return math.exp(self.mu) if config.get("time_shift_type", "exponential") == "exponential" else self.mu

    def _flow(self, steps: int) -> Tensor:
        """The N times of a flow before data."""
        config, name = self.config, self.config["_class_name"]
        smallest = torch.tensor(1 / int(config.get("num_train_timesteps", 1000)), dtype=torch.float64)
        if config.get("use_dynamic_shifting"):
            t = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)  # what their pipelines pass
        elif name in FLOWS:  # the smallest level of training has been shifted before, and is once more
            t = torch.linspace(1, float(_shift(smallest, self._factor())), steps, dtype=torch.float64)
        elif name == "UniPCMultistepScheduler":
            t = torch.linspace(1, float(smallest), steps + 1, dtype=torch.float64)[:-1]
        else:
            t = torch.linspace(1 - float(smallest), 0, steps + 1, dtype=torch.float64)[:-1]
        return self.shifted(t)

    def shifted(self, t: Tensor) -> Tensor:
        """The times of a flow from those before the shift, with the terminal and the spacing that are configured."""
        config, name, steps = self.config, self.config["_class_name"], len(t)
        t = _shift(t, self._factor())
        if config.get("shift_terminal"):
            t = 1 - (1 - t) * (1 - config["shift_terminal"]) / (1 - t[-1])
        if _spacing(config) == "steps":
            return t
        if name in FLOWS:  # the spacing is that of t itself
            return self._sigmas(float(t[-1]), float(t[0]), steps)
        table = alphas_cumprod(config)
        low, high = (1 / table[[0, -1]] - 1).sqrt().tolist()
        s = self._sigmas(low, high, steps)
        return s / (1 + s)


def _is_flow(config: Mapping[str, Any]) -> bool:
    return config["_class_name"] in FLOWS or bool(config.get("use_flow_sigmas"))


def _shift(t: Tensor, shift: float) -> Tensor:
    """t of the level whose sigma/alpha is `shift` times that of t (see `Shifted`)."""
    return shift * t / (1 + (shift - 1) * t)


def _spacing(config: Mapping[str, Any]) -> str:
    if config["_class_name"] == "ScoreSdeVeScheduler":
        return "exponential"
    if config["_class_name"] in EDMS:
        default = "exponential" if config["_class_name"].startswith("Cosine") else "karras"
        return str(config.get("sigma_schedule", default))
    chosen = [name for name in ("karras", "exponential", "beta") if config.get(f"use_{name}_sigmas")]
    chosen += ["lu"] if config.get("use_lu_lambdas") else []
    if len(chosen) > 1:
        raise ConfigError(f"the configuration asks for {' and '.join(chosen)} spacing at once: keep one")
    return chosen[0] if chosen else "steps"


def _final(config: Mapping[str, Any]) -> str:
    habits = DISCRETE.get(config["_class_name"], _Habits())
    if "set_alpha_to_one" in habits.defaults:  # other classes do not know the field, though some configurations name it
        config = {**habits.defaults, **config}
        return "data" if config["set_alpha_to_one"] else "first"
    kind = config.get("final_sigmas_type", "zero")
    if kind not in ("zero", "sigma_min"):
        raise ConfigError(f"final_sigmas_type={kind!r}: choose zero or sigma_min")
    return str(habits.defaults.get("final", "first" if kind == "sigma_min" else "data"))


def _edm_range(config: Mapping[str, Any]) -> tuple[float, float]:
    own = {"CosineDPMSolverMultistepScheduler": (0.3, 500.0), "ScoreSdeVeScheduler": (0.01, 1348.0)}
    low, high = own.get(config["_class_name"], (0.002, 80.0))
    return float(config.get("sigma_min") or low), float(config.get("sigma_max") or high)


def _told(config: Mapping[str, Any]) -> Callable[[Level], Tensor]:
    """What a network of noise levels s is told: log(s)/4; atan(s) 2/pi for the cosine one; s itself for VE."""
    match config["_class_name"]:
        case "CosineDPMSolverMultistepScheduler":
            return lambda level: torch.atan(level.sigma / level.alpha) * (2 / math.pi)
        case "ScoreSdeVeScheduler":
            return lambda level: level.sigma
    return lambda level: -level.log_snr / 8


def alphas_cumprod(config: Mapping[str, Any]) -> Tensor:
    """The table of a discrete-time configuration: prod (1 - beta_i), perhaps moved to zero terminal SNR.

    It is computed in float32, as it was when the model was trained (1 - beta_0 has lost four digits by then), and
    returned as the float64 of those numbers.

    Source: of the zero terminal SNR Lin et al. 2023 (2305.08891), algorithm 1; of the shift of the SNR Hoogeboom et al.
    2023 (2301.11093), as CogVideoX uses it.
    """
    name = str(config["_class_name"])
    config = {**DISCRETE.get(name, _Habits()).defaults, **config}
    n, kind = int(config.get("num_train_timesteps", 1000)), config.get("beta_schedule", "linear")
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    dtype = torch.float64 if name.startswith("CogVideoX") and kind == "scaled_linear" else torch.float32
    if config.get("trained_betas") is not None:
        betas = torch.as_tensor(config["trained_betas"], dtype=dtype)
        if betas.shape != (n,):
            raise ConfigError(f"trained_betas has shape {tuple(betas.shape)}, num_train_timesteps is {n}: which is it?")
    elif kind == "linear":
        betas = torch.linspace(start, end, n, dtype=dtype)
    elif kind == "scaled_linear":
        betas = torch.linspace(math.sqrt(start), math.sqrt(end), n, dtype=dtype) ** 2
    elif kind == "sigmoid":
        betas = torch.sigmoid(torch.linspace(-6, 6, n, dtype=dtype)) * (end - start) + start
    elif kind == "squaredcos_cap_v2":
        bar = torch.cos((torch.arange(n + 1, dtype=torch.float64) / n + 0.008) / 1.008 * (math.pi / 2)) ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999).to(dtype)
    else:
        raise ConfigError(
            f"beta_schedule={kind!r} is not known: choose linear, scaled_linear, squaredcos_cap_v2 or sigmoid, "
            "or give the betas themselves as trained_betas"
        )
    if n < 2:
        raise ConfigError(f"num_train_timesteps={n}: a discrete-time model has at least 2")
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise ConfigError(f"betas from {float(betas.min()):.4g} to {float(betas.max()):.4g}: they lie in (0, 1)")
    table = torch.cumprod(1 - betas, 0)
    if "snr_shift_scale" in config:
        c = float(config["snr_shift_scale"])
        table = table / (c + (1 - c) * table)
    if config.get("rescale_betas_zero_snr"):
        alpha = table.sqrt()
        table = ((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))) ** 2
        if "snr_shift_scale" not in config:  # through betas again, and their rounding
            table = torch.cumprod(1 - (1 - torch.cat([table[:1], table[1:] / table[:-1]])), 0)
        if name.startswith(_AWAY_FROM_ZERO) and float(table[-2]) > 2.0**-24:  # else their table would rise there
            table[-1] = 2.0**-24
    return table.double()


OWN = ("solver", "grid", "tables", "clip", "published_class")
"""What an `OrnsteinScheduler` writes into its configuration beside the published one."""


def config_of(scheduler: Any) -> dict[str, Any]:
    """The published configuration, with its class, of a scheduler or of a configuration."""
    if not isinstance(scheduler, Mapping):
        if not isinstance(getattr(scheduler, "config", None), Mapping):
            raise ConfigError(f"give a scheduler, or its configuration as a dictionary: got {type(scheduler).__name__}")
        scheduler = {**scheduler.config, "_class_name": type(scheduler).__name__}
    if "_class_name" not in scheduler:
        raise ConfigError("this configuration does not name its class: give the scheduler itself, pipe.scheduler")
    name = scheduler["_class_name"]
    published = {key: value for key, value in scheduler.items() if not key.startswith("_")}
    if name == "OrnsteinScheduler":
        name, published = published["published_class"], {k: v for k, v in published.items() if k not in OWN}
    return {**published, "_class_name": name}


def schedule_of(scheduler: Any) -> Schedule:
    """Read a scheduler, or its configuration (the dictionary in its `scheduler_config.json`).

        schedule = orn.interop.schedule_of({"_class_name": "DDPMScheduler", "beta_schedule": "linear", ...})
        model = orn.Denoiser(net, schedule.process, schedule.predicts, timestep=schedule.timestep)

    Discrete-time classes give a `DiscreteTime` process whose alpha and sigma at every timestep are the scheduler's own,
    flow classes `Flow`, EDM classes `EDM` with its precondition.

    Raises ConfigError for classes and prediction types that are not known, and for fields that contradict each other.
    """
    config = config_of(scheduler)
    name = str(config["_class_name"])
    if name not in KNOWN:
        raise ConfigError(
            f"the scheduler class {name!r} is not known: choose from {', '.join(KNOWN)}, or build the model yourself, "
            "orn.Denoiser(net, process, predicts)"
        )
    grid = PublishedGrid(dict(config))
    flow = _is_flow(config)
    asked = config.get("prediction_type", "flow_prediction" if flow else "epsilon")
    if asked not in PREDICTIONS:
        raise ConfigError(f"prediction_type={asked!r} is not known: choose from {', '.join(PREDICTIONS)}")
    predicts = PREDICTIONS[asked]
    _spacing(config), _final(config)  # refuse what contradicts itself
    if (predicts == "velocity") != flow:
        way = "use_flow_sigmas" if not flow else "flow_prediction"
        raise ConfigError(f"{name} with prediction_type={asked!r} contradict each other: it wants {way}")
    if flow:
        total, back = int(config.get("num_train_timesteps", 1000)), bool(config.get("invert_sigmas"))
        return Schedule(
            Flow(), predicts, grid, lambda level: total * (1 - level.t if back else level.t), sign=-1.0 if back else 1.0
        )
    continuous = config.get("timestep_type") == "continuous"
    if continuous and (predicts != "v" or not (config.get("sigma_min") and config.get("sigma_max"))):
        raise ConfigError("timestep_type='continuous' wants prediction_type='v_prediction', sigma_min and sigma_max")
    if name in EDMS or continuous:
        if predicts == "x0":
            raise ConfigError(f"{name} scales its network by sigma_data, which prediction_type='sample' contradicts")
        data = float(config.get("sigma_data", 1.0 if continuous or name.startswith("Cosine") else 0.5))
        sign = -1.0 if predicts == "v" else 1.0
        return Schedule(EDM(_edm_range(config)[1]), "x0", grid, _told(config), EDMPrecondition(data), sign)
    if name == "ScoreSdeVeScheduler":
        return Schedule(EDM(_edm_range(config)[1]), "score", grid, _told(config))
    table = alphas_cumprod(config)
    if predicts == "noise" and float(table[-1]) == 0:
        raise ConfigError(
            "rescale_betas_zero_snr with prediction_type='epsilon' contradict each other: at a terminal SNR of zero "
            "the noise says nothing about x0; such models predict v_prediction or sample"
        )
    linear = name.startswith(_IN_FRAME) and _spacing(config) == "steps"
    process = DiscreteTime(table, "linear" if linear else "log")
    clips = config.get("clip_sample", name.startswith(("DDPM", "DDIM", "CogVideoX")))
    variance = config.get("variance_type")
    return Schedule(
        process,
        predicts,
        grid,
        process.timestep,
        clip=float(config.get("clip_sample_range", 1.0)) if clips else None,
        variance=variance if variance in ("learned", "learned_range") else None,
    )
