"""Configurations in and out of TOML, checked field by field."""

import dataclasses
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from lddgan_kernels import _options
from lddgan_kernels.trainer.config import Config


def presets() -> list[str]:
    """The names of the presets that ship with the package."""
    folder = resources.files("lddgan_kernels.trainer").joinpath("presets")
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir())


def load(preset: str) -> Config:
    """A preset by name, or a configuration from the path of a TOML file.

    Raises:
        ValueError: there is no such preset or file, or something in it is not valid: a field that
            does not exist is named together with the nearest that does.
    """
    return parse(*_read(preset))


def needs_data(preset: str) -> str | None:
    """What a preset, or a file based on one, wants to be given as `data`; None: the digits do."""
    return _table(*_read(preset)).get("needs_data")


def parse(text: str, source: str = "config") -> Config:
    """The configuration of a TOML text; fields it leaves out take their defaults.

    `base = "PRESET"` in it takes those of a preset instead.
    """
    table = _table(text, source)
    table.pop("needs_data", None)
    return _options.build(Config, table, source)


def _read(preset: str) -> tuple[str, str]:
    """(text, name for messages) of a preset or file."""
    if preset in presets():
        return _preset(preset), f"preset {preset}"
    if not preset.endswith(".toml"):
        raise ValueError(
            f"config: preset must be one of {', '.join(presets())}, or a .toml file, got {preset!r}"
        )
    if not Path(preset).is_file():
        raise ValueError(f"config: preset must be an existing file, got {preset}")
    return Path(preset).read_text(), preset


def _preset(name: str) -> str:
    folder = resources.files("lddgan_kernels.trainer").joinpath("presets")
    return folder.joinpath(f"{name}.toml").read_text()


def _table(text: str, source: str) -> dict[str, Any]:
    """The fields of a TOML text over those of its base."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{source}: not valid TOML: {error}") from None
    except RecursionError:
        raise ValueError(f"{source}: not valid TOML: nested too deeply") from None
    base = table.pop("base", None)
    if base is None:
        return table
    if base not in presets():
        raise ValueError(f"{source}: base must be one of {', '.join(presets())}, got {base!r}")
    return _merged(_table(_preset(base), f"preset {base}"), table)


def _merged(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """`low` with what `high` has, table by table."""
    both = {
        key: _merged(low[key], value)
        for key, value in high.items()
        if isinstance(value, dict) and isinstance(low.get(key), dict)
    }
    return low | high | both


def dump(config: Config) -> str:
    """The configuration as TOML, every field that is set."""
    import tomli_w

    return tomli_w.dumps(_without_none(dataclasses.asdict(config)))


def check(config: Config) -> None:
    """Raises ValueError for a field of the wrong type or out of range."""
    _options.build(Config, dataclasses.asdict(config), "config")
    try:
        (config.data or "").encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"config: data must be a path in UTF-8, which TOML can hold, got {config.data!r}: "
            "rename it, or link to it under another name"
        ) from None


def differences(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """(field, old value, new value) of all fields that differ."""
    pairs = zip(_leaves(old), _leaves(new), strict=True)
    return [(name, a, b) for (name, a), (_, b) in pairs if a != b]


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }
