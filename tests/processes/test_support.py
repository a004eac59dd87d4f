"""What a process says it supports runs, and what it does not is refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import ornstein as orn
from every_process import EVERY, Case, page, public
from ornstein.density import binomial_bound, variational_bound
from ornstein.processes import Binomial
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


def test_the_page_says_what_the_processes_say() -> None:
    """`python tests/every_process.py` prints the table anew."""
    assert page() in (Path(__file__).parents[2] / "docs" / "processes.md").read_text()
