"""Do prompt timelines switch at the right frame? Two prompts that differ in one word, and where the video changes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vidgen.data.shapes import BACKGROUNDS, COLOURS, Scene
from vidgen.data.shapes_timelines import OPPOSITES, turned_round
from vidgen.eval.detector import centres, compare, detect
from vidgen.eval.interval import share
from vidgen.eval.obedience import draw_prompts, noise, plain_settings, videos_of
from vidgen.eval.report import environment_stamp

Changed = Literal["background", "colour", "motion"]
CHANGED: tuple[Changed, ...] = ("background", "colour", "motion")
TOLERANCE = 2  # frames: half a token of a tokenizer that compresses time four times
NATURAL_TRAVEL = 0.5  # of the frame's side over a whole clip
LEAST_TRAVEL = 0.4  # of the natural speed: slower is not moving
WRONG_FRAMES = 1  # that may show neither word: the switch itself
KEPT = ("count", "background", "colour", "size", "shape")


@dataclass(frozen=True)
class TimelineCase:
    """``first`` holds up to ``frame``, ``second`` from there on; they differ in the word that ``changed`` names."""

    first: Scene
    second: Scene
    frame: int
    changed: Changed

    @property
    def prompt(self) -> list[tuple[int, str]]:
        return [(0, self.first.caption), (self.frame, self.second.caption)]


@dataclass(frozen=True)
class SwitchSeen:
    """``frame``: where the video changes, None where it does not; ``kept``: all other words are right on both sides."""

    frame: int | None
    kept: bool


def draw_timelines(count: int, *, seed: int, num_frames: int = 17) -> list[TimelineCase]:
    """Cases of the test split's one-object prompts, each kind as often; the switch lies in the middle third."""
    generator = torch.Generator().manual_seed(seed)

    def draw(choices: Sequence[Any]) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    cases = []
    for index, scene in enumerate(draw_prompts("test", count, seed=seed)):
        changed, (item,) = CHANGED[index % len(CHANGED)], scene.objects
        if changed == "background":
            second = replace(scene, background=draw([name for name in BACKGROUNDS if name != scene.background]))
        elif changed == "colour":
            colour = draw([name for name in COLOURS if name != item.colour])
            second = replace(scene, objects=(replace(item, colour=colour),))
        else:
            motion = draw([name for name in OPPOSITES if name.startswith("moving")])
            scene = replace(scene, objects=(replace(item, motion=motion),))
            second = turned_round(scene)
        frame = draw(range(num_frames // 3, num_frames - num_frames // 3))
        cases.append(TimelineCase(scene, second, frame, changed))
    return cases


def see_switch(video: Tensor, case: TimelineCase) -> SwitchSeen:
    """Find the frame at which ``video`` (``3 t h w`` in [-1, 1]) goes over to the second prompt."""
    if case.changed == "motion":
        frame = turning_frame(centres(video), case.first.objects[0].motion)
    else:
        frame = first_of_second(words_shown(video, case.changed), case)
    halves = ((video[:, : case.frame], case.first), (video[:, case.frame :], case.second))
    judged = [compare(detect(half), scene) for half, scene in halves]
    kept = [name for name in KEPT if name != case.changed]
    return SwitchSeen(frame, all(getattr(one, name) for one in judged for name in kept))


def words_shown(video: Tensor, changed: Changed) -> list[str | None]:
    """The background, or the colour of the largest object, of each frame."""
    seen = [detect(video[:, frame : frame + 1]) for frame in range(video.shape[1])]
    if changed == "background":
        return [scene.background for scene in seen]
    return [scene.objects[0].colour if scene.objects else None for scene in seen]


def first_of_second(words: list[str | None], case: TimelineCase) -> int | None:
    """The frame that best parts the first word from the second; None if too many frames show neither order."""
    first, second = (
        scene.background if case.changed == "background" else scene.objects[0].colour
        for scene in (case.first, case.second)
    )
    wrong = [
        sum(word != first for word in words[:frame]) + sum(word != second for word in words[frame:])
        for frame in range(1, len(words))
    ]
    best = int(np.argmin(wrong))
    return best + 1 if wrong[best] <= WRONG_FRAMES else None


def turning_frame(places: np.ndarray, motion: str) -> int | None:
    """Where a path ``t 2`` (shares of width and height) turns round: the first frame on the way back.

    Least squares of a line with one bend; None if it does not go ``motion``'s way before, or back after.
    """
    axis = 0 if motion in ("moving left", "moving right") else 1
    way = places[:, axis] * (1 if motion in ("moving right", "moving down") else -1)
    if np.isnan(way).any():
        return None
    time = np.arange(len(way))
    fits = []
    for bend in range(2, len(way) - 2):
        columns = np.stack([np.ones(len(way)), np.minimum(time, bend), np.maximum(time - bend, 0)], axis=1)
        found, *_ = np.linalg.lstsq(columns, way, rcond=None)
        fits.append((float(np.square(columns @ found - way).sum()), bend, found[1], found[2]))
    _, bend, before, after = min(fits)
    least = LEAST_TRAVEL * NATURAL_TRAVEL / (len(way) - 1)
    return bend + 1 if before > least and after < -least else None


@torch.no_grad()
def evaluate_timelines(
    pipeline: Any, *, num_prompts: int, seed: int, num_frames: int = 17, name: str = "", **call_kwargs: Any
) -> dict[str, Any]:
    """One video per case, each with its own noise; JSON-able result.

    ``switched``: the word changes, within ``TOLERANCE`` frames of where it should. ``all_right``: and all other words
    are right before and after. ``by_change``: the same for each kind. ``offset``: mean of switch seen minus wanted.
    """
    cases = draw_timelines(num_prompts, seed=seed, num_frames=num_frames)
    pipeline.set_progress_bar_config(disable=True)
    seen = []
    for index, case in enumerate(cases):
        output = pipeline(
            prompt=case.prompt,
            generator=noise(seed, index),
            output_type="pt",
            num_frames=num_frames,
            **call_kwargs,
        )
        seen.append(see_switch(videos_of(output.frames)[0], case))
    switched = [
        found.frame is not None and abs(found.frame - case.frame) <= TOLERANCE
        for found, case in zip(seen, cases, strict=True)
    ]
    right = [one and found.kept for one, found in zip(switched, seen, strict=True)]
    offsets = [found.frame - case.frame for found, case in zip(seen, cases, strict=True) if found.frame is not None]
    return {
        "schema": "vidgen.timelines/1",
        "model": name,
        "seed": seed,
        "num_prompts": num_prompts,
        "tolerance": TOLERANCE,
        "switched": share(switched),
        "all_right": share(right),
        "by_change": {
            kind: share([one for one, case in zip(switched, cases, strict=True) if case.changed == kind])
            for kind in CHANGED
            if any(case.changed == kind for case in cases)
        },
        "offset": float(np.mean(offsets)) if offsets else None,
        "settings": {"num_frames": num_frames, **plain_settings(call_kwargs)},
        "environment": environment_stamp(pipeline.device),
        "prompts": [
            {"prompt": case.prompt, "changed": case.changed, "seen": asdict(found)}
            for case, found in zip(cases, seen, strict=True)
        ],
    }
