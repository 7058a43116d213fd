"""The computed parts of the book: the paper's claims beside our results, parameter counts, names, commands."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import farmer_ref
from book import equations
from farmer_ref.evaluation.tables import MEASURES
from farmer_ref.evaluation.verdicts import cell, picture_of, section
from farmer_ref.parameters import NOTES, PAPER, count
from farmer_ref.support import plots
from farmer_ref.support.record import made_on

RESULTS = equations.ROOT / "results"
ORDER = ("table3", "table4", "table5", "figure6a", "figure6b", "figure7", "figure8")
SETS = {"mnist-quick": "28×28 digits", "digits": "8×8 digits"}  # what the tables are of, the most telling first
NAMED = {**SETS, "histogram": "histogram pixels", "cifar10-crops": "CIFAR-10", "long": "longer runs"}  # in headings
JUDGED = ("frechet_distance", "sample_accuracy", "bits_per_dim")  # the first is nearest to the paper's measure
BADGES = {
    "holds": "{bdg-success}`✓ holds`",
    "does not hold": "{bdg-danger}`✗ does not`",
    "inconclusive": "{bdg-light}`? open`",
    "holds weakly": "{bdg-warning}`✓ weakly`",
}
WORDS = re.compile(r"[A-Za-z]{3}")
SEEN = {  # pictures of samples; all others are plots of the rows
    "figure7": "The same digits nine times, with the deviations of their redundant channels scaled by 0 to 4: they "
    "hardly differ",
    "figure8": "Digits in five groups, from the smallest to the largest log-determinants: all are about as sharp",
    "figure7_mnist-quick_histogram": "The same digits nine times, with the deviations of their redundant channels "
    "scaled by 0 to 4: alike up to 1, more and more speckled from 1.2 on, noise at 4",
    "figure8_mnist-quick_histogram": "Digits in five groups, from the smallest to the largest log-determinants: from "
    "thick strokes to thin ones",
}
MADE = "Commands and machines"
COMMANDS = ("train", "evaluate", "sample", "distill", "apply", "ablate", "parameters")

BASES = sorted(RESULTS.glob("basis*.json"))  # a table of our own: short runs, longer ones, other data


def load(name: str) -> dict[str, Any]:
    """A file of results/."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def comparisons(data: str | None = None) -> list[Path]:
    """The results of `farmer_ref.ablate` of the paper's tables and figures: by data, and in the paper's order.

    Where runs were repeated for longer, only those.
    """
    records = {
        path: load(path.stem)
        for path in RESULTS.glob("*.json")
        if path not in BASES and last_word(path.stem) == path.stem
    }
    of = {path: record["data"] for path, record in records.items() if "sentences" in record}
    found = [path for path in of if data in (None, of[path])]
    sets = [*SETS, *sorted({*of.values()} - {*SETS})]
    return sorted(found, key=lambda path: (sets.index(of[path]), ORDER.index(path.stem.split("_")[0]), path.stem))


def last_word(name: str) -> str:
    """A result, or that of longer runs of the same rows where there is one."""
    longer = f"{name}_long"
    return longer if (RESULTS / f"{longer}.json").exists() else name


def link(name: str) -> str:
    """A file of results/, to follow."""
    return f"[{name}.json]({equations.REPOSITORY}/blob/main/results/{name}.json)"


def source(name: str) -> str:
    """Where a result comes from: its command, machine and file."""
    record = load(name)
    return f"`{record['command']}` ({made_on(record)}; {link(name)})"


def table(heads: list[str], rows: list[list[str]], numbers: bool = False) -> str:
    """Markdown; if it holds `numbers`, columns of them but the first are aligned right; "1 ± 2" does not break."""
    wordy = [any(WORDS.search(row[place]) for row in rows) for place in range(len(heads))]
    rule = ["-", *["-:" if numbers and not wordy[place] else "-" for place in range(1, len(heads))]]
    lines = [f"| {' | '.join(cells)} |" for cells in [heads, rule, *rows]]
    return "\n".join(lines).replace(" ± ", "\u00a0±\u00a0")


# -- the paper, checked ------------------------------------------------------------------------------------------------


