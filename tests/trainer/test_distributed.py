"""What two processes compute together, in two processes."""

import os
import socket

import torch
import torch.multiprocessing as mp

from lddgan_kernels.trainer import distributed
from lddgan_kernels.trainer.meter import Meter


def run(rank, port, results):
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
    }
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(run, (port, results), nprocs=2)
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
