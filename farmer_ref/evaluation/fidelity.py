"""Fréchet distance, Inception score, precision and recall of samples, by torch-fidelity, in any extractor's features.

An extractor turns images into feature vectors. In the features of an Inception network the Fréchet distance between
samples and real images is FID (Heusel et al. 2017); the Inception score (Salimans et al. 2016) also needs its class
scores. Precision is the fraction of samples that lie among the real images, recall that of real images that lie among
the samples, where each point's neighbourhood reaches to its third neighbour (Kynkäänniemi et al. 2019). All use one
extractor, as in ADM's evaluation; by default the library would use VGG16 for the last two. Figures from different
extractors, or from different numbers of images, cannot be compared, so the command prints both beside every figure.

Features are computed and cached here, as safetensors: the library's own cache is made of pickles, which execute
whatever someone has put there. Inception's weights remain a pickle: give a file that you trust, or let the library
download its own.

Legend: B images of a batch, n of all; F features, K classes; images are bytes 0..255 (B,3,H,W), grey ones repeated.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from tqdm import tqdm

from farmer_ref.data.images import image_files, read_picture
from farmer_ref.data.sets import ImageData, ImageSet, batches
from farmer_ref.evaluation.classifier import ConvClassifier
from farmer_ref.evaluation.metrics import Moments, PixelClassifier
from farmer_ref.support import parallel
from farmer_ref.support.errors import InputError, require
from farmer_ref.support.files import read_weights, write_weights

INCEPTION = "inception-v3-compat"  # the library's copy of the TensorFlow network behind published FIDs
FEWEST = 10  # samples, and reference images: the Inception score averages over ten parts of the samples
ROWS, PAIRS = 1000, 5_000_000  # features whose moments are taken at once, and distances that are held: 20 MB
PROBE = 8  # reference images whose features identify an extractor


class Features(NamedTuple):
    """The output of an extractor: features (n,F), and class scores (n,K) if it is a classifier."""

    features: Tensor
    scores: Tensor | None


@dataclass(frozen=True)
class Extractor:
    """A name, and a function of images (B,3,H,W), bytes, to features (B,F), or to features and class scores (B,K)."""

    name: str
    function: Callable[[Tensor], Any]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """The features of images (B,3,H,W), bytes, on the CPU."""
        given = self.function(images)
        features, scores = given if isinstance(given, tuple) else (given, None)
        for value, fewest in ((features, 1), *([] if scores is None else [(scores, 2)])):
            shape = tuple(value.shape)
            if len(shape) != 2 or shape[0] != len(images) or shape[1] < fewest:
                raise InputError(
                    f"extractor is {self.name!r}, which gives {shape}; allowed: ({len(images)}, {fewest} or more)"
                )
        return Features(features.float().cpu(), None if scores is None else scores.float().cpu())


# -- extractors --------------------------------------------------------------------------------------------------------


def extractor_named(name: str, *, weights: str | None, device: torch.device) -> Extractor:
    """One of the library's extractors, or `module:function` of your own.

    `weights` is a file for a library extractor; without it, the library downloads its own (Inception's file name ends
    in the first digits of its SHA-256, which we print). Your own function takes images (B,3,H,W), bytes, and returns
    features (B,F), or a pair of features and class scores (B,K).
    """
    if ":" in name:
        require(weights is None, "extractor_weights", weights, "none with an extractor of your own")
        return Extractor(name, _own_function(name))
    known = ", ".join(FEATURE_EXTRACTORS_REGISTRY)
    require(
        name in FEATURE_EXTRACTORS_REGISTRY, "extractor", name, f"classifier, {known}, or module:function of your own"
    )
    kind = FEATURE_EXTRACTORS_REGISTRY[name]
    layers = list(dict.fromkeys(kind.get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc")))
    if weights is not None and not Path(weights).is_file():
        raise InputError(f"extractor_weights is {weights!r}, which is not a file; allowed: weights of {name}")
    try:
        network = kind(name, layers, feature_extractor_weights_path=weights, verbose=False).to(device)
    except Exception as error:  # unpickling and downloading can raise anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if weights is not None:
            raise InputError(
                f"extractor_weights is {weights!r}, which cannot be read ({reason}); allowed: weights of {name}"
            ) from None
        where = f", a copy of {URL_INCEPTION_V3}" if name == INCEPTION else ""
        raise InputError(
            f"extractor is {name!r}, whose weights cannot be downloaded ({reason}); "
            f"allowed: with --extractor-weights FILE{where}; or --extractor classifier"
        ) from None
    if weights is not None:
        with open(weights, "rb") as file:
            name = f"{name} of {Path(weights).name}, SHA-256 {hashlib.file_digest(file, 'sha256').hexdigest()[:8]}"

    def from_library(images: Tensor) -> tuple[Tensor, Tensor | None]:
        features, *scores = network(images.to(device))
        return features, scores[0] if scores else None  # one layer serves both metrics: no classifier

    return Extractor(name, from_library)


def _own_function(name: str) -> Callable[[Tensor], Any]:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"extractor is {name!r}, which cannot be imported ({error}); allowed: module:function"
        ) from None


def classifier_extractor(classifier: PixelClassifier | ConvClassifier, train: ImageData) -> Extractor:
    """The features and class scores of a classifier of real images (`classifier.classifier_for`).

    A stand-in for Inception in domains unknown to it, such as digits. It is more confident on its own training images
    than on others, so compare samples with the validation or test split. An SVM has one score s of two classes; their
    class scores are (-s, s).
    """

    def classify(images: Tensor) -> tuple[Tensor, Tensor]:
        values = (images[:, : train.channels].float() * (train.levels - 1) / 255).round().to(torch.uint8)
        features, scores = classifier.scores(values), classifier.class_scores(values)
        return features, torch.cat([-scores, scores], 1) if scores.shape[1] == 1 else scores

    return Extractor(f"classifier of {train.name}", classify)


# -- images ------------------------------------------------------------------------------------------------------------


def as_rgb(values: Tensor, levels: int) -> Tensor:
    """Grey levels 0..levels-1 (B,C,H,W) as the bytes 0..255 (B,3,H,W) that `farmer_ref.sample` writes."""
    return (values.float() * 255 / (levels - 1)).round().to(torch.uint8).expand(-1, 3, -1, -1)


class SavedSamples:
    """Images written by `farmer_ref.sample`: an .npz file (arr_0: n,H,W,3, bytes) or a folder of PNG files."""

    def __init__(self, path: str, image_size: int):
        self.path, self.image_size = path, image_size
        self._images: np.ndarray | list[Path]
        if Path(path).is_dir():
            self._images, _ = image_files(Path(path))
        else:
            self._images = self._array()
        require(len(self) >= FEWEST, "samples_from", path, f"{FEWEST} PNG files or more, or an .npz file of as many")

    def _array(self) -> np.ndarray:
        size = self.image_size
        try:
            with np.load(self.path, allow_pickle=False) as file:
                array = file["arr_0"]
        except Exception as error:  # of zip, zlib, NumPy, encryption, or too large a shape
            raise InputError(
                f"samples_from is {self.path!r}, which cannot be read ({str(error) or type(error).__name__}); "
                "allowed: an .npz file with arr_0, or a folder of PNG files"
            ) from None
        if array.ndim != 4 or array.shape[1:] != (size, size, 3) or array.dtype != np.uint8:
            raise InputError(
                f"samples_from is {self.path!r}, of {array.dtype} {array.shape}; allowed: uint8 (n, {size}, {size}, 3)"
            )
        return array

    def __len__(self) -> int:
        return len(self._images)

    def _image(self, number: int) -> np.ndarray:
        image = self._images[number]
        if isinstance(image, np.ndarray):
            return image
        return read_picture(image, 3, self.image_size).permute(1, 2, 0).numpy()

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """This process's batches of images (B,3,H,W)."""
        for start in range(parallel.rank() * batch_size, len(self), parallel.world_size() * batch_size):
            numbers = range(start, min(start + batch_size, len(self)))
            yield torch.from_numpy(np.stack([self._image(number) for number in numbers])).permute(0, 3, 1, 2)


