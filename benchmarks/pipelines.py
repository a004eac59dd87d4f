"""Errors of diffusers' default settings and of ours in unmodified pipelines, around exact networks.

    python benchmarks/pipelines.py

Two worlds, as in solvers.py: a ring of six modes in 2-D and the digits of scikit-learn in 64-D; their exact noise (v,
velocity) under a published schedule stands where a trained network would. Every pipeline is diffusers' own class: only
`pipe.scheduler` is exchanged. Six published configurations (tests/interop/schedulers), each with its own scheduler, the
schedulers that people put in its place, and ours, at 10, 20 and 50 steps.

What is judged is what a user gets from a seed. The initial noise z is the same for all. The truth is the endpoint of
the exact flow of the whole process, from z at t = 1 (the last of the 1000 timesteps; pure noise for a flow) to data:

    error = median over 64 starts of |what the pipeline returns - flow(z, 1, 0)|                     (float64)

Some schedulers begin below t = 1 ("leading" spacing), or at another multiple of z, and some stop before data: that is
part of what their user gets. `own` is the same median against the flow from the state and level at which the network
was first asked, to data: the error of the steps alone. `asked` is the timestep of that first question, `calls` the
number of questions. A sampler with fresh noise has no such error; the pixel model's samplers are also compared in law:

    law = W2 of 512 samples and 512 exact ones                   (`law_floor`: W2 of two exact sets of 512)

Pixel pipelines clip to [-1, 1]: for those the worlds are scaled to lie inside. A second part measures single habits of
published schedulers on the ring (`habits`). Writes benchmarks/results/pipelines.json, pipelines.png and the tables of
docs/diffusers.md.
"""

from __future__ import annotations

import json
import math
import platform
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import matplotlib.pyplot as plt
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from sklearn.datasets import load_digits
from torch import Tensor

import ornstein as orn
from ornstein.interop import OrnsteinScheduler, schedule_of

ROOT = Path(__file__).parent
SCHEDULERS = ROOT.parent / "tests" / "interop" / "schedulers"
BUDGETS = (10, 20, 50)
STARTS, MANY = 64, 512
F64 = torch.float64
CASES = {
    "DDPM CIFAR-10": ("ddpm_cifar10_32", "pixels"),
    "Stable Diffusion 1.5": ("stable_diffusion_v1_5", "latents"),
    "SDXL": ("sdxl_base_1_0", "latents"),
    "Stable Diffusion 2.1": ("stable_diffusion_2_1", "latents"),
    "DiT-XL/2 256": ("dit_xl_2_256", "latents"),
    "Stable Diffusion 3": ("stable_diffusion_3_medium", "flow"),
}
Make = Callable[[Any], Any]


class ExactNetwork(ModelMixin, ConfigMixin):
    """The exact answer of a world under a published schedule, to whoever asks as diffusers pipelines do."""

    config_name = "config.json"

    @register_to_config
    def __init__(
        self, scheduler: dict, in_channels: int, sample_size: int, time_cond_proj_dim: int | None = None,
        patch_size: int = 1,
    ):  # fmt: skip
        super().__init__()
        self.schedule = schedule_of(scheduler)
        process = self.schedule.process
        if isinstance(process, orn.DiscreteTime):  # one network, whatever its sampler reads between the timesteps
            process = orn.DiscreteTime(process.alphas_cumprod)
        self.process = process
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=F64))
        self.world: Any = None
        self.asked: list[tuple[Tensor, Tensor]] = []

    def level(self, timestep: Tensor) -> Any:
        t = torch.as_tensor(timestep, dtype=F64).reshape(-1)[0]
        steps = getattr(self.process, "steps", None)
        return self.process.level(t / 1000 if steps is None else (t + 1) / steps)

    def forward(self, x=None, t=None, *, hidden_states=None, timestep=None, return_dict=True, **_):
        x, t = (hidden_states, timestep) if x is None else (x, t)
        t = torch.as_tensor(t, dtype=F64).reshape(-1)[0]
        self.asked.append((t, x))
        view = self.schedule.predicts
        p = self.world.denoiser(self.process, predicts=view)(x.flatten(1).to(F64), self.level(t))
        answer = p.view(view).reshape(x.shape).to(x.dtype)
        return SimpleNamespace(sample=answer) if return_dict else (answer,)


