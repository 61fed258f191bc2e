"""Triton kernel of `vq_assign`: products with all codes and the running best, tile by tile in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidgen.kernels.ops.triton.settings import launch


@triton.jit
def nearest_code_kernel(
    vectors,
    codes,
    lengths,
    ids,
    num_vectors,
    num_codes,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    from_row = vectors + row.to(tl.int64)[:, None] * WIDTH
    best = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    best_code = tl.zeros([ROWS], dtype=tl.int32)
    for begin in range(0, num_codes, CODES):
        code = begin + tl.arange(0, CODES)
        from_code = codes + code.to(tl.int64)[None, :] * WIDTH
        score = tl.zeros([ROWS, CODES], dtype=tl.float32)
        for start in range(0, WIDTH, DEPTH):
            channel = start + tl.arange(0, DEPTH)
            left = tl.load(
                from_row + channel[None, :], mask=(row < num_vectors)[:, None] & (channel < WIDTH)[None, :], other=0.0
            )
            right = tl.load(
                from_code + channel[:, None], mask=(code < num_codes)[None, :] & (channel < WIDTH)[:, None], other=0.0
            )
            score = tl.dot(left, right, score, input_precision=PRECISION)
        length = tl.load(lengths + code, mask=code < num_codes, other=float("inf"))
        value, place = tl.max(score - 0.5 * length[None, :], axis=1, return_indices=True)
        best_code = tl.where(value > best, begin + place, best_code)
        best = tl.maximum(value, best)
    tl.store(ids + row, best_code.to(tl.int64), mask=row < num_vectors)


def nearest_code(vectors: Tensor, codes: Tensor, lengths: Tensor) -> Tensor:
    """`n d, k d, k -> n` long: argmax of x·c - ‖c‖²/2 in float32; three TF32 products make one of nearly float32."""
    ids = torch.empty(len(vectors), dtype=torch.long, device=vectors.device)
    width = vectors.shape[1]
    depth = min(32, max(16, triton.next_power_of_2(width)))
    shape = {"WIDTH": width, "DEPTH": depth, "ROWS": 64, "CODES": 128, "PRECISION": "tf32x3"}
    launch(
        nearest_code_kernel, (triton.cdiv(len(vectors), 64),),
        vectors, codes, lengths, ids, len(vectors), len(codes), num_warps=8, **shape
    )  # fmt: skip
    return ids
