"""Bits/dim on MNIST at equal seconds, against rivals: `python -m benchmarks.rivals --tarflow PATH --jetformer PATH`.

Contenders, each with one or two million weights and told the class of an image:

- FARMER of the preset `mnist`, or with more and smaller blocks, in linear pixels and in the histogram's coordinates;
- the public TARFlow code (github.com/apple/ml-tarflow), with its unit Gaussian;
- a PyTorch port of JetFormer (github.com/alexojica/JetFormer);
- an affine coupling flow of our own, with a unit Gaussian.

In linear pixels each has the choice between black at -1, as all of them are published, and at 0. The best variant of
FARMER and of TARFlow competes a second time with learned noise in place of uniform noise, the same module for both.

All train in one process and on one thread, in turns, by the same optimiser, schedule, batches and moving average. The
clock counts the processor time of a contender's training steps alone, so that other work on the machine does not
count. The learning rate of each, and the best of some variants of FARMER, of TARFlow and of JetFormer, are chosen by
short runs (`--stage rates`) on validation images, which the curves show, too; test images are used once, at the end. A
contender that has to skip more than a tenth of its steps trains again at half the rate, three times at most. Every
figure is a bound on the discrete bits/dim, from the log-density of dequantised images. Writes results/rivals.json and
results/rivals.svg.

The port's factory, Patch PCA and loss are for three colours (`3 * patch_size * patch_size` in jetformer.py and
latents.py, `H * W * 3` in losses.py). Its flow, decoder and mixture have no such number: we put these three together,
and change nothing in them. `masking_mode` is "pairing", because with the port's default, "masking", a coupling of
channels ignores its permutation, and half of the channels would never change. Its mixture's components start out
identical, so they have the same gradients and stay identical: one variant starts with their means apart.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from benchmarks.tarflow import public_code
from farmer_ref import PRESETS, Farmer, InputError, ModelConfig
from farmer_ref.data.sets import ImageSet, batches, load_split
from farmer_ref.model.coupling import CouplingFlow
from farmer_ref.model.noise import LearnedNoise
from farmer_ref.model.tokens import Dequantiser, Patchify, nats_to_bits_per_dim
from farmer_ref.support import cli
from farmer_ref.support.files import read_json, write_json
from farmer_ref.support.plots import COLOURS, STYLE, save_plot
from farmer_ref.support.record import ROOT, provenance
from farmer_ref.support.settings import Whole, settings_class
from farmer_ref.training.config import RunConfig
from farmer_ref.training.trainer import MovingAverage, keep_freed_memory, make_optimiser

PRESET = PRESETS["mnist"]  # the shape of ours, and everyone's weight decay and moving average
SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # of a contender's time, where its curve has a point
SHALLOW = {"flow_layers": 1, "prior_layers": 2, "channel_mixing": "none"}  # more and smaller blocks, as the rivals'
BLOCKS = {
    "8 x 1": {**SHALLOW, "flow_blocks": 8},
    "16 x 1, width 64": {**SHALLOW, "flow_blocks": 16, "flow_width": 64, "prior_width": 64},
}
RATES = (1e-3, 2e-3, 4e-3)  # tried first
WARM_UP = 0.05  # share of the time
MOST_SKIPPED = 0.1  # share of the steps, which have no finite gradient; with more, a contender has failed
MOST_FAILURES = 3  # then it stays as it is
SLICE = 20.0  # seconds of a turn
NOISY = ("FARMER, histogram", "FARMER, linear", "TARFlow")  # compete with learned noise, too
WITH_NOISE = ", learned noise"
NOISE_WIDTH = PRESETS["mnist-p2"].model.noise_width
UNIFORM = Dequantiser("uniform", 256, noise_start=1.0, noise_final=1.0)
PUBLISHED = (
    ("PixelCNN, UvA tutorial 12", 0.808, "exact", "grey levels without noise, 0.9M parameters"),
    ("Residual Flow", 0.970, "bound", "Chen et al. 2019"),
    ("FFJORD", 0.99, "bound", "table of Chen et al. 2019"),
    ("multi-scale coupling flow, UvA tutorial 11", 1.020, "bound", "variational dequantisation, 1.7M parameters"),
    ("coupling flow, UvA tutorial 11", 1.043, "bound", "variational dequantisation"),
    ("Glow", 1.05, "bound", "table of Chen et al. 2019"),
    ("RealNVP", 1.06, "bound", "table of Chen et al. 2019"),
    ("coupling flow, UvA tutorial 11", 1.078, "bound", "uniform dequantisation"),
)


@settings_class
class RivalsConfig:
    """The contest."""

    stage: Literal["all", "rates", "contest", "figure"] = "all"
    """Choose the learning rates, train with those that were chosen, draw; or all of it."""
    tarflow: str = ""
    """A clone of github.com/apple/ml-tarflow; without one, TARFlow takes no part."""
    jetformer: str = ""
    """A clone of github.com/alexojica/JetFormer; without one, JetFormer takes no part."""
    minutes: PositiveFloat = 5.0
    """Processor time of each contender's training."""
    trial_minutes: PositiveFloat = 0.5
    """That of a short run, whose schedule is fitted to it."""
    batch_size: PositiveInt = 32
    """Images per step."""
    validation_images: PositiveInt = 500
    """Images of the validation split."""
    test_images: PositiveInt = 2000
    """Images of the test split."""
    data_root: str = "data"
    """Where torchvision keeps its data sets."""
    seed: Whole = 0
    """Seed of weights, batches and noise."""
    resume: bool = False
    """Keep the short runs, and the contenders that have not failed, of results/rivals.json."""


