"""Does a continuation of given first frames keep the object? The frames that are made are judged alone."""

from typing import Any

import numpy as np
import torch

from vidgen.data.shapes_timelines import render_timeline
from vidgen.eval.detector import Judgement, centres, compare, detect
from vidgen.eval.interval import share
from vidgen.eval.obedience import draw_prompts, noise, plain_settings, videos_of
from vidgen.eval.report import environment_stamp

NEAR = 0.06  # of the frame's side: how far the object may jump where the continuation begins (it travels 0.03 a frame)
KEPT = ("count", "background", "colour", "size", "shape")


@torch.no_grad()
def evaluate_continuation(
    pipeline: Any,
    *,
    num_prompts: int,
    seed: int,
    given_frames: int = 5,
    with_caption: bool = True,
    num_frames: int = 17,
    batch_size: int = 8,
    name: str = "",
    **call_kwargs: Any,
) -> dict[str, Any]:
    """Continue the first frames of one rendered clip per prompt; JSON-able result.

    ``kept``: number, background, colour, size and shape are right in the frames that were made, and nothing jumps
    where they begin. ``all_right``: and the motion goes on. ``seam``: mean distance of the object from its true place
    in the first frame made, in shares of the frame's side.

    Args:
        given_frames: that the model is told, of ``num_frames``.
        with_caption: tell the caption too; without it all has to come from the given frames.
    """
    scenes = draw_prompts("test", num_prompts, seed=seed)
    pipeline.set_progress_bar_config(disable=True)
    judged: list[Judgement] = []
    seams: list[float] = []
    for first in range(0, num_prompts, batch_size):
        batch = scenes[first : first + batch_size]
        clips = torch.stack(
            [
                render_timeline([(0, scene)], num_frames, generator=noise(seed, first + index))
                for index, scene in enumerate(batch)
            ]
        )
        output = pipeline(
            prompt=[scene.caption if with_caption else "" for scene in batch],
            video=clips[:, :, :given_frames],
            generator=[noise(seed, first + index) for index in range(len(batch))],
            output_type="pt",
            num_frames=num_frames,
            **call_kwargs,
        )
        for video, clip, scene in zip(videos_of(output.frames), clips, batch, strict=True):
            judged.append(compare(detect(video[:, given_frames:]), scene))
            seam = slice(given_frames, given_frames + 1)
            seams.append(float(np.linalg.norm(centres(video[:, seam]) - centres(clip[:, seam]))))
    kept = [near(seam) and all(getattr(one, name) for name in KEPT) for one, seam in zip(judged, seams, strict=True)]
    known = [seam for seam in seams if not np.isnan(seam)]
    return {
        "schema": "vidgen.continuation/1",
        "model": name,
        "seed": seed,
        "num_prompts": num_prompts,
        "given_frames": given_frames,
        "with_caption": with_caption,
        "kept": share(kept),
        "all_right": share([one and seen.motion for one, seen in zip(kept, judged, strict=True)]),
        "attributes": {key: share([getattr(one, key) for one in judged]) for key in (*KEPT, "motion")},
        "near": share([near(seam) for seam in seams]),
        "seam": float(np.mean(known)) if known else None,
        "settings": {"num_frames": num_frames, **plain_settings(call_kwargs)},
        "environment": environment_stamp(pipeline.device),
        "prompts": [
            {"prompt": scene.caption, "kept": one, "motion": seen.motion}
            for scene, one, seen in zip(scenes, kept, judged, strict=True)
        ],
    }


def near(seam: float) -> bool:
    """Whether there is an object where the given one was; an empty frame has no place (NaN)."""
    return seam <= NEAR
