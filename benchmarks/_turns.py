"""Benchmarks that run side by side: they prepare together, and each times alone.

Compiling takes minutes and many cores, timing seconds and a machine that does nothing else. So
`python -m benchmarks sampling --only "batch 1$"` and its like can be started all at once.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

FOLDER = Path(tempfile.gettempdir())


@contextlib.contextmanager
def _lock(name: str, alone: bool) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    with open(FOLDER / f"lddgan-benchmarks-{name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def machine(alone: bool) -> contextlib.AbstractContextManager[None]:
    """Holds the machine, among others who prepare or `alone`; waits until it can."""
    return _lock("machine", alone)


def results() -> contextlib.AbstractContextManager[None]:
    """Holds the stored results."""
    return _lock("results", alone=True)
