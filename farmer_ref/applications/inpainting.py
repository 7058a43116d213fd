"""What an exact likelihood is good for: inpainting, editing, anomaly scores, classification by Bayes' rule.

The paper names none of these; each needs nothing but log p(x | c) of `farmer.Farmer`, its gradient, and samples.

Legend: B images, C colour channels, H = W image size, d = C H W pixels, K of them known and U unknown, P particles,
S library samples, v whole grey levels and x continuous images in [-1, 1]; Z_I and Z_R the informative and redundant
channels of the latents, c the class label. A log-density is a per-image sum in nats, (B,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm, trange

from farmer_ref.model.farmer import Farmer, evaluating
from farmer_ref.model.prior import NULL_LABEL
from farmer_ref.support.errors import require

EFFECTIVE = 0.9  # of the particles, at least, after each reweighing
SMALLEST_RISE = 1e-3  # of t, however few particles it leaves effective: there is an end
TARGET_ACCEPTANCE = 0.7  # what the size of Hamiltonian moves is adapted to while the target changes
LEAPS = 3  # leapfrog steps of a Hamiltonian move
LIBRARY = 200  # images that the model draws of each label, for particles to start near
ROWS = 512  # images whose density is computed at a time

# -- inpainting --------------------------------------------------------------------------------------------------------


class Completions(NamedTuple):
    """Images whose missing pixels were drawn given the known ones, and how the drawing went."""

    values: Tensor
    """Grey levels (B,samples,C,H,W), bytes; the known ones are those that were given."""
    images: Tensor
    """The continuous images of which these are the grey levels."""
    log_prob: Tensor
    """log p(x | c) (B,samples) of the continuous images, nats."""
    acceptance: float
    """The share of Hamiltonian moves that were accepted once the target was the exact one."""
    temperatures: int
    """How many steps led from the first distribution to the exact one, for the completion that needed most."""


class Conditional:
    """The density of missing pixels given known ones, p(x_U | x_K in the cells of v_K, c), and where to start from.

    *Target.* Known grey levels v_K fix the cells of the known pixels, not the points inside. So the points are drawn,
    too: the target is p(x | c) on the x whose known part lies in these cells. Its grey levels have exactly the model's
    P(v_U | v_K, c), since P(v) is the integral of p over the cell of v. Coordinates y are the logits of the known
    pixels' places in their cells, where no wall hinders a move (their density gains log u (1 - u)), and the missing
    pixels as they are. A model of Gaussian noise has no cells: its known pixels keep the one noise they are given.

    *Start.* A kernel estimate over S images x_s that the model drew for the same label, those near the known pixels
    weighing more: q(y) = Uniform(x_K) * sum_s w_s N(x_U; x_sU, KERNEL^2). It can be sampled, its density is known, and
    annealing takes it to the target: log pi_t = t log p + (1 - t) log q, all densities of y.
    """

    KERNEL = 0.3  # standard deviation, of pixels in [-1, 1]: wide enough to join the library's images

    def __init__(self, model: Farmer, values: Tensor, known: Tensor, labels: Tensor, library: Tensor, noise: Tensor):
        """`values` (B,C,H,W), `known` (C,H,W) bool, `labels` (B,), `library` (B,S,C,H,W); `noise` as `values`."""
        self.model, self.labels, self.known = model, labels, known.flatten()
        self.uniform = model.config.dequantisation == "uniform"
        self.width = 2 / model.config.levels  # of a cell
        self.held = model.dequantiser(values, noise).flatten(1)[:, None, self.known]  # (B,1,K)
        self.floor = self.width * values.to(noise.dtype).flatten(1)[:, None, self.known] - 1  # (B,1,K), of the cells
        library = library.flatten(2)
        distance = (library[..., self.known] - self.held).square().sum(-1)  # (B,S)
        nearness = largest_power(-distance, distance.new_full(distance.shape[:1], 1e3), library.shape[1] / 3)
        self.log_weights = torch.log_softmax(-nearness[:, None] * distance, -1)
        self.centres = library[..., ~self.known]  # (B,S,U)
        inside, missing = self.held.new_full(self.held.shape[2:], 1.5), self.centres.new_full(self.centres.shape[2:], 1)
        self.scale = torch.cat([inside * self.uniform, 0.4 * self.width * missing])  # (d,), of a move

    def start(self, particles: int, generator: torch.Generator) -> Tensor:
        """Draws from q: coordinates y (B,P,d), the K known pixels first."""
        chosen = torch.multinomial(self.log_weights.exp(), particles, replacement=True, generator=generator)
        centres = self.centres.gather(1, chosen[..., None].expand(-1, -1, self.centres.shape[2]))
        inside = _draw(torch.rand, self.held.expand(-1, particles, -1), generator)
        return torch.cat(
            [torch.logit(inside, eps=1e-6), centres + self.KERNEL * _draw(torch.randn, centres, generator)], -1
        )

    def images(self, y: Tensor) -> Tensor:
        """Coordinates (B,P,d) to images (B,P,C,H,W)."""
        count = self.held.shape[2]
        known = self.floor + self.width * torch.sigmoid(y[..., :count]) if self.uniform else self.held
        flat = torch.empty_like(y)
        flat[..., self.known], flat[..., ~self.known] = known.expand(-1, y.shape[1], -1), y[..., count:]
        config = self.model.config
        return flat.unflatten(2, (config.channels, config.image_size, config.image_size))

    def log_densities(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The target's log p and the start's log q at coordinates y (B,P,d): (B,P) each, up to constants."""
        (batch, particles), count = y.shape[:2], self.held.shape[2]
        labels = self.labels[:, None].expand(batch, particles).flatten()
        parts = zip(self.images(y).flatten(0, 1).split(ROWS), labels.split(ROWS), strict=True)
        log_p = torch.cat([self.model.log_prob(images, own) for images, own in parts]).view(batch, particles)
        distance = (y[..., count:].unsqueeze(2) - self.centres[:, None]).square().sum(-1)  # (B,P,S)
        log_q = torch.logsumexp(self.log_weights[:, None] - distance / (2 * self.KERNEL**2), -1)
        inside = y[..., :count]
        log_jacobian = (F.logsigmoid(inside) + F.logsigmoid(-inside)).sum(-1) * self.uniform  # of x_K by y_K
        return log_p + log_jacobian, log_q + log_jacobian


