"""The calls of python/direct.cpp: the same bits as the long way, None for what they leave to it."""

import pytest
import torch

from lddgan_kernels import _extension
from lddgan_kernels.diffusion import Schedule
from lddgan_kernels.ops import diffuse_pair, downsample2d, posterior_sample, upsample2d

pytestmark = pytest.mark.skipif(not _extension.is_loaded(), reason="the extension is not compiled")

SCHEDULE = Schedule(4)
SEEDS = torch.arange(3) - 7
T = torch.tensor([0, 3, 1])
OPS = {
    "posterior_sample": lambda x, backend: posterior_sample(
        x, x.detach() + 1, T, SCHEDULE, SEEDS, step=2, backend=backend
    ),
    "diffuse_pair": lambda x, backend: diffuse_pair(
        x.detach(), T, SCHEDULE, SEEDS, step=2, backend=backend
    ),
    "upsample2d": lambda x, backend: upsample2d(x, backend=backend),
    "downsample2d": lambda x, backend: downsample2d(x, backend=backend),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPS)
def test_the_same_as_the_long_way(name, dtype, layout):
    x = torch.randn(3, 4, 6, 10).to(dtype).to(memory_format=layout).requires_grad_()
    direct, long = (OPS[name](x, backend) for backend in (None, "cpu"))
    pairs = zip(direct, long, strict=True) if name == "diffuse_pair" else [(direct, long)]
    for ours, other in pairs:
        assert torch.equal(ours, other)
        assert ours.stride() == other.stride()
        assert ours.requires_grad == other.requires_grad
        if ours.requires_grad:
            grads = (torch.autograd.grad(out.float().square().sum(), x)[0] for out in (ours, other))
            assert torch.equal(*grads)


def test_what_is_left_to_the_long_way():
    module = _extension.module()
    s, x, taps = SCHEDULE, torch.randn(3, 4, 6, 10), torch.ones(4)
    tables = (
        s.posterior_mean_coef1,
        s.posterior_mean_coef2,
        s.posterior_log_variance_clipped,
    )

    def posterior(x0=x, x_next=x, t=T, seeds=SEEDS, noise=None, step=0):
        return module.posterior_sample(x0, x_next, t, *tables, seeds, noise, 2, step)

    def pair(x0=x, t=T, seeds=SEEDS, step=0):
        return module.diffuse_pair(
            x0, t, s.a_s, s.sigmas, s.a_s_cum, s.sigmas_cum, seeds, 3, 4, step
        )

    def resample(x=x, taps=taps, up=2, down=1, pad=(2, 1)):
        return module.upfirdn2d(x, taps, up, down, pad)

    assert None not in (posterior(), posterior(seeds=None, noise=x), pair(), resample())
    subclass = x.as_subclass(type("Sub", (torch.Tensor,), {}))
    strange = (x.double(), x[:, :, ::2], x[0], x.to("meta"), subclass, 1, None)
    for wrong in strange:
        assert posterior(x0=wrong) is None
        assert posterior(x_next=wrong) is None
        assert pair(x0=wrong) is None
        assert resample(x=wrong) is None
    for op in (posterior, pair):
        for wrong in (T.int(), T[:2], torch.arange(6)[::2], None, 1):
            assert op(t=wrong) is None
            assert op(seeds=wrong) is None
        for wrong in (-1, 2**32, 2**70, 1.0, "1"):
            assert op(step=wrong) is None
    assert posterior(noise=x) is None
    assert posterior(seeds=None, noise=x[:1]) is None
    assert pair(x0=x.clone().requires_grad_()) is None
    for wrong in (taps.double(), taps[:0], torch.ones(2, 2), taps.clone().requires_grad_(), None):
        assert resample(taps=wrong) is None
    for changes in ({"up": 0}, {"down": -1}, {"up": 1.0}, {"pad": (1,)}, {"pad": [2, 1]}):
        assert resample(**changes) is None
    assert resample(torch.ones(1, 1, 1, 1), up=1, pad=(0, 0)) is None
    assert resample(pad=(-1, 1)) is None
