"""FARMER in 200 lines: the method on one page, from pixels to guided samples and the one-step student. Needs PyTorch.

Every weight has the name that it has in `farmer_ref`, so this page loads the weights that ship with the package. What
it leaves out is what makes the package fast, or gives it more options: kept keys and values, half precision, other bases.

Legend: B batch, N tokens, D channels of a token (I informative, then R redundant), K components, W width. Densities are
per-image sums in nats, (B,).
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Sizes(NamedTuple):
    """The settings of a model; these are the shipped model's, for 8x8 digits."""

    tokens: int = 16  # N
    patch: int = 2
    levels: int = 17  # L, grey levels
    classes: int = 10
    informative: int = 3  # I
    K_I: int = 16
    K_R: int = 16
    blocks: int = 4  # even: the prior reads in image order
    flow_layers: int = 2
    prior_layers: int = 4
    width: int = 64
    head_dim: int = 32
    bound: float = 4.0  # of |log sigma| in a block
    dropout: float = 0.3


# -- pixels, tokens and the unit ---------------------------------------------------------------


def dequantise(values: Tensor, noise: Tensor, levels: int) -> Tensor:
    """Grey levels 0 to L-1 with noise in [0, 1) to numbers in [-1, 1]   (§3.2)"""
    return 2 * (values + noise) / levels - 1


def patchify(images: Tensor, p: int) -> Tensor:
    """Images (B,C,H,W) to tokens (B,N,D): patches row by row, each as (colour, row, column)."""
    B, C, H, W = images.shape
    patches = images.reshape(B, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(B, (H // p) * (W // p), C * p * p)


def unpatchify(tokens: Tensor, p: int) -> Tensor:
    """The inverse of `patchify`, for square images."""
    B, N, D = tokens.shape
    side, C = math.isqrt(N), D // p**2
    patches = tokens.reshape(B, side, side, C, p, p).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(B, C, side * p, side * p)


def to_bits_per_dim(log_prob: Tensor, dimensions: int, levels: int) -> Tensor:
    """-log p / (d ln 2) + log2(L / 2): a grey level is a cell of width 2 / L."""
    return -log_prob / (dimensions * math.log(2)) + math.log2(levels / 2)


class Pixels(nn.Module):
    """Pixels through their own histogram, z = Phi^-1(F(x)): each is standard normal   (not in the paper)"""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.register_buffer("counts", torch.zeros(1, sizes.levels, dtype=torch.long))

    def fit(self, values: Tensor) -> None:
        """Counts the grey levels of training images (n,1,H,W), plus one each."""
        levels = self.counts.shape[1]
        self.counts[0] = 1 + torch.bincount(values.long().flatten(), minlength=levels)

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Every level's mass (L,), and F at the lower end of its cell (L,); F runs from 1e-7 to 1 - 1e-7."""
        mass = self.counts[0].double() / self.counts.sum() * (1 - 2e-7)
        return mass, 1e-7 + mass.cumsum(0) - mass

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B,1,H,W) in [-1, 1] to z (B,1,H,W) and the sum of log dz/dx (B,)."""
        mass, below = self._tables()
        place = (images.double() + 1) * (len(mass) / 2)  # v + u
        level = place.long().clamp(0, len(mass) - 1)
        z = torch.special.ndtri(below[level] + mass[level] * (place - level))
        log_slope = torch.log(mass[level] * (len(mass) / 2)) + 0.5 * (z**2 + math.log(2 * math.pi))
        return z.to(images), log_slope.sum((1, 2, 3)).to(images)

    def inverse(self, z: Tensor) -> Tensor:
        """z (B,1,H,W) to images (B,1,H,W) in [-1, 1]: x = F^-1(Phi(z))"""
        mass, below = self._tables()
        probability = torch.special.ndtr(z.double())
        level = (torch.searchsorted(below, probability, right=True) - 1).clamp(min=0)
        place = level + ((probability - below[level]) / mass[level]).clamp(0, 1)
        return (2 * place / len(mass) - 1).to(z)


# -- the network of flow and prior -------------------------------------------------------------


class Layer(nn.Module):
    """A pre-norm transformer layer; causal: position i sees positions up to i."""

    def __init__(self, sizes: Sizes, causal: bool):
        super().__init__()
        width = sizes.width
        self.head_dim, self.dropout, self.causal = sizes.head_dim, sizes.dropout, causal
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def drop(self, x: Tensor) -> Tensor:
        """Dropout of channels, the same for all tokens of an image."""
        return x * F.dropout(x.new_ones(len(x), 1, x.shape[2]), self.dropout, self.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (B,T,W) to (B,T,W)."""
        B, T, W = x.shape
        heads = self.attention_in(self.attention_norm(x)).view(B, T, 3, -1, self.head_dim)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (B,heads,T,head_dim)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.drop(self.attention_out(seen.transpose(1, 2).reshape(B, T, W)))
        return x + self.drop(self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)))))


