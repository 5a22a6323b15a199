"""A file of a run that was damaged is noticed; what is read is what was written."""

import itertools
import json
import random
import shutil

import pytest
import torch

from lddgan_kernels.data import LatentCache, weights_fingerprint
from lddgan_kernels.trainer import config_file, files
from lddgan_kernels.trainer.checkpoint import Checkpoint
from lddgan_kernels.trainer.network_files import load_autoencoder, load_system
from lddgan_kernels.trainer.run import train
from tests.faults.runs import ALL, CONFIG

FILES = {
    "checkpoints/generator.safetensors",
    "checkpoints/autoencoder.safetensors",
    "checkpoints/last.pt",
    "latents.bin",
    "latents.bin.json",
    "config.toml",
}
TRIES = 200 if ALL else 25


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage") / "run"
    train(CONFIG, folder)
    return folder


def read(folder, name):
    """All that a file says, by the functions that read it."""
    path = folder / name
    if name.endswith("generator.safetensors"):
        load_system(path, "cpu")
    if name.endswith("safetensors"):
        tensors, facts = files.load_weights(path)
        return {**tensors, **{name: torch.tensor(list(str(facts).encode()))}}
    if name.endswith(".pt"):
        checkpoint = Checkpoint(path)
        checkpoint.load()
        return _flat(files.load_state(path))
    if name.startswith("latents"):
        autoencoder = load_autoencoder(folder / "checkpoints/autoencoder.safetensors")[0]
        cache = LatentCache.open(folder / "latents.bin", weights_fingerprint(autoencoder))
        return {"latents": cache.latents.clone(), "scale": cache.abs_max}
    checkpoint = Checkpoint(folder / "checkpoints/last.pt")
    checkpoint.load()
    before, now = config_file.parse(checkpoint.facts["config"]), config_file.load(str(path))
    if changed := config_file.differences(before, now):
        if all(field.startswith("log.") for field, *_ in changed):
            return {}  # may be changed, and changes no number
        raise ValueError(changed)
    return {}


def _flat(value, prefix=""):
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {prefix: value}
    return {k: v for name, item in items for k, v in _flat(item, f"{prefix}/{name}").items()}


