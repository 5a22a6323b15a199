"""Scores while it trains: the log, the best generator, resuming, what is refused."""

import json
import shutil

import pytest
import torch

from lddgan_kernels.metrics import (
    DigitJudge,
    extract_features,
    feature_statistics,
    frechet_distance,
    load_features,
    load_statistics,
)
from lddgan_kernels.metrics.efficientnet import EfficientNetLite0
from lddgan_kernels.trainer import files
from lddgan_kernels.trainer.batches import open_dataset
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.network_files import load_system
from lddgan_kernels.trainer.run import train
from lddgan_kernels.trainer.scoring import Scorer
from tests.trainer.tiny import tiny

LOG = {"score_every": 4, "scored": 12}
# Without codes: 16 of them, untrained, would give all seeds one image.
PLAIN = {"codebook_size": 0}


def scores(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "scores"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(EfficientNetLite0().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    train(tiny(autoencoder=PLAIN, log=LOG), folder)
    return folder


def test_the_judge_scores_digits(finished):
    found = scores(finished)
    assert [(line["step"], line["images"]) for line in found] == [(4, 32), (8, 64), (9, 72)]
    assert all(line["scorer"] == "the judge of digits" and line["took"] > 0 for line in found)
    assert all(0 <= line["share_confident_ratio"] <= 1.1 for line in found)
    system = load_system(RunFolder(finished).generator, "cpu")
    samples = system(torch.arange(12), batch_size=8)
    assert found[-1]["frechet_distance"] == pytest.approx(
        DigitJudge(16).frechet_distance(samples), rel=1e-3
    )


def test_the_best_generator_is_kept(finished, tmp_path, monkeypatch):
    """Whichever step it was."""
    values = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(Scorer, "__call__", lambda self: {"frechet_distance": next(values)})
    train(tiny(autoencoder=PLAIN, log={**LOG, "sample_every": 4}), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    best, last = (files.load_weights(path)[0] for path in (folder.best, folder.generator))
    assert not all(best[name].equal(last[name]) for name in last)
    assert load_system(folder.best, "cpu")(torch.arange(2)).shape == (2, 1, 16, 16)
    monkeypatch.undo()
    ended = files.load_weights(RunFolder(finished).generator)[0]
    assert all(ended[name].equal(last[name]) for name in last), "scores changed the training"


def test_a_run_that_is_resumed_knows_its_best(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    before = folder.best.read_bytes()
    monkeypatch.setattr(Scorer, "__call__", lambda self: {"frechet_distance": 1e9})
    config = tiny(autoencoder=PLAIN, gan={"epochs": 4}, log=LOG)
    train(config, folder.path, resume=True)
    assert folder.best.read_bytes() == before
    assert [line["step"] for line in scores(folder.path)] == [4, 8, 9, 12]


def test_a_feature_network_scores_against_the_training_set(weights, tmp_path):
    log = {"score_every": 9, "scored": 10, "features": str(weights)}
    config = tiny(autoencoder=PLAIN, log=log)
    train(config, tmp_path / "run")
    (found,) = scores(tmp_path / "run")
    assert found["scorer"] == "efficientnet-lite0"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "are of 10 samples, fewer than the 1280 features of efficientnet-lite0" in page
    folder = RunFolder(tmp_path / "run")
    network, dataset = load_features(weights), open_dataset(config)
    images = torch.stack([dataset[i] for i in range(len(dataset))])
    real = extract_features(network, [images])
    known = load_statistics(folder.statistics)
    for stored, wanted in zip(known, feature_statistics(real), strict=True):
        torch.testing.assert_close(stored, wanted, rtol=1e-3, atol=1e-6)
    samples = load_system(folder.generator, "cpu")(torch.arange(10), batch_size=8)
    fake = extract_features(network, [samples])
    assert found["frechet_distance"] == pytest.approx(frechet_distance(fake, real), rel=1e-3)
    assert {"kernel_distance", "precision", "recall", "density", "coverage"} <= set(found)


def test_what_cannot_be_scored_is_refused_before_anything_runs(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(ValueError, match="log.features must name a feature network where .* none"):
        train(tiny(data="elsewhere", log=LOG), run)
    with pytest.raises(FileNotFoundError, match="path must be a file of weights, or one of incept"):
        train(tiny(log={**LOG, "features": "nothing.pth"}), run)
    with pytest.raises(ValueError, match="log.scored must be more than 5 with log.score_every"):
        train(tiny(log={**LOG, "scored": 3}), run)
    assert not run.exists()
