"""Quality, diversity and speed of all systems, trained under one budget on one data set.

    python -m benchmarks trilemma
    python -m benchmarks trilemma --data cifar10 --features inception --minutes 600 --device cuda

Trains LDDGAN, DDGAN, WDDGAN, a one-shot GAN, DDPM, latent diffusion and a VAE for as many minutes
each (a stopped study goes on), draws DDPMs by several samplers in several numbers of steps, and
writes `trilemma.md` and `trilemma.svg`, with the paper's published rows beside them.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from benchmarks._study import Judge, Study, within
from lddgan_kernels.trainer import config_file
from lddgan_kernels.trainer.batches import open_dataset
from lddgan_kernels.trainer.network_files import load_system

# Presets by system, on the digits and on CIFAR-10.
SYSTEMS = {
    "LDDGAN": ("digits", "cifar10"),
    "DDGAN": ("digits-ddgan", "ddgan-cifar10"),
    "WDDGAN": ("digits-wddgan", "wddgan-cifar10"),
    "one-shot GAN": ("digits-oneshot", "cifar10"),
    "VAE": ("digits-vae", "vae-cifar10"),
    "latent diffusion": ("digits-ldm", "ldm-cifar10"),
    "DDPM": ("digits-ddpm", "ddpm-cifar10"),
}
# Samplers and their steps, of which "heun" has 2 calls each.
WAYS = (
    *(("dpm++", steps) for steps in (10, 20, 50)),
    *(("heun", steps) for steps in (5, 10, 25)),
    *(("ddim", steps) for steps in (10, 20, 50, 100)),
    *(("ddpm", steps) for steps in (10, 20, 50, 100, 1000)),
)
# CIFAR-10 as Table 3 of the LDDGAN paper prints it: FID, recall, calls, seconds for 100 images.
PUBLISHED = (
    ("LDDGAN", 2.98, 0.58, 4, 0.08),
    ("WDDGAN", 4.01, 0.55, 4, 0.08),
    ("DDGAN", 3.75, 0.57, 4, 0.21),
    ("DDPM", 3.21, 0.57, 1000, 80.5),
    ("Score SDE (VP)", 2.41, 0.59, 2000, 421.5),
    ("Probability flow (VP)", 3.08, 0.57, 140, 50.9),
    ("LSGM", 2.10, 0.61, 147, 44.5),
    ("DDIM", 4.67, 0.53, 50, 4.01),
    ("FastDDPM", 3.41, 0.56, 50, 4.01),
    ("StyleGAN2 with ADA", 2.92, 0.49, 1, 0.04),
    ("StyleGAN2 without ADA", 8.32, 0.41, 1, 0.04),
    ("NVAE", 23.5, 0.51, 1, 0.36),
)


def main(arguments: list[str]) -> None:
    """Runs the study, or what is left of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks trilemma", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/trilemma"))
    parser.add_argument("--data", help="images as for train; left out: the embedded digits")
    parser.add_argument("--features", help="feature network, with --data")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, a system")
    parser.add_argument("--samples", type=int, default=1000, help="that are judged, of each")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)

    study = Study(options.out)
    base = _config("LDDGAN", options.data)
    judge = Judge(base, options.features, options.samples, options.device)
    images = len(open_dataset(base))
    for name in SYSTEMS:
        config = _config(name, options.data)

        def make(config: Any = config) -> Any:
            return within(config, options.minutes, images, options.device)

        generator = study.trained(name.replace(" ", "-"), make, options.device).generator
        for sampler, steps in WAYS if config.method == "ddpm" else ((None, None),):
            label = f"{name}, {sampler} {steps}" if sampler else name
            if label not in study.rows:
                system = load_system(generator, options.device, sampler=sampler, steps=steps)
                study.judged(label, system, judge, options.samples)
        write(study)


def _config(name: str, data: str | None) -> Any:
    config = config_file.load(SYSTEMS[name][data is not None])
    if name == "one-shot GAN":
        config = dataclasses.replace(
            config,
            diffusion=dataclasses.replace(config.diffusion, num_steps=1),
            gan=dataclasses.replace(config.gan, reconstruction="none"),  # of noise alone
        )
    return dataclasses.replace(config, data=data, log=dataclasses.replace(config.log, scored=0))


def write(study: Study) -> None:
    """The table and, where matplotlib is there, the plot of what the study has so far."""
    names = list(dict.fromkeys(key for row in study.rows.values() for key in row))
    lines = ["| system | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for label, row in study.rows.items():
        values = (f"{row[name]:.4g}" if name in row else "" for name in names)
        lines.append(f"| {label} | " + " | ".join(values) + " |")
    lines += ["", "seconds: for 100 images. Published, on CIFAR-10 (LDDGAN paper, Table 3):", ""]
    lines += ["| system | FID | recall | calls | seconds |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(str(value) for value in row) + " |" for row in PUBLISHED]
    (study.out / "trilemma.md").write_text("\n".join(lines) + "\n")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: matplotlib is not there (pip install 'lddgan_kernels[plot]')")
        return
    figure = Figure(figsize=(11, 8), layout="constrained")
    ours = {
        label: (row["seconds"], row["frechet"], row["recall"]) for label, row in study.rows.items()
    }
    published = {label: (seconds, fid, recall) for label, fid, recall, _, seconds in PUBLISHED}
    for i, (points, where) in enumerate(((ours, "here"), (published, "published, CIFAR-10"))):
        for j, what in enumerate(("Frechet distance (less is better)", "recall (more is better)")):
            axes = figure.add_subplot(2, 2, 2 * i + j + 1)
            _scatter(axes, points, j + 1)
            axes.set(xscale="log", xlabel=f"seconds for 100 images, {where}", ylabel=what)
            if j == 0:
                axes.set_yscale("log")
    figure.savefig(study.out / "trilemma.svg", metadata={"Date": None})


def _scatter(axes: Any, points: dict[str, tuple[float, ...]], what: int) -> None:
    """One point a system; those of a DDPM's sampler are joined."""
    families: dict[str, list[tuple[float, float]]] = {}
    for label, values in points.items():
        family = label.rsplit(" ", 1)[0] if ", " in label else label
        families.setdefault(family, []).append((values[0], values[what]))
    for i, (family, found) in enumerate(families.items()):
        axes.plot(
            *zip(*sorted(found), strict=True),
            label=family,
            marker="os^v"[i // 10 % 4],
            markersize=4,
            linewidth=0.8,
        )
    axes.grid(linewidth=0.3, which="both")
    axes.legend(fontsize=6)
