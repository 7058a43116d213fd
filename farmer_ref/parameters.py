"""What a model costs, computed without allocating it: `python -m farmer_ref.parameters`.

Parameters beside the paper's Table 1; FLOPs and memory of a training step; the duration of the full training.
"""

from __future__ import annotations

import functools

import torch
from tqdm import tqdm

from farmer_ref.model.config import ModelConfig
from farmer_ref.model.farmer import Farmer
from farmer_ref.support import cli
from farmer_ref.support.errors import require
from farmer_ref.support.settings import settings_class
from farmer_ref.training.costs import peak_flops_of, saved_bytes, state_bytes, training_flops
from farmer_ref.training.presets import PRESETS
from farmer_ref.training.utilisation import reachable_utilisation

PAPER = {  # Table 1, in millions: (AR, AF); it does not say at which patch size
    "farmer-1.1b-p16": (295, 828),
    "farmer-1.1b-p8": (295, 828),
    "farmer-1.9b-p16": (498, 1400),
    "farmer-1.9b-p8": (498, 1400),
}
DESCRIPTION = "Count the parameters of each part, beside the paper's, and compute what a training step costs."
NOTES = """
Table 1 of the paper gives one count per model and no patch size. AR-1.1B fits at patch 16 with the stated K_I = 64,
K_R = 200, I = 128, R = 640 (the head of the shared mixture alone holds two thirds of it); AF-1.1B fits at patch 8,
where the layers that project tokens in and out are smaller. AR-1.9B does not fit: its 24 layers of width 1024 hold 302
million and the head of the shared mixture, as stated, another 263; the paper does not say why it has 498. At patch 8
(D = 192) the paper gives no split, and I = 128, R = 640 is impossible: we take I = 32, R = 160 with the same K_I and
K_R, so our AR at patch 8 has a smaller head than the paper's count."""
GPU, GPU_BYTES, GPUS = "H100", 80e9, 8
RESERVED_BYTES = 4 * 2**30  # for kernel workspaces and temporaries: our guess
DRAWN = 100  # images at a time, as `sample` draws them
LARGE = 100e6  # parameters: below it launch latency dominates on a GPU, which this table ignores
COSTS = f"""
What a training step costs, computed. GFLOP: per image, three forward passes; the attention mask is not deducted.
GiB: float32 weights, gradients, AdamW's moments and the average, on one GPU and on each of {GPUS} (--parallel fsdp).
MiB: memory that one more image adds in the preset's precision; then with --checkpoint-activations.
Fit: images on each {GPU} of {GPU_BYTES / 1e9:.0f} GB with {RESERVED_BYTES >> 30} GiB left free; then with checkpoints.
Of the peak: the model FLOP utilisation that this code can reach by a count of its own operations, without and with
--compile, where each of {GPUS} GPUs has its share of the batch; nothing waits in it, so expect less.
Images per second on one {GPU} at the second of these; days of the preset's training on {GPUS} of them.
Drawn: GiB of the prior's keys and values, in float32, while {DRAWN} images are drawn with guidance."""


def count(config: ModelConfig) -> dict[str, int]:
    """Parameters of the flow (AF), of the prior (AR) and of the prior's heads, counted on the meta device."""
    with torch.device("meta"):
        model = Farmer(config)

    def size(module: torch.nn.Module | None) -> int:
        return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0

    heads = {"token_head": size(model.prior.token_head), "redundant_head": size(model.prior.redundant_head)}
    return {"flow": size(model.flow), "prior": size(model.prior), **heads, "total": size(model)}


def images_that_fit(state: int, image: int) -> int:
    """Images of a step that fit on the GPU beside the state, given the bytes of both."""
    return max(0, int((GPU_BYTES - RESERVED_BYTES - state) // image))


@functools.cache
def utilisation(name: str, *, compiled: bool = True) -> float:
    """The share of the peak that a preset's training can reach on each of several GPUs."""
    preset = PRESETS[name]
    return reachable_utilisation(
        preset.model,
        parameters=count(preset.model)["total"],
        images=preset.batch_size // GPUS,
        precision=preset.precision,
        compiled=compiled,
    )


def guided_cache_bytes(config: ModelConfig, images: int) -> int:
    """Bytes of the prior's keys and values, in float32, for images drawn with guidance: given a label, and without."""
    positions = config.condition_repeats + config.tokens
    return 2 * images * positions * config.prior_layers * 2 * config.prior_width * 4


def step_costs(name: str) -> str:
    """One line of the table of costs."""
    preset = PRESETS[name]
    parameters, flops = count(preset.model)["total"], training_flops(preset.model)
    states = [state_bytes(parameters, processes) for processes in (1, GPUS)]
    images = [
        saved_bytes(preset.model, checkpoint_activations=checkpointed, precision=preset.precision)
        for checkpointed in (False, True)
    ]
    rate = utilisation(name) * peak_flops_of(GPU) / flops
    days = preset.steps * preset.batch_size / (GPUS * rate) / 86_400
    one, one_checkpointed, each, each_checkpointed = (
        images_that_fit(state, image) for state in states for image in images
    )
    return (
        f"{name:16s} {flops / 1e9:9,.0f} {states[0] / 2**30:9.1f} {states[1] / 2**30:6.1f} {images[0] / 2**20:7,.0f} "
        f"{images[1] / 2**20:12,.0f} {one:9,d} {one_checkpointed:12,d} {each:5,d} {each_checkpointed:12,d} "
        f"{utilisation(name, compiled=False):11.0%} {utilisation(name):8.0%} {rate:9,.0f} {days:6.1f} "
        f"{guided_cache_bytes(preset.model, DRAWN) / 2**30:6.1f}"
    )


@settings_class
class ParametersConfig:
    """Parameters and costs of the presets."""

    preset: str = "all"
    """A preset, or all."""

    def __post_init__(self) -> None:
        require(self.preset in ("all", *PRESETS), "preset", self.preset, f"all, {', '.join(PRESETS)}")


def main(argv: list[str] | None = None) -> None:
    """Print the tables."""
    config = cli.parse("farmer_ref.parameters", ParametersConfig(), DESCRIPTION, argv)
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
    large = [name for name in names if count(PRESETS[name].model)["total"] >= LARGE]
    if not large:
        return
    print(COSTS)
    heads = f"{'GFLOP':>9s} {'GiB on 1':>9s} {f'on {GPUS}':>6s} {'MiB':>7s} {'checkpointed':>12s} {'fit on 1':>9s} "
    heads += f"{'checkpointed':>12s} {f'on {GPUS}':>5s} {'checkpointed':>12s} {'of the peak':>11s} {'compiled':>8s} "
    heads += f"{'images/s':>9s} {'days':>6s} {'drawn':>6s}"
    print(f"{'':16s} {heads}")
    for name in tqdm(large, desc="costs", unit="preset", leave=False):
        tqdm.write(step_costs(name))


if __name__ == "__main__":
    cli.run(main)
