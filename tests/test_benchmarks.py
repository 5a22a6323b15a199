import json
import re
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import _harness, _plot, _turns, floors
from benchmarks._plain_models import BEST, PUBLISHED, plain
from lddgan_kernels._extension import build_info
from lddgan_kernels.models import (
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
    WaveletGenerator,
)

RESULT = {
    "summary": {
        "float32 forward": {
            "eager": {"ratio": 4.25, "target": 5.0},
            "compile": {"ratio": 0.5, "target": None},
        }
    },
    "rows": [{"group": "float32 forward", "commit": "abc"}],
}


def test_stored_results_become_a_table_and_a_plot(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(_plot, "RESULTS", tmp_path)
    (tmp_path / "gpu.json").write_text(json.dumps({"haar": RESULT, "fir": RESULT}))
    table, plot = _plot.write("gpu")
    row = "| float32 forward | eager 4.25x (5x); compile 0.50x | abc |"
    assert [line for line in table.read_text().splitlines() if row in line] == [
        f"| `fir` {row}",
        f"| `haar` {row}",
    ]
    assert "<svg" in plot.read_text()
    with pytest.raises(FileNotFoundError, match="run a benchmark first"):
        _plot.write("other")


def test_a_group_of_shares_counts_its_sum():
    rows = [
        {"seconds_p20_p50_p80": {"ours": [0, 1.0, 0], "eager": [0, 2.0, 0]}, "share": None},
        {"seconds_p20_p50_p80": {"ours": [0, 1.0, 0], "eager": [0, 8.0, 0]}, "share": None},
    ]
    assert _harness._ratio(rows, "eager") == pytest.approx(4.0)
    shared = [{**row, "share": share} for row, share in zip(rows, (0.75, 0.25), strict=True)]
    assert _harness._ratio(shared, "eager") == pytest.approx(3.5)


def test_results_are_stored_where_git_is_absent(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert _harness._commit() == "unknown"


def test_stored_results_alone_are_no_change(tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks/results"
    folder.mkdir(parents=True)
    monkeypatch.setattr(_harness, "RESULTS", folder)

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    code, result = tmp_path / "code.py", folder / "cpu.json"
    git("init")
    code.write_text("1")
    result.write_text("{}")
    git("add", ".")
    git("commit", "-m", "code")
    commit = _harness._commit()
    result.write_text('{"a": 1}')
    assert _harness._commit() == commit
    git("commit", "-am", "results")
    assert _harness._commit() == commit
    code.write_text("2")
    assert _harness._commit() == f"{commit}-dirty"


def test_later_rows_join_those_stored_before(tmp_path, monkeypatch):
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)

    def row(name, seconds):
        times = {"ours": [0, 1.0, 0], "eager": [0, seconds, 0]}
        return {
            "name": name,
            "group": "group",
            "seconds_p20_p50_p80": times,
            "targets": {},
            "share": None,
        }

    for commit, rows in (("a", [row("x", 4.0), row("y", 4.0)]), ("b", [row("y", 9.0)])):
        monkeypatch.setattr(_harness, "_commit", lambda commit=commit: commit)
        _harness.store("op", rows, complete=commit == "a")
    (path,) = tmp_path.iterdir()
    stored = json.loads(path.read_text())["op"]
    assert [(row["name"], row["commit"]) for row in stored["rows"]] == [("x", "a"), ("y", "b")]
    assert stored["summary"]["group"]["eager"]["ratio"] == pytest.approx(6.0)
    assert stored["complete"]


def test_results_of_changed_files_are_not_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)
    monkeypatch.setattr(_harness, "_commit", lambda: "abc-dirty")
    assert _harness.store("op", []).startswith("not stored")
    assert not list(tmp_path.iterdir())


def test_results_are_stored_by_processor_and_instruction_set():
    name = _harness.device_name()
    assert re.fullmatch(r"[a-z0-9.-]+", name)
    if not torch.cuda.is_available():
        assert build_info().get("cpu_isa", "reference") in name.split("-")


def test_calls_take_the_inputs_in_turn():
    used = []
    _harness.call_in_turn(used.append, [("a",), ("b",), ("c",)], 5)
    assert used == ["a", "b", "c", "a", "b"]


def test_gpu_inputs_outgrow_the_cache(monkeypatch):
    properties = SimpleNamespace(L2_cache_size=50 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert _harness._copies(1 << 20) == 150
    assert _harness._copies(1 << 30) == 1
    assert _harness._copies(1) == 256  # no more: what moves so little is not held up by memory


def test_the_documents_have_the_predictions():
    performance = (Path(__file__).parents[1] / "docs/performance.md").read_text()
    assert floors.row("cifar10") in performance


def test_an_interrupted_benchmark_keeps_its_cases(tmp_path, monkeypatch):
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)
    monkeypatch.setattr(_harness, "copy_bandwidth", lambda: 1e9)
    monkeypatch.setattr(_harness, "_commit", lambda: "abc")

    def interrupt():
        raise KeyboardInterrupt

    def case(name, check):
        sides = {"ours": lambda x: x, "eager": lambda x: x + 1}
        return _harness.Case(name, "group", lambda: (torch.ones(8),), sides, check, bytes_moved=64)

    cases = [case("first", lambda: None), case("second", interrupt)]
    with pytest.raises(KeyboardInterrupt):
        _harness.run("op", cases, seconds=0.01)
    (path,) = tmp_path.iterdir()
    stored = json.loads(path.read_text())["op"]
    assert [row["name"] for row in stored["rows"]] == ["first"]
    assert not stored["complete"]
    assert stored["summary"]["group"]["eager"]["ratio"] > 0


def test_only_some_cases_run(tmp_path, monkeypatch):
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)
    monkeypatch.setattr(_harness, "copy_bandwidth", lambda: 1e9)
    monkeypatch.setattr(_harness, "_commit", lambda: "abc")
    sides = {"ours": lambda x: x, "eager": lambda x: x + 1}
    cases = [
        _harness.Case(name, name, lambda: (torch.ones(8),), sides, lambda: None, bytes_moved=64)
        for name in ("batch 1", "batch 16")
    ]
    assert list(_harness.run("op", cases, seconds=0.01, only="batch 1$")) == ["batch 1"]
    (path,) = tmp_path.iterdir()
    stored = json.loads(path.read_text())["op"]
    assert [row["name"] for row in stored["rows"]] == ["batch 1"]
    assert not stored["complete"]