class Particles(NamedTuple):
    """Particles of B images, the two log-densities there, (B,P), and their gradients, (B,P,d)."""

    y: Tensor
    log_p: Tensor
    log_q: Tensor
    gradient_p: Tensor
    gradient_q: Tensor

    @classmethod
    def at(cls, y: Tensor, conditional: Conditional) -> Particles:
        """All that is known of coordinates y (B,P,d)."""
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
        """Drawn anew by weight, systematically, in random order."""
        edges = torch.softmax(log_weights, 1).cumsum(1)  # (B,P)
        count = edges.shape[1]
        places = (torch.arange(count, device=edges.device) + _draw(torch.rand, edges[:, :1], generator)) / count
        chosen = torch.searchsorted(edges, places).clamp(max=count - 1)
        chosen = chosen.gather(1, _draw(torch.rand, edges, generator).argsort(1))
        batch = torch.arange(len(edges), device=edges.device)[:, None]
        return Particles(*(column[batch, chosen] for column in self))

    def replaced(self, others: Particles, where: Tensor) -> Particles:
        """With those of `others` at the places `where` (B,P)."""
        pairs = zip(others, self, strict=True)
        return Particles(*(torch.where(where if old.dim() == 2 else where[..., None], new, old) for new, old in pairs))


def hamiltonian_move(
    conditional: Conditional, here: Particles, t: Tensor, size: Tensor, generator: torch.Generator
) -> tuple[Particles, Tensor]:
    """One step of Hamiltonian Monte Carlo for every particle, and which were moved (B,P)   (Neal 2011).

    A momentum m ~ N(0, I) is drawn and Hamilton's equations followed in LEAPS leapfrog steps, of `size` (B,) times
    the scale of each coordinate. These are reversible and keep volume, so accepting the end with probability
    min(1, e^-dH), H = -log pi_t + |m|^2 / 2, leaves pi_t exactly as it was, however coarse the steps.
    """
    momentum = _draw(torch.randn, here.y, generator)
    length = 0.8 + 0.4 * _draw(torch.rand, here.log_p, generator)  # (B,P), random against resonance
    step = (size[:, None] * length)[..., None] * conditional.scale
    there, m = here, momentum
    for _ in range(LEAPS):
        m = m + step / 2 * there.gradient(t)
        there = Particles.at(there.y + step * m, conditional)
        m = m + step / 2 * there.gradient(t)
    before = momentum.square().sum(-1) / 2 - here.log_target(t)  # (B,P)
    moved = accepted(before - m.square().sum(-1) / 2 + there.log_target(t), generator)
    return here.replaced(there, moved), moved


def accepted(log_ratio: Tensor, generator: torch.Generator) -> Tensor:
    """Which proposals are taken: each with probability min(1, e^log_ratio), and none where it is no number."""
    return _draw(torch.rand, log_ratio, generator).log() < log_ratio


