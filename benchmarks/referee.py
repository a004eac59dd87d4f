"""The referee on other people's samplers and on our own: results/referee.json and the tables of docs/referee.md.

The peers are installed by hand, without what they ask for: pip install --no-deps k-diffusion azula. A package that is
not there is left out and named. Run as `python benchmarks/referee.py`; about five minutes on one core.
"""

from __future__ import annotations

import importlib
import json
import platform
import re
import sys
import types
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import ornstein as orn
from ornstein.referee import Candidate, adapt, certify, for_solver
from ornstein.referee.report import CHECKS

ROOT = Path(__file__).parent


def k_diffusion() -> Any:
    """k_diffusion.sampling without the package's __init__, which asks for torchvision and more."""
    package = types.ModuleType("k_diffusion")
    spec = find_spec("k_diffusion")
    assert spec is not None
    package.__path__ = list(spec.submodule_search_locations or ())
    utils: Any = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.dim())]
    vars(package)["utils"] = utils
    sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    return importlib.import_module("k_diffusion.sampling")


def peers() -> dict[str, list[tuple[Candidate, str]]]:
    """Candidates by package, each with what is known of it: a word of the check that should fail, or "sound"."""
    found: dict[str, list[tuple[Candidate, str]]] = {}
    if find_spec("diffusers"):
        d = importlib.import_module("diffusers")
        found["diffusers"] = [
            (adapt(scheduler), known)
            for scheduler, known in (
                (d.DPMSolverMultistepScheduler, "end rival options"),
                (d.DPMSolverMultistepScheduler(solver_order=3, use_karras_sigmas=True), "order"),
                (d.DPMSolverMultistepScheduler(use_karras_sigmas=True), "sound"),
                (d.UniPCMultistepScheduler(), "end"),
                (d.UniPCMultistepScheduler(use_karras_sigmas=True), "sound"),
                (d.DEISMultistepScheduler, "end"),
                (d.DEISMultistepScheduler(use_karras_sigmas=True), "end"),
                (d.DPMSolverSinglestepScheduler(), ""),
                (d.EulerDiscreteScheduler(), "sound"),
                (d.HeunDiscreteScheduler(), "sound"),
                (d.KDPM2DiscreteScheduler(), ""),
                (d.LMSDiscreteScheduler(), ""),
                (d.DDIMScheduler(), ""),
                (d.DDIMScheduler(timestep_spacing="linspace"), ""),
                (d.PNDMScheduler(), ""),
                (d.DDPMScheduler(), ""),
                (d.EulerAncestralDiscreteScheduler(), ""),
                (d.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True), ""),
                (d.SASolverScheduler(), ""),
                (d.FlowMatchEulerDiscreteScheduler(), "sound"),
                (d.FlowMatchHeunDiscreteScheduler(), ""),
                (d.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), ""),
            )
        ]
    if find_spec("k_diffusion"):
        k = k_diffusion()
        found["k-diffusion"] = [
            (adapt(fn, "k-diffusion", **options), known)
            for fn, options, known in (
                (k.sample_euler, {}, "sound"),
                (k.sample_heun, {}, "sound"),
                (k.sample_dpm_2, {}, "sound"),
                (k.sample_lms, {}, "sound"),
                (k.sample_dpmpp_2m, {}, "sound"),
                (k.sample_dpmpp_2s_ancestral, {"eta": 0.0}, ""),
                (k.sample_dpmpp_3m_sde, {"eta": 0.0, "noise_sampler": _no_noise}, "order"),
                (k.sample_dpmpp_2m_sde, {}, ""),
                (k.sample_euler_ancestral, {}, "sound"),
                (k.sample_dpm_adaptive, {"rtol": 0.01}, ""),
            )
        ]
    if find_spec("azula"):
        a = importlib.import_module("azula.sample")
        found["azula"] = [
            (adapt(cls, "azula", **options), known)
            for cls, options, known in (
                (a.REABSampler, {}, "order"),
                (a.xEABSampler, {}, "sound"),
                (a.xEABSampler, {"order": 3}, ""),
                (a.zEABSampler, {}, "sound"),
                (a.zABSampler, {}, "sound"),
                (a.vABSampler, {}, "sound"),
                (a.EulerSampler, {}, "sound"),
                (a.DDIMSampler, {}, "sound"),
                (a.HeunSampler, {}, "sound"),
                (a.DDPMSampler, {}, "sound"),
                (a.ItoSampler, {}, ""),
            )
        ]
    return found


