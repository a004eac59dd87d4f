"""Time and ATen calls of one sampling step around a trivial network, beside peers and hand-written loops.

    python benchmarks/overhead.py [--rounds 15]

Every contender runs the same network (x0 = x/2 in its own convention), the same number of steps, on the same tensors.
Contenders take turns in each round of one process, so that a drift of the machine meets all alike; the figures are
medians over rounds and ratios of medians. Peers that are not installed are left out (pip install 'ornstein[bench]';
azula and k-diffusion with --no-deps). Writes benchmarks/results/overhead.json and overhead.png.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import platform
import re
import statistics
import sys
import time
import types
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ornstein as orn

STEPS = 50
SHAPES = [(64, 2), (16, 3, 64, 64)]
RESULTS = Path(__file__).parent / "results"
Run = Callable[[torch.Tensor], torch.Tensor]


class Count(TorchDispatchMode):
    """Counts ATen calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Half(torch.nn.Module):
    """x0 = x/2, whatever the time."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * 0.5


def ours(solver: orn.Solver) -> Run:
    process = orn.EDM()
    table = solver.compile(process, orn.Karras()(process, steps=STEPS))
    model = orn.Denoiser(Half(), process, predicts="x0")

    def run(x: torch.Tensor) -> torch.Tensor:
        return orn.sample(model, x_init=x, table=table, seed=0).x

    return run


def sigmas() -> list[float]:
    return orn.Karras()(orn.EDM(), steps=STEPS).sigma.tolist()


def hand_euler() -> Run:
    net, s = Half(), sigmas()

    @torch.no_grad()
    def run(x: torch.Tensor) -> torch.Tensor:
        times = torch.tensor(s)[:, None].expand(-1, len(x)).unbind(0)
        for i in range(STEPS):
            ratio = s[i + 1] / s[i]
            x = ratio * x + (1 - ratio) * net(x, times[i])
        return x

    return run


def hand_dpmpp() -> Run:
    import math

    net, s = Half(), sigmas()

    @torch.no_grad()
    def run(x: torch.Tensor) -> torch.Tensor:
        times = torch.tensor(s)[:, None].expand(-1, len(x)).unbind(0)
        old = None
        for i in range(STEPS):
            d = net(x, times[i])
            ratio = s[i + 1] / s[i]
            if old is None or s[i + 1] == 0:
                x = ratio * x + (1 - ratio) * d
            else:
                r = math.log(s[i - 1] / s[i]) / math.log(s[i] / s[i + 1])
                x = ratio * x + (1 - ratio) * (1 + 1 / (2 * r)) * d - (1 - ratio) / (2 * r) * old
            old = d
        return x

    return run


def straight_line(solver: orn.Solver) -> Run:
    """What one would write by hand who knew all numbers beforehand: one line of Python for each row, no loop at all,
    the noise prediction formed once where it is read, every tensor let go after its last use."""
    table = solver.compile(orn.EDM(), orn.Karras()(orn.EDM(), steps=STEPS))
    assert isinstance(table, orn.Table)
    views = {(str(e.index), view) for e in table.evaluations for view in ("x0", "noise")}
    read = {(str(a.evaluation), a.view) for row in table.rows for a in row.terms if hasattr(a, "view")} & views
    lines: list[str] = []

    def name(atom: object) -> str:
        return str(atom) if not hasattr(atom, "view") else f"{atom.view}_{atom.evaluation}"

    for kind, index in table.order:
        if kind == "evaluate":
            e = table.evaluations[index]
            lines.append(f"x0_{index} = net(r{e.register}, times[{index}])")
            if (str(index), "noise") in read:
                lines.append(f"noise_{index} = (r{e.register} - x0_{index}) / {float(e.level.sigma)!r}")
            continue
        terms = table.rows[index].terms
        lines += [f"{atom} = torch.randn(r0.shape, generator=rng)" for atom in terms if str(atom)[0] == "z"]
        lines.append(f"r{index} = " + " + ".join(f"{float(c)!r} * {name(atom)}" for atom, c in terms.items()))
    last = {word: i for i, line in enumerate(lines) for word in re.findall(r"\b(?:r|z|x0_|noise_)\d+\b", line)}
    for word, i in sorted(last.items()):
        if word != str(table.result):
            lines[i] += f"; del {word}"
    code = compile("\n".join(lines), repr(solver), "exec")
    net, levels = Half(), table.levels.sigma.float()

    @torch.no_grad()
    def run(x: torch.Tensor) -> torch.Tensor:
        times = levels[:, None].expand(-1, len(x)).unbind(0)
        rng = torch.Generator().manual_seed(0)
        names = {"net": net, "times": times, "torch": torch, "rng": rng, "r0": x}
        exec(code, names)
        result: torch.Tensor = names[str(table.result)]
        return result

    return run


@functools.cache
def k_diffusion_sampling() -> types.ModuleType:
    """k-diffusion's sampling.py alone: the package around it imports a dozen heavy ones."""
    spec = importlib.util.find_spec("k_diffusion")
    assert spec is not None
    assert spec.origin is not None
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = [str(Path(spec.origin).parent)]
    package.utils = utils
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    return importlib.import_module("k_diffusion.sampling")


