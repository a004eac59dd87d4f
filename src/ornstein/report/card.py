"""What a model's file tells people about the run that it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ornstein.io import read_json
from ornstein.report.run import Run


def card_of(run: Run) -> dict[str, Any]:
    """{"data", "event", "space", "training", "figures"}: the data's name, the shape of a state, what samples are in
    the user's terms, the fields of the config, and the figures of the last evaluation, if there was one, beside those
    of real data."""
    config = run.config.model_dump(mode="json")
    card = {
        "data": Path(config.pop("data")).name,
        "event": config.pop("event"),
        "space": run.space.to_json(),
        "training": {**config, "net": ", ".join(f"{key} {value}" for key, value in config["net"].items())},
    }
    metrics = run.place("metrics.json")
    if metrics.exists():
        found = read_json(metrics)
        real = found["references"]
        card["figures"] = {
            name: {"samples": value, "real data": real.get(name)} for name, value in found["figures"].items()
        }
        card["sampler"] = found["sampler"]
    return card
