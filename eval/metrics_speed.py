"""How fast are the metrics beside other people's? One call: `python eval/metrics_speed.py -o FILE.csv`.

Every row is measured in a fresh process: CPU-seconds (the least of several calls after a warm-up) and how far the
resident set rises above what it was before the first call. Blocks of 64 kB and more go back to the system when they
are freed, in every process alike: glibc would keep them, and memory that preparation left behind would hide what a
call takes. `goal` and `met` say what was promised and whether it holds. The row `overhead` says what the benchmark adds
to tokenizer and metrics: checking and reading files, scheduling, records.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.nn import functional

from vidgen.eval.report import environment_stamp, peak_memory_megabytes, reset_peak_memory, write_csv, write_json

Call = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and for how long."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """CSV file to write; the same name with .json gets the rows together with device, versions, commit and date."""
    frames: int = 64
    """Frames of the clip."""
    side: int = 256
    """Height and width of the clip in pixels; MS-SSIM needs 161."""
    threads: int = 1
    """CPU threads; CPU-seconds add up over them."""
    repeats: int = 5
    """Calls after the warm-up; the table has the fastest."""
    clips: int = 4
    """Clips of the overhead rows."""
    features: int = 2048
    """Numbers of each sample of the Fréchet rows; FVD has 400, FID 2048."""
    samples: int = 5000
    """Samples in each set of the Fréchet rows."""
    only: tuple[str, ...] = ()
    """Measure the rows of these scores only."""


def clip(settings: Settings) -> tuple[Tensor, Tensor]:
    """A noisy clip and its original, uint8 ``t 3 h w``, whose noise has structure at every scale."""
    generator = torch.Generator().manual_seed(0)
    shape = (settings.frames, 3, settings.side, settings.side)
    original = torch.zeros(shape)
    for cells in (4, 16, 64):
        coarse = torch.randn(settings.frames, 3, cells, cells, generator=generator)
        original += functional.interpolate(coarse, size=shape[2:], mode="bilinear") * 100 / cells
    noisy = original + 8 * torch.randn(shape, generator=generator)
    return (noisy + 128).clamp(0, 255).byte(), (original + 128).clamp(0, 255).byte()


def ours(key: str) -> Callable[[Settings], Call]:
    def prepare(settings: Settings) -> Call:
        from vidgen.eval.reconstruction import METRICS

        video, original = (x.transpose(0, 1)[None].contiguous() for x in clip(settings))

        def call() -> float:
            metric = METRICS[key].empty()
            metric.update(video, original)
            return metric.compute()[key]

        return call

    return prepare


def pytorch_msssim(name: str) -> Callable[[Settings], Call]:
    def prepare(settings: Settings) -> Call:
        import pytorch_msssim

        video, original = (x.float() for x in clip(settings))
        return lambda: float(getattr(pytorch_msssim, name)(video, original, data_range=255))

    return prepare


def torchmetrics(name: str, **options: Any) -> Callable[[Settings], Call]:
    def prepare(settings: Settings) -> Call:
        import torchmetrics.image

        video, original = (x.float() for x in clip(settings))

        def call() -> float:
            metric = getattr(torchmetrics.image, name)(data_range=255.0, **options)
            for a, b in zip(video.split(8), original.split(8), strict=True):  # whole clips take 2.5 times the memory
                metric.update(a, b)
            return float(metric.compute())

        return call

    return prepare


def scikit_image(name: str, **options: Any) -> Callable[[Settings], Call]:
    def prepare(settings: Settings) -> Call:
        import skimage.metrics

        video, original = (np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy()) for x in clip(settings))
        compare = getattr(skimage.metrics, name)
        return lambda: float(np.mean([compare(a, b, data_range=255, **options) for a, b in zip(original, video)]))

    return prepare


def features(settings: Settings) -> tuple[Tensor, Tensor]:
    """Two sets ``n d`` float32 whose variances span six orders of magnitude, as those of networks do."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -3, settings.features)
    real, fake = (torch.randn(settings.samples, settings.features, generator=generator) * scales for _ in range(2))
    return real, fake + 0.01