# -- features ----------------------------------------------------------------------------------------------------------


def features_of(images: Iterable[Tensor], *, count: int, extractor: Extractor, what: str) -> Features:
    """Features of all `count` images, on every rank; `images` iterates over this rank's batches, in round-robin
    order."""
    mine = []
    with tqdm(total=count, desc=what, unit="image", disable=parallel.rank() > 0, leave=False) as bar:
        for batch in images:
            mine.append(extractor(batch))
            bar.update(min(len(batch) * parallel.world_size(), count - bar.n))
    features, scores = zip(*parallel.gather_interleaved(mine), strict=True)
    return Features(torch.cat(features), None if scores[0] is None else torch.cat(scores))


def reference_features(
    data: ImageData, split: str, extractor: Extractor, *, batch_size: int, limit: int | None = None
) -> Tensor:
    """Features (n,F) of a split, of at most `limit` evenly spaced images: computed once, then cached.

    The cache is beside torch-fidelity's weights, in torch.hub's folder (below ~/.cache, or where TORCH_HOME says). The
    file's name gives the data set, the split, the number of images and their size. It ends in a digest of the images
    (for files: their names, sizes and times) and of the features of the first few, so that other images, another
    extractor, or other weights get a file of their own.
    """
    folder = Path(torch.hub.get_dir()) / "farmer_ref"
    count = len(data) if limit is None else min(limit, len(data))
    require(count >= FEWEST, "images", count, f"{FEWEST} or more, of a split that has them")
    probe, _ = next(batches(data, PROBE))
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr(extractor.name).encode())
    digest.update(extractor(as_rgb(probe, data.levels)).features.numpy().tobytes())
    if isinstance(data, ImageSet):
        digest.update(data.values.numpy().tobytes())
    else:
        for path, _ in data.files:
            status = path.stat()
            digest.update(repr((str(path), status.st_size, status.st_mtime_ns)).encode())
    name = re.sub(r"[^\w-]+", "-", f"{data.name[-100:]}-{split}-{count}x{data.image_size}x{data.channels}")
    path = folder / f"{name}-{digest.hexdigest()}.safetensors"
    path, kept = parallel.gather((path, path.is_file()))[0]
    if kept:
        return read_weights(path)["features"]
    turn = batches(data, batch_size, limit, parallel.rank(), parallel.world_size())
    images = (as_rgb(values, data.levels) for values, _ in turn)
    features = features_of(images, count=count, extractor=extractor, what="reference images").features

    def keep() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(path, {"features": features})

    try:
        parallel.on_rank_zero(keep)
    except OSError as error:
        home = str(folder.parent.parent)
        raise InputError(f"TORCH_HOME is {home!r}, which cannot be written ({error}); allowed: a folder") from None
    return features


