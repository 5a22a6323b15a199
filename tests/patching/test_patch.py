import copy
import pickle

import pytest
import torch
from torch import nn

import lddgan_kernels
from lddgan_kernels.testing import assert_error_rule
from tests.patching import stand_ins as s

LAYOUTS = (torch.contiguous_format, torch.channels_last)
EMB, Z = torch.randn(2, 12), torch.randn(2, 6)
BLOCKS = {
    "diffusers": (lambda: s.ResnetBlock2D(32, 48, factor=1.5), (EMB,)),
    "diffusers scale-shift": (lambda: s.ResnetBlock2D(32, 32, norm="scale_shift"), (EMB,)),
    "diffusers FIR up": (lambda: s.ResnetBlock2D(32, 32, up=True, fir_=True), (EMB,)),
    "diffusers FIR down": (lambda: s.ResnetBlock2D(32, 32, down=True, fir_=True), (EMB,)),
    "diffusers down": (lambda: s.ResnetBlock2D(32, 48, down=True), (EMB,)),
    "diffusers autoencoder": (lambda: s.ResnetBlock2D(32, 48, emb=0, norm="group"), ()),
    "ADM": (lambda: s.ResBlock(32, 48), (EMB,)),
    "ADM plain": (lambda: s.ResBlock(32, 32, scale_shift=False), (EMB,)),
    "ADM up": (lambda: s.ResBlock(32, 32, updown=True), (EMB,)),
    "EDM": (lambda: s.UNetBlock(32, 48), (EMB,)),
    "EDM attention": (lambda: s.UNetBlock(32, 32, heads=2, adaptive=False), (EMB,)),
    "EDM up": (lambda: s.UNetBlock(32, 32, up=True), (EMB,)),
    "EDM down": (lambda: s.UNetBlock(32, 48, down=True), (EMB,)),
    "EDM FIR up": (lambda: s.UNetBlock(32, 48, up=True, taps=(1, 3, 3, 1)), (EMB,)),
    "EDM FIR down": (lambda: s.UNetBlock(32, 32, down=True, taps=(1, 3, 3, 1)), (EMB,)),
    "score_sde": (lambda: s.ResnetBlockBigGANpp(32, 48), (EMB,)),
    "score_sde up": (lambda: s.ResnetBlockBigGANpp(32, 32, up=True), (EMB,)),
    "score_sde FIR down": (lambda: s.ResnetBlockBigGANpp(32, 32, down=True, fir=True), (EMB,)),
    "DDGAN": (lambda: s.ResnetBlockBigGANpp_Adagn(32, 32), (EMB, Z)),
    "DDGAN FIR up": (lambda: s.ResnetBlockBigGANpp_Adagn(32, 32, up=True, fir=True), (EMB, Z)),
    "latent diffusion": (lambda: s.ResnetBlock(32, 48), ()),
}
LAYERS = {
    "autoencoder": s.Decoder,
    "upsampling and convolution": lambda: s.Upsample2D(32),
    "FIR up": s.FirUpsample2D,
    "FIR down": s.FirDownsample2D,
    "sequence": lambda: nn.Sequential(
        nn.GroupNorm(2, 32), nn.SiLU(), s.conv3x3(32, 32), nn.GroupNorm(2, 32), nn.GELU()
    ),
    "norm": lambda: nn.GroupNorm(2, 32, affine=False),
    "ADM norm": lambda: s.GroupNorm32(2, 32),
    "EDM norm": lambda: s.GroupNorm(32),
}
ALL = {name: (make, ()) for name, make in LAYERS.items()} | BLOCKS


def build(name):
    torch.manual_seed(0)
    make, more = ALL[name]
    model = nn.ModuleList([make()]).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) / (p[0].numel() ** 0.5 if p.ndim > 1 else 2))
    return model, (torch.randn(2, 32, 12, 10), *more)


