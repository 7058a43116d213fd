# %% [markdown]
# # 01b · Flow invertibility
#
# [Open this notebook in Colab](https://colab.research.google.com/github/farmer-ref/farmer_ref/blob/main/notebooks/01b_flow_invertibility.ipynb)
#
# Notebook 01a went from images to latents. This one goes back. After it you can invert the flow in two exact ways, say
# which of them is fast on which machine, tell how exact "exact" is in 16, 32 and 64 bits, and name the one thing that a
# block of the flow cannot do.

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
from torch import Tensor
from torch.autograd.functional import jacobian

from farmer_ref import AutoregressiveFlow, Farmer
from farmer_ref.data.sets import batches, load_split
from farmer_ref.model.coupling import CouplingFlow
from farmer_ref.model.jacobi import inverse_jacobi
from farmer_ref.support.drawings import flow_block
from farmer_ref.support.plots import STYLE
from farmer_ref.support.record import ROOT

# %config InlineBackend.figure_formats = ["svg"]
# %matplotlib inline
plt.rcParams.update(STYLE | {"axes.grid": False})
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# The model is the one for small digits: $N = 16$ tokens, $D = 4$ channels, four blocks, here in double precision. We
# take 20 test images to their latents.

# %%
shipped = Farmer.from_pretrained("digits").to(device).double().requires_grad_(False)
values, _ = next(batches(load_split("digits", "test", shipped.config), 20))
noise = torch.rand(values.shape, generator=torch.Generator().manual_seed(0))
images = shipped.dequantiser(values, noise).to(device).double()
tokens, _ = shipped.to_tokens(images)  # (20,16,4)
latents, _ = shipped.flow(tokens)

# %% [markdown]
# ## Two ways back
#
# [![A race of inverses](../results/live_race.png)](https://github.com/farmer-ref/farmer_ref#the-course) Operate this figure in the book: `make book`, then `book/_build/html/live.html#race`.
#
# One block of the flow shifts and scales token $i$ by numbers that a causal transformer computes from the tokens before
# it (Eq. 8). Solve that for $x_i$ (Eq. 9):
#
# $$z_i = (x_i - \mu(x_{<i})) \odot \sigma(x_{<i}) \qquad\Longleftrightarrow\qquad
# x_i = z_i \oslash \sigma(x_{<i}) + \mu(x_{<i})$$
#
# ($\oslash$ divides channel by channel.) The two look alike, but there is a difference. In the first, all of $x$ is
# known, so all tokens are computed at once. In the second, $\mu$ and $\sigma$ need the earlier tokens of $x$, which are
# what we are looking for.

# %% tags=["hide-input"]
flow_block()

# %% [markdown]
# **The sequential inverse** follows the orange arrow in the drawing: it computes token after token. The first token passes
# through and is known. From it follow $\mu$ and $\sigma$ of the next, and so on: $N - 1$ steps.


# %%
def by_steps(block, z, count):
    """The first `count` steps of a block's sequential inverse; later tokens stay as they are in z."""
    z = block.flip_if_reversed(z)  # from image order to reading order
    positions = block.embedded_positions(None)
    x = z.clone()
    for i in range(1, count + 1):
        mu, log_sigma = block.shift_and_log_scale(x[:, :i], positions[:, :i])  # of the next
        x[:, i] = z[:, i] * torch.exp(-log_sigma[:, -1]) + mu[:, -1]
    return block.flip_if_reversed(x)


# %% [markdown]
# **The parallel inverse** guesses. Put any guess for $x$ into the right-hand side of Eq. 9, here $z$ itself, for all tokens
# at once. Put the result in again. Such a pass is called a *sweep*, and the method is named after Jacobi, who solved linear
# equations this way.


# %%
def by_sweeps(block, z, count):
    """A block's parallel inverse after `count` sweeps."""
    z = block.flip_if_reversed(z)
    positions = block.embedded_positions(None)
    x = z.clone()
    for _ in range(count):
        mu, log_sigma = block.shift_and_log_scale(x[:, :-1], positions[:, :-1])
        x[:, 1:] = z[:, 1:] * torch.exp(-log_sigma) + mu
    return block.flip_if_reversed(x)


def undo(method, count):
    """The images after `count` steps or sweeps in each block, last block first."""
    x = latents
    for block in reversed(shipped.flow.blocks):
        x = method(block, x, count)
    return shipped.to_images(x)


