"""What do tokenizers cost? Ours beside three of diffusers', one call: `python eval/tokenizer_cost.py -o FILE.csv`."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vidgen.eval.report import environment_stamp, peak_memory_megabytes, write_csv, write_json

OURS = ("shapes-fsq", "shapes-kl", "base-fsq", "base-kl")
DIFFUSERS = ("AutoencoderKLLTXVideo", "AutoencoderKLCosmos", "AutoencoderKLWan")
WARM_UP_FRAMES = 5


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and for how long."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """CSV file to write; the same name with .json gets the rows together with device, versions, commit and date."""
    models: tuple[str, ...] = OURS + DIFFUSERS
    """Presets of vidgen and autoencoders of diffusers (default configuration), all with random weights."""
    frames: int = 17
    """Frames of the clip."""
    side: int = 128
    """Height and width of the clip in pixels."""
    threads: int = 1
    """CPU threads; CPU-seconds add up over them."""
    repeats: int = 15
    """Round trips after the warm-up; the table has their median."""
    seconds: float = 30.0
    """No further round trip begins after so many CPU-seconds of a model, but at least one is made."""


@dataclass(frozen=True)
class Codec:
    """A model with its two directions."""

    model: torch.nn.Module
    encode: Callable[[Tensor], Any]
    decode: Callable[[Any], Tensor]
    latent: Callable[[Any], Tensor]


def build(name: str) -> Codec:
    """`name` freshly initialised, for inference."""
    torch.manual_seed(0)
    if name in DIFFUSERS:
        model = getattr(import_module("diffusers"), name)().eval()
        return Codec(
            model, lambda video: model.encode(video).latent_dist.mode(), lambda z: model.decode(z).sample, same
        )
    import vidgen

    model = vidgen.build(name).eval()
    return Codec(model, model.encode, model.decode, lambda latents: latents.grid())


def same(latent: Tensor) -> Tensor:
    return latent


def gigaflops(name: str, video: Tensor) -> tuple[float, float]:
    """Encode and decode, counted on tensors without content; attention as its two products, which the counter knows."""
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH):
        codec = build(name)
        with FlopCounterMode(display=False) as encoding:
            latents = codec.encode(torch.empty(video.shape))
        with FlopCounterMode(display=False) as decoding:
            codec.decode(latents)
    return encoding.get_total_flops() / 1e9, decoding.get_total_flops() / 1e9


@torch.no_grad()
def measure(name: str, settings: Settings) -> dict[str, Any]:
    """One row of the table; meant for a process of its own, whose peak memory it reports."""
    torch.set_num_threads(settings.threads)
    video = torch.rand(1, 3, settings.frames, settings.side, settings.side) * 2 - 1
    codec = build(name)
    built = peak_memory_megabytes("cpu")
    codec.decode(codec.encode(video[:, :, :WARM_UP_FRAMES]))
    encoding, decoding = [], []
    while len(encoding) < settings.repeats and (not encoding or sum(encoding + decoding) < settings.seconds):
        started = time.process_time()
        latents = codec.encode(video)
        encoded = time.process_time()
        output = codec.decode(latents)
        decoding.append(time.process_time() - encoded)
        encoding.append(encoded - started)
    if not output.isfinite().all():
        raise ValueError(f"{name} gave NaN or infinite pixels, so its times mean nothing")
    peak = peak_memory_megabytes("cpu")
    # Last, because a model may keep tensors without content in module globals and then compute nothing (Cosmos does).
    encode_gigaflops, decode_gigaflops = gigaflops(name, video)
    parameters = sum(weight.numel() for weight in codec.model.parameters())
    return {
        "model": name,
        "latent": "x".join(str(extent) for extent in codec.latent(latents).shape[1:]),
        "frames_out": output.shape[2],
        "parameters_million": round(parameters / 1e6, 2),
        "encode_gflop": round(encode_gigaflops, 1),
        "decode_gflop": round(decode_gigaflops, 1),
        "encode_cpu_seconds": round(median(encoding), 3),
        "decode_cpu_seconds": round(median(decoding), 3),
        "encode_frames_per_cpu_second": round(settings.frames / median(encoding), 2),
        "decode_frames_per_cpu_second": round(settings.frames / median(decoding), 2),
        "round_trips": len(encoding),
        "memory_built_mb": round(built),
        "memory_peak_mb": round(peak),
    }


def main() -> None:
    """Measure each model in a fresh process, print the table, write CSV and JSON."""
    settings = tyro.cli(Settings, description=__doc__)
    rows = []
    for name in settings.models:
        with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            rows.append(fresh.submit(measure, name, settings).result())
        print(", ".join(f"{column} {value}" for column, value in rows[-1].items()), flush=True)
    torch.set_num_threads(settings.threads)
    result = {
        "clip": f"1x3x{settings.frames}x{settings.side}x{settings.side}, float32, random weights",
        "date": datetime.now(UTC).date().isoformat(),
        "environment": environment_stamp(),
        "rows": rows,
    }
    write_csv(settings.output, rows)
    write_json(settings.output.with_suffix(".json"), result)


if __name__ == "__main__":
    main()
