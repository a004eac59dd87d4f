"""The model that a config describes, and how it is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import torch

from ornstein.denoiser import Codec, Denoiser, EDMPrecondition
from ornstein.nets import MLP, NULL, DiT, UNet
from ornstein.nets.base import Net
from ornstein.processes import EDM, VE, VP, Cosine, Flow, GaussianProcess, SubVP
from ornstein.report.config import Config
from ornstein.training import (
    ConditionPerturbation,
    HybridLoss,
    LogitNormal,
    LogNormalSigma,
    MinSNR,
    Objective,
    PowerEMA,
    PseudoHuber,
    SharedTimestep,
    TimeLaw,
    UniformTime,
    UShapedTime,
)
from ornstein.training.forecast import free_memory, shown, weigh
from ornstein.training.workers import Workers

PROCESSES: dict[str, Callable[[], GaussianProcess]] = {
    "edm": EDM, "flow": Flow, "vp": VP, "subvp": SubVP, "ve": VE, "cosine": Cosine,
}  # fmt: skip

TIMES: dict[str, Callable[[], TimeLaw]] = {
    "uniform": UniformTime,
    "logit_normal": LogitNormal,
    "lognormal_sigma": partial(LogNormalSigma, -0.5, 1.2),  # about the data's own scale, 1
    "u_shaped": UShapedTime,
}


def build(config: Config, codec: Codec, conditions: Mapping[str, int] | None = None) -> Denoiser:
    """The untrained model of a config, of the same first weights for the same seed.

    Args:
        config: with the `event` of its states and its number of `labels`.
        codec: the user's samples to states and back.
        conditions: what the network sees beside the label, by name, with their channels.
    """
    process = PROCESSES[config.process]()
    if config.predicts in ("noise", "score") and float(process.level(1.0).alpha) == 0:
        raise ValueError(
            f"predicts {config.predicts} says nothing of x0 where process {config.process} begins to sample, at "
            "alpha = 0: choose predicts edm, x0, velocity or v"
        )
    shared = config.loss.shared_times
    return Denoiser(
        build_net(config, conditions),
        process,
        None if config.predicts == "edm" else config.predicts,
        precondition=EDMPrecondition(1.0) if config.predicts == "edm" else None,
        timestep=SharedTimestep(shared) if shared else None,
        null={"label": NULL} if config.labels else None,
        scaling=codec,
    )


def build_net(config: Config, conditions: Mapping[str, int] | None = None) -> Net:
    """The network of a config; ValueError if it does not fit the data, or the memory that is free."""
    event, labels = config.event or (), config.labels or 0
    with torch.random.fork_rng(devices=[]):
        small = max(config.net.width or 0, 32 * _depth(config)) <= 256 and math.prod(event) * (labels + 1) <= 10**6
        need = 0 if small else _weigh(config, conditions)[0]  # which loads much of torch
        if (free := free_memory(torch.device("cpu"))) is not None and need > free:
            raise ValueError(f"this net has weights of {shown(need)}, and {shown(free)} are free: {_SMALLER}")
        torch.manual_seed(config.seed)
        return _net(config, conditions)


def check_memory(config: Config, conditions: Mapping[str, int] | None = None, processes: int = 1) -> None:
    """ValueError if a training on one process cannot have room here: weights, gradients, the optimizer's two moments,
    the averages, and what one pass keeps. Of several processes each has a part, on a device that is not known yet."""
    free = free_memory(Workers.best())
    if processes > 1 or free is None:
        return
    with torch.random.fork_rng(devices=[]):
        weights, kept = _weigh(config, conditions)
    averages = config.lengths or (config.ema if isinstance(config.ema, tuple) else (config.ema,))
    copies = 4 + len(averages)
    least = 0 if config.recompute else kept if config.precision == "fp32" else kept // 2
    if copies * weights + least > free:
        raise ValueError(
            f"the training needs {shown(copies * weights)} for weights, gradients, optimizer and averages and "
            f"{shown(least)} for one pass, and {shown(free)} are free: lower batch_size, raise accumulate, or "
            f"{_SMALLER}"
        )


_SMALLER = "lower net.width or net.depth"


def _weigh(config: Config, conditions: Mapping[str, int] | None = None) -> tuple[int, int]:
    """Bytes of the weights, and of what one pass of a batch keeps."""
    return _weighed(config, frozenset((conditions or {}).items()), torch.get_default_dtype())


@lru_cache(64)
def _weighed(config: Config, conditions: frozenset[tuple[str, int]], dtype: torch.dtype) -> tuple[int, int]:
    """Both are affine in the depth, so that the networks of depths 1 and 2 tell those of any, and none is built."""
    event, rows, names = config.event or (), max(config.batch_size // config.accumulate, 1), dict(conditions)

    def given() -> dict[str, torch.Tensor]:
        laid = {name: torch.empty(rows, *(event if kind_of(config) == "mlp" else (channels, *event[1:])))
                for name, channels in names.items()}  # fmt: skip
        return laid | ({"label": torch.zeros(rows, dtype=torch.long)} if config.labels else {})

    depth = _depth(config)
    try:
        one, two = (
            weigh(partial(_net, config, names, deep), lambda: torch.empty(rows, *event),
                  lambda: torch.empty(rows), given)
            for deep in (1, 2)
        )  # fmt: skip
    except (OverflowError, RuntimeError, TypeError) as error:
        if "overflow" not in str(error).lower():
            raise
        raise ValueError(
            f"the tensors of {rows} states {event} are larger than any memory: lower batch_size or {_SMALLER}"
        ) from error
    weights, kept = (a + (depth - 1) * (b - a) for a, b in zip(one, two, strict=True))
    return weights, kept


def _net(config: Config, conditions: Mapping[str, int] | None, depth: int | None = None) -> Net:
    event, labels, net = config.event or (), config.labels or 0, config.net
    outputs = ("main", "variance") if config.loss.kind == "hybrid" else ()
    kind, depth = kind_of(config), depth or _depth(config)
    if kind != "mlp" and len(event) != 3 and not (kind == "unet" and _is_series(config)):
        hint = "store x[:, None], or use mlp" if len(event) == 2 else "use mlp"
        raise ValueError(f"net {kind} needs images (channels, height, width), and the data are {event}: {hint}")
    if kind == "mlp":
        flat = dict.fromkeys(conditions or {}, event)
        return MLP(event, labels, width=net.width or 256, depth=depth, conditions=flat, outputs=outputs)
    more: dict[str, Any] = {"conditions": conditions, "outputs": outputs}
    if kind == "unet":
        side, series = min(event[1:]), len(event) == 2
        levels = (1, 2) if side < 16 else (1, 2, 2) if series else (1, 2, 4) if side < 64 else (1, 2, 2, 4)
        more |= {"axes": len(event) - 1, "levels": levels}
        return UNet(event[0], labels, width=net.width or 32, blocks=depth, **more)
    size, patch = (event[1], event[2]), net.patch
    return DiT(event[0], size, labels, patch=patch, width=net.width or 192, depth=depth, heads=4, **more)


def _depth(config: Config) -> int:
    return config.net.depth or {"mlp": 3, "unet": 1, "dit": 6}[kind_of(config)]


def kind_of(config: Config) -> str:
    """The kind of network of a config: for `auto` a U-Net for series and images of 16 pixels and more, else an MLP."""
    event, kind = config.event or (), config.net.kind
    if kind != "auto":
        return kind
    large = len(event) == 3 and event[0] in (1, 3) and min(event[1:]) >= 16
    return "unet" if large or (_is_series(config) and event[1] >= 8) else "mlp"


def _is_series(config: Config) -> bool:
    return config.read.kind == "series" and len(config.event or ()) == 2


def objective_of(config: Config, observed: str | None = None) -> Objective:
    """The objective of a config; `observed` names the condition that says which entries were observed.

    By default noise levels lie about the data's own scale, 1, for EDM's preconditioning and noise scales, and times are
    uniform otherwise.
    """
    loss = config.loss
    by_level = config.predicts == "edm" or config.process in ("edm", "ve")
    time = TIMES["lognormal_sigma" if by_level else "uniform"]() if loss.time == "auto" else TIMES[loss.time]()
    weighting = MinSNR() if loss.weighting == "min_snr" else None
    penalty = PseudoHuber() if loss.penalty == "pseudo_huber" else None
    if loss.kind == "hybrid":
        return HybridLoss(time, weighting, penalty, observed)
    if loss.perturb and config.labels == 0:
        raise ValueError(f"loss.perturb {loss.perturb:g} is noise on the labels, and the data have none")
    if loss.perturb:
        return ConditionPerturbation(time, weighting, penalty, observed, gamma=loss.perturb)
    return Objective(time, weighting, penalty, observed)


def averages_asked(config: Config) -> float | tuple[float, ...] | PowerEMA:
    """The averages of the weights that a config asks for."""
    return PowerEMA(config.lengths) if config.lengths else config.ema
