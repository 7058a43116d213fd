# %% [markdown]
# # 00 · A tour: train, score, sample in a minute
#
# [Open this notebook in Colab](https://colab.research.google.com/github/farmer-ref/farmer_ref/blob/main/notebooks/00_tour.ipynb)
#
# FARMER ([arXiv 2510.23588](https://arxiv.org/abs/2510.23588)) is a model of images that does two things at once: it
# *draws* images, and it says *how probable* an image is, exactly. After this notebook you can train one, say what its
# score means, draw samples, and name its parts. You need PyTorch, and no more about flows than this page tells.

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
import math
import tempfile

import matplotlib.pyplot as plt
import torch

from farmer_ref import Farmer, bits_per_dim, train
from farmer_ref.data.sets import batches, load_split
from farmer_ref.support.drawings import pipeline
from farmer_ref.support.plots import STYLE, labelled_grids, model_at_work

# %config InlineBackend.figure_formats = ["svg"]
# %matplotlib inline
plt.rcParams.update(STYLE)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
steps = 250 if device.type == "cpu" else 2000  # of training, below

# %% [markdown]
# ## The idea in one picture

# %% tags=["hide-input"]
pipeline()

# %% [markdown]
# The data are real handwritten digits that come with scikit-learn: 8×8 pixels, 17 grey levels. The package ships a
# model of them, trained for a few minutes. Here is one test image on its way through it:

# %%
shipped = Farmer.from_pretrained("digits").to(device)
test = load_split("digits", "test", shipped.config)
values, labels = next(batches(test, 300))  # grey levels 0 to 16, (300,1,8,8); classes (300,)
noise = shipped.dequantiser.draw(tuple(values.shape), torch.Generator().manual_seed(0))
images = shipped.dequantiser(values, noise).to(device)  # real numbers in [-1, 1]
labels = labels.to(device)
model_at_work(shipped, images[3], label=int(labels[3]), token=7)

# %% [markdown]
# 1. The image is cut into $N = 16$ patches of 2×2 pixels: **tokens** $X$ with $D = 4$ channels each.
# 2. An **autoregressive flow** maps $X$ to **latents** $Z$ of the same size. The map can be undone exactly. (Orange is
#    negative, purple positive; see how the structure fades from the last channel.)
# 3. A **prior**, a causal transformer, reads the latents one after another and says of each, before it sees it, where
#    it will be: a **mixture** of Gaussians. The dotted lines are where the latents of that token then were (of the three
#    channels that are modelled so; for the fourth, notebook 03).
#
# Because the flow can be undone, the density of the image is that of its latents times the factor by which the flow
# stretches volume around the image, the change-of-variables formula (Eqs. 2 and 6 of the paper):
#
# $$\log p(x \mid c) = \log p(Z \mid c) + \log\left|\det \frac{\partial Z}{\partial X}\right|$$
#
# Nothing is approximated or bounded here, and nothing is hidden: $c$ is the class label, and both terms come out of one
# forward pass. That is the whole method; the other notebooks take its parts to pieces. The class goes to the prior
# only: the flow is the same for all classes. (Formulas count tokens from 1, pictures and code mostly from 0, as the
# token 7 above.)
#
# ## Train
#
# *Predict first:* a pixel has 17 levels. How many bits would a model need for it that knows nothing? How many may be
# saved in twenty seconds of training on a laptop?
#
# There is one loss, the negative of the sum above, and flow and prior are trained by it together. Each keeps the other
# honest: a flow that crushes all images to one point makes $\log p(Z)$ large, and loses at least that in the
# log-determinant. One label in ten is dropped on the way and replaced by a **null class**, so that the model can also do
# without a label.
#
# This is the command that you would type, `python -m farmer_ref.train --preset digits --out ...`, with fewer steps:

# %%
run = tempfile.mkdtemp()
quiet = ["--validate-every", "0", "--sample-every", "0"]
train.main(["--preset", "digits", "--out", run, "--steps", str(steps), *quiet])
mine = Farmer.from_pretrained(run).to(device)

# %% [markdown]
# The schedule of the learning rate ends with the last step. The folder holds the weights, a checkpoint from which
# `--resume` would go on, and the training curve.
#
# ## Score
#
# A density has a unit that nobody can picture, nats per image. **Bits/dim** can be pictured: the number of bits per
# pixel that a compressor built on the model would need for the whole grey levels. Knowing nothing costs $\log_2 17$.

# %% tags=["nbval-check-output", "hide-output"]
nothing = math.log2(shipped.config.levels)
levels = values.to(device)
ours = bits_per_dim(mine, levels, labels).mean().item()
trained_longer = bits_per_dim(shipped, levels, labels).mean().item()
print(f"knowing nothing  {nothing:.2f} bits/dim")
print(f"shipped model    {trained_longer:.2f} bits/dim")
print("mine, after its few seconds, lies between:", trained_longer < ours < nothing - 1)

# %%
print(f"mine             {ours:.2f} bits/dim")

# %% [markdown]
# Most of what there is to know about a pixel is learned within seconds: the border is black. The rest takes minutes,
# and it is the rest that makes a digit. The score is one number, and it does not see what you are about to see.
#
# ## Sample
#
# Sampling runs the picture above from right to left: draw latents from the mixtures, token by token, then undo the
# flow. One column for each class; nothing is selected.

# %%
classes = torch.arange(10, device=device).repeat(5)
generator = torch.Generator(device).manual_seed(0)
grids = {
    "mine, after a few seconds": mine.sample(classes, generator=generator),
    "shipped, after a few minutes": shipped.sample(classes, generator=generator),
}
labelled_grids(grids, columns=10)

# %% [markdown]
# ## Check
#
# "Exact" is a claim that you can test. The flow must give back the image that it took, to the rounding of 32-bit
# numbers.

