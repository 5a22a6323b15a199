"""Feature networks from weight files, and the features of sets of images."""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels._checks import check_tensor, fail
from lddgan_kernels.metrics.efficientnet import EfficientNetLite0
from lddgan_kernels.metrics.inception import FidInception


class FeatureNetwork(nn.Module):
    """A frozen network with its own resizing and scaling of images.

    Input: (N, 1 or 3, H, W) uint8. Output: (N, D) float32 features.
    """

    def __init__(self, network: EfficientNetLite0 | FidInception) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        inception = isinstance(network, FidInception)
        self.name = "inception" if inception else "efficientnet-lite0"
        self.features = 2048 if inception else 1280

    def forward(self, images: Tensor) -> Tensor:
        check_tensor("FeatureNetwork", "images", images)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise fail(
                "FeatureNetwork",
                "images",
                "uint8 (N, 1 or 3, H, W)",
                f"{images.dtype} {tuple(images.shape)}",
            )
        x = images.float().expand(-1, 3, -1, -1)
        if self.name == "inception":
            # Published scores resize without a filter; so must who compares with them.
            x = F.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
            return self.network(x / 127.5 - 1)
        x = F.interpolate(x, (96, 96), mode="bilinear", align_corners=False, antialias=True)
        return self.network((x - 127) / 128)


def load_features(path: str | Path) -> FeatureNetwork:
    """The feature network whose weights are in the file `path`, told by their names.

    Known: EfficientNet-lite0 (1,280 features at 96 px) and the FID Inception
    (`pt_inception-2015-12-05`, 2,048 features at 299 px). Weights may be stored in float16.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"load_features: path must be a file of weights, got {path}")
    expected = "weights of EfficientNet-lite0 or pt_inception-2015-12-05"
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a different one for each kind of damage
        raise fail("load_features", "path", expected, f"{path}: {error}") from error
    names = set(weights) if isinstance(weights, dict) else set()
    network: EfficientNetLite0 | FidInception
    if "_conv_stem.weight" in names:
        network = EfficientNetLite0()
    elif "Conv2d_1a_3x3.conv.weight" in names:
        network = FidInception()
    else:
        raise fail("load_features", "path", expected, f"{path} with {sorted(names)[:3]}")
    # The classifiers' layers, and Inception's auxiliary one, are not needed.
    kept = {k: v for k, v in weights.items() if not k.startswith(("_fc.", "fc.", "AuxLogits."))}
    spoilt = [k for k, v in kept.items() if not (torch.is_tensor(v) and v.isfinite().all())]
    if spoilt:
        raise fail("load_features", "path", f"{expected}, finite", f"{path} with {spoilt[:3]}")
    try:
        network.load_state_dict(kept)
    except RuntimeError as error:
        raise fail("load_features", "path", expected, f"{path}: {error}") from None
    return FeatureNetwork(network)


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
    with tqdm(total=total, desc=f"{network.name} features", unit="img", disable=None) as bar:
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
