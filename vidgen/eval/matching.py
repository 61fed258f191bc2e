"""Does a matcher tell a scene of the shapes world from scenes that differ in one thing? Asked on rendered clips."""

from collections import defaultdict
from typing import Any, Protocol

import torch
from torch import Tensor

from vidgen.data.shapes import Scene, near_miss, render
from vidgen.eval.interval import share
from vidgen.eval.obedience import draw_prompts, noise
from vidgen.eval.report import environment_stamp
from vidgen.latents import Latents
from vidgen.tokenizers.base import Tokenizer

KINDS = ("size", "colour", "shape", "motion", "background", "exchange", "number")


class Judge(Protocol):
    """What is used of a matcher."""

    def score(self, latents: Latents, prompts: list[str]) -> Tensor: ...

    @property
    def device(self) -> torch.device: ...


def difference(scene: Scene, other: Scene) -> str:
    """Which of `KINDS` a near miss is."""
    if len(scene.objects) != len(other.objects):
        return "number"
    if scene.background != other.background:
        return "background"
    changed = [(one, two) for one, two in zip(scene.objects, other.objects, strict=True) if one != two]
    if len(changed) == 2:
        return "exchange"
    return next(word for word in KINDS if getattr(changed[0][0], word) != getattr(changed[0][1], word))


@torch.no_grad()
def evaluate_matching(
    matcher: Judge, tokenizer: Tokenizer, *, num_prompts: int, seed: int, near_misses: int = 8, name: str = ""
) -> dict[str, Any]:
    """Score encoded clips of the test split with their captions and with near misses; JSON-able result.

    ``ranked``: of pairs of a clip's caption and a near miss, the caption has the higher score; ``by_kind``: the same
    by what differs. ``accepted`` and ``refused``: captions above, near misses below even odds.

    Args:
        tokenizer: whose tokens the matcher reads.
    """
    ranked: dict[str, list[bool]] = defaultdict(list)
    accepted: list[bool] = []
    refused: list[bool] = []
    for objects in (1, 2):
        for index, scene in enumerate(draw_prompts("test", num_prompts, seed=seed, objects=objects)):
            generator = noise(seed, 2 * index + objects)
            video = render(scene, num_frames=17, height=64, width=64, generator=generator)[None]
            latents = tokenizer.encode(video.to(tokenizer.device)).to(matcher.device)
            others = [near_miss(scene, generator=generator) for _ in range(near_misses)]
            texts = [scene.caption, *(other.caption for other in others)]
            scores = matcher.score(Latents.collate([latents] * len(texts)), texts).tolist()
            accepted.append(scores[0] > 0)
            for other, score in zip(others, scores[1:], strict=True):
                ranked[difference(scene, other)].append(scores[0] > score)
                refused.append(score <= 0)
    return {
        "schema": "vidgen.matching/1",
        "model": name,
        "seed": seed,
        "num_prompts": num_prompts,
        "near_misses": near_misses,
        "ranked": share([one for of_kind in ranked.values() for one in of_kind]),
        "by_kind": {kind: share(ranked[kind]) for kind in KINDS if ranked[kind]},
        "accepted": share(accepted),
        "refused": share(refused),
        "environment": environment_stamp(matcher.device),
    }
