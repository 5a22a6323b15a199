"""What a run begins with instead of new networks: an autoencoder, a generator, a discriminator."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lddgan_kernels.interop import load_diffusers, load_published
from lddgan_kernels.interop.autoencoder import FIRST, infer_options
from lddgan_kernels.interop.checkpoint import read_state_dict
from lddgan_kernels.interop.gan import (
    FIRST_OF_DISCRIMINATORS,
    FIRST_OF_GENERATORS,
    entries_of,
)
from lddgan_kernels.models import Autoencoder, AutoencoderOptions, Discriminator, Generator
from lddgan_kernels.trainer import files
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.network_files import load_autoencoder
from lddgan_kernels.trainer.published import read_options

ENOUGH = 0.5  # the share of a network's weights that must fit


def adopt_autoencoder(
    config: Config, folder: RunFolder, resume: bool
) -> tuple[Config, Autoencoder | None]:
    """The configuration with the structure of the autoencoder that it names, and that autoencoder.

    A run that goes on has it already: then its own is read.

    Raises:
        ValueError, FileNotFoundError: it is of another family or for other images, or not there.
    """
    start = config.start
    path = None if start.autoencoder is None else Path(start.autoencoder).expanduser()
    if path is None and start.init_from is not None and config.codec == "autoencoder":
        given = RunFolder(Path(start.init_from).expanduser())
        path = given.path if given.autoencoder.is_file() else None
    if path is None:
        return config, None
    if config.codec != "autoencoder" or config.method == "vae":
        raise ValueError(
            f"train: --autoencoder must be left out for codec {config.codec} and method "
            f"{config.method}, got {path}"
        )
    if resume and folder.autoencoder.exists():
        path = folder.autoencoder
    module = _at_resolution(_load(path, config), config.images.resolution)
    if module.config.image_channels != config.images.channels:
        raise ValueError(
            f"train: --autoencoder must be for images of {config.images.channels} channels, got "
            f"{module.config.image_channels} in {path}"
        )
    own = {f.name: getattr(module.config, f.name) for f in fields(AutoencoderOptions)}
    return replace(config, autoencoder=AutoencoderOptions(**own)), module


def _load(path: Path, config: Config) -> Autoencoder:
    """An autoencoder of whatever kind."""
    if not path.exists():
        raise FileNotFoundError(f"train: --autoencoder must be there, got {path}")
    if path.is_dir():
        run = RunFolder(path)
        if run.autoencoder.is_file():
            return load_autoencoder(run.autoencoder)[0]
        if (path / "config.json").is_file():
            return load_diffusers(path, config.images.resolution)
        raise ValueError(
            "train: --autoencoder must be a run with an autoencoder, a folder of diffusers with "
            f"config.json, or a file of weights, got {path}"
        )
    if _is_ours(path):
        return load_autoencoder(path)[0]
    if config.start.autoencoder_options is not None:
        options = read_options(Path(config.start.autoencoder_options))
    else:
        options = infer_options(read_state_dict(path, FIRST), config.images.resolution)
    network = "VQModelInterface" if "n_embed" in options else "AutoencoderKL"
    module = load_published(path, network, options)
    assert isinstance(module, Autoencoder)
    return module


def _is_ours(path: Path) -> bool:
    """Whether a run wrote the file."""
    if path.suffix != ".safetensors":
        return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return "config" in (file.metadata() or {})
    except SafetensorError:
        return False


def _at_resolution(module: Autoencoder, resolution: int) -> Autoencoder:
    """The same autoencoder for images of another side: attention stays at its levels."""
    old = module.config
    levels = range(len(old.channel_multipliers))
    has = [i for i in levels if old.resolution >> i in old.attention_resolutions]
    attention = tuple(resolution >> i for i in has)
    config = replace(old, resolution=resolution, attention_resolutions=attention)
    if config == old:
        return module
    other = Autoencoder(config).eval()
    other.load_state_dict(module.state_dict())
    return other


def initialize(config: Config, generator: nn.Module, discriminator: nn.Module | None) -> list[str]:
    """Fills the networks from `start.init_from`, as far as that fits; notes on what does not.

    Raises:
        ValueError, FileNotFoundError: there is nothing of the kind, or hardly anything fits; then
            neither network has changed.
    """
    assert config.start.init_from is not None
    path = Path(config.start.init_from).expanduser()
    plans = [(path, "generator", generator, *_generator_weights(path, generator))]
    notes = []
    if discriminator is not None:
        found = _discriminator_weights(config, path, discriminator)
        if found is None:
            notes.append(f"the discriminator starts fresh: there is none in {path}")
        else:
            plans.append((path, "discriminator", discriminator, *found))
    fresh = [_unfit(*plan) for plan in plans]
    for (_, name, module, weights, views), missing in zip(plans, fresh, strict=True):
        with torch.no_grad():
            for key, view in views.items():
                if key not in missing:
                    view.copy_(weights[key])
        kept = f"{name} from {path}: {len(views) - len(missing)} of {len(views)} weights"
        notes.append(kept + "".join(f"; {key} starts fresh: {why}" for key, why in missing.items()))
        del module
    return notes


Weights = tuple[Mapping[str, Tensor], dict[str, Tensor]]


def _generator_weights(path: Path, module: nn.Module) -> Weights:
    """(weights by name, where each of these names lies in the module)."""
    run = RunFolder(path)
    if path.is_dir() and not run.generator.is_file():
        raise ValueError(f"train: --init-from must be a run with a generator, got {path}")
    if path.is_dir() or _is_ours(path):
        return files.load_weights(run.generator if path.is_dir() else path)[0], module.state_dict()
    return read_state_dict(path, FIRST_OF_GENERATORS, "netD_dict"), _published_views(module)


def _discriminator_weights(config: Config, path: Path, module: nn.Module) -> Weights | None:
    given = config.start.init_discriminator
    if given is None and (path.is_dir() or _is_ours(path)):
        state = RunFolder(path if path.is_dir() else path.parents[1]).state
        loaded = files.load_state(state) if state.is_file() else {}
        weights = loaded.get("state", {}).get("discriminator")
        return None if weights is None else (weights, module.state_dict())
    weights = read_state_dict(given or path, FIRST_OF_DISCRIMINATORS, "netG_dict")
    if given is None and FIRST_OF_DISCRIMINATORS not in weights:
        return None
    return weights, _published_views(module)


def _published_views(module: nn.Module) -> dict[str, Tensor]:
    if not isinstance(module, Generator | Discriminator):
        raise ValueError(
            f"train: --init-from must be a run for a {type(module).__name__}, got a published file"
        )
    own = module.state_dict()
    views = {entry.published: entry.of(own) for entry in entries_of(module)}
    return views | {name: own[name] for name in own if name.endswith(CLASSES)}


# Of classes, which published networks have not.
CLASSES = ("mapping.classes.weight", "projection.weight")


def _unfit(
    path: Path,
    name: str,
    module: nn.Module,
    weights: Mapping[str, Tensor],
    views: dict[str, Tensor],
) -> dict[str, str]:
    """What of a network cannot be filled, and why."""
    missing = dict(_misfits(weights, views))
    total = sum(view.numel() for view in views.values())
    left = sum(views[key].numel() for key in missing)
    if left > (1 - ENOUGH) * total:
        first = "; ".join(f"{key}: {why}" for key, why in list(missing.items())[:3])
        raise ValueError(
            f"train: --init-from must hold a {name} like that of this run, a "
            f"{type(module).__name__}, got one of which {len(missing)} of {len(views)} weights do "
            f"not fit in {path}: {first}"
        )
    return missing


def _misfits(
    weights: Mapping[str, Tensor], views: Mapping[str, Tensor]
) -> Iterator[tuple[str, str]]:
    for key, view in views.items():
        value = weights.get(key)
        if value is None:
            yield key, "it is missing"
        elif value.shape != view.shape:
            yield key, f"{tuple(value.shape)} instead of {tuple(view.shape)}"
        elif not value.isfinite().all():
            yield key, "it holds inf or NaN"


def latent_scale_of(config: Config, autoencoder: Autoencoder) -> float | None:
    """The scale of the latents that the generator of `start.init_from` makes; None: it is measured.

    A generator goes on with the scale that it learned, if it learned with this autoencoder.
    """
    start = config.start
    if start.latent_scale is not None or start.init_from is None:
        return start.latent_scale
    run = RunFolder(Path(start.init_from).expanduser())
    if not run.autoencoder.is_file():
        return None
    theirs = load_autoencoder(run.autoencoder)[0].state_dict()
    own = autoencoder.state_dict()
    if theirs.keys() != own.keys() or not all(
        name == "latent_scale" or value.cpu().equal(theirs[name]) for name, value in own.items()
    ):
        return None
    return theirs["latent_scale"].item()
