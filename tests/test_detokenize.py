"""Do files of tokens become the videos that their tokenizer decodes, and are files of other tokenizers refused?"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vidgen as library
from vidgen.cli import main
from vidgen.cli.detokenize import video_name
from vidgen.data import iter_frames, probe, read_video, to_tensor, write_video
from vidgen.data.video import to_frames
from vidgen.latents import Latents
from vidgen.tokenizers.presets import TOKENIZER_PRESETS


def save_tokenizer(folder: Path, *, seed: int) -> Path:
    torch.manual_seed(seed)
    TOKENIZER_PRESETS["shapes-fsq"].tiny().build().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("models") / "mine", seed=0)


@pytest.fixture
def tokens(tokenizer, tmp_path) -> Path:
    """A folder with the tokens of clips/deep/clip.webm: five frames of 21×35 at 10 frames/s."""
    video = torch.rand(3, 5, 21, 35, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_video(tmp_path / "clips" / "deep" / "clip.webm", video, fps=10)
    assert (
        main(["tokenize", str(tmp_path / "clips"), "--tokenizer", str(tokenizer), "-o", str(tmp_path / "tokens")]) == 0
    )
    return tmp_path / "tokens"


def test_a_folder_of_images_is_one_clip_even_where_it_is_called_by_a_dot(tokenizer, tmp_path, monkeypatch):
    write_video(tmp_path / "frames", torch.zeros(3, 2, 16, 16), fps=10)
    monkeypatch.chdir(tmp_path / "frames")
    for folder, output in ((".", tmp_path / "dot"), (str(tmp_path / "frames"), tmp_path / "named")):
        assert main(["tokenize", folder, "--tokenizer", str(tokenizer), "-o", str(output)]) == 0
        assert [path.name for path in output.iterdir()] == ["frames.safetensors"]


def detokenize(tokens: Path, tokenizer: Path, *more: str) -> int:
    return main(["detokenize", str(tokens), "--tokenizer", str(tokenizer), *more])


def test_videos_are_what_the_tokenizer_decodes(tokens, tokenizer, tmp_path):
    assert detokenize(tokens, tokenizer, "-o", str(tmp_path / "videos"), "--format", "png") == 0
    made = np.stack(list(iter_frames(tmp_path / "videos" / "deep" / "clip")))
    model = library.load(str(tokenizer)).eval()
    clip = to_tensor(read_video(tmp_path / "clips" / "deep" / "clip.webm").frames)[None]
    with torch.inference_mode():
        expected = to_frames(model.decode(model.encode(clip))[0])
    assert np.array_equal(made, np.stack(list(expected)))


def test_tokens_of_generated_videos_become_the_same_videos(tmp_path):
    """`generate --latents` says its rate and its tokenizer, and each of its videos gets a file."""
    made = ["generate", "a large red circle moving left on a navy background", "--num-videos", "2", "--steps", "2"]
    assert (
        main([*made, "-o", str(tmp_path / "made"), "--latents", str(tmp_path / "two.safetensors"), "--fps", "5"]) == 0
    )
    decode = ["detokenize", str(tmp_path / "two.safetensors"), "--format", "png", "-o", str(tmp_path / "again")]
    assert main([*decode, "--tokenizer", "shapes-fsq"]) == 0
    for number in (1, 2):
        one, other = (read_video(tmp_path / name) for name in (f"made-{number}", f"again/two-{number}"))
        assert np.abs(one.frames.astype(int) - other.frames).max() <= 1  # decoded one by one, not as a batch
        assert one.fps == other.fps == 5
    assert main([*decode, "--tokenizer", "worlds-fsq"]) == 2


def test_a_video_has_the_name_frames_size_and_rate_of_its_clip(tokens, tokenizer, tmp_path):
    assert detokenize(tokens, tokenizer, "-o", str(tmp_path / "videos")) == 0
    made = tmp_path / "videos" / "deep" / "clip.webm"
    assert [frame.shape for frame in iter_frames(made)] == [(21, 35, 3)] * 5
    assert probe(made).fps == 10


@pytest.mark.parametrize(
    ("file", "format", "frames", "name"),
    [
        ("clip.mp4.safetensors", None, 5, "clip.mp4"),
        ("clip.AVI.safetensors", None, 5, "clip.AVI.mp4"),
        ("frames.safetensors", None, 5, "frames.mp4"),
        ("clip.mp4.safetensors", "gif", 5, "clip.gif"),
        ("clip.avi.safetensors", "png", 5, "clip_avi"),
        ("photo.png.safetensors", None, 1, "photo.png"),
        ("photo.jpg.safetensors", None, 1, "photo.jpg.png"),
        ("photo.jpg.safetensors", "gif", 1, "photo.jpg.gif"),
    ],
)
def test_names_of_videos(file, format, frames, name):
    assert video_name(Path(file), format, frames=frames) == name


def test_tokens_of_other_weights_are_refused_and_the_others_decoded(tokens, tokenizer, tmp_path, capsys):
    other = save_tokenizer(tmp_path / "other", seed=1)
    assert detokenize(tokens, other, "-o", str(tmp_path / "videos")) == 2
    assert "give the tokenizer that made them" in capsys.readouterr().err
    assert not (tmp_path / "videos").exists()
    (tokens / "letter.safetensors").write_text("dear sir or madam")
    assert detokenize(tokens, tokenizer, "-o", str(tmp_path / "videos")) == 2
    errors = capsys.readouterr().err
    assert "letter.safetensors is damaged" in errors and "1 of 2 files" in errors
    assert (tmp_path / "videos" / "deep" / "clip.webm").is_file()


def test_another_precision_is_the_same_tokenizer(tokens, tokenizer, tmp_path):
    assert detokenize(tokens, tokenizer, "-o", str(tmp_path / "videos"), "--precision", "bf16") == 0


@pytest.mark.parametrize("said", ["fast", "-3", "nan", "inf"])
def test_a_file_that_does_not_say_its_rate_needs_one(tokens, tokenizer, tmp_path, capsys, said):
    file = tokens / "deep" / "clip.webm.safetensors"
    made_by: Any = library.load(tokenizer)
    latents = Latents.load(file, made_by)
    latents.metadata["fps"] = said
    latents.save(file, ids_only=True)
    assert detokenize(file, tokenizer, "-o", str(tmp_path / "videos")) == 2
    assert "--fps" in capsys.readouterr().err
    assert detokenize(file, tokenizer, "-o", str(tmp_path / "videos"), "--fps", "5") == 0
    assert probe(tmp_path / "videos" / "clip.webm").fps == 5


def test_mistakes_are_clear(tokens, tokenizer, tmp_path, capsys):
    assert detokenize(tmp_path / "clips", tokenizer, "-o", str(tmp_path / "videos")) == 2
    assert "found none" in capsys.readouterr().err
    assert detokenize(tokens, tokenizer, "-o", str(tmp_path / "videos"), "--format", "avi") == 2
    assert "mp4, webm, gif or png" in capsys.readouterr().err
