import json
import sys
import types

import pytest
import torch

from lddgan_kernels.trainer import files, gan_losses, gan_stage, loop, report
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.log import RunLog
from lddgan_kernels.trainer.meter import Meter, NotFinite
from lddgan_kernels.trainer.network_files import load_system
from lddgan_kernels.trainer.run import train
from lddgan_kernels.trainer.stop import Interrupted
from tests.trainer.tiny import tiny


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder):
    """The log without what depends on time."""
    found = lines(folder)
    for line in found:
        for name in ("seconds", "images_per_second", "samples_per_second"):
            line.pop(name, None)
    return found


def weights(folder):
    return {
        name: files.load_weights(folder / "checkpoints" / f"{name}.safetensors")[0]
        for name in ("autoencoder", "generator")
    }


def same(a, b):
    return all(a[part][name].equal(b[part][name]) for part in a for name in a[part])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    train(tiny(), folder)
    return folder


def test_run_folder_has_everything(finished):
    kinds = [line["kind"] for line in lines(finished)]
    assert kinds[0] == "start"
    assert kinds[-1] == "summary"
    names = sorted(p.name for p in (finished / "samples").iterdir())
    assert names == [
        "interpolation.png",
        "neighbours.png",
        "path.png",
        "reconstruction.png",
        "step-0000004.png",
        "step-0000008.png",
        "step-0000009.png",
    ]
    steps = [line for line in lines(finished) if line["kind"] == "step"]
    assert {line["stage"] for line in steps} == {"autoencoder", "gan"}
    assert all(line["images_per_second"] > 0 for line in steps)
    penalized = [line["step"] for line in steps if "r1" in line]
    assert penalized == [2, 4, 8]  # steps 0, 3 and 6, read after an even number and every third
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png;base64") == 7
    names = {name for line in steps for name in line} - report.NOT_METRICS
    assert {"l1", "critic", "logit_real", "discriminator", "generator", "r1"} <= names
    assert page.count("<svg") == len(report.curves(steps))
    assert "<h2>Scores</h2>" in page
    assert "http" not in page.split("</style>")[1].replace("http://www.w3.org/2000/svg", "")


def test_latents_are_bounded_by_the_stored_scale(finished):
    autoencoder = weights(finished)["autoencoder"]
    facts = json.loads((finished / "latents.bin.json").read_text())
    assert autoencoder["latent_scale"].item() == pytest.approx(facts["abs_max"])


def test_same_seed_same_losses(finished, tmp_path):
    train(tiny(), tmp_path / "again")
    assert losses(tmp_path / "again") == losses(finished)
    assert same(weights(tmp_path / "again"), weights(finished))


def test_another_seed_other_losses(finished, tmp_path):
    train(tiny(seed=1, gan={"epochs": 1}), tmp_path / "other")
    first, second = (
        next(line["l1"] for line in losses(folder) if line["kind"] == "step")
        for folder in (tmp_path / "other", finished)
    )
    assert first != second


@pytest.mark.parametrize(("stage", "at"), [("autoencoder", 4), ("gan", 5)])
def test_a_killed_run_goes_on_bit_for_bit(finished, tmp_path, monkeypatch, stage, at):
    folder = tmp_path / "killed"
    step = loop.RunLog.step

    def kill(self, name, done, *rest):
        step(self, name, done, *rest)
        if (name, done) == (stage, at) or (name == stage and done > at):
            raise KeyboardInterrupt  # as kill -9: nothing is written after it

    monkeypatch.setattr(RunLog, "step", kill)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), folder)
    monkeypatch.undo()
    assert files.load_state(folder / "checkpoints" / "last.pt")["step"] == 3
    train(tiny(), folder, resume=True)
    assert same(weights(folder), weights(finished))
    wanted = [line for line in losses(finished) if line["kind"] == "step"]
    assert [line for line in losses(folder) if line["kind"] == "step"] == wanted


def test_a_stop_leaves_a_checkpoint_that_resumes(finished, tmp_path, monkeypatch):
    step = gan_stage.GanStage.step

    def ask(self, index, batch):
        if index == 3:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, index, batch)

    monkeypatch.setattr(gan_stage.GanStage, "step", ask)
    with pytest.raises(Interrupted, match="stopped at step 4 of 9 of stage gan"):
        train(tiny(), tmp_path / "stopped")
    monkeypatch.undo()
    assert files.load_state(tmp_path / "stopped/checkpoints/last.pt")["step"] == 4
    train(tiny(), tmp_path / "stopped", resume=True)
    assert same(weights(tmp_path / "stopped"), weights(finished))


def test_resuming_a_finished_run_changes_nothing(finished):
    before = weights(finished)
    train(tiny(), finished, resume=True)
    assert same(weights(finished), before)
    kinds = [line["kind"] for line in lines(finished)]
    assert kinds.count("summary") == 1
    assert kinds[-1] == "summary"


