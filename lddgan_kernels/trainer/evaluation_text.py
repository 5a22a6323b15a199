"""The figures of an evaluation for a person to read."""

from collections.abc import Mapping
from typing import Any

from lddgan_kernels.metrics import MEANINGS

SKIPPED_SHOWN = 20
BY_CLASS = ("kernel_distance", "density", "coverage")


def evaluation_text(figures: Mapping[str, Any]) -> str:
    """A table of the figures that `evaluate` writes as JSON."""
    lines = []
    for name in ("real", "fake"):
        count, skipped = figures[name]["count"], figures[name]["skipped"]
        held = "statistics" if count is None else f"{count} images"
        lines.append(f"{name}: {held} in {figures[name]['path']}")
        lines += [f"  skipped {item}: {reason}" for item, reason in skipped[:SKIPPED_SHOWN]]
        if len(skipped) > SKIPPED_SHOWN:
            lines.append(f"  skipped {len(skipped) - SKIPPED_SHOWN} more")
    lines.append(
        f"features: {figures['features']}, of images of {figures['resolution']} px, "
        f"{figures['preparation']}"
    )
    lines += [f"warning: {text}" for text in figures["warnings"]]
    lines.append("")
    lines += [f"{title:44s}{value:>14s}  {better}" for title, value, better in _rows(figures)]
    for label, scores in figures.get("by_class", {}).items():
        shown = (f"{MEANINGS[name].title.lower()} {scores[name]:.4g}" for name in BY_CLASS)
        lines.append(f"class {label}, {scores['fake']} of {scores['real']}: " + ", ".join(shown))
    lines.append("")
    lines += [f"{name:24s}{value}" for name, value in figures["environment"].items()]
    return "\n".join(lines)


def _rows(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, figure, which way is better or what it is measured on)."""
    rows = []
    for name, meaning in MEANINGS.items():
        if name not in figures:
            continue
        title, note = meaning.title, f"{meaning.better} is better"
        if name == "frechet_distance":
            title += f" ({figures['features']})"
            if "frechet_bias" in figures:
                note += f"; about {figures['frechet_bias']:.4g} of it is bias"
        if name in ("precision", "recall"):
            note += f"; k = {figures['k']}"
        if f"{name}_deviation" in figures:
            note += f"; deviation {figures[f'{name}_deviation']:.4g}"
        rows.append((title, f"{figures[name]:.6g}", note))
    if "sampling" in figures:
        speed = figures["sampling"]
        times = f"median of {speed['repeat']}, least {speed['seconds_per_batch_least']:.4g}"
        rows += [
            ("Network calls an image (NFE)", str(speed["calls"]), ""),
            (f"Seconds for {speed['batch']} images", f"{speed['seconds_per_batch']:.4g}", times),
            ("Images a second", f"{speed['images_per_second']:.4g}", ""),
            ("Memory (MiB)", f"{speed['memory_mib']:.0f}", speed["memory_of"]),
        ]
    return rows
