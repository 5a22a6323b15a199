"""The shape of the repository: rows of files, import arrows, sizes."""

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lddgan_kernels"

# Higher imports lower, never a sibling of its own level. `data` serves `metrics` a reference set.
LEVELS = (
    ("_version", "_schemas", "_checks", "_bfloat16", "_options"),
    ("_extension",),
    ("_backend",),
    ("triton",),
    ("ops",),
    ("nn",),
    ("models", "diffusion", "data", "patching"),
    ("metrics", "interop"),
    ("trainer",),
    ("pipeline",),
    ("train", "encode", "sample", "evaluate", "info", "export"),
)
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
# Where a kernel of an op lies, by backend.
KERNEL_FILES = {
    "triton": ("lddgan_kernels/triton", ".py"),
    "cpu": ("csrc/cpu", ".cpp"),
    "cuda": ("csrc/cuda", ".cu"),
}


def stems(folder, suffix):
    """The public stems of a folder: files without a leading underscore."""
    return sorted(p.stem for p in (ROOT / folder).glob(f"*{suffix}") if p.stem[0] != "_")


OPS = stems("lddgan_kernels/ops", ".py")


def row_of(stem):
    """The op that a kernel file belongs to: `haar`, and `haar_backward` where one file got long."""
    return next((op for op in OPS if stem == op or stem.startswith(op + "_")), None)


@cache
def tree(path):
    return ast.parse(path.read_text())


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def layer(path):
    """The level's name of a module: its package, or its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Dotted names below lddgan_kernels that a module imports, wherever in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            yield name.split(".")


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_its_row(op):
    assert (ROOT / f"tests/ops/test_{op}.py").exists()
    assert (ROOT / f"benchmarks/{op}.py").exists()
    kernels = importlib.import_module(f"lddgan_kernels.ops.{op}").KERNELS
    for backend, (folder, suffix) in KERNEL_FILES.items():
        found = any(row_of(stem) == op for stem in stems(folder, suffix))
        assert found == (backend in kernels), f"KERNELS of {op} and {folder} disagree on {backend}"
    native = "cpu" in kernels or "cuda" in kernels
    assert (ROOT / f"python/{op}.cpp").exists() == native


@pytest.mark.parametrize("backend", KERNEL_FILES)
def test_no_orphan_kernel_file(backend):
    folder, suffix = KERNEL_FILES[backend]
    orphans = [stem for stem in stems(folder, suffix) if row_of(stem) is None]
    assert not orphans, f"{folder} holds files of no op"
    bindings = set(stems("python", ".cpp")) - {"direct", "module", "replay", "runtime"}
    assert bindings <= set(OPS), "python/ holds bindings of no op"


def test_every_public_op_is_exported():
    from lddgan_kernels import ops

    assert ops.__all__ == sorted(ops.__all__)
    exported = {getattr(ops, name).__module__.rsplit(".", 1)[-1] for name in ops.__all__}
    assert exported == set(OPS)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_import_arrows(path):
    here = layer(path)
    if here in ("__init__", "testing"):  # re-exports; a helper of tests and benchmarks
        return
    for name in imports(path):
        if name[0] in ("tests", "benchmarks"):
            raise AssertionError("the package imports neither tests nor benchmarks")
        if name[0] != "lddgan_kernels" or len(name) == 1:
            if here == "triton":
                assert name[0] in ("torch", "triton", "math", "collections", "functools")
            continue
        dotted = ".".join(name)
        target = name[1]
        assert target in LEVEL_OF, f"{dotted}: of no level"
        if target != here:
            assert LEVEL_OF[target] < LEVEL_OF[here], f"{here} must not import {dotted}"
        elif LEVEL_OF[here] == LEVEL_OF["train"]:
            raise AssertionError(f"nothing imports a command, {here} imports {dotted}")
        elif here in ("ops", "triton") and path.name != "__init__.py":
            assert name[2].startswith("_"), f"{here} files import only private siblings: {dotted}"
        if target == "ops" and here not in ("ops", "diffusion"):
            # diffusion re-exports the seeds and streams of the noise.
            assert not any(part.startswith("_") for part in name[2:]), f"{dotted} is private"
        if target == "triton":
            assert here in ("ops", "triton"), f"{here} must not import {dotted}"


def module_of(name):
    """The file of a dotted name; a package's own where the name is what it holds."""
    for end in range(len(name), 0, -1):
        for path in (
            ROOT.joinpath(*name[:end]).with_suffix(".py"),
            ROOT.joinpath(*name[:end], "__init__.py"),
        ):
            if path.exists():
                return path
    raise AssertionError(f"{name}: no such module")


def test_imports_go_in_no_circle():
    graph = {
        path: {module_of(n) for n in imports(path) if n[0] == "lddgan_kernels"} - {path}
        for path in modules()
    }
    while graph:  # modules that import nothing left here are done
        done = {path for path, targets in graph.items() if not targets & graph.keys()}
        assert done, f"in circles, or above one: {sorted(str(path) for path in graph)}"
        graph = {path: targets for path, targets in graph.items() if path not in done}


