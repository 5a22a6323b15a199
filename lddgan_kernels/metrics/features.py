"""Feature networks from weight files, and the features of sets of images."""

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels._checks import check_tensor, fail
from lddgan_kernels.metrics.efficientnet import EfficientNetLite0
from lddgan_kernels.metrics.feature_files import feature_file
from lddgan_kernels.metrics.inception import FidInception
from lddgan_kernels.metrics.vgg import VGG16

EXPECTED = (
    "weights of pt_inception-2015-12-05, VGG16 or EfficientNet-lite0, or a TorchScript module"
)


@dataclass(frozen=True)
class Preparation:
    """What is done to uint8 pixels before a network sees them: resized, then (x - mean) / scale."""

    size: int | None
    """Side in pixels; None: the network itself resizes."""
    antialias: bool = True
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    def __call__(self, images: Tensor) -> Tensor:
        if self.size is None:
            return images.expand(-1, 3, -1, -1)
        x = images.float().expand(-1, 3, -1, -1)
        side = (self.size, self.size)
        x = F.interpolate(x, side, mode="bilinear", align_corners=False, antialias=self.antialias)
        mean, scale = (x.new_tensor(part)[:, None, None] for part in (self.mean, self.scale))
        return (x - mean) / scale

    def __str__(self) -> str:
        if self.size is None:
            return "8 bits a channel, resized by the network itself"
        how = "antialiased" if self.antialias else "not antialiased"
        return f"8 bits a channel, then bilinear to {self.size} px, {how}"


# ImageNet's mean and deviation, as torchvision's networks want them.
VGG = Preparation(
    224,
    mean=tuple(255 * x for x in (0.485, 0.456, 0.406)),
    scale=tuple(255 * x for x in (0.229, 0.224, 0.225)),
)


class FeatureNetwork(nn.Module):
    """A frozen network with its own resizing and scaling of images.

    Input: (N, 1 or 3, H, W) uint8. Output: (N, `features`) float32.

    Args:
        network: prepared images to features.
        name: for people; statistics carry it.
        features: D.
        preparation: what is done to the pixels.
        head: (weight (K, D), bias (K,) or None) of the classes; None: it has none.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        features: int,
        preparation: Preparation,
        head: tuple[Tensor, Tensor | None] | None = None,
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.name = name
        self.features = features
        self.preparation = preparation
        self.head = None if head is None else tuple(None if x is None else x.float() for x in head)

    def forward(self, images: Tensor) -> Tensor:
        check_tensor("FeatureNetwork", "images", images)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise fail(
                "FeatureNetwork",
                "images",
                "uint8 (N, 1 or 3, H, W)",
                f"{images.dtype} {tuple(images.shape)}",
            )
        return self.network(self.preparation(images))

    def logits(self, features: Tensor) -> Tensor | None:
        """(N, K) of (N, D) features, where the network has classes."""
        if self.head is None:
            return None
        weight, bias = (None if x is None else x.to(features) for x in self.head)
        assert weight is not None
        return F.linear(features, weight, bias)


class _Scripted(nn.Module):
    """A TorchScript module; those of StyleGAN's authors give features where asked to."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module
        names = [argument.name for argument in module.forward.schema.arguments]
        self.options = {"return_features": True} if "return_features" in names else {}

    def forward(self, x: Tensor) -> Tensor:
        found = self.module(x, **self.options)
        if not isinstance(found, Tensor) or found.ndim != 2:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise fail("load_features", "path", "a TorchScript module that returns (N, D)", shape)
        return found.float()


