# %% [markdown]
# # 02a · Autoregressive likelihood
#
# [Open this notebook in Colab](https://colab.research.google.com/github/farmer-ref/farmer_ref/blob/main/notebooks/02a_ar_likelihood.ipynb)
#
# The flow of notebooks 01a and 01b turns an image into latents, and its log-determinant says how much it stretches space. One
# thing is missing for a density of images: a density of the latents. FARMER *learns* it, with a transformer that reads one
# token after another and predicts each before it reads it.
#
# After this notebook you can build that density from Gaussians and the chain rule, draw the score of an image as a map on
# the image, say why one parallel pass is enough for training, and explain what holds flow and prior together while both
# are trained.

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
from torch import Tensor, nn
from torch.distributions import Normal

from farmer_ref import PRESETS, AutoregressivePrior, Farmer, GaussianMixture
from farmer_ref.data.sets import batches, load_split
from farmer_ref.model.transformer import Transformer
from farmer_ref.support.drawings import gaussian_mixture
from farmer_ref.support.plots import COLOURS, STYLE
from farmer_ref.support.record import ROOT

# %config InlineBackend.figure_formats = ["svg"]
# %matplotlib inline
plt.rcParams.update(STYLE)

# %% [markdown]
# ## From one Gaussian to K
#
# What do latents look like? The model of 8×8 digits that ships with the package cuts an image into $N = 16$ tokens of
# $D = 4$ channels. The prior models the first $I = 3$ channels of a token with care; they are called *informative*, and
# notebook 03 is about the fourth. We encode all images.


# %%
def latents(model, dataset, split, count):
    """Grey levels (B,1,H,W), labels (B,), dequantised images, and latents (B,N,D) of a split."""
    values, labels = next(batches(load_split(dataset, split, model.config), count))
    noise = model.dequantiser.draw(tuple(values.shape), torch.Generator().manual_seed(0))
    images = model.dequantiser(values, noise)
    z, _ = model.encode(images)
    return values, labels, images, z


model = Farmer.from_pretrained("digits").requires_grad_(False)
_, _, _, train_z = latents(model, "digits", "train", 1400)
values, labels, images, z = latents(model, "digits", "test", 300)

# %% [markdown]
# Take *one* channel at *one* place, over all training images, and look for a density of it. A single Gaussian is the
# obvious first try. A mixture of $K$ Gaussians is the second: component $k$ has a weight $\pi_k$, a mean $\mu_k$ and a
# width $\sigma_k$ (Eq. 11), and the log-density is a log-sum-exp over the components (Eq. 7).
#
# $$\log p(z) = \log \sum_{k} \pi_k \, \mathcal{N}(z; \mu_k, \sigma_k^2)$$

# %% tags=["hide-input"]
gaussian_mixture()

# %% [markdown]
# Fitting it is maximum likelihood by gradient ascent. We do so for all 16 places at once: each gets a mixture of its own.


# %%
def climb(score, parameters, *, rate, steps):
    """Raise score() by Adam; returns its values on the way."""
    optimiser = torch.optim.Adam(parameters, lr=rate, maximize=True)
    heights = []
    for _ in range(steps):
        optimiser.zero_grad()
        height = score()
        height.backward()
        optimiser.step()
        heights.append(height.item())
    return heights


def fit(z, K):
    """N mixtures of K components, one for each place, fitted to one channel z (B,N,1)."""
    places = z.shape[1]
    logits = torch.zeros(places, K, requires_grad=True)
    mean = torch.linspace(-1, 1, K).repeat(places, 1)[..., None].requires_grad_()  # (N,K,1)
    log_scale = torch.zeros(places, K, 1, requires_grad=True)
    mixtures = GaussianMixture(logits, mean, log_scale)
    climb(lambda: mixtures.log_prob(z).mean(), [logits, mean, log_scale], rate=0.05, steps=150)
    return GaussianMixture(logits.detach(), mean.detach(), log_scale.detach())


