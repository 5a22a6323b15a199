"""The stored results of a device as a table and a plot for people."""

import json
from pathlib import Path

from benchmarks._harness import RESULTS, device_name


def write(device: str | None = None) -> list[Path]:
    """results/<device>.md and .svg from its .json; the plot needs matplotlib.

    Args:
        device: whose results; None: this machine's.

    Raises:
        FileNotFoundError: it has none.
    """
    source = RESULTS / f"{device or device_name()}.json"
    if not source.exists():
        raise FileNotFoundError(f"no results in {source}: run a benchmark first")
    data = json.loads(source.read_text())
    table, plot = source.with_suffix(".md"), source.with_suffix(".svg")
    table.write_text(_table(data))
    _draw(data, plot)
    return [table, plot]


def _table(data: dict) -> str:
    lines = [
        "How many times faster than each other side; in brackets what was aimed at.",
        "",
        "| benchmark | group | over | commit |",
        "|---|---|---|---|",
    ]
    for name, result in sorted(data.items()):
        commits: dict = {}
        for row in result["rows"]:
            commits.setdefault(row.get("group"), {})[row["commit"]] = None
        for group, sides in result["summary"].items():
            over = "; ".join(
                f"{side} {found['ratio']:.2f}x"
                + (f" ({found['target']:g}x)" if found["target"] else "")
                for side, found in sides.items()
            )
            lines.append(f"| `{name}` | {group} | {over} | {', '.join(commits[group])} |")
    return "\n".join(lines) + "\n"


def _draw(data: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    sides = sorted({s for r in data.values() for g in r["summary"].values() for s in g})
    rows = [(name, group) for name in sorted(data) for group in data[name]["summary"]]
    figure = Figure(figsize=(9, 1 + 0.22 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for side in sides:
        points = [
            (data[name]["summary"][group][side]["ratio"], -row)
            for row, (name, group) in enumerate(rows)
            if side in data[name]["summary"][group]
        ]
        axes.scatter(*zip(*points, strict=True), s=18, label=f"over {side}")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_yticks([-row for row in range(len(rows))], [f"{n}: {g}" for n, g in rows], fontsize=7)
    axes.grid(axis="x", linewidth=0.3)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, metadata={"Date": None})
