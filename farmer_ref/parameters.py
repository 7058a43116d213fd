"""Count parameters without allocating them: `python -m farmer_ref.parameters`, beside the paper's Table 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from farmer_ref import cli
from farmer_ref.config import PRESETS, ModelConfig
from farmer_ref.errors import InputError
from farmer_ref.farmer import Farmer

PAPER = {  # Table 1, in millions: (AR, AF); it does not say at which patch size
    "farmer-1.1b-p16": (295, 828),
    "farmer-1.1b-p8": (295, 828),
    "farmer-1.9b-p16": (498, 1400),
    "farmer-1.9b-p8": (498, 1400),
}
NOTES = """
Table 1 of the paper gives one count per model and no patch size. AR-1.1B fits at patch 16 with the stated K_I = 64,
K_R = 200, I = 128, R = 640 (the head of the shared mixture alone holds two thirds of it); AF-1.1B fits at patch 8,
where the layers that project tokens in and out are smaller. AR-1.9B does not fit: its 24 layers of width 1024 hold 302
million and the head of the shared mixture, as stated, another 263; the paper does not say why it has 498. At patch 8
(D = 192) the paper gives no split, and I = 128, R = 640 is impossible: we take I = 32, R = 160 with the same K_I and
K_R, so our AR at patch 8 has a smaller head than the paper's count."""


def count(config: ModelConfig) -> dict[str, int]:
    """Parameters of the flow (AF), the prior (AR) without its heads, and the heads, on the meta device."""
    with torch.device("meta"):
        model = Farmer(config)

    def size(module: torch.nn.Module | None) -> int:
        return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0

    heads = {"token_head": size(model.prior.token_head), "redundant_head": size(model.prior.redundant_head)}
    return {"flow": size(model.flow), "prior": size(model.prior), **heads, "total": size(model)}


@dataclass(frozen=True)
class ParametersConfig:
    """Parameter counts of the presets."""

    preset: str = "all"
    """A preset, or all."""

    def __post_init__(self) -> None:
        if self.preset != "all" and self.preset not in PRESETS:
            raise InputError(f"preset is {self.preset!r}; allowed: all, {', '.join(PRESETS)}")


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    config = cli.parse(
        "farmer_ref.parameters", ParametersConfig(), "Count the parameters of each part, beside the paper's.", argv
    )
    names = list(PRESETS) if config.preset == "all" else [config.preset]
    print("millions          flow (AF)  paper   prior (AR)  paper   of it: token head  shared head      total")
    for name in names:
        parts = {part: number / 1e6 for part, number in count(PRESETS[name].model).items()}
        paper_prior, paper_flow = (f"{number}" for number in PAPER[name]) if name in PAPER else ("-", "-")
        print(
            f"{name:16s} {parts['flow']:10.2f} {paper_flow:>6s} {parts['prior']:12.2f} {paper_prior:>6s} "
            f"{parts['token_head']:19.2f} {parts['redundant_head']:12.2f} {parts['total']:10.2f}"
        )
    if any(name in PAPER for name in names):
        print(NOTES)


if __name__ == "__main__":
    cli.run(main)