channel, place = 2, 15
one_channel = train_z[..., channel, None]  # (B,N,1)
fits = {K: fit(one_channel, K) for K in (1, 2, 8)}
grid = torch.linspace(-6, 6, 1201)
curves = {K: mixtures[place].log_prob(grid[:, None]).exp() for K, mixtures in fits.items()}

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(7, 2.8))
axes.hist(one_channel[:, place, 0], 60, density=True, color="0.8", label="latents")
for K, style in zip(curves, ("--", "-.", "-"), strict=True):
    axes.plot(grid, curves[K], style, label=f"K = {K}")
axes.set(
    title=f"Token {place + 1}, channel {channel + 1}, of the training images",
    xlabel="latent",
    ylabel="density",
)
axes.set(xlim=(-3.5, 3.5))
_ = axes.legend(frameon=False, loc="upper left")

# %% [markdown]
# The latents have a narrow peak and a broad shoulder, and one Gaussian must bridge the two. Whatever $K$ is, the area below
# a curve is 1. A density that rises in one place has to fall in another, and that is why scores of different models can be
# compared at all. Do more components also describe new images better?

# %%
for K, mixtures in fits.items():
    area = torch.trapezoid(curves[K], grid).item()
    assert abs(area - 1) < 0.01
    score = mixtures.log_prob(z[..., channel, None]).mean()  # over test images and places
    print(f"K = {K}: area {area:.2f}, mean log-density of the test images {score:.2f} nats")

# %% [markdown]
# ## The chain rule
#
# A mixture for each place knows nothing of the picture. It gives the lower right corner of a digit the same density whether
# the digit is a 2 or a 7, and whatever has been drawn above. Probability theory has an exact remedy. Every density of $N$
# tokens is a product of conditional ones, each of which may depend on all tokens before:
#
# $$\log p(Z \mid c) = \sum_i \log p(z_i \mid z_{<i}, c)$$
#
# This is the chain rule (Eq. 5; $c$ is the class). Nothing has been assumed yet. The model enters when *one network* must
# produce all these conditional densities. FARMER's prior is a causal transformer. It reads the class and the tokens
# $z_{<i}$, and its output is the weights, means and widths of one mixture for token $i$, here with $K = 16$ components.
#
# Here is one test image at four moments. Upper row: what the prior has read so far (blue is still unread; tokens run row by
# row). Lower row: its density of channel 3 of the next token.
#
# *Predict first:* how will its mixture differ from the mixture of the place alone?

# %%
tokens, _ = model.prior.mixtures(z, labels)  # a mixture for each image and token, of 3 channels
# A channel of a diagonal mixture is a mixture again, with the same weights.
informed = GaussianMixture(
    tokens.logits,
    tokens.mean[..., channel, None],
    tokens.log_scale[..., channel, None],
)

# %% tags=["hide-input", "hide-output"]
chosen, moments = 3, (1, 6, 9, 14)
row_of_patch = torch.arange(8) // 2
token_of_pixel = 4 * row_of_patch[:, None] + row_of_patch
figure, rows = plt.subplots(2, 4, figsize=(8.5, 4.4), layout="constrained")
for token, above, below in zip(moments, *rows, strict=True):
    read = token_of_pixel < token
    above.imshow(values[chosen, 0].where(read, math.nan), cmap="gray", vmin=0, vmax=16)
    above.set(title=f"before token {token + 1}", xticks=[], yticks=[], facecolor=COLOURS[5])
    above.grid(False)
    alone = fits[8][token].log_prob(grid[:, None]).exp()
    now = informed[chosen][token].log_prob(grid[:, None]).exp()
    below.plot(grid, alone, "--")
    below.plot(grid, now, "-")
    below.axvline(z[chosen, token, channel], color=COLOURS[6], ls=":")
    below.set(xlabel=f"latent, channel {channel + 1}", xlim=(-3.5, 3.5), ylim=0)
rows[1, 0].set_ylabel("density")
meanings = ["the place alone", "after reading", "where the latent is"]
_ = figure.legend(rows[1, 0].lines, meanings, loc="outside lower left", ncols=2, frameon=False)