# %% tags=["nbval-check-output"]
with torch.no_grad():
    z, logdet = shipped.encode(images)
    error = (shipped.decode(z) - images).abs().max().item()
assert error < 1e-4
print("the inverse returns the image:", error < 1e-4)

# %% [markdown]
# And three terms must make up the log-density: the informative latents, the redundant ones (notebook 03), and the
# log-determinant of the flow.

# %% tags=["nbval-check-output"]
with torch.no_grad():
    terms = shipped.likelihood_terms(images, labels)
    log_p = shipped.log_prob(images, labels)
parts = terms.informative + terms.redundant + terms.logdet
assert torch.allclose(parts, log_p, atol=1e-3) and torch.equal(terms.logdet, logdet)
for name, part in terms._asdict().items():
    print(f"{name:12} {part.mean():5.0f} nats per image")

# %% [markdown]
# Is the number about *digits*, though, or only about how bright an image is? Then the same pixels in another order, as
# bright and as dark as before, would be as probable.

# %% tags=["nbval-check-output"]
order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
shuffled = images.flatten(1)[:, order.to(device)].reshape(images.shape)
with torch.no_grad():
    difference = shipped.log_prob(images, labels) - shipped.log_prob(shuffled, labels)
assert (difference > 0).all()
print(f"a digit is e^{difference.mean():.0f} times as probable as its shuffled pixels, on average")
print("images where it is not:", int((difference <= 0).sum()), "of", len(images))

# %% [markdown]
# > **The paper** trains models of 1.1 and 1.9 billion parameters on ImageNet at 256×256 and reports the quality of
# > samples (FID). **We** run the same method, from the same file `farmer_ref/model/farmer.py`, on images that a laptop can
# > learn, and report bits/dim as well, which the paper's Gaussian noise does not allow (notebook 02). The paper's
# > models are presets here, too: `--preset farmer-1.1b-p16` (notebook 07).
#
# ## What to remember
#
# - Image → tokens → (flow) → latents → (prior) → mixtures; to the right for a score, to the left for a sample.
# - The log-density is a sum of terms, in nats per image; bits/dim is the same number in another unit.
# - Samples and scores come from one model and may disagree: look at both.
#
# Where to go: **01** undoes the flow, **02** builds the likelihood, **03** splits the channels, **04** guides, **05**
# makes the inverse fast, **06** uses the likelihood, **07** goes to a billion parameters.
#
# ## Exercises
#
# **1 (think).** After training, some images have a *positive* log-density. Is a probability above 1 a bug? And why are
# bits/dim never below 0 all the same?
#
# <details><summary>Solution</summary>
#
# A density is a probability per volume. The cell of one image, $[-1, 1]^{64}$ cut into 17 levels per pixel, has the
# volume $(2/17)^{64}$, a number with 59 zeros behind the point; a density far above 1 in it still integrates to less
# than 1. Bits/dim are about the whole cell: `nats_to_bits_per_dim` adds the logarithm of that volume. Averaged over the
# noise, they are no less than $-\log_2$ of the cell's true probability, per pixel, and so never negative.
#
# </details>
#
# **2 (a few lines).** What is the label worth? Compare the log-density of the test images with their labels and without
# (`None`: the model then uses what it learned from training images whose label was dropped), in bits per image. A label
# of ten equally frequent classes carries $\log_2 10 = 3.32$ bits, so no honest saving is larger. What do you find, and
# what density without a label would be a fairer one?
#
# <details><summary>Solution</summary>
#
# ```python
# def bits_of_the_label(model: Farmer, images: Tensor, labels: Tensor) -> tuple[float, float]:
#     """Bits per image that the label saves: over the null class, and over the average of all classes."""
#     with torch.no_grad():
#         given, null = model.log_prob(images, labels), model.log_prob(images)
#         each = torch.stack([model.log_prob(images, torch.full_like(labels, c)) for c in range(10)])
#     average = each.logsumexp(0) - math.log(10)
#     return tuple(((given - other).mean() / math.log(2)).item() for other in (null, average))
# ```
#
# The null class loses more bits than the label has: it saw a tenth of the training images, and is a worse model of
# images than the average $\frac{1}{10}\sum_c p(x \mid c)$ of the ten others. Against that average the label saves a
# little less than 3.32 bits; what is missing are digits that could have been another one. Keep this in mind when
# notebook 04 guides with the ratio of the two.
#
# </details>
#
# **3 (open).** With the same twenty seconds, is a larger or a smaller model better? Vary `--model.flow-width` and
# `--model.prior-width`, judge by bits/dim of the *validation* split, and say what you expect with an hour instead.
#
# <details><summary>Solution</summary>
#
# Small models make more steps in the time, large ones learn more from each. At fifteen seconds on a laptop, steps are
# what is missing: half the width of the preset (64) is ahead of it, and twice the width far behind.
# `python solutions/solution_00.py` prints the three figures for your machine. With an hour the order must turn; but
# 1,397 images are few, and a large model will overfit before it has used its hour.
#
# ```python
# def bits_after(seconds: float, width: int, folder: str) -> float:
#     """Validation bits/dim of the digits preset at another width, trained for some seconds."""
#     widths = ["--model.flow-width", str(width), "--model.prior-width", str(width)]
#     quiet = ["--validate-every", "0", "--sample-every", "0", "--device", "cpu"]
#     length = ["--max-minutes", str(seconds / 60)]
#     train.main(["--preset", "digits", "--out", folder, *length, *widths, *quiet])
#     model = Farmer.from_pretrained(folder)
#     values, labels = next(batches(load_split("digits", "validation", model.config), 100))
#     return bits_per_dim(model, values, labels).mean().item()
# ```
#
# </details>
