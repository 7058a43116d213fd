"""Solutions of notebook 00: what the label is worth, and which width is best for a few seconds of training."""

from __future__ import annotations

import math
import tempfile

import torch
from torch import Tensor

from farmer_ref import Farmer, bits_per_dim, train
from farmer_ref.data.sets import batches, load_split


def bits_of_the_label(model: Farmer, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Bits per image that the label saves: over the null class, and over the average of all classes."""
    with torch.no_grad():
        given, null = model.log_prob(images, labels), model.log_prob(images)
        each = torch.stack([model.log_prob(images, torch.full_like(labels, c)) for c in range(10)])
    average = each.logsumexp(0) - math.log(10)
    return tuple(((given - other).mean() / math.log(2)).item() for other in (null, average))


def bits_after(seconds: float, width: int, folder: str) -> float:
    """Validation bits/dim of the digits preset at another width, trained for some seconds."""
    widths = ["--model.flow-width", str(width), "--model.prior-width", str(width)]
    quiet = ["--validate-every", "0", "--sample-every", "0", "--device", "cpu"]
    length = ["--max-minutes", str(seconds / 60)]
    train.main(["--preset", "digits", "--out", folder, *length, *widths, *quiet])
    model = Farmer.from_pretrained(folder)
    values, labels = next(batches(load_split("digits", "validation", model.config), 100))
    return bits_per_dim(model, values, labels).mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = Farmer.from_pretrained("digits")
    values, labels = next(batches(load_split("digits", "test", model.config), 300))
    noise = model.dequantiser.draw(tuple(values.shape), torch.Generator().manual_seed(0))
    null, average = bits_of_the_label(model, model.dequantiser(values, noise), labels)
    print(
        f"bits per image that the label saves: {null:.2f} over the null class, {average:.2f} over the average class"
    )
    for width in (32, 64, 128):
        with tempfile.TemporaryDirectory() as folder:
            print(
                f"width {width}: {bits_after(15, width, folder):.3f} bits/dim on the validation split"
            )
