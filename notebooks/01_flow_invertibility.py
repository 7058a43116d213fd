# %% [markdown]
# # 01 · Flow invertibility
#
# [Open this notebook in Colab](https://colab.research.google.com/github/farmer-ref/farmer_ref/blob/main/notebooks/01_flow_invertibility.ipynb)
#
# A flow can be undone, and what it does to volume is known. After this notebook you can say why FARMER's flow has both
# properties, test them, undo it in two exact ways, and name what one block of it cannot do.

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
from sklearn.datasets import make_moons
from torch.autograd.functional import jacobian

from farmer_ref import AutoregressiveFlow, Farmer
from farmer_ref.data.sets import batches, load_split
from farmer_ref.model.coupling import CouplingFlow
from farmer_ref.model.jacobi import inverse_jacobi
from farmer_ref.support.drawings import causal_masks, flow_block
from farmer_ref.support.plots import COLOURS, STYLE, labelled_grids
from farmer_ref.support.record import ROOT

# %config InlineBackend.figure_formats = ["svg"]
# %matplotlib inline
plt.rcParams.update(STYLE | {"axes.grid": False})
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
steps = 500 if device.type == "cpu" else 1500  # of training a toy, below

# %% [markdown]
# ## Two numbers
#
# Let $x$ be a point of the plane and $z = f(x)$ where a flow puts it, with a standard normal density there. A small
# square around $x$ becomes a small parallelogram around $z$ with the same probability. So the density of $x$ is that of
# $z$ times the ratio of the areas, the determinant of the derivatives:
#
# $$\log p(x) = \log \mathcal N(f(x); 0, I) + \log\left|\det \frac{\partial z}{\partial x}\right| \qquad\text{(Eqs. 2 and 4)}$$
#
# Training makes this large at the data. A point is two tokens of one channel: $N = 2$, $D = 1$.


# %%
def log_prob(flow, x):
    z, logdet = flow(x)
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((1, 2)) + logdet


def fit(flow, data, steps):
    optimiser = torch.optim.Adam(flow.parameters(), lr=3e-3)
    for batch in torch.randint(len(data), (steps, 256), generator=torch.Generator().manual_seed(0)):
        optimiser.zero_grad()
        (-log_prob(flow, data[batch.to(device)]).mean()).backward()
        optimiser.step()
    return flow.requires_grad_(False)


torch.manual_seed(0)
moons = torch.tensor(make_moons(4000, noise=0.08, random_state=0)[0] - [0.5, 0.25]).float() * 1.5
moons = moons[:, :, None].to(device)  # (B,N,D)
shape = {"tokens": 2, "channels": 1, "blocks": 6, "layers": 1, "width": 32, "head_dim": 16}
flow = fit(AutoregressiveFlow(**shape).to(device), moons, steps)

# %%
line = torch.linspace(-5, 5, 301, device=device)
square = torch.cartesian_prod(line, line)[:, :, None]
density = log_prob(flow, square).exp().view(301, 301).cpu()
rulers = torch.cartesian_prod(torch.linspace(-2.8, 2.8, 23), torch.linspace(-2.8, 2.8, 300))
rulers = torch.cat([rulers, rulers.flip(1)])[:, :, None].to(device)  # lines up, lines across
figure, panels = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
panels[0].set(title="x: data and a grid", xlabel="token 1", ylabel="token 2")
panels[1].set(title="z: both, after the flow", xlabel="latent 1", ylabel="latent 2")
panels[2].set(title="density (bright: high)", xlabel="token 1", ylabel="token 2", aspect="equal")
panels[2].pcolormesh(
    line[50:251].cpu(), line[50:251].cpu(), density.T[50:251, 50:251], rasterized=True
)
for axes, a, b in ((panels[0], rulers, moons), (panels[1], flow(rulers)[0], flow(moons)[0])):
    axes.plot(*a.cpu().view(46, 300, 2).permute(2, 1, 0), color="0.6", lw=0.6)
    axes.plot(*b[:, :, 0].cpu().T, ".", ms=1.5, color=COLOURS[0], rasterized=True)
    axes.set(xlim=(-3.3, 3.3), ylim=(-3.3, 3.3), aspect="equal")

