"""The whole job: data, autoencoder, latents, GAN or DDPM, samples, scores, report."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lddgan_kernels._checks import check_device
from lddgan_kernels.data import ImageDataset, PixelCache, cache_pixels, weights_fingerprint
from lddgan_kernels.metrics import FeatureNetwork
from lddgan_kernels.models import Autoencoder
from lddgan_kernels.trainer import config_file, distributed, networks
from lddgan_kernels.trainer.autoencoder_losses import load_lpips
from lddgan_kernels.trainer.autoencoder_stage import AutoencoderStage
from lddgan_kernels.trainer.batches import (
    ImageBatches,
    LatentBatches,
    open_dataset,
    resolve_classes,
)
from lddgan_kernels.trainer.checkpoint import Checkpoint
from lddgan_kernels.trainer.closer_look import interpolations, neighbours
from lddgan_kernels.trainer.codec import PixelCodec
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.diffusion_stage import DiffusionStage
from lddgan_kernels.trainer.environment import command_line, environment
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.gan_stage import GanStage
from lddgan_kernels.trainer.latents import encode_dataset
from lddgan_kernels.trainer.log import RunLog
from lddgan_kernels.trainer.loop import run_stage
from lddgan_kernels.trainer.network_files import (
    autoencoder_fingerprint,
    load_autoencoder,
    save_autoencoder,
    save_generator,
)
from lddgan_kernels.trainer.pictures import grid, reconstructions, save_png
from lddgan_kernels.trainer.precision import resolve
from lddgan_kernels.trainer.pretrained import adopt_autoencoder, initialize, latent_scale_of
from lddgan_kernels.trainer.report import write_report
from lddgan_kernels.trainer.scoring import DECIDES, Scorer, load_network
from lddgan_kernels.trainer.stage import Batches
from lddgan_kernels.trainer.stop import Interrupted, StopRequest
from lddgan_kernels.trainer.summary import summarize
from lddgan_kernels.trainer.system import System

PATHS_SHOWN = 4


@dataclass
class Run:
    """What every part of the job needs."""

    config: Config
    folder: RunFolder
    checkpoint: Checkpoint
    log: RunLog
    stop: StopRequest
    device: torch.device
    dataset: ImageDataset | PixelCache
    network: FeatureNetwork | None
    """What scores while it trains."""
    autoencoder: Autoencoder | None
    """That of another, which is not trained again."""

    def check_stop(self) -> None:
        """Raises Interrupted in all processes where one was asked to stop."""
        if distributed.any_process(self.stop.asked, self.device):
            raise Interrupted("stopped between two stages")

    def report(self) -> None:
        """Writes the report, by rank 0."""
        if distributed.rank() == 0:
            write_report(self.folder)


def train(
    config: Config, out: Path, *, resume: bool = False, device: str = "cpu"
) -> dict[str, Any] | None:
    """Trains a system from images to samples in the folder `out`; returns the summary.

    Returns:
        The last line of the log; None in processes other than the first.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: the configuration, the data or `out` do not
            fit. OSError: the disk is full. NotFinite: a loss is NaN or infinite. Interrupted: a
            stop was asked for, and the checkpoint is written.
    """
    check_device("train", device)
    with distributed.processes(device) as mine, StopRequest() as stop:
        folder = RunFolder(out)
        config, autoencoder = adopt_autoencoder(config, folder, resume)
        networks.validate(config)
        _check_batches(config)
        network = load_network(config) if distributed.rank() == 0 else None
        dataset = cache_pixels(open_dataset(config), workers=config.images.workers)
        config, precision = resolve(resolve_classes(config, dataset), mine)
        if config.start.init_from is not None and not resume:
            initialize(config, *_new_networks(config))  # what cannot be is told before any work
        asked = config
        if resume:
            config = folder.going_on(config)
        try:
            checkpoint = _begin(folder, config, resume, dataset, mine)
            log = RunLog(folder, checkpoint.seconds, checkpoint.log_size, config.log.tensorboard)
        except BaseException:
            folder.release()
            raise
        try:
            log.say(f"{len(dataset)} images of {dataset.name}; run folder {out}")
            log.write(
                "start",
                images=len(dataset),
                data=dataset.name,
                precision=config.precision,
                environment=environment(mine),
                command=command_line(),
            )
            log.say(precision)
            log.write("note", text=precision)
            if config.labels:
                log.say(f"{config.classes} classes")
            if config != asked:
                kept = "; ".join(f"{n} {b}" for n, _, b in config_file.differences(asked, config))
                log.say(f"a run can be made longer, not shorter; it keeps {kept}")
            run = Run(config, folder, checkpoint, log, stop, mine, dataset, network, autoencoder)
            return _train(run)
        finally:
            log.close()
            folder.release()


def _begin(
    folder: RunFolder,
    config: Config,
    resume: bool,
    dataset: ImageDataset | PixelCache,
    device: torch.device,
) -> Checkpoint:
    """Takes the folder, and what the run in it goes on from."""
    checkpoint = Checkpoint(folder.state, device)
    if resume:
        checkpoint.load()
        facts = checkpoint.facts
        if "config" in facts:
            folder.check_change(config_file.parse(facts["config"], str(checkpoint.path)), config)
        for kind, found in _data_facts(config, dataset).items():
            if facts.get(kind, found) != found:
                raise ValueError(
                    f"train: --resume must find the {kind} that the run began with, got others in "
                    f"{config.data or 'the embedded digits'}"
                )
        if checkpoint.stage in ("gan", "ddpm") and config.codec == "autoencoder":
            _check_autoencoder(folder, facts)
    folder.begin(config, resume)
    distributed.wait()
    checkpoint.writes = {"config": config_file.dump(config), **_data_facts(config, dataset)}
    return checkpoint


def _data_facts(config: Config, dataset: ImageDataset | PixelCache) -> dict[str, str]:
    """What tells the run's data from any other."""
    facts = {"pictures": dataset.identity}
    if config.labels and dataset.labels is not None:
        facts["labels"] = hashlib.sha256(dataset.labels.numpy().tobytes()).hexdigest()[:16]
    return facts


