# %% [markdown]
# # 07 · To a billion parameters
#
# [Open this notebook in Colab](https://colab.research.google.com/github/farmer-ref/farmer_ref/blob/main/notebooks/07_scaling_up.ipynb)
#
# The file that trained the digits also describes the paper's models of 1.1 and 1.9 billion parameters. After this
# notebook you can say what such a model costs (operations, memory, days), which of two ways to spread it over GPUs you
# need and how to start it, and you will have checked the two rules that make a large run trustworthy. Nothing large is
# allocated: *fake* tensors have shapes and no memory.

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
import dataclasses

import matplotlib.pyplot as plt
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from farmer_ref import PRESETS, Farmer
from farmer_ref.data.order import random_seed, training_batches, training_images
from farmer_ref.data.sets import batches, load_split
from farmer_ref.model.transformer import TrainingPass, Transformer
from farmer_ref.parameters import PAPER, count, images_that_fit
from farmer_ref.support.plots import COLOURS, STYLE
from farmer_ref.training.costs import forward_flops, training_flops
from farmer_ref.training.trainer import autocast

# %config InlineBackend.figure_formats = ["svg"]
# %matplotlib inline
plt.rcParams.update(STYLE)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
presets = {name: PRESETS[name] for name in PAPER}  # the paper's four models


def bar(axes: plt.Axes, row: float, parts: list[float]) -> None:
    for k, part in enumerate(parts):
        axes.barh(
            row,
            part,
            left=sum(parts[:k]),
            color=COLOURS[k],
            hatch=("", "///", "...", "xxx")[k],
            ec="w",
        )


# %% [markdown]
# ## Parameters
#
# A transformer layer of width $W$ has $12W^2 + 13W$ of them: $4W^2$ in attention, $8W^2$ in the MLP, the rest in
# biases and norms. Everything else ought to be small. *Predict first:* the prior of the 1.1B model at patch 16 has 12
# layers of width 768. Which share of its parameters is in the layers?

# %% tags=["hide-output"]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.7), sharey=True, layout="constrained")
counts = {name: count(preset.model) for name, preset in presets.items()}
for row, parts in enumerate(counts.values()):
    heads = [parts[head] / 1e6 for head in ("token_head", "redundant_head")]
    bar(left, row, [parts["prior"] / 1e6 - sum(heads), *heads])
    bar(right, row, [parts["flow"] / 1e6])
for axes, part in ((left, 0), (right, 1)):
    axes.plot([PAPER[name][part] for name in presets], range(4), "k|", ms=22, mew=2.5)
left.legend(["the paper", "layers", "token head", "shared head"], fontsize=8, markerscale=0.5)
left.set(title="prior (AR)", xlabel="million parameters", xlim=(0, 800), ylim=(3.6, -0.6))
right.set(title="flow (AF)", xlabel="million parameters")
left.set_yticks(range(4), presets)

# %% tags=["nbval-check-output"]
for name, parts in counts.items():  # in millions; the prior's heads are part of it
    print(name[7:], *(f"{part} {number / 1e6:.0f}" for part, number in parts.items()), sep="  ")
assert abs(counts["farmer-1.1b-p16"]["prior"] / 1e6 - 295) < 1  # fits at patch 16 ...
assert abs(counts["farmer-1.1b-p8"]["flow"] / 1e6 - 828) < 1  # ... and this one at patch 8
assert counts["farmer-1.9b-p16"]["prior"] / 1e6 - 498 > 80  # and this one does not

# %% [markdown]
# Less than a third. The mixture that all redundant channels share (notebook 03) has $K_R = 200$ components of
# $R = 640$ channels, and one linear layer predicts all of their $200 \cdot (1 + 2 \cdot 640)$ numbers.
#
# > **The paper** gives one count for each part and no patch size. **We** find the AR of 1.1B at patch 16 and its AF at patch
# > 8; neither patch size fits both, and the AR of 1.9B fits at neither: at patch 16 the shared head makes it larger than
# > the paper's, at patch 8 it is smaller. At patch 8 the split is ours (32 + 160 of 192 channels).
#
# ## Operations
#
# A layer takes $24NW^2$ operations for the products of $N$ tokens with its matrices (two for each weight), and $4N^2W$
# for attention: queries with keys, weights with values, as if nothing were masked. By hand, by PyTorch's counter, and
# then the whole model against `forward_flops` (a GFLOP is $10^9$ operations):


