"""Measured numbers, read from results/*.json: for the text of the book's pages, its tables, and the README's blocks.

A page writes `{{ name }}` where a number of `numbers()` belongs; tables are included as files.
"""

from __future__ import annotations

import math
import re
import statistics
import textwrap
from typing import Any

from benchmarks.pixels import ROWS
from benchmarks.rivals import WITH_NOISE
from book.equations import ROOT
from book.pages import RESULTS, folded, last_word, link, load, source, table
from farmer_ref.data.sets import load_split
from farmer_ref.evaluation.tables import MEASURES
from farmer_ref.evaluation.verdicts import cell
from farmer_ref.parameters import count
from farmer_ref.support.hub import PATIENCE, STALLED
from farmer_ref.support.record import made_on, readable
from farmer_ref.training.presets import PRESETS

WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SWEEPS = {
    "from z (ours)": "from $z$ (ours)",
    "from zero": "from zero",
    "from the student's guess, its pass not counted": "from the student's guess, its pass not counted",
    "Anderson, 3 iterates": "from $z$, with Anderson acceleration over three iterates",
}
UNUSUAL = {"MNIST": "MNIST (model of Fashion-MNIST)", "Fashion-MNIST": "Fashion-MNIST (model of MNIST)"}


def in_words(number: int) -> str:
    """A small number as a word."""
    return WORDS[number] if number < len(WORDS) else f"{number:,}"


def rows(name: str) -> dict[str, dict[str, Any]]:
    """The rows of a result of `farmer_ref.ablate`, by name."""
    return {row["name"]: row for row in load(name)["rows"]}


def figure_of(name: str, row: str, measure: str) -> str:
    """One measure of one such row, with its spread."""
    return cell(rows(name)[row][measure], MEASURES[measure][1])


def power_of_ten(value: float) -> str:
    """A small number as a formula: 8 times ten to the power of -7."""
    digit, exponent = f"{value:.0e}".split("e")
    return rf"${digit} \cdot 10^{{{int(exponent)}}}$"


def time_limit() -> str:
    """The minutes that `make train` allows."""
    return re.search(r"--max-minutes (\d+)", (ROOT / "Makefile").read_text(encoding="utf-8"))[1]


# -- numbers in sentences ----------------------------------------------------------------------------------------------


def numbers() -> dict[str, str]:
    """Every number that a page's text uses, by name."""
    digits = (of_the_digits, of_the_sizes, of_healthy_runs, of_sampling, of_the_tables, of_the_uses)
    others = (of_the_pixels, of_mnist, of_guided_mnist, of_the_rivals, of_cifar10, of_hostile_input)
    found = {name: text for kind in (*digits, *others) for name, text in kind().items()}
    return {name: text.replace(" ± ", "\u00a0±\u00a0") for name, text in found.items()}


def of_the_digits() -> dict[str, str]:
    """The presets digits and digits-noise."""
    digits, noise, uncut = load("digits"), load("digits-noise"), load("digits_uncut")
    runs, settings = digits["runs"], digits["settings"]
    return {
        "digits_bits": cell(digits["bits_per_dim"], ".3f"),
        "digits_accuracy": cell(digits["sample_accuracy"], ".1%"),
        "uncut_bits": cell(uncut["bits_per_dim"], ".3f"),
        "uncut_accuracy": cell(uncut["sample_accuracy"], ".1%"),
        "uncut_minutes": f"{uncut['training_minutes']['mean']:.1f}",
        "uncut_source": source("digits_uncut"),
        "digits_steps": f"{settings['steps']:,}",
        "digits_draws": f"{runs[0]['draws']}",
        "digits_limit": time_limit(),
        "digits_seeds": in_words(len(runs)),
        "digits_nothing": f"{math.log2(settings['model']['levels']):.2f}",
        "digits_real_accuracy": f"{runs[0]['real_image_accuracy']:.1%}",
        "noise_accuracy": cell(noise["sample_accuracy"], ".1%"),
    }


def of_the_sizes() -> dict[str, str]:
    """The letters of the cheat sheet, for the shipped model."""
    model = PRESETS["digits"].model
    split = f"{model.token_channels} = {model.informative} + {model.token_channels - model.informative}"
    return {
        "cheat_tokens": str(model.tokens),
        "cheat_channels": split,
        "cheat_components": str(model.components),
        "cheat_redundant": str(model.redundant_components),
        "cheat_blocks": str(model.flow_blocks),
        "cheat_levels": str(model.levels),
    }


def of_healthy_runs() -> dict[str, str]:
    """The run of the digits that broken ones are compared with."""
    record = load("healthy")
    values = record["healthy"]["digits"]["value"][-10:]
    right = dict(zip(record["healthy"]["digits"]["step"], record["healthy"]["digits"]["value"], strict=True))
    return {
        "healthy_command": f"`{record['command']}`",
        "healthy_steps": f"{record['steps']:,}",
        "healthy_bits": f"{sum(values) / len(values):.2f}",
        "healthy_round_trip": power_of_ten(record["round_trip"]),
        "healthy_broken_steps": str(record["broken_steps"]),
        "healthy_unmasked_bits": f"{record['broken']['no mask']['curve']['value'][-1]:.2f}",
        "healthy_same_step_bits": f"{right[record['broken_steps']]:.2f}",
        "healthy_unmasked_round_trip": f"{record['broken']['no mask']['round_trip']:.1f}",
        "healthy_wild_bits": f"{record['broken']['learning rate 50 times too large']['curve']['value'][-1]:.0f}",
    }


