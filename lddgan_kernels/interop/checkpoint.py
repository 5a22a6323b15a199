"""Where in a checkpoint a network's weights are: tensors only, never code."""

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lddgan_kernels.interop.pickles import StandIn, load_checkpoint

# Parts of names that wrappers of modules add: DDP, torch.compile, FSDP, activation checkpointing.
WRAPPERS = frozenset(
    ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
)

# How keys of averaged weights are called: `ema`, `g_ema`, `ema_model`, `averaged`, `shadow`, ...
AVERAGED = re.compile(r"(?<![a-z])ema|ema(?![a-z])|averag|shadow", re.IGNORECASE)

# Of several networks that fit, which is meant where none is averaged.
PREFERRED = ("state_dict", "netG_dict", "netD_dict", "model", "generator", "discriminator")

DEPTH = 5


class Found(NamedTuple):
    """A state dict inside a checkpoint that holds a network's first weight."""

    place: str
    """Its keys and the prefix of its names, joined by dots; "" at the top."""
    state: dict[str, Tensor]
    beside: list[str]
    """Names that do not have the prefix."""


def read_state_dict(
    checkpoint: str | Path | Mapping[str, Any], first: str, unwanted: str = ""
) -> dict[str, Tensor]:
    """The tensors of a network under its own names.

    Averaged weights are preferred: of several networks that fit, those under a key that says so
    (`ema`, `g_ema`, ...), and those in the optimizer's state of a published training run
    (`content.pth`). Prefixes that belong to all names of a network, and those of wrappers wherever
    in a name, are taken off.

    Args:
        checkpoint: a path (`.safetensors`, or any file of `torch.save`), or what it would hold: a
            state dict, or dicts with one inside.
        first: a name that the network must have.
        unwanted: the key of a training run's other network.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is truncated, no checkpoint, or
            was made to run code; or which network is meant cannot be told.
    """
    content = _read(Path(checkpoint)) if isinstance(checkpoint, str | Path) else checkpoint
    if not isinstance(content, Mapping):
        raise ValueError(
            f"load_published: checkpoint must hold a dict of tensors, got {type(content).__name__}"
        )
    usable = {key: value for key, value in content.items() if key != unwanted}
    if "netG_dict" in usable:
        usable["netG_dict"] = _averaged(usable["netG_dict"], content.get("optimizerG"))
    found = list(_find(usable, first, "", DEPTH))
    if not found:
        return _any_tensors(content, usable)
    chosen = _choose(found)
    if chosen.beside:
        shown = ", ".join(chosen.beside[:3]) + (", ..." if len(chosen.beside) > 3 else "")
        warnings.warn(
            f"load_published: ignored {len(chosen.beside)} entries beside `{chosen.place}`: "
            f"{shown}",
            stacklevel=3,
        )
    return chosen.state


def check_fits(network: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises ValueError where a state dict is not of the names and shapes of `expected`, or finite.

    All names that are missing, not expected, of another shape or not finite are listed.
    """
    problems = [
        f"missing {name} {tuple(value.shape)}"
        for name, value in expected.items()
        if name not in state
    ]
    for name, value in state.items():
        if name not in expected:
            problems.append(f"not expected {name} {tuple(value.shape)}")
        elif value.shape != expected[name].shape:
            shape = tuple(expected[name].shape)
            problems.append(f"{name}: expected {shape}, found {tuple(value.shape)}")
        elif not value.isfinite().all():
            problems.append(f"{name} holds inf or NaN")
    if problems:
        raise ValueError(
            f"load_published: the weights do not fit {network} with these options:\n  "
            + "\n  ".join(problems)
        )


def _read(path: Path) -> Any:
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"load_published: checkpoint {path} is not a file")
    if path.suffix != ".safetensors":
        return load_checkpoint(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"load_published: {path} is truncated or no safetensors file: {error}"
        ) from error


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a dict by their names without wrappers' parts."""
    state: dict[str, Tensor] = {}
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            short = ".".join(part for part in name.split(".") if part not in WRAPPERS)
            if short in state:
                raise ValueError(f"load_published: checkpoint holds {short} twice, as {name} too")
            state[short] = value.detach()
    return state


def _find(content: Mapping[Any, Any], first: str, place: str, depth: int) -> Iterator[Found]:
    """Every network in nested dicts that has the name `first`."""
    state = _tensors(content)
    ends = [name for name in state if name == first or name.endswith("." + first)]
    prefixes = sorted((name.removesuffix(first) for name in ends), key=len, reverse=True)
    left = dict(state)
    for prefix in prefixes:
        own = {name: left.pop(name) for name in list(left) if name.startswith(prefix)}
        named = {name.removeprefix(prefix): value for name, value in own.items()}
        beside = [name for name in state if not name.startswith(prefix)]
        yield Found(_join(place, prefix.rstrip(".")), named, beside)
    if depth > 0:
        for key, value in content.items():
            if isinstance(value, Mapping):
                yield from _find(value, first, _join(place, str(key)), depth - 1)


def _join(place: str, part: str) -> str:
    return f"{place}.{part}".strip(".")


def _choose(found: list[Found]) -> Found:
    """The averaged network among several, else the one that goes by a known key, else the only."""
    if len(found) == 1:
        return found[0]
    places = [one.place or "the top" for one in found]
    averaged = [one for one in found if AVERAGED.search(one.place)]
    known = [one for key in ("", *PREFERRED) for one in found if one.place == key]
    if not averaged and not known:
        raise ValueError(
            f"load_published: checkpoint must hold one such network, got {', '.join(places)}"
        )
    chosen = (averaged or known)[0]
    warnings.warn(
        f"load_published: took `{chosen.place or 'the top'}` of {', '.join(places)}", stacklevel=4
    )
    return Found(chosen.place, chosen.state, [])


def _averaged(weights: Any, optimizer: Any) -> Any:
    """The averages that the published optimizer keeps of the weights, in the place of these.

    It numbers them in the order of the parameters, which is that of the state dict.
    """
    state = optimizer.get("state") if isinstance(optimizer, Mapping) else None
    if not isinstance(state, Mapping) or not isinstance(weights, Mapping):
        return weights
    entries = [state.get(i) for i in range(len(weights))]
    kept = [entry.get("ema") if isinstance(entry, Mapping) else None for entry in entries]
    if not any(isinstance(value, Tensor) for value in kept):
        return weights
    result = dict(weights)
    for (name, weight), average in zip(weights.items(), kept, strict=True):
        if isinstance(average, Tensor):
            if len(state) > len(weights) or average.shape != getattr(weight, "shape", None):
                warnings.warn(
                    "load_published: the averaged weights in optimizerG do not fit netG_dict, "
                    "whose own were taken",
                    stacklevel=4,
                )
                return weights
            result[name] = average
    return result


def _any_tensors(content: Mapping[Any, Any], usable: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of the first dict that holds some: another network's, as will be listed."""
    for key in ("", *PREFERRED):
        inside = usable.get(key) if key else usable
        state = _tensors(inside) if isinstance(inside, Mapping) else {}
        if state:
            return state
    if isinstance(content, StandIn):
        raise ValueError(
            f"load_published: checkpoint must hold a state dict, got a pickled {content.origin}: "
            "save its state_dict()"
        )
    names = ", ".join(map(str, list(content)[:8])) or "nothing"
    raise ValueError(f"load_published: checkpoint must hold tensors, got {names}")
