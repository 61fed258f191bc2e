"""`Matcher`: what every network that judges latents of videos against texts has."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from vidgen.latents import NO_PLACE, Latents, LatentSpec


class Matcher(ModelMixin, ConfigMixin, ABC):
    """Judges whether videos show what texts say (video-text matching). Pipelines choose between candidates by it.

    It reads the tokens that a generator makes, of the tokenizer that it was trained with.

    Attributes:
        spec: what the tokens are.
    """

    spec: LatentSpec

    @abstractmethod
    def score(self, latents: Latents, prompts: Sequence[str], *, frames: tuple[int, int] | None = None) -> Tensor:
        """Log-odds `b` that each video shows what its prompt says.

        Args:
            frames: only the tokens of the frames from the first up to the second, which is not among them, are looked
                at; `None` = all. Tokens that have no place in time always are.

        Raises:
            ValueError: not one prompt for each video, tokens of another kind, or frames without a token.
        """

    def check_spec(self, spec: LatentSpec) -> None:
        """ValueError for tokens of another kind than those that the network was built for."""
        if spec != self.spec:
            raise ValueError(
                f"this matcher was built for tokens {self.spec}, but the tokenizer makes {spec}; use the tokenizer "
                "that it was trained with, or no matcher"
            )


def tokens_of_frames(latents: Latents, first: int, end: int) -> Tensor:
    """Bool `n`: which tokens lie in the frames from `first` up to `end`; those without a place in time always do."""
    times = latents.spec.coordinates(latents.size, start=latents.start)[:, 2]
    return (times == NO_PLACE) | ((times >= first) & (times < end))
