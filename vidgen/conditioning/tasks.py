"""The ten tasks of MAGVIT (arXiv 2212.05199, section 4.4): which pixels of a clip each of them gives away."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidgen.latents import VideoSize
from vidgen.nn.random import Generators, rand

NO_TASK = -1  # in `Condition.task`


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        about: one line for people.
        known: (size, given frames) -> bool `t h w`, True where a pixel is given.
        takes_class: the class is part of the task.
    """

    about: str
    known: Callable[[VideoSize, int], Tensor]
    takes_class: bool = False


def nothing(size: VideoSize, frames: int) -> Tensor:
    return torch.zeros(size, dtype=torch.bool)


def first_frames(size: VideoSize, frames: int) -> Tensor:
    return (torch.arange(size[0]) < frames)[:, None, None].expand(size)


def first_and_last_frames(size: VideoSize, frames: int) -> Tensor:
    return first_frames(size, frames) | first_frames(size, frames).flip(0)


def between(extent: int, start: Tensor | int, end: Tensor | int) -> Tensor:
    """Bool `extent` (or `… extent`): the pixels from `start` to before `end`."""
    places = torch.arange(extent)
    return (start <= places) & (places < end)


def central_half(extent: int) -> Tensor:
    """The middle half of an axis, from a quarter to three quarters, rounded down."""
    return between(extent, extent // 4, extent * 3 // 4)


def gliding_half(size: VideoSize) -> Tensor:
    """`t w`: half of the columns, which glide from the left border to the right one."""
    start = torch.linspace(0, size[2] // 2, size[0]).round().long()[:, None]
    return between(size[2], start, start + size[2] // 2)


def centre(size: VideoSize) -> Tensor:
    return (central_half(size[1])[:, None] & central_half(size[2])).expand(size)


TASKS: dict[str, Task] = {
    "frame_prediction": Task("go on after the first frames", first_frames),
    "frame_interpolation": Task("fill in between the first and the last frames", first_and_last_frames),
    "central_outpainting": Task("surround the middle rectangle", lambda size, frames: centre(size)),
    "vertical_outpainting": Task(
        "widen the middle columns", lambda size, frames: central_half(size[2])[None, None].expand(size)
    ),
    "horizontal_outpainting": Task(
        "heighten the middle rows", lambda size, frames: central_half(size[1])[None, :, None].expand(size)
    ),
    "dynamic_outpainting": Task(
        "widen columns that glide from left to right",
        lambda size, frames: gliding_half(size)[:, None].expand(size),
    ),
    "central_inpainting": Task("fill the middle rectangle", lambda size, frames: ~centre(size)),
    "dynamic_inpainting": Task(
        "fill a rectangle that glides from left to right",
        lambda size, frames: ~(gliding_half(size)[:, None] & central_half(size[1])[:, None]),
    ),
    "class_generation": Task("show the class", nothing, takes_class=True),
    "class_prediction": Task("show the class after the first frames", first_frames, takes_class=True),
}
TASK_NAMES = tuple(TASKS)


def known_mask(name: str, size: VideoSize, *, frames: int = 1) -> Tensor:
    """Which pixels of a clip of `size` a task gives: bool `1 1 t h w`.

    Args:
        frames: how many frames prediction gives at the beginning and interpolation at either end.

    Raises:
        ValueError: there is no such task, or nothing would be left to generate.
    """
    known = TASKS[check_task(name)].known(size, frames)
    if frames < 1 or known.all():
        raise ValueError(f"{name} of {size[0]} frames cannot be given {frames} frames; give at least 1 and leave some")
    return known[None, None]


def check_task(name: str) -> str:
    """The name itself; ValueError when there is no such task."""
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; there are: {', '.join(TASKS)}")
    return name


def chosen_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """The tasks that a run names; `all` stands for all ten."""
    return TASK_NAMES if tuple(names) == ("all",) else tuple(check_task(name) for name in names)


def draw_tasks(names: Sequence[str], generators: Generators) -> list[str]:
    """One of the tasks for each sample, each as likely."""
    draws = rand((len(generators),), generators)
    return [names[int(draw * len(names))] for draw in draws.tolist()]


def task_numbers(names: Sequence[str | None]) -> Tensor:
    """`b` long: the tasks' numbers for `Condition.task`."""
    return torch.tensor([NO_TASK if name is None else TASK_NAMES.index(name) for name in names])