def _no_noise(*_: Any) -> float:
    return 0.0


def own() -> list[Candidate]:
    """Every solver of ours that is made without arguments, with its defaults, on three processes."""
    kinds = [getattr(orn.solvers, name) for name in orn.solvers.__all__]
    kinds = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, orn.Solver)]
    made = []
    for kind in kinds:
        if kind is orn.solvers.DPMSolverV3:
            continue  # it must be calibrated on the model first
        try:
            made += [for_solver(kind(), process=process) for process in (orn.VP(), orn.EDM(), orn.Flow())]
        except TypeError:
            continue  # an abstract class, or one that needs an argument
    return made


COLUMNS = tuple(name for name in CHECKS if name != "runs")


def cell(row: dict[str, Any], check: str) -> str:
    """The verdict on one check, with the measured order."""
    found = next((f for f in row["findings"] if f["check"] == check), None)
    if found is None or found["verdict"] == "not applicable":
        return ""
    if check == "order":
        return f"**{found['figure']}**" if found["verdict"] == "fail" else found["figure"]
    return "**fail**" if found["verdict"] == "fail" else "pass"


def page(rows: list[dict[str, Any]], missing: list[str]) -> str:
    """The tables of docs/referee.md, and the faults found in words."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in rows:
        if row["package"] != "ornstein":
            cells = " | ".join(cell(row, check) for check in COLUMNS)
            lines.append(f"| {row['package']} `{row['name']}` | {cells} |")
    lines += ["", "What failed, in the referee's words:", ""]
    for row in rows:
        for found in row["findings"]:
            if found["verdict"] == "fail" and row["package"] != "ornstein":
                why = " ".join(found["why"].split())
                why = why if len(why) < 300 else why[:300] + " ..."
                lines.append(f"- {row['package']} `{row['name']}`, {found['check']}: {found['figure']}; {why}.")
    ours = [row for row in rows if row["package"] == "ornstein"]
    ran = [f for row in ours for f in row["findings"] if f["verdict"] != "not applicable"]
    failed = [(row["name"], f) for row in ours for f in row["findings"] if f["verdict"] == "fail"]
    each = f"{len(ours) // 3} solvers with their defaults, each on VP, EDM and Flow"
    lines += ["", f"Our own, {each}: {len(failed)} of {len(ran)} checks failed."]
    lines += [f"- `{name}`, {f['check']}: {f['figure']}; {f['why']}." for name, f in failed]
    if missing:
        lines += ["", f"Not installed here: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    packages = peers()
    for package, candidates in [*packages.items(), ("ornstein", [(candidate, "sound") for candidate in own()])]:
        for candidate, known in candidates:
            report = certify(candidate)
            rows.append({"package": package, "known": known, **report.to_json()})
            print(package, report.table(), "", sep="\n", flush=True)
    for row in rows:  # the curves are in each report's own page
        for found in row["findings"]:
            del found["series"]
    names = {"diffusers": "diffusers", "k-diffusion": "k-diffusion", "azula": "azula"}
    machine = {"processor": platform.machine(), "torch": torch.__version__}
    versions = {package: version(name) for package, name in names.items() if package in packages}
    kept = {"machine": machine, "versions": versions, "rows": rows}
    ROOT.joinpath("results", "referee.json").write_text(json.dumps(kept, indent=1) + "\n")
    docs = ROOT.parent / "docs" / "referee.md"
    table = page(rows, [package for package in names if package not in packages])
    marked = re.compile(r"(<!-- found -->\n).*(<!-- end -->)", re.DOTALL)
    docs.write_text(marked.sub(lambda m: m[1] + table + m[2], docs.read_text()))
    unfound = [r["name"] for r in rows if not set(r["known"].split()) - {"sound"} <= failures(r)]
    unsound = [r["name"] for r in rows if r["known"] == "sound" and not r["passed"]]
    print("known faults not found:", unfound, "\nsound samplers not passed:", unsound)


def failures(row: dict[str, Any]) -> set[str]:
    return {f["check"] for f in row["findings"] if f["verdict"] == "fail"}


if __name__ == "__main__":
    main()
