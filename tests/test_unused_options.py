"""Are options that would do nothing refused before a run begins, and does all that is saved or documented still run?"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tyro

import vidgen
from vidgen.bottlenecks import build_bottleneck
from vidgen.training import (
    DataConfig,
    GeneratorRun,
    MatcherRun,
    OptimiserConfig,
    TokenizerRun,
    train_generator,
    train_matcher,
    train_tokenizer,
)
from vidgen.training.config import Run
from vidgen.training.models import run_file
from vidgen.training.recipes import RECIPES, with_recipe
from vidgen.training.unused_options import check_used

ROOT = Path(__file__).resolve().parents[1]
KINDS: dict[str, type[Run]] = {
    "tokenizers/train.py": TokenizerRun,
    "pipelines/train.py": GeneratorRun,
    "pipelines/train_matcher.py": MatcherRun,
    "vidgen train-tokenizer": TokenizerRun,
    "vidgen train-generator": GeneratorRun,
    "vidgen train-matcher": MatcherRun,
}


def tokenizer_run(folder: Path, **changes: Any) -> TokenizerRun:
    return TokenizerRun(preset="shapes-fsq", output_dir=folder, tiny=True, **changes)


def checked(run: Run) -> list[str]:
    return check_used(run, with_recipe(run) if isinstance(run, TokenizerRun) else None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pixel_weight": 0.0}, "pixel_weight 0.0 is a matter of pixel_loss.* leave --pixel-weight out"),
        ({"adversarial_warmup": 5}, "adversarial_warmup .*--adversarial-weight above 0 or leave --adversarial-warmup"),
        ({"adversarial_loss": "non-saturating"}, "adversarial_loss .* set --adversarial-weight above 0"),
        ({"discriminator_axes": "both"}, "discriminator_axes .* set --adversarial-weight above 0"),
        ({"adaptive_weight": False}, "adaptive_weight .* set --adversarial-weight above 0"),
        ({"discriminator_start": 5}, "discriminator_start .* set --adversarial-weight above 0"),
        ({"discriminator_kind": "transformer"}, "discriminator_kind .* set --adversarial-weight above 0"),
        ({"discriminator_width": 3}, "discriminator_width .* set --adversarial-weight above 0"),
        ({"discriminator_optimiser": OptimiserConfig(learning_rate=1e-3)}, "discriminator_optimiser .* above 0"),
        ({"recipe_without": ("adversarial_weight",)}, "recipe_without .* set --recipe NAME"),
        ({"perceptual_network": "lpips-vgg"}, "perceptual_network does nothing without perceptual_weight"),
        ({"perceptual_frames": 2}, "perceptual_frames does nothing without perceptual_weight; set --perceptual-weight"),
        ({"distillation_channels": 2}, "distillation_channels does nothing without .* set --distillation-weight"),
        ({"adversarial_weight": 0.1, "steps": 2000}, "discriminator_start is 2000, so all of the 2000 steps have no"),
        ({"images_until": 11, "steps": 10}, "images_until is 11, .*raise --steps or lower --images-until"),
        ({"sides": (32, 64), "sides_from": 10, "steps": 10}, "sides_from is 10, .* the smallest of the sides alone"),
        ({"recipe": "larp", "steps": 5, "discriminator_start": 5, "recipe_without": ("perceptual_weight",)}, "raise"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused_before_anything_is_written(
    options: dict[str, Any], message: str, tmp_path: Path
):
    run = tokenizer_run(tmp_path / "run", **options)
    with pytest.raises(ValueError, match=message):
        train_tokenizer(run)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"pixel_loss": "l1", "pixel_weight": 0.0, "perceptual_frames": 2, "perceptual_weight": 1.0},
        {"adversarial_weight": 0.1, "adversarial_warmup": 5, "adversarial_loss": "non-saturating", "steps": 2001},
        {"distillation_weight": 1.0, "distillation_channels": 2},
        {"images_until": 10, "steps": 10},
        {"sides": (32, 64), "sides_from": 9, "steps": 10},
    ],
)
def test_the_same_options_are_taken_where_they_do_something(options: dict[str, Any], tmp_path: Path):
    assert (
        checked(
            tokenizer_run(
                tmp_path, **options, perceptual_weights=None if "perceptual_weight" not in options else tmp_path
            )
        )
        == []
    )


@pytest.mark.parametrize(
    ("options", "message", "remedy"),
    [
        ({"cache_dir": Path("cache")}, "cache_dir does nothing without .* --cached-clips above 0", {"cached_clips": 8}),
        ({"task_frames": 5}, "task_frames does nothing without .*--tasks all", {"tasks": ("all",)}),
        ({"known_frames": 0.2, "tasks": ("all",)}, "known_frames 0.2 does nothing beside tasks", {"tasks": ()}),
        ({"control": "half-size"}, "control 'half-size' does nothing .* --control-layers above", {"control_layers": 1}),
    ],
)
def test_an_option_of_a_generator_that_would_do_nothing_is_refused(
    options: dict[str, Any], message: str, remedy: dict[str, Any], tmp_path: Path
):
    run = GeneratorRun(preset="shapes-masked", output_dir=tmp_path / "run", tiny=True, **options)
    with pytest.raises(ValueError, match=message):
        train_generator(run)
    assert not (tmp_path / "run").exists()
    assert checked(replace(run, **remedy)) == []


@pytest.mark.parametrize("source", ["shapes", "digits"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("fps", 3.0), ("fps", None), ("clips_per_video", 2), ("repeat_last_frame", True), ("allow_missing", True)],
)
def test_options_of_folders_are_refused_for_drawn_clips(source: str, name: str, value: Any, tmp_path: Path):
    data: Any = {"source": source, name: value}
    option = f"--{name.replace('_', '-')}"
    with pytest.raises(ValueError, match=f"{name} is a matter of folders of videos, .* leave {option} out"):
        checked(tokenizer_run(tmp_path, data=DataConfig(**data)))
    assert checked(tokenizer_run(tmp_path, data=DataConfig(**{**data, "source": "my_videos"}))) == []


def test_numbers_of_objects_are_refused_for_files(tmp_path: Path):
    data = DataConfig(source="my_videos", objects=(1,))
    with pytest.raises(ValueError, match="objects are of drawn clips, and those of 'my_videos' are files"):
        checked(tokenizer_run(tmp_path, data=data))
    assert checked(tokenizer_run(tmp_path, data=replace(data, source="shapes"))) == []
    assert checked(tokenizer_run(tmp_path, data=DataConfig(source="my_videos", data_seed=3))) == []  # other places


def test_every_kind_of_run_refuses_what_its_clips_do_not_ask_for(tmp_path: Path):
    digits, rate = DataConfig(digits_dir=tmp_path), DataConfig(fps=3.0)
    for run, train in (
        (tokenizer_run(tmp_path / "run"), train_tokenizer),
        (GeneratorRun(preset="shapes-masked", output_dir=tmp_path / "run"), train_generator),
        (MatcherRun(preset="shapes-matcher", output_dir=tmp_path / "run"), train_matcher),
    ):
        with pytest.raises(ValueError, match="leave --digits-dir out"):
            train(replace(run, data=digits))  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="leave --fps out"):
            train(replace(run, data=rate))  # pyright: ignore[reportArgumentType]
    assert checked(tokenizer_run(tmp_path, data=replace(digits, source="shapes+digits"))) == []


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_serves_worlds_as_folders_and_its_run_file_repeats_it(name: str, tmp_path: Path):
    """Its rate of frames says nothing there, and a user who names the recipe has not chosen it."""
    data = DataConfig(height=320, width=320)  # large enough for all sides
    run = tokenizer_run(tmp_path, recipe=name, recipe_without=("perceptual_weight",), data=data)
    notes = checked(run)
    resolved = with_recipe(run)
    resolved.save(tmp_path / "run.json")
    assert checked(TokenizerRun.load(tmp_path / "run.json")) == notes
    late = resolved.adversarial_weight > 0 and resolved.discriminator_start >= resolved.steps
    assert len(notes) == late
    assert all(f"recipe {name}: discriminator_start is" in note for note in notes)
    with pytest.raises(ValueError, match="fps is a matter of folders"):
        checked(replace(run, data=replace(data, fps=12.0)))
    if "adversarial_weight" in RECIPES[name].values:
        without = ("perceptual_weight", "lecam_weight", "feature_weight", "adversarial_weight")
        without = tuple(part for part in without if part in RECIPES[name].values)
        assert checked(replace(run, recipe_without=without)) == []


def test_what_was_saved_with_an_option_that_does_nothing_loads_and_goes_on(tmp_path: Path):
    run = tokenizer_run(tmp_path, discriminator_axes="both", data=DataConfig(fps=3.0))
    run.save(tmp_path / "run.json")
    assert TokenizerRun.load(tmp_path / "run.json") == run
    assert checked(replace(run, resume=True)) == []
    with pytest.raises(ValueError, match="leave --fps out"):
        checked(replace(run, resume=True, output_dir=tmp_path / "fresh"))


@pytest.mark.parametrize("name", sorted(vidgen.builtin_names()))
def test_the_runs_of_built_in_models_load_and_ask_for_nothing_in_vain(name: str):
    described = run_file(name)
    if described is None:
        pytest.skip(f"{name} was not made by a training of ours")
    text = described.read_text()
    kind = TokenizerRun if '"pixel_loss"' in text else MatcherRun if '"near_misses"' in text else GeneratorRun
    assert checked(replace(kind.load(described), output_dir=Path("elsewhere"))) == []


def documented_commands() -> Iterator[tuple[type[Run], list[str]]]:
    """The trainings that the pages show, with their shell variables filled in."""
    for page in ("README.md", "tokenizers/README.md", "pipelines/README.md", "vidgen/pretrained/TRAINING.md"):
        variables: dict[str, str] = {}
        for line in (ROOT / page).read_text().replace("\\\n", " ").splitlines():
            line = line.strip()
            assigned = re.fullmatch(r'([A-Z])="(.*)"', line)
            if assigned:
                variables[assigned[1]] = filled(assigned[2], variables)
            command = next((name for name in KINDS if re.match(rf"(python )?{name} ", line)), None)
            if command is not None:
                words = shlex.split(filled(line.partition(command)[2], variables), comments=True)
                yield KINDS[command], words


def filled(text: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$([A-Z])\b", lambda match: variables[match[1]], text)


def test_the_trainings_that_the_pages_show_are_taken(tmp_path: Path):
    commands = list(documented_commands())
    assert len(commands) > 30
    for kind, words in commands:
        run = tyro.cli(kind, args=words)
        assert checked(replace(run, output_dir=tmp_path)) == [], words


def test_a_boost_of_an_entropy_term_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"entropy_boost 3.0 .* set entropy above 0"):
        build_bottleneck("fsq", {"entropy_boost": 3.0})
    build_bottleneck("fsq", {"entropy_boost": 3.0, "entropy": 0.1})
