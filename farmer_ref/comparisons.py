"""What the paper's tables and figures compare, row by row, and what our figures say of its claims.

`farmer_ref.ablate` trains and measures the rows.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t

from farmer_ref.config import TrainConfig

MEASURES = {
    "bits_per_dim": ("bits/dim", ".3f"),
    "share_read_as_class": ("read", ".1%"),
    "frechet_distance": ("Fréchet", ".3f"),
}
HIGHER_IS_BETTER = ("share_read_as_class",)
GUIDED = ("--guidance", "1")
TIMED_BATCH, TIMED_ROUNDS = 16, 20
REPORT = """Written by `python -m farmer_ref.ablate` from the files beside it. Means and standard deviations over seeds;
steps are the mean of the runs. "Read": the share of samples that a classifier of real images reads as their class (of
two classes, as photographs have, half is chance; of ten, a tenth). "Fréchet": the Fréchet distance of its class scores
from those of the test images. Beside a row stands how it was sampled, if not plainly: guidance raises what is read, so
rows of different tables are compared only where that agrees. The paper's column is of its own models, on ImageNet at
256x256. By the 95% interval of the difference over seeds (Student's t): a row is better than another, by a margin where
one is named, if the interval lies above it; not better if below; within a margin if the interval lies inside, not if
outside. Where both rows sample from the same models, it is the difference seed by seed. Of twenty differences that are
none, one is told apart all the same."""


@dataclass(frozen=True)
class Row:
    """One row: what differs from the preset in the model, and in sampling; and the paper's number."""

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of the model that differ from the preset's."""
    sampling: tuple[str, ...] = ()
    """Arguments of `farmer_ref.evaluate`; with --student, the run is distilled first."""
    paper: str = ""
    """What the paper reports."""
    steps: int | None = None
    """Train for so many steps, in place of --seconds-per-run."""


@dataclass(frozen=True)
class Claim:
    """What the paper says of two rows: the first is better; or, with `alike_within`, that they hardly differ."""

    first: str
    second: str
    alike_within: float | None = None
    at_least: float = 0.0
    """Better by so much."""


@dataclass(frozen=True)
class Table:
    """Rows to compare, and what the paper says of them."""

    title: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    """What the paper says, by FID."""
    measures: tuple[str, ...] = ("frechet_distance", "share_read_as_class", "bits_per_dim")
    """What the claims are judged by here; the first is nearest to the paper's."""
    note: str = ""
    """The paper's own inconsistencies, where there are any."""
    speeds: Callable[[dict[str, dict[str, float]]], list[str]] | None = None
    """Where the speed of each row's model is measured, too: what is said of it."""


# -- what is compared --------------------------------------------------------------------------------------------------


def tables(preset: TrainConfig) -> dict[str, Table]:
    """The tables and figures of the paper for one preset, by name."""
    model = preset.model
    channels = model.token_channels
    plain = {"condition_repeats": 1, "final_permutation": False}
    repeated = {**plain, "condition_repeats": max(4, model.condition_repeats)}
    both = {**repeated, "final_permutation": True}
    naive = (*GUIDED, "--guidance.rule", "naive")
    sizes = sorted({max(1, channels // 4), channels // 2, 3 * channels // 4})
    few = f"I = {sizes[1]} of {channels}"  # the paper's best is neither its smallest nor its largest
    return {
        "table3": Table(
            "Table 3: what each part is worth",
            (
                Row("no split", {**plain, "informative": None}, paper="FID 61.17"),
                Row("split", plain, paper="FID 49.29"),
                Row("split, condition repeated", repeated, paper="FID 45.34"),
                Row("split, final permutation", {**plain, "final_permutation": True}, paper="FID 45.69"),
                Row("split, both", both, paper="FID 44.56"),
                Row("both, naive guidance", both, naive, "FID 8.66"),
                Row("both, resampling", both, GUIDED, "FID 5.67"),
                Row("both, resampling, Z_R ~ N(0, I)", {**both, "redundant_prior": "normal"}, GUIDED, "FID 7.81"),
            ),
            (
                Claim("split", "no split"),
                Claim("split, condition repeated", "split"),
                Claim("split, final permutation", "split"),
                Claim("split, both", "split, condition repeated"),
                Claim("split, both", "split, final permutation"),
                Claim("both, naive guidance", "split, both"),
                Claim("both, resampling", "both, naive guidance"),
                Claim("both, resampling", "both, resampling, Z_R ~ N(0, I)"),
            ),
            note="The paper ran this table at K = 1,024, though its Fig. 6a calls 64 best.",
        ),
        "table4": Table(
            "Table 4: which flow, and which way back",
            (
                Row("coupling flow", {"flow": "coupling"}, GUIDED, "FID 106.23; .0065 s forward, .0099 s back"),
                Row("autoregressive flow", {}, GUIDED, "FID 5.55; .0066 s forward, .1689 s back"),
                Row("autoregressive flow, one step", {}, (*GUIDED, "--student"), "FID 5.63; .0066 s, .0076 s"),
            ),
            (
                Claim("autoregressive flow", "coupling flow"),
                Claim("autoregressive flow", "autoregressive flow, one step"),
            ),
            speeds=flow_speeds,
        ),
        "table5": Table(
            "Table 5: where the time goes",
            (
                Row("exact inverse", {}, GUIDED, "AR .0500 s + reverse .1689 s = .2189 s an image"),
                Row("one-step student", {}, (*GUIDED, "--student"), ".0567 s an image in all"),
            ),
            note="The paper's parts with the student add to .0576 s, and its printed shares to 101.6%.",
            speeds=sampling_speeds,
        ),
        "figure6a": Table(
            "Figure 6a: components K of a token's mixture",
            tuple(
                Row(f"K = {k}", {"components": k}, GUIDED, {32: "too few for the split", 64: "best"}.get(k, ""))
                for k in (1, 16, 32, 64, 256)
            ),
            tuple(Claim("K = 64", f"K = {k}") for k in (1, 16, 32, 256)),
            note="The paper calls K = 64 best by FID, of values that it does not give, and runs Table 3 at 1,024.",
        ),
        "figure6b": Table(
            "Figure 6b: informative channels I",
            (
                *(Row(f"I = {size} of {channels}", {"informative": size}, GUIDED) for size in sizes),
                Row(f"I = {channels}, no split", {"informative": None}, GUIDED, "worse than a sixth"),
                Row(f"{few}, spread", {"informative": sizes[1], "informative_channels": "interleaved"}, GUIDED),
            ),
            (
                Claim(few, f"I = {channels}, no split"),
                Claim(few, f"I = {sizes[-1]} of {channels}"),
                *(Claim(few, f"I = {size} of {channels}") for size in sizes[:1] if size != sizes[1]),
            ),
            note=f"The paper calls I = 128 of 768 best, a sixth, and does not say which channels: here the first, or "
            f'"spread", at equal intervals. Its claim is taken as "few, but not fewest": {few}.',
        ),
        "figure7": Table(
            "Figure 7: redundant channels, standard deviations scaled",
            tuple(
                Row(f"x {scale:g}", {}, ("--redundant-temperature", str(scale)), "same structure" if scale != 1 else "")
                for scale in (0, 0.2, 0.4, 0.8, 1, 1.2, 1.5, 2, 4)
            ),
            tuple(Claim(f"x {scale:g}", "x 1", alike_within=0.02) for scale in (0, 0.2, 0.4, 0.8, 1.2, 1.5, 2, 4)),
            measures=("share_read_as_class",),
            note='The paper says "variance"; its symbol is the standard deviation, which is scaled here. It finds that '
            "structure hardly changes: here, the share of samples that are read as their class.",
        ),
        "figure8": Table(
            "Figure 8: samples by their log-determinant", (Row("the preset", paper="abnormally large: blurred"),)
        ),
    }


def bases(preset: TrainConfig, steps: int) -> Table:
    """The blind spot inside a token, at equal seconds and at equal steps."""
    split = preset.model.informative or preset.model.token_channels // 4
    variants = {
        "pixels": {},
        "PCA": {"patch_basis": "pca"},
        "DCT": {"patch_basis": "dct"},
        "pixels, learned mixing": {"channel_mixing": "learned"},
        "PCA, learned mixing": {"patch_basis": "pca", "channel_mixing": "learned"},
    }
    base = {"patch_basis": "pixel", "channel_mixing": "none"}
    end = f", {steps} steps"
    rows = [
        Row(f"{name}, {kind}{end if limit else ''}", {**base, **changes, "informative": informative}, steps=limit)
        for limit in (None, steps)
        for kind, informative in (("no split", None), (f"I = {split}", split))
        for name, changes in variants.items()
    ]
    normal = [
        Row(
            f"{name}, I = {split}, Z_R ~ N(0, I){end if limit else ''}",
            {**base, **variants[name], "informative": split, "redundant_prior": "normal"},
            steps=limit,
        )
        for limit in (None, steps)
        for name in ("pixels", "PCA")
    ]
    better = [
        Claim(f"{name}, {kind}{end}", f"pixels, {kind}{end}", at_least=0.2)
        for kind in ("no split", f"I = {split}")
        for name in ("PCA", "pixels, learned mixing")
    ]
    shared = [
        Claim(f"{name}, I = {split}{limit}", f"{name}, I = {split}, Z_R ~ N(0, I){limit}")
        for limit in (end, "")
        for name in ("PCA", "pixels")
    ]
    return Table(
        "The blind spot inside a token: our own finding",
        (*rows, *normal),
        (
            *better,
            Claim("PCA, no split", "pixels, no split"),
            Claim("pixels, learned mixing, no split", "pixels, no split"),
            Claim(f"PCA, I = {split}{end}", f"PCA, no split{end}", alike_within=0.05),
            *shared,
        ),
        measures=("bits_per_dim",),
        note="The claims are ours, by bits/dim; the paper has no such table.",
    )


# -- what is said of it ------------------------------------------------------------------------------------------------


def judged(table: Table, rows: list[dict[str, Any]], fifths: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """What measured rows say of a table's claims, and all that is said of them in sentences."""
    by_name = {row["name"]: row for row in rows}
    verdicts = [judge(table, claim, by_name) for claim in table.claims]
    sentences = [verdict["sentence"] for verdict in verdicts]
    if table.speeds:
        sentences += table.speeds({row["name"]: row["seconds_per_image"] for row in rows})
    if fifths:
        sentences.append(blur_sentence(fifths))
    return {"claims": verdicts, "sentences": sentences}


def blur_sentence(fifths: list[dict[str, Any]]) -> str:
    """Whether the samples with the largest log-determinants look blurred (Fig. 8): less sharp than all on average."""
    by_seed = zip(*(fifth["sharpness"]["seeds"] for fifth in fifths), strict=True)
    means, last = [statistics.mean(seeds) for seeds in by_seed], fifths[-1]["sharpness"]["seeds"]
    word = verdict(last, means, higher_is_better=False, paired=True)["verdict"]
    of_last, of_first = (cell(fifth["sharpness"], ".2f") for fifth in (fifths[-1], fifths[0]))
    return (
        f'"Samples of abnormally large log-determinants look blurred" {word}: sharpness, over that of real images, is '
        f"{of_last} in the fifth of each class with the largest and {of_first} in the fifth with the smallest."
    )


def judge(table: Table, claim: Claim, by_name: dict[str, dict]) -> dict[str, Any]:
    """Whether our figures say of two rows what the paper says, by each measure in a word, and in one sentence."""
    first, second = by_name[claim.first], by_name[claim.second]
    said = f"{claim.first} better than {claim.second}" + (f" by {claim.at_least:g} or more" if claim.at_least else "")
    if claim.alike_within is not None:
        said = f"{claim.first} within {claim.alike_within:g} of {claim.second}"
    verdicts, parts = {}, []
    for measure in table.measures:
        same = first["model"] == second["model"] and first["steps"] == second["steps"]
        if same and measure == "bits_per_dim":
            continue  # two ways to sample from the same models have the same likelihood
        verdicts[measure] = verdict(
            first[measure]["seeds"],
            second[measure]["seeds"],
            higher_is_better=measure in HIGHER_IS_BETTER,
            paired=same,
            at_least=claim.at_least,
            alike_within=claim.alike_within,
        )
        name, form = MEASURES[measure]
        figures = " against ".join(cell(row[measure], form) for row in (first, second))
        parts.append(f"by {name} {verdicts[measure]['verdict']} ({figures})")
    seeds = len(first[table.measures[0]]["seeds"])
    sentence = f'"{said}": {"; ".join(parts)}. {seeds} seed{"s" * (seeds > 1)}.'
    return {"claim": said, "verdicts": verdicts, "sentence": sentence}


def verdict(
    ours: list[float],
    other: list[float],
    higher_is_better: bool,
    paired: bool,
    at_least: float = 0.0,
    alike_within: float | None = None,
) -> dict[str, Any]:
    """Whether one figure is better than another by `at_least`, over seeds; or `alike_within` a margin of it.

    By the 95% interval of the mean difference (Student's t): better if it lies above `at_least`, alike if it lies
    within the margin. `paired`: both are of the same trained models, so that seed by seed their difference is what
    varies. Of twenty differences that are none, one is told apart all the same.
    """
    sign, count = -1 if higher_is_better else 1, len(ours)
    gains = [sign * (b - a) for a, b in zip(ours, other, strict=True)]
    gain = statistics.mean(gains)
    if count < 2:
        return {"gain": gain, "half_interval": None, "verdict": "cannot be told from one seed"}
    variance = statistics.variance(gains) if paired else statistics.variance(ours) + statistics.variance(other)
    freedom = count - 1 if paired else 2 * (count - 1)
    half = float(student_t.ppf(0.975, freedom)) * math.sqrt(variance / count)
    if alike_within is None:
        holds, fails = gain - half > at_least, gain + half < at_least
    else:
        holds, fails = abs(gain) + half <= alike_within, abs(gain) - half > alike_within
    return {
        "gain": gain,
        "half_interval": half,
        "verdict": "holds" if holds else "does not hold" if fails else "cannot be told",
    }


def flow_speeds(seconds: dict[str, dict[str, float]]) -> list[str]:
    """What Table 4 says of time, beside ours: seconds an image of each row's forward, prior and back."""
    coupling, exact, student = (
        seconds[row] for row in ("coupling flow", "autoregressive flow", "autoregressive flow, one step")
    )
    return [
        f"Back through the autoregressive flow takes {exact['back'] / exact['forward']:.0f} times as long as forward "
        f"(the paper: 26), through the coupling flow {coupling['back'] / coupling['forward']:.1f} times (1.5).",
        f"One step is {exact['back'] / student['back']:.1f} times as fast as the exact inverse (the paper: 22).",
    ]


def sampling_speeds(seconds: dict[str, dict[str, float]]) -> list[str]:
    """What Table 5 says of time, beside ours."""
    exact, student = (seconds[row] for row in ("exact inverse", "one-step student"))

    def said(prior: str) -> tuple[float, float]:
        whole, shorter = (parts[prior] + parts["back"] for parts in (exact, student))
        return exact["back"] / whole, whole / shorter

    (share, faster), (unguided_share, unguided_faster) = said("prior"), said("prior unguided")
    return [
        f"The way back is {share:.0%} of the time of a guided sample, {unguided_share:.0%} of an unguided one (the "
        f"paper: 77%); the student makes them {faster:.1f} and {unguided_faster:.1f} times as fast in all (the paper "
        "says 4; by its own parts, 3.8)."
    ]


def cell(figure: dict[str, Any], form: str) -> str:
    """A mean, with its spread where there is one."""
    spread = figure["standard_deviation"]
    return f"{figure['mean']:{form}}" + (f" ± {spread:{form}}" if spread is not None else "")


def describe(record: dict[str, Any]) -> str:
    """A result as a table to read, the paper's column beside ours."""
    lines = [record["title"], record["note"]] if record["note"] else [record["title"]]
    width = max(len(row["name"]) for row in record["rows"])
    heads = "".join(f"{heading:>18s}" for heading, _ in MEASURES.values())
    lines.append(f"{'':{width}s}{heads}{'steps':>8s}   paper")
    for row in record["rows"]:
        cells = "".join(f"{cell(row[name], form):>18s}" for name, (_, form) in MEASURES.items())
        lines.append(f"{row['name']:{width}s}{cells}{statistics.mean(row['steps']):8.0f}   {row['paper']}")
        if "seconds_per_image" in row:
            lines.append(f"{'':{width}s}    {times_of(row)}")
    return "\n".join([*lines, *(f"  {sentence}" for sentence in record["sentences"])])


def times_of(row: dict[str, Any]) -> str:
    """Seconds an image of a timed row."""
    parts = ", ".join(f"{part} {seconds:.5f} s" for part, seconds in row["seconds_per_image"].items())
    return f"per image at batch {TIMED_BATCH}: {parts}"


def report(folder: Path) -> str:
    """All results of this command in a folder as one page of Markdown."""
    lines = ["# The paper's tables and figures, at small scale", "", *REPORT.splitlines()]
    for path in sorted(folder.glob("*.json")):
        if "sentences" in json.loads(path.read_text()):
            lines += ["", *section(path)]
    return "\n".join(lines) + "\n"


def section(path: Path) -> list[str]:
    """One result, a JSON file of this command, as lines of Markdown with a heading, and its picture beside it."""
    record = json.loads(path.read_text())
    limit = f"{record['steps_per_run']:,} steps" if record["steps_per_run"] else f"{record['seconds_per_run']:g} s"
    seeds = f"{record['seeds']} seed{'s' * (record['seeds'] > 1)}"
    if fewer := record.get("other_seeds"):  # results of before this option have none
        seeds += f" ({fewer} of rows that no claim compares)"
    _, *others = path.stem.split("_")  # other data, a longer run
    kind = f" ({', '.join(others)})" if others else ""
    lines = [f"## {record['title']}{kind}", "", *([record["note"], ""] if record["note"] else [])]
    lines += [
        f"`{record['command']}` (data: {record['data']}; {limit} a run, {seeds}, "
        f"{record['samples']:,} samples each; {record['device']}, {record['date']}; [{path.name}]({path.name}))",
        *(f"and before it `{old['command']}` ({old['device']}, {old['date']})" for old in record.get("kept", ())),
        "",
        f"| | {' | '.join(heading for heading, _ in MEASURES.values())} | steps | the paper |",
        "|-|" + "-|" * (len(MEASURES) + 2),
    ]
    for row in record["rows"]:
        cells = " | ".join(cell(row[name], form) for name, (_, form) in MEASURES.items())
        name = f"{row['name']} (`{' '.join(row['sampling'])}`)" if row["sampling"] else row["name"]
        lines.append(f"| {name} | {cells} | {statistics.mean(row['steps']):,.0f} | {row['paper']} |")
    lines += ["", *(f"- {sentence}" for sentence in record["sentences"])]
    lines += [f"- {row['name']}, {times_of(row)}." for row in record["rows"] if "seconds_per_image" in row]
    if path.with_suffix(".png").exists():
        lines += ["", f"![{record['title']}]({path.stem}.png)"]
    return lines
