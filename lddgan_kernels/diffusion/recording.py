"""Calls of networks on a CPU as flat lists of operators: what a CUDA graph is on a GPU.

At batch 1 Python takes as long as a third of the arithmetic: modules, checks, choices of backend,
and on the way to each operator. All of it comes out the same for inputs of the same shape, so it is
done once: the operators that ran are recorded, and from then on called one after the other from
C++ (python/replay.cpp). `LDDGAN_REPLAY=0` in the environment switches it off.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from lddgan_kernels import _extension
from lddgan_kernels._backend import default_backend
from lddgan_kernels.nn import ModuleState, is_traced

MOST_SHAPES = 8  # kept at once


class Recorded(nn.Module):
    """`module` with its calls on CPUs recorded; made by `recorded`."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module = module
        self.method = method
        self.training = module.training
        self._recordings = Recordings("recorded")

    def forward(self, *inputs: Tensor) -> Tensor:
        call = self.module if self.method == "forward" else getattr(self.module, self.method)
        return self._recordings(call, [self.module], *inputs)


def recorded(module: nn.Module, method: str = "forward") -> Recorded:
    """The module with its calls on CPUs recorded: the same results, without Python's share of time.

    A call for inference is recorded the second time that its shapes come, and replayed from then
    on; whatever else runs as ever: gradients, training mode, autocast, GPUs, other backends,
    forward hooks. Changes of the module that `nn.ModuleState` sees discard the records. What cannot
    be recorded, as it reads a value back, runs as ever too, after one warning that says why. The
    result must depend on nothing but the inputs and what `nn.ModuleState` sees.

    Args:
        module: takes tensors and returns one.
        method: the method that calls go to: "decode" of an autoencoder.

    Returns:
        A module with the same call; `.module` is the one given.
    """
    return Recorded(module, method)


class Recordings:
    """Records of one function for inputs of several shapes.

    Args:
        who: speaks in the warning.
    """

    def __init__(self, who: str) -> None:
        self._who = who
        self._warned = False
        self._state: ModuleState | None = None
        self._records: dict[tuple[Any, ...], Callable[..., Tensor] | None] = {}

    def __call__(
        self, function: Callable[..., Tensor], modules: Sequence[nn.Module], *inputs: Tensor
    ) -> Tensor:
        """function(*inputs), which runs the modules; it must be the same in every call."""
        if not _suits(inputs) or not self._knows(modules):
            return function(*inputs)
        key = tuple((x.shape, x.stride(), x.dtype) for x in inputs)
        if key not in self._records:  # recorded when it comes again
            if len(self._records) == MOST_SHAPES:
                self._records.clear()
            self._records[key] = None
            return function(*inputs)
        known = self._records[key]
        if known is not None:
            try:
                return known(*inputs)
            except (IndexError, RuntimeError):  # of a value that Python takes another way with
                return function(*inputs)
        try:
            self._records[key], result = record(function, inputs)
        except (RuntimeError, TypeError, ValueError) as error:
            result = function(*inputs)  # which raises where the error is its own
            self._records[key] = function
            self._warn(error)
        return result

    def _knows(self, modules: Sequence[nn.Module]) -> bool:
        """Whether calls of the modules, as they are now, are recorded."""
        if self._state is None or not self._state.holds():
            self._state = ModuleState(*modules)
            self._records.clear()
        return self._state.recordable and not self._state.trains

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self._who}: calls run operator by operator, as they cannot be recorded: {error}",
                RuntimeWarning,
                stacklevel=3,
            )

    def __deepcopy__(self, memo: dict[int, object]) -> "Recordings":
        return Recordings(self._who)

    def __reduce__(self) -> tuple[object, ...]:
        return Recordings, (self._who,)


def _suits(inputs: tuple[Tensor, ...]) -> bool:
    """Whether calls with such inputs are recorded."""
    return (
        os.environ.get("LDDGAN_REPLAY") != "0"
        and _extension.is_loaded()
        and default_backend() in (None, "cpu")
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not is_traced()
        and torch._C._len_torch_dispatch_stack() == 0  # whose modes would miss Python's calls
        and all(type(x) is Tensor and x.is_cpu for x in inputs)  # no fake
    )


def record(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> tuple[Callable[..., Tensor], Tensor]:
    """(a function of the same inputs that calls what `function` calls, without Python; its result).

    Tensors that no call made are constants: weights, and what was derived from them.

    Raises:
        RuntimeError: it reads a value back, or the extension is missing.
    """
    extension = _extension.module()
    if extension is None:
        raise RuntimeError(_extension.why_missing())
    with _Recorder(inputs) as recorder, _Readers(recorder):
        result = function(*inputs)
    stands = recorder.stands
    known = extension.record(recorder.calls, [stands[x] for x in inputs], recorder.stand(result))
    return known, result


class _Recorder(TorchDispatchMode):
    """Keeps (operator, arguments, keywords, output) of all calls.

    A tensor that changes from call to call is kept as an empty one that stands for it, so that a
    recording needs no more memory than a call.
    """

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.stands = WeakTensorKeyDictionary()
        for x in inputs:
            self.stands[x] = _stand()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # keeping the compiler out would import it, a second's work

    def stand(self, x: Any) -> Any:
        """What stands for x; itself where it is a constant."""
        return self.stands.get(x, x) if isinstance(x, Tensor) else x

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        given = tree_map(self.stand, (args, kwargs))
        output = func(*args, **kwargs)
        made = tree_leaves(output)
        if not all(isinstance(leaf, Tensor) for leaf in made):
            if not read:
                return output  # of dtypes or sizes alone
            raise RuntimeError(f"{func} reads a value back")
        if func.is_view and not any(x in self.stands for x in read):
            return output  # of weights: a constant as well
        for x in made:
            if x not in self.stands:
                self.stands[x] = _stand()
        self.calls.append((func, *given, tree_map(self.stand, output)))
        return output


class _Readers(TorchFunctionMode):
    """Refuses what reads memory without a call of an operator: a record would keep the values."""

    METHODS = (
        *("tolist", "numpy", "__array__", "__dlpack__"),
        *("data_ptr", "storage", "untyped_storage"),
    )

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.METHODS and args[0] in self._recorder.stands:
            raise RuntimeError(f"Tensor.{name} reads a value back")
        return func(*args, **(kwargs or {}))


def _stand() -> Tensor:
    return torch.empty(0, device="cpu")
