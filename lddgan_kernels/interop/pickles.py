"""`torch.save` files of any age, read without running anything that they refer to.

A pickle names functions and classes that rebuild its objects. Here only those that make tensors and
plain containers are known; for any other name an empty class stands in, so that neither it nor its
module is imported. What lies beside the weights (optimisers' helpers, options, dates, numbers of
NumPy) then comes out as a dict of attributes, or empty.
"""

import pickle
import tarfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

# Nothing of these belongs into a checkpoint: a file that names them was made to run code. (It would
# not run here either; but who made it should not be trusted with weights.)
HOSTILE_MODULES = frozenset(
    (
        *("os", "posix", "nt", "subprocess", "sys", "importlib", "runpy", "shutil", "socket"),
        *("ctypes", "pty", "webbrowser", "marshal", "pickle", "_pickle", "code", "pdb", "timeit"),
        *("io", "_io", "urllib", "http", "torch.hub"),
    )
)
HOSTILE_BUILTINS = frozenset(
    (
        *("eval", "exec", "compile", "open", "__import__", "input", "breakpoint", "execfile"),
        *("setattr", "delattr", "globals", "locals", "vars"),
    )
)


class StandIn(dict[Any, Any]):
    """In the place of an object of a class that is not known: its items and attributes."""

    origin = "nothing"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Keeps attributes, among which averaged weights may be."""
        if isinstance(state, dict):
            self.update(state)

    def __call__(self, *args: Any, **kwargs: Any) -> "StandIn":
        """Another, in the place of what a function would return."""
        return StandIn()

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
        check_name(path)
        # `dtype` is read of untyped storages alone, which are bytes.
        return type(name, (StandIn,), {"origin": path, "dtype": torch.uint8})


def check_name(path: str) -> None:
    """Raises UnpicklingError for the name of something that no checkpoint has a use for."""
    module, _, name = path.rpartition(".")
    hostile = module in HOSTILE_MODULES or module.split(".")[0] in HOSTILE_MODULES
    if module in ("builtins", "__builtin__"):
        hostile = name in HOSTILE_BUILTINS
    if hostile:
        raise pickle.UnpicklingError(f"refers to {path}, which could run code")


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


# What `torch.load` takes for a pickle module.
_PICKLE = SimpleNamespace(__name__="lddgan_kernels.interop", Unpickler=_Unpickler, load=_load)


def _refuse_programs(path: Path) -> None:
    """Raises for a TorchScript archive, which `torch.load` would hand on to be compiled."""
    try:
        torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError as error:
        if "torchscript" in str(error):
            raise ValueError("a TorchScript archive: save the module's state_dict()") from None
    except Exception:  # the reader of names knows few kinds of pickles
        pass


def load_checkpoint(path: Path) -> Any:
    """What a file of `torch.save` holds: tensors on the CPU, containers, and `StandIn`s.

    Raises ValueError, which names the file, where it is damaged, no such file, or names what could
    run code (nothing of which is run).
    """
    expected = f"load_published: {path} is truncated or no PyTorch checkpoint"
    try:
        with open(path, "rb") as file:
            beginning = file.read(4)
        if tarfile.is_tarfile(path):
            raise ValueError("the tar format of PyTorch before 0.1.10 is not read")
        if beginning == b"PK\x03\x04":
            _refuse_programs(path)
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