# %% [markdown]
# Reading moves the mixture, and mostly makes it narrower: the prior commits itself. That is a risk, too: before token 2, the
# place alone was the better guess. One image proves little, so we average over all test images. What is reading worth, in
# nats, at each of the 4×4 places?

# %%
test_channel = z[..., channel, None]
gain = informed.log_prob(test_channel) - fits[8].log_prob(test_channel)  # (B,N)
gain = gain.mean(0).view(4, 4)
assert gain[1:, 1:].mean() > gain[:, 0].mean()

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(6.4, 3), layout="constrained")
left.imshow(values.float().mean(0)[0], cmap="gray")
left.set(title="mean of the test images", xticks=[], yticks=[])
shown = right.imshow(gain, cmap="PuOr", vmin=-1, vmax=1)
for token, value in enumerate(gain.flatten().tolist()):
    shade = "white" if abs(value) > 0.7 else "black"
    right.text(token % 4, token // 4, f"{value:+.2f}", ha="center", va="center", color=shade)
right.set(title="gained by reading, in nats", xticks=[], yticks=[])
for axes in (left, right):
    axes.grid(False)
figure.colorbar(shown, ax=right, shrink=0.8)
plt.show()

# %% [markdown]
# The first token has nothing to read but the class. The left column is nearly always empty, and what is left of it after
# dequantisation is noise, of which nothing can be learned. Reading pays where strokes go on: in the middle and on the right,
# most of all once a first row has been read.
#
# ## Teacher forcing
#
# To *draw* an image, the prior must go token by token, because each draw is an input of the next step. To *score* an image,
# it need not: all tokens are there already, and one parallel pass gives all $N$ mixtures, provided that a **causal mask**
# keeps the mixture of a token from depending on that token and the later ones. Training on the true past instead of the
# model's own draws is called *teacher forcing*.
#
# Does the mask hold? Differentiate: how much do the means of the mixture of token $i$ move when token $j$ moves? The last row
# is the mixture $G_{N+1}$ for the redundant channels of all tokens (notebook 03).

# %%
one, label = z[chosen, None], labels[chosen, None]
direction = torch.randn(1, 1, 16, 3, generator=torch.Generator().manual_seed(0))


def outputs(z):
    """The means in a random direction: a number for each of the 16 mixtures, and one for the shared one."""
    tokens, shared = model.prior.mixtures(z, label)
    return torch.cat([(tokens.mean * direction).sum((0, 2, 3)), shared.mean.sum((1, 2))])


jacobian = torch.autograd.functional.jacobian(outputs, one)  # (17,1,16,4)
depends = jacobian[:, 0].norm(dim=-1)  # (17,16)
on_or_above_the_diagonal = torch.ones(16, 16).triu().bool()
assert torch.equal(depends[:16] == 0, on_or_above_the_diagonal)
assert (depends[16] > 0).all()  # the shared mixture has read every token
assert (jacobian[..., 3] == 0).all()  # the fourth channel is never read

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(5.2, 4.2), layout="constrained")
logarithm = depends.where(depends > 0, math.nan).log10()
shown = axes.imshow(logarithm, cmap="viridis", vmin=-3, vmax=0, extent=(0.5, 16.5, 17.5, 0.5))
axes.set(
    title="How the mixtures depend on the tokens",
    xlabel="token $j$ that moves",
    ylabel="mixture of token $i$",
)
axes.set_xticks([1, 4, 8, 12, 16])
axes.set_yticks([1, 4, 8, 12, 15, 17], ["1", "4", "8", "12", "15", "$G_{N+1}$"])
axes.grid(False)
figure.colorbar(shown, label="log$_{10}$ |derivative|; white: exactly 0")
plt.show()

# %% [markdown]
# White is zero, not merely small: no mixture knows its own token or a later one. (Weights and widths come from the
# same state as the means.) So the sampler, which has only the past,
# and the parallel pass, which is given everything, compute the same mixtures. And now suppose that the mask *leaks*.
#
# Here is data from which nothing can be learned: eight independent standard normal numbers. Their own density is the best
# there is. *Predict first:* what will a prior without a mask score?


