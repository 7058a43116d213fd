"""The project around the package: environments, the rooms and their imports, shipped weights, numbers in prose."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from farmer_ref import PRESETS, Farmer, Guidance, OneStepStudent
from farmer_ref.data.sets import load_split
from farmer_ref.evaluate import EvaluateConfig, evaluate
from farmer_ref.evaluation.metrics import PixelClassifier, sample_values
from farmer_ref.evaluation.tables import MEASURES
from farmer_ref.evaluation.verdicts import cell, report
from farmer_ref.parameters import step_costs
from farmer_ref.support.files import PRETRAINED

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "farmer_ref"
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHIPPED = ["digits", "digits-noise"]

# What each room of the package may import of the others. Commands may import anything but commands.
ROOMS = {
    "errors": set(),
    "config": {"errors", "guidance"},
    "tokens": {"errors"},
    "transformer": set(),
    "mixture": set(),
    "guidance": {"errors", "mixture"},
    "flow": {"errors", "transformer"},
    "coupling": {"flow"},
    "prior": {"guidance", "mixture", "transformer"},
    "hub": {"errors"},
    "files": {"errors", "hub"},
    "farmer": {"config", "coupling", "errors", "files", "tokens", "flow", "guidance", "hub", "prior"},
    "student": {"errors", "farmer", "files", "flow", "hub", "transformer"},
    "data": {"config", "errors"},
    "parallel": {"errors", "transformer"},
    "checkpoint": {"errors", "files", "parallel"},
    "costs": {"config", "farmer", "transformer"},
    "applications": {"errors", "farmer", "guidance", "metrics", "prior"},
    "metrics": {"data", "errors", "farmer", "guidance", "parallel", "student", "tokens"},
    "fidelity": {"data", "errors", "files", "metrics", "parallel"},
    "plots": set(),
    "engine": {
        *("checkpoint", "config", "costs", "data", "errors", "farmer", "files"),
        *("guidance", "mixture", "parallel", "prior", "tokens", "transformer"),
    },
    "record": set(),
    "comparisons": {"config"},
    "cli": {"errors", "hub", "parallel"},
}
COMMANDS = {"train", "distill", "sample", "evaluate", "ablate", "apply", "parameters"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "farmer_ref":
            yield from [node.module.split(".")[1]] if "." in node.module else [alias.name for alias in node.names]


def test_rooms_import_only_what_they_may():
    names = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert names == set(ROOMS) | COMMANDS
    for name in names:
        used = set(imports(PACKAGE / f"{name}.py"))
        assert used <= (ROOMS[name] if name in ROOMS else set(ROOMS)), name


def test_importing_the_package_is_light():
    """No plots, no engine, no command-line library, no client of the Hub, no FID."""
    heavy = ("matplotlib", "tyro", "huggingface_hub", "torch_fidelity", "farmer_ref.training.trainer")
    code = f"import sys, farmer_ref; print([m for m in sys.modules if m in {heavy}])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_nothing_is_pickled():
    for path in PACKAGE.glob("*.py"):
        assert not re.search(r"torch\.(load|save)\(|import pickle|joblib", path.read_text()), path


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
    pages = [path for pattern in ("*.md", "book/**/*", "notebooks/[0-9]*") for path in ROOT.glob(pattern)]
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
    assert model.config == PRESETS[name].model
    record = json.loads((PRETRAINED / name / "record.json").read_text())
    assert {"command", "commit", "date", "device", "torch", "seed", "steps", "training_minutes"} <= record.keys()
    figures = evaluate(EvaluateConfig(run=name, draws=record["draws"], samples=record["samples"], device="cpu"))
    assert figures["nats_per_dim"] == pytest.approx(record["nats_per_dim"], abs=1e-4)
    if name == "digits":
        assert figures["bits_per_dim"] == pytest.approx(record["bits_per_dim"], abs=1e-4)
        assert figures["bits_per_dim"] <= 1.97
        assert figures["sample_accuracy"] >= 0.95
    assert figures["sample_accuracy"] == pytest.approx(record["sample_accuracy"], abs=0.01)


def test_shipped_weights_are_small_and_load_anywhere():
    assert sum(path.stat().st_size for path in PRETRAINED.rglob("*")) < 12e6
    images = Farmer.from_pretrained("digits").sample(torch.arange(10), generator=torch.Generator().manual_seed(0))
    assert images.shape == (10, 1, 8, 8)


def results():
    return {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "results").glob("*.json"))}


def test_results_say_how_they_were_made():
    assert results()
    for name, record in results().items():
        assert {"command", "commit", "date", "device", "torch"} <= record.keys(), name


def test_readme_numbers_are_the_measured_ones():
    digits, speed = results()["digits"], results()["tarflow_speed"]
    noise = results()["digits-noise"]
    for number in (
        f"{digits['bits_per_dim']['mean']:.3f} ± {digits['bits_per_dim']['standard_deviation']:.3f}",
        f"{digits['sample_accuracy']['mean']:.1%} ± {digits['sample_accuracy']['standard_deviation']:.1%}",
        f"{digits['training_minutes']['mean']:.1f} minutes",
        f"{noise['sample_accuracy']['mean']:.1%}",
        f"{speed['training_step']['speedup_median']:.2f}",
        f"{speed['sequential_inverse']['speedup_median']:.2f}",
    ):
        assert number in README, number
    for run in digits["runs"]:
        assert f"| {run['seed']} | {run['bits_per_dim']:.3f} | {run['sample_accuracy']:.1%} |" in README


def test_readme_names_real_things():
    for module in set(re.findall(r"python -m (farmer_ref\.\w+|benchmarks\.\w+)", README)):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
    for preset in re.findall(r"--preset ([\w.-]+)", README):
        assert preset in PRESETS
    for target in set(re.findall(r"`make (\w+)`|^make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{''.join(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    for link in re.findall(r"\]\(([^)#]+)\)|<img src=\"([^\"]+)\"", README):
        link = "".join(link)
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_readme_tables_are_the_measured_ones():
    told = {
        "table3": {
            "split": ("sample_accuracy", "bits_per_dim"),
            "no split": ("sample_accuracy", "bits_per_dim"),
            "split, both": ("sample_accuracy", "frechet_distance"),
            "both, naive guidance": ("sample_accuracy", "frechet_distance"),
            "both, resampling": ("sample_accuracy", "frechet_distance", "bits_per_dim"),
            "both, resampling, Z_R ~ N(0, I)": ("bits_per_dim",),
        },
        "table4": {
            "autoregressive flow": ("frechet_distance",),
            "coupling flow": ("frechet_distance",),
            "autoregressive flow, one step": ("frechet_distance",),
        },
        "figure6a": {f"K = {k}": ("bits_per_dim",) for k in (1, 16, 32, 64, 256)},
        "figure6b": {f"I = {i}": ("bits_per_dim",) for i in ("1 of 4", "2 of 4", "3 of 4", "4, no split")},
        "figure7": {f"x {scale}": ("sample_accuracy",) for scale in (0, 1.5, 4)},
        "basis": {f"PCA, {kind}, 600 steps": ("bits_per_dim",) for kind in ("I = 12", "no split")},
    }
    measured = results()
    for table, its_rows in told.items():
        rows = {row["name"]: row for row in measured[table]["rows"]}
        for name, measures in its_rows.items():
            for measure in measures:
                assert cell(rows[name][measure], MEASURES[measure][1]) in README, (table, name, measure)
    sentences = [*measured["table4"]["sentences"][-2:], measured["table5"]["sentences"][-1]]
    fifths = measured["figure8"]["fifths"]
    for said in (*sentences, *(cell(fifth["sharpness"], ".2f") for fifth in (fifths[0], fifths[-1]))):
        assert said in README, said
    early = {row["way"]: row["frechet_distance"] for row in measured["early_guidance"]["table"]}
    ways = [early[way] for way in ("no guidance", "naive, w = 1", "resampling, w = 1")]
    assert ", ".join(f"{way['mean']:.2f}" for way in ways) in README
    assert all(a > b > c for a, b, c in zip(*(way["seeds"] for way in ways), strict=True))


def test_the_page_of_results_is_made_of_the_results():
    assert (ROOT / "results" / "README.md").read_text(encoding="utf-8") == report(ROOT / "results")


def test_readme_costs_are_the_computed_ones():
    for name in ("imagenet64", "farmer-1.1b-p16", "farmer-1.1b-p8", "farmer-1.9b-p16", "farmer-1.9b-p8"):
        assert step_costs(name) in README, name


def test_guided_samples_are_finite_before_clipping():
    """A few hundred here; 20,000 by benchmarks.guidance, below."""
    model = Farmer.from_pretrained("digits")
    for scale in (0.0, 1.0, 2.0, 5.0, 10.0):
        z = model.prior.sample(torch.arange(60) % 10, Guidance(scale=scale), generator=torch.Generator().manual_seed(1))
        assert model.decode(z).isfinite().all()


def test_guidance_reads_well():
    model = Farmer.from_pretrained("digits")
    classifier = PixelClassifier(load_split("digits", "train", model.config, "data", False))
    labels = torch.arange(500) % 10
    shares = [classifier.accuracy(sample_values(model, labels, 1, 500, Guidance(scale=w)), labels) for w in (0.0, 1.0)]
    assert shares[0] >= 0.94 and shares[1] >= 0.985 and shares[1] > shares[0]


def test_results_of_guidance():
    measured = results()["guidance"]
    share = {(row["rule"], row["scale"]): row["sample_accuracy"]["mean"] for row in measured["sweep"]}
    assert share["resampling", 0.0] >= 0.95
    assert share["resampling", 1.0] >= 0.993
    for rule in ("resampling", "naive"):
        finite = [row for row in measured["finite"] if row["rule"] == rule]
        assert sum(row["samples"] for row in finite) == 20_000
        assert {row["scale"] for row in finite} == {0.0, 1.0, 2.0, 5.0, 10.0}
        assert sum(row["not_finite"] for row in finite) == 0
    last = measured["one_dimension"]["rows"][-1]
    assert last["candidates"] == 1024
    assert last["error_of_mean_in_stds"] < 0.01 and last["relative_error_of_std"] < 0.01


def test_the_shipped_student_scores_what_its_record_says():
    model, student = Farmer.from_pretrained("digits"), OneStepStudent.from_pretrained("digits")
    record = json.loads((PRETRAINED / "digits" / "student.json").read_text())
    classifier = PixelClassifier(load_split("digits", "train", model.config, "data", False))
    labels = torch.arange(1000) % 10
    z = model.prior.sample(labels, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = [model.decode(z, student=decoder).clamp(-1, 1) for decoder in (None, student)]
    exact, shipped = (classifier.accuracy(model.dequantiser.quantise(drawn), labels) for drawn in images)
    assert abs(exact - shipped) <= 0.02
    assert shipped == pytest.approx(record["sample_accuracy"], abs=0.01)
    error = float((images[0] - images[1]).square().mean().sqrt())
    assert error == pytest.approx(record["sample_error"], abs=0.01)


def test_readme_numbers_of_sampling_are_the_measured_ones():
    def mean_and_spread(figure, form):
        return f"{figure['mean']:{form}} ± {figure['standard_deviation']:{form}}"

    measured, numbers = results(), []
    for row in measured["guidance"]["sweep"]:
        if row["scale"] in (0.0, 1.0, 2.0, 4.0):
            numbers.append(mean_and_spread(row["sample_accuracy"], ".1%"))
            numbers.append(mean_and_spread(row["frechet_distance"], ".2f"))
    rules = ("naive", "resampling")
    largest = {
        rule: max(r["largest_pixel"] for r in measured["guidance"]["finite"] if r["rule"] == rule) for rule in rules
    }
    numbers.append("its pixels reach {naive:.0f}, those of resampling {resampling:.0f}".format(**largest))
    for figures in measured["distillation"]["table"].values():
        numbers.append(mean_and_spread(figures["sample_error"], ".4f"))
        numbers.append(mean_and_spread(figures["sample_accuracy"], ".1%"))
    student = measured["student"]["runs"][0]
    numbers += [
        f"{student['sample_error']:.3f}",
        f"{student['sample_accuracy']:.1%}",
        f"{student['steps']:,} steps",
    ]
    numbers.append(", ".join(f"{error:.1%}" for error in student["validation_relative_error_from_block_1"]))
    for row in measured["inverses"]["matrix"]["rows"]:
        speedup = row["speedup_over_sequential"]
        numbers.append(f"| {row['batch']} | {row['seconds']:.3f} |")
        if row["method"] != "sequential":
            numbers.append(f"{speedup['median']:.2f} ({speedup['min']:.2f} to {speedup['max']:.2f})")
    for rule in (
        "from z (ours)",
        "from zero",
        "from the student's guess, its pass not counted",
        "Anderson, 3 iterates",
    ):
        sums = [
            next(row["sum"] for row in measured["inverses"]["sweeps"][n] if row["rule"] == rule) for n in ("64", "256")
        ]
        numbers.append(f"{sums[0]} and {sums[1]}")
    for stage in ("before", "after"):
        numbers.append(f"{measured['denoise']['strong'][stage]['stray_of_blank_pixels_in_samples']:.3f}")
        numbers.append(f"{measured['denoise']['strong'][stage]['error_on_noisy_test_images']:.3f}")
        numbers.append(f"{measured['denoise']['paper'][stage]['error_on_noisy_test_images']:.4f}")
    basis = {row["name"]: row["bits_per_dim"]["mean"] for row in measured["basis"]["rows"]}
    pixels, mixing, pca = (
        basis[f"{name}, no split, 600 steps"] for name in ("pixels", "pixels, learned mixing", "PCA")
    )
    numbers += [f"{pixels:.2f} bits/dim, learned mixing {mixing:.2f}, PCA {pca:.2f}"]
    assert pixels - mixing >= 0.2 and pixels - pca >= 0.2
    crops = {row["name"]: row["bits_per_dim"]["mean"] for row in measured["basis_cifar10-crops"]["rows"]}
    long = {row["name"]: row["bits_per_dim"]["mean"] for row in measured["basis_long"]["rows"]}
    names = [f"{name}, no split" for name in ("pixels", "pixels, learned mixing", "PCA", "PCA, learned mixing")]
    numbers += ["CIFAR-10 {:.2f}, {:.2f}, {:.2f} (one".format(*(crops[f"{name}, 600 steps"] for name in names[:3]))]
    *three, both = (long[f"{name}, 2700 steps"] for name in names)
    numbers += ["have {:.2f}, {:.2f}, {:.2f} (three seeds)".format(*three), f"have {both:.2f} (one seed"]

    def worth(table, basis, steps):
        """What the shared mixture gains over N(0, I)."""
        split = f"{basis}, I = 12"
        return table[f"{split}, Z_R ~ N(0, I), {steps} steps"] - table[f"{split}, {steps} steps"]

    numbers += [
        f"{worth(basis, 'PCA', 600):.3f} better than N(0, I) after 600 steps and {worth(long, 'PCA', 2700):.3f} after",
        f"{worth(basis, 'pixels', 600):.3f} after 600, and after 2,700 it is {-worth(long, 'pixels', 2700):.3f} worse",
        f"in the end {long['pixels, I = 12, 2700 steps'] - three[0]:.2f}",
    ]
    flowing = " ".join(README.split())
    for number in numbers:
        assert number in flowing, number


def test_results_of_the_ways_back():
    measured = results()["inverses"]
    speedup = {
        (row["method"], row["batch"]): row["speedup_over_sequential"]["median"] for row in measured["matrix"]["rows"]
    }
    assert speedup["student", 16] >= 3 and speedup["student", 1] >= 8
    assert speedup["public TARFlow", 16] <= 1 / 1.5 and speedup["public TARFlow", 1] < 1
    for rows in measured["sweeps"].values():
        assert max(row["error"] for row in rows) <= measured["tolerance"]


def test_results_of_the_applications():
    measured = results()["applications"]
    inpainted, read = measured["inpainting"], measured["classification"]["by_draws"][-1]
    for figures in (inpainted["with_label"], inpainted["without_label"], inpainted["samples"]):
        assert figures["known_pixels_identical"]
    assert inpainted["with_label"]["completions_read_as_class"] >= 0.9
    anomalies = measured["anomalies"]
    best, test = anomalies["chosen_on_validation"], anomalies["test"]
    assert best == max(anomalies["mean_validation_auroc"], key=anomalies["mean_validation_auroc"].get)
    assert test["blank"]["likelihood"] < 0.5  # the known failure
    assert test["blank"][best] >= 0.95 and test["blurred"][best] >= 0.95
    assert read["accuracy"]["mean"] >= 0.95


def test_readme_numbers_of_the_applications_are_the_measured_ones():
    def mean_and_spread(figure, form):
        return f"{figure['mean']:{form}} ± {figure['standard_deviation']:{form}}"

    measured = results()["applications"]
    labelled, free, check = (measured["inpainting"][name] for name in ("with_label", "without_label", "samples"))
    edits, anomalies, read = measured["editing"], measured["anomalies"], measured["classification"]
    numbers = [
        f"**{labelled['completions_read_as_class']:.1%}**",
        f"digits {labelled['whole_images_read_as_class']:.1%}",
        f"of the class {labelled['pasted_samples_read_as_class']:.1%}",
        f"blank {labelled['blanked_images_read_as_class']:.1%}",
        f"label {free['completions_read_as_class']:.1%}",
        f"read as {free['distinct_classes']:.1f} classes",
        f"{check['mean_rank_of_log_prob']:.2f} on average, where .5 ± {check['standard_error_of_a_mean_rank']:.2f}",
        f"{check['distance_of_truth']:.2f} grey levels",
        f"which lie {check['standard_deviation']:.2f}",
        mean_and_spread(edits["class"]["read_as_new_class"], ".1%"),
        mean_and_spread(edits["class"]["distance"], ".2f"),
        mean_and_spread(edits["class"]["distance_of_samples"], ".2f"),
        mean_and_spread(edits["details"]["distance"], ".2f"),
        mean_and_spread(edits["details"]["read_as_class"], ".1%"),
        *(f"{walk['nats_per_image'][len(walk['nats_per_image']) // 2]:.1f}" for walk in edits["walks"].values()),
        f"({anomalies['tasks']['without 1']['test']['likelihood']:.3f})",
        mean_and_spread(read["by_draws"][-1]["accuracy"], ".1%"),
        mean_and_spread(read["by_draws"][-1]["calibration_error_plain"], ".1%"),
    ]
    for row in anomalies["test"].values():
        cells = [
            f"**{area:.3f}**" if score == anomalies["chosen_on_validation"] else f"{area:.3f}"
            for score, area in row.items()
        ]
        numbers += [f"| {cell} |" for cell in cells]
    prose = " ".join(README.split())
    for number in numbers:
        assert number in prose, number
