"""A generator as a file: exported for batches of any size, loaded, run."""

import tempfile
from pathlib import Path

import torch

from lddgan_kernels.models import Generator, GeneratorConfig


def main() -> None:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(4, 16, base_channels=32, num_blocks=1)).eval()

    def inputs(n: int) -> tuple[torch.Tensor, ...]:
        return torch.randn(n, 4, 16, 16), torch.zeros(n, dtype=torch.int64), torch.randn(n, 25)

    batch = torch.export.Dim("N", min=1)
    with torch.no_grad():
        program = torch.export.export(
            generator, inputs(3), dynamic_shapes=({0: batch}, {0: batch}, {0: batch})
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "generator.pt2"
            torch.export.save(program, path)
            loaded = torch.export.load(path).module()
        given = inputs(5)
        difference = (loaded(*given) - generator(*given)).abs().max()
    print(f"5 images by a program of 3: differs by {difference:.1e}")
    assert difference < 1e-4


if __name__ == "__main__":
    main()
