# %% [markdown]
# # 02b · Bits per dimension
#
# [Open this notebook in Colab](https://colab.research.google.com/github/farmer-ref/farmer_ref/blob/main/notebooks/02b_bits_per_dim.ipynb)
#
# The log-density of an image is a number of nats. In notebook 00 it was 57 nats for a small digit, and nobody knows whether
# that is much. Papers therefore report *bits per dimension*: how many bits a compressor built on the model would need for each pixel. The conversion takes one line,
# and most of the mistakes in comparing likelihoods are made in it.
#
# After this notebook you can say why whole grey levels have no density, convert nats to bits with the right constant, name
# the bound that you report, and recognise a number that must not be converted at all. The last part is about the
# coordinates in which a model looks at a pixel, and what each of them costs.

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
import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.distributions import Normal

from farmer_ref import Farmer, GaussianMixture, InputError, bits_per_dim, nats_to_bits_per_dim
from farmer_ref.data.sets import batches, load_split
from farmer_ref.evaluation.metrics import terms_over_draws
from farmer_ref.support.drawings import dequantised_cell
from farmer_ref.support.plots import COLOURS, STYLE
from farmer_ref.support.record import ROOT

# %config InlineBackend.figure_formats = ["svg"]
# %matplotlib inline
plt.rcParams.update(STYLE)
_ = torch.set_grad_enabled(False)

# %% [markdown]
# ## Whole grey levels have no density
#
# A pixel of the 8×8 digits has one of $L = 17$ grey levels $v = 0, \dots, 16$. A density describes real numbers. What goes
# wrong if we pretend that grey levels are real numbers, and fit a density to them?
#
# Take a mixture with one Gaussian on each level, with the right weights, and make all of them narrower and narrower. A
# compressor of single pixels cannot need fewer bits than the **entropy** of the levels, $-\sum_v P(v) \log_2 P(v)$. That is
# Shannon's limit, whatever the model. So a score below the entropy must be false, and without noise we shall get one.
#
# **Dequantisation** is the cure: it adds uniform noise, so that the gaps between the levels are filled, and level $v$ becomes
#
# $$x = \frac{2\,(v + u)}{L} - 1, \qquad u \sim U[0, 1).$$

# %% tags=["hide-input"]
dequantised_cell()

# %% [markdown]
# *Predict first:* how will the score of the mixture behave as its Gaussians become narrower, with this noise and without it
# (all $u = 1/2$)?

# %%
model = Farmer.from_pretrained("digits").requires_grad_(False)
values, labels = next(batches(load_split("digits", "test", model.config), 300))

L = model.config.levels
pixels = values.flatten().long()
share = pixels.bincount(minlength=L) / len(pixels)  # P(v) of the test images' pixels
entropy = -(share * share.log2()).sum()
centre = 2 * (torch.arange(L) + 0.5) / L - 1


def bits_of_levels(width, u):
    """Mean "bits/dim" of the grey levels, as x with noise u (S,L), under a Gaussian of this width on each level."""
    log_scale = torch.full((L, 1), math.log(width))
    mixture = GaussianMixture(logits=share.log(), mean=centre[:, None], log_scale=log_scale)
    x = 2 * (torch.arange(L) + u) / L - 1
    log_p = (mixture.log_prob(x[..., None]) * share).sum(-1).mean()
    return nats_to_bits_per_dim(log_p, dimensions=1, levels=L).item()


widths = torch.logspace(-2.5, 0, 26).tolist()
noise = torch.rand(500, L, generator=torch.Generator().manual_seed(0))
kinds = {"whole levels, no noise": torch.full((1, L), 0.5), "dequantised": noise}
scores = {name: [bits_of_levels(width, u) for width in widths] for name, u in kinds.items()}

# %% tags=["hide-input", "hide-output"]
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for (name, bits), style in zip(scores.items(), ("--", "-"), strict=True):
    axes.semilogx(widths, bits, style, label=name)
axes.axhline(entropy, color=COLOURS[6], lw=1, ls=":", label="entropy of the levels")
axes.set(
    title="A Gaussian on each grey level", xlabel="its width σ", ylabel="“bits/dim”", ylim=(-2, 8)
)
_ = figure.legend(frameon=False, loc="outside lower left")

# %% tags=["nbval-check-output", "hide-output"]
assert min(scores["whole levels, no noise"]) < 0 < entropy < min(scores["dequantised"])
print(f"entropy of a pixel:     {entropy:.2f} bits")
print(f"best with noise:        {min(scores['dequantised']):.2f} bits/dim")
print(f"narrowest without it:  {scores['whole levels, no noise'][0]:.2f} “bits/dim”")

