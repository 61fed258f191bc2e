"""A score of the videos of one prompt, and its mean over prompts with an interval; obedience is the first of them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from vidgen.data import parse_caption
from vidgen.eval.bootstrap import Bootstrap, Estimate
from vidgen.eval.detector import judge
from vidgen.eval.interval import wilson_around


class OfPrompt(NamedTuple):
    """The mean over the samples of a prompt (for a distance: over their pairs), and how many videos it comes from."""

    value: float
    videos: int


class PromptScore(ABC):
    """Counts every prompt the same, however many samples it has. `interval` says in words how its interval is made."""

    keys: frozenset[str]
    interval = "bootstrap over prompts, percentile"
    higher_is_better: bool | None = None
    missing: str  # why a prompt, or all of them, may have no score

    def weights(self) -> dict[str, str]:
        """Key -> digest of the network behind it; empty for scores without one."""
        return {}

    @abstractmethod
    def of_prompt(self, prompt: str, videos: Sequence[Tensor]) -> dict[str, OfPrompt]:
        """Key -> score of the ``3 t h w`` videos in [-1, 1]; empty where the score does not apply."""

    def estimate(self, found: Sequence[OfPrompt], settings: Bootstrap) -> Estimate:
        """Mean over prompts, and its interval by drawing prompts again."""
        values = np.array([one.value for one in found])
        if len(values) < 2:
            return Estimate(float(values.mean()), None, None)
        return Estimate(float(values.mean()), *settings.interval(settings.draws(len(values)) @ values / len(values)))


class Obedience(PromptScore):
    """``obeyed.…``: share of a prompt's videos that show what its caption of the shapes world says (see `detector`).

    The interval is Wilson's, since a bootstrap of a perfect score has no width. It takes the samples of a prompt for
    independent, and is too narrow where they are alike.
    """

    higher_is_better = True
    interval = "Wilson over videos, as if the samples of a prompt were independent"
    missing = "the judge reads captions of the shapes world only"
    attributes = ("colour_motion_background", "all_right")
    keys = frozenset({"obeyed.colour_motion_background", "obeyed.all_right"})

    def of_prompt(self, prompt: str, videos: Sequence[Tensor]) -> dict[str, OfPrompt]:
        try:
            scene = parse_caption(prompt)
        except ValueError:
            return {}
        judged = [judge(video, scene) for video in videos]
        return {
            f"obeyed.{name}": OfPrompt(sum(getattr(one, name) for one in judged) / len(judged), len(judged))
            for name in self.attributes
        }

    def estimate(self, found: Sequence[OfPrompt], settings: Bootstrap) -> Estimate:
        share = float(np.mean([one.value for one in found]))
        return Estimate(share, *wilson_around(share, sum(one.videos for one in found), level=settings.level))
