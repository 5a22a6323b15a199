"""What the commands share: configurations from presets and flags, and errors for people."""

import argparse
import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from lddgan_kernels.trainer import config_file
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.distributed import ProcessLost
from lddgan_kernels.trainer.meter import NotFinite
from lddgan_kernels.trainer.stop import Interrupted


@dataclass(frozen=True)
class Options:
    """Options of a run; each field of the configuration is a flag, with the preset's value."""

    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    autoencoder: str | None = None
    """Short for --start.autoencoder."""
    init_from: str | None = None
    """Short for --start.init-from."""
    preset: str = "digits"
    """A preset's name, or the path of a .toml file."""
    out: Path | None = None
    """The run folder; runs/PRESET by default."""
    resume: bool = False
    """Go on with the run in the folder, from its last checkpoint."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to train."""


def parse(command: str, about: str, arguments: Sequence[str] | None) -> tuple[Options, Path]:
    """Options of a command line, and the run folder.

    Defaults come from the preset; when resuming without one, from the run itself.

    Raises:
        ValueError: the preset does not exist or is not valid, or needs data and none is named.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default=None)
    first.add_argument("--out", type=Path, default=None)
    first.add_argument("--resume", action="store_true")
    early, _ = first.parse_known_args(arguments)
    preset = early.preset or "digits"
    out = early.out or Path("runs") / Path(preset).stem
    source = preset
    if early.resume and early.preset is None and (out / "config.toml").exists():
        source = str(out / "config.toml")
    default = Options(config=config_file.load(source), preset=preset)
    program = f"python -m lddgan_kernels.{command}"
    options = tyro.cli(Options, prog=program, description=about, default=default, args=arguments)
    named = {"autoencoder": options.autoencoder, "init_from": options.init_from}
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    start = replace(options.config.start, **given)
    options = replace(options, config=replace(options.config, start=start))
    wanted = config_file.needs_data(source)
    if wanted and options.config.data is None:
        raise ValueError(f"{command}: --data must be given for preset {preset}: {wanted}")
    return options, out


def keep_freed_memory() -> None:
    """Has glibc keep large blocks that are freed.

    By default it hands them back to the system, which then clears and maps pages for the next
    activations and gradients anew: a sixth of a training step on a CPU.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        most, older_most = 2**31 - 1, 2**25
        _ = set_option(mmap_threshold, most) or set_option(mmap_threshold, older_most)
        set_option(trim_threshold, most)
        set_option(top_pad, 2**26)


class _Tolerant:
    """A standard stream whose end does not end the work: what it cannot take is dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except UnicodeEncodeError:
            coding = self._stream.encoding
            return self.write(text.encode(coding, "backslashreplace").decode(coding))
        except (OSError, ValueError) as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def _drop(self, error: Exception) -> None:
        if isinstance(error, OSError):  # a pipe that nobody reads, a full disk
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run(work: Callable[[], Any]) -> int:
    """Calls `work`; returns the exit status. What a user can mend is told in a line."""
    keep_freed_memory()
    sys.stdout, sys.stderr = _Tolerant(sys.stdout), _Tolerant(sys.stderr)
    try:
        work()
        sys.stdout.flush()
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("stopped at once; a run goes on from its last checkpoint", file=sys.stderr)
        return 130
    except (OSError, ValueError, ImportError, RuntimeError, OverflowError, MemoryError) as error:
        if os.environ.get("LDDGAN_TRACEBACK"):
            raise
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            print(
                f"error: a process that reads images has died ({' '.join(str(error).split())}); "
                "memory may be short: fewer workers need less, 0 are none",
                file=sys.stderr,
            )
            return 1
        print(f"error: {error or type(error).__name__}", file=sys.stderr)
        if isinstance(error, RuntimeError) and not isinstance(error, NotFinite | ProcessLost):
            print("(with LDDGAN_TRACEBACK=1 it is told where)", file=sys.stderr)
        return 1
    return 0
