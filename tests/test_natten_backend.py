"""The NATTEN backend hands over what NATTEN's documentation asks for; with NATTEN and a GPU, the library itself."""

import sys
from itertools import product
from types import ModuleType

import pytest
import torch
from attention_patterns import make_inputs, output_and_gradients, relative_error
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from vidgen.kernels import AttentionSpec, attention3d
from vidgen.kernels.backends import natten


def documented_window(place: int, size: int, kernel: int, stride: int, dilation: int, causal: bool) -> set[int]:
    """Neighbours along one axis: of the query in the middle of its stride group, moved inside at the border."""
    members = range(place % dilation, size, dilation)
    at = members.index(place)
    if causal:
        return set(members[max(0, at - kernel + 1) : at + 1])
    leader = min(at // stride * stride + stride // 2, len(members) - 1)
    start = min(max(leader - kernel // 2, 0), len(members) - kernel)
    return set(members[start : start + kernel])


def documented_na3d(
    query, key, value, kernel_size, stride, dilation, is_causal, scale, additional_keys, additional_values
):
    """`natten.na3d` by loops; tensors `b t y x h d`."""
    grid = query.shape[1:4]
    places = list(product(*map(range, grid)))
    near = [
        [documented_window(i, *rule) for i in range(rule[0])]
        for rule in zip(grid, kernel_size, stride, dilation, is_causal)
    ]
    sees = [[all(k[axis] in near[axis][q[axis]] for axis in range(3)) for k in places] for q in places]
    q, k, v = (tensor.flatten(1, 3).transpose(1, 2) for tensor in (query, key, value))
    mask = torch.tensor(sees)
    if additional_keys is not None:
        k = torch.cat([additional_keys.transpose(1, 2), k], dim=2)
        v = torch.cat([additional_values.transpose(1, 2), v], dim=2)
        mask = torch.nn.functional.pad(mask, (additional_keys.shape[1], 0), value=True)
    output = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    return output.transpose(1, 2).unflatten(1, grid)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("natten")
    module.na3d = documented_na3d  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "natten", module)
    monkeypatch.setattr(natten, "INSTALLED", True)


def on_cuda(spec: AttentionSpec, *, kv_heads: int = 2) -> list[Tensor]:
    sizes = ((2, spec.num_queries), (kv_heads, spec.num_keys), (kv_heads, spec.num_keys))
    made = [torch.empty(1, *size, 64, device="meta", dtype=torch.bfloat16) for size in sizes]
    return [FakeTensor(FakeTensorMode(), tensor, torch.device("cuda")) for tensor in made]


SERVED = [
    AttentionSpec.neighborhood((4, 5, 6), (3, 4, 5)),
    AttentionSpec.neighborhood((4, 5, 6), (2, None, 3), causal=(True, False, False), prefix=2, prefix_mode="kv_only"),
    AttentionSpec.dilated_neighborhood((4, 5, 7), (2, 2, 2), dilation=(2, 1, 3)),
    AttentionSpec.sliding_tile((4, 6, 9), (2, 6, 9), tile=(2, 2, 3)),
]


@pytest.mark.parametrize("spec", SERVED)
def test_the_arguments_mean_the_pattern(installed: None, spec: AttentionSpec) -> None:
    assert natten.unsupported(*on_cuda(spec), spec, return_lse=False) is None
    q, k, v, _ = make_inputs(spec)
    output, _ = natten.attend(q, k, v, spec, scale=0.3, return_lse=False)
    torch.testing.assert_close(output, attention3d(q, k, v, spec, scale=0.3, backend="reference"))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (AttentionSpec.neighborhood((4, 5, 6), (3, 3, 3), prefix=2), 'use prefix_mode="kv_only"'),
        (AttentionSpec.neighborhood((4, 5, 6), (3, 3, 3), edge="shrink"), "along time windows are cut at the border"),
        (AttentionSpec.factorised_spatial((4, 5, 6)), "along time the window is one token"),
        (AttentionSpec.swin3d((4, 5, 6), (2, 2, 4), shifted=True), "along time the windows are shifted"),
        (AttentionSpec.frame_causal((4, 5, 6), group=2), "no cache offset, sink frames or causal groups"),
        (AttentionSpec(grid=(4, 5, 6), window=((0, 2), None, None), edge="clamp"), "not centred: 0 before, not 1"),
    ],
)
def test_what_natten_lacks_is_refused_with_the_reason(installed: None, spec: AttentionSpec, reason: str) -> None:
    refusal = natten.unsupported(*on_cuda(spec), spec, return_lse=False)
    assert refusal is not None and reason in refusal


def test_shared_heads_of_keys_are_refused(installed: None) -> None:
    refusal = natten.unsupported(*on_cuda(SERVED[0], kv_heads=1), SERVED[0], return_lse=False)
    assert refusal is not None and "share keys" in refusal


@pytest.mark.gpu
@pytest.mark.parametrize("spec", SERVED)
def test_on_a_gpu_the_library_itself_equals_the_reference_forward_and_backward(spec: AttentionSpec) -> None:
    pytest.importorskip("natten")
    made = make_inputs(spec, dtype=torch.bfloat16, head_size=64)
    q, k, v, gradient = (tensor.detach().cuda() for tensor in made)
    inputs = (q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), gradient)
    results = zip(output_and_gradients(spec, inputs, "natten"), output_and_gradients(spec, inputs, "reference"))
    for i, (ours, truth) in enumerate(results):
        assert relative_error(ours, truth) <= (8e-3 if i == 0 else 1.6e-2)


def test_without_the_library_the_reason_is_that() -> None:
    if natten.INSTALLED:
        pytest.skip("NATTEN is installed here")
    with pytest.raises(ValueError, match="natten cannot serve this call: NATTEN is not installed"):
        attention3d(*make_inputs(SERVED[0])[:3], SERVED[0], backend="natten")
