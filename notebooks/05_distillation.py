# %% [markdown]
# # 05 · The one-step student
#
# [Open this notebook in Colab](https://colab.research.google.com/github/farmer-ref/farmer_ref/blob/main/notebooks/05_distillation.ipynb)
#
# A flow runs forward in one pass and backward token by token. The paper trains a second network to go back in one pass
# per block (§3.5, Alg. 2). After this notebook you can train such a student in either of two forms, measure its error
# without knowing the right answer, and say what it costs. Notebook 01 has the flow and its exact inverses.

# %% tags=["hide-input"]
import os
import sys

if "google.colab" in sys.modules:  # on the hosted service: fetch the project first
    os.system(
        "git clone -q https://github.com/farmer-ref/farmer_ref && pip install -q tyro torch-fidelity"
    )
    os.chdir("farmer_ref/notebooks")
    sys.path.insert(0, os.path.abspath(".."))

# %%
import json

import matplotlib.pyplot as plt
import torch

from farmer_ref import PRESETS, Farmer, OneStepStudent
from farmer_ref.data.sets import batches, load_split
from farmer_ref.distill import disturbed
from farmer_ref.evaluation.metrics import PixelClassifier
from farmer_ref.model.jacobi import inverse_jacobi
from farmer_ref.model.student import Distillation, relative_errors, teacher_path
from farmer_ref.support.drawings import teacher_and_student
from farmer_ref.support.plots import STYLE, labelled_grids
from farmer_ref.support.record import ROOT, timed

# %config InlineBackend.figure_formats = ["svg"]
# %matplotlib inline
plt.rcParams.update(STYLE)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
steps = 200 if device.type == "cpu" else 1000  # of training, below

# %% [markdown]
# ## Where does the time of a sample go?
#
# Sampling draws latents $z$ from the prior, then undoes the flow. Forward and backward, the flow does the same sums.
# *Predict first:* how many times as long does backward take?

# %% tags=["nbval-check-output", "hide-output"]
model = Farmer.from_pretrained("digits").to(device).requires_grad_(False)
flow, labels = model.flow, torch.arange(10, device=device).repeat(100)
z = model.prior.sample(labels, generator=torch.Generator(device).manual_seed(0))  # (1000,16,4)
x = flow.inverse(z)


def seconds(function, *inputs):
    return min(timed(lambda: function(*inputs), device) for _ in range(7))


forward, backward = seconds(flow, x[:16]), seconds(flow.inverse, z[:16])
print("backward takes longer than forward:", backward > 1.5 * forward)
for size in (model.config, PRESETS["farmer-1.1b-p16"].model):
    print(f"{size.flow_blocks} blocks, {size.flow_blocks * (size.tokens - 1):,} steps in a row")

# %%
prior = seconds(model.prior.sample, labels[:16])
print(f"16 images: backward {backward / forward:.1f}, prior {prior / forward:.1f} times forward")

# %% [markdown]
# The reason is Eq. 9: in each block, $x_i = z_i / \sigma(x_{<i}) + \mu(x_{<i})$, where a network computes the scale
# $\sigma$ and the shift $\mu$ from the tokens before, $x_{<i}$. It needs all of those before it can say anything about
# $x_i$: $N - 1$ steps in each of $n$ blocks of $N$ tokens, as printed for this model and for the paper's smaller one.
#
# ## Why one step may do
#
# All of $z$ is known from the start, and it decides all of $x$. Below are the derivatives of $x_i$ by $z_j$ through the
# inverse of the first block (the forward matrix of derivatives, inverted), beside those of a finished student:

# %% tags=["nbval-check-output"]
shipped = OneStepStudent.from_pretrained("digits", flow).requires_grad_(False)
block = Farmer.from_pretrained("digits").flow.blocks[0].double()
pupil = OneStepStudent.from_pretrained("digits").blocks[0].double()
start = x[:1].cpu().double()
inverse = torch.autograd.functional.jacobian(lambda x: block(x)[0], start).view(64, 64).inverse()
learned = torch.autograd.functional.jacobian(pupil, block(start)[0]).view(64, 64)
sizes = [m.view(16, 4, 16, 4).square().sum((1, 3)).sqrt() for m in (inverse, learned)]
figure, panels = plt.subplots(1, 2, figsize=(7.5, 3.2), layout="constrained")
for axes, values, name in zip(panels, sizes, ("exact inverse", "student"), strict=True):
    picture = axes.imshow(values, cmap="viridis", vmin=0, vmax=0.3, zorder=3)  # over the grid
    axes.set(title=f"{name}, first block", xlabel="token j of z", ylabel="token i of x")