# %% [markdown]
# *Predict first:* after how many sweeps is the parallel inverse exact, at worst? And which of the two methods shows a
# recognisable digit first?

# %% tags=["hide-input", "hide-output"]
counts = (0, 1, 2, 4, 8, 15)
figure, panels = plt.subplots(4, len(counts), figsize=(8.4, 5.2), layout="constrained")
for row, (name, method) in enumerate((("steps", by_steps), ("sweeps", by_sweeps))):
    for column, count in enumerate(counts):
        picture = undo(method, count)[3, 0].cpu()
        error = picture - images[3, 0].cpu()
        above, below = panels[2 * row, column], panels[2 * row + 1, column]
        above.imshow(picture, cmap="gray", vmin=-1, vmax=1)
        above.set(title=f"{count} {name if count != 1 else name[:-1]}")
        shown = below.imshow(error, cmap="PuOr", vmin=-1, vmax=1)
    panels[2 * row, 0].set_ylabel("sequential" if row == 0 else "parallel")
    panels[2 * row + 1, 0].set_ylabel("error")
plt.setp(panels, xticks=[], yticks=[])
_ = figure.colorbar(shown, ax=panels, label="error (an image spans -1 to 1)", shrink=0.5)
assert (undo(by_steps, 15) - images).abs().max() < 1e-9
assert (undo(by_sweeps, 15) - images).abs().max() < 1e-9

# %% [markdown]
# The counts are *for each block*. Both methods are exact after $N - 1 = 15$, and the parallel one shows the digit after
# two sweeps. Why 15 at worst? And why is it right so much earlier? Look at one block alone, token by token:

# %%
block = shipped.flow.blocks[0]
errors = {}  # by method: (16 counts, 16 tokens), the largest of 20 images and 4 channels
for name, method in (("sequential steps", by_steps), ("parallel sweeps", by_sweeps)):
    results = [method(block, block(tokens)[0], count) for count in range(16)]
    errors[name] = torch.stack([(x - tokens).abs().amax((0, 2)) for x in results]).cpu()
    assert errors[name].tril().max() < 1e-12  # after k sweeps, tokens 1 to k + 1 are exact

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
for axes, (name, error) in zip(panels, errors.items(), strict=True):
    place = (-0.5, 15.5, 16.5, 0.5)  # counts from 0, tokens from 1
    shown = axes.imshow((error.T + 1e-17).log10(), vmin=-16, vmax=0, extent=place)
    axes.stairs(torch.arange(16) + 1.5, torch.arange(17) - 0.5, baseline=None, color="w", lw=2)
    axes.set(title=f"error after {name}", xlabel=name, ylabel="token", ylim=(16.5, 0.5))
    axes.set_yticks([1, 4, 8, 12, 16])
_ = figure.colorbar(shown, ax=panels, label="log10 of the largest error")

# %% [markdown]
# Above the white stairs everything is exact, with both methods. Token 1 passes through; so the first sweep computes
# token 2 from correct input, the second sweep token 3, and so on. $N - 1$ sweeps are always enough. Below the stairs, the
# two differ. Sequential steps have not touched these tokens yet. Sweeps improve all of them every time, by about the same
# factor: tokens depend on one another only weakly, so a small error in one makes a smaller error in the next.
#
# The package's `inverse_jacobi` stops as soon as a sweep changes next to nothing. On these 20 images, with a tolerance
# of $10^{-5}$:

# %% tags=["nbval-check-output"]
back, report = inverse_jacobi(shipped.flow, latents, tolerance=1e-5)
assert (back - tokens).abs().max() < 1e-5
assert max(report.sweeps) < 15
print("sweeps of the four blocks:", report.sweeps)
print("steps of the sequential inverse: [15, 15, 15, 15]")

# %% [markdown]
# Fewer sweeps than steps: is it faster, then? Not necessarily. A sweep computes all tokens again, while a step computes
# only one. (Our `by_steps` goes over the earlier tokens each time. The package does not: its *key/value cache* keeps what
# attention needs of them.) These are timings of a larger flow on a CPU, as recorded in `results/inverses.json`:


# %% tags=["nbval-check-output"]
def recorded(name):
    return json.loads((ROOT / f"results/{name}.json").read_text())


for row in recorded("inverses")["matrix"]["rows"]:
    if row["method"] in ("sequential", "jacobi"):
        print(f"N = 256, batch {row['batch']:2}: {row['method']:10} {row['seconds']:5.2f} s")

