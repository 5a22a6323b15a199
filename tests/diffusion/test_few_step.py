import pytest
import torch

from lddgan_kernels.diffusion import STREAM_X_T, STREAM_Z, Schedule, sample
from lddgan_kernels.ops import posterior_sample, seeded_normal

SEEDS = torch.tensor([5, -1, 2**40, 0, 17])


def generator(x, t, z):
    """A stand-in without sums over the batch or its channels, so that every bit is its own."""
    return torch.tanh(x * 0.3 + z[:, :1, None, None] + t[:, None, None, None] * 0.1)


def draw(seeds=SEEDS, num_steps=4, **options):
    return sample(generator, Schedule(num_steps), (3, 6, 6), seeds, z_dim=7, **options)


def test_follows_algorithm_1():
    schedule = Schedule(2)
    x = seeded_normal((5, 3, 6, 6), SEEDS, STREAM_X_T)
    for i in (1, 0):
        t = torch.full((5,), i)
        x0 = generator(x, t, seeded_normal((5, 7), SEEDS, STREAM_Z, step=i))
        x = posterior_sample(x0, x, t, schedule, SEEDS, step=i)
    out = draw(num_steps=2)
    assert torch.equal(out, x)
    torch.testing.assert_close(out, x0)  # the last posterior is x_0 itself
    assert not out.requires_grad


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_seed_gives_its_image_at_any_batch_size(layout):
    batch = draw(memory_format=layout)
    assert batch.is_contiguous(memory_format=layout)
    assert torch.equal(batch, draw())
    for n in range(len(SEEDS)):
        assert torch.equal(draw(SEEDS[n : n + 1], memory_format=layout)[0], batch[n])
    assert len({tuple(image.flatten().tolist()) for image in batch}) == len(SEEDS)


def test_returns_its_path():
    out, path = draw(return_path=True)
    assert torch.equal(out, draw())
    assert len(path) == 4
    assert torch.equal(path[0][0], seeded_normal((5, 3, 6, 6), SEEDS, STREAM_X_T))
    for x, x0 in path:
        assert x.shape == x0.shape == out.shape
    torch.testing.assert_close(path[-1][1], out)  # the last posterior is x_0 itself


def test_parameters_get_no_graph_and_autocast_is_converted():
    layer = torch.nn.Conv2d(3, 3, 1)

    def module(x, t, z):
        return layer(x)

    with torch.autocast("cpu", torch.bfloat16):
        out = sample(module, Schedule(2), (3, 6, 6), SEEDS, z_dim=7)
    assert out.dtype == torch.float32
    assert not out.requires_grad
    out = sample(generator, Schedule(2), (3, 6, 6), SEEDS, z_dim=7, dtype=torch.bfloat16)
    assert out.dtype == torch.bfloat16


def test_one_step_is_a_call_of_the_generator():
    """A one-shot GAN: x_0 of x_1, of which nothing is left, and nothing added."""
    schedule = Schedule(1)
    assert schedule.posterior_mean_coef1.tolist() == [1]
    assert schedule.posterior_mean_coef2.tolist() == [0]
    assert schedule.a_s_cum[1] < 0.01
    x = seeded_normal((5, 3, 6, 6), SEEDS, STREAM_X_T)
    x0 = generator(x, torch.zeros(5, dtype=torch.int64), seeded_normal((5, 7), SEEDS, STREAM_Z))
    assert draw(num_steps=1).equal(x0)


def test_an_empty_batch():
    assert draw(SEEDS[:0]).shape == (0, 3, 6, 6)
