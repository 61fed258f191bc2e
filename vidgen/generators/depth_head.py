"""Several ids at one position, each given those before it: a small transformer in depth (RQ-Transformer)."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.generators.embedding import SCALE, Digits
from vidgen.generators.heads import Head, draw_digit
from vidgen.latents import LatentSpec
from vidgen.nn.llama import LlamaBlock, StaticCache, line_rotary
from vidgen.nn.random import Generators
from vidgen.schedulers.sampling import SamplingRule


class DepthHead(Head):
    """The digits of a token one after the other (arXiv 2203.01941, section 3.2).

    Args:
        layers: blocks of the transformer over the digits of one token.
        inner_width: of that transformer, `None` = the width of the hidden states. It runs over all digits of all
            tokens, so it should be narrow where they are many.
    """

    def __init__(self, spec: LatentSpec, width: int, *, layers: int = 2, inner_width: int | None = None) -> None:
        super().__init__()
        self.digits = Digits(spec)
        self.enter = nn.Identity() if inner_width is None else nn.Linear(width, inner_width)
        width = inner_width or width
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in self.digits.sizes[:-1])
        self.head_channels = math.gcd(width, 64)
        self.blocks = nn.ModuleList(LlamaBlock(width, width // self.head_channels) for _ in range(layers))
        self.norm_out = nn.RMSNorm(width, eps=1e-6)
        self.to_logits = nn.ModuleList(nn.Linear(width, size) for size in self.digits.sizes)
        for table in self.tables:
            nn.init.normal_(table.weight, std=SCALE)  # pyright: ignore[reportArgumentType]
        for layer in self.to_logits:
            nn.init.normal_(layer.weight, std=0.02)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]

    def states(self, hidden: Tensor, digits: list[Tensor]) -> Tensor:
        """`b n d` and the first k digits `b n` to `b n k+1 d'`: what predicts each digit and the one after."""
        hidden = self.enter(hidden)
        known = [hidden + table(digit) for table, digit in zip(self.tables, digits, strict=False)]
        x = rearrange([hidden, *known], "k b n d -> (b n) k d")
        places = torch.arange(x.shape[1], device=x.device)
        turns, mask = line_rotary(places, self.head_channels), places[None] <= places[:, None]
        for block in self.blocks:
            x = block(x, mask, turns)
        return rearrange(self.norm_out(x), "(b n) k d -> b n k d", b=hidden.shape[0])

    def empty_cache(self, entered: Tensor) -> StaticCache:
        """For the digits of all tokens `b n d'`, each a sequence of its own."""
        batch, count, width = entered.shape
        size = {"batch": batch * count, "heads": width // self.head_channels, "length": len(self.to_logits)}
        return StaticCache.empty(len(self.blocks), **size, head_channels=self.head_channels, like=entered)

    def next_state(self, x: Tensor, cache: StaticCache) -> Tensor:
        """The next of `states`, `b n d'`, from what its position holds; the cache holds the positions before."""
        count = x.shape[1]
        x = rearrange(x, "b n d -> (b n) 1 d")
        places, mask = cache.admit(torch.zeros(len(x), 1, dtype=torch.long, device=x.device))
        turns = line_rotary(places, self.head_channels)
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, turns, cache, layer, places)
        return rearrange(self.norm_out(x), "(b n) 1 d -> b n d", n=count)

    def loss(self, hidden: Tensor, target: Tensor, *, generators: Generators) -> Tensor:
        digits = self.digits.split(target)
        states = self.states(hidden, digits[:-1]).unbind(dim=2)
        losses = [
            F.cross_entropy(layer(state).float().flatten(0, 1), digit.flatten(), reduction="none")
            for layer, state, digit in zip(self.to_logits, states, digits, strict=True)
        ]
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
        digits: list[Tensor] = []
        log_probability = torch.zeros(hidden.shape[:2], device=hidden.device)
        branches = [hidden] if uncond_hidden is None else [hidden, uncond_hidden]
        x = entered = self.enter(torch.cat(branches))
        cache = self.empty_cache(entered)
        for place, layer in enumerate(self.to_logits):
            if place > 0:
                x = entered + self.tables[place - 1](digits[-1]).repeat(len(branches), 1, 1)
            logits = layer(self.next_state(x, cache)).float()
            if len(branches) == 2:
                logits, without = logits.chunk(2)
                logits = without + guidance * (logits - without)
            allowed = None if limits is None else self.digits.allowed(digits, limits)
            digit, chosen = draw_digit(logits, allowed, generators=generators, rule=rule)
            digits.append(digit)
            log_probability = log_probability + chosen
        return self.digits.join(digits), log_probability
