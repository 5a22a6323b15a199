"""Tensors made from a weight for inference, kept until the weight changes."""

from collections.abc import Callable

import torch
from torch import Tensor


class Derived:
    """make(weight), computed once and again whenever the weight has changed.

    A change is seen by the weight's version counter, dtype, device or storage: optimizers,
    `load_state_dict`, `copy_` and `.to` all show. (Writing through `weight.data` hides from PyTorch
    and from this.) Where gradients flow through it to the weight, nothing is kept.

    Args:
        make: a function of the weight.
        differentiable: whether gradients flow through `make`.
    """

    def __init__(self, make: Callable[[Tensor], Tensor], differentiable: bool = True) -> None:
        self.make = make
        self.differentiable = differentiable
        self.clear()

    def clear(self) -> None:
        self._key: tuple[object, ...] = ()
        self._source: Tensor | None = None
        self._value: Tensor | None = None

    def __call__(self, weight: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self.make(weight)
        grad = self.differentiable and torch.is_grad_enabled() and weight.requires_grad
        if grad or weight.is_inference():
            return self.make(weight)
        key = (weight.data_ptr(), weight._version, weight.dtype, weight.device, weight.stride())
        if self._value is None or key != self._key:
            if weight.is_cuda and torch.cuda.is_current_stream_capturing():
                return self.make(weight)  # computed only once the graph is replayed
            with torch.inference_mode(False), torch.no_grad():
                self._value = self.make(weight)
            # Holding the storage keeps its address from being given to another weight.
            self._key, self._source = key, weight.detach()
        return self._value

    def __deepcopy__(self, memo: dict[int, object]) -> "Derived":
        return Derived(self.make, self.differentiable)

    def __reduce__(self) -> tuple[object, ...]:
        return Derived, (self.make, self.differentiable)
