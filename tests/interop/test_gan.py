"""Published checkpoints: golden vectors, other structures, there and back, and bad ones."""

import json
import pickle

import pytest
import torch

from lddgan_kernels import use_backend
from lddgan_kernels.interop import load_published, to_published
from lddgan_kernels.models import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig
from tests.conftest import shared_path

safetensors = pytest.importorskip("safetensors")

GENERATORS = ["ncsnpp_lddgan", "ncsnpp_ddgan", "wavelet_ncsnpp"]
DISCRIMINATORS = ["discriminator_small", "discriminator_large"]
BACKENDS = ["cpu", "reference"]

OPTIONS = {
    "image_size": 8, "num_channels": 3, "num_channels_dae": 8, "ch_mult": [1, 2],
    "num_res_blocks": 1, "attn_resolutions": [4], "nz": 6, "z_emb_dim": 16, "n_mlp": 2,
}  # fmt: skip
D_OPTIONS = {"nc": 6, "ngf": 4, "t_emb_dim": 8, "num_layers": 3}


def golden(name):
    """(network, options, state dict, the other tensors) of a golden file."""
    with safetensors.safe_open(shared_path(f"golden/{name}.safetensors"), "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    prefix = "state_dict."
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    others = {k: v for k, v in tensors.items() if not k.startswith(prefix)}
    return config["network"], config["options"], state, others


def assert_close(actual, expected, tolerance, what, least=0.0):
    """The error relative to the largest value, or to `least` where all are smaller (rounding)."""
    error = (actual - expected).abs().max() / max(expected.abs().max().item(), least)
    assert error <= tolerance, f"{what}: {error:.2e}"


@pytest.fixture(scope="module")
def generator_state():
    torch.manual_seed(0)
    config = GeneratorConfig(
        3, 8, base_channels=8, channel_multipliers=(1, 2), num_blocks=1,
        attention_resolutions=(4,), z_dim=6, mapping_layers=2, mapping_width=16,
    )  # fmt: skip
    return to_published(Generator(config))


@pytest.fixture(scope="module")
def discriminator_state():
    config = DiscriminatorConfig(3, "small", base_channels=4, time_embedding=8, num_blocks=3)
    return to_published(Discriminator(config))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", GENERATORS)
def test_golden_generators(name, backend, layout):
    network, options, state, tensors = golden(name)
    module = load_published(state, network, options).to(memory_format=layout)
    x = tensors["x"].contiguous(memory_format=layout).requires_grad_()
    z = tensors["z"].requires_grad_()
    with use_backend(backend):
        y = module(x, tensors["t"], z)
        y.backward(tensors["grad_y"])
    assert_close(y, tensors["y"], 1e-4, "y")
    assert_close(x.grad, tensors["grad_x"], 1e-3, "grad_x")
    assert_close(z.grad, tensors["grad_z"], 1e-3, "grad_z")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_golden_discriminators(name, backend, layout):
    network, options, state, tensors = golden(name)
    module = load_published(state, network, options).to(memory_format=layout)
    x = tensors["x"].contiguous(memory_format=layout).requires_grad_()
    with use_backend(backend):
        y = module(x, tensors["t"], tensors["x_t"])
        (grad_x,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        penalty = grad_x.square().sum(dim=(1, 2, 3)).mean()
        penalty.backward()
    assert_close(y, tensors["y"], 1e-4, "y")
    assert_close(grad_x, tensors["grad_x"], 1e-3, "grad_x")
    assert_close(penalty, tensors["penalty"], 1e-3, "penalty")
    for parameter in module.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    grads = to_published(module)
    prefix = "grad_penalty."
    wanted = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    least = 1e-5 * max(value.abs().max().item() for value in wanted.values())
    for key, expected in wanted.items():
        assert_close(grads[key], expected, 1e-3, key, least)


@pytest.mark.parametrize("name", GENERATORS + DISCRIMINATORS)
def test_golden_weights_come_back_unchanged(name):
    network, options, state, _ = golden(name)
    back = to_published(load_published(state, network, options))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("changes", [
    {"ch_mult": [2], "attn_resolutions": []},
    {"ch_mult": [1, 2, 3], "attn_resolutions": [8, 2], "num_res_blocks": 2},
    {"attn_resolutions": 8, "n_mlp": 0},
    {"patch_size": 2, "attn_resolutions": (4, 2)},
    {"progressive_input": "none", "not_use_tanh": True},
    {"fir": False, "skip_rescale": False, "centered": False},
    {"current_resolution": 16, "image_size": 32},
])  # fmt: skip
def test_structures_make_the_round_trip(changes):
    from lddgan_kernels.interop.gan import generator_config

    options = OPTIONS | changes
    module = Generator(generator_config(options, {})).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.1)
    loaded = load_published(to_published(module), "NCSNpp", options)
    size = module.config.resolution
    args = torch.randn(2, 3, size, size), torch.tensor([0, 3]), torch.randn(2, 6)
    assert torch.equal(loaded(*args), module(*args))


def test_prefixes_and_wrappers(generator_state, discriminator_state):
    prefixed = {f"module.{name}": value for name, value in generator_state.items()}
    run = {
        "epoch": 3,
        "netG_dict": prefixed,
        "netD_dict": {f"module.{name}": value for name, value in discriminator_state.items()},
    }
    for checkpoint in (prefixed, {"state_dict": generator_state, "epoch": 1}, run):
        back = to_published(load_published(checkpoint, "NCSNpp", OPTIONS))
        assert all(torch.equal(back[name], generator_state[name]) for name in generator_state)
    back = to_published(load_published(run, "Discriminator_small", D_OPTIONS))
    assert all(torch.equal(back[name], discriminator_state[name]) for name in discriminator_state)


def test_files(tmp_path, generator_state):
    from safetensors.torch import save_file

    torch.save(generator_state, tmp_path / "g.pth")
    torch.save(generator_state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(generator_state, tmp_path / "g.safetensors")
    for path in (tmp_path / "g.pth", str(tmp_path / "old.pth"), tmp_path / "g.safetensors"):
        back = to_published(load_published(path, "NCSNpp", OPTIONS))
        assert all(torch.equal(back[name], generator_state[name]) for name in generator_state)


def test_a_run_with_its_arguments_is_read(tmp_path, generator_state):
    import argparse

    run = {"args": argparse.Namespace(lr=0.1, nested=[1]), "netG_dict": generator_state}
    torch.save(run, tmp_path / "content.pth")
    back = to_published(load_published(tmp_path / "content.pth", "NCSNpp", OPTIONS))
    assert torch.equal(back["all_modules.0.bias"], generator_state["all_modules.0.bias"])


def test_missing_options_take_the_published_defaults():
    from lddgan_kernels.interop.gan import discriminator_config, generator_config

    config = generator_config({"ch_mult": [1, 2, 2], "num_channels": 4}, {})
    assert config == GeneratorConfig(
        4, 32, base_channels=128, channel_multipliers=(1, 2, 2), num_blocks=2,
        attention_resolutions=(16,), z_dim=100, mapping_layers=3, mapping_width=256, tanh_out=True,
    )  # fmt: skip
    small = discriminator_config("Discriminator_small", {"nc": 8}, {})
    assert small == DiscriminatorConfig(4, "small", 64, 128, 4)
    large = discriminator_config("Discriminator_large", {"nc": 6}, {})
    assert large == DiscriminatorConfig(3, "large", 32, 128, 6)


def test_channels_are_read_from_the_weights(generator_state, discriminator_state):
    options = {name: value for name, value in OPTIONS.items() if name != "num_channels"}
    assert load_published(generator_state, "NCSNpp", options).config.channels == 3
    options = {name: value for name, value in D_OPTIONS.items() if name != "nc"}
    module = load_published(discriminator_state, "Discriminator_small", options)
    assert module.config.channels == 3


class Code:
    """Makes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_does_not_run(tmp_path, generator_state):
    canary = tmp_path / "ran"
    torch.save(generator_state | {"x": Code(canary)}, tmp_path / "evil.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"x": Code(canary)}, protocol=2))
    with pytest.raises(ValueError, match="must hold tensors only, but refers to .*open"):
        load_published(tmp_path / "evil.pth", "NCSNpp", OPTIONS)
    with pytest.raises(ValueError, match="must hold tensors only, but .* could run code"):
        load_published(tmp_path / "plain.pkl", "NCSNpp", OPTIONS)
    assert not canary.exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 5000])
def test_truncated_files(tmp_path, generator_state, suffix, keep):
    from safetensors.torch import save_file

    path = tmp_path / f"g.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(generator_state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="is truncated"):
        load_published(path, "NCSNpp", OPTIONS)


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load_published(tmp_path / "none.pth", "NCSNpp", OPTIONS)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="must hold a dict of tensors, got list"):
        load_published(tmp_path / "list.pth", "NCSNpp", OPTIONS)
    with pytest.raises(ValueError, match="must hold tensors, got epoch"):
        load_published({"epoch": 3}, "NCSNpp", OPTIONS)
    with pytest.raises(ValueError, match="network must be one of .*'NCSNpp'.*got 'ncsnpp'"):
        load_published({}, "ncsnpp", OPTIONS)


def test_keys_that_do_not_fit_are_listed(generator_state):
    state = dict(generator_state)
    del state["all_modules.3.Conv_0.weight"], state["z_transform.1.bias"]
    state["stray"] = torch.zeros(2)
    with pytest.raises(ValueError, match="do not fit NCSNpp") as error:
        load_published(state, "NCSNpp", OPTIONS)
    for line in (
        "missing all_modules.3.Conv_0.weight (8, 8, 3, 3)",
        "missing z_transform.1.bias (16,)",
        "not expected stray (2,)",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize(("changes", "line"), [
    ({"num_channels_dae": 16}, "all_modules.2.weight: expected (16, 3, 3, 3), found (8, 3, 3, 3)"),
    ({"nz": 7}, "z_transform.1.weight: expected (16, 7), found (16, 6)"),
    ({"n_mlp": 3}, "missing z_transform.7.weight (16, 16)"),
    ({"attn_resolutions": []}, "not expected"),
    ({"ch_mult": [1, 2, 2]}, "missing"),
])  # fmt: skip
def test_options_that_contradict_the_weights(generator_state, changes, line):
    with pytest.raises(ValueError, match="do not fit NCSNpp") as error:
        load_published(generator_state, "NCSNpp", OPTIONS | changes)
    assert line in str(error.value)


def test_a_checkpoint_of_another_network(generator_state, discriminator_state):
    with pytest.raises(ValueError, match="missing all_modules.0.weight"):
        load_published(discriminator_state, "NCSNpp", OPTIONS)
    with pytest.raises(ValueError, match="missing start_conv.weight"):
        load_published(generator_state, "Discriminator_large", D_OPTIONS)
    with pytest.raises(ValueError, match="missing conv4.conv1.0.weight"):
        load_published(discriminator_state, "Discriminator_large", D_OPTIONS | {"num_layers": 4})


@pytest.mark.parametrize(("network", "changes", "message"), [
    ("NCSNpp", {"resblock_type": "ddpm"}, "option resblock_type must be 'biggan', got 'ddpm'"),
    ("NCSNpp", {"progressive": "output_skip"}, "option progressive must be 'none'"),
    ("NCSNpp", {"progressive_input": "input_skip"}, "option progressive_input must be"),
    ("NCSNpp", {"embedding_type": "fourier"}, "option embedding_type must be 'positional'"),
    ("NCSNpp", {"fir_kernel": [1, 2, 1]}, "option fir_kernel must be"),
    ("NCSNpp", {"ch_mult": None}, "options must hold ch_mult"),
    ("NCSNpp", {"num_out_channels": 5}, "option num_out_channels must be"),
    ("Discriminator_small", {"use_local_loss": True}, "option use_local_loss must be False"),
    ("Discriminator_small", {"nc": 5}, "option nc must be even"),
])  # fmt: skip
def test_unsupported_options(generator_state, network, changes, message):
    options = (OPTIONS if network == "NCSNpp" else D_OPTIONS) | changes
    with pytest.raises(ValueError, match=message):
        load_published(generator_state, network, options)


def test_num_out_channels_counts_folded_patches():
    config = GeneratorConfig(
        3, 16, base_channels=8, channel_multipliers=(1, 2), num_blocks=1, z_dim=6,
        mapping_layers=2, mapping_width=16, patch_size=2,
    )  # fmt: skip
    state = to_published(Generator(config))
    options = OPTIONS | {"image_size": 16, "patch_size": 2, "attn_resolutions": []}
    module = load_published(state, "NCSNpp", options | {"num_out_channels": 12})
    assert module.config == config
    with pytest.raises(ValueError, match=r"num_channels \* patch_size\^2 \(12\), got 3"):
        load_published(state, "NCSNpp", options | {"num_out_channels": 3})


def test_only_our_networks_have_published_names():
    with pytest.raises(TypeError, match="to_published: module must be"):
        to_published(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="options must be a dict, got list"):
        load_published({}, "NCSNpp", [])