figure.colorbar(picture, ax=panels, label=r"norm of $\partial x_i / \partial z_j$", extend="max")
print("x_i depends on later z_j:", *[(size.triu(1) > 1e-9).any().item() for size in sizes])

# %% [markdown]
# Exactly, $x_i$ depends on $z_1, \dots, z_i$ only: the sequence lies in the way of computing, not in the function, and
# a network may learn a function. A `StudentBlock` copies the teacher's block, weights included, with *bidirectional*
# attention (no mask): $\mu_i$ and $\sigma_i$ see every token, later ones too, which the truth does not need (right
# panel). Of its two forms,
#
# - **forward** is the paper's: $(z_i - \mu_i(z))\,\sigma_i(z)$, as the teacher's forward pass (Eq. 8, Fig. 3);
# - **inverse** is ours: $z_i / \sigma_i(z) + \mu_i(z)$, Eq. 9 with $z$ where it has $x$.
#
# ## What it is taught

# %% tags=["hide-input"]
teacher_and_student()

# %% [markdown]
# The targets cost one forward pass of the teacher: for any image it gives the whole way, $X = Z^0, Z^1, \dots, Z^n$.
# The student starts from $\tilde Z^n = Z^n + s\varepsilon$, with a little noise ($\varepsilon$ normal, $s$ uniform up
# to 0.3), and the output of each block, $\tilde Z^{t-1}$, is compared with the teacher's level (Alg. 2):
#
# $$\mathcal{L} = \frac{1}{n} \sum_{t=1}^{n} \big\|\tilde Z^{t-1} - Z^{t-1}\big\|^2$$
#
# *Predict first:* both forms start with the teacher's weights. How far off is each before training?

# %%
generator = torch.Generator().manual_seed(0)
paths = []  # the teacher's Z^0, ..., Z^4 of training and of validation images
for part in ("train", "validation"):
    values = next(batches(load_split("digits", part, model.config), 2000))[0]
    images = model.dequantiser(values, model.dequantiser.draw(tuple(values.shape), generator))
    paths.append(teacher_path(flow, model.patchify(images.to(device))))
training, held_out = paths

# %%
errors, pictures = {}, {"exact inverse": model.decode(z[:10])}
for form in ("forward", "inverse"):
    student = OneStepStudent.from_teacher(flow, form=form)
    distillation = Distillation(student, "hidden", channels=4, width=model.config.flow_width)
    optimiser = torch.optim.AdamW(student.parameters(), 2e-3)
    for step in range(steps + 1):
        if step in (0, steps):
            with torch.no_grad():
                errors[form, step] = relative_errors(student.path(held_out[-1]), held_out)
                pictures[f"{form} form, {step} steps"] = model.decode(z[:10], student=student)
        rows = torch.randint(len(training[0]), (32,), generator=generator).to(device)
        levels = [level[rows] for level in training]
        loss = distillation(disturbed(levels[-1], 0.3, seed=0, step=step), levels)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()

# %% tags=["nbval-check-output", "hide-output"]
figure, chart = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
names = [rf"$Z^{t}$" for t in (3, 2, 1, 0)]
for (form, step), error in errors.items():
    chart.plot(names, error, marker="o" if step else "s", label=f"{form} form, {step} steps")
chart.set(title="validation images", xlabel="level reached", ylabel="relative error", yscale="log")
figure.legend(frameon=False, loc="outside right")
for step in (0, steps):
    print("inverse form nearer:", errors["forward", step][-1] > errors["inverse", step][-1])

# %%
labelled_grids(pictures, columns=10, across=1)

# %% [markdown]
# (Errors are relative to the norm of the teacher's level; $Z^0$ is the image.) Untrained, the inverse form draws
# digits: its blocks are nearly sweeps of the parallel inverse (notebook 01), but for the mask, which the weights
# expect. The forward form starts by scaling the wrong way. Both learn fast.
#
# ## The one that ships
#
# It has the inverse form, trained for longer (`results/student.json`). Its file says its form, and carries a
# fingerprint of the teacher's weights: `from_pretrained` refuses it beside others.
#
# How do its errors arise? We give each block its predecessor's output, as in sampling; then the teacher's level, so
# that nothing is inherited.

# %% tags=["nbval-check-output"]
other = Farmer.from_pretrained("digits-noise").flow
chain = relative_errors(shipped.path(held_out[-1]), held_out)
pairs = zip(reversed(shipped.blocks), held_out[:0:-1], strict=True)
alone = relative_errors([block(level) for block, level in pairs], held_out)
figure, axes = plt.subplots(figsize=(6.5, 2.6), layout="constrained")
for place, error, name in ((-0.2, chain, "on its own way"), (0.2, alone, "fed the truth")):
    axes.bar([i + place for i in range(4)], error, 0.36, label=name)
    print(f"{name:15}", *(f"{e:.0%}" for e in error))