# %%
def random_numbers():
    """100 sequences of 8 tokens, each a standard normal number."""
    return torch.randn(100, 8, 1)


curves = {}
for name, causal in (("with the mask", True), ("without it", False)):
    torch.manual_seed(0)
    toy = AutoregressivePrior(8, 1, layers=1, width=32, head_dim=16, num_classes=1, components=4)
    toy.transformer = Transformer(1, 32, head_dim=16, causal=causal)
    curves[name] = climb(
        lambda toy=toy: toy.log_prob(random_numbers()).mean() / 8,
        toy.parameters(),
        rate=3e-3,
        steps=150,
    )
best = -0.5 * math.log(2 * math.pi * math.e)  # the mean log-density of N(0, 1)

# %% tags=["hide-input", "hide-output"]
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
for name, curve in curves.items():
    axes.plot(curve, label=name)
axes.axhline(best, color=COLOURS[6], ls=":", label="the best density there is")
axes.set(title="Learning random numbers", xlabel="step", ylabel="nats per number")
_ = axes.legend(frameon=False)

# %% tags=["nbval-check-output", "hide-output"]
for name, curve in curves.items():
    ahead = torch.tensor(curve[-50:]).median() - best
    verdict = "better than the best" if ahead > 0.2 else "no better than the best"
    print(f"{name:13}: {verdict}")
assert torch.tensor(curves["with the mask"][-50:]).median() < best + 0.05

# %% [markdown]
# The network without a mask scores each number after it has read it. That is no density any more: its mass is more than 1,
# and nothing can be drawn from it. Note how harmless the bug looks. The training curve of the broken model is the better
# one, and if you had not known the line, you would have been pleased.
#
# ## The score of an image, token by token
#
# The score of an image is a sum over tokens, so it can be drawn *on* the image. For this we take digits of 28×28 pixels in
# patches of 2×2, a grid of 14×14 tokens (the model `mnist-p2`). Three things add up for each token:
#
# $$\log p(\text{image} \mid c) = \sum_i \Big[ \underbrace{\log p(z_i \mid \dots)}_{\text{prior}} +
# \underbrace{\textstyle\sum_{\text{blocks}} \big(\sum_{\text{channels}} \log \sigma_i + \log \lvert\det A\rvert\big)}_{\text{flow}} +
# \underbrace{\log \lvert\det dx_i / d\text{pixels}\rvert}_{\text{coordinates}} \Big]$$
#
# $A$ is the learned linear map by which a block first mixes the channels of each token (notebook 01b). The last term is
# there because both models of this notebook look at a pixel not in its linear scale, but in a coordinate
# in which it is standard normal on its own. That is an invertible map like any other, with a derivative that counts. (The
# larger model first moves each pixel within its grey level, `model.noise`; the derivative of that is counted, too.)
# Notebook 02b says why both help.


# %%
def log_prob_of_tokens(model, images, labels):
    """The terms (B,N) of log p(image | c), one for each token, in nats."""
    # Coordinates: the derivative of every pixel's map.
    pixels = images.clone().requires_grad_()
    moved, _ = model.noise(pixels)
    (slope,) = torch.autograd.grad(model.pixels(moved)[0].sum(), pixels)
    terms = model.patchify(slope.log()).sum(-1)
    # Flow: the log sigmas of its blocks, and their linear maps of the channels, the same for all tokens.
    z, _ = model.to_tokens(images)
    for block in model.flow.blocks:
        mixed, logdet = block.mixing(z)
        _, log_scale = block.all_shifts_and_log_scales(block.flip_if_reversed(mixed))
        terms = terms + block.flip_if_reversed(log_scale).sum(-1) + logdet[:, None] / z.shape[1]
        z, _ = block(z)
    # Prior: a mixture for each token's informative channels, a shared one for the redundant channel.
    tokens, shared = model.prior.mixtures(z, labels)
    informative, redundant = model.prior.split(z)
    return terms + tokens.log_prob(informative) + shared.unsqueeze().log_prob(redundant)


