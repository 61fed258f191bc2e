"""From hidden states to tokens: categorical for ids, a small per-token flow for reals; chosen by the spec."""

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import ClassVar

import torch
from einops import repeat
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.generators.embedding import Digits
from vidgen.latents import LatentSpec
from vidgen.nn.positions import level_features
from vidgen.nn.random import Generators, randn
from vidgen.schedulers.sampling import SamplingRule


class Head(nn.Module, ABC):
    """Loss and sampling of tokens given hidden states `b n d`."""

    confident: ClassVar[bool] = True  # whether `sample` knows how probable its tokens are

    @abstractmethod
    def loss(self, hidden: Tensor, target: Tensor, *, generators: Generators) -> Tensor:
        """`b n` loss of each token; `target` is ids `b n q` or reals `b n c`."""

    @abstractmethod
    def sample(
        self,
        hidden: Tensor,
        uncond_hidden: Tensor | None,
        guidance: float,
        *,
        generators: Generators,
        rule: SamplingRule,
        limits: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens and their log-probability `b n` (`None` where there is none).

        Guidance acts here: `uncond + guidance * (cond - uncond)` on what the head predicts. `limits` (`n q` or
        `b n q`) is the codebook size at each token where parts differ.
        """

    def sample_at(
        self,
        places: Tensor,
        tokens: Tensor,
        hidden: Tensor,
        uncond_hidden: Tensor | None,
        guidance: float,
        *,
        generators: Generators,
        rule: SamplingRule,
        limits: Tensor | None = None,
    ) -> Tensor:
        """`tokens` with those at `places` (`b n` bool) drawn; arguments as of `sample`, `limits` is `n q`.

        Rows with as many places are drawn together: a row's noise does not depend on the others.
        """
        tokens, counts = tokens.clone(), places.sum(dim=1)
        for count in counts[counts > 0].unique().tolist():
            rows = (counts == count).nonzero().squeeze(1)
            columns = places[rows].nonzero()[:, 1].view(len(rows), count)
            at = (rows.unsqueeze(1), columns)
            drawn, _ = self.sample(
                hidden[at],
                None if uncond_hidden is None else uncond_hidden[at],
                guidance,
                generators=[generators[row] for row in rows.tolist()],
                rule=rule,
                limits=None if limits is None else limits[columns],
            )
            tokens[at] = drawn.to(tokens.dtype)
        return tokens


class CategoricalHead(Head):
    """Softmax over each codebook; big ones in factors (MAGVIT-v2)."""

    def __init__(self, spec: LatentSpec, width: int) -> None:
        super().__init__()
        self.digits = Digits(spec)
        self.to_logits = nn.Linear(width, sum(self.digits.sizes))
        nn.init.normal_(self.to_logits.weight, std=0.02)
        nn.init.zeros_(self.to_logits.bias)

    def logits(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """One `b n size` for each (sub-)codebook."""
        return self.to_logits(hidden).float().split(self.digits.sizes, dim=-1)

    def loss(self, hidden: Tensor, target: Tensor, *, generators: Generators) -> Tensor:
        losses = []
        for logits, digit in zip(self.logits(hidden), self.digits.split(target), strict=True):
            losses.append(F.cross_entropy(logits.flatten(0, 1), digit.flatten(), reduction="none"))
        return torch.stack(losses).sum(dim=0).unflatten(0, target.shape[:2])

    def sample(
        self,
        hidden: Tensor,
        uncond_hidden: Tensor | None,
        guidance: float,
        *,
        generators: Generators,
        rule: SamplingRule,
        limits: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        conditional = self.logits(hidden)
        unconditional = conditional if uncond_hidden is None else self.logits(uncond_hidden)
        digits, log_probability = [], torch.zeros(hidden.shape[:2], device=hidden.device)
        for cond, uncond in zip(conditional, unconditional, strict=True):
            logits = cond if uncond_hidden is None else uncond + guidance * (cond - uncond)
            allowed = None if limits is None else self.digits.allowed(digits, limits)
            digit, chosen = draw_digit(logits, allowed, generators=generators, rule=rule)
            digits.append(digit)
            log_probability = log_probability + chosen
        return self.digits.join(digits), log_probability


def draw_digit(
    logits: Tensor, allowed: Tensor | None, *, generators: Generators, rule: SamplingRule
) -> tuple[Tensor, Tensor]:
    """A digit `b n` by `rule` from logits `b n size`, below `allowed` (`n` or `b n`), and its log-probability."""
    if allowed is not None:
        beyond = torch.arange(logits.shape[-1], device=logits.device) >= allowed[..., None]
        logits = logits.masked_fill(beyond, float("-inf"))
    logits = rule.filter(logits)
    digit = rule.draw(logits, generators)
    return digit, logits.log_softmax(dim=-1).gather(-1, digit.unsqueeze(-1)).squeeze(-1)


class FlowHead(Head):
    """A flow model of one token given its hidden state (MAR's diffusion loss, arXiv 2406.11838, with velocity).

    Noise level σ in [0, 1]: x_σ = (1 - σ) x + σ ε, and the network predicts ε - x.

    Args:
        width, layers: of the residual network, each layer modulated by σ and the hidden state.
        copies: noise levels drawn for each token and step of training.
    """

    confident = False

    def __init__(self, spec: LatentSpec, width: int, *, layers: int = 3, copies: int = 2) -> None:
        super().__init__()
        self.channels, self.copies = spec.channels, copies
        self.from_token = nn.Linear(spec.channels, width)
        self.from_level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(ModulatedLayer(width) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.to_velocity = nn.Linear(width, spec.channels)
        nn.init.zeros_(self.to_velocity.weight)
        nn.init.zeros_(self.to_velocity.bias)

    def velocity(self, noisy: Tensor, level: Tensor, hidden: Tensor) -> Tensor:
        """`… c`, `…`, `… d -> … c`."""
        told = hidden + self.from_level(level_features(level, hidden.shape[-1]).to(hidden.dtype))
        x = self.from_token(noisy.to(hidden.dtype))
        for layer in self.layers:
            x = layer(x, told)
        return self.to_velocity(self.norm_out(x))

    def loss(self, hidden: Tensor, target: Tensor, *, generators: Generators) -> Tensor:
        target = repeat(target.float(), "b n c -> b r n c", r=self.copies)
        hidden = repeat(hidden, "b n d -> b r n d", r=self.copies)
        level = torch.sigmoid(randn(target.shape[:3], generators, like=target))  # logit-normal (SD3)
        noise = randn(target.shape, generators, like=target)
        noisy = (1 - level[..., None]) * target + level[..., None] * noise
        error = self.velocity(noisy, level, hidden).float() - (noise - target)
        return error.square().mean(dim=(1, 3))

    def sample(
        self,
        hidden: Tensor,
        uncond_hidden: Tensor | None,
        guidance: float,
        *,
        generators: Generators,
        rule: SamplingRule,
        limits: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Euler steps from σ = 1 to 0; `rule.temperature` scales the first noise."""
        shape = (*hidden.shape[:2], self.channels)
        x = rule.temperature * randn(shape, generators, like=hidden.float())
        levels = torch.linspace(1.0, 0.0, rule.flow_steps + 1, device=hidden.device)
        for now, after in pairwise(levels):
            level = now.expand(hidden.shape[:2])
            velocity = self.velocity(x, level, hidden).float()
            if uncond_hidden is not None:
                without = self.velocity(x, level, uncond_hidden).float()
                velocity = without + guidance * (velocity - without)
            x = x + (after - now) * velocity
        return x, None


class ModulatedLayer(nn.Module):
    """x + gate · MLP(scale · norm(x) + shift), modulated per token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(told)).chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)
