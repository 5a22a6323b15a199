"""What a known kind of module is replaced by, and how a module changes its forward and back."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, linspace, nn, no_grad
from torch import float64 as double


class Rule(NamedTuple):
    """How modules of one kind run.

    Attributes:
        what: the kind, for the report.
        run: takes the place of the method `method`.
        prepare: what `run` reads as `module._lddgan`; None: this is no such module.
        example: arguments to try a module with, in float32; None: the class is PyTorch's own.
        method: the one replaced.
    """

    what: str
    run: Callable[..., Any]
    prepare: Callable[[Any], SimpleNamespace | None]
    example: Callable[[Any], tuple[Any, ...]] | None = None
    method: str = "forward"


@functools.cache
def _replacement(original: Any, rule: Rule) -> Any:
    """A subclass of a module's class whose method is the rule's."""

    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:  # copy and pickle: a class made here
        return _empty, (original, rule), self.__dict__

    members = {
        rule.method: rule.run,
        "_lddgan_original": original,
        "__reduce_ex__": reduce,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
    }
    return type(original.__name__, (original,), members)


def _empty(original: type, rule: Rule) -> Any:
    replacement = _replacement(original, rule)
    return replacement.__new__(replacement)


def replace(module: nn.Module, rule: Rule, prepared: SimpleNamespace) -> None:
    """The module is of a subclass of its class from now on; its parameters and names stay."""
    module.__dict__["_lddgan"] = prepared
    original: Any = type(module)
    module.__class__ = _replacement(original, rule)


def restore(module: nn.Module) -> None:
    """The module as it was before `replace`."""
    module.__class__ = original_class(module)
    module.__dict__.pop("_lddgan", None)


def is_replaced(module: nn.Module) -> bool:
    """Whether `replace` has been called of it."""
    return "_lddgan_original" in vars(type(module))


def original_class(module: nn.Module) -> Any:
    """The module's class, without what `replace` made of it."""
    return vars(type(module)).get("_lddgan_original", type(module))


def activation_of(fn: Callable[[Tensor], Tensor]) -> str | None:
    """The name by which `ada_group_norm` knows a function; "" where it does not."""
    x = linspace(-6, 6, 25, dtype=double)
    try:
        with no_grad():
            y = fn(x.clone())
    except (TypeError, RuntimeError):  # of other arguments, dtypes or devices
        return ""
    for name in ("silu", "gelu", "relu"):
        if y.shape == x.shape and y.dtype == x.dtype and y.allclose(getattr(F, name)(x)):
            return name
    return ""
