"""How claims are judged, and that the committed results say so."""

import json
import re
import statistics

import pytest
from scipy.stats import ttest_ind

from farmer_ref import PRESETS
from farmer_ref.evaluation.tables import MEASURES, Claim, Table, bases, tables
from farmer_ref.evaluation.verdicts import blur_sentence, judge, judged, verdict
from farmer_ref.support.record import ROOT

RESULTS = ROOT / "results"

MEASURE = "frechet_distance"


def row_of(name, values):
    spread = statistics.stdev(values) if len(values) > 1 else None
    figures = {"mean": statistics.mean(values), "standard_deviation": spread, "seeds": values}
    return {"name": name, "frechet_distance": figures}


def word(ours, other, margin=None, higher_is_better=False, paired=False):
    return verdict(ours, other, higher_is_better, paired, alike_within=margin)["verdict"]


def test_claims_are_judged_against_the_spread():
    low, high, wide = [1.0, 1.1, 0.9], [2.0, 2.1, 1.9], [0.0, 2.0, 4.0]
    assert word(low, high) == "holds"
    assert word(high, low) == "does not hold"
    assert word(low, wide) == "inconclusive"
    assert word([1.0], [2.0]) == "inconclusive with one seed"
    assert word([1.0, 1.1], [1.3, 1.2]) == "inconclusive"  # two seeds say little
    assert word([1.0, 1.02], [1.3, 1.28]) == "holds"
    assert word(high, low, higher_is_better=True) == "holds"
    varied = [1.0, 3.0, 5.0]
    assert word(varied, [v + 0.5 for v in varied]) == "inconclusive"
    assert word(varied, [v + 0.5 + d for v, d in zip(varied, [0, 0.1, -0.1], strict=True)], paired=True) == "holds"
    for margin, expected in ((0.5, "holds"), (1.0, "inconclusive"), (1.5, "does not hold")):
        assert verdict(low, high, False, False, at_least=margin)["verdict"] == expected


def test_a_row_that_varies_far_more_than_the_other_has_fewer_degrees_of_freedom():
    """Welch's interval, which SciPy has too; with the variances pooled, the noise of one row would count twice."""
    quiet, loud = [430.0, 431.0, 429.5], [520.0, 610.0, 550.0]
    found = verdict(quiet, loud, False, False)
    theirs = ttest_ind(loud, quiet, equal_var=False).confidence_interval(0.95)
    assert (found["gain"] - found["half_interval"], found["gain"] + found["half_interval"]) == pytest.approx(theirs)
    pooled = ttest_ind(loud, quiet).confidence_interval(0.95)
    assert theirs[0] < pooled[0] - 30
    assert verdict([1.0] * 3, [1.0] * 3, False, False)["half_interval"] == 0


def test_likeness_is_judged_against_margin_and_spread():
    close, far, wide = [1.0, 1.01, 0.99], [2.0, 2.01, 1.99], [0.0, 1.0, 2.0]
    assert word(close, [1.01, 1.0, 1.02], margin=0.1) == "holds"
    assert word(close, far, margin=0.1) == word(far, close, margin=0.1) == "does not hold"
    assert word(close, wide, margin=0.1) == "inconclusive"


def test_a_claim_is_a_sentence_by_every_measure():
    rows = {
        name: {
            "model": {},
            "steps": [9, 9, 9],
            MEASURE: row_of(name, frechet)[MEASURE],
            "sample_accuracy": row_of(name, read)[MEASURE],
            "bits_per_dim": row_of(name, [2.0, 2.1, 2.2])[MEASURE],
        }
        for name, frechet, read in (
            ("a", [1.0, 1.1, 0.9], [0.5, 0.51, 0.52]),
            ("b", [2.0, 2.1, 1.9], [0.8, 0.81, 0.82]),
        )
    }
    judged = judge(Table("t", ()), Claim("a", "b"), rows)
    assert judged["sentence"] == (
        '"a better than b": by Fréchet, holds (1.000 ± 0.100 against 2.000 ± 0.100); '
        "by accuracy, does not hold (51.0% ± 1.0% against 81.0% ± 1.0%). 3 seeds."
    )
    assert judged["verdicts"][MEASURE]["gain"] == pytest.approx(1.0)
    alike = judge(Table("t", (), measures=(MEASURE,)), Claim("a", "b", alike_within=0.1), rows)
    assert alike["sentence"].startswith('"a within 0.1 of b": by Fréchet, does not hold')
    assert judge(Table("t", (), measures=(MEASURE,)), Claim("a", "a", alike_within=0.2), rows)["sentence"].startswith(
        '"a within 0.2 of a": by Fréchet, holds'
    )
    both = judge(Table("t", (), measures=(MEASURE,)), Claim("a", "a", alike_within=0.2, others=("b",)), rows)
    assert both["sentence"].startswith(  # one claim of two rows fails if it fails of one
        '"a and b within 0.2 of a": by Fréchet, does not hold (1.000 ± 0.100 and 2.000 ± 0.100 against 1.000 ± 0.100)'
    )
    far = judge(Table("t", (), measures=(MEASURE,)), Claim("a", "b", at_least=2), rows)
    assert far["sentence"].startswith('"a better than b by 2 or more": by Fréchet, does not hold')


def test_two_ways_to_sample_from_one_model_are_compared_by_samples_alone_and_equal_ones_are_alike():
    row = {"model": {}, "steps": [9, 9], **{name: row_of("r", [0.5, 0.6])[MEASURE] for name in MEASURES}}
    table = Table("t", (), measures=tuple(MEASURES))
    judged = judge(table, Claim("a", "b", alike_within=0.02), {"a": row, "b": row})
    assert {name: said["verdict"] for name, said in judged["verdicts"].items()} == {
        "sample_accuracy": "holds",
        MEASURE: "holds",
    }
    others = {**row, "steps": [9, 8]}  # models of their own: a likelihood that happens to be the same is a figure, too
    assert "bits_per_dim" in judge(table, Claim("a", "b"), {"a": row, "b": others})["verdicts"]


@pytest.mark.parametrize("path", sorted(path for path in RESULTS.glob("*.json") if "sentences" in path.read_text()))
def test_what_is_said_of_the_committed_rows_follows_from_them(path):
    """From the code as it is: a changed claim, row or rule must not stand beside old sentences."""
    record = json.loads(path.read_text())
    name, preset = path.stem.split("_")[0], PRESETS[record["data"]]
    steps = {int(number) for row in record["rows"] for number in re.findall(r", (\d+) steps", row["name"])} or {1}
    table = bases(preset, *steps) if name == "basis" else tables(preset)[name]
    assert [(row["name"], row["model"], row["sampling"], row["paper"]) for row in record["rows"]] == [
        (row.name, row.model, list(row.sampling), row.paper) for row in table.rows
    ]
    assert (record["title"], record["note"]) == (table.title, table.note)
    said = json.loads(json.dumps(judged(table, record["rows"], record.get("fifths"))))
    assert said == {name: record[name] for name in ("claims", "sentences")}


@pytest.mark.parametrize(
    ("last", "expected"), [(0.5, "holds"), (0.95, "holds weakly"), (1.5, "does not hold"), (1.0, "inconclusive")]
)
def test_blur_is_judged_against_the_spread(last, expected):
    def fifth(level):
        return {"sharpness": row_of("r", [level, level + 0.01, level - 0.01])["frechet_distance"]}

    varied = [fifth(level) for level in (1.01, 1.0, 1.0, 0.99)]
    assert f'blurred" {expected}:' in blur_sentence([*varied, fifth(last)])
