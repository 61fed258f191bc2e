"""Score one model on MAGVIT's ten tasks: `python eval/ten_tasks.py MODEL [--data digits --digits-dir DIR]`.

A masked pipeline is told the task, and classes. Any other one is told the caption, and gets the tasks without a class
that `--tasks` names: `shapes-flow` whatever pixels are known, `shapes-ar` what comes after them.
Clips are of the world's validation split, have one object and move. A task's error is the mean squared error over the
generated pixels, before the known ones are pasted over them, beside that of its baseline and of the tokenizer (the
clip itself, encoded and decoded). Class tasks also say how often the class is read back, from their own videos and
against the next clip's class. Writes eval/results/ten_tasks_DATA.csv (tasks_MODEL.csv of one that is told captions),
.json and .png: from left to right the clip, what was given, what was made, the baseline, of the first clip in which
something large moves from place to place.
"""

import argparse
import inspect
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import vidgen
from vidgen.conditioning import TASKS, known_mask
from vidgen.data.digits import DIGIT_CLASSES, MovingDigits
from vidgen.data.shapes import SHAPE_CLASSES, ShapesWorld
from vidgen.eval.detector import detect
from vidgen.eval.interval import wilson_interval
from vidgen.eval.report import environment_stamp, model_label, write_csv, write_json
from vidgen.eval.task_baselines import BASELINES, DigitJudge, region_error
from vidgen.latents import VideoSize
from vidgen.loading import PRETRAINED
from vidgen.nn.random import seeded

RESULTS = Path(__file__).resolve().parent / "results"
WORLD_SEED = 20_260  # of the clips; training worlds have other ones
SHOWN_FRAMES = 4
GAP = 4
UNKNOWN = 0.75  # light gray


def moving_clips(world: Any) -> Iterator[dict[str, Any]]:
    """The clips of a world in which something moves."""
    return (item for item in (world[index] for index in range(len(world))) if "staying still" not in item["caption"])


def shape_class(video: Tensor) -> str | None:
    """Colour and shape of the largest object, or `None`."""
    objects = detect(video).objects
    return f"{objects[0].colour} {objects[0].shape}" if objects else None


def open_world(data: str, size: VideoSize, digits_dir: Path | None) -> tuple[Any, tuple[str, ...], Callable]:
    """The clips, the names of their classes, and what reads a class name back from a video."""
    frames, height, width = size
    if data == "shapes":
        return ShapesWorld(frames, height, width=width, objects=(1,), seed=WORLD_SEED), SHAPE_CLASSES, shape_class
    if digits_dir is None:
        raise ValueError("--data digits needs the folder with the MNIST files; give it with --digits-dir DIR")
    options = {"num_frames": frames, "height": height, "width": width, "digits": (1,), "seed": WORLD_SEED}
    handwriting = MovingDigits(digits_dir, "train", **options)
    judge = DigitJudge(handwriting.images, torch.from_numpy(handwriting.labels).long())
    return MovingDigits(digits_dir, "test", **options), DIGIT_CLASSES, lambda video: str(judge.read(video))


def is_told_tasks(pipe: Any) -> bool:
    return "task" in inspect.signature(pipe.__call__).parameters


@torch.no_grad()
def generate(
    pipe: Any, task: str, batch: list[dict[str, Any]], mask: Tensor, *, names: tuple[str, ...], seed: int, **call: Any
) -> Tensor:
    """Videos `b 3 t h w` in [-1, 1] of a task, as the tokens decode: nothing is pasted."""
    told: dict[str, Any] = {"prompt": [item["caption"] for item in batch]}
    if is_told_tasks(pipe):
        prompts = [names[item["class_label"]] if TASKS[task].takes_class else "" for item in batch]
        told = {"prompt": prompts, "task": task}
    if mask.any():
        told |= {"video": torch.stack([item["video"] for item in batch]), "mask": mask}
    frames, height, width = batch[0]["video"].shape[1:]
    size = {"num_frames": frames, "height": height, "width": width}
    generators = seeded([seed + index for index in range(len(batch))])
    call = {"num_candidates": 1, **call}  # a model by itself, as those beside it
    latents = pipe(generator=generators, output_type="latent", **told, **size, **call).frames
    return pipe.decode(latents, "pt").transpose(1, 2) * 2 - 1


def score(task: str, clips: list[dict[str, Any]], made: Tensor, coded: Tensor, mask: Tensor) -> dict[str, Any]:
    """Errors of the generated region, of the model, its baseline and the tokenizer."""
    if task not in BASELINES:
        return {}
    baseline, errors = BASELINES[task], []
    for item, video, decoded in zip(clips, made, coded, strict=True):
        truth = item["video"]
        filled = baseline(truth, mask[0])
        errors.append([region_error(candidate, truth, mask[0]) for candidate in (video, filled, decoded)])
    model, simple, ceiling = torch.tensor(errors).T
    wins = wilson_interval(int((model < simple).sum()), len(clips))
    return {
        "error": model.mean().item(),
        "baseline": baseline.__name__,
        "baseline_error": simple.mean().item(),
        "tokenizer_error": ceiling.mean().item(),
        "clips_better": (model < simple).float().mean().item(),
        "clips_better_low": wins.low,
        "clips_better_high": wins.high,
        "better": bool(model.mean() < simple.mean()),
    }


