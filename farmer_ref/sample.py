"""Draw images: `python -m farmer_ref.sample --run runs/digits --out grid.png`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from farmer_ref import cli
from farmer_ref.engine import load_run, resolve_device
from farmer_ref.errors import InputError
from farmer_ref.files import output_file
from farmer_ref.plots import class_labels, image_grid


@dataclass(frozen=True)
class SampleConfig:
    """A grid of samples, one column per class."""

    run: str = "digits"
    """A run folder, or a model that ships with the package (digits, digits-noise)."""
    out: str = "samples.png"
    """The PNG to write."""
    labels: tuple[int, ...] = ()
    """The classes of the columns; none given: the first ten. -1 asks for any class."""
    rows: int = 10
    """Rows of the grid."""
    weights: str = "ema"
    """ema, or raw (those of the newest checkpoint)."""
    seed: int = 0
    """The same seed gives the same images on the same device."""
    device: str = "auto"
    """auto (CUDA when there is one), cpu, cuda, ..."""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InputError(f"rows is {self.rows}; allowed: 1 or more")
        if Path(self.out).suffix.lower() != ".png":
            raise InputError(f"out is {self.out!r}; allowed: a name that ends in .png")


def main(argv: list[str] | None = None) -> None:
    """Draw the samples and write the grid."""
    config = cli.parse("farmer_ref.sample", SampleConfig(), "Draw a grid of samples from a trained FARMER.", argv)
    device, out = resolve_device(config.device), output_file(config.out)
    model = load_run(config.run, config.weights).to(device)
    columns = torch.tensor(config.labels) if config.labels else class_labels(model.config.num_classes, per_class=1)
    labels = columns.repeat(config.rows).to(device)
    images = model.sample(labels, generator=torch.Generator(device).manual_seed(config.seed))
    image_grid(model.dequantiser.without_noise(images), columns=len(columns)).save(out)
    print(f"{len(labels)} samples of {config.run}, columns {', '.join(map(str, columns.tolist()))}: {out}")


if __name__ == "__main__":
    cli.run(main)