def worlds(pixels: bool) -> dict[str, orn.exact.GaussianMixture]:
    angles = torch.arange(6, dtype=F64) * math.pi / 3
    ring = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    digits = torch.as_tensor(load_digits().data[:300] / 8 - 1)
    small, little = (0.35, 0.6) if pixels else (1.0, 1.0)  # within [-1, 1] by more than four standard deviations
    return {
        "ring": orn.exact.GaussianMixture(small * ring, torch.full((6,), small * 0.15, dtype=F64)),
        "digits": orn.exact.GaussianMixture(little * digits, torch.full((300,), little * 0.15, dtype=F64)),
    }


def swap(name: str, **options: Any) -> Make:
    """What users write: another class of diffusers, from the published configuration."""
    return lambda published: getattr(diffusers, name).from_config(published.config, **options)


def ours(solver: orn.Solver, grid: orn.Grid | str = "published") -> Make:
    return lambda published: OrnsteinScheduler.from_config(published, solver=solver, grid=grid)


OURS: dict[str, Make] = {
    "ours, published times": ours(orn.DPMSolverPP()),
    "ours": ours(orn.DPMSolverPP(), orn.LogSNR()),
    "ours, UniPC": ours(orn.solvers.UniPC(), orn.LogSNR()),
}
DISCRETE: dict[str, Make] = {
    "published": lambda published: published,
    "DDIM": swap("DDIMScheduler"),
    "Euler": swap("EulerDiscreteScheduler"),
    "DPM++ 2M": swap("DPMSolverMultistepScheduler"),
    "DPM++ 2M Karras": swap("DPMSolverMultistepScheduler", use_karras_sigmas=True),
    "UniPC": swap("UniPCMultistepScheduler"),
    "UniPC Karras": swap("UniPCMultistepScheduler", use_karras_sigmas=True),
    "DEIS Karras": swap("DEISMultistepScheduler", use_karras_sigmas=True),
    **OURS,
}
as_flow = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
FLOW: dict[str, Make] = {
    "published": lambda published: published,
    "DPM++ 2M": swap("DPMSolverMultistepScheduler", **as_flow),
    "UniPC": swap("UniPCMultistepScheduler", **as_flow),
    **OURS,
}
STOCHASTIC = ("DDPMScheduler",)


def pipeline(kind: str, network: ExactNetwork, scheduler: Any) -> Any:
    """The unmodified pipeline of a kind, with nothing in it but the network and the scheduler."""
    match kind:
        case "pixels":
            pipe: Any = diffusers.DDPMPipeline(network, scheduler)
        case "latents":
            pipe = diffusers.StableDiffusionPipeline(
                None, None, None, network, scheduler, None, None, requires_safety_checker=False
            )
        case _:
            pipe = diffusers.StableDiffusion3Pipeline(network, scheduler, *(None,) * 7)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(kind: str, pipe: Any, z: Tensor, steps: int) -> Tensor:
    """The samples of a pipeline from initial noise z, (n, dim)."""
    n, side = len(z), pipe.components.get("unet", pipe.components.get("transformer")).config.sample_size
    state = z.reshape(n, -1, side, side)
    text = torch.zeros(n, 1, 1, dtype=F64)
    common = {"num_inference_steps": steps, "output_type": "latent", "latents": state, "prompt_embeds": text}
    match kind:
        case "pixels":  # this pipeline draws z itself, from the seed that `noise` used
            generator = torch.Generator().manual_seed(0)
            images = pipe(batch_size=n, generator=generator, num_inference_steps=steps, output_type="pt").images
            return (2 * images - 1).flatten(1)
        case "latents":
            return pipe(guidance_scale=1.0, **common).images.flatten(1)
        case _:
            zero = torch.zeros(n, 1, dtype=F64)
            return pipe(guidance_scale=0.0, pooled_prompt_embeds=zero, height=8, width=8, **common).images.flatten(1)


def noise(n: int, shape: tuple[int, int, int]) -> Tensor:
    drawn: Tensor = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    return drawn.flatten(1)


FLOWS: list[tuple[str, Any, float, Tensor, Tensor]] = []


def flow(name: str, network: ExactNetwork, x: Tensor, t: float) -> Tensor:
    """The exact flow of a world from x at t to data; several configurations share one schedule, so it is kept."""
    process, name = network.process, f"{name}, size {network.world.scale:.4g}"
    for kept in FLOWS:
        if kept[:3] == (name, process, t) and kept[3].shape == x.shape and float((kept[3] - x).abs().max()) < 1e-6:
            return kept[4]
    end: Tensor = network.world.flow(process, x, t, 0.0, rtol=1e-6, atol=1e-7)
    FLOWS.append((name, process, t, x, end))
    return end


