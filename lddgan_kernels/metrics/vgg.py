"""VGG16 (Simonyan and Zisserman 2014) as a feature network, under torchvision's names."""

import torch.nn.functional as F
from torch import Tensor, nn

# Channels of the convolutions; 0: the maximum of 2x2.
LAYERS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
WIDTH = 4096


class VGG16(nn.Module):
    """(N, 3, 224, 224), normalised with ImageNet's mean and deviation -> (N, 4096) features.

    They are those of the second linear layer after its ReLU, as improved precision and recall uses.

    Args:
        linear: whether there are linear layers; else the features are the (N, 512) means of the
            last maps, of images of any size from 32 px on.
    """

    def __init__(self, linear: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in LAYERS:
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential()
        if linear:
            self.classifier.add_module("0", nn.Linear(channels * 7 * 7, WIDTH))
            self.classifier.add_module("3", nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if not len(self.classifier):
            return x.mean((2, 3))
        x = x.flatten(1)
        for layer in self.classifier:
            x = F.relu(layer(x))
        return x