class Transformer(nn.Module):
    """Layers one after another."""

    def __init__(self, sizes: Sizes, layers: int, causal: bool = True):
        super().__init__()
        self.layers = nn.ModuleList(Layer(sizes, causal) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """x (B,T,W) to (B,T,W)."""
        for layer in self.layers:
            x = layer(x)
        return x


# -- the flow ----------------------------------------------------------------------------------


class Block(nn.Module):
    """A block of the flow: z_i = (x_i - mu(x_<i)) * sigma(x_<i), z_1 = x_1   (Eq. 8)"""

    def __init__(self, sizes: Sizes, reverse: bool):
        super().__init__()
        self.reverse, self.bound, channels = reverse, sizes.bound, sizes.patch**2
        self.project_in = nn.Linear(channels, sizes.width)
        self.positions = nn.Parameter(0.02 * torch.randn(sizes.tokens, sizes.width))
        self.transformer = Transformer(sizes, sizes.flow_layers)
        self.project_out = nn.Linear(sizes.width, 2 * channels)
        nn.init.zeros_(self.project_out.weight)  # a new block is the identity
        nn.init.zeros_(self.project_out.bias)

    def flip(self, tokens: Tensor) -> Tensor:
        """Image order to reading order, or back: every other block reads back to front."""
        return tokens.flip(-2) if self.reverse else tokens

    def affine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and log sigma (B,T,D) of tokens x (B,T,D) in reading order, from the tokens before."""
        positions = self.flip(self.positions)[: x.shape[1]]
        raw = self.project_out(self.transformer(self.project_in(x) + positions))
        mu, log_sigma = F.pad(raw[:, :-1], (0, 0, 1, 0)).chunk(2, -1)  # shifted right by one
        return mu, self.bound * torch.tanh(log_sigma / self.bound)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B,N,D) to z (B,N,D) and log|det dz/dx| (B,)   (Eqs. 8 and 10)"""
        x = self.flip(x)
        mu, log_sigma = self.affine(x)
        return self.flip((x - mu) * log_sigma.exp()), log_sigma.sum((1, 2))

    @torch.no_grad()
    def inverse(self, z: Tensor) -> Tensor:
        """z (B,N,D) to x (B,N,D), token by token: x_i = z_i / sigma(x_<i) + mu(x_<i)   (Eq. 9)"""
        z = self.flip(z)
        x = z.clone()
        for i in range(1, z.shape[1]):
            mu, log_sigma = self.affine(x[:, : i + 1])  # of token i, from tokens that are final
            x[:, i] = z[:, i] * torch.exp(-log_sigma[:, i]) + mu[:, i]
        return self.flip(x)


class Flow(nn.Module):
    """Blocks one after another, reading forwards and backwards in turn   (Eq. 1)"""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.blocks = nn.ModuleList(Block(sizes, t % 2 == 1) for t in range(sizes.blocks))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B,N,D) to latents z (B,N,D) and log|det dz/dx| (B,)   (Eq. 10)"""
        total = x.new_zeros(len(x))
        for block in self.blocks:
            x, logdet = block(x)
            total = total + logdet
        return x, total

    def inverse(self, z: Tensor) -> Tensor:
        """Latents z (B,N,D) to tokens x (B,N,D): the last block is undone first."""
        for block in reversed(self.blocks):
            z = block.inverse(z)
        return z


# -- mixtures of Gaussians, and guidance between two of them -----------------------------------


class Mixture(NamedTuple):
    """Mixtures of K Gaussians: logits (...,K), means and log sigma (...,K,D); `...` counts them."""

    logits: Tensor
    mean: Tensor
    log_sigma: Tensor

    @classmethod
    def from_raw(cls, raw: Tensor, K: int) -> Self:
        """K logits, K D means and K D log sigma, side by side in a network's output."""
        logits, rest = raw.tensor_split([K], -1)
        mean, log_sigma = rest.reshape(*raw.shape[:-1], 2, K, -1).unbind(-3)
        return cls(logits, mean, -7 + F.softplus(log_sigma + 7))  # none narrower than e^-7

    def log_prob(self, z: Tensor) -> Tensor:
        """The log-density of z (...,D), log sum_k pi_k N(z; mu_k, sigma_k), (...)   (Eq. 7)"""
        standard = (z.unsqueeze(-2) - self.mean) * torch.exp(-self.log_sigma)  # (...,K,D)
        log_normal = -0.5 * (standard**2 + math.log(2 * math.pi)) - self.log_sigma
        return torch.logsumexp(self.logits.log_softmax(-1) + log_normal.sum(-1), -1)

    def sample(self, draws: int) -> Tensor:
        """Mixtures (B,) to `draws` independent vectors of each, (B,draws,D)."""
        k = torch.multinomial(self.logits.softmax(-1), draws, replacement=True)  # (B,draws)
        k = k[..., None].expand(-1, -1, self.mean.shape[-1])
        mean, sigma = self.mean.gather(1, k), self.log_sigma.gather(1, k).exp()
        return mean + sigma * torch.randn_like(mean)


