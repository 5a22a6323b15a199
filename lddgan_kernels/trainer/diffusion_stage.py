"""The training of a network that predicts noise (Ho et al. 2020, DDPM)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels.diffusion import STREAM_DIFFUSE_T, draw_seeds
from lddgan_kernels.ops import seeded_normal
from lddgan_kernels.trainer import distributed, networks
from lddgan_kernels.trainer.captured_step import CapturedStep
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.ema import Ema
from lddgan_kernels.trainer.label_dropping import drop_labels
from lddgan_kernels.trainer.meter import Metrics
from lddgan_kernels.trainer.optimizers import adam, learning_rate, restore, set_rate
from lddgan_kernels.trainer.precision import autocast
from lddgan_kernels.trainer.stage import Batches, step_seed


class DiffusionStage:
    """The network, its optimizer and the average, as `GanStage` has them.

    Args:
        config: what to train.
        batches: latents (or images), float32 in about [-1, 1], on any device.
        device: where to train.
    """

    name = "ddpm"

    def __init__(self, config: Config, batches: Batches, device: torch.device) -> None:
        torch.manual_seed(config.seed + 1)
        training = config.ddpm
        self.config = config
        self.batches = batches
        self.device = device
        self.steps = training.epochs * batches.steps_per_epoch
        self.batch_size = training.batch_size
        self.layout = networks.layout(config)
        self.generator = networks.place(networks.build_generator(config), device, config)
        distributed.share([self.generator])
        self.ema = Ema(self.generator, training.ema_decay)
        self.optimizer = adam(self.generator, training.lr, betas=(0.9, 0.999))
        self.alphas, self.sigmas = networks.build_process(config).tables(device)
        generator = torch.Generator().manual_seed(step_seed(config.seed, "ddpm noise", 0))
        seeds = draw_seeds(self.batch_size, generator=generator)
        self.seeds = distributed.own(seeds).to(device)
        self._captured = CapturedStep(self._learn, [self.optimizer], config, device)

    def step(self, index: int, batch: Tensor, labels: Tensor | None = None) -> Metrics:
        """One update on a batch of this process, and the average's; labels (N,) as for `GanStage`.

        Returns:
            The loss, still on the device.
        """
        training = self.config.ddpm
        rate = learning_rate(training.lr, training.lr_schedule, index / self.steps)
        set_rate(self.optimizer, rate)
        x0 = batch.to(self.device, non_blocking=True).contiguous(memory_format=self.layout)
        t, y = self._draw_t(index, labels)
        noise = seeded_normal(
            x0.shape, self.seeds, STREAM_DIFFUSE_T, step=index, memory_format=self.layout
        )
        x_t = self.alphas[t][:, None, None, None] * x0 + self.sigmas[t][:, None, None, None] * noise
        metrics = self._captured(False, [x_t, t.float(), noise, y])
        self.ema.update(index)
        return metrics

    def _learn(self, _: bool, tensors: Sequence[Tensor]) -> Metrics:
        """L_simple, the mean of |n - n_predicted|^2 at uniform t (Ho et al. 2020, equation 14)."""
        x_t, t, noise, *labels = tensors
        labels = labels if self.config.classes else []
        with autocast(self.config, self.device):
            predicted = self.generator(x_t, t, x_t.new_empty(len(x_t), 0), *labels)
        loss = F.mse_loss(predicted.float(), noise)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"noise": loss.detach()}

    def _draw_t(self, index: int, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """The t and label of each image; sets PyTorch's seed for the step."""
        seed, rank = self.config.seed, distributed.rank()
        torch.manual_seed(step_seed(seed, self.name, index))
        t = torch.randint(0, len(self.alphas), (self.batch_size,), device=self.device)
        given = drop_labels(labels, (1, self.batch_size), self.config.label_dropout, t)[0]
        if rank > 0:  # dropout is each process's own
            torch.manual_seed(step_seed(seed, self.name, index, rank))
        return distributed.own(t), given

    def modules(self) -> dict[str, nn.Module]:
        """The networks by name."""
        return {"generator": self.generator, "ema": self.ema.module}

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        networks = {name: module.state_dict() for name, module in self.modules().items()}
        return {**networks, "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a `state`."""
        for name, module in self.modules().items():
            module.load_state_dict(state[name])
        restore(self.optimizer, state["optimizer"])
        self._captured.forget()
