"""Feature networks: architectures, loading, and real features against known statistics."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from lddgan_kernels.metrics import KNOWN, extract_features, load_features
from lddgan_kernels.metrics.efficientnet import EfficientNetLite0
from lddgan_kernels.metrics.inception import FidInception
from lddgan_kernels.metrics.vgg import VGG16
from tests.conftest import shared_path


def randomised(network):
    """Normalisation statistics away from their initial values, so that they are tested too."""
    for name, value in network.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("size", [96, 65])
def test_efficientnet_equals_the_published_package(size):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    network = randomised(EfficientNetLite0())
    # The package pads for one image size only, fixed when it is made.
    theirs = package.EfficientNet.from_name("efficientnet-lite0", image_size=size).eval()
    missing = theirs.load_state_dict(network.state_dict(), strict=False)
    assert set(missing.missing_keys) == {"_fc.weight", "_fc.bias"}
    assert not missing.unexpected_keys
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = theirs.extract_features(x).mean((2, 3))
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_inception_is_the_published_one():
    network = FidInception()
    # Inception-v3 without its classifier: 21,768,352 in Keras, which has no norm weights, and
    # half of its 34,432 norm statistics for those.
    assert sum(p.numel() for p in network.parameters()) == 21_768_352 + 34_432 // 2
    names = network.state_dict()
    for name, shape in {
        "Conv2d_4a_3x3.conv.weight": (192, 80, 3, 3),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_6b.branch7x7dbl_4.conv.weight": (128, 128, 7, 1),
        "Mixed_6e.branch7x7_2.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.bn.running_var": (192,),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
    }.items():
        assert tuple(names[name].shape) == shape
    assert len(names) == 94 * 6  # 94 convolutions: a weight and five of their norm


def test_inception_pools_as_the_fid_graph_does():
    """A constant image stays constant inside average pools only if padding is left out."""
    block = FidInception().Mixed_5b.eval()
    x = torch.ones(1, 192, 5, 5)
    with torch.no_grad():
        pooled = block(x)[:, -32:]
    torch.testing.assert_close(pooled, pooled[:, :, :1, :1].expand_as(pooled))
    last = FidInception().Mixed_7c.eval()
    y = torch.randn(1, 2048, 4, 4)
    with torch.no_grad():
        expected = last.branch_pool(torch.nn.functional.max_pool2d(y, 3, 1, 1))
        torch.testing.assert_close(last(y)[:, -192:], expected)


def test_inception_file(tmp_path):
    network = randomised(FidInception())
    weights = {
        **network.state_dict(),
        "fc.weight": torch.zeros(1008, 2048),
        "fc.bias": torch.zeros(1008),
    }
    torch.save(weights, tmp_path / "pt_inception.pth")
    loaded = load_features(tmp_path / "pt_inception.pth")
    images = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    features = extract_features(loaded, [images])
    assert features.shape == (2, 2048)
    x = torch.nn.functional.interpolate(images.float(), (299, 299), mode="bilinear")
    with torch.no_grad():
        torch.testing.assert_close(features, network(x / 127.5 - 1))


def test_vgg16(tmp_path):
    """The whole network, and the file of its convolutions alone."""
    network = VGG16()
    head = {"classifier.6.weight": torch.randn(10, 4096), "classifier.6.bias": torch.randn(10)}
    torch.save({**network.state_dict(), **head}, tmp_path / "vgg16.pth")
    loaded = load_features(tmp_path / "vgg16.pth")
    assert (loaded.name, loaded.features) == ("vgg16", 4096)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    features = extract_features(loaded, [images])
    assert features.shape == (2, 4096)
    assert (features >= 0).all()
    torch.testing.assert_close(
        loaded.logits(features),
        features @ head["classifier.6.weight"].T + head["classifier.6.bias"],
    )
    convolutions = {k: v.half() for k, v in network.state_dict().items() if "features" in k}
    torch.save(convolutions, tmp_path / "convolutions.pth")
    part = load_features(tmp_path / "convolutions.pth")
    assert (part.name, part.features) == ("vgg16-conv", 512)
    assert part.logits(torch.zeros(1, 512)) is None
    assert extract_features(part, [images]).shape == (2, 512)


class Scripted(torch.nn.Module):
    """As StyleGAN's authors publish theirs: uint8 in, features if asked to."""

    def __init__(self):
        super().__init__()
        self.output = torch.nn.Linear(3, 4)

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        features = x.float().mean((2, 3))
        return features if return_features else self.output(features)


