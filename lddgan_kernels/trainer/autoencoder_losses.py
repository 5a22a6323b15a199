"""The losses of the autoencoder (Esser et al. 2021, "Taming transformers", equations 4 to 7)."""

from dataclasses import dataclass
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor

from lddgan_kernels.models.autoencoder import AutoencoderOutput
from lddgan_kernels.models.lpips import LPIPS, MIN_SIZE
from lddgan_kernels.models.patch_discriminator import PatchDiscriminator
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.meter import Metrics


@dataclass
class AutoencoderLoss:
    """L1 + LPIPS + codebook or KL term, and a patch GAN from a step on.

    Attributes:
        extra_weight: of `AutoencoderOutput.extra_loss`: 1 for a codebook, 1e-6 for KL.
        lpips: the perceptual distance; None: L1 stands alone.
        discriminator: None: no GAN.
        gan_start: the first step at which the GAN takes part.
        gan_weight: of the GAN term, times the adaptive weight.
    """

    extra_weight: float = 1.0
    lpips: LPIPS | None = None
    discriminator: PatchDiscriminator | None = None
    gan_start: int = 0
    gan_weight: float = 0.5

    def gan_at(self, step: int) -> bool:
        """Whether the GAN takes part at this step."""
        return self.discriminator is not None and step >= self.gan_start

    def autoencoder(
        self, images: Tensor, output: AutoencoderOutput, last_layer: Tensor, step: int
    ) -> tuple[Tensor, Metrics]:
        """The autoencoder's loss, a scalar, and its parts for the log.

        Args:
            images: (N, C, H, W) in [-1, 1], what `output` reconstructs.
            output: of the autoencoder, its graph intact.
            last_layer: the decoder's last weight, where the adaptive weight is measured.
            step: counted from 0.
        """
        reconstruction = output.reconstruction.float()
        metrics = {"l1": F.l1_loss(reconstruction, images), "extra": output.extra_loss}
        likelihood = metrics["l1"]
        if self.lpips is not None:
            metrics["lpips"] = self.lpips(images, reconstruction).mean()
            likelihood = likelihood + metrics["lpips"]
        loss = likelihood + self.extra_weight * output.extra_loss
        if self.discriminator is not None and self.gan_at(step):
            adversarial = -self.discriminator(reconstruction).float().mean()
            weight = self.gan_weight * adaptive_weight(likelihood, adversarial, last_layer)
            loss = loss + weight * adversarial
            metrics |= {"adversarial": adversarial, "adaptive_weight": weight}
        metrics["loss"] = loss
        return loss, {name: value.detach() for name, value in metrics.items()}

    def critic(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, Metrics]:
        """The discriminator's hinge loss on real and (detached) reconstructed images.

        Raises:
            ValueError: there is no discriminator.
        """
        if self.discriminator is None:
            raise ValueError("AutoencoderLoss: discriminator must be given for critic, got None")
        real = self.discriminator(images).float()
        fake = self.discriminator(reconstruction.detach().float()).float()
        loss = 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
        metrics = {"critic": loss, "logit_real": real.mean(), "logit_fake": fake.mean()}
        return loss, {name: value.detach() for name, value in metrics.items()}


def adaptive_weight(likelihood: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Ratio of the two losses' gradient norms at `last_layer`, at most 1e4 (their equation 7).

    It keeps the GAN as strong as the reconstruction at the image. Carries no gradient.
    """
    norms = [
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float().norm()
        for loss in (likelihood, adversarial)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4)


def load_lpips(config: Config) -> tuple[LPIPS | None, str | None]:
    """The perceptual distance that the configuration asks for; else None and a note why."""
    training, resolution = config.autoencoder_training, config.images.resolution
    reason = f"images of {resolution} px are under {MIN_SIZE} px"
    if resolution >= MIN_SIZE:
        reason = "no lpips_backbone is given"
        if training.lpips_backbone in ("vgg16", "alexnet"):
            try:
                return LPIPS.download(training.lpips_backbone), None
            except (URLError, OSError, RuntimeError) as error:
                reason = f"{training.lpips_backbone} could not be fetched ({error})"
        elif training.lpips_backbone is not None:
            if training.lpips_linear is None:
                raise ValueError(
                    "config: autoencoder_training.lpips_linear must be given beside a "
                    "lpips_backbone file, got None"
                )
            return LPIPS.from_files(training.lpips_backbone, training.lpips_linear), None
    return None, f"The autoencoder's L1 loss stands alone, without LPIPS: {reason}."
