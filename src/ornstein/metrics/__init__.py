"""Pure functions of samples that judge: distances, two-sample tests, label accuracy, memorisation.

Samples are tensors (n, *event), flattened inside and judged in float64 on the host; every random choice comes from a
seed that the caller names. Of tables (n, columns) with a kind for each column, and of series (n, channels, length),
values may be missing (NaN).
"""

from ornstein.metrics.association import association, association_distance
from ornstein.metrics.c2st import C2ST, Classifier, c2st, c2st_power, c2st_series, c2st_table
from ornstein.metrics.columns import column_distances
from ornstein.metrics.coupling_error import coupling_error
from ornstein.metrics.crps import crps
from ornstein.metrics.extrapolated import Extrapolation, frechet_extrapolated
from ornstein.metrics.frechet import frechet_distance, frechet_from_moments
from ornstein.metrics.kid import KID, cubic_mmd, kid
from ornstein.metrics.label_accuracy import LabelClassifier, fit_classifier, label_accuracy
from ornstein.metrics.mixed import Kind, table_features, with_missingness
from ornstein.metrics.mmd import MMDTest, median_distance, mmd, mmd_test
from ornstein.metrics.nearest import nearest_distance, nearest_neighbour, nearest_neighbour_ratio
from ornstein.metrics.precision_recall import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    expected_coverage,
    precision_recall,
)
from ornstein.metrics.psnr import psnr
from ornstein.metrics.series import autocorrelation, correlation_distance, cross_correlation, marginal_distances
from ornstein.metrics.ssim import ssim
from ornstein.metrics.statistics import Statistics
from ornstein.metrics.straightness import straightness
from ornstein.metrics.wasserstein import sliced_wasserstein, wasserstein1, wasserstein2

__all__ = [
    "C2ST",
    "KID",
    "Classifier",
    "DensityCoverage",
    "Extrapolation",
    "Kind",
    "LabelClassifier",
    "MMDTest",
    "PrecisionRecall",
    "Statistics",
    "association",
    "association_distance",
    "autocorrelation",
    "c2st",
    "c2st_power",
    "c2st_series",
    "c2st_table",
    "column_distances",
    "correlation_distance",
    "coupling_error",
    "cross_correlation",
    "crps",
    "cubic_mmd",
    "density_coverage",
    "expected_coverage",
    "fit_classifier",
    "frechet_distance",
    "frechet_extrapolated",
    "frechet_from_moments",
    "kid",
    "label_accuracy",
    "marginal_distances",
    "median_distance",
    "mmd",
    "mmd_test",
    "nearest_distance",
    "nearest_neighbour",
    "nearest_neighbour_ratio",
    "precision_recall",
    "psnr",
    "sliced_wasserstein",
    "ssim",
    "straightness",
    "table_features",
    "wasserstein1",
    "wasserstein2",
    "with_missingness",
]
