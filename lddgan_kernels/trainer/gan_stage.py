"""The training of the diffusion GAN."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lddgan_kernels.diffusion import NO_LABEL, STREAM_Z, draw_seeds
from lddgan_kernels.ops import diffuse_pair, posterior_sample, seeded_normal
from lddgan_kernels.trainer import distributed, gan_losses, networks
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.ema import Ema
from lddgan_kernels.trainer.meter import Metrics
from lddgan_kernels.trainer.optimizers import adam, learning_rate, set_rate
from lddgan_kernels.trainer.precision import autocast
from lddgan_kernels.trainer.stage import Batches, step_seed


class GanStage:
    """Generator, discriminator, their optimizers and the average.

    All that is random in a step is a function of the configuration's seed and the step, so a run
    that was stopped goes on as if it had not been. Noise and t are drawn for the whole batch, of
    which each process takes its `distributed.own`; only dropout depends on the process.

    Args:
        config: what to train.
        batches: latents (or images), float32 in about [-1, 1], on any device.
        device: where to train.
    """

    name = "gan"

    def __init__(self, config: Config, batches: Batches, device: torch.device) -> None:
        torch.manual_seed(config.seed + 1)
        gan = config.gan
        self.config = config
        self.batches = batches
        self.device = device
        self.steps = gan.epochs * batches.steps_per_epoch
        self.batch_size = gan.batch_size
        self.layout = networks.layout(config)
        self.generator = networks.place(networks.build_generator(config), device, config)
        self.discriminator = networks.place(networks.build_discriminator(config), device, config)
        distributed.share([self.generator, self.discriminator])
        self.ema = Ema(self.generator, gan.ema_decay)
        self.generator_optimizer = adam(self.generator, gan.lr_generator)
        self.discriminator_optimizer = adam(self.discriminator, gan.lr_discriminator)
        self.schedule = networks.build_schedule(config, device)
        generator = torch.Generator().manual_seed(step_seed(config.seed, "gan noise", 0))
        self.part_size = gan.batch_size // gan.accumulate  # over all processes
        seeds = draw_seeds(self.part_size, generator=generator)
        self.seeds = distributed.own(seeds).to(device)

    def step(self, index: int, batch: Tensor, labels: Tensor | None = None) -> Metrics:
        """One iteration of the algorithm on a batch of this process: both networks' updates.

        The batch goes through in `accumulate` parts; each part of each half has noise of its own,
        numbered by the `step` of the seeded noise. Parts, and their noise, are those of the whole
        batch, whatever the number of processes. Labels (N,) are dropped at random, of a real and a
        drawn x_t alike.

        Returns:
            The losses' metrics, still on the device.
        """
        gan, progress = self.config.gan, index / self.steps
        self._set_rates(progress)
        all_t, all_kept = self._draw(index, labels is not None)
        batch = batch.to(self.device, non_blocking=True).contiguous(memory_format=self.layout)
        parts = list(enumerate(batch.chunk(gan.accumulate), index * gan.accumulate))
        given = self._labels(labels, all_kept)
        metrics: Metrics = {}

        # The discriminator learns to tell x_t from one drawn by way of the generator's x_0.
        penalize = gan.r1_gamma > 0 and index % gan.r1_every == 0
        for (i, x0), t, y in zip(parts, all_t[0], given[0], strict=True):
            x_t, x_next = self._diffuse(x0, t, 2 * i)
            with torch.no_grad():
                _, fake = self._denoise(x_next, t, 2 * i, *y)
            x_t.requires_grad_(penalize)
            with autocast(self.config, self.device):
                real_logit = self.discriminator(x_t, t, x_next, *y)
                fake_logit = self.discriminator(fake, t, x_next, *y)
            loss, part = gan_losses.discriminator_loss(
                gan, real_logit, fake_logit, x_t if penalize else None
            )
            self._backward(loss, part, metrics)
        self._update(self.discriminator_optimizer)

        # The generator learns to pass for real, and to meet x_0.
        self.discriminator.requires_grad_(False)
        for (i, x0), t, y in zip(parts, all_t[1], given[1], strict=True):
            _, x_next = self._diffuse(x0, t, 2 * i + 1)
            predicted, fake = self._denoise(x_next, t, 2 * i + 1, *y)
            with autocast(self.config, self.device):
                fake_logit = self.discriminator(fake, t, x_next, *y)
            loss, part = gan_losses.generator_loss(gan, fake_logit, x0, predicted, progress)
            self._backward(loss, part, metrics)
        self._update(self.generator_optimizer)
        self.discriminator.requires_grad_(True)

        self.ema.update(index)
        return metrics

    def _draw(self, index: int, labelled: bool) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """The t of each image, and whether its label is kept, by half of the step and part.

        Sets PyTorch's seed for the step.
        """
        seed, name, rank = self.config.seed, self.name, distributed.rank()
        torch.manual_seed(step_seed(seed, name, index))
        shape = (2, self.config.gan.accumulate, self.part_size)
        whole = torch.randint(0, self.schedule.num_steps, shape, device=self.device)
        kept = torch.rand(shape if labelled else (2, 0, 0), device=self.device)
        kept = kept >= self.config.gan.label_dropout
        if rank > 0:  # dropout is each process's own
            torch.manual_seed(step_seed(seed, name, index, rank))
        t, kept_labels = ([[distributed.own(x) for x in half] for half in y] for y in (whole, kept))
        return t, kept_labels

    def _labels(
        self, labels: Tensor | None, kept: list[list[Tensor]]
    ) -> list[list[tuple[Tensor, ...]]]:
        """The labels of each part, those that are not kept replaced, by half of the step."""
        accumulate = self.config.gan.accumulate
        if labels is None:
            return [[()] * accumulate] * 2
        parts = labels.to(self.device, non_blocking=True).chunk(accumulate)
        return [
            [(torch.where(k, y, NO_LABEL),) for k, y in zip(half, parts, strict=True)]
            for half in kept
        ]

    def _diffuse(self, x0: Tensor, t: Tensor, noise: int) -> tuple[Tensor, Tensor]:
        """(x_t, x_{t+1})."""
        return diffuse_pair(x0, t, self.schedule, self.seeds, step=noise)

    def _denoise(
        self, x_next: Tensor, t: Tensor, noise: int, *labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(predicted x_0, x_t drawn from it)."""
        shape = (len(x_next), self.config.generator.z_dim)
        z = seeded_normal(shape, self.seeds, STREAM_Z, step=noise)
        with autocast(self.config, self.device):
            predicted = self.generator(x_next, t, z, *labels)
        predicted = predicted.float().contiguous(memory_format=self.layout)
        x_t = posterior_sample(predicted, x_next, t, self.schedule, self.seeds, step=noise)
        return predicted, x_t

    def _backward(self, loss: Tensor, part: Metrics, metrics: Metrics) -> None:
        """Adds a part's gradients, and its metrics to those of the step."""
        accumulate = self.config.gan.accumulate
        (loss / accumulate).backward()
        for name, value in part.items():
            metrics[name] = metrics.get(name, 0.0) + value / accumulate

    def _update(self, optimizer: Optimizer) -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _set_rates(self, progress: float) -> None:
        gan = self.config.gan
        for optimizer, base in (
            (self.discriminator_optimizer, gan.lr_discriminator),
            (self.generator_optimizer, gan.lr_generator),
        ):
            set_rate(optimizer, learning_rate(base, gan.lr_schedule, progress))

    def modules(self) -> dict[str, nn.Module]:
        """The networks by name."""
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "ema": self.ema.module,
        }

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        return {
            **{name: module.state_dict() for name, module in self.modules().items()},
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a `state`."""
        for name, module in self.modules().items():
            module.load_state_dict(state[name])
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
