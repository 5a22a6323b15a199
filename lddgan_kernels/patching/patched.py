"""Which modules of a network are replaced, and what became of them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lddgan_kernels._checks import fail
from lddgan_kernels.patching import blocks, layers
from lddgan_kernels.patching.rule import Rule, is_replaced, original_class, replace, restore

# By the name of the class; the first rule that such a module passes is taken.
RULES: dict[str, tuple[Rule, ...]] = {
    "ResnetBlock2D": (blocks.DIFFUSERS,),
    "ResBlock": (blocks.ADM,),
    "UNetBlock": (blocks.EDM,),
    "ResnetBlockBigGANpp": (blocks.SCORE_SDE,),
    "ResnetBlockBigGANpp_Adagn": (blocks.SCORE_SDE,),
    "ResnetBlockBigGANpp_Adagn_one": (blocks.SCORE_SDE,),
    "ResnetBlockDDPMpp": (blocks.SCORE_SDE,),
    "ResnetBlockDDPMpp_Adagn": (blocks.SCORE_SDE,),
    "ResnetBlockDDPM": (blocks.SCORE_SDE,),
    "ResnetBlock": (blocks.LATENT_DIFFUSION,),
    "Upsample2D": (layers.UPSAMPLE_CONV,),
    "Upsample": (layers.RESAMPLE, layers.UPSAMPLE_CONV),
    "Downsample": (layers.RESAMPLE,),
    "FirUpsample2D": (layers.RESAMPLE,),
    "FirDownsample2D": (layers.RESAMPLE,),
    "Conv2d": (layers.EDM_CONV,),
    "GroupNorm": (layers.FOREIGN_NORM,),
    "GroupNorm32": (layers.FOREIGN_NORM,),
}
# PyTorch's own classes, of which nothing has to be tried.
PLAIN_RULES: dict[type, Rule] = {
    nn.Sequential: layers.SEQUENCE,
    nn.GroupNorm: layers.NORM,
    nn.Conv2d: layers.CONV,
}
PARTS = ("GroupNorm", "GroupNorm32", "Sequential")
ENDS = ("UNet2DModel", "UNet2DConditionModel", "Encoder", "Decoder")
Found = tuple[str, nn.Module, Rule]  # name, module, what replaces it
# Of a sum of products; another formula is off by more.
TOLERANCE = 1e-3


class Patched:
    """What `patch` replaced in a network; `print` it. As a context manager it takes it back.

    Attributes:
        replaced: (name of the module, its class, what it is), in the network's order.
        left: (name, class) of modules that look known but compute something else.
    """

    def __init__(self) -> None:
        self.replaced: list[tuple[str, str, str]] = []
        self.left: list[tuple[str, str]] = []
        self._modules: list[nn.Module] = []

    def unpatch(self) -> None:
        """Makes every module what it was; its weights stay."""
        for module in self._modules:
            if is_replaced(module):
                restore(module)
        self._modules.clear()

    def __enter__(self) -> "Patched":
        return self

    def __exit__(self, *_: object) -> None:
        self.unpatch()

    def __str__(self) -> str:
        counts = Counter((what, kind) for _, kind, what in self.replaced)
        lines = [f"patched {len(self.replaced)} modules"]
        lines += [f"  {count} x {what} ({kind})" for (what, kind), count in counts.items()]
        lines += [f"  left as it is, it computes something else: {n} ({k})" for n, k in self.left]
        return "\n".join(lines)


def patch_model(model: nn.Module) -> Patched:
    """Has a network run on these kernels, in place: same weights, names, outputs and gradients.

    Known are the residual blocks, norms with their activation, and resampling of U-Nets and
    autoencoders of diffusers, ADM (guided-diffusion), EDM, score_sde, DDGAN and latent diffusion;
    in any other network PyTorch's group norms, alone or before an activation in an
    `nn.Sequential`, and its convolutions. A module of a known name is first tried: on random
    weights its output must be what it was. On a CPU convolutions are packed for
    inference: `model.eval()`, no gradients, and `model.to(memory_format=torch.channels_last)`.

    Gradients are of the first order (under `use_backend("reference")` of any). Hooks on a norm or
    activation inside a replaced block no longer fire.

    Args:
        model: in any mode, of any dtype, on any device.

    Returns:
        What was replaced. `unpatch()` takes it back, and so does the end of a `with` block.

    Raises:
        TypeError: the model is no module. ValueError: it holds nothing that is known.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"patch: model must be a torch.nn.Module, got {type(model).__name__}")
    report = Patched()
    found = _norms_before_activations(model)
    trials: dict[Any, bool] = {}
    inside: set[int] = set()  # what replaced blocks hold
    for name, module in model.named_modules():
        if is_replaced(module):  # by an earlier call
            inside.update(map(id, module.modules()))
        if id(module) in inside and type(module).__name__ in PARTS:
            continue  # the block calls it itself
        for rule in _rules_of(module):
            if rule.prepare(module) is None:
                continue
            if rule.example is not None:
                kind = rule, _structure(module)
                if kind not in trials:
                    trials[kind] = _computes_the_same(module, rule)
                if not trials[kind]:
                    report.left.append((name, type(module).__name__))
                    continue
            found.append((name, module, rule))
            if rule.what == "residual block":
                inside.update(map(id, module.modules()))
            break
    if all(rule is layers.CONV for *_, rule in found):
        expected = "a network with group norms, or with blocks of a known library"
        already = " that is patched already" if any(map(is_replaced, model.modules())) else ""
        raise fail("patch", "model", expected, type(model).__name__ + already)
    for name, module, rule in found:
        prepared = rule.prepare(module)
        if prepared is None or is_replaced(module):  # found twice
            continue
        if rule.what:
            report.replaced.append((name, type(module).__name__, rule.what))
        report._modules.append(module)
        replace(module, rule, prepared)
    return report


