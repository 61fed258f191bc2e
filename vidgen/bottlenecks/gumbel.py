"""Gumbel: the encoder gives a logit for each code, training draws one and relaxes the draw (DALL·E's dVAE, BEiT)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.bottlenecks.base import Bottleneck, Bottlenecked
from vidgen.kernels.ops import vq_assign
from vidgen.nn.random import Generators, gumbel

DALLE_LAST = 1 / 16


class Gumbel(Bottleneck):
    """One id a token out of `codes`; its encoder ends in as many channels, so codebooks stay small (arXiv 2102.12092).

    Args:
        codes: size of the codebook.
        channels: length of a code.
        sharpness: features times this are the logits; at 1 the draws of a fresh encoder are nearly blind, and the
            decoder learns to ignore them.
        temperature: of the relaxed draw that gradients go through (Jang et al. 2017, arXiv 1611.01144).
        last_temperature, cooling_steps: it falls to the former, as a half cosine, over so many forward passes in
            training (DALL·E: from 1 to 1/16 in 150,000); with 0 it stays.
        weight: of the divergence from drawing all codes alike, averaged over tokens.
    """

    distinct = True  # as a `Quantizer` says it
    updates: Tensor

    def __init__(
        self,
        *,
        codes: int = 8192,
        channels: int = 16,
        sharpness: float = 3.0,
        temperature: float = 1.0,
        weight: float = 1e-3,
        last_temperature: float = DALLE_LAST,
        cooling_steps: int = 0,
    ) -> None:
        super().__init__()
        if codes < 2 or channels < 1 or min(sharpness, temperature, last_temperature) <= 0:
            raise ValueError(
                "Gumbel needs at least 2 codes of at least 1 channel, a sharpness and temperatures above 0, got "
                f"{codes} codes of {channels}, sharpness {sharpness}, temperatures {temperature} and {last_temperature}"
            )
        if min(weight, cooling_steps) < 0:
            raise ValueError(
                f"Gumbel's weight and cooling_steps must not be negative, got {weight} and {cooling_steps}"
            )
        if cooling_steps and last_temperature > temperature:
            raise ValueError(
                f"Gumbel cools from temperature {temperature} to last_temperature {last_temperature}, which is warmer; "
                "swap them"
            )
        if not cooling_steps and last_temperature != DALLE_LAST:
            raise ValueError(
                f"last_temperature {last_temperature} is reached after cooling_steps, and there are none; set "
                "cooling_steps above 0 or leave last_temperature out"
            )
        self.in_channels, self.channels = codes, channels
        self.codebooks = (codes,)
        self.sharpness, self.weight = sharpness, weight
        self.temperature, self.last_temperature, self.cooling_steps = temperature, last_temperature, cooling_steps
        if cooling_steps:
            self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.table = nn.Parameter(torch.randn(codes, channels))

    def forward(self, features: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        with torch.autocast(features.device.type, enabled=False):
            logits = self.sharpness * features.float()
            noisy = logits
            if sample:
                if generators is None:
                    raise ValueError("sampling codes needs generators, one per sample")
                noisy = logits + gumbel(logits.shape, generators, like=logits)
            ids = noisy.argmax(dim=-1, keepdim=True)
            codes, losses = self.lookup(ids), {}
            if self.training:
                relaxed = (noisy / self._cooled()).softmax(dim=-1) @ self.table.detach().float()
                codes = codes + (relaxed - relaxed.detach())
                chances = logits.log_softmax(dim=-1)
                divergence = (chances.exp() * (chances + math.log(len(self.table)))).sum(dim=-1).mean()
                losses["kl"] = self.weight * divergence
            return Bottlenecked(codes, ids, losses)

    def _cooled(self) -> Tensor | float:
        """The temperature of this training step; a buffer counts, so that a resumed run goes on where it was."""
        if not self.cooling_steps:
            return self.temperature
        left = (1 + (math.pi * (self.updates / self.cooling_steps).clamp(max=1)).cos()) / 2
        if torch.is_grad_enabled():
            self.updates += 1
        return self.last_temperature + (self.temperature - self.last_temperature) * left

    def lookup(self, ids: Tensor) -> Tensor:
        return F.embedding(ids.squeeze(-1), self.table)

    def nearest(self, vectors: Tensor) -> Tensor:
        return vq_assign(vectors, self.table).unsqueeze(-1)
