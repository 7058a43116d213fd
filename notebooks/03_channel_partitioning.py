# %% [markdown]
# # 03 · Informative and redundant channels
#
# [Open this notebook in Colab](https://colab.research.google.com/github/farmer-ref/farmer_ref/blob/main/notebooks/03_channel_partitioning.ipynb)
#
# A token of the paper has 768 channels, and most of them say little that matters. FARMER models a few with care, one token
# after another, and the rest all at once (Sec. 3.3). Who decides which numbers matter? After this notebook you can say what
# ends up where, test it on a model by exchanging, redrawing and reading its latents, write down the density, and compute
# what the split saves. You need notebooks 00 and 02a.

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
from matplotlib.ticker import PercentFormatter
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import cross_val_score
from torch import Tensor
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

from farmer_ref import PRESETS, Farmer
from farmer_ref.data.sets import batches, load_split
from farmer_ref.evaluation.classifier import shipped_classifier
from farmer_ref.model.tokens import Patchify
from farmer_ref.support.drawings import channel_split
from farmer_ref.support.plots import COLOURS, STYLE, comparison, labelled_grids
from farmer_ref.support.record import ROOT

# %config InlineBackend.figure_formats = ["svg"]
# %matplotlib inline
plt.rcParams.update(STYLE)
_ = torch.set_grad_enabled(False)  # nothing is trained here

# %% [markdown]
# ## The picture

# %% tags=["hide-input"]
channel_split()

# %% [markdown]
# Our model for this notebook is `mnist`: digits of 28×28 pixels in patches of 4×4, so $N = 49$ tokens of $D = 16$ channels.
# The first $I = 8$ channels of a token are **informative**, $Z_I$. The other $R = 8$ are **redundant**, $Z_R$.
#
# Nothing in the model says what should go where. Each block of its flow begins with a learned linear map of the
# channels (started at a random rotation), so a channel is not a pixel. Training alone decides. Here are the latents of three
# test images: a map of 7×7 tokens for each channel.

# %%
model = Farmer.from_pretrained("mnist").requires_grad_(False)


def latents(split, count):
    """Dequantised images, labels and latents (B,N,D) of a split."""
    values, labels = next(batches(load_split("mnist-small", split, model.config), count))
    noise = model.dequantiser.draw(tuple(values.shape), torch.Generator().manual_seed(0))
    images = model.dequantiser(values, noise)
    z, _ = model.encode(images)
    return images, labels, z


images, labels, z = latents("test", 100)
z_i, z_r = model.prior.split(z)  # informative (B,N,I), redundant (B,N,R)

# %% tags=["hide-input"]
figure = plt.figure(figsize=(10, 2.5), layout="constrained")
rows = figure.subplots(3, 18, width_ratios=[1.3] + 8 * [1] + [0.3] + 8 * [1])
for image, latent, row in zip(images[2:5], z[2:5], rows, strict=True):
    row[0].imshow(image[0], cmap="gray")
    for channel in range(16):
        row[1 + channel + (channel > 7)].imshow(
            latent[:, channel].view(7, 7), cmap="PuOr", vmin=-3, vmax=3
        )
    for axes in row:
        axes.set_axis_off()
for channel in range(16):
    rows[0, 1 + channel + (channel > 7)].set_title(channel + 1, fontsize=8)
figure.suptitle("channels of $Z_I$ (1 to 8) and of $Z_R$ (9 to 16)", x=0.01, ha="left", fontsize=10)
plt.show()

# %% [markdown]
# Orange is negative, purple is positive. You can see a digit in neither half. The flow has taken from each token what
# other tokens tell of it, and what is left looks like noise, a little paler in $Z_R$. By eye nobody could say which
# half matters. Three experiments can.
#
# ## Exchange it
#
# Take $Z_I$ from one image and $Z_R$ from another of a different class, and decode the pair. *Predict first:* which of the
# two will it look like? And how far will it be from either, in grey levels?

