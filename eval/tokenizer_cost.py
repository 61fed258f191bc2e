"""What do tokenizers cost? Ours and diffusers', one call that resumes: `python eval/tokenizer_cost.py -o FILE.csv`."""

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor
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
from vidgen.tokenizers.diffusers_families import FAMILIES

OURS = ("shapes-fsq", "shapes-kl", "base-fsq", "base-kl", "wf-vae", "cosmos-8x8x8", "omnitokenizer-kl")
PEERS = (
    "AutoencoderKLLTXVideo",
    "AutoencoderKLCosmos",
    "AutoencoderVidTok",
    "AutoencoderKLWan",
    "AutoencoderKLCogVideoX",
    "AutoencoderKLHunyuanVideo",
)
WARM_UP_FRAMES = 5


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and for how long."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """CSV file to write; the same name with .json gets the rows together with device, versions, commit and date. Rows
    that are in the JSON file already are not measured again."""
    models: tuple[str, ...] = OURS + PEERS
    """Presets of vidgen and autoencoders of diffusers (default configuration), all with random weights."""
    frames: int = 17
    """Frames of the clip."""
    sides: tuple[int, ...] = (128, 256)
    """Heights, which are widths too, of the clips in pixels."""
    threads: int = 1
    """CPU threads; CPU-seconds add up over them."""
    repeats: int = 15
    """Round trips after the warm-up; the table has their median."""
    seconds: float = 30.0
    """No further round trip begins after so many CPU-seconds of a model, but at least one is made."""


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


@torch.no_grad()
def measure(name: str, side: int, settings: Settings) -> dict[str, Any]:
    """One row of the table; meant for a process of its own, whose peak memory it reports."""
    torch.set_num_threads(settings.threads)
    video = torch.rand(1, 3, settings.frames, side, side) * 2 - 1
    model = build(name)
    built = peak_memory_megabytes("cpu")
    model.decode(model.encode(video[:, :, :WARM_UP_FRAMES]))
    encoding, decoding, encode_peaks, decode_peaks = [], [], [], []
    while len(encoding) < settings.repeats and (not encoding or sum(encoding + decoding) < settings.seconds):
        reset_peak_memory("cpu")
        started = time.process_time()
        latents = model.encode(video)
        encoding.append(time.process_time() - started)
        encode_peaks.append(peak_memory_megabytes("cpu"))
        reset_peak_memory("cpu")
        started = time.process_time()
        output = model.decode(latents)
        decoding.append(time.process_time() - started)
        decode_peaks.append(peak_memory_megabytes("cpu"))
    if output.shape != video.shape or not output.isfinite().all():
        raise ValueError(f"{name} did not give back {tuple(video.shape)} finite pixels, so its times mean nothing")
    # Last, because a model may keep tensors without content in module globals and then compute nothing (Cosmos does).
    encode_gigaflops, decode_gigaflops = gigaflops(name, video)
    return {
        **key(name, side, settings),
        "latent": "x".join(map(str, (model.spec.channels, *model.spec.grid(latents.size)))),
        "tokens": latents.tokens.shape[1],
        "parameters_million": round(sum(weight.numel() for weight in model.parameters()) / 1e6, 2),
        "encode_gflop": round(encode_gigaflops, 1),
        "decode_gflop": round(decode_gigaflops, 1),
        "encode_cpu_seconds": round(median(encoding), 3),
        "decode_cpu_seconds": round(median(decoding), 3),
        "encode_frames_per_cpu_second": round(settings.frames / median(encoding), 2),
        "decode_frames_per_cpu_second": round(settings.frames / median(decoding), 2),
        "round_trips": len(encoding),
        "memory_built_mb": round(built),
        "memory_encode_peak_mb": round(max(encode_peaks)),
        "memory_decode_peak_mb": round(max(decode_peaks)),
        "commit": git_commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def key(name: str, side: int, settings: Settings) -> dict[str, Any]:
    """What tells one row from the others."""
    return {"model": name, "frames": settings.frames, "side": side, "threads": settings.threads}


def rows_before(output: Path) -> list[dict[str, Any]]:
    """Rows of a call before this one."""
    described = output.with_suffix(".json")
    return json.loads(described.read_text())["rows"] if described.is_file() else []


def main() -> None:
    """Measure each model and size in a fresh process, print the table, write CSV and JSON after every row."""
    settings = tyro.cli(Settings, description=__doc__)
    torch.set_num_threads(settings.threads)
    rows = rows_before(settings.output)
    for side in settings.sides:
        for name in settings.models:
            wanted = key(name, side, settings)
            if any(wanted.items() <= row.items() for row in rows):
                print(f"{name} at {side} pixels is measured already", flush=True)
                continue
            with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                rows.append(fresh.submit(measure, name, side, settings).result())
            print(", ".join(f"{column} {value}" for column, value in rows[-1].items()), flush=True)
            result = {
                "clip": "1x3xFRAMESxSIDExSIDE, float32, random weights, CPU",
                "date": datetime.now(UTC).date().isoformat(),
                "environment": environment_stamp(),
                "rows": rows,
            }
            write_csv(settings.output, rows)
            write_json(settings.output.with_suffix(".json"), result)


if __name__ == "__main__":
    main()
