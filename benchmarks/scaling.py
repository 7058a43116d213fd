"""Throughput of training steps on synthetic images: `python -m benchmarks.scaling --preset farmer-1.1b-p16`.

For each variant (plain, activations checkpointed, compiled): images per second, model FLOP utilisation (MFU) and peak
memory at growing batch sizes, until one does not fit. Then test bits/dim of a trained model (`--run`) in bfloat16 and
in float32. Writes results/scaling.json, or results/scaling_cuda.json on a GPU, whose figures are the ones that matter.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt

from farmer_ref import Farmer
from farmer_ref.data.order import Batch, training_images
from farmer_ref.data.sets import load_split
from farmer_ref.evaluation.metrics import evaluate_likelihood
from farmer_ref.model.farmer import negative_log_likelihood
from farmer_ref.model.transformer import TrainingPass
from farmer_ref.parameters import count
from farmer_ref.support import cli
from farmer_ref.support.errors import require
from farmer_ref.support.files import write_json
from farmer_ref.support.record import ROOT, provenance, timed
from farmer_ref.support.settings import settings_class
from farmer_ref.training.config import TrainConfig
from farmer_ref.training.costs import peak_flops, saved_bytes, state_bytes, training_flops
from farmer_ref.training.presets import PRESETS
from farmer_ref.training.runs import Run
from farmer_ref.training.trainer import MovingAverage, Trainer, autocast, set_up

VARIANTS = {
    "plain": {},
    "activations checkpointed": {"checkpoint_activations": True},
    "compiled": {"compile": True},
    "compiled, activations checkpointed": {"compile": True, "checkpoint_activations": True},
}


@settings_class
class ScalingBenchmark:
    """The training steps to time."""

    preset: str = "farmer-1.1b-p16"
    """The preset whose model is trained."""
    batches: tuple[PositiveInt, ...] = (8, 16, 32, 48, 64, 96, 128, 160, 192, 256)
    """Batch sizes, tried in turn until one does not fit."""
    steps: PositiveInt = 8
    """Timed steps, after two of warm-up; the median counts."""
    run: str = "digits"
    """A trained model whose bits/dim are compared in both precisions."""
    data_root: str = "data"
    """Where torchvision keeps that model's data."""
    device: str = "auto"
    """auto, cpu, cuda."""

    def __post_init__(self) -> None:
        require(self.preset in PRESETS, "preset", self.preset, ", ".join(PRESETS))
        require(bool(self.batches), "batches", self.batches, "one or more")


def time_steps(preset: TrainConfig, variant: dict[str, Any], *, batch_size: int, steps: int) -> dict[str, float] | None:
    """Time a training step as `farmer_ref.train` takes it, and derive rates and memory; None if memory is short."""
    config = dataclasses.replace(preset, batch_size=batch_size, **variant)
    device = set_up(config)
    try:
        with device:  # a billion weights are drawn faster where they will be used
            model = Farmer(config.model)
        if config.model.patch_basis == "pca":
            model.patchify.fit(torch.rand(64, *image_shape(config), device=device) * 2 - 1)
        average = MovingAverage(model, lambda: Farmer(config.model), decay=config.ema_decay)
        dimensions = config.model.dimensions

        def loss(batch: Batch, progress: float, training: TrainingPass) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            images, labels = training_images(
                batch,
                model.dequantiser,
                seed=0,
                progress=progress,
                label_dropout=config.label_dropout,
                device=device,
            )
            with autocast(device, config.precision):
                terms = model(images, labels if config.model.num_classes else None, training)
            value = negative_log_likelihood(terms, dimensions)
            return value, {"nats_per_dim": value.detach()}

        trainer = Trainer(
            config,
            Path("unused"),
            model=model,
            average=average,
            export=lambda: None,
            loss=loss,
            batches=lambda _: iter(()),
            events=[],
            tokens=config.model.tokens,
        )
        generator = torch.Generator().manual_seed(0)
        values = torch.randint(config.model.levels, (batch_size, *image_shape(config)), generator=generator)
        labels = torch.randint(max(1, config.model.num_classes), (batch_size,), generator=generator)
        batch = Batch(0, values.to(torch.uint8), labels)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = [timed(lambda: trainer._optimise(batch), device) for _ in range(steps + 2)][2:]
    except torch.OutOfMemoryError:
        return None
    rate, peak = batch_size / statistics.median(seconds), peak_flops(device)
    checkpointed = config.checkpoint_activations
    predicted = state_bytes(count(config.model)["total"]) + batch_size * saved_bytes(
        config.model, checkpoint_activations=checkpointed, precision=config.precision
    )
    return {
        "batch": batch_size,
        "seconds": statistics.median(seconds),
        "slowest_seconds": max(seconds),
        "images_per_second": rate,
        "model_flops_utilisation": rate * training_flops(config.model) / peak if peak else None,
        "peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
        "predicted_memory_gib": predicted / 2**30,
    }


