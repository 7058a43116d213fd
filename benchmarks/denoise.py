"""Does Tweedie's formula denoise samples? `python -m benchmarks.denoise`. Writes results/denoise.json and .png.

Two models of the digits: the shipped `digits-noise`, whose training noise ends at the paper's .005, and one trained
here with a noise of .1 throughout. For each, real test images with that noise, and samples, both before and after
denoising: how far pixels that are blank in every training image stray from blank, a classifier's accuracy, and the
Fréchet distance of its scores to the test split's.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from farmer_ref import Farmer, train
from farmer_ref.data.sets import batches, load_split
from farmer_ref.evaluation.metrics import PixelClassifier, frechet_distance
from farmer_ref.support import cli
from farmer_ref.support.files import write_json
from farmer_ref.support.plots import labelled_grids
from farmer_ref.support.record import ROOT, provenance
from farmer_ref.support.settings import settings_class

STRONG = 0.1


@settings_class
class DenoiseBenchmark:
    """Training and samples."""

    samples: PositiveInt = 1000
    """Samples of each model."""
    minutes: PositiveFloat = 6.0
    """Training time of the noisy model, at most."""
    threads: PositiveInt = 2
    """CPU threads."""


def figures_of(model: Farmer, samples: int) -> tuple[dict, dict[str, Tensor]]:
    """The figures of one model, and thirty samples before and after denoising."""
    train_split, test_split = (
        load_split("digits", split, model.config, data_root="data", download=False) for split in ("train", "test")
    )
    classifier = PixelClassifier(train_split)
    seen, _ = next(batches(train_split, len(train_split)))
    blank = (seen == 0).all(0)  # (C,H,W): pixels that are blank in every training image
    values, labels = next(batches(test_split, len(test_split)))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(values.shape, generator=generator)
    clean, noisy = model.dequantiser(values, torch.zeros_like(noise)), model.dequantiser(values, noise)
    wanted = torch.arange(samples) % model.config.num_classes
    with torch.no_grad():
        raw = model.decode(model.prior.sample(wanted, generator=generator))
    figures = {"noise_std": model.config.noise_final, "blank_pixels": int(blank.sum())}
    stages = {"before": (noisy, raw), "after": (model.denoise(noisy, labels), model.denoise(raw, wanted))}
    for stage, (real, drawn) in stages.items():
        quantised = model.dequantiser.quantise(drawn)
        figures[stage] = {
            "error_on_noisy_test_images": float((real - clean).square().mean().sqrt()),
            "stray_of_blank_pixels_in_samples": float((drawn[:, blank] + 1).square().mean().sqrt()),
            "sample_accuracy": classifier.accuracy(quantised, wanted),
            "frechet_distance": frechet_distance(classifier.scores(quantised), classifier.scores(values)),
        }
    return figures, {stage: drawn[:30].clamp(-1, 1) for stage, (_, drawn) in stages.items()}


def main(argv: list[str] | None = None) -> None:
    config = cli.parse("benchmarks.denoise", DenoiseBenchmark(), "Measure Tweedie's step on two noisy models.", argv)
    torch.set_num_threads(config.threads)
    made = provenance(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        noisy = ["--preset", "digits-noise", "--model.noise-final", str(STRONG)]
        train.main([*noisy, "--max-minutes", str(config.minutes), "--device", "cpu", "--out", folder])
        models = {"paper": Farmer.from_pretrained("digits-noise"), "strong": Farmer.from_pretrained(folder)}
    record, pictures = {**made, **dataclasses.asdict(config)}, {}
    for name, model in models.items():
        record[name], samples = figures_of(model, config.samples)
        pictures |= {f"noise {model.config.noise_final:g}, {stage}": images for stage, images in samples.items()}
        print(name, json.dumps(record[name], indent=2), flush=True)
    write_json(ROOT / "results" / "denoise.json", record)
    labelled_grids(pictures, columns=10).savefig(ROOT / "results" / "denoise.png")


if __name__ == "__main__":
    cli.run(main)
