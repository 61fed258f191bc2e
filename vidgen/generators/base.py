"""The interface of every generator: latents and a condition in, losses out; sampling is the pipelines' loop."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from vidgen.conditioning import Condition, TokenState
from vidgen.conditioning.condition import OPEN_END
from vidgen.generators.control import ControlBranch, ReferenceEmbedding
from vidgen.generators.embedding import KnownEmbedding, PlaceEmbedding
from vidgen.latents import LatentPart, Latents, LatentSpec
from vidgen.nn.random import Generators


class Generator(ModelMixin, PeftAdapterMixin, ConfigMixin, ABC):
    """A network over the tokens of one spec.

    `forward` takes and gives plain tensors, as diffusers' mixins and hooks need.
    """

    spec: LatentSpec
    heads: int
    place_embedding: PlaceEmbedding
    known_embedding: KnownEmbedding
    control_branch: ControlBranch
    reference_embedding: ReferenceEmbedding

    @abstractmethod
    def losses(self, latents: Latents, condition: Condition, *, generators: Generators) -> dict[str, Tensor]:
        """Weighted terms whose sum is to be minimised; one generator per sample."""

    @abstractmethod
    def plausibility(self, latents: Latents, condition: Condition, *, generators: Generators) -> Tensor:
        """`b`: how plausible the network finds these tokens under this condition; more is more plausible.

        For comparing samples of one network, size and condition, under generators of the same seed. Known tokens have
        no part in it.
        """

    def check_spec(self, spec: LatentSpec) -> None:
        """Refuse tokens of another kind than those that the network was built for."""
        if spec != self.spec:
            raise ValueError(
                f"this generator was built for tokens {self.spec}, but the tokenizer makes {spec}; they differ in "
                f"{differences(self.spec, spec)}; use the tokenizer that it was trained with"
            )

    @property
    def knows_partial(self) -> bool:
        """Whether training has shown it tokens whose pixels are known in part, as its config says."""
        return self.config.get("_knows_partial", False)  # private: of the weights, no argument of a constructor

    def condition_inputs(self, condition: Condition, coordinates: Tensor) -> dict[str, Any]:
        """The condition as the keyword arguments that every generator's `forward` takes."""
        known = condition.known
        inputs = {
            "encoder_hidden_states": condition.states,
            "encoder_attention_mask": condition.mask_for(coordinates[:, 2]),
            "known_tokens": None if known is None else known.tokens,
            "token_state": condition.token_state,
        }
        if condition.control is not None:
            if not self.config.control_layers:
                raise ValueError("this generator has no control branch; give it one with add_control() and train it")
            inputs["control"] = self.control_branch(condition.control.tokens.to(self.dtype), coordinates)
        return inputs

    def add_control(self, layers: int = 2) -> None:
        """Give the generator a `ControlBranch`, which changes nothing until it is trained."""
        self.control_branch = ControlBranch(self.spec, self.config.width, self.heads, layers=layers).to(
            self.device, self.dtype
        )
        self.register_to_config(control_layers=layers)

    def add_references(self) -> None:
        """Let the generator take reference images; its weights for them have to be trained."""
        self.reference_embedding = ReferenceEmbedding(self.spec, self.config.text_width).to(self.device, self.dtype)
        self.register_to_config(has_references=True)

    def with_references(self, condition: Condition, references: Latents, *, samples: int = 1) -> Condition:
        """The condition with images, videos of one frame, as more states.

        `references` are r images for all samples, or with `samples` the r of the first sample, of the next one…
        """
        if not self.config.has_references:
            raise ValueError("this generator takes no reference images; let it with add_references() and train it")
        coordinates = references.spec.coordinates(references.size).to(condition.states.device)
        tokens = references.tokens.to(condition.states).unflatten(0, (samples, -1))
        return with_states(condition, self.reference_embedding(tokens, coordinates), None)

    def situated(
        self,
        x: Tensor,
        coordinates: Tensor,
        known_tokens: Tensor | None,
        token_state: Tensor | None,
        control: Tensor | None,
    ) -> Tensor:
        """Embedded tokens `b n d` with their places, what is known there and what steers them."""
        x = x + self.place_embedding(coordinates)
        if known_tokens is not None:
            x = x + self.known_embedding(known_tokens, token_state)
        return x if control is None else x + control

    def limits(self, coordinates: Tensor) -> Tensor | None:
        """Codebook sizes at each token, `n q`, where the parts differ; else `None`."""
        sizes = [part.codebooks for part in self.spec.parts]
        if len(set(sizes)) == 1:
            return None
        return torch.tensor(sizes, device=coordinates.device)[coordinates[:, 0]]