large = Farmer.from_pretrained("mnist-p2").requires_grad_(False)
large_values, large_labels, large_images, large_z = latents(large, "mnist-small", "test", 10)
terms = log_prob_of_tokens(large, large_images, large_labels)
assert torch.allclose(terms.sum(1), large.log_prob(large_images, large_labels), atol=0.01)

# %% [markdown]
# To see what a patch *costs*, turn the sign and count in bits, for the whole grey levels: as in notebook 00, a constant is
# added for the size of a grey level, here for each of the 4 pixels of a patch. (Notebook 02b derives it.) *Predict first:*
# where on a digit will the expensive patches be, and what does the background cost?

# %% tags=["hide-output"]
cost = -terms / math.log(2) + 4 * math.log2(256 / 2)  # bits (B,N)
black = (large.patchify(large_values.float()) == 0).all(-1)  # patches without ink
print(f"black patches: {black.float().mean():.0%} of all, {cost[black].mean():.1f} bits each")
print(f"the others:    {(~black).float().mean():.0%} of all, {cost[~black].mean():.1f} bits each")
assert cost[~black].sum() > 0.95 * cost.sum()

# %% tags=["hide-input", "hide-output"]
shown = (2, 3, 4, 5, 8)
figure, rows = plt.subplots(2, len(shown), figsize=(8.4, 3.2), layout="constrained")
for number, above, below in zip(shown, *rows, strict=True):
    above.imshow(large_values[number, 0], cmap="gray")
    picture = below.imshow(cost[number].view(14, 14), cmap="magma", vmin=0, vmax=40)
    for axes in (above, below):
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
figure.colorbar(picture, ax=rows[1].tolist(), label="cost of a patch, bits")
plt.show()

# %% [markdown]
# Bright patches are the ones that surprise the model. More than 95% of the cost lies along the strokes, where the pen might
# have gone a little further left or right, or have been pressed a little harder. Among the brightest patches are ends and
# junctions (the 4 shows both). The background is dark throughout: nearly every image has it, and it costs next to nothing.
#
# Take care with one thing: a term does not belong to the probability of one *patch* given the patches before, because the
# blocks of the flow have read from both ends. A single term may even be negative. Only the sum has a meaning of its own.
#
# ### Two classes, one image
#
# The flow of this model does not see the class, so $Z$ is the same for all ten, and the difference between two classes is a
# sum of the prior's terms alone:
#
# $$\log p(\text{image} \mid c) - \log p(\text{image} \mid c') = \log p(Z \mid c) - \log p(Z \mid c')$$
#
# We compare the right class with the runner-up, in the informative channels only. (The shared mixture of the redundant
# channels depends on the class as well; the map leaves its term out.)

# %%
informative, _ = large.prior.split(large_z)
of_class = []
for c in range(10):
    tokens, _ = large.prior.mixtures(large_z, torch.full((10,), c))
    of_class.append(tokens.log_prob(informative))  # (B,N)
of_class = torch.stack(of_class)  # (classes,B,N)
right = of_class[large_labels, torch.arange(10)]
others = of_class.sum(-1).scatter(0, large_labels[None], -math.inf)
rival = others.argmax(0)
evidence = right - of_class[rival, torch.arange(10)]  # (B,N)

# %% tags=["hide-input"]
figure, rows = plt.subplots(2, len(shown), figsize=(8.4, 3.5), layout="constrained")
for number, above, below in zip(shown, *rows, strict=True):
    above.imshow(large_values[number, 0], cmap="gray")
    below.imshow(large_values[number, 0], cmap="gray_r", alpha=0.25, extent=(0, 14, 14, 0))
    picture = below.imshow(
        evidence[number].view(14, 14),
        cmap="PuOr",
        vmin=-3,
        vmax=3,
        alpha=0.8,
        extent=(0, 14, 14, 0),
    )
    below.set_title(
        f"{large_labels[number]} or {rival[number]}: {evidence[number].sum():+.1f}", fontsize=10
    )
    for axes in (above, below):
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
figure.colorbar(picture, ax=rows[1].tolist(), label="nats for the right class")
plt.show()

