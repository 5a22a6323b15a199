"""The libraries themselves, where they are: diffusers installed, ADM and EDM as clones.

LDDGAN_PUBLISHED_CODE names the folder of the clones, as for the benchmarks.
"""

import copy

import pytest
import torch

import lddgan_kernels
from benchmarks import patch as benchmark

NETWORKS = {
    "diffusers U-Net": ("ResnetBlock2D", "Upsample2D", "GroupNorm"),
    "diffusers autoencoder": ("ResnetBlock2D", "Upsample2D", "GroupNorm"),
    "ADM U-Net": ("ResBlock", "GroupNorm32", "Sequential"),
    "EDM U-Net": ("UNetBlock", "Conv2d", "GroupNorm"),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients(name, layout):
    made = benchmark.networks().get(name)
    if made is None:
        pytest.skip(f"{name} is not here: diffusers, or a clone in LDDGAN_PUBLISHED_CODE")
    torch.manual_seed(0)
    network, arguments = made()
    network.eval().to(memory_format=layout)
    benchmark.randomise(network)
    inputs = arguments()
    patched = copy.deepcopy(network)
    report = lddgan_kernels.patch(patched)
    assert not report.left
    kinds = {kind for _, kind, _ in report.replaced}
    assert set(NETWORKS[name]) <= kinds
    with torch.no_grad():
        out, expected = (benchmark.output(model, inputs) for model in (patched, network))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    grad, expected = (benchmark.gradient(model, inputs) for model in (patched, network))
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