def of_sampling() -> dict[str, str]:
    """Guidance, denoising, and the student that ships."""
    guided, denoised, shipped = load("guidance"), load("denoise"), load("student")
    run, exact = shipped["runs"][0], shipped["exact"]
    found = {
        "guidance_samples": f"{sum(row['samples'] for row in guided['finite'] if row['rule'] == 'resampling'):,}",
        "guidance_not_finite": str(sum(row["not_finite"] for row in guided["finite"])),
        "guidance_scales": ", ".join(f"{scale:g}" for scale in sorted({row["scale"] for row in guided["finite"]})),
        "student_steps": f"{run['steps']:,}",
        "student_difference": f"{run['sample_error']:.3f}",
        "student_accuracy": f"{run['sample_accuracy']:.1%}",
        "student_exact_accuracy": f"{exact['sample_accuracy']:.1%}",
        "student_errors": ", ".join(f"{error:.1%}" for error in run["validation_relative_error_from_block_1"]),
        "student_level": f"{2 / PRESETS['digits'].model.levels:.3f}",
        "denoise_strong": f"{denoised['strong']['noise_std']:g}",
        "denoise_paper": f"{denoised['paper']['noise_std']:g}",
    }
    for when in ("before", "after"):
        strong, paper = (denoised[noise][when] for noise in ("strong", "paper"))
        found[f"denoise_strong_stray_{when}"] = f"{strong['stray_of_blank_pixels_in_samples']:.3f}"
        found[f"denoise_strong_error_{when}"] = f"{strong['error_on_noisy_test_images']:.3f}"
        found[f"denoise_paper_error_{when}"] = f"{paper['error_on_noisy_test_images']:.4f}"
    return found


def of_the_tables() -> dict[str, str]:
    """How the paper's tables were run here, and the bases of the patches."""
    table3, long = load("table3"), load("basis_long")
    bits = {row["name"]: row["bits_per_dim"]["mean"] for row in (*load("basis")["rows"], *long["rows"])}
    short, longer = "600 steps", "2700 steps"

    def worth(basis: str, steps: str) -> str:
        gain = bits[f"{basis}, I = 12, Z_R ~ N(0, I), {steps}"] - bits[f"{basis}, I = 12, {steps}"]
        return f"{gain:.3f}".replace("-", "−")

    quick, million = "_mnist-quick_histogram", count(PRESETS["mnist-quick"].model)["total"]
    cells = {
        "unguided": ("table3", "split, both", "frechet_distance"),
        "naive": ("table3", "both, naive guidance", "frechet_distance"),
        "resampled": ("table3", "both, resampling", "frechet_distance"),
        "twelve_accuracy": ("figure6b", "I = 12 of 16", "sample_accuracy"),
        "twelve_bits": ("figure6b", "I = 12 of 16", "bits_per_dim"),
        "sixteen_accuracy": ("figure6b", "I = 16, no split", "sample_accuracy"),
        "sixteen_bits": ("figure6b", "I = 16, no split", "bits_per_dim"),
        "one_bits": ("figure6a", "K = 1", "bits_per_dim"),
        "best_bits": ("figure6a", "K = 64", "bits_per_dim"),
        "most_bits": ("figure6a", "K = 256", "bits_per_dim"),
        "one_frechet": ("figure6a", "K = 1", "frechet_distance"),
        "best_frechet": ("figure6a", "K = 64", "frechet_distance"),
        "most_frechet": ("figure6a", "K = 256", "frechet_distance"),
    }
    trained_longer = f"table4{quick}_long"
    flows = {
        f"{length}_{which}_{unit}": figure_of(name, row, measure)
        for length, name in (("quick", f"table4{quick}"), ("longer", trained_longer))
        for which, row in (("flow", FLOW), ("coupling", "coupling flow"))
        for unit, measure in (("bits", "bits_per_dim"), ("accuracy", "sample_accuracy"))
    }
    return {
        **{f"quick_{key}": figure_of(table + quick, row, name) for key, (table, row, name) in cells.items()},
        **flows,
        "longer_student_accuracy": figure_of(trained_longer, STUDENT, "sample_accuracy"),
        "longer_flow_frechet": figure_of(trained_longer, FLOW, "frechet_distance"),
        "longer_student_frechet": figure_of(trained_longer, STUDENT, "frechet_distance"),
        "longer_steps": f"{load(trained_longer)['steps_per_run']:,}",
        "quick_steps": f"{load('table3' + quick)['steps_per_run']:,}",
        "quick_components_seeds": in_words(load("figure6a" + quick)["seeds"]),
        "quick_parameters": f"{million / 1e6:.1f}",
        "table_steps": f"{table3['steps_per_run']:,}",
        "table_seeds": in_words(table3["seeds"]),
        "table_exact_frechet": figure_of("table4", FLOW, "frechet_distance"),
        "table_student_frechet": figure_of("table4", STUDENT, "frechet_distance"),
        "paper_unguided": paper_fid("split, both"),
        "paper_guided": paper_fid("both, resampling"),
        "shared_worth_pca_short": worth("PCA", short),
        "shared_worth_pca_long": worth("PCA", longer),
        "shared_worth_pixels_short": worth("pixels", short),
        "shared_worth_pixels_long": worth("pixels", longer),
        "split_cost_pixels_long": f"{bits[f'pixels, I = 12, {longer}'] - bits[f'pixels, no split, {longer}']:.2f}",
        "basis_steps": short.split()[0],
        "basis_long_steps": f"{int(longer.split()[0]):,}",
    }


