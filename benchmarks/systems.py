"""Sampling each system: ours, our reference implementation, and the published code.

Without LDDGAN_PUBLISHED_CODE (see `_published_code`) the sides of the published code are left out.
It is run as it is, contiguous, in float32 and under bfloat16 autocast; each side samples in T calls
with noise of its own, into pixels, wavelets or latents: whatever the generator makes.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import _published_code
from benchmarks._harness import Case, device, network_dtypes
from benchmarks._plain_models import PUBLISHED
from benchmarks.sampling import Subject
from lddgan_kernels import use_backend
from lddgan_kernels.testing import relative_error

# Presets, and where their network was published.
SYSTEMS = {
    "cifar10": "LDDGAN",
    "ddgan-cifar10": "denoising-diffusion-gan",
    "wddgan-cifar10": "WaveDiff",
    "wddgan-stl10": "WaveDiff",
    "cifar10-vit-tiny": None,
}
# Over the published code: never slower in float32, twice as fast in the best dtype at batch 16.
SECONDS = 2.0
TARGETS = {
    ("float32", 1): {"published code": 1.0},
    ("float32", 16): {"published code": 1.0},
    ("bfloat16", 16): {"best published": 2.0},
}


class Published:
    """The published network with the weights of a subject in float32."""

    def __init__(self, subject: Subject, repository: str) -> None:
        self.subject = subject
        self.network = _published_code.generator(repository, subject.generator)

    def sampler(self, batch: int, autocast: bool) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
                return self.network(x, t, z).float()

        noise = self.subject.noise(torch.contiguous_format)
        return lambda seeds: self.subject.plain(call, PUBLISHED, batch, noise)

    def check(self) -> None:
        """The two are the same function."""
        shape, z_dim = self.subject.shape, self.subject.z_dim
        x, z = torch.randn(2, *shape, device=device()), torch.randn(2, z_dim, device=device())
        t = torch.arange(2, device=device())
        with torch.no_grad():
            error = relative_error(self.subject.last(x, t, z), self.network(x, t, z).double())
        assert error <= 1e-4, error


def _case(subject: Subject, batch: int, published: Published | None) -> Case:
    def reference(seeds: Tensor) -> Tensor:
        with use_backend("reference"):
            return subject.ours(seeds)

    sides: dict[str, Callable] = {"ours": subject.ours, "reference": reference}
    best = {}
    if published is not None:
        sides["published code"] = published.sampler(batch, autocast=False)
        sides["published autocast"] = published.sampler(batch, autocast=True)
        best["best published"] = ("published code", "published autocast")

    def check() -> None:
        subject.check()
        if published is not None:
            published.check()

    targets = TARGETS.get((subject.dtype_name, batch), {}) if published is not None else {}
    return subject.case(batch, sides, check, targets=targets, best=best)


def cases_of_systems(everything: bool) -> Iterator[Case]:
    """There are no further ones for `everything`."""
    for preset, repository in SYSTEMS.items():
        subjects = [Subject(preset, dtype) for dtype in network_dtypes()]
        full = subjects[0]
        published = None
        if repository is not None and _published_code.folder() is not None:
            published = Published(full, repository)
        for subject in subjects:
            for batch in (1, 16):
                yield _case(subject, batch, published)
