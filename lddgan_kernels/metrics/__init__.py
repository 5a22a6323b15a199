"""How good are the samples: distances and neighbours of features, and a judge of digits."""

from lddgan_kernels.metrics.digits import DigitJudge, DigitScores, score_digits
from lddgan_kernels.metrics.feature_files import KNOWN
from lddgan_kernels.metrics.features import FeatureNetwork, extract_features, load_features
from lddgan_kernels.metrics.frechet import feature_statistics, frechet_bias, frechet_distance
from lddgan_kernels.metrics.inception_score import InceptionScore, inception_score
from lddgan_kernels.metrics.kernel_distance import KernelDistance, kernel_distance
from lddgan_kernels.metrics.moments import Moments
from lddgan_kernels.metrics.neighbours import (
    NeighbourScores,
    nearest,
    neighbour_scores,
    precision_recall,
)
from lddgan_kernels.metrics.scores import MEANINGS, score, scores_by_class
from lddgan_kernels.metrics.statistics import load_statistics, save_statistics, statistics_facts

__all__ = [
    "KNOWN",
    "MEANINGS",
    "DigitJudge",
    "DigitScores",
    "FeatureNetwork",
    "InceptionScore",
    "KernelDistance",
    "Moments",
    "NeighbourScores",
    "extract_features",
    "feature_statistics",
    "frechet_bias",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "load_features",
    "load_statistics",
    "nearest",
    "neighbour_scores",
    "precision_recall",
    "save_statistics",
    "score",
    "score_digits",
    "scores_by_class",
    "statistics_facts",
]
