"""Pickles of arrays and plain Python values, read without running what else they may hold."""

import pickle
from typing import Any, BinaryIO


class _ArrayUnpickler(pickle.Unpickler):
    ALLOWED = frozenset(
        [("_codecs", "encode"), ("numpy", "ndarray"), ("numpy", "dtype")]
        + [
            (f"numpy.{core}.{module}", name)
            for core in ("core", "_core")
            for module, name in (
                ("multiarray", "_reconstruct"),
                ("multiarray", "scalar"),
                ("numeric", "_frombuffer"),
            )
        ]
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"data has no use for {module}.{name}")
        # Files made before NumPy 2 name these where they were then.
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def load_arrays(file: BinaryIO) -> Any:
    """What a pickle holds, byte strings of Python 2 as bytes; nothing in it is executed.

    Raises ValueError where it is damaged or refers to anything else.
    """
    try:
        return _ArrayUnpickler(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(str(error) or type(error).__name__) from None