def with_states(condition: Condition, states: Tensor, frames: Tensor | None) -> Condition:
    """The condition with more states (`b r d`, or `1 r d` for all), each for its range of `frames`, `r 2`, or for all.

    Ranges are as in `Condition.frames`.
    """
    states = states.expand(len(condition.states), -1, -1)
    ranges = None
    if condition.frames is not None or frames is not None:
        always = torch.tensor([0, OPEN_END], device=states.device)
        given, added = (
            always.expand(*some.shape[:2], 2) if its is None else its.expand(*some.shape[:2], 2)
            for some, its in ((condition.states, condition.frames), (states, frames))
        )
        ranges = torch.cat([given, added], dim=1)
    mask = torch.cat([condition.mask, condition.mask.new_ones(states.shape[:2])], dim=1)
    return replace(condition, states=torch.cat([condition.states, states], dim=1), mask=mask, frames=ranges)


def seen(target: Tensor, condition: Condition) -> Tensor:
    """The tokens of a clip, `b n q` or `b n c`, with those of the condition video where they are known."""
    if condition.known is None or condition.token_state is None:
        return target
    given = condition.known.tokens if condition.known.ids is None else condition.known.ids
    return torch.where((condition.token_state == TokenState.KNOWN).unsqueeze(-1), given.to(target.dtype), target)


def differences(own: LatentSpec, other: LatentSpec) -> str:
    """What two specs disagree in, in words."""
    if len(own.parts) != len(other.parts):
        return f"the number of parts ({len(own.parts)}, not {len(other.parts)})"
    of_parts = [field.name for field in fields(LatentPart)]
    compared: list[tuple[str, Any, Any, list[str]]] = [("", own, other, ["causal", "streamable"])]
    for mine, theirs in zip(own.parts, other.parts, strict=True):
        compared.append((f" of part {mine.name!r}", mine, theirs, of_parts))
    return ", ".join(
        f"{name}{owner} ({getattr(mine, name)}, not {getattr(theirs, name)})"
        for owner, mine, theirs, names in compared
        for name in names
        if getattr(mine, name) != getattr(theirs, name)
    )


def rarity_weights(ids: Tensor, parts: Sequence[slice], strength: float) -> Tensor:
    """`b n q -> b n`, mean 1 in each sample: (how often the id occurs in its own part and sample) ** -strength.

    Most tokens of a video repeat a still background; without weights they drown the few that carry the content.
    """
    batch, count, _ = ids.shape
    owner = torch.empty(batch, count, 2, dtype=ids.dtype, device=ids.device)  # sample and part: counted apart, at once
    owner[..., 0] = torch.arange(batch, device=ids.device)[:, None]
    for number, part in enumerate(parts):
        owner[:, part, 1] = number
    rows = torch.cat([owner, ids], dim=2).flatten(0, 1)
    _, which, occurrences = rows.unique(dim=0, return_inverse=True, return_counts=True)
    weights = occurrences[which].view(batch, count).float() ** -strength
    return weights / weights.mean(dim=1, keepdim=True)


def distance_weights(tokens: Tensor, strength: float) -> Tensor:
    """`b n c -> b n`, mean 1 in each sample: 1 + strength · distance from the sample's median token.

    The counterpart of `rarity_weights` for reals.
    """
    median = tokens.median(dim=1, keepdim=True).values
    distance = (tokens - median).square().mean(dim=-1).sqrt()
    weights = 1 + strength * distance
    return weights / weights.mean(dim=1, keepdim=True)


def weighted_mean(loss: Tensor, weights: Tensor) -> Tensor:
    """`b n` and `b n` to `b`; 0 where no token has any weight."""
    return (loss * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-6)


def made_weights(latents: Latents, condition: Condition, strength: float) -> Tensor:
    """`token_weights`, 0 where a token is known."""
    weights = token_weights(latents, strength)
    return weights * condition.unknown(weights.shape[1]).to(weights.device)


def token_weights(latents: Latents, strength: float) -> Tensor:
    """Loss weight of each token, `b n`, mean 1 in each sample; strength 0 = all equal."""
    if strength == 0:
        return torch.ones(latents.tokens.shape[:2], device=latents.tokens.device)
    if latents.ids is None:
        return distance_weights(latents.tokens.float(), strength)
    return rarity_weights(latents.ids, latents.spec.slices(latents.size, start=latents.start), strength)