def median(x: Tensor, y: Tensor) -> float:
    return float(f"{float((x - y).norm(dim=1).median()):.4g}")


def measure(case: str) -> list[dict[str, Any]]:
    file, kind = CASES[case]
    config = json.loads((SCHEDULERS / f"{file}.json").read_text())["config"]
    published = getattr(diffusers, config["_class_name"]).from_config(config)
    rows: list[dict[str, Any]] = []
    for name, world in worlds(kind == "pixels").items():
        shape = (world.dim, 1, 1)
        network = ExactNetwork({**published.config, "_class_name": config["_class_name"]}, world.dim, 1)
        network.world = world
        z = noise(STARTS, shape)
        truth = flow(name, network, z, 1.0)
        several = world.sample(MANY, seed=1).to(F64), world.sample(MANY, seed=2).to(F64)
        floor = orn.metrics.wasserstein2(*several)
        for method, make in (FLOW if kind == "flow" else DISCRETE).items():
            for steps in BUDGETS:
                pipe = pipeline(kind, network, make(published))
                network.asked = []
                try:
                    out = run(kind, pipe, z, steps)
                except TypeError as error:  # a scheduler that this pipeline cannot call
                    rows.append({"case": case, "world": name, "method": method, "steps": steps, "refused": str(error)})
                    continue
                asked, first = network.asked[0]
                row = {"case": case, "world": name, "method": method, "class": type(pipe.scheduler).__name__}
                row |= {"steps": steps, "calls": len(network.asked), "asked": float(f"{float(asked):.6g}")}
                if row["class"] not in STOCHASTIC:
                    start = float(network.level(asked).t)
                    row |= {
                        "error": median(out, truth),
                        "own": median(out, flow(name, network, first.flatten(1), start)),
                    }
                if kind == "pixels":
                    found = run(kind, pipeline(kind, network, make(published)), noise(MANY, shape), steps)
                    row |= {"law": float(f"{orn.metrics.wasserstein2(found, several[0]):.4g}")}
                    row |= {"law_floor": float(f"{floor:.4g}")}
                rows.append(row)
    return rows


MULTISTEP = "DPMSolverMultistepScheduler"
SHORT = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}
HABITS: dict[str, Make] = {
    "DPM++ 2M": swap(MULTISTEP),
    "DPM++ 2M, trailing": swap(MULTISTEP, timestep_spacing="trailing"),
    "Euler": swap("EulerDiscreteScheduler"),
    "DPM++ 2M, Karras": swap(MULTISTEP, use_karras_sigmas=True),
    "ours, same times": lambda p: ours(orn.DPMSolverPP())(HABITS["DPM++ 2M, Karras"](p)),
    "DPM++ 3M, Karras, sigma_min": swap(MULTISTEP, solver_order=3, **SHORT),
    "ours of order 3, same times": lambda p: ours(orn.DPMSolverPP(order=3))(HABITS["DPM++ 3M, Karras, sigma_min"](p)),
    "DEIS, Karras": swap("DEISMultistepScheduler", use_karras_sigmas=True),
    "ours": ours(orn.DPMSolverPP(), orn.LogSNR()),
}
FLOW_HABITS: dict[str, Make] = {
    "flow Euler, shift 3": lambda published: published,
    "flow Euler, shifted once": lambda published: ShiftedOnce.from_config(published.config),
    "ours, flow, published times": OURS["ours, published times"],
    "ours, flow": OURS["ours"],
}


class ShiftedOnce(diffusers.FlowMatchEulerDiscreteScheduler):
    """The published times of a flow, without the shift that its smallest level had before."""

    def set_timesteps(self, num_inference_steps=None, device=None, **_):
        super().set_timesteps(sigmas=torch.linspace(1, 1 / 1000, num_inference_steps).tolist(), device=device)


def habits() -> list[dict[str, Any]]:
    """The ring under the schedules of Stable Diffusion 1.5 and 3: single habits, at up to 200 steps.

    last: sigma/alpha (flows: sigma) of the last three levels; repeats: how often the network was told one timestep
    twice in a row; nan: starts that ended in NaN.
    """
    rows: list[dict[str, Any]] = []
    world = worlds(False)["ring"]
    for file, kind, makes in (("stable_diffusion_v1_5", "latents", HABITS),
                              ("stable_diffusion_3_medium", "flow", FLOW_HABITS)):  # fmt: skip
        config = json.loads((SCHEDULERS / f"{file}.json").read_text())["config"]
        published = getattr(diffusers, config["_class_name"]).from_config(config)
        network = ExactNetwork({**published.config, "_class_name": config["_class_name"]}, 2, 1)
        network.world, z = world, noise(STARTS, (2, 1, 1))
        truth = flow("ring", network, z, 1.0)
        for method, make in makes.items():
            for steps in (*BUDGETS, 200):
                scheduler, network.asked = make(published), []
                out = run(kind, pipeline(kind, network, scheduler), z, steps)
                told = torch.stack([t for t, _ in network.asked])
                rows.append({
                    "method": method, "class": type(scheduler).__name__, "steps": steps, "calls": len(network.asked),
                    "error": median(out, truth), "last": [float(f"{v:.3g}") for v in scheduler.sigmas[-3:].tolist()],
                    "repeats": int((told.diff() == 0).sum()), "nan": int(out.isnan().any(1).sum()),
                })  # fmt: skip
    return rows