# %% [markdown]
# Purple patches speak for the right class, orange ones for its rival; the number above is their sum ("4 or 1": the right
# class is 4, the runner-up 1). Where both classes expect the same, the map is white. A few tokens decide between the two:
# those where one digit would turn and the other would not.
#
# ## Training flow and prior together
#
# In FARMER nobody trains the flow first and the prior afterwards. Both maximise one number, the log-density of the image,
#
# $$\log p(\text{image} \mid c) = \log p(Z \mid c) + \log \left| \det \frac{\partial Z}{\partial X} \right|$$
#
# ($\partial Z/\partial X$ stands for the whole way from pixels to latents, coordinates included.) So the flow learns to
# produce latents that are easy to predict. Why does it not cheat, and send every image to the
# same latents? *Predict first:* train a small model on $\log p(Z \mid c)$ alone, without the log-determinant. What happens
# to that number, and what to the true score?


# %%
def train_tiny(objective, steps=120):
    """Train a tiny model; returns log p(Z | c) and log p(image | c), nats per pixel, at each step."""
    torch.manual_seed(0)
    tiny = Farmer(PRESETS["tiny"].model)
    optimiser = torch.optim.Adam(tiny.parameters(), lr=1e-3, maximize=True)
    data, history = load_split("digits", "train", tiny.config), []
    for _ in range(steps):
        batch = torch.randint(len(data), (32,))
        grey, labels = data.values[batch], data.labels[batch]
        terms = tiny(tiny.dequantiser(grey, torch.rand(grey.shape)), labels)
        optimiser.zero_grad()
        objective(terms).mean().backward()
        optimiser.step()
        latent = terms.informative + terms.redundant
        history.append((latent.mean().item() / 64, terms.total.mean().item() / 64))
    return torch.tensor(history)  # (steps,2)


both = train_tiny(lambda terms: terms.informative + terms.redundant + terms.logdet)
prior_only = train_tiny(lambda terms: terms.informative + terms.redundant)

# %% tags=["hide-input", "hide-output"]
figure, panels = plt.subplots(1, 2, figsize=(8.5, 2.8), layout="constrained")
for kind, axes in enumerate(panels):
    axes.plot(both[:, kind], label="trained on both terms")
    axes.plot(prior_only[:, kind], label="trained on $\\log p(Z)$ alone")
    axes.set_xlabel("step")
panels[0].set(title="$\\log p(Z \\mid c)$", ylabel="nats per pixel")
panels[1].set(title="$\\log p(\\mathrm{image} \\mid c)$", ylim=(-6, 1))
_ = panels[0].legend(frameon=False, loc="upper left", fontsize=9)
_ = panels[0].set_ylim(-2, 5)

# %% tags=["nbval-check-output", "hide-output"]
last, last_without = both[-30:].median(0).values, prior_only[-30:].median(0).values
better_latents, worse_images = last_without[0] > last[0] + 1, last_without[1] < last[1] - 1
print(
    "Without the log-determinant, latents become", "more" if better_latents else "less", "probable,"
)
print("and images become", "less" if worse_images else "more", "probable.")
assert last[1] > both[0, 1]  # trained on both terms, the model learns

# %% [markdown]
# Without the log-determinant, the flow shrinks everything towards a point, which is perfectly predictable. The orange
# curve of $\log p(Z \mid c)$ would climb until the widths of the mixtures cannot become any smaller (the code keeps
# them above $e^{-7}$). Meanwhile the model of images is ruined: the flow shrinks faster than the mixtures can follow,
# so the orange curve of $\log p(\text{image} \mid c)$ falls, and the later rise does not make up for it. The
# log-determinant charges for shrinking exactly what shrinking gains. What remains worth learning is *structure*:
# latents that are easier to predict at the same volume.
#
# ## How many components?
#
# > **The paper** shows in A.1 (Eqs. 16 to 18) that with $K = 1$ the prior would be nothing new: a flow with one more block
# > (exercise 2). What FARMER adds to a flow is $K > 1$. Its Fig. 6a finds $K = 64$ best, by FID. **We** trained three seeds
# > for each $K$ on 8×8 digits, in linear pixels, for 2,500 steps, and compare bits/dim (notebook 02b; less is better).

