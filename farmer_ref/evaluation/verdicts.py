"""Whether measured rows bear out the paper's claims, in words, and the page of all results.

`farmer_ref.ablate` trains and measures the rows; `tables` lists them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t

from farmer_ref.evaluation.results import is_result, read_result
from farmer_ref.evaluation.tables import HIGHER_IS_BETTER, MEASURES, TIMED_BATCH, Claim, Table
from farmer_ref.support.record import made_on

# Of several rows in one claim, the weakest verdict decides; any other is inconclusive.
WEAKEST = {"does not hold": 2, "holds": 0}
BLURRED = 0.9  # share of the sharpness of real images: a smaller difference may be real, but is hardly visible

REPORT = """Every row, verdict and command, written by `python -m farmer_ref.ablate` from the JSON files beside this
page. In the book, *The paper, checked* (`book/paper_checked.md`) sums up the verdicts, and *What was measured*
(`book/measured.md`) lists the results of all other commands.

Entries are means and standard deviations over seeds; *steps* is the mean over runs. *Accuracy* is the share of samples
that a classifier trained on real images assigns to the requested class (chance is one half with the two classes of the
photographs, one tenth with ten classes). *Fréchet* is the Fréchet distance between the classifier's scores of the
samples and those of the test images. Sampling options other than the defaults are given beside a row's name. Guidance
raises the accuracy, so compare rows of different tables only where these options agree. The last column quotes the
paper: its own models, on ImageNet at 256x256. Where a table keeps rows of earlier commands, these follow after "and
before it".

