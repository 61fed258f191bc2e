"""Block-sparse attention, forward: softmax(scale q kᵀ) v over the blocks of keys that a block of queries meets.

Online softmax in fp32 (FlashAttention, arXiv 2205.14135). Full blocks skip the mask, which is what block lists are for.
"""

import triton
import triton.language as tl

from vidgen.kernels.triton.pattern import NEVER, load_rows, locate, row_pointers, sees

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _attend_block(output, peak, total, q, query_place, block, k, v, sample, head, scale_log2,
                  MASKED: tl.constexpr, PATTERN: tl.constexpr, HEAD: tl.constexpr,
                  DESCRIPTORS: tl.constexpr):  # fmt: skip
    """One block of keys: the running output, maximum (in powers of two) and sum of each query, brought up to date."""
    KEYS: tl.constexpr = PATTERN.keys
    BLOCK: tl.constexpr = KEYS.tiling.block
    PADDED_HEAD: tl.constexpr = q.shape[1]
    slot = tl.arange(0, BLOCK)
    k_rows = load_rows(k, block, sample, head, MASKED, KEYS, HEAD, PADDED_HEAD, DESCRIPTORS)
    scores = tl.dot(q, tl.trans(k_rows), input_precision="ieee")
    if MASKED:
        key_time, key_row, key_column, _, held = locate(block, slot, KEYS)
        key_time = tl.where(held, key_time, NEVER)
        query_time, query_row, query_column = query_place
        seen = sees(query_time[:, None], query_row[:, None], query_column[:, None],
                    key_time[None, :], key_row[None, :], key_column[None, :], PATTERN)  # fmt: skip
        scores = tl.where(seen, scores * scale_log2, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        # a query that has seen nothing yet has no finite peak to subtract
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(scores - shift[:, None])
        decay = tl.exp2(peak - shift)
    else:
        if KEYS.tiling.capacity < BLOCK:
            scores = tl.where((slot < KEYS.tiling.capacity)[None, :], scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
        weights = tl.exp2(scores * scale_log2 - new_peak[:, None])
        decay = tl.exp2(peak - new_peak)
    v_rows = load_rows(v, block, sample, head, MASKED, KEYS, HEAD, PADDED_HEAD, DESCRIPTORS)
    output = tl.dot(weights.to(v_rows.dtype), v_rows, output * decay[:, None], input_precision="ieee")
    return output, new_peak, total * decay + tl.sum(weights, 1)


@triton.jit
def attention_forward(
    q, k, k_strides, v, v_strides, output, lse, lists, heads, heads_per_key, scale_log2,
    PATTERN: tl.constexpr, HEAD: tl.constexpr, PADDED_HEAD: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """One program for a block of queries of one head: output `b h n d` and natural log-sum-exp `b h n` (contiguous).

    q, output: (pointer, (strides of sample, head, row)). k, v: pointers or, with DESCRIPTORS, descriptors of blocks
    (1, 1, block, head) of tensors packed in tile order where the pattern has tiles; arguments of their own, because
    Triton 3.6 finds no descriptors in tuples. `lists`: the fields of `BlockRows`. `scale_log2`: scale times log2(e).
    """
    QUERIES: tl.constexpr = PATTERN.queries
    BLOCK: tl.constexpr = QUERIES.tiling.block
    program = tl.program_id(0)
    block = tl.load(lists[4] + program % QUERIES.blocks)
    head = program // QUERIES.blocks % heads
    sample = program // QUERIES.blocks // heads
    time, row, column, token, held = locate(block, tl.arange(0, BLOCK), QUERIES)
    q_rows = load_rows(q, block, sample, head, True, QUERIES, HEAD, PADDED_HEAD, False)
    sum_rows = tl.zeros((BLOCK, PADDED_HEAD), tl.float32)
    peak = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for masked in tl.static_range(2):
        start, members = lists[2 * masked], lists[2 * masked + 1]
        for i in range(tl.load(start + block), tl.load(start + block + 1)):
            sum_rows, peak, total = _attend_block(
                sum_rows, peak, total, q_rows, (time, row, column), tl.load(members + i),
                (k, k_strides), (v, v_strides), sample, head // heads_per_key, scale_log2,
                masked, PATTERN, HEAD, DESCRIPTORS)  # fmt: skip
    # a query that sees nothing has total 0 and peak -inf: output 0, log-sum-exp -inf
    total = tl.where(total == 0.0, 1.0, total)
    pointers, inside = row_pointers(output, sample, head, token, held, HEAD, PADDED_HEAD)
    tl.store(pointers, (sum_rows / total[:, None]).to(output[0].dtype.element_ty), mask=inside)
    first = (sample * heads + head).to(tl.int64) * QUERIES.tokens
    tl.store(lse + first + token, peak * LN_2 + tl.log(total), mask=held)
