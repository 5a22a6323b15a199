import ast
import dataclasses
import inspect

import pytest

from lddgan_kernels.models import Generator
from lddgan_kernels.trainer import config_file, networks
from lddgan_kernels.trainer.config import Config
from tests.trainer.tiny import TINY, tiny


@pytest.mark.parametrize("name", config_file.presets())
def test_presets_are_valid_and_come_back_from_toml(name):
    config = config_file.load(name)
    networks.validate(config)
    assert config_file.parse(config_file.dump(config)) == config


def test_presets_are_the_published_table():
    cifar, celeba, church = map(config_file.load, ("cifar10", "celebahq256", "lsun-church256"))
    assert [networks.latent_shape(c) for c in (cifar, celeba, church)] == [
        (4, 16, 16),
        (3, 64, 64),
        (4, 32, 32),
    ]
    assert [c.diffusion.num_steps for c in (cifar, celeba, church)] == [4, 2, 4]
    gan = [c.gan for c in (cifar, celeba, church)]
    assert [g.epochs for g in gan] == [1700, 400, 400]
    assert [g.batch_size for g in gan] == [256, 128, 128]
    assert [(g.lr_generator, g.lr_discriminator) for g in gan] == [
        (1.6e-4, 1.25e-4),
        (2e-4, 1e-4),
        (2e-4, 1e-4),
    ]
    assert [(g.ema_decay, g.r1_every, g.r1_gamma) for g in gan] == [
        (0.9999, 15, 0.02),
        (0.999, 10, 2.0),
        (0.999, 10, 1.0),
    ]
    assert all(g.reconstruction == "weighted" and g.lr_schedule == "constant" for g in gan)
    assert all(c.autoencoder.codebook_size == 8192 for c in (cifar, celeba, church))
    assert all(c.autoencoder_training.lr_per_sample == 4.5e-6 for c in (cifar, celeba, church))


def test_generator_sizes_are_the_published_ones():
    for name, millions in (("cifar10", 33.3), ("celebahq256", 48.4), ("lsun-church256", 48.4)):
        with __import__("torch").device("meta"):
            generator = Generator(networks.generator_config(config_file.load(name)))
        assert round(sum(p.numel() for p in generator.parameters()) / 1e6, 1) == millions


def test_unknown_preset_lists_those_there_are():
    with pytest.raises(ValueError, match="one of .*celebahq256, cifar10, .*'cifra10'"):
        config_file.load("cifra10")
    with pytest.raises(ValueError, match="existing file, got nowhere.toml"):
        config_file.load("nowhere.toml")


def test_a_base_is_taken_over_table_by_table():
    config = config_file.parse('base = "wddgan-stl10"\nseed = 3\n[gan]\nepochs = 2')
    base = config_file.load("wddgan-stl10")
    gan = dataclasses.replace(base.gan, epochs=2)
    assert config == dataclasses.replace(base, seed=3, gan=gan)
    assert base.discriminator.time_embedding == 256  # of its base's base
    with pytest.raises(ValueError, match="base must be one of .*got 'stl'"):
        config_file.parse('base = "stl"')


def test_every_preset_but_digits_says_what_data_it_needs(tmp_path):
    free = [name for name in config_file.presets() if not config_file.needs_data(name)]
    assert free == [name for name in config_file.presets() if name.split("-")[0] == "digits"]
    own = tmp_path / "own.toml"
    own.write_text('base = "cifar10"')
    assert config_file.needs_data(str(own)) == config_file.needs_data("cifar10")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sede = 1", "field sede does not exist, did you mean seed?"),
        ("[gan]\nbatchsize = 1", "field gan.batchsize does not exist, did you mean gan.batch_size"),
        ("[gan]\nbatch_size = 'a'", "gan.batch_size must be int, got 'a'"),
        ("[gan]\nbatch_size = 1.5", "gan.batch_size must be int, got 1.5"),
        ("[gan]\nbatch_size = true", "gan.batch_size must be int, got True"),
        ("[gan]\nbatch_size = 0", "gan.batch_size must be at least 1, got 0"),
        ("[gan]\nepochs = 99999999999999999999", "gan.epochs must be a number of 64 bits"),
        ("[gan]\nlr_generator = inf", "gan.lr_generator must be at least 0, got inf"),
        ("x = " + "[" * 5000, "not valid TOML: nested too deeply"),
        ("[gan]\nema_decay = 2", "gan.ema_decay must be in 0..1, got 2.0"),
        ("[gan]\nema_decay = nan", "gan.ema_decay must be in 0..1, got nan"),
        ("[diffusion]\nnum_steps = 9", "diffusion.num_steps must be in 1..8, got 9"),
        ("codec = 'pixels'", "codec must be one of autoencoder, haar, none, got 'pixels'"),
        ("[generator]\nchannel_multipliers = 2", "channel_multipliers must be a list, got 2"),
        (
            "[generator]\nchannel_multipliers = [1, 0]",
            r"multipliers\[1\] must be at least 1",
        ),
        ("gan = 1", "gan must be a table, got 1"),
        ("gan =", "not valid TOML"),
    ],
)
def test_a_wrong_field_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        config_file.parse(text)


def test_an_integer_is_a_float_too():
    assert config_file.parse("[gan]\nr1_gamma = 2").gan.r1_gamma == 2.0


def test_check_finds_what_the_command_line_let_through():
    with pytest.raises(ValueError, match="gan.epochs must be at least 1, got 0"):
        config_file.check(tiny(gan={"epochs": 0}))


def test_fields_that_do_not_fit_each_other():
    with pytest.raises(ValueError, match="discriminator.num_blocks must leave a latent of 8 px"):
        networks.validate(tiny(discriminator={"kind": "large", "num_blocks": 4}))
    with pytest.raises(ValueError, match="resolution must be a multiple of"):
        networks.validate(tiny(images={"resolution": 18}))
    with pytest.raises(ValueError, match="even for wavelets, got 9"):
        networks.validate(tiny(codec="haar", images={"resolution": 9}))


def test_latent_shapes_of_the_codecs():
    assert networks.latent_shape(tiny()) == (2, 8, 8)
    assert networks.latent_shape(tiny(codec="haar")) == (4, 8, 8)
    assert networks.latent_shape(tiny(codec="none")) == (1, 16, 16)


def test_differences_name_fields():
    assert config_file.differences(tiny(), tiny()) == []
    changed = tiny(seed=2, gan={"epochs": 4})
    assert config_file.differences(tiny(), changed) == [("seed", 0, 2), ("gan.epochs", 3, 4)]


def test_every_field_is_documented():
    def undocumented(kind):
        """Fields without a string below them, where the class or one it inherits from has them."""
        body = ast.parse(inspect.getsource(kind)).body[0].body
        for node, following in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and not (
                isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            ):
                yield f"{kind.__name__}.{node.target.id}"

    tables = {n: type(v) for n, v in vars(Config()).items() if dataclasses.is_dataclass(v)}
    classes = {c for t in tables.values() for c in t.__mro__ if dataclasses.is_dataclass(c)}
    assert len(classes) > len(tables)
    assert not {name for kind in classes for name in undocumented(kind)}
    assert set(undocumented(Config)) == {f"Config.{name}" for name in tables}


def test_tiny_is_smaller_than_any_preset():
    assert "epochs = 3" in TINY


def test_a_path_that_toml_cannot_hold_is_refused_at_once():
    with pytest.raises(
        ValueError, match=r"config: data must be a path in UTF-8, .* got 'caf.udce9'"
    ):
        config_file.check(Config(data="caf\udce9"))
    config_file.check(Config(data="café\u202f1"))