# What says how a layer runs, which `nn` alone decides.
PROCESSORS = ("reference", "cpu", "cuda", "triton")
MECHANICS = {
    *("Cached", "PackedConv", "default_backend", "use_backend", "select", "is_cuda", "is_cpu"),
    *("_backend", "_extension", "is_compiling", "is_tracing", "mkldnn", "uses_winograd", "packs"),
}


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").glob("*.py")), ids=lambda p: p.name)
def test_models_say_what_not_how(path):
    for node in ast.walk(tree(path)):
        name = getattr(node, "attr", None) or getattr(node, "id", None)
        assert name not in MECHANICS, f"{path.name}:{node.lineno}: {name}"
        if isinstance(node, ast.Compare):
            for part in ast.walk(node):
                assert getattr(part, "value", None) not in PROCESSORS, f"{path.name}:{node.lineno}"
    for name in imports(path):
        if name[0] == "lddgan_kernels" and len(name) > 1:
            assert name[1] in ("models", "nn", "ops", "_checks", "_options"), ".".join(name)


def test_only_ops_call_native_operators():
    for path in modules():
        for node in ast.walk(tree(path)):
            native = (
                isinstance(node, ast.Attribute)
                and node.attr == "ops"
                and isinstance(node.value, ast.Name)
                and node.value.id == "torch"
            )
            # _bfloat16 asks PyTorch's own operator what oneDNN can do.
            assert not native or layer(path) in ("ops", "_bfloat16"), f"{path}: torch.ops"


def included(path):
    """The headers of csrc that a file of it includes, and those that they include."""
    found = set()
    for name in re.findall(r'#include "(.*)"', path.read_text()):
        beside, shared = path.parent / name, ROOT / "csrc/include" / name
        header = beside if beside.exists() else shared
        assert header.exists(), f"{path}: {name} is neither beside it nor in csrc/include"
        found |= {header} | included(header)
    return found


def test_a_header_lies_beside_its_only_side():
    users = {
        side: set().union(*map(included, ROOT.glob(f"csrc/{side}/*.c*")))
        for side in ("cpu", "cuda")
    }
    headers = set(ROOT.glob("csrc/include/lddgan/*"))
    for side, used in users.items():
        assert not headers - used, f"csrc/include holds what csrc/{side} does not use"
        assert not set(ROOT.glob(f"csrc/{side}/*.*h")) - used, (
            f"csrc/{side} holds headers that nothing uses"
        )
        assert {path.parent for path in used} == {
            ROOT / "csrc" / side,
            ROOT / "csrc/include/lddgan",
        }


def test_no_two_headers_of_one_name():
    headers = [*ROOT.glob("csrc/**/*.*h"), *ROOT.glob("python/*.h")]
    assert len({path.name for path in headers}) == len(headers)


def test_cuda_and_cpu_kernels_include_no_pytorch_header():
    for path in (p for p in ROOT.glob("csrc/**/*") if p.is_file()):
        for header in re.findall(r"#include <(.*)>", path.read_text()):
            assert not re.match("torch|ATen|c10|pybind", header), f"{path}: {header}"


def test_sizes():
    suffixes = (".py", ".cpp", ".cu", ".cuh", ".h")
    folders = ("lddgan_kernels", "csrc", "python", "benchmarks", "tests")
    long = {
        str(path.relative_to(ROOT)): count
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes and (count := len(path.read_text().splitlines())) > 400
    }
    assert not long


def test_public_functions_take_at_most_ten_arguments():
    for path in modules():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                a = node.args
                names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
                count = len(names) - (names[:1] in (["self"], ["cls"], ["ctx"]))
                jitted = layer(path) == "triton"  # launchers of kernels, not public
                assert jitted or count <= 10, f"{path.name}: {node.name} takes {count} arguments"


# The definition of a function: what it returns, its name, its parameters.
CPP_FUNCTION = re.compile(r"([\w:<>, ]+?)[\s&]+(\w+)\(([^(){};]*)\)\s*(?:const )?(?:override )?\{")
CUDA_PART = re.compile(r"^#ifdef LDDGAN_CUDA$.*?^#endif$", re.MULTILINE | re.DOTALL)


def spellings(source):
    """{(operator, whether for CUDA): the functions that repeat its argument list}, of a binding.

    Not those that make the kernel's argument struct: the call does not go on through them.
    """
    text = re.sub(r"//.*", "", source)
    operators = {
        name: {argument.split("=")[0].split()[-1] for argument in arguments.split(",")}
        for name, arguments in re.findall(r'"(\w+)\(([^()]*)\) ->', re.sub(r'"\s*"', "", text))
    }
    found = {}
    cuda = " ".join(CUDA_PART.findall(text))
    for for_cuda, part in ((False, CUDA_PART.sub("", text)), (True, cuda)):
        for result, function, parameters in CPP_FUNCTION.findall(part):
            names = {
                parameter.split()[-1].strip("&*")
                for parameter in parameters.split(",")
                if parameter.strip()
            }
            spelled = [op for op, arguments in operators.items() if arguments <= names]
            if spelled and not result.endswith("Args"):
                longest = max(spelled, key=lambda op: len(operators[op]))
                found.setdefault((longest, for_cuda), []).append(function)
    return found


@pytest.mark.parametrize("path", sorted(ROOT.glob("python/*.cpp")), ids=lambda p: p.name)
def test_hops_of_a_binding(path):
    """Public function, three functions, kernel: four hops. More, and the arguments are a struct."""
    for (operator, for_cuda), functions in spellings(path.read_text()).items():
        most = 1 if for_cuda else 3  # one takes the place of the CPU's
        assert len(functions) <= most, f"{operator} is spelled by {', '.join(functions)}"


def test_hops_are_counted():
    source = (ROOT / "python/upfirdn2d.cpp").read_text()
    assert spellings(source) == {
        ("upfirdn2d", False): ["upfirdn2d_cpu", "call", "with_gradient"],
        ("upfirdn2d", True): ["upfirdn2d_on_cuda"],
    }
