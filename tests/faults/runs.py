"""Runs of seconds in processes of their own, which are killed, filled up and signalled."""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch

from lddgan_kernels.trainer import autoencoder_stage, files, gan_stage, latents, run
from lddgan_kernels.trainer.stop import Interrupted
from tests.trainer.tiny import tiny

# Every how manyth of the possible faults is tried; LDDGAN_FAULTS=all tries all.
ALL = os.environ.get("LDDGAN_FAULTS") == "all"
CONFIG = tiny(
    limit=16,
    autoencoder_training={"steps": 3},
    gan={"epochs": 2},
    log={"every": 1, "sample_every": 2, "checkpoint_every": 2, "grid": 2},
)
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.truncate"}

# Forks of a process that has loaded everything and computed nothing: no threads are lost in them.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.faults.runs"])


def train(folder: Path, resume: bool = False, before=None, *arguments) -> int | None:
    """Trains in a process of its own; returns its exit code, or minus the signal that ended it.

    Args:
        before: a function of this module, called there with `arguments` first.
    """
    process = start(folder, resume, before, *arguments)
    process.join(240)
    return process.exitcode


def start(folder: Path, resume: bool = False, before=None, *arguments):
    """The same, without waiting for the end."""
    process = processes.Process(target=_train, args=(folder, resume, before, *arguments))
    process.start()
    return process


def finish(folder: Path) -> None:
    """What a person does after a fault: goes on, or begins anew where nothing was begun."""
    code = train(folder, (folder / "config.toml").exists())
    assert code == 0, f"exit code {code}"


def results(folder: Path) -> tuple[dict, list]:
    """The weights, and the steps of the log without times."""
    weights = {
        f"{part} {name}": value
        for part in ("autoencoder", "generator")
        for name, value in files.load_weights(folder / f"checkpoints/{part}.safetensors")[0].items()
    }
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["kind"] == "summary"
    steps = [line for line in lines if line["kind"] == "step"]
    for line in steps:
        del line["seconds"], line["images_per_second"]
    return weights, steps


def assert_same(folder: Path, whole: tuple[dict, list]) -> None:
    """A run that met a fault ends with the bits of one that met none, and leaves nothing behind."""
    weights, steps = results(folder)
    assert steps == whole[1]
    assert all(weights[name].equal(value) for name, value in whole[0].items())
    left = [p.name for p in folder.rglob("*") if p.suffix in (".tmp", ".part", ".sums")]
    assert not left


def _train(folder: Path, resume: bool, before, *arguments) -> None:
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if before is not None:
        before(folder, *arguments)
    try:
        run.train(CONFIG, folder, resume=resume)
    except Interrupted:
        sys.exit(130)
    except OSError as error:
        (folder.parent / "error.txt").write_text(str(error))
        sys.exit(1)


def _events(folder: Path, act) -> None:
    """Calls act(number) before each change of the folder's files."""
    count = 0

    def watch(event, arguments):
        nonlocal count
        if event not in EVENTS or not str(arguments[0]).startswith(str(folder)):
            return
        if event == "open" and not (
            isinstance(arguments[1], str) and set(arguments[1]) & set("wa+x")
        ):
            return
        count += 1
        act(count)

    sys.addaudithook(watch)


def count_events(folder: Path, log: Path) -> None:
    """Writes how many events there were."""
    _events(folder, lambda number: log.write_text(str(number)))


def kill_at_event(folder: Path, number: int) -> None:
    """Kill -9 before the event of that number."""
    _events(folder, lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == number else None)


PHASES = {
    "autoencoder": (autoencoder_stage.AutoencoderStage, "step"),
    "encoding": (latents, "create_cache"),
    "gan": (gan_stage.GanStage, "step"),
    "picture": (run, "save_png"),
    "checkpoint": (files, "save_state"),
    "scores": (run, "summarize"),
}


def signal_in(folder: Path, phase: str, numbers: list[int]) -> None:
    """Sends signals to itself at the second call of what a phase does; the first, of the last."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup, by runs too
    owner, name = PHASES[phase]
    function, calls = getattr(owner, name), []

    def signalled(*args, **options):
        calls.append(1)
        if len(calls) == (1 if phase in ("encoding", "scores") else 2):
            for number in numbers:
                os.kill(os.getpid(), number)
        return function(*args, **options)

    setattr(owner, name, signalled)


def hold(folder: Path) -> None:
    """Stops for good in the GAN's first step, once its folder says so."""

    def wait(*_):
        (folder / "samples" / "holding").touch()
        signal.pause()

    gan_stage.GanStage.step = wait


def limit_files(folder: Path, size: int) -> None:
    """No file of this process may become larger: writing more fails, as on a full disk."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
