"""What every training command shares: precision, the schedule, EMA, logs, checkpoints, the optimisation loop.

A run folder is what `Farmer.from_pretrained` reads: config.json and model.safetensors (the EMA weights). Beside them
`checkpoints/step-N/` holds the raw weights, the EMA, the optimiser's state and the loop's.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from farmer_ref.data.order import Batch, random_seed
from farmer_ref.model.precision import rounded_products
from farmer_ref.model.transformer import TrainingPass, transformer_layers
from farmer_ref.support import parallel
from farmer_ref.support.errors import InputError, require
from farmer_ref.support.parallel import full_tensor, is_sharded, local_tensor
from farmer_ref.training import costs
from farmer_ref.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from farmer_ref.training.config import RunConfig
from farmer_ref.training.runs import keep_metrics_until
from farmer_ref.training.threads import choose_threads

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h: bytes from which memory is returned
STATE_FIELDS = ("step", "seconds", "skipped", "skipped_in_a_row")


def learning_rate_at(config: RunConfig, *, step: int, progress: float) -> float:
    """Linear warm-up over steps, then a cosine over the run's progress in [0, 1] (§4.1)."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return warmup * (config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * cosine)


def set_up(config: RunConfig) -> torch.device:
    """Join the other processes, if any; returns this one's device."""
    device = parallel.join(config.device)
    share = parallel.world_size() * config.accumulate
    require(
        config.batch_size % share == 0,
        "batch_size",
        config.batch_size,
        f"a multiple of {share} ({parallel.world_size()} processes, {config.accumulate} parts each)",
    )
    if config.compile:
        require_compiler(device)
    keep_freed_memory()
    return device


def images_at_a_time(config: RunConfig) -> int:
    """The images of one part of the batch on one process."""
    return config.batch_size // (config.accumulate * parallel.world_size())


def require_compiler(device: torch.device) -> None:
    """Raise `InputError` without what `torch.compile` needs: a C++ compiler on a CPU, one of C for Triton on a GPU."""
    if device.type == "cuda":
        variable, language, usual = "CC", "C", ["gcc", "clang"]
    else:
        variable, language, usual = "CXX", "C++", ["clang++" if sys.platform == "darwin" else "g++"]
    names = [os.environ[variable]] if os.environ.get(variable) else usual
    found = any(map(shutil.which, names)) or os.name == "nt"  # Windows: cl, which its own shell sets up
    need = f"False, or with a {language} compiler: there is no {' or '.join(names)} here ({variable} names another)"
    require(found, "compile", True, need)


def keep_freed_memory() -> None:
    """Keep the memory that a training step frees for the next one, which asks for the same again.

    On Linux, glibc returns large blocks to the system and has each page cleared and mapped anew: up to a tenth of a
    step. Other systems have no such call.
    """
    if sys.platform == "linux":
        set_option = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: 0)  # musl has none
        set_option(M_MMAP_THRESHOLD, 2**30)
        set_option(M_TRIM_THRESHOLD, 2**31 - 1)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bfloat16 for the transformer layers, or nothing; the densities disable it for their own computation."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def products(precision: str) -> contextlib.AbstractContextManager[None]:
    """TF32 for the products of a training step that autocast leaves in float32, unless all is to be float32.

    Where layers are bfloat16, these are a few per cent of the operations, and on tensor cores alone also of the time.
    """
    return contextlib.nullcontext() if precision == "float32" else rounded_products()


