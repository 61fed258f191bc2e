"""What the autoregressive generators share: the order of the tokens, their loss, and the interface for sampling."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vidgen.conditioning import Condition
from vidgen.generators.base import Generator, made_weights, seen, weighted_mean
from vidgen.generators.heads import Head
from vidgen.generators.token_order import TokenOrder, token_order
from vidgen.latents import Latents
from vidgen.nn.random import Generators

PER_SAMPLE = ("known_tokens", "token_state", "control")
OF_ALL_SAMPLES = ("coordinates", "groups", "ordinals")
PER_TOKEN = (*OF_ALL_SAMPLES, *PER_SAMPLE)


class AutoregressiveGenerator(Generator):
    """A network that predicts a group of tokens from those before.

    `forward(previous, **inputs, caches=…)` gives the hidden states `b m d` at m consecutive positions, from the tokens
    that `TokenOrder.fed` names (fewer at the start of the sequence, where nothing comes before) and `inputs` as
    `sequence_inputs` makes and `at_positions` cuts them.
    """

    proj_out: Head

    @abstractmethod
    def empty_caches(self, batch: int, length: int, *, states: int = 0) -> Any:
        """Caches for sequences of `length` tokens under `states` condition states."""

    def order(self, coordinates: Tensor) -> TokenOrder:
        """The order in which the tokens at `coordinates` (`n 5`) are made."""
        return token_order(coordinates, 1)

    def sequence_inputs(self, condition: Condition, coordinates: Tensor, order: TokenOrder) -> dict[str, Any]:
        """Keyword arguments of `forward` for all positions, in the order in which they are made."""
        inputs = {"coordinates": coordinates, **self.condition_inputs(condition, coordinates)}
        return {name: reordered(name, value, order.tokens) for name, value in inputs.items()}

    def losses(self, latents: Latents, condition: Condition, *, generators: Generators) -> dict[str, Tensor]:
        """Known tokens are fed as the condition has them, as in sampling, and have no part in the loss."""
        loss, weights = self.token_losses(latents, condition, generators)
        return {"next_token": weighted_mean(loss, weights).mean()}

    def plausibility(self, latents: Latents, condition: Condition, *, generators: Generators) -> Tensor:
        """Log-likelihood, a weighted mean over the tokens (nats a token; what a head of reals learns in its place)."""
        return -weighted_mean(*self.token_losses(latents, condition, generators))

    def token_losses(self, latents: Latents, condition: Condition, generators: Generators) -> tuple[Tensor, Tensor]:
        """The loss of each token and its weight, `b n` each, in the order in which they are made."""
        self.check_spec(latents.spec)
        target = latents.tokens if latents.ids is None else latents.ids
        coordinates = latents.spec.coordinates(latents.size).to(target.device)
        order = self.order(coordinates)
        before, target = seen(target, condition)[:, order.tokens], target[:, order.tokens]
        hidden = self(before[:, order.fed], **self.sequence_inputs(condition, coordinates, order))
        weights = made_weights(latents, condition, self.config.token_weight)
        return self.proj_out.loss(hidden, target, generators=generators), weights[:, order.tokens]


def reordered(name: str, value: Any, tokens: Tensor | slice) -> Any:
    """An input of `forward` at some tokens only, if it has any for each token."""
    if value is None or not (name in PER_TOKEN or (name == "encoder_attention_mask" and value.ndim == 3)):
        return value
    return value[tokens] if name in OF_ALL_SAMPLES else value[:, tokens]


def at_positions(inputs: dict[str, Any], positions: slice) -> dict[str, Any]:
    """The inputs of `forward` at some positions."""
    return {name: reordered(name, value, positions) for name, value in inputs.items()}


def with_negatives(inputs: dict[str, Any], states: Tensor, mask: Tensor) -> dict[str, Any]:
    """The inputs of `forward` for a batch of twice the size: the samples, then again under negative states.

    Args:
        states, mask: negative condition states `b l d` and bool `b l`, of any length.
    """
    own = inputs["encoder_attention_mask"]
    if own.ndim == 3:
        mask = mask[:, None].expand(-1, own.shape[1], -1)
    return {
        **inputs,
        **{name: torch.cat([inputs[name]] * 2) for name in PER_SAMPLE if inputs.get(name) is not None},
        "encoder_hidden_states": stacked(inputs["encoder_hidden_states"], states),
        "encoder_attention_mask": stacked(own.unsqueeze(-1), mask.unsqueeze(-1)).squeeze(-1),
    }


def stacked(states: Tensor, negative_states: Tensor | None) -> Tensor:
    """`b … l d` and `b … m d` to `2b … max(l, m) d`, filled up with zeros."""
    if negative_states is None:
        return states
    length = max(states.shape[-2], negative_states.shape[-2])
    return torch.cat([F.pad(one, (0, 0, 0, length - one.shape[-2])) for one in (states, negative_states)])
