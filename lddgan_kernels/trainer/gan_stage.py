"""The training of the diffusion GAN."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lddgan_kernels.diffusion import STREAM_POSTERIOR, STREAM_Z, draw_seeds
from lddgan_kernels.ops import diffuse_pair, posterior_sample, seeded_normal
from lddgan_kernels.trainer import distributed, gan_losses, networks
from lddgan_kernels.trainer.captured_step import CapturedStep
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.ema import Ema
from lddgan_kernels.trainer.label_dropping import drop_labels
from lddgan_kernels.trainer.meter import Metrics
from lddgan_kernels.trainer.optimizers import adam, learning_rate, restore, set_rate
from lddgan_kernels.trainer.precision import autocast
from lddgan_kernels.trainer.stage import Batches, step_seed


class Drawn(NamedTuple):
    """What one half of a step draws for a part of the batch."""

    x0: Tensor
    x_t: Tensor
    x_next: Tensor
    t: Tensor
    z: Tensor
    noise: Tensor  # of the posterior
    labels: Tensor  # all of them of no class where there are no classes


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
        optimizers = self.discriminator_optimizer, self.generator_optimizer
        self._captured = CapturedStep(self._learn, optimizers, config, device)

    def step(self, index: int, batch: Tensor, labels: Tensor | None = None) -> Metrics:
        """One iteration on a batch of this process: both networks' updates, and the average's.

        Labels (N,) come with the images of a run that learns classes.

        Returns:
            The losses' metrics, still on the device.
        """
        gan, progress = self.config.gan, index / self.steps
        self._set_rates(progress)
        penalize = gan.r1_gamma > 0 and index % gan.r1_every == 0
        drawn = [tensor for part in self._draw(index, batch, labels) for tensor in part]
        drawn.append(torch.full((), progress, device=self.device))
        metrics = self._captured(penalize, drawn)
        self.ema.update(index)
        return metrics

    def _learn(self, penalize: bool, tensors: Sequence[Tensor]) -> Metrics:
        """The algorithm: a step of the discriminator, then one of the generator.

        Whatever changes from step to step comes as a tensor, as on a GPU this runs twice, and from
        then on as the CUDA graphs of it, with R1 and without.

        Args:
            penalize: whether R1 is due.
            tensors: those of a `Drawn` for each half and part, then progress, 0..1.
        """
        gan, progress = self.config.gan, tensors[-1]
        width = len(Drawn._fields)
        parts = [Drawn(*tensors[i : i + width]) for i in range(0, len(tensors) - 1, width)]
        metrics: Metrics = {}

        # The discriminator learns to tell x_t from one drawn by way of the generator's x_0.
        for drawn in parts[: gan.accumulate]:
            with torch.no_grad():
                _, fake = self._denoise(drawn)
            x_t = drawn.x_t.detach().requires_grad_(penalize)
            with autocast(self.config, self.device):
                real_logit = self._judge(x_t, drawn)
                fake_logit = self._judge(fake, drawn)
            loss, part = gan_losses.discriminator_loss(
                gan, real_logit, fake_logit, x_t if penalize else None
            )
            self._backward(loss, part, metrics)
        self._update(self.discriminator_optimizer)

        # The generator learns to pass for real, and to meet x_0.
        self.discriminator.requires_grad_(False)
        for drawn in parts[gan.accumulate :]:
            predicted, fake = self._denoise(drawn)
            with autocast(self.config, self.device):
                fake_logit = self._judge(fake, drawn)
            loss, part = gan_losses.generator_loss(
                gan, fake_logit, drawn.x0, predicted, drawn.t, progress
            )
            self._backward(loss, part, metrics)
        self._update(self.generator_optimizer)
        self.discriminator.requires_grad_(True)
        return metrics

    def _draw(self, index: int, batch: Tensor, labels: Tensor | None) -> list[Drawn]:
        """What is random in a step: for each part of the discriminator's half, then the other's.

        The batch goes through in `accumulate` parts; each part of each half has noise of its own,
        numbered by the `step` of the seeded noise. Parts, and their noise, are those of the whole
        batch, whatever the number of processes. Labels are dropped at random.
        """
        accumulate = self.config.gan.accumulate
        batch = batch.to(self.device, non_blocking=True).contiguous(memory_format=self.layout)
        drawn = []
        for half, (all_t, all_y) in enumerate(self._draw_t(index, labels)):
            parts = zip(batch.chunk(accumulate), all_t, all_y, strict=True)
            for i, (x0, t, y) in enumerate(parts, index * accumulate):
                number = 2 * i + half
                x_t, x_next = self._diffuse(x0, t, number)
                shape = len(x0), self.config.generator.z_dim
                z = seeded_normal(shape, self.seeds, STREAM_Z, step=number)
                noise = seeded_normal(
                    x0.shape, self.seeds, STREAM_POSTERIOR, step=number, memory_format=self.layout
                )
                drawn.append(Drawn(x0, x_t, x_next, t, z, noise, y))
        return drawn

    def _draw_t(
        self, index: int, labels: Tensor | None
    ) -> Iterator[tuple[list[Tensor], Sequence[Tensor]]]:
        """The t and label of each image, by half of the step and part.

        Sets PyTorch's seed for the step.
        """
        seed, name, rank = self.config.seed, self.name, distributed.rank()
        torch.manual_seed(step_seed(seed, name, index))
        shape = (2, self.config.gan.accumulate, self.part_size)
        whole = torch.randint(0, self.schedule.num_steps, shape, device=self.device)
        accumulate, share = self.config.gan.accumulate, self.config.label_dropout
        given = drop_labels(labels, (2, self.config.gan.batch_size), share, whole)
        if rank > 0:  # dropout is each process's own
            torch.manual_seed(step_seed(seed, name, index, rank))
        for half, y in zip(whole, given, strict=True):
            yield [distributed.own(t) for t in half], y.chunk(accumulate)

    def _diffuse(self, x0: Tensor, t: Tensor, noise: int) -> tuple[Tensor, Tensor]:
        """(x_t, x_{t+1})."""
        return diffuse_pair(x0, t, self.schedule, self.seeds, step=noise)

    def _denoise(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """(predicted x_0, x_t drawn from it)."""
        with autocast(self.config, self.device):
            predicted = self.generator(drawn.x_next, drawn.t, drawn.z, *self._labels(drawn))
        predicted = predicted.float().contiguous(memory_format=self.layout)
        x_t = posterior_sample(predicted, drawn.x_next, drawn.t, self.schedule, noise=drawn.noise)
        return predicted, x_t

    def _judge(self, x: Tensor, drawn: Drawn) -> Tensor:
        """The discriminator's logits of x as x_t."""
        logits: Tensor = self.discriminator(x, drawn.t, drawn.x_next, *self._labels(drawn))
        return logits

    def _labels(self, drawn: Drawn) -> tuple[Tensor, ...]:
        """What networks of classes take last."""
        return (drawn.labels,) if self.config.classes else ()

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
        restore(self.generator_optimizer, state["generator_optimizer"])
        restore(self.discriminator_optimizer, state["discriminator_optimizer"])
        self._captured.forget()
