import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lddgan_kernels import encode, sample, train
from tests.trainer.tiny import TINY

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    path = tmp_path_factory.mktemp("preset") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def finished(preset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    arguments = ["--preset", str(preset), "--out", str(folder), "--device", "cpu"]
    # Without codes: 16 of them, untrained, would give all seeds one image.
    arguments += ["--gan.epochs", "1", "--log.scored", "20", "--autoencoder.codebook-size", "0"]
    assert train.main(arguments) == 0
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_commands_keep_freed_memory():
    count_faults = """
import resource, sys, torch
from lddgan_kernels.trainer.command import keep_freed_memory
if sys.argv[1] == "keep": keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(1 << 24).fill_(1.0)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(6)))
"""

    def faults(how):
        environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
        command = [sys.executable, "-c", count_faults, how]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
        return int(done.stdout)

    assert faults("keep") < faults("as it is") / 4


def start(arguments, **environment):
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_train_ends_with_scores(finished):
    last = json.loads((finished / "log.jsonl").read_text().splitlines()[-1])
    scores = last["scores"]["digits"]
    assert last["kind"] == "summary"
    assert len(scores["digit_shares"]) == 10
    assert 0.9 < scores["share_confident_real"] <= 1
    assert last["samples_per_second"] > 0
    page = (finished / "report.html").read_text()
    assert "<th>Digits among the samples</th>" in page
    assert "digit_shares" not in page


def test_flags_reach_the_configuration(finished):
    assert "epochs = 1" in (finished / "config.toml").read_text()


def test_resume_takes_the_runs_own_configuration(finished, capsys):
    assert train.main(["--out", str(finished), "--resume", "--device", "cpu"]) == 0
    assert train.main(["--out", str(finished), "--resume", "--seed", "5", "--device", "cpu"]) == 1
    assert "seed: 0 -> 5" in capsys.readouterr().err


def test_errors_are_one_line(tmp_path, preset, capsys):
    out = str(tmp_path / "new")
    for arguments, message in [
        (["--preset", "cifra"], "preset must be one of"),
        (
            ["--preset", "cifar10", "--out", out],
            "train: --data must be given for preset cifar10: cifar10, which downloads CIFAR-10",
        ),
        (
            ["--preset", str(preset), "--data", "nowhere", "--out", out],
            "must be an existing folder",
        ),
        (
            ["--preset", str(preset), "--gan.batch-size", "0", "--out", out],
            "gan.batch_size must be",
        ),
        (["--preset", str(preset), "--gan.accumulate", "3", "--out", out], "a multiple of 3"),
    ]:
        assert train.main(arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    with pytest.raises(SystemExit):
        train.main(["--preset", str(preset), "--gan.batchsize", "3"])
    assert "--gan.batch-size" in capsys.readouterr().err


def pngs(folder):
    return {p.name: np.asarray(Image.open(p)).astype(int) for p in sorted(folder.glob("*.png"))}


def test_sample_gives_a_seed_the_same_image_at_any_batch_size(finished, tmp_path):
    common = ["--run", str(finished), "--device", "cpu"]
    assert sample.main([*common, "--seeds", "0-6", "--out", str(tmp_path / "a")]) == 0
    generator = str(finished / "checkpoints/generator.safetensors")
    several = ["--checkpoint", generator, "--seeds", "4,0-2", "--batch-size", "3", "--no-grid"]
    assert sample.main([*several, "--device", "cpu", "--out", str(tmp_path / "b")]) == 0
    first, second = pngs(tmp_path / "a"), pngs(tmp_path / "b")
    assert sorted(first) == sorted([f"{i}.png" for i in range(7)] + ["grid.png"])
    assert sorted(second) == ["0.png", "1.png", "2.png", "4.png"]
    # The last bits of a convolution depend on the batch size.
    assert all(np.abs(first[name] - second[name]).max() <= 1 for name in second)
    assert np.abs(first["0.png"] - first["1.png"]).max() > 0


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-2,7", [0, 1, 2, 7]), ("5", [5]), ("3-3, 1", [3, 1])]
)
def test_seeds(text, seeds):
    assert sample.parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "1,,2"])
def test_wrong_seeds(text):
    with pytest.raises(ValueError, match="seeds must be like"):
        sample.parse_seeds(text)


def test_sample_says_what_is_missing(tmp_path, capsys):
    assert sample.main(["--run", str(tmp_path)]) == 1
    assert "must be an existing file" in capsys.readouterr().err
    assert sample.main([]) == 1
    assert "one of --run, --checkpoint and --published" in capsys.readouterr().err


def test_encode_alone_gives_the_latents_of_the_run(finished, tmp_path, capsys):
    arguments = ["--run", str(finished), "--out", str(tmp_path / "l.bin"), "--device", "cpu"]
    assert encode.main(arguments) == 0
    assert "24 images" in capsys.readouterr().out
    assert (tmp_path / "l.bin").read_bytes() == (finished / "latents.bin").read_bytes()


def test_ctrl_c_leaves_a_checkpoint_that_resumes(preset, tmp_path):
    command = ["-m", "lddgan_kernels.train", "--preset", str(preset), "--device", "cpu"]
    command += ["--out", str(tmp_path / "run"), "--gan.epochs", "100000"]
    process = start(command)
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and '"gan"' in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert "of stage gan; --resume goes on" in output
    assert "Traceback" not in output
    assert (tmp_path / "run/checkpoints/last.pt").exists()


def test_two_processes_train_one_model(preset, tmp_path):
    common = ["--preset", str(preset), "--device", "cpu", "--gan.epochs", "1"]
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    several += ["-m", "lddgan_kernels.train", *common, "--out", str(tmp_path / "two")]
    process = start(several)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    lines = [json.loads(line) for line in (tmp_path / "two/log.jsonl").read_text().splitlines()]
    assert lines[-1]["processes"] == 2
    steps = [line["step"] for line in lines if line["kind"] == "step" and line["stage"] == "gan"]
    assert steps == [2, 3]


def test_encode_refuses_before_it_works(tmp_path, capsys):
    for flags, said in (
        (["--out", str(tmp_path)], "encode: out must be a file, got the folder"),
        (["--out", "l", "--batch-size", "0"], "encode: batch_size must be at least 1, got 0"),
        (["--out", "l", "--device", "quantum"], "encode: device"),
    ):
        assert encode.main(["--run", str(tmp_path / "none"), *flags]) == 1
        assert said in capsys.readouterr().err
