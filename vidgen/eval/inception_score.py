"""Inception Score of frames: are they certain and varied for an ImageNet classifier (Salimans et al. 2016)?

It knows no prompt and sees no motion. The score of whole videos in papers comes from a C3D classifier of UCF-101 and
does not compare with this one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vidgen.eval.extractors import Inception
from vidgen.eval.precision import without_tf32
from vidgen.eval.preprocess import preprocess
from vidgen.eval.protocol import FeatureProtocol
from vidgen.eval.protocols import get_protocol

PREPROCESS = get_protocol("fid.torch-fidelity", FeatureProtocol).preprocess
SPLITS = 10


class SplitScore(NamedTuple):
    """Mean and standard deviation over equal parts of the frames; the number of parts moves the mean."""

    mean: float
    deviation: float
    splits: int


class InceptionScore:
    """``inception_score.frames`` of all videos that it was given, with logits without bias as the original has them."""

    key = "inception_score.frames"

    def __init__(self, network: Inception) -> None:
        self.network = network
        self.logits: list[Tensor] = []

    def weights(self) -> dict[str, str]:
        """As `PromptScore.weights`."""
        return {self.key: self.network.weights.sha256}

    @torch.no_grad()
    def update(self, video: Tensor) -> None:
        """``3 t h w`` in [-1, 1]."""
        device = self.network.fc.weight.device
        with without_tf32():
            features = self.network(preprocess(video[None].to(device), PREPROCESS))[0]
        self.logits.append(self.network.unbiased_logits(features).double().cpu())

    def compute(self) -> SplitScore:
        return inception_score(torch.cat(self.logits))


def inception_score(logits: Tensor, *, splits: int = SPLITS) -> SplitScore:
    """Of ``n classes``: exp of the mean KL divergence of each row's distribution from the mean one, in each part.

    Every part takes each `splits`-th row, so that the frames of a video are spread over all of them. From 1 to the
    number of classes.
    """
    if len(logits) < splits:
        raise ValueError(f"the Inception Score in {splits} parts needs as many frames, got {len(logits)}")
    scores = []
    for first in range(splits):
        log = logits[first::splits].double().log_softmax(dim=1)
        mean = log.exp().mean(dim=0)
        divergence = (log.exp() * (log - mean.clamp(min=torch.finfo(mean.dtype).tiny).log())).sum(dim=1)
        scores.append(divergence.mean().exp())
    found = torch.stack(scores)
    return SplitScore(float(found.mean()), float(found.std(correction=0)), splits)
