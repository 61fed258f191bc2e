"""What do tokenizers cost? Ours and diffusers', one call that resumes: `python eval/tokenizer_cost.py -o FILE.csv`.

With `--device cuda` in bfloat16, encoder and decoder under torch.compile, times between CUDA events. `--dry-run` takes
the same steps with one tiny clip on a CPU, to show that they run.
"""

import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

import vidgen
from vidgen.eval.flops import count_flops
from vidgen.eval.report import (
    environment_stamp,
    git_commit,
    peak_memory_megabytes,
    reset_peak_memory,
    write_csv,
    write_json,
)
from vidgen.tokenizers import DiffusersAutoencoderTokenizer, Tokenizer
from vidgen.tokenizers.blockwise import BlockwiseTokenizer
from vidgen.tokenizers.diffusers_families import FAMILIES
from vidgen.tokenizers.whole_clip import WholeClipTokenizer

# Those that matter most first: time on a GPU is scarce.
MODELS = (
    "base-kl",
    "base-fsq",
    "AutoencoderKLWan",
    "shapes-kl",
    "shapes-fsq",
    "AutoencoderKLLTXVideo",
    "AutoencoderKLCosmos",
    "wf-vae",
    "cosmos-8x8x8",
    "omnitokenizer-kl",
    "AutoencoderKLCogVideoX",
    "AutoencoderKLHunyuanVideo",
    "AutoencoderVidTok",
)

Timer = Callable[[Callable[[], Any]], tuple[Any, float]]
"""Calls a function; gives its result and the seconds that it took."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and for how long."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """CSV file to write; the same name with .json gets the rows together with device, versions, commit and date. Rows
    that are in the JSON file already are not measured again."""
    device: Literal["cpu", "cuda"] = "cpu"
    """`cpu`: float32, models as they are. `cuda`: bfloat16, encoder and decoder compiled. Each needs its own file."""
    models: tuple[str, ...] = MODELS
    """Presets of vidgen and autoencoders of diffusers (default configuration), all with random weights."""
    frames: int = 17
    """Frames of the clip."""
    sides: tuple[int, ...] = (128, 256)
    """Heights, which are widths too, of the clips in pixels."""
    threads: int = 1
    """CPU threads; CPU-seconds add up over them. A GPU's rows do not depend on them."""
    repeats: int = 15
    """Round trips after the warm-up; the table has their median."""
    seconds: float = 30.0
    """No further round trip begins after so many seconds (on a CPU: CPU-seconds) of a model, but one is made."""
    minutes: float = math.inf
    """No further row is begun after this time; another call goes on."""
    dry_run: bool = False
    """One tiny clip on a CPU, in bfloat16 and through torch.compile without a code generator; writes nothing."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How models run on a device, and how their time is taken."""

    device: str
    dtype: torch.dtype
    timer: Timer
    backend: str | None
    """Of torch.compile, for encoder and decoder; None = they run as they are."""
    warm_ups: int
    """Round trips before the clock starts."""
    warm_up_frames: int | None
    """Frames of their clip, the first ones; None = all, which a compiler that serves one size has to see."""

    def marks(self) -> dict[str, str]:
        """What all rows of a file have in common."""
        device = environment_stamp(self.device)["device"]
        return {"device": device, "precision": str(self.dtype).removeprefix("torch.")}


def cpu_seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """CPU-seconds of this process, all threads together."""
    started = time.process_time()
    result = work()
    return result, time.process_time() - started


def cuda_seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """Seconds between an event before and one after everything that `work` sends to the GPU."""
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    result = work()
    after.record()
    after.synchronize()
    return result, before.elapsed_time(after) / 1000


WAYS = {
    "cpu": Way(device="cpu", dtype=torch.float32, timer=cpu_seconds, backend=None, warm_ups=1, warm_up_frames=5),
    "cuda": Way(
        device="cuda", dtype=torch.bfloat16, timer=cuda_seconds, backend="inductor", warm_ups=3, warm_up_frames=None
    ),
}
# Everything of a GPU's way but its clock, its memory counters and its code generator.
DRY_RUN = replace(WAYS["cuda"], device="cpu", timer=cpu_seconds, backend="eager")


