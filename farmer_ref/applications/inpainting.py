"""Inpainting: missing pixels drawn given the known ones, under the exact density.

The paper has no such application; it needs nothing but log p(x | c) of `farmer.Farmer`, its gradient, and samples.

Legend: B images, C colour channels, H = W image size, d = C H W pixels, K of them known and U unknown, P particles, S
library samples, v integer grey levels and x continuous images in [-1, 1], c the class label. A log-density is a
per-image sum in nats, (B,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm, trange

from farmer_ref.model.checks import check_grey_levels, evaluating, with_gradients
from farmer_ref.model.config import NULL_LABEL
from farmer_ref.model.farmer import Farmer
from farmer_ref.support.errors import require

EFFECTIVE = 0.9  # least effective share of the particles after each reweighting
SMALLEST_RISE = 1e-3  # least increase of t, even if fewer particles stay effective: annealing must end
TARGET_ACCEPTANCE = 0.7  # acceptance rate to which the step size adapts while the target changes
LEAPFROG_STEPS = 3  # of one Hamiltonian move
LIBRARY = 200  # model samples per label, near which particles start
CHUNK = 512  # images per density evaluation


class Completions(NamedTuple):
    """Images whose missing pixels were drawn given the known ones, with diagnostics."""

    values: Tensor
    """Grey levels (B,samples,C,H,W), bytes; known pixels are exactly as given."""
    images: Tensor
    """The continuous images behind these grey levels."""
    log_prob: Tensor
    """log p(x | c) (B,samples) of the continuous images, nats."""
    acceptance: float
    """The acceptance rate of the Hamiltonian moves under the exact target."""
    temperatures: int
    """The number of annealing steps, for the completion that needed most."""


class Conditional:
    """The density of missing pixels given known ones, p(x_U | x_K in the cells of v_K, c), and a start for sampling it.

    *Target.* Known grey levels v_K fix the cells of the known pixels, not the points inside, so these points are drawn
    too: the target is p(x | c) restricted to x whose known part lies in these cells. Its grey levels follow the model's
    P(v_U | v_K, c) exactly where missing pixels lie in [-1, 1], since P(v) is the integral of p over the cell of v;
    what lies beyond counts as the darkest or brightest level, as in `Farmer.sample`. Coordinates y are the logits of
    the known pixels' positions in their cells, so that no wall blocks a move (their density gains log u (1 - u)), and
    the missing pixels in the model's own coordinates (`model.pixels`: as they are, or their normal scores, of which
    those beyond 5.2, where no move gets, count as 5.2). A model of Gaussian noise has no cells: its known pixels keep
    the one draw of noise they are given.

    *Start.* A kernel estimate over S images x_s that the model drew for the same label, weighted towards those that
    match the known pixels: q(y) = Uniform(x_K) * sum_s w_s N(x_U; x_sU, KERNEL^2). It can be sampled, its density is
    known, and annealing leads from it to the target: log pi_t = t log p + (1 - t) log q, all densities of y.
    """

    KERNEL = 0.3  # standard deviation, of pixels in [-1, 1] or of scores: wide enough to join the library's images

    def __init__(self, model: Farmer, values: Tensor, known: Tensor, labels: Tensor, *, library: Tensor, noise: Tensor):
        """`values` (B,C,H,W), `known` (C,H,W) bool, `labels` (B,), `library` (B,S,C,H,W); `noise` as `values`."""
        self.model, self.labels, self.known = model, labels, known.flatten()
        self.uniform = model.config.dequantisation == "uniform"
        self.cell = 2 / model.config.levels  # its width
        self.held = model.dequantiser(values, noise).flatten(1)[:, None, self.known]  # (B,1,K)
        self.floor = self.cell * values.to(noise.dtype).flatten(1)[:, None, self.known] - 1  # (B,1,K)
        library = library.flatten(2)
        distance = (library[..., self.known] - self.held).square().sum(-1)  # (B,S)
        nearness = largest_power(
            -distance, most=distance.new_full(distance.shape[:1], 1e3), effective=library.shape[1] / 3
        )
        self.log_weights = torch.log_softmax(-nearness[:, None] * distance, -1)
        scores, _ = model.pixels.pixel_by_pixel(library.flatten(0, 1).unflatten(1, values.shape[1:]))
        scores = scores.to(library.dtype).view(library.shape)  # (B,S,d)
        self.centres = scores[..., ~self.known]  # (B,S,U)
        inside, missing = self.held.new_full(self.held.shape[2:], 1.5), self.centres.new_full(self.centres.shape[2:], 1)
        narrow = 0.4 * self.cell if model.config.pixels == "linear" else 0.2  # a score has no cells
        self.scale = torch.cat([inside * self.uniform, narrow * missing])  # (d,), step sizes

    def start(self, particles: int, generator: torch.Generator) -> Tensor:
        """Draw from q: coordinates y (B,P,d), the K known pixels first."""
        chosen = torch.multinomial(self.log_weights.exp(), particles, replacement=True, generator=generator)
        centres = self.centres.gather(1, chosen[..., None].expand(-1, -1, self.centres.shape[2]))
        inside = _draw(torch.rand, self.held.expand(-1, particles, -1), generator)
        return torch.cat(
            [torch.logit(inside, eps=1e-6), centres + self.KERNEL * _draw(torch.randn, centres, generator)], -1
        )

    def images(self, y: Tensor) -> Tensor:
        """Map coordinates (B,P,d) to images (B,P,C,H,W)."""
        count, config = self.held.shape[2], self.model.config
        known = self.floor + self.cell * torch.sigmoid(y[..., :count]) if self.uniform else self.held
        scores = torch.zeros_like(y)
        scores[..., ~self.known] = y[..., count:]
        scores = scores.unflatten(2, (config.channels, config.image_size, config.image_size))
        flat = self.model.pixels.inverse(scores.flatten(0, 1)).view(y.shape).clone()
        flat[..., self.known] = known.expand(-1, y.shape[1], -1)
        return flat.view(scores.shape)

    def log_densities(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The target's log p and the start's log q at coordinates y (B,P,d): (B,P) each, up to constants."""
        (batch, particles), count = y.shape[:2], self.held.shape[2]
        labels = self.labels[:, None].expand(batch, particles).flatten()
        images = self.images(y).flatten(0, 1)
        parts = zip(images.split(CHUNK), labels.split(CHUNK), strict=True)
        log_p = torch.cat([self.model(part, c).total for part, c in parts]).view(batch, particles)
        _, log_slopes = self.model.pixels.pixel_by_pixel(images)
        log_p = log_p - log_slopes.flatten(1)[:, ~self.known].sum(1).to(log_p.dtype).view(batch, particles)
        distance = (y[..., count:].unsqueeze(2) - self.centres[:, None]).square().sum(-1)  # (B,P,S)
        log_q = torch.logsumexp(self.log_weights[:, None] - distance / (2 * self.KERNEL**2), -1)
        inside = y[..., :count]
        log_jacobian = (F.logsigmoid(inside) + F.logsigmoid(-inside)).sum(-1) * self.uniform  # log |dx_K / dy_K|
        return log_p + log_jacobian, log_q + log_jacobian


