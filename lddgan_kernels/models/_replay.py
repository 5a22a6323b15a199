"""A network's forward pass for inference as a flat list of operators.

At batch 1 Python takes as long as a third of the arithmetic: modules, checks, choices of backend,
and on the way to each operator. All of it comes out the same for inputs of the same shape, so it is
done once: the operators that ran are recorded, and from then on called one after the other from
C++ (python/replay.cpp).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lddgan_kernels import _extension
from lddgan_kernels._backend import default_backend, transformed
from lddgan_kernels._module_state import ModuleState

MOST_SHAPES = 8  # kept at once


class Replay:
    """Functions of a module and of tensors, recorded once they are called again.

    On the CPU and its kernels, in evaluation mode, without gradients; otherwise they are called as
    they are. They must depend on nothing but the inputs' values and layouts and what `ModuleState`
    sees of the module, whose changes discard the records, and must not read values back.
    """

    def __init__(self) -> None:
        self._state: ModuleState | None = None
        self._records: dict[tuple[Any, ...], Callable[..., Tensor] | None] = {}

    def state(self, module: nn.Module, *inputs: Tensor) -> ModuleState | None:
        """The module as it is now, for calls until it changes; None: it is not to be recorded.

        To look at all weights takes longer than a call's way through Python, so calls share it.
        """
        if module.training or not _suits(inputs):
            return None
        if self._state is None or not self._state.holds():
            self._state = ModuleState(module)
            self._records.clear()
        return self._state if self._state.recordable else None

    def __call__(
        self, state: ModuleState | None, function: Callable[..., Tensor], *inputs: Tensor
    ) -> Tensor:
        """function(*inputs) of the module that `state` was asked of."""
        if state is None or state is not self._state or not _suits(inputs):
            return function(*inputs)
        key = (function.__qualname__, *((x.shape, x.stride(), x.dtype) for x in inputs))
        if key not in self._records:  # once may be all
            if len(self._records) == MOST_SHAPES:
                self._records.clear()
            self._records[key] = None
            return function(*inputs)
        record = self._records[key]
        if record is None:
            record = self._records[key] = record_calls(function, inputs)
        return record(*inputs)

    def __deepcopy__(self, memo: dict[int, object]) -> "Replay":
        return Replay()

    def __reduce__(self) -> tuple[object, ...]:
        return Replay, ()


def _suits(inputs: tuple[Tensor, ...]) -> bool:
    """Whether calls with such inputs are recorded."""
    return (
        _extension.is_loaded()
        and default_backend() in (None, "cpu")
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not transformed()
        and all(type(x) is Tensor and x.is_cpu for x in inputs)  # no fake
    )


def record_calls(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> Callable[..., Tensor]:
    """A function of the same inputs that calls what `function` calls, without Python.

    Tensors that no call made are constants: weights, and what was derived from them.

    Raises:
        RuntimeError: it reads a value back, or the extension is missing.
    """
    extension = _extension.module()
    if extension is None:
        raise RuntimeError(_extension.why_missing())
    with _Recorder() as recorder:
        result = function(*inputs)
    record: Callable[..., Tensor] = extension.record(recorder.calls, inputs, result)
    return record


class _Recorder(TorchDispatchMode):
    """Keeps (operator, arguments, keywords, output) of all calls, and all tensors alive."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # keeping the compiler out would import it, a second's work

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not all(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
            if not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
                return output  # of dtypes or sizes alone
            raise RuntimeError(f"Replay: {func} reads a value back")
        self.calls.append((func, args, kwargs or {}, output))
        return output
