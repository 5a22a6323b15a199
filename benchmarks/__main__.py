"""`python -m benchmarks NAME...`: a file of this folder without leading `_`, `test_`; or `all`.

`python -m benchmarks plot` turns this machine's stored results into a table and a plot.
`python -m benchmarks trilemma` and `ablations` train systems, which `all` does not: see their
`--help`.
"""

import argparse
import importlib
import pkgutil
import signal
import sys

import benchmarks
from benchmarks import _harness, _plot
from lddgan_kernels.testing import instruction_sets
from lddgan_kernels.trainer.command import keep_freed_memory

STUDIES = ("ablations", "trilemma")


def names() -> list[str]:
    found = (m.name for m in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(n for n in found if not n.startswith(("_", "test_")) and n not in STUDIES)


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in STUDIES:
        keep_freed_memory()
        importlib.import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=_harness.__doc__)
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help=f"{', '.join(names())}, all or plot"
    )
    parser.add_argument("--seconds", type=float, help="time for each side of a case")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose names match")
    parser.add_argument(
        "--isa",
        choices=instruction_sets(),
        help="a lesser instruction set of this processor, for every side that can be told",
    )
    parser.add_argument("--all", action="store_true", help="every preset, dtype and batch size")
    options = parser.parse_args()
    if options.names == ["plot"]:
        print(*_plot.write(), sep="\n")
        return
    wanted = names() if "all" in options.names else options.names
    unknown = sorted(set(wanted) - set(names()))
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(names())}")
    _harness.ensure_environment(options.isa)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was timed is stored
    for name in wanted:
        module = importlib.import_module(f"benchmarks.{name}")
        seconds = options.seconds or getattr(module, "SECONDS", 0.6)
        if hasattr(module, "cases"):
            _harness.run(name, module.cases(), seconds, options.only)
        elif hasattr(module, "cases_of_systems"):
            found = _harness.run(name, module.cases_of_systems(options.all), seconds, options.only)
            if hasattr(module, "headline"):
                print(module.headline(found))
        else:  # no cases of the harness
            module.main(everything=options.all)


if __name__ == "__main__":
    main()