class MovingAverage:
    """Exponential moving average of weights; its decay rises from 0.1 to `decay` as min(decay, (t+1) / (t+10)).

    The averages are sharded over the processes exactly as the weights are.
    """

    def __init__(self, source: nn.Module, new: Callable[[], nn.Module], *, decay: float):
        """`new()` builds an unsharded module of the source's shape; called on the meta device, it allocates nothing."""
        self.source, self.new, self.decay = source, new, decay
        self.weights = {name: parameter.detach().clone() for name, parameter in source.named_parameters()}
        self._module: nn.Module | None = None

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after step `step`."""
        weight = 1 - min(self.decay, (step + 1) / (step + 10))
        averages, weights = ([local_tensor(w) for w in ws] for ws in (self.weights.values(), self.source.parameters()))
        torch._foreach_lerp_(averages, weights, weight)

    def module(self) -> nn.Module:
        """The averaged module, in evaluation mode; all processes must call it together.

        It shares the averages' memory or, where these are sharded, is a full copy of their present values.
        """
        if self._module is not None:
            return self._module
        with torch.device("meta"):
            averaged = self.new().eval()
        for name, buffer in self.source.named_buffers():
            module, _, last = name.rpartition(".")
            setattr(averaged.get_submodule(module), last, buffer)
        for name, weight in self.weights.items():
            module, _, last = name.rpartition(".")
            setattr(averaged.get_submodule(module), last, nn.Parameter(full_tensor(weight), requires_grad=False))
        if not any(is_sharded(weight) for weight in self.weights.values()):
            self._module = averaged
        return averaged

    def state_on_rank_zero(self) -> dict[str, Tensor]:
        """The averaged module's state dict on rank 0, nothing elsewhere; all processes must call it together.

        Sharded averages are gathered one by one, so that no GPU, and no CPU but that of rank 0, holds all of them.
        """
        state = self.source.state_dict()
        for name, weight in self.weights.items():
            whole = full_tensor(weight)
            if parallel.rank() == 0:
                state[name] = whole.cpu() if is_sharded(weight) else whole
        return state if parallel.rank() == 0 else {}


def make_optimiser(model: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """AdamW(.9, .95); weight decay on matrices, none on biases and norms."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def moments(optimiser: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """AdamW's two moments of every parameter, `exp_avg.NAME` and `exp_avg_sq.NAME`; 0 before the first step.

    They share the optimiser's memory. Its step count, the same for all parameters, is not included.
    """
    found = {}
    for name, parameter in model.named_parameters():
        state = optimiser.state[parameter]
        if not state:  # AdamW's own initial state
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        found |= {f"{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq")}
    return found


# -- the loop ----------------------------------------------------------------------------------------------------------

Loss = Callable[[Batch, float, TrainingPass], tuple[Tensor, dict[str, Tensor | float]]]
"""(batch, progress, training pass) -> the loss, a mean over the batch, and values to log with it, also means: tensors,
not numbers, where these would make the backward pass wait for the forward one."""


class RunLog:
    """The metrics.jsonl and TensorBoard events of a run; only rank 0 writes."""

    def __init__(self, run: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._active = parallel.rank() == 0
        if self._active:
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
            self._lines = run / "metrics.jsonl"

    def write(self, step: int, values: dict[str, float], board: dict[str, float]) -> None:
        """Append a line to metrics.jsonl and scalars to TensorBoard. JSON cannot express non-finite values: they become
        null."""
        if not self._active:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            with open(self._lines, "a") as file:
                file.write(json.dumps({"step": step, **finite}) + "\n")
            for name, value in board.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:
            raise InputError(
                f"{self._lines} cannot be written ({error}); allowed: a disk with free space. "
                "The newest checkpoint is intact"
            ) from None

    def close(self) -> None:
        """Flush TensorBoard's pending events."""
        if self._active:
            with contextlib.suppress(OSError):  # of a full disk, which the next line or checkpoint has reported
                self._board.close()


