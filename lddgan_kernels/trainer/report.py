"""`report.html`: scores, pictures, curves, times and configuration of a run in one file."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lddgan_kernels.trainer import config_file
from lddgan_kernels.trainer.charts import Curves, chart, number
from lddgan_kernels.trainer.files import write_atomically
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.log import read_lines
from lddgan_kernels.trainer.report_text import (
    AXES,
    STAGES,
    Row,
    score_rows,
    stage_times,
    summary_rows,
    words,
)

# What else stands in a "step" line of the log, and in a "scores" line.
NOT_METRICS = {"kind", "stage", "step", "images_per_second", "seconds"}
NOT_SCORES = {"kind", "step", "images", "scorer", "took", "seconds"}
FRACTIONS = ("precision", "recall", "coverage", "share_confident_ratio")
X_IMAGES = "training images seen"
KEPT_GRIDS = 4
PICTURES = {
    "path.png": "Denoising, a sample a row: what each step starts from and the image it predicts, "
    "decoded; the sample is the last column.",
    "reconstruction.png": "Real images, each row above their reconstructions.",
    "interpolation.png": "Interpolation, a pair of rows for each pair of seeds. First only the "
    "generator's latent z goes from one seed's to the other's; then all noise does.",
    "neighbours.png": "Samples (first column) beside the training images nearest to them, by the "
    "squared difference of images averaged down to 16 px at most.",
}
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width"><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 64em; margin: 2em auto; padding: 0 1em; }}
img {{ max-width: 100%; image-rendering: pixelated; }}
figure {{ margin: 1.2em 0; }} figcaption {{ color: #555; font-size: 14px; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .3em 1.2em .3em 0; text-align: left; vertical-align: top; }}
tr + tr {{ border-top: 1px solid #eee; }} th {{ font-weight: 500; white-space: nowrap; }}
td.value {{ font-variant-numeric: tabular-nums; }} td.text {{ color: #555; font-size: 14px; }}
svg {{ width: 100%; }} .chart {{ margin: .5em 0; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(22em, 1fr)); gap: 1em; }}
pre {{ background: #f5f5f5; padding: 1em; overflow-x: auto; font-size: 13px; }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""


def write_report(folder: RunFolder) -> None:
    """Writes the report of what the run folder holds so far."""
    lines = read_lines(folder.log)
    starts = [line for line in lines if line["kind"] == "start"]
    summary = next((line for line in reversed(lines) if line["kind"] == "summary"), None)
    parts = [f"<p>{html.escape(_about(folder, starts, summary))}</p>"]
    parts += [f"<p>{html.escape(line['text'])}</p>" for line in lines if line["kind"] == "note"]
    grids = "".join(_samples(folder.samples))
    parts += _section("Samples", [f'<div class="charts">{grids}</div>'] if grids else [])
    parts += _section("Scores", _scores(lines, summary))
    parts += _section("Losses", _charts(lines))
    pictures = [figure(folder.samples / name, text) for name, text in PICTURES.items()
                if (folder.samples / name).exists()]  # fmt: skip
    parts += _section("A closer look", pictures)
    times: list[Row] = list(stage_times(lines))
    if summary is not None and "samples_per_second" in summary:
        times.append(("Sampling", f"{number(summary['samples_per_second'])} images/s", ""))
    parts += _section("Times", [table(times)] if times else [])
    parts += _section("Where it ran", _origin(starts, summary))
    config = html.escape(folder.config.read_text())
    parts.append(f"<h2>Configuration</h2><pre>{config}</pre>")
    title = html.escape(folder.path.resolve().name)
    page = PAGE.format(title=title, body="\n".join(parts))
    write_atomically(folder.report, lambda file: file.write(page.encode()))


def _about(
    folder: RunFolder, starts: Sequence[Mapping[str, Any]], summary: Mapping[str, Any] | None
) -> str:
    """What was trained on what."""
    images = config_file.load(str(folder.config)).images
    text = f"Images of {images.resolution} x {images.resolution} pixels"
    if starts:
        text += f", trained on the {number(starts[-1]['images'])} of {starts[-1]['data']}"
    if summary is None:
        return f"{text}. The run is under way."
    return f"{text}. The generator has {number(summary['parameters'])} parameters."


def _section(title: str, parts: Sequence[str]) -> list[str]:
    """A heading and what is below it; nothing where that is nothing."""
    return [f"<h2>{title}</h2>", *parts] if parts else []


def _scores(lines: Sequence[Mapping[str, Any]], summary: Mapping[str, Any] | None) -> list[str]:
    parts = []
    scored = [line for line in lines if line["kind"] == "scores"]
    rows = summary_rows(summary) if summary is not None else []
    if scored:
        last, best = scored[-1], min(scored, key=lambda line: line["frechet_distance"])
        parts.append(
            f"<p>By {html.escape(last['scorer'])}, after {number(last['images'])} training images; "
            f"the least Frechet distance, {number(best['frechet_distance'])}, was reached after "
            f"{number(best['images'])} (checkpoints/best.safetensors).</p>"
        )
        parts.append(table(score_rows(last)))
        parts.append(f'<div class="charts">{"".join(_score_charts(scored))}</div>')
    return parts + ([table(rows)] if rows else [])


def _score_charts(scored: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of the last scorer's lines: the Frechet distance, and what lies in 0..1 together."""
    scored = [line for line in scored if line["scorer"] == scored[-1]["scorer"]]

    def curve(name: str) -> list[tuple[float, float]]:
        return [(line["images"], line[name]) for line in scored if name in line]

    shares = {words(name): curve(name) for name in FRACTIONS if curve(name)}
    others = ("frechet_distance", "kernel_distance", "density")
    found = [
        chart(words(name).capitalize(), X_IMAGES, words(name), {name: curve(name)})
        for name in others
        if curve(name)
    ]
    if shares:
        title = "Shares" if len(shares) > 1 else next(iter(shares)).capitalize()
        found.append(chart(title, X_IMAGES, "fraction of 1", shares))
    return found