# %% [markdown]
# The grid is bent, never torn or folded: so it "can be undone". The moons fill the middle, and the empty plane is
# pushed out to where the normal density is tiny. Probability only moves:

# %% tags=["nbval-check-output"]
integral = (density.sum() * (line[1] - line[0]).cpu() ** 2).item()
error = (flow.inverse(flow(moons)[0]) - moons).abs().max().item()
assert abs(integral - 1) < 0.01 and error < 1e-3
print(f"integral of the density: {integral:.2f}")
print("the inverse returns the data:", error < 1e-3)

# %% [markdown]
# ## Why it works: a triangle
#
# The determinant for a million pixels is out of reach, unless the matrix is triangular. One block of the
# **autoregressive flow** makes it so. Token $i$ is shifted and scaled by numbers that a causal transformer computes
# from the tokens before it:
#
# $$z_i = (x_i - \mu(x_{<i})) \odot \sigma(x_{<i}), \qquad z_1 = x_1 \qquad \text{(Eq. 8)}$$
#
# ($\odot$ and, below, $\oslash$ multiply and divide channel by channel. This $\sigma$ multiplies; a standard deviation
# would divide.) No $z_i$ depends on a later $x_j$, so $\partial z / \partial x$ is triangular with the $\sigma$ on its
# diagonal, and its log-determinant is the sum of all $\log \sigma$ (Eq. 10). The first block reads the tokens in image
# order, the second back to front, and so on; their log-determinants add up.

# %% tags=["hide-input"]
flow_block()

# %% [markdown]
# Derivatives of the shipped digits model ($N = 16$, $D = 4$) at a test image, in 64-bit numbers. *Predict
# first:* what will be empty for one block, and what for all four?

# %% tags=["hide-output"]
shipped = Farmer.from_pretrained("digits").to(device).double().requires_grad_(False)
values, _ = next(batches(load_split("digits", "test", shipped.config), 20))
tokens = shipped.patchify(shipped.dequantiser(values, torch.tensor(0.5)).to(device).double())
digit, block = tokens[3:4], shipped.flow.blocks[0]
unmasked = AutoregressiveFlow(
    16, 4, **shipped.config.flow_settings(), causal=False
)  # every position sees all
unmasked.load_state_dict(shipped.flow.state_dict())
broken = unmasked.to(device).double().blocks[0]


def matrix(module):  # dz/dx (ND,ND) at the digit
    return jacobian(lambda x: module(x.view_as(digit))[0].flatten(), digit.flatten())


one, four, wrong = map(matrix, (block, shipped.flow, broken))
sizes = (m.view(16, 4, 16, 4).norm(dim=(1, 3)) for m in (one, four, wrong))
names = ("one block: 16 channels", "one block: tokens", "all four: tokens", "no mask: tokens")
figure, panels = plt.subplots(1, 4, figsize=(9, 3.2), layout="constrained")
for axes, name, picture in zip(panels, names, (one[20:36, 20:36].abs(), *sizes), strict=True):
    shown = axes.imshow(picture.log10().cpu(), vmin=-4, vmax=1, extent=(0.5, 16.5, 16.5, 0.5))
    axes.set(title=name, xlabel=f"{name.split()[-1]} of x", ylabel=f"{name.split()[-1]} of z")
plt.setp(panels, xticks=range(4, 17, 4), yticks=range(4, 17, 4))
_ = figure.colorbar(shown, ax=panels, location="bottom", label="log10 |derivative|", aspect=60)

# %% [markdown]
# White is zero, exactly. One block is triangular; and on the left (four tokens), inside a token (a 4×4 square),
# nothing but the diagonal is filled: remember that for the end. All four blocks fill everything, so the whole flow is
# not causal. Its log-determinant is still a sum:

# %% tags=["nbval-check-output"]
assert one.triu(1).abs().max() == 0
for name, module, derivatives in (("one block", block, one), ("all four", shipped.flow, four)):
    returned, exact = module(digit)[1].item(), derivatives.slogdet().logabsdet.item()
    assert abs(returned - exact) < 1e-8
    print(f"{name:10} log|det| by Eq. 10 {returned:.3f}, by elimination {exact:.3f}")

# %% [markdown]
# ## A broken mask
#
# The last panel shows a common bug: attention without its mask.

# %% tags=["hide-input"]
causal_masks()