# %% [markdown]
# Without noise the score has no floor: each time the width halves, another "bit" is gained, and nothing has been learned.
# With noise, needles are punished, because $x$ hardly ever falls on them. The best score lies above the entropy, as it
# should.
#
# ## A bound, by Jensen's inequality
#
# Why is the dequantised score never below the truth? Look at the drawing again. Level $v$ owns a cell of width $2/L$, and
# its probability is the mass of the density in that cell, which is the mean density in the cell times the width:
#
# $$P(v) = \int_\text{cell} p(x)\,dx = \frac{2}{L} \; \mathbb{E}_u\, p\big(x(v, u)\big)$$
#
# We compute something slightly different, the mean of the *logarithm*. **Jensen's inequality** says that the mean of a
# logarithm is never more than the logarithm of the mean, because a logarithm bends downwards. Hence
#
# $$-\log_2 P(v) \;\le\; \mathbb{E}_u\Big[ -\log_2 p\big(x(v, u)\big) \Big] + \log_2 \frac{L}{2},$$
#
# with equality where the density is flat across the cell. For an image of $d$ pixels the cell is a cube of volume
# $(2/L)^d$, and the same holds. So bits/dim from a density is an **upper bound** on the bits of a compressor.
#
# ## The constant
#
# $$\text{bits/dim} = -\frac{\log p(x)}{d \ln 2} + \log_2 \frac{L}{2}$$
#
# The constant belongs to the scale of $x$: here $x$ runs from $-1$ to $1$, so a cell is $2/L$ wide. There is an easy check.
# A model that knows nothing has density $1/2$ on $[-1, 1]$ in each dimension, and must need $\log_2 L$ bits per pixel.

# %%
d = model.config.dimensions
nothing = nats_to_bits_per_dim(torch.tensor(-d * math.log(2)), dimensions=d, levels=L)
assert math.isclose(nothing, math.log2(L), rel_tol=1e-6)

# %% [markdown]
# Three mistakes are common. Images in bytes are often scaled by $v / 127.5 - 1$; then a cell is $1/127.5$ wide, and not
# $1/128$. Some forget the constant, and some take that of 256 levels whatever the data. How much does each mistake cost?

# %% tags=["nbval-check-output"]
print(f"127.5 for 128:                     {math.log2(128 / 127.5):.4f} bits/dim")
print(f"no constant, with 17 levels:       {math.log2(17 / 2):.2f} bits/dim")
print(f"constant of 256 levels, with 17:   {math.log2(256 / 17):.2f} bits/dim")

# %% [markdown]
# The first is small, but it shows in the third decimal, which tables often print. The others are larger than any difference between good
# models and bad ones.
#
# ## One bound or another
#
# One draw of the noise gives a noisy estimate of the bound. More draws of $u$ make the mean steadier; they do not lower it.
# But we may also average the *densities* of $S$ draws, and take the logarithm afterwards ($v$ and $x$ are now whole images):
#
# $$-\log_2 P(v) \;\le\; \mathbb{E}_u\Big[-\log_2 \frac{1}{S} \sum_{s=1}^{S} p\big(x(v, u_s)\big)\Big] + d \log_2 \frac{L}{2}$$
#
# This is the **importance-weighted bound**. It is Jensen's inequality applied to an average that fluctuates less, so it is
# tighter, and it approaches the truth as $S$ grows. *Predict first:* how far does the bound of the shipped model fall with
# 64 draws: by a thousandth of a bit/dim, a hundredth, or a tenth?

# %%
some = slice(0, 40)
total = terms_over_draws(model, values[some], labels[some], draws=64, seed=0).total  # log p, (S,B)


def mean_bits(log_p):
    """The mean over images of log p (B,), in bits/dim."""
    return nats_to_bits_per_dim(log_p, dimensions=d, levels=L).mean().item()


draws = [1, 2, 4, 8, 16, 32, 64]
averaged = [mean_bits(total[:S].mean(0)) for S in draws]
weighted = [mean_bits(total[:S].logsumexp(0) - math.log(S)) for S in draws]

# %% tags=["hide-input", "hide-output"]
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
axes.semilogx(draws, averaged, "o-", base=2, label="mean of $-\\log p$")
axes.semilogx(draws, weighted, "o-", base=2, label="importance-weighted")
axes.set_xticks(draws, [str(S) for S in draws])
axes.set(title="Two bounds for 40 test images", xlabel="draws of the noise", ylabel="bits/dim")
_ = axes.legend(frameon=False)

