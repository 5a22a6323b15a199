"""What the report says in words: names of metrics and stages, what scores mean."""

from collections.abc import Mapping
from typing import Any

from lddgan_kernels.metrics import MEANINGS
from lddgan_kernels.trainer.charts import number

# A row of a table: what, its value, what it means.
Row = tuple[str, str, str]

STAGES = {"autoencoder": "Autoencoder", "gan": "Diffusion GAN", "ddpm": "Diffusion (DDPM)"}
# Charts: the metrics of a stage that share axes, by the first word of their names.
AXES = {
    "l1": ("Reconstruction error", "mean |difference|, images in [-1, 1]"),
    "logit": ("What the discriminator says", "logit"),
    "discriminator": ("Loss of the discriminator", "softplus loss"),
    "generator": ("Adversarial loss of the generator", "softplus loss"),
    "reconstruction": ("Reconstruction loss of the generator", "mean |difference|"),
    "r1": ("Gradient penalty R1", "penalty"),
    "noise": ("Loss of the predicted noise", "mean squared error"),
    "extra": ("Codebook or KL term", "loss"),
    "loss": ("Loss of the autoencoder", "loss"),
    "lpips": ("Perceptual distance (LPIPS)", "distance"),
    "critic": ("Loss of the patch discriminator", "hinge loss"),
    "adversarial": ("Adversarial loss of the autoencoder", "- logit"),
    "adaptive": ("Adaptive weight of the adversarial loss", "weight"),
}
NAMES = {
    "share_confident_ratio": "readable samples",
    "logit_real": "real",
    "logit_fake": "generated",
}


def words(name: str) -> str:
    """A key as words."""
    return NAMES.get(name) or name.replace("_", " ")


def duration(seconds: float) -> str:
    """ "2 h 03 min", "4 min 05 s", "7.2 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def share(value: float) -> str:
    """A fraction of 1 in percent."""
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def score_rows(line: Mapping[str, Any]) -> list[Row]:
    """Of a "scores" line of the log: those that are there."""
    rows = []
    for name, meaning in MEANINGS.items():
        if name in line:
            text = f"{meaning.text} {meaning.better.capitalize()} is better."
            rows.append((meaning.title, number(line[name]), text))
    if "share_confident_ratio" in line:
        rows.append(
            (
                "Readable samples",
                share(line["share_confident_ratio"]),
                "Samples that a classifier is sure of, relative to real digits. Higher is better.",
            )
        )
    return rows


def digit_rows(scores: Mapping[str, Any]) -> list[Row]:
    """What the judge of digits found."""
    shares = ", ".join(f"{i}: {share(part)}" for i, part in enumerate(scores["digit_shares"]))
    return [
        (
            "Readable samples",
            share(scores["share_confident"]),
            "Samples that a classifier, trained on real digits, is sure of (p > 0.9).",
        ),
        (
            "The same of real digits",
            share(scores["share_confident_real"]),
            "Held-out ones: what the samples can reach.",
        ),
        (
            "The same of blends and of noise",
            f"{share(scores['share_confident_blends'])}, {share(scores['share_confident_noise'])}",
            "Two real digits laid over each other, and random pixels: what means nothing.",
        ),
        ("Digits among the samples", shares, "As the classifier reads them; even is best."),
        (
            "Distance from the training set",
            number(scores["nearest_distance_ratio"]),
            "Median distance of a sample to the nearest training image over that of held-out "
            "digits. Near 0: copies; 1: as new as held-out digits.",
        ),
        (
            "Accuracy of the classifier",
            share(scores["accuracy"]),
            "On held-out digits: how far it is to be believed.",
        ),
    ]


def summary_rows(summary: Mapping[str, Any]) -> list[Row]:
    """What the end of a run found; a row for what there is."""
    scores = summary.get("scores", {})
    rows: list[Row] = []
    if "digits" in scores:
        rows += digit_rows(scores["digits"])
    if "reconstruction_l1" in scores:
        rows.append(
            (
                "Error of the autoencoder",
                number(scores["reconstruction_l1"]),
                "Mean |difference| of real images and their reconstructions, in [-1, 1]: no sample "
                "can be sharper than these.",
            )
        )
    if summary.get("skipped"):
        names = "; ".join(f"{name}: {reason}" for name, reason in summary["skipped_images"])
        rows.append(("Images that could not be used", str(summary["skipped"]), names))
    return rows


def stage_times(lines: list[dict[str, Any]]) -> list[Row]:
    """(stage, time, images a second) of what a log tells, in its order."""
    ends: dict[str, float] = {}
    speeds: dict[str, list[float]] = {}
    scoring: dict[str, float] = {}
    stage = ""
    for line in lines:
        if line["kind"] == "step":
            stage = line["stage"]
            speeds.setdefault(stage, []).append(line["images_per_second"])
        elif line["kind"] == "scores":
            scoring[stage] = scoring.get(stage, 0.0) + line.get("took", 0.0)
        elif line["kind"] in ("latents", "summary"):
            stage = line["kind"]
        else:
            continue
        ends[stage] = line["seconds"]
    titles = {**STAGES, "latents": "Encoding the images", "summary": "Samples, scores and report"}
    rows, before = [], 0.0
    for name, end in ends.items():
        took = duration(end - before)
        if name in scoring:
            took += f", {duration(scoring[name])} of it scores"
        speed = sorted(speeds.get(name, []))
        middle = f"{number(speed[len(speed) // 2])} images/s" if speed else ""
        rows.append((titles.get(name, words(name)), took, middle))
        before = end
    return [*rows, ("In all", duration(before), "")] if rows else []