# %% [markdown]
# *Predict first:* how will the loss of the moons look with it?

# %% tags=["nbval-check-output", "hide-output"]
leaky = AutoregressiveFlow(**shape, causal=False).to(device)  # no mask
fit(leaky, moons, 150)
gain = (log_prob(leaky, moons) - log_prob(flow, moons)).mean().item()
total = (log_prob(leaky, square).exp().sum() * (line[1] - line[0]) ** 2).item()
lost = (leaky.inverse(leaky(moons)[0]) - moons).abs().max().item()
off = abs(broken(digit)[1].item() - wrong.slogdet().logabsdet.item())
print("better by more than 2 nats a point, after fewer steps:", gain > 2)
print("its 'density' integrates to more than 10:", total > 10)
print("inverse off by more than .1:", lost > 0.1)
print("wrong log|det| of the digit:", off > 1e-3)

# %% [markdown]
# Nothing crashes, and the loss is *splendid*: $\mu$ has seen the token that it is to predict. Only the integral, the
# round trip and the determinant tell; check them with random weights, as a new flow is the identity and passes
# anything.
#
# ## Two ways back
#
# Solved for $x$, Eq. 8 needs earlier tokens of $x$ itself (Eq. 9):
#
# $$x_i = z_i \oslash \sigma(x_{<i}) + \mu(x_{<i})$$
#
# **Sequential:** token after token, $N - 1$ steps. **Parallel** (Jacobi): put a guess, here $z$, into the right-hand
# side for all tokens at once, and the result again. *Predict first:* after how many sweeps is it exact, at worst?


# %% tags=["hide-output"]
def undo(blocks, x, count, parallel):  # by sweeps, or by steps, which keep one token of a sweep
    for part in reversed(blocks):
        z, positions = part.flip_if_reversed(x), part.embedded_positions(None)[:, :-1]
        x = z.clone()
        for i in [slice(None)] * count if parallel else range(count):
            shift, log_scale = part.shift_and_log_scale(x[:, :-1], positions)
            x[:, 1:][:, i] = (z[:, 1:] * (-log_scale).exp() + shift)[:, i]
        x = part.flip_if_reversed(x)
    return x


frames, counts = {}, (0, 1, 2, 4, 8, 15)
for name in ("sequential: 0, 1, 2, 4, 8, 15 steps", "parallel: as many sweeps"):
    states = [undo(shipped.flow.blocks, shipped.flow(digit)[0], k, name[0] == "p") for k in counts]
    frames[name] = shipped.patchify.inverse(torch.cat(states))
labelled_grids(frames, columns=6)

# %% [markdown]
# Counts are *for each block*. In one block, token by token:

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for axes, name in zip(panels, ("sequential steps", "parallel sweeps"), strict=True):
    states = (undo([block], block(tokens)[0], k, "parallel" in name) for k in range(16))
    error = torch.stack([(x - tokens).abs().amax((0, 2)) for x in states]).cpu()
    assert error.tril().max() < 1e-12  # after i sweeps, tokens 1 to i + 1 are exact
    shown = axes.imshow((error.T + 1e-17).log10(), vmin=-16, vmax=0, extent=(-0.5, 15.5, 16.5, 0.5))
    axes.stairs(torch.arange(16) + 1.5, torch.arange(17) - 0.5, baseline=None, color="w", lw=2)
    axes.set(title=f"error after {name}", xlabel=name, ylabel="token", ylim=(16.5, 0.5))
_ = figure.colorbar(shown, ax=panels, label="log10 of the largest error")

# %% [markdown]
# Above the white stairs all is exact: token 1 passes through, so the first sweep makes token 2 exact,
# the next token 3; $N - 1$ sweeps always do. Below, in the right panel, the error falls with every sweep, since tokens
# depend on one another weakly. `inverse_jacobi` stops when nothing moves:

# %% tags=["nbval-check-output"]
back, report = inverse_jacobi(shipped.flow, shipped.flow(tokens)[0], tolerance=1e-5)
assert (back - tokens).abs().max() < 1e-5 and max(report.sweeps) < 15
print("sweeps of the four blocks:", report.sweeps, "  sequential steps: 15 each")

# %% [markdown]
# On a CPU **the parallel inverse does not pay**, as a larger flow shows:


# %% tags=["nbval-check-output"]
def recorded(name):
    return json.loads((ROOT / f"results/{name}.json").read_text())


for row in recorded("inverses")["matrix"]["rows"]:
    if row["method"] in ("sequential", "jacobi"):
        print(f"N = 256, batch {row['batch']:2}: {row['method']:10} {row['seconds']:5.2f} s")

# %% [markdown]
# A sweep computes all tokens again, a sequential step only one. On a GPU, where launch latency dominates, sweeps save the
# waiting between small steps.
#
# > **The paper** undoes the flow sequentially, or with a one-step student (notebook 05). **We** add the parallel
# > inverse, which needs no training and is exact. The paper does not say how $\sigma$ is bounded: ours is $\exp$ of a
# > smoothly bounded number.
#
# ## Beside it: coupling
#
# Keep half of the numbers; shift and scale the other half by what a network, without a mask, makes of the kept ones;
# swap. That is triangular, too, and as the kept half is known to the inverse, one pass undoes a block:

# %% tags=["nbval-check-output"]
coupling = CouplingFlow(16, 4, blocks=4, layers=1, width=32, head_dim=16).to(device).double()
for part in coupling.blocks:
    torch.nn.init.normal_(part.network.project_out.weight, std=0.1)  # a new one is the identity
off = (coupling(digit)[1] - matrix(coupling).slogdet().logabsdet).abs().item()
lost = (coupling.inverse(coupling(tokens)[0]) - tokens).abs().max().item()
print("log|det| and the inverse are exact:", off < 1e-8, lost < 1e-9)

# %% [markdown]
# Coupling is the faster to invert, and the weaker. Two models of digits with equally many blocks, beside the paper's:

# %% tags=["nbval-check-output"]
for row in recorded("table4")["rows"][:2]:
    inverse, bits = 1000 * row["seconds_per_image"]["back"], row["bits_per_dim"]["mean"]
    said = row["paper"].split(";")[0]
    print(f"{row['name']:19}: inverse {inverse:.1f} ms, {bits:.2f} bits/dim (paper: {said})")

# %% [markdown]
# ## The blind spot inside a token
#
# Back to the little squares: in Eq. 8 a channel never sees the other channels *of its token*, which are neighbouring
# pixels. *Predict first:* tokens are independent, channels inside a token correlated. Can a block learn that? Can four?

# %% tags=["nbval-check-output", "hide-output"]
factor = torch.linalg.cholesky(0.9 ** (torch.arange(8)[:, None] - torch.arange(8)).abs())
patches = (torch.randn(5000, 4, 8) @ factor.T).to(device)  # correlated inside a token
possible = -4 * factor.diagonal().log().sum()  # nats that the correlations are worth
nothing = log_prob(
    AutoregressiveFlow(4, 8, blocks=0, layers=1, width=32), patches[4000:]
).mean()  # no block
for blocks, mixing in ((1, False), (4, False), (1, True)):
    toy = AutoregressiveFlow(
        4, 8, blocks=blocks, layers=1, width=32, head_dim=16, channel_mixing=mixing
    ).to(device)
    gained = log_prob(fit(toy, patches[:4000], 250), patches[4000:]).mean() - nothing
    part = (gained / possible).item()
    share = "nothing" if part < 0.05 else "a part" if part < 0.8 else "most"
    print(f"{blocks} block(s), channel mixing {mixing}: learned {share}")

# %% [markdown]
# One block learns nothing, as it must. Four take a detour: a token tells the others what one of its channels says, and
# blocks that read the other way tell it to the other channel. So a flow spends blocks on looking around the blind spot
# of one. Glow's `ChannelMixing`, a learned matrix before each block, or a PCA basis of the patches looks straight at
# it. On photographs the detour is learned, slowly (notebook 03):

# %% tags=["nbval-check-output"]
for name, steps in (("basis", 600), ("basis_long", 2700)):
    found = {row["name"]: row["bits_per_dim"]["mean"] for row in recorded(name)["rows"]}
    for kind in ("pixels", "pixels, learned mixing", "PCA"):
        bits = found[f"{kind}, no split, {steps} steps"]
        print(f"{steps:4} steps, {kind:22}: {bits:.2f} bits/dim")

