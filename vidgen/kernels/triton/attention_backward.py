"""Block-sparse attention, backward: dK and dV over the transposed block lists, then dQ; no atomics, so deterministic.

With P = exp(scale S - lse), delta = rowsum(dO * O) - dlse and dS = P * (dO Vᵀ - delta):
dV = Pᵀ dO, dK = scale dSᵀ Q, dQ = scale dS K (FlashAttention-2, arXiv 2307.08691, algorithm 2).
Arguments as in `attention_forward`.
"""

import triton
import triton.language as tl

from vidgen.kernels.triton.pattern import NEVER, load_rows, locate, row_pointers, sees

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def attention_delta(output, d_output, d_lse, delta, heads, tokens,
                    HEAD: tl.constexpr, PADDED_HEAD: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """delta = rowsum(dO * O) - dlse for a run of queries of one head; delta and dlse are contiguous `b h n`, fp32."""
    runs = tl.cdiv(tokens, BLOCK)
    program = tl.program_id(0)
    head = program // runs % heads
    sample = program // runs // heads
    token = program % runs * BLOCK + tl.arange(0, BLOCK)
    held = token < tokens
    pointers, inside = row_pointers(output, sample, head, token, held, HEAD, PADDED_HEAD)
    output_rows = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    pointers, inside = row_pointers(d_output, sample, head, token, held, HEAD, PADDED_HEAD)
    d_output_rows = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    first = (sample * heads + head).to(tl.int64) * tokens
    d_lse_rows = tl.load(d_lse + first + token, mask=held, other=0.0)
    tl.store(delta + first + token, tl.sum(output_rows * d_output_rows, 1) - d_lse_rows, mask=held)


@triton.jit
def _add_query_block(d_k, d_v, k_rows, v_rows, key_place, block, q, d_output, lse, delta, sample, head, heads,
                     scale_log2, MASKED: tl.constexpr, PATTERN: tl.constexpr, HEAD: tl.constexpr,
                     DESCRIPTORS: tl.constexpr):  # fmt: skip
    """One block of queries, added to dK and dV; P and dS are transposed, `keys queries`, as both products want them."""
    QUERIES: tl.constexpr = PATTERN.queries
    BLOCK: tl.constexpr = QUERIES.tiling.block
    PADDED_HEAD: tl.constexpr = k_rows.shape[1]
    query_time, query_row, query_column, token, held = locate(block, tl.arange(0, BLOCK), QUERIES)
    q_rows = load_rows(q, block, sample, head, True, QUERIES, HEAD, PADDED_HEAD, DESCRIPTORS)
    first = (sample * heads + head).to(tl.int64) * QUERIES.tokens
    # with an infinite log-sum-exp empty slots weigh nothing, whatever their rows hold
    lse_log2 = tl.load(lse + first + token, mask=held, other=float("inf")) * LOG2_E
    weights = tl.exp2(tl.dot(k_rows, tl.trans(q_rows), input_precision="ieee") * scale_log2 - lse_log2[None, :])
    if MASKED:
        key_time, key_row, key_column = key_place
        seen = sees(query_time[None, :], query_row[None, :], query_column[None, :],
                    key_time[:, None], key_row[:, None], key_column[:, None], PATTERN)  # fmt: skip
        weights = tl.where(seen, weights, 0.0)
    d_output_rows = load_rows(d_output, block, sample, head, True, QUERIES, HEAD, PADDED_HEAD, DESCRIPTORS)
    d_v = tl.dot(weights.to(d_output_rows.dtype), d_output_rows, d_v, input_precision="ieee")
    d_weights = tl.dot(v_rows, tl.trans(d_output_rows), input_precision="ieee")
    d_scores = weights * (d_weights - tl.load(delta + first + token, mask=held, other=0.0)[None, :])
    d_k = tl.dot(d_scores.to(q_rows.dtype), q_rows, d_k, input_precision="ieee")
    return d_k, d_v


@triton.jit
def attention_backward_keys(
    q, q_strides, k, v, d_output, d_output_strides, lse, delta, d_k, d_v, lists,
    heads, heads_per_key, scale, scale_log2,
    PATTERN: tl.constexpr, HEAD: tl.constexpr, PADDED_HEAD: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """dK and dV of one block of keys, summed over the query heads that share them; q and dO may be descriptors."""
    KEYS: tl.constexpr = PATTERN.keys
    BLOCK: tl.constexpr = KEYS.tiling.block
    key_heads = heads // heads_per_key
    program = tl.program_id(0)
    block = tl.load(lists[4] + program % KEYS.blocks)
    key_head = program // KEYS.blocks % key_heads
    sample = program // KEYS.blocks // key_heads
    time, row, column, token, held = locate(block, tl.arange(0, BLOCK), KEYS)
    time = tl.where(held, time, NEVER)
    k_rows = load_rows(k, block, sample, key_head, True, KEYS, HEAD, PADDED_HEAD, False)
    v_rows = load_rows(v, block, sample, key_head, True, KEYS, HEAD, PADDED_HEAD, False)
    d_k_rows = tl.zeros((BLOCK, PADDED_HEAD), tl.float32)
    d_v_rows = tl.zeros((BLOCK, PADDED_HEAD), tl.float32)
    for shared in range(heads_per_key):
        head = key_head * heads_per_key + shared
        for masked in tl.static_range(2):
            start, members = lists[2 * masked], lists[2 * masked + 1]
            for i in range(tl.load(start + block), tl.load(start + block + 1)):
                d_k_rows, d_v_rows = _add_query_block(
                    d_k_rows, d_v_rows, k_rows, v_rows, (time, row, column), tl.load(members + i),
                    (q, q_strides), (d_output, d_output_strides), lse, delta, sample, head, heads, scale_log2,
                    masked, PATTERN, HEAD, DESCRIPTORS)  # fmt: skip
    pointers, inside = row_pointers(d_k, sample, key_head, token, held, HEAD, PADDED_HEAD)
    tl.store(pointers, (d_k_rows * scale).to(d_k[0].dtype.element_ty), mask=inside)
    pointers, inside = row_pointers(d_v, sample, key_head, token, held, HEAD, PADDED_HEAD)
    tl.store(pointers, d_v_rows.to(d_v[0].dtype.element_ty), mask=inside)


@triton.jit
def _add_key_block(d_q, q_rows, d_output_rows, lse_log2, delta_rows, query_place, block, k, v, sample, head, scale_log2,
                   MASKED: tl.constexpr, PATTERN: tl.constexpr, HEAD: tl.constexpr,
                   DESCRIPTORS: tl.constexpr):  # fmt: skip
    """One block of keys, added to dQ."""
    KEYS: tl.constexpr = PATTERN.keys
    BLOCK: tl.constexpr = KEYS.tiling.block
    PADDED_HEAD: tl.constexpr = q_rows.shape[1]
    slot = tl.arange(0, BLOCK)
    k_rows = load_rows(k, block, sample, head, MASKED, KEYS, HEAD, PADDED_HEAD, DESCRIPTORS)
    weights = tl.exp2(tl.dot(q_rows, tl.trans(k_rows), input_precision="ieee") * scale_log2 - lse_log2[:, None])
    if MASKED:
        key_time, key_row, key_column, _, held = locate(block, slot, KEYS)
        key_time = tl.where(held, key_time, NEVER)
        query_time, query_row, query_column = query_place
        seen = sees(query_time[:, None], query_row[:, None], query_column[:, None],
                    key_time[None, :], key_row[None, :], key_column[None, :], PATTERN)  # fmt: skip
        weights = tl.where(seen, weights, 0.0)
    elif KEYS.tiling.capacity < BLOCK:
        weights = tl.where((slot < KEYS.tiling.capacity)[None, :], weights, 0.0)
    v_rows = load_rows(v, block, sample, head, MASKED, KEYS, HEAD, PADDED_HEAD, DESCRIPTORS)
    d_scores = weights * (tl.dot(d_output_rows, tl.trans(v_rows), input_precision="ieee") - delta_rows[:, None])
    return tl.dot(d_scores.to(k_rows.dtype), k_rows, d_q, input_precision="ieee")


@triton.jit
def attention_backward_queries(
    q, k, k_strides, v, v_strides, d_output, lse, delta, d_q, lists, heads, heads_per_key, scale, scale_log2,
    PATTERN: tl.constexpr, HEAD: tl.constexpr, PADDED_HEAD: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """dQ of one block of queries of one head; k and v may be descriptors."""
    QUERIES: tl.constexpr = PATTERN.queries
    BLOCK: tl.constexpr = QUERIES.tiling.block
    program = tl.program_id(0)
    block = tl.load(lists[4] + program % QUERIES.blocks)
    head = program // QUERIES.blocks % heads
    sample = program // QUERIES.blocks // heads
    time, row, column, token, held = locate(block, tl.arange(0, BLOCK), QUERIES)
    q_rows = load_rows(q, block, sample, head, True, QUERIES, HEAD, PADDED_HEAD, False)
    d_output_rows = load_rows(d_output, block, sample, head, True, QUERIES, HEAD, PADDED_HEAD, False)
    first = (sample * heads + head).to(tl.int64) * QUERIES.tokens
    lse_log2 = tl.load(lse + first + token, mask=held, other=float("inf")) * LOG2_E
    delta_rows = tl.load(delta + first + token, mask=held, other=0.0)
    d_q_rows = tl.zeros((BLOCK, PADDED_HEAD), tl.float32)
    for masked in tl.static_range(2):
        start, members = lists[2 * masked], lists[2 * masked + 1]
        for i in range(tl.load(start + block), tl.load(start + block + 1)):
            d_q_rows = _add_key_block(
                d_q_rows, q_rows, d_output_rows, lse_log2, delta_rows, (time, row, column), tl.load(members + i),
                (k, k_strides), (v, v_strides), sample, head // heads_per_key, scale_log2,
                masked, PATTERN, HEAD, DESCRIPTORS)  # fmt: skip
    pointers, inside = row_pointers(d_q, sample, head, token, held, HEAD, PADDED_HEAD)
    tl.store(pointers, (d_q_rows * scale).to(d_q[0].dtype.element_ty), mask=inside)