def curves(lines: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Curves]:
    """The metrics in a log, as points (step, value): by stage and first word, each by its name.

    Metrics of a stage that begin with the same word, as `logit_real` and `logit_fake`, share axes.
    """
    found: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for line in lines:
        if line["kind"] == "step":
            for name in (name for name in line if name not in NOT_METRICS):
                key = line["stage"], name.split("_")[0]
                points = found.setdefault(key, {}).setdefault(name, [])
                points.append((line["step"], line[name]))
    return dict(found)


def _charts(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    parts: list[str] = []
    drawn: dict[str, list[str]] = {}
    for (stage, word), found in curves(lines).items():
        values = {value for curve in found.values() for _, value in curve}
        if values == {0.0}:  # a term that this run does not have
            continue
        title, y_label = AXES.get(word, (words(next(iter(found))).capitalize(), "value"))
        named = {words(name): curve for name, curve in found.items()}
        drawn.setdefault(stage, []).append(chart(title, "training steps", y_label, named))
    for stage, charts in drawn.items():
        parts.append(f"<h3>{html.escape(STAGES.get(stage, stage.upper()))}</h3>")
        parts.append(f'<div class="charts">{"".join(charts)}</div>')
    return parts


def _samples(folder: Path) -> list[str]:
    found = sorted(folder.glob("step-*.png"))
    chosen = sorted({round(i * (len(found) - 1) / (KEPT_GRIDS - 1)) for i in range(KEPT_GRIDS)})
    return [
        figure(found[i], f"Samples after {int(found[i].stem.split('-')[1]):,} steps")
        for i in reversed(chosen if found else [])
    ]


def _origin(starts: Sequence[Mapping[str, Any]], summary: Mapping[str, Any] | None) -> list[str]:
    """Hardware, versions and the command."""
    if not starts:
        return []
    last = starts[-1]
    facts = dict(last.get("environment", {}))
    facts["precision"] = last.get("precision", "")
    if summary is not None and summary["processes"] > 1:
        facts["processes"] = str(summary["processes"])
    parts = [table([(name, str(value), "") for name, value in facts.items() if value])]
    commands = list(dict.fromkeys(line["command"] for line in starts if line.get("command")))
    if commands:
        parts.append(f"<pre>{html.escape(chr(10).join(commands))}</pre>")
    return parts


def figure(path: Path, caption: str) -> str:
    """A picture inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def table(rows: Sequence[Row]) -> str:
    """What, its value and what it means; the last column only where a row has something there."""
    wide = any(text for _, _, text in rows)
    lines = []
    for name, value, text in rows:
        line = f'<th>{html.escape(name)}</th><td class="value">{html.escape(value)}</td>'
        if wide:
            line += f'<td class="text">{html.escape(text)}</td>'
        lines.append(f"<tr>{line}</tr>")
    return f"<table>{''.join(lines)}</table>"