def _check_autoencoder(folder: RunFolder, facts: dict[str, Any]) -> None:
    """What is in the checkpoint goes on with the autoencoder that it began with, or not at all."""
    if not folder.autoencoder.exists():
        raise FileNotFoundError(
            f"train: --resume needs the autoencoder of the network in {folder.state}, got none at "
            f"{folder.autoencoder}"
        )
    found = autoencoder_fingerprint(load_autoencoder(folder.autoencoder)[0])
    if facts.get("autoencoder", found) != found:
        raise ValueError(
            f"train: --resume must find the autoencoder of the network in {folder.state} "
            f"({facts['autoencoder']}), got another in {folder.autoencoder} ({found})"
        )


def _new_networks(config: Config) -> tuple[torch.nn.Module, torch.nn.Module | None]:
    """Generator and discriminator of a run; the latter of GANs alone."""
    generator = networks.build_generator(config)
    return generator, networks.build_discriminator(config) if config.method == "gan" else None


def _check_batches(config: Config) -> None:
    world = distributed.world_size()
    for name, size, parts in (
        ("autoencoder_training", config.autoencoder_training.batch_size, world),
        ("gan", config.gan.batch_size, world * config.gan.accumulate),
        ("ddpm", config.ddpm.batch_size, world),
    ):
        if size % parts:
            raise ValueError(
                f"config: {name}.batch_size must be a multiple of {parts} (processes times "
                f"accumulate), got {size}"
            )


