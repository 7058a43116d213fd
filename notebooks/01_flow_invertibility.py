# %% [markdown]
# # 01 · Flow invertibility
#
# [Open this notebook in Colab](https://colab.research.google.com/github/farmer-ref/farmer_ref/blob/main/notebooks/01_flow_invertibility.ipynb)
#
# A flow is a map that can be undone and whose effect on volume is known. After this notebook you can say why FARMER's
# flow has both properties, test them, undo it in two exact ways, and name what one block of it cannot do.

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
import copy
import json
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import make_moons
from torch.autograd.functional import jacobian

from farmer_ref import AutoregressiveFlow, Farmer
from farmer_ref.coupling import CouplingFlow
from farmer_ref.data import batches, load_split
from farmer_ref.plots import COLOURS, STYLE

# %matplotlib inline
plt.rcParams.update(STYLE)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
steps = 500 if device.type == "cpu" else 1000  # of training a toy, below

# %% [markdown]
# ## Two numbers
#
# Let $x$ be a point of the plane and $z = f(x)$ where a flow puts it. Choose a density for $z$, here the standard
# normal. A small square around $x$ becomes a small parallelogram around $z$ with the same probability, so the density of
# $x$ is that of $z$ times the ratio of the areas, which is the determinant of the derivatives:
#
# $$\log p(x) = \log \mathcal{N}(f(x); 0, I) + \log\left|\det \frac{\partial z}{\partial x}\right| \qquad \text{(Eq. 5)}$$
#
# Training makes this large at the data. A point is two tokens of one channel: $N = 2$, $D = 1$.


# %%
def log_prob(flow, x):
    z, logdet = flow(x)
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((1, 2)) + logdet


