"""`python -m lddgan_kernels.info`: versions, which backends run each op here, what is missing.

With `--model PRESET`: what that preset's networks cost, beside the paper's figures. With `--speed`:
half a minute of measuring against plain PyTorch, and where ours is slower.
"""

import argparse
import platform
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from itertools import chain

from lddgan_kernels._version import __version__

NEEDED = ("torch", "numpy", "PIL", "safetensors", "tomli_w", "tqdm", "tyro")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lddgan_kernels.info", description=__doc__)
    parser.add_argument("--model", metavar="PRESET", help="a preset, or a .toml configuration")
    parser.add_argument("--speed", action="store_true", help="measure against plain PyTorch")
    options = parser.parse_args(arguments)
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        print(f"lddgan_kernels {__version__}\nPython {platform.python_version()}")
        packages = ["pillow" if name == "PIL" else name.replace("_", "-") for name in missing]
        print(f"missing: {', '.join(packages)}; run pip install {' '.join(packages)}")
        if "torch" in missing:
            print("PyTorch comes first: the extension is compiled against it (2.11 to 2.15)")
        return 1
    from lddgan_kernels.trainer import command, installation
    from lddgan_kernels.trainer.model_report import model_report
    from lddgan_kernels.trainer.speed import speed_report

    def work() -> None:
        lines: Iterable[str] = chain(
            installation.versions(), [""], installation.extension_lines(), [""]
        )
        if options.model:
            lines = model_report(options.model)
        elif options.speed:
            lines = chain(lines, speed_report())
        else:
            lines = chain(lines, installation.backends())
        for line in lines:
            print(line, flush=True)

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())
