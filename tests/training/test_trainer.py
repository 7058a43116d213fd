"""The loop: steps that are skipped, schedule, averaging, speed, compilation."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
from conftest import Dispatched, small_model
from helpers import QUICK, metrics, stop_after, weights_of

from farmer_ref import PRESETS, Farmer, InputError, train
from farmer_ref.data.order import Batch
from farmer_ref.model.transformer import transformer_layers
from farmer_ref.support.plots import training_curve
from farmer_ref.training.checkpoint import checkpoints
from farmer_ref.training.config import TrainConfig
from farmer_ref.training.trainer import MovingAverage, Speed, Trainer, learning_rate_at, make_optimiser


def trainer_with_loss(tmp_path, loss, **changes):
    config = dataclasses.replace(PRESETS["tiny"], out=str(tmp_path), **changes)
    model = Farmer(config.model)

    def batches(start):
        for step in range(start, 10_000):
            yield Batch(step, torch.zeros(64, 1, 8, 8, dtype=torch.uint8), torch.zeros(64, dtype=torch.long))

    return Trainer(
        config,
        Path(config.out),
        model=model,
        average=MovingAverage(model, lambda: Farmer(config.model), decay=config.ema_decay),
        export=lambda: None,
        loss=lambda batch, progress, training: (loss(model, batch.step), {"loss": 0.0}),
        batches=batches,
        events=[],
        tokens=config.model.tokens,
    )


def test_a_step_with_a_non_finite_gradient_is_skipped_and_counted(tmp_path):
    def loss(model, step):
        return sum(p.square().sum() for p in model.parameters()) * (float("nan") if step in (3, 4) else 1.0)

    trainer = trainer_with_loss(tmp_path, loss, steps=6, checkpoint_every=1)
    averaged, update = [], trainer.average.update
    trainer.average.update = lambda step: averaged.append(step) or update(step)
    assert trainer.train()
    assert averaged == [0, 1, 2, 5]
    assert (trainer.skipped, trainer.skipped_in_a_row) == (2, 0)
    state = json.loads((checkpoints(tmp_path)[-1] / "state.json").read_text())
    assert (state["step"], state["skipped"]) == (6, 2)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert trainer.optimiser.state[next(trainer.model.parameters())]["step"] == 4
    resumed = trainer_with_loss(tmp_path, loss, steps=6)
    resumed.resume()
    assert (resumed.step, resumed.skipped) == (6, 2)
    assert {float(state["step"]) for state in resumed.optimiser.state.values()} == {4.0}  # AdamW counts its own steps


def test_many_non_finite_steps_end_the_run_and_keep_the_checkpoint(tmp_path):
    def loss(model, step):
        return sum(p.square().sum() for p in model.parameters()) * (float("nan") if step >= 4 else 1.0)

    trainer = trainer_with_loss(tmp_path, loss, steps=100, checkpoint_every=2, max_skipped_steps=3)
    with pytest.raises(InputError, match="not finite for 3 steps in a row"):
        trainer.train()
    weights = weights_of(checkpoints(tmp_path)[-1], "model.")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_loss_that_is_not_finite_spoils_neither_log_nor_curve(tmp_path):
    def loss(model, step):
        return sum(p.square().sum() for p in model.parameters()) * float("nan")

    trainer = trainer_with_loss(tmp_path, loss, steps=3, log_every=1)
    trainer.loss = lambda batch, progress, training: (loss(trainer.model, 0), {"bits_per_dim": float("nan")})
    assert trainer.train()
    assert (trainer.skipped, trainer.step) == (3, 3)
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    training_curve(tmp_path).savefig(tmp_path / "curve.png")


def test_schedule():
    config = TrainConfig(model=PRESETS["tiny"].model, learning_rate=1.0, final_learning_rate=0.1, warmup_steps=10)
    assert learning_rate_at(config, step=0, progress=0.0) == pytest.approx(0.1)
    assert learning_rate_at(config, step=9, progress=0.0) == pytest.approx(1.0)
    assert learning_rate_at(config, step=500, progress=0.5) == pytest.approx(0.55)
    assert learning_rate_at(config, step=999, progress=1.0) == pytest.approx(0.1)


def test_max_minutes_fits_the_schedule(tmp_path):
    arguments = [*QUICK, "--out", str(tmp_path), "--steps", "100000", "--max-minutes", "0.05", "--log-every", "1"]
    train.main(arguments)
    records = metrics(tmp_path)
    assert records[-1]["seconds"] >= 3
    assert records[-1]["step"] < 100_000
    preset = dataclasses.replace(PRESETS["tiny"], steps=100_000)
    for before, record in itertools.pairwise(records):  # whatever the machine does besides
        wanted = learning_rate_at(preset, step=before["step"], progress=before["seconds"] / 3)
        assert record["learning_rate"] == pytest.approx(wanted, rel=0.01, abs=1e-6)


def test_validation_takes_as_many_images_at_a_time_as_training(monkeypatch, tmp_path):
    """More may not fit into the memory of a device that training fills."""
    sizes, evaluate = [], train.evaluate_likelihood

    def noted(*arguments, batch_size, **options):
        sizes.append(batch_size)
        return evaluate(*arguments, batch_size=batch_size, **options)

    monkeypatch.setattr(train, "evaluate_likelihood", noted)
    train.main([*QUICK, "--steps", "2", "--batch-size", "32", "--accumulate", "4", "--out", str(tmp_path)])
    assert set(sizes) == {8}


def test_moving_average():
    source = torch.nn.Linear(2, 2)
    average = MovingAverage(source, lambda: torch.nn.Linear(2, 2), decay=0.9)
    target = average.module()
    start = target.weight.clone()
    assert torch.equal(start, source.weight)
    source.weight.data += 1
    average.update(step=0)
    assert torch.allclose(target.weight, start + 0.9)  # early on the average follows closely
    average.update(step=1000)
    assert torch.allclose(target.weight, start + 0.91)


@pytest.mark.parametrize("changes", [{"patch_basis": "dct", "channel_mixing": "learned"}, {"flow": "coupling"}])
def test_the_averaged_module_is_built_without_memory(monkeypatch, changes):
    """It was built on every process's CPU, and filled with random numbers, at each export."""
    config = dataclasses.replace(PRESETS["tiny"].model, informative_channels="interleaved", **changes)
    source, made = Farmer(config), []

    def new():
        made.append(Farmer(config))
        assert all(parameter.is_meta for parameter in made[-1].parameters())
        return made[-1]

    average = MovingAverage(source, new, decay=0.9)
    averaged = average.module()
    assert made == [averaged]
    assert not [name for name, tensor in averaged.named_parameters() if tensor.is_meta or tensor.requires_grad]
    assert not [name for name, tensor in averaged.named_buffers() if tensor.is_meta]
    assert averaged.log_prob(torch.zeros(2, 1, 8, 8)).isfinite().all()
    assert dict.fromkeys(averaged.state_dict(), True) == {
        name: torch.equal(tensor, averaged.state_dict()[name]) for name, tensor in average.state_on_rank_zero().items()
    }
    monkeypatch.setattr("farmer_ref.support.parallel.rank", lambda: 1)
    assert average.state_on_rank_zero() == {}


