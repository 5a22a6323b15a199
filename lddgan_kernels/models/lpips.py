"""LPIPS v0.1: a perceptual distance (Zhang et al. 2018, "The unreasonable effectiveness of deep
features as a perceptual metric", equation 1)."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Each stage: max pooling (kernel; stride 2) or 0, then its convolutions by index in torchvision's
# `features`, each with (stride, padding) and followed by ReLU. A stage's output is compared.
STAGES = {
    "vgg16": (
        (0, {0: (1, 1), 2: (1, 1)}),
        (2, {5: (1, 1), 7: (1, 1)}),
        (2, {10: (1, 1), 12: (1, 1), 14: (1, 1)}),
        (2, {17: (1, 1), 19: (1, 1), 21: (1, 1)}),
        (2, {24: (1, 1), 26: (1, 1), 28: (1, 1)}),
    ),
    "alexnet": (
        (0, {0: (4, 2)}),
        (3, {3: (1, 2)}),
        (3, {6: (1, 1)}),
        (0, {8: (1, 1)}),
        (0, {10: (1, 1)}),
    ),
}

_LINEAR = (
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/"
    "082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1/"
)
# (address, start of the SHA-256) of the backbone and of the linear layers.
DOWNLOADS = {
    "vgg16": (
        ("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"),
        (
            _LINEAR + "vgg.pth",
            "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        ),
    ),
    "alexnet": (
        ("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79"),
        (
            _LINEAR + "alex.pth",
            "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        ),
    ),
}

MIN_SIZE = 64


class LPIPS(nn.Module):
    """The distance of two batches of images; frozen, differentiable in both.

    Args:
        backbone: ImageNet weights of VGG16 or AlexNet under torchvision's names
            (`features.0.weight`, ...); others are ignored. Any floating dtype.
        linear: the learned channel weights, `lin0.model.1.weight` (1, C, 1, 1) to `lin4...`.

    Raises:
        ValueError: the backbone is neither network, or the linear layers are not its.
    """

    def __init__(self, backbone: Mapping[str, Tensor], linear: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.backbone = _backbone_name(backbone)
        self.convs = nn.ModuleDict()
        self.pools: list[int] = []
        self.stages: list[list[str]] = []
        for i, (pool, layers) in enumerate(STAGES[self.backbone]):
            self.pools.append(pool)
            self.stages.append([str(index) for index in layers])
            for index, (stride, padding) in layers.items():
                weight = backbone[f"features.{index}.weight"]
                width = weight.shape[0]
                conv = nn.Conv2d(weight.shape[1], width, weight.shape[2], stride, padding)
                bias = backbone[f"features.{index}.bias"]
                conv.load_state_dict({"weight": weight, "bias": bias})
                self.convs[str(index)] = conv
            name = f"lin{i}.model.1.weight"
            if name not in linear or linear[name].shape != (1, width, 1, 1):
                actual = tuple(linear[name].shape) if name in linear else "none"
                raise ValueError(
                    f"LPIPS: {name} must be (1, {width}, 1, 1) for {self.backbone}, got {actual}"
                )
            self.register_buffer(f"linear{i}", linear[name].flatten().float())
        # ImageNet's statistics, for images in [-1, 1].
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("std", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.requires_grad_(False)

    @classmethod
    def from_files(cls, backbone_path: str | Path, linear_path: str | Path) -> "LPIPS":
        """LPIPS of two weight files (`torch.save`d state dicts; nothing in them is executed)."""
        paths = (backbone_path, linear_path)
        return cls(*(torch.load(path, map_location="cpu", weights_only=True) for path in paths))

    @classmethod
    def download(cls, backbone: str = "vgg16") -> "LPIPS":
        """LPIPS of "vgg16" (528 MB) or "alexnet" (233 MB), fetched once into torch.hub's cache.

        Shows its progress and checks the files. Raises what the transfer raises.
        """
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for (address, checksum), part in zip(DOWNLOADS[backbone], ("", "lpips-"), strict=True):
            path = folder / (part + address.rsplit("/", 1)[-1])
            if not path.exists():
                torch.hub.download_url_to_file(address, str(path), hash_prefix=checksum)
            paths.append(path)
        return cls.from_files(*paths)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance (N,) of images `x` and `y`: (N, 3 or 1, H, W) in [-1, 1], 64 px or more.

        Raises:
            ValueError: the images are smaller, or their shapes differ.
        """
        if x.shape != y.shape or x.ndim != 4 or min(x.shape[2:]) < MIN_SIZE:
            raise ValueError(
                f"LPIPS: x and y must be images of one shape (N, C, H, W) of {MIN_SIZE} px or "
                f"more, got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        h = (torch.cat([x, y]) - self.mean) / self.std
        total = torch.zeros((), device=x.device)
        for i, (pool, stage) in enumerate(zip(self.pools, self.stages, strict=True)):
            if pool:
                h = F.max_pool2d(h, pool, 2)
            for name in stage:
                h = F.relu(self.convs[name](h))
            a, b = _normalize(h.float()).chunk(2)
            weight = self.get_buffer(f"linear{i}")[:, None, None]
            total = total + ((a - b).square() * weight).sum(1).mean((1, 2))
        return total


def _normalize(h: Tensor) -> Tensor:
    """Each position's vector over its length; the tiny term keeps the gradient of 0 finite."""
    return h * torch.rsqrt(h.square().sum(1, keepdim=True) + 1e-20)


def _backbone_name(weights: Mapping[str, Tensor]) -> str:
    for name, stages in STAGES.items():
        wanted = {index for _, layers in stages for index in layers}
        found = {
            int(key.split(".")[1])
            for key in weights
            if key.startswith("features.") and key.endswith(".weight")
        }
        if wanted == found:
            return name
    raise ValueError(
        f"LPIPS: backbone must hold the `features` of {' or '.join(STAGES)} under torchvision's "
        f"names, got {sorted(weights)[:4]}"
    )
