"""A denoiser whose network runs, at each time, without some of its residual blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from .._types import Cond, State
from ..denoiser import BaseDenoiser, Call
from ..guidance.wrapped import Wrapped
from ..prediction import Output
from ..solvers.sample import evaluation
from .lessons import process_of

_NEAR = 1e-9  # times that a table and a plan have in common differ by rounding


class Skipping(Wrapped):
    """x <- x in place of x <- x + f_k(x), for the blocks k that the plan leaves out at time t; nothing is trained.

        plan[t_i], for t_i >= t > t_(i+1):   what is left out from t_i down to the next time of the plan

    A block that is left out is not computed. The network is as it was after every call, and while the plan leaves
    nothing out the answers are the model's to the last bit. `nfe` counts calls, whole or not; `shares` says how much
    of the model each computes.

    Args:
        model: any denoiser with residual blocks, guided or not: in one of several branches a block has its own name.
        blocks: the blocks that may be left out and their shares, as `residual_blocks(model, x)` finds them.
        plan: names of blocks by time; the first time is that of the first evaluation, or before it.

    While it is being called nobody else may call the network, not from another thread either. Raises ValueError for
    names that are no residual blocks, for a compiled network, and at `bind` for levels before the plan's first time.

    Source: Li et al. 2023 (2309.10438), section 3.2, where a step has its own sub-network.
    """

    def __init__(self, model: BaseDenoiser, blocks: Mapping[str, float], plan: Mapping[float, Collection[str]]) -> None:
        super().__init__(model)
        process_of(model)
        modules = dict(model.named_modules())
        if foreign := [name for name in blocks if name not in modules]:
            raise ValueError(
                f"the blocks are another model's, this one has no {foreign[0]}: call residual_blocks again"
            )
        check_plain(model)
        for t, names in plan.items():
            if isinstance(names, str):
                raise ValueError(f"the plan leaves out {names!r} at t = {t:.6g}: give a set of names, {{{names!r}}}")
            if unknown := sorted(set(names) - set(blocks)):
                raise ValueError(
                    f"the plan leaves out {unknown[0]!r} at t = {t:.6g}, which is no residual block of this model: "
                    f"choose from {', '.join(blocks)}"
                )
        if not plan:
            raise ValueError("an empty plan: give the blocks to leave out by time, {1.0: set()} for none")
        self.blocks = dict(blocks)
        self.plan = {float(t): frozenset(plan[t]) for t in sorted(plan, reverse=True)}
        self._modules_of = {t: [modules[name] for name in blocks if name in names] for t, names in self.plan.items()}

    def shares(self, levels: Any) -> list[float]:
        """The share of the model's multiply-adds that is computed at each level; their sum is full evaluations."""
        return [1 - math.fsum(self.blocks[name] for name in self.plan[t]) for t in self._steps(levels)]

    def bind(self, levels: Any, x: State, cond: Cond) -> Sequence[Call]:
        left_out = [self._modules_of[t] for t in self._steps(levels)]
        calls = self.model.bind(levels, x, cond)
        return [
            partial(_without, modules, call) if modules else call for modules, call in zip(left_out, calls, strict=True)
        ]

    def _steps(self, levels: Any) -> list[float]:
        """The time of the plan that each level goes by."""
        found = []
        for t in levels.t.reshape(len(levels), -1):
            if float(t.min()) != float(t.max()):
                raise ValueError("a plan leaves blocks out for the whole batch: times for each sample have none")
            above = [known for known in self.plan if float(t[0]) <= known + _NEAR]
            if not above:
                raise ValueError(
                    f"the plan begins at t = {max(self.plan):.6g}, this level is at t = {float(t[0]):.6g}: "
                    "say what is left out from there"
                )
            found.append(min(above))
        return found


def residual_blocks(model: BaseDenoiser, x: Tensor, t: float = 0.5, cond: Cond = None) -> dict[str, float]:
    """x + f(x) with f = 0 where all weights are 0: the innermost modules that are the identity without their weights,

    by their names in the model, each with the share of the model's multiply-adds that it takes. Found from one call of
    the model and one of each of its modules, so that any network will do: of `orn.nets` these are the blocks of `MLP`,
    `DiT` and `SetTransformer`, and in `UNet` those that keep their channels and the attention. A network is left as it
    is: the weights of 0 are never in it.

    Args:
        model: a denoiser, guided or not.
        x, cond: as in a call; two samples are enough.
        t: where it is called, inside (0, 1).

    Raises ValueError where there are none: for an exact world, or a network without skip connections.
    """
    process_of(model)
    check_plain(model)
    met: dict[str, list[tuple[Any, Any]]] = {}

    def meet(name: str) -> Callable[..., None]:
        return lambda module, args, named: met.setdefault(name, []).append((args, named))

    modules = {
        name: module for name, module in model.named_modules() if name and any(True for _ in module.parameters())
    }
    hooks = [module.register_forward_pre_hook(meet(name), with_kwargs=True) for name, module in modules.items()]
    counter = FlopCounterMode(display=False)
    with evaluation(model), torch.no_grad():
        try:
            with counter:
                model(x, t, cond)
        finally:
            for hook in hooks:
                hook.remove()
        whole = counter.get_total_flops()
        found: dict[str, float] = {}
        for name, calls in met.items():
            module = modules[name]
            nothing = {key: torch.zeros_like(weight) for key, weight in module.named_parameters()}
            with FlopCounterMode(display=False) as own:
                same = all(_is_first(functional_call(module, nothing, *call), *call) for call in calls)
            if same and own.get_total_flops():
                found[name] = own.get_total_flops() / whole
    inner = {name: share for name, share in found.items() if not any(other.startswith(f"{name}.") for other in found)}
    if not inner:
        raise ValueError(
            "this model has no residual blocks to leave out: of the modules of its networks none is x + f(x) with an f "
            "that is 0 where its weights are"
        )
    return inner


def check_plain(model: BaseDenoiser) -> None:
    """Refuse compiled networks: their code is fixed, and would go on computing what is left out."""
    for name, module in model.named_modules():
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            raise ValueError(f"{name or 'the model'} is compiled, blocks are left out of the network as it was before")


def _first(*args: Any, **named: Any) -> Any:
    return args[0] if args else next(iter(named.values()))


def _is_first(out: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    if not args and not named:
        return False
    first = _first(*args, **named)
    return isinstance(out, Tensor) and isinstance(first, Tensor) and torch.equal(out, first)


def _without(modules: Sequence[nn.Module], call: Call, x: State) -> Output:
    with identities(modules):
        return call(x)


@contextmanager
def identities(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Modules that return their first input, for as long as this lasts."""
    own = [vars(module).get("forward") for module in modules]
    try:
        for module in modules:
            vars(module)["forward"] = _first
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            if forward is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = forward