# %% [markdown]
# For this flow, on a CPU, **the parallel inverse does not pay**: arithmetic is what takes the time there, and sweeps do more
# of it. (For a single image of a smaller model it may: notebook 05.) On a GPU, a step for one token is so little work that most of the time goes into launching it, and a few large sweeps may beat
# many small steps.
#
# > **The paper** inverts the flow sequentially, or with a one-step student (notebook 05). **We** add the parallel inverse,
# > which needs no training and is exact to any tolerance that you ask for.
#
# ## How exact is exact?
#
# In mathematics the inverse is exact. In a computer, every operation rounds. One step of Eq. 9 divides by $\sigma$: where
# $\sigma$ is small, a rounding error in $z$ is multiplied by $1/\sigma$, and then it travels on through $\mu$ and $\sigma$
# of all later tokens. That is one reason to bound $\log\sigma$.
#
# *Predict first:* the MNIST model sends an image to its latents and back. How large is the error in double precision, in
# single precision, and if the latents are stored in 16 bits? Count in grey levels, of which there are 256.

# %% tags=["hide-output"]
large = Farmer.from_pretrained("mnist").to(device).requires_grad_(False)
pictures, _ = next(batches(load_split("mnist-small", "test", large.config), 5))
noise = torch.rand(pictures.shape, generator=torch.Generator().manual_seed(0)).double()
originals = large.dequantiser(pictures, noise).to(device)


def error_of(model, stored_as):
    """The error of every pixel after a round trip, in grey levels, with latents stored as a type of numbers."""
    z, _ = model.encode(originals)
    returned = model.decode(z.to(stored_as).to(z.dtype))
    return (returned.double() - originals).abs() * 128


maps = {
    "latents in bfloat16": error_of(large, torch.bfloat16),
    "latents in float16": error_of(large, torch.float16),
    "all in float32": error_of(large, torch.float32),
    "all in float64": error_of(large.double(), torch.float64),
}
for name, error in maps.items():
    print(f"{name:20} largest error {error.max():.0e}, mean {error.mean():.0e} grey levels")
assert maps["all in float64"].max() < 1e-6 < maps["all in float32"].max() < 0.05

# %% tags=["hide-input", "hide-output"]
figure, panels = plt.subplots(5, 5, figsize=(7.6, 5.9), layout="constrained")
for axes, picture in zip(panels[0], originals[:, 0].cpu(), strict=True):
    axes.imshow(picture, cmap="gray")
panels[0, 0].set_ylabel("image", rotation=0, ha="right", va="center")
for line, (name, error) in zip(panels[1:], maps.items(), strict=True):
    for axes, one in zip(line, error[:, 0].cpu(), strict=True):
        shown = axes.imshow((one + 1e-18).log10(), vmin=-15, vmax=1, cmap="magma")
    line[0].set_ylabel(name.replace(" in ", "\nin "), rotation=0, ha="right", va="center")
plt.setp(panels, xticks=[], yticks=[])
_ = figure.colorbar(shown, ax=panels[1:], label="log10 of the error, grey levels")

# %% [markdown]
# In double precision next to nothing is left of the error, and single precision is good enough for any picture. (A black
# point in the rows above the last is a pixel without any error.) Latents in 16 bits are another matter: bfloat16 keeps
# eight binary digits, and its errors are more than a thousand times those of single precision; float16 keeps eleven, and
# its errors are a few hundred times as large. With bfloat16 the largest reach a whole grey level, which is all the room that a dequantised pixel has. This package therefore keeps latents, log-determinants and
# densities in 32 bits, even where the transformers compute in 16. (The errors follow the edges of the strokes. Grey levels
# are rare there, and the histogram through which the models that ship see a pixel keeps rare levels close together:
# notebook 02b.)
#
# ## An alternative: coupling
#
# There is another way to make a triangle. Keep half of the numbers; shift and scale the other half by what a network makes
# of the kept half; then swap the halves. No mask is needed, and the inverse of a block takes one pass, because it knows
# the kept half already. This is a **coupling** flow. Here is one with random weights (a new one is the identity), and its
# log-determinant in two ways, as in notebook 01a:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
coupling = CouplingFlow(16, 4, blocks=4, layers=1, width=32, head_dim=16).double().to(device)
for part in coupling.blocks:
    torch.nn.init.normal_(part.network.project_out.weight, std=0.1)

