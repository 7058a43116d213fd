"""Score a model: `python -m farmer_ref.evaluate --run runs/digits`."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt

from farmer_ref.data.folders import Split, counted
from farmer_ref.data.sets import ImageData, batches
from farmer_ref.evaluation.classifier import classifier_for, sample_scores
from farmer_ref.evaluation.metrics import (
    evaluate_likelihood,
    frechet_distance,
    sample_batches,
)
from farmer_ref.model.config import NULL_LABEL
from farmer_ref.model.guidance import Guidance
from farmer_ref.model.student import OneStepStudent
from farmer_ref.support import cli, parallel
from farmer_ref.support.errors import InputError, require, require_finite
from farmer_ref.support.files import output_file
from farmer_ref.support.parallel import resolve_device
from farmer_ref.support.record import provenance
from farmer_ref.support.settings import Count, Factor, ThreadCount, Whole, settings_class
from farmer_ref.training.costs import require_room
from farmer_ref.training.runs import Run
from farmer_ref.training.threads import choose_threads

DESCRIPTION = """Score a trained FARMER on a split of a data set.

Likelihood, and the accuracy of a classifier on samples; or, with --fid, the Fréchet distance (FID), Inception score,
precision and recall of samples, drawn now or earlier, against the split's images.
`--guidance 1.5` is short for `--guidance.scale 1.5`: it changes the samples, not the likelihood."""
CLASSIFIED_DIMENSIONS = 4096  # larger images would take the pixel classifier too long


@settings_class
class EvaluateConfig:
    """Likelihood of a split, and the accuracy of a classifier of real images on samples."""

    run: str = "digits"
    """A run folder, a model that ships with the package (digits, ...), or owner/name of the Hugging Face Hub,
    with @revision for a revision other than its newest."""
    split: Split = "test"
    """The split to score."""
    dataset: str = ""
    """The data set; empty: the one the run was trained on."""
    data_root: str = "data"
    """Where torchvision keeps its data sets."""
    download: bool = True
    """Download a missing data set."""
    draws: Count = 8
    """Dequantisations per image."""
    importance_weighted: bool = False
    """Print the tighter, importance-weighted bound over the draws, too."""
    images: Annotated[int, Field(ge=2)] | None = None
    """At most this many images, evenly spaced over the split."""
    samples: NonNegativeInt | None = None
    """Samples to draw and classify, the same number of each class; 0 for none. Default: 1000, or none if images have
    more than 4096 values (too many for the pixel classifier) or no labels; with --fid, as many as there are real
    images."""
    guidance: Guidance = field(default_factory=Guidance)
    """Guidance of the samples; default: the run's own."""
    student: bool = False
    """Decode the samples with the run's one-step student."""
    redundant_temperature: Factor = 1.0
    """Multiplies the standard deviations of the redundant channels' mixture when sampling (Fig. 7)."""
    batch_size: Count = 100
    """Images at a time."""
    weights: Literal["ema", "raw"] = "ema"
    """ema, or raw (those of the newest checkpoint)."""
    seed: Whole = 0
    """Seed of the dequantisation, which does not depend on `batch_size`, and of the samples, which do."""
    fid: bool = False
    """FID, Inception score, precision and recall of samples against the split's images, instead of the likelihood."""
    samples_from: str | None = None
    """With --fid: an .npz file or a folder of PNG files from `farmer_ref.sample`, instead of new samples."""
    extractor: str = "inception-v3-compat"
    """With --fid: the feature extractor. The Inception network of published FIDs, another of torch-fidelity's,
    `classifier` (of the data set's pixels), or module:function of your own (see `farmer_ref.evaluation.fidelity`)."""
    extractor_weights: str | None = None
    """With --fid: a file with the extractor's weights, a pickle that you trust; default: torch-fidelity's download."""
    device: str = "auto"
    """auto (CUDA when there is one), cpu, cuda, ..."""
    threads: ThreadCount | None = None
    """CPU threads; default: OMP_NUM_THREADS, or else the fastest number, by measuring the work itself."""
    out: str | None = None
    """A JSON file to write the figures to."""

    def __post_init__(self) -> None:
        if self.student and self.samples == 0:
            raise InputError("samples is 0, with a student to draw them; allowed: 2 or more")
        if self.student and self.weights == "raw":
            raise InputError("weights is 'raw', with a student; allowed: ema, whose student it is")
        require(self.samples != 1, "samples", 1, "0, or 2 or more")
        if self.fid and self.samples is not None and self.samples < 10:
            raise InputError(f"samples is {self.samples}, with fid; allowed: 10 or more")
        drawn = self.samples is not None or self.student or self.weights == "raw" or self.redundant_temperature != 1
        if self.samples_from and drawn:
            raise InputError(f"samples_from is {self.samples_from!r}, with samples to draw; allowed: one of the two")
        unused = ("draws", "importance_weighted") if self.fid else ("samples_from", "extractor", "extractor_weights")
        how = "with fid; allowed: without it" if self.fid else "without fid; allowed: with --fid"
        for name in unused:
            if getattr(self, name) != getattr(EvaluateConfig, name):  # a default asks for nothing
                raise InputError(f"{name} is {getattr(self, name)!r}, {how}")


