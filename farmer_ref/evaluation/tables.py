"""What the paper's tables and figures compare, row by row, and what our figures say of its claims.

`farmer_ref.ablate` trains and measures the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from farmer_ref.model.config import StudentForm
from farmer_ref.training.config import TrainConfig

MEASURES = {
    "bits_per_dim": ("bits/dim", ".3f"),
    "sample_accuracy": ("accuracy", ".1%"),
    "frechet_distance": ("Fréchet", ".3f"),
}
HIGHER_IS_BETTER = ("sample_accuracy",)
GUIDED = ("--guidance", "1")
TIMED_BATCH, TIMED_ROUNDS = 16, 20
OF_SAMPLES = ("figure7", "figure8")  # whose pictures are samples, not plots of the rows


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
    """Train for this many steps, in place of --seconds-per-run."""
    form: StudentForm = "forward"
    """With --student: that student's form."""


@dataclass(frozen=True)
class Claim:
    """What the paper says of two rows: the first is better; or, with `alike_within`, that they hardly differ."""

    first: str
    second: str
    alike_within: float | None = None
    at_least: float = 0.0
    """Better by at least this much."""
    others: tuple[str, ...] = ()
    """More rows that are said to be better, too: one claim, which holds if it holds for all of them."""

    @property
    def firsts(self) -> tuple[str, ...]:
        """The first row and `others`."""
        return self.first, *self.others


@dataclass(frozen=True)
class Table:
    """Rows to compare, and what the paper says of them."""

    title: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    """What the paper says, by FID."""
    measures: tuple[str, ...] = ("frechet_distance", "sample_accuracy", "bits_per_dim")
    """What the claims are judged by here; the first is nearest to the paper's."""
    note: str = ""
    """The paper's own inconsistencies, where there are any."""
    speeds: Literal["flow", "sampling"] | None = None
    """Time each row's model, too, and report the speed of the flow or of sampling as a whole."""


# -- what is compared --------------------------------------------------------------------------------------------------


def tables(preset: TrainConfig) -> dict[str, Table]:
    """The tables and figures of the paper for one preset, by name."""
    model = preset.model
    channels = model.token_channels
    plain = {"condition_repeats": 1, "final_permutation": False}
    repeated = {**plain, "condition_repeats": max(4, model.condition_repeats)}
    both = {**repeated, "final_permutation": True}
    student = (*GUIDED, "--student")
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
            note="The paper ran this table at K = 1,024, although its Fig. 6a finds 64 best.",
        ),
        "table4": Table(
            "Table 4: which flow, and which inverse",
            (
                Row("coupling flow", {"flow": "coupling"}, GUIDED, "FID 106.23; .0065 s forward, .0099 s back"),
                Row("autoregressive flow", {}, GUIDED, "FID 5.55; .0066 s forward, .1689 s back"),
                Row("autoregressive flow, one step", {}, student, "FID 5.63; .0066 s, .0076 s"),
                Row("autoregressive flow, one step, inverse form (ours)", {}, student, form="inverse"),
            ),
            (
                Claim("autoregressive flow", "coupling flow"),
                Claim("autoregressive flow", "autoregressive flow, one step"),
            ),
            speeds="flow",
        ),
        "table5": Table(
            "Table 5: where the time goes",
            (
                Row("exact inverse", {}, GUIDED, "AR .0500 s + reverse .1689 s = .2189 s an image"),
                Row("one-step student", {}, student, ".0567 s an image in all"),
                Row("one-step student, inverse form (ours)", {}, student, form="inverse"),
            ),
            note="The paper's parts with the student add up to .0576 s, and its printed shares to 101.6%.",
            speeds="sampling",
        ),
        "figure6a": Table(
            "Figure 6a: components K of a token's mixture",
            tuple(
                Row(f"K = {k}", {"components": k}, GUIDED, {32: "too few for the split", 64: "best"}.get(k, ""))
                for k in (1, 16, 32, 64, 256)
            ),
            tuple(Claim("K = 64", f"K = {k}") for k in (1, 16, 32, 256)),
            note="The paper finds K = 64 best by FID, without giving the values, and runs Table 3 at 1,024.",
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
            note="The paper finds I = 128 of 768 best, a sixth, and does not say which channels: here they are the "
            f'first ones or, in the row "spread", evenly spaced. We read its claim as "few, but not fewest": {few}.',
        ),
        "figure7": Table(
            "Figure 7: redundant channels, standard deviations scaled",
            tuple(
                Row(f"x {scale:g}", {}, ("--redundant-temperature", str(scale)), said)
                for scales, said in (
                    ((0, 0.2, 0.4, 0.8), "smoother colours, same structure"),
                    ((1,), ""),
                    ((1.2, 1.5, 2, 4), "more variety, artefacts"),
                )
                for scale in scales
            ),
            (Claim("x 0", "x 1", alike_within=0.02, others=("x 0.2", "x 0.4", "x 0.8")),),
            measures=("sample_accuracy",),
            note='The paper says "variance", but its symbol is the standard deviation, which we scale. It finds that '
            "scaling down hardly changes the structure of an image; we judge that by classification accuracy, within a "
            "margin of two points (ours).",
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
        note="The claims are ours, judged by bits/dim; the paper has no such table.",
    )
