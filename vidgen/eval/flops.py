"""Floating-point operations of a call, with those of attention on a CPU."""

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Shape = tuple[int, ...]


def attention_flops(query: Shape, key: Shape, value: Shape, *_args, **_kwargs) -> int:
    return sdpa_flop_count(query, key, value)


def attention_backward_flops(gradient: Shape, query: Shape, key: Shape, value: Shape, *_args, **_kwargs) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def count_flops() -> FlopCounterMode:
    """A context whose `get_total_flops()` is what ran inside, two for a multiplication and its addition.

    The counter of torch before 2.15 overlooks scaled dot-product attention on a CPU; this one does not.
    """
    return FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
        },
    )
