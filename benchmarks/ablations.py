"""What each part of LDDGAN brings: its losses, the latent's KL term, CNN against transformer.

    python -m benchmarks ablations --seeds 5
    python -m benchmarks ablations --only losses --epochs 100

Trains each variant of a preset with several seeds and writes means and spreads as `ablations.md`:
the adversary alone, with a constant reconstruction loss (of absolute differences, or squared where
there is much noise), with Weighted Learning (the LDDGAN paper's Table 6); a latent with a KL term
against one without (Table 7); U-ViT for U-Net (Table 12).
"""

import argparse
import dataclasses
import statistics
from pathlib import Path
from typing import Any

from benchmarks._study import Judge, Study
from lddgan_kernels.trainer import config_file
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.network_files import load_system

_AS_PUBLISHED = {"squared_from": None, "reconstruction_weight": 1.0}
# Fields that each variant changes, by table.
VARIANTS: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    "losses": {
        "adversary alone": {"gan": {"reconstruction": "none"}},
        "+ reconstruction": {"gan": {"reconstruction": "constant"} | _AS_PUBLISHED},
        "+ reconstruction, squared in much noise": {
            "gan": {"reconstruction": "constant", "squared_from": 3, "reconstruction_weight": 5.0}
        },
        "+ Weighted Learning, delta 2": {
            "gan": {"reconstruction": "weighted", "delta": 2.0} | _AS_PUBLISHED
        },
        "+ Weighted Learning, delta 6": {
            "gan": {"reconstruction": "weighted", "delta": 6.0} | _AS_PUBLISHED
        },
    },
    "latent": {
        "no KL term": {},
        "KL term": {"autoencoder": {"kl": True, "codebook_size": 0, "bounded_latent": False}},
    },
    "network": {
        "CNN": {},
        "transformer": {
            "generator": {"kind": "vit", "patch_size": 2},
            "vit": {"width": 64, "depth": 5, "num_heads": 4, "mlp_width": 256},
        },
    },
}
# FID and recall on CIFAR-10, as the LDDGAN paper prints them (Tables 6 and 7).
PUBLISHED = {
    "adversary alone": (3.15, 0.58),
    "+ reconstruction": (3.09, 0.56),
    "+ Weighted Learning, delta 6": (3.03, 0.58),
    "KL term": (3.15, 0.58),
    "no KL term": (3.03, 0.58),
}


def main(arguments: list[str]) -> None:
    """Runs the study, or what is left of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ablations", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--data", help="images as for train; left out: the embedded digits")
    parser.add_argument("--features", help="feature network, with --data")
    parser.add_argument("--only", choices=list(VARIANTS), help="one table")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--epochs", type=int, help="left out: the preset's")
    parser.add_argument("--samples", type=int, default=1000, help="that are judged, of each")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)

    study = Study(options.out)
    config = config_file.load(options.preset)
    config = dataclasses.replace(
        config,
        data=options.data,
        log=dataclasses.replace(config.log, scored=0),
        gan=dataclasses.replace(config.gan, epochs=options.epochs or config.gan.epochs),
    )
    judge = Judge(config, options.features, options.samples, options.device)
    tables = [options.only] if options.only else list(VARIANTS)
    for seed in range(options.seeds):  # so that a stopped study has all variants
        for table in tables:
            for variant, changes in VARIANTS[table].items():
                changed = dataclasses.replace(changed_by(config, changes), seed=seed)
                name = f"{table}: {variant}, seed {seed}"
                if name not in study.rows:
                    # What two tables have unchanged is trained once.
                    trained = name if changes else f"unchanged, seed {seed}"
                    folder = study.trained(
                        _slug(trained), lambda changed=changed: changed, options.device
                    )
                    system = load_system(folder.generator, options.device)
                    study.judged(name, system, judge, options.samples)
                write(study)


def changed_by(config: Config, changes: dict[str, dict[str, Any]]) -> Config:
    """The configuration with some fields of its tables changed."""
    tables = {
        table: dataclasses.replace(getattr(config, table), **fields)
        for table, fields in changes.items()
    }
    return dataclasses.replace(config, **tables)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name).strip("-")


def write(study: Study) -> None:
    """Means and standard deviations over the seeds that are there."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, row in study.rows.items():
        found.setdefault(name.rsplit(", seed", 1)[0], []).append(row)
    names = list(dict.fromkeys(key for rows in found.values() for row in rows for key in row))
    lines = ["| variant | seeds | " + " | ".join(names) + " | published FID, recall |"]
    lines.append("|---|---|" + "---|" * (len(names) + 1))
    for variant, rows in found.items():
        cells = [_mean(rows, name) for name in names]
        published = PUBLISHED.get(variant.split(": ", 1)[1])
        cells.append("" if published is None else f"{published[0]}, {published[1]}")
        lines.append(f"| {variant} | {len(rows)} | " + " | ".join(cells) + " |")
    study.out.mkdir(parents=True, exist_ok=True)
    (study.out / "ablations.md").write_text("\n".join(lines) + "\n")


def _mean(rows: list[dict[str, Any]], name: str) -> str:
    values = [row[name] for row in rows]
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4g}{spread}"
