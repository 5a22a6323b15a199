"""Checkpoints as people have them: prefixes, wrappers, averages, bystanders; nothing runs."""

import argparse
import collections
import datetime
import decimal
import enum
import pathlib
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from lddgan_kernels.interop import load_published, to_published
from lddgan_kernels.models import Autoencoder
from tests.interop.test_gan import D_OPTIONS, OPTIONS, discriminator_state, generator_state
from tests.models.test_autoencoder import VQ

__all__ = ["discriminator_state", "generator_state"]  # fixtures


def loads(content, expected, network="NCSNpp", options=OPTIONS):
    back = to_published(load_published(content, network, options))
    assert back.keys() == expected.keys()
    for name in expected:
        assert torch.equal(back[name], expected[name]), name


def prefixed(state, *prefixes):
    """The state with each name under one of the prefixes in turn."""
    return {prefixes[i % len(prefixes)] + name: v for i, (name, v) in enumerate(state.items())}


@pytest.mark.parametrize("prefixes", [
    ("_orig_mod.",), ("module.module.",), ("module._orig_mod.",), ("_orig_mod.", "module.", ""),
    ("netG.",), ("generator._orig_mod.module.",), ("_fsdp_wrapped_module.",),
])  # fmt: skip
def test_prefixes(generator_state, prefixes):
    loads(prefixed(generator_state, *prefixes), generator_state)


def test_a_wrapper_inside_a_name(generator_state):
    inside = {k.replace("all_modules.3", "all_modules._orig_mod.3"): v
              for k, v in generator_state.items()}  # fmt: skip
    loads(inside, generator_state)
    with pytest.raises(ValueError, match="holds all_modules.0.weight twice, as module.all_modules"):
        loads(generator_state | prefixed(generator_state, "module."), generator_state)


def test_two_networks_side_by_side(generator_state, discriminator_state):
    both = prefixed(generator_state, "netG.") | prefixed(discriminator_state, "netD.")
    with pytest.warns(UserWarning, match="ignored .* entries beside `netG`: netD"):
        loads(both, generator_state)
    with pytest.warns(UserWarning, match="ignored .* entries beside `state_dict.netD`"):
        loads({"state_dict": both}, discriminator_state, "Discriminator_small", D_OPTIONS)


@pytest.mark.parametrize("key", ["ema", "model", "g_ema", "generator", "netG", "params", "weights"])
@pytest.mark.parametrize("nested", [False, True])
def test_keys_of_wrappers(tmp_path, generator_state, key, nested):
    content = {key: {"state_dict": generator_state} if nested else generator_state, "step": 3}
    torch.save(content, tmp_path / "c.pth")
    loads(tmp_path / "c.pth", generator_state)


@pytest.mark.parametrize("key", ["ema", "g_ema", "modelEMA", "averaged_model", "shadow"])
def test_averaged_weights_are_preferred(generator_state, key):
    other = {name: value + 1 for name, value in generator_state.items()}
    for content in (
        {"model": other, key: generator_state},
        {key: generator_state, "state_dict": prefixed(other, "module.")},
        prefixed(other, "raw.") | prefixed(generator_state, f"{key}."),
    ):
        with pytest.warns(UserWarning, match=f"took `{key}` of "):
            loads(content, generator_state)
    with pytest.raises(ValueError, match="must hold one such network, got a, remaining"):
        loads({"a": other, "remaining": generator_state}, generator_state)


class Average:
    """As many training scripts keep one: an object with the averages in a dict."""

    def __init__(self, weights):
        self.decay = 0.999
        self.shadow = weights


def test_averages_inside_an_object(tmp_path, generator_state):
    other = {name: value + 1 for name, value in generator_state.items()}
    torch.save({"model": other, "ema": Average(generator_state)}, tmp_path / "c.pth")
    with pytest.warns(UserWarning, match="took `ema.shadow` of model, ema.shadow"):
        loads(tmp_path / "c.pth", generator_state)


def run_with_optimizer(state, averages, **changes):
    entries = {
        i: {"step": 9, "exp_avg": value * 0, "ema": value} for i, value in enumerate(averages)
    }
    optimizer = {"state": entries, "param_groups": [{"params": list(range(len(entries)))}]}
    run = {"epoch": 3, "args": argparse.Namespace(a=1), "netD_dict": {}, "optimizerG": optimizer}
    return run | {"netG_dict": prefixed(state, "module.")} | changes


