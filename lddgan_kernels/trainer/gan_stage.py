"""The diffusion GAN. One step updates the discriminator, then the generator."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lddgan_kernels.diffusion import STREAM_Z, Schedule, draw_seeds
from lddgan_kernels.ops import diffuse_pair, posterior_sample, seeded_normal
from lddgan_kernels.trainer import distributed, gan_losses, networks
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.ema import Ema
from lddgan_kernels.trainer.optimizers import adam, learning_rate, set_rate
from lddgan_kernels.trainer.precision import autocast
from lddgan_kernels.trainer.stage import Batches, step_seed


class GanStage:
    """Generator, discriminator, their optimizers and the average.

    All that is random in a step is a function of the configuration's seed, the step and the process
    only, so a run that was stopped goes on as if it had not been.

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
        self.schedule = Schedule(config.diffusion.num_steps, device)
        own = torch.Generator().manual_seed(step_seed(config.seed, "gan noise", 0))
        self.seeds = draw_seeds(self._part_size(), generator=own).to(device)

    def _part_size(self) -> int:
        """Images that go through a network at once."""
        return self.config.gan.batch_size // distributed.world_size() // self.config.gan.accumulate

    def step(self, index: int, batch: Tensor) -> dict[str, Tensor]:
        """Both updates on one batch of this process; returns losses, still on the device."""
        gan, accumulate = self.config.gan, self.config.gan.accumulate
        progress = index / self.steps
        for optimizer, base in (
            (self.discriminator_optimizer, gan.lr_discriminator),
            (self.generator_optimizer, gan.lr_generator),
        ):
            set_rate(optimizer, learning_rate(base, gan.lr_schedule, progress))
        batch = batch.to(self.device, non_blocking=True).contiguous(memory_format=self.layout)
        parts = batch.chunk(accumulate)
        torch.manual_seed(step_seed(self.config.seed, self.name, index))
        metrics: dict[str, Tensor] = {}

        def update(half: int, optimizer: Optimizer) -> None:
            for i, x0 in enumerate(parts):
                counter = 2 * (index * accumulate + i) + half
                loss, found = (
                    self._discriminator_loss(x0, counter, index % gan.r1_every == 0)
                    if half == 0
                    else self._generator_loss(x0, counter, progress)
                )
                (loss / accumulate).backward()
                for name, value in found.items():
                    value = value.detach() / accumulate
                    metrics[name] = metrics[name] + value if name in metrics else value
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        update(0, self.discriminator_optimizer)
        self.discriminator.requires_grad_(False)
        update(1, self.generator_optimizer)
        self.discriminator.requires_grad_(True)
        self.ema.update(index)
        return metrics

    def _discriminator_loss(
        self, x0: Tensor, counter: int, penalize: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        t, x_t, x_next = self._pair(x0, counter)
        penalize = penalize and self.config.gan.r1_gamma > 0
        x_t.requires_grad_(penalize)
        with torch.no_grad():
            fake = self._fake(x_next, t, counter)[1]
        with autocast(self.config, self.device):
            real_logit = self.discriminator(x_t, t, x_next)
            fake_logit = self.discriminator(fake, t, x_next)
        loss = gan_losses.discriminator_loss(real_logit, fake_logit)
        metrics = {
            "discriminator": loss,
            "logit_real": real_logit.float().mean(),
            "logit_fake": fake_logit.float().mean(),
        }
        if penalize:
            metrics["r1"] = gan_losses.gradient_penalty(real_logit, x_t)
            loss = loss + 0.5 * self.config.gan.r1_gamma * metrics["r1"]
        return loss, metrics

    def _generator_loss(
        self, x0: Tensor, counter: int, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        t, _, x_next = self._pair(x0, counter)
        predicted, fake = self._fake(x_next, t, counter)
        with autocast(self.config, self.device):
            logit = self.discriminator(fake, t, x_next)
        loss = gan_losses.generator_loss(logit)
        metrics = {
            "generator": loss,
            "reconstruction": gan_losses.reconstruction_loss(x0, predicted),
        }
        kind = self.config.gan.reconstruction
        if kind == "weighted":
            weight = gan_losses.reconstruction_weight(progress, self.config.gan.delta)
            loss = loss + weight * metrics["reconstruction"]
        elif kind == "constant":
            loss = loss + metrics["reconstruction"]
        return loss, metrics

    def _pair(self, x0: Tensor, counter: int) -> tuple[Tensor, Tensor, Tensor]:
        """(t, x_t, x_{t+1}), t drawn for each sample."""
        t = torch.randint(0, self.schedule.num_steps, (len(x0),), device=self.device)
        return t, *diffuse_pair(x0, t, self.schedule, self.seeds[: len(x0)], step=counter)

    def _fake(self, x_next: Tensor, t: Tensor, counter: int) -> tuple[Tensor, Tensor]:
        """(predicted x_0, x_t drawn from it)."""
        seeds = self.seeds[: len(x_next)]
        shape = (len(x_next), self.config.generator.z_dim)
        z = seeded_normal(shape, seeds, STREAM_Z, step=counter)
        with autocast(self.config, self.device):
            predicted = self.generator(x_next, t, z)
        predicted = predicted.float().contiguous(memory_format=self.layout)
        return predicted, posterior_sample(predicted, x_next, t, self.schedule, seeds, step=counter)

    def modules(self) -> dict[str, nn.Module]:
        """The networks by name."""
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "ema": self.ema.module,
        }

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        found: dict[str, Any] = {k: module.state_dict() for k, module in self.modules().items()}
        found["generator_optimizer"] = self.generator_optimizer.state_dict()
        found["discriminator_optimizer"] = self.discriminator_optimizer.state_dict()
        return found

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a `state`."""
        for name, module in self.modules().items():
            module.load_state_dict(state[name])
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
