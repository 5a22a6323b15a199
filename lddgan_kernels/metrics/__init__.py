"""How good are the samples: Frechet distance, precision and recall, a judge of digits."""

from lddgan_kernels.metrics.digits import DigitScores, score_digits
from lddgan_kernels.metrics.features import FeatureNetwork, extract_features, load_features
from lddgan_kernels.metrics.frechet import feature_statistics, frechet_distance
from lddgan_kernels.metrics.precision_recall import precision_recall
from lddgan_kernels.metrics.statistics import load_statistics

__all__ = [
    "DigitScores",
    "FeatureNetwork",
    "extract_features",
    "feature_statistics",
    "frechet_distance",
    "load_features",
    "load_statistics",
    "precision_recall",
    "score_digits",
]