def load_features(path: str | Path) -> FeatureNetwork:
    """The feature network of a file, told by its content, or of a name in `KNOWN`.

    Files: the FID Inception (`pt_inception-2015-12-05`, 2,048 features at 299 px), VGG16 (4,096 of
    its second linear layer at 224 px; 512 where the file holds convolutions alone),
    EfficientNet-lite0 (1,280 at 96 px), and any TorchScript module of uint8 (N, 3, H, W) images, as
    the FID Inception `inception-2015-12-05.pt`; its code is run, so trust where it comes from.
    Weights may be stored in float16.
    """
    name, path = str(path), feature_file(path)
    if _is_torchscript(path):
        return _load_scripted(path, name)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a different one for each kind of damage
        reason = " ".join(str(error).split())[:200]
        raise fail("load_features", "path", EXPECTED, f"{path}: {reason}") from error
    names = set(weights) if isinstance(weights, dict) else set()
    network: nn.Module
    head = "fc"
    if "_conv_stem.weight" in names:
        network, kind, head = EfficientNetLite0(), "efficientnet-lite0", "_fc"
        about = Preparation(96, mean=(127.0,), scale=(128.0,))
    elif "Conv2d_1a_3x3.conv.weight" in names:
        # Published scores resize without a filter; so must who compares with them.
        about = Preparation(299, antialias=False, mean=(127.5,), scale=(127.5,))
        network, kind = FidInception(), "inception"
    elif "features.28.weight" in names:
        linear = "classifier.3.weight" in names
        network, kind, head = VGG16(linear), "vgg16" if linear else "vgg16-conv", "classifier.6"
        about = VGG
    else:
        raise fail("load_features", "path", EXPECTED, f"{path} with {sorted(names)[:3]}")
    # Inception's auxiliary classifier is not needed.
    kept = {k: v for k, v in weights.items() if not k.startswith("AuxLogits.")}
    spoilt = [k for k, v in kept.items() if not (torch.is_tensor(v) and v.isfinite().all())]
    if spoilt:
        raise fail("load_features", "path", f"{EXPECTED}, finite", f"{path} with {spoilt[:3]}")
    weight, bias = (kept.pop(f"{head}.{part}", None) for part in ("weight", "bias"))
    try:
        network.load_state_dict(kept)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise fail("load_features", "path", EXPECTED, f"{path}: {reason}") from None
    if kind == "inception":  # the score's first implementation left it out
        bias = None
    width = {"inception": 2048, "vgg16": 4096, "vgg16-conv": 512, "efficientnet-lite0": 1280}[kind]
    return FeatureNetwork(network, kind, width, about, None if weight is None else (weight, bias))


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return any("/code/" in name for name in file.namelist())
    except Exception:  # a damaged archive may raise anything
        return False


def _load_scripted(path: Path, name: str) -> FeatureNetwork:
    try:
        module = torch.jit.load(str(path), map_location="cpu").eval()
        network = _Scripted(module)
        with torch.inference_mode():
            width = network(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape[1]
    except Exception as error:  # whatever its code raises
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        expected = "a TorchScript module of uint8 (N, 3, H, W) images"
        raise fail("load_features", "path", expected, f"{path}: {reason[0]}") from None
    head = None
    weight = getattr(getattr(module, "output", None), "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2 and weight.shape[1] == width:
        head = weight.detach(), None
    known = name if name == "inception-torchscript" else path.stem
    return FeatureNetwork(network, known, width, Preparation(None), head)


@torch.inference_mode()
def extract_features(
    network: FeatureNetwork,
    images: Iterable[Tensor],
    *,
    device: torch.device | str = "cpu",
    total: int | None = None,
) -> Tensor:
    """(N, D) float32 features, on the CPU, of batches of (B, 1 or 3, H, W) uint8 images.

    total: the number of images, for the progress bar.

    Raises ValueError where they are not finite.
    """
    from tqdm import tqdm

    network = network.to(device)
    found = []
    with tqdm(
        total=total, desc=f"{network.name} features", unit="img", disable=None, delay=2
    ) as bar:
        for batch in images:
            found.append(network(batch.to(device)).cpu())
            bar.update(len(batch))
    if not found:
        raise fail("extract_features", "images", "at least one batch", "none")
    features = torch.cat(found)
    if not features.isfinite().all():
        first = int((~features.isfinite().all(1)).nonzero()[0])
        raise fail("extract_features", "network", "finite on all images", f"NaN on image {first}")
    return features
