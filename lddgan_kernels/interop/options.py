"""Published options by their types: what is wrong is named."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# No published size comes near; what is past it is a mistake that would fill the memory.
LARGEST = 1 << 16


def wrong(name: str, expected: str, actual: object) -> ValueError:
    """The exception for an option that does not fit (raise it yourself)."""
    return ValueError(f"load_published: option {name} must be {expected}, got {actual}")


def integer(options: Mapping[str, Any], name: str, default: int, low: int = 1) -> int:
    """An integer in low..LARGEST."""
    value = options.get(name, default)
    if not _is_integer(value) or not low <= value <= LARGEST:
        raise wrong(name, f"an integer in {low}..{LARGEST}", repr(value))
    return int(value)


def integers(options: Mapping[str, Any], name: str, default: Any) -> tuple[int, ...]:
    """A list of positive integers; a single one stands for a list."""
    value = options.get(name, default)
    listed = [value] if _is_integer(value) else value
    fits = isinstance(listed, list | tuple) and all(
        _is_integer(one) and 1 <= one <= LARGEST for one in listed
    )
    if not fits:
        raise wrong(name, f"a list of integers in 1..{LARGEST}", repr(value))
    return tuple(int(one) for one in listed)


def names(options: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A list of names; none where it is missing."""
    value = options.get(name, ())
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise wrong(name, "a list of names", repr(value))
    return tuple(value)


def number(
    options: Mapping[str, Any], name: str, default: float, low: float = 0.0, high: float = 1.0
) -> float:
    """A number in low..high."""
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise wrong(name, f"a number in {low:g}..{high:g}", repr(value))
    if not low <= value <= high:
        raise wrong(name, f"a number in {low:g}..{high:g}", repr(value))
    return float(value)


def flag(options: Mapping[str, Any], name: str, default: bool) -> bool:
    """True or False."""
    value = options.get(name, default)
    if not isinstance(value, bool | int | np.bool_) or value not in (0, 1):
        raise wrong(name, "True or False", repr(value))
    return bool(value)


def table(options: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table of options."""
    value = options.get(name)
    if not isinstance(value, Mapping):
        raise wrong(name, "a table", repr(value))
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
