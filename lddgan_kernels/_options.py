"""Frozen dataclasses as options: the annotations hold the valid ranges, checked field by field."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple


class Range(NamedTuple):
    """Inclusive bounds of a number, in an annotation."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        bounded = math.isfinite(self.high)
        return f"in {self.low}..{self.high}" if bounded else f"at least {self.low}"


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
NonNegative = Annotated[float, Range(0)]


def check(options: Any) -> None:
    """Raises ValueError, which names class and field, for a value of the wrong type or range."""
    kind = type(options)
    _fields(kind, {f.name: getattr(options, f.name) for f in dataclasses.fields(kind)},
            kind.__name__, "")  # fmt: skip


def build(kind: type, table: Mapping[str, Any], source: str, prefix: str = "") -> Any:
    """The dataclass `kind` with the fields of `table`, nested tables as their dataclasses.

    Raises:
        ValueError: a field does not exist (the nearest that does is named), is of the wrong type or
            out of range; the message begins with `source`.
    """
    return kind(**_fields(kind, table, source, prefix))


def _fields(kind: type, table: Mapping[str, Any], source: str, prefix: str) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1, 0.0)[0]
            raise ValueError(
                f"{source}: field {prefix}{key} does not exist, did you mean {prefix}{near}?"
            )
    return {key: _convert(value, hints[key], source, prefix + key) for key, value in table.items()}


def _convert(value: Any, hint: Any, source: str, name: str) -> Any:
    """`value` as `hint` wants it: lists become tuples, integers floats; else ValueError."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise _wrong(source, name, "a table", value)
        return build(typing.cast(type, hint), value, source, name + ".")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _convert(value, arguments[0], source, name)
        bounds = next(extra for extra in arguments[1:] if isinstance(extra, Range))
        if not bounds.low <= value <= bounds.high or not math.isfinite(value):
            raise _wrong(source, name, str(bounds), value)
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
    if type(value) is int and abs(value) >= 2**63:
        raise _wrong(source, name, "a number of 64 bits", value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise _wrong(source, name, hint.__name__, value)
    return value


def _wrong(source: str, name: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"{source}: {name} must be {expected}, got {value!r}")