# %%
different = (labels[:, None] != labels).float()
donor = different.multinomial(1, generator=torch.Generator().manual_seed(0))[:, 0]
mixed = model.decode(model.prior.merge(z_i, z_r[donor]))

# %% tags=["hide-output"]
classifier = shipped_classifier()  # a ConvNet that was trained on real digits


def compare(decoded, original):
    """The share classified as the original's class, and the mean difference of a pixel, in grey levels of 256."""
    share = classifier.accuracy(model.dequantiser.quantise(decoded), labels[original])
    return share, 128 * (decoded.clamp(-1, 1) - images[original]).abs().mean().item()


print("decoded images, compared with those that gave ...")
for name, original in (("Z_I", torch.arange(100)), ("Z_R", donor)):
    share, away = compare(mixed, original)
    print(f"  {name}: {share:4.0%} classified as the same class, {away:2.0f} grey levels away")
assert compare(mixed, torch.arange(100))[0] > 0.9 > 0.1 > compare(mixed, donor)[0]

# %% tags=["hide-input", "hide-output"]
some = slice(0, 10)
rows = {
    "$Z_I$ from": images[some],
    "$Z_R$ from": images[donor][some],
    "decoded": mixed[some],
    "decoded less the first row, × 4": 4 * (mixed - images)[some],
}
labelled_grids(rows, columns=10, across=1)

# %% [markdown]
# Everything that you would call the digit comes from $Z_I$: the class, the slant, the thickness. What changes is the shade
# of single pixels along the strokes, and there are a few specks beside them. Most of it shows only in the last row, where
# mid-grey means no difference and differences are enlarged four times.
#
# ## Redraw it, and scale it
#
# Now we throw $Z_R$ away and draw it again from the model, given $Z_I$. The standard deviations $\sigma_k$ of its mixture
# are multiplied by a factor (Fig. 7 of the paper). The differences are from the original images, again enlarged four times.

# %%
redrawn = {}
for factor in (0, 0.5, 1, 2, 4):
    new = model.prior.sample_redundant(
        z_i, labels, temperature=factor, generator=torch.Generator().manual_seed(0)
    )
    redrawn[factor] = model.decode(model.prior.merge(z_i, new)).clamp(-1, 1)

# %% tags=["hide-input"]
rows = {}
for factor in (0, 1, 2, 4):
    rows[rf"$\sigma_k$ × {factor}"] = redrawn[factor][some]
    rows[rf"$\sigma_k$ × {factor}: difference × 4"] = 4 * (redrawn[factor] - images)[some]
labelled_grids(rows, columns=10)

# %%
for factor, decoded in redrawn.items():
    share, away = compare(decoded, torch.arange(100))
    print(f"σ × {factor:3}: {share:4.0%} classified correctly, {away:4.1f} grey levels away")
assert compare(redrawn[1], torch.arange(100))[0] > 0.9
assert compare(redrawn[0], torch.arange(100))[1] < compare(redrawn[2], torch.arange(100))[1]

# %% [markdown]
# With the factor 1, a fresh $Z_R$ is as good as the image's own: the digits stay. The factor 0 puts each redundant vector at
# the mean of a component, and comes even nearer to the originals. Larger factors add specks, and at 4 the noise breaks
# the digits up. So $Z_R$ may be anything that is *likely*, but not anything at all.
#
# The paper shows the same with its ImageNet model: colour and detail change, and the structure stays. (It writes that the
# *variance* is scaled, with the symbol of the standard deviation. We scale $\sigma_k$.)
#
# ## Read it
#
# The third experiment asks what a *linear classifier* can read from each part. We compare the latents with the pixels they
# were made from, in the same two halves: channels 1 to 8 of the tokens before the flow are the upper two rows of each
# patch, channels 9 to 16 the lower two. *Predict first:* from the pixels, it learns about as much from one half as from
# the other. Is that also so for $Z_I$ and $Z_R$?

# %%
parts = [latents(split, 300) for split in ("train", "validation", "test")]
all_images, all_labels, all_z = (torch.cat(part) for part in zip(*parts, strict=True))
all_x, _ = model.to_tokens(all_images)  # (500,N,D), before the flow


