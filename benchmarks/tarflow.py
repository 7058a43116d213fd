"""Speed of the flow against the public TARFlow code: `python -m benchmarks.tarflow --tarflow PATH_OF_A_CLONE`.

Both models hold the same weights (`from_tarflow`), and their outputs are compared before anything is timed. Rounds
alternate between the two, so that drift in the machine's speed affects both; the ratio is the median over rounds.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from pydantic import PositiveInt

from benchmarks.timing import speedup
from farmer_ref import InputError
from farmer_ref.model.tarflow import from_tarflow
from farmer_ref.support import cli
from farmer_ref.support.files import write_json
from farmer_ref.support.parallel import resolve_device
from farmer_ref.support.record import provenance, timed_in_turns
from farmer_ref.support.settings import settings_class

SIDE = 16  # patches; N is its square


@settings_class
class BenchmarkConfig:
    """Shapes and repetitions of the benchmark."""

    tarflow: str = ""
    """A clone of github.com/apple/ml-tarflow."""
    batch_size: PositiveInt = 16
    """Images per batch."""
    patch_size: PositiveInt = 4
    """D = 3 * patch_size^2."""
    blocks: PositiveInt = 4
    """Flow blocks."""
    layers: PositiveInt = 2
    """Layers per block."""
    width: PositiveInt = 256
    """Width."""
    rounds: PositiveInt = 9
    """Timed rounds, after one of warm-up."""
    threads: PositiveInt = 2
    """CPU threads."""
    device: str = "auto"
    """auto, cpu, cuda."""
    out: str = "results/tarflow_speed.json"
    """The file to write the figures to."""


def public_code(path: str) -> ModuleType:
    """Import transformer_flow.py from a clone of the public code."""
    source = Path(path) / "transformer_flow.py"
    if not path or not source.is_file():
        raise InputError(f"tarflow is {path!r}, without transformer_flow.py; allowed: a clone of apple/ml-tarflow")
    spec = importlib.util.spec_from_file_location("transformer_flow", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(argv: list[str] | None = None) -> None:
    config = cli.parse("benchmarks.tarflow", BenchmarkConfig(), "Time the flow against the public TARFlow code.", argv)
    public = public_code(config.tarflow)
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    device = resolve_device(config.device)
    made = provenance(device)
    image_size = SIDE * config.patch_size
    theirs = public.Model(3, image_size, config.patch_size, config.width, config.blocks, config.layers)
    for block in theirs.blocks:
        torch.nn.init.normal_(block.proj_out.weight, std=0.05 / config.width**0.5)
    ours = from_tarflow(theirs.state_dict()).to(device)
    theirs.to(device)
    images = torch.randn(config.batch_size, 3, image_size, image_size, device=device)
    x = theirs.patchify(images)

    with torch.no_grad():
        z, _, mean_logdet = theirs(images)
        z_ours, logdet = ours(x)
        x_theirs, x_ours = theirs.patchify(theirs.reverse(z)), ours.inverse(z_ours)
        assert torch.allclose(z, z_ours, atol=1e-4), "the two flows disagree"
        assert torch.allclose(mean_logdet, logdet / x[0].numel(), atol=1e-5), "the two log-determinants disagree"
        assert torch.allclose(x_theirs, x_ours, atol=1e-3), "the two inverses disagree"

    def step_theirs() -> None:
        z, _, logdet = theirs(images)
        theirs.zero_grad()
        theirs.get_loss(z, logdet).backward()

    def step_ours() -> None:
        z, logdet = ours(theirs.patchify(images))
        ours.zero_grad()
        (0.5 * z.square().mean() - logdet.mean() / x[0].numel()).backward()

    def inverses(z: torch.Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
        return lambda: theirs.reverse(z), lambda: theirs.unpatchify(ours.inverse(z))

    figures = {}
    for name, (step, our_step) in {
        "training_step": (step_theirs, step_ours),
        "sequential_inverse": inverses(z),
        "sequential_inverse_of_one_image": inverses(z[:1]),
    }.items():
        with torch.set_grad_enabled(name == "training_step"):
            times = timed_in_turns({"tarflow": step, "farmer_ref": our_step}, config.rounds, device)
        ratio = speedup(times["tarflow"], times["farmer_ref"])
        seconds = {f"{which}_seconds": statistics.median(found) for which, found in times.items()}
        figures[name] = {**seconds, **{f"speedup_{key}": value for key, value in ratio.items()}}
        print(
            f"{name}: TARFlow {seconds['tarflow_seconds']:.3f} s, farmer_ref {seconds['farmer_ref_seconds']:.3f} s, "
            f"{ratio['median']:.2f} times as fast ({ratio['min']:.2f} to {ratio['max']:.2f} over rounds)"
        )
    settings = {name: value for name, value in vars(config).items() if name not in ("tarflow", "out")}
    record = {**made, "settings": settings, **figures}
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(config.out), record)


if __name__ == "__main__":
    cli.run(main)
