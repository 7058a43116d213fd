# %% [markdown]
# # 06 · Uses of an exact likelihood
#
# [Open this notebook in Colab](https://colab.research.google.com/github/farmer-ref/farmer_ref/blob/main/notebooks/06_applications.ipynb)
#
# A model that draws images is asked for images. A model that also says how probable an image is can be asked more.
# After this notebook you can fill in missing pixels, classify and look for anomalies with $\log p(x \mid c)$, edit with
# its latents, and say where it misleads: an empty page, it says, is a better digit than most digits.

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

from farmer_ref import Farmer
from farmer_ref.applications.anomalies import AnomalyScorer
from farmer_ref.applications.classification import class_log_probs, class_probabilities
from farmer_ref.applications.editing import change_class, change_details, interpolate
from farmer_ref.applications.inpainting import inpaint
from farmer_ref.data.sets import batches, load_split
from farmer_ref.evaluation.metrics import terms_over_draws
from farmer_ref.support.plots import COLOURS, STYLE, labelled_grids
from farmer_ref.support.record import ROOT

# %config InlineBackend.figure_formats = ["svg"]
# %matplotlib inline
plt.rcParams.update(STYLE)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
digits, particles = (4, 8) if device.type == "cpu" else (10, 16)  # of inpainting, below
model = Farmer.from_pretrained("digits").to(device)
values, labels = next(batches(load_split("digits", "test", model.config), 300))
values, labels = values.to(device), labels.to(device)  # grey levels 0 to 16, and classes
generator = torch.Generator(device).manual_seed(0)
images = model.dequantiser(values, model.dequantiser.draw(tuple(values.shape), generator))
measured = json.loads((ROOT / "results/applications.json").read_text())

# %% [markdown]
# ## One missing pixel
#
# Hide one pixel of an image. What could it be? By the definition of a conditional probability,
#
# $$p(x_{\text{missing}} \mid x_{\text{known}}, c) = \frac{p(x \mid c)}{\int p(x \mid c)\, dx_{\text{missing}}}.$$
#
# With one pixel and 17 grey levels, try them all: 17 densities (estimated at a random point of each level's cell),
# normalised. Two pixels of one digit; the triangles mark what they are:


# %%
def levels_of(row: int, column: int, values: torch.Tensor, labels: torch.Tensor):
    """Log-probability (B,17) of every grey level of one pixel, given all the others and the label."""
    tried = values.repeat(17, 1, 1, 1)
    tried[:, 0, row, column] = torch.arange(17, device=device).repeat_interleave(len(values))
    noise = torch.rand(values.shape, generator=torch.Generator().manual_seed(1)).to(device)
    x, labels = model.dequantiser(tried, noise.repeat(17, 1, 1, 1)), labels.repeat(17)
    with torch.no_grad():
        return model.log_prob(x, labels).view(17, -1).T.log_softmax(-1)


figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 2.6), layout="constrained")
left.imshow(values[3, 0].cpu(), cmap="gray")
left.set(title="the digit", xticks=[], yticks=[])
right.set(title="the two pixels", xlabel="grey level", ylabel="probability", xticks=range(0, 17, 4))
for (row, column), colour, hatch in (((4, 3), COLOURS[0], ""), ((4, 1), COLOURS[1], "//")):
    left.plot(column, row, "s", ms=13, mfc="none", mec=colour, mew=2.5)
    chance = levels_of(row, column, values[3:4], labels[3:4])[0].exp().cpu()
    right.bar(range(17), chance, color=colour, hatch=hatch, ec="w", alpha=0.8)
    right.plot(int(values[3, 0, row, column]), -0.04, "^", color=colour, clip_on=False)

# %% [markdown]
# Beside the stroke the answer is "blank", inside it "anything but". Over a hundred digits, what are the label and all
# other pixels worth for the one in the middle, against the histogram of that pixel alone?

# %% tags=["nbval-check-output"]
pixel = values[:100, 0, 4, 3].long()
given_all = levels_of(4, 3, values[:100], labels[:100]).gather(1, pixel[:, None]).mean().item()
train, classes = next(batches(load_split("digits", "train", model.config), 1397))
counts = torch.bincount(train[:, 0, 4, 3].long(), minlength=17).to(device)
alone = ((counts[pixel] + 1) / (counts.sum() + 17)).log().mean().item()
print(f"label and pixels save more than 0.3 nats of {-alone:.1f}: {alone + 0.3 < given_all < 0}")

# %% [markdown]
# ## Half of an image
#
# With 32 pixels missing there are $17^{32}$ completions to try. The integral cannot be computed, and is not needed: a
# sampler that compares completions uses *ratios* of densities, in which it cancels. `inpaint` starts *particles* near
# samples of the model and moves them, step by step, from there to the exact density (sequential Monte Carlo with
# Hamiltonian moves). *Predict first:* the lower half is missing and the label is given. How many completions will a
# classifier read as that label? And how many halves of any other samples of the same label, pasted in?

