"""FID and its like through torch-fidelity, in the features of extractors that need no download."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from helpers import draw, fails_with_one_line, folder_of_images
from PIL import Image
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.metric_isc import isc_features_to_metric

from farmer_ref import PRESETS, InputError, evaluate
from farmer_ref.data.sets import ImageSet, load_split
from farmer_ref.evaluation import fidelity
from farmer_ref.evaluation.metrics import Moments, PixelClassifier, frechet_distance

DIGITS = PRESETS["digits"].model
CPU = torch.device("cpu")
PARTS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def torch_home(tmp_path, monkeypatch):
    """An empty folder of torch.hub's, where features are kept."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "farmer_ref"


def split(part, **changes):
    """A split of the digits, with some of what an `ImageSet` is made of changed."""
    data = load_split("digits", part, DIGITS)
    made_of = {"name": "digits", "values": data.values, "labels": data.labels, "levels": 17, "num_classes": 10}
    return ImageSet(**(made_of | changes))


@pytest.fixture(scope="module")
def classifier():
    """The extractor that reads digits."""
    train = split("train")
    return fidelity.classifier_extractor(PixelClassifier(train), train)


def pooled(images):
    """An extractor of our own: mean grey levels of 2x2 pixels, (B,16), no classifier."""
    return torch.nn.functional.avg_pool2d(images[:, :1].float(), 2).flatten(1) / 255


def with_noise(values, strength):
    """Digits, bytes, with Gaussian noise of so many grey levels."""
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    return (values + strength * noise).round().clamp(0, 16).to(torch.uint8)


def features(values, extractor):
    return fidelity.features_of(
        fidelity.as_rgb(values, 17).split(100), count=len(values), extractor=extractor, what="samples"
    )


def test_figures_of_the_data_itself_and_of_noise(classifier):
    test = split("test")
    reference = fidelity.reference_features(test, "test", classifier, batch_size=100)
    rows = [
        fidelity.figures_of(features(with_noise(test.values, s), classifier), reference) for s in (0.0, 2.0, 6.0, 20.0)
    ]
    distances, scores, precision, recall = (
        [row[name] for row in rows] for name in ("frechet_distance", "inception_score", "precision", "recall")
    )
    assert distances[0] == pytest.approx(0, abs=1e-4)
    assert (np.diff(distances) > 0.01).all()
    assert precision[0] == recall[0] == 1
    assert (np.diff(precision) < 0).all() and (np.diff(recall) < 0).all()
    assert (np.diff(scores) < 0).all() and scores[-1] >= 1 and scores[0] <= 10
    one_class = features(test.values[test.labels == 3], classifier)
    found = fidelity.figures_of(one_class, reference)
    assert found["precision"] == 1 and found["recall"] < 0.3 and found["inception_score"] < scores[0] - 1


def test_our_frechet_distance_is_the_library_s(classifier):
    test, validation = split("test"), split("validation")
    for extractor in (classifier, fidelity.Extractor("pooled", pooled)):
        other, reference = features(validation.values, extractor), features(test.values, extractor).features
        found = fidelity.figures_of(other, reference)["frechet_distance"]
        assert found == pytest.approx(frechet_distance(other.features, reference), rel=1e-3, abs=1e-5)
        assert found > 0


def test_a_classifier_of_two_classes_has_one_feature():
    """An SVM's one score, and two class scores: a folder of cats and dogs has figures, too."""
    few = {part: split(part, values=(s := split(part)).values, labels=s.labels % 2, num_classes=2) for part in PARTS}
    classifier = fidelity.classifier_extractor(PixelClassifier(few["train"]), few["train"])
    samples = features(few["validation"].values, classifier)
    assert samples.features.shape == (len(few["validation"]), 1) and samples.scores.shape[1] == 2
    reference = features(few["test"].values, classifier).features
    found = fidelity.figures_of(samples, reference)
    assert found["frechet_distance"] == pytest.approx(frechet_distance(samples.features, reference), rel=1e-6)
    assert 1 <= found["inception_score"] <= 2 and 0 < found["precision"] <= 1