# %% tags=["hide-output"]
assert weighted[-1] < averaged[-1] - 0.02
one_by_one = bits_per_dim(model, values[some], labels[some], draws=4, importance_weighted=True)
assert math.isclose(one_by_one.mean(), weighted[2], rel_tol=1e-5)  # the package's function
print(
    f"with 64 draws: {averaged[-1]:.2f} bits/dim averaged, {weighted[-1]:.2f} importance-weighted"
)

# %% [markdown]
# By nearly a tenth: nothing about the model has changed, and the score has improved by as much as a good idea brings in a
# paper. Therefore say which bound you report, and with how many draws. This project reports the mean, and says so wherever
# it uses the other.
#
# ## The paper's noise is another one
#
# The paper trains with **Gaussian** noise on the pixels, $x = 2v/(L-1) - 1 + \sigma \varepsilon$, which becomes smaller
# during training. That is good for samples. But Gaussian noise is not confined to a cell: the same $x$ can come from several
# levels. So this density belongs to a *noisy image*, and there is no way from it to the probability of grey levels.
#
# Even a model that knows everything shows what happens if one converts it all the same. For a single pixel, the density
# after noise is known exactly: it is the mixture above, with a Gaussian of width $\sigma$ on each level. This is its score
# on its own data.


# %%
def bits_of_noisy_levels(sigma):
    """The "bits/dim" of the perfect density of a pixel with Gaussian noise."""
    level = 2 * torch.arange(L) / (L - 1) - 1
    mixture = GaussianMixture(share.log(), level[:, None], torch.full((L, 1), math.log(sigma)))
    epsilon = torch.randn(500, L, generator=torch.Generator().manual_seed(0))
    log_p = (mixture.log_prob((level + sigma * epsilon)[..., None]) * share).sum(-1).mean()
    return nats_to_bits_per_dim(log_p, dimensions=1, levels=L).item()


noisy_model = Farmer.from_pretrained("digits-noise").requires_grad_(False)
sigmas = torch.logspace(-2.5, -0.7, 19).tolist()
noisy_scores = [bits_of_noisy_levels(sigma) for sigma in sigmas]

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
axes.semilogx(sigmas, noisy_scores, label="the perfect density")
axes.axhline(entropy, color=COLOURS[6], lw=1, ls=":", label="entropy of the levels")
axes.axvline(
    noisy_model.config.noise_final, color=COLOURS[1], ls="--", label="noise at the end of training"
)
axes.set(
    title="Gaussian noise, converted all the same", xlabel="σ of the noise", ylabel="“bits/dim”"
)
_ = figure.legend(frameon=False, loc="outside lower left")

# %% [markdown]
# The less noise, the better the "score", which soon falls below the entropy. It measures the noise and not the model. The
# model of this kind that ships, `digits-noise`, would seem far better than its sibling with uniform noise, if its
# log-density were converted all the same. The package refuses to do so:

# %% tags=["nbval-check-output"]
normal = noisy_model.dequantiser.draw(tuple(values.shape), torch.Generator().manual_seed(0))
log_p = noisy_model.log_prob(noisy_model.dequantiser(values, normal), labels)
assert log_p.isfinite().all()
print(f"wrong:   {nats_to_bits_per_dim(log_p, dimensions=d, levels=L).mean():.1f} “bits/dim”")
try:
    bits_per_dim(noisy_model, values, labels)
except InputError as error:
    print("refused:", str(error).split(";")[0])

# %% [markdown]
# ## In which coordinate?
#
# One more choice remains. It does not make a score right or wrong, but it makes the data easy or hard to learn. In which coordinate does the model look at a
# pixel? In the *linear* scale of grey, nearly half of all pixels of these digits fill one cell at the left edge, and the
# rest spread over the other 16. A prior made of smooth Gaussians must imitate a box. (In 28×28 digits the box is 2/256 wide
# and holds four pixels of five.)
#
# The shipped models, all but `digits-noise`, use another coordinate. Let $F$ be the distribution function of one pixel on its own, which the
# **histogram** of the training pixels gives. $F(x)$ is uniform in $[0, 1]$, so
# $y = \Phi^{-1}\big(F(x)\big)$ is standard normal, with the log-derivative
#
# $$\log \frac{dy}{dx} = \log f(x) - \log \varphi(y),$$
#
# where $\Phi$ is the distribution function of the standard normal, and $f$ and $\varphi$ are the
# densities that belong to $F$ and $\Phi$. This is a flow of one pixel. Its log-derivative is part of $\log p(\text{image})$,
# so that bits/dim in both coordinates can be compared. (From here on $x$ is the linear scale and $y$ the other.)