digit = tokens[3:4]
matrix = jacobian(lambda flat: coupling(flat.view_as(digit))[0].flatten(), digit.flatten())
summed, eliminated = coupling(digit)[1].item(), matrix.slogdet().logabsdet.item()
assert abs(summed - eliminated) < 1e-8
assert (coupling.inverse(coupling(tokens)[0]) - tokens).abs().max() < 1e-9
print(f"the sum: {summed:.3f} nats    by elimination: {eliminated:.3f} nats")

# %% [markdown]
# Coupling is the faster of the two to invert, and in the paper the weaker model. These are two models of the small digits
# with equally many blocks, each trained for 2,500 steps on linear pixels, without the histogram of notebook 02b
# (`results/table4.json`), beside what the paper reports for its own. (On 28×28 digits, whose tokens have 16 channels in
# place of 4, coupling was the *better* of the two, by less the longer they trained: see
# `results/table4_mnist-quick_histogram_long.json`. The next section shows what may be behind that.)

# %% tags=["nbval-check-output"]
for row in recorded("table4")["rows"][:2]:
    milliseconds = 1000 * row["seconds_per_image"]["back"]
    bits = row["bits_per_dim"]["mean"]
    paper = row["paper"].split(";")[0]
    print(f"{row['name']:19}: inverse {milliseconds:.1f} ms, {bits:.2f} bits/dim (paper: {paper})")

# %% [markdown]
# ## The blind spot inside a token
#
# In Eq. 8, every channel of a token is shifted and scaled by numbers that come from *other* tokens. It never sees the
# other channels of its own token, although these are the neighbouring pixels. Here are the derivatives
# $\partial z/\partial x$ again, for a few neighbouring tokens only (a thin line separates them). *Predict first:* which
# entries are zero in one block, and which after two and four?


# %%
def derivatives(modules, x, first, count):
    """dz/dx of `count` tokens from the `first` on, after the blocks `modules`."""
    _, _, channels = x.shape
    part = slice(first, first + count)

    def outputs(flat):
        z = flat.view_as(x)
        for module in modules:
            z, _ = module(z)
        return z[:, part].flatten()

    columns = slice(first * channels, (first + count) * channels)
    return jacobian(outputs, x.flatten())[:, columns]


blocks = list(shipped.flow.blocks)
large_tokens, _ = large.to_tokens(originals[:1])  # (1,49,16)
panels_of = {
    "one block": (derivatives(blocks[:1], digit, 5, 4), 4),
    "two blocks": (derivatives(blocks[:2], digit, 5, 4), 4),
    "four blocks": (derivatives(blocks, digit, 5, 4), 4),
    "one block,\nlearned mixing": (derivatives([large.flow.blocks[0]], large_tokens, 24, 2), 16),
}
pairs = panels_of["one block"][0].view(4, 4, 4, 4)  # token and channel of z, of x
for token in range(4):
    own = pairs[token, :, token]  # (4,4), a token and itself
    assert own.equal(own.diagonal().diag())

# %% tags=["hide-input", "hide-output"]
figure, panels = plt.subplots(1, 4, figsize=(8.4, 3.2), layout="constrained")
for axes, (name, (matrix, channels)) in zip(panels, panels_of.items(), strict=True):
    shown = axes.imshow(matrix.abs().log10().cpu(), vmin=-4, vmax=1)
    for edge in range(channels, len(matrix), channels):
        axes.axhline(edge - 0.5, color="0.5", lw=0.8)
        axes.axvline(edge - 0.5, color="0.5", lw=0.8)
    axes.set(title=name, xticks=[], yticks=[], xlabel="channel of x")
panels[0].set_ylabel("channel of z")
_ = figure.colorbar(shown, ax=panels, location="bottom", label="log10 |derivative|", aspect=60)

# %% [markdown]
# White is zero. In one block, each square on the diagonal (a token and itself) holds nothing but its own diagonal: the
# channels do not see each other. With two blocks the squares are filled: the channels have found a detour. One of them
# tells the other tokens what it is, in the first block; in the second, which reads the other way, these tokens tell the
# next channel. The last panel is the first block of the MNIST model, with two tokens of 16 channels. Before each of its
# blocks all tokens are multiplied by a learned matrix (`ChannelMixing`, Glow's invertible 1×1 convolution): it fills the
# square at once.
#
# Can a flow *learn* through the detour? Make data that need it: four independent tokens, whose eight channels are
# correlated. The correlations are worth a known number of nats, and we measure what share of them a flow learns.