# %% [markdown]
# ## What to remember
#
# - Density of $x$ = density of $z$ × change of volume; an integral checks it.
# - Causal → triangular → the log-determinant is a sum, and the inverse is exact.
# - A leaking mask shows up as a *good* loss: test round trip and log-determinant.
# - $N - 1$ sweeps are always enough, fewer usually; on a CPU they do not pay.
# - A block is blind inside a token.
#
# ## Exercises
#
# **1 (think).** Why does token 1 pass through, and who takes care of its density? If the outputs of the transformer
# were *not* shifted by one token: what would still be triangular, what wrong?
#
# <details><summary>Solution</summary>
#
# There is nothing before token 1 from which $\mu$ and $\sigma$ could be computed (constants would be possible). It
# loses little: blocks that read back to front change it, and the prior gives it a mean and a width of its own.
#
# Without the shift, $\mu$ and $\sigma$ of token $i$ have seen token $i$. The matrix is still triangular over tokens, so
# a picture of causality looks almost right; but its diagonal is no longer $\sigma$, because $\mu$ and $\sigma$ have
# derivatives there, too. The sum of $\log \sigma$ is then not the log-determinant, and Eq. 9 has the unknown on both
# sides.
#
# ```python
# def unshifted(block: FlowBlock, x: Tensor) -> tuple[Tensor, Tensor]:
#     """A block whose outputs were not shifted by one token: mu and sigma of token i have seen token i itself."""
#     shift, log_scale = block.shift_and_log_scale(x, block.embedded_positions(None))
#     return (x - shift) * log_scale.exp(), log_scale.sum((1, 2))
# ```
#
# </details>
#
# **2 (a few lines).** Why alternate the order? Make all blocks of a random flow read one way, and measure how far $z_i$
# is from a straight line as $x_i$ alone moves.
#
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
# It does not bend at all. $z_i$ is affine in $x_i$ with numbers from $x_{<i}$, and an affine map of it with numbers
# from $z_{<i}$, which are functions of $x_{<i}$, is another such map: a hundred blocks would be one block, under a
# Gaussian prior a Gaussian $p(x_i \mid x_{<i})$, and token 1 would never be touched. With the orders alternating it
# bends.
#
# </details>
#
# **3 (open).** Three separate modes, and one Gaussian for $z$: where must an invertible map struggle? Count the samples
# between them; find what helps.
#
# <details><summary>Solution</summary>
#
# A continuous map that can be undone keeps one piece in one piece: it can thin the bridges between the modes out, but
# never cut them. With two blocks a good part of all samples lies on them. Depth helps, and costs; a mixture of three
# Gaussians for $z$, as FARMER's prior has it, helps more: the flow need not tear apart what was never joined.
# `python solutions/solution_01.py` prints the figures.
#
# ```python
# def fit_three_modes(blocks: int, components: int, steps: int = 400) -> tuple[float, float]:
#     """Nats above the entropy on fresh points, and the share of samples that lie in no mode."""
#     torch.manual_seed(0)
#     flow = AutoregressiveFlow(2, 1, blocks=blocks, layers=1, width=32, head_dim=16)
#     mean = nn.Parameter(torch.randn(components, 2) * (components > 1))  # K = 1: the standard normal
#     prior = GaussianMixture(torch.zeros(components), mean, nn.Parameter(torch.zeros(components, 2)))
#     groups = [{"params": flow.parameters(), "lr": 5e-3}]
#     if components > 1:
#         groups.append({"params": [prior.mean, prior.log_scale], "lr": 5e-2})
#     optimiser = torch.optim.Adam(groups)
#
#     def loss(seed: int, count: int = 256) -> Tensor:
#         z, logdet = flow(three_modes(count, seed))
#         return -(prior.log_prob(z[..., 0]) + logdet).mean()
#
#     for step in range(steps):
#         for group in optimiser.param_groups:
#             group["lr"] *= 0.99
#         optimiser.zero_grad()
#         loss(step).backward()
#         optimiser.step()
#     with torch.no_grad():
#         z = prior.unsqueeze().expand(2000).sample(torch.Generator().manual_seed(0))
#         distance = torch.cdist(flow.inverse(z[..., None])[..., 0], CENTRES).amin(1)
#         return loss(steps, 4000).item() - ENTROPY, (distance > 4 * WIDTH).float().mean().item()
# ```
#
# </details>