# %%
u = torch.rand(values.shape, generator=torch.Generator().manual_seed(0))
x = model.dequantiser(values, u)  # (B,1,8,8), linear
y, log_slope = model.pixels(x)
assert torch.allclose(model.pixels.inverse(y), x, atol=1e-5)
assert y.mean().abs() < 0.1 and abs(y.std() - 1) < 0.1

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(8.5, 2.8), layout="constrained")
black = values == 0
for axes, coordinate, name in zip(panels, (x, y), ("linear, $x$", "histogram, $y$"), strict=True):
    edges = torch.linspace(coordinate.min(), coordinate.max(), 69).tolist()
    parts = [coordinate[black].tolist(), coordinate[~black].tolist()]
    axes.hist(
        parts,
        edges,
        stacked=True,
        density=True,
        color=[COLOURS[1], COLOURS[5]],
        label=["black", "grey and white"],
    )
    axes.set(title=name, xlabel="coordinate of a pixel")
panels[0].set(ylabel="density", xticks=[-1, 0, 1])
panels[0].legend(frameon=False, loc="upper center")
plt.show()

# %% [markdown]
# What does a smooth density cost in either coordinate? We fit mixtures of $K$ Gaussians to single pixels in the linear
# scale. In the other coordinate nothing has to be fitted: the standard normal, $K = 1$, is right by construction.


# %%
@torch.enable_grad()
def fitted(x, K):
    """The mean log-density of numbers x (B,) under a mixture of K Gaussians that is fitted to them."""
    logits = torch.zeros(K, requires_grad=True)
    mean = torch.linspace(-1, 1, K + 2)[1:-1, None].clone().requires_grad_()  # (K,1)
    log_scale = torch.full((K, 1), -math.log(K + 1.0), requires_grad=True)
    mixture = GaussianMixture(logits, mean, log_scale)
    optimiser = torch.optim.Adam([logits, mean, log_scale], lr=0.05, maximize=True)
    for _ in range(200):
        optimiser.zero_grad()
        score = mixture.log_prob(x[:, None]).mean()
        score.backward()
        optimiser.step()
    return score.detach()


some_x = x.flatten()[::5]  # from all columns of the images
components = [1, 2, 4, 8, 16]
linear = [
    nats_to_bits_per_dim(fitted(some_x, K), dimensions=1, levels=L).item() for K in components
]
one_gaussian = Normal(0, 1).log_prob(y).sum((1, 2, 3)) + log_slope
histogram = nats_to_bits_per_dim(one_gaussian, dimensions=d, levels=L).mean().item()
assert abs(histogram - entropy) < 0.02 < linear[0] - histogram

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
axes.plot(range(5), linear, "o-", label="linear, fitted")
axes.plot(0, histogram, "s", color=COLOURS[1], label="histogram, N(0, 1)")
axes.axhline(entropy, color=COLOURS[6], lw=1, ls=":", label="entropy of the levels")
axes.set_xticks(range(5), [str(K) for K in components])
axes.set(title="A single pixel", xlabel="components of the mixture", ylabel="bits/dim")
_ = axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.2, 1))

# %% [markdown]
# In the histogram's coordinate one Gaussian reaches the entropy. In the linear scale it takes many components to
# come near, and a network must put out the parameters of each of them.
#
# A model knows more than a single pixel's histogram, however. Suppose that the tokens before make it *certain* that a pixel
# is black. The truth is now a box: $x$ is uniform in the cell of level 0. How many bits does the best Gaussian lose against
# it, in each coordinate? (The expected log-density of the best Gaussian is known from its variance; the truth's is minus its
# entropy.) *Predict first:* in which coordinate is black cheaper?


# %%
def lost_bits(model, level):
    """Bits that the best Gaussian loses on a pixel of a known level, in linear and in histogram coordinates."""
    levels = model.config.levels
    place = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    x = 2 * (level + place) / levels - 1  # evenly in the cell
    y, log_slope = model.double().pixels(x.view(-1, 1, 1, 1))
    entropy_of_x = math.log2(2 / levels)  # of a uniform density, width 2 / L
    entropy_of_y = entropy_of_x + log_slope.mean().item() / math.log(2)

    def best_gaussian(numbers):  # its mean -log2 of the density
        return 0.5 * math.log2(2 * math.pi * math.e * numbers.var().item())

    return best_gaussian(x) - entropy_of_x, best_gaussian(y) - entropy_of_y