# -- figures -----------------------------------------------------------------------------------------------------------


def figures_of(samples: Features, reference: Tensor) -> dict[str, float | None]:
    """Fréchet distance, Inception score (None without class scores), precision and recall, as torch-fidelity defines
    them.

    Precision and recall compare the distances of all pairs: their time grows quadratically with the number of images,
    and they need all features. Inception's are 8 kB an image, 400 MB for 50,000, and its class scores half of that.
    Nothing else that is held grows with the number: moments are summed part by part, and PAIRS distances are held.
    """
    most = max(len(samples.features), len(reference))
    nearest = {"prc_neighborhood": 3, "prc_batch_size": max(1, PAIRS // most), "save_cpu_ram": True, "verbose": False}
    distance = fid_statistics_to_metric(_statistics(samples.features), _statistics(reference), verbose=False)
    found = distance | prc_features_to_metric(samples.features, reference, **nearest)
    if samples.scores is not None:
        found |= _inception_score(samples.scores)
    return {
        "frechet_distance": found["frechet_inception_distance"],
        "inception_score": found.get("inception_score_mean"),
        "inception_score_deviation": found.get("inception_score_std"),
        "precision": found["precision"],
        "recall": found["recall"],
    }


def _statistics(features: Tensor) -> dict[str, np.ndarray]:
    """Mean and covariance of features (n,F) in float64, as the library holds them."""
    moments = functools.reduce(Moments.__add__, map(Moments.of, features.split(ROWS)))
    return {"mu": moments.mean.numpy(), "sigma": moments.covariance.numpy()}


def _inception_score(scores: Tensor) -> dict[str, float]:
    """The library's Inception score of class scores (n,K), part by part: it would hold all of them in float64."""
    order = np.random.RandomState(2020).permutation(len(scores))
    ends = [part * len(scores) // FEWEST for part in range(FEWEST + 1)]
    parts = (scores[order[first:last]] for first, last in itertools.pairwise(ends))
    found = [isc_features_to_metric(part, splits=1, shuffle=False)["inception_score_mean"] for part in parts]
    return {"inception_score_mean": float(np.mean(found)), "inception_score_std": float(np.std(found))}