def results(model, inputs, dtype=torch.float32):
    """Output without gradients; output with, and all gradients behind one another.

    Apart, a bias has its gradient's sum from oneDNN, where its authors added it by themselves.
    """
    model = model.to(dtype)
    given = [t.detach().to(dtype).requires_grad_() for t in inputs]
    with torch.no_grad():
        found = [model[0](*given)]
    out = model[0](*given)
    weights = [*given, *model.parameters()]
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=generator).to(dtype)
    gradients = torch.autograd.grad(out, weights, grad)
    return [*found, out, torch.cat([g.flatten() for g in gradients])]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ALL)
def test_outputs_and_gradients(name, layout):
    model, inputs = build(name)
    model.to(memory_format=layout)
    inputs = inputs[0].to(memory_format=layout), *inputs[1:]
    theirs = results(copy.deepcopy(model), inputs)
    exact = results(copy.deepcopy(model), inputs, torch.float64) if "ADM" not in name else theirs
    report = lddgan_kernels.patch(model)
    ours = results(model, inputs)
    assert not report.left
    kinds = {what for _, _, what in report.replaced}
    assert ("residual block" in kinds) == (name in BLOCKS or name == "autoencoder")
    for mine, other, reference in zip(ours, theirs, exact, strict=True):
        if exact is theirs:  # ADM's norm is always in float32
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
        else:
            assert_error_rule(mine, other, reference)


@pytest.mark.parametrize("name", ALL)
def test_names_weights_and_the_way_back(name):
    model, inputs = build(name)
    before, expected = dict(model.state_dict()), results(model, inputs)
    classes = [type(module) for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    with lddgan_kernels.patch(model) as report:
        assert report.replaced
        assert model.state_dict().keys() == before.keys()
        assert all(map(isinstance, model.modules(), classes))
        assert [type(module).__name__ for module in model.modules()] == [
            kind.__name__ for kind in classes
        ]
    assert [type(module) for module in model.modules()] == classes
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert all(map(torch.equal, results(model, inputs), expected))


@pytest.mark.parametrize("name", ["diffusers", "ADM", "EDM up", "DDGAN FIR up", "autoencoder"])
def test_copies_and_pickles_stay_patched(name):
    model, inputs = build(name)
    report = lddgan_kernels.patch(model)
    expected = results(model, inputs)
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for other in copies:
        assert all(map(torch.equal, results(other, inputs), expected))
        with torch.no_grad():  # and have weights of their own
            next(other.parameters()).zero_()
    assert all(map(torch.equal, results(model, inputs), expected))
    report.unpatch()
    with pytest.raises(ValueError, match="patched already"):
        lddgan_kernels.patch(copies[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["autoencoder", "EDM up", "upsampling and convolution"])
def test_changed_weights_are_seen(name, layout):
    model, inputs = build(name)
    model.to(memory_format=layout)
    inputs = inputs[0].to(memory_format=layout), *inputs[1:]
    lddgan_kernels.patch(model)
    results(model, inputs)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5).add_(0.01)
    found = results(model, inputs)
    fresh, _ = build(name)
    fresh.load_state_dict(model.state_dict())
    for ours, theirs in zip(found, results(fresh, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["diffusers", "ADM", "EDM", "score_sde", "autoencoder"])
def test_training_mode_drops_and_steps(name):
    """The same random numbers are dropped as without."""
    found = []
    for patched in (False, True):
        model, inputs = build(name)
        if patched:
            lddgan_kernels.patch(model)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model[0](*inputs).square().mean().backward()
            optimizer.step()
        found.append([p.detach() for p in model.parameters()])
    for ours, theirs in zip(*reversed(found), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["diffusers scale-shift", "ADM", "EDM", "DDGAN"])
def test_16_bits(name):
    model, inputs = build(name)
    half = [t.bfloat16() for t in inputs]
    exact = results(copy.deepcopy(model), inputs, torch.float64) if name != "ADM" else None
    model.bfloat16()
    if name == "ADM":  # as its authors convert it: the norms stay in float32
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                module.float()
    with torch.no_grad():
        plain = model[0](*half)
        lddgan_kernels.patch(model)
        ours = model[0](*half)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, plain, rtol=0.05, atol=0.1)
    if exact is not None:
        error = [(y.double() - exact[0]).abs().max() for y in (ours, plain)]
        assert error[0] <= 2 * error[1] + 2**-9 * exact[0].abs().max()


@pytest.mark.parametrize("name", ["diffusers", "EDM attention", "score_sde FIR down"])
def test_compiles_without_graph_breaks(name):
    model, inputs = build(name)
    lddgan_kernels.patch(model)
    compiled = torch.compile(model[0], fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), model[0](*inputs), rtol=1e-4, atol=1e-4)


