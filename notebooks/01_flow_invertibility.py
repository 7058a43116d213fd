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
from farmer_ref.plots import COLOURS, STYLE, labelled_grids

# %matplotlib inline
plt.rcParams.update(STYLE | {"axes.grid": False})
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
steps = 500 if device.type == "cpu" else 1500  # of training a toy, below

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
figure, panels = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
for axes, lines, dots in zip(
    panels, (rulers, flow(rulers)[0]), (moons, flow(moons)[0]), strict=False
):
    axes.plot(*lines.cpu().view(46, 300, 2).permute(2, 1, 0), color="0.6", lw=0.6)
    axes.plot(*dots[:, :, 0].cpu().T, ".", ms=1.5, color=COLOURS[0])
panels[2].pcolormesh(line.cpu(), line.cpu(), density.T, cmap="viridis")
titles = ("x: data and a grid", "z: both, after the flow", "density of x")
for axes, title, name in zip(panels, titles, ("token", "latent", "token"), strict=True):
    axes.set(title=title, xlabel=f"{name} 1", ylabel=f"{name} 2", aspect="equal")
    axes.set(xlim=(-3.3, 3.3), ylim=(-3.3, 3.3))

# %% [markdown]
# The grid is bent, never torn or folded: that is what "can be undone" looks like. Where the moons lie, the cells grow
# on their way to $z$; between the moons they shrink. So all that probability has to come from somewhere:

# %% tags=["nbval-check-output"]
integral = (density.sum() * (line[1] - line[0]).cpu() ** 2).item()
error = (flow.inverse(flow(moons)[0]) - moons).abs().max().item()
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
shipped = Farmer.from_pretrained("digits").to(device).double().requires_grad_(False)
values, _ = next(batches(load_split("digits", "test", shipped.config), 20))
noise = shipped.dequantiser.draw(tuple(values.shape), torch.Generator().manual_seed(0))
tokens = shipped.patchify(shipped.dequantiser(values, noise).to(device).double())  # (B,N,D)
digit, block = tokens[3:4], shipped.flow.blocks[0]
broken = copy.deepcopy(block)
broken.transformer.bidirectional()  # the mask is gone: every position sees all


def matrix(module):  # dz/dx (ND,ND) at the digit
    return jacobian(lambda x: module(x.view_as(digit))[0].flatten(), digit.flatten())


one, four, wrong = map(matrix, (block, shipped.flow, broken))

# %%
figure, panels = plt.subplots(1, 4, figsize=(11, 3.3), layout="constrained")
part = panels[0].imshow(one[20:36, 20:36].cpu(), cmap="PuOr", vmin=-0.3, vmax=0.3)
panels[0].set(title="one block, tokens 6 to 9", xlabel="channel of x", ylabel="channel of z")
panels[0].hlines([3.5, 7.5, 11.5], -0.5, 15.5, color="0.7", lw=0.6)
panels[0].vlines([3.5, 7.5, 11.5], -0.5, 15.5, color="0.7", lw=0.6)
figure.colorbar(part, ax=panels[0], location="bottom", label="derivative, clipped")
titles = ("one block", "all four blocks", "one block, mask broken")
for axes, size, title in zip(panels[1:], (one, four, wrong), titles, strict=True):
    size = size.view(16, 4, 16, 4).norm(dim=(1, 3)).log10().cpu()
    shown = axes.imshow(size, cmap="viridis", vmin=-4, vmax=1)
    axes.set(title=title, xlabel="token of x", ylabel="token of z")
figure.colorbar(shown, ax=panels[1:], location="bottom", label="log10 |gradient|", aspect=50)

# %% [markdown]
# White in the last three is zero, exactly. On the left, single derivatives: inside a token, a square on the diagonal,
# nothing but the diagonal is filled; remember that for the end. All four blocks together fill everything, so the whole
# flow is not causal, and its log-determinant is still a mere sum:

# %% tags=["nbval-check-output"]
assert one.triu(1).abs().max() == 0
for name, module, derivatives in (("one block", block, one), ("all four", shipped.flow, four)):
    returned, exact = module(digit)[1].item(), derivatives.slogdet().logabsdet.item()
    assert abs(returned - exact) < 1e-8
    print(f"{name:10} log|det| by Eq. 10 {returned:.3f}, by elimination {exact:.3f}")

# %% [markdown]
# ## A broken mask
#
# The last panel is a bug that is easily made: attention without its mask. *Predict first:* how will training on the
# moons look with it? Will the loss be higher, lower, or not finite?

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
leaky = AutoregressiveFlow(**shape).to(device)
for part in leaky.blocks:
    part.transformer.bidirectional()
fit(leaky, moons, 150)
gain = (log_prob(leaky, moons) - log_prob(flow, moons)).mean().item()
total = (log_prob(leaky, square).exp().sum() * (line[1] - line[0]) ** 2).item()
lost = (leaky.inverse(leaky(moons)[0]) - moons).abs().max().item()
off = abs(broken(digit)[1].item() - wrong.slogdet().logabsdet.item())
print("better by more than 2 nats a point, after fewer steps:", gain > 2)
print("its 'density' integrates to more than 10:", total > 10)
print("way back off by more than .1:", lost > 0.1, "  wrong log|det| of the digit:", off > 1e-3)

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
def undo(block, z, count, parallel):
    """x (B,N,D) after `count` sweeps, or as many sequential steps, which keep one token of a sweep each."""
    z = block.flip_if_reversed(z)
    x, positions = z.clone(), block.embedded_positions(None)[:, :-1]
    for i in range(count):
        shift, log_scale = block.shift_and_log_scale(x[:, :-1], positions)
        now = slice(None) if parallel else i
        x[:, 1:][:, now] = (z[:, 1:] * (-log_scale).exp() + shift)[:, now]
    return block.flip_if_reversed(x)


frames = {"sequential": [], "parallel": []}
for name, images in frames.items():
    for count in (0, 1, 2, 4, 6, 8, 12, 15):
        x = shipped.flow(digit)[0]
        for part in reversed(shipped.flow.blocks):
            x = undo(part, x, count, name == "parallel")
        images.append(shipped.patchify.inverse(x))
labelled_grids({f"{name}: 0, 1, 2, 4, 6, 8, 12, 15": torch.cat(x) for name, x in frames.items()}, 8)

# %% [markdown]
# The numbers count steps or sweeps *in each block*. Now the error of every token in one block:

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
for axes, name in zip(panels, ("sequential steps", "parallel sweeps"), strict=True):
    counts = (undo(block, block(tokens)[0], k, name[0] == "p") for k in range(16))
    error = torch.stack([(x - tokens).abs().amax((0, 2)) for x in counts]).cpu()
    assert error.tril().max() < 1e-12  # after i sweeps, tokens 1 to i + 1 are exact
    shown = axes.imshow((error.T + 1e-17).log10(), cmap="viridis", vmin=-16, vmax=0)
    axes.stairs(torch.arange(17) + 0.5, torch.arange(18) - 0.5, baseline=None, color="w", lw=2)
    axes.set(title=name, xlabel=name, ylabel="token", xlim=(-0.5, 15.5), ylim=(15.5, -0.5))
figure.colorbar(shown, ax=panels, label="log10 of the largest error")

# %% [markdown]
# Above the white stairs the result is exact, as it must be: token 1 passes through, so the first sweep makes token 2
# exact, the next token 3. $N - 1$ sweeps always do. But below the stairs the error falls by a factor in every sweep,
# since a token depends on the others only weakly. `inverse_jacobi` stops when nothing moves any more:

# %% tags=["nbval-check-output"]
back, report = shipped.flow.inverse_jacobi(shipped.flow(tokens)[0], tolerance=1e-5)
assert (back - tokens).abs().max() < 1e-5 and max(report.sweeps) < 15
print("sweeps of the four blocks:", report.sweeps, "  sequential steps: 15 each")
measured = json.loads(Path("../results/inverses.json").read_text())["matrix"]
for row in measured["rows"]:
    if row["method"] in ("sequential", "jacobi"):
        print(
            f"N = {measured['tokens']}, {row['batch']:2} images, {row['method']:10} {row['seconds']:5.2f} s"
        )

# %% [markdown]
# The seconds are of a larger flow on a CPU, and there **the parallel way does not pay**. A sweep computes all tokens
# again; the sequential way, which caches keys and values, computes each once. What sweeps save is waiting between small
# steps, and a CPU hardly waits. Notebook 05 has a faster way, which is not exact.
#
# > **The paper** samples with the sequential inverse, and calls it the bottleneck (77% of the time of a sample); its
# > remedy is a one-step student. **We** add the parallel inverse, which needs no training and gives the same image. The
# > paper also leaves open how $\sigma$ is kept positive and bounded: ours is $\exp$ of a smoothly bounded number.
#
# ## Beside it: coupling
#
# There is another way to a triangle. Keep half of the numbers; shift and scale the other half by what a network,
# without any mask, makes of the kept ones; swap. The kept half is known on the way back, too: one pass undoes a block.

# %% tags=["nbval-check-output"]
coupling = CouplingFlow(16, 4, blocks=4, layers=1, width=32, head_dim=16).to(device).double()
for part in coupling.blocks:
    torch.nn.init.normal_(part.network.project_out.weight, std=0.1)  # a new one is the identity
off = (coupling(digit)[1] - matrix(coupling).slogdet().logabsdet).abs().item()
lost = (coupling.inverse(coupling(tokens)[0]) - tokens).abs().max().item()
assert off < 1e-8 and lost < 1e-9
for row in json.loads(Path("../results/table4.json").read_text())["rows"][:2]:
    time = row["seconds_per_image"]["back"] / row["seconds_per_image"]["forward"]
    print(f"{row['name']:20} {row['bits_per_dim']['mean']:.3f} bits/dim, back/forward {time:.1f}")

# %% [markdown]
# The figures are of two digits models with as many blocks (`results/table4.json`, three seeds): what coupling saves in
# time it loses in bits. In the paper the loss is drastic, FID 106.23 against 5.55 on ImageNet.
#
# ## The blind spot inside a token
#
# Back to the little squares: in Eq. 8 a channel of a token never sees the other channels *of that token*, which are
# neighbouring pixels. *Predict first:* tokens are independent, but channels inside a token strongly correlated. Can one
# block learn that? Can four?

# %% tags=["nbval-check-output"]
where = torch.arange(8.0)
factor = torch.linalg.cholesky(0.9 ** (where[:, None] - where).abs())
patches = (torch.randn(4000, 4, 8, generator=torch.Generator().manual_seed(0)) @ factor.T).to(
    device
)
unit, gain = {"layers": 1, "width": 32, "head_dim": 16}, {}
for name, blocks, mixing in (("1 block", 1, False), ("4 blocks", 4, False), ("1, mixing", 1, True)):
    torch.manual_seed(0)
    toy = AutoregressiveFlow(4, 8, blocks, **unit, channel_mixing=mixing).to(device)
    fit(toy, patches[:3000], 250)
    test = patches[3000:]
    gain[name] = (
        (log_prob(toy, test) - torch.distributions.Normal(0.0, 1.0).log_prob(test).sum((1, 2)))
        .mean()
        .item()
    )
possible = -4 * factor.diagonal().log().sum().item()
share = {name: value / possible for name, value in gain.items()}
print(share)
for row in json.loads(Path("../results/basis.json").read_text())["rows"][10:14]:
    print(f"{row['name']:42} {row['bits_per_dim']['mean']:.2f} bits/dim")