def readable(tokens):
    """The share of images that a linear classifier of some channels (B,N,C) gets right, by 5-fold cross-validation."""
    features = (tokens / tokens.std((0, 1))).flatten(1)
    scores = cross_val_score(
        RidgeClassifier(alpha=300.0), features.numpy(), all_labels.numpy(), cv=5
    )
    return scores.mean()


halves = {"channels 1–8": slice(0, 8), "channels 9–16": slice(8, 16)}
shares = {
    "pixels": [readable(all_x[..., half]) for half in halves.values()],
    "latents": [readable(all_z[..., half]) for half in halves.values()],
}
assert shares["latents"][1] < min(shares["latents"][0], shares["pixels"][1]) - 0.05

# %% tags=["hide-input", "hide-output"]
figure, axes = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
for shift, (name, values) in zip((-0.2, 0.2), shares.items(), strict=True):
    bars = axes.bar([shift, 1 + shift], values, 0.4, label=name)
    axes.bar_label(bars, fmt="{:.0%}")
axes.axhline(0.1, color=COLOURS[6], lw=1, ls=":", label="guessing")
axes.set_xticks([0, 1], ["channels 1–8 ($Z_I$)", "channels 9–16 ($Z_R$)"])
axes.set(ylim=(0, 1.25), ylabel="classified correctly", title="What a linear classifier reads")
_ = axes.legend(frameon=False, ncols=3, loc="upper left", columnspacing=1)

# %% [markdown]
# The two halves of the pixels are equals, those of the latents are not: training has moved part of what tells the class
# out of $Z_R$. Only a part: the probe still reads the class from $Z_R$ far better than chance (perhaps because it can see
# which patches are all background). Hold this against the exchange, where $Z_R$ decided nothing. What can be read from a
# representation and what it does are two different questions.
#
# Why does training sort the channels at all? Look at the density.
#
# ## The density
#
# $$\log p(Z \mid c) = \sum_i \log p(z_i^I \mid z_{<i}^I, c) + \sum_i \log G_{N+1}(z_i^R;\, Z_I, c)$$
#
# This is Eq. 14. Each token's informative part has a mixture of its own. *One* mixture $G_{N+1}$, predicted after the last
# token, serves the redundant parts of all tokens. It is the chain rule again, so independence of $Z_I$ and $Z_R$ is not
# assumed. But given $Z_I$, the $z_i^R$ are independent draws from one density, wherever in the image they lie. Here it is
# by hand, with PyTorch's distributions, in double precision:

# %% tags=["nbval-check-output"]
exact = Farmer.from_pretrained("mnist").double().requires_grad_(False)
c = labels[:8]
latent, _ = exact.encode(images[:8].double())
informative, redundant = exact.prior.split(latent)
tokens, shared = exact.prior.mixtures(latent, c)


def by_hand(mixture):
    """The same mixture as a distribution of PyTorch."""
    normals = Independent(Normal(mixture.mean, mixture.log_scale.exp()), 1)
    return MixtureSameFamily(Categorical(logits=mixture.logits), normals)


first_sum = by_hand(tokens).log_prob(informative).sum(1)  # over tokens
second_sum = by_hand(shared).log_prob(redundant.transpose(0, 1)).sum(0)
terms = exact.prior.log_prob_parts(latent, c)
assert torch.allclose(first_sum, terms.informative, rtol=1e-10)
assert torch.allclose(second_sum, terms.redundant, rtol=1e-10)
print("means of the tokens' mixtures (B,N,K,I):", tuple(tokens.mean.shape))
print("means of the shared mixture     (B,K,R):", tuple(shared.mean.shape))

# %% [markdown]
# $Z_R$ is an input of nothing. All of $Z_I$ is an input of $G_{N+1}$. Two quick checks:

# %%
other_r = exact.prior.mixtures(exact.prior.merge(informative, -redundant), c)
assert other_r[0].mean.equal(tokens.mean) and other_r[1].mean.equal(shared.mean)
for token in range(0, 49, 12):
    moved = informative.clone()
    moved[:, token] += 1
    assert not exact.prior.mixtures(exact.prior.merge(moved, redundant), c)[1].mean.equal(
        shared.mean
    )

# %% [markdown]
# Now you can see the force that sorts. A density for $Z_R$ that is the same in all places cannot follow a stroke. If the flow
# leaves structure in these channels, the likelihood pays for it. If it subtracts from them whatever *other tokens* tell, the
# likelihood gains. So $Z_R$ becomes as structureless as the flow can make it. That is the split that the paper calls
# "self-supervised".
#
# ### What the shared mixture knows
#
# JetFormer, which the paper builds on, leaves the redundant channels standard normal. What does $G_{N+1}$ add? We compare it
# with that, with a single Gaussian fitted to the very vectors that it scores, and with the mixture of *another* image.

# %%
_, own_mixture = model.prior.mixtures(z, labels)
vectors = z_r.flatten(0, 1)
standard = Normal(0.0, 1.0).log_prob(vectors).sum(1).mean()
one = MultivariateNormal(vectors.mean(0), vectors.T.cov()).log_prob(vectors).mean()
own = own_mixture.unsqueeze().log_prob(z_r).mean()
foreign = own_mixture.unsqueeze().log_prob(z_r[donor]).mean()
assert own > one
print("nats per redundant vector")
print(f"standard normal:             {standard:6.2f}")
print(f"one Gaussian for all images: {one:6.2f}")
print(f"another image's mixture:     {foreign:6.2f}")
print(f"the image's own mixture:     {own:6.2f}")

# %% [markdown]
# The standard normal is far behind, but it is no fair rival, as this flow was trained to fit the mixture. The fitted Gaussian
# is one, and the mixture beats it by its *shape*. Nearly all of the gain remains with another image's mixture: there is
# little left in $Z_I$ that would help to predict $Z_R$.
#
# ## What the split saves
#
# A mixture of $K$ components over $D$ channels is $K(1 + 2D)$ numbers, and without a split the network must put out that many
# for every token. With it, a token needs $K_I (1 + 2I)$, and the image once $K_R (1 + 2R)$. How many numbers is that for
# an image?

# %% tags=["nbval-check-output"]
saved = {}
for name in ("digits", "mnist", "cifar10", "farmer-1.1b-p16"):
    config = PRESETS[name].model
    N, D, D_I = config.tokens, config.token_channels, config.informative
    K_I, K_R = config.components, config.redundant_components
    whole = N * K_I * (1 + 2 * D)
    split = N * K_I * (1 + 2 * D_I) + K_R * (1 + 2 * (D - D_I))
    saved[name] = (whole, split)
    print(
        f"{name:15}: D = {D:3}, I = {D_I:3}: {whole:10,} numbers unsplit, {split:9,} with the split"
    )

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(6.5, 2.2), layout="constrained")
bars = axes.barh(list(saved), [split / whole for whole, split in saved.values()], 0.6)
axes.bar_label(bars, fmt="{:.0%}", padding=3)
axes.invert_yaxis()
axes.xaxis.set_major_formatter(PercentFormatter(1))
axes.set(xlim=(0, 1), xlabel="of the outputs without a split", title="What remains with the split")
plt.show()

# %% [markdown]
# At the paper's size, less than a fifth of the outputs remain. In the small models there is less to save.
#
# ## What the split costs
#
# > **The paper** reports that the split helps, that the shared mixture beats $N(0, I)$ (Table 3: FID 7.81 → 5.67), and that
# > few informative channels are best (Fig. 6b: 128 of 768). **We** repeat both with 8×8 digits, in linear pixels, 2,500 steps
# > and three seeds, where a token has only four channels in all.
#
# The first two rows are from our ablation for Table 3 and have $I = 3$; the others are from that for Fig. 6b. The accuracy
# is that of samples drawn with guidance of scale $w = 1$ (notebook 04).

