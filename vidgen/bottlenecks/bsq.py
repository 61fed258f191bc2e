"""BSQ: features on the unit sphere, the sign of every channel is a bit of the id (BSQ-ViT)."""

from torch import Tensor
from torch.nn import functional as F

from vidgen.bottlenecks.lfq import LFQ


class BSQ(LFQ):
    """2^bits codes, the corners of a cube in the unit sphere (arXiv 2406.07548, section 3.1).

    What a code leaves over is bounded, so there is no commitment by default. Arguments as for LFQ; the temperature is
    that of features of length 1.
    """

    unit_length = True

    def __init__(
        self,
        *,
        bits: int = 18,
        groups: int = 1,
        entropy: float = 0.1,
        entropy_boost: float = 3.0,
        boost_steps: int = 2000,
        diversity: float = 1.0,
        temperature: float = 1.0,
        commitment: float = 0.0,
    ) -> None:
        super().__init__(
            bits=bits,
            groups=groups,
            entropy=entropy,
            entropy_boost=entropy_boost,
            boost_steps=boost_steps,
            diversity=diversity,
            temperature=temperature,
            commitment=commitment,
        )
        self.scale = bits**-0.5

    def enter(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1)
