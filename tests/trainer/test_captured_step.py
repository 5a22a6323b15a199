"""The GAN's step as a CUDA graph, and what lets a checkpoint move between devices."""

import copy

import pytest
import torch

from lddgan_kernels.trainer import gan_losses, networks, optimizers
from lddgan_kernels.trainer.gan_stage import GanStage
from tests.trainer.tiny import tiny

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
STEPS = 12


class Batches:
    steps_per_epoch = STEPS


def stage_of(**changes):
    gan = {"epochs": 1, "batch_size": 8, "r1_every": 3, "lr_schedule": "cosine"}
    config = tiny(gan=gan | changes.pop("gan", {}), **changes)
    return GanStage(config, Batches(), torch.device("cuda"))


def batches(stage):
    torch.manual_seed(0)
    shape = networks.latent_shape(stage.config)
    return torch.randn(STEPS, stage.batch_size, *shape).clamp(-1, 1)


@pytest.fixture
def exact(monkeypatch):
    """Convolutions in float32, added up in one order."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def train(stage, data, start=0):
    return [
        {name: value.item() for name, value in stage.step(i, data[i]).items()}
        for i in range(start, len(data))
    ]


def check_same(found, expected):
    """The metrics of steps; rounding grows from step to step."""
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-3)


def close(stage, other):
    for a, b in zip(stage.ema.module.parameters(), other.ema.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@needs_gpu
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gan": {"accumulate": 2}, "channels_last": True},
        {"generator": {"dropout": 0.1}},
        {"gan": {"r1_gamma": 0.0, "reconstruction": "none"}},
    ],
    ids=["plain", "parts", "dropout", "no R1"],
)
def test_replays_train_as_calls_do(exact, changes):
    by_graph, by_call = stage_of(**changes), stage_of(cuda_graphs=False, **changes)
    data = batches(by_graph)
    check_same(train(by_graph, data), train(by_call, data))
    close(by_graph, by_call)
    kinds = 1 if by_graph.config.gan.r1_gamma == 0 else 2
    assert len([graph for graph in by_graph._captured._graphs.values() if graph]) == kinds


@needs_gpu
def test_a_restored_stage_goes_on(exact):
    whole, first = stage_of(), stage_of()
    data = batches(whole)
    expected = train(whole, data)
    train(first, data[:7])
    state = copy.deepcopy(first.state())
    train(first, data, start=7)  # with graphs of its own
    first.restore(state)
    check_same(train(first, data, start=7), expected[7:])


@needs_gpu
def test_what_is_kept_of_weights_follows_a_replay(exact):
    stage = stage_of()
    train(stage, batches(stage)[:6])
    x = torch.randn(2, *batches(stage).shape[2:], device="cuda")
    t = torch.zeros(2, dtype=torch.long, device="cuda")
    z = torch.randn(2, stage.config.generator.z_dim, device="cuda")
    with torch.no_grad():
        stage.generator(x, t, z)  # keeps what it makes of the weights
    stage.step(7, batches(stage)[7])
    with torch.no_grad():
        found = stage.generator(x, t, z)
        torch.testing.assert_close(found, copy.deepcopy(stage.generator)(x, t, z))


@needs_gpu
def test_a_step_that_reads_values_back_is_named(monkeypatch):
    real = gan_losses.generator_loss

    def reads(*args):
        loss, metrics = real(*args)
        assert loss.item() != 0
        return loss, metrics

    monkeypatch.setattr(gan_losses, "generator_loss", reads)
    stage = stage_of(gan={"r1_gamma": 0.0})
    data = batches(stage)
    stage.step(0, data[0])
    with pytest.raises(RuntimeError, match=r"read values back .* \(cuda_graphs = false"):
        stage.step(1, data[1])


def test_a_checkpoint_brings_moments_but_not_options():
    def one(lr):
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 3)
        return module, optimizers.adam(module, lr)

    module, there = one(0.5)
    module(torch.ones(1, 3)).sum().backward()
    there.step()
    state = there.state_dict()
    state["param_groups"][0] |= {"lr": torch.tensor(0.5), "capturable": True}  # as on a GPU
    here = one(0.25)[1]
    optimizers.restore(here, state)
    assert here.param_groups[0]["lr"] == 0.25
    assert not here.param_groups[0]["capturable"]
    for mine, theirs in zip(here.state.values(), there.state.values(), strict=True):
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value)
