"""The CUDA C++ attention kernels: compiled without a GPU, executed by a PTX machine, equal to the reference on both."""

import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from needed import IN_CI, needs_triton
from ptx_machine import TensorMap, load
from test_blocks import specs
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vidgen.kernels import AttentionSpec, attention3d
from vidgen.kernels.backends import BACKENDS
from vidgen.kernels.choice import order_of
from vidgen.kernels.cuda import compile as compiler
from vidgen.kernels.cuda import launch as launcher
from vidgen.kernels.cuda.compile import Variant, build, compile_cubin, missing
from vidgen.kernels.cuda.launch import TENSOR_MAP_BYTES, prepare, readable
from vidgen.kernels.cuda.operator import attention
from vidgen.kernels.cuda.plan import BLOCK, MOST_MASKED_BLOCKS, Plan, make_plan, unsuitable
from vidgen.kernels.flat_spec import numbers_of, spec_of

# in CI it has to be there, and what needs it fails
needs_compiler = pytest.mark.skipif(missing() is not None and not IN_CI, reason=str(missing()))

AMPERE, HOPPER = "80", "90a"
VARIANTS = [
    Variant(architecture=architecture, head_size=head_size, dtype=dtype)
    for architecture in (AMPERE, HOPPER)
    for head_size in (64, 128)
    for dtype in (torch.bfloat16, torch.float16)
]
# Shared memory that one CTA may have, in bytes.
SHARED_LIMIT = {AMPERE: 163 * 1024, HOPPER: 227 * 1024}
# RMS of the error over RMS of the result, as for every other backend.
TOLERANCE = {torch.bfloat16: 8e-3, torch.float16: 1e-3}

SPECS = {
    "sliding_tile": AttentionSpec.sliding_tile((2, 16, 16), (2, 24, 8), tile=(2, 8, 8), edge="shrink"),
    "sliding_tile_ragged_with_text": AttentionSpec.sliding_tile(
        (3, 10, 9), (2, 10, 12), tile=(2, 10, 4), edge="shrink", prefix=5
    ),
    "frame_causal": AttentionSpec.frame_causal((3, 9, 9)),
    "frame_causal_text_keys": AttentionSpec.frame_causal((3, 7, 9), prefix=5, prefix_mode="kv_only"),
    "frame_causal_window_with_sink": AttentionSpec.frame_causal_window((6, 5, 9), 1, sink_frames=1),
    "decoding_with_a_cache": AttentionSpec.frame_causal((4, 7, 9)).decode(1, offset=3),
    "full": AttentionSpec.full((2, 10, 7), prefix=3),
    "causal_sequence": AttentionSpec.sequence(200, causal=True),
    "swin_shifted": AttentionSpec.swin3d((2, 9, 14), (2, 6, 8), shifted=True),
    "neighborhood": AttentionSpec.neighborhood((3, 9, 9), (3, 5, 5)),
}