def test_nan_stops_and_the_last_good_checkpoint_stays(tmp_path, monkeypatch):
    real = gan_losses.non_saturating_generator
    calls = []

    def spoil(fake):
        calls.append(1)
        return real(fake) * (float("nan") if len(calls) == 5 else 1.0)

    monkeypatch.setattr(gan_losses, "non_saturating_generator", spoil)
    with pytest.raises(NotFinite, match="gan: generator is not finite at step 4; the last good "):
        train(tiny(), tmp_path / "nan")
    state = files.load_state(tmp_path / "nan/checkpoints/last.pt")
    assert (state["stage"], state["step"]) == ("gan", 3)
    assert all(v.isfinite().all() for v in state["state"]["generator"].values())


def test_spoilt_weights_are_not_saved(tmp_path, monkeypatch):
    update = gan_stage.Ema.update

    def spoil(self, count):
        update(self, count)
        if count == 5:
            self._average[0].fill_(float("inf"))

    monkeypatch.setattr(gan_stage.Ema, "update", spoil)
    with pytest.raises(NotFinite, match="gan: weights of ema are not finite at step 5"):
        train(tiny(), tmp_path / "inf")
    assert files.load_state(tmp_path / "inf/checkpoints/last.pt")["step"] == 3


def test_a_used_folder_is_refused(finished, tmp_path):
    with pytest.raises(FileExistsError, match="holds a run; --resume continues it"):
        train(tiny(), finished)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files"):
        train(tiny(), tmp_path)
    with pytest.raises(FileNotFoundError, match="needs a run, got none in"):
        train(tiny(), tmp_path / "new", resume=True)
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        train(tiny(seed=1), finished, resume=True)
    with pytest.raises(ValueError, match="autoencoder_training.steps: 5 -> 6"):
        train(tiny(autoencoder_training={"steps": 6}), finished, resume=True)


def test_bad_data_leaves_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be an existing folder"):
        train(tiny(data=str(tmp_path / "nothing")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("codec", ["none", "haar"])
def test_the_predecessors_train_with_the_same_loop(tmp_path, codec):
    kind = "wavelet" if codec == "haar" else "ncsnpp"
    config = tiny(codec=codec, gan={"epochs": 1}, generator={"kind": kind}, log={"grid": 2})
    summary = train(config, tmp_path / "run")
    assert summary["scores"] == {}
    system = load_system(RunFolder(tmp_path / "run").generator, "cpu")
    assert system(torch.arange(2)).shape == (2, 1, 16, 16)


def test_options_of_a_step(tmp_path):
    config = tiny(
        precision="bfloat16",
        channels_last=True,
        gan={"epochs": 1, "accumulate": 2, "reconstruction": "none"},
        diffusion={"num_steps": 1},
        autoencoder={"kl": True, "codebook_size": 0},
    )
    train(config, tmp_path / "run")
    assert all(v.isfinite().all() for v in weights(tmp_path / "run")["generator"].values())


def test_accumulation_sees_the_whole_batch():
    class Batches:
        steps_per_epoch = 1

    config = tiny(discriminator={"num_blocks": 3}, gan={"accumulate": 2, "epochs": 1})
    stage = gan_stage.GanStage(config, Batches(), torch.device("cpu"))
    seen = []
    real = stage._diffuse
    stage._diffuse = lambda x0, *rest: seen.append(x0) or real(x0, *rest)
    batch = torch.randn(8, 2, 8, 8).clamp(-1, 1)
    stage.step(0, batch)
    assert len(seen) == 4
    assert torch.cat(seen[:2]).equal(batch)
    assert torch.cat(seen[2:]).equal(batch)


def test_a_metric_that_a_loss_returns_is_seen_everywhere(tmp_path, monkeypatch, capsys):
    real = gan_losses.generator_loss
    scalars = set()

    def more(*args):
        loss, metrics = real(*args)
        return loss, metrics | {"brand_new": loss.detach()}

    class SummaryWriter:
        def __init__(self, folder):
            pass

        def add_scalar(self, name, value, step):
            scalars.add(name)

        def close(self):
            pass

    tensorboard = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard)
    monkeypatch.setattr(gan_losses, "generator_loss", more)
    train(tiny(gan={"epochs": 1}, log={"tensorboard": True}), tmp_path / "run")
    last = [line for line in lines(tmp_path / "run") if line["kind"] == "step"][-1]
    assert last["brand_new"] > 0
    assert "brand_new" in capsys.readouterr().out
    assert ">Brand new</text>" in (tmp_path / "run/report.html").read_text()
    assert "gan/brand_new" in scalars


def test_meter_means_and_first_bad_step():
    meter = Meter()
    for step in range(4):
        metrics = {"a": torch.tensor(float(step))}
        if step % 2 == 0:
            metrics["b"] = torch.tensor(2.0 * step)
        meter.add(step, metrics)
    assert meter.read("x") == {"a": 1.5, "b": 2.0}
    assert meter.read("x") == {}
    meter.add(4, {"a": torch.tensor(1.0), "b": torch.tensor(1.0)})
    meter.add(5, {"a": torch.tensor(1.0), "b": torch.tensor(float("inf"))})
    meter.add(6, {"a": torch.tensor(float("nan")), "b": torch.tensor(1.0)})
    with pytest.raises(NotFinite, match="x: b is not finite at step 5"):
        meter.read("x")
