"""The patch discriminator of autoencoders (Isola et al. 2017, "Image-to-image translation with
conditional adversarial networks"), as VQGAN uses it."""

from torch import Tensor, nn


def patch_layers(resolution: int, wanted: int = 3) -> int:
    """Halvings that leave an image of this side at least one patch: `wanted`, or fewer.

    0 where even one halving is too many: images under 6 px.
    """
    return next((n for n in range(wanted, 0, -1) if 3 * 2**n <= resolution), 0)


class PatchDiscriminator(nn.Module):
    """(N, image_channels, H, W) -> (N, 1, h, w), one logit a patch (70 px wide with 3 layers).

    4x4 convolutions, batch norm and leaky ReLU (0.2); weights start as normal of deviation 0.02.

    Args:
        image_channels: 3 or 1.
        width: channels of the first layer; doubled by each further one, up to 8 times.
        layers: convolutions that halve the resolution.
    """

    def __init__(self, image_channels: int = 3, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.min_size = 3 * 2**layers
        self.image_channels = image_channels
        modules: list[nn.Module] = [
            nn.Conv2d(image_channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        for i in range(layers):
            stride = 2 if i < layers - 1 else 1
            modules += [
                # The norm takes any bias out again.
                nn.Conv2d(widths[i], widths[i + 1], 4, stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[i + 1]),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        modules.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*modules)
        self.apply(_initialize)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 1, h, w); higher for real.

        Raises:
            ValueError: `x` has other channels, or is too small to leave a patch.
        """
        if x.ndim != 4 or x.shape[1] != self.image_channels or min(x.shape[2:]) < self.min_size:
            raise ValueError(
                f"PatchDiscriminator: x must be (N, {self.image_channels}, H, W) of "
                f"{self.min_size} px or more, got {tuple(x.shape)}"
            )
        return self.main(x)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
