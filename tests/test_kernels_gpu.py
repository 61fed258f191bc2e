"""The property suite of the attention kernels on a GPU, with memory that nobody wrote poisoned (`make gpu`)."""

import os

import pytest
import torch
from test_triton_interpret import run_checks

from vidgen.kernels import AttentionSpec, attention3d

pytestmark = pytest.mark.gpu


def test_triton_attention_equals_the_reference_on_the_gpu() -> None:
    # most of the time goes into compiling a kernel for each pattern, on the CPU
    run_checks("slow or not slow", interpret=False, workers=min(8, (os.cpu_count() or 2) // 2))


@pytest.mark.parametrize("backend", ["triton", "flex", "sdpa_dense"])
@pytest.mark.parametrize(
    "spec",
    [
        AttentionSpec.frame_causal((11, 15, 26), prefix=77),
        AttentionSpec.sliding_tile((12, 24, 40), (18, 24, 24), tile=(6, 8, 8), edge="shrink"),
        AttentionSpec.neighborhood((11, 15, 26), (5, 7, 9), prefix=77),
    ],
    ids=["frame_causal", "sliding_tile", "neighborhood"],
)
def test_thousands_of_tokens_in_bfloat16_equal_the_reference_on_the_gpu(spec: AttentionSpec, backend: str) -> None:
    """Sizes at which every kernel fills its pipeline; the interpreter cannot go there."""
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(1, 2, n, 128, device="cuda", dtype=torch.bfloat16, generator=generator).requires_grad_()
        for n in (spec.num_queries, spec.num_keys, spec.num_keys)
    )
    results = []
    for name in (backend, "reference"):
        output = attention3d(q, k, v, spec, backend=name)
        results.append([output, *torch.autograd.grad(output, [q, k, v], torch.ones_like(output))])
    for i, (ours, truth) in enumerate(zip(*results, strict=True)):
        difference = (ours.detach().double() - truth.detach().double()).square().mean().sqrt()
        assert difference <= (8e-3 if i == 0 else 1.6e-2) * truth.detach().double().square().mean().sqrt()
