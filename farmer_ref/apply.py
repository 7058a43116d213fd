"""Use a trained model: `python -m farmer_ref.apply inpaint|edit|anomaly|classify`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from PIL import Image
from pydantic import Field, PositiveInt
from torch import Tensor

from farmer_ref.applications.anomalies import AnomalyScorer
from farmer_ref.applications.classification import class_log_probs, class_probabilities, expected_calibration_error
from farmer_ref.applications.editing import change_class, change_details, interpolate
from farmer_ref.applications.inpainting import inpaint
from farmer_ref.data.folders import FolderSet, Split, counted, folder_of
from farmer_ref.data.images import Pictures, printable, read_picture, read_pictures
from farmer_ref.data.sets import ImageData, batches, evenly_spread
from farmer_ref.model.config import NULL_LABEL, ModelConfig
from farmer_ref.model.guidance import Guidance
from farmer_ref.support import cli
from farmer_ref.support.errors import InputError, require
from farmer_ref.support.files import NOT_WRITTEN, output_file
from farmer_ref.support.hub import pinned
from farmer_ref.support.parallel import resolve_device
from farmer_ref.support.plots import image_grid, save_picture, to_bytes
from farmer_ref.support.settings import Count, Factor, PositiveFactor, ThreadCount, Whole, settings_class
from farmer_ref.training.runs import Run
from farmer_ref.training.threads import choose_threads

DESCRIPTION = """Applications of an exact likelihood, with a trained FARMER: on a folder of your own images, or on the
data set that the run was trained on."""
HALVES = {"lower-half": (1, 0), "upper-half": (0, 0), "right-half": (1, 1), "left-half": (0, 1)}  # part, axis
MISSING = 128  # mask values from here up mark missing pixels


@settings_class
class Source:
    """The model and the images: options of all four commands."""

    A_FEW: ClassVar[int] = 8
    """Images of a data set, unless `count` says otherwise."""
    run: str = "digits"
    """A run folder, a model that ships with the package (digits, ...), or owner/name of the Hugging Face Hub,
    with @revision for a revision other than its newest."""
    images: str = ""
    """A folder of image files of the model's size; a name like 03_class7.png gives the label. Empty: the run's data
    set."""
    dataset: str = ""
    """The data set; empty: the run's own."""
    split: Split = "test"
    """The split of the data set."""
    data_root: str = "data"
    """Where torchvision keeps its data sets."""
    download: bool = True
    """Download a missing data set."""
    count: PositiveInt | None = None
    """At most this many images, evenly spaced; default: all of a folder, a few of a data set."""
    weights: Literal["ema", "raw"] = "ema"
    """ema, or raw (those of the newest checkpoint)."""
    seed: Whole = 0
    """The same seed gives the same result on the same device."""
    device: str = "auto"
    """auto (CUDA when there is one), cpu, cuda, ..."""
    threads: ThreadCount | None = None
    """CPU threads; default: OMP_NUM_THREADS, or else the fastest number, by measuring the work itself."""


@settings_class
class InpaintConfig(Source):
    """Draw missing pixels given the others, under the exact density."""

    A_FEW: ClassVar[int] = 5
    mask: str = "lower-half"
    """What is missing: lower-half, upper-half, left-half, right-half, centre; or an image file of the model's size,
    white where pixels are missing."""
    use_labels: bool = True
    """Condition on the labels, where they are known."""
    samples: Count = 4
    """Completions of each image."""
    particles: Count = 16
    """Particles of each completion: more come closer to the exact distribution, and take longer."""
    moves: Count = 10
    """Moves under the exact density at the end."""
    out: str = "inpainted.png"
    """A picture (original, masked, completions), or a folder of single PNG files."""


@settings_class
class EditConfig(Source):
    """Change an image's class or its details in the latents, or interpolate between images."""

    change: Literal["class", "details", "interpolate"] = "class"
    """class: keep the redundant latents, draw the informative ones under other labels. details: the reverse, under the
    image's own label. interpolate: from each image to the next, in the latents and, below it, in the pixels."""
    labels: tuple[int, ...] = ()
    """The other classes; none given: the first ten."""
    steps: Annotated[int, Field(ge=2, le=10_000)] = 8
    """Images of each walk, and redraws of details."""
    guidance: Factor = 0.0
    """Guidance scale w of the new informative latents."""
    out: str = "edited.png"
    """A picture: each image, then its edits."""


