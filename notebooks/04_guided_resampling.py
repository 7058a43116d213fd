# %% [markdown]
# # 04 · Guidance by resampling
#
# [Open this notebook in Colab](https://colab.research.google.com/github/farmer-ref/farmer_ref/blob/main/notebooks/04_guided_resampling.ipynb)
#
# Ask a model for a 3, and some of what it draws could be a 5, or nothing at all. *Guidance* asks for more: a sample
# should look more like a 3 than like a digit in general. FARMER does that with a simple idea. It draws a few candidates
# for each token, weighs them, and keeps one. In this notebook you will read that rule in ten lines, find out what it
# converges to, and when it does not converge, and see what it does to images.
#
# You need mixtures of Gaussians (notebook 02a) and the split into informative and redundant channels (notebook 03).

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
from unittest import mock

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from farmer_ref import Farmer, GaussianMixture, Guidance
from farmer_ref.data.sets import load_split
from farmer_ref.evaluation.classifier import shipped_classifier
from farmer_ref.evaluation.metrics import PixelClassifier
from farmer_ref.model.guidance import (
    draw_naive,
    draw_pool,
    draw_token,
    effective_sample_size,
    weighed_candidates,
)
from farmer_ref.support.drawings import guidance_by_resampling
from farmer_ref.support.plots import COLOURS, STYLE, labelled_grids
from farmer_ref.support.record import ROOT

# %config InlineBackend.figure_formats = ["svg"]
# %matplotlib inline
plt.rcParams.update(STYLE)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seeded(on="cpu"):
    """A generator that starts at the same place each time."""
    return torch.Generator(on).manual_seed(0)


# %% [markdown]
# ## What guidance asks for
#
# The prior can predict a token in two ways. $p_c(z)$ is its density given the class; $p_u(z)$ is its density when the
# class is withheld (the *null class*, which takes the place of the label of one image in ten, drawn anew at each step).
# Where the ratio $p_c / p_u$ is large, a value speaks for the class. Guidance with *scale* $w$ multiplies $p_c$ by a power
# of it:
#
# $$p'(z) \propto p_c(z)\,\left(\frac{p_c(z)}{p_u(z)}\right)^w \qquad\text{(Eq. 15)}$$
#
# At $w = 0$ nothing changes. The larger $w$, the more a value has to be typical of the class, besides being probable.
# Each token has such a target of its own, given the tokens drawn so far.
#
# One channel is enough to see what this does. Here $p_c$ and $p_u$ are mixtures of two Gaussians each, and we normalise
# Eq. 15 by a sum over a fine grid.


# %%
def mixture(weights, means, scales, rows=1):
    """The same one-dimensional mixture of Gaussians, `rows` times."""
    weights, means, scales = torch.tensor([weights, means, scales], dtype=torch.float64)
    parts = weights.log(), means[:, None], scales.log()[:, None]
    return GaussianMixture(*(part.expand(rows, *part.shape) for part in parts))


def log_density(parameters, z):
    """log p(z) of a one-dimensional mixture at the points z (n,)."""
    return mixture(*parameters).unsqueeze().log_prob(z[:, None])[0]


def target(p_c, p_u, w):
    """Eq. 15 on the grid, normalised."""
    log_target = (1 + w) * log_density(p_c, grid) - w * log_density(p_u, grid)
    return torch.softmax(log_target, 0) / (grid[1] - grid[0])


grid = torch.linspace(-12, 12, 8001, dtype=torch.float64)
P_C = [0.6, 0.4], [-1.0, 1.2], [0.5, 0.6]  # weights, means and widths of two components
P_U = [0.4, 0.6], [-0.5, 1.5], [0.8, 0.9]
assert torch.allclose(target(P_C, P_U, w=0), log_density(P_C, grid).exp())  # w = 0: p_c itself

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot(grid, log_density(P_C, grid).exp(), label="$p_c$")
left.plot(grid, log_density(P_U, grid).exp(), "--", label="$p_u$")
for w, style in ((1, ":"), (4, "-.")):
    left.plot(grid, target(P_C, P_U, w), style, label=f"target, w = {w}")
left.set(title="The target moves away from $p_u$", xlim=(-4, 4), xlabel="z", ylabel="density")
figure.legend(frameon=False, loc="outside lower left", ncols=2)
right.plot(grid, (log_density(P_C, grid) - log_density(P_U, grid)).exp(), color=COLOURS[6])
right.axhline(1, color="0.5", lw=1, ls="--")
right.set(
    title="to where the ratio is large", xlim=(-4, 4), xlabel="z", ylabel="$p_c / p_u$", ylim=0
)
plt.show()

