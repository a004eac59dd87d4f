"""The claims of processes beside their baselines: every file of the folder `processes/`, one after the other.

    OMP_NUM_THREADS=1 python benchmarks/processes.py [NAME ...] [--again]

Each file says in its first lines what is claimed, beside what, and what its figures mean, and measures it in one run of
a few minutes. Figures are kept as they come: without --again what is known is not measured anew. Writes
results/processes.json and results/processes.png beside this file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt
import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results"
COLUMNS = 5
ABSCISSAE = ("T", "aux_dims", "betas", "chain", "d", "epsilon", "nfe", "noise_level", "points", "scales", "steps")


def load(path: Path) -> ModuleType:
    """A file of the folder as a module."""
    spec = importlib.util.spec_from_file_location(f"claim_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def panels(figures: dict[str, Any]) -> Iterator[tuple[str, str, list[float], dict[str, list[float]]]]:
    """(family, abscissa, its values, curves) of the lists: a family is the first word of their names, the abscissa the
    list of their length that is one by name, or else their places."""
    lists = {name: values for name, values in figures.items() if isinstance(values, list)}
    known = {len(values): name for name, values in reversed(lists.items()) if name in ABSCISSAE}
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    for name, values in lists.items():
        if name not in (*ABSCISSAE, "h") and len(values) > 1:
            found.setdefault((name.split("_")[0], len(values)), {})[name] = values
    for (family, count), curves in found.items():
        places = [float(i + 1) for i in range(count)]
        yield family, known.get(count, "place"), lists.get(known.get(count, ""), places), curves


def plot(known: dict[str, Any]) -> None:
    """A panel for each family of figures of each benchmark."""
    drawn = [(name, *panel) for name, entry in known.items() for panel in panels(entry["figures"])]
    rows = -(-len(drawn) // COLUMNS)
    size = (3.2 * COLUMNS, 2.6 * rows)
    picture, axes = plt.subplots(rows, COLUMNS, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(drawn) :]:
        axis.set_visible(False)
    for axis, (name, family, abscissa, values, curves) in zip(axes.flat, drawn, strict=False):
        ticks = [f"{value:.3g}" for value in values]
        for label, curve in curves.items():
            short = label.removeprefix(f"{family}_")
            axis.plot(range(len(ticks)), curve, marker="o", markersize=3, label=short.replace("_", " "))
        axis.set_xticks(range(len(ticks)), ticks, fontsize=7)
        axis.tick_params(axis="y", which="both", labelsize=7)
        if all(value > 0 for curve in curves.values() for value in curve):
            axis.set_yscale("log")
        axis.set_title(f"{name.replace('_', ' ')}: {family}", fontsize=8)
        axis.set_xlabel(abscissa.replace("_", " "), fontsize=7)
        axis.legend(fontsize=6)
    picture.savefig(RESULTS / "processes.png", dpi=90)


def main() -> None:
    files = {path.stem: path for path in sorted((HERE / "processes").glob("*.py"))}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(files)}")
    parser.add_argument("--again", action="store_true", help="measure what is known too")
    options = parser.parse_args()
    unknown = set(options.names) - set(files)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(files)}")
    target = RESULTS / "processes.json"
    known: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    for name in options.names or files:
        if name in known and not options.again:
            continue
        module, began = load(files[name]), time.process_time()
        figures = module.run()
        entry = {"about": module.__doc__, "figures": figures, "processor_seconds": round(time.process_time() - began)}
        entry |= {"machine": f"{platform.machine()}, {torch.get_num_threads()} threads", "torch": torch.__version__}
        known[name] = entry
        target.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
        print(f"{name}: {entry['processor_seconds']} s", flush=True)
        for figure, value in figures.items():
            print(f"  {figure} {[round(v, 5) for v in value] if isinstance(value, list) else value}")
    plot(known)


if __name__ == "__main__":
    main()