# %% tags=["nbval-check-output"]
rows = json.loads((ROOT / "results/figure6a.json").read_text())["rows"]
for row in rows:
    print(f"{row['name']:7}: {row['bits_per_dim']['mean']:.2f} bits/dim")

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(5, 2.4), layout="constrained")
for row in rows:
    axes.plot([row["name"]] * 3, row["bits_per_dim"]["seeds"], "o", color=COLOURS[0])
_ = axes.set(title="Digits, one dot per seed", xlabel="components", ylabel="test bits/dim")

# %% [markdown]
# The step from 1 to 16 is large. After that the seeds differ as much as the numbers of components do.
#
# ## What to remember
#
# - The chain rule makes a density of $N$ tokens from $N$ conditional ones, without any approximation.
# - A mixture can have peaks and shoulders. Its parameters come from a transformer that has read the tokens before.
# - One parallel pass scores all tokens if the mask holds. A leak improves the training curve.
# - Log-densities add up over tokens, so a score can be shown as a map.
# - Flow and prior are trained on one number. Without the log-determinant the flow collapses.
#
# ## Exercises
#
# **1 (think · 5 minutes · 2 marks).** The chain rule holds for any order of the tokens. Suppose you train a second prior on
# the same latents, and it reads from the last token to the first. Will it give an image the same $\log p(Z \mid c)$? Will
# the map of its terms be the same?
#
# <details><summary>Solution</summary>
#
# For the *true* density both orders give the same sum, for every image: they are two ways of writing one number. For two
# trained networks the sums differ, because each approximates conditional densities of its own, some of which are harder to
# learn than others, so one order can be the better model. The maps differ even for the true density. A stroke is a surprise
# where it is met first and predictable where it goes on, so that the cost moves from the start of a stroke to its end.
#
# </details>
#
# **2 (a few lines · 15 minutes · 4 marks).** With one Gaussian per token and no split, $z'_i = (z_i - \mu_i) / \sigma_i$ is
# standard normal, where $\mu_i$ and $\sigma_i$ depend on $c$ and $z_{<i}$. So this prior is one more block of the flow
# (Eq. 8, whose $\sigma$ is $1 / \sigma_i$ here) with a standard normal behind it. Write that block.