# -- the contenders: modules from images (B,C,H,W) in [-1, 1] and labels (B,) to log p (B,) ----------------------------


def log_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) (B,) of latents (B,N,D)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum((1, 2))


class OurFarmer(nn.Module):
    """FARMER."""

    def __init__(self, shape: ModelConfig, values: Tensor):
        super().__init__()
        self.model = Farmer(shape)
        self.model.pixels.fit(values)

    def encode(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B,N,D) and log|det| (B,)."""
        x, log_slope = self.model.to_tokens(images)
        z, logdet = self.model.flow(x)
        return z, logdet + log_slope

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """log p (B,)."""
        return self.model(images, labels).total


class OurCoupling(nn.Module):
    """An affine coupling flow whose latents are standard normal."""

    def __init__(self, shape: ModelConfig, blocks: int, layers: int):
        super().__init__()
        self.patchify = Patchify(shape.image_size, shape.channels, patch_size=shape.patch_size)
        settings = {**shape.flow_settings(), "blocks": blocks, "layers": layers, "channel_mixing": False}
        self.flow = CouplingFlow(shape.tokens, shape.token_channels, **{**settings, "num_classes": shape.num_classes})

    def encode(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B,N,D) and log|det| (B,)."""
        return self.flow(self.patchify(images), labels)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """log p (B,)."""
        z, logdet = self.encode(images, labels)
        return log_normal(z) + logdet