def evaluate(config: EvaluateConfig) -> dict:
    """All figures of one model on one split, as they are printed and written."""
    device, run = parallel.join(config.device), Run.open(config.run)
    samples, shape = config.samples, run.model_config
    if samples is None:
        samples = 1000 if shape.num_classes and shape.dimensions <= CLASSIFIED_DIMENSIONS else 0
    most = max(samples, config.images or config.batch_size)  # scored or drawn
    require_room(shape, device, images=min(config.batch_size, most))
    model = run.load(config.weights).to(device)
    require(not samples or model.config.num_classes > 0, "samples", samples, "0 in a model without labels, or --fid")
    require(not config.student or samples > 0, "student", True, "with samples to draw: --samples N, or --fid")
    student = run.load_student(model) if config.student else None
    dataset = config.dataset or run.dataset()
    with parallel.rank_zero_first():
        data = run.split(config.split, dataset, data_root=config.data_root, download=config.download)
    if len(data) < 2:
        raise InputError(
            f"split is {config.split!r}, of {counted(len(data), 'image')} of {dataset}; allowed: a split of 2 or more"
        )
    classifier = None
    if samples:
        train = run.split("train", dataset, data_root=config.data_root, download=config.download)
        classifier = classifier_for(train)
    at_once = min(config.batch_size, len(data))
    choose_threads(model, images=at_once, tokens=model.config.tokens, device=device, wanted=config.threads)
    likelihood = evaluate_likelihood(
        model,
        data,
        draws=config.draws,
        batch_size=config.batch_size,
        limit=config.images,
        seed=config.seed,
        importance_weighted=config.importance_weighted,
    )
    figures: dict[str, Any] = {"run": config.run, "dataset": dataset, "split": config.split, "weights": config.weights}
    figures |= dataclasses.asdict(likelihood)
    if classifier is not None:
        real, real_labels = next(batches(data, len(data), config.images))
        labels = labels_in_turn(train, samples, device)
        choose_threads(model, images=config.batch_size, tokens=1, device=device, wanted=config.threads)
        right, scores = sample_scores(classifier, model, labels, **sampling(config, student))
        figures["samples"] = samples
        figures["guidance"] = dataclasses.asdict(config.guidance)
        figures["student"] = config.student
        figures["redundant_temperature"] = config.redundant_temperature
        figures["sample_accuracy"] = right
        figures["real_image_accuracy"] = classifier.accuracy(real, real_labels)
        figures["frechet_distance"] = frechet_distance(scores, classifier.scores(real))
    return figures


def evaluate_images(config: EvaluateConfig) -> dict:
    """FID and its like of samples against one split, with whose features they are, as printed and written."""
    from farmer_ref.evaluation import fidelity  # here: torch-fidelity is for those who ask for it

    device, run = parallel.join(config.device), Run.open(config.run)
    dataset, shape = config.dataset or run.dataset(), run.model_config
    earlier = fidelity.SavedSamples(config.samples_from, shape.image_size) if config.samples_from else None
    with parallel.rank_zero_first():
        data = run.split(config.split, dataset, data_root=config.data_root, download=config.download)
        if config.extractor == "classifier":
            require(
                config.extractor_weights is None, "extractor_weights", config.extractor_weights, "none for classifier"
            )
            train = run.split("train", dataset, data_root=config.data_root, download=config.download)
            extractor = fidelity.classifier_extractor(classifier_for(train), train)
        else:
            extractor = fidelity.extractor_named(config.extractor, weights=config.extractor_weights, device=device)
    reference = fidelity.reference_features(
        data, config.split, extractor, batch_size=config.batch_size, limit=config.images
    )
    figures: dict[str, Any]
    if earlier is not None:
        count, images = len(earlier), earlier.batches(config.batch_size)
        figures = {"samples_from": config.samples_from, "samples": count}
    else:
        count = config.samples or len(reference)
        require_room(shape, device, images=min(config.batch_size, count))
        model = run.load(config.weights).to(device)
        student = run.load_student(model) if config.student else None
        labels = labels_in_turn(data, count, device)
        choose_threads(model, images=config.batch_size, tokens=1, device=device, wanted=config.threads)
        labels = labels if shape.num_classes else torch.full_like(labels, NULL_LABEL)
        drawn = sample_batches(model, labels, **sampling(config, student))
        images = (fidelity.as_rgb(values, shape.levels) for values in drawn)
        figures = {"run": config.run, "weights": config.weights, "samples": count, "student": config.student}
        figures["guidance"] = dataclasses.asdict(config.guidance)
        figures["redundant_temperature"] = config.redundant_temperature
    samples = fidelity.features_of(images, count=count, extractor=extractor, what="samples")
    figures |= {"dataset": dataset, "split": config.split, "images": len(reference), "image_size": data.image_size}
    figures |= {"extractor": extractor.name, "features": reference.shape[1]}
    found = fidelity.figures_of(samples, reference) if parallel.rank() == 0 else None
    return figures | parallel.gather(found)[0]