# %% tags=["nbval-check-output"]
def counted(module: torch.nn.Module, *inputs: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        module(*inputs)
    return counter.get_total_flops()


N, W, large = 256, 768, presets["farmer-1.1b-p16"].model
with FakeTensorMode():
    layer, tokens = Transformer(1, W, head_dim=64), torch.empty(1, N, W)
    farmer, image, label = Farmer(large), torch.empty(1, 3, 256, 256), torch.zeros(1).long()
    assert sum(p.numel() for p in layer.parameters()) == 12 * W**2 + 13 * W
    assert counted(layer, tokens) == 24 * N * W**2 + 4 * N**2 * W
    assert counted(farmer, image, label) == forward_flops(large)
print(f"{training_flops(large) / 1e9:,.0f} GFLOP an image: forward, and twice that backward")

# %% [markdown]
# *Predict first:* smaller patches mean more tokens; the weights hardly change. At which patch size do most operations
# go to attention?

# %% tags=["hide-output"]
figure, axes = plt.subplots(figsize=(8.4, 2.6), layout="constrained")
for row, patch in enumerate((32, 16, 8, 4)):
    config = dataclasses.replace(large, patch_size=patch, informative=3 * patch**2 // 6)
    layers, n, total = config.flow_blocks * config.flow_layers, config.tokens, forward_flops(config)
    matrices, attention = layers * 24 * n * W**2, layers * 4 * n**2 * W
    bar(axes, row, [part / total for part in (matrices, attention, total - matrices - attention)])
    axes.text(1.02, row, f"{3 * total / 1e9:,.0f} GFLOP an image", va="center", backgroundcolor="w")
names = ["flow, matrices", "flow, attention", "prior, and projections of both"]
figure.legend(names, ncols=3, loc="outside lower center", fontsize=8)
axes.set(title="operations of a step, 1.1B", xlabel="share", xlim=(0, 1.36), ylim=(3.6, -0.6))
axes.set_yticks(range(4), [f"patch {p}, N = {(256 // p) ** 2:,}" for p in (32, 16, 8, 4)])

# %% [markdown]
# At none of these: attention takes half of a layer where $N$ passes $6W = 4608$. Tokens are what you pay for: four
# times as many at patch 8 as at 16, a little more than four times the operations. And most of them go to the flow.
#
# ## Memory
#
# Some things of the model's size, in float32, are there all the time: weights, gradients, AdamW's two moments and the
# moving average, 20 bytes for each parameter, the *state*. On top come *activations*, what forward keeps for
# backward, for each image. Checkpointing keeps the inputs of layers only and computes the rest again: one more forward
# pass, a third more work. *Predict first:* a step has 256 images, 32 for each of eight GPUs. Which is larger, state or
# activations?

# %% tags=["hide-output"]
from farmer_ref.training.costs import peak_flops_of, saved_bytes, state_bytes

GiB, modes = 2**30, (False, True)  # without checkpoints, and with them
kept = {
    n: [saved_bytes(p.model, checkpoint_activations=c, precision=p.precision) for c in modes]
    for n, p in presets.items()
}
figure, panels = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharex=True, sharey=True)
rows = [(n, c) for n in presets for c in modes]
for axes, processes in zip(panels, (1, 8), strict=True):
    for row, (n, c) in enumerate(rows):  # the state's parts are 8, 8 and 4 bytes of 20
        state, activations = state_bytes(counts[n]["total"], processes), 32 * kept[n][c]
        bar(axes, row, [p / GiB for p in (0.4 * state, 0.4 * state, 0.2 * state, activations)])
    axes.axvline(80e9 / GiB, color="k", ls="--", lw=1.2)
    axes.set(title={1: "one GPU, or DDP", 8: "FSDP on 8"}[processes], xlabel="GiB on each GPU")
names = ["80 GB", "weights, gradients", "moments", "average", "activations of 32 images"]
figure.legend(names, ncols=5, fontsize=8, loc="outside lower center")
panels[0].set_yticks(range(8), [f"{n[7:]}{', checkpoints' * c}" for n, c in rows])
panels[0].invert_yaxis()

# %% [markdown]
# Activations, without checkpoints. So there are two remedies, each for its part: checkpoints for the activations, and
# for the state the second of these two ways to share the work (the right panel):
#
# | | each GPU holds | gradients | choose it where |
# |-|-|-|-|
# | `--parallel ddp` | the whole state | are averaged over the GPUs | all of it fits |
# | `--parallel fsdp` | its part of the state | are averaged, each part where it lives | it does not |
#
# With FSDP a layer's weights are brought together when its turn comes, and dropped again. Activations need no sharing:
# each GPU has its own images.

# %% tags=["nbval-check-output"]
print("8 H100, FSDP:    images that fit  with checkpoints  days at 45% of peak")
for name, preset in presets.items():
    state = state_bytes(counts[name]["total"], 8)
    plain, checkpointed = (images_that_fit(state, image) for image in kept[name])
    operations = preset.steps * preset.batch_size * training_flops(preset.model)
    days = operations / (8 * 0.45 * peak_flops_of("H100")) / 86_400
    print(f"{name:16s} {plain:15d} {checkpointed:17d} {days:20.1f}")

# %% [markdown]
# Images are those of one GPU, 4 GiB left free; days are for 320 epochs, without checkpoints. 45% of 989 TFLOP/s is a
# goal: no throughput on a GPU has been measured here. `make check-gpu` measures it on yours, and training logs
# images per second and the share of the peak.
#
# ## The rule of randomness
#
# Every image of a step gets noise, perhaps a mirror, perhaps no label, dropout. If these came from one stream of random
# numbers, eight GPUs would train another model than one, and an interrupted run another than a whole one. So what
# happens to image $k$ of step $t$ depends on (seed, $t$, $k$) alone. Then the halves of a batch, on two GPUs or one
# after the other (`--accumulate 2`), must give the gradient of the whole. In float64, with dropout on:

# %% tags=["nbval-check-output"]
model = Farmer.from_pretrained("digits").double().to(device).train()
data = load_split("digits", "train", model.config)
rows = range(64), range(32), range(32, 64)
whole, *halves = [next(training_batches(data, 64, seed=0, start=1234, rows=part)) for part in rows]
assert torch.equal(torch.cat([half.values for half in halves]), whole.values)
how = {"seed": 0, "progress": 0.5, "label_dropout": 0.1, "device": device}


def gradient(parts: list) -> torch.Tensor:
    model.zero_grad()
    for part in parts:
        torch.manual_seed(random_seed(0, "step", part.step))  # of dropout
        images, labels = training_images(part, model.dequantiser, **how)
        rows = torch.arange(part.first, part.first + len(labels), device=device)
        terms = model(images.double(), labels, TrainingPass(rows, batch_size=64))
        (-terms.total.mean() / len(parts)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


wanted, impostors = gradient([whole]), [half._replace(first=0) for half in halves]  # both "first"
errors = [((gradient(g) - wanted).norm() / wanted.norm()).item() for g in (halves, impostors)]
assert errors[0] < 1e-10 and errors[1] > 0.1
print("halves give the whole gradient:", errors[0] < 1e-10, "- without k:", errors[1] < 1e-10)

# %% [markdown]
# ## The rule of precision
#
# bfloat16, in which this peak is stated (a T4 has none), has 8 significant bits. Transformer layers do not mind; the flow does,
# since $z = (x - \mu)\,\sigma$ must be undone. Take $\mu$ and $\sigma$ of the first block as they are, and only this
# line in bfloat16:

# %% tags=["nbval-check-output"]
model = Farmer.from_pretrained("digits").to(device)
values, labels = next(batches(load_split("digits", "test", model.config), 100))
noise = model.dequantiser.draw(tuple(values.shape), torch.Generator().manual_seed(0))
images, labels = model.dequantiser(values, noise).to(device), labels.to(device)
block, x, errors = model.flow.blocks[0], model.patchify(images), []
shift, log_scale = block.all_shifts_and_log_scales(x)
for dtype in (torch.float32, torch.bfloat16):
    y, mu, sigma = (t.to(dtype) for t in (x, shift, log_scale.exp()))
    errors.append(((y - mu) * sigma / sigma + mu - y).abs().max().item())
assert errors[0] < 1e-5 and errors[1] > 1e-3
print("there and back to 1e-5 in float32:", errors[0] < 1e-5, "- in bfloat16:", errors[1] < 1e-5)

# %% [markdown]
# That is one block, and the 1.1B model has 28. So `Farmer` keeps images, latents and affine maps in float32, whatever
# the networks are in. The digits model with its four blocks in float32, with its layers in bfloat16 (`autocast`, as the
# large presets train), and with all its weights in it:

# %%
back, log_p = {}, {}
for name in ("float32", "layers", "weights"):
    model = model.bfloat16() if name == "weights" else model
    with torch.no_grad(), autocast(device, "bfloat16" if name == "layers" else "float32"):
        back[name] = (model.decode(model.encode(images)[0]) - images).abs().max().item()
        log_p[name] = model.log_prob(images, labels)
    off = (log_p[name] - log_p["float32"]).abs().mean()
    print(f"{name:8s} there and back {back[name]:.0e}, log p off by {off:.2f} nats")
assert back["float32"] < 1e-4 < back["layers"] < back["weights"] < 0.5 * 2 / 17

# %% [markdown]
# A grey level is $2/17 = 0.118$ wide. "weights" comes back to a fraction of one: all that is off are $\mu$ and
# $\sigma$, which a network in bfloat16 rounds differently token by token than in one pass. (Autocast leaves the inverse
# alone: "layers" shows what bfloat16 did on the forward pass.) Training goes no further than "layers": projections,
# heads and densities switch autocast off around themselves, and only the layers, where nearly all operations are, run in
# bfloat16.
#
# ## Start it
#
# One GPU; eight of one machine; four machines of eight (the same line on each):
#
# ```
# python -m farmer_ref.train --preset cifar10 --out runs/cifar10 --compile
# torchrun --standalone --nproc-per-node 8 -m farmer_ref.train --preset farmer-1.1b-p16 \
#     --dataset folder:data/imagenet --compile --out runs/farmer-1.1b
# torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \
#     --rdzv-id farmer -m farmer_ref.train --preset farmer-1.9b-p8 \
#     --dataset folder:data/imagenet --parallel fsdp --compile --out runs/farmer-1.9b
# ```
#
# `--batch-size` is that of all GPUs together. The last model's 8 images a GPU fit with FSDP only. Try that without a
# GPU: two processes, the digits.
#
# ## What to remember
#
# - Count before you rent: parameters, operations and memory follow from the configuration.
# - Operations grow with tokens times parameters; attention matters where $N$ is several times $W$.
# - Checkpoints save activations, FSDP saves state. They answer different shortages.
# - Randomness by (seed, step, image): how a batch is divided does not change what is trained.
# - Layers in bfloat16, densities in float32.
#
# ## Exercises
#
# **1 (think).** You have trained with 8 GPUs and FSDP and are given 32. The batch stays 256. What changes: the model
# that comes out, the memory of one GPU, the time? And what would you gain from a batch of 1,024?
#
# <details><summary>Solution</summary>
#
# The model is the same, to rounding: the rule of randomness. On each GPU the state shrinks to a quarter and so do the
# activations, with 8 images instead of 32. The time shrinks by less than four: a step gathers all weights however
# few images it has, and 8 images may be too few to keep a GPU busy. A batch of 1,024 gives each GPU its 32 images
# again and a quarter of the steps. But then it is another training run: other learning rate, other warm-up, and
# nobody promises the same quality.
#
# </details>
#
# **2 (a few lines).** How many images of `farmer-1.1b-p16` fit on a card of 24 GiB, a tenth of it left free? On one
# card and on eight, without checkpoints and with them.
#
# <details><summary>Solution</summary>
#
# ```python
# def largest_batch(name: str, gib: float, processes: int = 1, checkpoints: bool = False) -> int:
#     """Images of a step that fit on each GPU of so many GiB, a tenth of it left free."""
#     preset = PRESETS[name]
#     state = state_bytes(count(preset.model)["total"], processes)
#     image = saved_bytes(
#         preset.model, checkpoint_activations=checkpoints, precision=preset.precision
#     )
#     return max(0, int((0.9 * gib * 2**30 - state) // image))
# ```
#
# One card: 0 without, 1 with checkpoints, and that one on paper only: autocast also keeps a bfloat16 copy of the
# layers' weights while a step runs, 2 bytes each, which `state_bytes` does not count. Eight cards: 19 without, 76
# with. There a batch of 256 is 32 images for each: checkpoints, or `--accumulate 2`, which computes 16 at a time and
# gathers the weights twice.
#
# </details>
#
# **3 (open).** Plan a model of 256×256 images for 100 hours of one H100. Which patch size, which width?
#
# <details><summary>Solution</summary>
#
# The operations of an image and the budget give the number of images; ImageNet has 1,281,167.
#
# ```python
# def plan(patch_size: int, width: int, hours: float = 100, utilisation: float = 0.45) -> Plan:
#     """What `hours` of an H100 give the 1.1B model at another patch size and another width of both parts."""
#     changes = {"patch_size": patch_size, "informative": 3 * patch_size**2 // 6}
#     widths = {"flow_width": width, "prior_width": width}
#     model = dataclasses.replace(PRESETS["farmer-1.1b-p16"].model, **changes, **widths)
#     images = hours * 3600 * utilisation * peak_flops_of("H100") / training_flops(model)
#     return Plan(count(model)["total"] / 1e6, training_flops(model) / 1e9, images / IMAGENET)
# ```
#
# `python solutions/solution_07.py` tabulates it. If the paper's 320 epochs are to be kept, patch 16 allows a width of
# 320 (400 epochs) and not quite 384 (289); patch 8 not even 192 (188). If fewer epochs will do, all is open: which
# width is best at a fixed number of operations is an experiment (exercise 3 of notebook 00), not a count. Patch 16 and
# width 256 are a sane start.
#
# What the table leaves out: quality; that narrow layers may not reach 45% of the peak; that samples cost one pass
# for each token (patch 8 has four times as many); reading the images; and the runs that fail before the one that
# counts. At width 256 the 320 epochs take little more than half of the hours: keep the rest for those.
#
# </details>
