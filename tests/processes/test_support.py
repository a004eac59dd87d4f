"""What a process says it supports runs, and what it does not is refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import ornstein as orn
from every_process import EVERY, Case, page, public
from ornstein.density import binomial_bound, variational_bound
from ornstein.processes import Binomial, PhaseSpace
from worlds import F64

N = 3
ASKED = ("score", "velocity", "ODE", "reverse SDE", "likelihood", "ELBO")


def ask(case: Case, what: str) -> torch.Tensor:
    """The thing itself, as a user asks for it."""
    model, cond, x0 = case.denoiser(), case.cond(N), case.data(N)
    start = case.start(N)
    if what in ("score", "velocity"):
        x1 = {} if start is None else {"x1": start}
        x = case.process.corrupt(x0, 0.5, cond=cond, seed=0, **x1).x
        found = model(x, 0.5, cond).view(what)
    elif what in ("ODE", "reverse SDE"):
        solver = None if what in case.process.supports else orn.Heun(variable="t")
        solver = orn.EulerMaruyama() if what == "reverse SDE" else solver
        given = {"shape": (N, 2), "dtype": F64} if start is None else {"x_init": start}
        found = orn.sample(model, **given, solver=solver, steps=6, cond=cond, seed=0).x
    elif what == "likelihood":
        found = orn.log_likelihood(model, x0, cond=cond, start=0.3, rtol=1e-2, atol=1e-2).log_prob
    elif isinstance(case.process, Binomial):
        found = binomial_bound(model, x0, steps=4, seed=0).total
    else:
        found = variational_bound(model, x0, steps=4, cond=cond, seed=0).total
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("what", ASKED)
@pytest.mark.parametrize("name", EVERY)
def test_supported_or_refused_by_name(name: str, what: str) -> None:
    case = EVERY[name]
    if what in case.process.supports:
        assert bool(ask(case, what).isfinite().all())
    else:
        with pytest.raises(ValueError, match=re.escape(type(case.process).__name__)):
            ask(case, what)


def test_every_public_process_has_an_example() -> None:
    assert set(public()) <= {type(case.process).__name__ for case in EVERY.values()}


@pytest.mark.parametrize("name", EVERY)
def test_the_protocol(name: str) -> None:
    """levels, data, targets for every view that a network may be asked for; a draw repeats by its seed."""
    process, x0 = EVERY[name].process, EVERY[name].data(N)
    start, cond = EVERY[name].start(N), EVERY[name].cond(N)
    assert isinstance(process, orn.processes.Process)
    x1 = {} if start is None else {"x1": start}
    t = torch.tensor([0.2, 0.5, 0.8], dtype=F64)
    draw, again = (process.corrupt(x0, t, cond=cond, seed=4, **x1) for _ in range(2))
    for view in process.views:
        target, twin = draw.target(view), again.target(view)
        for part, other in zip(*((p if isinstance(p, tuple) else (p,)) for p in (target, twin)), strict=True):
            assert part.shape == x0.shape
            assert bool(part.isfinite().all())
            assert torch.equal(part, other)
    if start is None:
        prior = process.prior((N, 2), seed=1, cond=cond, dtype=F64)
        assert process.data_of(prior).shape == (N, 2)
    else:
        with pytest.raises(ValueError, match="x_init"):
            process.prior((N, 2), seed=1, cond=cond)


@pytest.mark.parametrize("name", EVERY)
def test_a_model_of_it_is_one_file(name: str, tmp_path: Path) -> None:
    """Written and read back: the same process, and the same answer to the last bit; or refused with the reason."""
    case = EVERY[name]
    net = orn.nets.MLP(2, width=8, depth=1, conditions=dict.fromkeys(case.cond(N) or {}, 0))
    if isinstance(case.process, PhaseSpace):
        net = orn.nets.Joined(orn.nets.MLP(4, width=8, depth=1))
    model = orn.Denoiser(net, case.process, case.process.views[0])
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(0.1)
    if name == "a fitted end":
        with pytest.raises(ValueError, match="Shortened"):
            orn.save(model, tmp_path / "model.safetensors")
        return
    orn.save(model, tmp_path / "model.safetensors")
    again = orn.load(tmp_path / "model.safetensors")
    assert repr(again.process) == repr(case.process)
    start, cond = case.start(N), case.cond(N)
    x1 = {} if start is None else {"x1": start}
    x = case.process.corrupt(case.data(N), 0.4, cond=cond, seed=0, **x1).x
    x = type(x)(*(part.float() for part in x)) if isinstance(x, tuple) else x.float()
    cond = None if cond is None else {key: value.float() for key, value in cond.items()}
    one, two = model(x, 0.4, cond).output, again(x, 0.4, cond).output
    for a, b in zip(*((o if isinstance(o, tuple) else (o,)) for o in (one, two)), strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(again.process.level(0.4).sigma, case.process.level(0.4).sigma, rtol=0, atol=0)


def test_the_page_says_what_the_processes_say() -> None:
    """`python tests/every_process.py` prints the table anew."""
    assert page() in (Path(__file__).parents[2] / "docs" / "processes.md").read_text()


def test_the_weight_between_two_laws_is_of_unit_targets() -> None:
    """UnitTarget divides by E |velocity target|^2 of ends and noise of unit size: alpha'^2 + beta'^2 + gamma'^2."""
    process = orn.Interpolant(noise_level=0.7)
    t = torch.tensor([0.1, 0.5, 0.8], dtype=F64)
    weight = orn.training.UnitTarget()(process.level(t), "velocity", process)
    torch.testing.assert_close(weight, 1 / (1 + 1 + 0.7 * (1 - 2 * t) ** 2 / (4 * t * (1 - t))))


def test_coloured_steps_are_not_recorded_as_white() -> None:
    case = EVERY["Correlated"]
    with pytest.raises(ValueError, match=r"Correlated.*has another"):
        orn.record(case.denoiser(), shape=(N, 2), solver=orn.DDPM(), steps=4, seed=0)