# %% tags=["hide-output"]
known = (torch.arange(8, device=device) < 4)[None, :, None].expand(1, 8, 8)  # the upper half
half = values[:digits]
grids = {"digits; what is known": torch.cat([half, torch.where(known, half, 5)])}
others = model.dequantiser.quantise(model.sample(labels[:digits].repeat(2), generator=generator))
for name, given in (("given the label", labels[:digits]), ("label not given", None)):
    done = inpaint(
        model, half, known, given, samples=2, particles=particles, moves=5, generator=generator
    )
    grids[name] = model.dequantiser.quantise(done.images).transpose(0, 1).flatten(0, 1)
    assert torch.equal(grids[name][..., known], half.repeat(2, 1, 1, 1)[..., known])
grids["halves of other samples, pasted in"] = torch.where(known, half.repeat(2, 1, 1, 1), others)
labelled_grids({name: grid / 8 - 1 for name, grid in grids.items()}, columns=digits)

# %%
given, without, own = map(measured["inpainting"].get, ("with_label", "without_label", "samples"))
print(f"read as their class, given the label: {given['completions_read_as_class']:.1%}")
print(f"   halves of other samples pasted in: {given['pasted_samples_read_as_class']:.1%}")
print(f"                   without the label: {without['completions_read_as_class']:.1%}")
several = without["digits_read_as_several_classes"]
print(f"digits completed as several classes: {several:.0%}")
print(f"rank of the truth's log p: {own['mean_rank_of_log_prob']:.2f}, where 0.5 is expected")

# %% [markdown]
# Given the label it is no feat: any half of that class will do. Without it, an upper half fits several digits, and most
# digits are completed as several. The last line is the honest one. Samples of the model were cut in half and completed,
# so that the truth is one more draw from the same distribution. It should be denser than half of its completions; it is
# denser than more of them. The sampler has not converged at its sixteen particles (eight in the cell above):
# completions are diverse, and less probable than they ought to be. The density is exact; what a sampler makes of it in
# finite time is not.
#
# ## Edits
#
# Latents can be exchanged, too. New informative latents under another label with the redundant ones kept
# (`change_class`); the reverse (`change_details`); a straight line between two digits' latents, or pixels.

# %%
some, new = images[:8], (labels[:8] + 3) % 10
edited = change_class(model, some, labels[:8], new, generator=generator)
details = change_details(model, some, labels[:8], generator=generator)
walks = [
    interpolate(model, images[:2], images[2:4], steps=8, latent=way).flatten(0, 1) for way in (1, 0)
]
grids = torch.cat([some, edited]), torch.cat([some, details]), *walks
names = "below: class + 3", "below: other details", "a walk in the latents", "a walk in the pixels"
labelled_grids(dict(zip(names, grids, strict=True)), columns=8)

# %% tags=["nbval-check-output"]
with torch.no_grad():
    old, latents = (model.prior.split(model.encode(x)[0]) for x in (some, edited))
    middle = [
        interpolate(model, images[:50], images[50:100], steps=3, latent=way)[:, 1] for way in (1, 0)
    ]
    nats = [model.log_prob(x).mean().item() for x in middle]
assert torch.allclose(old[1], latents[1], atol=1e-2) and (old[0] - latents[0]).abs().mean() > 0.1
print("more than 5 nats denser halfway in the latents:", nats[0] > nats[1] + 5)
for name, value in measured["editing"]["class"].items():
    print(f"{name.replace('_', ' ')}: {value['mean']:.3g}")

# %% [markdown]
# The new class comes, but nothing that the eye would call the same hand: an edited digit is as far from its origin
# (root mean square, in grey levels) as a fresh sample. One redundant channel of four holds details only. Halfway, walks
# are less probable than digits, in pixels far less.
#
# ## Classification
#
# The model was never told to classify. But $p(x \mid c)$ for ten classes and equal priors $p(c) = \frac{1}{10}$ are all
# that Bayes' rule needs: $p(c \mid x) = p(x \mid c)\,p(c) \,/ \sum_{c'} p(x \mid c')\,p(c')$. By hand, and then by
# the package:

# %% tags=["nbval-check-output"]
of_class = [
    terms_over_draws(model, values, torch.full_like(labels, c), draws=1, seed=0).total[0]
    for c in range(10)
]
joint = torch.stack(of_class, 1).double().cpu().exp() / 10  # p(x|c) p(c)
log_p = class_log_probs(model, values, draws=1, seed=0, batch_size=300)
probabilities, truth = class_probabilities(log_p), labels.cpu()
assert torch.allclose(joint / joint.sum(1, keepdim=True), probabilities, atol=1e-3)
print("Bayes' rule reads over 288 of 300 digits:", (log_p.argmax(1) == truth).sum().item() > 288)