def k_diffusion(name: str) -> Run:
    sampler, net, grid = getattr(k_diffusion_sampling(), name), Half(), torch.tensor(sigmas())

    def run(x: torch.Tensor) -> torch.Tensor:
        return sampler(net, x, grid, disable=True)

    return run


def diffusers(name: str, **options: object) -> Run:
    import diffusers as lib

    class_ = getattr(lib, name)

    @torch.no_grad()
    def run(x: torch.Tensor) -> torch.Tensor:
        scheduler = class_(**options)
        scheduler.set_timesteps(STEPS)
        scale = getattr(scheduler, "scale_model_input", lambda x, t: x)  # flow schedulers have none
        for t in scheduler.timesteps:
            x = scheduler.step(scale(x, t) * 0.5, t, x).prev_sample
        return x

    return run


def azula(name: str) -> Run:
    from azula import sample as samplers
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import VPSchedule

    class Trivial(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = VPSchedule()

        def forward(self, x, t, **kwargs):  # type: ignore[no-untyped-def]
            return DiracPosterior(mean=x * 0.5)

    sampler = getattr(samplers, name)(Trivial(), steps=STEPS, silent=True)

    @torch.no_grad()
    def run(x: torch.Tensor) -> torch.Tensor:
        return sampler(x)

    return run


MORE: dict[str, orn.Solver] = {
    "UniPC 2": orn.solvers.UniPC(order=2),
    "DPM++ 3M": orn.DPMSolverPP(order=3),
    "DEIS 3 tAB": orn.solvers.DEIS(order=3),
    "Adams-Bashforth 4": orn.solvers.AdamsBashforth(order=4),
    "SA-Solver": orn.solvers.SASolver(),
    "RK4": orn.solvers.RK4(),
}
CONTENDERS: dict[str, tuple[str, Callable[[], Run]]] = {
    "ornstein Euler (DDIM)": ("order 1", lambda: ours(orn.DDIM())),
    "hand-written Euler": ("order 1", hand_euler),
    "k-diffusion euler": ("order 1", lambda: k_diffusion("sample_euler")),
    "diffusers EulerDiscrete": ("order 1", lambda: diffusers("EulerDiscreteScheduler", prediction_type="sample")),
    "diffusers FlowMatchEuler": ("order 1", lambda: diffusers("FlowMatchEulerDiscreteScheduler")),
    "diffusers DDIM": ("order 1", lambda: diffusers("DDIMScheduler", prediction_type="sample")),
    "azula DDIM": ("order 1", lambda: azula("DDIMSampler")),
    "ornstein DPM++ 2M": ("DPM++ 2M", lambda: ours(orn.DPMSolverPP(order=2))),
    "hand-written DPM++ 2M": ("DPM++ 2M", hand_dpmpp),
    "k-diffusion dpmpp_2m": ("DPM++ 2M", lambda: k_diffusion("sample_dpmpp_2m")),
    "diffusers DPM++ 2M": (
        "DPM++ 2M",
        lambda: diffusers("DPMSolverMultistepScheduler", prediction_type="sample", solver_order=2),
    ),
    "azula xEAB 2": ("DPM++ 2M", lambda: azula("xEABSampler")),
    "ornstein DDPM": ("ancestral", lambda: ours(orn.DDPM())),
    "diffusers DDPM": ("ancestral", lambda: diffusers("DDPMScheduler", prediction_type="sample", clip_sample=False)),
    "k-diffusion euler_ancestral": ("ancestral", lambda: k_diffusion("sample_euler_ancestral")),
    "diffusers UniPC": ("UniPC 2", lambda: diffusers("UniPCMultistepScheduler", prediction_type="sample")),
    "diffusers DEIS": ("DEIS 3 tAB", lambda: diffusers("DEISMultistepScheduler", prediction_type="sample")),
    "k-diffusion lms": ("Adams-Bashforth 4", lambda: k_diffusion("sample_lms")),
    "diffusers SA": ("SA-Solver", lambda: diffusers("SASolverScheduler", prediction_type="sample")),
}
for _name, _solver in MORE.items():
    CONTENDERS[f"ornstein {_name}"] = (_name, lambda solver=_solver: ours(solver))
    CONTENDERS[f"hand-written {_name}"] = (_name, lambda solver=_solver: straight_line(solver))


def measure(rounds: int) -> list[dict[str, object]]:
    runs: dict[str, Run] = {}
    for name, (_, make) in CONTENDERS.items():
        try:
            runs[name] = make()
            runs[name](torch.randn(4, 3, 8, 8))
        except Exception as error:  # a peer that is missing or changed is left out, and said so
            if name.startswith(("ornstein", "hand")):
                raise
            print(f"left out: {name}: {type(error).__name__}: {error}")
            runs.pop(name, None)
    rows: list[dict[str, object]] = []
    for shape in SHAPES:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds + 1):  # the first round warms up
            for name, run in runs.items():
                start = time.perf_counter()
                run(x)
                times[name].append((time.perf_counter() - start) / STEPS * 1e6)
        for name, run in runs.items():
            with Count() as count:
                run(x)
            rows.append(
                {
                    "contender": name,
                    "method": CONTENDERS[name][0],
                    "shape": list(shape),
                    "us_per_step": round(statistics.median(times[name][1:]), 2),
                    "fastest": round(min(times[name][1:]), 2),
                    "aten_calls_per_step": round(sum(count.calls.values()) / STEPS, 2),
                }
            )
    return rows


