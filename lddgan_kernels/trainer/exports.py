"""Parts of a system as files that run elsewhere: torch.export, AOTInductor, ONNX."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from lddgan_kernels import diffusion
from lddgan_kernels._backend import use_backend
from lddgan_kernels._checks import fail
from lddgan_kernels.models import Autoencoder
from lddgan_kernels.ops import seeded_normal
from lddgan_kernels.trainer import networks
from lddgan_kernels.trainer.codec import PixelCodec
from lddgan_kernels.trainer.files import write_atomically
from lddgan_kernels.trainer.system import System

Format = Literal["pt2", "aoti", "onnx"]
PartName = Literal["sampler", "generator", "decoder"]

# Of each method.
PARTS = {
    "gan": ("sampler", "generator", "decoder"),
    "ddpm": ("generator", "decoder"),
    "vae": ("sampler",),
}
OPSET = 20  # of ONNX
# Images of the batch that is traced and of the one that is compared: unlike each other and 1, which
# would be taken for a constant.
TRACED, COMPARED = 3, 5
# Of the largest value: rounding of all steps, no more. (A code chosen otherwise moves a pixel far.)
MOST_DIFFERENT = 1e-3


class Part(NamedTuple):
    """What is exported.

    Attributes:
        module: takes tensors of N images and returns one.
        inputs, output: their names.
        make: inputs of a batch.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    output: str
    make: Callable[[int], tuple[Tensor, ...]]


# A file's bytes, and how to run what it holds; None where that cannot be done here.
Exported = tuple[bytes, Callable[..., Tensor] | None]


class _Sampler(nn.Module):
    """Seeds (N,) int64 to images (N, C, H, W) of about [-1, 1]: what `diffusion.Sampler` draws."""

    def __init__(self, system: System) -> None:
        super().__init__()
        config = system.config
        self.generator, self.codec = system.generator, system.codec
        self._schedule = networks.build_schedule(config, system.device)
        self._shape = networks.latent_shape(config)
        self._z_dim, self._layout = config.generator.z_dim, networks.layout(config)
        self._guidance = system.guidance

    def forward(self, seeds: Tensor, labels: Tensor | None = None) -> Tensor:
        latents = diffusion.sample(
            self.generator,
            self._schedule,
            self._shape,
            seeds,
            z_dim=self._z_dim,
            labels=labels,
            guidance=self._guidance,
            memory_format=self._layout,
        )
        return self.codec.decode(latents).contiguous()


class _Prior(nn.Module):
    """Seeds to images, of a VAE: its decoder of seeded normal latents."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.autoencoder = cast(Autoencoder, system.generator)
        self._shape = networks.latent_shape(system.config)

    def forward(self, seeds: Tensor) -> Tensor:
        shape = (seeds.shape[0], *self._shape)
        z = seeded_normal(shape, seeds, diffusion.STREAM_X_T)
        return self.autoencoder.decode(z).contiguous()


class _Decoder(nn.Module):
    """What the generator makes (N, c, h, w) to images."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.codec, self._layout = system.codec, networks.layout(system.config)

    def forward(self, latents: Tensor) -> Tensor:
        return self.codec.decode(latents.contiguous(memory_format=self._layout)).contiguous()


class _Noise(nn.Module):
    """The noise in x (N, c, h, w) at step t (N,) float32, of a DDPM."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.generator, self._layout = system.generator, networks.layout(system.config)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        given = (t, x.new_empty(x.shape[0], 0)) + (() if labels is None else (labels,))
        noise: Tensor = self.generator(x.contiguous(memory_format=self._layout), *given)
        return noise.contiguous()


class _Generator(nn.Module):
    """x_0 from x (N, c, h, w), t (N,) int64 and z (N, z_dim)."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.generator, self._layout = system.generator, networks.layout(system.config)

    def forward(self, x: Tensor, t: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        given = (t, z) if labels is None else (t, z, labels)
        x0: Tensor = self.generator(x.contiguous(memory_format=self._layout), *given)
        return x0.contiguous()


def export(
    system: System, part: PartName, format: Format, out: Path, *, portable: bool = False
) -> list[str]:
    """Writes a part of a system to a file, for batches of any size, in float32.

    What the file computes is compared with the system before it is written.

    Args:
        system: on the device that the file is for.
        part: "sampler", from seeds to images of about [-1, 1]; "generator", from (x, t, z) to x_0,
            of a DDPM from (x, t) to the noise; "decoder", from what is sampled to images.
        format: "pt2" of torch.export, "aoti" of AOTInductor, "onnx".
        out: the file.
        portable: made of PyTorch's operators alone, so that it runs without this package; always
            so in ONNX and for GPUs.

    Returns:
        Lines about the file.

    Raises:
        ValueError: the system has no such part. ImportError: a package is missing.
        RuntimeError: the part cannot be exported so, or the file computes something else.
    """
    _check_packages(format)
    if out.is_dir():
        raise fail("export", "out", "a file", f"the folder {out}")
    chosen = _part(system, part)
    if format == "onnx" or system.device.type != "cpu":
        portable = True
    with torch.no_grad(), use_backend("reference" if portable else None):
        try:
            with _quiet():
                data, run = _FORMATS[format](chosen, _program(chosen))
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise RuntimeError(
                f"export: {part} cannot be exported as {format}: {reason}"
            ) from error
        lines = [f"{out}: {part} as {format}, {len(data) / 2**20:.1f} MiB, float32, any batch N"]
        given = zip(chosen.inputs, chosen.make(1), strict=True)
        described = ", ".join(f"{name} {_shape(x)} {str(x.dtype)[6:]}" for name, x in given)
        lines.append(f"inputs: {described}; output: {chosen.output}")
        if run is None:
            lines.append("not compared with the system, as onnxruntime is not installed")
        else:
            difference = _compare(chosen, run, part, format)
            lines.append(f"compared with the system: differs by {difference:.1e} at most")
    if not portable:
        lines.append("runs where lddgan_kernels is imported; with portable it needs PyTorch alone")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda file: file.write(data))
    return lines


