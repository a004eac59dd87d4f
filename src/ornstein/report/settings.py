"""What the run was made with: every field of its config, the sampler, times, versions."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from html import escape
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ornstein.report import html
from ornstein.report.config import Config
from ornstein.report.names import SOLVER_TITLES

PACKAGES = ("ornstein", "torch", "numpy", "scikit-learn", "matplotlib")


def settings(config: Config, sampler: Mapping[str, Any], timing: Mapping[str, Any] | None, parameters: int) -> str:
    """The section of the settings; fields that differ from their defaults are marked."""
    usual = dict(_flat(Config().model_dump(mode="json")))
    rows = []
    for name, value in _flat(config.model_dump(mode="json")):
        shown = html.Markup(f"<code>{escape(_text(value))}</code>")
        changed = name in usual and usual[name] != value
        default = _text(usual.get(name)) if changed else ""
        rows.append([html.Markup(f"<b>{escape(name)}</b>") if changed else name, shown, default])
    return html.section(
        "Settings",
        f"A network of {parameters:,} parameters. Samples: {escape(in_words(sampler))}.",
        f'<p class="times">{_times(timing)}</p>',
        f"<p>Versions: {escape(', '.join(_versions()))}.</p>",
        "<details><summary>Every field of config.yaml; those in bold differ from their defaults</summary>"
        + html.words(["field", "value", "default"], rows)
        + "</details>",
    )


def in_words(sampler: Mapping[str, Any]) -> str:
    """A sampler as metrics.json has it, in words."""
    return (
        f"{SOLVER_TITLES[sampler['solver']]}, {sampler['steps']} steps, {sampler['nfe']} network evaluations each, "
        f"guidance {sampler['guidance']:g}, seed {sampler['seed']}"
    ) + (f", weights {sampler['average']}" if "average" in sampler else "")


def _times(timing: Mapping[str, Any] | None) -> str:
    if timing is None:
        return "How long the training took was not noted."
    foreseen = timing.get("forecast_seconds")
    first, last, seconds = timing["from"], timing["to"], timing["seconds"]
    spent = f"Steps {first + 1:,} to {last:,} took {seconds:.0f} s on {escape(str(timing['device']))}"
    return f"{spent}; the forecast was {foreseen:.0f} s." if foreseen is not None else f"{spent}."


def _versions() -> Iterator[str]:
    yield f"Python {platform.python_version()}"
    for name in PACKAGES:
        try:
            yield f"{name} {torch.__version__ if name == 'torch' else version(name)}"
        except PackageNotFoundError:
            continue


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(value: Any) -> str:
    if value is None:
        return "auto"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