# %%
normal = torch.distributions.Normal(0.0, 1.0)
torch.manual_seed(0)
distance = (torch.arange(8)[:, None] - torch.arange(8)).abs()
factor = torch.linalg.cholesky(0.9**distance)  # of the covariance
patches = (torch.randn(5000, 4, 8) @ factor.T).to(device)
seen, unseen = patches[:4000], patches[4000:]
possible = -4 * factor.diagonal().log().sum().item()  # nats that the correlations are worth


def log_prob(flow, x):
    """log p(x) (B,) in nats, under a standard normal z."""
    z, logdet = flow(x)
    return normal.log_prob(z).sum((1, 2)) + logdet


def shares_learned(blocks, mixing, steps=250):
    """The share of the possible nats that a small flow has gained on unseen data, every tenth step."""
    torch.manual_seed(0)
    flow = AutoregressiveFlow(
        4, 8, blocks=blocks, layers=1, width=32, head_dim=16, channel_mixing=mixing
    ).to(device)
    optimiser = torch.optim.Adam(flow.parameters(), lr=3e-3)
    shares = []
    for step in range(steps + 1):
        if step % 10 == 0:
            with torch.no_grad():
                gained = log_prob(flow, unseen) - normal.log_prob(unseen).sum((1, 2))
            shares.append(gained.mean().item() / possible)
        loss = -log_prob(flow, seen[torch.randint(len(seen), (256,), device=device)]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return shares


shares = {
    "1 block": shares_learned(1, mixing=False),
    "4 blocks": shares_learned(4, mixing=False),
    "1 block with mixing": shares_learned(1, mixing=True),
}

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
for name, learned in shares.items():
    axes.plot(range(0, 251, 10), learned, label=name)
axes.axhline(1, color="0.4", ls="--", lw=1.2)
axes.set(xlabel="step", ylabel=f"learned, of {possible:.1f} nats", ylim=(-0.3, 1.1))
_ = axes.legend(frameon=False, loc=(0.17, 0.3))  # where there are no curves

# %% tags=["nbval-check-output"]
assert shares["1 block"][-1] < 0.05
assert min(shares["4 blocks"][-1], shares["1 block with mixing"][-1]) > 0.8
for name, learned in shares.items():
    word = "nothing" if learned[-1] < 0.05 else "a part" if learned[-1] < 0.8 else "most"
    print(f"{name:20} learned {word}")

# %% [markdown]
# One block learns nothing, as it must. Four learn it, by the detour. With mixing, a single block does about what four
# do without. So a flow without mixing spends some of its blocks on getting around the blind spot that each of them has.
#
# What is that worth on real images? These are colour photographs, with tokens of 48 channels, after a short training and
# after a longer one (`results/basis.json`, `basis_long.json`). The third way is a PCA basis of the patches: a fixed
# matrix, chosen so that the channels are uncorrelated to begin with.

# %% tags=["nbval-check-output"]
for name, steps in (("basis", 600), ("basis_long", 2700)):
    found = {row["name"]: row["bits_per_dim"]["mean"] for row in recorded(name)["rows"]}
    for kind in ("pixels", "pixels, learned mixing", "PCA"):
        bits = found[f"{kind}, no split, {steps} steps"]
        print(f"{steps:4} steps, {kind:22}: {bits:.2f} bits/dim")

# %% [markdown]
# The detour is learned on photographs, too, but slowly. Notebook 03 returns to the choice of the basis.
#
# ## What to remember
#
# - The forward pass is parallel; the inverse waits for earlier tokens, and takes $N - 1$ steps a block.
# - $N - 1$ Jacobi sweeps are always enough, and far fewer usually do. On a CPU they seldom pay.
# - The inverse is exact up to rounding, and $1/\sigma$ amplifies rounding: keep latents in 32 bits.
# - A block is blind inside a token. Several blocks find a detour; a learned mixing of the channels needs none.
#
# ## Exercises
#
# **1 (think · 10 minutes · 3 marks).** Turn the block around: let $z_i = x_i \oslash \sigma(z_{<i}) + \mu(z_{<i})$, where the
# network reads the *latents* before token $i$. Which direction is parallel now? For which use of a flow would that be the
# better choice, and why does FARMER not make it?
#
# <details><summary>Solution</summary>
#
# From latents to images everything is known in advance, so sampling is one pass a block. From images to latents one must
# go token by token. This is the inverse autoregressive flow of Kingma et al. (2016). It suits a model that samples all the
# time and needs no likelihood of given data. Training by maximum likelihood needs the likelihood of given images at every
# step: that would take $N - 1$ times as many passes, with gradients through all of them. FARMER trains in the parallel
# direction and pays when it samples, or learns a one-step student of the inverse afterwards (notebook 05).
#
# </details>
#
# **2 (a few lines · 15 minutes · 4 marks).** Why do blocks alternate their order? Write a function that measures how
# far $z_i$ is from a straight line as $x_i$ alone moves. The cell then applies it to a random flow twice: with
# alternating blocks, and with all blocks reading the same way. Explain the difference.


# %% tags=["raises-exception"]
def bend(flow: AutoregressiveFlow, x: Tensor, token: int) -> float:
    """How far z of one token is from a straight line as the same token of x moves: 0 for an affine map."""
    raise NotImplementedError  # yours: three points on a line are enough


random_flow = AutoregressiveFlow(4, 1, blocks=4, layers=1, width=16, head_dim=8).double()
for part in random_flow.blocks:
    torch.nn.init.normal_(part.project_out.weight, std=0.3)
x = torch.randn(5, 4, 1, dtype=torch.float64)
assert bend(random_flow, x, 1) > 0.01  # alternating
for part in random_flow.blocks:
    part.reverse = False
assert max(bend(random_flow, x, i) for i in range(4)) < 1e-9  # all one way

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def bend(flow: AutoregressiveFlow, x: Tensor, token: int) -> float:
#     """How far z of one token is from a straight line as the same token of x moves: 0 for an affine map."""
#     step = torch.zeros_like(x)
#     step[:, token] = 0.5
#     with torch.no_grad():
#         low, middle, high = (flow(x + k * step)[0][:, token] for k in (-1, 0, 1))
#     return (high - 2 * middle + low).abs().max().item()
# ```
#
# If all blocks read one way, it does not bend at all. $z_i$ is affine in $x_i$ with numbers from $x_{<i}$, and an affine map
# of it with numbers from $z_{<i}$, which are functions of $x_{<i}$, is another such map. A hundred blocks would be one
# block, $p(x_i \mid x_{<i})$ would be a Gaussian under a Gaussian prior, and the first token would never be touched. With
# the orders alternating it bends.
#
# </details>
#
# **3 (open · 45 minutes · 6 marks).** When are few sweeps enough? Multiply what every block's `project_out` puts out
# (from which $\mu$ and, by the bound, $\log\sigma$ come) by a number, the strength with which tokens depend on one another,
# and count the sweeps of the parallel inverse. Plot them
# over the strength. At which strength does the parallel inverse need as many sweeps as the sequential one needs steps?
# What does that say about a flow that training has taken there?


# %% tags=["raises-exception"]
def sweeps_at(flow: AutoregressiveFlow, x: Tensor, strength: float) -> list[int]:
    """Sweeps of every block, first to last, when the outputs of `project_out` are multiplied by `strength`."""
    raise NotImplementedError  # yours; leave `flow` as it is


assert sweeps_at(shipped.flow, tokens, 0) == [1, 1, 1, 1]
assert sweeps_at(shipped.flow, tokens, 1) == report.sweeps
assert max(sweeps_at(shipped.flow, tokens, 4)) == 15

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import copy
#
#
# def sweeps_at(flow: AutoregressiveFlow, x: Tensor, strength: float) -> list[int]:
#     """Sweeps of every block, first to last, when the outputs of `project_out` are multiplied by `strength`."""
#     stronger = copy.deepcopy(flow)
#     for block in stronger.blocks:
#         block.project_out.weight.data *= strength
#         block.project_out.bias.data *= strength
#     with torch.no_grad():
#         z, _ = stronger(x)
#     return inverse_jacobi(stronger, z, tolerance=1e-5)[1].sweeps
# ```
#
# At strength 0 one sweep confirms the first guess. At the trained strength, nine sweeps do for fifteen sequential steps; at
# twice the strength nearly fifteen are needed, and at four times all. An error in one token is then multiplied on its
# way to the next, and only the stairs of the heat map above help. A flow that is trained longer, or whose data have
# strong dependence between tokens, moves in that direction: count its sweeps before you rely on them.
# `python solutions/solution_01b.py` prints the figures.
#
# </details>