def fit(flow, data, steps):
    optimiser = torch.optim.Adam(flow.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, steps)
    for batch in torch.randint(len(data), (steps, 256), generator=torch.Generator().manual_seed(0)):
        loss = -log_prob(flow, data[batch.to(device)]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return loss.item()  # nats


torch.manual_seed(0)
moons = torch.tensor(make_moons(4000, noise=0.08, random_state=0)[0] - [0.5, 0.25]).float()
moons = (1.5 * moons[:, :, None]).to(device)  # (4000,N,D)
flow = AutoregressiveFlow(2, 1, blocks=6, layers=1, width=32, head_dim=16).to(device)
fit(flow, moons, steps)

# %%
with torch.no_grad():
    line = torch.linspace(-5, 5, 301, device=device)
    grid = torch.cartesian_prod(line, line)[:, :, None]
    density = log_prob(flow, grid).exp().view(301, 301).cpu()
    ticks = torch.linspace(-2.8, 2.8, 23, device=device)
    rulers = torch.cartesian_prod(ticks, torch.linspace(-2.8, 2.8, 300, device=device))
    rulers = torch.cat([rulers, rulers.flip(1)])[:, :, None]  # lines up, then lines across
    bent, latents = flow(rulers)[0], flow(moons)[0]
figure, panels = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
for axes, lines, points in ((panels[0], rulers, moons), (panels[1], bent, latents)):
    axes.plot(*lines[:, :, 0].cpu().view(46, 300, 2).permute(2, 1, 0), color="0.6", lw=0.6)
    axes.plot(*points[:, :, 0].cpu().T, ".", ms=1.5, color=COLOURS[0])
panels[2].pcolormesh(line.cpu(), line.cpu(), density.T, cmap="viridis")
panels[0].set(title="x: the data and a grid", xlabel="token 1", ylabel="token 2")
panels[1].set(title="z: both, after the flow", xlabel="latent 1", ylabel="latent 2")
panels[2].set(title="the density of x", xlabel="token 1", ylabel="token 2")
for axes in panels:
    axes.set(xlim=(-3.3, 3.3), ylim=(-3.3, 3.3), aspect="equal")
    axes.grid(False)

# %% [markdown]
# The grid is bent, never torn or folded: that is what "can be undone" looks like. Where the moons lie, the cells grow
# on their way to $z$; between the moons they shrink. So all that probability has to come from somewhere:

# %% tags=["nbval-check-output"]
area = (line[1] - line[0]).item() ** 2
integral = density.sum().item() * area
with torch.no_grad():
    error = (flow.inverse(latents) - moons).abs().max().item()
assert abs(integral - 1) < 0.01 and error < 1e-3
print(f"integral of the density: {integral:.2f}")
print("the way back gives the data:", error < 1e-3)

# %% [markdown]
# ## Why it works: a triangle
#
# For 64 pixels a determinant is already work, for a million it is out of reach, unless the matrix is triangular. One
# block of the **autoregressive flow** makes it so. Token $i$ is shifted and scaled by numbers that a causal transformer
# computes from the tokens before it:
#
# $$z_i = (x_i - \mu(x_{<i})) \odot \sigma(x_{<i}), \qquad z_1 = x_1 \qquad \text{(Eq. 8)}$$
#
# No $z_i$ depends on a later $x_j$, so $\partial z / \partial x$ is triangular with the $\sigma$ on its diagonal, and its
# log-determinant is the sum of all $\log \sigma$ (Eq. 10). Blocks alternate: the first reads the tokens in image order,
# the second back to front. Log-determinants of blocks add up.
#
# Here are derivatives of the shipped digits model ($N = 16$ tokens, $D = 4$), in 64-bit numbers, at a test image.
# *Predict first:* which part will be empty for one block, and which for all four?

# %%
shipped = Farmer.from_pretrained("digits").to(device).double()
values, _ = next(batches(load_split("digits", "test", shipped.config), 100))
noise = shipped.dequantiser.draw(tuple(values.shape), torch.Generator().manual_seed(0))
images = shipped.dequantiser(values, noise).to(device).double()
tokens = shipped.patchify(images)  # (B,N,D)
digit = tokens[3:4]
block = shipped.flow.blocks[0]
broken = copy.deepcopy(block)
broken.transformer.bidirectional()  # the mask is gone: every position sees all


def matrix(module, x):
    """dz/dx (ND,ND) at one example x (1,N,D)."""
    return jacobian(lambda flat: module(flat.view_as(x))[0].flatten(), x.flatten())


one, two, four, wrong = (
    matrix(m, digit) for m in (block, shipped.flow.blocks[1], shipped.flow, broken)
)

# %%
figure, panels = plt.subplots(1, 4, figsize=(11, 3.3), layout="constrained")
corner = panels[0].imshow(one[20:36, 20:36].cpu(), cmap="PuOr", vmin=-0.3, vmax=0.3)
panels[0].set(title="one block, tokens 6 to 9", xlabel="channel of x", ylabel="channel of z")
for tick in (3.5, 7.5, 11.5):
    panels[0].axhline(tick, color="0.7", lw=0.6)
    panels[0].axvline(tick, color="0.7", lw=0.6)
figure.colorbar(corner, ax=panels[0], location="bottom", label="derivative, clipped")
titles = ("one block", "all four blocks", "one block, mask broken")
for axes, part, title in zip(panels[1:], (one, four, wrong), titles, strict=True):
    size = part.view(16, 4, 16, 4).norm(dim=(1, 3)).log10().cpu()
    shown = axes.imshow(size, cmap="viridis", vmin=-4, vmax=1)
    axes.set(title=title, xlabel="token of x", ylabel="token of z")
figure.colorbar(shown, ax=panels[1:], location="bottom", label="log10 of the gradient's size", aspect=50)
for axes in panels:
    axes.grid(False)

# %% [markdown]
# White in the last three is zero, exactly. On the left, single derivatives: inside a token, a square on the diagonal,
# nothing but the diagonal is filled; remember that for the end. All four blocks together fill everything, so the whole
# flow is not causal, and its log-determinant is still a mere sum:

# %% tags=["nbval-check-output"]
assert one.triu(1).abs().max() == 0 and two.tril(-1).abs().max() == 0
for name, module, derivatives in (("one block", block, one), ("all four", shipped.flow, four)):
    with torch.no_grad():
        returned = module(digit)[1].item()
    exact = derivatives.slogdet().logabsdet.item()
    assert abs(returned - exact) < 1e-8
    print(f"{name:10} log|det| by Eq. 10 {returned:8.3f}   by elimination {exact:8.3f}")

# %% [markdown]
# ## A broken mask
#
# The last panel is a bug that is easily made: attention without its mask. *Predict first:* how will training on the
# moons look with it? Will the loss be higher, lower, or not finite?

# %%
torch.manual_seed(0)
leaky = AutoregressiveFlow(2, 1, blocks=6, layers=1, width=32, head_dim=16).to(device)
for part in leaky.blocks:
    part.transformer.bidirectional()
fit(leaky, moons, 150)
with torch.no_grad():
    honest, claimed = (-log_prob(f, moons).mean().item() for f in (flow, leaky))
    total = log_prob(leaky, grid).exp().sum().item() * area
    lost = (leaky.inverse(leaky(moons)[0]) - moons).abs().max().item()
    difference = broken(digit)[1].item() - wrong.slogdet().logabsdet.item()
print(f"loss {claimed:.1f} nats, with the mask {honest:.1f}; integral {total:.0e}; way back off by {lost:.1f}")

# %% tags=["nbval-check-output"]
assert claimed < honest - 1 and total > 10 and lost > 0.1 and abs(difference) > 1e-3
print("the loss is better without the mask:", claimed < honest)
print("the 'density' integrates to more than 10:", total > 10)
print("the way back fails:", lost > 0.1)
print("log|det| is not that of the matrix:", abs(difference) > 1e-3)

# %% [markdown]
# Nothing crashes, and the loss is *splendid*: $\mu$ has seen the token that it is to predict, and $\sigma$ takes the
# credit. Only three checks tell: the integral, the round trip, the determinant. So the tests of this package make them,
# in 64-bit numbers and with random weights: a new flow is the identity, which passes anything.
#
# ## Two ways back
#
# Solved for $x$, Eq. 8 needs earlier tokens of $x$ itself (Eq. 9):
#
# $$x_i = z_i \oslash \sigma(x_{<i}) + \mu(x_{<i})$$
#
# **Sequential:** token after token, $N - 1$ steps. **Parallel** (Jacobi): put any guess into the right-hand side, for all
# tokens at once; put the result in again. *Predict first:* after how many sweeps is the result exact, at worst?

# %%
with torch.no_grad():
    z = block(tokens)[0]
    positions, guesses = block.embedded_positions(None)[:, :-1], [z]
    for _ in range(15):
        shift, log_scale = block.shift_and_log_scale(guesses[-1][:, :-1], positions)
        guesses.append(torch.cat([z[:, :1], z[:, 1:] * (-log_scale).exp() + shift], 1))
parallel = torch.stack(guesses)  # (sweeps,B,N,D)
known = torch.ones(16, 16, dtype=torch.bool, device=device).tril()[:, None, :, None]
sequential = torch.where(known, block.inverse(z), z)
moments = [0, 1, 2, 3, 4, 6, 10, 15]
figure, panels = plt.subplots(2, 8, figsize=(9, 2.6), layout="constrained")
for row, name, states in zip(panels, ("sequential", "parallel"), (sequential, parallel), strict=True):
    row[0].set_ylabel(name)
    for axes, moment in zip(row, moments, strict=True):
        axes.imshow(shipped.patchify.inverse(states[moment, 3:4])[0, 0].cpu(), cmap="gray", vmin=-1, vmax=1)
        axes.set(xticks=[], yticks=[], title=f"{moment}")

# %%
errors = [(states - tokens).abs().amax((1, 3)).cpu() for states in (sequential, parallel)]
figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
shown = panels[0].imshow((errors[1].T + 1e-17).log10(), cmap="viridis", vmin=-16, vmax=0)
panels[0].stairs(torch.arange(17) + 0.5, torch.arange(18) - 0.5, baseline=None, color="w", lw=2)
panels[0].set(title="parallel: error of each token", xlabel="sweeps", ylabel="token", ylim=(15.5, -0.5), xlim=(-0.5, 15.5))
panels[0].grid(False)
figure.colorbar(shown, ax=panels[0], label="log10 of the error")
panels[1].semilogy(errors[0].amax(1), "o-", label="sequential, steps")
panels[1].semilogy(errors[1].amax(1), "s--", label="parallel, sweeps")
panels[1].set(title="largest error of 100 digits", xlabel="steps or sweeps", ylabel="error")
panels[1].legend()
