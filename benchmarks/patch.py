"""Other people's networks, patched and as they are: both layouts, inference and a training step.

diffusers' U-Net and autoencoder where diffusers is installed; ADM's and EDM's U-Nets where
LDDGAN_PUBLISHED_CODE names a folder with clones of guided-diffusion and edm; always norms and
activations in PyTorch's own modules. Networks are narrow ones of the published kinds, with
random weights.
"""

import copy
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import lddgan_kernels
from benchmarks import _published_code
from benchmarks._harness import Case, device, form_name
from lddgan_kernels.testing import relative_error

BATCH = 2
LAYOUTS = (torch.contiguous_format, torch.channels_last)
Network = tuple[nn.Module, Callable[[], tuple]]  # and what makes its arguments


def norm_bound() -> Network:
    """Norms and activations, as they surround convolutions, without these."""
    layers = [nn.GroupNorm(32, 128), nn.SiLU()] * 2
    return nn.Sequential(*layers), lambda: (torch.randn(BATCH, 128, 64, 64),)


def diffusers_unet() -> Network:
    from diffusers import UNet2DModel

    kinds = "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"
    network = UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256),
        layers_per_block=1,
        down_block_types=kinds,
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(kinds)),
    )
    return network, lambda: (torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH))


def diffusers_vae() -> Network:
    from diffusers import AutoencoderKL

    network = AutoencoderKL(
        block_out_channels=(64, 128, 128),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        sample_size=64,
    )
    return network, lambda: (torch.randn(BATCH, 3, 64, 64),)


def adm_unet() -> Network:
    network = _clone("guided-diffusion", "guided_diffusion.unet").UNetModel(
        image_size=32,
        in_channels=3,
        model_channels=128,
        out_channels=6,
        num_res_blocks=1,
        attention_resolutions=(2,),
        channel_mult=(1, 2),
        num_head_channels=64,
        use_scale_shift_norm=True,
        resblock_updown=True,
    )
    return network, lambda: (torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH))


def edm_unet() -> Network:
    network = _clone("edm", "training.networks").DhariwalUNet(
        img_resolution=32,
        in_channels=3,
        out_channels=3,
        model_channels=128,
        channel_mult=[1, 2],
        num_blocks=1,
        attn_resolutions=[16],
    )
    return network, lambda: (torch.randn(BATCH, 3, 32, 32), torch.rand(BATCH), None)


def _clone(repository: str, module: str):
    """A module of a clone in the folder of `_published_code`."""
    root = str(_published_code.folder() / repository)
    sys.path.insert(0, root)
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(root)


def networks() -> dict[str, Callable[[], Network]]:
    """Those that can be made here."""
    found: dict[str, Callable[[], Network]] = {"norm and SiLU, twice": norm_bound}
    if importlib.util.find_spec("diffusers") is not None:
        found |= {"diffusers U-Net": diffusers_unet, "diffusers autoencoder": diffusers_vae}
    folder = _published_code.folder()
    for name, clone, make in (("ADM", "guided-diffusion", adm_unet), ("EDM", "edm", edm_unet)):
        if folder is not None and (folder / clone).is_dir():
            found[f"{name} U-Net"] = make
    return found


@torch.no_grad()
def randomise(network: nn.Module) -> None:
    """Sets all weights: some start at zero, and behind them nothing would be seen."""
    for p in network.parameters():
        p.copy_(torch.randn_like(p) / (p[0].numel() ** 0.5 if p.ndim > 1 else 2))


def output(network: nn.Module, inputs: tuple) -> Tensor:
    """What the network makes of the inputs."""
    out = network(*inputs)
    return out if isinstance(out, Tensor) else out.sample


def gradient(network: nn.Module, inputs: tuple) -> Tensor:
    """Of all weights, behind one another."""
    network.zero_grad()
    output(network, inputs).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def _case(name: str, make: Callable[[], Network], layout: torch.memory_format, train: bool) -> Case:
    torch.manual_seed(0)
    original, arguments = make()
    original.to(device(), memory_format=layout).train(train)
    randomise(original)
    patched = copy.deepcopy(original)
    lddgan_kernels.patch(patched)

    def inputs() -> tuple:
        return tuple(
            t.to(device(), memory_format=layout) if isinstance(t, Tensor) and t.ndim == 4 else t
            for t in arguments()
        )

    def side(network: nn.Module) -> Callable:
        def run(*given: Tensor) -> Tensor:
            if train:
                return gradient(network, given)
            with torch.no_grad():
                return output(network, given)

        return run

    sides = {"ours": side(patched), "original": side(original)}

    def check() -> None:
        given = inputs()
        found = []
        for run in sides.values():
            torch.manual_seed(0)  # the same is dropped
            found.append(run(*given))
        error = relative_error(found[0], found[1].double())
        assert error <= 1e-4, error

    weights = sum(p.numel() * p.element_size() for p in original.parameters())
    what = "training" if train else "inference"
    target = {"original": 1.4} if make is norm_bound else {"original": 1.0}
    form = form_name(torch.float32, layout)
    return Case(
        name=f"{name}, batch {BATCH}, {form}, {what}",
        group=f"{name} {what}",
        inputs=inputs,
        sides=sides,
        check=check,
        bytes_moved=weights,
        targets=target,
    )


def cases() -> Iterator[Case]:
    for name, make in networks().items():
        for train in (False, True):
            for layout in LAYOUTS:
                yield _case(name, make, layout, train)
