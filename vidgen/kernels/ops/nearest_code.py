"""`vq_assign`: the nearest code of every vector, without the matrix of all distances."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vidgen.kernels.ops.dispatch import takes_triton

# Distances in memory at once: 16 MiB, small enough for the last cache of a CPU core, large enough for a fast product.
DISTANCES = 2**22
CODES = 8192


def vq_assign(x: Tensor, codebook: Tensor, *, cosine: bool = False) -> Tensor:
    """Index of the nearest code, `… d, k d -> …` long: least squared distance, or largest cosine similarity.

    Among equals the lowest index wins; codes whose distances differ by less than float32 rounding (1e-6 relative to
    ‖x‖·‖code‖) count as equals. No gradient flows; a distance that has one is
    `(x - codebook[ids]).square().sum(-1)`. Working memory stays near 16 MiB for any number of vectors and codes.
    ValueError: shapes that do not fit, a codebook without codes.
    """
    if codebook.ndim != 2 or x.shape[-1] != codebook.shape[1]:
        raise ValueError(
            f"expected vectors `… d` and a codebook `k d`, got {tuple(x.shape)} and {tuple(codebook.shape)}"
        )
    if len(codebook) == 0:
        raise ValueError(f"expected a codebook of at least one code, got shape {tuple(codebook.shape)}")
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        vectors, codes = x.reshape(-1, x.shape[-1]).float(), codebook.float()
        if cosine:
            codes = F.normalize(codes, dim=-1)
            lengths = codes.new_zeros(len(codes))
        else:
            lengths = codes.square().sum(dim=-1)
        if takes_triton(vectors):
            ids = _nearest_code(vectors, codes, lengths)
        else:
            rows = max(1, DISTANCES // min(CODES, len(codes)))
            ids = torch.cat([nearest_code_reference(part, codes, lengths) for part in vectors.split(rows)])
    return ids.view(x.shape[:-1])


def nearest_code_reference(vectors: Tensor, codes: Tensor, lengths: Tensor) -> Tensor:
    """`n d, k d, k -> n`: argmax of x·c - ‖c‖²/2, a block of codes after the other."""
    best = vectors.new_full((len(vectors),), -torch.inf)
    ids = torch.zeros(len(vectors), dtype=torch.long, device=vectors.device)
    for start in range(0, len(codes), CODES):
        block = slice(start, start + CODES)
        value, place = torch.addmm(-0.5 * lengths[block], vectors, codes[block].T).max(dim=1)
        ids = torch.where(value > best, place + start, ids)
        best = torch.maximum(value, best)
    return ids


@torch.library.custom_op("vidgen::nearest_code", mutates_args=())
def _nearest_code(vectors: Tensor, codes: Tensor, lengths: Tensor) -> Tensor:
    from vidgen.kernels.ops.triton.nearest_code import nearest_code

    return nearest_code(vectors.contiguous(), codes.contiguous(), lengths)


@_nearest_code.register_fake
def _(vectors: Tensor, codes: Tensor, lengths: Tensor) -> Tensor:
    return vectors.new_empty(vectors.shape[0], dtype=torch.long)
