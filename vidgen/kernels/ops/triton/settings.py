"""How the kernels of the ops are launched: tile sizes by rule, so that nothing is tuned at run time, and options."""

from typing import Any

import torch
import triton
from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], x: Tensor, *others: Any, **shape: Any) -> None:
    """Run a kernel, whose first argument is `x`, on the device of `x`."""
    with torch.cuda.device_of(x):
        # explicit, because Triton 3.10 changes the default, which changes rounding
        kernel[grid](x, *others, **shape, enable_fp_fusion=True)


def rows_per_tile(width: int, *, entries: int = 4096) -> int:
    """Rows of `width` entries (padded to a power of two) that make a tile of about `entries`."""
    return max(1, entries // triton.next_power_of_2(width))


def warps_for(entries: int) -> int:
    """Warps for a tile of `entries` float32 values, 32 a thread."""
    return min(16, max(1, triton.next_power_of_2(entries) // 1024))
