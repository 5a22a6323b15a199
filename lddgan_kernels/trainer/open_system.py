"""The system that a command's options name: of a run, a checkpoint or published weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lddgan_kernels.diffusion import SamplerName
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.network_files import load_system
from lddgan_kernels.trainer.published import published_system, read_options
from lddgan_kernels.trainer.system import System


@dataclass(frozen=True)
class SystemOptions:
    """Where a system comes from."""

    run: Path | None = None
    """The run folder."""
    checkpoint: Path | None = None
    """Or a generator.safetensors or best.safetensors; its autoencoder lies beside it."""
    published: Path | None = None
    """Or a checkpoint of the published DDGAN, WDDGAN or LDDGAN code."""
    network: Literal["NCSNpp", "WaveletNCSNpp"] = "NCSNpp"
    """The published generator."""
    options: Path | None = None
    """Its published options, as .json or .toml: num_channels, ch_mult, num_timesteps, ..."""
    autoencoder: Path | None = None
    """The published autoencoder of an LDDGAN; the options then hold its scale_factor."""
    autoencoder_options: Path | None = None
    """Its published options (`model.params`), as .json or .toml: embed_dim, ddconfig, ..."""

    sampler: SamplerName | None = None
    """Of a DDPM: ddpm, ddim, heun or dpm++; its run's own by default."""
    steps: int | None = None
    """Of the sampler."""

    guidance: float = 0.0
    """How strongly each step is guided by the class: w of (1 + w) x_class - w x_none."""

    def named(self) -> Path | None:
        """The one that is given; None: none is."""
        return self.run or self.checkpoint or self.published


def open_system(command: str, options: SystemOptions, device: str) -> System:
    """The system that the options name.

    Raises:
        ValueError: not just one is named, or what goes with it is not given; as what loads it.
    """
    sources = (options.run, options.checkpoint, options.published)
    if sum(source is not None for source in sources) != 1:
        raise ValueError(f"{command}: one of --run, --checkpoint and --published must be given")
    how: dict[str, Any] = {"sampler": options.sampler, "steps": options.steps}
    how["guidance"] = options.guidance
    if options.run is not None:
        return load_system(RunFolder(options.run).generator, device, **how)
    if options.checkpoint is not None:
        return load_system(options.checkpoint, device, **how)
    assert options.published is not None
    if options.sampler is not None or options.steps is not None or options.guidance:
        raise ValueError(
            f"{command}: --sampler, --steps and --guidance must be left out with --published"
        )
    if options.options is None:
        raise ValueError(f"{command}: --options must be given with --published")
    autoencoder = None
    if options.autoencoder is not None:
        if options.autoencoder_options is None:
            raise ValueError(f"{command}: --autoencoder-options must be given with --autoencoder")
        autoencoder = options.autoencoder, read_options(options.autoencoder_options)
    return published_system(
        options.published, options.network, read_options(options.options), device, autoencoder
    )