lost = {"8×8, 17 levels": lost_bits(Farmer.from_pretrained("digits"), 0)}
lost["28×28, 256 levels"] = lost_bits(Farmer.from_pretrained("mnist-p2"), 0)

# %% tags=["nbval-check-output", "hide-output"]
for name, (in_x, in_y) in lost.items():
    print(f"{name:17}: linear {in_x:.2f}, histogram {in_y:.2f} bits lost on a black pixel")

# %% [markdown]
# In the linear scale a box costs $\frac{1}{2} \log_2 (2 \pi e / 12)$, about a quarter of a bit, whatever its width. In the
# histogram's coordinate black is the lower part of a bell. If nearly all pixels are black, as in the 28×28 digits, that is
# nearly a Gaussian, and cheap. If half of them are, as in the 8×8 digits, it is a little dearer than a box.
#
# So for the small digits the price of black is not the reason. The reason is *scale*: in the linear coordinate a flow must
# find out for itself that some numbers live in a cell and others in an interval sixteen times as wide. The comparison that
# counts is two trained models, with everything else equal.

# %% tags=["nbval-check-output"]
trained = json.loads((ROOT / "results/pixels.json").read_text())
print(f"digits preset, {trained['settings']['steps']} steps, three seeds, validation split")
for name in ("linear", "histogram", "histogram, learned noise"):
    print(f"{name:24}: {trained[name]['bits_per_dim']['mean']:.2f} bits/dim")

# %% [markdown]
# The last row goes one step further. Nothing forces the noise to be uniform: if $u$ has a density $q(u \mid v)$ within the
# cells, the average of $\log p\big(x(v, u)\big) + \log \frac{2}{L} - \log q(u \mid v)$ is a lower bound of $\log P(v)$ as
# well (write the integral above as an average over $q$, and use Jensen again). A small network learns, together with the model, where in its cell each pixel should lie. It
# can put a small Gaussian into the box of a black pixel, and a model of Gaussians is then no longer wrong there. This is
# *variational dequantisation*; the model `mnist-p2` has it (`--model.noise-width`).
#
# > **The paper** looks at pixels in the linear scale, with Gaussian noise, and reports no bits/dim. **We** use uniform noise
# > wherever a likelihood is reported, and the histogram's coordinate in the small models that ship (`--model.pixels
# > histogram`; the book's page on pixels has more, with the logit coordinate of RealNVP). All tables that repeat the paper's
# > ablations are in linear pixels, like the paper.
#
# From here on, "pixels" given to a model are always $x \in [-1, 1]$. The model changes the coordinate itself
# (`Farmer.to_tokens`, `Farmer.to_images`), and counts it.
#
# ## What to remember
#
# - Grey levels need uniform noise before they have a density. Without it, a score has no floor.
# - Bits/dim from a density is an upper bound, by Jensen's inequality. Averaging densities instead of logarithms tightens it.
# - The constant is $\log_2$ of the number of cells per unit of $x$. Check it with a model that knows nothing.
# - With Gaussian noise there are no discrete bits/dim.
# - A change of coordinates costs nothing if its derivative is counted, and can make the same data much easier to learn.
#
# ## Exercises
#
# **1 (think · 8 minutes · 3 marks).** Somebody stores the digits as 8-bit files, level $v$ as $15 v$, trains with $L = 256$
# in the linear scale, and reports bits/dim. Is that comparable with a model of 17 levels? What would a perfect model score?
#
# <details><summary>Solution</summary>
#
# Storing changes no probability: $P$ of a file is $P$ of its digit, so a perfect model scores the same in both. But knowing
# nothing now costs 8 bits instead of $\log_2 17$, and the model must find out that 239 levels never occur, by putting narrow
# peaks on the other 17. It will not quite manage, and so will score worse. Nor is it cheating if it does manage: the density is high
# where the levels are, but each cell is narrow, and the constant, 7 instead of $\log_2 8.5$, pays that back.
#
# </details>
#
# **2 (a few lines · 15 minutes · 4 marks).** For one pixel, the mass of a mixture in the cell of a level is a difference of
# two normal distribution functions (`torch.special.ndtr`), so $P(v)$ is known exactly. (The cell of level $v$ reaches from
# $2v/L - 1$ to $2(v + 1)/L - 1$.) Compute the exact bits. How far is the dequantised bound from them at the best width of
# the first figure? Why not do the same for images?


