"""Floating-point operations are counted by every way that attention may take on a CPU, with any torch."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from vidgen.eval.flops import count_flops


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_attention_is_two_products_forward(backend):
    q, k = torch.randn(1, 2, 64, 32), torch.randn(1, 2, 48, 32)
    with sdpa_kernel(backend), torch.no_grad(), count_flops() as counter:
        scaled_dot_product_attention(q, k, k)
    assert counter.get_total_flops() == 2 * (2 * 2 * 64 * 48 * 32)


def test_the_fused_backward_pass_is_five_products():
    q, k = (torch.randn(1, 2, length, 32, requires_grad=True) for length in (64, 48))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), count_flops() as counter:
        scaled_dot_product_attention(q, k, k).sum().backward()
    assert counter.get_total_flops() == (2 + 5) * (2 * 2 * 64 * 48 * 32)
