"""Tensors made from weights for inference, kept until a weight changes."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from lddgan_kernels._backend import transformed

Value = TypeVar("Value")


def _count_step(optimizer: Optimizer, *_: Any) -> None:
    """Fused optimizers write to parameters behind their version counters' back."""
    for group in optimizer.param_groups:
        if group.get("fused"):
            increment_version(group["params"])


register_optimizer_step_post_hook(_count_step)


class Derived(Generic[Value]):
    """make(weights...), computed once and again whenever one of the weights has changed.

    A change is seen by the weights' version counters, dtypes, devices or storages: optimizers,
    `load_state_dict`, `copy_` and `.to` all show. (Writing through `weight.data` hides from PyTorch
    and from this.) Where gradients flow through it to a weight, nothing is kept.

    Args:
        make: a function of the weights (tensors or None).
        differentiable: whether gradients flow through `make`.
    """

    def __init__(self, make: Callable[..., Value], differentiable: bool = True) -> None:
        self.make = make
        self.differentiable = differentiable
        self.clear()

    def clear(self) -> None:
        self._key: list[Any] = []
        self._sources: list[Tensor] = []
        self._value: Value | None = None

    def __call__(self, *weights: Tensor | None) -> Value:
        if torch.compiler.is_compiling() or transformed():
            return self.make(*weights)
        given = [weight for weight in weights if weight is not None]
        if self.differentiable and torch.is_grad_enabled() and any(w.requires_grad for w in given):
            return self.make(*weights)
        key: list[Any] = []
        for weight in weights:
            if weight is None:
                key.append(None)
                continue
            if weight.is_inference():  # without a version counter
                return self.make(*weights)
            key += (weight.data_ptr(), weight._version, weight.dtype, weight.stride())
        if self._value is None or key != self._key:
            if given[0].is_cuda and torch.cuda.is_current_stream_capturing():
                return self.make(*weights)  # computed only once the graph is replayed
            with torch.inference_mode(False), torch.no_grad():
                self._value = self.make(*weights)
            # Holding the storages keeps their addresses from being given to other weights.
            self._key, self._sources = key, [weight.detach() for weight in given]
        return self._value

    def __deepcopy__(self, memo: dict[int, object]) -> "Derived[Value]":
        return Derived(self.make, self.differentiable)

    def __reduce__(self) -> tuple[object, ...]:
        return Derived, (self.make, self.differentiable)
