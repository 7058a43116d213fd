# %% [markdown]
# # 00 · A tour: train, score, sample in a minute
#
# [Open this notebook in Colab](https://colab.research.google.com/github/farmer-ref/farmer_ref/blob/main/notebooks/00_tour.ipynb)
#
# FARMER ([arXiv 2510.23588](https://arxiv.org/abs/2510.23588)) is a model of images that does two things at once: it
# *draws* images, and it says *how probable* an image is, exactly. After this notebook you can train one, say what its
# score means, draw samples, and name its parts. You need PyTorch; all you need to know about flows is on this page.
#
# Two habits of this course: where it says "Predict first", make a guess before you look; a wrong guess is worth more than
# none. (The book folds the answer. In Jupyter, guess before you run the cell.) And the exercises at the end have cells
# that raise an error until you have filled them in.

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
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from farmer_ref import Farmer, bits_per_dim, train
from farmer_ref.data.sets import batches, load_split
from farmer_ref.evaluation.classifier import shipped_classifier
from farmer_ref.support.drawings import pipeline
from farmer_ref.support.plots import STYLE, labelled_grids, model_at_work, training_curve

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
# This page uses two of the models that ship with the package. One knows the handwritten digits that come with
# scikit-learn, 8×8 pixels with 17 grey
# levels: small enough to see every number. The other knows MNIST, 28×28 pixels with 256 grey levels. Here is one image of
# the small kind on its way through its model:

# %%
small = Farmer.from_pretrained("digits").to(device)
values, labels = next(batches(load_split("digits", "test", small.config), 300))
values, labels = values.to(device), labels.to(device)  # grey levels 0 to 16 (B,1,8,8), classes (B,)

noise = small.dequantiser.draw(tuple(values.shape), torch.Generator().manual_seed(0)).to(device)
images = small.dequantiser(values, noise)  # real numbers in [-1, 1]
model_at_work(small, images[3], label=int(labels[3]), token=11)

# %% [markdown]
# 1. Whole grey levels become real numbers: a little noise is added to each (**dequantisation**, notebook 02b).
#    Then each pixel goes through the histogram of the training pixels, which spreads the many black ones out (02b, too).
# 2. The image is cut into $N = 16$ patches of 2×2 pixels. Each patch is a **token** with $D = 4$ channels. (Among the
#    *tokens X*, orange is dark and purple is bright. Black pixels differ from one another because of the noise, which the histogram
#    has stretched.)
# 3. An **autoregressive flow** maps the tokens $X$ to **latents** $Z$ of the same size. The map can be undone exactly.
# 4. A **prior**, a causal transformer, reads the latents one after another. Before it reads the next one, it predicts it
#    by a density, a **mixture** of Gaussians. The curves are its prediction for token 11 (between the black lines), one
#    for each channel; the dotted lines are the values that the token has. (Three of the four channels are predicted this
#    way. The fourth is the subject of notebook 03.)
#
# The flow can be undone, so the density of the image is that of its latents, times the factor by which the flow stretches
# volume around the image. This is the change-of-variables formula (Eqs. 2 and 6 of the paper):
#
# $$\log p(\text{image} \mid c) = \log p(Z \mid c) + \log\left|\det \frac{\partial Z}{\partial X}\right|$$
#
# Nothing here is approximated or bounded. ($\partial Z/\partial X$ stands for the whole way from pixels to latents, the
# histogram included.) $c$ is the class label, and both terms come out of one forward pass. That is
# the whole method; the other notebooks take its parts to pieces. The class goes to the prior only: the flow is the same
# for all classes. (Tokens, channels and blocks count from 1 here, as in the paper; only indices in code count from 0.)
#
# ## Train
#
# There is one loss, the negative of the sum above, and it trains flow and prior together. Each keeps the other honest: a
# flow that crushes all images to one point makes $\log p(Z)$ large, but loses at least as much in the log-determinant.
# One label in ten is replaced by a **null class** on the way, so that the model can also do without a label.
#
# *Predict first:* a pixel has 17 levels. How many bits does a model that knows nothing need for it? And how many does
# one need after less than a minute of training on a laptop?
#
# This is the command that you would type, `python -m farmer_ref.train --preset digits --out ...`, with fewer steps:

# %% tags=["hide-output"]
run = Path(tempfile.mkdtemp()) / "tour"
options = f"--steps {steps} --log-every 5 --validate-every 0 --sample-every 0"
train.main(["--preset", "digits", "--out", str(run), *options.split()])
mine = Farmer.from_pretrained(run).to(device)