# %%
tables = {}
for name in ("table3", "figure6b", "basis"):
    tables[name] = json.loads((ROOT / f"results/{name}.json").read_text())["rows"]
chosen = {
    "both, resampling": "$Z_R$: shared mixture",
    "both, resampling, Z_R ~ N(0, I)": "$Z_R$: N(0, I)",
}
rows = [row | {"name": chosen[row["name"]]} for row in tables["table3"] if row["name"] in chosen]
comparison(
    rows + tables["figure6b"], {"bits_per_dim": "test bits/dim", "sample_accuracy": "accuracy, %"}
)

# %% [markdown]
# In bits/dim, the shared mixture beats $N(0, I)$ here, too; the samples do not show it. That few informative channels are
# best does not hold: the bits/dim are lower the more channels are informative, and with one or two the samples suffer.
# Of four pixels there is none to spare. (In the last row the informative channels are spread over the patch, instead of
# being its first ones; one of the three seeds went astray.)
#
# ## Which channels? The basis
#
# In the model above, a learned map of the channels chose what "the first eight" are. Without one, as in the paper, they are
# simply the first pixels of a patch. A middle way is to write the patch in another orthonormal basis, in which the first
# channels are the coarse part: low frequencies first (DCT), or largest variance first (PCA). We try it on photographs, in
# colour, with patches of 4×4: $D = 48$ and $I = 12$. How much of a patch can be guessed, linearly, from the informative
# channels?

# %% tags=["nbval-check-output"]
config, first = PRESETS["photographs"].model, 12
crops = {}
for split in ("train", "test"):
    values, _ = next(batches(load_split("photographs", split, config), 2000, 2000))
    crops[split] = values.double() / 127.5 - 1
guessed = {"test crops": crops["test"]}
for name, basis in {"pixels": "pixel", "DCT": "dct", "PCA": "pca"}.items():
    patchify = Patchify(config.image_size, 3, patch_size=config.patch_size, basis=basis).double()
    patchify.fit(crops["train"])
    x, unseen = patchify(crops["train"]).flatten(0, 1), patchify(crops["test"])
    mean, cov = x.mean(0), x.T.cov()
    linear = torch.linalg.solve(
        cov[:first, :first], cov[:first, first:]
    )  # least squares: the rest from the first ones
    guess = unseen.clone()
    guess[..., first:] = (unseen[..., :first] - mean[:first]) @ linear + mean[first:]
    lost = (guess - unseen).square().sum() / (unseen - mean).square().sum()
    guessed[name] = patchify.inverse(guess)
    print(f"{name:6}: {lost:.0%} of the variance cannot be guessed from {first} of 48 channels")

# %% tags=["hide-input"]
labelled_grids({basis: batch[100:108] for basis, batch in guessed.items()}, columns=8)

# %% [markdown]
# The first twelve channels are the red values of three rows of pixels; green and blue are guesswork. DCT and PCA keep what
# matters. Trained models agree, after a short training (a table of our own, photographs, linear pixels):

# %%
shown = ("pixels, no split", "PCA, no split", "pixels, I = 12", "DCT, I = 12", "PCA, I = 12")
by_name = {row["name"]: row for row in tables["basis"]}
rows = [by_name[f"{name}, 600 steps"] | {"name": name} for name in shown]
comparison(rows, {"bits_per_dim": "test bits/dim, 600 steps"})