def test_output_size_is_obeyed():
    model, (x,) = build("upsampling and convolution")
    expected = model[0](x, (17, 20))
    lddgan_kernels.patch(model)
    torch.testing.assert_close(model[0](x, output_size=(17, 20)), expected)
    assert model[0](x).shape == (2, 33, 24, 20)


def test_what_computes_something_else_is_left():
    class UNetBlock(s.UNetBlock):
        def forward(self, x, emb):
            return 2 * super().forward(x, emb)

    class ResBlock(s.ResBlock):
        def _forward(self, x):
            raise AssertionError

    class Upsample2D(s.Upsample2D):
        def forward(self, x):
            return self.conv(nn.functional.interpolate(x, scale_factor=2, mode="bilinear"))

    for block in (UNetBlock(8, 8), ResBlock(8, 8), Upsample2D(8)):
        model = nn.ModuleList([block, nn.GroupNorm(2, 8)])
        report = lddgan_kernels.patch(model)
        assert ("0", type(block).__name__) in report.left
        assert type(block).forward is vars(type(block)).get("forward", s.ResBlock.forward)
        assert "left as it is" in str(report)
    # Another filter is none of ours.
    model = nn.ModuleList([s.FirUpsample2D((1, 2, 1)), nn.GroupNorm(2, 8)])
    assert len(lddgan_kernels.patch(model).replaced) == 1


def test_an_activation_that_modules_share_stays():
    model = nn.ModuleList([s.Decoder(), nn.SiLU()]).eval()
    model[0].conv_act = model[1]
    x = torch.randn(2, 32, 12, 10)
    with torch.no_grad():
        expected = model[0](x)
        lddgan_kernels.patch(model)
        assert torch.equal(model[1](x), nn.functional.silu(x))
        torch.testing.assert_close(model[0](x), expected)


def test_hooks_inside_a_block_keep_it():
    model, inputs = build("diffusers")
    seen = []
    model[0].norm1.register_forward_hook(lambda *_: seen.append(1))
    report = lddgan_kernels.patch(model)
    assert "residual block" not in {what for _, _, what in report.replaced}
    model[0](*inputs)
    assert seen == [1]


def test_trying_leaves_no_trace():
    model, _ = build("DDGAN")
    model.train()
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    weights = [p.clone() for p in model.parameters()]
    lddgan_kernels.patch(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert all(map(torch.equal, model.parameters(), weights))


def test_the_report_says_what():
    text = str(lddgan_kernels.patch(build("autoencoder")[0]))
    assert "patched 8 modules" in text
    assert "1 x residual block (ResnetBlock2D)" in text
    assert "1 x norm and activation (GroupNorm)" in text


def test_bad_input():
    with pytest.raises(TypeError, match="patch: model must be a torch.nn.Module, got function"):
        lddgan_kernels.patch(build)
    message = "patch: model must be a network with group norms, .* got Sequential"
    for model in (nn.Sequential(nn.Linear(3, 3)), nn.Sequential(s.conv3x3(3, 3), nn.ReLU())):
        with pytest.raises(ValueError, match=message):
            lddgan_kernels.patch(model)
