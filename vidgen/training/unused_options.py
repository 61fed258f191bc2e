"""Options that a run would take and never look at: refused before it begins, each with what to do.

Here and not in the configs: what was saved with such an option still loads, and goes on with `--resume`.
"""

from dataclasses import fields
from typing import Any

from vidgen.training.config import DataConfig, GeneratorRun, LatentRun, Run, TokenizerRun
from vidgen.training.recipes import RECIPES, Recipe, defaults_of

OF_FOLDERS = ("fps", "clips_per_video", "repeat_last_frame", "allow_missing")
OF_DISCRIMINATORS = (
    *("adversarial_warmup", "adversarial_loss", "adaptive_weight"),
    *("discriminator_axes", "discriminator_kind", "discriminator_width", "discriminator_layers"),
    *("discriminator_start", "discriminator_every", "discriminator_optimiser"),
)


def check_used(run: Run, resolved: Run | None = None) -> list[str]:
    """Refuse options that somebody has chosen and that do nothing; returns lines that the user should see.

    An option is somebody's own when it is neither at its default nor at what the run's recipe says: recipes serve
    folders of videos and built-in worlds alike, and a part of one may be left out.

    Args:
        run: as the user gives it.
        resolved: with the values of its recipe, where it has one.

    Raises:
        ValueError: names the first such option, and what to do.
    """
    if run.resume and (run.output_dir / "run.json").is_file():  # what it began with is no longer asked
        return []
    check_data(run)
    if isinstance(run, LatentRun):
        _check_tokens(run, own_options(run))
    if not isinstance(resolved, TokenizerRun):
        return []
    own = own_options(run)
    _check_parts(resolved, own)
    return _check_steps(resolved, own)


def own_options(run: Run) -> set[str]:
    """Names of the fields that are neither at their defaults nor at the values of the run's recipe."""
    recipe = recipe_of(run)
    return _own(run, {} if recipe is None else recipe.values)


def recipe_of(run: Run) -> Recipe | None:
    """The named recipe of a run; of an unknown name none, which `with_recipe` refuses."""
    return RECIPES.get(run.recipe) if isinstance(run, TokenizerRun) and run.recipe is not None else None


def check_data(run: Run) -> None:
    """ValueError for options of folders where clips are drawn, and for the digits' folder where there are none."""
    recipe = recipe_of(run)
    own, source = _own(run.data, {} if recipe is None else recipe.data), run.data.source
    for name in OF_FOLDERS if run.data.is_world else ():
        if name in own:
            raise ValueError(
                f"{name} is a matter of folders of videos, and the clips of {source!r} are drawn; leave "
                f"{option(name)} out, or give a folder (--data DIR)"
            )
    if "objects" in own and not run.data.is_world:
        raise ValueError(f"objects are of drawn clips, and those of {source!r} are files; leave --objects out")
    if "digits_dir" in own and not (run.data.is_world and "digits" in source):
        raise ValueError(
            f"digits_dir is where the digits of a world are, and the data are {source!r}; leave --digits-dir out, or "
            "set --data digits"
        )


def _check_tokens(run: LatentRun, own: set[str]) -> None:
    if "cache_dir" in own and run.cached_clips == 0:
        raise ValueError("cache_dir does nothing without cached_clips; set --cached-clips above 0 or leave it out")
    if not isinstance(run, GeneratorRun):
        return
    if "task_frames" in own and not run.tasks:
        raise ValueError("task_frames does nothing without tasks; name some (--tasks all) or leave --task-frames out")
    if "known_frames" in own and run.known_frames > 0 and run.tasks:
        raise ValueError(
            f"known_frames {run.known_frames} does nothing beside tasks, which take its place; leave one of them out"
        )
    if "control" in own and run.control_layers == 0:
        raise ValueError(
            f"control {run.control!r} does nothing without a branch that sees it; set --control-layers above 0 or "
            "leave --control out"
        )


def _check_parts(run: TokenizerRun, own: set[str]) -> None:
    if "pixel_weight" in own and run.pixel_loss == "own":
        raise ValueError(
            f"pixel_weight {run.pixel_weight} is a matter of pixel_loss, and the pixel errors are the tokenizer's own; "
            "choose one (--pixel-loss l1, l2 or charbonnier) or leave --pixel-weight out"
        )
    if run.adversarial_weight == 0:
        for name in OF_DISCRIMINATORS:
            if name in own:
                raise ValueError(
                    f"{name} is a matter of the discriminator, and there is none; set --adversarial-weight above 0 or "
                    f"leave {option(name)} out"
                )
    if run.recipe_without and run.recipe is None:
        raise ValueError("recipe_without leaves a part of a recipe out, and there is none; set --recipe NAME")
    for name, needed in (
        ("perceptual_frames", "perceptual_weight"),
        ("perceptual_network", "perceptual_weight"),
        ("distillation_channels", "distillation_weight"),
    ):
        if name in own and getattr(run, needed) == 0:
            raise ValueError(f"{name} does nothing without {needed}; set {option(needed)} above 0 or leave it out")


def _check_steps(run: TokenizerRun, own: set[str]) -> list[str]:
    lines = []
    for name, unused, what in (
        (
            "discriminator_start",
            run.adversarial_weight > 0 and run.discriminator_start >= run.steps,
            "no discriminator",
        ),
        ("images_until", run.images_until > run.steps, "single frames alone"),
        ("sides_from", run.sides_from >= run.steps, "the smallest of the sides alone"),
    ):
        if not unused:
            continue
        line = (
            f"{name} is {getattr(run, name)}, so all of the {run.steps} steps have {what}; raise --steps or lower "
            f"{option(name)}"
        )
        if own & {name, "steps"} or run.recipe is None:
            raise ValueError(line)
        lines.append(f"warning: recipe {run.recipe}: {line}")
    return lines


def _own(config: Run | DataConfig, recipe: dict[str, Any]) -> set[str]:
    defaults = defaults_of(type(config))
    return {
        item.name
        for item in fields(config)
        if item.name in defaults
        and getattr(config, item.name) not in (defaults[item.name], recipe.get(item.name, defaults[item.name]))
    }


def option(name: str) -> str:
    """A field as the command line calls it."""
    return f"--{name.replace('_', '-')}"
