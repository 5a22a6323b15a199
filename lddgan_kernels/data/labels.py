"""Classes of pictures: the folders that they lie in, or a `dataset.json` as StyleGAN's tools write.

`dataset.json` holds `{"labels": [["00000/img0.png", 6], ...]}`, or null where there are none.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import torch
from torch import Tensor

from lddgan_kernels.data.source import Skipped

LISTED = "dataset.json"


def find_labels(
    names: Sequence[str], listed: Callable[[], bytes] | None, passed_over: Skipped
) -> Tensor | None:
    """The class of each picture, (N,) int64, or None.

    Args:
        names: of the pictures, relative to the folder or archive, with "/" in them.
        listed: reads `dataset.json`; None: there is none, and the folders count.
        passed_over: is told why `dataset.json` could not be used.
    """
    if listed is None:
        return labels_of_folders(names)
    try:
        return _labels_in(json.loads(listed()), names)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        passed_over.append((LISTED, f"gives no labels: {reason}"))
        return None


def labels_of_folders(names: Sequence[str]) -> Tensor | None:
    """Classes by the folders in which the pictures lie, in the order of their names.

    Names that are numbers, all of them, go by their value. The folders are the first that differ:
    above them may be others, which hold all. None where there is one folder alone, or a picture
    beside the folders.
    """
    parents = [PurePosixPath(name.removeprefix("./")).parent.parts for name in names]
    if not parents:
        return None
    low, high = min(parents), max(parents)
    depth = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), None)
    if depth is None:
        return None
    folders = [parts[depth] for parts in parents]
    known = sorted(set(folders))
    if all(folder.isdecimal() for folder in known):
        known.sort(key=int)
    numbers = {folder: number for number, folder in enumerate(known)}
    return torch.tensor([numbers[folder] for folder in folders])


def _labels_in(content: object, names: Sequence[str]) -> Tensor | None:
    labels = content["labels"]  # type: ignore[index]
    if labels is None:
        return None
    known = {str(name): label for name, label in labels}
    found = []
    for name in names:
        label = known.get(name.removeprefix("./"))
        if type(label) is not int or not -(2**63) <= label < 2**63:
            raise ValueError(f"{name} must have an integer of 64 bits, got {label!r}")
        found.append(label)
    return torch.tensor(found)