# %% [markdown]
# The left bump of $p_c$ stands where the ratio $p_c / p_u$ is largest, so it grows with $w$; the other one fades. Both
# bumps become narrower.
#
# If $p_c$ and $p_u$ are single Gaussians, with means $\mu_c, \mu_u$ and standard deviations $\sigma_c, \sigma_u$, then
# Eq. 15 multiplies powers of Gaussians, and the result is a Gaussian again. Its precision (one over the variance) and
# its mean are
#
# $$\lambda = \frac{1+w}{\sigma_c^2} - \frac{w}{\sigma_u^2}, \qquad
# \mu = \frac{1}{\lambda}\left(\frac{(1+w)\,\mu_c}{\sigma_c^2} - \frac{w\,\mu_u}{\sigma_u^2}\right),$$
#
# as long as $\lambda > 0$. Below we shall need such a pair, because it has an exact answer to compare with.

# %% tags=["nbval-check-output"]
GAUSS_C = [1.0], [1.0], [0.8]  # one component
GAUSS_U = [1.0], [0.0], [1.2]
exact = {}  # mean and standard deviation of the target, by w
for w in (0.5, 1, 2, 4):
    precision = (1 + w) / 0.8**2 - w / 1.2**2
    mean = (1 + w) * 1.0 / 0.8**2 / precision
    exact[w] = mean, precision**-0.5
    mass = target(GAUSS_C, GAUSS_U, w) * (grid[1] - grid[0])  # the grid agrees
    assert abs(mass @ grid - mean) < 1e-9
    assert abs(mass @ (grid - mean) ** 2 - 1 / precision) < 1e-9
    print(f"w = {w:3}: mean {exact[w][0]:.3f}, standard deviation {exact[w][1]:.3f}")

# %% [markdown]
# ## Propose, weigh, resample
#
# On a grid the target is easy. A token of the digits model has three informative channels, one of the paper's has 128,
# and no grid covers those. We can still *evaluate* Eq. 15 up to its constant. What we cannot do is draw from it.
#
# *Importance sampling* is the way out: draw from something else, and correct the error by weights. A candidate that was
# drawn from $p_c$ gets the weight $p' / p_c \propto (p_c/p_u)^w$; one that was drawn from $p_u$ gets
# $p' / p_u \propto (p_c/p_u)^{w+1}$. Then one of the candidates is kept, with a probability proportional to its weight.
# This is Algorithm 1 of the paper, with five candidates of each kind.

# %% tags=["hide-input"]
guidance_by_resampling()


# %%
def resample(p_c, p_u, w, count, generator):
    """One draw (B,1) for each pair of mixtures, the candidates (B,2 count), and their weights.   (Alg. 1)"""
    p_c, p_u = p_c.unsqueeze(), p_u.unsqueeze()  # one mixture for several candidates
    from_c = p_c.expand(count).sample(generator)
    from_u = p_u.expand(count).sample(generator)
    candidates = torch.cat([from_c, from_u], dim=1)  # (B, 2 count, 1)
    log_ratio = p_c.log_prob(candidates) - p_u.log_prob(candidates)  # (B, 2 count)
    exponent = torch.tensor([w] * count + [w + 1] * count)
    weights = (exponent * log_ratio).softmax(dim=1)
    kept = torch.multinomial(weights, num_samples=1, generator=generator)
    return candidates[..., 0].gather(1, kept), candidates[..., 0], weights


pair = mixture(*P_C, rows=1000), mixture(*P_U, rows=1000)
mine, _, _ = resample(*pair, w=2.0, count=5, generator=seeded())
package = draw_token(*pair, guidance=Guidance(scale=2.0), generator=seeded())
assert torch.equal(mine, package.z)  # the package draws the same

# %% [markdown]
# Look at the ten candidates of one draw. The **effective sample size** says how many of them *count*: how many candidates
# of equal weight would do as well. For weights $\omega_s$ it is $(\sum_s \omega_s)^2 / \sum_s \omega_s^2$: ten if all are
# equal, and one if a single candidate has all the weight.

# %% tags=["hide-input"]
figure, panels = plt.subplots(
    2, 3, figsize=(9.5, 4), layout="constrained", sharex=True, sharey="row", height_ratios=[2, 1]
)
for (above, below), w in zip(panels.T, (0.5, 2.0, 6.0), strict=True):
    pair = mixture(*P_C), mixture(*P_U)
    _, candidates, weights = resample(
        *pair, w=w, count=5, generator=torch.Generator().manual_seed(3)
    )
    size = effective_sample_size(weights.log()).item()
    above.plot(grid, target(P_C, P_U, w), color=COLOURS[6], label="target")
    for name, parameters, line in (("$p_c$", P_C, "-"), ("$p_u$", P_U, "--")):
        above.plot(grid, log_density(parameters, grid).exp(), line, lw=1, label=name)
    for part, marker, colour in ((slice(0, 5), "o", COLOURS[0]), (slice(5, 10), "s", COLOURS[1])):
        place, weight = candidates[0, part], weights[0, part]
        above.plot(place, 0 * place, marker, color=colour, ms=5, clip_on=False, zorder=4)
        below.vlines(place, 0, weight, color=colour, lw=2)
        below.plot(place, weight, marker, color=colour, ms=5, clip_on=False)
    above.set(title=f"w = {w:g}: effective size {size:.1f}", xlim=(-3, 4), ylim=(0, 1.9))
    below.set(xlabel="z", ylim=(0, 1))
