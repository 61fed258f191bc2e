"""What do known pixels add to a decoder? `python eval/guided_decoding.py runs/real` trains one and scores it.

`GuidedDecoderTokenizer` around a built-in tokenizer that stays as it is, trained on `PIECES/train` and scored on
`PIECES/unseen` (`tokenizers/real_clips.py` cuts them): frames between a known first and last one, and a central hole
of half the height and width, decoded from the same tokens with and without what is known. Resumes where it was stopped.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import tyro
from torch import Tensor

import vidgen
from vidgen.conditioning.tasks import known_mask
from vidgen.eval.report import environment_stamp, write_csv, write_json
from vidgen.latents import VideoSize
from vidgen.tokenizers import GuidedDecoderTokenizer, Tokenizer
from vidgen.training import DataConfig, OptimiserConfig, TokenizerRun, train_tokenizer
from vidgen.training.clips import training_clips
from vidgen.training.config import Precision

SHOWN = {"first and last frame": "frame_interpolation", "all but a central hole": "central_inpainting"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained and scored."""

    pieces: tyro.conf.Positional[Path]
    """Folder with `train` and `unseen`."""
    model: str = "real-kl"
    """The tokenizer, a folder or a built-in name."""
    width: int = 128
    depth: int = 2
    steps: int = 1500
    batch_size: int = 4
    side: int = 96
    """Height and width of the training crops."""
    learning_rate: float = 1e-3
    precision: Precision = "fp32"
    scored_clips: int = 48
    output_dir: Path = Path("runs/guided")
    results: Path = Path("eval/results/guided_decoding.csv")
    """The table; JSON lies beside it."""


def trained(settings: Settings) -> GuidedDecoderTokenizer:
    torch.manual_seed(0)
    wrapped = vidgen.load(settings.model)
    assert isinstance(wrapped, Tokenizer)
    tokenizer = GuidedDecoderTokenizer.around(wrapped, width=settings.width, depth=settings.depth, freeze_encoder=True)
    data = DataConfig(
        source=str(settings.pieces / "train"),
        fps=None,
        height=settings.side,
        width=settings.side,
        clips_per_video=256,
        validation_clips=0,
    )
    run = TokenizerRun(
        preset=f"guided decoder of {settings.model}",
        output_dir=settings.output_dir,
        data=data,
        optimiser=OptimiserConfig(learning_rate=settings.learning_rate, warmup_steps=min(100, settings.steps)),
        steps=settings.steps,
        batch_size=settings.batch_size,
        precision=settings.precision,
        checkpoint_every=250,
        keep=1,
        validate_every=0,
        sample_every=0,
        resume=True,
    )
    guided = vidgen.load(train_tokenizer(run, tokenizer=tokenizer))
    assert isinstance(guided, GuidedDecoderTokenizer)
    return guided.eval()


def psnr(one: Tensor, other: Tensor, where: Tensor) -> float:
    """dB over the pixels of 8-bit videos `1 3 t h w` in [-1, 1] that `where` (`1 1 t h w`) names."""
    levels = [((video + 1) * 127.5).round() for video in (one, other)]
    error = (levels[0] - levels[1]).square()[where.expand_as(one)].mean()
    return 10 * torch.log10(255**2 / error.clamp(min=1e-6)).item()


def whole_size(video: Tensor) -> VideoSize:
    return video.shape[2], video.shape[3], video.shape[4]


@torch.no_grad()
def table(tokenizer: GuidedDecoderTokenizer, settings: Settings) -> list[dict[str, object]]:
    unseen: Any = training_clips(
        DataConfig(source=str(settings.pieces / "unseen"), fps=None, clips_per_video=1, validation_clips=0)
    )
    count = min(settings.scored_clips, len(unseen))
    found: dict[str, list[tuple[float, float]]] = {shown: [] for shown in SHOWN}
    for index in range(count):
        video = unseen[index]["video"][None]
        latents = tokenizer.encode(video)
        alone = tokenizer.decode(latents)
        for shown, task in SHOWN.items():
            where = known_mask(task, whole_size(video))
            guided = tokenizer.decode_known(latents, video, where)
            found[shown].append((psnr(alone, video, ~where), psnr(guided, video, ~where)))
    return [
        {
            "known": shown,
            "clips": count,
            "psnr_of_the_rest_from_tokens_alone": round(mean(alone for alone, _ in scores), 2),
            "psnr_of_the_rest_beside_what_is_known": round(mean(guided for _, guided in scores), 2),
            "clips_better": sum(guided > alone for alone, guided in scores),
        }
        for shown, scores in found.items()
    ]


def main() -> int:
    settings = tyro.cli(Settings, description=__doc__)
    rows = table(trained(settings), settings)
    write_csv(settings.results, rows)
    kept = {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}
    write_json(
        settings.results.with_suffix(".json"),
        {"rows": rows, "settings": kept, "environment": environment_stamp()},
    )
    for row in rows:
        print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
