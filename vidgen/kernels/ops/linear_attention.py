"""Attention whose cost is linear in tokens: a decaying state instead of a table of scores (GLA, Mamba-2's SSD)."""

import importlib.util

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

# Tokens of a chunk, a power of two: inside it the pairs are computed, at its end the state.
CHUNK = 64

FLASH_LINEAR_ATTENTION = importlib.util.find_spec("fla") is not None


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """out_t = q_t S_t with S_t = exp(log_decay_t) S_(t-1) + k_tᵀ v_t: causal, n·d·(e + chunk) operations.

    `q`, `k` are `b h n d`, `v` is `b h n e`; `log_decay` ≤ 0 is `b h n d` (gated linear attention, arXiv 2312.06635)
    or `b h n` (state-space duality, Mamba-2, arXiv 2405.21060). `state` is S before the first token, `b h d e`
    (zero if not given). Returns the output in the dtype of v and the state after the last token in float32, with which
    the next block of a stream goes on. No scale is applied to q. Computed in float32 in chunks by plain torch; on a
    GPU by flash-linear-attention where that is installed.
    ValueError: shapes that do not fit.
    """
    if q.ndim != 4:
        raise ValueError(f"expected q `b h n d`, got shape {tuple(q.shape)}")
    _check(q, k, v, log_decay, state)
    if state is None:
        state = k.new_zeros(*k.shape[:2], k.shape[3], v.shape[3], dtype=torch.float32)
    if FLASH_LINEAR_ATTENTION and q.is_cuda:
        return _flash_linear_attention(q, k, v, log_decay, state)
    with torch.autocast(q.device.type, enabled=False):
        output, state = chunked_linear_attention(q.float(), k.float(), v.float(), log_decay.float(), state.float())
    return output.to(v.dtype), state


def linear_attention_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, *, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of `gated_linear_attention`, all tensors without the axis n: the recurrent form, for generation.

    ValueError: shapes that do not fit.
    """
    if q.ndim != 3:
        raise ValueError(f"expected q `b h d`, got shape {tuple(q.shape)}")
    _check(q, k, v, log_decay, state)
    decay = log_decay.float().exp()
    decay = decay.unsqueeze(-1) if log_decay.ndim == 3 else decay[..., None, None]
    state = decay * state + k.float().unsqueeze(-1) * v.float().unsqueeze(-2)
    return (q.float().unsqueeze(-2) @ state).squeeze(-2).to(v.dtype), state


def bidirectional_linear_attention(
    q: Tensor, k: Tensor, v: tuple[Tensor, Tensor], log_decay: tuple[Tensor, Tensor]
) -> Tensor:
    """The sum of a scan forwards and one backwards, with values and decays of their own: `b h n e`.

    A token meets itself in both, as every other token does in one: with equal values its own weight is 2.
    """
    forwards, _ = gated_linear_attention(q, k, v[0], log_decay[0])
    backwards, _ = gated_linear_attention(*(tensor.flip(2) for tensor in (q, k, v[1], log_decay[1])))
    return forwards + backwards.flip(2)


def chunked_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`gated_linear_attention` in plain torch, all in float32."""
    tokens, by_channel = q.shape[2], log_decay.ndim == 4
    chunk = min(CHUNK, 1 << (tokens - 1).bit_length())
    if not by_channel:
        log_decay = log_decay.unsqueeze(-1)
    # padding: keys of zero add nothing to the state, a decay of one takes nothing away
    q, k, v, log_decay = (
        rearrange(F.pad(tensor, (0, 0, 0, -tokens % chunk)), "b h (c l) d -> b h c l d", l=chunk)
        for tensor in (q, k, v, log_decay)
    )
    decay = log_decay.cumsum(dim=3)  # from the start of the chunk to the token, itself included
    whole = decay[:, :, :, -1:]
    added = rearrange(k * (whole - decay).exp(), "b h c l d -> b h c d l") @ v
    kept = rearrange(whole.exp(), "b h c 1 d -> c b h d 1")
    before = []  # the state in front of each chunk
    for factor, summand in zip(kept, added.unbind(dim=2)):
        before.append(state)
        state = factor * state + summand
    scores = _scores_by_channel(q, k, decay) if by_channel else _scores(q, k, decay)
    output = (q * decay.exp()) @ torch.stack(before, dim=2) + scores @ v
    return rearrange(output, "b h c l e -> b h (c l) e")[:, :, :tokens], state


def _check(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None) -> None:
    """Nothing is broadcast: heads of keys are not shared by queries, as they are in attention."""
    if k.shape != q.shape:
        raise ValueError(f"expected k of the shape of q, {tuple(q.shape)}, got {tuple(k.shape)}")
    if v.ndim != q.ndim or v.shape[:-1] != q.shape[:-1]:
        raise ValueError(f"expected v of shape {tuple(q.shape[:-1])} and channels, got {tuple(v.shape)}")
    if log_decay.shape not in (k.shape, k.shape[:-1]):
        raise ValueError(
            f"expected log_decay of shape {tuple(k.shape)} (each channel) or {tuple(k.shape[:-1])} (each head), "
            f"got {tuple(log_decay.shape)}"
        )
    expected = (*q.shape[:2], q.shape[-1], v.shape[-1])
    if state is not None and state.shape != expected:
        raise ValueError(f"expected a state of shape {expected}, got {tuple(state.shape)}")


def _scores(q: Tensor, k: Tensor, decay: Tensor) -> Tensor:
    """Decayed products of the pairs of a chunk, `b h c l l`, zero above the diagonal; one decay for all channels."""
    later = torch.ones(q.shape[3], q.shape[3], dtype=torch.bool, device=q.device).triu(1)
    return (q @ k.mT) * (decay - decay.mT).masked_fill(later, -torch.inf).exp()


def _scores_by_channel(q: Tensor, k: Tensor, decay: Tensor) -> Tensor:
    """The same with a decay of each channel, from single tokens to pairs of blocks twice as long.

    Seen from the end of the first block, the way to either token is a decay: no factor is above one, none overflows.
    """
    scores = rearrange((q * k).sum(dim=-1), "b h c l -> b h c l 1 1")
    while scores.shape[3] > 1:
        blocks = {"two": 2, "l": scores.shape[-1]}
        queries, keys, decays = (
            rearrange(tensor, "b h c (n two l) d -> two b h c n l d", **blocks) for tensor in (q, k, decay)
        )
        border = decays[0][..., -1:, :]
        across = (queries[1] * (decays[1] - border).exp()) @ (keys[0] * (border - decays[0]).exp()).mT
        first, second = rearrange(scores, "b h c (n two) i j -> two b h c n i j", two=2)
        upper = torch.cat([first, torch.zeros_like(across)], dim=-1)
        scores = torch.cat([upper, torch.cat([across, second], dim=-1)], dim=-2)
    return scores.squeeze(3)


def _flash_linear_attention(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The Triton kernels of the package `flash-linear-attention`, which want heads after tokens."""
    from fla.ops.gla import chunk_gla  # pyright: ignore[reportMissingImports]
    from fla.ops.simple_gla import chunk_simple_gla  # pyright: ignore[reportMissingImports]

    scan = chunk_gla if log_decay.ndim == 4 else chunk_simple_gla
    inputs = (tensor.transpose(1, 2).contiguous() for tensor in (q, k, v, log_decay))
    output, state = scan(*inputs, scale=1.0, initial_state=state, output_final_state=True)
    return output.transpose(1, 2), state