def candidate_log_weights(
    conditional: Mixture, unconditional: Mixture, candidates: Tensor, *, first: int, w: float
) -> Tensor:
    """log p' / q (B,S) of candidates (B,S,D), with p' = p_c (p_c / p_u)^w   (Alg. 1)

    The `first` of them are from q = p_c, the others from q = p_u.
    """
    log_c, log_u = (
        Mixture(*(part.unsqueeze(1) for part in mixture)).log_prob(candidates)
        for mixture in (conditional, unconditional)
    )
    exponent = w + (torch.arange(candidates.shape[1]) >= first).to(candidates)  # w, or w + 1
    return exponent * (log_c - log_u)


def guided_sample(
    conditional: Mixture, unconditional: Mixture, draws: int, *, w: float, counts: tuple[int, int]
) -> Tensor:
    """(B,draws,D): `counts` candidates from p_c and p_u, resampled by their weights   (Alg. 1)"""
    candidates = torch.cat([conditional.sample(counts[0]), unconditional.sample(counts[1])], 1)
    weights = candidate_log_weights(conditional, unconditional, candidates, first=counts[0], w=w)
    chosen = torch.multinomial(weights.softmax(-1), draws, replacement=True)  # (B,draws)
    return candidates.gather(1, chosen[..., None].expand(-1, -1, candidates.shape[-1]))


# -- the prior ---------------------------------------------------------------------------------


class Prior(nn.Module):
    """p(Z | c) = prod_i p(z_i^I | z_<i^I, c) * prod_i G(z_i^R; Z_I, c)   (Eqs. 5 and 14)"""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width, D_I, D_R = sizes.width, sizes.informative, sizes.patch**2 - sizes.informative
        self.sizes = sizes
        self.class_embedding = nn.Embedding(sizes.classes + 1, width)  # the last row: no class
        self.condition_positions = nn.Parameter(0.02 * torch.randn(1, width))
        self.project_in = nn.Linear(D_I, width)
        self.positions = nn.Parameter(0.02 * torch.randn(sizes.tokens, width))
        self.transformer = Transformer(sizes, sizes.prior_layers)
        self.norm_out = nn.LayerNorm(width)
        self.token_head = nn.Linear(width, sizes.K_I * (1 + 2 * D_I))
        self.redundant_head = nn.Linear(width, sizes.K_R * (1 + 2 * D_R))
        heads = (self.token_head, sizes.K_I, D_I), (self.redundant_head, sizes.K_R, D_R)
        for head, K, D in heads:
            nn.init.zeros_(head.weight)  # near the standard normal, and no two components alike
            nn.init.zeros_(head.bias)
            nn.init.normal_(head.bias.data[K : K * (1 + D)], std=0.1 / math.sqrt(D))

    def hidden(self, z_I: Tensor, labels: Tensor) -> Tensor:
        """States (B,1+T,W) after the class and after each of T tokens z_I (B,T,I); label -1: no class."""
        rows = torch.where(labels < 0, self.sizes.classes, labels)
        condition = self.class_embedding(rows)[:, None] + self.condition_positions  # (B,1,W)
        read = self.project_in(z_I) + self.positions[: z_I.shape[1]]
        return self.norm_out(self.transformer(torch.cat([condition, read], 1)))

    def log_prob(self, z: Tensor, labels: Tensor) -> Tensor:
        """log p(Z | c) (B,) of latents z (B,N,D), split, in one parallel pass   (Eq. 14)"""
        z_I, z_R = z.tensor_split([self.sizes.informative], -1)
        hidden = self.hidden(z_I, labels)
        before, last = hidden[:, :-1], hidden[:, -1:]  # the state before each token; after all
        tokens = Mixture.from_raw(self.token_head(before), self.sizes.K_I)
        shared = Mixture.from_raw(self.redundant_head(last), self.sizes.K_R)  # one for all N
        return tokens.log_prob(z_I).sum(1) + shared.log_prob(z_R).sum(1)

    @torch.no_grad()
    def sample(self, labels: Tensor, w: float = 0.0) -> Tensor:
        """Latents (B,N,D) for labels (B,) at guidance scale w: Z_I token by token, then Z_R at once   (§3.3)"""
        rows = torch.cat([labels, torch.full_like(labels, -1)])  # with the class, and without

        def draw(head: nn.Linear, K: int, draws: int, counts: tuple[int, int]) -> Tensor:
            raw = head(self.hidden(z_I.repeat(2, 1, 1), rows)[:, -1])
            p_c, p_u = (Mixture.from_raw(half, K) for half in raw.chunk(2))
            return guided_sample(p_c, p_u, draws, w=w, counts=counts) if w else p_c.sample(draws)

        z_I = self.positions.new_zeros(len(labels), 0, self.sizes.informative)
        for _ in range(self.sizes.tokens):
            z_I = torch.cat([z_I, draw(self.token_head, self.sizes.K_I, 1, (5, 5))], 1)
        z_R = draw(self.redundant_head, self.sizes.K_R, self.sizes.tokens, (192, 64))
        return torch.cat([z_I, z_R], -1)