def our_frechet(settings: Settings) -> Call:
    from vidgen.eval.frechet import frechet_distance

    real, fake = features(settings)
    return lambda: frechet_distance(real, fake)


def scipy_frechet(settings: Settings) -> Call:
    """As pytorch-fid and StyleGAN-V compute it: covariances, then the matrix root of their product."""
    import scipy.linalg

    real, fake = (one.double().numpy() for one in features(settings))

    def call() -> float:
        first, second = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
        root = scipy.linalg.sqrtm(first @ second).real
        step = real.mean(axis=0) - fake.mean(axis=0)
        return float(step @ step + np.trace(first) + np.trace(second) - 2 * np.trace(root))

    return call


def torchmetrics_frechet(settings: Settings) -> Call:
    from torchmetrics.image.fid import _compute_fid

    real, fake = (one.double() for one in features(settings))
    return lambda: float(_compute_fid(real.mean(0), torch.cov(real.T), fake.mean(0), torch.cov(fake.T)))


GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": -1}
# Score -> implementation -> what makes the call that is measured. Values of a score differ where conventions do.
CASES: dict[str, dict[str, Callable[[Settings], Call]]] = {
    "psnr, mean over frames": {
        "vidgen": ours("psnr.rgb.frame_mean.cap100"),
        "scikit-image": scikit_image("peak_signal_noise_ratio"),
    },
    "psnr, pooled": {
        "vidgen": ours("psnr.rgb.global.cap100"),
        "torchmetrics": torchmetrics("PeakSignalNoiseRatio"),
    },
    "ssim, Gaussian 11x11": {
        "vidgen": ours("ssim.rgb.gauss11.valid"),
        "pytorch-msssim": pytorch_msssim("ssim"),
        "torchmetrics": torchmetrics("StructuralSimilarityIndexMeasure"),
        "scikit-image": scikit_image("structural_similarity", **GAUSSIAN),
    },
    "ssim, uniform 7x7": {
        "vidgen": ours("ssim.rgb.uniform7.sample"),
        "scikit-image": scikit_image("structural_similarity", channel_axis=-1),
    },
    "ms-ssim": {
        "vidgen": ours("msssim.rgb.gauss11"),
        "pytorch-msssim": pytorch_msssim("ms_ssim"),
        "torchmetrics": torchmetrics("MultiScaleStructuralSimilarityIndexMeasure"),
    },
    "temporal difference psnr": {"vidgen": ours("tdiff_psnr.rgb.frame_mean.cap100")},
    "flicker": {"vidgen": ours("flicker.rgb.static2")},
    "warping error": {"vidgen": ours("warping_error.rgb.mestimate8r7")},
    "frechet distance": {
        "vidgen": our_frechet,
        "scipy.linalg.sqrtm": scipy_frechet,
        "torchmetrics": torchmetrics_frechet,
    },
}
# What was promised: (score, implementation) -> column -> how many times ours it takes at least.
GOALS = {
    ("ssim, Gaussian 11x11", "pytorch-msssim"): {"times_our_seconds": 1.5, "times_our_memory": 2.0},
    ("frechet distance", "scipy.linalg.sqrtm"): {"times_our_seconds": 2.0},
}
MOST_OVERHEAD = 0.1
RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}  # of glibc, read when a process starts
ONE_CALL = "frechet distance"  # takes long enough to be measured once


def measure(score: str, implementation: str, settings: Settings) -> dict[str, Any]:
    """One row; meant for a process of its own."""
    torch.set_num_threads(settings.threads)
    call = CASES[score][implementation](settings)
    reset_peak_memory("cpu")
    before = peak_memory_megabytes("cpu")
    value = call()
    memory = peak_memory_megabytes("cpu") - before
    seconds = min(timed(call) for _ in range(1 if score == ONE_CALL else settings.repeats))
    return {
        "score": score,
        "implementation": implementation,
        "value": round(value, 6),
        "cpu_seconds": round(seconds, 4),
        "memory_mb": round(memory, 1),
    }


