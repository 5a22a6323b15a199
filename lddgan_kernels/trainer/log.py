"""The log of a run: lines for a person, `log.jsonl` for a program, TensorBoard if asked."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lddgan_kernels.trainer import distributed
from lddgan_kernels.trainer.folder import RunFolder


def progress_bar(name: str, start: int, total: int, unit: str = "step") -> Any:
    """A bar with rate and time left; off the terminal it is drawn every 30 seconds only."""
    from tqdm import tqdm

    return tqdm(
        desc=name,
        initial=start,
        total=total,
        unit=unit,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
        maxinterval=60.0,
        dynamic_ncols=True,
        disable=distributed.rank() > 0,
    )


class RunLog:
    """Writes what happens; silent in all processes but the first.

    Args:
        folder: of the run.
        seconds: how long it has worked before.
        size: bytes of the log to keep: lines written after the checkpoint are taken off again.
        tensorboard: also write TensorBoard events.

    Raises:
        ImportError: TensorBoard is asked for and not installed.
    """

    def __init__(
        self, folder: RunFolder, seconds: float = 0.0, size: int = 0, tensorboard: bool = False
    ) -> None:
        self._began = time.perf_counter() - seconds
        self._path = folder.log
        self._writer: Any = None
        self._file: Any = None
        if distributed.rank() > 0:
            return
        self._file = open(folder.log, "ab")  # noqa: SIM115
        self._file.truncate(_whole_lines(folder.log, size))
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ImportError(
                    "log.tensorboard: tensorboard must be installed (pip install tensorboard), "
                    "got no such module"
                ) from None
            self._writer = SummaryWriter(str(folder.path))

    def seconds(self) -> float:
        """How long the run has worked, over all its parts."""
        return time.perf_counter() - self._began

    def size(self) -> int:
        """Bytes of `log.jsonl`; 0 in processes that write none."""
        return 0 if self._file is None else int(self._file.tell())

    def say(self, text: str) -> None:
        """A line for a person."""
        if self._file is not None:
            from tqdm import tqdm

            tqdm.write(text)

    def write(self, kind: str, **facts: Any) -> None:
        """A line of `log.jsonl`."""
        if self._file is not None:
            line = {"kind": kind, **facts, "seconds": round(self.seconds(), 3)}
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()

    def step(
        self, stage: str, done: int, total: int, means: Mapping[str, float], speed: float
    ) -> None:
        """Metrics, averaged since the last such line, and images per second."""
        facts = {name: float(f"{value:.6g}") for name, value in means.items()}
        self.write("step", stage=stage, step=done, **facts, images_per_second=round(speed, 1))
        shown = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        minutes, seconds = divmod(int(self.seconds()), 60)
        self.say(
            f"{stage} {done}/{total}  {shown}  {speed:.0f} img/s  {minutes}:{seconds:02d} elapsed"
        )
        if self._writer is not None:
            for name, value in means.items():
                self._writer.add_scalar(f"{stage}/{name}", value, done)

    def scores(self, step: int, images: int, scorer: str, scores: Mapping[str, float]) -> None:
        """Scores of the samples after so many steps and training images, and who gave them."""
        facts = {name: float(f"{value:.6g}") for name, value in scores.items()}
        self.write("scores", step=step, images=images, scorer=scorer, **facts)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
        self.say(f"scores at step {step} ({scorer})  {shown}")
        if self._writer is not None:
            for name, value in scores.items():
                self._writer.add_scalar(f"scores/{name}", value, step)

    def best(self, scorer: str, name: str) -> float:
        """The least score of a name so far, by one scorer; infinite where there is none."""
        found = [math.inf]
        for line in read_lines(self._path):
            if line["kind"] == "scores" and line.get("scorer") == scorer:
                found += [line[name]] if isinstance(line.get(name), float) else []
        return min(found)

    def close(self) -> None:
        """Ends the log."""
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; those that somebody spoilt are left out."""
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            found += [line] if isinstance(line, dict) and "kind" in line else []
        except ValueError:
            continue
    return found


def _whole_lines(path: Path, size: int) -> int:
    """Bytes of the whole lines within the first `size`; the file may have become shorter."""
    with open(path, "rb") as file:
        return file.read(size).rfind(b"\n") + 1