def test_weight_decay_is_for_matrices():
    groups = make_optimiser(Farmer(PRESETS["tiny"].model), PRESETS["tiny"]).param_groups
    assert all(p.dim() >= 2 for p in groups[0]["params"])
    assert all(p.dim() < 2 for p in groups[1]["params"])
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (PRESETS["tiny"].weight_decay, 0)
    assert groups[0]["betas"] == (0.9, 0.95)


def test_speed_is_that_of_the_device_in_use(monkeypatch):
    used = torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4" if device == used else "A100")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 2**30 if device == used else 0)
    speed = Speed(8, flops_per_image=65e12, device=used)
    assert speed.utilisation_per_rate == 1
    assert speed.measured()["peak_memory_gib"] == 1
    assert set(Speed(8, flops_per_image=65e12, device=torch.device("cpu")).measured()) == {"images_per_second"}


def test_what_is_compiled_is_captured_whole():
    """Traced forward and backward without a break; a compiler proper takes a minute (`slow`)."""
    model = small_model()
    images = torch.rand(4, 2, 6, 6, dtype=torch.float64) * 2 - 1
    wanted = model.log_prob(images)
    (gradient,) = torch.autograd.grad(wanted.sum(), model.flow.blocks[0].positions)
    for layer in transformer_layers(model):
        layer.compile(backend="aot_eager", fullgraph=True)
    found = model.log_prob(images)
    (traced,) = torch.autograd.grad(found.sum(), model.flow.blocks[0].positions)
    assert torch.allclose(found, wanted, atol=1e-9) and torch.allclose(traced, gradient, atol=1e-8)


