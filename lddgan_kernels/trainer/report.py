"""`report.html`: pictures, curves, scores and configuration of a run in one file."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lddgan_kernels.trainer.files import write_atomically
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.log import read_lines

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")
# What else stands in a "step" line of the log.
NOT_METRICS = {"kind", "stage", "step", "images_per_second", "seconds"}
KEPT_GRIDS = 4
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; }}
img {{ max-width: 100%; image-rendering: pixelated; }}
figure {{ margin: 1.5em 0; }} figcaption {{ color: #555; }}
td, th {{ padding: .15em 1em .15em 0; text-align: left; vertical-align: top; }}
svg {{ width: 100%; }}
.plots {{ display: grid; grid-template-columns: 1fr 1fr; }}
pre {{ background: #f5f5f5; padding: 1em; overflow-x: auto; }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""


def write_report(folder: RunFolder) -> None:
    """Writes the report of what the run folder holds so far."""
    lines = read_lines(folder.log)
    summary = next((line for line in reversed(lines) if line["kind"] == "summary"), None)
    parts = []
    if summary is None:
        parts.append("<p>The run is under way.</p>")
    else:
        parts.append("<h2>Scores</h2>" + table(flatten(summary)))
    notes = [html.escape(line["text"]) for line in lines if line["kind"] == "note"]
    parts += [f"<p>{note}</p>" for note in notes]
    parts.append("<h2>Samples</h2>" + "".join(_samples(folder.samples)))
    parts.append("<h2>Curves</h2>")
    plots = "".join(plot(title, series) for title, series in curves(lines).items())
    parts.append(f'<div class="plots">{plots}</div>')
    config = html.escape(folder.config.read_text())
    parts.append(f"<h2>Configuration</h2><pre>{config}</pre>")
    title = html.escape(folder.path.resolve().name)
    page = PAGE.format(title=title, body="\n".join(parts))
    write_atomically(folder.report, lambda file: file.write(page.encode()))


def curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """The metrics in a log, as points (step, value): plots by title, in each its metrics by name.

    Metrics of a stage that begin with the same word, as `logit_real` and `logit_fake`, share axes.
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in lines:
        if line["kind"] == "step":
            for name in (name for name in line if name not in NOT_METRICS):
                title = f"{line['stage']}: {name.split('_')[0]}"
                points = found.setdefault(title, {}).setdefault(name, [])
                points.append((line["step"], line[name]))
    return found


def _samples(folder: Path) -> list[str]:
    found = sorted(folder.glob("step-*.png"))
    chosen = sorted({round(i * (len(found) - 1) / (KEPT_GRIDS - 1)) for i in range(KEPT_GRIDS)})
    figures = [
        figure(found[i], f"Samples after {int(found[i].stem.split('-')[1])} steps")
        for i in reversed(chosen if found else [])
    ]
    captions = {
        "path.png": "Denoising: what each step starts from and the image it predicts, decoded; "
        "the sample is the last column.",
        "reconstruction.png": "Real images, each row above their reconstructions.",
    }
    for name, caption in captions.items():
        if (folder / name).exists():
            figures.append(figure(folder / name, caption))
    return figures


def figure(path: Path, caption: str) -> str:
    """A picture inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def flatten(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested facts by dotted names."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{name}.")
        elif name != "kind":
            found[prefix + name] = value
    return found


def table(facts: Mapping[str, Any]) -> str:
    """A table of two columns."""
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(_shown(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table>{rows}</table>"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    return str(value)


def plot(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Curves as inline SVG."""
    points = [point for curve in series.values() for point in curve]
    width, height, left, bottom, top = 480, 240, 60, 30, 10
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x0, x1, y0, y1 = min(xs), max(xs), min(0.0, *ys), max(ys)
    x1, y1 = max(x1, x0 + 1), y1 if y1 > y0 else y0 + 1

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / (x1 - x0) * (width - left - 10)
        return left + across, top + (y1 - y) / (y1 - y0) * (height - top - bottom)

    marks = []
    for value in _ticks(y0, y1):
        y = at(x0, value)[1]
        marks.append(f'<path d="M{left} {y:.1f}H{width - 10}" stroke="#ddd"/>')
        marks.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in _ticks(x0, x1):
        x = at(value, y0)[0]
        marks.append(f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle">{value:g}</text>')
    legend = []
    for i, (name, curve) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in curve))
        marks.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        legend.append(f'<span style="color:{colour}">{html.escape(name)}</span>')
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" font-size="11">{"".join(marks)}</svg>'
        f"<figcaption>{html.escape(title)}, by step: {', '.join(legend)}</figcaption></figure>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers within low..high."""
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(i * step, 10) for i in range(first, last + 1)]