# %% tags=["hide-input", "hide-output"]
figure = training_curve(run)
axes = figure.axes[0]
axes.axhline(math.log2(17), color="0.4", ls="--", lw=1.2)
axes.text(0, math.log2(17) - 0.03, "knowing nothing", color="0.4", va="top")
axes.set(title=f"{steps} steps of training", ylim=(1.7, 4.3))
figure

# %% [markdown]
# The curve begins near 3 bits and not at $\log_2 17 = 4.09$, which is what knowing nothing costs: the model has counted how
# often each grey level occurs before training begins (it sees pixels through their histogram, notebook 02b). From there the
# curve falls fast at first and then more and more slowly. The samples below will show what the slow part is worth.
# The run's folder holds the weights, a checkpoint from which `--resume` would go on, and this curve.
#
# ## Score
#
# A log-density is measured in **nats** per image (natural logarithms; one nat is 1.44 bits), a unit that nobody can
# picture. **Bits/dim** can be pictured: the number of
# bits per pixel that a compressor built on the model would need for the whole grey levels. Knowing nothing costs
# $\log_2 17$.

# %% tags=["nbval-check-output", "hide-output"]
nothing = math.log2(17)
after_minutes = bits_per_dim(small, values, labels).mean().item()
after_seconds = bits_per_dim(mine, values, labels).mean().item()
assert after_minutes < after_seconds < nothing - 1
print(f"knowing nothing: {nothing:.2f} bits/dim")
print(f"shipped model:   {after_minutes:.2f} bits/dim")

# %% tags=["hide-output"]
print(f"mine:            {after_seconds:.2f} bits/dim, after {steps} steps")

# %% [markdown]
# Every single image has a score, too. The larger model sees test digits of MNIST that it was not trained on.
# Which does it find the most probable, and which the least?

# %%
large = Farmer.from_pretrained("mnist").to(device)
mnist_values, mnist_labels = next(batches(load_split("mnist-small", "test", large.config), 300))
mnist_values, mnist_labels = mnist_values.to(device), mnist_labels.to(device)  # levels 0 to 255
noise = large.dequantiser.draw(tuple(mnist_values.shape), torch.Generator().manual_seed(0))
mnist_images = large.dequantiser(mnist_values, noise.to(device))  # real numbers in [-1, 1]

bits = bits_per_dim(large, mnist_values, mnist_labels, draws=2)  # the mean over two draws of noise
order = bits.argsort()
print(f"{bits.mean():.2f} bits/dim on average; knowing nothing costs 8")

# %% tags=["hide-input"]


def draw_strip(rows, titles):
    """Rows of images (B,1,H,W), each with its name and one grey scale; `titles` for the images of the first rows."""
    size = (8.4, 0.98 * len(rows) + 0.25 * len(titles))
    columns = len(next(iter(rows.values())))
    _, panels = plt.subplots(len(rows), columns, figsize=size, layout="constrained", squeeze=False)
    for (name, pictures), line in zip(rows.items(), panels, strict=True):
        pictures = pictures[:, 0].detach().cpu()
        for axes, picture in zip(line, pictures, strict=True):
            axes.imshow(picture, cmap="gray", vmin=pictures.min(), vmax=pictures.max())
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for line, words in zip(panels, titles, strict=False):
        for axes, word in zip(line, words, strict=True):
            axes.set_title(word, fontsize=9)


ends = torch.cat([order[:5], order[-5:]])
draw_strip({"bits/dim": mnist_values[ends]}, [[f"{bit:.2f}" for bit in bits[ends]]])

# %% [markdown]
# The probable ones are ones: most of their pixels are black, and cost next to nothing. The improbable ones have long
# strokes, with many grey pixels along the edges. "Probable" is not "beautiful", and it is not "typical" either; notebook 06 comes back to this.
#
# ## Sample
#
# [![Sample, step by step](../results/live_sample.png)](https://github.com/farmer-ref/farmer_ref#the-course) Operate this figure in the book: `make book`, then `book/_build/html/live.html#sample`.
#
# Sampling runs the picture at the top from right to left: draw latents from the mixtures, token by token, then undo the
# flow. First the small digits, one column for each class; nothing is selected.

# %%
classes = torch.arange(10, device=device).repeat(5)
generator = torch.Generator(device).manual_seed(0)
grids = {
    f"mine, after {steps} steps": mine.sample(classes, generator=generator),
    "shipped, after a few minutes": small.sample(classes, generator=generator),
}
labelled_grids(grids, columns=10)

