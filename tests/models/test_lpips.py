import pytest
import torch
import torch.nn.functional as F

from lddgan_kernels.models import lpips as module
from lddgan_kernels.models.lpips import LPIPS
from tests.conftest import shared_path


def random_weights(name):
    """A backbone of the real structure at an eighth of the width, and its linear layers."""
    kernels = {"vgg16": {}, "alexnet": {0: 11, 3: 5}}[name]
    backbone, linear, width = {}, {}, 3
    for i, (_, layers) in enumerate(module.STAGES[name]):
        for index in layers:
            size = kernels.get(index, 3)
            fan = width * size * size
            backbone[f"features.{index}.weight"] = (
                torch.randn(8, width, size, size) * (2 / fan) ** 0.5
            )
            backbone[f"features.{index}.bias"] = torch.randn(8) * 0.1
            width = 8
        linear[f"lin{i}.model.1.weight"] = torch.rand(1, 8, 1, 1)
    return backbone, linear


def plain(backbone, linear, x, y):
    """VGG16's distance, layer by layer as torchvision lists them."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
    taps, pools = (3, 8, 15, 22, 29), (4, 9, 16, 23)

    def features(h):
        h, out = (h - shift) / scale, []
        for index in range(30):
            weight = backbone.get(f"features.{index}.weight")
            if weight is not None:
                h = F.conv2d(h, weight.float(), backbone[f"features.{index}.bias"].float(), 1, 1)
            else:
                h = F.max_pool2d(h, 2) if index in pools else F.relu(h)
            if index in taps:
                out.append(h / (h.norm(dim=1, keepdim=True) + 1e-10))
        return out

    distances = [(a - b) ** 2 for a, b in zip(features(x), features(y), strict=True)]
    return sum(
        F.conv2d(d, linear[f"lin{i}.model.1.weight"]).mean((1, 2, 3))
        for i, d in enumerate(distances)
    )


def test_against_the_plain_computation():
    weights = random_weights("vgg16")
    x, y = torch.rand(2, 2, 3, 64, 65) * 2 - 1
    torch.testing.assert_close(LPIPS(*weights)(x, y), plain(*weights, x, y))


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
def test_grows_with_the_noise(name):
    metric = LPIPS(*random_weights(name))
    assert metric.backbone == name
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    noise = torch.randn_like(x)
    assert metric(x, x).abs().max() == 0
    distances = torch.stack([metric(x, x + s * noise) for s in (0.02, 0.1, 0.5)])
    assert (distances.diff(dim=0) > 0).all()


def test_gradient_is_finite_even_where_all_features_vanish():
    backbone, linear = random_weights("vgg16")
    for name in backbone:
        if name.endswith("bias"):
            backbone[name] = torch.full((8,), -100.0)
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    metric = LPIPS(backbone, linear)
    metric(x, torch.zeros_like(x)).sum().backward()
    assert x.grad.isfinite().all()
    assert all(not p.requires_grad for p in metric.parameters())


def test_grey_images():
    weights = random_weights("vgg16")
    x, y = torch.rand(2, 1, 1, 64, 64)
    wanted = plain(*weights, x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1))
    torch.testing.assert_close(LPIPS(*weights)(x, y), wanted)


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
def test_real_weights_and_images(name):
    metric = LPIPS.from_files(
        shared_path(f"data/weights/{name}_features_fp16.pth"),
        shared_path(f"data/weights/lpips_v0.1_lin_{name}.pth"),
    )
    x = torch.rand(1, 3, 1, 1) * torch.linspace(-1, 1, 64)
    x = x.expand(1, 3, 64, 64)
    noise = torch.randn_like(x)
    weak, strong = metric(x, x + 0.02 * noise), metric(x, x + 0.4 * noise)
    assert 0 < weak < strong
    assert 0.1 < strong < 2


def test_bad_input():
    backbone, linear = random_weights("vgg16")
    x = torch.zeros(1, 3, 64, 63)
    with pytest.raises(ValueError, match=r"64 px or more, got \(1, 3, 64, 63\)"):
        LPIPS(backbone, linear)(x, x)
    with pytest.raises(ValueError, match="backbone must hold the `features` of vgg16 or alexnet"):
        LPIPS({"conv1.weight": x}, linear)
    with pytest.raises(ValueError, match=r"lin4.model.1.weight must be \(1, 8, 1, 1\) for vgg16"):
        LPIPS(backbone, {k: v for k, v in linear.items() if "4" not in k})