@dataclass(frozen=True)
class Inputs:
    """Tensors of an attention call."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float

    def reference(self, spec: AttentionSpec) -> tuple[Tensor, Tensor]:
        q, k, v = (tensor.double() for tensor in (self.q, self.k, self.v))
        return attention3d(q, k, v, spec, backend="reference", scale=self.scale, return_lse=True)


def make_inputs(
    spec: AttentionSpec,
    *,
    head_size: int = 64,
    heads: int = 2,
    groups: int = 1,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, heads, spec.num_queries, head_size), *[(batch, groups, spec.num_keys, head_size)] * 2]
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return Inputs(q, k, v, 0.2)


def execute(
    inputs: Inputs,
    spec: AttentionSpec,
    architecture: str,
    *,
    timing: str = "late",
    seed: int = 0,
    edit_ptx: tuple[str, str] | None = None,
) -> tuple[Tensor, Tensor]:
    """What the kernel computes when its PTX is executed on the CPU; outputs that it leaves alone stay NaN."""
    q, k, v = (readable(tensor) for tensor in (inputs.q, inputs.k, inputs.v))
    output, lse = torch.full(q.shape, torch.nan, dtype=q.dtype), torch.full(q.shape[:3], torch.nan)
    launch = prepare(q, k, v, output, lse, spec, scale=inputs.scale, architecture=architecture)
    ptx = build(launch.variant, "ptx")[0].decode()
    if edit_ptx is not None:
        ptx, edits = re.subn(*edit_ptx, ptx)
        assert edits
    machine = load(ptx, timing=timing, seed=seed)  # type: ignore[arg-type]
    plan = launcher.make_plan(spec, q.device)
    tables = [plan.schedule, plan.first_entry, plan.entries, plan.masks]
    sides = [table for side in (plan.queries, plan.keys) for table in (side.tokens, side.origins)]
    for tensor in (q, k, v, output, lse, *tables, *sides):
        machine.memory.add_process_memory(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    parameters, maps = [bytes(launch.problem)], {}
    if launch.tensor_maps:
        parameters.append(bytes(TENSOR_MAP_BYTES * len(launch.tensor_maps)))
        for i, entry in enumerate(launch.tensor_maps):
            maps[1, TENSOR_MAP_BYTES * i] = TensorMap(entry.address, entry.dimensions, entry.strides, entry.box)
    machine.launch(
        launch.grid, launch.threads, parameters=parameters, tensor_maps=maps, dynamic_shared=launch.shared_bytes
    )
    return output, lse


def assert_equal(result: tuple[Tensor, Tensor], inputs: Inputs, spec: AttentionSpec) -> None:
    """Within the tolerance of the dtype; NaN fails."""
    output, lse = inputs.reference(spec)
    error = (result[0].double() - output).pow(2).mean().sqrt() / output.pow(2).mean().sqrt()
    assert error < TOLERANCE[inputs.q.dtype], f"relative error {error:.2e}"
    torch.testing.assert_close(result[1], lse, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------------ compilation


def dump(tmp_path: Path, cubin: bytes, option: str) -> str:
    """What the cuobjdump that comes with Triton says of a cubin."""
    needs_triton()
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = tmp_path / "attention.cubin"
    path.write_bytes(cubin)
    return subprocess.run([program, option, path], capture_output=True, text=True, check=True).stdout


@needs_compiler
@pytest.mark.parametrize(
    "variant",
    [pytest.param(variant, marks=[pytest.mark.slow] * (variant.dtype == torch.float16)) for variant in VARIANTS],
    ids=str,
)
def test_every_kernel_compiles_to_tensor_core_code_without_spills(variant: Variant, tmp_path: Path):
    cubin, messages = build(variant, "cubin")
    assert messages.strip() == ""  # ptxas says here when it has to serialise WGMMA
    usage = dump(tmp_path, cubin, "--dump-resource-usage")
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    assert used["STACK"] == used["LOCAL"] == 0
    code = dump(tmp_path, cubin, "-sass")
    assert "STL" not in code and "LDL" not in code
    if variant.architecture == HOPPER:
        assert used["REG"] == 168  # 384 threads share 65536 registers; the warpgroups then trade them
        assert all(name in code for name in ("HGMMA.64x", "UTMALDG.5D", "USETMAXREG", "tnspB"))
        assert "HMMA" not in code
    else:
        assert all(
            name in code for name in ("HMMA.16816.F32", "LDSM.16.M88.4", "LDSM.16.MT88.4", "LDGSTS.E.BYPASS.128")
        )


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_shared_memory_fits(variant: Variant):
    spec = SPECS["full"]
    inputs = make_inputs(spec, head_size=variant.head_size, dtype=variant.dtype)
    lse = torch.empty(inputs.q.shape[:3])
    call = prepare(inputs.q, inputs.k, inputs.v, inputs.q, lse, spec, scale=1.0, architecture=variant.architecture)
    assert call.variant == variant
    assert call.shared_bytes + 2048 <= SHARED_LIMIT[variant.architecture]  # barriers and what the driver reserves


@needs_compiler
def test_a_compiled_kernel_is_kept_on_disk_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "new"))
    cubin = compile_cubin(VARIANTS[0])
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".cubin"]
    monkeypatch.setattr(compiler, "build", None)  # a second compilation would fail
    assert compile_cubin(VARIANTS[0]) == cubin


@needs_compiler
def test_compiler_errors_are_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiler, "_read", lambda name: "nonsense")
    with pytest.raises(RuntimeError, match=r"NVRTC cannot compile attention_sm80\.cu(.|\n)*nonsense"):
        build(VARIANTS[0], "ptx")


def test_head_sizes_and_dtypes_that_are_not_compiled_are_refused():
    with pytest.raises(ValueError, match=r"head size 96 is not compiled; use one of \(64, 128\)"):
        Variant(architecture=AMPERE, head_size=96, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"float32 is not compiled; use one of torch.bfloat16, torch.float16"):
        Variant(architecture=AMPERE, head_size=64, dtype=torch.float32)


# ------------------------------------------------------------------------------------------------ the plan


def mask_of(plan: Plan, spec: AttentionSpec) -> Tensor:
    """The dense mask that a kernel sees when it follows the plan."""
    seen = torch.zeros(spec.num_queries + 1, spec.num_keys + 1, dtype=torch.bool)  # the last ones stand for no token
    for query_block in range(len(plan.schedule)):
        queries = plan.queries.tokens.view(-1, BLOCK)[query_block].long()
        for key_block, mask in plan.entries[plan.first_entry[query_block] : plan.first_entry[query_block + 1]].tolist():
            keys = plan.keys.tokens.view(-1, BLOCK)[key_block].long()
            visible = torch.ones(BLOCK, BLOCK, dtype=torch.bool)
            if mask >= 0:
                visible = (plan.masks[mask][:, :, None] >> torch.arange(32) & 1).bool().view(BLOCK, BLOCK)
            assert not visible[:, keys < 0][queries >= 0].any()  # empty key slots are hidden
            seen[queries[:, None], keys[None, :]] |= visible
    return seen[:-1, :-1]


@pytest.mark.parametrize("name", SPECS)
def test_the_plan_is_the_mask_of_the_spec(name: str):
    spec = SPECS[name]
    plan = make_plan(spec, torch.device("cpu"))
    assert torch.equal(mask_of(plan, spec), spec.dense_mask())
    assert sorted(plan.schedule.tolist()) == list(range(len(plan.first_entry) - 1))
    assert len(plan.masks) == len({mask.numpy().tobytes() for mask in plan.masks})


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(specs())
def test_the_plan_is_the_mask_of_random_specs(spec: AttentionSpec):
    plan = make_plan(spec, torch.device("cpu"))
    assert torch.equal(mask_of(plan, spec), spec.dense_mask())


def test_aligned_tiles_need_no_masks():
    spec = AttentionSpec.sliding_tile((30, 48, 80), (18, 24, 24), tile=(6, 8, 8))  # the published HunyuanVideo case
    plan = make_plan(spec, torch.device("cpu"))
    assert len(plan.masks) == 0 and len(plan.entries) * BLOCK**2 == spec.pairs()


def test_patterns_with_too_many_partial_blocks_are_refused_with_their_number():
    assert unsuitable(AttentionSpec.frame_causal((21, 30, 52))) is None
    reason = unsuitable(AttentionSpec.neighborhood((30, 48, 80), (19, 25, 25)))
    assert reason is not None and int(reason.split()[0]) > MOST_MASKED_BLOCKS


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_survives_as_integers(name: str):
    assert spec_of(tuple(numbers_of(SPECS[name]))) == SPECS[name]


# ------------------------------------------------------------------------------------------------ execution

RUNS = [
    ("frame_causal", AMPERE, 64),
    ("sliding_tile_ragged_with_text", AMPERE, 64),
    ("frame_causal_text_keys", HOPPER, 64),
    ("sliding_tile_ragged_with_text", HOPPER, 128),
]


@needs_compiler
@pytest.mark.parametrize(("name", "architecture", "head_size"), RUNS)
def test_executed_kernel_equals_the_reference(name: str, architecture: str, head_size: int):
    spec = SPECS[name]
    inputs = make_inputs(
        spec, head_size=head_size, heads=1, dtype=torch.float16 if head_size == 128 else torch.bfloat16
    )
    assert_equal(execute(inputs, spec, architecture), inputs, spec)


@needs_compiler
@pytest.mark.parametrize("architecture", [AMPERE, HOPPER])
def test_query_heads_share_key_heads_in_a_batch_with_heads_last(architecture: str):
    spec = AttentionSpec.full((1, 4, 6))
    made = make_inputs(spec, heads=2, groups=1, batch=2)
    q, k, v = (tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (made.q, made.k, made.v))
    inputs = replace(made, q=q, k=k, v=v)
    assert_equal(execute(inputs, spec, architecture), made, spec)


@needs_compiler
@pytest.mark.parametrize("architecture", [AMPERE, HOPPER])
def test_queries_that_see_nothing_give_zero_and_minus_infinity(architecture: str, monkeypatch: pytest.MonkeyPatch):
    """No spec has such queries today; the first block here has no entries, and in the second one row is masked out."""
    spec = AttentionSpec.full((1, 10, 20))
    plan = make_plan(spec, torch.device("cpu"))
    masks = torch.full_like(plan.masks, -1)
    masks[:, 3] = 0
    first_entry = torch.tensor([0, 0, 1], dtype=torch.int32)
    entries = torch.tensor([[0, 0]], dtype=torch.int32)
    plan = replace(plan, first_entry=first_entry, entries=entries, masks=masks)
    monkeypatch.setattr(launcher, "make_plan", lambda spec, device: plan)
    output, lse = execute(make_inputs(spec, heads=1), spec, architecture)
    blind = torch.arange(200) < 128
    blind[128 + 3] = True
    assert (output[:, :, blind] == 0).all() and (lse[:, :, blind] == -torch.inf).all()
    assert output[:, :, ~blind].isfinite().all() and lse[:, :, ~blind].isfinite().all()


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("architecture", [AMPERE, HOPPER])
@pytest.mark.parametrize("name", SPECS)
def test_every_pattern_executed(name: str, architecture: str):
    inputs = make_inputs(SPECS[name], heads=1)
    assert_equal(execute(inputs, SPECS[name], architecture), inputs, SPECS[name])


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("timing", ["early", "late"])
@pytest.mark.parametrize("architecture", [AMPERE, HOPPER])
def test_no_order_of_warps_and_of_asynchronous_work_changes_a_bit(architecture: str, timing: str, seed: int):
    """Six key blocks: more than the stages of keys and values that lie in shared memory."""
    spec = AttentionSpec.sequence(700, causal=True).decode(40, offset=660)
    inputs = make_inputs(spec, heads=1)
    first = execute(inputs, spec, architecture)
    again = execute(inputs, spec, architecture, timing=timing, seed=seed)
    assert_equal(first, inputs, spec)
    assert all(map(torch.equal, first, again))


# Waits that order a reader and a writer: the kernel, what is replaced in its PTX, and by what.
WAITS = {
    "ampere_for_copies": (AMPERE, r"cp\.async\.wait_group\s+0;", ""),
    "ampere_for_other_warps": (AMPERE, r"bar\.sync\s+0;", ""),
    "hopper_for_products": (HOPPER, r"wgmma\.wait_group\.sync\.aligned\s+\d;", ""),
    "hopper_for_tiles": (HOPPER, r"selp\.u32(\s+%r\d+), 1, 0, complete", r"selp.u32\1, 1, 1, complete"),
}


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", WAITS)
def test_the_machine_notices_a_wait_that_is_missing(name: str):
    """Or else the tests above would prove little."""
    architecture, wait, replacement = WAITS[name]
    spec = AttentionSpec.full((1, 12, 25))
    inputs = make_inputs(spec, heads=1)
    with pytest.raises(AssertionError):
        assert_equal(execute(inputs, spec, architecture, edit_ptx=(wait, replacement)), inputs, spec)


# ------------------------------------------------------------------------------------------------ the backend


def test_auto_never_takes_the_cuda_backend():
    assert "cuda" in BACKENDS
    assert all("cuda" not in order_of(torch.device(device)) for device in ("cpu", "cuda"))


def test_what_the_kernels_cannot_read_is_copied_to_where_they_can():
    flat = torch.zeros(2 * 3 * 5 * 64 + 8, dtype=torch.bfloat16)
    shifted = flat[1 : 1 + 2 * 3 * 5 * 64].view(2, 3, 5, 64)  # contiguous, but not at a multiple of 16 bytes
    odd = flat[: 3 * 5 * 64].view(1, 3, 5, 64).as_strided((1, 3, 5, 64), (3, 5 * 64, 64, 1))  # of an axis of length 1
    for tensor in (shifted, odd):
        copy = readable(tensor)
        assert copy.data_ptr() != tensor.data_ptr() and copy.data_ptr() % 16 == 0
        assert copy.stride() == (3 * 5 * 64, 5 * 64, 64, 1)
    assert readable(flat[: 2 * 3 * 5 * 64].view(2, 3, 5, 64)).data_ptr() == flat.data_ptr()


REFUSALS = [
    ({"device": "cpu"}, "run on CUDA, not on cpu"),
    ({"requires_grad": True}, "no backward pass; use the triton backend"),
    ({"dtype": torch.float32}, "takes bfloat16 and float16, not torch.float32"),
    ({"head_size": 96}, "equal head sizes of 64, 128 for q, k and v; got 96"),
    ({"spec": AttentionSpec.neighborhood((30, 48, 80), (19, 25, 25))}, "blocks are neither all visible nor all hidden"),
]


@needs_compiler
@pytest.mark.parametrize(("change", "reason"), REFUSALS, ids=[reason for _, reason in REFUSALS])
def test_what_the_backend_cannot_serve_it_refuses_with_the_reason(change: dict, reason: str):
    spec = change.get("spec", SPECS["frame_causal"])
    unsuitable(spec)  # its lists are remembered, and cannot be made of fake tensors
    with FakeTensorMode():  # tensors on a GPU that need not be there
        shape = (1, 2, spec.num_keys, change.get("head_size", 64))
        tensor = torch.empty(shape, dtype=change.get("dtype", torch.bfloat16), device=change.get("device", "cuda"))
        tensor.requires_grad_(change.get("requires_grad", False))
        found = BACKENDS["cuda"].unsupported(tensor, tensor, tensor, spec, return_lse=True)
    assert found is not None and re.search(reason, found)


@needs_compiler
def test_a_scale_that_turns_the_order_of_scores_is_refused():
    inputs = make_inputs(SPECS["full"])
    with pytest.raises(ValueError, match=r"needs a positive scale, got -1\.0; negate q instead"):
        BACKENDS["cuda"].attend(inputs.q, inputs.k, inputs.v, SPECS["full"], scale=-1.0, return_lse=False)


def test_the_operator_has_shapes_without_a_device():
    spec = SPECS["decoding_with_a_cache"]
    inputs = make_inputs(spec, heads=4, groups=2, device="meta")
    output, lse = attention(inputs.q, inputs.k, inputs.v, numbers_of(spec), 1.0)
    assert output.shape == inputs.q.shape and output.dtype == inputs.q.dtype
    assert lse.shape == inputs.q.shape[:3] and lse.dtype == torch.float32


# ------------------------------------------------------------------------------------------------ on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_size", [64, 128])
@pytest.mark.parametrize("name", SPECS)
def test_on_a_gpu_every_pattern_equals_the_reference(name: str, head_size: int, dtype: torch.dtype):
    spec = SPECS[name]
    inputs = make_inputs(spec, head_size=head_size, heads=4, groups=2, batch=2, dtype=dtype, device="cuda")
    rubbish = [torch.full_like(inputs.q, torch.nan), torch.full(inputs.q.shape[:3], torch.nan, device="cuda")]
    del rubbish  # the kernel's outputs get this memory
    result = attention3d(inputs.q, inputs.k, inputs.v, spec, backend="cuda", scale=inputs.scale, return_lse=True)
    assert_equal(result, inputs, spec)


@pytest.mark.gpu
def test_on_a_gpu_many_blocks_and_heads_last_equal_another_backend():
    spec = AttentionSpec.sliding_tile((8, 24, 24), (6, 24, 24), tile=(2, 8, 8), edge="shrink", prefix=77)
    made = make_inputs(spec, head_size=128, heads=8, groups=8, device="cuda")
    q, k, v = (tensor.transpose(1, 2).contiguous() for tensor in (made.q, made.k, made.v))
    ours, theirs = (attention3d(q, k, v, spec, layout="bnhd", backend=name) for name in ("cuda", "sdpa_dense"))
    torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
def test_on_a_gpu_the_operator_is_registered_rightly_and_compiles_without_graph_breaks():
    spec = SPECS["frame_causal"]
    inputs = make_inputs(spec, device="cuda")
    torch.library.opcheck(attention, (inputs.q, inputs.k, inputs.v, numbers_of(spec), 1.0))
    compiled = torch.compile(lambda q, k, v: attention3d(q, k, v, spec, backend="cuda"), fullgraph=True, dynamic=False)
    eager = attention3d(inputs.q, inputs.k, inputs.v, spec, backend="cuda")
    assert torch.equal(compiled(inputs.q, inputs.k, inputs.v), eager)