def paper_fid(row: str) -> str:
    """The paper's FID of a row of Table 3."""
    return rows("table3")[row]["paper"].removeprefix("FID ")


def of_the_pixels() -> dict[str, str]:
    """Coordinates of the pixels, and what a Gaussian loses in each on the black pixels of MNIST."""
    measured, shipped = load("pixels"), load_split("mnist-small", "train", PRESETS["mnist"].model)
    lost = {name.split(",")[0]: f"{bits:.3f}" for name, bits in measured["lost_bits"]["mnist-small"].items()}
    return {
        "black_share": f"{(shipped.values == 0).double().mean():.0%}",
        **{f"black_{name}": bits for name, bits in lost.items()},
        "pixels_steps": f"{measured['settings']['steps']:,}",
        "pixels_samples": f"{measured['settings']['samples']:,}",
    }


def of_hostile_input() -> dict[str, str]:
    """What hostile input and kills did, and how long a server is waited for."""
    tried, kills = load("fuzz"), load("kills")
    commands = [kills["train"], kills["distill"]]
    outcomes = tried["outcomes"].values()
    return {
        "fuzz_inputs": f"{tried['inputs']:,}",
        "fuzz_refused": f"{sum(counts.get('refused', 0) for counts in outcomes):,}",
        "fuzz_accepted": f"{sum(counts.get('accepted', 0) for counts in outcomes):,}",
        "fuzz_findings": in_words(len(tried["findings"])),
        "hub_patience": str(PATIENCE),
        "hub_stalled": str(STALLED),
        "kills_of_each": in_words(kills["kills"]),
        "kills_in_a_write": in_words(sum(command["in_a_write"] for command in commands)),
        "kills_lost": in_words(sum(len(command["lost"]) for command in commands)),
    }


def of_mnist() -> dict[str, str]:
    """The models of 28x28 digits, of which the noisy one does not ship, and the classifier of their samples."""
    measured, coarse, noisy, judge = (load(name) for name in ("mnist-p2", "mnist", "mnist-noise", "mnist_classifier"))
    test = measured["test"]
    return {
        "mnist_parameters": f"{measured['parameters'] / 1e6:.1f}",
        "mnist_runs": in_words(len(legs_of(measured))),
        "mnist_bits": f"{test['bits_per_dim']:.3f}",
        "mnist_error": f"{test['standard_error']:.3f}",
        "mnist_images": f"{test['images']:,}",
        "mnist_draws": in_words(test["draws"]),
        "mnist_weighted": f"{test['importance_weighted_bits_per_dim'] or test['bits_per_dim']:.3f}",
        "mnist_noise_black": f"{measured['noise']['black']['scale']:.2f}",
        "mnist_noise_other": f"{measured['noise']['other']['scale']:.2f}",
        "mnist_label": f"{math.log2(10) / 784:.4f}",
        "mnist_samples": f"{measured['samples']:,}",
        "mnist_accuracy": f"{measured['guidance_scale']['0']['accuracy']:.1%}",
        "mnist_judge": f"{judge['accuracy']['test']:.1%}",
        "mnist_coarse_bits": f"{coarse['test']['bits_per_dim']:.3f}",
        "mnist_coarse_steps": f"{coarse['training_steps']:,}",
        "mnist_coarse_accuracy": f"{coarse['guidance_scale']['0']['accuracy']:.1%}",
        "mnist_coarse_guided": f"{coarse['guidance_scale']['1']['accuracy']:.1%}",
        "mnist_noisy_steps": f"{noisy['training_steps']:,}",
        "mnist_noisy_accuracy": f"{noisy['guidance_scale']['0']['accuracy']:.1%}",
        "mnist_noisy_guided": f"{noisy['guidance_scale']['1']['accuracy']:.1%}",
    }


