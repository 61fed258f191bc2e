"""How often a text-to-video pipeline obeys its prompt: generate from shapes-world captions, read back, count.

Prompts come in two splits that share no caption, told apart by a hash of the caption: ``selection`` for choosing
checkpoints and settings, ``test`` for numbers that are reported. A checkpoint must never be chosen on ``test``.
Captions are not held out of training: the shapes world is small, and the question is obedience. Composition is another
question: models trained with `--hold-out` never saw 20 pairs of colour and shape, and are asked for those alone.
"""

import hashlib
import time
from collections import defaultdict
from dataclasses import asdict
from typing import Any, Literal, Protocol

import torch
from einops import rearrange
from torch import Tensor

from vidgen.data.shapes import HELD_OUT_PAIRS, TRAINED_PAIRS, Scene, sample_scene
from vidgen.eval.detector import ATTRIBUTES, compare, detect
from vidgen.eval.interval import share
from vidgen.eval.report import environment_stamp


class TextToVideo(Protocol):
    """What is used of a pipeline; every pipeline of this project has it."""

    def __call__(self, *, prompt: list[str], generator: list[torch.Generator], output_type: str, **options: Any) -> Any:
        """Returns an output whose ``frames`` are ``b t 3 h w`` in [0, 1] for output_type "pt"."""

    @property
    def device(self) -> torch.device: ...

    def set_progress_bar_config(self, **options: Any) -> None: ...


Split = Literal["selection", "test"]
Pairs = Literal["all", "held out", "trained"]
NEVER_ASKED: dict[Pairs, frozenset[tuple[str, str]]] = {
    "all": frozenset(),
    "held out": TRAINED_PAIRS,
    "trained": HELD_OUT_PAIRS,
}
SELECTION_SEED = 1
TEST_SEED = 2


def draw_prompts(split: Split, count: int, *, seed: int, objects: int = 1, pairs: Pairs = "all") -> list[Scene]:
    """``count`` different scenes of a split, the same for the same arguments; ValueError if it has fewer.

    With ``pairs="held out"`` every object has one of the pairs of colour and shape that `--hold-out` never trains on,
    with "trained" one of the others.
    """
    if split not in ("selection", "test"):
        raise ValueError(f"expected split selection or test, got {split!r}")
    if pairs not in NEVER_ASKED:
        raise ValueError(f"expected pairs of {', '.join(map(repr, NEVER_ASKED))}, got {pairs!r}")
    generator = torch.Generator().manual_seed(seed)
    scenes: dict[str, Scene] = {}
    in_vain = 0
    while len(scenes) < count:
        scene = sample_scene(generator=generator, objects=(objects,), hold_out=NEVER_ASKED[pairs])
        new = scene.caption not in scenes and split_of(scene) == split
        if new:
            scenes[scene.caption] = scene
        in_vain = 0 if new else in_vain + 1
        if in_vain > 10_000:
            raise ValueError(
                f"the {split} split has fewer than {count} prompts with {objects} object(s); "
                f"ask for at most {len(scenes)}"
            )
    return list(scenes.values())


def split_of(scene: Scene) -> Split:
    """Which split a caption belongs to, for ever."""
    return "test" if hashlib.sha256(scene.caption.encode()).digest()[0] % 2 else "selection"


@torch.no_grad()
def evaluate_obedience(
    pipeline: "TextToVideo",
    *,
    num_prompts: int,
    seed: int,
    objects: int = 1,
    batch_size: int = 8,
    split: Split = "test",
    pairs: Pairs = "all",
    name: str = "",
    **call_kwargs: Any,
) -> dict[str, Any]:
    """Generate one video per prompt and judge each; JSON-able result.

    Video i has its own generator, seeded from (seed, i), so results do not depend on ``batch_size``.
    ``attributes`` maps each attribute of ``detector.ATTRIBUTES`` to its number right, share and 95 % Wilson interval.
    ``wrong_prompt`` judges the same videos against the next prompt of the list: what a judge that says yes too easily
    would give away. ``by_word`` is the share of prompts with that word on which the word's attribute is right.

    Args:
        pipeline: called as ``pipeline(prompt=[…], generator=[…], output_type="pt", **call_kwargs)``.
        seed: of the prompts and the noise. By convention SELECTION_SEED and TEST_SEED.
        call_kwargs: passed on: num_frames, height, width, num_inference_steps, guidance_scale…
    """
    scenes = draw_prompts(split, num_prompts, seed=seed, objects=objects, pairs=pairs)
    pipeline.set_progress_bar_config(disable=True)
    judged, seen, start = [], [], time.perf_counter()
    for first in range(0, num_prompts, batch_size):
        batch = scenes[first : first + batch_size]
        generators = [noise(seed, first + i) for i in range(len(batch))]
        output = pipeline(
            prompt=[scene.caption for scene in batch], generator=generators, output_type="pt", **call_kwargs
        )
        for video, scene in zip(videos_of(output.frames), batch, strict=True):
            seen.append(detect(video))
            judged.append(compare(seen[-1], scene))
    seconds = time.perf_counter() - start
    wrong = [compare(scene_seen, scenes[(i + 1) % len(scenes)]) for i, scene_seen in enumerate(seen)]
    return {
        "schema": "vidgen.obedience/1",
        "model": name,
        "split": split,
        "pairs": pairs,
        "seed": seed,
        "objects": objects,
        "num_prompts": num_prompts,
        "attributes": {attribute: share([getattr(one, attribute) for one in judged]) for attribute in ATTRIBUTES},
        "wrong_prompt": {
            attribute: share([getattr(one, attribute) for one in wrong])
            for attribute in ("colour_motion_background", "all_right")
        },
        "by_word": _by_word(scenes, judged),
        "seconds_per_video": seconds / num_prompts,
        "settings": plain_settings(call_kwargs),
        "environment": environment_stamp(pipeline.device),
        "prompts": [
            {"prompt": scene.caption, "seen": asdict(found), "right": {key: getattr(one, key) for key in ATTRIBUTES}}
            for scene, found, one in zip(scenes, seen, judged, strict=True)
        ],
    }


def videos_of(frames: Tensor) -> list[Tensor]:
    """A pipeline's ``.frames`` of output_type "pt" (``b t 3 h w`` in [0, 1]) -> videos ``3 t h w`` in [-1, 1]."""
    return list(rearrange(frames.float().cpu() * 2 - 1, "b t c h w -> b c t h w"))


def noise(seed: int, index: int) -> torch.Generator:
    """The generator of video ``index`` of a suite with this seed, whatever the batch it is made in."""
    digest = hashlib.sha256(f"{seed} {index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def plain_settings(call: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call that JSON can say."""
    return {key: value for key, value in call.items() if isinstance(value, (int, float, str, bool))}


def _by_word(scenes: list[Scene], judged: list) -> dict[str, dict[str, float]]:
    tallies: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for scene, one in zip(scenes, judged, strict=True):
        tallies["background"][scene.background].append(one.background)
        for attribute in ("size", "colour", "shape", "motion"):
            for word in {getattr(item, attribute) for item in scene.objects}:
                tallies[attribute][word].append(getattr(one, attribute))
    return {
        attribute: {word: sum(right) / len(right) for word, right in sorted(words.items())}
        for attribute, words in tallies.items()
    }