# -- the model and its training ----------------------------------------------------------------


class Model(nn.Module):
    """p(x | c) = p(Z | c) |det dZ/dX|: exact, and a sampler   (Eqs. 2 and 6)"""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes, self.pixels = sizes, Pixels(sizes)
        self.flow, self.prior = Flow(sizes), Prior(sizes)

    def log_prob(self, images: Tensor, labels: Tensor) -> Tensor:
        """log p(x | c) (B,) of images (B,1,H,W) in [-1, 1]   (Eq. 6)"""
        pixels, log_slope = self.pixels(images)
        z, logdet = self.flow(patchify(pixels, self.sizes.patch))
        return self.prior.log_prob(z, labels) + logdet + log_slope

    def sample(self, labels: Tensor, w: float = 0.0) -> Tensor:
        """One image for each label (B,): (B,1,H,W), in [-1, 1]."""
        tokens = self.flow.inverse(self.prior.sample(labels, w))
        return self.pixels.inverse(unpatchify(tokens, self.sizes.patch))


def fit(model: Model, values: Tensor, labels: Tensor, *, steps: int) -> list[float]:
    """Trains on grey levels (n,1,H,W) and labels (n,); the loss of each step, nats per dimension   (Eq. 13)"""
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    model.pixels.fit(values)
    losses = []
    for step in range(steps):
        rate = 2e-3 * min(1, (step + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimiser.param_groups[0]["lr"] = rate
        batch = torch.randint(len(values), (64,))
        noise, no_class = torch.rand(values[batch].shape), torch.rand(64) < 0.1
        images = dequantise(values[batch], noise, model.sizes.levels)
        log_p = model.log_prob(images, torch.where(no_class, -1, labels[batch]))
        loss = -log_p.mean() / images[0].numel()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


# -- the one-step student ----------------------------------------------------------------------


class Student(nn.Module):
    """The flow's inverse in one pass a block: Eq. 9 with z in place of x, which a network may see whole   (Alg. 2)"""

    def __init__(self, flow: Flow):
        super().__init__()
        self.blocks = copy.deepcopy(flow.blocks)  # the teacher's weights, without its mask
        for layer in (module for module in self.modules() if isinstance(module, Layer)):
            layer.causal, layer.dropout = False, 0.0

    def path(self, z: Tensor) -> list[Tensor]:
        """Z^{n-1}, ..., Z^0, each (B,N,D), from z = Z^n through the student's own levels."""
        levels = []
        for block in reversed(self.blocks):
            z = block.flip(z)
            mu, log_sigma = block.affine(z)
            z = block.flip(z * torch.exp(-log_sigma) + mu)
            levels.append(z)
        return levels


def distillation_loss(student: Student, flow: Flow, x: Tensor) -> Tensor:
    """The squared error of the student's levels beside the teacher's, mean over all   (Alg. 2)"""
    with torch.no_grad():
        teacher = [x]  # Z^0, ..., Z^n, in one pass
        for block in flow.blocks:
            teacher.append(block(teacher[-1])[0])
    levels = student.path(teacher[-1])
    errors = [(a - b).square().mean() for a, b in zip(levels, teacher[-2::-1], strict=True)]
    return torch.stack(errors).mean()