def plot(rows: list[dict[str, object]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(SHAPES), figsize=(12, 9), sharey=True)
    for axis, shape in zip(axes, SHAPES, strict=True):
        own = [row for row in rows if row["shape"] == list(shape)][::-1]
        names = [str(row["contender"]) for row in own]
        colours = [
            "#1f77b4" if n.startswith("ornstein") else "#b0b0b0" if n.startswith("hand") else "#ff9f4a" for n in names
        ]
        bars = axis.barh(names, [float(str(row["us_per_step"])) for row in own], color=colours)
        axis.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
        axis.set_xlabel("microseconds a step (median)")
        axis.set_title(f"state {tuple(shape)}")
        axis.margins(x=0.15)
    figure.suptitle("One sampling step around a trivial network")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = measure(arguments.rounds)
    machine = {
        "processor": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "steps": STEPS,
        "rounds": arguments.rounds,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "overhead.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    plot(rows, RESULTS / "overhead.png")
    for shape in SHAPES:
        own = {str(r["contender"]): r for r in rows if r["shape"] == list(shape)}
        print(f"\nstate {shape}")
        for name, row in own.items():
            print(f"  {name:28s} {row['us_per_step']:>9} us   {row['aten_calls_per_step']:>6} ATen calls")


if __name__ == "__main__":
    main()
