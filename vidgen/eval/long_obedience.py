"""Do videos four times as long as the training clips keep obeying? Judged segment by segment.

What moves or grows would leave the frame, so the prompt is a timeline that turns it round after every segment.
"""

from typing import Any

import torch

from vidgen.data.shapes import Scene
from vidgen.data.shapes_timelines import turned_round
from vidgen.eval.detector import Judgement, compare, detect
from vidgen.eval.interval import share
from vidgen.eval.obedience import draw_prompts, noise, plain_settings, videos_of
from vidgen.eval.report import environment_stamp

SEGMENT = 16  # steps in time: segments of 17 frames, as in training, share their first and last frames


def there_and_back(scene: Scene, segments: int) -> list[Scene]:
    """The scene of each segment: every second one has the opposite motions."""
    back = turned_round(scene)
    return [back if number % 2 else scene for number in range(segments)]


def long_prompt(scenes: list[Scene]) -> str | list[tuple[int, str]]:
    """The timeline of the segments, or the one prompt that holds for all."""
    captions = [scene.caption for scene in scenes]
    if len(set(captions)) == 1:
        return captions[0]
    return [(0, captions[0]), *((number * SEGMENT + 1, text) for number, text in enumerate(captions) if number)]


@torch.no_grad()
def evaluate_long(
    pipeline: Any,
    *,
    num_prompts: int,
    seed: int,
    segments: int = 4,
    objects: int = 1,
    overlap_frames: int = 1,
    name: str = "",
    **call_kwargs: Any,
) -> dict[str, Any]:
    """One video of ``16 · segments + 1`` frames per prompt by ``pipeline.extend``; JSON-able result.

    ``segments``: shares all right, and of the right number of objects, colour, shape and background ("kept"), in each
    segment. ``all_right`` and ``kept``: in all of them.

    Args:
        overlap_frames: frames that a window is told of the one before; with 1, all that it makes has one prompt.
    """
    scenes = draw_prompts("test", num_prompts, seed=seed, objects=objects)
    pipeline.set_progress_bar_config(disable=True)
    judged: list[list[Judgement]] = []
    for index, scene in enumerate(scenes):
        parts = there_and_back(scene, segments)
        output = pipeline.extend(
            long_prompt(parts),
            num_frames=SEGMENT * segments + 1,
            overlap_frames=overlap_frames,
            generator=noise(seed, index),
            output_type="pt",
            **call_kwargs,
        )
        video = videos_of(output.frames)[0]
        spans = [video[:, number * SEGMENT : (number + 1) * SEGMENT + 1] for number in range(segments)]
        judged.append([compare(detect(span), part) for span, part in zip(spans, parts, strict=True)])
    rows = [
        {
            "all_right": share([video[number].all_right for video in judged]),
            "kept": share([is_kept(video[number]) for video in judged]),
        }
        for number in range(segments)
    ]
    return {
        "schema": "vidgen.long_obedience/1",
        "model": name,
        "seed": seed,
        "objects": objects,
        "num_prompts": num_prompts,
        "num_frames": SEGMENT * segments + 1,
        "all_right": share([all(one.all_right for one in video) for video in judged]),
        "kept": share([all(is_kept(one) for one in video) for video in judged]),
        "segments": rows,
        "settings": {"overlap_frames": overlap_frames, **plain_settings(call_kwargs)},
        "environment": environment_stamp(pipeline.device),
        "prompts": [
            {"prompt": scene.caption, "all_right": [one.all_right for one in video]}
            for scene, video in zip(scenes, judged, strict=True)
        ],
    }


def is_kept(judged: Judgement) -> bool:
    """The objects and the place are the prompt's, whatever they do."""
    return judged.count and judged.colour and judged.shape and judged.background