def obedience(
    task: str, clips: list[dict[str, Any]], made: Tensor, names: tuple[str, ...], read: Callable
) -> dict[str, Any]:
    """How often a class task shows its class, and how often the next clip's, which is the baseline."""
    if not TASKS[task].takes_class:
        return {}
    wanted = [names[item["class_label"]] for item in clips]
    seen = [read(video) for video in made]
    right = sum(one == other for one, other in zip(seen, wanted, strict=True))
    by_chance = sum(one == other for one, other in zip(seen, wanted[1:] + wanted[:1], strict=True))
    interval = wilson_interval(right, len(clips))
    shares = {"class_right": right / len(clips), "class_right_low": interval.low, "class_right_high": interval.high}
    shares["other_class_right"] = by_chance / len(clips)
    return shares if task in BASELINES else {**shares, "better": right > by_chance}


def picture_row(task: str, truth: Tensor, made: Tensor, mask: Tensor) -> Tensor:
    """`3 h w` in [-1, 1]: a few frames each of the clip, of what was given, of what was made, of the baseline."""
    given = torch.where(mask[0], truth, torch.full_like(truth, UNKNOWN))
    filled = BASELINES[task](truth, mask[0]) if task in BASELINES else torch.full_like(truth, 1.0)
    shown = torch.linspace(0, truth.shape[1] - 1, SHOWN_FRAMES).round().long()
    gap = torch.ones(3, truth.shape[2], GAP)
    parts = [torch.cat([*video[:, shown].unbind(1), gap], dim=-1) for video in (truth, given, made, filled)]
    return torch.cat(parts, dim=-1)


def as_image(picture: Tensor) -> Image.Image:
    """`3 h w` in [-1, 1] as an image, values beyond cut off."""
    return Image.fromarray(((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or built-in name of a pipeline")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), metavar="TASK", help="all of them by default")
    parser.add_argument("--data", choices=("shapes", "digits"), default="shapes")
    parser.add_argument("--digits-dir", type=Path)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--frames", type=int, default=5, help="frames given by prediction, at either end by the rest")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="of the class tasks, and by captions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=Path, default=RESULTS)
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each task, TASK.png")
    arguments = parser.parse_args()

    pipe: Any = vidgen.load(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    told_tasks = is_told_tasks(pipe)
    tasks = arguments.tasks or [name for name, task in TASKS.items() if told_tasks or not task.takes_class]
    if not told_tasks and any(TASKS[name].takes_class for name in tasks):
        parser.error(
            f"{arguments.model} is told captions; class tasks need a masked pipeline that was trained on classes"
        )
    defaults = pipe.config.defaults
    size = (defaults["num_frames"], defaults["height"], defaults["width"])
    world, names, read = open_world(arguments.data, size, arguments.digits_dir)
    clips = list(islice(moving_clips(world), arguments.clips))
    batches = [clips[start : start + arguments.batch_size] for start in range(0, len(clips), arguments.batch_size)]
    call = {"num_inference_steps": arguments.steps, "temperature": arguments.temperature}
    call = {name: value for name, value in call.items() if name in inspect.signature(pipe.__call__).parameters}
    tokenizer = pipe.video_tokenizer
    with torch.no_grad():
        videos = [torch.stack([item["video"] for item in batch]) for batch in batches]
        coded = torch.cat([tokenizer.decode(tokenizer.encode(video)) for video in videos])

    rows, pictures = [], []
    shown = next((place for place, item in enumerate(clips) if {"large", "moving"} <= set(item["caption"].split())), 0)
    for task in tasks:
        mask = known_mask(task, size, frames=arguments.frames)
        is_guided = TASKS[task].takes_class or not told_tasks
        guided = {**call, "guidance_scale": arguments.guidance_scale if is_guided else 1.0}
        first = arguments.seed + 10_000 * len(rows)
        made = torch.cat(
            [
                generate(pipe, task, batch, mask, names=names, seed=first + arguments.batch_size * number, **guided)
                for number, batch in enumerate(batches)
            ]
        )
        row = {"data": arguments.data, "task": task, "clips": len(clips), "generated": 1 - mask.float().mean().item()}
        row |= score(task, clips, made, coded, mask) | obedience(task, clips, made, names, read)
        rows.append(row)
        pictures.append(picture_row(task, clips[shown]["video"], made[shown], mask))
        print({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}, flush=True)

    model = model_label(arguments.model)
    stem = f"ten_tasks_{arguments.data}" if told_tasks else f"tasks_{model}"
    settings = {
        name: str(value)
        for name, value in vars(arguments).items()
        if name not in ("output_dir", "digits_dir", "pictures")
    }
    settings["model"] = model
    report = {"schema": "vidgen.ten_tasks/1", "settings": settings, "environment": environment_stamp(), "tasks": rows}
    write_json(arguments.output_dir / f"{stem}.json", report)
    write_csv(arguments.output_dir / f"{stem}.csv", rows)
    sheet = torch.cat([torch.nn.functional.pad(row, (0, 0, 0, GAP), value=1.0) for row in pictures], dim=1)
    as_image(sheet).save(arguments.output_dir / f"{stem}.png")
    if arguments.pictures is not None:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
        for task, picture in zip(tasks, pictures, strict=True):
            as_image(picture).save(arguments.pictures / f"{task}.png")
    better = f"better than the baseline on {sum(row['better'] for row in rows)} of {len(rows)} tasks ({arguments.data})"
    is_official = arguments.output_dir == RESULTS and arguments.model in vidgen.builtin_names()
    if is_official and told_tasks and arguments.data == "shapes":
        write_json(PRETRAINED / arguments.model / "scores.json", {"summary": better})
    print(better)


if __name__ == "__main__":
    main()
