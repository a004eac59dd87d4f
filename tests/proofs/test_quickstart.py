"""The first command of a newcomer gives samples that are right, varied and new."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ornstein.report.quickstart import quickstart


@pytest.mark.proof("quickstart")
def test_quickstart(tmp_path: Path, proof: Callable[..., None]) -> None:
    """One set of samples (one seed, one guidance scale) meets all three goals, and fast restoration is as good.

    The bounds are those of the project, not of this model. The rivals: guidance on a model with 30 % wrong labels must
    put right what the same model without guidance gets wrong, at the price of diversity; and ten evaluations of
    DPM-Solver++ 2 must come nearer to Euler's 100 than ten of Euler's own.
    """
    seed = 0
    _, metrics = quickstart(tmp_path / "run", seed=seed, say=lambda line: None, progress=False)
    figures, references = metrics["figures"], metrics["references"]
    alone, guided = (next(row for row in metrics["guidance"] if row["scale"] == scale) for scale in (1.0, 3.0))
    runs = {(row["solver"], row["nfe"]): row for row in metrics["restoration"]["runs"]}
    fast, rival, reference = runs["dpmpp", 10], runs["euler", 10], runs["Euler, 100 steps", 100]
    proof(
        figures={
            "label_accuracy": figures["label_accuracy"],
            "classifier_accuracy": references["label_accuracy"],
            "frechet_ratio": figures["frechet_ratio"],
            "nearest_ratio": figures["nearest_ratio"],
            "wrong_labels_accuracy": alone["label_accuracy"],
            "wrong_labels_guided_accuracy": guided["label_accuracy"],
            "guided_diversity_change": guided["diversity"] - alone["diversity"],
            "restoration_gain_db": reference["psnr"] - metrics["restoration"]["damaged_psnr"],
            "fast_psnr_change_db": fast["psnr"] - reference["psnr"],
            "fast_distance_over_euler": fast["distance"] / rival["distance"],
        },
        thresholds={
            "label_accuracy": (0.98, None),
            "classifier_accuracy": (0.98, None),
            "frechet_ratio": (None, 1.5),
            "nearest_ratio": (0.95, 1.15),
            "wrong_labels_accuracy": (None, 0.9),
            "wrong_labels_guided_accuracy": (0.95, None),
            "guided_diversity_change": (None, 0.0),
            "restoration_gain_db": (3.0, None),
            "fast_psnr_change_db": (-0.25, 0.25),
            "fast_distance_over_euler": (None, 0.5),
        },
        seed=seed,
    )