def judged() -> list[dict[str, Any]]:
    """Every claim of the paper: where it stands, its words, its figures, and our verdict by each measure."""
    found = []
    for path in comparisons():
        record = load(path.stem)
        paper = {row["name"]: re.findall(r"FID ([\d.]+)", row["paper"]) for row in record["rows"]}
        where = {"stem": path.stem, "where": record["title"].split(":")[0], "data": record["data"]}
        where["length"] = f", {record['steps_per_run']:,} steps" if path.stem.endswith("_long") else ""
        for place, claim in enumerate(record["claims"]):
            first, relation, second = re.split(r" (better than|within \S+ of) ", claim["claim"])
            known = paper.get(first) and paper[second]
            figures = f"FID {paper[second][0]} → {paper[first][0]}" if known else ""
            verdicts = {measure: word["verdict"] for measure, word in claim["verdicts"].items()}
            said = plots.FACTOR.sub("× ", f"*{first}* {relation} *{second}*")
            found.append({**where, "place": place, "said": said, "figures": figures, "verdicts": verdicts})
        if path.stem.startswith("figure8"):
            said, word = re.match(r'"(.+)" ([\w ]+):', record["sentences"][-1]).groups()
            found.append({**where, "place": 0, "said": said, "figures": "", "verdicts": {"sharpness": word}})
    return found


def claims() -> str:
    """Which of the paper's claims hold here, how many, and the timings: a table for each data set."""
    every = judged()
    told: dict[tuple[str, int], bool] = {}
    for claim in every:  # the same claim of every data set has the same table and place
        key = claim["where"], claim["place"]
        told[key] = told.get(key, False) or set(claim["verdicts"].values()) != {"inconclusive"}
    parts = [
        f"We tested {len(told)} claims of the paper. For **{sum(told.values())}** of them, the seeds allow a verdict "
        "on at least one of the data sets."
    ]
    for place, data in enumerate(dict.fromkeys(claim["data"] for claim in every)):
        verdicts = claims_table([claim for claim in every if claim["data"] == data])
        heading = f"{SETS.get(data, data)}, {' and '.join(sorted(coordinates(data)))} pixels"
        parts += [f"**{heading}**", verdicts] if place == 0 else [folded(f"The same on {heading}", verdicts)]
        parts.append(folded(f"Timings on {SETS.get(data, data)}", timings(data)))
    return "\n\n".join(parts)


def coordinates(data: str) -> set[str]:
    """In which coordinates of the pixels the tables of a data set are."""
    return {load(path.stem)["pixels"] for path in comparisons(data)}


def claims_table(every: list[dict[str, Any]]) -> str:
    """How many of the claims of one data set hold, and which."""
    votes = [set(claim["verdicts"].values()) for claim in every]
    held = sum("holds" in vote and "does not hold" not in vote for vote in votes)
    failed = sum("does not hold" in vote and "holds" not in vote for vote in votes)
    split = sum({"holds", "does not hold"} <= vote for vote in votes)
    weak = sum("holds weakly" in vote for vote in votes)
    counts = (
        f"Of {len(every)} claims: **{held}** holding by at least one measure and failing by none, **{failed}** failing "
        f"by at least one and holding by none, **{split}** on which the measures disagree, **{weak}** holding weakly, "
        f"and **{len(every) - held - failed - split - weak}** open by every measure."
    )
    rows = []
    for claim in every:
        text = f"[{claim['where']}{claim['length']}](#{claim['stem']}): {claim['said']}"
        by = [BADGES.get(claim["verdicts"].get(measure), "") for measure in JUDGED]
        if "sharpness" in claim["verdicts"]:
            text += f"<br>measured by sharpness: {BADGES[claim['verdicts']['sharpness']]}"
        rows.append([f"{text}<br>{claim['figures']}" if claim["figures"] else text, *by])
    heads = ["the paper says", *(f"by {MEASURES[measure][0]}" for measure in JUDGED)]
    return f"{counts}\n\n{table(heads, rows)}"


def timings(data: str) -> str:
    """What the results of one data set say of speed."""
    return "\n".join(
        f"- [{record['title'].split(':')[0]}](#{path.stem}): {sentence}"
        for path in comparisons(data)
        for record in [load(path.stem)]
        for sentence in record["sentences"]
        if not sentence.startswith('"')
    )


def folded(title: str, *texts: str) -> str:
    """Markdown that is shown when its title is clicked."""
    return "\n\n".join([f":::{{dropdown}} {title}", *filter(None, texts), ":::"])


def measures_table(record: dict[str, Any]) -> str:
    """The rows of a result of `farmer_ref.ablate`, without the columns that say the same in every row."""
    columns = {heading: [cell(row[name], form) for row in record["rows"]] for name, (heading, form) in MEASURES.items()}
    columns["the paper"] = [row["paper"] for row in record["rows"]]
    varying = {head: cells for head, cells in columns.items() if len(record["rows"]) == 1 or len(set(cells)) > 1}
    lines = zip([row["name"] for row in record["rows"]], *varying.values(), strict=True)
    return plots.FACTOR.sub("× ", table(["variant", *varying], [list(line) for line in lines], numbers=True))