def table_of_habits(rows: list[dict[str, Any]]) -> str:
    lines = ["| scheduler | " + " | ".join(f"{n} steps" for n in (*BUDGETS, 200)) + " | last levels at 20 steps |"]
    lines.append("|---|" + "---|" * (len(BUDGETS) + 2))
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        cells = ["NaN" if row["nan"] else f"{row['error']:.3g}" for row in own]
        last = ", ".join(f"{value:g}" for value in own[1]["last"])
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {last} |")
    return "\n".join(lines) + "\n"


def cell(rows: list[dict[str, Any]], key: str = "error", **where: Any) -> str:
    for row in rows:
        if all(row[name] == value for name, value in where.items()):
            return "does not run" if "refused" in row else f"{row[key]:.3g}" if key in row else "-"
    return "-"


def tables(rows: list[dict[str, Any]]) -> str:
    lines: list[str] = []
    for world in ("ring", "digits"):
        for case in CASES:
            own = [row for row in rows if (row["case"], row["world"]) == (case, world)]
            columns = [("error", n) for n in BUDGETS]
            columns += [("law", n) for n in BUDGETS] if "law" in own[0] else []
            lines += [f"### {case}, {world}", ""]
            lines.append("| scheduler | " + " | ".join(f"{n} steps{', W2' * (k == 'law')}" for k, n in columns) + " |")
            lines.append("|---|" + "---|" * len(columns))
            for method in dict.fromkeys(row["method"] for row in own):
                label = method if method != "published" else f"published: {own[0]['class']}"
                cells = [cell(own, key, method=method, steps=n) for key, n in columns]
                lines.append(f"| {label} | " + " | ".join(cells) + " |")
            if "law" in own[0]:
                lines += ["", f"W2 of two exact sets: {own[0]['law_floor']:.3g}."]
            lines.append("")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]]) -> None:
    figure, axes = plt.subplots(2, len(CASES), figsize=(3 * len(CASES), 7), sharex=True, sharey="row")
    methods = list(DISCRETE)
    for i, world in enumerate(("ring", "digits")):
        for j, case in enumerate(CASES):
            axis = axes[i, j]
            for k, method in enumerate(methods):
                own = [
                    r for r in rows if (r["case"], r["world"], r["method"]) == (case, world, method) and "error" in r
                ]
                bold = method.startswith("ours")
                axis.plot(
                    [r["steps"] for r in own], [r["error"] for r in own], marker="osD^vP*Xhd<"[k],
                    color=f"C{k}" if k < 10 else "black",
                    label=method, lw=2.5 if bold else 1.2, zorder=3 if bold else 2,
                )  # fmt: skip
            axis.set(xscale="log", yscale="log", title=f"{case}, {world}")
            axis.title.set_fontsize(10)
            axis.set_xticks(BUDGETS, [str(n) for n in BUDGETS], minor=False)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            if i == 1:
                axis.set_xlabel("steps")
            if j == 0:
                axis.set_ylabel("median distance to the exact flow")
    handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=6, frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(ROOT / "results" / "pipelines.png", dpi=100)


def main() -> None:
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    rows = [row for case in CASES for row in measure(case)]
    single = habits()
    machine = {"processor": platform.machine(), "torch": torch.__version__, "diffusers": diffusers.__version__}
    machine |= {"starts": STARTS}
    found = {"machine": machine, "rows": rows, "habits": single}
    (ROOT / "results" / "pipelines.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(rows)
    page = ROOT.parent / "docs" / "diffusers.md"
    text = page.read_text()
    for name, table in (("errors", tables(rows)), ("habits", table_of_habits(single))):
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = marked.sub(lambda m, table=table: m[1] + table + m[2], text)
    page.write_text(text)


if __name__ == "__main__":
    main()