# %% [markdown]
# After our short training the model knows where ink goes. After a few minutes it knows digits. The scores above differ by
# a fraction of a bit; the samples differ by everything that makes a digit. And now 28×28:

# %%
drawn = large.sample(classes[:40], generator=generator)
share = shipped_classifier().accuracy(large.dequantiser.quantise(drawn).cpu(), classes[:40].cpu())
print(f"a classifier recognises {share:.0%} of these 40 as the class that was asked for")
real = torch.stack([mnist_images[mnist_labels == c][:4] for c in range(10)], 1).flatten(0, 1)
labelled_grids({"real test digits": real, "samples of the MNIST model": drawn}, columns=10)

# %% [markdown]
# Forty samples are few: notebook 04 draws a hundred from the same model, and the share is lower. No guidance is at work
# yet. Notebook 04 makes the samples sharper, and says what that costs.
#
# ## Check: there and back
#
# "Exact" is a claim that you can test. The flow must give back the image that it took, up to the rounding of 32-bit
# numbers. *Predict first:* how large is the largest error in a pixel, in grey levels of 256?

# %% tags=["hide-output"]
with torch.no_grad():
    z, _ = large.encode(mnist_images[:8])
    returned = large.decode(z)
error = (returned - mnist_images[:8]).abs() * 128  # [-1, 1] holds 256 grey levels
assert error.max() < 0.05
print(f"largest error of {error.numel():,} pixels: {error.max():.4f} grey levels")

# %% tags=["hide-input", "hide-output"]
rows = {
    "image": mnist_images[:8],
    "latents": large.patchify.inverse(z),  # laid out like pixels
    "image again": returned,
    "log10 of\nthe error": (error + 1e-6).log10(),
}
draw_strip(rows, titles=[])

# %% [markdown]
# The latents (second row, laid out as if they were pixels) look like noise, and yet the image comes back from them. The
# largest error is about a thousandth of a grey level: rounding, of which a plain picture would show nothing. Hence the
# logarithm in the last row, from less than $10^{-6}$ grey levels (black) to the largest error (white). The rounding
# gathers at the edges of the strokes, where grey levels are rare and the histogram (notebook 02b) keeps them close
# together.
#
# ## Check: three terms
#
# The log-density of an image is the sum of three terms: the informative latents, the redundant ones (notebook 03), and
# the log-determinant. Here they are, averaged over the small test digits. Divide the sum by the number of pixels, take it
# in bits, turn its sign and add a constant for the size of a grey level (notebook 02b): is it the score from above?

# %% tags=["nbval-check-output"]
with torch.no_grad():
    terms = small.likelihood_terms(images, labels)
    log_p = small.log_prob(images, labels)
assert torch.allclose(terms.informative + terms.redundant + terms.logdet, log_p, atol=1e-3)
assert torch.allclose(terms.logdet, small.encode(images)[1], atol=1e-3)
for name, part in terms._asdict().items():
    print(f"{name:12} {part.mean():+5.0f} nats per image")
print(f"{'log p':12} {log_p.mean():+5.0f} nats per image")
by_hand = -log_p.mean().item() / (64 * math.log(2)) + math.log2(17 / 2)
assert abs(by_hand - after_minutes) < 0.01
print(f"that is      {by_hand:5.2f} bits/dim")

# %% [markdown]
# It is. The log-determinant is positive: on its way to the latents an image is stretched over more volume, so the latents
# have the lower density.
#
# ## Check: is it about digits?
#
# Perhaps the score only knows how bright an image is. So put the pixels of every image in another order, the same one for
# all. They are as bright and as dark as before. *Predict first:* how much less probable are they?

# %% tags=["hide-output"]
generator = torch.Generator().manual_seed(0)
order = torch.randperm(28 * 28, generator=generator).to(device)
shuffled = mnist_images.flatten(1)[:, order].reshape(mnist_images.shape)
with torch.no_grad():
    log_p = large.log_prob(mnist_images, mnist_labels)
    log_p_shuffled = large.log_prob(shuffled, mnist_labels)
difference = log_p - log_p_shuffled
assert (difference > 0).all()
print(f"a digit is e^{difference.mean():.0f} times as probable as its shuffled pixels, on average")

# %% tags=["hide-input", "hide-output"]
titles = [[f"{nats:,.0f}" for nats in part[:8]] for part in (log_p, log_p_shuffled)]
draw_strip({"digit": mnist_images[:8], "shuffled": shuffled[:8]}, titles)  # titles: log p, nats