def test_nobody_times_while_another_prepares(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    monkeypatch.setattr(_turns, "FOLDER", tmp_path)
    times = threading.Event()

    def timing():
        with _turns.machine(alone=True):
            times.set()

    with _turns.machine(alone=False), _turns.machine(alone=False):
        thread = threading.Thread(target=timing)
        thread.start()
        assert not times.wait(0.2)
    assert times.wait(60)
    thread.join()


@pytest.mark.parametrize("form", [PUBLISHED, BEST])
@pytest.mark.parametrize("kind", [Generator, WaveletGenerator, Discriminator])
def test_plain_models_compute_the_same(kind, form):
    torch.manual_seed(0)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([0, 3])
    if kind is Discriminator:
        config = DiscriminatorConfig(kind="large", channels=3, base_channels=8, num_blocks=4)
        inputs = x, t, torch.randn_like(x)
    else:
        config = GeneratorConfig(3, 16, 16, (1, 2), 1, attention_resolutions=(8,))
        inputs = x, t, torch.randn(2, 25)
    model = kind(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # biases too
        parameter.add_(torch.randn_like(parameter) * 0.05)
    expected = model(*inputs)
    with plain(form):
        found = model(*inputs)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    torch.testing.assert_close(model(*inputs), expected, rtol=0, atol=0)