def labels_in_turn(data: ImageData, count: int, device: torch.device) -> torch.Tensor:
    """The classes that have images in `data`, in turn, as labels (count,) of samples."""
    present = torch.tensor(data.present(), device=device)
    return present[torch.arange(count, device=device) % len(present)]


def sampling(config: EvaluateConfig, student: OneStepStudent | None) -> dict[str, Any]:
    """How the samples are drawn, as keyword arguments of `sample_batches`."""
    return {
        "seed": config.seed,
        "batch_size": config.batch_size,
        "guidance": config.guidance,
        "student": student,
        "redundant_temperature": config.redundant_temperature,
    }


def describe_images(figures: dict) -> str:
    """The figures of `evaluate_images` as a few lines to read, each with the extractor."""
    samples = f"{figures['samples']} images of {figures.get('samples_from')}"
    if "run" in figures:
        samples = f"{figures['samples']} samples of {figures['run']}{described_samples(figures)}"
    size, by = figures["image_size"], f"by {figures['extractor']}"
    lines = [
        f"{samples} against {figures['images']} {figures['split']} images of {figures['dataset']} ({size}x{size})",
        f"  Fréchet distance {figures['frechet_distance']:.3f}, {by}",
    ]
    if (fewest := min(figures["samples"], figures["images"])) <= figures["features"]:
        lines.append(
            f"    (of {fewest:,} images with {figures['features']:,} features each, which is too few: compare it "
            "only with distances of as many images)"
        )
    if figures["inception_score"] is not None:
        score, deviation = figures["inception_score"], figures["inception_score_deviation"]
        lines.append(f"  Inception score {score:.3f} ± {deviation:.3f} over ten parts, {by}")
    lines.append(f"  precision {figures['precision']:.1%}, recall {figures['recall']:.1%}, {by}")
    return "\n".join(lines)


def described_samples(figures: dict) -> str:
    """How samples were drawn, in words."""
    scale = figures["guidance"]["scale"]
    return (f" with guidance {scale:g}" if scale else "") + (" by the student" if figures["student"] else "")


def describe(figures: dict) -> str:
    """The figures as a few lines to read."""
    subject = f"{figures['run']} ({figures['weights']} weights)"
    lines = [f"{subject} on {figures['images']} {figures['split']} images of {figures['dataset']}"]
    if figures["bits_per_dim"] is not None:
        lines.append(
            f"  {figures['bits_per_dim']:.4f} bits/dim (± {figures['standard_error']:.4f} over images; "
            f"uniform dequantisation, {counted(figures['draws'], 'draw')})"
        )
        if figures["importance_weighted_bits_per_dim"] is not None:
            lines.append(f"  {figures['importance_weighted_bits_per_dim']:.4f} bits/dim, importance-weighted bound")
        kind = "nats/dim of the dequantised image"
    else:
        kind = "nats/dim of the noised image (no bits/dim: the noise is Gaussian)"
    lines.append(
        f"  {figures['nats_per_dim']:.4f} {kind} = informative {figures['informative_nats_per_dim']:.4f} "
        f"+ redundant {figures['redundant_nats_per_dim']:.4f} + minus log-det {figures['logdet_nats_per_dim']:.4f}"
    )
    if "samples" in figures:
        lines.append(
            f"  accuracy on {figures['samples']} samples{described_samples(figures)} {figures['sample_accuracy']:.1%} "
            f"(on real images {figures['real_image_accuracy']:.1%}); "
            f"Fréchet distance of the classifier's scores {figures['frechet_distance']:.3f}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Print the figures, and write them where `--out` says."""
    run, argv = cli.split_run_and_guidance(EvaluateConfig().run, argv)
    default = EvaluateConfig(run=run, guidance=Run.open(run).guidance)
    config = cli.parse("farmer_ref.evaluate", default, DESCRIPTION, argv)
    given = config.guidance != default.guidance
    require(not (given and config.samples_from), "guidance", config.guidance.scale, "the run's own with --samples-from")
    out = output_file(config.out) if config.out else None
    if config.fid:
        figures, description = evaluate_images(config), describe_images
    else:
        figures, description = evaluate(config), describe
    numbers = {name: torch.tensor(value) for name, value in figures.items() if isinstance(value, float)}
    for name, value in numbers.items():
        require_finite(name, value, "a finite number, of a model that scores these images")
    made = provenance(resolve_device(config.device)) if out else {}
    cli.report(description(figures), {**made, **figures}, out)


if __name__ == "__main__":
    cli.run(main)
