"""Argument checks with uniform messages: `<op>: <arg> must be <expected>, got <actual>`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def fail(op: str, arg: str, expected: str, actual: object) -> ValueError:
    """The exception for an argument that does not fit (raise it yourself)."""
    return ValueError(f"{op}: {arg} must be {expected}, got {actual}")


def check_tensor(op: str, arg: str, value: object) -> None:
    """`value` must be a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {arg} must be a torch.Tensor, got {type(value).__name__}")


def check_image(op: str, arg: str, x: Tensor) -> None:
    """`x` must be a (N, C, H, W) tensor of a floating dtype."""
    check_tensor(op, arg, x)
    if x.ndim != 4:
        raise fail(op, arg, "a 4-D tensor (N, C, H, W)", f"shape {tuple(x.shape)}")
    check_float(op, arg, x)


def check_float(op: str, arg: str, x: Tensor) -> None:
    """`x` must have one of FLOAT_DTYPES."""
    if x.dtype not in FLOAT_DTYPES:
        raise fail(op, arg, "float32, bfloat16, float16 or float64", x.dtype)


def check_device(op: str, device: torch.device | str) -> None:
    """`device` must name one that is there."""
    try:
        if torch.empty(0, device=device).is_meta:
            raise NotImplementedError("it has shapes alone")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise fail(op, "device", "one that is there", f"{device} ({reason})") from None


def check_shape(op: str, arg: str, x: Tensor, shape: Sequence[int]) -> None:
    """`x` must have exactly `shape`."""
    if x.shape != shape and x.shape != tuple(shape):
        raise fail(op, arg, f"of shape {tuple(shape)}", tuple(x.shape))


def check_like(op: str, arg: str, x: Tensor, main: Tensor, main_arg: str = "x") -> None:
    """`x` must share `main`'s dtype and device."""
    if x.dtype != main.dtype:
        raise fail(op, arg, f"{main.dtype} like {main_arg}", x.dtype)
    if x.device != main.device:
        raise fail(op, arg, f"on {main.device} like {main_arg}", x.device)


def promoted(*operands: Any) -> tuple[Any, ...]:
    """Under autocast, tensors of several dtypes in the widest, as PyTorch's own sums take them.

    What is no tensor stays; so do all where autocast is off, as on the meta device.
    """
    main = operands[0]
    if not isinstance(main, Tensor) or main.is_meta:
        return operands
    if not torch.is_autocast_enabled(main.device.type):
        return operands
    dtype = main.dtype
    for other in operands[1:]:
        if isinstance(other, Tensor):
            dtype = torch.promote_types(dtype, other.dtype)
    return tuple(x.to(dtype) if isinstance(x, Tensor) else x for x in operands)


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout an op returns for the image `x`: channels_last if `x` has it, else contiguous.

    Where strides fit both (one channel, 1x1 maps), contiguous; so under `torch.vmap`, where PyTorch
    does not tell.
    """
    if _vectorized() or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def _vectorized() -> bool:
    """Whether `torch.vmap` is at work, also inside other transforms."""
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is None:
        return False
    stack = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in stack)


def dense(x: Tensor) -> Tensor:
    """`x` itself where it is contiguous or channels_last; a contiguous copy of any other view."""
    if x.is_contiguous() or memory_format(x) is torch.channels_last:
        return x
    return x.contiguous()


def like_layout(x: Tensor, layout: torch.memory_format) -> Tensor:
    """`x` in the given layout: itself where it has it, else a copy.

    For second operands and gradients, which may arrive in the other layout than the main input.
    """
    if _vectorized():  # a slice of many looks contiguous there
        return x.clone(memory_format=torch.contiguous_format)
    return x.contiguous(memory_format=layout)


def check_labels(op: str, labels: Tensor | None, n: int, classes: int) -> None:
    """`labels` must be one int64 a sample of a network with `classes`, or None; reads no value."""
    if labels is None:
        return
    if classes == 0:
        raise fail(op, "labels", "None where there are no classes", f"shape {tuple(labels.shape)}")
    check_shape(op, "labels", labels, (n,))
    if labels.dtype != torch.int64:
        raise fail(op, "labels", "int64", labels.dtype)
