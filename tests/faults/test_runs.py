"""A training run that is killed, signalled or filled up loses nothing and goes on bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults import runs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(results of a run that meets no fault, how many events it has, its folder)."""
    folder = tmp_path_factory.mktemp("whole")
    assert runs.train(folder / "run", False, runs.count_events, folder / "events") == 0
    return runs.results(folder / "run"), int((folder / "events").read_text()), folder / "run"


@pytest.mark.parametrize("part", range(8))
def test_kills_at_file_system_events(whole, tmp_path, part):
    """Kill -9 right before a file is opened for writing, renamed, removed, a folder made."""
    expected, count, _ = whole
    assert count > 40
    numbers = range(1 + part, count + 1, 8) if runs.ALL else [1 + part * (count - 1) // 7]
    for number in numbers:
        folder = tmp_path / str(number) / "run"
        folder.parent.mkdir()
        assert runs.train(folder, False, runs.kill_at_event, number) == -signal.SIGKILL
        runs.finish(folder)
        runs.assert_same(folder, expected)
        shutil.rmtree(folder)


def test_kills_while_it_goes_on(whole, tmp_path):
    """A run that was killed is killed again and again, and always comes further."""
    folder = tmp_path / "run"
    runs.train(folder, False, runs.kill_at_event, 30)
    codes = []
    for number in (12, 9, 5) if not runs.ALL else (9, 3, 8, 4, 7, 5, 6, 9, 3, 8):
        codes.append(runs.train(folder, True, runs.kill_at_event, number))
        if codes[-1] == 0:  # it came to its end before
            break
    assert len(codes) >= 3
    assert set(codes[:3]) == {-signal.SIGKILL}
    assert set(codes[3:]) <= {-signal.SIGKILL, 0}
    runs.finish(folder)
    runs.assert_same(folder, whole[0])


CTRL_C, TERM, HANG_UP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.mark.parametrize(
    ("phase", "numbers"),
    [
        ("autoencoder", [TERM, TERM, TERM]),
        ("encoding", [CTRL_C, TERM]),
        ("gan", [CTRL_C, CTRL_C, CTRL_C, CTRL_C]),
        ("picture", [HANG_UP, HANG_UP]),
        ("checkpoint", [TERM, CTRL_C, HANG_UP]),
        ("scores", [TERM]),
    ],
)
def test_any_number_of_stop_signals_ends_in_one_checkpoint(whole, tmp_path, phase, numbers):
    folder = tmp_path / "run"
    code = runs.train(folder, False, runs.signal_in, phase, numbers)
    assert code == (0 if phase == "scores" else 130)  # nothing is left to be stopped
    if code == 130:
        assert (folder / "checkpoints/last.pt").exists()
        runs.finish(folder)
    runs.assert_same(folder, whole[0])


def test_a_folder_has_one_process(whole, tmp_path):
    folder = tmp_path / "run"
    first = runs.start(folder, False, runs.hold)
    deadline = time.monotonic() + 120
    while not (folder / "samples/holding").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        assert runs.train(folder, True) == 1
        assert f"another process trains in {folder}" in (tmp_path / "error.txt").read_text()
    finally:
        first.kill()  # whose lock goes with it
        first.join()
    (folder / "samples/holding").unlink()
    runs.finish(folder)
    runs.assert_same(folder, whole[0])


@pytest.mark.parametrize("part", range(5))
def test_a_disk_that_fills_up(whole, tmp_path, part):
    """At sizes from nothing to the largest file: a sentence, nothing half, and on it goes."""
    expected, _, done = whole
    largest = max(p.stat().st_size for p in done.rglob("*") if p.is_file())
    sizes = range(part, 20, 5) if runs.ALL else [4 * part]
    for size in (largest * i // 20 for i in sizes):
        folder = tmp_path / str(size) / "run"
        folder.parent.mkdir()
        assert runs.train(folder, False, runs.limit_files, size) == 1
        assert (folder.parent / "error.txt").exists() or size == 0
        assert not list(folder.rglob("*.tmp"))
        runs.finish(folder)
        runs.assert_same(folder, expected)


def test_a_standard_output_that_ends_does_not_end_training(tmp_path):
    config = tmp_path / "tiny.toml"
    from lddgan_kernels.trainer import config_file

    config.write_text(config_file.dump(runs.CONFIG))
    command = [sys.executable, "-m", "lddgan_kernels.train", "--preset", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    read, write = os.pipe()
    os.close(read)  # a pipe that nobody reads, for both
    try:
        piped = subprocess.run(
            [*command, "--out", str(tmp_path / "piped")], stdout=write, stderr=write,
            env=environment, cwd=Path(__file__).parents[2],
        )  # fmt: skip
    finally:
        os.close(write)
    assert piped.returncode == 0
    assert runs.results(tmp_path / "piped")
    if Path("/dev/full").exists():
        closed = f"{' '.join(command)} --out {tmp_path / 'full'} > /dev/full 2>&-"
        root = Path(__file__).parents[2]
        assert subprocess.run(closed, shell=True, env=environment, cwd=root).returncode == 0
        assert runs.results(tmp_path / "full")
