"""What every kind of image source has in common, and the identity of a data set."""

import hashlib
from typing import Protocol

from torch import Tensor

from lddgan_kernels.data.prepare import Stored

# (what a person calls a picture or file, why it could not be used)
Skipped = list[tuple[str, str]]


class Source(Protocol):
    """Where pictures come from: picklable, safe to read from in DataLoader workers."""

    name: str
    passed_over: Skipped
    """Files that were met but hold no picture that can be read."""

    @property
    def labels(self) -> Tensor | None:
        """(N,) int64, where the source has them."""

    def __len__(self) -> int: ...

    def item_name(self, index: int) -> str:
        """What a person calls picture `index`."""

    def read(self, index: int) -> Stored:
        """The picture as it is stored; raises for one that cannot be read."""


def identity(source: Source, length: int) -> str:
    """A hash of the first `length` pictures as they are stored, all of their bytes, in their order.

    Names, times and the place do not count: a copy is the same data set, an edited picture makes
    another one. Reads the set once.
    """
    from tqdm import tqdm

    found = hashlib.blake2b(digest_size=16)
    for index in tqdm(range(length), desc="identify", unit="img", delay=2, leave=False):
        try:
            stored = source.read(index)
        except Exception:  # a picture that cannot be read is skipped; what is there may be repaired
            found.update(b"unreadable\n")
            continue
        if isinstance(stored, bytes):
            found.update(b"%d\n" % len(stored))
            found.update(stored)
        else:
            found.update(str(stored.shape).encode())
            found.update(stored.tobytes())
    return found.hexdigest()
