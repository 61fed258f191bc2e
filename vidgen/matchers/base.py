"""`Matcher`: what every network that judges videos against texts has."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor


class Matcher(ModelMixin, ConfigMixin, ABC):
    """Judges whether videos show what texts say (video-text matching). Pipelines choose between candidates by it."""

    @abstractmethod
    def score(self, video: Tensor, prompts: Sequence[str]) -> Tensor:
        """Log-odds `b` that each video of `b 3 t h w` in [-1, 1] shows what its prompt says.

        Raises:
            ValueError: not one prompt for each video, or a prompt that the network cannot read.
        """