def _part(system: System, name: PartName) -> Part:
    config, device = system.config, system.device
    allowed = PARTS[config.method]
    if isinstance(system.codec, PixelCodec):  # pixels need no decoder
        allowed = tuple(part for part in allowed if part != "decoder")
    if name not in allowed:
        what = f"for method {config.method}, codec {config.codec}"
        raise fail("export", "part", f"{' or '.join(allowed) or 'none'} {what}", name)
    shape = networks.latent_shape(config)
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device)

    classes = config.classes if config.method != "vae" else 0
    named = ("labels",) if classes else ()

    def labels(n: int) -> tuple[Tensor, ...]:
        return (torch.arange(n, device=device) % classes,) if classes else ()

    if name == "sampler":
        module = _Prior(system) if config.method == "vae" else _Sampler(system)

        def seeds(n: int) -> tuple[Tensor, ...]:
            return torch.arange(n, device=device) * 1234567891011 - 5, *labels(n)

        return Part(module.eval(), ("seeds", *named), "images", seeds)
    if name == "decoder":
        return Part(_Decoder(system).eval(), ("latents",), "images", lambda n: (normal(n, *shape),))
    if config.method == "ddpm":
        times = config.ddpm.num_steps

        def noisy(n: int) -> tuple[Tensor, ...]:
            t = (torch.arange(n, device=device) * 37 % times).float()
            return normal(n, *shape), t, *labels(n)

        return Part(_Noise(system).eval(), ("x", "t", *named), "noise", noisy)
    steps, z_dim = config.diffusion.num_steps, config.generator.z_dim

    def call(n: int) -> tuple[Tensor, ...]:
        t = torch.arange(n, device=device) % steps
        return normal(n, *shape), t, normal(n, z_dim), *labels(n)

    return Part(_Generator(system).eval(), ("x", "t", "z", *named), "x0", call)


def _program(part: Part) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("N", min=1)
    shapes = tuple({0: batch} for _ in part.inputs)
    return torch.export.export(part.module, part.make(TRACED), dynamic_shapes=shapes)


def _pt2(part: Part, program: torch.export.ExportedProgram) -> Exported:
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue(), torch.export.load(io.BytesIO(file.getvalue())).module()


def _aoti(part: Part, program: torch.export.ExportedProgram) -> Exported:
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    file = io.BytesIO()
    aoti_compile_and_package(program, package_path=file)
    return file.getvalue(), cast(Any, aoti_load_package(io.BytesIO(file.getvalue())))


def _onnx(part: Part, program: torch.export.ExportedProgram) -> Exported:
    made = torch.onnx.export(
        program,
        opset_version=OPSET,
        input_names=part.inputs,
        output_names=[part.output],
        external_data=False,
        verbose=False,
    )
    assert made is not None
    data: bytes = made.model_proto.SerializeToString()
    if find_spec("onnxruntime") is None:
        return data, None
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        given = {n: x.cpu().numpy() for n, x in zip(part.inputs, inputs, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return data, run


_FORMATS = {"pt2": _pt2, "aoti": _aoti, "onnx": _onnx}


def _compare(part: Part, run: Callable[..., Tensor], name: str, format: str) -> float:
    """How far what the file computes lies from the module, over the largest value.

    Raises:
        RuntimeError: farther than rounding.
    """
    inputs = part.make(COMPARED)
    expected, found = part.module(*inputs), run(*inputs)
    difference = (found.cpu() - expected.cpu()).abs().max() / expected.abs().max().cpu()
    if not difference <= MOST_DIFFERENT:
        raise RuntimeError(
            f"export: {name} as {format} must compute what the system does, got values that differ "
            f"by {difference:.1e} of the largest; nothing was written"
        )
    return difference.item()


def _shape(x: Tensor) -> str:
    return "(" + ", ".join(map(str, ("N", *x.shape[1:]))) + ")"


def _check_packages(format: Format) -> None:
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if format == "onnx" and missing:
        raise ImportError(
            f"export: format onnx needs {' and '.join(missing)}: pip install 'lddgan_kernels[onnx]'"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own remarks, which are for their makers."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
