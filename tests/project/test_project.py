"""The project around the package: environments, the README and the map, shipped weights, what the results show."""

import json
import math
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import labels_apart

from book import refresh
from farmer_ref import PRESETS, Farmer, Guidance, OneStepStudent, bits_per_dim
from farmer_ref.data.sets import load_split
from farmer_ref.evaluate import EvaluateConfig, evaluate
from farmer_ref.evaluation.metrics import PixelClassifier, sample_values
from farmer_ref.support.files import PRETRAINED
from farmer_ref.support.plots import collisions, save_plot

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "farmer_ref"
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHIPPED = ["digits", "digits-noise"]


def requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["requires-python"], project["dependencies"] + project["optional-dependencies"]["dev"]


def test_conda_environment_equals_pyproject():
    python, wanted = requirements()
    renamed = {"torch": "pytorch", "matplotlib": "matplotlib-base", "huggingface-hub": "huggingface_hub"}
    wanted = {f"python{python}"} | {re.sub(r"^\w[\w-]*", lambda m: renamed.get(m[0], m[0]), line) for line in wanted}
    listed = re.findall(r"^ +- (\S+>=\S+)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    assert set(listed) == wanted


def test_constraints_name_a_version_of_every_requirement():
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for line in requirements()[1]:
        name, lowest, *below = re.split(r">=|,<", line)
        version = [int(part) for part in re.findall(r"\d+", pinned[name])]
        assert version >= [int(part) for part in lowest.split(".")], line
        assert not below or version < [int(part) for part in below[0].split(".")], line


def test_the_project_has_one_address():
    """Where it moves to, `pyproject.toml` says, and every link follows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    address = project["urls"]["Repository"].removeprefix("https://github.com/")
    pages = [path for pattern in ("*.md", "book/**/*", "notebooks/[0-9A]*") for path in ROOT.glob(pattern)]
    texts = [
        path.read_text(encoding="utf-8")
        for path in pages
        if path.suffix in (".md", ".py", ".yml", ".ipynb") and "_build" not in path.parts
    ]
    links = re.findall(r"github(?:\.com)?/([\w.-]+/farmer_ref)", "".join(texts))
    assert len(links) > 50 and set(links) == {address}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_score_what_their_record_says(name):
    model = Farmer.from_pretrained(name)
    assert replace(model.config, class_names=()) == PRESETS[name].model
    record = json.loads((PRETRAINED / name / "record.json").read_text())
    assert {"command", "commit", "date", "device", "torch", "seed", "steps", "training_minutes"} <= record.keys()
    figures = evaluate(EvaluateConfig(run=name, draws=record["draws"], samples=record["samples"], device="cpu"))
    assert figures["nats_per_dim"] == pytest.approx(record["nats_per_dim"], abs=1e-4)
    if name == "digits":
        assert figures["bits_per_dim"] == pytest.approx(record["bits_per_dim"], abs=1e-4)
        assert figures["bits_per_dim"] <= 1.97
        assert figures["sample_accuracy"] >= 0.95
    assert figures["sample_accuracy"] == pytest.approx(record["sample_accuracy"], abs=0.01)


@pytest.mark.parametrize("name", ["mnist", "mnist-p2"])
def test_a_shipped_model_of_mnist_scores_as_its_record_says(name):
    model, record = Farmer.from_pretrained(name), json.loads((PRETRAINED / name / "record.json").read_text())
    assert replace(model.config, class_names=()) == PRESETS[name].model
    test = load_split("mnist-small", "test", model.config)
    bits = bits_per_dim(model, test.values[:100], test.labels[:100], draws=1)
    error = float(bits.std()) / 10
    assert float(bits.mean()) == pytest.approx(record["test"]["bits_per_dim"], abs=4 * error) and error < 0.05
    assert record["validation_bits_per_dim"]["float16"] == pytest.approx(
        record["validation_bits_per_dim"]["float32"], abs=1e-3
    )


def test_shipped_weights_are_small_and_load_anywhere():
    assert sum(path.stat().st_size for path in PRETRAINED.rglob("*")) < 25e6
    images = Farmer.from_pretrained("digits").sample(torch.arange(10), generator=torch.Generator().manual_seed(0))
    assert images.shape == (10, 1, 8, 8)


def results():
    return {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "results").glob("*.json"))}


def test_results_say_how_they_were_made():
    assert results()
    for name, record in results().items():
        assert {"command", "commit", "date", "device", "torch"} <= record.keys(), name


def test_generating_the_readme_again_changes_nothing():
    assert refresh.with_blocks(README) == README
    assert {block[2] for block in refresh.BLOCK.finditer(README)} == refresh.measured.readme_blocks().keys()


def test_no_measured_number_is_typed_into_the_readme():
    typed = refresh.BLOCK.sub("", README)
    assert not re.search(r"\d%?\s*±|\d\.\d+%", typed)


def test_generating_the_results_again_changes_nothing():
    for name, record in results().items():
        if "sentences" in record:
            now = refresh.rejudged(record, name)
            assert [now[key] for key in ("title", "note", "sentences")] == [
                record[key] for key in ("title", "note", "sentences")
            ], name
    assert (ROOT / "results" / "README.md").read_text(encoding="utf-8") == refresh.report(ROOT / "results")


def test_plots_of_results_are_up_to_date_and_their_labels_do_not_touch(tmp_path):
    for path, figure in refresh.plots():
        save_plot(figure, tmp_path / path.name)
        assert labels_apart(figure) and not collisions(figure), path.name
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def files_of_the_tree(page, root):
    """The .py files that the first code block of a page draws as a tree."""
    folders, files = [], set()
    for line in re.search(r"```\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[1].splitlines():
        if match := re.match(r"( *)(\w+/|\w+\.py)(?: |$)", line):
            depth = len(match[1]) // 4
            folders[depth:] = [match[2].rstrip("/")]
            if match[2].endswith(".py"):
                files.add(root.joinpath(*folders))
    return files


def test_the_map_of_the_package_has_every_file():
    files = {path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    assert files_of_the_tree(PACKAGE / "README.md", ROOT) == files


def test_the_readme_s_map_has_real_files():
    text = re.search(r"## Reading the code.*?```\n(.*?)```", README, re.DOTALL)[1]
    folders, seen = [], set()
    for line in text.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        folders[len(indent) // 4 :] = [name]
        seen.add(PACKAGE.joinpath(*folders))
    assert all(path.exists() for path in seen)
    assert {path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} <= seen


def test_results_of_the_bases():
    table = {row["name"]: row["bits_per_dim"]["mean"] for row in results()["basis"]["rows"]}
    pixels, mixing, pca = (
        table[f"{name}, no split, 600 steps"] for name in ("pixels", "pixels, learned mixing", "PCA")
    )
    assert pixels - mixing >= 0.2 and pixels - pca >= 0.2


def test_readme_names_real_things():
    for module in set(re.findall(r"python -m (farmer_ref\.\w+|benchmarks\.\w+)", README)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for preset in re.findall(r"--preset ([\w.-]+)", README):
        assert preset in PRESETS
    for target in set(re.findall(r"`make (\w+)`|^make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{''.join(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    for link in re.findall(r"\]\(([^)#]+)\)|<img src=\"([^\"]+)\"", README):
        link = "".join(link)
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_guided_samples_are_finite_before_clipping():
    """A few hundred here; 20,000 by benchmarks.guidance, below."""
    model = Farmer.from_pretrained("digits")
    for scale in (0.0, 1.0, 2.0, 5.0, 10.0):
        z = model.prior.sample(torch.arange(60) % 10, Guidance(scale=scale), generator=torch.Generator().manual_seed(1))
        assert model.decode(z).isfinite().all()


def test_guidance_raises_the_accuracy():
    model = Farmer.from_pretrained("digits")
    classifier = PixelClassifier(load_split("digits", "train", model.config, data_root="data", download=False))
    labels = torch.arange(500) % 10
    shares = [
        classifier.accuracy(sample_values(model, labels, seed=1, batch_size=500, guidance=Guidance(scale=w)), labels)
        for w in (0.0, 1.0)
    ]
    assert shares[0] >= 0.94 and shares[1] >= 0.985 and shares[1] > shares[0]


def test_results_of_guidance():
    measured = results()["guidance"]
    share = {(row["rule"], row["scale"]): row["sample_accuracy"]["mean"] for row in measured["sweep"]}
    assert share["resampling", 0.0] >= 0.95
    assert share["resampling", 1.0] >= 0.993
    finite = [row for row in measured["finite"] if row["rule"] == "resampling"]
    assert sum(row["samples"] for row in finite) == 20_000
    assert {row["scale"] for row in finite} == {0.0, 1.0, 2.0, 5.0, 10.0}
    assert sum(row["not_finite"] for row in finite) == 0
    last = measured["one_dimension"]["rows"][-1]
    assert last["candidates"] == 1024
    assert last["error_of_mean_in_stds"] < 0.01 and last["relative_error_of_std"] < 0.01


def test_the_shipped_student_scores_what_its_record_says():
    model, student = Farmer.from_pretrained("digits"), OneStepStudent.from_pretrained("digits")
    record = json.loads((PRETRAINED / "digits" / "student.json").read_text())
    classifier = PixelClassifier(load_split("digits", "train", model.config, data_root="data", download=False))
    labels = torch.arange(1000) % 10
    z = model.prior.sample(labels, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = [model.decode(z, student=decoder).clamp(-1, 1) for decoder in (None, student)]
    exact, shipped = (classifier.accuracy(model.dequantiser.quantise(drawn), labels) for drawn in images)
    assert abs(exact - shipped) <= 0.02
    assert shipped == pytest.approx(record["sample_accuracy"], abs=0.01)
    error = float((images[0] - images[1]).square().mean().sqrt())
    assert error == pytest.approx(record["sample_error"], abs=0.01)


def test_results_of_the_inverses():
    measured = results()["inverses"]
    speedup = {
        (row["method"], row["batch"]): row["speedup_over_sequential"]["median"] for row in measured["matrix"]["rows"]
    }
    assert speedup["student", 1] >= 8 and speedup["student", 16] > 1
    for batch, least in ((1, 15), (16, 8)):  # against a rival that stays as it is: our own inverse becomes faster
        assert speedup["student", batch] >= least * speedup["public TARFlow", batch]
    assert speedup["public TARFlow", 16] <= 1 / 1.5 and speedup["public TARFlow", 1] < 1
    for rows in measured["sweeps"].values():
        assert max(row["error"] for row in rows) <= measured["tolerance"]


def test_results_of_healthy_and_broken_runs():
    """What the page says of them in words."""
    measured = results()["healthy"]
    curve = measured["healthy"]["digits"]
    right = dict(zip(curve["step"], curve["value"], strict=True))
    unmasked, unbounded, wild, shifted = (
        measured["broken"][name]
        for name in (
            "no mask",
            "no bound on the scale",
            "learning rate 50 times too large",
            "wrong constant: a cell of width 1/L",
        )
    )
    assert right[5] < math.log2(17) < measured["healthy"]["tiny"]["value"][0]  # through the histogram, and linear
    assert max(measured["round_trip"], unbounded["round_trip"]) < 1e-5 < 1 < unmasked["round_trip"]
    last = right[measured["broken_steps"]]
    assert unmasked["curve"]["value"][-1] < last - 0.2  # too good
    assert abs(unbounded["curve"]["value"][-1] - last) < 0.2  # nothing happens
    assert wild["round_trip"] is None and min(wild["curve"]["value"][10:]) > 3 * math.log2(17)
    differences = [a - b for a, b in zip(shifted["curve"]["value"], curve["value"], strict=True)]
    assert max(abs(difference - 1) for difference in differences) < 1e-3


def test_results_of_the_applications():
    measured = results()["applications"]
    inpainted, read = measured["inpainting"], measured["classification"]["by_draws"][-1]
    for figures in (inpainted["with_label"], inpainted["without_label"], inpainted["samples"]):
        assert figures["known_pixels_identical"]
    assert inpainted["with_label"]["completions_read_as_class"] >= 0.9
    drawn = inpainted["samples"]  # the truth is one more draw
    assert abs(drawn["mean_rank_of_log_prob"] - 0.5) < 2 * drawn["standard_error_of_a_mean_rank"]
    assert abs(drawn["distance_of_truth"] / drawn["standard_deviation"] - 1) < 0.1
    anomalies = measured["anomalies"]
    best, test = anomalies["chosen_on_validation"], anomalies["test"]
    assert best == max(anomalies["mean_validation_auroc"], key=anomalies["mean_validation_auroc"].get)
    assert test["blank"]["likelihood"] < 0.5 and test["MNIST"]["likelihood"] < 0.5  # the known failures
    left_out = test["one class left out"]
    for corrected in ("terms", "complexity"):
        assert all(test[kind][corrected] > test[kind]["likelihood"] for kind in ("blank", "MNIST"))
        assert abs(left_out[corrected] - left_out["likelihood"]) < 0.05
    hidden = [task["test"]["likelihood"] for name, task in anomalies["tasks"].items() if "without" in name]
    assert min(hidden) < 0.5
    assert max(left_out[score] for score in anomalies["mean_validation_auroc"]) + 0.05 < left_out["Gaussian mixture"]
    assert test["blank"][best] >= 0.95 and test["blurred"][best] >= 0.95
    assert read["accuracy"]["mean"] >= 0.95
    assert read["cross_entropy_tempered"]["mean"] > 2 * read["cross_entropy_plain"]["mean"]