def test_a_published_runs_averages(tmp_path, generator_state, recwarn):
    averages = [value + i for i, value in enumerate(generator_state.values())]
    expected = dict(zip(generator_state, averages, strict=True))
    run = run_with_optimizer(generator_state, averages)
    torch.save(run, tmp_path / "content.pth")
    loads(tmp_path / "content.pth", expected)
    del run["optimizerG"]["state"][4]["ema"]  # a weight that no gradient reached
    loads(run, expected | {list(expected)[4]: list(generator_state.values())[4]})
    assert len(recwarn) == 0
    with pytest.warns(UserWarning, match="averaged weights in optimizerG do not fit netG_dict"):
        loads(run_with_optimizer(generator_state, averages[1:]), generator_state)


class AttributeDict(dict):
    """As Lightning has it, in a module that is gone when the file is read."""


class Colour(enum.Enum):
    RED = 1


class Slotted:
    __slots__ = ("a",)


class Listed(list):
    pass


BYSTANDERS = {
    "numpy scalar": np.float64(3.2),
    "numpy array": np.arange(5),
    "numpy strings": np.array(["a"], dtype=object),
    "path": pathlib.Path("a/b"),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "counter": collections.Counter("aab"),
    "datetime": datetime.datetime(2024, 1, 1),
    "date as a key": {datetime.date(2024, 1, 1): 1},
    "namespace": argparse.Namespace(lr=np.float32(1), nested=[pathlib.Path("x")]),
    "enum": Colour.RED,
    "slots": Slotted(),
    "subclass of list": Listed([1, 2]),
    "set": {1, 2},
    "complex": 1 + 2j,
    "decimal": decimal.Decimal("1.5"),
    "generator state": np.random.default_rng(0),
    "random state": np.random.RandomState(0).get_state(),
    "function": sorted,
    "device": torch.device("cpu"),
    "dtype": torch.float16,
    "size": torch.Size([1, 2]),
    "exception": ValueError("x"),
    "large": 2**80,
    "bytes": b"\xff",
    "module": nn.Linear(2, 2),
    "storage": torch.ones(3).untyped_storage(),
    "parameter": nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", BYSTANDERS)
def test_bystanders(tmp_path, generator_state, name, protocol, zipped):
    content = {"state_dict": generator_state, name: BYSTANDERS[name]}
    torch.save(
        content,
        tmp_path / "c.pth",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    loads(tmp_path / "c.pth", generator_state)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_dict_of_a_class_that_is_gone(tmp_path, monkeypatch, generator_state, zipped):
    gone = types.ModuleType("gone")
    gone.AttributeDict = type("AttributeDict", (dict,), {"__module__": "gone"})
    monkeypatch.setitem(sys.modules, "gone", gone)
    content = {"state_dict": gone.AttributeDict(generator_state), "hyper_parameters":
               gone.AttributeDict(lr=1e-3)}  # fmt: skip
    torch.save(content, tmp_path / "c.ckpt", _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "gone")
    loads(tmp_path / "c.ckpt", generator_state)
    assert "gone" not in sys.modules


def test_parameters_and_views_are_tensors(tmp_path, generator_state):
    content = {name: nn.Parameter(value) for name, value in generator_state.items()}
    content["all_modules.0.bias"].note = "an attribute"
    torch.save(content, tmp_path / "c.pth")
    loads(tmp_path / "c.pth", generator_state)


def test_a_pickled_module_is_named(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"got a pickled torch.nn.modules.linear.Linear: save its"):
        load_published(tmp_path / "c.pth", "NCSNpp", OPTIONS)


class Runs:
    """Calls something when it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile(canary):
    import os
    import subprocess

    path = str(canary)
    return {
        "open": Runs(open, path, "w"),
        "os": Runs(os.mkdir, path),
        "subprocess": Runs(subprocess.check_call, ["touch", path]),
        "exec": Runs(exec, f"open({path!r}, 'w')"),
        "eval": Runs(eval, f"open({path!r}, 'w')"),
        "getattr": Runs(getattr, Runs(__import__, "os"), "mkdir"),
        "load": Runs(torch.load, path),
        "bytes": Runs(torch.storage._load_from_bytes, pickle.dumps(Runs(os.mkdir, path))),
        "numpy": Runs(np.save, path + ".npy", np.zeros(1)),
        "path": Runs(pathlib.Path.touch, pathlib.Path(path)),
        "array": Runs(np.memmap, path, "uint8", "w+", 0, (1,)),
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", list(hostile("")))
def test_nothing_runs(tmp_path, generator_state, name, zipped):
    folder = tmp_path / "out"
    folder.mkdir()
    content = {"state_dict": generator_state, "x": hostile(folder / "ran")[name]}
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    try:
        loads(tmp_path / "c.pth", generator_state)
    except ValueError as error:
        assert "could run code; nothing of it was loaded" in str(error)  # noqa: PT017
    assert list(folder.iterdir()) == []


def test_programs_are_refused(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "c.pt"))
    with pytest.raises(ValueError, match=r"c.pt is .*a TorchScript archive: save the module's"):
        load_published(tmp_path / "c.pt", "NCSNpp", OPTIONS)


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_named(tmp_path, generator_state, zipped):
    path = tmp_path / "c.pth"
    torch.save({"state_dict": generator_state}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for i in range(40):
        content = bytearray(whole[: len(whole) // 2] if i % 4 == 0 else whole)
        for position in generator.integers(0, min(3000, len(content)), 6):
            content[position] = generator.integers(256)
        path.write_bytes(content)
        try:
            load_published(path, "NCSNpp", OPTIONS)
        except ValueError as error:
            assert "load_published: " in str(error)  # noqa: PT017


def test_weights_that_are_not_finite_are_refused(generator_state):
    spoilt = {name: value.clone() for name, value in generator_state.items()}
    spoilt["z_transform.1.bias"][2] = float("nan")
    with pytest.raises(ValueError, match="z_transform.1.bias holds inf or NaN"):
        load_published(spoilt, "NCSNpp", OPTIONS)


def test_entries_of_quantisers():
    from lddgan_kernels.interop.autoencoder import autoencoder_options

    state = to_published(Autoencoder(VQ))
    extras = ("quantize.used", "quantize.embed_avg", "quantize.cluster_size")
    nested = prefixed(state | {name: torch.zeros(3) for name in extras}, "first_stage_model.")
    with pytest.warns(UserWarning, match="ignored 3 entries beside the autoencoder: quantize.used"):
        loads({"state_dict": nested}, state, "VQModelInterface", autoencoder_options(VQ))


@pytest.mark.parametrize(("network", "changes", "message"), [
    ("NCSNpp", {"ch_mult": "1 2"}, r"ch_mult must be a list of integers in 1..65536, got '1 2'"),
    ("NCSNpp", {"ch_mult": [1, "2"]}, "ch_mult must be a list of integers"),
    ("NCSNpp", {"ch_mult": [1, 2.5]}, "ch_mult must be a list of integers"),
    ("NCSNpp", {"nz": "100"}, "nz must be an integer in 1..65536, got '100'"),
    ("NCSNpp", {"nz": None}, "nz must be an integer"),
    ("NCSNpp", {"nz": True}, "nz must be an integer"),
    ("NCSNpp", {"image_size": 10**12}, "image_size must be an integer in"),
    ("NCSNpp", {"num_res_blocks": -1}, "num_res_blocks must be an integer"),
    ("NCSNpp", {"attn_resolutions": {}}, "attn_resolutions must be a list of integers"),
    ("NCSNpp", {"dropout": "x"}, "dropout must be a number in 0..1"),
    ("NCSNpp", {"dropout": float("nan")}, "dropout must be a number in 0..1"),
    ("NCSNpp", {"fir": "no"}, "fir must be True or False, got 'no'"),
    ("NCSNpp", {"patch_size": 0}, "patch_size must be an integer"),
    ("Discriminator_small", {"ngf": "64"}, "ngf must be an integer"),
    ("Discriminator_small", {"nc": [6]}, "nc must be an integer"),
    ("VQModelInterface", {"ddconfig": 3, "embed_dim": 4}, "ddconfig must be a table, got 3"),
])  # fmt: skip
def test_options_of_a_wrong_type(network, changes, message):
    options = (OPTIONS if network == "NCSNpp" else D_OPTIONS) | changes
    state = {"encoder.conv_in.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=f"load_published: option {message}"):
        load_published(state, network, options)
