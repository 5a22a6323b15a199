"""The autoencoder's training: one step, and what the loop needs around it."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lddgan_kernels.models.autoencoder import Autoencoder
from lddgan_kernels.models.lpips import LPIPS, MIN_SIZE
from lddgan_kernels.models.patch_discriminator import PatchDiscriminator, patch_layers
from lddgan_kernels.trainer import distributed, networks
from lddgan_kernels.trainer.autoencoder_losses import AutoencoderLoss
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.meter import Metrics
from lddgan_kernels.trainer.optimizers import adam, learning_rate, restore, set_rate
from lddgan_kernels.trainer.precision import uses_bfloat16
from lddgan_kernels.trainer.stage import Batches, step_seed

BASE_LR = 4.5e-6  # a sample of the batch


def autoencoder_loss(
    model: Autoencoder,
    lpips: LPIPS | None,
    gan_start: int | None,
    gan_width: int = 64,
    kl_weight: float = 1e-6,
) -> AutoencoderLoss:
    """The loss that suits an autoencoder, its discriminator on the model's device.

    Args:
        model: says the kind of its extra term, and channels and size of its images.
        lpips: left out where the images are under 64 px.
        gan_start: the GAN's first step; None: no GAN. Images under 6 px have none either.
        gan_width: of the discriminator's first layer.
        kl_weight: of the KL term, where there is one.
    """
    config = model.config
    layers = patch_layers(config.resolution)
    discriminator = None
    if gan_start is not None and layers > 0:
        discriminator = PatchDiscriminator(config.image_channels, gan_width, layers)
        discriminator = discriminator.to(model.last_layer.device)
    return AutoencoderLoss(
        extra_weight=kl_weight if config.kl else 1.0,
        lpips=lpips if config.resolution >= MIN_SIZE else None,
        discriminator=discriminator,
        gan_start=gan_start or 0,
    )


def autoencoder_optimizers(
    model: Autoencoder, loss: AutoencoderLoss, lr: float
) -> tuple[Optimizer, Optimizer | None]:
    """Adam (0.5, 0.9) for the autoencoder and for the discriminator, if there is one.

    Args:
        lr: the paper has `BASE_LR` times the batch size.
    """
    critic = loss.discriminator
    return adam(model, lr), None if critic is None else adam(critic, lr)


def autoencoder_step(
    model: Autoencoder,
    loss: AutoencoderLoss,
    optimizers: tuple[Optimizer, Optimizer | None],
    batch: Tensor,
    step: int,
    autocast: torch.dtype | None = None,
    noise: Tensor | None = None,
) -> Metrics:
    """One update of the autoencoder and, where the GAN takes part, of the discriminator.

    Args:
        batch: images (N, C, H, W) in [-1, 1], float32, on the model's device.
        step: counted from 0.
        autocast: torch.bfloat16 for mixed precision; None: float32.
        noise: of a KL latent (see `Autoencoder.forward`).

    Returns:
        0-dim tensors on the device, for the log: `loss`, `l1`, `extra`, and where they take part
        `lpips`, `adversarial`, `adaptive_weight`, `critic`, `logit_real`, `logit_fake`.
    """
    optimizer, critic_optimizer = optimizers
    context = torch.autocast(batch.device.type, autocast, enabled=autocast is not None)
    if loss.discriminator is not None:
        loss.discriminator.requires_grad_(False)
    with context:
        output = model(batch, noise)
        total, metrics = loss.autoencoder(batch, output, model.last_layer, step)
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    optimizer.step()
    if loss.discriminator is not None and critic_optimizer is not None and loss.gan_at(step):
        loss.discriminator.requires_grad_(True)
        with context:
            critic, critic_metrics = loss.critic(batch, output.reconstruction)
        critic_optimizer.zero_grad(set_to_none=True)
        critic.backward()
        critic_optimizer.step()
        metrics |= critic_metrics
    return metrics


@torch.no_grad()
def initialize_codebook(model: Autoencoder, batch: Tensor) -> None:
    """Starts the codes, if there are any, from the latents of a first batch (as `batch` above).

    The latents are those of all processes, which must have the same random state.
    """
    if model.quantizer is not None:
        model.quantizer.initialize(distributed.gather(model.encode(batch)))


class AutoencoderStage:
    """The autoencoder's training as the loop runs it.

    Args:
        config: what to train.
        batches: images in [-1, 1].
        device: where to train.
        lpips: the perceptual distance, or None.
    """

    name = "autoencoder"

    def __init__(
        self, config: Config, batches: Batches, device: torch.device, lpips: LPIPS | None
    ) -> None:
        torch.manual_seed(config.seed)
        training = config.autoencoder_training
        self.config = config
        self.batches = batches
        self.device = device
        self.steps = training.steps
        self.batch_size = training.batch_size
        self.layout = networks.layout(config)
        self.autocast = torch.bfloat16 if uses_bfloat16(config, device) else None
        self.model = networks.place(networks.build_autoencoder(config), device, config)
        self.loss = autoencoder_loss(
            self.model, lpips, training.gan_start, kl_weight=training.kl_weight
        )
        if self.loss.lpips is not None:
            self.loss.lpips.to(device)
        distributed.share(self.modules().values())
        self.lr = training.lr_per_sample * training.batch_size
        self.optimizers = autoencoder_optimizers(self.model, self.loss, self.lr)

    def step(self, index: int, batch: Tensor) -> Metrics:
        """One update on a batch of this process; returns losses, still on the device."""
        schedule = self.config.autoencoder_training.lr_schedule
        for optimizer in self.optimizers:
            if optimizer is not None:
                set_rate(optimizer, learning_rate(self.lr, schedule, index / self.steps))
        batch = batch.to(self.device, non_blocking=True).contiguous(memory_format=self.layout)
        seed, rank = self.config.seed, distributed.rank()
        torch.manual_seed(step_seed(seed, self.name, index))
        if index == 0:
            initialize_codebook(self.model, batch)
            distributed.share([self.model])
        noise = self._draw_noise() if self.model.config.kl else None
        if rank > 0:  # dropout is each process's own
            torch.manual_seed(step_seed(seed, self.name, index, rank))
        return autoencoder_step(
            self.model, self.loss, self.optimizers, batch, index, self.autocast, noise
        )

    def _draw_noise(self) -> Tensor:
        """This process's part of a whole batch's noise of a KL latent."""
        shape = (self.batch_size, *networks.latent_shape(self.config))
        whole = torch.empty(shape, device=self.device, memory_format=self.layout).normal_()
        return distributed.own(whole)

    def modules(self) -> dict[str, torch.nn.Module]:
        """The networks by name."""
        modules: dict[str, torch.nn.Module] = {"autoencoder": self.model}
        if self.loss.discriminator is not None:
            modules["critic"] = self.loss.discriminator
        return modules

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        optimizers = [o.state_dict() for o in self.optimizers if o is not None]
        return {k: m.state_dict() for k, m in self.modules().items()} | {"optimizers": optimizers}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a `state`."""
        for name, module in self.modules().items():
            module.load_state_dict(state[name])
        present = [optimizer for optimizer in self.optimizers if optimizer is not None]
        for optimizer, saved in zip(present, state["optimizers"], strict=True):
            restore(optimizer, saved)
