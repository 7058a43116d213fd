"""What ships of MNIST, made stage by stage: `python -m benchmarks.mnist --stage classifier --data-root PATH`.

`classifier` trains the small ConvNet that judges samples: results/mnist_classifier.json.
`model` measures a trained run, in the half precision in which models ship, once on the test split:
results/<preset>.json, with a grid of samples. The run is that of `python -m farmer_ref.train --preset mnist-p2`.
`student` does so with the run's student (`python -m farmer_ref.distill`).
`guidance` draws samples of the shipped model with several scales and temperatures: results/<preset>_guidance.json.

With `--ship`, the first three also replace what ships with the package, models under the name of their preset.
`images`, which needs it, picks the images that ship (data set `mnist-small`): one PNG mosaic with their labels.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import PositiveInt
from torch import Tensor, nn

from farmer_ref import PRESETS, Farmer, Guidance
from farmer_ref.data.sets import ImageSet, batches, load_split
from farmer_ref.evaluation.classifier import WEIGHTS, ConvClassifier, shipped_classifier
from farmer_ref.evaluation.metrics import evaluate_likelihood, frechet_distance, sample_values
from farmer_ref.model.pretrained import STUDENT, fingerprint
from farmer_ref.support import cli
from farmer_ref.support.errors import require
from farmer_ref.support.files import (
    CHECKSUM,
    PRETRAINED,
    pretrained_folder,
    read_metadata,
    read_metrics,
    read_weights,
    replace_file,
    write_config,
    write_json,
    write_weights,
)
from farmer_ref.support.plots import image_grid, save_picture
from farmer_ref.support.record import ROOT, provenance
from farmer_ref.support.settings import Whole, settings_class
from farmer_ref.training.checkpoint import last_state
from farmer_ref.training.config import TrainConfig
from farmer_ref.training.runs import Run, run_record, saved_settings

BESIDE = PRETRAINED / "mnist"  # the images and the classifier
COUNTS = {"train": 100, "validation": 100, "test": 300}  # images of each split in the mosaic
COLUMNS = 25
GUIDES = (  # scale w, T_pi, T_sigma
    *((scale, 1.0, 1.0) for scale in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)),
    (0.0, 1.0, 0.9),
    (0.0, 1.5, 1.0),
    (0.0, 1.5, 0.9),
    (1.0, 1.0, 0.9),
    (2.0, 1.0, 0.9),
)
LICENCE = (
    "MNIST, Yann LeCun, Corinna Cortes and Christopher J. C. Burges, http://yann.lecun.com/exdb/mnist/, "
    "made from NIST's Special Databases 1 and 3; Creative Commons Attribution-Share Alike 3.0"
)


@settings_class
class MnistConfig:
    """One stage."""

    stage: Literal["classifier", "images", "model", "student", "guidance"]
    """What to make."""
    run: str = "runs/mnist-p2"
    """The trained run (stages model and student)."""
    preset: str = "mnist-p2"
    """The preset it was trained with, whose name the shipped model has."""
    ship: bool = False
    """Put what was made into the package; else it is only measured."""
    data_root: str = "data"
    """Where torchvision keeps its data sets."""
    epochs: PositiveInt = 6
    """Passes over the training images (stage classifier)."""
    draws: PositiveInt = 1
    """Dequantisations per test image (stage model)."""
    samples: PositiveInt = 1000
    """Samples to classify."""
    seed: Whole = 0
    """Seed of the classifier, and of the samples."""
    threads: PositiveInt = 2
    """CPU threads."""


def split_of(config: MnistConfig, name: str) -> ImageSet:
    """One split of the whole MNIST."""
    return load_split("mnist", name, PRESETS["mnist"].model, data_root=config.data_root)


def make_classifier(config: MnistConfig) -> None:
    """Train the ConvNet with shifts of up to 2 pixels; report its accuracy on validation and, once, on test images."""
    made = made_by(config)
    torch.manual_seed(config.seed)
    train, classifier, size = split_of(config, "train"), ConvClassifier(), 100
    steps = config.epochs * len(train) // size
    optimiser = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps)
    began = time.perf_counter()
    for _ in range(steps):
        rows = torch.randint(len(train), (size,))
        shift = torch.randint(-2, 3, (2,)).tolist()
        loss = F.cross_entropy(classifier(train.values[rows].roll(shift, (2, 3))), train.labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    classifier.eval()
    weights = halves(classifier.state_dict())
    classifier.load_state_dict(weights)  # measured as it ships
    if config.ship:
        write_weights(WEIGHTS, weights)
    accuracy = {}
    for name in ("validation", "test"):
        split = split_of(config, name)
        accuracy[name] = classifier.accuracy(split.values, split.labels)
    figures = {"accuracy": accuracy, "parameters": parameters(classifier), "seconds": time.perf_counter() - began}
    write_json(ROOT / "results" / "mnist_classifier.json", {**made, **figures})
    print(json.dumps(figures))


def made_by(config: MnistConfig) -> dict[str, object]:
    """How a stage was made, without the folders of that machine."""
    settings = dataclasses.asdict(dataclasses.replace(config, data_root="data", run=""))
    return {**provenance(torch.device("cpu")), "settings": settings}


def parameters(module: nn.Module) -> int:
    """The number of weights."""
    return sum(parameter.numel() for parameter in module.parameters())


def curve_of(run: Path) -> list[dict[str, Any]]:
    """The likelihoods in a run's log, over steps and seconds."""
    log = read_metrics(run)
    unit = "bits_per_dim" if any("bits_per_dim" in line for line in log) else "nats_per_dim"
    keys = ("step", "seconds", unit, f"validation_{unit}")
    return [{key: line[key] for key in keys if key in line} for line in log if line.keys() & set(keys[2:])]


