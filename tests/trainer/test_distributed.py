"""What two processes compute together, in two processes."""

import json
import os
import socket
import time

import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image

from lddgan_kernels import encode
from lddgan_kernels.trainer import distributed, networks
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.meter import Meter
from lddgan_kernels.trainer.network_files import save_autoencoder
from lddgan_kernels.trainer.run import train
from tests.trainer.tiny import tiny


def join(rank, port):
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
    }


def spawn(function, *arguments):
    """Calls function(rank, port, *arguments) in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(function, (port, *arguments), nprocs=2)


def run(rank, port, results):
    join(rank, port)
    with distributed.processes("cpu") as device:
        torch.manual_seed(rank)
        net = torch.nn.Linear(3, 2)
        distributed.share([net])
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        distributed.average_gradients(optimizer)
        # Two backward passes a step, as with accumulation.
        x = torch.arange(12.0).view(4, 3) / 10
        for part in x[2 * rank : 2 * rank + 2]:
            (net(part).square().mean() / 2).backward()
        start = [p.detach().clone() for p in net.parameters()]
        optimizer.step()
        meter = Meter()
        meter.add(0, {"a": torch.tensor(float(rank))})
        results[rank] = {
            "start": start,
            "end": [p.detach() for p in net.parameters()],
            "mean": meter.read("x")["a"],
            "any": distributed.any_process(rank == 1, device),
        }


def test_gradients_and_losses_are_averaged():
    with mp.Manager() as manager:
        results = manager.dict()
        spawn(run, results)
        first, second = results[0], results[1]
    assert all(a.equal(b) for a, b in zip(first["start"], second["start"], strict=True))
    assert all(a.equal(b) for a, b in zip(first["end"], second["end"], strict=True))
    # As one process over the whole batch.
    net = torch.nn.Linear(3, 2)
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), first["start"], strict=True):
            parameter.copy_(value)
    x = torch.arange(12.0).view(4, 3) / 10
    net(x).square().mean().backward()
    for parameter, value in zip(net.parameters(), first["end"], strict=True):
        torch.testing.assert_close(parameter - parameter.grad, value)
    assert (first["mean"], first["any"]) == (0.5, True)


def meet_again(rank, port, results):
    join(rank, port)
    leave = torch.distributed.destroy_process_group
    if rank == 0:  # which holds the store, is the last to leave
        torch.distributed.destroy_process_group = lambda: (time.sleep(0.3), leave())
    means = []
    for i in range(3):
        with distributed.processes("cpu"):
            mean = torch.tensor(float(rank + i))
            distributed.average(mean)
            means.append(mean.item())
    results[rank] = means


def test_one_group_after_the_other():
    """Who is early with the next finds nothing of the last."""
    with mp.Manager() as manager:
        results = manager.dict()
        spawn(meet_again, results)
        assert results[0] == results[1] == [0.5, 1.5, 2.5]


def lose(rank, port, results):
    join(rank, port)
    try:
        with distributed.processes("cpu"):
            distributed.wait()
            if rank == 1:
                os._exit(0)
            distributed.average(torch.ones(4))
    except distributed.ProcessLost as error:
        results[rank] = str(error)


def test_a_process_that_is_gone_is_told_of():
    with mp.Manager() as manager:
        results = manager.dict()
        spawn(lose, results)
        assert results.keys() == [0]
        assert "another process of this run has ended or can't be reached" in results[0]


def test_whatever_is_done_together_tells_of_it(monkeypatch):
    def broken(*_):
        raise RuntimeError("connection reset by peer")

    for name in ("barrier", "all_reduce", "all_gather", "broadcast"):
        monkeypatch.setattr(torch.distributed, name, broken)
    for name, value in (("is_initialized", True), ("get_rank", 0), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    x, cpu = torch.ones(4), torch.device("cpu")
    for together in (
        distributed.wait,
        lambda: distributed.average(x),
        lambda: distributed.gather(x),
        lambda: distributed.any_process(True, cpu),
        lambda: distributed.share([torch.nn.Linear(2, 2)]),
    ):
        with pytest.raises(distributed.ProcessLost, match="reset by peer"):
            together()


# The patch GAN's batch norm sees a process's share, so there is none; R1 and weighted
# reconstruction there are, and parts whose shares hold whole groups of the batch's statistic.
COMMON = {
    "precision": "float32",
    "autoencoder_training": {"gan_start": None},
    "log": {"every": 1, "sample_every": 9},
}
RUNS = {
    "codebook": tiny(**COMMON),
    "kl, accumulated": tiny(
        autoencoder={"kl": True, "codebook_size": 0},
        gan={"batch_size": 16, "accumulate": 2},
        channels_last=True,
        **COMMON,
    ),
}


def train_one(rank, port, folder, name):
    torch.set_num_threads(1)
    join(rank, port)
    train(RUNS[name], folder)


def losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    other = ("kind", "stage", "seconds", "images_per_second")
    return [{k: v for k, v in x.items() if k not in other} for x in lines if x["kind"] == "step"]


@pytest.mark.parametrize("name", RUNS)
def test_one_process_and_two_have_the_same_losses(tmp_path, name):
    """Data, codebook, noise and t are those of the whole batch."""
    spawn(train_one, tmp_path / "two", name)
    train(RUNS[name], tmp_path / "one")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) > RUNS[name].autoencoder_training.steps
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-4)


def options(run, pictures):
    given = ["--run", run, "--data", pictures, "--device", "cpu", "--batch-size", 5]
    return [str(one) for one in given]


def encode_all(rank, port, run, pictures, out):
    torch.set_num_threads(1)
    join(rank, port)
    assert encode.main([*options(run, pictures), "--out", str(out)]) == 0


def test_one_process_and_two_encode_the_same(tmp_path):
    """To the bit, past a broken picture."""
    folder = RunFolder(tmp_path / "run")
    config = tiny(precision="float32")
    save_autoencoder(config, folder, networks.build_autoencoder(config))
    (tmp_path / "pictures").mkdir()
    for i, pixels in enumerate(torch.randint(0, 256, (23, 16, 16), dtype=torch.uint8)):
        Image.fromarray(pixels.numpy()).save(tmp_path / "pictures" / f"{i:02}.png")
    broken = tmp_path / "pictures" / "16.png"
    broken.write_bytes(broken.read_bytes()[:60])
    one, two = tmp_path / "one.bin", tmp_path / "two.bin"
    given = (folder.path, tmp_path / "pictures")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert encode.main([*options(*given), "--out", str(one)]) == 0
    torch.set_num_threads(threads)
    spawn(encode_all, *given, two)
    assert two.read_bytes() == one.read_bytes()
    facts = [json.loads(path.with_name(f"{path.name}.json").read_text()) for path in (one, two)]
    assert facts[0] == facts[1]
    assert facts[0]["stand_ins"] == [[16, 17]]
    spawn(encode_all, *given, two)  # it is there
