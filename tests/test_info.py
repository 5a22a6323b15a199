import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lddgan_kernels import _backend, _extension, _schemas, info, ops
from lddgan_kernels.trainer import installation, speed

ROOT = Path(__file__).parents[1]


def test_every_op_and_backend_is_listed(capsys):
    info.main([])
    out = capsys.readouterr().out
    assert torch.__version__ in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    for module in pkgutil.iter_modules(ops.__path__):
        if not module.name.startswith("_"):
            assert len(rows[module.name]) == len(_backend.BACKENDS)
            assert rows[module.name][0] == "yes"


@pytest.mark.skipif(not _extension.is_loaded(), reason="the extension is not compiled")
def test_the_bound_on_packed_weights_is_told(capsys, monkeypatch):
    monkeypatch.setattr(installation, "MOST_FORMS", 7)
    info.main([])
    assert "packed for CPU inference: at most 7 copies of each" in capsys.readouterr().out


def test_a_missing_extension_is_explained(capsys, monkeypatch):
    monkeypatch.setattr(_extension, "_C", None)
    monkeypatch.setattr(_extension, "_error", "undefined symbol: _ZN3c10")
    info.main([])
    out = capsys.readouterr().out
    assert "undefined symbol: _ZN3c10" in out
    assert "run `pip install" in out
    row = next(line for line in out.splitlines() if line.startswith("residual_scale"))
    assert row.split()[1 + _backend.BACKENDS.index("cpu")] == "no"


def test_a_model_is_shown_beside_the_paper(capsys):
    assert info.main(["--model", "celebahq256"]) == 0
    out = capsys.readouterr().out
    assert "48.4 M there, 48.4 M here" in out
    assert "7.05 in its Table 2, 27.3 in its code, 26.93 here" in out
    assert "DISAGREES: Table 2 seems to have CelebA-HQ and LSUN Church swapped" in out
    assert "335 in its code, 292 here" in out
    assert info.main(["--model", "celebahq"]) == 1
    assert "celebahq256" in capsys.readouterr().err


@pytest.mark.parametrize(("ours", "verdict"), [(1.0, "nowhere slower"), (3.0, "SLOWER than plain")])
def test_speed_names_what_is_slower(ours, verdict, capsys, monkeypatch):
    def measure(work, device):
        work()
        return ours, 2.0

    monkeypatch.setattr(speed, "_measure", measure)
    assert info.main(["--speed"]) == 0
    out = capsys.readouterr().out
    assert "PyTorch" in out
    assert verdict in out
    named = next(line for line in out.splitlines() if verdict in line)
    assert ("training step of digits" in named) == (ours > 2)


def test_an_extension_of_other_sources_is_refused(monkeypatch):
    if _extension.is_loaded():
        assert _extension.build_info()["schemas"] == _schemas.schema_stamp(ROOT)
        monkeypatch.setattr(_schemas, "schema_stamp", lambda root: "another")
        module, error = _extension._load()
        assert module is None
        monkeypatch.setattr(_extension, "_C", module)
        monkeypatch.setattr(_extension, "_error", error)
        assert "built from other sources than these); run `pip" in _extension.why_missing()


def test_the_stamp_follows_the_schemas_alone(tmp_path):
    (tmp_path / "python").mkdir()
    source = tmp_path / "python" / "op.cpp"
    stamps = []
    for text in (
        'm.def("op(Tensor x) -> Tensor");',
        '// m\n  m.def(\n      "op(Tensor x) "\n      "-> Tensor");',
        'm.def("op(Tensor x, int n) -> Tensor");',
    ):
        source.write_text(text)
        stamps.append(_schemas.schema_stamp(tmp_path))
    assert stamps[0] == stamps[1] != stamps[2]
    source.unlink()
    assert _schemas.schema_stamp(tmp_path) == ""


@pytest.mark.skipif(not _extension.is_loaded(), reason="the extension is not compiled")
def test_an_unknown_instruction_set_is_named_with_what_there_is():
    environment = {**os.environ, "LDDGAN_CPU_ISA": "sse9"}
    result = subprocess.run(
        [sys.executable, "-c", "import lddgan_kernels"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    message = "ValueError: LDDGAN_CPU_ISA must be one of baseline"
    assert message in result.stderr
    assert result.stderr.rstrip().endswith("(what this processor has), got 'sse9'")