axes.set(title="level reached", ylabel="relative error", xticks=range(4), xticklabels=names)
figure.legend(frameon=False, loc="outside right")
print(shipped.form, "form; taught by its flow, by another:", *map(shipped.taught_by, (flow, other)))

# %% [markdown]
# The last block, fed the truth, is the best of them; on its own way it inherits most of its error.
#
# Now 1,000 latents from the prior, decoded token by token, by the parallel inverse (`inverse_jacobi`: all tokens at
# once, swept again until nothing moves), and by the student. Its *error*, here and below: the root mean square
# difference from the exact inverse on such latents, pixels clamped to $[-1, 1]$, in grey levels of $2/17$. *Predict
# first:* how many digits will a classifier no longer recognise?

# %% tags=["nbval-check-output", "hide-output"]
ways = {"exact": x, "parallel": inverse_jacobi(flow, z)[0], "student": shipped(z)}
decoded = {name: model.patchify.inverse(tokens).clamp(-1, 1) for name, tokens in ways.items()}
off = {name: (batch - decoded["exact"]) / (2 / 17) for name, batch in decoded.items()}
print(f"student: {off['student'].square().mean().sqrt():.2f} grey levels off")
assert off["parallel"].abs().max() < 1e-3
classifier = PixelClassifier(load_split("digits", "train", model.config))
read = {n: classifier.accuracy(model.dequantiser.quantise(b), labels) for n, b in decoded.items()}
print("accuracy within 2% of exact:", abs(read["student"] - read["exact"]) < 0.02)

# %%
print("accuracy:", ", ".join(f"{name} {share:.1%}" for name, share in read.items()))
worst = off["student"].square().mean((1, 2, 3)).topk(8).indices
rows = {name: decoded[name][worst] for name in ("exact", "student")}
rows["student - exact (mid-grey: no difference)"] = rows["student"] - rows["exact"]
labelled_grids(rows, columns=8, across=1)

# %% [markdown]
# The classifier hardly notices. Where the student fails most, a few pixels are visibly wrong.
#
# ## What is lost
#
# The student has no log-determinant, and nothing makes it invertible. The likelihood still comes from the teacher's
# forward pass. That pass also checks a student without the right answer: encode its image, compare with $z$. *Predict
# first:* which images does the model find more probable, its own exact ones or the student's?

# %% tags=["nbval-check-output", "hide-output"]
assert (flow(x)[0] - z).abs().max() < 1e-4
stray = (flow(shipped(z))[0] - z).square().mean().sqrt() / z.std()
print("student: latents come back within a quarter of their spread:", (stray < 0.25).item())
before, after = (model.likelihood_terms(model.patchify.inverse(t), labels) for t in (x, shipped(z)))
for name, exact, pupils in zip(before._fields, before, after, strict=True):
    print(f"student's images 1 nat denser by {name}:", (pupils - exact).mean().item() > 1)

# %% [markdown]
# The student's images are more probable, by the prior's two terms, not the log-determinant's; we have not tested why. A
# higher density proves no better sample (notebook 06).
#
# ## Speed

# %% tags=["nbval-check-output"]
print("N = 256, 2 CPU cores (results/inverses.json), times as fast as sequential:")
for row in json.loads((ROOT / "results/inverses.json").read_text())["matrix"]["rows"]:
    name, ratio = row["method"], row["speedup_over_sequential"]["median"]
    if name in ("jacobi", "student"):
        print(f"  batch {row['batch']:2}, {name:8}{ratio:5.1f}")
methods = (flow.inverse, lambda z: inverse_jacobi(flow, z)[0], shipped)
live = {batch: [seconds(method, z[:batch]) for method in methods] for batch in (1, 16)}
print("here, too, the student is ahead:", all(times[2] < times[0] for times in live.values()))

# %%
for batch, (exact, parallel, one_step) in live.items():
    print(f"N = 16, batch {batch}: jacobi {exact / parallel:.1f}, student {exact / one_step:.1f}")

# %% [markdown]
# On a CPU the parallel inverse ("jacobi") does not pay for larger images: it saves latency by doing more arithmetic,
# and a CPU is short of that. So the student gains less with a larger batch. We have not measured GPUs.

# %% tags=["nbval-check-output"]
for number in (4, 5):
    sentence = json.loads((ROOT / f"results/table{number}.json").read_text())["sentences"][-1]
    print(sentence.replace("; ", ";\n").replace("sample, ", "sample,\n"))