def bases_table(record: dict[str, Any]) -> str:
    """Bits/dim of the rows of equal steps: a line for each basis, a column for each treatment of the channels."""
    bits = {row["name"]: cell(row["bits_per_dim"], ".3f") for row in record["rows"] if row["name"].endswith(" steps")}
    steps = next(iter(bits)).rsplit(", ", 1)[1]
    splits = ("no split", "I = 12", "I = 12, Z_R ~ N(0, I)")
    end = f", {splits[0]}, {steps}"
    bases = [name.removesuffix(end) for name in bits if name.endswith(end)]
    lines = [[basis, *(bits.get(f"{basis}, {split}, {steps}", "") for split in splits)] for basis in bases]
    return table([f"bits/dim after {int(steps.split()[0]):,} steps", *splits], lines, numbers=True)


def how_measured(path: Path) -> str:
    """The note, the commands, the sentences and the times of a result, folded."""
    text = "\n".join(line for line in section(path)[1:] if not line.startswith("!["))
    text = text.replace("](" + path.name, f"]({equations.REPOSITORY}/blob/main/results/{path.name}")
    return folded("Every column, verdict and command", text.strip())


def comparison(path: Path) -> str:
    """A result of `farmer_ref.ablate` under a heading to link to: table and picture; what is of one seed is folded."""
    record = load(path.stem)
    _, *others = path.stem.split("_")
    of = [record["data"], *(part for part in others if part != record["data"])]
    kind = f" ({', '.join(NAMED.get(part, part) for part in of)})"
    drawn = picture_of(path)
    picture = f"![{seen(path.stem, record)}](results/{drawn.name})" if drawn else ""
    shown = [bases_table(record)] if path in BASES else [measures_table(record), picture]
    if record["seeds"] == 1:
        shown = [folded("One seed: no verdict is possible, and the figures are for orientation only", *shown)]
    shorter = path.stem.removesuffix("_long")
    if path not in BASES and shorter != path.stem:
        shown.append(f"These runs took {record['steps_per_run']:,} steps. Shorter ones: {link(shorter)}.")
    parts = [*shown, how_measured(path)]
    return "\n\n".join([f"({path.stem})=", f"### {record['title']}{kind}", *filter(None, parts)])


def seen(stem: str, record: dict[str, Any]) -> str:
    """What the picture of a result shows, in words."""
    if stem in SEEN:
        return SEEN[stem]
    names = [row["name"] for row in record["rows"]]
    measures = ", ".join(heading for heading, *_ in plots.varied(record["rows"], MEASURES).values())
    return f"{measures} of {len(names)} rows, from {names[0]} to {names[-1]}: a dot for each seed, a line for the mean"


def results(paths: list[Path]) -> str:
    """Every result, one screen each."""
    return "\n\n".join(map(comparison, paths)).replace(" ± ", "\u00a0±\u00a0")


def parameters() -> str:
    """Our parameter counts of the paper's four models beside its Table 1."""
    rows = []
    for name, (paper_prior, paper_flow) in PAPER.items():
        ours = count(farmer_ref.PRESETS[name].model)
        cells = [f"`{name}`"]
        for part, paper in (("prior", paper_prior), ("flow", paper_flow)):
            millions = ours[part] / 1e6
            cells += [f"{millions:,.0f}", f"{paper:,}", f"{millions / paper - 1:+.1%}".replace("-", "−")]
        rows.append([*cells, f"{ours['total'] / 1e6:,.0f}"])
    heads = ["millions", "AR, counted", "the paper", "difference", "AF, counted", "the paper", "difference", "total"]
    notes = re.sub(r"\b(K_[IR]|[DIR])( = \d+)?\b", r"$\g<0>$", " ".join(NOTES.split()))  # letters as mathematics
    return f"{table(heads, rows, numbers=True)}\n\n{notes}"


def speeds() -> str:
    """The inverses of the flow, and the flow beside TARFlow's public code."""
    names = {
        "sequential": "sequential inverse",
        "jacobi": "parallel inverse (Jacobi)",
        "student": "one-step student",
        "public TARFlow": "TARFlow's public code, sequential",
    }
    rows = [
        [
            names[row["method"]],
            str(row["batch"]),
            f"{row['seconds']:.3f}",
            "1" if row["method"] == "sequential" else ratio(row["speedup_over_sequential"]),
        ]
        for row in load("inverses")["matrix"]["rows"]
    ]
    text = [table(["inverse", "batch", "seconds", "speed-up over our sequential inverse"], rows)]
    sources = [source("inverses")]
    for path in sorted(RESULTS.glob("tarflow_speed*.json")):
        record = load(path.stem)
        rows = [
            [part.replace("_", " "), *(f"{times[f'{side}_seconds']:.3f}" for side in ("farmer_ref", "tarflow")), said]
            for part, times in record.items()
            if isinstance(times, dict) and "tarflow_seconds" in times
            for said in [ratio({key: times[f"speedup_{key}"] for key in ("median", "min", "max")})]
        ]
        heads = [f"same weights and shapes, {made_on(record)}", "seconds, ours", "seconds, TARFlow's", "speed-up"]
        text.append(table(heads, rows))
        sources.append(source(path.stem))
    return "\n\n".join([*text, folded(MADE, *sources)])


