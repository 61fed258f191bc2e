"""How often a pipeline obeys a prompt of the moving-digits world: text or class, one digit or two, read back, counted.

There are 50 captions with one digit, so a model has seen them all; what is new in a test is the noise.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from vidgen.data.digits import DIGIT_MOTIONS, DigitScene
from vidgen.eval.digit_reader import DigitJudgement, compare_digits, read_digits
from vidgen.eval.interval import share
from vidgen.eval.obedience import noise, plain_settings, videos_of
from vidgen.eval.report import environment_stamp

ATTRIBUTES = ("count", "digit", "motion", "all_right")


def draw_digit_scenes(count: int, *, seed: int, digits: int = 1) -> list[DigitScene]:
    """``count`` scenes with that many digits, each digit and motion drawn by itself."""
    generator = torch.Generator().manual_seed(seed)
    motions = list(DIGIT_MOTIONS)

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    return [DigitScene(tuple((draw(10), motions[draw(len(motions))]) for _ in range(digits))) for _ in range(count)]


@torch.no_grad()
def evaluate_digits(
    pipeline: Any,
    *,
    num_prompts: int,
    seed: int,
    digits: int = 1,
    by_class: bool = False,
    batch_size: int = 8,
    name: str = "",
    read: Callable[[Tensor], DigitScene] = read_digits,
    **call_kwargs: Any,
) -> dict[str, Any]:
    """Generate one video per prompt and read each; JSON-able result.

    ``obeyed``: number, digits and, unless ``by_class``, motions are right. ``wrong_prompt`` judges the same videos
    against the next prompt. ``by_digit`` is the share of prompts with that digit on which the digits are right.

    Args:
        by_class: the pipeline is told classes: it hears the digits alone, and the motions are its own.
        read: finds the digits of a video; the reader that comes with vidgen.
    """
    scenes = draw_digit_scenes(num_prompts, seed=seed, digits=digits)
    pipeline.set_progress_bar_config(disable=True)
    seen: list[DigitScene] = []
    for first in range(0, num_prompts, batch_size):
        batch = scenes[first : first + batch_size]
        output = pipeline(
            prompt=[scene.class_name if by_class else scene.caption for scene in batch],
            generator=[noise(seed, first + index) for index in range(len(batch))],
            output_type="pt",
            **call_kwargs,
        )
        seen += [read(video) for video in videos_of(output.frames)]
    judged = [compare_digits(one, scene) for one, scene in zip(seen, scenes, strict=True)]
    others = [compare_digits(one, scene) for one, scene in zip(seen, [*scenes[1:], scenes[0]], strict=True)]

    def obeyed(one: DigitJudgement) -> bool:
        return one.count and one.digit and (by_class or one.motion)

    by_digit: dict[str, list[bool]] = {}
    for one, scene in zip(judged, scenes, strict=True):
        for digit in {digit for digit, _ in scene.objects}:
            by_digit.setdefault(str(digit), []).append(one.count and one.digit)
    return {
        "schema": "vidgen.digit_obedience/1",
        "model": name,
        "seed": seed,
        "digits": digits,
        "told": "classes" if by_class else "captions",
        "num_prompts": num_prompts,
        "obeyed": share([obeyed(one) for one in judged]),
        "attributes": {key: share([getattr(one, key) for one in judged]) for key in ATTRIBUTES},
        "wrong_prompt": share([obeyed(one) for one in others]),
        "by_digit": {digit: share(right) for digit, right in sorted(by_digit.items())},
        "settings": plain_settings(call_kwargs),
        "environment": environment_stamp(pipeline.device),
        "prompts": [
            {"prompt": scene.caption, "seen": found.caption, "right": asdict(one)}
            for scene, found, one in zip(scenes, seen, judged, strict=True)
        ],
    }