panels[0, 0].set_ylabel("density")
panels[1, 0].set_ylabel("weight")
panels[0, 0].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The same ten candidates each time: circles from $p_c$, squares from $p_u$. As $w$ grows, the weight gathers on the few
# candidates that the target likes, and fewer of them count.
#
# ## How many candidates?
#
# [![Guidance in one dimension](../results/live_guidance.png)](https://github.com/farmer-ref/farmer_ref#the-course) Operate this figure in the book: `make book`, then `book/_build/html/live.html#guidance`.
#
# *Predict first:* the paper takes five of each kind. Will the draws follow the target? Would a hundred be better?
#
# (A histogram of the candidates that are kept would be noisy. These histograms count *every* candidate, with its
# probability of being kept.)


# %% tags=["hide-output"]
def resampled(p_c, p_u, w, count):
    """Many candidates, and the probability of each to be kept among its `count` + `count`."""
    pair = (mixture(*parameters, rows=400_000 // count) for parameters in (p_c, p_u))
    z, log_weights = weighed_candidates(
        *pair, guidance=Guidance(scale=w), counts=(count, count), generator=seeded()
    )
    return z.flatten(), log_weights.softmax(1).flatten() / len(z)


def histograms(panels, curve, label, reach=3.5):
    """Histograms of (draws, weights) by their titles, from -reach to reach, each with the same curve."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(9.5, 2.7), layout="constrained", sharey=True
    )
    for axis, (name, (z, weights)) in zip(axes, panels.items(), strict=True):
        options = {"bins": 80, "range": (-reach, reach), "density": True}
        axis.hist(z, weights=weights, color=COLOURS[5], label="draws", **options)
        axis.plot(grid, curve, color=COLOURS[6], lw=1.2, label=label)
        axis.set(title=name, xlabel="z", xlim=(-reach, reach))
    axes[0].set_ylabel("density")
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False
    )
    plt.show()


panels = {f"{n} of each kind": resampled(P_C, P_U, w=2, count=n) for n in (1, 5, 100, 1000)}
histograms(panels, curve=target(P_C, P_U, w=2), label="target, w = 2")

# %% [markdown]
# One of each kind is not enough, five come close, and a hundred cannot be told from the target by eye. The two Gaussians,
# whose target is known exactly, say how close, and how the error shrinks.

# %% tags=["nbval-check-output"]
counts = (1, 2, 4, 8, 16, 32)
off = {"mean": [], "standard deviation": []}
for n in counts:
    z, probability = resampled(GAUSS_C, GAUSS_U, w=2, count=n)
    mean = probability @ z
    std = (probability @ z**2 - mean**2).sqrt()
    off["mean"].append(abs(mean - exact[2][0]).item())
    off["standard deviation"].append(abs(std - exact[2][1]).item())
    print(f"{n:2} of each kind: mean off by {off['mean'][-1]:.2f}")
assert off["mean"][0] > 3 * off["mean"][2] > 9 * off["mean"][4]

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
for (name, errors), marker in zip(off.items(), "os", strict=True):
    axes.loglog(counts, errors, marker + "-", ms=5, label=name)
axes.loglog(counts, [0.3 / n for n in counts], "k:", lw=1, label="one over the number")
axes.set(
    title="Error of the draws",
    xlabel="candidates of each kind",
    ylabel="difference from the target",
)
axes.set_xticks(counts, [str(n) for n in counts])
axes.minorticks_off()
axes.legend(frameon=False, loc="lower left")
plt.show()

# %% [markdown]
# The error falls about as one over the number of candidates. (It is the bias of a draw. The noise of an average, which
# falls as one over the square root, is something else.)
#
# There is a question that such an experiment can settle. The paper disagrees with itself about the candidates of $p_u$:
# Algorithm 1 gives them the exponent $w + 1$, its appendix A.2 the exponent $w$. With candidates of $p_u$ alone, only
# one of the two can be right.

# %% tags=["nbval-check-output"]
pair = mixture(*GAUSS_C, rows=200), mixture(*GAUSS_U, rows=200)
z, log_weights = weighed_candidates(
    *pair, guidance=Guidance(scale=1.0), counts=(0, 1000), generator=seeded()
)
for name, exponent in (("w + 1, as in Alg. 1", 2.0), ("w, as in A.2", 1.0)):
    weights = (exponent / 2.0 * log_weights).softmax(1)  # the package's exponent is w + 1 = 2
    mean = (weights * z[..., 0]).sum(1).mean()
    print(f"exponent {name:20} mean of the draws {mean:.1f}, of the target {exact[1][0]:.1f}")

# %% [markdown]
# Only the exponent $w + 1$ reaches the target's mean, so Algorithm 1 is right.
#
# > **The paper** does not say when the rule converges. Its settings (Table 6) weigh candidates with other temperatures
# > than they are drawn with: $T_{\pi,v} = 0.2$ flattens the weights of the mixtures. With these, the rule does not
# > converge to Eq. 15. **We** follow Algorithm 1, with all temperatures at 1 by default, so that there is something to
# > converge to. Every temperature is a field of `Guidance`.
#
# ## Candidates that count
#
# Redundant channels are guided in another way. They have *one* pool of candidates for an image, from which each token
# takes its vector, and a vector can be long: at the paper's patch size of 16 it has $R = 640$ channels.
#
# *Predict first:* let $p_c$ and $p_u$ be Gaussians of width 1 whose means differ by only $\delta = 0.1$ in each of $D$
# channels, and $w = 2$. Of 1,000 candidates of $p_c$, how many count if $D = 4$? If $D = 64$? If $D = 640$? (That is, what
# is their effective sample size?)

# %% tags=["nbval-check-output", "hide-output"]
pool = Guidance(
    scale=2.0, redundant_candidates_conditional=1000, redundant_candidates_unconditional=0
)
channels, count, taken = (4, 16, 64, 160, 640), [], []
for D in channels:
    zeros = torch.zeros(100, 1, D, dtype=torch.float64)
    p_c = GaussianMixture(zeros[..., 0], mean=zeros + 0.1, log_scale=zeros)
    p_u = GaussianMixture(zeros[..., 0], mean=zeros, log_scale=zeros)
    drawn = draw_pool(p_c, p_u, tokens=256, guidance=pool, generator=seeded())
    count.append(drawn.effective_sample_size.mean().item())
    taken.append(drawn.distinct.double().mean().item())
    print(f"D = {D:3}: {count[-1]:3.0f} count; 256 tokens share {taken[-1]:3.0f} vectors")

# %% tags=["hide-input", "hide-output"]
figure, axes = plt.subplots(figsize=(5.6, 3.9), layout="constrained")
axes.semilogy(channels, count, "o-", label="effective sample size")
axes.semilogy(channels, taken, "s--", label="vectors that 256 tokens took")
every = torch.linspace(0, 700, 200)
law = 1000 * torch.exp(-((2 * 0.1) ** 2) * every)
axes.semilogy(every, law, "k:", lw=1.2, label=r"$1000\,e^{-w^2 \delta^2 D}$")
axes.set(title="A pool of 1,000 candidates", xlabel="channels D", ylabel="number", ylim=(0.5, 1500))
figure.legend(frameon=False, loc="outside lower left")
plt.show()

# %% [markdown]
# The number falls exponentially with the channels, as
# $1000\,(\mathrm{E}\,\omega)^2 / \mathrm{E}\,\omega^2 = 1000\,e^{-w^2 \delta^2 D}$ says. The measured numbers end far above
# that law, and there they flatter: the candidates that would have had most of the weight were never drawn. With 640
# channels the 256 tokens collapse onto some twenty vectors. So guidance by resampling is for vectors that are short, or
# that the class has little to do with: a point in favour of the split of notebook 03.
#
# ## A target that cannot be normalised
#
# Eq. 15 is a density only if its integral is finite. For two Gaussians this means $\lambda > 0$, or
# $\sigma_c^2 < \frac{1+w}{w} \sigma_u^2$. Suppose that $p_c$ is the wider of the two: then $\log p'$ is a parabola that
# opens downwards for a small $w$ and *upwards* for a large one, in which case Eq. 15 grows
# without limit far out.

# %%
WIDE, NARROW = ([1.0], [0.0], [1.2]), ([1.0], [0.0], [1.0])  # p_c and p_u
curves = {}
for w in (1, 8):
    curve = (1 + w) * log_density(WIDE, grid) - w * log_density(NARROW, grid)  # log of Eq. 15
    curves[w] = curve - curve[len(grid) // 2]  # 0 at z = 0

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for (w, curve), line in zip(curves.items(), ("-", "--"), strict=True):
    left.plot(grid, curve, line, label=f"w = {w}")
    half = slice(len(grid) // 2, None)
    area = 2 * curve[half].exp().cumsum(0) * (grid[1] - grid[0])
    right.semilogy(grid[half], area, line, label=f"w = {w}")
left.set(title="log of Eq. 15, $p_c$ the wider", xlabel="z", ylabel="nats", ylim=(-60, 100))
left.legend(frameon=False)
right.set(title="Area between $-r$ and $r$", xlabel="r", ylabel="area", ylim=(1e-2, 1e40))
plt.show()

# %% [markdown]
# At $w = 1$ the area reaches its limit. At $w = 8$ it has none: Eq. 15 is then called *improper*, and there is no
# target.
#
# *Predict first:* the resampling rule does not know this. What will more candidates do to its draws?

# %% tags=["hide-output"]
panels, spreads = {}, []
for n in (1, 10, 100, 1000):
    z, probability = resampled(WIDE, NARROW, w=8, count=n)
    spreads.append((probability @ z**2).sqrt().item())
    panels[f"{n} of each kind:\nspread {spreads[-1]:.1f}"] = z, probability
histograms(panels, curve=target(WIDE, NARROW, w=0), label="$p_c$", reach=6)
assert (torch.tensor(spreads).diff() > 0.5).all()

# %% [markdown]
# The candidate farthest out has the largest weight, and more candidates reach farther. There is nothing to converge to,
# and the result depends on the number of candidates. In exercise 2 you will count how often this happens in a real model.
#
# ## The naive rule
#
# The paper compares with the rule of GIVT and JetFormer, two earlier models with mixtures of Gaussians. It draws a
# component $k$ of $p_c$, takes component number $k$ of $p_u$, and samples the target of these *two Gaussians*, by
# *rejection sampling*: propose a value from a wider Gaussian, accept it with a probability that is proportional to
# target over proposal, otherwise propose again, at most 1,000 times; if none is accepted, a draw of component $k$ of $p_c$
# is taken.
#
# For mixtures of one component this is nearly exact. Otherwise it has a flaw that you can guess: components have no
# order. Swap the two of $p_u$, and its density is still the same.
#
# *Predict first:* what does the naive rule draw for $p_c$ and $p_u$ of the first figure? And after the swap? (The black
# curve is the target.)

# %% tags=["hide-output"]
SWAPPED = tuple(parameter[::-1] for parameter in P_U)
assert torch.allclose(log_density(SWAPPED, grid), log_density(P_U, grid), atol=1e-12)


def naive(p_c, p_u, w):
    """40,000 draws of the naive rule."""
    pair = (mixture(*parameters, rows=40_000) for parameters in (p_c, p_u))
    return draw_naive(*pair, guidance=Guidance(scale=w, rule="naive"), generator=seeded())[:, 0]


panels = {
    "naive rule": (naive(P_C, P_U, w=2.0), None),
    "naive rule, $p_u$ swapped": (naive(P_C, SWAPPED, w=2.0), None),
    "resampling, $p_u$ swapped": resampled(P_C, SWAPPED, w=2, count=100),
}
histograms(panels, curve=target(P_C, P_U, w=2), label="target, w = 2")

# %% tags=["nbval-check-output", "hide-output"]
mean = target(P_C, P_U, w=2) @ grid * (grid[1] - grid[0])
one_component = naive(GAUSS_C, GAUSS_U, w=2.0).mean()
first, swapped = (draws.mean() for draws, _ in list(panels.values())[:2])
print(f"one component:  mean {one_component:.1f}, of the target {exact[2][0]:.1f}")
print(f"two components: mean {first:.1f}, swapped {swapped:.1f}, of the target {mean:.1f}")

# %% [markdown]
# The naive rule never moves weight from one bump to the other, and it gives two answers for one density. Resampling asks
# about the whole mixtures, so the order of their components means nothing to it.
#
# ## Images
#
# Now the model of 28×28 digits. It has 49 tokens of 16 channels, 8 of them informative. We ask for ten of each digit,
# and a small convolutional network, which was trained on real digits and knows nothing of our model, says what it sees.
# Orange frames mark digits that it takes for another one. One column is one class; the first six of each are shown.
#
# *Predict first:* how many of a hundred does it misread without guidance, and with $w = 1$? And what does guidance cost?

# %% tags=["hide-output"]
model = Farmer.from_pretrained("mnist").to(device).eval().requires_grad_(False)
judge = shipped_classifier()  # of real digits
labels = torch.arange(10).repeat(10)
settings = {
    "without guidance": Guidance(scale=0.0),
    "resampling, w = 1": Guidance(scale=1.0),
    "resampling, w = 4": Guidance(scale=4.0),
    "naive rule, w = 4": Guidance(scale=4.0, rule="naive"),
}
images, misread, reports = {}, {}, {}
for name, guidance in settings.items():
    z, reports[name] = model.prior.sample_with_report(
        labels.to(device), guidance, generator=seeded(device)
    )
    images[name] = model.decode(z)
    misread[name] = judge.predict(model.dequantiser.quantise(images[name])) != labels
labelled_grids(
    {name: batch[:60] for name, batch in images.items()},
    columns=10,
    marked={name: wrong[:60] for name, wrong in misread.items()},
)

# %% [markdown]
# What it costs is variety. We measure it as the mean distance between two images of one class, relative to that of real
# digits.


# %% tags=["hide-output"]
def diversity(values, labels):
    """The mean distance of two images of a class, in grey levels."""
    pairs = [torch.pdist(values[labels == c].flatten(1).double()).mean() for c in range(10)]
    return torch.stack(pairs).mean().item()


real = load_split("mnist-small", "test", model.config)  # 300 digits
print("                   misread  diversity (real digits: 100%)")
for name, batch in images.items():
    share = diversity(model.dequantiser.quantise(batch).cpu(), labels) / diversity(
        real.values, real.labels
    )
    print(f"{name:18} {misread[name].double().mean():7.0%}  {share:9.0%}")
assert misread["resampling, w = 1"].sum() < misread["without guidance"].sum()

# %% [markdown]
# Guidance repairs much: a scale of 1 removes most of the samples that are not recognisable digits. A larger scale makes
# digits of one class more alike. Note that broken samples are far from everything and so count as diverse; a diversity
# above that of real digits is no merit.
#
# Whether guidance pays depends on the model. The figure below is of our smaller model of 8×8 digits (three times 1,000
# samples for each setting, from `python -m benchmarks.guidance`), which needs less help. The *Fréchet distance* compares
# means and covariances of features of samples with those of real images: it is the formula of FID, with the scores of a
# digit classifier for features, and small is good.

# %% tags=["hide-input"]
sweep = json.loads((ROOT / "results/guidance.json").read_text())["sweep"]
measures = {
    "sample_accuracy": ("How often recognised", "accuracy of the classifier"),
    "diversity": ("How varied", "diversity (real digits: 1)"),
    "frechet_distance": ("How far from real digits", "Fréchet distance"),
}
figure, panels = plt.subplots(1, 3, figsize=(9.5, 3), layout="constrained")
for axes, (key, (title, unit)) in zip(panels, measures.items(), strict=True):
    for rule, style in (("resampling", "o-"), ("naive", "s--")):
        rows = [row for row in sweep if row["rule"] == rule]
        axes.errorbar(
            [row["scale"] for row in rows],
            [row[key]["mean"] for row in rows],
            yerr=[row[key]["standard_deviation"] for row in rows],
            fmt=style,
            ms=4,
            label=rule,
        )
    axes.set(title=title, xlabel="guidance scale w", ylabel=unit)
panels[0].legend(frameon=False, loc="lower right")
plt.show()

# %% tags=["nbval-check-output"]
nearest = min(sweep, key=lambda row: row["frechet_distance"]["mean"])
print(f"8×8 digits: least Fréchet distance at w = {nearest['scale']:g}")
print("28×28 digits after 1,600 steps, Fréchet distance:")
early = json.loads((ROOT / "results/table3_mnist-quick_histogram.json").read_text())["rows"]
by_name = {row["name"]: row["frechet_distance"]["mean"] for row in early}
print(f"  no guidance       {by_name['split, both']:.0f}")
print(f"  naive, w = 1      {by_name['both, naive guidance']:.0f}")
print(f"  resampling, w = 1 {by_name['both, resampling']:.0f}")

# %% [markdown]
# **By the Fréchet distance, the 8×8 model is best without guidance.** Resampling makes digits that are recognised more
# often and lie nearer to one another than real ones do; the naive rule does less of both. The paper finds the reverse
# (Table 3, FID: 44.56 without guidance, 8.66 with the naive rule, 5.67 by resampling). Perhaps that is because its
# unguided samples are far from the data. So are those of a small 28×28 model that has hardly begun to learn, and there
# the paper's order shows, with each of three seeds.
#
# ## Where does the class matter?
#
# Candidates have unequal weights where $p_c$ and $p_u$ differ, that is, where knowing the class changes what the token
# should be. So the effective sample size draws a map.
#
# *Predict first:* there are $7 \times 7$ tokens. For which of them do the fewest candidates count?

# %% tags=["hide-output"]
size = reports["resampling, w = 4"].effective_sample_size.mean(0).view(7, 7).cpu()
figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.2), layout="constrained")
left.imshow(images["resampling, w = 4"].mean(0)[0].cpu(), cmap="gray", vmin=-1, vmax=1)
left.set(title="mean of the samples", xticks=[], yticks=[])
heat = right.imshow(size, vmin=1, vmax=10, extent=(0.5, 7.5, 7.5, 0.5), zorder=2)
figure.colorbar(heat, label="effective sample size, of 10")
right.set(title="w = 4, by token", xlabel="column of tokens", ylabel="row of tokens")
right.set(xticks=range(1, 8), yticks=range(1, 8))
plt.show()
assert size[1:-1, 2:5].mean() + 2 < size[:, [0, -1]].mean()

# %% [markdown]
# At the border every digit is black, with or without a class, and nearly all candidates count. In the middle, where
# strokes tell the classes apart, resampling has the most to decide and the fewest candidates left to choose from.
#
# ## What to remember
#
# - Draw from what you can, weigh by what you want over what you drew from, keep one: that is Algorithm 1.
# - It converges to Eq. 15 if that has a finite integral and all temperatures are 1. Otherwise the result depends on the
#   number of candidates, which has to be stated with it.
# - The effective sample size says how much choice resampling has. It falls exponentially with the number of channels.
# - Guidance by resampling makes samples easier to recognise and less varied. Whether that is better depends on the model,
#   and on how you measure. (The naive rule hardly changes the variety, and helps recognition less.)
#
# ## Exercises
#
# **1 (think · 10 minutes · 3 marks).** Call $p_u$ *honest* if it is the average of the ten $p_c$. How large can
# $p_c/p_u$ then become? Can Eq. 15 be improper? How could you test whether the $p_u$ of the 8×8 model is honest? Do it
# (`model.prior.log_prob(z, labels)` is $\log p_c$ of whole latents, and without labels it is $\log p_u$).


# %% tags=["raises-exception"]
def share_beyond_honesty(model: Farmer, z: Tensor, labels: Tensor) -> float:
    """The share of latents z (B,N,D) whose p_c is more than ten times p_u."""
    raise NotImplementedError  # yours


small = Farmer.from_pretrained("digits")
classes = torch.arange(10).repeat(20)
z = small.prior.sample(classes, generator=torch.Generator().manual_seed(0))
no_class = torch.full_like(classes, -1)
assert share_beyond_honesty(small, z, no_class) == 0, "p_u is not larger than itself"
assert 0.5 < share_beyond_honesty(small, z, classes) <= 1
ratios = torch.tensor([0.0, 2.0, 2.4, 9.0])  # log p_c / p_u, where log 10 = 2.303
toy = mock.Mock()
toy.prior.log_prob = lambda z, labels=no_class: 0 * ratios if labels.max() < 0 else ratios
assert share_beyond_honesty(toy, z, classes) == 0.5, "more than ten times"

# %% [markdown]
# <details><summary>Solution</summary>
#
# An honest $p_u$ is at least $\frac{1}{10}\,p_c$. So the ratio is at most 10, and $p' \propto p_c\,(p_c/p_u)^w \le
# 10^w\,p_c$ always has a finite integral. The weights are bounded, too: guidance has no more to say where the class is
# certain. The bound holds for whole latents, so the log-ratios of an image's tokens must add up to at most $\log 10$.
#
# That is the test, and the model of 8×8 digits does not pass it: for nine in ten of its own samples they add up to more.
# The null class is learned in a tenth of the training only, and is a worse model than the average of the ten classes. So
# guidance also moves samples away from what the null class does badly, not only towards the class.
#
# ```python
# import math
#
#
# def share_beyond_honesty(model: Farmer, z: Tensor, labels: Tensor) -> float:
#     """The share of latents z (B,N,D) whose p_c is more than ten times p_u."""
#     with torch.no_grad():
#         log_ratio = model.prior.log_prob(z, labels) - model.prior.log_prob(z)
#     return float((log_ratio > math.log(10)).double().mean())
# ```
#
# </details>
#
# **2 (a few lines · 15 minutes · 4 marks).** Far out along a channel, the widest component of a mixture decides. For
# which share of the tokens of the 8×8 model is Eq. 15 improper along some channel, at $w = 0.5, 1, 2, 4$?
# `model.prior.mixtures` gives the mixtures of all tokens, and `log_scale` has the shape $(B, N, K, I)$.


# %% tags=["raises-exception"]
def share_improper(model: Farmer, z: Tensor, labels: Tensor, w: float) -> float:
    """The share of tokens of z (B,N,D) whose target has no finite integral along some channel."""
    raise NotImplementedError  # yours


small = Farmer.from_pretrained("digits")
classes = torch.arange(10).repeat(20)
z = small.prior.sample(classes, generator=torch.Generator().manual_seed(0))
shares = [share_improper(small, z, classes, w) for w in (0.0, 0.5, 1.0, 2.0, 4.0)]
assert shares[0] == 0, "p_c itself has an integral"
assert shares == sorted(shares), "a larger scale cannot make a target proper"
assert 0.1 < shares[-1] < 0.5, shares
# One image of two tokens, two components, two channels: along one channel of the first token, p_c's widest is the wider.
log_c = torch.tensor([[[[0.5, 0.5], [1.2, 1.0]], [[0.5, 0.5], [1.0, 1.0]]]]).log()  # (1,2,2,2)
log_u = torch.tensor([[[[0.5, 0.5], [1.0, 1.0]], [[0.5, 0.5], [1.0, 1.0]]]]).log()
toy = mock.Mock()
toy.prior.mixtures = lambda z, labels=None: (
    mock.Mock(log_scale=log_u if labels is None or labels.max() < 0 else log_c),
    None,
)
assert share_improper(toy, z, classes, 3.0) == 0.5, (
    "the widest component decides, and one token of two is improper"
)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def share_improper(model: Farmer, z: Tensor, labels: Tensor, w: float) -> float:
#     """The share of tokens of z (B,N,D) whose target has no finite integral along some channel."""
#     with torch.no_grad():
#         given, _ = model.prior.mixtures(z, labels)
#         null, _ = model.prior.mixtures(z)
#     widest_c = given.log_scale.amax(-2).exp()  # (B,N,I)
#     widest_u = null.log_scale.amax(-2).exp()
#     improper = (1 + w) / widest_c**2 <= w / widest_u**2
#     return float(improper.any(-1).double().mean())
# ```
#
# Fewer than one token in a hundred at $w = 0.5$, and about one in four at $w = 4$. (A target can also be improper in an
# oblique direction, which this does not count: it is a lower bound.)
#
# `python solutions/solution_04.py` also draws images at $w = 4$ with 2, 5 and 20 candidates of each kind. Their Fréchet
# distance grows with every step. More candidates come nearer to a target that is not worth reaching, or does not exist.
#
# </details>
#
# **3 (open · 30 minutes · 6 marks).** There is a cheaper way to tidy up samples: no $p_u$ and no candidates, but sharper
# mixtures. Narrow their components (`scale_temperature` below 1) or prefer the likely ones (`weight_temperature` above
# 1), both at $w = 0$. Compare with guidance at equal accuracy: which keeps more diversity? Start with a function that
# measures accuracy and diversity.


# %% tags=["raises-exception"]
def accuracy_and_diversity(
    model: Farmer, guidance: Guidance, *, classifier: PixelClassifier, seed: int, count: int
) -> tuple[float, float]:
    """The accuracy of samples, and their mean distance within a class, in grey levels."""
    raise NotImplementedError  # yours


small = Farmer.from_pretrained("digits")
classifier = PixelClassifier(load_split("digits", "train", small.config))
sharp = Guidance(scale_temperature=0.0, weight_temperature=100.0)  # hardly any noise left
(usual, varied), (_, alike) = (
    accuracy_and_diversity(small, way, classifier=classifier, seed=0, count=200)
    for way in (Guidance(), sharp)
)
assert 0.9 < usual <= 1, "most unguided samples are recognised"
assert alike < varied / 2, "without noise, samples of a class are alike"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def accuracy_and_diversity(
#     model: Farmer, guidance: Guidance, *, classifier: PixelClassifier, seed: int, count: int
# ) -> tuple[float, float]:
#     """The accuracy of samples, and their mean distance within a class, in grey levels."""
#     labels = torch.arange(10).repeat(count // 10)
#     with torch.no_grad():
#         z = model.prior.sample(labels, guidance, generator=torch.Generator().manual_seed(seed))
#         values = model.dequantiser.quantise(model.decode(z))
#     within = [torch.pdist(values[labels == c].flatten(1).double()).mean() for c in range(10)]
#     return classifier.accuracy(values, labels), float(torch.stack(within).mean())
# ```
#
# Guidance keeps more, at every accuracy that both reach (three seeds of 1,000 samples). In the table that `python
# solutions/solution_04.py` prints, compare $w = 0.25$ with $\sigma$ times 0.8, or $w = 1$ with logits times 3: the
# accuracies are about equal, and guided samples are more varied, by more than the standard deviation over seeds. A
# temperature narrows every token; guidance leaves a token alone if the class has no say in it.
#
# This is a verdict on one small model, by one classifier. And guidance costs two passes of the prior where a temperature
# costs one. Not tried: guidance that grows from token to token.
#
# </details>