class TarFlow(nn.Module):
    """The public TARFlow model, whose log-determinant is a mean over N D."""

    def __init__(self, public: ModuleType, shape: ModelConfig, blocks: int, layers: int, *, width: int = 128):
        super().__init__()
        sizes = (shape.channels, shape.image_size, shape.patch_size, width, blocks, layers)
        self.model = public.Model(*sizes, num_classes=shape.num_classes)

    def encode(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B,N,D) and log|det| (B,)."""
        z, _, mean_logdet = self.model(images, labels)
        return z, mean_logdet * z[0].numel()

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """log p (B,)."""
        z, logdet = self.encode(images, labels)
        return log_normal(z) + logdet


class JetFormer(nn.Module):
    """The port's coupling flow over tokens, and its decoder, whose prefix is the class and whose head is a mixture."""

    def __init__(self, public: JetFormerCode, shape: ModelConfig, *, couplings: int = 8, scattered: bool = False):
        """`scattered`: the means of the mixture's components start apart, as those of our prior do."""
        super().__init__()
        self.side, self.mixture = shape.image_size // shape.patch_size, public.gmm_distribution
        self.patchify = Patchify(shape.image_size, shape.channels, patch_size=shape.patch_size)
        heads = shape.flow_width // shape.head_dim
        self.flow = public.flow(
            (self.side, self.side, shape.token_channels),
            depth=couplings,
            block_depth=1,
            emb_dim=shape.flow_width,
            num_heads=heads,
            ps=1,
            kinds=("channels",),
            masking_mode="pairing",
        )
        classes = shape.num_classes
        self.decoder = public.decoder(
            vocab_size=classes + 3,
            bos_id=classes,
            boi_id=classes + 1,
            nolabel_id=classes + 2,
            d_model=shape.prior_width,
            n_heads=heads,
            n_layers=shape.prior_layers,
            d_ff=4 * shape.prior_width,
            max_seq_len=1,
            num_mixtures=shape.components,
            dropout=0.0,
            patch_size=shape.patch_size,
            input_size=(shape.image_size, shape.image_size),
            image_ar_dim=shape.token_channels,
            per_modality_final_norm=True,
        )
        if scattered:
            of_components = self.decoder.img_head.bias.data[shape.components :].view(-1, 2, shape.token_channels)
            nn.init.normal_(of_components[:, 0], std=0.1 / math.sqrt(shape.token_channels))

    def encode(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B,N,D) and log|det| (B,)."""
        z, logdet = self.flow(self.patchify(images).unflatten(1, (self.side, self.side)))
        return z.flatten(1, 2), logdet

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """log p (B,)."""
        z, logdet = self.encode(images, labels)
        yes = torch.ones(len(z), dtype=torch.bool)
        _, head = self.decoder(labels[:, None], z, text_first_mask=yes, input_mask=yes[:, None])
        mixture, tokens = self.mixture(*self.decoder.gmm_params(head), z)
        return mixture.log_prob(tokens).view(len(z), -1).sum(1) + logdet


@dataclasses.dataclass
class JetFormerCode:
    """What we use of a clone of the port."""

    flow: type[nn.Module]
    decoder: type[nn.Module]
    gmm_distribution: Callable[..., tuple[torch.distributions.Distribution, Tensor]]


def jetformer_code(path: str) -> JetFormerCode:
    """Import the port from a clone; its logging imports wandb, which nothing here calls, so an empty module will do."""
    if not (Path(path) / "src" / "jetformer.py").is_file():
        raise InputError(f"jetformer is {path!r}, without src/jetformer.py; allowed: a clone of alexojica/JetFormer")
    sys.modules.setdefault("wandb", ModuleType("wandb"))
    sys.path.insert(0, path)
    from src.flow.jet_flow import FlowCore
    from src.jetformer import JetFormer as Decoder
    from src.utils.losses import gmm_distribution

    return JetFormerCode(FlowCore, Decoder, gmm_distribution)


class BlackAtZero(nn.Module):
    """A contender that is given x + 1 for x, so that black is 0 and not -1; log p is the same, for the slope is 1."""

    def __init__(self, contender: nn.Module):
        super().__init__()
        self.contender = contender

    def encode(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B,N,D) and log|det| (B,)."""
        return self.contender.encode(images + 1, labels)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """log p (B,)."""
        return self.contender(images + 1, labels)