A claim is judged by the 95% confidence interval (Welch's t) of the difference between its two rows over seeds. "A
better than B" holds if the interval lies above zero, or above the margin where one is given; it does not hold if the
interval lies below; otherwise the comparison is inconclusive. "A within m of B" holds if the interval lies inside
[-m, m] and does not hold if it lies outside. Rows that are sampled from the same models are compared seed by seed
(Student's t). At this level about one in twenty true nulls still looks significant."""


def judged(table: Table, rows: list[dict[str, Any]], fifths: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Verdicts on a table's claims from its measured rows, and these and its speeds in sentences."""
    by_name = {row["name"]: row for row in rows}
    verdicts = [judge(table, claim, by_name) for claim in table.claims]
    sentences = [verdict["sentence"] for verdict in verdicts]
    if table.speeds:
        report_speeds = flow_speeds if table.speeds == "flow" else sampling_speeds
        sentences += report_speeds({row["name"]: row["seconds_per_image"] for row in rows})
    if fifths:
        sentences.append(blur_sentence(fifths))
    return {"claims": verdicts, "sentences": sentences}


def blur_sentence(fifths: list[dict[str, Any]]) -> str:
    """Whether the samples with the largest log-determinants look blurred (Fig. 8): less sharp than all on average.

    Weakly, if they are less sharp and nevertheless nearly as sharp as real images.
    """
    by_seed = zip(*(fifth["sharpness"]["seeds"] for fifth in fifths), strict=True)
    means, last = [statistics.mean(seeds) for seeds in by_seed], fifths[-1]["sharpness"]["seeds"]
    word = verdict(last, means, higher_is_better=False, paired=True)["verdict"]
    if word == "holds" and statistics.mean(last) > BLURRED:
        word = "holds weakly"
    of_last, of_first = (cell(fifth["sharpness"], ".2f") for fifth in (fifths[-1], fifths[0]))
    return (
        f'"Samples of abnormally large log-determinants look blurred" {word}: relative to real images, sharpness is '
        f"{of_last} in the fifth of each class with the largest log-determinants and {of_first} in the fifth with the "
        "smallest."
    )


def judge(table: Table, claim: Claim, by_name: dict[str, dict]) -> dict[str, Any]:
    """Whether our figures bear out a claim: a verdict by each measure, and one sentence."""
    firsts, second = [by_name[name] for name in claim.firsts], by_name[claim.second]
    subject = in_a_row(claim.firsts)
    said = f"{subject} better than {claim.second}" + (f" by {claim.at_least:g} or more" if claim.at_least else "")
    if claim.alike_within is not None:
        said = f"{subject} within {claim.alike_within:g} of {claim.second}"
    verdicts, parts = {}, []
    for measure in table.measures:
        same = all(first["model"] == second["model"] and first["steps"] == second["steps"] for first in firsts)
        if same and measure == "bits_per_dim":
            continue  # two ways to sample from the same models have the same likelihood
        found = [
            verdict(
                first[measure]["seeds"],
                second[measure]["seeds"],
                higher_is_better=measure in HIGHER_IS_BETTER,
                paired=same,
                at_least=claim.at_least,
                alike_within=claim.alike_within,
            )
            for first in firsts
        ]
        verdicts[measure] = max(found, key=lambda one: WEAKEST.get(one["verdict"], 1))
        name, form = MEASURES[measure]
        figures = f"{in_a_row([cell(f[measure], form) for f in firsts])} against {cell(second[measure], form)}"
        parts.append(f"by {name}, {verdicts[measure]['verdict']} ({figures})")
    seeds = len(second[table.measures[0]]["seeds"])
    sentence = f'"{said}": {"; ".join(parts)}. {seeds} seed{"s" * (seeds > 1)}.'
    return {"claim": said, "verdicts": verdicts, "sentence": sentence}


def in_a_row(words: Sequence[str]) -> str:
    """Words in one phrase: `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def verdict(
    ours: list[float],
    other: list[float],
    higher_is_better: bool,
    paired: bool,
    at_least: float = 0.0,
    alike_within: float | None = None,
) -> dict[str, Any]:
    """Whether one figure is better than another by `at_least`, over seeds; or `alike_within` a margin of it.

    By the 95% interval of the mean difference: better if it lies above `at_least`, alike if it lies within the margin.
    Welch's t, as one row often varies far more than the other; `paired`, where both are of the same trained models, so
    that seed by seed their difference is what varies: Student's. At this level about one in twenty true nulls still
    looks significant.
    """
    sign, count = -1 if higher_is_better else 1, len(ours)
    gains = [sign * (b - a) for a, b in zip(ours, other, strict=True)]
    gain = statistics.mean(gains)
    if count < 2:
        return {"gain": gain, "half_interval": None, "verdict": "inconclusive with one seed"}
    variances = [statistics.variance(values) / count for values in ([gains] if paired else [ours, other])]  # of means
    squares = sum(variance**2 for variance in variances)
    freedom = (count - 1) * (sum(variances) ** 2 / squares if squares else 1)
    half = float(student_t.ppf(0.975, freedom)) * math.sqrt(sum(variances))
    if alike_within is None:
        holds, fails = gain - half > at_least, gain + half < at_least
    else:
        holds, fails = abs(gain) + half <= alike_within, abs(gain) - half > alike_within
    return {
        "gain": gain,
        "half_interval": half,
        "verdict": "holds" if holds else "does not hold" if fails else "inconclusive",
    }


def flow_speeds(seconds: dict[str, dict[str, float]]) -> list[str]:
    """The speeds of Table 4 beside ours, from each row's seconds per image of the forward pass, prior and inverse."""
    coupling, exact, student = (
        seconds[row] for row in ("coupling flow", "autoregressive flow", "autoregressive flow, one step")
    )
    return [
        f"Inverting the autoregressive flow takes {exact['back'] / exact['forward']:.0f} times as long as its forward "
        f"pass (the paper: 26), inverting the coupling flow {coupling['back'] / coupling['forward']:.1f} times (1.5).",
        f"The one-step student is {exact['back'] / student['back']:.1f} times as fast as the exact inverse (the paper: "
        "22).",
    ]


def sampling_speeds(seconds: dict[str, dict[str, float]]) -> list[str]:
    """The shares of time in Table 5 beside ours."""
    exact, student = (seconds[row] for row in ("exact inverse", "one-step student"))

    def said(prior: str) -> tuple[float, float]:
        whole, shorter = (parts[prior] + parts["back"] for parts in (exact, student))
        return exact["back"] / whole, whole / shorter

    (share, faster), (unguided_share, unguided_faster) = said("prior"), said("prior unguided")
    return [
        f"The inverse takes {share:.0%} of the time of a guided sample, {unguided_share:.0%} of an unguided one (the "
        f"paper: 77%); the student makes sampling {faster:.1f} and {unguided_faster:.1f} times as fast (the paper says "
        "4; its own parts give 3.8)."
    ]


def cell(figure: dict[str, Any], form: str) -> str:
    """A mean, with its spread if any: from 10 on with one decimal, from 100 on without where the spread allows it."""
    spread = figure["standard_deviation"]
    if form.endswith("f") and figure["mean"] >= 10:
        form = ".1f" if figure["mean"] < 100 or (spread is not None and spread < 0.5) else ".0f"
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
        if is_result(path):
            lines += ["", *section(path)]
    return "\n".join(lines) + "\n"


def section(path: Path) -> list[str]:
    """One result, a JSON file of this command, as lines of Markdown with a heading, and its picture beside it."""
    record = read_result(path)
    limit = f"{record['steps_per_run']:,} steps" if record["steps_per_run"] else f"{record['seconds_per_run']:g} s"
    seeds = f"{record['seeds']} seed{'s' * (record['seeds'] > 1)}"
    if fewer := record.get("other_seeds"):  # results of before this option have none
        seeds += f" ({fewer} of rows that no claim compares)"
    _, *others = path.stem.split("_")  # other data or coordinates, a longer run
    kind = f" ({', '.join(others)})" if others else ""
    lines = [f"## {record['title']}{kind}", "", *([record["note"], ""] if record["note"] else [])]
    lines += [
        f"`{record['command']}` (data: {record['data']}, {record['pixels']} pixels; {limit} a run, {seeds}, "
        f"{record['samples']:,} samples each; {made_on(record)}; [{path.name}]({path.name}))",
        *(f"and before it `{old['command']}` ({made_on(old)})" for old in record.get("kept", ())),
        "",
        f"| variant | {' | '.join(heading for heading, _ in MEASURES.values())} | steps | the paper |",
        "|-|" + "-|" * (len(MEASURES) + 2),
    ]
    for row in record["rows"]:
        cells = " | ".join(cell(row[name], form) for name, (_, form) in MEASURES.items())
        name = f"{row['name']} (`{' '.join(row['sampling'])}`)" if row["sampling"] else row["name"]
        lines.append(f"| {name} | {cells} | {statistics.mean(row['steps']):,.0f} | {row['paper']} |")
    lines += ["", *(f"- {sentence}" for sentence in record["sentences"])]
    lines += [f"- {row['name']}, {times_of(row)}." for row in record["rows"] if "seconds_per_image" in row]
    if (picture := picture_of(path)) is not None:
        lines += ["", f"![{record['title']}]({picture.name})"]
    return lines


def picture_of(path: Path) -> Path | None:
    """The picture beside a result: a plot is .svg, samples are .png."""
    return next((found for suffix in (".svg", ".png") if (found := path.with_suffix(suffix)).exists()), None)
