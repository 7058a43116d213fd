"""The benchmark against rivals, without the rivals' code: its likelihoods, its clock, and a contest of seconds."""

import dataclasses
import json
import math

import pytest
import torch

from benchmarks import rivals
from farmer_ref.data.sets import load_split
from farmer_ref.model.tokens import nats_to_bits_per_dim
from farmer_ref.support.errors import InputError
from farmer_ref.training.presets import PRESETS

SMALL = dataclasses.replace(
    PRESETS["mnist"].model,
    flow_blocks=2,
    flow_layers=1,
    flow_width=32,
    prior_layers=1,
    prior_width=32,
    head_dim=16,
    components=4,
    redundant_components=4,
)


@pytest.fixture(autouse=True)
def small_contest(monkeypatch, tmp_path):
    """Small shapes, the images that ship, results elsewhere."""

    def splits(config, *names):
        return [load_split("mnist-small", name, SMALL) for name in names]

    (tmp_path / "results").mkdir()
    monkeypatch.setattr(rivals, "PRESET", dataclasses.replace(PRESETS["mnist"], model=SMALL))
    monkeypatch.setattr(rivals, "splits", splits)
    monkeypatch.setattr(rivals, "ROOT", tmp_path)


def images_and_labels():
    data = load_split("mnist-small", "validation", SMALL)
    values = data.values[:3]
    noise = rivals.UNIFORM.draw(tuple(values.shape), torch.Generator().manual_seed(0))
    return values + noise, rivals.UNIFORM(values, noise), data.labels[:3]


def test_an_identity_flow_has_the_bits_of_a_normal_grey_level():
    """In [-1, 1] a pixel is N(0, 1), so v + u is N(128, 128^2), whose density needs no correction."""
    levels, images, labels = images_and_labels()
    untrained = rivals.OurCoupling(SMALL, 2, 1).eval()
    with torch.no_grad():
        bits = nats_to_bits_per_dim(untrained(images, labels), 784, 256)
    density = torch.distributions.Normal(128.0, 128.0).log_prob(levels)
    torch.testing.assert_close(bits, -density.mean((1, 2, 3)) / math.log(2))


@pytest.mark.parametrize(
    "name", ["FARMER, histogram", "FARMER, linear", "coupling flow", "FARMER, linear, learned noise"]
)
def test_log_p_is_that_of_the_latents_and_the_jacobian(name):
    values = load_split("mnist-small", "train", SMALL).values
    for build in rivals.contenders(rivals.RivalsConfig(), values)[name].values():
        rivals.check_logdet(build)


def test_a_wrong_log_determinant_is_noticed():
    class Wrong(rivals.OurCoupling):
        def encode(self, images, labels):
            z, logdet = super().encode(images, labels)
            return z, logdet / z[0].numel()  # a mean, as in TARFlow

    with pytest.raises(AssertionError):
        rivals.check_logdet(lambda shape: Wrong(shape, 2, 1))


def test_the_clock_counts_training_alone_and_decides_the_schedule():
    (train, validation), config = rivals.splits(None, "train", "validation"), rivals.RivalsConfig(batch_size=4)
    training = rivals.Training(rivals.OurCoupling(SMALL, 2, 1), train, config=config, rate=1e-3, minutes=0.01)
    training.until(0.3)
    seconds, rate = training.seconds, training.optimiser.param_groups[0]["lr"]
    assert 0.3 <= seconds < 0.6 and 0 < rate < 1e-3
    score = training.score(validation, 20)
    assert training.seconds == seconds and score["images"] == 20
    before = training.step
    training.until(math.inf)  # its budget
    assert training.step > before and training.seconds >= 0.6
    assert training.optimiser.param_groups[0]["lr"] < rate
    assert 1.0 < training.score(validation, 20)["bits_per_dim"] < score["bits_per_dim"]


def test_an_image_without_density_leaves_no_mean_and_loses(monkeypatch):
    (train,) = rivals.splits(None, "train")
    training = rivals.Training(
        rivals.OurCoupling(SMALL, 2, 1), train, config=rivals.RivalsConfig(), rate=1e-3, minutes=1
    )
    exact = rivals.OurCoupling.forward
    hopeless = torch.zeros(20).index_fill(0, torch.tensor([3]), -math.inf)
    monkeypatch.setattr(rivals.OurCoupling, "forward", lambda *inputs: exact(*inputs) + hopeless)
    score = training.score(train, 20)
    assert score == {"bits_per_dim": None, "standard_error": None, "images": 20, "images_without_density": 1}
    assert rivals.or_infinite(score["bits_per_dim"]) > rivals.or_infinite(9.0) == 9


def test_a_contest_from_the_rates_to_the_figure(tmp_path, capsys):
    few = ["--minutes", "0.01", "--trial-minutes", "0.001", "--batch-size", "2"]
    rivals.main([*few, "--validation-images", "10", "--test-images", "20"])
    record = json.loads((tmp_path / "results" / "rivals.json").read_text())
    plain = ["FARMER, histogram", "FARMER, linear", "coupling flow"]
    assert list(record["contenders"]) == [*plain, *(f"{name}, learned noise" for name in plain[:2])]
    for name, found in record["contenders"].items():
        tried = [trial for trial in record["rates"]["trials"] if trial["contender"] == name]
        assert len(tried) >= 3
        best = min(tried, key=lambda trial: trial["bits_per_dim"])
        first = [*found["failed_rates"], found["learning_rate"]][0]
        assert (first, found["variant"]) == (best["learning_rate"], best["variant"])
        seconds = [point["seconds"] for point in found["curve"]]
        assert seconds == sorted(seconds) and len(seconds) == len(rivals.SHARES) and seconds[-1] >= 0.6
        assert found["test"]["images"] == 20 and math.isfinite(found["test"]["bits_per_dim"])
    record["contenders"]["coupling flow"]["failed_rates"] = []
    stands, fails = record["contenders"]["FARMER, histogram"], record["contenders"]["coupling flow"]
    fails["skipped_steps"] = fails["curve"][-1]["steps"]  # all: the rate was too high
    (tmp_path / "results" / "rivals.json").write_text(json.dumps(record))
    rivals.main(["--stage", "contest", "--resume", *few, "--validation-images", "10", "--test-images", "20"])
    again = json.loads((tmp_path / "results" / "rivals.json").read_text())
    assert again["contenders"]["FARMER, histogram"] == stands and again["settings"] == record["settings"]
    repeated = again["contenders"]["coupling flow"]
    rates = [*fails["failed_rates"], fails["learning_rate"]]
    assert repeated["failed_rates"][: len(rates)] == rates
    assert repeated["learning_rate"] == repeated["failed_rates"][-1] / 2

    figure = tmp_path / "results" / "rivals.svg"
    drawn = figure.read_text()
    figure.unlink()
    rivals.main(["--stage", "figure"])
    assert len(figure.read_text()) == len(drawn)


def test_a_contest_needs_rates_of_all(tmp_path):
    (tmp_path / "results" / "rivals.json").write_text(json.dumps({"rates": {"trials": []}}))
    with pytest.raises(InputError, match="no rate for FARMER, histogram"):
        rivals.main(["--stage", "contest"])


@pytest.mark.parametrize("clone", ["tarflow", "jetformer"])
def test_a_folder_that_is_no_clone_is_named(clone, tmp_path):
    with pytest.raises(InputError, match=f"{clone} is .*; allowed: a clone of"):
        rivals.main([f"--{clone}", str(tmp_path)])