# %%
bins = measured["classification"]["reliability"]["T = 1"]
x, y, size = ([b[key] for b in bins] for key in ("confidence", "accuracy", "images"))
figure, (axes, *panels) = plt.subplots(1, 6, figsize=(10, 2.6), width_ratios=[2.4, 1, 1, 1, 1, 1])
axes.plot([0, 1], [0, 1], "k--", lw=1)
axes.scatter(x, y, s=[8 + n for n in size], clip_on=False, zorder=3)
axes.set(title="is 80% sure 80% right?", xlabel="confidence", ylabel="accuracy")
confidence, read = probabilities.max(1)
for panel, i in zip(panels, confidence.argsort()[:5].tolist(), strict=True):
    panel.imshow(values[i, 0].cpu(), cmap="gray")
    panel.set(xticks=[], yticks=[], xlabel=f"a {truth[i]}, read as\n{read[i]}: {confidence[i]:.0%}")
panels[2].set_title("the least sure")
figure.tight_layout()

# %% [markdown]
# Each dot is an interval of confidence, larger with more images (16 dequantisations each). Nearly all are in the
# large one at the top right: sure, and right. The few in doubt are too few to say whether their doubts are of the right
# size; the five digits, dequantised once, show whom it doubts. More dequantisations of an image average their noise
# away, and some errors with it. A classifier came for free, if not quite as good as one trained for the task, a support
# vector machine:

# %% tags=["nbval-check-output"]
for row in measured["classification"]["by_draws"]:
    print(f"Bayes' rule, {row['draws']:2} draws: {row['accuracy']['mean']:.1%} of the test digits")
print(f"support vector machine: {measured['classification']['classifier_of_pixels']:.1%}")

# %% [markdown]
# ## Anomalies
#
# A density should expose what does not belong. *Predict first:* rank by $\log p(x)$: test digits, digits rolled two
# pixels to the right, an empty page. ("The strangest": test digits, by the last score below.)

# %% tags=["hide-output"]
scorer = AnomalyScorer(model, train[:500], classes[:500], draws=1)
kinds = {"digits": values[:100], "rolled": values[:100].roll(2, -1), "blank": 0 * values[:10]}
kinds["the strangest"] = values[scorer.scores(values)["terms and complexity"].argsort().flip(0)]
labelled_grids({name: kind[:10] / 8 - 1 for name, kind in kinds.items()}, columns=10)

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
for (name, kind), marker, colour in zip(kinds.items(), "ox^", COLOURS, strict=False):
    informative, redundant, logdet = scorer.features(kind)[:, :3].T
    axes.scatter(logdet, informative + redundant, 30, marker=marker, color=colour, label=name)
for total in (0, 40, 80):
    axes.plot([30, 66], [total - 30, total - 66], "k:", lw=1)
    axes.text(66.5, total - 66, f"{total} nats", va="center", fontsize=8)
axes.set(xlabel="log|det| (nats)", ylabel="log p(Z) (nats)", title="two parts of log p(x)")
_ = axes.legend()

# %% tags=["nbval-check-output"]
usual, blank = (scorer.scores(kinds[name]) for name in ("digits", "blank"))
beaten = {name: (blank[name][:, None] > usual[name]).double().mean().item() for name in usual}
assert beaten["likelihood"] < 0.4 and beaten["terms and complexity"] > 0.95
for name, share in beaten.items():
    print(f"{name:20s} calls blank stranger than a digit: {'mostly' if share > 0.5 else 'seldom'}")

# %% [markdown]
# The empty page lies above most digits in likelihood, rolled digits below; and it is far from all in the picture: its
# $\log|\det|$ is like no digit's. The likelihood sees only the sum (dotted lines). To ask how far that is from its
# usual value (*typicality*) does not expose it either. One cure is to look at the three *terms*, by their distance from
# those of training images; another is to subtract what a compressor says of an image, so that simplicity earns no
# credit (*complexity*), or both. The table has their AUROC, from `results/applications.json`: the share of pairs in which the
# strange image scores higher than the usual one. "Faint" is a digit with a quarter of its ink; MNIST is strange to a
# model of Fashion-MNIST, and the other way round. The first two columns look at pixels, without our model.

# %%
table = measured["anomalies"]["test"]
scores = ["PCA error", "Gaussian mixture", *scorer.SCORES]
figure, axes = plt.subplots(figsize=(8.4, 3.2), layout="constrained")
axes.imshow([[row[s] for s in scores] for row in table.values()], cmap="cividis", vmin=0, vmax=1)
for y, row in enumerate(table.values()):
    for x, score in enumerate(scores):
        axes.text(x, y, f"{row[score]:.2f}", ha="center", va="center", color="kw"[row[score] < 0.5])
