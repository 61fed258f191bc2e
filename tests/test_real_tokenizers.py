"""Do the baselines of real-video tokenizers get as many bits as the tokenizer, and are the built-in sizes kept?"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipe_module import recipe_module

from vidgen.data import write_video
from vidgen.eval.clips import Clip
from vidgen.eval.subjects import Counts
from vidgen.tokenizers.presets import TOKENIZER_PRESETS


@pytest.fixture(scope="module")
def recipe() -> Any:
    return recipe_module("eval/real_tokenizers.py")


def clip_of(video: torch.Tensor) -> Clip:
    return Clip("a", lambda: iter([video]))


@pytest.mark.parametrize("preset", ["real-fsq", "real-kl"])
def test_the_real_presets_take_less_than_ten_megabytes(preset: str):
    with torch.device("meta"):
        tokenizer = TOKENIZER_PRESETS[preset].build()
    assert 2 * sum(tensor.numel() for tensor in tokenizer.state_dict().values()) < 10e6


def test_x264_gets_at_least_the_bits_and_no_better_crf_than_it_needs(recipe: Any):
    video = torch.rand(3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    counts = Counts()
    subject = recipe.X264Subject("x264", {"a": 12_000.0})
    (pair, *_) = list(subject.pairs(clip_of(video), counts, None))
    assert counts.bits >= 12_000 and counts.frames == 5 and pair.video.shape[-2:] == (32, 32)
    assert counts.bits < 1.5 * 12_000


@pytest.mark.parametrize("stride", [1, 4])
def test_bicubic_frames_stay_near_their_bits_and_fit_the_clip(recipe: Any, stride: int):
    video = torch.rand(3, 9, 64, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    counts = Counts()
    subject = recipe.BicubicSubject("bicubic", {"a": 50_000.0}, stride=stride)
    (pair,) = subject.pairs(clip_of(video), counts, None)
    assert pair.video.shape == pair.reference.shape == (1, 3, 9, 64, 48)
    assert 0.8 * 50_000 < counts.bits < 1.2 * 50_000


def test_frames_between_two_are_mixed_by_their_distance(recipe: Any):
    frames = torch.tensor([0.0, 4.0, 6.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    assert recipe.between(frames, [0, 4, 6])[0, :, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_one_call_scores_tokenizers_beside_their_baselines_and_resumes(
    recipe: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
):
    columns = np.arange(32)
    for number in range(2):
        frames = [np.tile(((columns * 7 + 9 * t + number) % 256)[None, :, None], (32, 1, 3)) for t in range(5)]
        write_video(tmp_path / "unseen" / f"piece-{number}", iter([f.astype(np.uint8) for f in frames]), fps=10)
    models = []
    for preset in ("real-fsq", "real-kl"):
        torch.manual_seed(0)
        TOKENIZER_PRESETS[preset].tiny().build().save_pretrained(tmp_path / preset / "model")
        models.append(str(tmp_path / preset / "model"))
    command = ["real_tokenizers.py", str(tmp_path / "unseen"), "--records", str(tmp_path / "records")]
    command += ["--results", str(tmp_path / "t.csv"), "--models", *models]
    monkeypatch.setattr(sys, "argv", command)
    assert recipe.main() == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    baselines = ["x264", "bicubic", "bicubic, every 4th frame"]
    assert [row["subject"] for row in rows] == [
        "real-fsq",
        *baselines,
        "real-kl",
        *baselines,
        "real-kl at 6 bits",
        *baselines,
    ]
    assert rows[8]["bits_per_pixel"] == pytest.approx(0.75 * rows[4]["bits_per_pixel"])
    assert rows[8]["psnr.rgb.frame_mean.cap100"] != rows[4]["psnr.rgb.frame_mean.cap100"]
    assert all(row["psnr.rgb.frame_mean.cap100"] > 0 and row["bits_per_pixel"] > 0 for row in rows)
    assert rows[1]["bits_per_pixel"] >= rows[0]["bits_per_pixel"] or rows[1]["psnr.rgb.frame_mean.cap100"] > 40

    def refuse(*_: Any) -> None:
        raise AssertionError("a clip was scored twice")

    for kind in (recipe.RoundedSubject, recipe.X264Subject, recipe.BicubicSubject):
        monkeypatch.setattr(kind, "pairs", refuse)
    assert recipe.main() == 0
    assert json.loads((tmp_path / "t.json").read_text())["rows"][1] == rows[1]