# %% [markdown]
# Above each image stands $\log p(\text{image} \mid c)$, in nats. Not one of the 300 images is more probable shuffled. So the
# score is about the arrangement of the pixels, which is what makes a digit.
#
# > **The paper** trains models of 1.1 and 1.9 billion parameters on ImageNet at 256×256 and reports the quality of
# > samples (FID). **We** run the same method (`farmer_ref/model/farmer.py`) on images that a laptop can learn, and report
# > bits/dim as well, which the paper's Gaussian noise does not allow (notebook 02b). The models that ship, all but
# > `digits-noise`, also look at a pixel through its histogram (notebook 02b, too); the paper's do not. The paper's own
# > sizes are presets of the same code: `--preset farmer-1.1b-p16` (appendix A).
#
# ## What to remember
#
# - Image → tokens → (flow) → latents → (prior) → mixtures: to the right for a score, to the left for a sample.
# - The log-density is a sum of terms, in nats per image. Bits/dim is that sum with its sign turned, per pixel and in
#   bits, plus a constant for the size of a grey level.
# - Samples and scores come from one model and may disagree: look at both.
#
# Where to go: **01a** and **01b** take the flow apart, **02a** and **02b** build the likelihood, **03** splits the
# channels, **04** guides, **05** makes the inverse fast, **06** uses the likelihood. In **07** you write all of it
# yourself, and appendix **A** goes to a billion parameters.
#
# ## Exercises
#
# **1 (think · 10 minutes · 3 marks).** The log-density of these images is *positive*. Is a probability above 1 a bug? And
# why are bits/dim never below 0 all the same?
#
# <details><summary>Solution</summary>
#
# A density is a probability per volume. The cell of one image, $[-1, 1]^{64}$ cut into 17 levels per pixel, has the
# volume $(2/17)^{64}$, a number with 59 zeros after the decimal point; a density far above 1 in it still integrates to
# less than 1. Bits/dim are about the whole cell: `nats_to_bits_per_dim` adds the logarithm of that volume to the
# log-density. Averaged over the noise, they are no less than $-\log_2$ of the probability that the model gives to the
# cell, per pixel, and so never negative.
#
# </details>
#
# **2 (a few lines · 15 minutes · 4 marks).** What is the label worth? Compare the log-density of the small test images
# with their labels and without, in bits per image. Without a label there are two possibilities: the null class (leave
# `labels` out), or the average of $p(\text{image} \mid c)$ over the ten classes. A label of ten equally frequent classes carries
# $\log_2 10 = 3.32$ bits, so no honest saving is larger. What do you find?


# %% tags=["raises-exception"]
def bits_of_the_label(model: Farmer, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Bits per image that the label saves: over the null class, and over the average of all classes."""
    raise NotImplementedError  # yours: model.log_prob(images, labels) is in nats; average densities, not logarithms


null, average = bits_of_the_label(small, images, labels)
assert 3 < average < math.log2(10)  # what an honest saving can be
assert null > math.log2(10)  # more than a label holds

# %% [markdown]
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
# The null class loses more bits than a label holds: it has seen all images, but in a tenth of the training only, and is a
# worse model than the average $\frac{1}{10}\sum_c p(\text{image} \mid c)$ of the ten classes. Against that average the label saves a
# little less than 3.32 bits; the rest is lost on digits that could belong to another class, too. Keep this in mind when
# notebook 04 guides with the ratio of the density with a label to that with the null class.
#
# </details>
#
# **3 (open · 45 minutes · 6 marks).** With the same seconds of training, is a larger or a smaller model better? Vary
# `--model.flow-width` and `--model.prior-width`, judge by bits/dim of the *validation* split, and say what you expect
# with an hour instead.


# %% tags=["raises-exception"]
def bits_after(seconds: float, width: int, folder: str) -> float:
    """Validation bits/dim of the digits preset at another width, trained for some seconds."""
    raise NotImplementedError  # yours: train.main takes --max-minutes


assert bits_after(8, 32, tempfile.mkdtemp()) < 2.95  # an untrained model needs about 3

# %% [markdown]
# <details><summary>Solution</summary>
#
# Small models make more steps in the time, large ones learn more from each. In a few seconds, steps are what is missing:
# expect half the width of the preset (64) to be ahead of it, and twice the width far behind.
# `python solutions/solution_00.py` prints the three figures for your machine. With an hour the order should turn, but only
# up to a point: 1,397 images are few, and a large model overfits them before its hour is over.
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