def inpaint(
    model: Farmer,
    values: Tensor,
    known: Tensor,
    labels: Tensor | None = None,
    samples: int = 4,
    particles: int = 16,
    moves: int = 10,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Completions:
    """Draw the missing pixels of grey levels (B,C,H,W) given those where `known` (C,H,W) and labels, `samples` times.

    Each completion is the outcome of its own sequential Monte Carlo sampler (Del Moral, Doucet and Jasra 2006) on the
    exact density; see `Conditional` for the target and the start. P particles are drawn from the start q and follow
    annealed targets, t from 0 to 1: reweigh by (p / q)^dt, dt such that the effective number of particles stays at
    EFFECTIVE of P; resample; move by Hamiltonian Monte Carlo. At t = 1, `moves` more moves with steps that adapt no
    longer: a Markov chain that leaves p(x_U | x_K in cells, c) invariant. One of the P particles is the completion. So
    it is exact in the limit of many particles, and of many moves.

    Not a single chain from one start: p has many modes that no local move connects, and particles that start at
    different images, and selection, find them. Not all completions from one sampler: its particles descend from few
    starts, and look alike. Not proposals in the latents with known pixels put back: the density of such a proposal has
    no closed form, so there is no exact acceptance rule for it.
    """
    generator = generator or torch.Generator(values.device).manual_seed(0)
    known, labels = known.expand(values.shape[1:]), _labels_or_null(labels, values)
    require(bool(known.any()), "known pixels", 0, "1 or more (`sample` draws whole images)")
    require(not bool(known.all()), "missing pixels", 0, "1 or more")
    for name, given in (("samples", samples), ("particles", particles), ("moves", moves)):
        require(given >= 1, name, given, "1 or more")
    rows, labels = (given.repeat_interleave(samples, 0) for given in (values, labels))  # one for each completion
    with evaluating(model):
        library = _library(model, labels, generator)
        noise = model.dequantiser.draw(tuple(rows.shape), generator).to(library.dtype)
        conditional = Conditional(model, rows, known, labels, library, noise)
        here = Particles.at(conditional.start(particles, generator), conditional)
        t, size, count, rates = here.y.new_zeros(len(rows)), here.y.new_full((len(rows),), 0.3), 0, []
        with tqdm(total=100, desc="annealing", unit="%", disable=not progress) as bar:
            while bool((t < 1).any()):
                log_ratio = (here.log_p - here.log_q).nan_to_num(-math.inf).clamp(min=-1e30)
                rise = largest_power(log_ratio, 1 - t, EFFECTIVE * particles)
                rise = rise.clamp(min=SMALLEST_RISE).minimum(1 - t)
                here = here.resampled(rise[:, None] * log_ratio, generator)
                t, count = torch.where(rise < 1 - t, t + rise, 1), count + 1
                here, moved = hamiltonian_move(conditional, here, t, size, generator)
                size = size * torch.exp((moved.to(size.dtype).mean(1) - TARGET_ACCEPTANCE) / 4)
                bar.update(int(100 * float(t.mean())) - bar.n)
        for _ in trange(moves, desc="exact moves", unit="move", leave=False, disable=not progress):
            here, moved = hamiltonian_move(conditional, here, t, size, generator)
            rates.append(float(moved.double().mean()))
        images = conditional.images(here.y[:, :1])[:, 0]  # the first: resampling has put them in any order
        with torch.no_grad():
            log_prob = model.log_prob(images, labels).view(-1, samples)
    images = images.unflatten(0, (-1, samples))
    drawn = torch.where(known, values[:, None], model.dequantiser.quantise(images))
    return Completions(drawn, images, log_prob, sum(rates) / len(rates), count)


def largest_power(log_ratio: Tensor, most: Tensor, effective: float) -> Tensor:
    """For each row of log_ratio (B,n) the largest s <= most (B,) whose weights softmax(s log_ratio) are worth
    `effective` draws or more, 1 / sum w^2."""

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
    """LIBRARY images (B,S,C,H,W) that the model draws for each label (B,); those of one label are the same."""
    unique, place = labels.unique(return_inverse=True)
    drawn = [model.sample(part, generator=generator) for part in unique.repeat_interleave(LIBRARY).split(ROWS)]
    return torch.cat(drawn).unflatten(0, (len(unique), LIBRARY))[place]


def _draw(random: Callable[..., Tensor], like: Tensor, generator: torch.Generator) -> Tensor:
    """torch.rand or torch.randn in the shape and dtype of a tensor, on its device."""
    return random(like.shape, generator=generator, dtype=like.dtype, device=like.device)