def legs_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that a model was trained in, one after another."""
    return [*record.get("before", []), record]


def training_of(record: dict[str, Any]) -> tuple[str, str]:
    """The steps and the minutes that a model was trained for, in all of its runs."""
    steps, minutes = (sum(leg[f"training_{unit}"] for leg in legs_of(record)) for unit in ("steps", "minutes"))
    return f"{steps:,}", f"{minutes:.0f}"


def mnist_models() -> str:
    """The models of 28x28 digits that ship: size, training, likelihood, samples."""
    lines = []
    for name in ("mnist-p2", "mnist"):
        record, student = load(name), load(f"{name}_student")
        model, guided = PRESETS[name].model, record["guidance_scale"]
        lines.append(
            [
                f"`{name}`",
                f"{model.tokens} × {model.token_channels}",
                f"{record['parameters'] / 1e6:.1f}",
                *training_of(record),
                f"{record['test']['bits_per_dim']:.3f}",
                *(f"{guided[scale]['accuracy']:.1%}" for scale in ("0", "1")),
                f"{student['guidance_scale']['1']['accuracy']:.1%}",
            ]
        )
    heads = ["model", "tokens × channels", "million parameters", "steps", "minutes", "test bits/dim"]
    heads += ["sample accuracy", "guided", "guided, student"]
    return table(heads, lines, numbers=True)


def of_guided_mnist() -> dict[str, str]:
    """Guidance of `mnist`: what its samples are compared with, and the scale that reads best."""
    record = load("mnist_guidance")
    untempered = [row for row in record["rows"] if row["weight_temperature"] == row["scale_temperature"] == 1]
    best = max(untempered, key=lambda row: row["accuracy"])
    nearest = min(record["rows"], key=lambda row: row["frechet_distance"])
    return {
        "mnist_best_scale": f"{best['scale']:g}",
        "mnist_best_accuracy": f"{best['accuracy']:.1%}",
        "mnist_nearest": f"$w$ = {nearest['scale']:g}, $T_\\pi$ = {nearest['weight_temperature']:g}, "
        f"$T_\\sigma$ = {nearest['scale_temperature']:g}",
        "mnist_guided_samples": f"{record['settings']['samples']:,}",
        "mnist_real_distance": f"{record['frechet_distance_of_real_images']:.1f}",
    }


def mnist_guidance() -> str:
    """Accuracy and Fréchet distance of guided and tempered samples of `mnist`."""
    keys = {"scale": "g", "weight_temperature": "g", "scale_temperature": "g"}
    keys |= {"accuracy": ".1%", "frechet_distance": ".1f"}
    lines = [[f"{row[key]:{form}}" for key, form in keys.items()] for row in load("mnist_guidance")["rows"]]
    heads = ["scale $w$", r"$T_\pi$", r"$T_\sigma$", "sample accuracy", "Fréchet distance"]
    return f"{source('mnist_guidance')}\n\n{table(heads, lines, numbers=True)}"


def pixels() -> str:
    """Digits in two coordinates of the pixels, and with learned noise."""
    measured = load("pixels")
    heads = ["pixels", "bits/dim", "accuracy of samples", "guided"]
    formats = {"bits_per_dim": ".3f", "sample_accuracy": ".1%", "guided_sample_accuracy": ".1%"}
    lines = [[name, *(cell(measured[name][key], form) for key, form in formats.items())] for name in ROWS]
    return table(heads, lines, numbers=True)


def of_the_rivals() -> dict[str, str]:
    """The contest at equal seconds."""
    record = load("rivals")
    settings, contenders = record["settings"], record["contenders"]
    ends = {name: found["curve"][-1] for name, found in contenders.items()}

    def against(first: str, second: str) -> str:
        ahead = ends[second]["bits_per_dim"] - ends[first]["bits_per_dim"]
        return f"{abs(ahead):.2f} bits/dim {'ahead of' if ahead > 0 else 'behind'}"

    black, trial = ", black at 0", f"{60 * record['rates']['minutes']:.0f}"
    tried = {(one["contender"], one["variant"], one["learning_rate"]): one for one in record["rates"]["trials"]}
    gained = []
    for name, found in contenders.items():
        if (variant := found["variant"]).endswith(black) and not name.endswith(WITH_NOISE):
            one, other = (
                tried[name, way, found["learning_rate"]]["bits_per_dim"]
                for way in (variant, variant.removesuffix(black))
            )
            gained.append(other - one)
    failed = [f"{name}, at {rate:g}" for name, one in contenders.items() for rate in one.get("failed_rates", [])]
    return {
        "rivals_failed": "; ".join(failed) or "none",
        "rivals_minutes": in_words(round(settings["minutes"])),
        "rivals_trial": trial,
        "rivals_batch": f"{settings['batch_size']}",
        "rivals_validation": f"{settings['validation_images']:,}",
        "rivals_test": f"{settings['test_images']:,}",
        "rivals_tarflow": against("FARMER, linear", "TARFlow"),
        "rivals_jetformer": against("FARMER, linear", "JetFormer, port"),
        "rivals_coupling": against("FARMER, linear", "coupling flow"),
        "rivals_coordinates": against("FARMER, histogram", "FARMER, linear"),
        "rivals_noise_histogram": against(f"FARMER, histogram{WITH_NOISE}", "FARMER, histogram"),
        "rivals_noise_linear": against(f"FARMER, linear{WITH_NOISE}", "FARMER, linear"),
        "rivals_noise_tarflow": against(f"TARFlow{WITH_NOISE}", "TARFlow"),
        "rivals_noise_alone": against(f"FARMER, linear{WITH_NOISE}", "TARFlow"),
        "rivals_noise_both": against(f"FARMER, linear{WITH_NOISE}", f"TARFlow{WITH_NOISE}"),
        "rivals_black": f"{min(gained):.2f} to {max(gained):.2f} bits/dim better after {trial} seconds",
    }


def rivals() -> str:
    """Bits/dim at equal seconds."""
    record = load("rivals")
    lines = []
    for name, found in sorted(record["contenders"].items(), key=lambda item: item[1]["curve"][-1]["bits_per_dim"]):
        curve, test = found["curve"], found.get("test")
        mean = test and test["bits_per_dim"]
        lines.append(
            [
                name,
                found["variant"].replace(" x ", " × "),
                f"{found['parameters'] / 1e6:.2f}",
                f"{found['learning_rate']:g}",
                f"{curve[-1]['steps']:,}",
                *(f"{curve[place]['bits_per_dim']:.3f}" for place in (-5, -3, -1)),
                f"{mean:,.3f} ± {test['standard_error']:,.3f}" if mean else "not finite" if test else "",
            ]
        )
    heads = ["model", "flow blocks × layers", "million parameters", "rate", "steps"]
    heads += [f"bits/dim after {curve[place]['seconds']:.0f} s" for place in (-5, -3, -1)] + ["test bits/dim"]
    return f"{source('rivals')}\n\n{table(heads, lines, numbers=True)}"


def published(name: str) -> str:
    """Published bits/dim that stand beside a result."""
    heads = {"model": "published, not measured here", "bits_per_dim": "bits/dim", "kind": "kind", "note": "remark"}
    rows = load(name)["published"]
    known = [key for key in heads if key in rows[0]]
    cells = [[f"{row[key]:g}" if key == "bits_per_dim" else row[key] for key in known] for row in rows]
    return table([heads[key] for key in known], cells)


def of_cifar10() -> dict[str, str]:
    """The small model of CIFAR-10."""
    record = load("cifar10-small")
    test = record["test"]
    processes = record["processes"]
    alone = threads_in_words({**record, "threads": record["settings"]["threads"]})
    nearest = min(record["published"], key=lambda row: abs(row["bits_per_dim"] - test["bits_per_dim"]))
    ahead = test["bits_per_dim"] - nearest["bits_per_dim"]
    return {
        "cifar10_parameters": f"{record['parameters'] / 1e6:.1f}",
        "cifar10_bits": f"{test['bits_per_dim']:.3f}",
        "cifar10_error": f"{test['standard_error']:.3f}",
        "cifar10_steps": f"{record['training_steps']:,}",
        "cifar10_minutes": f"{record['training_minutes']:.0f}",
        "cifar10_threads": alone if processes == 1 else f"{in_words(processes)} processes with one thread each",
        "cifar10_epochs": f"{record['epochs']:.1f}",
        "cifar10_images": f"{record['training_images']:,}",
        "cifar10_machine": machine_of(record),
        "cifar10_nearest": nearest["model"],
        "cifar10_gap": f"{abs(ahead):.3f} bits/dim {'lower' if ahead > 0 else 'higher'}",
    }


def threads_in_words(record: dict[str, Any]) -> str:
    """The threads that a run had: as many as the machine has cores, unless it was told."""
    threads = record["threads"] or record["cpu_count"]
    return f"{in_words(threads)} thread{'' if threads == 1 else 's'}"


def of_the_uses() -> dict[str, str]:
    """Inpainting, editing, anomalies, classification."""
    measured = load("applications")
    given, free, own = (measured["inpainting"][name] for name in ("with_label", "without_label", "samples"))
    edits, anomalies, read = measured["editing"], measured["anomalies"], measured["classification"]["by_draws"]
    walks = {way: walk["nats_per_image"] for way, walk in edits["walks"].items()}
    hidden = {name: task["test"]["likelihood"] for name, task in anomalies["tasks"].items() if "without" in name}
    worst = min(hidden, key=hidden.get)
    return {
        "inpaint_digits": f"{given['images']}",
        "inpaint_completions": in_words(given["completions"]),
        "inpaint_accuracy": f"{given['completions_read_as_class']:.1%}",
        "inpaint_whole": f"{given['whole_images_read_as_class']:.1%}",
        "inpaint_pasted": f"{given['pasted_samples_read_as_class']:.1%}",
        "inpaint_blank": f"{given['blanked_images_read_as_class']:.1%}",
        "inpaint_free_digits": f"{free['images']}",
        "inpaint_free_completions": in_words(free["completions"]),
        "inpaint_free_accuracy": f"{free['completions_read_as_class']:.1%}",
        "inpaint_free_classes": f"{free['distinct_classes']:.1f}",
        "inpaint_rank": f"{own['mean_rank_of_log_prob']:.2f}",
        "inpaint_rank_error": f"{own['standard_error_of_a_mean_rank']:.2f}",
        "inpaint_truth": f"{own['distance_of_truth']:.2f}",
        "inpaint_spread": f"{own['standard_deviation']:.2f}",
        "edit_accuracy": cell(edits["class"]["read_as_new_class"], ".1%"),
        "edit_distance": cell(edits["class"]["distance"], ".2f"),
        "edit_fresh_distance": cell(edits["class"]["distance_of_samples"], ".2f"),
        "edit_details_distance": cell(edits["details"]["distance"], ".2f"),
        "edit_details_accuracy": cell(edits["details"]["read_as_class"], ".1%"),
        **{f"edit_walk_{way}": f"{nats[len(nats) // 2]:.1f}" for way, nats in walks.items()},
        "anomaly_worst_class": worst.split()[-1],
        "anomaly_worst": f"{hidden[worst]:.3f}",
        "classify_images": f"{measured['classification']['images']}",
        "classify_draws": f"{read[-1]['draws']}",
        "classify_accuracy": cell(read[-1]["accuracy"], ".1%"),
        "classify_one_draw": cell(read[0]["accuracy"], ".1%"),
        "classify_svm": f"{measured['classification']['classifier_of_pixels']:.1%}",
        "classify_calibration": cell(read[-1]["calibration_error_plain"], ".1%"),
        "classify_entropy": cell(read[-1]["cross_entropy_plain"], ".3f"),
        "classify_entropy_tempered": cell(read[-1]["cross_entropy_tempered"], ".3f"),
    }


# -- tables ------------------------------------------------------------------------------------------------------------


def parts() -> dict[str, str]:
    """Every table, by the name under which the pages include it."""
    return {
        "headline": headline(),
        "digits_runs": digits_runs(),
        "sweeps": sweeps(),
        "threads": threads(),
        "cpu_training": cpu_training(),
        "processes": processes(),
        "latency": latency(),
        "growth": growth(),
        "anomalies": anomalies(),
        "pixels": pixels(),
        "mnist_models": mnist_models(),
        "mnist_guidance": mnist_guidance(),
        "rivals": rivals(),
        "published": published("rivals"),
        "published_cifar10": published("cifar10-small"),
        "presets": presets(),
        "result_files": result_files(),
        "minutes": minutes(),
    }


def headline() -> str:
    """What to expect of `make train`."""
    of, record = of_the_digits(), load("digits")
    return (
        f"Training stops after {of['digits_limit']} minutes, with fewer steps on a slower machine. After "
        f"{record['training_minutes']['mean']:.1f} minutes on {threads_in_words(record)} ({made_on(record)}), "
        f"expect **{of['digits_bits']} bits/dim** on the test split; a classifier trained on real digits assigns "
        f"**{of['digits_accuracy']}** of samples to the requested digit (mean ± standard deviation over "
        f"{in_words(len(record['runs']))} seeds)."
    )


def digits_runs() -> str:
    """The digits, seed by seed."""
    record = load("digits")
    lines = [
        [
            f"{run['seed']}",
            f"{run['bits_per_dim']:.3f}",
            f"{run['importance_weighted_bits_per_dim']:.3f}",
            f"{run['sample_accuracy']:.1%}",
            f"{run['training_minutes']:.1f}",
            f"{run['steps']:,}",
        ]
        for run in record["runs"]
    ]
    heads = ["seed", "test bits/dim", "importance-weighted", "sample accuracy", "minutes", "steps"]
    return f"{source('digits')}\n\n{table(heads, lines)}"


def sweeps() -> str:
    """Sweeps of the parallel inverse until it equals the sequential one."""
    record = load("inverses")
    lengths = list(record["sweeps"])
    sums = {tokens: {row["rule"]: row["sum"] for row in found} for tokens, found in record["sweeps"].items()}
    lines = [[name, *(str(sums[tokens][rule]) for tokens in lengths)] for rule, name in SWEEPS.items()]
    return table(["sweeps, summed over the blocks", *(f"$N = {tokens}$" for tokens in lengths)], lines)


def threads() -> str:
    """Milliseconds of a digits step and of one sample, with other programs at work."""
    record = load("threads")
    names = list(dict.fromkeys(row["threads"] for row in record["rows"]))
    others = sorted({row["neighbours"] for row in record["rows"]})
    found = {(row["threads"], row["neighbours"]): row for row in record["rows"]}

    def milliseconds(name: str, count: int, work: str) -> str:
        figures = found[name, count][work]
        return f"{figures['median']:,.0f} ({figures['p90']:,.0f})"

    columns = [(n, work) for n in others for work in ("step", "sample")]
    lines = [
        [name.removeprefix("all threads, "), *(milliseconds(name, n, work) for n, work in columns)] for name in names
    ]
    heads = [f"{work}, {in_words(n)} other{'' if n == 1 else 's'}" for n, work in columns]
    return f"{source('threads')}\n\n{table(['milliseconds: median (90%)', *heads], lines, numbers=True)}"


def cpu_training() -> str:
    """Training on one thread of a CPU, as it is, without its parts, and with what was not taken; and on Zen 4."""
    zen4 = folded("On Zen 4", speeds("cpu_training_zen4"))
    return f"{speeds('cpu_training')}\n\n{zen4}"


def speeds(name: str) -> str:
    """The rows of one processor."""
    record, lines = load(name), []
    base = "before" if "before" in record else "now"
    for preset, found in record["presets"].items():
        for row in found["rows"]:
            lines.append(
                [
                    f"`{preset}`, {row['row']}",
                    f"{row['milliseconds']:,.0f}",
                    f"{row['tokens_per_second']:,.0f}",
                    f"{row['share_of_matrix_peak']:.0%}",
                    f"{row[f'times_{base}']:.2f}",
                    f"{row['loss']:.5f}",
                ]
            )
    heads = ["one thread", "ms a step", "tokens a second", "of the matrix peak", f"times {base}", "loss after 3 steps"]
    return f"{source(name)}\n\n{table(heads, lines, numbers=True)}"


def processes() -> str:
    """Images a second of the digits with processes and with threads, on two processors."""
    zen5, zen4 = (load(name)["processes"] for name in ("cpu_training", "cpu_training_zen4"))
    lines = [[name, f"{rate:,.0f}", f"{zen4[name]:,.0f}"] for name, rate in zen5.items()]
    return table(["the digits: images a second", "Zen 5", "Zen 4"], lines, numbers=True)


def latency() -> str:
    """Where the time of a sample goes, by model and images at once; and one image with a compiled step."""
    record = load("latency")
    found = {(row["model"], row["batch"], row["work"]): row for row in record["rows"]}
    lines = []
    for model, batch in dict.fromkeys((row["model"], row["batch"]) for row in record["rows"]):
        sample = found[model, batch, "sample"]
        each = [
            found[model, batch, work]["milliseconds"] / batch
            for work in ("sample", "prior", "sample, guided", "log-likelihood")
        ]
        shares = [f"{share:.0%}" for share in sample["shares"].values()]
        lines.append([f"`{model}`, {batch}", *(f"{ms:.1f}" for ms in each), f"{sample['operators']:,}", *shares])
    heads = ["images at once", "ms a sample", "in the prior", "guided", "ms a likelihood", "operators"]
    heads += ["products", "attention", "others", "Python"]
    compiled = [
        [
            f"`{row['model']}`, {row['work']}",
            f"{found[row['model'], 1, row['work']]['milliseconds']:.1f}",
            f"{row['milliseconds']:.1f}",
            f"{row['seconds_of_first_call']:.0f}",
        ]
        for row in record["compiled"]
    ]
    tried = folded(
        "Tried: a compiled step",
        table(["one image", "ms, as it is", "ms, compiled", "seconds of the first call"], compiled, numbers=True),
    )
    return f"{source('latency')}\n\n{table(heads, lines, numbers=True)}\n\n{tried}"


def growth() -> str:
    """The exponents of time and memory, beside what theory says."""
    record = load("growth")["axes"]
    works = next(iter(record.values()))["work"]
    lines = []
    for axis, found in record.items():
        cells = []
        for work in works:
            row = found["work"][work]
            time, memory = (round(row[f"exponent_of_{kind}"], 1) + 0.0 for kind in ("seconds", "bytes"))
            cells.append(f"{time:.1f} ({row['theory']}); {memory:.1f}")
        lines.append([f"${axis}$ from {found['values'][-2]:,} to {found['values'][-1]:,}", *cells])
    return table(["exponent of time (theory); of memory", *works], lines)


def anomalies() -> str:
    """AUROC of every score on every kind of unusual image; in bold the score that was chosen on validation."""
    record = load("applications")["anomalies"]
    ours = list(record["mean_validation_auroc"])
    others = [score for score in next(iter(record["test"].values())) if score not in ours]
    lines = []
    for kind, found in record["test"].items():
        cells = [f"**{found[s]:.3f}**" if s == record["chosen_on_validation"] else f"{found[s]:.3f}" for s in ours]
        lines.append([UNUSUAL.get(kind, kind), *(f"{found[score]:.3f}" for score in others), *cells])
    return table(["unusual images", *others, *ours], lines)


def presets() -> str:
    """Every preset: its data, tokens and size."""
    lines = []
    for name, preset in PRESETS.items():
        model, millions = preset.model, count(preset.model)["total"] / 1e6
        lines.append(
            [
                f"`{name}`",
                f"`{preset.dataset}`",
                f"{model.image_size}×{model.image_size}×{model.channels}",
                f"{model.tokens:,} × {model.token_channels}",
                f"{millions:,.{0 if millions > 100 else 2}f}",
                f"{preset.steps:,}\u00a0×\u00a0{preset.batch_size}",
            ]
        )
    return table(["preset", "data", "images", "tokens × channels", "million parameters", "steps × batch"], lines)


def result_files() -> str:
    """Every file of results: which command made it, at which commit, on which device; parts made otherwise below it."""
    lines = []
    for path in sorted(RESULTS.glob("*.json")):
        record = load(path.stem)
        parts = {name: part.get("made", part) for name, part in record.items() if isinstance(part, dict)}
        others = {
            name: made for name, made in parts.items() if made.get("commit", record["commit"]) != record["commit"]
        }
        for row in record.get("rows", ()):
            if row.get("made", record)["commit"] != record["commit"]:
                others["some rows"] = row["made"]
        for name, made in {"": record, **others}.items():
            commit = f"`{made['commit'][:7]}`" + "\u00a0+" * made["uncommitted_changes"]
            made_by = f"`{made['command'].split()[2]}`"
            lines.append([f"*{name}*" if name else link(path.stem), made_by, commit, machine_of(made)])
    return table(["result", "made by", "at commit", "on"], lines)


def machine_of(record: dict[str, Any]) -> str:
    """The device of a result, and the machine's cores."""
    return f"{readable(record['device'])}, {in_words(record['cpu_count'])} cores"


