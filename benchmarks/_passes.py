"""The operators that a network's call runs on a GPU, found without one.

Tensors are fakes, off the CPU: models take the path that they take on CUDA, the package's own CUDA
kernels stand as one operator each, and nothing is computed.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lddgan_kernels import _backend

LAST = torch.channels_last


class Pass(NamedTuple):
    """An operator of a call.

    Attributes:
        name: such as "aten.convolution".
        biased: whether it is a convolution that adds a bias. PyTorch does so in a kernel of its
            own: ATen's Convolution.cpp calls cuDNN without it, then `add_` on the whole output.
        copied: whether it is a convolution whose weight is a slice, copied in every call.
        twice: whether it is a norm whose plan reads its input twice, each time in a kernel.
        output: shape of its first output.
        bytes: of its inputs and outputs, each read or written once, and of those kernels'.
    """

    name: str
    biased: bool
    copied: bool
    twice: bool
    output: tuple[int, ...]
    bytes: int

    @property
    def launches(self) -> int:
        """Kernels at the least."""
        return 1 + self.biased + self.copied + self.twice


def passes(
    build: Callable[[], nn.Module], shapes: Sequence[tuple[int, ...]], batch: int
) -> list[Pass]:
    """The operators of one call for inference in bfloat16 and channels_last, views left out.

    Args:
        build: makes the network.
        shapes: of its inputs, whose first dimension is replaced by `batch`; those of one dimension
            are steps (int64).
        batch: images a call.
    """

    def unavailable(op: str, backend: str, x: Tensor, kernels: tuple[str, ...]) -> str | None:
        return None if backend == "cuda" and backend in kernels else "not counted"

    with torch.device("meta"):
        module = build().eval().to(torch.bfloat16, memory_format=LAST)
    with (
        warnings.catch_warnings(),
        mock.patch.object(_backend, "unavailable", unavailable),
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.no_grad(),
        torch.device("meta"),
    ):
        # What is derived from a weight is kept by its address, which fakes lack.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        inputs = []
        for _, *rest in shapes:
            x = torch.zeros(batch, *rest, dtype=torch.bfloat16 if rest else torch.int64)
            inputs.append(x.to(memory_format=LAST) if len(rest) == 3 else x)
        module(*inputs)  # what is derived from weights is made, once
        found = _Passes()
        with found, _Attention(found):
            module(*inputs)
    return found.passes


class _Passes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.passes: list[Pass] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        biased = copied = twice = False
        if func is torch.ops.lddgan.ada_group_norm.default:
            onchip, moments = args[8][0], args[9] if len(args) > 9 else None
            twice = not onchip and moments is None
        elif func is torch.ops.aten.convolution.default:
            biased = args[2] is not None
            # cuDNN keeps the layout, fakes do not.
            layout = suggest_memory_format(args[0])
            copied = not args[1].is_contiguous(memory_format=layout)
            output = torch.empty_like(output, memory_format=layout)
        if not func.is_view:
            name = func._schema.name.replace("::", ".")
            self.add(name, (args, kwargs), output, biased, copied, twice)
        return output

    def add(
        self,
        name: str,
        inputs: Any,
        output: Any,
        biased: bool = False,
        copied: bool = False,
        twice: bool = False,
    ) -> None:
        read, made = (
            [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
            for tree in (inputs, output)
        )
        if made:
            size = sum(_bytes(x) for x in (*read, *made)) + 2 * biased * _bytes(made[0])
            size += 2 * _bytes(read[1]) if copied else 0
            size += _bytes(made[0]) if twice else 0
            self.passes.append(Pass(name, biased, copied, twice, tuple(made[0].shape), size))


class _Attention(TorchFunctionMode):
    """Makes attention the one kernel that it is on a GPU, in the layout of its queries."""

    def __init__(self, found: _Passes) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        output = torch.empty_like(args[0])
        self.found.passes.pop()  # that of the new tensor
        self.found.add("attention", args, output)
        return output


def _bytes(x: Tensor) -> int:
    return math.prod(x.shape) * x.itemsize
