"""Solutions of notebook 05: an inverse that is cut off, with or without a student, and the forms of a student."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from farmer_ref import AutoregressiveFlow, Farmer, OneStepStudent
from farmer_ref.data.sets import batches, load_split
from farmer_ref.distill import disturbed
from farmer_ref.model.student import Distillation, StudentBlock, teacher_path


@torch.no_grad()
def swept(
    flow: AutoregressiveFlow, z: Tensor, sweeps: int, student: OneStepStudent | None = None
) -> Tensor:
    """The inverse of z (B,N,D), cut off: each block starts from z, or the student's guess, and is swept."""
    for number, block in reversed(list(enumerate(flow.blocks))):
        guess = z if student is None else student.blocks[number](z)
        x = block.flip_if_reversed(guess)
        z = block.flip_if_reversed(z)
        for _ in range(sweeps):
            shift, log_scale = block.all_shifts_and_log_scales(x)
            x = z * torch.exp(-log_scale) + shift  # Eq. 9
        z = block.flip_if_reversed(x)
    return z


def student_of_form(flow: AutoregressiveFlow, form: str) -> OneStepStudent:
    """An untrained student: "forward" (the paper's), "inverse" (ours), or "inverse, masked"."""
    student = OneStepStudent.from_teacher(flow, form=form.split(",")[0])
    if form == "inverse, masked":
        blocks = copy.deepcopy(flow.blocks)  # the teacher's keep their mask
        student.blocks = nn.ModuleList(StudentBlock(block, "inverse") for block in blocks)
    return student.requires_grad_(True)


def levels_of(model: Farmer, values: Tensor, generator: torch.Generator) -> list[Tensor]:
    """The teacher's levels of images, dequantised."""
    noise = model.dequantiser.draw(tuple(values.shape), generator)
    tokens, _ = model.to_tokens(model.dequantiser(values, noise))
    return teacher_path(model.flow, tokens)


def latents(model: Farmer) -> Tensor:
    """The 1,000 latents from the prior that all students are judged on, (1000,N,D)."""
    return model.prior.sample(torch.arange(1000) % 10, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def grey_levels_off(model: Farmer, x: Tensor, y: Tensor) -> float:
    """The root mean square difference of the images of tokens x and y (B,N,D), in grey levels."""
    ours, theirs = (model.to_images(tokens).clamp(-1, 1) for tokens in (x, y))
    return float((ours - theirs).square().mean().sqrt() / (2 / model.config.levels))


def error_after(model: Farmer, form: str, steps: int, seed: int) -> float:
    """Grey levels that a student is off after some steps of 32 images."""
    generator = torch.Generator().manual_seed(seed)
    training = load_split("digits", "train", model.config)
    images = next(batches(training, len(training)))[0]
    student = student_of_form(model.flow, form)
    distillation = Distillation(
        student, "hidden", channels=model.flow.channels, width=model.config.flow_width
    )
    optimiser = torch.optim.AdamW(student.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=max(2, steps))
    for step in range(steps):
        rows = torch.randint(len(images), (32,), generator=generator)
        levels = levels_of(model, images[rows], generator)
        loss = distillation(disturbed(levels[-1], 0.3, seed=seed, step=step), levels)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    z = latents(model)
    with torch.no_grad():
        return grey_levels_off(model, student(z), model.flow.inverse(z))


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = Farmer.from_pretrained("digits").requires_grad_(False)
    shipped = OneStepStudent.from_pretrained("digits", model.flow)
    z = latents(model)
    exact = model.flow.inverse(z)
    print("grey levels off, 1,000 latents from the prior, by passes for each block")
    for passes in (1, 2, 3):
        guess = grey_levels_off(model, swept(model.flow, z, passes - 1, shipped), exact)
        plain = grey_levels_off(model, swept(model.flow, z, passes), exact)
        print(f"{passes}: student, then sweeps {guess:.3f}; sweeps from z {plain:.3f}")
    print("the same, by form of the student, three seeds")
    for steps in (0, 100, 300):
        for form in ("forward", "inverse", "inverse, masked"):
            errors = [error_after(model, form, steps, seed) for seed in range(3 if steps else 1)]
            print(f"{steps:4} steps, {form:16}", *(f"{error:.2f}" for error in errors))
