"""Configurations in and out of TOML, checked field by field."""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from lddgan_kernels.trainer.config import Config, Range


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
    if preset in presets():
        file = resources.files("lddgan_kernels.trainer").joinpath("presets", f"{preset}.toml")
        text, source = file.read_text(), f"preset {preset}"
    elif preset.endswith(".toml"):
        if not Path(preset).is_file():
            raise ValueError(f"config: preset must be an existing file, got {preset}")
        text, source = Path(preset).read_text(), preset
    else:
        raise ValueError(
            f"config: preset must be one of {', '.join(presets())}, or a .toml file, got {preset!r}"
        )
    return parse(text, source)


def parse(text: str, source: str = "config") -> Config:
    """The configuration of a TOML text; fields it leaves out take their defaults."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{source}: not valid TOML: {error}") from None
    return _build(Config, table, source, "")


def dump(config: Config) -> str:
    """The configuration as TOML, every field that is set."""
    import tomli_w

    return tomli_w.dumps(_without_none(dataclasses.asdict(config)))


def check(config: Config) -> None:
    """Raises ValueError for a field of the wrong type or out of range."""
    _build(Config, dataclasses.asdict(config), "config", "")


def differences(old: Config, new: Config) -> list[str]:
    """`field: old value -> new value` of all fields that differ."""
    pairs = zip(_leaves(old), _leaves(new), strict=True)
    return [f"{name}: {a!r} -> {b!r}" for (name, a), (_, b) in pairs if a != b]


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


def _build(kind: type, table: dict[str, Any], source: str, prefix: str) -> Any:
    hints = typing.get_type_hints(kind, include_extras=True)
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1, 0.0)[0]
            raise ValueError(
                f"{source}: field {prefix}{key} does not exist, did you mean {prefix}{near}?"
            )
    values = {
        key: _convert(value, hints[key], source, prefix + key) for key, value in table.items()
    }
    return kind(**values)


def _convert(value: Any, hint: Any, source: str, name: str) -> Any:
    """`value` as `hint` wants it: lists become tuples, integers floats; else ValueError."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise _wrong(source, name, "a table", value)
        return _build(typing.cast(type, hint), value, source, name + ".")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _convert(value, arguments[0], source, name)
        bounds = next(extra for extra in arguments[1:] if isinstance(extra, Range))
        if not bounds.low <= value <= bounds.high:
            raise _wrong(source, name, f"in {bounds.low}..{bounds.high}", value)
        return value
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise _wrong(source, name, f"one of {', '.join(map(str, arguments))}", value)
        return value
    if origin in (typing.Union, types.UnionType):
        wanted = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _convert(value, wanted, source, name)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(source, name, "a list", value)
        items = enumerate(value)
        return tuple(_convert(v, arguments[0], source, f"{name}[{i}]") for i, v in items)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise _wrong(source, name, hint.__name__, value)
    return value


def _wrong(source: str, name: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"{source}: {name} must be {expected}, got {value!r}")