def halves(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point weights in float16; integers stay as they are."""
    return {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}


def make_images(config: MnistConfig) -> None:
    """As many images of each class in every split, the first of each, as a mosaic of grey levels, row by row."""
    require(config.ship, "ship", config.ship, "True for the stage images, which measures nothing")
    values, labels = [], {}
    for name, count in COUNTS.items():
        split = split_of(config, name)
        chosen = torch.cat([(split.labels == c).nonzero().flatten()[: count // 10] for c in range(10)])
        chosen = chosen.view(10, -1).T.flatten()  # 0, 1, ..., 9, 0, 1, ...
        values.append(split.values[chosen])
        labels[name] = split.labels[chosen].tolist()
    tiles = torch.cat(values).view(-1, COLUMNS, *values[0].shape[2:])  # (rows,COLUMNS,H,W)
    picture = Image.fromarray(tiles.transpose(1, 2).flatten(0, 1).flatten(1).numpy())
    replace_file(BESIDE / "images.png", lambda path: picture.save(path, format="PNG", optimize=True))
    write_json(BESIDE / "images.json", {"licence": LICENCE, "columns": COLUMNS, "labels": labels})


def in_half_precision(config: MnistConfig) -> Path:
    """The folder of the run's weights as they ship: in the package, or else within the run."""
    return PRETRAINED / config.preset if config.ship else Path(config.run) / "half"


def make_model(config: MnistConfig) -> None:
    """What the run's averaged weights score in half precision, results/<preset>.json."""
    run, made = Path(config.run), provenance(torch.device("cpu"))
    preset, state, target = PRESETS[config.preset], last_state(run), in_half_precision(config)
    of_ours = {name: getattr(preset, name) for name in ("preset", "out", "data_root", "download")}
    settings = dataclasses.replace(saved_settings(run), **of_ours, resume=False)  # not that machine's folders
    models, before = {"float32": Farmer.from_pretrained(run)}, trained_before(settings)
    target.mkdir(exist_ok=True)
    write_config(target, run_record(settings))
    write_weights(target / "model.safetensors", halves(read_weights(run / "model.safetensors")))
    model = models["float16"] = Farmer.from_pretrained(target)
    validation, test = split_of(config, "validation"), split_of(config, "test")
    unit = "bits_per_dim" if model.config.dequantisation == "uniform" else "nats_per_dim"
    figures = {
        "parameters": parameters(model),
        "training_steps": state.step,
        "training_minutes": state.seconds / 60,
        **({"before": before} if before else {}),
        f"validation_{unit}": {
            name: getattr(evaluate_likelihood(m, validation, draws=1, limit=1000), unit) for name, m in models.items()
        },
        "test": dataclasses.asdict(
            evaluate_likelihood(model, test, draws=config.draws, importance_weighted=config.draws > 1)
        ),
        **({"noise": noise_figures(model, validation)} if model.config.noise_width else {}),
    } | sample_figures(config, model, test)
    shape = {**made, "settings": dataclasses.asdict(settings)}
    grid = image_grid(grid_of(config, model), columns=10, cell=56)
    save_picture(grid, ROOT / "results" / f"{config.preset}_samples.png")
    if config.ship:
        write_json(target / "record.json", {**made, **figures})
    write_json(ROOT / "results" / f"{config.preset}.json", {**shape, **figures, "curve": curve_of(run)})
    print(json.dumps(figures, indent=2))


def trained_before(settings: TrainConfig) -> list[dict[str, Any]]:
    """The steps and minutes of the runs that this one goes on from, the first one first."""
    if not settings.init_from:
        return []
    folder = pretrained_folder(settings.init_from)
    if (folder / "record.json").is_file():  # a model that ships
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        last = {name: record[name] for name in ("commit", "training_steps", "training_minutes")}
        return [*record.get("before", []), last]
    state = last_state(folder)
    last = {"training_steps": state.step, "training_minutes": state.seconds / 60}
    return [*trained_before(saved_settings(folder)), last]


def noise_figures(model: Farmer, split: ImageSet) -> dict[str, dict[str, float]]:
    """The mean shift and scale of the learned noise, of black pixels and of others, over 500 images."""
    values = split.values[:500]
    with torch.no_grad():
        shift, log_scale = model.noise.shift_and_log_scale(values.double(), torch.float32)
    return {
        name: {"shift": float(shift[chosen].mean()), "scale": float(log_scale[chosen].exp().mean())}
        for name, chosen in {"black": values == 0, "other": values > 0}.items()
    }


def sample_figures(config: MnistConfig, model: Farmer, test: ImageSet, **options: object) -> dict[str, object]:
    """Accuracy and Fréchet distance of samples under two guidance scales, and the ConvNet's accuracy on real images."""
    classifier, real = shipped_classifier(), next(batches(test, 1000, limit=1000))
    scores, found = classifier.scores(real[0]), {}
    for scale in (0.0, 1.0):
        found[f"{scale:g}"] = judged(config, model, classifier, scores, guidance=Guidance(scale=scale), **options)
    return {"samples": config.samples, "real_accuracy": classifier.accuracy(*real), "guidance_scale": found}


def judged(
    config: MnistConfig, model: Farmer, classifier: ConvClassifier, real: Tensor, **options: object
) -> dict[str, float]:
    """The accuracy of samples, and the Fréchet distance of their scores from those of real images."""
    labels = torch.arange(config.samples) % 10
    drawn = sample_values(model, labels, seed=config.seed, **options)
    distance = frechet_distance(classifier.scores(drawn), real)
    return {"accuracy": classifier.accuracy(drawn, labels), "frechet_distance": distance}


def compare_guidance(config: MnistConfig) -> None:
    """Samples of the shipped model for each of `GUIDES`, and the distance of as many validation images as samples."""
    made, model = made_by(config), Farmer.from_pretrained(config.preset)
    validation = split_of(config, "validation")
    images = torch.cat([values for values, _ in batches(validation, 1000, limit=2000)])
    classifier = shipped_classifier()
    others, real = (classifier.scores(part) for part in (images[: config.samples], images[-1000:]))
    floor = frechet_distance(others, real)
    rows: list[dict[str, float]] = []
    for scale, weight, spread in GUIDES:
        row = {"scale": scale, "weight_temperature": weight, "scale_temperature": spread}
        rows.append(row | judged(config, model, classifier, real, guidance=Guidance(**row)))
        print(json.dumps(rows[-1]), flush=True)
    record = {**made, "frechet_distance_of_real_images": floor, "rows": rows}
    write_json(ROOT / "results" / f"{config.preset}_guidance.json", record)


def grid_of(config: MnistConfig, model: Farmer) -> Tensor:
    """Ten rows of samples at guidance scale 1, a column for each class, none selected."""
    generator = torch.Generator().manual_seed(config.seed)
    return model.dequantiser.without_noise(
        model.sample(torch.arange(100) % 10, Guidance(scale=1.0), generator=generator)
    )


def make_student(config: MnistConfig) -> None:
    """What samples of the run's student score, whose teacher is now in half precision."""
    made, name = made_by(config), config.preset
    trained, target = Run.open(config.run), in_half_precision(config)
    trained.load_student(trained.load("ema"))  # raises InputError where it is not the student of this run
    run, wanted = Run.open(target), halves(read_weights(Path(config.run) / "model.safetensors"))
    same = all(torch.equal(weight, wanted[name]) for name, weight in read_weights(target / "model.safetensors").items())
    require(same, "run", config.run, f"the run whose weights are in {target} (stage model)")
    model = run.load("ema")
    weights = read_weights(Path(config.run) / STUDENT) | {"teacher_fingerprint": fingerprint(model.flow)}
    written = {key: value for key, value in read_metadata(Path(config.run) / STUDENT).items() if key != CHECKSUM}
    write_weights(target / STUDENT, weights, written)
    figures = sample_figures(config, model, split_of(config, "test"), student=run.load_student(model))
    if config.ship:
        write_json(target / "student.json", {**made, **figures})
    write_json(ROOT / "results" / f"{name}_student.json", {**made, **figures})
    print(json.dumps(figures, indent=2))


def main(argv: list[str] | None = None) -> None:
    """Make one stage."""
    config = cli.parse("benchmarks.mnist", MnistConfig(stage="classifier"), "What ships of MNIST.", argv)
    torch.set_num_threads(config.threads)
    BESIDE.mkdir(exist_ok=True)
    stages = {
        "classifier": make_classifier,
        "images": make_images,
        "model": make_model,
        "student": make_student,
        "guidance": compare_guidance,
    }
    stages[config.stage](config)


if __name__ == "__main__":
    cli.run(main)