class Wrong(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


def test_torchscript(tmp_path):
    torch.jit.script(Scripted()).save(tmp_path / "mine.pt")
    network = load_features(tmp_path / "mine.pt")
    assert (network.name, network.features) == ("mine", 3)
    assert str(network.preparation) == "8 bits a channel, resized by the network itself"
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    features = extract_features(network, [images])
    torch.testing.assert_close(features, images.float().mean((2, 3)))
    assert network.logits(features).shape == (4, 4)
    torch.jit.script(Wrong()).save(tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match=r"a TorchScript module that returns \(N, D\), got"):
        load_features(tmp_path / "wrong.pt")


def test_files_by_name_and_their_checksums(tmp_path, monkeypatch):
    monkeypatch.setenv("LDDGAN_CACHE", str(tmp_path))
    folder = tmp_path / "features"
    folder.mkdir()
    for name in KNOWN:
        (folder / KNOWN[name].file).write_bytes(b"other")
        with pytest.raises(ValueError, match=f"a file of SHA-256 {KNOWN[name].sha256}, got "):
            load_features(name)
    torch.save(EfficientNetLite0().state_dict(), tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    named = tmp_path / f"mine-{digest[:8]}.pth"
    (tmp_path / "w.pth").rename(named)
    assert load_features(named).name == "efficientnet-lite0"
    with open(named, "ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=f"a file of SHA-256 {digest[:8]}, got .*: fetch anew"):
        load_features(named)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (folder / KNOWN["efficientnet-lite0"].file).unlink()
    with pytest.raises(FileNotFoundError, match="needs the file efficientnet-lite0-57934424.pth"):
        load_features("efficientnet-lite0")


def test_grey_images_and_batches(tmp_path):
    torch.save(randomised(EfficientNetLite0()).half().state_dict(), tmp_path / "w.pth")
    network = load_features(tmp_path / "w.pth")
    grey = torch.randint(0, 256, (5, 1, 32, 32), dtype=torch.uint8)
    whole = extract_features(network, [grey])
    assert whole.shape == (5, 1280)
    assert whole.dtype == torch.float32
    parts = extract_features(network, grey.expand(-1, 3, -1, -1).split(2))
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError, match="load_features: path must be a file of weights"):
        load_features(tmp_path / "none.pth")
    (tmp_path / "broken.pth").write_bytes(b"junk")
    with pytest.raises(ValueError, match="weights of pt_inception-2015-12-05, VGG16 or .*broken"):
        load_features(tmp_path / "broken.pth")
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth with \['other.weight'\]"):
        load_features(tmp_path / "other.pth")
    torch.save({"_conv_stem.weight": torch.zeros(1)}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match="part.pth: Error"):
        load_features(tmp_path / "part.pth")
    torch.save(EfficientNetLite0().state_dict(), tmp_path / "w.pth")
    network = load_features(tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"images must be uint8 \(N, 1 or 3, H, W\), got torch.f"):
        network(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="images must be at least one batch"):
        extract_features(network, [])


def test_real_features_have_the_known_mean():
    """300 CIFAR-10 images against the statistics of all 50,000 (those with real weights)."""
    weights = shared_path("data/weights/efficientnet-lite0_fp16.pth")
    mosaic = Image.open(shared_path("data/cifar10/cifar10_data_batch_1.webp")).convert("RGB")
    known = np.load(shared_path("data/cifar10/train50k_effnetlite0_96px_stats.npz"))
    tiles = np.asarray(mosaic).reshape(100, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3)
    images = torch.from_numpy(tiles.reshape(-1, 3, 32, 32)[:300].copy())
    features = extract_features(load_features(weights), images.split(50)).double()
    error = (features.mean(0) - torch.from_numpy(known["mu"])).square()
    expected = torch.from_numpy(known["sigma"]).diagonal() / len(images)
    # The mean over 1,280 features of a chi-squared variable: 1, were they independent.
    assert 0.5 < (error / expected).mean() < 2
    spread = features.var(0) / (expected * len(images))
    assert 0.8 < spread.median() < 1.2


def test_weights_and_features_that_are_not_finite(tmp_path):
    weights = EfficientNetLite0().state_dict()
    weights["_conv_stem.weight"][0, 0, 0, 0] = float("nan")
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="path must be .* finite, got .*w.pth .*_conv_stem.weight"):
        load_features(tmp_path / "w.pth")
    weights = EfficientNetLite0().state_dict()
    weights["_bn0.running_var"] -= 9
    torch.save(weights, tmp_path / "w.pth")
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="network must be finite on all images, got NaN on image"):
        extract_features(load_features(tmp_path / "w.pth"), [images])