# %% tags=["raises-exception"]
def as_block(prior: AutoregressivePrior, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """z' (B,N,D) and log|det dz'/dz| (B,): a prior with K = 1 and no split, as a block of a flow."""
    raise NotImplementedError  # yours


torch.manual_seed(0)
single = AutoregressivePrior(
    6, 3, layers=2, width=16, head_dim=8, num_classes=4, components=1
).double()
torch.nn.init.normal_(single.token_head.weight, std=0.2)  # at zero every bug would pass
some, classes = torch.randn(4, 6, 3).double(), torch.arange(4)
moved, logdet = as_block(single, some, classes)
standard = Normal(torch.zeros(()).double(), 1).log_prob(moved).sum((1, 2))
assert torch.allclose(standard + logdet, single.log_prob(some, classes))
matrix = torch.autograd.functional.jacobian(
    lambda z: as_block(single, z, classes[:1])[0].flatten(), some[:1]
)
assert torch.allclose(logdet[0], matrix.view(18, 18).slogdet().logabsdet)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def as_block(prior: AutoregressivePrior, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
#     """z' (B,N,D) and log|det dz'/dz| (B,): a prior with K = 1 and no split, as a block of a flow."""
#     mixture, _ = prior.mixtures(z, labels)
#     mean, log_scale = mixture.mean[:, :, 0], mixture.log_scale[:, :, 0]  # of the only component
#     return (z - mean) * torch.exp(-log_scale), -log_scale.sum((1, 2))
# ```
#
# The one difference to a block of the flow is that the first token is moved too, by the class.
#
# </details>
#
# **3 (open · 90 minutes · 8 marks).** Other autoregressive networks would do. Replace the transformer by a recurrent one, a
# GRU: freeze the shipped flow and train both kinds on its latents, with about as many parameters and for the same time.
# Which is better? Your module needs two methods of `AutoregressivePrior`: `mixtures(z, labels)`, here the mixtures (B,N)
# alone, as there is no shared one, and `log_prob_parts(z, labels, training)`, a `PriorLogProb` (`farmer_ref.model.prior`)
# whose redundant part is zero. `Farmer` asks its prior for nothing else to score images, so yours can be put in its place.


# %% tags=["raises-exception"]
def recurrent_prior(width: int) -> nn.Module:
    """A prior of the digits' latents with a GRU: 16 tokens, 4 channels, 10 classes, K = 16, no split."""
    raise NotImplementedError  # yours


gru = recurrent_prior(24)
for weight in gru.parameters():
    nn.init.normal_(weight, std=0.3)  # at zero every bug would pass
some, classes = torch.randn(3, 16, 4), torch.tensor([0, 5, 9])
before, _ = gru.log_prob_parts(some, classes, None)
assert before.shape == (3,)
other = gru.mixtures(torch.cat([some[:, :9], torch.randn(3, 7, 4)], 1), classes)  # another future
assert torch.allclose(other.mean[:, :10], gru.mixtures(some, classes).mean[:, :10], atol=1e-6)
# And the past counts.
assert not torch.allclose(other.mean[:, 10:], gru.mixtures(some, classes).mean[:, 10:])

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# from farmer_ref.model.prior import PriorLogProb
#
#
# class RecurrentPrior(nn.Module):
#     """p(Z | c) = prod_i p(z_i | z_<i, c), with a GRU in the place of the transformer; no split."""
#
#     def __init__(
#         self, tokens: int, channels: int, layers: int, width: int, classes: int, components: int
#     ):
#         super().__init__()
#         self.components = components
#         self.class_embedding = nn.Embedding(classes, width)  # read before the first token
#         self.project_in = nn.Linear(channels, width)
#         self.positions = nn.Parameter(torch.randn(tokens, width) * 0.02)
#         self.gru = nn.GRU(width, width, layers, batch_first=True)
#         self.head = nn.Linear(width, components * (1 + 2 * channels))
#         nn.init.zeros_(self.head.weight)  # near the standard normal, as in the package
#         nn.init.normal_(self.head.bias, std=0.1)
#
#     def mixtures(self, z: Tensor, labels: Tensor) -> GaussianMixture:
#         """The mixtures (B,N) of latents z (B,N,D), each of which has read the class and the tokens before."""
#         before = torch.cat([self.class_embedding(labels)[:, None], self.project_in(z[:, :-1])], 1)
#         hidden, _ = self.gru(before + self.positions)
#         return GaussianMixture.from_raw(self.head(hidden), self.components)
#
#     def log_prob_parts(self, z: Tensor, labels: Tensor, training: None = None) -> PriorLogProb:
#         """log p(Z | c) (B,), in the form that `Farmer` asks for: there is no redundant part."""
#         log_p = self.mixtures(z, labels).log_prob(z).sum(1)
#         return PriorLogProb(log_p, torch.zeros_like(log_p))
#
#
# def recurrent_prior(width: int) -> nn.Module:
#     """A prior of the digits' latents with a GRU: 16 tokens, 4 channels, 10 classes, K = 16, no split."""
#     return RecurrentPrior(16, 4, 1, width, 10, 16)
# ```
#
# Put into the shipped model in place of its prior, both are scored in bits/dim of the validation images
# (`python solutions/solution_02a.py` trains them for 8 and for 20 seconds, with two seeds). After 8 seconds on one core the
# GRU was a little ahead when we tried: it makes more steps in the time. It was further ahead on the training images than on
# these, so it had begun to learn them by heart, and longer training is a different race. Both stay behind the shipped
# prior, which was trained longer, with dropout, and together with its flow. Sixteen tokens also spare the GRU what it is
# bad at: with a thousand, it must carry the past in one state, and it can be trained only step after step, where the
# transformer's pass is parallel.
#
# </details>