def minutes() -> str:
    """How long training took, and on which machine the result was measured."""
    lines = []
    for name in ("digits", "digits-noise"):
        record = load(name)
        spent, steps = record["training_minutes"]["mean"], statistics.mean(run["steps"] for run in record["runs"])
        lines.append([f"train `{name}` (a seed)", machine_of(record), f"{steps:,.0f}", f"{spent:.1f}"])
    for name in ("mnist", "mnist-p2", "mnist-noise", "cifar10-small"):
        record = load(name)
        lines.append([f"train `{name}`", machine_of(record), *training_of(record)])
    judge = load("mnist_classifier")
    lines.append(["train the classifier of MNIST", machine_of(judge), "", f"{judge['seconds'] / 60:.0f}"])
    return table(["what", "measured on", "steps", "minutes"], lines)


# -- the README --------------------------------------------------------------------------------------------------------


def readme_blocks() -> dict[str, str]:
    """The marked blocks of the project's README."""
    return {"headline": textwrap.fill(headline(), 119, break_on_hyphens=False), "results": readme_results()}


def judged_row(name: str, first: str, second: str, measures: tuple[str, ...]) -> str:
    """What became of one claim of the paper: verdict and figures, by each measure."""
    claim = next(c for c in load(name)["claims"] if c["claim"] == f"{first} better than {second}")
    return "; ".join(
        f"{MEASURES[measure][0]} {figure_of(name, second, measure)} → {figure_of(name, first, measure)}, "
        f"*{claim['verdicts'][measure]['verdict']}*"
        for measure in measures
    )


