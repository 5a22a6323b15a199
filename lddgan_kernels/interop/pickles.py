"""`torch.save` files of any age, read without running anything that they refer to.

A pickle names functions and classes that rebuild its objects. Here only those that make tensors and
plain containers are known; for any other name an empty class stands in, so that neither it nor its
module is imported. What lies beside the weights (optimisers' helpers, options, dates, numbers of
NumPy) then comes out empty.
"""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

# Nothing of these belongs into a checkpoint: a file that names them was made to run code. (It would
# not run here either; but who made it should not be trusted with weights.)
HOSTILE_MODULES = frozenset(
    (
        *("os", "posix", "nt", "subprocess", "sys", "importlib", "runpy", "shutil", "socket"),
        *("ctypes", "pty", "webbrowser", "marshal", "pickle", "_pickle", "code", "pdb", "timeit"),
        *("asyncio", "multiprocessing", "threading", "signal", "tempfile", "io", "_io", "builtins"),
        *("__builtin__", "operator", "urllib", "http", "requests", "torch.hub", "nturl2path"),
    )
)
# Of `builtins`, what makes plain values.
PLAIN = frozenset(
    (
        *("set", "frozenset", "list", "dict", "tuple", "complex", "bytearray", "slice", "range"),
        *("object", "int", "float", "bool", "str", "bytes", "type", "Ellipsis", "NotImplemented"),
    )
)
EXCEPTIONS = ("Error", "Exception", "Warning")


class StandIn(dict[Any, Any]):
    """In the place of an object that is not needed; keeps the items of one that is a dict."""

    origin = "nothing"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Drops the state."""

    def append(self, item: Any) -> None:
        """Drops an item of a list."""

    def extend(self, items: Any) -> None:
        """Drops items of a list."""

    def add(self, item: Any) -> None:
        """Drops an item of a set."""

    # Such objects may be the keys of a dict.
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


def _rebuild_as_plain(rebuild: Any, kind: Any, args: tuple[Any, ...], state: Any) -> Any:
    """A tensor of a subclass, or with attributes, as a tensor."""
    return rebuild(*args)


def _callable(function: Any) -> Any:
    """The function, behind an object of its own that a pickle may not change."""

    class Rebuild:
        __slots__ = ()

        def __call__(self, *args: Any) -> Any:
            return function(*args)

        def __setstate__(self, state: Any) -> None:
            """Drops the state."""

    return Rebuild()


_TENSORS: dict[str, Any] = {
    "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
    "torch.nn.parameter.Parameter": lambda data, *rest: data,
    "torch._tensor._rebuild_from_type_v2": _rebuild_as_plain,
}
_CONTAINERS = {"collections.OrderedDict": OrderedDict}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        if path in _TENSORS:
            return _callable(_TENSORS[path])
        if path in _CONTAINERS:
            return _CONTAINERS[path]
        if module == "torch":
            known = getattr(torch, name, None)
            if name == "Size" or isinstance(known, torch.dtype):
                return known
        if path == "torch.storage.UntypedStorage":
            return torch.UntypedStorage
        check_name(path)
        return type(name, (StandIn,), {"origin": path})


def check_name(path: str) -> None:
    """Raises UnpicklingError for the name of something that no checkpoint has a use for."""
    module, _, name = path.rpartition(".")
    if module in ("builtins", "__builtin__") and (name in PLAIN or name.endswith(EXCEPTIONS)):
        return
    hostile = module in HOSTILE_MODULES or module.split(".")[0] in HOSTILE_MODULES
    if hostile or path == "torch.storage._load_from_bytes":
        raise pickle.UnpicklingError(f"refers to {path}, which could run code")


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


# What `torch.load` takes for a pickle module.
_PICKLE = SimpleNamespace(__name__="lddgan_kernels.interop", Unpickler=_Unpickler, load=_load)


def load_checkpoint(path: Path) -> Any:
    """What a file of `torch.save` holds: tensors on the CPU, containers, and `StandIn`s.

    Raises ValueError, which names the file, where it is damaged, no such file, or names what could
    run code (nothing of which is run).
    """
    expected = f"load_published: {path} is truncated or no PyTorch checkpoint"
    try:
        with open(path, "rb") as file:
            if file.read(4) == b"PK\x03\x04":
                # Also refuses TorchScript archives, which hold programs.
                for name in torch.serialization.get_unsafe_globals_in_checkpoint(path):
                    check_name(name)
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_PICKLE)
    except pickle.UnpicklingError as error:
        if "refers to" not in str(error):
            raise ValueError(f"{expected}: {error}") from error
        raise ValueError(
            f"load_published: {path} must hold tensors only, but {error}; nothing of it was loaded"
        ) from error
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(f"{expected}: {reason}") from error


def tensors_of(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a dict under names, detached."""
    return {
        name: value.detach()
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
