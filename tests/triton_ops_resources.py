"""Compile the Triton kernels of the ops ahead of time, without a GPU, and print what they need, one JSON a line.

`python tests/triton_ops_resources.py ARCH CASE …` or `… ARCH all`. Kernels are compiled as the ops would launch them:
the launch functions run on meta tensors of real sizes, and what they hand to Triton is recorded instead of run. A
program of its own, because kernels are compiled only where TRITON_INTERPRET is not set.
"""

import json
import sys
from collections.abc import Callable

import torch
import triton
from torch import Tensor
from triton_resources import atomics, compile_launch, instructions, recorded, resources

from vidgen.kernels.ops.triton import modulation, nearest_code, norm_rope, norm_silu

EPS = 1e-6


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def rope_case(head: int, dtype: torch.dtype, *, ordered: bool) -> Callable[[], None]:
    def launch() -> None:
        x, weight, angle = (
            meta(1, 12, 32760, head, dtype=dtype),
            meta(head),
            meta(32760, head // 2, dtype=torch.float32),
        )
        order = meta(33000, dtype=torch.int64) if ordered else None
        out = norm_rope.norm_rope_forward(x, weight, angle, angle, order, EPS)
        norm_rope.norm_rope_backward(out, x, weight, angle, angle, order, EPS)

    return launch


def modulation_case(width: int, dtype: torch.dtype, *, groups: int, centred: bool) -> Callable[[], None]:
    def launch() -> None:
        x, scale = meta(1, 32760, width, dtype=dtype), meta(1, groups, 6, width, dtype=dtype)[:, :, 0]
        modulation.modulate_forward(x, scale, scale, x, eps=EPS, centred=centred)
        modulation.modulate_backward(x, x, scale, x, eps=EPS, centred=centred)
        modulation.gated_residual_forward(x, x, scale, x)
        modulation.gated_residual_backward(x, x, scale, x)

    return launch


def silu_case(channels: int, dtype: torch.dtype, *, repeats: int) -> Callable[[], None]:
    def launch() -> None:
        x, weight = meta(1, channels, 17, 256, 256, dtype=dtype), meta(channels)
        out = meta(1, channels, 19, 256, 256, dtype=dtype)
        norm_silu.norm_silu_forward(x, weight, out, in_front=2, repeats=repeats, eps=EPS)
        norm_silu.norm_silu_backward(out, x, weight, in_front=2, repeats=repeats, eps=EPS)

    return launch


def code_case(width: int) -> Callable[[], None]:
    def launch() -> None:
        vectors, codes = (meta(rows, width, dtype=torch.float32) for rows in (65536, 16384))
        nearest_code.nearest_code(vectors, codes, meta(16384, dtype=torch.float32))

    return launch


CASES: dict[str, Callable[[], None]] = {
    **{f"rope{head}": rope_case(head, torch.bfloat16, ordered=False) for head in (32, 64, 96, 128)},
    "rope128_fp32": rope_case(128, torch.float32, ordered=False),
    "rope128_ordered": rope_case(128, torch.bfloat16, ordered=True),
    **{
        f"modulation{width}": modulation_case(width, torch.bfloat16, groups=1, centred=True)
        for width in (256, 1152, 3072, 5120)
    },
    "modulation1536_frames_rms": modulation_case(1536, torch.bfloat16, groups=21, centred=False),
    "modulation1152_tokens_fp32": modulation_case(1152, torch.float32, groups=32760, centred=True),
    "silu128": silu_case(128, torch.bfloat16, repeats=2),
    "silu128_cached": silu_case(128, torch.bfloat16, repeats=0),
    "silu512_fp32": silu_case(512, torch.float32, repeats=2),
    "code8": code_case(8),
    "code256": code_case(256),
}


if __name__ == "__main__":
    arch, *cases = sys.argv[1:]
    for case in CASES if cases == ["all"] else cases:
        for launch in recorded(CASES[case]):
            compiled = compile_launch(*launch, arch=int(arch))
            found = {
                "case": case,
                "kernel": launch[0].__name__,
                "arch": int(arch),
                "triton": triton.__version__,
                "shared": compiled.metadata.shared,
                **resources(compiled.asm["cubin"]),
                "atomics": atomics(instructions(compiled.asm["cubin"])),
                "widest_load": 32 * max((n for n in (1, 2, 4) if f"ld.global.v{n}" in compiled.asm["ptx"]), default=1),
            }
            print(json.dumps(found), flush=True)