# %% [markdown]
# The gain has little to do with the split, though: without one it is as large. A block of the flow scales each channel of
# a token by itself and never mixes them. A basis, or a learned map, does. (With longer training the gap between pixels and
# PCA narrows, and DCT falls behind raw pixels, with one seed: `results/basis_long.json`. So a guess by least squares does
# not settle in which basis a flow learns best.)
#
# > **The paper** claims that training alone makes the split, in raw pixels, and does not say which channels are informative.
# > **We** take the first $I$. Bases (`--model.patch-basis pca`, `dct`) and Glow's learned map of the channels
# > (`--model.channel-mixing learned`, which the model of this notebook has) are our additions. JetFormer's public code has a
# > PCA of patches, too.
#
# ## What to remember
#
# - $Z_R$ ends up with what cannot be predicted and hardly matters: exchange it, redraw it, scale it, and the digit stays.
# - A probe still reads the class from $Z_R$, better than chance. What can be read need not decide anything.
# - The split is the chain rule: $\log p(Z_I \mid c) + \log p(Z_R \mid Z_I, c)$, with one mixture for all redundant parts.
# - It saves outputs: less than a fifth remains at the paper's size. It costs likelihood where channels are few.
# - Which channels are the first $I$ is a choice, of a person, of a basis, or of a learned map.
#
# ## Exercises
#
# **1 (think · 5 minutes · 2 marks).** Somebody multiplies the redundant channels by 4 after the flow and trains the prior
# again. Do these channels carry more now? What happens to the three terms of the likelihood?
#
# <details><summary>Solution</summary>
#
# No. The log-determinant grows by $N R \ln 4$ per image. The shared mixture must become four times as wide, which takes
# $N R \ln 4$ from its log-density. The informative term does not change, and neither does the sum. The width of a channel
# is a matter of units. What counts is how much the image and the other latents have to do with it, and that is what the
# exchange, the probe and another image's mixture have measured.
#
# </details>
#
# **2 (a few lines · 15 minutes · 4 marks).** Exchange some of the channels, not all of one kind: the first $k$ of 16, for
# $k = 0, 1, \dots, 16$. Plot the shares of the 100 test digits above that are classified as the original's class and as
# the donor's, against $k$ (`compare` finds them, and `donor` is still there). From which $k$ on has the donor won?


# %% tags=["raises-exception"]
def exchange(model: Farmer, z: Tensor, donor: Tensor, channels: Tensor) -> Tensor:
    """Images (B,C,H,W) decoded from latents z (B,N,D), with some channels from the images numbered donor (B,)."""
    raise NotImplementedError  # yours


small = Farmer.from_pretrained("digits").requires_grad_(False)
three = small.prior.sample(torch.arange(3), generator=torch.Generator().manual_seed(0))
turned = torch.tensor([1, 2, 0])
assert torch.allclose(
    exchange(small, three, turned, torch.arange(4)), small.decode(three[turned]), atol=1e-4
)
assert torch.allclose(
    exchange(small, three, turned, torch.arange(0)), small.decode(three), atol=1e-4
)
again, _ = small.encode(exchange(small, three, turned, torch.tensor([2])))
assert torch.allclose(again[..., 2], three[turned][..., 2], atol=0.01)
assert torch.allclose(again[..., [0, 1, 3]], three[..., [0, 1, 3]], atol=0.01)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def exchange(model: Farmer, z: Tensor, donor: Tensor, channels: Tensor) -> Tensor:
#     """Images (B,C,H,W) decoded from latents z (B,N,D), with some channels from the images numbered donor (B,)."""
#     mixed = z.clone()
#     mixed[..., channels] = z[donor][..., channels]
#     return model.decode(mixed)
# ```
#
# The first channel changes next to nothing, and the first few cost some digits their class before the donor's class
# appears: in between, many images are no digit at all. From $k = 7$ on the donor has won, and the eight redundant channels
# change nothing more. (`python solutions/solution_03.py` prints the shares. Which of the eight informative channels comes
# first has no meaning, since the model never orders them.)
#
# </details>
#
# **3 (open · 90 minutes · 8 marks).** Which channels should be the informative ones? It has been suggested to *cluster* them.
# Try it with photographs in raw pixels, $I = 12$: cluster the 48 channels by their correlations, keep the middle of each
# cluster, and compare this choice with the first twelve channels in two ways: how much of the
# other channels can be guessed from it linearly, and what bits/dim a trained model reaches.
# (`method` is one of those of `scipy.cluster.hierarchy.linkage`; `fcluster` cuts its tree. A model takes its informative
# channels from the head of `model.prior.channel_order`, which you may set before training.)


