"""Running the checks in a process of their own, so that a sampler that hangs or kills it is a finding."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pickle import PicklingError
from typing import Any

import torch

from .adaptors import adapt
from .candidate import Candidate, Claims
from .checks import CHECKS, told
from .report import Finding, Report

NAMES = tuple(check.__name__ for check in CHECKS)


def certify(
    fn: Any,
    *,
    adaptor: str = "auto",
    claims: Claims | None = None,
    checks: Sequence[str] | None = None,
    timeout: float = 120.0,
    isolate: bool = True,
    **options: Any,
) -> Report:
    """Check a sampler against ground truth, whoever wrote it.

        report = orn.certify(UniPCMultistepScheduler(use_karras_sigmas=True))
        print(report.table())
        report.save("runs/unipc")

    Each run asks an exact denoiser, which counts; its end is compared with the exact flow, or law, between the first
    and last noise level that the sampler itself used. Thirteen checks: runs, order, constant, law, nfe, batch, shapes,
    seeds, dtype, end, options, converges, rival.

    Args:
        fn: a diffusers scheduler (class or object), a k-diffusion function, an azula sampler class, one of our solvers,
            or fn(denoise, x, sigmas[, generator]) with x = x0 + sigma noise and denoise(x, sigma) -> x0.
        adaptor: "auto", "callable", "k-diffusion", "azula", "diffusers" or "solver".
        claims: what is said of it; what is left open is read off the object where it says so.
        checks: names of the checks to run, all by default.
        timeout: seconds a check may take.
        isolate: run in a child process, which may hang or die without harm. Without it only exceptions are caught.
        options: passed on to the sampler.

    Raises:
        ValueError: for an object that is no sampler, or an unknown adaptor or check. What the sampler itself raises
            is a finding.
    """
    if unknown := [name for name in checks or () if name not in NAMES]:
        raise ValueError(f"check {unknown[0]!r} is unknown: choose from {', '.join(NAMES)}")
    if not timeout > 0:
        raise ValueError(f"timeout={timeout}: a positive number of seconds")
    candidate = adapt(fn, adaptor, claims, **options)
    chosen = [name for name in NAMES if checks is None or name in checks]
    found = _apart(candidate, chosen, timeout) if isolate else _here(candidate, chosen)
    return Report(candidate.name, tuple(found))


def judge(candidate: Candidate, name: str) -> Finding:
    """One check; an exception of the sampler's is a finding."""
    check = CHECKS[NAMES.index(name)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the sampler's own
        try:
            return check(candidate)
        except Exception as raised:
            return Finding(name, "fail", told(raised), "", "it raises an error")


def _here(candidate: Candidate, names: Sequence[str]) -> list[Finding]:
    found: list[Finding] = []
    for name in names:
        found.append(_unrun(name) if _stopped(found) else judge(candidate, name))
    return found


def _apart(candidate: Candidate, names: Sequence[str], timeout: float) -> list[Finding]:
    """The findings, from as many child processes as it takes; a check that hangs or dies is not tried again."""
    found: list[Finding] = []
    lost = 0
    while len(found) < len(names):
        if _stopped(found) or lost == 3:
            found += [_unrun(name) for name in names[len(found) :]]
            break
        left = names[len(found) :]
        with _child(candidate, left) as (process, results):
            for name in left:
                if not results.poll(timeout):
                    found.append(Finding(name, "fail", f"no end after {timeout:g} s", "", "it hangs"))
                    lost += 1
                    break
                try:
                    found.append(results.recv())
                except EOFError:
                    process.join(5)
                    found.append(Finding(name, "fail", f"exit code {process.exitcode}", "", "it ends the process"))
                    lost += 1
                    break
                if _stopped(found):
                    break
    return found


def _stopped(found: Sequence[Finding]) -> bool:
    """Whether the first check says that nothing else is worth running."""
    return bool(found) and found[0].check == "runs" and found[0].verdict == "fail"


def _unrun(name: str) -> Finding:
    return Finding(name, "not applicable", why="not run: the sampler did not get so far")


@contextlib.contextmanager
def _child(candidate: Candidate, names: Sequence[str]) -> Any:
    """A process that runs the checks and sends each finding; killed at the end of the block.

    Where the system can, it is a fork, so that a sampler defined anywhere can be tested; elsewhere the sampler must be
    importable.
    """
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(candidate, list(names), send), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: the child uses one alone
        try:
            process.start()
        except (AttributeError, TypeError, PicklingError) as error:  # where a child is no fork
            raise ValueError(f"{candidate.name} cannot go to another process: isolate=False ({error})") from error
    send.close()
    try:
        yield process, receive
    finally:
        process.kill()
        process.join()
        receive.close()


def _work(candidate: Candidate, names: Sequence[str], send: Connection) -> None:
    torch.set_num_threads(1)  # the parent's pool of threads did not come along
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what the sampler prints, by whatever way
        os.dup2(silent, stream)
    for name in names:
        send.send(judge(candidate, name))
