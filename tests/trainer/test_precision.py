"""`precision = "auto"`: what it becomes, where it is written, what a named bfloat16 says."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch

from lddgan_kernels._bfloat16 import multiplies_bfloat16
from lddgan_kernels.trainer import config_file
from lddgan_kernels.trainer import precision as precision_module
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.precision import (
    autocast,
    resolve,
    resolve_for_inference,
    uses_bfloat16,
)

CPU = torch.device("cpu")


@pytest.fixture(params=[True, False])
def has_units(request, monkeypatch):
    found = (request.param, "the test says so")
    monkeypatch.setattr(precision_module, "multiplies_bfloat16", lambda device: found)
    return request.param


@pytest.mark.parametrize("preset", config_file.presets())
def test_is_the_default_of_every_preset(preset):
    assert config_file.load(preset).precision == "auto"


def test_auto_becomes_what_the_device_multiplies(has_units):
    config, sentence = resolve(Config(), CPU)
    expected = "bfloat16" if has_units else "float32"
    assert config == replace(Config(), precision=expected)
    assert sentence == f"precision {expected}: the test says so"
    assert uses_bfloat16(Config(), CPU) == has_units
    with autocast(Config(), CPU):
        assert torch.is_autocast_enabled("cpu") == has_units


def test_a_named_precision_stays_and_an_emulated_one_warns_once(has_units):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for name in ("float32", "bfloat16"):
            assert resolve(replace(Config(), precision=name), CPU)[0].precision == name
            assert uses_bfloat16(replace(Config(), precision=name), CPU) == (name == "bfloat16")
    texts = [str(warning.message) for warning in seen]
    assert len(texts) == (0 if has_units else 1)
    assert all("emulated" in text and "times as long" in text for text in texts)


def test_a_network_trained_in_bfloat16_runs_in_float32_where_that_is_emulated(has_units):
    config = replace(Config(), precision="bfloat16")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = resolve_for_inference(config, CPU).precision
    assert found == ("bfloat16" if has_units else "float32")
    assert len(seen) == (not has_units)


@pytest.mark.skipif("AVX" not in torch.backends.cpu.get_cpu_capability(), reason="x86 settings")
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_onednn_is_asked_not_the_processor(isa):
    code = (
        "import torch; from lddgan_kernels._bfloat16 import multiplies_bfloat16;"
        "print(multiplies_bfloat16(torch.device('cpu')))"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("(False, ")


def test_the_reason_is_told_here():
    suits, why = multiplies_bfloat16(CPU)
    assert suits in (True, False)
    assert why
