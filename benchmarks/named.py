"""The named samplers that a tuned table has to beat; the list only grows.

Ours: UniPC (bh1, bh2, exact) to order 3, DPM++ 2M and 3M, DEIS, iPNDM, Adams-Bashforth and Heun, each on Karras rho 3
to 9, log-SNR, cosine, uniform, GITS and AYS. Theirs: every deterministic sampler of `peers.py` that is installed.
"""

from __future__ import annotations

from torch import Tensor

import ornstein as orn
from ornstein.tuning import Lessons

S = orn.solvers


def solvers() -> dict[str, orn.Solver]:
    unipc = {
        f"UniPC {k} {b}": S.UniPC(order=k, variant=b, start="published")
        for k in (1, 2, 3)
        for b in ("bh1", "bh2", "vary_coeff")
        if (k, b) != (1, "vary_coeff")
    }
    return {
        **unipc,
        "DPM++ 2M": orn.DPMSolverPP(order=2),
        "DPM++ 3M": orn.DPMSolverPP(order=3, start="published"),
        "DPM++ 3M published": orn.DPMSolverPP(order=3, start="published", variant="published"),
        **{f"DEIS {k} tAB": S.DEIS(order=k, start="published") for k in (1, 2, 3)},
        **{f"iPNDM {k}": S.PNDM(order=k, start="rising") for k in (2, 3, 4)},
        "Adams-Bashforth 3 in t": S.AdamsBashforth(3, "t", "published"),
        "Heun": orn.Heun(),
        "DDIM": orn.DDIM(),
    }


def grids() -> dict[str, orn.Grid]:
    karras = {
        f"Karras {rho}, {least}": orn.Karras(sigma_min=least, rho=float(rho))
        for rho in (3, 5, 7, 9)
        for least in (0.002, 0.01, 0.03, 0.1)
    }
    log_snr = {
        f"log-SNR {first} to {last}": orn.LogSNR(end=float(last), deepest=float(first))
        for first in (-3, -4, -5, -6)
        for last in (4, 5, 6, 8)
    }
    return {
        **karras,
        "log-SNR": orn.LogSNR(),
        **log_snr,
        "cosine": S.CosineGrid(),
        "cosine 0.5": S.CosineGrid(0.5),
        "uniform": orn.Uniform(),
        "quadratic": orn.Quadratic(),
    }


def calibrated(
    denoiser: orn.BaseDenoiser, few: Lessons, data: Tensor, cond: dict[str, Tensor] | None, budgets: tuple[int, ...]
) -> dict[str, orn.Grid]:
    """The grids that are found for a model, on some tuning starts (GITS) and some data (AYS)."""
    found: dict[str, orn.Grid] = {}
    for growth in (1.0, 1.15):
        made = S.GITS(steps=max(budgets), growth=growth).calibrate(denoiser, x_init=few.starts, cond=few.cond)
        found[f"GITS {growth}"] = made
    for end in (4.0, 6.0):
        found[f"AYS to {end}"] = S.AYS(steps=budgets, end=end).calibrate(denoiser, data, cond=cond, seed=0)
    return found


def tables(process: orn.GaussianProcess, nfe: int, more: dict[str, orn.Grid]) -> dict[str, orn.Table]:
    """Every named table within `nfe` evaluations, with the most steps that fit."""
    made: dict[str, orn.Table] = {}
    for solver, own in solvers().items():
        for grid, placed in {**grids(), **more}.items():
            for steps in range(nfe, 0, -1):
                try:
                    table = own.compile(process, placed(process, steps))
                except ValueError:  # the solver or the grid has none of so few steps
                    break
                if table.nfe <= nfe:
                    made[f"{solver}, {grid}"] = table
                    break
    return made
