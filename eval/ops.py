"""Time the fused ops, the linear mixers and token reduction; writes eval/results/ops_DEVICE.csv and .json.

Each op in its plain torch form, that form under torch.compile, and ours; on CUDA in bf16 at the sizes of published
models (`make gpu`), on CPU at small ones, where most ops are their plain form by design. Ratios are within one
run. The share of copy bandwidth counts each tensor once: what a perfect kernel would have to read and write.
With `--minutes`, ops that the same device, versions and code have measured before are kept, and no op is begun later.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from vidgen.eval.report import code_digest, environment_stamp, write_csv, write_json
from vidgen.kernels import (
    binary_entropy_stats,
    gated_residual,
    gated_silu,
    masked_attention,
    modulate,
    norm_rope,
    norm_silu_cache,
    qkv_norm_rope,
    vq_assign,
)
from vidgen.kernels.ops.gated_silu import gated_silu_reference
from vidgen.kernels.ops.linear_attention import gated_linear_attention
from vidgen.kernels.ops.modulation import gated_residual_reference, modulate_reference
from vidgen.kernels.ops.norm_silu import norm_silu_cache_reference
from vidgen.kernels.ops.qk_norm_rope import norm_rope_reference
from vidgen.kernels.token_reduction import match

RESULTS = Path(__file__).resolve().parent / "results"
LONG_ENOUGH = 5.0  # seconds, after which a slow step is not repeated
FORWARD, BOTH = "forward", "forward_backward"

Step = Callable[..., Tensor | tuple[Tensor, ...]]
Row = dict[str, object]


@dataclass
class Case:
    """One op at one size.

    Args:
        forms: name -> the op as a function of `inputs`; the first is what the others are compared with.
        compiled: also time the first form under torch.compile.
        traffic: passes over the largest tensor that no kernel can avoid, per direction; empty where work, not memory,
            is the limit.
    """

    name: str
    size: str
    inputs: list[Tensor]
    forms: dict[str, Step]
    compiled: bool = False
    traffic: dict[str, int] = field(default_factory=dict)
    directions: tuple[str, ...] = (FORWARD, BOTH)


class Timer:
    """Milliseconds of a call: on CPU the least CPU time, on CUDA the median with a cold L2 cache."""

    def __init__(self, device: torch.device, *, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def __call__(self, step: Callable[[], object]) -> float:
        step()
        if self.device.type == "cuda":
            from triton.testing import do_bench

            return float(do_bench(step, warmup=25, rep=25 * self.repeats, return_mode="median"))  # pyright: ignore[reportArgumentType]
        times: list[float] = []
        while len(times) < self.repeats and sum(times) < LONG_ENOUGH:
            began = time.process_time()
            step()
            times.append(time.process_time() - began)
        return 1000 * min(times)


def both_ways(form: Step, inputs: list[Tensor]) -> Callable[[], object]:
    """Forward and backward to every input that has a gradient."""
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    made = form(*inputs)
    incoming = [torch.randn_like(tensor) for tensor in ([made] if isinstance(made, Tensor) else made)]
    return lambda: torch.autograd.grad(form(*inputs), wanted, incoming)


def measured(case: Case, timer: Timer, *, compiling: bool, gigabytes_per_second: float) -> Iterator[Row]:
    forms = dict(case.forms)
    if case.compiled and compiling:
        forms["compiled"] = torch.compile(next(iter(forms.values())), dynamic=False)
    first: dict[str, float] = {}
    for form_name, form in forms.items():
        for direction in case.directions:
            if direction == FORWARD:
                with torch.no_grad():
                    spent = timer(lambda form=form: form(*case.inputs))
            else:
                spent = timer(both_ways(form, case.inputs))
            first.setdefault(direction, spent)
            share = None
            if direction in case.traffic:
                largest = max(tensor.numel() * tensor.element_size() for tensor in case.inputs)
                share = round(case.traffic[direction] * largest / 1e6 / spent / gigabytes_per_second, 3)
            yield {
                "op": case.name,
                "size": case.size,
                "form": form_name,
                "direction": direction,
                "milliseconds": float(f"{spent:.4g}"),
                "times_faster": round(first[direction] / spent, 3),
                "share_of_copy_bandwidth": share,
            }


def copy_bandwidth(timer: Timer, *, megabytes: int) -> float:
    """GB/s, reading and writing both counted."""
    source = torch.empty(megabytes * 2**20 // 4, device=timer.device).normal_()
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / 1e6 / timer(lambda: target.copy_(source))


def cases(device: torch.device, *, tiny: bool) -> Iterator[Case]:
    on_gpu = device.type == "cuda" and not tiny
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def drawn(*shape: int, dtype: torch.dtype = dtype, gradient: bool = True) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype, requires_grad=gradient)

    def sizes(*, gpu: tuple[int, ...], cpu: tuple[int, ...], dry: tuple[int, ...]) -> tuple[int, ...]:
        return gpu if on_gpu else dry if tiny else cpu

    # Wan-1.3B at 480p: 32,760 tokens, 12 heads of 128
    heads, tokens, channels = sizes(gpu=(12, 32760, 128), cpu=(4, 4096, 64), dry=(2, 64, 16))
    angle = drawn(tokens, channels // 2, dtype=torch.float32, gradient=False)
    turns = (angle.cos(), angle.sin())
    yield Case(
        "norm_rope",
        f"{heads}x{tokens}x{channels}",
        [drawn(1, heads, tokens, channels), drawn(channels, dtype=torch.float32)],
        {
            "eager": lambda x, weight: norm_rope_reference(x, weight, *turns, None, 1e-6),
            "ours": lambda x, weight: norm_rope(x, weight, cosines=turns[0], sines=turns[1]),
        },
        compiled=True,
        traffic={FORWARD: 2, BOTH: 5},
    )
    width = heads * channels
    for frames in (1, sizes(gpu=(21,), cpu=(16,), dry=(4,))[0], tokens):
        x, shift, scale = drawn(1, tokens, width), drawn(1, frames, width), drawn(1, frames, width)
        per_token = 2 if frames == tokens else 0  # shift and scale are as large as x, and so are their gradients
        yield Case(
            "modulate",
            f"{tokens}x{width} by {frames}",
            [x, shift, scale],
            {
                "eager": lambda x, shift, scale: modulate_reference(x, shift, scale, norm="layer", eps=1e-6),
                "ours": modulate,
            },
            compiled=True,
            traffic={FORWARD: 2 + per_token, BOTH: 5 + 2 * per_token + per_token // 2},
        )
    yield Case(
        "gated_residual",
        f"{tokens}x{width} by 1",
        [drawn(1, tokens, width), drawn(1, tokens, width), drawn(1, 1, width)],
        {"eager": gated_residual_reference, "ours": gated_residual},
        compiled=True,
        traffic={FORWARD: 3, BOTH: 6},
    )
    video = sizes(gpu=(128, 17, 256, 256), cpu=(64, 9, 32, 32), dry=(8, 3, 4, 4))
    yield Case(
        "norm_silu_cache",
        "x".join(map(str, video)),
        [drawn(1, *video), drawn(video[0], dtype=torch.float32)],
        {
            "eager": lambda x, weight: norm_silu_cache_reference(x, weight, before=None, at_start=2, eps=1e-6),
            "ours": lambda x, weight: norm_silu_cache(x, weight, at_start=2),
        },
        compiled=True,
        traffic={FORWARD: 2, BOTH: 5},
    )

    samples, bits = sizes(gpu=(65536, 18), cpu=(2048, 14), dry=(64, 6))
    forms: dict[str, Step] = {"ours": lambda z: torch.stack(binary_entropy_stats(z, 1.0))}
    if not on_gpu:  # the table of all codes would take 69 GB
        forms = {"table": lambda z: table_entropies(z, bits), **forms}
    yield Case("binary_entropy", f"{samples}x{bits} bits", [drawn(samples, bits, dtype=torch.float32)], forms)

    for channels in (8, 256):
        vectors, codes = sizes(gpu=(65536, 16384), cpu=(4096, 8192), dry=(64, 128))
        yield Case(
            "vq_assign",
            f"{vectors} to {codes} codes of {channels}",
            [drawn(count, channels, dtype=torch.float32, gradient=False) for count in (vectors, codes)],
            {"cdist": lambda x, codes: torch.cdist(x, codes).argmin(dim=1), "ours": vq_assign},
            directions=(FORWARD,),
        )

    for length in sizes(gpu=(4096, 16384, 65536), cpu=(1024, 4096, 16384), dry=(64, 128)):
        q, k, v = (drawn(1, 4, length, 64) for _ in range(3))
        by_head = F.logsigmoid(drawn(1, 4, length, gradient=False))
        by_channel = F.logsigmoid(drawn(1, 4, length, 64, gradient=False))
        yield Case(
            "linear_attention",
            str(length),
            [q, k, v],
            {
                "attention": F.scaled_dot_product_attention,
                "decay_by_head": lambda q, k, v, decay=by_head: gated_linear_attention(q, k, v, decay)[0],
                "decay_by_channel": lambda q, k, v, decay=by_channel: gated_linear_attention(q, k, v, decay)[0],
            },
        )

    if not on_gpu:
        yield from training_cases(tiny=tiny)

    grid = sizes(gpu=(21, 30, 52), cpu=(16, 16, 16), dry=(4, 4, 4))
    q, k, v = (drawn(1, 4, math.prod(grid), 64, gradient=False) for _ in range(3))
    kept = match(q, (grid[0], grid[1], grid[2]))

    def reduced(q: Tensor, k: Tensor, v: Tensor, *, by_query: float, by_value: float, anew: bool) -> Tensor:
        matching = match(q, (grid[0], grid[1], grid[2])) if anew else kept
        queries, values = matching.reduction(by_query), matching.reduction(by_value)
        return queries.restore(F.scaled_dot_product_attention(queries.reduce(q), values.reduce(k), values.reduce(v)))

    forms = {"attention": F.scaled_dot_product_attention}
    for by_query, by_value in ((0.5, 0.0), (0.0, 0.5), (0.5, 0.5), (0.75, 0.75)):
        for anew in (False, True):
            name = f"query {by_query} value {by_value}, {'matched anew' if anew else 'matching kept'}"
            forms[name] = lambda q, k, v, by_query=by_query, by_value=by_value, anew=anew: reduced(
                q, k, v, by_query=by_query, by_value=by_value, anew=anew
            )
    yield Case("token_reduction", "x".join(map(str, grid)), [q, k, v], forms, directions=(FORWARD,))


def training_cases(*, tiny: bool) -> Iterator[Case]:
    """What is ours on a CPU in training: the sizes of a step of the built-in generators, in both number formats."""
    batch, heads, tokens, words, channels = (2, 2, 8, 3, 4) if tiny else (12, 4, 320, 17, 32)
    width = heads * channels
    angle = torch.randn(tokens, channels // 2)
    turns = (angle.cos(), angle.sin())
    seen = torch.ones(batch, 1, 1, words, dtype=torch.bool)
    seen[..., words // 2 :] = False

    def heads_apart(qkv: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=heads)
        q, k = (norm_rope_reference(x, weight, *turns, None, 1e-6) for x in (q, k))
        return q, k, v

    def heads_at_once(qkv: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cosines, sines = turns
        return qkv_norm_rope(qkv, weight_q=weight, weight_k=weight, cosines=cosines, sines=sines, heads=heads)

    for dtype in (torch.bfloat16, torch.float32):
        kind = str(dtype).removeprefix("torch.")

        def drawn(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(shape, dtype=dtype, requires_grad=True)

        yield Case(
            "masked_attention",
            f"{batch}x{heads}x{tokens} to {words} of {channels}, {kind}",
            [drawn(batch, heads, count, channels) for count in (tokens, words, words)],
            {
                "eager": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=seen),
                "ours": lambda q, k, v: masked_attention(q, k, v, seen),
            },
        )
        yield Case(
            "gated_silu",
            f"{batch}x{tokens}x{4 * width}, {kind}",
            [drawn(batch, tokens, 4 * width)],
            {"eager": gated_silu_reference, "ours": gated_silu},
        )
        yield Case(
            "qkv_norm_rope",
            f"{batch}x{tokens}x{heads}x{channels}, {kind}",
            [drawn(batch, tokens, 3 * width), torch.ones(channels, requires_grad=True)],
            {
                "eager": heads_apart,
                "ours": heads_at_once,
            },
        )


def table_entropies(z: Tensor, bits: int) -> Tensor:
    """The two entropies from the probabilities of all codes for every sample."""
    codes = 2.0 * ((torch.arange(2**bits, device=z.device)[:, None] >> torch.arange(bits, device=z.device)) & 1) - 1.0
    probability = (2.0 * z @ codes.T).softmax(dim=-1)
    mean = probability.mean(dim=0)
    return torch.stack([-(p * p.clamp(min=1e-30).log()).sum(dim=-1).mean() for p in (probability, mean)])


def exponents(rows: list[Row]) -> Iterator[Row]:
    """How the cost of the linear mixers grows: the slope of log time over log tokens between the two largest sizes."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        if row["op"] == "linear_attention":
            key = (str(row["form"]), str(row["direction"]))
            found.setdefault(key, []).append((int(str(row["size"])), float(str(row["milliseconds"]))))
    for (form, direction), times in found.items():
        if len(times) < 2:
            continue
        (few, quick), (many, slow) = times[-2:]
        slope = math.log(slow / quick) / math.log(many / few)
        yield {"op": "linear_attention_exponent", "form": form, "direction": direction, "exponent": round(slope, 2)}


