"""A run of seconds, and its parts."""

import dataclasses

from lddgan_kernels.trainer import config_file
from lddgan_kernels.trainer.config import Config

TINY = """
limit = 24
[images]
resolution = 16
channels = 1
flip = false
[autoencoder]
base_channels = 4
num_blocks = 1
codebook_size = 16
latent_channels = 2
[autoencoder_training]
steps = 5
batch_size = 8
lr_per_sample = 1e-4
gan_start = 2
[diffusion]
num_steps = 2
[generator]
base_channels = 8
channel_multipliers = [1, 1]
num_blocks = 1
mapping_layers = 1
mapping_width = 16
z_dim = 4
[discriminator]
base_channels = 4
time_embedding = 8
[gan]
epochs = 3
batch_size = 8
r1_every = 3
lr_schedule = "cosine"
[log]
every = 2
sample_every = 4
checkpoint_every = 3
grid = 4
scored = 0
"""


def tiny(**changes) -> Config:
    """The tiny run with changes such as `gan={"epochs": 1}` or `seed=1`."""
    config = config_file.parse(TINY)
    for name, value in changes.items():
        if isinstance(value, dict):
            value = dataclasses.replace(getattr(config, name), **value)
        config = dataclasses.replace(config, **{name: value})
    return config
