"""What the documents name exists: links, files, options, and code that is code."""

import ast
import re
import textwrap
from pathlib import Path

import pytest

from lddgan_kernels import ops
from lddgan_kernels.trainer import Config, config_file
from tools import api_reference

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(params=DOCUMENTS, ids=lambda path: path.name)
def document(request):
    return request.param


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert target.startswith("http") or (document.parent / target).exists(), target


def test_files_are_there(document):
    for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|toml|md|cpp|h))`", document.read_text()):
        if "X" not in name and not name.startswith(("runs/", "samples/")):
            assert any((base / name).exists() for base in (ROOT, ROOT / "lddgan_kernels")), name


def test_python_is_python(document):
    for code in blocks(document.read_text(), "python"):
        ast.parse(textwrap.dedent(code))


def test_commands_name_presets_and_options(document):
    for command in "\n".join(blocks(document.read_text(), "sh")).replace("\\\n", " ").splitlines():
        for preset in re.findall(r"--preset (\S+)", command):
            assert preset in config_file.presets()
        if "lddgan_kernels.train " in command:
            for table, field in re.findall(r"--([\w-]+)\.([\w-]+)", command):
                assert hasattr(getattr(Config(), table.replace("-", "_")), field.replace("-", "_"))


def test_everything_public_is_documented():
    assert api_reference.undocumented() == []


def test_api_reference(tmp_path):
    pytest.importorskip("pdoc")
    api_reference.main(tmp_path)
    page = (tmp_path / "lddgan_kernels" / "ops.html").read_text()
    for name in ops.__all__:
        assert f'id="{name}"' in page, name
