"""Joint VQ: two codebooks behind one id, chosen by the weighted sum of both distances (TokenFlow's tokenizer)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vidgen.bottlenecks.vq import VQ


class JointVQ(VQ):
    """A semantic and a pixel code a token (arXiv 2412.03069, section 3.1).

    The two lie side by side, the pixel one scaled by sqrt(pixel_weight): the weighted sum of both squared distances is
    then one squared distance. The semantic code is the first `semantic_channels` of the vectors, for a teacher to hold
    on to (`vidgen.tokenizers.losses.distillation`).

    Args:
        codes: size of both codebooks.
        semantic_channels, pixel_channels: length of the codes.
        pixel_weight: of the pixel distance beside the semantic one.
        commitment, decay, restart_below, kmeans_steps: as for VQ.
    """

    def __init__(
        self,
        *,
        codes: int = 32768,
        semantic_channels: int = 32,
        pixel_channels: int = 8,
        pixel_weight: float = 1.0,
        commitment: float = 0.25,
        decay: float = 0.99,
        restart_below: float = 0.1,
        kmeans_steps: int = 0,
    ) -> None:
        if min(semantic_channels, pixel_channels) < 2 or pixel_weight <= 0:
            raise ValueError(
                "joint VQ needs at least 2 channels of each kind (features are scaled to length 1) and a pixel_weight "
                f"above 0, got {semantic_channels} and {pixel_channels} channels and pixel_weight {pixel_weight}"
            )
        super().__init__(
            codes=codes,
            channels=semantic_channels + pixel_channels,
            cosine=False,
            commitment=commitment,
            decay=decay,
            restart_below=restart_below,
            kmeans_steps=kmeans_steps,
        )
        self.parts, self.pixel_scale = [semantic_channels, pixel_channels], pixel_weight**0.5

    def enter(self, features: Tensor) -> Tensor:
        semantic, pixel = features.split(self.parts, dim=-1)
        return torch.cat([F.normalize(semantic, dim=-1), self.pixel_scale * F.normalize(pixel, dim=-1)], dim=-1)