def same(a, b):
    return a.keys() == b.keys() and all(
        a[k].equal(b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


@pytest.mark.filterwarnings("ignore:.*has no checksum")
@pytest.mark.parametrize("kind", ["flip", "cut", "zeros", "grow"])
@pytest.mark.parametrize("name", sorted(FILES))
def test_damage_is_noticed(finished, tmp_path, name, kind):
    """Flipped bits, lost ends, a block of zeros, a longer file: refused by ValueError, or harmless.

    (Harmless are bits that say nothing, such as a space in JSON.)
    """
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    whole, good = read(folder, name), (folder / name).read_bytes()
    choose, unnoticed, refused = random.Random(f"{name} {kind}"), [], 0
    for _ in range(TRIES if kind == "flip" else TRIES // 5):
        data = bytearray(good)
        place = choose.randrange(len(data))
        if kind == "flip":
            data[place] ^= 1 << choose.randrange(8)
        elif kind == "cut":
            del data[place:]
        elif kind == "zeros":
            data[place : place + 512] = bytes(len(data[place : place + 512]))
        else:
            data += bytes(choose.randrange(1, 600))
        (folder / name).write_bytes(data)
        try:
            if not same(read(folder, name), whole):
                unnoticed.append(place)
        except ValueError:
            refused += 1
    assert not unnoticed
    assert refused > 0 or (kind == "grow" and name.endswith(".pt"))


def test_any_bit_of_the_description_of_latents(finished, tmp_path):
    """All of them: a name of what is read before the checksum may be among those that flip."""
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run/latents.bin.json"
    good = path.read_bytes()
    fingerprint = json.loads(good)["fingerprint"]
    whole = LatentCache.open(path.with_suffix(""), fingerprint)
    for place, bit in itertools.product(range(len(good)), range(8)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1 :])
        try:
            read = LatentCache.open(path.with_suffix(""), fingerprint)
        except ValueError:
            continue
        assert (read.shape, read.dtype, read.abs_max) == (whole.shape, whole.dtype, whole.abs_max)
        assert (read.dataset, read.stand_ins) == (whole.dataset, whole.stand_ins)


def test_all_files_with_numbers_are_covered(finished):
    found = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}
    pictures = {name for name in found if name.endswith(".png")}
    assert found - pictures == FILES | {"log.jsonl", "report.html"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(finished, tmp_path, bad):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "checkpoints/generator.safetensors"
    generator = load_system(path, "cpu").generator
    _, facts = files.load_weights(path)
    with torch.no_grad():
        next(generator.parameters()).view(-1)[3] = bad
    facts.pop("checksum", None)
    files.save_weights(path, generator, facts)
    with pytest.raises(ValueError, match="must hold finite weights, got"):
        load_system(path, "cpu")
    state = files.load_state(folder / "checkpoints/last.pt")
    next(iter(state["state"]["ema"].values())).view(-1)[0] = bad
    files.save_state(folder / "checkpoints/last.pt", state)
    with pytest.raises(ValueError, match="must hold finite weights, got"):
        train(CONFIG, folder, resume=True)


def test_another_autoencoder_is_refused(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "checkpoints/autoencoder.safetensors"
    autoencoder = load_autoencoder(path)[0]
    _, facts = files.load_weights(path)
    with torch.no_grad():
        next(autoencoder.parameters()).mul_(1.5)
    files.save_weights(path, autoencoder, {"config": facts["config"]})
    with pytest.raises(ValueError, match="must be the autoencoder of"):
        load_system(folder / "checkpoints/generator.safetensors", "cpu")
    before = (folder / "checkpoints/last.pt").read_bytes()
    with pytest.raises(ValueError, match="must find the autoencoder of the network"):
        train(CONFIG, folder, resume=True)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="needs the autoencoder of the network"):
        train(CONFIG, folder, resume=True)
    assert (folder / "checkpoints/last.pt").read_bytes() == before
    assert not path.exists()


def test_older_files_without_checksums_load_and_say_so(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    from safetensors.torch import save_file

    path = folder / "checkpoints/last.pt"
    torch.save(files.load_state(path), path)
    with pytest.warns(UserWarning, match="has no checksum"):
        assert files.load_state(path)["step"] == 4
    path = folder / "checkpoints/generator.safetensors"
    tensors, facts = files.load_weights(path)
    config = facts["config"]
    save_file(tensors, path, {"config": json.dumps(config)})
    with pytest.warns(UserWarning, match="has no checksum"):
        load_system(path, "cpu")


def test_what_is_no_checkpoint_is_named(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "checkpoints/last.pt"
    state = files.load_state(path)
    for wrong, message in (
        ({"stage": "gan"}, "must be a run's checkpoint, but lacks step, state"),
        ({**state, "state": {}}, "must hold the state of this run's stage gan, got KeyError"),
        ({**state, "step": "4"}, "but lacks step"),
    ):
        files.save_state(path, wrong)
        with pytest.raises(ValueError, match=message):
            train(CONFIG, folder, resume=True)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="must be a whole training state, got a list"):
        train(CONFIG, folder, resume=True)


def test_other_pictures_and_settings_are_refused_on_resuming(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "config.toml"
    path.write_text(path.read_text().replace("seed = 0", "seed = 1"))
    with pytest.raises(ValueError, match="must keep the run's configuration, got seed: 0 -> 1"):
        train(config_file.load(str(path)), folder, resume=True)
    shutil.copy(finished / "config.toml", path)
    checkpoint = folder / "checkpoints/last.pt"
    state = files.load_state(checkpoint)
    state["facts"]["pictures"] = "of others"
    files.save_state(checkpoint, state)
    with pytest.raises(ValueError, match="must find the pictures that the run began with"):
        train(CONFIG, folder, resume=True)


def test_a_shorter_or_missing_log_is_not_filled_up(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    log = folder / "log.jsonl"
    cut = log.read_bytes()[:300]
    for content in (cut, b""):
        log.write_bytes(content)
        train(CONFIG, folder, resume=True)
        lines = log.read_bytes().splitlines()
        assert all(line.startswith(b"{") and line.endswith(b"}") for line in lines)
        assert b"\0" not in log.read_bytes()
    log.unlink()
    train(CONFIG, folder, resume=True)
    assert b'"summary"' in log.read_bytes().splitlines()[-1]


def test_a_finished_run_is_trained_for_longer(finished, tmp_path):
    import dataclasses

    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    gan = dataclasses.replace(CONFIG.gan, epochs=3)
    log = dataclasses.replace(CONFIG.log, every=2)
    train(dataclasses.replace(CONFIG, gan=gan, log=log), folder, resume=True)
    assert files.load_state(folder / "checkpoints/last.pt")["step"] == 6
    assert config_file.load(str(folder / "config.toml")).gan.epochs == 3
    train(CONFIG, folder, resume=True)  # shorter: what is there stays
    assert files.load_state(folder / "checkpoints/last.pt")["step"] == 6
