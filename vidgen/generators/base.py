"""The interface of every generator: latents and a condition in, losses out; sampling is the pipelines' loop."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from vidgen.conditioning import Condition
from vidgen.latents import Latents, LatentSpec
from vidgen.nn.random import Generators


class Generator(ModelMixin, PeftAdapterMixin, ConfigMixin, ABC):
    """A network over the tokens of one spec.

    `forward` takes and gives plain tensors, as diffusers' mixins and hooks need.
    """

    spec: LatentSpec

    @abstractmethod
    def losses(self, latents: Latents, condition: Condition, *, generators: Generators) -> dict[str, Tensor]:
        """Weighted terms whose sum is to be minimised; one generator per sample."""

    def check_spec(self, spec: LatentSpec) -> None:
        """Refuse tokens of another kind than those that the network was built for."""
        if spec != self.spec:
            raise ValueError(
                f"this generator was built for tokens {self.spec}, but the tokenizer makes {spec}; "
                "use the tokenizer that it was trained with"
            )

    def condition_inputs(self, condition: Condition, coordinates: Tensor) -> dict[str, Any]:
        """The condition as the keyword arguments that every generator's `forward` takes."""
        known = condition.known
        return {
            "encoder_hidden_states": condition.states,
            "encoder_attention_mask": condition.mask_for(coordinates[:, 2]),
            "known_tokens": None if known is None else known.tokens,
            "token_state": condition.token_state,
        }

    def limits(self, coordinates: Tensor) -> Tensor | None:
        """Codebook sizes at each token, `n q`, where the parts differ; else `None`."""
        sizes = [part.codebooks for part in self.spec.parts]
        if len(set(sizes)) == 1:
            return None
        return torch.tensor(sizes, device=coordinates.device)[coordinates[:, 0]]


def rarity_weights(ids: Tensor, strength: float) -> Tensor:
    """`b n q -> b n`, mean 1 in each sample: (how often the id occurs in its own sample) ** -strength.

    Most tokens of a video repeat a still background; without weights they drown the few that carry the content.
    """
    same = (ids[:, :, None] == ids[:, None]).all(dim=-1)
    weights = same.sum(dim=-1).float() ** -strength
    return weights / weights.mean(dim=1, keepdim=True)


def distance_weights(tokens: Tensor, strength: float) -> Tensor:
    """`b n c -> b n`, mean 1 in each sample: 1 + strength · distance from the sample's median token.

    The counterpart of `rarity_weights` for reals.
    """
    median = tokens.median(dim=1, keepdim=True).values
    distance = (tokens - median).square().mean(dim=-1).sqrt()
    weights = 1 + strength * distance
    return weights / weights.mean(dim=1, keepdim=True)


def token_weights(latents: Latents, strength: float) -> Tensor:
    """Loss weight of each token, `b n`, mean 1 in each sample; strength 0 = all equal."""
    if latents.ids is None:
        return distance_weights(latents.tokens.float(), strength)
    return rarity_weights(latents.ids, strength)