FLOW, STUDENT, NORMAL = "autoregressive flow", "autoregressive flow, one step", "both, resampling, Z_R ~ N(0, I)"
GUIDED = ("split, both", "both, naive guidance", "both, resampling")


def findings(kind: str) -> list[str]:
    """What became of five claims in the result files whose names end in `kind`."""
    table3, table4, sizes = f"table3{kind}", last_word(f"table4{kind}"), f"figure6b{kind}"
    after = f"after {load(table4)['steps_per_run']:,} steps: " if table4.endswith("_long") else ""
    both = ("frechet_distance", "bits_per_dim")
    accuracy, distance = (
        " → ".join(figure_of(table3, row, measure) for row in GUIDED)
        for measure in ("sample_accuracy", "frechet_distance")
    )
    faster = rows(table4)[FLOW]["seconds_per_image"]["back"] / rows(table4)[STUDENT]["seconds_per_image"]["back"]
    informative = [name for name in rows(sizes) if "spread" not in name]
    bits = ", ".join(f"{figure_of(sizes, name, 'bits_per_dim')} at {name}" for name in informative)
    return [
        after + judged_row(table4, FLOW, "coupling flow", both),
        judged_row(table3, GUIDED[-1], NORMAL, both),
        f"{after}Fréchet {' → '.join(figure_of(table4, row, both[0]) for row in (FLOW, STUDENT))}; "
        f"inverts {faster:.1f} times as fast",
        f"accuracy {accuracy}; Fréchet {distance}",
        f"bits/dim {bits}",
    ]


def readme_results() -> str:
    """Five findings: the paper's claim, and ours on two kinds of digits."""
    fid = {name: re.match(r"FID ([\d.]+)", row["paper"])[1] for name, row in rows("table4").items() if row["paper"]}
    claimed = [
        f"The autoregressive flow beats coupling (FID {fid['coupling flow']} → {fid[FLOW]})",
        f"The shared mixture beats N(0, I) (FID {paper_fid(NORMAL)} → {paper_fid(GUIDED[-1])})",
        f"One step nearly matches the exact inverse (FID {fid[FLOW]} → {fid[STUDENT]}) and inverts 22× as fast",
        f"Guidance helps, resampling most (FID {' → '.join(map(paper_fid, GUIDED))})",
        "Few informative channels are best (128 of 768)",
    ]
    kinds = {"_mnist-quick_histogram": "28×28 digits", "": "8×8 digits"}
    steps = {kind: f"{load(f'table3{kind}')['steps_per_run']:,}" for kind in kinds}
    heads = ["The paper (FID on ImageNet, 256×256)", *(f"{kinds[kind]} ({steps[kind]} steps)" for kind in kinds)]
    return table(heads, [list(line) for line in zip(claimed, *map(findings, kinds), strict=True)])
