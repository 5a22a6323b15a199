"""A model card: what a system is, its scores and how to draw from it."""

import json
from pathlib import Path
from typing import Any

from lddgan_kernels._version import __version__
from lddgan_kernels.trainer.config import Config

KINDS = {"autoencoder": "LDDGAN", "none": "DDGAN", "haar": "WDDGAN"}


def read_scores(log: Path) -> dict[str, Any]:
    """The scores that a run's log ends with; none where it has not ended."""
    if not log.exists():
        return {}
    scores: dict[str, Any] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # the end of a run that was cut short
            continue
        if isinstance(entry, dict) and isinstance(entry.get("scores"), dict):
            scores = entry["scores"]
    return scores


def model_card(config: Config, parameters: int, scores: dict[str, Any], name: str) -> str:
    """The card as Markdown, with the hub's header; `name` is what a person would load."""
    kind = KINDS[config.codec] if config.method == "gan" else config.method.upper()
    images = config.images
    calls = (
        f"{config.diffusion.num_steps} network calls" if config.method == "gan" else "many calls"
    )
    rows = [f"| {key} | {value} |" for key, value in _flat(scores)]
    table = ["## Scores", "", "| score | value |", "|---|---|", *rows, ""] if rows else []
    return "\n".join(
        [
            "---",
            "library_name: lddgan_kernels",
            "pipeline_tag: unconditional-image-generation",
            f"tags: [{kind.lower()}, diffusion, gan]",
            "---",
            "",
            f"# {kind}, {images.resolution}x{images.resolution}",
            "",
            f"Images of {images.channels} channels in {calls}; the generator has "
            f"{parameters / 1e6:.1f} million parameters. The configuration is in `config.toml`.",
            "",
            "![The first samples](samples.png)",
            "",
            "```python",
            "import torch",
            "from lddgan_kernels.pipeline import Pipeline",
            "",
            f'pipeline = Pipeline.from_pretrained("{name}")',
            "images = pipeline(torch.arange(16))  # (N, C, H, W) uint8; a seed is an image",
            "```",
            "",
            *table,
            f"Made with lddgan_kernels {__version__}.",
            "",
        ]
    )


def _flat(scores: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Numbers by their path."""
    found: list[tuple[str, str]] = []
    for name, value in scores.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            found.append((prefix + name, f"{value:.4g}"))
    return found
