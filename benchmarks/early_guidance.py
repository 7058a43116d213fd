"""Does guidance bring samples nearer to the data? Of models hardly trained: `python -m benchmarks.early_guidance`.

The paper's Table 3 starts from unguided samples that are far from the data (FID 44.56), and guidance brings them
nearer. Samples of our trained digits are near the data, and guidance takes them away from it (`farmer_ref.ablate
--table 3`). Here the same is measured after a fifth of that training. Writes results/early_guidance.json.
"""

from __future__ import annotations

import torch
from pydantic import PositiveInt

from farmer_ref import train
from farmer_ref.evaluate import EvaluateConfig, evaluate
from farmer_ref.model.guidance import Guidance
from farmer_ref.support import cli
from farmer_ref.support.files import write_json
from farmer_ref.support.record import ROOT, over_seeds, provenance
from farmer_ref.support.settings import Whole, settings_class

WAYS = {
    "no guidance": Guidance(),
    "naive, w = 1": Guidance(scale=1.0, rule="naive"),
    "resampling, w = 1": Guidance(scale=1.0),
    "resampling, w = 2": Guidance(scale=2.0),
}


@settings_class
class EarlyGuidance:
    """How long, and how often."""

    steps: PositiveInt = 500
    """Steps of each run."""
    seeds: tuple[Whole, ...] = (0, 1, 2)
    """Seeds of the runs."""
    samples: PositiveInt = 1000
    """Samples of each way and seed."""
    runs: str = "runs/early_guidance"
    """Where the runs are kept: a finished one is not trained again."""


def main(argv: list[str] | None = None) -> None:
    description = "Guide models that are far from trained."
    config = cli.parse("benchmarks.early_guidance", EarlyGuidance(), description, argv)
    rows, made = [], provenance(torch.device("cpu"))
    for seed in config.seeds:
        out = f"{config.runs}/{config.steps}steps-seed{seed}"
        quiet = ["--validate-every", "0", "--sample-every", "0", "--device", "cpu", "--resume"]
        train.main(["--preset", "digits", "--steps", str(config.steps), "--seed", str(seed), "--out", out, *quiet])
        for name, guidance in WAYS.items():
            figures = evaluate(
                EvaluateConfig(run=out, samples=config.samples, draws=1, guidance=guidance, device="cpu", seed=seed)
            )
            rows.append({"way": name, "seed": seed} | {m: figures[m] for m in ("frechet_distance", "sample_accuracy")})
    table = []
    for name in WAYS:
        mine = [row for row in rows if row["way"] == name]
        measured = {
            measure: over_seeds([row[measure] for row in mine]) for measure in ("frechet_distance", "sample_accuracy")
        }
        table.append({"way": name, **measured})
        distance, read = (measured[measure] for measure in ("frechet_distance", "sample_accuracy"))
        print(f"{name}: Fréchet distance {distance['mean']:.2f}, accuracy {read['mean']:.1%}")
    record = {**made, "steps": config.steps, "samples": config.samples, "table": table}
    write_json(ROOT / "results" / "early_guidance.json", record)


if __name__ == "__main__":
    cli.run(main)