for file in ("distillation", "distillation_losses"):
    record = json.loads((ROOT / f"results/{file}.json").read_text())
    for name, row in record["table"].items():
        off = [f"{row['sample_error'][k] * 17 / 2:.3f}" for k in ("mean", "standard_deviation")]
        print(f"{record['steps']} steps, {name:17} {' ± '.join(off)} grey levels off")

# %% [markdown]
# > **The paper** reports the ratios in brackets above (ours are of batches of 16); the two for its overall speed-up
# > do not agree. **We** gain less, with 16 tokens in place of 256, and on a CPU. The paper's student has the forward form and
# > is compared on every level (`hidden`). Of ours, the inverse form is slightly nearer after equal training, and so are
# > small heads on all levels but the last (`projected`); the last level alone (`output`) is slightly worse. By FID on
# > ImageNet, BiFlow ([arXiv 2512.10953](https://arxiv.org/abs/2512.10953)) found hidden distillation 55.0, output only
# > 43.4, the exact inverse 44.5, and 36.9 for alignment, with heads on hidden states that are never forced into token
# > space (ours read outputs that are).
#
# ## What to remember
#
# - The inverse is sequential because of how it is computed. The function itself can be learned, one pass per block.
# - The teacher's forward pass gives the student its targets, and later its marks: encode, and compare with $z$.
# - Blocks inherit errors. The student is a fast sampler, not an inverse; the likelihood stays the teacher's.
# - The gain depends on latency: large for one image, small for a full batch on a CPU.
#
# ## Exercises
#
# **1 (think).** In the paper's Table 5 the inverse takes 77% of the time of a sample. How much could the *best*
# student, one that takes no time, speed up sampling? And ours, by the share printed above? What should be made faster
# next?
#
# <details><summary>Solution</summary>
#
# What is left is the prior: $1 / (1 - 0.77) = 4.3$ times at the very most, and less for ours, whose share is smaller. The
# paper's 22-fold student thus has most of what there was to get, and the prior, which is sequential for a better reason
# (each latent is *drawn* before the next can be), is now most of the time.
#
# </details>
#
# **2 (a few lines).** A sweep of the parallel inverse is exact in its fixed point and needs no training. Correct the
# output of each student block by $k$ sweeps with the teacher's block. Does it help? And from which start is the same
# number of *passes* better spent, from the student's guess or from $z$ itself?
#
# <details><summary>Solution</summary>
#
# ```python
# @torch.no_grad()
# def swept(
#     flow: AutoregressiveFlow, z: Tensor, sweeps: int, student: OneStepStudent | None = None
# ) -> Tensor:
#     """The inverse of z (B,N,D), cut off: each block starts from z, or the student's guess, and is swept."""
#     for number in reversed(range(len(flow.blocks))):
#         block = flow.blocks[number]
#         x = block.flip_if_reversed(z if student is None else student.blocks[number](z))
#         z = block.flip_if_reversed(z)
#         for _ in range(sweeps):
#             shift, log_scale = block.all_shifts_and_log_scales(x)
#             x = z * torch.exp(-log_scale) + shift  # Eq. 9
#         z = block.flip_if_reversed(x)
#     return z
# ```
#
# Each sweep helps a great deal, but without the student more than with it: a single pass of each block is better spent
# on the student than on a sweep from $z$, but two sweeps from $z$ are nearer than student and sweep, and three nearer
# than student and two (`python solutions/solution_05.py` prints the errors). After one sweep the first two tokens of a
# block are exact, after a student's pass only one is. So with 16 tokens and two passes to spend, no student is needed.
#
# </details>
#
# **3 (open).** What is the start worth, and what the missing mask? Train students of both forms, and one of the inverse
# form that keeps the causal mask, for the same few steps; judge as above, with three seeds.
#
# <details><summary>Solution</summary>
#
# ```python
# def student_of_form(flow: AutoregressiveFlow, form: str) -> OneStepStudent:
#     """An untrained student: "forward" (the paper's), "inverse" (ours), or "inverse, masked"."""
#     student = OneStepStudent.from_teacher(flow, form=form.split(",")[0])
#     if form == "inverse, masked":
#         blocks = copy.deepcopy(flow.blocks)  # the teacher's keep their mask
#         student.blocks = nn.ModuleList(StudentBlock(block, "inverse") for block in blocks)
#     return student.requires_grad_(True)
# ```
#
# `python solutions/solution_05.py` prints the errors untrained, and after 100 and 300 steps. The start decides at
# first: untrained, the masked form *is* one sweep of the parallel inverse, the inverse form is near it, and the forward
# form draws noise. The mask costs nothing, as the truth is causal in each block. After the 3,000 steps printed above
# the forward form has nearly caught up. The paper trains for 60 epochs, and has 256 tokens, where one sweep reaches
# less far. Does the order stay with longer training, and for larger images?
#
# </details>