def ratio(speedup: dict[str, float]) -> str:
    """A median with its range."""
    return f"{speedup['median']:.2f} ({speedup['min']:.2f} to {speedup['max']:.2f})"


def guidance() -> str:
    """The sweep over w with both rules, and the effect of guidance on a model that is not yet good."""
    measured = load("guidance")
    rows = []
    for scale in measured["scales"]:
        cells = [f"{scale:g}"]
        for measure in ("sample_accuracy", "frechet_distance"):
            for rule in ("resampling", "naive"):
                found = [row for row in measured["sweep"] if (row["rule"], row["scale"]) == (rule, scale)]
                cells.append(cell(found[0][measure], MEASURES[measure][1]) if found else "")
        rows.append(cells)
    heads = ["w", "accuracy, resampling", "accuracy, naive", "Fréchet, resampling", "Fréchet, naive"]
    early = load("early_guidance")
    early_rows = [
        [row["way"], cell(row["sample_accuracy"], ".1%"), cell(row["frechet_distance"], ".2f")]
        for row in early["table"]
    ]
    return "\n\n".join(
        [
            table(heads, rows),
            "![Six plots: the error falls with the number of candidates where the target has a finite integral; draws "
            "drift where it has none; with growing w accuracy rises and levels off, the Fréchet distance rises, the "
            "variety within classes falls by resampling and hardly changes by the naive rule, and fewer candidates "
            "count](results/guidance.svg)",
            f"After only {early['steps']} steps, when samples are further from the data:",
            table([f"after {early['steps']} steps", "accuracy", "Fréchet"], early_rows),
            folded(MADE, source("guidance"), source("early_guidance")),
        ]
    )


def student() -> str:
    """The one-step student by its form; by its loss, folded."""
    tables, steps = [], []
    for name in ("distillation", "distillation_losses"):
        record = load(name)
        steps.append(f"{record['steps']:,}")
        rows = [
            [kind, *(cell(figures[key], form) for key, form in (("sample_error", ".4f"), ("sample_accuracy", ".1%")))]
            for kind, figures in record["table"].items()
        ]
        heads = [f"form/loss, {steps[-1]} steps", "difference from the exact inverse", "accuracy"]
        tables.append(table(heads, rows))
    return "\n\n".join(
        [
            tables[0],
            f"The students above, of both forms, were trained for {steps[0]} steps; those with other losses, folded "
            f"below, for {steps[1]}.",
            "![Digits of the exact inverse, and of the student from the same latents: they look alike]"
            "(results/student.png)",
            folded("Other losses, and the commands", tables[1], source("distillation"), source("distillation_losses")),
        ]
    )


# -- the reference -----------------------------------------------------------------------------------------------------


def public_names() -> str:
    """The names that `import farmer_ref` provides."""
    rows = []
    for name in farmer_ref.__all__:
        thing = getattr(farmer_ref, name)
        full = f"{thing.__module__}.{name}" if hasattr(thing, "__module__") else f"farmer_ref.training.presets.{name}"
        said = (thing.__doc__ or "").split("\n")[0] if callable(thing) else "Every preset, by name."
        role = f"{{py:obj}}`{name} <{full}>`" if callable(thing) else f"`{name}`"
        rows.append([role, re.sub(r"([|_$<])", r"\\\1", re.sub(r"\s+\((?:Eq|Alg).*", "", said))])
    return table(["name", "what it is"], rows)


def help_of(command: str) -> str:
    """The --help of a command."""
    printed = io.StringIO()
    size = mock.patch.dict("os.environ", {"COLUMNS": "80", "NO_COLOR": "1"})
    with size, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        importlib.import_module(f"farmer_ref.{command}").main(["--help"])
    lines = (line.rstrip() for line in printed.getvalue().splitlines())
    return "\n".join([":::{dropdown} `--help`", "```text", *lines, "```", ":::"])


def parts() -> dict[str, str]:
    """Every computed part, by the name under which the pages include it."""
    return {
        "claims": claims(),
        "results": results(comparisons()),
        "basis": results(BASES),
        "parameters": parameters(),
        "speeds": speeds(),
        "guidance": guidance(),
        "student": student(),
        "equations": equations.page(),
        "names": public_names(),
        **{f"help_{command}": help_of(command) for command in COMMANDS},
    }
