"""Does the comparison of tokenizers resume, go on after a failure, call a bad run bad, and compare like with like?"""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from recipe_module import recipe_module

from vidgen.bottlenecks import BOTTLENECKS
from vidgen.data.pieces import Cutting
from vidgen.tokenizers import TOKENIZERS, GuidedDecoderTokenizer
from vidgen.tokenizers.comparison import BESIDE_WAN, COMPARED, COMPARED_BOTTLENECKS
from vidgen.tokenizers.diffusers_autoencoder import DiffusersAutoencoderTokenizer

CLIP = (17, 64, 64)


@pytest.fixture(scope="module")
def recipe() -> Any:
    return recipe_module("tokenizers/compare.py")


@pytest.fixture
def run(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls the recipe with tiny settings; returns its exit status."""

    def called(*words: str) -> int:
        command = ["compare.py", "--tiny", "--output-dir", str(tmp_path / "run"), "--results", str(tmp_path / "t.csv")]
        monkeypatch.setattr(sys, "argv", [*command, *words])
        return recipe.main()

    return called


def table(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "t.json").read_text())["rows"]


def test_every_bottleneck_and_every_trunk_takes_part():
    assert {kind for kind, _ in COMPARED_BOTTLENECKS.values()} == set(BOTTLENECKS)
    not_ours, as_the_wrapped_one = DiffusersAutoencoderTokenizer, GuidedDecoderTokenizer
    assert {preset.model for preset in COMPARED.values()} == set(TOKENIZERS) - {not_ours, as_the_wrapped_one}


def test_compared_tokenizers_have_one_size_and_mostly_one_rate():
    with torch.device("meta"):
        built = {name: preset.build() for name, preset in COMPARED.items()}
    for name, tokenizer in built.items():
        millions = sum(weight.numel() for weight in tokenizer.parameters()) / 1e6
        scaled = name.startswith("tubelet-vit")  # small and large on purpose
        assert (0.5 if scaled else 1.5) < millions < (4.0 if scaled else 2.7), f"{name}: {millions:.2f} million"
        if name.startswith("conv") or "-vit" in name or name.startswith("holistic"):
            assert tokenizer.spec.num_tokens(CLIP) == 320, name
    assert len({built[f"planes{size}/fsq"].spec.num_tokens(CLIP) for size in ("-coarse", "", "-fine")}) == 3


def test_a_trunk_like_wans_is_at_least_as_large_and_has_the_same_tokens():
    with torch.device("meta"):
        built = {name: preset.build() for name, preset in BESIDE_WAN.items()}
    for bottleneck in ("kl", "fsq"):
        ours, theirs = built[f"base/{bottleneck}"], built[f"wan-like/{bottleneck}"]
        sizes = [sum(weight.numel() for weight in model.parameters()) for model in (ours, theirs)]
        assert sizes[0] < sizes[1] < 1.25 * sizes[0]
        assert ours.spec.parts == theirs.spec.parts


def test_base_presets_and_a_trunk_like_wans_are_compared_after_equal_steps_and_equal_time(run: Any, tmp_path: Path):
    assert run("--contest", "beside-wan", "--worlds", "shapes") == 0
    rows = {row["name"]: row for row in table(tmp_path)}
    assert set(rows) == set(BESIDE_WAN)
    assert not [row for row in rows.values() if row["status"] in ("failed", "diverged")], rows
    assert rows["base-longer/kl"]["steps"] == 4 * rows["base/kl"]["steps"] == 4 * rows["wan-like/kl"]["steps"]


def test_one_call_trains_scores_and_draws(run: Any, shared: Path, tmp_path: Path):
    weights = str(shared / "weights" / "squeezenet1_0_imagenet.pt")
    rows = ("conv/fsq", "conv/kl", "planes/fsq", "holistic-tail-drop/fsq")
    assert run("--worlds", "shapes", "--squeezenet-weights", weights, "--only", *rows) == 0
    found = {row["name"]: row for row in table(tmp_path)}
    assert set(found) == set(rows)
    for row in found.values():
        assert row["status"] in ("trained", "collapsed"), row
        assert row["psnr"] > 3 and 0 <= row["ssim"] <= 1 and row["squeezenet_features"] > 0
        assert row["gflop"] > 0 and row["tokens"] > 0 and row["encode_frames_per_second"] > 0 and row["device"]
    assert found["conv/fsq"]["bits_per_pixel"] > 0 and found["conv/fsq"]["perplexity"] >= 1
    assert found["conv/kl"]["bits_per_pixel"] is None and found["conv/kl"]["values_ratio"] > 1
    assert [length for length, _ in found["holistic-tail-drop/fsq"]["prefix_psnr"]] == [1, 2, 4, 8, 16]
    for drawing in ("shapes", "prefix", "planes"):
        assert (tmp_path / f"t_{drawing}.svg").read_text().startswith("<svg")
    assert not list((tmp_path / "run").rglob("checkpoints"))


def test_rows_trained_side_by_side_have_no_speeds(
    recipe: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recipe, "results", lambda rows, settings: (recipe.train_row(row, settings) for row in rows))
    assert run("--worlds", "shapes", "--only", "conv/fsq", "--jobs", "2") == 0
    (row,) = table(tmp_path)
    assert row["psnr"] > 3 and row["encode_frames_per_second"] is row["decode_frames_per_second"] is None


def test_the_table_says_how_its_bits_are_counted():
    compare = recipe_module("tokenizers/compare.py")
    assert compare.CONVENTIONS["bits_per_pixel"].startswith("log2 of the codebook size of each id")


def test_finished_rows_are_not_trained_again_and_the_table_keeps_them(run: Any, tmp_path: Path, capsys: Any):
    assert run("--worlds", "shapes", "--only", "conv/vq") == 0
    before = table(tmp_path)
    assert run("--worlds", "shapes", "--only", "conv/vq", "conv/bsq") == 0
    assert "1 rows to train" in capsys.readouterr().out
    after = table(tmp_path)
    assert before[0] in after and {row["name"] for row in after} == {"conv/vq", "conv/bsq"}
    assert run("--worlds", "shapes", "--seeds", "5", "--only", "conv/vq") == 0
    assert [(row["name"], row["seed"]) for row in table(tmp_path)] == [("conv/vq", 0), ("conv/bsq", 0), ("conv/vq", 5)]


def test_the_table_alone_is_enough_to_go_on(run: Any, tmp_path: Path, capsys: Any):
    assert run("--worlds", "shapes", "--only", "conv/vq") == 0
    before = table(tmp_path)
    shutil.rmtree(tmp_path / "run")
    assert run("--worlds", "shapes", "--only", "conv/vq", "conv/bsq") == 0
    assert "1 rows to train" in capsys.readouterr().out
    assert table(tmp_path)[0] == before[0] and len(table(tmp_path)) == 2
    shutil.rmtree(tmp_path / "run")
    assert run("--worlds", "shapes", "--only", "conv/vq", "--batch-size", "2", "--learning-rate", "1e-4") == 2
    assert "another learning_rate" in capsys.readouterr().err and len(table(tmp_path)) == 2


def test_a_stopped_row_goes_on_from_its_checkpoint(
    recipe: Any, run: Any, monkeypatch: Any, tmp_path: Path, capsys: Any
):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(recipe, "scored", stop)
        assert run("--worlds", "shapes", "--only", "conv/ae") == 130
    assert list((tmp_path / "run").rglob("checkpoints"))
    assert run("--worlds", "shapes", "--only", "conv/ae") == 0
    assert table(tmp_path)[0]["status"] == "trained"
    assert "step 1/2" not in capsys.readouterr().out


def test_a_row_that_fails_is_recorded_and_the_next_one_begins(recipe: Any, run: Any, monkeypatch: Any, tmp_path: Path):
    broken = replace(COMPARED["conv/ae"], small={"widths": (16,)})
    with monkeypatch.context() as patched:
        patched.setitem(recipe.CONTESTS["parts"], "conv/ae", broken)
        assert run("--worlds", "shapes", "--only", "conv/ae", "conv/kl") == 0
    assert [row["status"] for row in table(tmp_path)] == ["failed", "trained"]
    assert "widths" in table(tmp_path)[0]["note"]
    assert run("--worlds", "shapes", "--only", "conv/ae") == 0
    assert [row["status"] for row in table(tmp_path)] == ["failed", "trained"]
    assert run("--worlds", "shapes", "--only", "conv/ae", "--retry") == 0
    assert [row["status"] for row in table(tmp_path)] == ["trained", "trained"]


def test_a_loss_that_is_no_number_is_a_result(run: Any, tmp_path: Path):
    assert run("--worlds", "shapes", "--only", "conv/ae", "--learning-rate", "1e25") == 0
    (row,) = table(tmp_path)
    assert row["status"] == "diverged" and "not a finite number" in row["note"] and "psnr" not in row


def test_rows_trained_otherwise_are_not_mixed_into_one_table(run: Any, capsys: Any):
    assert run("--worlds", "shapes", "--only", "conv/ae") == 0
    assert run("--worlds", "shapes", "--only", "conv/kl", "--learning-rate", "1e-4") == 2
    assert "another learning_rate" in capsys.readouterr().err


def test_an_unknown_row_and_missing_clips_are_refused(run: Any, capsys: Any):
    for words, message in (
        (("--worlds", "shapes", "--only", "conv/fsk"), "no row 'conv/fsk'"),
        (("--worlds", "real"), "give --clips"),
    ):
        with pytest.raises(SystemExit):
            run(*words)
        assert message in " ".join(capsys.readouterr().err.split())


def test_few_codes_in_use_are_called_a_collapse(recipe: Any):
    tokenizer = COMPARED["conv/vq"].tiny().build()
    total = {"codebook.grid.0.perplexity": 3.0, "codebook.grid.0.usage": 0.01, "tokens": 20_000}
    assert "collapsed" in recipe.collapse(tokenizer, total, Cutting())
    assert recipe.collapse(tokenizer, {**total, "codebook.grid.0.perplexity": 700.0}, Cutting()) is None


def test_a_part_of_few_tokens_is_not_called_collapsed_for_using_as_few_codes(recipe: Any):
    """The coarsest scale has 5 of the 425 tokens of a clip, and cannot use a thousand codes in 48 clips."""
    tokenizer = COMPARED["scales/fsq"].build()
    total: dict[str, float] = {"tokens": 48 * tokenizer.spec.num_tokens(CLIP)}
    for number, perplexity in enumerate((15.0, 60.0, 90.0, 200.0)):
        total |= {
            f"codebook.scale_{number}.0.perplexity": perplexity,
            f"codebook.scale_{number}.0.usage": 2 * perplexity / 1000,
        }
    assert recipe.collapse(tokenizer, total, Cutting()) is None
    assert "collapsed" in recipe.collapse(tokenizer, {**total, "codebook.scale_3.0.perplexity": 9.0}, Cutting())


@pytest.mark.slow
def test_all_rows_run_on_real_clips(run: Any, shared: Path, tmp_path: Path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("asl_eat.mkv", "learning_area_rabbit320.mp4", "media_sample_sef_slow_motion.mp4"):
        (videos / name).symlink_to(shared / "clips" / name)
    assert run("--worlds", "real", "--clips", str(videos)) == 0
    rows = table(tmp_path)
    assert {row["name"] for row in rows} == set(COMPARED)
    assert not [row for row in rows if row["status"] in ("failed", "diverged")]


@pytest.mark.slow
def test_rows_side_by_side_end_when_their_parent_is_killed(tmp_path: Path):
    script = Path(__file__).parents[1] / "tokenizers" / "compare.py"
    command = [
        sys.executable,
        str(script),
        "--worlds",
        "shapes",
        "--only",
        "conv/fsq",
        "--jobs",
        "2",
        "--device",
        "cpu",
    ]
    folders = ["--output-dir", str(tmp_path / "run"), "--results", str(tmp_path / "t.csv")]
    with subprocess.Popen([*command, *folders, "--device", "cpu", "--steps", "100000"]) as process:
        parent, deadline = psutil.Process(process.pid), time.monotonic() + 120
        while not (begun := list((tmp_path / "run").rglob("run.json"))) and time.monotonic() < deadline:
            time.sleep(0.5)
        children = parent.children(recursive=True)
        process.kill()
    assert begun and len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
