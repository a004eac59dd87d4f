"""Pure functions of samples that judge: distances, two-sample tests, label accuracy, memorisation.

Samples are tensors (n, *event), flattened inside and judged in float64 on the host; every random choice comes from a
seed that the caller names.
"""

from ornstein.metrics.c2st import C2ST, c2st, c2st_power
from ornstein.metrics.extrapolated import Extrapolation, frechet_extrapolated
from ornstein.metrics.frechet import frechet_distance, frechet_from_moments
from ornstein.metrics.kid import KID, cubic_mmd, kid
from ornstein.metrics.label_accuracy import LabelClassifier, fit_classifier, label_accuracy
from ornstein.metrics.mmd import MMDTest, median_distance, mmd, mmd_test
from ornstein.metrics.nearest import nearest_distance, nearest_neighbour_ratio
from ornstein.metrics.precision_recall import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    expected_coverage,
    precision_recall,
)
from ornstein.metrics.statistics import Statistics
from ornstein.metrics.wasserstein import sliced_wasserstein, wasserstein2

__all__ = [
    "C2ST",
    "KID",
    "DensityCoverage",
    "Extrapolation",
    "LabelClassifier",
    "MMDTest",
    "PrecisionRecall",
    "Statistics",
    "c2st",
    "c2st_power",
    "cubic_mmd",
    "density_coverage",
    "expected_coverage",
    "fit_classifier",
    "frechet_distance",
    "frechet_extrapolated",
    "frechet_from_moments",
    "kid",
    "label_accuracy",
    "median_distance",
    "mmd",
    "mmd_test",
    "nearest_distance",
    "nearest_neighbour_ratio",
    "precision_recall",
    "sliced_wasserstein",
    "wasserstein2",
]