class Pooled(torch_fidelity.FeatureExtractorBase):
    """`pooled` as the library's users write an extractor."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return ("pooled",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "pooled"

    def forward(self, images):
        return (pooled(images),)


torch_fidelity.register_feature_extractor("pooled", Pooled)


def test_the_library_alone_finds_the_same():
    class Images(torch.utils.data.Dataset):
        def __init__(self, values):
            self.images = fidelity.as_rgb(values, 17)

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return self.images[index]

    samples, reference = split("validation").values, split("test").values
    options = {"feature_extractor": "pooled", "cuda": False, "cache": False, "save_cpu_ram": True, "verbose": False}
    alone = torch_fidelity.calculate_metrics(
        input1=Images(samples), input2=Images(reference), fid=True, prc=True, **options
    )
    for extractor in (fidelity.extractor_named("pooled", weights=None, device=CPU), fidelity.Extractor("ours", pooled)):
        found = fidelity.figures_of(features(samples, extractor), features(reference, extractor).features)
        wanted = pytest.approx(alone["frechet_inception_distance"], rel=1e-5)  # whose means are in float32
        assert found["frechet_distance"] == wanted
        assert (found["precision"], found["recall"]) == (alone["precision"], alone["recall"])
        assert found["inception_score"] is None  # no classifier


def test_figures_of_parts_are_those_of_all_at_once(classifier, monkeypatch):
    """However little is held at a time: 50 rows of distances, and moments of 50 features."""
    samples, reference = features(split("validation").values, classifier), features(split("test").values, classifier)
    held, moments_of = [], Moments.of
    monkeypatch.setattr(Moments, "of", lambda part: held.append(len(part)) or moments_of(part))
    distances = torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda a, b: held.append(len(a)) or distances(a, b))
    at_once = fidelity.figures_of(samples, reference.features)
    assert max(held) == len(reference.features) == 300
    held.clear()
    monkeypatch.setattr(fidelity, "ROWS", 50)
    monkeypatch.setattr(fidelity, "PAIRS", 50 * 300)
    assert fidelity.figures_of(samples, reference.features) == pytest.approx(at_once, rel=1e-9, abs=1e-12)
    assert max(held) == 50
    whole = isc_features_to_metric(samples.scores)
    assert (at_once["inception_score"], at_once["inception_score_deviation"]) == tuple(whole.values())


def test_features_of_the_reference_are_computed_once_and_anew_for_another(classifier, torch_home, monkeypatch):
    calls = []

    def counted(images):
        calls.append(len(images))
        return pooled(images)

    def computed(data, part="test", extractor=None, limit=None):
        """How many images were computed besides the probe, and what came of it."""
        calls.clear()
        found = fidelity.reference_features(
            data, part, extractor or fidelity.Extractor("counted", counted), batch_size=64, limit=limit
        )
        return sum(calls) - 8, found

    test = split("test")
    count, first = computed(test)
    again, second = computed(test)
    assert (count, again) == (300, 0)
    assert torch.equal(first, second) and first.shape == (300, 16)
    changed = test.values.clone()
    changed[299, 0, 0, 0] += 1
    others = {
        "another data set": (split("test", name="numbers"), {}),
        "another split": (test, {"part": "validation"}),
        "fewer images": (test, {"limit": 100}),
        "another pixel": (split("test", values=changed), {}),
        "another size": (split("test", values=test.values[:, :, ::2, ::2].contiguous()), {}),
        "another name": (test, {"extractor": fidelity.Extractor("other", counted)}),
        "other weights": (test, {"extractor": fidelity.Extractor("counted", lambda images: counted(images) * 1.001)}),
    }
    for what, (data, options) in others.items():
        assert computed(data, **options)[0] == (100 if what == "fewer images" else 300), what
        assert computed(data, **options)[0] == 0, what
    files = sorted(path.name for path in torch_home.iterdir())
    assert len(files) == 1 + len(others)
    assert all(name.endswith(".safetensors") for name in files)
    assert sum(name.startswith("digits-test-300x8x1-") for name in files) == 4
    damaged = next(torch_home.glob("digits-test-100x8x1-*"))
    damaged.write_bytes(b"cut off")
    with pytest.raises(InputError, match=f"{damaged.name} cannot be read"):
        computed(test, limit=100)


def test_features_of_files_are_kept_until_a_file_changes(tmp_path):
    config = PRESETS["cifar10"].model
    name = folder_of_images(tmp_path / "images", count=300)
    extractor = fidelity.Extractor("pooled", lambda images: pooled(images)[:, :16])

    def kept():
        return fidelity.reference_features(
            load_split(name, "train", config), "train", extractor, batch_size=64, limit=20
        )

    first = kept()
    assert torch.equal(first, kept())
    for path in (tmp_path / "images").rglob("*.png"):
        Image.new("RGB", (40, 40), "white").save(path)
    assert not torch.equal(first, kept())


def run(*arguments):
    evaluate.main(["--run", "digits", "--fid", "--device", "cpu", *map(str, arguments)])


def test_samples_drawn_now_from_a_file_and_from_a_folder_are_the_same(tmp_path, capsys):
    draw("digits", tmp_path / "a.npz", "--count", 50, "--batch-size", 25)
    draw("digits", tmp_path / "folder", "--count", 50, "--batch-size", 25)
    ways = [["--samples", 50, "--batch-size", 25], ["--samples-from", tmp_path / "a.npz"]]
    ways.append(["--samples-from", tmp_path / "folder", "--batch-size", 7])
    levels = fidelity.as_rgb(torch.arange(17).reshape(17, 1, 1, 1), 17)[:, 2].flatten().tolist()
    assert set(np.unique(np.load(tmp_path / "a.npz")["arr_0"])) <= set(levels)
    rows = []
    for number, way in enumerate(ways):
        capsys.readouterr()
        run("--extractor", "classifier", "--images", 200, *way, "--out", tmp_path / f"{number}.json")
        printed = capsys.readouterr().out.splitlines()
        assert "against 200 test images of digits (8x8)" in printed[0]
        assert len(printed) == 4 and all(line.endswith("by classifier of digits") for line in printed[1:])
        rows.append(json.loads((tmp_path / f"{number}.json").read_text()))
    for row in rows:
        assert (row["extractor"], row["dataset"], row["split"]) == ("classifier of digits", "digits", "test")
        assert (row["images"], row["image_size"], row["samples"]) == (200, 8, 50)
        for name in ("frechet_distance", "inception_score", "precision", "recall"):
            assert row[name] == pytest.approx(rows[0][name], rel=1e-6), name
    evaluate.main(
        [
            "--run",
            "digits",
            "--samples",
            "50",
            "--batch-size",
            "25",
            "--images",
            "200",
            "--draws",
            "1",
            "--device",
            "cpu",
            "--out",
            str(tmp_path / "likelihood.json"),
        ]
    )
    ours = json.loads((tmp_path / "likelihood.json").read_text())["frechet_distance"]  # without the library, of bytes
    assert rows[0]["frechet_distance"] == pytest.approx(ours, rel=1e-3)


OWN = "import torch\n\n\ndef corners(images):\n    return images[:, 0, ::7, ::7].flatten(1).float()\n"


def test_a_function_of_one_s_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    run("--extractor", "mine:corners", "--samples", 60, "--out", tmp_path / "figures.json")
    printed = capsys.readouterr().out
    assert printed.count("by mine:corners") == 2 and "Inception score" not in printed
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["extractor"], figures["inception_score"]) == ("mine:corners", None)
    assert figures["frechet_distance"] > 0 and "too few" not in printed
    (tmp_path / "mine.py").write_text(OWN + "\n\ndef whole(images):\n    return images[:, 0].flatten(1).float()\n")
    importlib.reload(sys.modules["mine"])
    run("--extractor", "mine:whole", "--samples", 60)
    assert "(of 60 images with 64 features each, which is too few" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    arguments = ["--run", "digits", "--fid", "--extractor", "mine:corners", "--samples", "60", "--batch-size", "25"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(evaluate.__file__).parent.parent)}
    figures = []
    for start, separator in (([sys.executable], []), (torchrun, ["--"])):  # else torchrun takes --run for its own
        shutil.rmtree(tmp_path / "torch", ignore_errors=True)
        line = [*start, "-m", "farmer_ref.evaluate", *separator, *arguments, "--device", "cpu", "--out", "figures.json"]
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Fréchet distance") == 1  # printed once
        figures.append(json.loads((tmp_path / "figures.json").read_text()))
    assert figures[0].keys() == figures[1].keys()
    for name in ("frechet_distance", "precision", "recall"):
        assert figures[0][name] == pytest.approx(figures[1][name], rel=1e-6)


def test_inception_with_weights_from_a_file(tmp_path, monkeypatch):
    """Random weights in the library's network: what we compute is what the library alone does."""
    with monkeypatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        network = torch_fidelity.FeatureExtractorInceptionV3(fidelity.INCEPTION, ["2048", "logits_unbiased"])
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    extractor = fidelity.extractor_named(fidelity.INCEPTION, weights=str(tmp_path / "weights.pth"), device=CPU)
    assert extractor.name.startswith("inception-v3-compat of weights.pth, SHA-256 ")
    images = fidelity.as_rgb(split("test").values[:3], 17)
    found, (features, scores) = extractor(images), network(images)
    assert found.features.shape == (3, 2048) and found.scores.shape == (3, 1008)
    assert torch.equal(found.features, features) and torch.equal(found.scores, scores)