def _train(run: Run) -> dict[str, Any] | None:
    config, log = run.config, run.log
    autoencoder = None
    batches: Batches
    if config.codec == "autoencoder":
        autoencoder = train_autoencoder(run)
        run.check_stop()
        if config.method == "vae":
            codec = networks.build_codec(config, autoencoder)
            return _finish(run, System(config, autoencoder, codec))
        known = latent_scale_of(config, autoencoder)
        cache = encode_dataset(config, run.folder, run.dataset, autoencoder, run.check_stop, known)
        scale = autoencoder.latent_scale.item()
        how = "given" if known else "measured"
        log.say(f"latent scale {scale:.4g}, {how}; {len(cache)} images")
        log.write("latents", latent_scale=scale, count=len(cache))
        codec = networks.build_codec(config, autoencoder)
        run.checkpoint.writes["autoencoder"] = autoencoder_fingerprint(autoencoder)
        labels = run.dataset.labels if config.labels else None
        batches = LatentBatches(cache, scale, config, labels)
    else:
        codec = networks.build_codec(config, None)
        size = config.training.batch_size
        batches = ImageBatches(run.dataset, config, size, codec, run.device, config.labels)
    kind = DiffusionStage if config.method == "ddpm" else GanStage
    stage = kind(config, batches, run.device)
    if config.start.init_from is not None and run.checkpoint.stage != stage.name:
        for found in initialize(config, stage.generator, getattr(stage, "discriminator", None)):
            log.say(found)
            log.write("note", text=found)
        stage.ema.module.load_state_dict(stage.generator.state_dict())
    system = System(config, stage.ema.module, codec)

    def picture(step: int) -> None:
        if distributed.rank() == 0:
            _draw(run, system, step)
            save_generator(config, run.folder.generator, stage.ema.module, autoencoder)
            write_report(run.folder)

    scorer = Scorer(config, system, run.dataset, run.folder, run.network)

    def score(step: int) -> None:
        if distributed.rank() == 0:
            before, found = log.best(scorer.name, DECIDES), scorer()
            if found[DECIDES] < before:
                save_generator(config, run.folder.best, stage.ema.module, autoencoder)
            log.scores(step, step * stage.batch_size, scorer.name, found)

    scored = score if config.log.score_every else None
    note = scorer.note() if scored else None
    if note:
        log.say(note)
        log.write("note", text=note)
    run_stage(stage, run.checkpoint, log, run.stop, picture, scored)
    return _finish(run, system)


def _draw(run: Run, system: System, step: int) -> None:
    """The samples after so many steps, and how some of them became: a VAE's in one go."""
    seeds, folder = torch.arange(run.config.log.grid), run.folder.samples
    save_png(folder / f"step-{step:07d}.png", grid(system(seeds)))
    if system.config.method != "vae":
        path = system.path(seeds[:PATHS_SHOWN])
        save_png(folder / "path.png", grid(path.transpose(0, 1).flatten(0, 1), columns=len(path)))


def _finish(run: Run, system: System) -> dict[str, Any] | None:
    """The summary, written; None in processes other than the first."""
    run.check_stop()
    if distributed.rank() > 0:
        distributed.wait()
        return None
    save_png(run.folder.samples / "neighbours.png", neighbours(system, run.dataset))
    if run.config.method == "gan":
        save_png(run.folder.samples / "interpolation.png", interpolations(system))
    summary = summarize(run.config, system, run.dataset)
    run.log.write("summary", **summary)
    write_report(run.folder)
    distributed.wait()
    return summary


def train_autoencoder(run: Run) -> Autoencoder:
    """The trained autoencoder, or that of before where the run folder holds it."""
    config, folder = run.config, run.folder
    if folder.autoencoder.exists():
        return load_autoencoder(folder.autoencoder)[0].to(run.device)
    if run.autoencoder is not None:
        module = networks.place(run.autoencoder, run.device, config)
        found = weights_fingerprint(module)
        told = f"autoencoder of {config.start.autoencoder or config.start.init_from} ({found})"
        run.log.say(told)
        run.log.write("note", text=told)
        save_autoencoder(config, folder, module)
        return module
    lpips, note = load_lpips(config)
    if note:
        run.log.say(note)
        run.log.write("note", text=note)
    batches = ImageBatches(run.dataset, config, config.autoencoder_training.batch_size)
    stage = AutoencoderStage(config, batches, run.device, lpips)
    some = torch.stack([run.dataset[i] for i in range(min(32, len(run.dataset)))])
    images = (some.float() / 127.5 - 1).to(run.device, memory_format=stage.layout)

    def draw(step: int) -> None:
        if distributed.rank() == 0:
            stage.model.eval()
            picture = reconstructions(images, lambda x: stage.model(x).reconstruction)
            save_png(folder.samples / "reconstruction.png", picture)
            if config.method == "vae":
                _draw(run, System(config, stage.model, PixelCodec()), step)
            stage.model.train()
            write_report(folder)

    run_stage(stage, run.checkpoint, run.log, run.stop, draw)
    save_autoencoder(config, folder, stage.model)
    return stage.model