def timed(call: Callable[[], Any]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times the seconds and the memory of ours each row takes."""
    mine = {row["score"]: row for row in rows if row["implementation"] == "vidgen"}
    for row in rows:
        own = mine[row["score"]]
        row["times_our_seconds"] = round(row["cpu_seconds"] / own["cpu_seconds"], 2)
        row["times_our_memory"] = round(row["memory_mb"] / max(own["memory_mb"], 0.1), 2)
        if goals := GOALS.get((row["score"], row["implementation"])):
            row["goal"] = ", ".join(f"{column} >= {least:g}" for column, least in goals.items())
            row["met"] = all(row[column] >= least for column, least in goals.items())
    return rows


def overhead(settings: Settings) -> dict[str, Any]:
    """CPU-seconds of the benchmark over files, and of tokenizer and metrics alone on the same frames in memory."""
    import vidgen
    from vidgen.data import write_video
    from vidgen.eval.clips import clips_for_protocol, find_clips
    from vidgen.eval.protocol import ReconstructionProtocol
    from vidgen.eval.protocols import get_protocol
    from vidgen.eval.recon_suite import evaluate
    from vidgen.eval.reconstruction import scores_for
    from vidgen.eval.subjects import TokenizerSubject

    torch.set_num_threads(settings.threads)
    protocol = get_protocol("recon.v1", ReconstructionProtocol)
    tokenizer: Any = vidgen.load("shapes-kl")
    _, original = clip(settings)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(settings.clips):
            video = original.roll(number, dims=0).transpose(0, 1).float() / 127.5 - 1
            write_video(Path(folder) / f"{number}.mp4", video, fps=25)

        def benchmark() -> None:
            subject = TokenizerSubject(tokenizer, "shapes-kl")
            clips = clips_for_protocol(find_clips([folder]), protocol)
            evaluate([subject], clips, protocol=protocol, records=Path(folder) / str(time.monotonic_ns()))

        held = [list(one.chunks()) for one in clips_for_protocol(find_clips([folder]), protocol).clips]

        def alone() -> None:
            for chunks in held:
                metrics = scores_for(protocol).metrics
                originals = torch.cat(chunks, dim=1)[None]
                start = 0
                with torch.no_grad():
                    for fake in tokenizer.decode_chunks(tokenizer.encode_chunks(chunk[None] for chunk in chunks)):
                        real = originals[:, :, start : start + fake.shape[2]]
                        for metric in metrics:
                            metric.update(fake, real, start=start)
                        start += fake.shape[2]

        alone()
        # in turns, so that a busy machine slows both
        both = [(timed(alone), timed(benchmark)) for _ in range(settings.repeats)]
    inner, whole = min(pair[0] for pair in both), min(pair[1] for pair in both)
    return {
        "score": "overhead of the benchmark",
        "implementation": "recon.v1, shapes-kl",
        "value": round(whole / inner - 1, 4),
        "goal": f"value <= {MOST_OVERHEAD}",
        "met": whole / inner - 1 <= MOST_OVERHEAD,
        "cpu_seconds": round(whole, 3),
        "cpu_seconds_alone": round(inner, 3),
    }


def main() -> None:
    """Measure each row in a fresh process, print the table, write CSV and JSON."""
    settings = tyro.cli(Settings, description=__doc__)
    rows = []
    for score, implementations in CASES.items():
        if not settings.only or any(word in score for word in settings.only):
            for implementation in implementations:
                rows.append(in_fresh_process(measure, score, implementation, settings))
                print(", ".join(f"{column} {value}" for column, value in rows[-1].items()), flush=True)
    rows = with_ratios(rows)
    if not settings.only or "overhead" in settings.only:
        rows.append(in_fresh_process(overhead, settings))
        print(rows[-1], flush=True)
    result = {
        "clip": f"{settings.frames}x3x{settings.side}x{settings.side}, uint8",
        "threads": settings.threads,
        "malloc": RETURN_FREED,
        "date": datetime.now(UTC).date().isoformat(),
        "environment": environment_stamp(),
        "rows": rows,
    }
    write_csv(settings.output, rows)
    write_json(settings.output.with_suffix(".json"), result)


def in_fresh_process(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    os.environ.update(RETURN_FREED)
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(work, *arguments).result()


if __name__ == "__main__":
    main()