def damage(path, name):
    """An .npz file that asks for terabytes, whose compressed data changed, or that is encrypted."""
    np.savez_compressed(path, arr_0=np.arange(20 * 8 * 8 * 3, dtype=np.uint8).reshape(20, 8, 8, 3))
    content = bytearray(path.read_bytes())
    if name == "zlib":
        content[200] ^= 255
    elif name == "encrypted":
        for flag in (6, content.index(b"PK\x01\x02") + 8):
            content[flag] |= 1
    path.write_bytes(content)
    if name == "huge":
        with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (10**12, 8, 8, 3)}
            np.lib.format.write_array_header_1_0(file, header)


@pytest.mark.parametrize("name", ["huge", "zlib", "encrypted"])
def test_a_damaged_array_is_one_line(tmp_path, name):
    damage(tmp_path / "a.npz", name)
    with pytest.raises(InputError, match=r"a\.npz', which cannot be read \(.+\); allowed: an .npz file") as raised:
        fidelity.SavedSamples(str(tmp_path / "a.npz"), 8)
    assert "\n" not in str(raised.value)


def test_what_fails_is_one_line(capsys, tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", no_network)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_too.py").write_text("def mean(images):\n    return images.float().mean((1, 2, 3))\n")
    (tmp_path / "bad.npz").write_bytes(b"PK")
    (tmp_path / "text.pth").write_text("weights")
    np.savez(tmp_path / "other.npz", images=np.zeros((20, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "pickled.npz", arr_0=np.array([{}]))
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((20, 16, 16, 3), np.uint8))
    np.savez(tmp_path / "few.npz", arr_0=np.zeros((9, 8, 8, 3), np.uint8))
    for name, size in (("empty", 0), ("large", 16), ("broken", 8)):
        (tmp_path / name).mkdir()
        for number in range(20 if size else 0):
            Image.new("L", (size, size)).save(tmp_path / name / f"{number:02d}.png")
    (tmp_path / "broken" / "07.png").write_bytes(b"not an image")
    classifier, earlier = ["--extractor", "classifier"], ["--extractor", "classifier", "--samples-from"]
    for arguments, parts in (
        (
            [],
            ["weights cannot be downloaded", "--extractor-weights FILE, a copy of https://", "--extractor classifier"],
        ),
        (
            ["--extractor-weights", tmp_path / "none.pth"],
            ["none.pth', which is not a file", "weights of inception-v3-co"],
        ),
        (["--extractor-weights", tmp_path / "text.pth"], ["text.pth', which cannot be read"]),
        (["--extractor", "resnet"], ["extractor is 'resnet'", "classifier, inception-v3-compat", "module:function"]),
        (["--extractor", "nothing:here"], ["extractor is 'nothing:here', which cannot be imported"]),
        (["--extractor", "mine_too:mean"], ["which gives (8,); allowed: (8, 1 or more)"]),
        ([*classifier, "--extractor-weights", "a"], ["extractor_weights is 'a'; allowed: none for classifier"]),
        ([*classifier, "--images", 9], ["images is 9; allowed: 10 or more, of a split that has them"]),
        ([*classifier, "--samples", 9], ["samples is 9, with fid; allowed: 10 or more"]),
        ([*earlier, tmp_path / "few.npz"], ["few.npz'; allowed: 10 PNG files or more, or an .npz file"]),
        ([*earlier, tmp_path / "empty"], ["empty'; allowed: 10 PNG files or more"]),
        (
            [*earlier, tmp_path / "none.npz"],
            ["none.npz', which cannot be read", "an .npz file with arr_0, or a folder"],
        ),
        ([*earlier, tmp_path / "bad.npz"], ["bad.npz', which cannot be read"]),
        ([*earlier, tmp_path / "other.npz"], ["other.npz', which cannot be read", "arr_0"]),
        ([*earlier, tmp_path / "pickled.npz"], ["pickled.npz', which cannot be read", "allow_pickle=False"]),
        ([*earlier, tmp_path / "large.npz"], ["uint8 (20, 16, 16, 3); allowed: uint8 (n, 8, 8, 3)"]),
        ([*earlier, tmp_path / "large"], ["00.png has 16x16 pixels; allowed: 8x8"]),
        ([*earlier, tmp_path / "broken"], ["07.png cannot be read"]),
        ([*earlier, tmp_path / "few.npz", "--student"], ["with samples to draw; allowed: one of the two"]),
    ):
        capsys.readouterr()
        fails_with_one_line(capsys, evaluate.main, ["--fid", "--device", "cpu", *arguments], *parts)
    fails_with_one_line(capsys, evaluate.main, [*earlier[2:], "few.npz"], "samples_from is 'few.npz', without fid")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "text.pth"))
    arguments = ["--fid", "--device", "cpu", *classifier]
    fails_with_one_line(capsys, evaluate.main, arguments, "TORCH_HOME is", "text.pth', which cannot be written")