axes.set_xticks(range(len(scores)), [s.replace(" ", "\n", 1) for s in scores], fontsize=9)
axes.set_yticks(range(len(table)), table, fontsize=9)
axes.set(title="AUROC of scores (columns) for strange images (rows); 0.5 is chance", aspect="auto")
axes.grid(False)

# %% [markdown]
# *Terms and complexity*, chosen on validation images of the same kinds, is a good all-rounder. But the first row is the
# task that one would want it for, a digit of a class that was left out of training, and there a plain Gaussian mixture
# of pixels beats every score of ours. A good model of images need not be a good detector of others.
#
# > **The paper** generates, and does none of these. **We** built them because they need no training, only
# > $\log p(x \mid c)$, its gradient and terms, latents, and samples: they test what "exact" is worth.
#
# ## What to remember
#
# - Any conditional is a ratio of densities: missing pixels and missing labels are the same question.
# - Exactness buys: ratios that mean something, class probabilities without a classifier, and checks that can fail.
# - It does not buy: a sampler that converges, edits that a person would call edits, or a detector of the unknown.
# - A high density is not typical: the densest image may be one that never occurs.
#
# ## Exercises
#
# **1 (think).** No training image is blank. Why does the model call the blank page so probable?
#
# <details><summary>Solution</summary>
#
# Half of all pixels are blank, those at the border nearly always: there the model narrows its density, and what is
# narrow is high ($\log|\det|$ is large). A digit has strokes, whose grey levels and places vary: probability
# spread over many images, little for each. So a blank page may well be denser than any one digit, while digits
# *together* have nearly all of the probability, as there are so many of them. A thousand throws of a coin that shows
# heads six times in ten: the most probable sequence is all heads, and nobody will ever see it.
#
# </details>
#
# **2 (a few lines).** A reader that may say "I do not know" errs less. How many of the surest 90% of the test digits
# are read rightly?
#
# <details><summary>Solution</summary>
#
# ```python
# def accuracy_of_the_surest(probabilities: Tensor, labels: Tensor, share: float) -> float:
#     """The accuracy among the `share` of images whose most probable class is the most probable."""
#     confidence, predicted = probabilities.max(1)
#     surest = confidence.argsort(descending=True)[: round(share * len(labels))]
#     return (predicted == labels)[surest].double().mean().item()
# ```
#
# All of them, where 97.0% of all digits are (dequantised once): every error is among the 30 that were put aside. This
# needs confidences in the right order only, not calibrated ones.
#
# </details>
#
# **3 (open).** Ren et al. (2019) score by a *ratio*: $\log p(x) - \log h(x)$, where the background $h$ knows what is
# dull in all images. Take histograms of grey levels for $h$, of each pixel or of all pixels together. Does that cure
# the blank page? And what does it do to digits that moved?
#
# <details><summary>Solution</summary>
#
# ```python
# def background(train: Tensor, levels: int, positions: bool) -> Tensor:
#     """log h of every grey level at every pixel (C,H,W,L), by counting: at that pixel, or at all of them alike."""
#     counts = F.one_hot(train.long(), levels).sum(0).double()
#     if not positions:
#         counts = counts.sum((0, 1, 2), keepdim=True).expand_as(counts)
#     return ((counts + 1) / (counts + 1).sum(-1, keepdim=True)).log()
#
#
# def ratio_score(likelihood: Tensor, values: Tensor, log_h: Tensor) -> Tensor:
#     """-(log p - log h), (B,): strange is what the model likes no better than the background does."""
#     levels = values.long().unsqueeze(-1)
#     return likelihood + log_h.expand(*levels.shape[:-1], -1).gather(-1, levels).sum((1, 2, 3, 4))
# ```
#
# Both cure it: AUROC of blank pages on validation images 0.08 by likelihood, 0.96 against pixels, 1.00 against levels.
# But the background of each pixel knows where ink belongs, and takes that knowledge out of the score: digits rolled by
# one column fall from 0.94 to 0.84. The poorer background, levels alone, lifts them to 0.98. That is what zlib does,
# too (complexity: 1.00 and 0.98).
#
# And a class that was left out? `python solutions/solution_06.py` trains for 400 steps without ones and prints what the
# scores make of them. After so short a training, likelihood took ones for more normal than the rest (about 0.4); a
# ratio corrected that, complexity more (0.9), and on test images all were lower. So a background is a decision about
# what may count as strange. Nobody makes it for you, and an image that is strange in another way shows what you
# decided.
#
# </details>