@settings_class
class AnomalyConfig(Source):
    """Score how anomalous images are under the model; larger is more anomalous."""

    A_FEW: ClassVar[int] = 30
    dataset: str = ""
    """The data set to score; empty: the run's own. With images: the one that defines what is normal, such as the run's
    own in another place."""
    draws: Count = 2
    """Dequantisations per image."""
    reference: Annotated[int, Field(ge=10)] = 500
    """At most this many training images of the run's own data set, which define what is normal."""
    score: Literal["likelihood", "typicality", "complexity", "terms", "terms and complexity"] = "terms and complexity"
    """The score to sort images by (the default did best on validation); `--out` has all scores."""
    out: str | None = None
    """A JSON file to write the scores to."""


@settings_class
class ClassifyConfig(Source):
    """Classify by Bayes' rule with equal priors, from log p(x | class)."""

    A_FEW: ClassVar[int] = 300
    draws: Count = 8
    """Dequantisations per image."""
    temperature: PositiveFactor = 1.0
    """Divides log-likelihoods: above 1 makes the probabilities less confident."""
    out: str | None = None
    """A JSON file to write the probabilities to."""


class Inputs:
    """A model, the images it is applied to, and their labels."""

    def __init__(self, config: Source):
        self.config, self.device, self.run = config, resolve_device(config.device), Run.open(pinned(config.run))
        self.model = self.run.load(config.weights).to(self.device)
        self.levels, classes = self.model.config.levels, self.model.config.num_classes
        unused = bool(config.images and config.dataset) and not isinstance(config, AnomalyConfig)
        require(not unused, "dataset", config.dataset, "none with images")
        if config.images:
            self.pictures = read_pictures(config.images, self.model.config, config.count)
            values = (self.pictures.bytes.double() * (self.levels - 1) / 255).round().to(torch.uint8)
        else:
            limit = config.count or config.A_FEW
            self.scored = self.data(config.dataset, config.split)
            values, labels = next(batches(self.scored, limit, limit))
            names = [self.name_of(place) for place in evenly_spread(len(self.scored), limit)]
            self.pictures = Pictures(names, self.as_bytes(values), labels)
        self.values, self.labels = values.to(self.device), self.pictures.labels.to(self.device)
        if not classes:
            self.labels = torch.full_like(self.labels, NULL_LABEL)
        choose_threads(
            self.model,
            images=len(self.values),
            tokens=self.model.config.tokens,
            device=self.device,
            wanted=config.threads,
        )
        self.generator = torch.Generator(self.device).manual_seed(config.seed)

    def data(self, dataset: str, split: str) -> ImageData:
        """A split of a data set, by default of the run's own, with at least one image."""
        data = self.run.split(split, dataset, data_root=self.config.data_root, download=self.config.download)
        require(len(data) > 0, "split", split, f"one that has images in {data.name}")
        return data

    def name_of(self, place: int) -> str:
        """The name of an image of the data set: its path in a folder, else its split and its place there."""
        if isinstance(self.scored, FolderSet):
            return self.scored.name_of(place)
        return f"{self.config.split}-{place:03d}"

    def normal(self) -> str:
        """The data set that the run was trained on; `dataset` where that holds the same images, or none is recorded."""
        given = self.config.dataset
        if self.run.read_these(self.scored):
            return given
        own = self.run.dataset(otherwise=given)
        if given and own.startswith("folder:") and not folder_of(own).is_dir():
            raise InputError(
                f"dataset is {given!r}, with other images than {self.run.name} was trained on, and {own} has gone; "
                "allowed: those images in any folder, or --images to score and --dataset for what is normal"
            )
        return own

    def as_bytes(self, values: Tensor) -> Tensor:
        """Grey levels 0..L-1 as bytes 0..255, on the CPU."""
        return (values.cpu().double() * 255 / (self.levels - 1)).round().to(torch.uint8)

    def images(self) -> Tensor:
        """The images (n,C,H,W), dequantised."""
        noise = self.model.dequantiser.draw(tuple(self.values.shape), self.generator)
        return self.model.dequantiser(self.values, noise)


