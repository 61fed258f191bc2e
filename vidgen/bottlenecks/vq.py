"""VQ: nearest vector of a learned codebook, kept by exponential moving average (van den Oord et al. 2017)."""

import torch
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from vidgen.bottlenecks.base import Bottleneck, Bottlenecked
from vidgen.nn.random import Generators


class VQ(Bottleneck):
    """One id a token out of `codes`.

    Args:
        codes: size of the codebook.
        channels: length of a code; few channels keep the codebook in use (Yu et al. 2021).
        commitment: weight that pulls encoder outputs to their codes.
        decay: of the moving average.
        restart_below: codes used less often than this (moving count of a batch) restart at a batch vector.
    """

    def __init__(
        self,
        *,
        codes: int = 1024,
        channels: int = 8,
        commitment: float = 0.25,
        decay: float = 0.99,
        restart_below: float = 0.1,
    ) -> None:
        super().__init__()
        if codes < 2 or channels < 1:
            raise ValueError(f"VQ needs at least 2 codes of at least 1 channel, got {codes} codes of {channels}")
        self.channels = self.in_channels = channels
        self.codebooks = (codes,)
        self.quantizer = VectorQuantize(
            dim=channels,
            codebook_size=codes,
            decay=decay,
            commitment_weight=commitment,
            threshold_ema_dead_code=restart_below,  # pyright: ignore[reportArgumentType]  its default is an int
            kmeans_init=False,
            use_cosine_sim=True,
        )

    def forward(self, features: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        # Whoever only encodes (no gradients) never moves the codebook, whatever mode the module is in.
        freeze = not torch.is_grad_enabled()
        with torch.autocast(features.device.type, enabled=False):
            vectors, ids, commitment = self.quantizer(features.float(), freeze_codebook=freeze)
        losses = {"commitment": commitment.sum()} if self.training else {}
        return Bottlenecked(vectors, ids.long().unsqueeze(-1), losses)

    def lookup(self, ids: Tensor) -> Tensor:
        return self.quantizer.get_output_from_indices(ids.squeeze(-1))

    def nearest(self, vectors: Tensor) -> Tensor:
        codes = torch.nn.functional.normalize(self.quantizer.codebook.float(), dim=-1)
        return (vectors.float() @ codes.T).argmax(dim=-1, keepdim=True)
