"""The ops as a package of the kernel hub: the project is complete, and what is built loads."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest

from tools import hub_kernel

USE = """
import sys
from pathlib import Path
import kernels, torch
found = kernels.get_local_kernel(Path(sys.argv[1]))
assert "lddgan_kernels" not in sys.modules
x, scale, shift = torch.randn(2, 64, 8, 8, requires_grad=True), torch.randn(2, 64), torch.randn(64)
def norm(x, **how):
    return found.ada_group_norm(x, scale, shift.expand(2, 64), 8, **how)
y = norm(x, backend="cpu")
y.square().sum().backward()
with found.use_backend("reference"):
    torch.testing.assert_close(y, norm(x))
torch.testing.assert_close(torch.compile(norm, fullgraph=True)(x.detach()), y)
torch.testing.assert_close(found.haar_idwt2d(found.haar_dwt2d(x)), x)
assert found.upsample2d(x).shape == (2, 64, 16, 16)
kernels.replace_kernel_forward_from_hub(torch.nn.GroupNorm, "GroupNorm")
plain = torch.nn.GroupNorm(4, 64)
expected = plain(x)
layer = kernels.LocalLayerRepository(repo_path=Path(sys.argv[1]), layer_name="GroupNorm")
with kernels.use_kernel_mapping({"GroupNorm": {"cpu": layer}}):
    mapped = kernels.kernelize(plain, mode=kernels.Mode.INFERENCE, device="cpu")
assert "Identity" not in str(mapped(x).grad_fn)
torch.testing.assert_close(mapped(x), expected)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "project"
    hub_kernel.make_project(folder)
    return folder


def test_the_package_imports_itself_and_torch_alone(project):
    package = project / "torch-ext" / "lddgan_kernels"
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    for file in package.rglob("*.py"):
        code = file.read_text()
        assert not re.search(r"from lddgan_kernels|torch\.ops\.lddgan|lddgan::", code), file
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                assert {name.name.split(".")[0] for name in node.names} <= allowed, file
            if isinstance(node, ast.ImportFrom):
                if node.level == 0:
                    assert node.module.split(".")[0] in allowed, file
                    continue
                base = file.parents[node.level - 1]
                module = base.joinpath(*(node.module or "").split("."))
                known = module.is_dir() or module.with_suffix(".py").exists()
                assert known or module.name == "_ops", f"{file}: {module}"


def test_layers_hold_nothing(project):
    tree = ast.parse((project / "torch-ext/lddgan_kernels/layers.py").read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert len(classes) > 5
    for layer in classes:
        methods = [node.name for node in layer.body if isinstance(node, ast.FunctionDef)]
        assert methods == ["forward"], layer.name
        set_ = [n.target.id for n in layer.body if isinstance(n, ast.AnnAssign) and n.value]
        assert set_ == ["can_torch_compile"], layer.name


def test_build_toml_lists_every_source_once(project):
    config = tomllib.loads((project / "build.toml").read_text())
    for backend in ("cpu", "cuda"):
        sections = [config["torch"]]
        sections += [one for one in config["kernel"].values() if one["backend"] == backend]
        compiled = [n for s in sections for n in s["src"] if n.endswith((".cpp", ".cu"))]
        assert len(compiled) == len(set(compiled))
        there = {str(path.relative_to(project)) for path in project.rglob("*.cpp")}
        there |= {str(p.relative_to(project)) for p in project.rglob("*.cu") if backend == "cuda"}
        assert set(compiled) == there
        headers = {n for s in sections for n in s["src"] if n.endswith(".h")}
        assert headers >= {
            str(path.relative_to(project))
            for folder in ("python", "csrc/include", "csrc/cpu")
            for path in (project / folder).rglob("*.h")
        }


def test_a_folder_in_use_is_refused(project):
    with pytest.raises(SystemExit, match="folder must be new or empty"):
        hub_kernel.make_project(project)


@pytest.mark.slow
def test_what_is_built_loads(project, tmp_path):
    pytest.importorskip("kernels")
    variant = hub_kernel.build(project)
    assert re.fullmatch(r"torch2\d\d-cxx11-cpu-\w+-linux", variant.name)
    subprocess.run([sys.executable, "-c", USE, str(project)], cwd=tmp_path, check=True)