def mask_of(name: str, config: ModelConfig) -> Tensor:
    """The mask (1,H,W) of missing pixels."""
    size = config.image_size
    missing = torch.zeros(1, size, size, dtype=torch.bool)
    if name in HALVES:
        part, axis = HALVES[name]
        missing.split([size // 2, size - size // 2], axis + 1)[part].fill_(True)
    elif name == "centre":
        missing[:, size // 4 : size - size // 4, size // 4 : size - size // 4] = True
    else:
        path = Path(os.path.expanduser(name))
        if not os.path.isfile(path):
            raise InputError(
                f"mask is {name!r}, which is not a file; allowed: {', '.join(HALVES)}, centre, an image file"
            )
        missing = read_picture(path, 1, size) >= MISSING
    share = float(missing.double().mean())
    require(
        0 < share < 1,
        "share of missing pixels",
        f"{share:.0%}",
        "some, not all (`farmer_ref.sample` draws whole images)",
    )
    return missing


def picture(rows: list[Tensor], path: Path) -> None:
    """Write rows of bytes (n,C,H,W) as one PNG file."""
    cells = torch.cat(rows).float() / 127.5 - 1
    grid = image_grid(cells, columns=len(rows[0]))
    save_picture(grid, path)


def run_inpaint(config: InpaintConfig) -> None:
    """Complete the images; known pixels stay as they were in the files, byte for byte."""
    as_picture = Path(config.out).suffix.lower() == ".png"
    require(Path(config.out).suffix.lower() not in NOT_WRITTEN, "out", config.out, "a name in .png, or a folder")
    out = output_file(config.out) if as_picture else output_folder(config.out)
    inputs = Inputs(config)
    missing = mask_of(config.mask, inputs.model.config)
    stems = {name: "_".join(Path(name).with_suffix("").parts) for name in inputs.pictures.names}
    twice = sorted(name for name, stem in stems.items() if list(stems.values()).count(stem) > 1)
    if twice and not as_picture:
        source = f"images is {config.images!r}" if config.images else f"dataset is {config.dataset!r}"
        raise InputError(
            f"{source}, where files share a stem ({', '.join(twice)}); "
            "allowed: one file per stem, which names the completions, or --out NAME.png"
        )
    wanted = () if as_picture else (out / f"{stem}_{k}.png" for stem in stems.values() for k in range(config.samples))
    if there := next((path.name for path in wanted if path.exists()), None):
        raise InputError(f"out is {config.out!r}, which holds {there} already; allowed: a new folder")
    done = inpaint(
        inputs.model,
        inputs.values,
        ~missing.to(inputs.device),
        inputs.labels if config.use_labels else torch.full_like(inputs.labels, NULL_LABEL),
        samples=config.samples,
        particles=config.particles,
        moves=config.moves,
        generator=inputs.generator,
        progress=True,
    )
    originals = inputs.pictures.bytes
    drawn = torch.where(missing, inputs.as_bytes(done.values), originals[:, None])  # (n,samples,C,H,W)
    if as_picture:
        masked = torch.where(missing, MISSING, originals).to(torch.uint8)
        picture(list(torch.cat([originals[:, None], masked[:, None], drawn], 1)), out)
    else:
        for name, images in zip(stems.values(), drawn, strict=True):
            for k, image in enumerate(images):
                single = Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())
                save_picture(single, out / f"{name}_{k}.png")
    print(
        f"{counted(len(drawn), 'image')}, {missing.double().mean():.0%} of each missing, "
        f"{counted(config.samples, 'completion')} each; "
        f"{done.temperatures} temperatures, {done.acceptance:.0%} of the exact moves accepted: {out}"
    )


def output_folder(name: str) -> Path:
    """The output folder, created before the work whose results it will hold."""
    require(bool(name), "out", name, "a folder, or a .png file")
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"out is {name!r}, which cannot be made ({error}); allowed: a folder, or a .png file"
        ) from None
    return Path(name)


def run_edit(config: EditConfig) -> None:
    """Edit the images; each row shows the image, then its edits."""
    out, inputs = output_file(config.out, picture=True), Inputs(config)
    model, images, originals = inputs.model, inputs.images(), inputs.pictures.bytes
    if config.change == "interpolate":
        require(len(images) >= 2, "images", len(images), "2 or more, to walk from one to the next")
        rows = []
        for latent in (True, False):
            rows.append(interpolate(model, images[:-1], images[1:], steps=config.steps, latent=latent))
        walks = torch.stack(rows, 1).flatten(0, 1)  # (2 (n-1),steps,C,H,W): latents, pixels, latents, ...
        picture([to_bytes(model.dequantiser.without_noise(walk)) for walk in walks], out)
        walked = counted(len(images) - 1, "walk")
        print(f"{walked} of {config.steps} images, in the latents and, below, in the pixels: {out}")
        return
    if config.change == "class":
        classes = config.labels or tuple(range(min(model.config.num_classes, 10)))
        require(bool(classes), "number of classes", 0, "1 or more: a model trained with labels, to change the class")
        guidance, old = Guidance(scale=config.guidance), inputs.labels
        edits = [
            change_class(model, images, old, torch.full_like(old, c), guidance=guidance, generator=inputs.generator)
            for c in classes
        ]
        what = f"under the labels {', '.join(map(inputs.run.class_name, classes))}"
    else:
        edits = [change_details(model, images, inputs.labels, generator=inputs.generator) for _ in range(config.steps)]
        what = f"with {config.steps} other details"
    columns = [originals, *(to_bytes(model.dequantiser.without_noise(edit)) for edit in edits)]
    picture(list(torch.stack(columns, 1)), out)
    print(f"{counted(len(images), 'image')} {what}: {out}")


def run_anomaly(config: AnomalyConfig) -> None:
    """Score the images against the run's training split."""
    out, inputs = output_file(config.out) if config.out else None, Inputs(config)
    normal = config.dataset if config.images else inputs.normal()
    train, labels = next(batches(inputs.data(normal, "train"), config.reference, config.reference))
    held_out, _ = next(batches(inputs.data(normal, "validation"), config.reference, config.reference))
    scorer = AnomalyScorer(inputs.model, train, labels, draws=config.draws, seed=config.seed, progress=True)
    scores, usual = scorer.scores(inputs.values.cpu()), scorer.scores(held_out)
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(inputs.pictures.names):
        share = float((usual[config.score] >= scores[config.score][i]).double().mean())
        own = {score: float(values[i]) for score, values in scores.items()}
        rows.append({"image": name, "share_of_validation_images_as_strange": share, "scores": own})
    rows.sort(key=lambda row: -row["scores"][config.score])
    compared = counted(len(held_out), "validation image")
    lines = [f"{config.score}, the most anomalous first, each with the share of {compared} that score as high"]
    for row in rows:
        share = row["share_of_validation_images_as_strange"]
        lines.append(f"  {row['scores'][config.score]:10.2f}  {share:6.1%}  {printable(row['image'])}")
    cli.report("\n".join(lines), {"run": inputs.run.name, "sorted_by": config.score, "images": rows}, out)


def run_classify(config: ClassifyConfig) -> None:
    """Classify the images; where labels are known, report accuracy and calibration."""
    out, inputs = output_file(config.out) if config.out else None, Inputs(config)
    log_probs = class_log_probs(inputs.model, inputs.values.cpu(), draws=config.draws, seed=config.seed, progress=True)
    probabilities = class_probabilities(log_probs, config.temperature)
    confidence, classes = probabilities.max(-1)
    lines = []
    if config.images:
        triples = zip(inputs.pictures.names, classes, confidence, strict=True)
        lines = [
            f"  class {inputs.run.class_name(int(c))}  {float(share):6.1%}  {printable(name)}"
            for name, c, share in triples
        ]
    known = inputs.pictures.labels != NULL_LABEL
    if bool(known.any()):
        accuracy = (classes == inputs.pictures.labels)[known].double().mean()
        error = expected_calibration_error(probabilities[known], inputs.pictures.labels[known])
        lines.append(
            f"accuracy {accuracy:.1%} on {counted(int(known.sum()), 'image')} "
            f"({counted(config.draws, 'dequantisation')} each); expected calibration error {error:.1%}"
        )
    rows = [
        {"image": name, "label": int(label), "class": int(c), "probabilities": row.tolist()}
        for name, label, c, row in zip(
            inputs.pictures.names, inputs.pictures.labels, classes, probabilities, strict=True
        )
    ]
    made = {"run": inputs.run.name, "class_names": list(inputs.run.class_names()), "temperature": config.temperature}
    cli.report("\n".join(lines), {**made, "images": rows}, out)


RUNS = {
    "inpaint": (InpaintConfig(), run_inpaint),
    "edit": (EditConfig(), run_edit),
    "anomaly": (AnomalyConfig(), run_anomaly),
    "classify": (ClassifyConfig(), run_classify),
}


def main(argv: list[str] | None = None) -> None:
    """Run the chosen command."""
    defaults = {name: default for name, (default, _) in RUNS.items()}
    config = cli.parse_one_of("farmer_ref.apply", defaults, DESCRIPTION, argv)
    run = next(run for default, run in RUNS.values() if type(default) is type(config))
    run(config)


if __name__ == "__main__":
    cli.run(main)
