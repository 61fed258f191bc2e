"""How different the samples of one prompt are: the mean distance of their pairs, frame by frame."""

from collections.abc import Sequence
from itertools import combinations

from torch import Tensor

from vidgen.eval.perceptual import FrameDistance
from vidgen.eval.pixels import to_levels
from vidgen.eval.precision import without_tf32
from vidgen.eval.prompt_score import OfPrompt, PromptScore
from vidgen.nn.fingerprint import weights_sha256

RMS_KEY = "diversity.rms.rgb"


class Diversity(PromptScore):
    """``diversity.rms.rgb`` in levels of 255, and ``diversity.<distance>`` for each perceptual distance.

    More is better only while the prompt is obeyed. Samples of one prompt need one length and size.
    """

    missing = "diversity needs two samples of a prompt"

    def __init__(self, distances: Sequence[FrameDistance] = ()) -> None:
        self.distances = distances
        self.keys = frozenset({RMS_KEY, *(f"diversity.{distance.key}" for distance in distances)})

    def weights(self) -> dict[str, str]:
        return {f"diversity.{distance.key}": weights_sha256(distance) for distance in self.distances}

    def of_prompt(self, prompt: str, videos: Sequence[Tensor]) -> dict[str, OfPrompt]:
        if len({video.shape for video in videos}) > 1:
            sizes = ", ".join(str(tuple(video.shape[1:])) for video in videos)
            raise ValueError(f"samples of one prompt need one length and size; those of {prompt!r} have {sizes}")
        scores: dict[str, list[float]] = {}
        for one, other in combinations(videos, 2):
            rms = (to_levels(one) - to_levels(other)).square().mean().sqrt()
            scores.setdefault(RMS_KEY, []).append(float(rms))
            for distance in self.distances:
                if min(one.shape[-2:]) >= distance.smallest_side:
                    with without_tf32():
                        apart = float(distance(one[None], other[None]).mean())
                    scores.setdefault(f"diversity.{distance.key}", []).append(apart)
        return {key: OfPrompt(sum(of_pairs) / len(of_pairs), len(videos)) for key, of_pairs in scores.items()}