# %% tags=["raises-exception"]
def clusters(correlation: Tensor, count: int, method: str) -> list[Tensor]:
    """Agglomerative clusters by the distance 1 - |correlation|: the channels of each."""
    raise NotImplementedError  # yours


def representatives(correlation: Tensor, informative: int) -> list[int]:
    """From each of I clusters, the channel that is most correlated with the rest of its cluster."""
    raise NotImplementedError  # yours


# Channels 0, 2, 4 belong together, with 2 in the middle, and so do 1 and 3.
related = torch.eye(5)
for a, b, value in ((0, 2, 0.9), (2, 4, 0.9), (0, 4, 0.7), (1, 3, -0.8)):
    related[a, b] = related[b, a] = value
assert sorted(members.tolist() for members in clusters(related, 2, "complete")) == [
    [0, 2, 4],
    [1, 3],
]
assert {*representatives(related, 2)} in ({1, 2}, {2, 3})

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# from scipy.cluster.hierarchy import fcluster, linkage
# from scipy.spatial.distance import squareform
#
#
# def clusters(correlation: Tensor, count: int, method: str) -> list[Tensor]:
#     """Agglomerative clusters by the distance 1 - |correlation|: the channels of each."""
#     distance = (1 - correlation.abs()).clamp(min=0).fill_diagonal_(0)
#     tree = linkage(squareform(distance.numpy(), checks=False), method)
#     cluster = torch.from_numpy(fcluster(tree, count, "maxclust"))
#     return [(cluster == number).nonzero()[:, 0] for number in cluster.unique()]
#
#
# def representatives(correlation: Tensor, informative: int) -> list[int]:
#     """From each of I clusters, the channel that is most correlated with the rest of its cluster."""
#     members = clusters(correlation, informative, "complete")
#     return [int(m[correlation[m][:, m].abs().sum(1).argmax()]) for m in members]
# ```
#
# Judged by the linear guess, clustering is far ahead: from the first twelve channels, more than a tenth of the variance
# cannot be guessed, from the representatives less than a fiftieth. But *random* choices are nearly as good, and each of a
# hundred was better than the first twelve: any pixels spread over patch and colours will do. (The option `interleaved`
# spreads badly: every fourth channel of a patch four pixels wide is always the first column.)
#
# ```python
# import dataclasses
#
# from farmer_ref import bits_per_dim
#
# CONFIG = PRESETS["photographs"].model
#
#
# def trained_with(chosen: list[int], steps: int, seed: int = 0) -> float:
#     """Validation bits/dim of a small model of photographs in pixels with these informative channels."""
#     torch.manual_seed(seed)
#     config = dataclasses.replace(CONFIG, patch_basis="pixel", flow_width=64, prior_width=64)
#     model, train = Farmer(config), load_split("photographs", "train", config)
#     rest = [channel for channel in range(config.token_channels) if channel not in chosen]
#     model.prior.channel_order = torch.tensor(chosen + rest)
#     optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
#     for step in range(steps):
#         for group in optimiser.param_groups:
#             group["lr"] = 1e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
#         rows = torch.randint(len(train), (32,))
#         noise = torch.rand(32, *train.values.shape[1:])
#         loss = -model(model.dequantiser(train.values[rows], noise), train.labels[rows]).total.mean()
#         optimiser.zero_grad()
#         (loss / config.dimensions).backward()
#         torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
#         optimiser.step()
#     validation = load_split("photographs", "validation", config)
#     return bits_per_dim(model.eval(), validation.values, validation.labels, draws=2).mean().item()
# ```
#
# Training says the opposite: after 100 steps, with both seeds, the first twelve are *better* than the representatives
# and than a random choice (`python solutions/solution_03.py`). The linear guess was the wrong judge. We read it like
# this: the flow does not mix the channels of a token, so what ties them together can only be caught by the mixture of
# that token's informative channels, which gains most where these depend on one another, as three rows of one colour do.
# Cluster into three, and the clusters *are* the three colours: take a whole cluster, not one channel of each, and you
# are back near "the first". So clustering, in the usual sense, did not help this model; a basis did.
#
# </details>
