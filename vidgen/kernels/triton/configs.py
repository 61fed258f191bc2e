"""Block sizes, warps and stages of the Triton attention kernels, by architecture, head size and element size.

Chosen from what the compiler reports without a GPU (registers, spills, shared memory: tests/test_triton_compile.py). No
autotuner: it would need a device at import, and results would depend on the run.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """How one kernel is cut and compiled."""

    queries: int
    """Queries in a block."""
    keys: int
    """Keys in a block."""
    warps: int
    stages: int
    """Depth of the software pipeline that fetches the blocks the kernel walks over."""
    descriptors: bool
    """Fetch them through tensor descriptors (the tensor memory accelerator of Hopper and later)."""


@dataclass(frozen=True)
class AttentionConfig:
    """The three kernels of one attention call."""

    forward: KernelConfig
    backward_keys: KernelConfig
    backward_queries: KernelConfig


def padded_head(head_size: int) -> int:
    """The head size that the kernels compute with: a power of two."""
    return 1 << (head_size - 1).bit_length()


Numbers = tuple[int, int, int, int]


def _config(forward: Numbers, keys: Numbers, queries: Numbers, *, descriptors: bool) -> AttentionConfig:
    """From (queries, keys, warps, stages) of the forward, dK/dV and dQ kernels."""

    def kernel(numbers: Numbers) -> KernelConfig:
        queries, keys, warps, stages = numbers
        return KernelConfig(queries=queries, keys=keys, warps=warps, stages=stages, descriptors=descriptors)

    return AttentionConfig(kernel(forward), kernel(keys), kernel(queries))


# (architecture, padded head size, bytes of an element); 86 stands for all chips with 99 KiB of shared memory a block.
CONFIGS: dict[tuple[int, int, int], AttentionConfig] = {
    (80, 32, 2): _config((128, 64, 4, 3), (64, 128, 8, 3), (128, 64, 8, 3), descriptors=False),
    (80, 64, 2): _config((128, 128, 8, 3), (64, 128, 8, 2), (128, 64, 8, 3), descriptors=False),
    (80, 128, 2): _config((128, 64, 8, 3), (64, 64, 8, 2), (128, 64, 8, 2), descriptors=False),
    (86, 32, 2): _config((128, 64, 4, 3), (64, 128, 8, 3), (128, 64, 8, 3), descriptors=False),
    (86, 64, 2): _config((128, 128, 8, 2), (64, 128, 8, 2), (128, 64, 8, 2), descriptors=False),
    (86, 128, 2): _config((128, 64, 8, 2), (64, 64, 8, 2), (64, 64, 4, 2), descriptors=False),
    (90, 32, 2): _config((128, 128, 8, 3), (64, 128, 8, 3), (128, 64, 8, 3), descriptors=True),
    (90, 64, 2): _config((128, 128, 8, 3), (64, 128, 8, 3), (128, 64, 8, 3), descriptors=True),
    (90, 128, 2): _config((128, 128, 8, 2), (64, 128, 8, 2), (128, 64, 8, 2), descriptors=True),
    (100, 32, 2): _config((128, 64, 8, 3), (64, 128, 8, 3), (128, 64, 8, 3), descriptors=True),
    (100, 64, 2): _config((128, 64, 8, 3), (64, 128, 8, 3), (128, 64, 8, 3), descriptors=True),
    (100, 128, 2): _config((128, 64, 8, 3), (64, 64, 8, 2), (128, 64, 8, 2), descriptors=True),
}
# Exact fp32 products run on plain cores in every architecture: small blocks, nothing to pipeline for.
for _architecture in (80, 86, 90, 100):
    for _head, _side in ((32, 32), (64, 32), (128, 16)):
        CONFIGS[_architecture, _head, 4] = _config(
            (32, 32, 8, 1), (32, 32, 8, 1), (_side, _side, 8, 1), descriptors=False
        )

# Small and lopsided, so that tests of a few hundred tokens meet full, partial and ragged blocks.
INTERPRETED = _config((32, 16, 4, 1), (16, 32, 4, 1), (32, 16, 4, 1), descriptors=False)


def architecture(device: torch.device) -> int:
    """The row of `CONFIGS` for a CUDA device: its own, or that of the chips with little shared memory."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major if (major, minor) in ((8, 0), (9, 0), (10, 0), (10, 3)) else 86


def config_for(q: torch.Tensor) -> AttentionConfig:
    """The configuration for queries like these; on CPU, the interpreter's."""
    if q.device.type == "cpu":
        return INTERPRETED
    return CONFIGS[architecture(q.device), padded_head(q.shape[-1]), q.element_size()]