@pytest.mark.slow
def test_compiled_training_is_the_eager_one(tmp_path):
    for name, arguments in (("eager", []), ("compiled", ["--compile"])):
        train.main([*QUICK, "--log-every", "1", *arguments, "--out", str(tmp_path / name)])
    eager, compiled = ([line["nats_per_dim"] for line in metrics(tmp_path / name)] for name in ("eager", "compiled"))
    assert compiled == pytest.approx(eager, rel=1e-4)


MIXED = ["--model.patch-basis", "pca", "--model.channel-mixing", "learned"]  # a step with products in its density


@pytest.fixture(params=["float32", "tf32", "bfloat16"])
def traced_step(request, tmp_path, monkeypatch):
    """Precision, and what a step of training dispatched: all of it, and what came before the backward pass."""
    gradients, backward, steps = Trainer._gradients, torch.Tensor.backward, []

    def traced(trainer, batch, progress):
        with Dispatched() as mode, monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "backward", lambda loss: steps.append(list(mode.names)) or backward(loss))
            logged = gradients(trainer, batch, progress)
        steps.append(mode)
        return logged

    monkeypatch.setattr(Trainer, "_gradients", traced)
    train.main([*QUICK, *MIXED, "--steps", "1", "--precision", request.param, "--out", str(tmp_path)])
    return request.param, steps[1], steps[0]


def test_nothing_waits_for_the_gpu_between_forward_and_backward(traced_step):
    _, mode, before = traced_step
    assert len(before) > 100 and len(mode.names) > 2 * len(before)
    assert mode.names.count("_local_scalar_dense") == 1  # .item() and the like: is the basis fitted, once a run
    assert not {"nonzero", "equal"} & {*mode.names}


def test_products_of_a_step_are_rounded_but_for_the_density(traced_step):
    """In float32: projections and heads, forward and backward, in TF32 if the precision allows; A x, A and the basis
    of the patches not. A GPU's rate in float32 proper is a fifteenth of that in bfloat16."""
    precision, mode, _ = traced_step
    rounded = [shape for dtype, rounded, shape in mode.products if dtype == torch.float32 and rounded]
    exact = [shape for dtype, rounded, shape in mode.products if dtype == torch.float32 and not rounded]
    tokens, channels, blocks = 64 * 16, 4, 2
    assert torch.get_float32_matmul_precision() == "highest"  # what is measured between two steps is not rounded
    if precision == "float32":
        assert not rounded
        return
    basis, mixing, factors = (tokens, channels), (tokens, channels), (channels, channels)
    assert sorted(map(tuple, exact)) == sorted([basis, *[mixing, factors, factors] * blocks])
    assert len([dtype for dtype, _, _ in mode.products if dtype == torch.bfloat16]) == (
        3 * 4 * 3 if precision == "bfloat16" else 0
    )


def test_the_clock_of_a_resumed_run_goes_on(tmp_path):
    """Else each --resume would have all of --max-minutes again, and stretch the schedule."""
    run = [*QUICK, "--steps", "100000", "--max-minutes", "1", "--log-every", "1", "--out", str(tmp_path)]
    stop_after(3, run)
    path = checkpoints(tmp_path)[-1] / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 59.9}))
    train.main([*run, "--resume"])
    after = metrics(tmp_path)[3:]
    assert after and all(line["seconds"] >= 59.9 for line in after if "seconds" in line)


def test_gradients_are_clipped(tmp_path):
    def loss(model, step):
        return sum(p.square().sum() for p in model.parameters())

    trainer, seen = trainer_with_loss(tmp_path, loss, clip_norm=0.5), []
    trainer.optimiser.register_step_pre_hook(
        lambda *_: seen.append(torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm())
    )
    logged = trainer._optimise(next(trainer.batches(0)))
    assert float(seen[0]) == pytest.approx(0.5, rel=1e-3) and logged["gradient_norm"] > 5