def build(name: str) -> Tokenizer:
    """`name` freshly initialised, for inference; a peer through the adapter that gives back every frame."""
    torch.manual_seed(0)
    model = DiffusersAutoencoderTokenizer({"_class_name": name}) if name in FAMILIES else vidgen.build(name)
    if not isinstance(model, Tokenizer):
        raise ValueError(f"{name} is no tokenizer; use a preset of one or one of {', '.join(FAMILIES)}")
    return model.eval().requires_grad_(False)


def gigaflops(name: str, video: Tensor) -> tuple[float, float]:
    """Encode and decode, counted on tensors without content."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build(name)
        with count_flops() as encoding:
            latents = model.encode(torch.empty(video.shape))
        with count_flops() as decoding:
            model.decode(latents)
    return encoding.get_total_flops() / 1e9, decoding.get_total_flops() / 1e9


def warm_up(model: Tokenizer, video: Tensor, way: Way) -> int | None:
    """Round trips before the clock starts; gives the number of breaks in the graphs that torch.compile makes.

    None = encoder and decoder run as they are: nobody wants them compiled, the model has no `features` and `pixels`, or
    the compiler cannot serve it, which is then printed.
    """
    clip = video[:, :, : way.warm_up_frames]
    if way.backend is not None and isinstance(model, BlockwiseTokenizer | WholeClipTokenizer):
        counters.clear()
        for network in ("features", "pixels"):
            setattr(model, network, torch.compile(getattr(model, network), backend=way.backend, dynamic=False))
        try:
            for _ in range(way.warm_ups):
                model.decode(model.encode(clip))
            return sum(counters["graph_break"].values()) if counters["stats"]["unique_graphs"] else None
        except TorchDynamoException as error:
            print(f"torch.compile cannot serve this model, which runs as it is: {error}", flush=True)
            del model.features, model.pixels  # the methods of its class come to light again
    for _ in range(way.warm_ups):
        model.decode(model.encode(clip))
    return None


def timed(work: Callable[[], Any], way: Way) -> tuple[Any, float, float]:
    """The result of `work`, the seconds it took, and the peak memory in megabytes meanwhile."""
    reset_peak_memory(way.device)
    result, seconds = way.timer(work)
    return result, seconds, peak_memory_megabytes(way.device)


@torch.no_grad()
def measure(name: str, side: int, settings: Settings, way: Way) -> dict[str, Any]:
    """One row of the table; meant for a process of its own, whose peak memory it reports.

    RuntimeError, ValueError: the model cannot be built, does not run, or gives back something else than finite pixels.
    """
    torch.set_num_threads(settings.threads)
    torch.backends.cudnn.benchmark = True  # the fastest convolutions, found while warming up
    model = build(name)
    nn.Module.to(model, way.device, way.dtype)  # that of diffusers warns of a list of layers which is empty
    built = peak_memory_megabytes(way.device)
    video = (torch.rand(1, 3, settings.frames, side, side) * 2 - 1).to(way.device, way.dtype)
    breaks = warm_up(model, video, way)
    encoding, decoding, encode_peaks, decode_peaks = [], [], [], []
    while len(encoding) < settings.repeats and (not encoding or sum(encoding + decoding) < settings.seconds):
        latents, seconds, peak = timed(partial(model.encode, video), way)
        encoding.append(seconds)
        encode_peaks.append(peak)
        output, seconds, peak = timed(partial(model.decode, latents), way)
        decoding.append(seconds)
        decode_peaks.append(peak)
    if output.shape != video.shape or not output.isfinite().all():
        raise ValueError(f"{name} did not give back {tuple(video.shape)} finite pixels, so its times mean nothing")
    # Last, because a model may keep tensors without content in module globals and then compute nothing (Cosmos does).
    encode_gigaflops, decode_gigaflops = gigaflops(name, video)
    return {
        **key(name, side, settings, way),
        "compiled": breaks is not None,
        "graph_breaks": breaks,
        "latent": "x".join(map(str, (model.spec.channels, *model.spec.grid(latents.size)))),
        "tokens": latents.tokens.shape[1],
        "parameters_million": round(sum(weight.numel() for weight in model.parameters()) / 1e6, 2),
        "encode_gflop": round(encode_gigaflops, 1),
        "decode_gflop": round(decode_gigaflops, 1),
        **speeds("cpu", median(encoding), median(decoding), settings.frames, measured=way.device == "cpu"),
        **speeds("gpu", median(encoding), median(decoding), settings.frames, measured=way.device == "cuda"),
        "round_trips": len(encoding),
        "memory_built_mb": round(built),
        "memory_encode_peak_mb": round(max(encode_peaks)),
        "memory_decode_peak_mb": round(max(decode_peaks)),
        "commit": git_commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def speeds(unit: str, encode: float, decode: float, frames: int, *, measured: bool) -> dict[str, float | None]:
    """Seconds on a `cpu` or a `gpu` and frames in one of them, four digits; empty where that was not measured."""
    numbers = {
        f"encode_{unit}_seconds": encode,
        f"decode_{unit}_seconds": decode,
        f"encode_frames_per_{unit}_second": frames / encode,
        f"decode_frames_per_{unit}_second": frames / decode,
    }
    return {column: float(f"{number:.4g}") if measured else None for column, number in numbers.items()}


def key(name: str, side: int, settings: Settings, way: Way) -> dict[str, Any]:
    """What tells one row from the others."""
    threads = settings.threads if way.device == "cpu" else None
    return {"model": name, "frames": settings.frames, "side": side, **way.marks(), "threads": threads}


def rows_before(output: Path, way: Way) -> list[dict[str, Any]]:
    """Rows of a call before this one. ValueError if they are of another device or precision."""
    described, marks = output.with_suffix(".json"), way.marks()
    rows = json.loads(described.read_text())["rows"] if described.is_file() else []
    for row in rows:
        found = {mark: row.get(mark) for mark in marks}
        if found != marks:
            raise ValueError(f"expected rows of {marks} in {described}, got one of {found}; name another file with -o")
    return rows


def main() -> int:
    """Measure each model and size in a fresh process, print the table, write CSV and JSON after every row.

    A model that fails is reported and passed over; gives 1 if there was one, else 0.
    """
    settings = tyro.cli(Settings, description=__doc__)
    way = WAYS[settings.device]
    if settings.dry_run:
        settings, way = replace(settings, models=("shapes-kl",), frames=5, sides=(32,), repeats=2), DRY_RUN
    elif settings.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"--device cuda needs a CUDA device, and torch {torch.__version__} sees none; try --dry-run")
    began, failed = time.monotonic(), False
    torch.set_num_threads(settings.threads)
    rows = [] if settings.dry_run else rows_before(settings.output, way)
    for name, side in product(settings.models, settings.sides):
        wanted = key(name, side, settings, way)
        if any(wanted.items() <= row.items() for row in rows):
            print(f"{name} at {side} pixels is measured already", flush=True)
            continue
        if time.monotonic() - began > 60 * settings.minutes:
            print(f"{settings.minutes:g} minutes are over; call again to go on")
            break
        with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            try:
                rows.append(fresh.submit(measure, name, side, settings, way).result())
            except (RuntimeError, ValueError) as error:
                print(f"{name} at {side} pixels was not measured: {error}", file=sys.stderr, flush=True)
                failed = True
                continue
        print(", ".join(f"{column} {value}" for column, value in rows[-1].items() if value is not None), flush=True)
        if settings.dry_run:
            continue
        marks = way.marks()
        result = {
            "clip": f"1x3xFRAMESxSIDExSIDE, {marks['precision']}, random weights, {marks['device']}",
            "date": datetime.now(UTC).date().isoformat(),
            "environment": environment_stamp(way.device),
            "rows": rows,
        }
        write_csv(settings.output, rows)
        write_json(settings.output.with_suffix(".json"), result)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