def _rules_of(module: nn.Module) -> tuple[Rule, ...]:
    if is_replaced(module):
        return ()
    plain = PLAIN_RULES.get(type(module))
    return RULES.get(type(module).__name__, ()) if plain is None else (plain,)


def _norms_before_activations(model: nn.Module) -> list[Found]:
    """diffusers' networks and autoencoders end in a norm, a SiLU and a convolution.

    Some versions share one SiLU among all their modules, of which none may become the identity.
    """
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    found: list[Found] = []
    for name, module in model.named_modules():
        norm, act, last = (
            getattr(module, part, None) for part in ("conv_norm_out", "conv_act", "conv_out")
        )
        known = original_class(module).__name__ in ENDS and last is not None
        alone = places[id(norm)] == places[id(act)] == 1
        if known and alone and type(norm) is nn.GroupNorm and type(act) is nn.SiLU:
            found.append((f"{name}.conv_norm_out".lstrip("."), norm, layers.NORM_SILU))
            found.append((f"{name}.conv_act".lstrip("."), act, layers.ITS_SILU))
    return found


def _structure(module: nn.Module) -> Any:
    """Equal for modules of one class that take the same way through it."""

    def facts(part: nn.Module) -> Any:
        plain = {
            name: value
            for name, value in vars(part).items()
            if isinstance(value, (bool, str, float, tuple, type(None))) and name != "training"
        }
        missing = [name for name, value in part._parameters.items() if value is None]
        return original_class(part), tuple(sorted(map(repr, plain.items()))), tuple(missing)

    return tuple((name, facts(part)) for name, part in module.named_modules())


@torch.no_grad()
def _computes_the_same(module: nn.Module, rule: Rule) -> bool:
    """Whether the module gives the same replaced as not, with random weights in float32."""
    prepared = rule.prepare(module)
    assert rule.example is not None
    assert prepared is not None
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {name: buffer.cpu() for name, buffer in module.named_buffers()}
    for name, p in module.named_parameters():
        weight = torch.randn(p.shape, generator=generator)
        state[name] = weight if p.ndim < 2 else weight / p[0].numel() ** 0.5
    with _evaluated(module):
        try:
            example = rule.example(module)
            expected = functional_call(module, state, example)
            replace(module, rule, prepared)
            try:
                actual = functional_call(module, state, example)
            finally:
                restore(module)
        # Whatever a class of the same name may raise, it is not the one that is known.
        except Exception:
            return False
    if not isinstance(actual, Tensor) or actual.shape != expected.shape:
        return False
    return bool((actual - expected).abs().max() <= TOLERANCE * expected.abs().max())


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, and its parts."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
