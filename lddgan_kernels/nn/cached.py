"""Tensors made from weights for inference, kept until a weight changes."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from lddgan_kernels.nn.tracing import is_traced

Value = TypeVar("Value")


def _count_step(optimizer: Optimizer, *_: Any) -> None:
    """Fused optimizers write to parameters behind their version counters' back."""
    for group in optimizer.param_groups:
        if group.get("fused"):
            increment_version(group["params"])


register_optimizer_step_post_hook(_count_step)


class Cached(Generic[Value]):
    """cached(make, weights...) is make(weights...), made again only once a weight has changed.

    A change is seen by the weights' version counters, dtypes, devices or storages: optimizers,
    `load_state_dict`, `copy_` and `.to` all show. (Writing through `weight.data` or `.numpy()`
    hides from PyTorch and from this: call `torch.autograd.graph.increment_version` then.) Where
    gradients flow through it to a weight, and where a call is traced, nothing is kept. It is
    neither copied nor saved with its module. `make` must be the same in every call.

    Args:
        differentiable: whether gradients flow through `make`.
    """

    def __init__(self, differentiable: bool = True) -> None:
        self.differentiable = differentiable
        self.clear()

    def clear(self) -> None:
        """Drops what is kept."""
        self._key: list[Any] = []
        self._sources: list[Tensor] = []
        self._value: Value | None = None

    def __call__(self, make: Callable[..., Value], *weights: Tensor | None) -> Value:
        if is_traced():
            return make(*weights)
        present = [weight for weight in weights if weight is not None]
        needs_gradient = self.differentiable and torch.is_grad_enabled()
        if needs_gradient and any(weight.requires_grad for weight in present):
            return make(*weights)
        key: list[Any] = []
        for weight in weights:
            if weight is None:
                key.append(None)
                continue
            if weight.is_inference():  # without a version counter
                return make(*weights)
            key += (weight.data_ptr(), weight._version, weight.dtype, weight.stride())
        if self._value is None or key != self._key:
            if present[0].is_cuda and torch.cuda.is_current_stream_capturing():
                return make(*weights)  # computed only once the graph is replayed
            with torch.inference_mode(False), torch.no_grad():
                self._value = make(*weights)
            # Holding the storages keeps their addresses from being given to other weights.
            self._key, self._sources = key, [weight.detach() for weight in present]
        return self._value

    def __deepcopy__(self, memo: dict[int, object]) -> "Cached[Value]":
        return Cached(self.differentiable)

    def __reduce__(self) -> tuple[object, ...]:
        return Cached, (self.differentiable,)