class Particles(NamedTuple):
    """Particles of B images with both log-densities, (B,P), and their gradients, (B,P,d)."""

    y: Tensor
    log_p: Tensor
    log_q: Tensor
    gradient_p: Tensor
    gradient_q: Tensor

    @classmethod
    def at(cls, y: Tensor, conditional: Conditional) -> Particles:
        """Evaluate densities and gradients at coordinates y (B,P,d)."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            densities = conditional.log_densities(y)
            gradients = [torch.autograd.grad(density.sum(), y, retain_graph=True)[0] for density in densities]
        return cls(y.detach(), *(density.detach() for density in densities), *gradients)

    def log_target(self, t: Tensor) -> Tensor:
        """log pi_t (B,P) at t (B,)."""
        return torch.lerp(self.log_q, self.log_p, t[:, None])

    def gradient(self, t: Tensor) -> Tensor:
        """The gradient (B,P,d) of log pi_t at t (B,)."""
        return torch.lerp(self.gradient_q, self.gradient_p, t[:, None, None])

    def resampled(self, log_weights: Tensor, generator: torch.Generator) -> Particles:
        """Resample by weight: systematic resampling, in random order."""
        edges = torch.softmax(log_weights, 1).cumsum(1)  # (B,P)
        count = edges.shape[1]
        places = (torch.arange(count, device=edges.device) + _draw(torch.rand, edges[:, :1], generator)) / count
        chosen = torch.searchsorted(edges, places).clamp(max=count - 1)
        chosen = chosen.gather(1, _draw(torch.rand, edges, generator).argsort(1))
        batch = torch.arange(len(edges), device=edges.device)[:, None]
        return Particles(*(column[batch, chosen] for column in self))

    def replaced(self, others: Particles, where: Tensor) -> Particles:
        """Take the particles of `others` where `where` (B,P) is True."""
        pairs = zip(others, self, strict=True)
        return Particles(*(torch.where(where if old.dim() == 2 else where[..., None], new, old) for new, old in pairs))


def hamiltonian_move(
    conditional: Conditional, here: Particles, *, t: Tensor, size: Tensor, generator: torch.Generator
) -> tuple[Particles, Tensor]:
    """One step of Hamiltonian Monte Carlo per particle, and which particles moved (B,P)   (Neal 2011).

    It draws a momentum m ~ N(0, I) and follows Hamilton's equations for LEAPFROG_STEPS steps of length `size` (B,)
    times each coordinate's scale. The steps are reversible and preserve volume, so accepting the end with probability
    min(1, e^-dH), H = -log pi_t + |m|^2 / 2, leaves pi_t exactly invariant, however coarse the steps.
    """
    momentum = _draw(torch.randn, here.y, generator)
    length = 0.8 + 0.4 * _draw(torch.rand, here.log_p, generator)  # (B,P), random against resonance
    step = (size[:, None] * length)[..., None] * conditional.scale
    there, m = here, momentum
    for _ in range(LEAPFROG_STEPS):
        m = m + step / 2 * there.gradient(t)
        there = Particles.at(there.y + step * m, conditional)
        m = m + step / 2 * there.gradient(t)
    before = momentum.square().sum(-1) / 2 - here.log_target(t)  # (B,P)
    moved = accepted(before - m.square().sum(-1) / 2 + there.log_target(t), generator)
    return here.replaced(there, moved), moved


def accepted(log_ratio: Tensor, generator: torch.Generator) -> Tensor:
    """Accept each proposal with probability min(1, e^log_ratio), and never where the ratio is NaN."""
    return _draw(torch.rand, log_ratio, generator).log() < log_ratio


def inpaint(
    model: Farmer,
    values: Tensor,
    known: Tensor,
    labels: Tensor | None = None,
    *,
    samples: int = 4,
    particles: int = 16,
    moves: int = 10,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Completions:
    """Draw the missing pixels of grey levels (B,C,H,W) given those where `known` (C,H,W) and labels, `samples` times.

    Each completion comes from its own sequential Monte Carlo sampler (Del Moral, Doucet and Jasra 2006) on the exact
    density; `Conditional` describes target and start. P particles are drawn from the start q and follow annealed
    targets, t from 0 to 1: reweight by (p / q)^dt, with dt such that the effective sample size stays at EFFECTIVE of P;
    resample; move by Hamiltonian Monte Carlo. At t = 1, `moves` more moves with a fixed step size form a Markov chain
    that leaves p(x_U | x_K in cells, c) invariant. One of the P particles is the completion. The sampler is exact in
    the limit of many particles, and of many moves.

    A single chain would not do: p has many modes that no local move connects, and only particles that start at
    different images, and selection among them, find these. Nor would one sampler for all completions: its particles
    descend from few starts and look alike. Nor would proposals in the latents with the known pixels pasted back: their
    density has no closed form, so they have no exact acceptance rule.
    """
    check_grey_levels("values", values, model.config.levels)
    generator = generator or torch.Generator(values.device).manual_seed(0)
    known, labels = known.expand(values.shape[1:]), _labels_or_null(labels, values)
    require(bool(known.any()), "known pixels", 0, "1 or more (`sample` draws whole images)")
    require(not bool(known.all()), "missing pixels", 0, "1 or more")
    for name, given in (("samples", samples), ("particles", particles), ("moves", moves)):
        require(given >= 1, name, given, "1 or more")
    rows, labels = (given.repeat_interleave(samples, 0) for given in (values, labels))  # one row per completion
    with evaluating(model), with_gradients(rows, known, labels) as (rows, known, labels):
        library = _library(model, labels, generator)
        noise = model.dequantiser.draw(tuple(rows.shape), generator).to(library.dtype)
        conditional = Conditional(model, rows, known, labels, library=library, noise=noise)
        here = Particles.at(conditional.start(particles, generator), conditional)
        t, size, count, rates = here.y.new_zeros(len(rows)), here.y.new_full((len(rows),), 0.3), 0, []
        with tqdm(total=100, desc="annealing", unit="%", disable=not progress) as bar:
            while bool((t < 1).any()):
                log_ratio = (here.log_p - here.log_q).nan_to_num(-math.inf).clamp(min=-1e30)
                rise = largest_power(log_ratio, most=1 - t, effective=EFFECTIVE * particles)
                rise = rise.clamp(min=SMALLEST_RISE).minimum(1 - t)
                here = here.resampled(rise[:, None] * log_ratio, generator)
                t, count = torch.where(rise < 1 - t, t + rise, 1), count + 1
                here, moved = hamiltonian_move(conditional, here, t=t, size=size, generator=generator)
                size = size * torch.exp((moved.to(size.dtype).mean(1) - TARGET_ACCEPTANCE) / 4)
                bar.update(int(100 * float(t.mean())) - bar.n)
        for _ in trange(moves, desc="exact moves", unit="move", leave=False, disable=not progress):
            here, moved = hamiltonian_move(conditional, here, t=t, size=size, generator=generator)
            rates.append(float(moved.double().mean()))
        images = conditional.images(here.y[:, :1])[:, 0]  # any one: resampling has shuffled them
        with torch.no_grad():
            log_prob = model.log_prob(images, labels).view(-1, samples)
    images = images.unflatten(0, (-1, samples))
    drawn = torch.where(known, values[:, None], model.dequantiser.quantise(images))
    return Completions(drawn, images, log_prob, sum(rates) / len(rates), count)


def largest_power(log_ratio: Tensor, *, most: Tensor, effective: float) -> Tensor:
    """For each row of log_ratio (B,n) the largest s <= most (B,) at which the weights w = softmax(s log_ratio) keep an
    effective sample size, 1 / sum w^2, of at least `effective`."""

    def enough(power: Tensor) -> Tensor:
        return 1 / torch.softmax(power[:, None] * log_ratio, 1).square().sum(1) >= effective

    low, high = torch.zeros_like(most), most
    for _ in range(50):
        middle = (low + high) / 2
        low, high = torch.where(enough(middle), middle, low), torch.where(enough(middle), high, middle)
    return torch.where(enough(most), most, low)


def _labels_or_null(labels: Tensor | None, values: Tensor) -> Tensor:
    return torch.full((len(values),), NULL_LABEL, device=values.device) if labels is None else labels


def _library(model: Farmer, labels: Tensor, generator: torch.Generator) -> Tensor:
    """LIBRARY samples (B,S,C,H,W) of the model for each label (B,); rows with the same label share them."""
    unique, place = labels.unique(return_inverse=True)
    drawn = [model.sample(part, generator=generator) for part in unique.repeat_interleave(LIBRARY).split(CHUNK)]
    return torch.cat(drawn).unflatten(0, (len(unique), LIBRARY))[place]


def _draw(random: Callable[..., Tensor], like: Tensor, generator: torch.Generator) -> Tensor:
    """torch.rand or torch.randn with a tensor's shape, dtype and device."""
    return random(like.shape, generator=generator, dtype=like.dtype, device=like.device)
