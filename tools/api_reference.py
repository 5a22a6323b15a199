"""`python -m tools.api_reference FOLDER`: the API reference as HTML, from the docstrings.

Of what a user calls: what a package exports, without private modules, kernels and the trainer's
inside. Fails where something public has no docstring.
"""

import importlib
import inspect
import sys
from pathlib import Path

# What is public; a package stands for what it exports.
PUBLIC = ("ops", "nn", "models", "diffusion", "data", "metrics", "interop", "pipeline", "testing")


def undocumented() -> list[str]:
    """Public functions and classes without a docstring."""
    missing = []
    for name in PUBLIC:
        module = importlib.import_module(f"lddgan_kernels.{name}")
        exported = getattr(module, "__all__", None) or [
            key
            for key, value in vars(module).items()
            if not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
        for key in exported:
            value = getattr(module, key)
            if (inspect.isclass(value) or inspect.isfunction(value)) and not inspect.getdoc(value):
                missing.append(f"{name}.{key}")
    return missing


def main(folder: Path) -> None:
    import pdoc

    missing = undocumented()
    if missing:
        raise SystemExit(f"without a docstring: {', '.join(missing)}")
    pdoc.render.configure(docformat="google", math=False, search=True)
    pdoc.pdoc(*(f"lddgan_kernels.{name}" for name in PUBLIC), output_directory=folder)
    print(f"{folder / 'index.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
