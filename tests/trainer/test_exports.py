"""Systems as files of torch.export, AOTInductor and ONNX: each part, each kind of model."""

import dataclasses
import shutil

import pytest
import torch

from lddgan_kernels import _extension
from lddgan_kernels import export as command
from lddgan_kernels.trainer import config_file, exports, networks
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.network_files import save_generator
from lddgan_kernels.trainer.pictures import to_uint8
from lddgan_kernels.trainer.system import System
from tests.trainer.tiny import tiny

try:
    import onnxruntime
except ImportError:
    onnxruntime = None

VIT = "[vit]\nwidth = 16\ndepth = 3\nnum_heads = 2\nmlp_width = 16\n"
SYSTEMS = {
    "lddgan": {},
    "lddgan-kl": {"autoencoder": {"kl": True, "codebook_size": 0}},
    "lddgan-vit": {"generator": {"kind": "vit", "patch_size": 2}},
    "ddgan": {"codec": "none"},
    "ddgan-labels": {"codec": "none", "classes": 3},
    "wddgan": {"codec": "haar", "generator": {"kind": "wavelet"}},
    "vae": {"method": "vae", "autoencoder": {"kl": True, "codebook_size": 0}},
    "ddpm": {"method": "ddpm", "codec": "none", "generator": {"z_dim": 0, "tanh_out": False}},
}
GUIDED = {"ddgan-labels": 1.5}
# The sampler holds the other two.
MADE = [
    *((kind, "sampler") for kind in SYSTEMS if kind != "ddpm"),
    ("lddgan-vit", "generator"),
    ("ddpm", "generator"),
    ("lddgan", "decoder"),
]


def system(kind):
    torch.manual_seed(0)
    changes = SYSTEMS[kind]
    config = tiny(**changes, precision="float32")
    if kind == "lddgan-vit":
        config = dataclasses.replace(config, vit=config_file.parse(VIT).vit)
    autoencoder = None
    if config.codec == "autoencoder":
        autoencoder = networks.build_autoencoder(config).eval()
    generator = None if config.method == "vae" else networks.build_generator(config).eval()
    with torch.no_grad():
        for part in (generator, autoencoder):
            for parameter in () if part is None else part.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)  # last layers start at 0
    for part in (generator, autoencoder):
        if part is not None:
            networks.place(part.requires_grad_(False), "cpu", config)
    codec = networks.build_codec(config, autoencoder)
    return System(config, generator or autoencoder, codec, GUIDED.get(kind, 0.0))


def check(path, kind, format, part):
    """The file, loaded anew, against the system, at other sizes of batch."""
    whole = system(kind)
    module, names, _, make = exports._part(whole, part)
    for count in (1, 4):
        inputs = make(count)
        with torch.no_grad():
            expected = module(*inputs)
        if format == "onnx":
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            given = {n: x.numpy() for n, x in zip(names, inputs, strict=True)}
            assert [i.name for i in session.get_inputs()] == list(names)
            found = torch.from_numpy(session.run(None, given)[0])
        elif format == "aoti":
            found = torch._inductor.aoti_load_package(str(path))(*inputs)
        else:
            found = torch.export.load(path).module()(*inputs)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    if part == "sampler":  # it is the system that `sample` runs
        seeds = torch.tensor([7, -3])
        images = to_uint8(module(*(seeds, whole.labels_of(seeds))[: len(names)])).int()
        assert (images - whole(seeds).int()).abs().max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "part"), MADE)
def test_pt2(kind, part, tmp_path):
    path = tmp_path / "new" / "file.pt2"
    lines = exports.export(system(kind), part, "pt2", path)
    assert f"{part} as pt2" in lines[0]
    check(path, kind, "pt2", part)


@pytest.mark.slow
@pytest.mark.parametrize("portable", [False, True])
def test_portable_means_operators_of_pytorch_alone(portable, tmp_path):
    lines = exports.export(
        system("lddgan"), "sampler", "pt2", tmp_path / "file.pt2", portable=portable
    )
    assert ("lddgan_kernels is imported" in lines[-1]) == (not portable)
    program = torch.export.load(tmp_path / "file.pt2")
    own = any(str(node.target).startswith("lddgan.") for node in program.graph.nodes)
    assert own == (not portable and _extension.is_loaded())
    if portable:
        check(tmp_path / "file.pt2", "lddgan", "pt2", "sampler")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor compiles")
@pytest.mark.parametrize(("kind", "part"), MADE)
def test_aoti(kind, part, tmp_path):
    path = tmp_path / "file.pt2"
    exports.export(system(kind), part, "aoti", path)
    check(path, kind, "aoti", part)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "part"), MADE)
def test_onnx(kind, part, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "file.onnx"
    lines = exports.export(system(kind), part, "onnx", path)
    assert "compared with the system" in lines[2]
    check(path, kind, "onnx", part)
    model = pytest.importorskip("onnx").load(path)
    assert {i.domain: i.version for i in model.opset_import}[""] == exports.OPSET


def test_what_cannot_be_exported_leaves_no_file(tmp_path, monkeypatch):
    out = tmp_path / "file.pt2"
    with pytest.raises(
        ValueError,
        match="part must be sampler or generator for method gan, codec none, got decoder",
    ):
        exports.export(system("ddgan"), "decoder", "pt2", out)
    for kind, part, there in (
        ("ddpm", "sampler", "generator for method ddpm, codec none"),
        ("vae", "generator", "sampler for method vae, codec autoencoder"),
    ):
        with pytest.raises(ValueError, match=f"part must be {there}, got {part}"):
            exports.export(system(kind), part, "pt2", out)
    monkeypatch.setattr(exports, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="format onnx needs onnx and onnxscript: pip install"):
        exports.export(system("ddgan"), "sampler", "onnx", out)
    broken = system("ddgan")
    broken.generator.forward = lambda x, t, z: x if x.sum() > 0 else -x
    with pytest.raises(RuntimeError, match="generator cannot be exported as pt2"):
        exports.export(broken, "generator", "pt2", out)
    other = system("ddgan")
    monkeypatch.setitem(exports._FORMATS, "pt2", lambda *_: (b"", lambda x, t, z: x))
    with pytest.raises(RuntimeError, match="must compute what the system does, got values that"):
        exports.export(other, "generator", "pt2", out)
    with pytest.raises(ValueError, match="out must be a file, got the folder"):
        exports.export(other, "generator", "pt2", tmp_path)
    assert not list(tmp_path.iterdir())


def test_command(tmp_path, capsys):
    folder = RunFolder(tmp_path / "run")
    whole = system("ddgan")
    save_generator(whole.config, folder.generator, whole.generator, None)
    out = tmp_path / "g.pt2"
    arguments = ["--run", str(folder.path), "--part", "generator", "--out", str(out)]
    assert command.main([*arguments, "--device", "cpu"]) == 0
    assert (
        "inputs: x (N, 1, 16, 16) float32, t (N) int64, z (N, 4) float32" in capsys.readouterr().out
    )
    check(out, "ddgan", "pt2", "generator")
    assert command.main(["--format", "onnx"]) == 1
    assert "one of --run, --checkpoint and --published must be given" in capsys.readouterr().err