# %% tags=["raises-exception"]
def exact_bits(pixel: GaussianMixture, share: Tensor) -> float:
    """Mean -log2 P(v) over grey levels v with these shares (L,): P(v) is the mass in the cell of v."""
    raise NotImplementedError  # yours


half, zero = torch.full((2,), 0.5).double(), torch.zeros(1, 1).double()
middle = GaussianMixture(zero[0], mean=zero, log_scale=zero - 3)
assert abs(exact_bits(middle, half) - 1) < 1e-9  # two levels, half of the mass in each cell
uneven = torch.tensor([0.25, 0.75]).double()
peaks = GaussianMixture(
    uneven.log(), torch.tensor([[-0.5], [0.5]]).double(), middle.log_scale.expand(2, 1)
)
assert abs(exact_bits(peaks, uneven) + (uneven * uneven.log2()).sum()) < 1e-9  # the entropy
assert abs(exact_bits(peaks, half) + (half * uneven.log2()).sum()) < 1e-9  # a cross-entropy

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def exact_bits(pixel: GaussianMixture, share: Tensor) -> float:
#     """Mean -log2 P(v) over grey levels v with these shares (L,): P(v) is the mass in the cell of v."""
#     edges = torch.linspace(-1, 1, len(share) + 1, dtype=torch.float64)[:, None]  # (L+1,1)
#     below = torch.special.ndtr((edges - pixel.mean[:, 0]) / pixel.log_scale[:, 0].exp())  # (L+1,K)
#     mass = (below @ pixel.logits.double().softmax(0)).diff()  # (L,)
#     return -(share * mass.log2()).sum().item()
# ```
#
# At the best width, about .04, the bound is .05 bits above the exact value. That is the price of dequantisation here, and
# it falls to nothing where the mixture is smooth across a cell. The best exact score is at a narrower width, where the
# bound is bad: noise changes what is learned, too. The cell of an *image* is a cube of 64 dimensions, which the flow bends
# into a shape over which nobody can integrate. Averaging more draws is all that is left.
#
# </details>
#
# **3 (open · 60 minutes · 6 marks).** How far down does the importance-weighted bound go? Compute it for a few images with
# a thousand draws or more, for every power of two (`terms_over_draws(...).total` is $\log p$, one row per draw). Does it
# level off? Find out what decides how many draws are needed.


# %% tags=["raises-exception"]
def weighted_bounds(total: Tensor, draws: list[int]) -> Tensor:
    """Importance-weighted bounds (len(draws),) on -log P, nats, from log p (S,B) of S draws: averaged over
    images and over all disjoint groups of so many draws."""
    raise NotImplementedError  # yours


flat = torch.full((8, 3), -2.0)
assert torch.allclose(weighted_bounds(flat, [1, 2, 8]), torch.tensor(2.0))  # no noise: no gain
uneven = torch.tensor([[0.0, 1.0], [math.log(3), 1.0]])  # of two images, the second without noise
expected = torch.tensor([-(math.log(3) / 2 + 1) / 2, -(math.log(2) + 1) / 2])
assert torch.allclose(weighted_bounds(uneven, [1, 2]), expected)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def weighted_bounds(total: Tensor, draws: list[int]) -> Tensor:
#     """Importance-weighted bounds (len(draws),) on -log P, nats, from log p (S,B) of S draws: averaged over
#     images and over all disjoint groups of so many draws."""
#     bounds = []
#     for count in draws:
#         groups = total[: len(total) // count * count].unflatten(0, (-1, count))  # (groups,count,B)
#         bounds.append(-(groups.logsumexp(1) - math.log(count)).mean())
#     return torch.stack(bounds)
# ```
#
# For 20 test images the bound falls from 1.83 bits/dim with one draw to 1.75 with 64, and to 1.74 with 1,024
# (`python solutions/solution_02b.py`). It does level off: each doubling brings less than the one before, and the last one
# less than a thousandth of a bit. What decides is how much $\log p$ of one image varies over the draws of its noise, here by
# about 3 nats (one standard deviation). An average of densities is ruled by the largest of them. If the logarithms were
# normally distributed with a standard deviation of $s$ nats, the average would need some $e^{s^2}$ draws, which for $s = 3$
# are several thousand. An image of more pixels has a larger $s$, so this way to the truth soon becomes impracticable.
#
# </details>