def free_memory() -> None:
    """Free what a measurement leaves behind: a layer and its compiled call hold each other until they are collected."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


def image_shape(config: TrainConfig) -> tuple[int, int, int]:
    """(C,H,W)."""
    return config.model.channels, config.model.image_size, config.model.image_size


def sweep(config: ScalingBenchmark) -> dict[str, list[dict[str, float]]]:
    """Time each variant at the batch sizes that fit; compiled, at the two largest that fit uncompiled."""
    preset = dataclasses.replace(PRESETS[config.preset], device=config.device)
    rows: dict[str, list[dict[str, float]]] = {}
    for name, variant in VARIANTS.items():
        batches = config.batches
        if variant.get("compile"):
            eager = rows[name.removeprefix("compiled, ") if "," in name else "plain"]
            batches = [row["batch"] for row in eager[-2:]]
        rows[name] = []
        for batch_size in batches:
            measured = time_steps(preset, variant, batch_size=batch_size, steps=config.steps)
            free_memory()
            if measured is None:
                print(f"{name}: batch {batch_size} does not fit", flush=True)
                break
            rows[name].append(measured)
            used = measured["model_flops_utilisation"]
            print(
                f"{name}: batch {batch_size}, {measured['images_per_second']:.1f} images/s"
                + (f", MFU {used:.1%}, {measured['peak_memory_gib']:.1f} GiB" if used else "")
                + f" ({measured['predicted_memory_gib']:.1f} GiB predicted)",
                flush=True,
            )
    return rows


def precisions(config: ScalingBenchmark, device: torch.device) -> dict[str, Any]:
    """Test bits/dim of a trained model with transformer layers in float32 and in bfloat16, same dequantisation."""
    run = Run.open(config.run)
    model = run.load().to(device)
    data = load_split(run.dataset(), "test", model.config, data_root=config.data_root, download=False)
    found = {}
    for precision in ("float32", "bfloat16"):
        with autocast(device, precision):
            found[precision] = evaluate_likelihood(model, data, draws=1, limit=2000).bits_per_dim
    print(f"{config.run}: test bits/dim {found['float32']:.4f} in float32, {found['bfloat16']:.4f} in bfloat16")
    return {"run": config.run, "bits_per_dim": found}


def main(argv: list[str] | None = None) -> None:
    description = "Time training steps on synthetic images."
    config = cli.parse("benchmarks.scaling", ScalingBenchmark(), description, argv)
    device = set_up(dataclasses.replace(PRESETS[config.preset], device=config.device))
    made, rows = provenance(device), sweep(config)
    record = {
        **made,
        "preset": config.preset,
        "precision": PRESETS[config.preset].precision,
        "gflop_per_image": training_flops(PRESETS[config.preset].model) / 1e9,
        "ways": rows,
        "precisions": precisions(config, device),
    }
    name = "scaling_cuda.json" if device.type == "cuda" else "scaling.json"
    write_json(ROOT / "results" / name, record)


if __name__ == "__main__":
    cli.run(main)
