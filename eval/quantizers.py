"""Cost of quantizers as codebooks grow, ours and vector-quantize-pytorch's; writes eval/results/quantizers_DEVICE.csv.

Forward and backward of one training step of the quantizer alone: least CPU time (on CUDA: wall time) of several, and
how far peak memory rose above what was held before. The library's rows stop where its token × code matrices no longer
fit into `--largest` megabytes.
"""

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from vector_quantize_pytorch import FSQ, LFQ, SimVQ, VectorQuantize

from vidgen.bottlenecks import build_bottleneck
from vidgen.eval.report import environment_stamp, peak_memory_megabytes, reset_peak_memory, write_csv, write_json
from vidgen.nn.random import seeded

RESULTS = Path(__file__).resolve().parent / "results"
CHANNELS = 8
LEVELS = {10: [8, 5, 5, 5], 14: [8, 8, 8, 6, 5], 16: [8, 8, 8, 5, 5, 5], 18: [8, 8, 8, 8, 8, 8]}
OURS = {
    "vq": lambda bits: ("vq", {"codes": 2**bits, "channels": CHANNELS}),
    "simvq": lambda bits: ("simvq", {"codes": 2**bits, "channels": CHANNELS}),
    "fsq": lambda bits: ("fsq", {"levels": LEVELS[bits]}),
    "fsq with entropy": lambda bits: ("fsq", {"levels": LEVELS[bits], "entropy": 0.1}),
    "lfq": lambda bits: ("lfq", {"bits": bits}),
    "bsq": lambda bits: ("bsq", {"bits": bits, "groups": 1 if bits < 36 else 2}),
    "product vq, 2 codebooks": lambda bits: (
        "product",
        {"inner": "vq", "options": {"codes": 2 ** (bits // 2), "channels": CHANNELS // 2}, "count": 2},
    ),
}
# The library's class, and how many token × code matrices of float32 it holds at once (measured at 2^14).
LIBRARY: dict[str, tuple[Callable[[int], torch.nn.Module], int]] = {
    "vq": (lambda bits: VectorQuantize(dim=CHANNELS, codebook_size=2**bits, use_cosine_sim=True), 6),
    "simvq": (lambda bits: SimVQ(dim=CHANNELS, codebook_size=2**bits), 3),
    "fsq": (lambda bits: FSQ(LEVELS[bits]), 0),
    "lfq": (lambda bits: LFQ(dim=bits, codebook_size=2**bits), 7),
    "bsq": (lambda bits: LFQ(dim=bits, codebook_size=2**bits, spherical=True), 7),
}


def cost(step: Callable[[], None], device: torch.device, *, repeats: int) -> tuple[float, float]:
    """Milliseconds and megabytes of a step."""
    step()
    gc.collect()
    reset_peak_memory(device)
    held = peak_memory_megabytes(device)
    spent = []
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(repeats):
        began = clock()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(1000 * (clock() - began))
    return min(spent), peak_memory_megabytes(device) - held


def our_step(name: str, bits: int, tokens: int, device: torch.device) -> Callable[[], None]:
    bottleneck = build_bottleneck(*OURS[name](bits)).to(device).train()
    features = torch.randn(1, tokens, bottleneck.in_channels, device=device, requires_grad=True)

    def step() -> None:
        result = bottleneck(features, sample=True, generators=seeded([0], device=device))
        sum(result.losses.values(), result.vectors.sum()).backward()

    return step


def library_step(name: str, bits: int, tokens: int, device: torch.device) -> Callable[[], None]:
    quantizer = LIBRARY[name][0](bits).to(device).train()
    channels = {"fsq": len(LEVELS.get(bits, [])), "lfq": bits, "bsq": bits}.get(name, CHANNELS)
    features = torch.randn(1, tokens, channels, device=device, requires_grad=True)

    def step() -> None:
        results: tuple[Tensor, ...] = quantizer(features)
        sum((loss.sum() for loss in results[2:]), results[0].sum()).backward()

    return step


def table(
    device: torch.device, *, bits: list[int], tokens: int, repeats: int, largest: float
) -> list[dict[str, object]]:
    """One row for each quantizer, size and implementation."""
    rows: list[dict[str, object]] = []
    for size in bits:
        for name in OURS:
            if (size > 18 and name not in ("bsq", "lfq")) or ("fsq" in name and size not in LEVELS):
                continue
            makers = {"vidgen": our_step}
            if name in LIBRARY and size <= 18 and LIBRARY[name][1] * tokens * 2**size * 4 / 2**20 <= largest:
                makers["vector-quantize-pytorch"] = library_step
            for implementation, maker in makers.items():
                spent, memory = cost(maker(name, size, tokens, device), device, repeats=repeats)
                row = {"quantizer": name, "log2_codes": size, "tokens": tokens, "implementation": implementation}
                rows.append({**row, "milliseconds": round(spent, 2), "megabytes": round(memory, 1)})
                print(*rows[-1].values(), sep="\t", flush=True)
                gc.collect()
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, nargs="+", default=[10, 14, 16, 18, 36])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--largest", type=float, default=4096, help="megabytes that the library's matrices may take")
    arguments = parser.parse_args()
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measured = table(
        where,
        bits=arguments.bits,
        tokens=arguments.tokens,
        repeats=arguments.repeats,
        largest=arguments.largest,
    )
    write_csv(RESULTS / f"quantizers_{where.type}.csv", measured)
    write_json(RESULTS / f"quantizers_{where.type}.json", {"rows": measured, "environment": environment_stamp(where)})