class Trainer:
    """The optimisation loop: schedule, clipping, skipped steps, EMA, logs, checkpoints, resumption.

    On a CPU with a fixed number of threads, and one process or two, a resumed run equals one that was never stopped bit
    for bit; where the number changes, or on a GPU, whose kernels may add in another order each time, to rounding. So
    with more processes: DDP's buckets, which are arranged anew after the first step, decide the order of their sums.

    The calling command supplies the loss, the batches, and periodic events (validation, samples). Under torchrun every
    process runs the same loop on its rows of each batch; joint decisions (when to stop, whether a gradient is finite)
    rest on the same numbers everywhere.
    """

    def __init__(
        self,
        config: RunConfig,
        run: Path,
        *,
        model: nn.Module,
        average: MovingAverage,
        export: Callable[[], None],
        loss: Loss,
        batches: Callable[[int], Iterator[Batch]],
        events: list[tuple[int, Callable[[int], dict[str, float]]]],
        tokens: int,
        flops_per_image: float = 0.0,
    ):
        """`run` holds checkpoints and logs; `model` comes from `parallel.distribute`; `export()` writes the averaged
        weights where they are used, after each checkpoint; `batches(start)` iterates over the steps from `start`;
        `events` pair a period in steps (0: never) with a function of the step, whose result is logged.
        `tokens` are those of an image; `flops_per_image`, of a training step, is for the logged utilisation."""
        self.config, self.distributed_model, self.loss, self.batches, self.events = config, model, loss, batches, events
        self.model: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
        self.run, self.export, self.average = run, export, average
        self.tokens, self.flops_per_image = tokens, flops_per_image
        if config.compile:
            torch._dynamo.config.optimize_ddp = False  # it cuts graphs for DDP: ours are single layers already
            for layer in transformer_layers(self.model):  # all the same code: a minute of compiling, not an hour
                layer.compile()
        self.device = next(self.model.parameters()).device
        self.optimiser = make_optimiser(self.model, config)
        self.step, self.seconds, self.skipped, self.skipped_in_a_row = 0, 0.0, 0, 0
        self.interrupted_by = 0  # the number of a signal

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint by name: the weights, their average, and the optimiser's moments."""
        weights = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        averages = {f"ema.{name}": tensor for name, tensor in self.average.weights.items()}
        return {**weights, **averages, **moments(self.optimiser, self.model)}

    def resume(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        found = checkpoints(self.run)
        if not found:
            return
        state = load_checkpoint(found[-1], self.tensors())
        for name in STATE_FIELDS:
            setattr(self, name, getattr(state, name))
        for entry in self.optimiser.state.values():
            entry["step"].fill_(self.step - self.skipped)
        if parallel.rank() == 0:
            keep_metrics_until(self.run, self.step)
        self.export()  # in case a kill fell between checkpoint and export

    @property
    def progress(self) -> float:
        """The fraction of the run completed, in [0, 1]: of its steps or of its minutes, whichever is larger."""
        by_time = self.seconds / (60 * self.config.max_minutes) if self.config.max_minutes else 0.0
        return min(1.0, max(self.step / self.config.steps, by_time))

    def save(self) -> None:
        """Write a checkpoint of this step, unless it exists."""
        if (self.run / "checkpoints" / f"step-{self.step}").exists():
            return
        save_checkpoint(self.run, self.tensors(), {name: getattr(self, name) for name in STATE_FIELDS})
        self.export()

    def train(self) -> bool:
        """Train to the end of the schedule; False if SIGINT or SIGTERM ended it early, after saving a checkpoint."""
        if not checkpoints(self.run):
            self.save()
        if self.progress >= 1:
            return True
        log = RunLog(self.run, self.step)
        speed = Speed(self.config.batch_size, flops_per_image=self.flops_per_image, device=self.device)
        began = time.perf_counter() - self.seconds
        signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        handlers = {number: signal.signal(number, self._interrupt) for number in signals}
        bar = tqdm(
            total=self.config.steps,
            initial=self.step,
            desc=self.run.name,
            unit="step",
            dynamic_ncols=True,
            disable=parallel.rank() > 0,
        )
        threads = choose_threads(
            self.model,
            images=images_at_a_time(self.config),
            tokens=self.tokens,
            device=self.device,
            wanted=self.config.threads,
        )
        try:
            for batch in self.batches(self.step):
                step_began = time.perf_counter()
                logged = self._optimise(batch)
                with speed.pause():
                    threads.check(time.perf_counter() - step_began)
                *means, self.seconds, interrupted = parallel.mean_over_processes(
                    [*logged.values(), time.perf_counter() - began, float(self.interrupted_by)]
                )
                finished, stop = self.progress >= 1, bool(interrupted) or self.progress >= 1
                speed.step()
                bar.update()
                if self.step % self.config.log_every == 0 or finished:
                    logged = {**dict(zip(logged, means, strict=True)), **speed.measured()}
                    bar.set_postfix({name: f"{value:.4g}" for name, value in logged.items()}, refresh=False)
                    board = {f"train/{name}": value for name, value in logged.items()}
                    log.write(self.step, {"seconds": round(self.seconds, 3), **logged}, board)
                for period, event in self.events:
                    if period and (self.step % period == 0 or finished):
                        with speed.pause():
                            measured = event(self.step)
                        if measured:
                            board = {name.replace("_", "/", 1): value for name, value in measured.items()}
                            log.write(self.step, measured, board)
                if stop or self.step % self.config.checkpoint_every == 0:
                    with speed.pause():
                        self.save()
                if stop:
                    break
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            bar.close()
            log.close()
        return self.progress >= 1

    def _interrupt(self, number: int, _: object) -> None:
        self.interrupted_by = number

    def leave(self) -> None:
        """End the command with the exit code of the signal that ended the run early, if one did, so that nothing that
        follows, in a Makefile or a benchmark, mistakes it for a finished run."""
        if self.progress < 1:
            raise SystemExit(128 + (self.interrupted_by or signal.SIGTERM))  # or it came to another process

    def _optimise(self, batch: Batch) -> dict[str, float]:
        """Take one step. A non-finite gradient is skipped and counted; too many in a row end the run."""
        progress = self.progress
        rate = learning_rate_at(self.config, step=self.step, progress=progress)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        logged = self._gradients(batch, progress)
        norm = float(full_tensor(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)))
        if math.isfinite(norm):
            self.optimiser.step()
            self.average.update(self.step)
            self.skipped_in_a_row = 0
        else:
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
            if self.skipped_in_a_row >= self.config.max_skipped_steps:
                raise InputError(
                    f"learning_rate is {self.config.learning_rate}, and the gradient was not finite for "
                    f"{self.skipped_in_a_row} steps in a row (step {self.step}); allowed: a smaller learning_rate. "
                    "The newest checkpoint is intact"
                )
        self.step += 1
        figures = {name: float(value) for name, value in logged.items()}
        return {**figures, "gradient_norm": norm, "learning_rate": rate, "skipped": self.skipped}

    def _gradients(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """Accumulate the gradient of the step's mean loss, part by part; returns the mean logged values."""
        count, sums = self.config.accumulate, {}
        for number, part in enumerate(batch.parts(count), 1):
            # Dropout draws from the global generator for the step's whole batch. Seeding it here gives the same
            # masks to a resumed run, and to any division of the batch into parts and processes.
            torch.manual_seed(random_seed(self.config.seed, "step", self.step))
            training = TrainingPass(
                rows=torch.arange(part.first, part.first + len(part.labels), device=self.device),
                batch_size=self.config.batch_size,
                recompute=self.config.checkpoint_activations,
            )
            average = parallel.gradients_averaged(self.distributed_model, number == count)
            with average, products(self.config.precision):
                loss, logged = self.loss(part, progress, training)
                (loss / count).backward()
            for name, value in logged.items():
                sums[name] = sums.get(name, 0.0) + value / count
        return sums


class Speed:
    """Images per second between log lines, and the model FLOP utilisation (MFU) of the GPUs."""

    def __init__(self, batch_size: int, *, flops_per_image: float, device: torch.device):
        self.batch_size, self.device = batch_size, device
        peak = parallel.world_size() * costs.peak_flops(device)
        self.utilisation_per_rate = flops_per_image / peak if peak else 0.0
        self._images, self._began = 0, time.perf_counter()

    def step(self) -> None:
        """Count one more batch."""
        self._images += self.batch_size

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time spent inside: it is not training."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    def measured(self) -> dict[str, float]:
        """The values to log; restarts the count."""
        rate = self._images / (time.perf_counter() - self._began)
        self._images, self._began = 0, time.perf_counter()
        found = {"images_per_second": rate}
        if self.utilisation_per_rate:
            found["model_flops_utilisation"] = rate * self.utilisation_per_rate
        if self.device.type == "cuda":
            found["peak_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return found
