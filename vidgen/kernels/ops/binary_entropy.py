"""Exact entropies of binary codes (LFQ, BSQ) without a table of all codes: the half-code product."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Entries of one half-code factor that are in memory at once: 16 MiB in float32.
FACTOR_ENTRIES = 2**22


def binary_entropy_stats(
    z: Tensor,
    inv_temperature: float | Tensor,
    *,
    scale: float = 1.0,
    groups: int = 1,
    average: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean entropy of a sample's code and entropy of the mean code, the two terms of the LFQ loss, in nats.

    `z` is `… d`, before quantisation to ±`scale`; the code of a sample follows the softmax of
    -`inv_temperature`·‖z - code‖² over all 2^d codes (LFQ in MAGVIT-v2, arXiv 2310.05737; BSQ, arXiv
    2406.07548, with scale = 1/sqrt(d)). Its bits are independent, so the first entropy is a sum over bits, and the
    mean distribution is one matrix product of two half-codes: both are exact, for d up to about 24.
    Beyond, `groups` splits the bits into equal runs whose entropies are added up (BSQ's bound from above).
    Returns two float32 scalars: per-sample entropy in [0, d ln 2] and codebook entropy in [0, d ln 2]; a loss takes
    the first minus the second. Computed in float32 also under autocast and for bf16 inputs.
    `average` takes the mean distribution to that of a batch of which `z` is a share, before its entropy is taken.
    ValueError: `groups` does not divide d.
    """
    per_sample = bit_entropy(_logits(z, inv_temperature, scale)).sum(dim=-1).mean()
    distribution = binary_code_distribution(z, inv_temperature, scale=scale, groups=groups)
    return per_sample, code_entropy(distribution if average is None else average(distribution))


def binary_code_distribution(
    z: Tensor, inv_temperature: float | Tensor, *, scale: float = 1.0, groups: int = 1
) -> Tensor:
    """Mean probability of every code over the samples of `z`: `… d -> groups 2^(d/groups)`, float32.

    The first channel is the highest bit of a code, and a positive channel is a one. `code_entropy` of it is the
    codebook entropy. For a batch that is spread over processes, average it over them before (with gradients:
    `torch.distributed.nn.functional.all_reduce`): entropies do not average, distributions do.
    Memory grows with 2^(d/groups) but not with samples times codes; arguments as in `binary_entropy_stats`.
    """
    if groups < 1 or z.shape[-1] % groups:
        raise ValueError(f"groups: {groups} do not divide {z.shape[-1]} bits; use a divisor of {z.shape[-1]}")
    logits = rearrange(_logits(z, inv_temperature, scale), "... (g d) -> g (...) d", g=groups)
    samples, bits = logits.shape[1:]
    rows = max(1, FACTOR_ENTRIES // 2 ** (bits - bits // 2) // groups)
    if samples <= rows:
        return _summed_codes(logits) / samples
    total = torch.zeros((), device=z.device)
    for chunk in logits.split(rows, dim=1):
        total = total + checkpoint(_summed_codes, chunk, use_reentrant=False)
    return total / samples


def code_entropy(distribution: Tensor) -> Tensor:
    """Entropy in nats of `groups codes`, added up over groups; impossible codes count nothing."""
    # A mean distribution of 2^18 codes has true zeros in float32; the clamp touches only terms below 1e-36.
    return -(distribution * distribution.clamp(min=torch.finfo(distribution.dtype).tiny).log()).sum()


def bit_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of independent bits with the given log-odds, elementwise."""
    size = logits.abs()  # of the likelier value: no cancellation, however sure the bit is
    return torch.nn.functional.softplus(-size) + size * torch.sigmoid(-size)


def _logits(z: Tensor, inv_temperature: float | Tensor, scale: float) -> Tensor:
    """Log-odds of +scale against -scale: (z + s)² - (z - s)² = 4 s z."""
    return 4.0 * inv_temperature * scale * z.float()


def _summed_codes(logits: Tensor) -> Tensor:
    """Probabilities of every code, summed over samples: `g n d -> g 2^d`."""
    first, second = (_half_codes(half) for half in logits.tensor_split((logits.shape[-1] // 2,), dim=-1))
    with torch.autocast(logits.device.type, enabled=False):
        return rearrange(first.mT @ second, "g a b -> g (a b)")


def _half_codes(logits: Tensor) -> Tensor:
    """Probability of every code of few bits, per sample: `g n d -> g n 2^d`."""
    codes = logits.new_ones(*logits.shape[:-1], 1)
    pairs = torch.sigmoid(torch.stack([-logits, logits], dim=-1))
    for pair in pairs.unbind(dim=-2):
        codes = (codes.unsqueeze(-1) * pair.unsqueeze(-2)).flatten(-2)
    return codes
