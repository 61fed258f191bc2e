"""The commands around results: many tokenizers in one call, protocols listed, results compared or kept apart."""

import csv
import json
from pathlib import Path

import pytest
import torch

from vidgen.cli import main


@pytest.fixture
def vidgen(capsys):
    """Runs `vidgen` in this process; gives back exit code, output and error text."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    from vidgen.data import write_video

    folder = tmp_path_factory.mktemp("clips")
    for seed in range(2):
        video = torch.rand(3, 5, 24, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        write_video(folder / f"clip{seed}", video, fps=10)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    """Two tiny untrained tokenizers, one discrete."""
    from vidgen.tokenizers.presets import TOKENIZER_PRESETS

    folder = tmp_path_factory.mktemp("models")
    for name in ("shapes-fsq", "shapes-kl"):
        TOKENIZER_PRESETS[name].tiny().build().save_pretrained(folder / name)
    return [folder / "shapes-fsq", folder / "shapes-kl"]


def test_many_tokenizers_give_one_table_a_result_and_what_a_second_run_reuses(vidgen, clips, models, tmp_path):
    arguments = ["eval", "recon", "--tokenizers", *models, "--data", clips, "--protocol", "recon.quick"]
    arguments += ["--device", "cpu", "-o", tmp_path / "both.json"]
    code, output, errors = vidgen(*arguments)
    assert (code, errors) == (0, "")
    assert "psnr.rgb.frame_mean.cap100 ↑" in output and f"{models[1]} − {models[0]}" in output
    assert "lpips.alex.v0.1: not computed" in " ".join(output.split())
    result = json.loads((tmp_path / "both.json").read_text())
    assert result["schema"] == "vidgen.eval/1" and result["inputs"]["clips"] == 2
    assert [subject["name"] for subject in result["subjects"]] == [str(model) for model in models]
    rows = list(csv.DictReader((tmp_path / "both.csv").open()))
    assert len(rows) == 2 * 3 and rows[0]["bits"] and not rows[3]["bits"]
    before = {path.name: path.read_bytes() for path in (tmp_path / "both.clips").iterdir()}
    assert len(before) == 2
    assert vidgen(*arguments)[0] == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "both.clips").iterdir()} == before
    again = json.loads((tmp_path / "both.json").read_text())
    assert [subject["scores"] for subject in again["subjects"]] == [one["scores"] for one in result["subjects"]]


def test_options_that_change_the_conditions_change_the_hash_and_results_do_not_mix(vidgen, clips, models, tmp_path):
    arguments = ["eval", "recon", "--tokenizers", models[0], "--data", clips, "--protocol", "recon.quick"]
    assert vidgen(*arguments, "-o", tmp_path / "whole")[0] == 0
    assert vidgen(*arguments, "-o", tmp_path / "short", "--max-frames", 3)[0] == 0
    whole, short = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "short"))
    assert whole["protocol"]["id"] == short["protocol"]["id"] == "recon.quick"
    assert whole["protocol"]["sha256"] != short["protocol"]["sha256"]
    code, output, _ = vidgen("eval", "compare", tmp_path / "whole.json", tmp_path / "whole.json")
    assert code == 0 and "psnr.rgb.frame_mean.cap100" in output
    code, _, errors = vidgen("eval", "compare", tmp_path / "whole.json", tmp_path / "short.json")
    assert code == 2 and "protocol clip.max_frames: None, 3" in errors


def test_protocols_are_listed_and_shown_in_full(vidgen):
    code, output, _ = vidgen("eval", "list-protocols")
    assert code == 0
    for name in ("recon.vidtok", "recon.tokenbench", "recon.bsq", "recon.omnitokenizer", "recon.opensoraplan"):
        assert name in output
    code, output, _ = vidgen("eval", "list-protocols", "--name", "recon.tokenbench")
    shown = json.loads(output)
    assert code == 0 and shown["conditions"]["pooling"] == "clip" and "8-bit arrays" in shown["note"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--protocol", "recon.vidtk"], "did you mean recon.vidtok"),
        (["--lpips-weights", "resnet=x.pth"], "alex=FILE, vgg=FILE or squeeze=FILE"),
        (["--lpips-weights", "vgg=nowhere.pth"], "vgg16"),
        (["--resamples", 5], "100 resamples"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_do(vidgen, clips, models, arguments, words):
    code, _, errors = vidgen("eval", "recon", "--tokenizers", models[0], "--data", clips, *arguments)
    assert code == 2 and words in errors and len(errors.splitlines()) == 1


def test_a_damaged_clip_stops_the_command_before_work_or_is_listed(vidgen, clips, models, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "letter.mp4").write_text("dear sir or madam")
    arguments = ["eval", "recon", "--tokenizer", models[0], "--data", folder, clips, "--protocol", "recon.quick"]
    code, output, errors = vidgen(*arguments)
    assert code == 2 and "1 of 3 clips cannot be scored" in errors and not output
    code, output, _ = vidgen(*arguments, "--allow-missing")
    assert code == 0 and "left out: letter.mp4" in output


@pytest.mark.parametrize("option", [("--max-frames", 5), ("--size", 32, 32), ("--protocol", "recon.vidtok")])
def test_the_drawn_world_refuses_conditions_that_it_would_not_follow(vidgen, models, option):
    code, _, errors = vidgen("eval", "recon", "--tokenizers", models[0], "--data", "shapes", *option)
    assert code == 2 and "scored as it is drawn" in errors