def judged(rows: list[Row]) -> Iterator[str]:
    """The goals for an H100, each in a line."""
    for row in rows:
        if row["op"] == "norm_rope" and row["form"] == "ours" and row["direction"] == FORWARD:
            share = float(str(row["share_of_copy_bandwidth"]))
            yield f"norm_rope at {share:.2f} of copy bandwidth, wanted 0.75: {'met' if share >= 0.75 else 'missed'}"
        if row["op"] == "binary_entropy" and row["form"] == "ours" and row["direction"] == BOTH:
            spent = float(str(row["milliseconds"]))
            yield f"binary_entropy {row['size']} in {spent:.3g} of at most 5 ms: {'met' if spent <= 5 else 'missed'}"


def known_rows(stamped: Path, environment: dict[str, object]) -> list[Row]:
    """Rows of an earlier call on the same device with the same versions and code."""
    known = json.loads(stamped.read_text()) if stamped.exists() else {"environment": {}}
    same = known["environment"] | {"commit": None} == environment | {"commit": None}
    return [row for row in known["rows"] if "size" in row] if same else []


def main() -> None:
    """Measure op by op and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--minutes", type=float, help="go on where an earlier call stopped, for so long")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, no torch.compile, nothing written")
    arguments = parser.parse_args()
    began, dry_run = time.monotonic(), arguments.dry_run
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stamped = RESULTS / f"ops_{device.type}.json"
    environment = {**environment_stamp(device), "code": code_digest("vidgen/kernels", "eval/ops.py")}
    torch.manual_seed(0)
    timer = Timer(device, repeats=1 if dry_run else arguments.repeats)
    bandwidth = copy_bandwidth(timer, megabytes=16 if dry_run else 256)
    print(f"copy: {bandwidth:.1f} GB/s")
    table = known_rows(stamped, environment) if arguments.minutes and not dry_run else []
    done = {(row["op"], row["size"]) for row in table}
    for case in cases(device, tiny=dry_run):
        if (case.name, case.size) in done:
            continue
        if arguments.minutes and time.monotonic() - began > 60 * arguments.minutes:
            print(f"{arguments.minutes:g} minutes are over; call again to go on")
            break
        for row in measured(case, timer, compiling=not dry_run, gigabytes_per_second=bandwidth):
            print(*row.values(), sep="\t", flush=True)
            table.append(row)
        if not dry_run:
            rows, goals = [*table, *exponents(table)], list(judged(table)) if device.type == "cuda" else []
            write_csv(stamped.with_suffix(".csv"), rows)
            result = {"rows": rows, "goals": goals, "copy_gigabytes_per_second": bandwidth, "environment": environment}
            write_json(stamped, result)
    for line in judged(table) if device.type == "cuda" or dry_run else ():
        print(f"goal: {line}")


if __name__ == "__main__":
    main()