class WithLearnedNoise(nn.Module):
    """A contender whose uniform noise passes through `LearnedNoise`, trained with it."""

    def __init__(self, contender: nn.Module):
        super().__init__()
        self.noise, self.contender = LearnedNoise(PRESET.model.channels, UNIFORM.levels, NOISE_WIDTH), contender

    def encode(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B,N,D) and log|det| (B,)."""
        moved, log_slope = self.noise(images)
        z, logdet = self.contender.encode(moved, labels)
        return z, logdet + log_slope

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """log p (B,)."""
        moved, log_slope = self.noise(images)
        return self.contender(moved, labels) + log_slope


Builder = Callable[[ModelConfig], nn.Module]


def wrapped(wrapper: Callable[[nn.Module], nn.Module], variants: dict[str, Builder]) -> dict[str, Builder]:
    """Every variant inside of a `wrapper`."""

    def inside(build: Builder, shape: ModelConfig) -> nn.Module:
        return wrapper(build(shape))

    return {name: partial(inside, build) for name, build in variants.items()}


def with_black_at_zero(variants: dict[str, Builder]) -> dict[str, Builder]:
    """Every variant with `BlackAtZero`, too, and these first."""
    return {f"{name}, black at 0": build for name, build in wrapped(BlackAtZero, variants).items()} | variants


def contenders(config: RivalsConfig, values: Tensor) -> dict[str, dict[str, Builder]]:
    """Every contender: its variants by name, each a function of the shape. The better one on validation competes."""

    def ours(pixels: Literal["linear", "histogram"]) -> dict[str, Builder]:
        def build(shape: ModelConfig, **changes: Any) -> OurFarmer:
            return OurFarmer(dataclasses.replace(shape, pixels=pixels, **changes), values)

        others = {f"{name}, small prior, no mixing": partial(build, **changes) for name, changes in BLOCKS.items()}
        return {"4 x 2": build, **others}

    found = {"FARMER, linear": ours("linear")}
    if config.tarflow:
        public = public_code(config.tarflow)
        found["TARFlow"] = {
            "4 x 2": lambda shape: TarFlow(public, shape, 4, 2),
            "8 x 1": lambda shape: TarFlow(public, shape, 8, 1),
            "16 x 1, width 64": lambda shape: TarFlow(public, shape, 16, 1, width=64),
        }
    if config.jetformer:
        port = jetformer_code(config.jetformer)
        found["JetFormer, port"] = {
            "8 x 1": lambda shape: JetFormer(port, shape),
            "8 x 1, scattered means": lambda shape: JetFormer(port, shape, scattered=True),
        }
    found["coupling flow"] = {"16 x 1": lambda shape: OurCoupling(shape, 16, 1)}
    linear = {name: with_black_at_zero(variants) for name, variants in found.items()}
    found = {"FARMER, histogram": ours("histogram"), **linear}
    noisy = {name: wrapped(WithLearnedNoise, found[name]) for name in NOISY if name in found}
    return found | {f"{name}{WITH_NOISE}": variants for name, variants in noisy.items()}


def check_logdet(build: Builder) -> None:
    """Compare log|det| with that of the Jacobian by automatic differentiation, on 8x8 pixels, at random weights."""
    shape = dataclasses.replace(PRESET.model, image_size=8)
    torch.manual_seed(0)
    contender = build(shape).eval()
    with torch.no_grad():
        for weight in contender.parameters():
            weight.add_(0.03 * torch.randn_like(weight))  # no flow is the identity now
    pixels, label = torch.rand(1, 1, 8, 8) * 2 - 1, torch.tensor([3])
    jacobian = torch.autograd.functional.jacobian(lambda x: contender.encode(x, label)[0].flatten(), pixels)
    expected = torch.linalg.slogdet(jacobian.view(64, 64).double()).logabsdet
    logdet = contender.encode(pixels, label)[1]
    assert torch.allclose(logdet.double(), expected, atol=1e-3), f"log|det| is {logdet}, the Jacobian's {expected}"


# -- training by the clock ---------------------------------------------------------------------------------------------


class Training:
    """One contender in training, and the processor seconds that its steps took."""

    def __init__(self, contender: nn.Module, data: ImageSet, *, config: RivalsConfig, rate: float, minutes: float):
        self.contender, self.data, self.budget = contender, data, 60 * minutes
        self.config = RunConfig(
            batch_size=config.batch_size,
            learning_rate=rate,
            weight_decay=PRESET.weight_decay,
            ema_decay=PRESET.ema_decay,
        )
        self.optimiser = make_optimiser(contender, self.config)
        self.average = MovingAverage(contender, lambda: copy.deepcopy(contender), decay=self.config.ema_decay)
        self.generator = torch.Generator().manual_seed(config.seed)  # the same batches for all
        self.seconds, self.step, self.skipped = 0.0, 0, 0

    def until(self, seconds: float) -> None:
        """Train until the clock of this contender shows so much."""
        while self.seconds < min(seconds, self.budget):
            began = time.process_time()
            self._step()
            self.seconds += time.process_time() - began

    def _step(self) -> None:
        progress = self.seconds / self.budget
        rate = self.config.learning_rate * min(1, progress / WARM_UP) * (1 + math.cos(math.pi * progress)) / 2
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        rows = torch.randint(len(self.data), (self.config.batch_size,), generator=self.generator)
        values = self.data.values[rows]
        images = UNIFORM(values, UNIFORM.draw(tuple(values.shape), self.generator))
        self.optimiser.zero_grad(set_to_none=True)
        (-self.contender(images, self.data.labels[rows]).mean() / values[0].numel()).backward()
        norm = nn.utils.clip_grad_norm_(self.contender.parameters(), self.config.clip_norm)
        if math.isfinite(norm):
            self.optimiser.step()
            self.average.update(self.step)
        else:
            self.skipped += 1
        self.step += 1

    def parameters(self) -> int:
        """Weights that the loss reaches: the port has some that it does not."""
        return sum(weight.numel() for weight in self.contender.parameters() if weight.grad is not None)

    def score(self, data: ImageSet, limit: int) -> dict[str, float | None]:
        """Bits/dim of the averaged weights on a split, with one draw of noise for each image, the same for all.

        None for the mean and its error if an image has no density, or none that is finite.
        """
        averaged, generator, bits = self.average.module(), torch.Generator().manual_seed(0), []
        with torch.no_grad():
            for values, labels in batches(data, 100, limit):
                images = UNIFORM(values, UNIFORM.draw(tuple(values.shape), generator))
                bits.append(nats_to_bits_per_dim(averaged(images, labels), values[0].numel(), data.levels))
        every = torch.cat(bits)
        finite = bool(every.isfinite().all())
        return {
            "bits_per_dim": float(every.mean()) if finite else None,
            "standard_error": float(every.std() / math.sqrt(len(every))) if finite else None,
            "images": len(every),
            "images_without_density": int((~every.isfinite()).sum()),
        }


def or_infinite(bits: float | None) -> float:
    """A mean of `Training.score`, infinite where that has none."""
    return math.inf if bits is None else bits


def best_trial(record: dict[str, Any], name: str) -> dict[str, Any]:
    """The short run of a contender that went best; raises `InputError` if there is none."""
    trials = [trial for trial in record["rates"]["trials"] if trial["contender"] == name]
    if not trials:
        raise InputError(f"stage is 'contest', and results/rivals.json has no rate for {name}; allowed: all or rates")
    return min(trials, key=lambda trial: or_infinite(trial["bits_per_dim"]))


def choose_rates(config: RivalsConfig, built: dict[str, dict[str, Builder]], record: dict[str, Any], out: Path) -> None:
    """Short runs, one by one; `record["rates"]`.

    Of the first variant at `RATES`, halved or doubled until the best rate is not the last one on its side; of the other
    variants at that rate. With learned noise only of the variant that was best without.
    """
    train, validation = splits(config, "train", "validation")
    trials: list[dict[str, Any]] = record["rates"]["trials"] if config.resume and "rates" in record else []
    known = {(trial["contender"], trial["variant"], trial["learning_rate"]): trial for trial in trials}
    made = provenance(torch.device("cpu"))
    record["rates"] = {**made, "minutes": config.trial_minutes, "trials": trials}

    def bits_at(rate: float, name: str, variant: str) -> float:
        if (name, variant, rate) in known:
            return or_infinite(known[name, variant, rate]["bits_per_dim"])
        torch.manual_seed(config.seed)
        contender = built[name][variant](PRESET.model)
        training = Training(contender, train, config=config, rate=rate, minutes=config.trial_minutes)
        training.until(math.inf)
        bits = training.score(validation, config.validation_images)["bits_per_dim"]
        tried = {"contender": name, "variant": variant, "learning_rate": rate, "bits_per_dim": bits}
        trials.append({**tried, "made": made})
        write_json(out, record)
        print(tried, flush=True)
        return or_infinite(bits)

    for name, variants in built.items():
        plain = name.removesuffix(WITH_NOISE)
        first, *others = variants if plain == name else [best_trial(record, plain)["variant"]]
        found = {rate: bits_at(rate, name, first) for rate in RATES}
        while (best := min(found, key=found.__getitem__)) in (min(found), max(found)):
            beyond = best / 2 if best == min(found) else 2 * best
            found[beyond] = bits_at(beyond, name, first)
        for variant in others:
            bits_at(best, name, variant)


def failed_rates(found: dict[str, Any]) -> list[float]:
    """The rates at which a contender of the record has failed, and has to be trained again; empty if it stands."""
    rates = found.get("failed_rates", [])
    failed = found["skipped_steps"] > MOST_SKIPPED * found["curve"][-1]["steps"]
    return [*rates, found["learning_rate"]] if failed and len(rates) < MOST_FAILURES else []


def contest(config: RivalsConfig, built: dict[str, dict[str, Builder]], record: dict[str, Any], out: Path) -> None:
    """Train all, and those that failed again at half the rate; `record["contenders"]`."""
    found = record.setdefault("contenders", {})
    best = {name: best_trial(record, name) for name in built}
    while True:
        choices = {}
        for name in built:
            scored = "test" in found.get(name, {})
            rates = failed_rates(found[name]) if scored else []
            if rates or not scored:
                rate = rates[-1] / 2 if rates else best[name]["learning_rate"]
                choices[name] = {"variant": best[name]["variant"], "learning_rate": rate, "failed_rates": rates}
        if not choices:
            return
        train_in_turns(config, built, choices, record, out)


def train_in_turns(
    config: RivalsConfig,
    built: dict[str, dict[str, Builder]],
    choices: dict[str, dict[str, Any]],
    record: dict[str, Any],
    out: Path,
) -> None:
    """Train some, with a point of each curve where its clock passes a share, and score the test images."""
    train, validation, test = splits(config, "train", "validation", "test")
    trainings: dict[str, Training] = {}
    for name, choice in choices.items():
        record["contenders"][name] = {**choice, "curve": []}
        torch.manual_seed(config.seed)
        contender = built[name][choice["variant"]](PRESET.model)
        trainings[name] = Training(
            contender, train, config=config, rate=choice["learning_rate"], minutes=config.minutes
        )
    marks = [60 * config.minutes * share for share in SHARES]
    while any(training.seconds < training.budget for training in trainings.values()):
        for name, training in trainings.items():
            found, turn_ends = record["contenders"][name], training.seconds + SLICE
            while training.seconds < min(turn_ends, training.budget):
                mark = marks[len(found["curve"])]
                training.until(min(turn_ends, mark))
                if training.seconds >= mark:
                    score = training.score(validation, config.validation_images)
                    found["curve"].append({"seconds": training.seconds, "steps": training.step, **score})
                    found |= {"parameters": training.parameters(), "skipped_steps": training.skipped}
                    write_json(out, record)
                    print(name, found["curve"][-1], flush=True)
    for name, training in trainings.items():
        record["contenders"][name]["test"] = training.score(test, config.test_images)
        write_json(out, record)
        print(name, record["contenders"][name]["test"], flush=True)


def splits(config: RivalsConfig, *names: str) -> list[ImageSet]:
    """Splits of MNIST."""
    return [load_split("mnist", name, PRESET.model, data_root=config.data_root) for name in names]


# -- the figure --------------------------------------------------------------------------------------------------------


def draw(record: dict[str, Any]) -> Figure:
    """Validation bits/dim over processor seconds, on a logarithmic axis; the legend has the last points."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 5), layout="constrained")
        axes = figure.subplots()
        plain = [name for name in record["contenders"] if not name.endswith(WITH_NOISE)]
        for name, found in record["contenders"].items():
            colour = COLOURS[plain.index(name.removesuffix(WITH_NOISE))]
            seconds = [point["seconds"] for point in found["curve"]]
            bits = [or_infinite(point["bits_per_dim"]) for point in found["curve"]]
            line = {"color": colour, "ls": "-" if name in plain else "--", "label": f"{name}: {bits[-1]:.2f}"}
            axes.plot(seconds, bits, marker="o", ms=4, **line)
        axes.set(xscale="log", xlabel="processor seconds of training, one thread", ylabel="validation bits/dim")
        axes.set_xticks([60 * record["settings"]["minutes"] * share for share in SHARES])
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
        figure.legend(frameon=False, loc="outside lower left", ncols=2)
    return figure


def main(argv: list[str] | None = None) -> None:
    config = cli.parse("benchmarks.rivals", RivalsConfig(), "Train against rivals at equal seconds.", argv)
    torch.set_num_threads(1)
    keep_freed_memory()
    out = ROOT / "results" / "rivals.json"
    record = read_json(out, dict) if config.stage in ("contest", "figure") or config.resume else {}
    if config.stage != "figure":
        built = contenders(config, splits(config, "train")[0].values)
        for variants in built.values():
            for build in variants.values():
                check_logdet(build)
        if config.stage != "contest":
            choose_rates(config, built, record, out)
        if config.stage != "rates":
            made = provenance(torch.device("cpu"))
            if config.resume and "contenders" in record:
                record["resumed"] = made
            else:
                settings = dataclasses.asdict(dataclasses.replace(config, tarflow="", jetformer="", data_root="data"))
                heads = ("model", "bits_per_dim", "kind", "note")
                published = [dict(zip(heads, row, strict=True)) for row in PUBLISHED]
                record = {**made, "settings": settings, "published": published, "rates": record["rates"]}
            contest(config, built, record, out)
    if config.stage != "rates":
        save_plot(draw(record), out.with_suffix(".svg"))


if __name__ == "__main__":
    cli.run(main)
