"""Several candidates for each video, of which the one stays that the network itself finds most plausible."""

from typing import Any

import torch
from torch import Tensor

from vidgen.conditioning import Condition
from vidgen.latents import Latents, VideoSize
from vidgen.nn.random import seeded
from vidgen.pipelines.offload import bring_onto_device

KnownPixels = tuple[Tensor, Tensor] | None


class ChosenVideo:
    """What lets a pipeline choose between videos."""

    interrupt: bool
    transformer: Any
    default: Any
    to_latents: Any

    def checked_candidates(self, num_candidates: int | None, latents: Tensor | None, *, of_noise: bool = False) -> int:
        """How many videos to make for each one that comes back; `latents` that a caller gives may be `of_noise`."""
        same = of_noise and latents is not None
        if num_candidates is None:
            return 1 if same else self.default("num_candidates", None, 1)
        if not isinstance(num_candidates, int) or num_candidates < 1:
            raise ValueError(f"num_candidates must be an int of at least 1, 1 for no choice, got {num_candidates!r}")
        if same and num_candidates > 1:
            raise ValueError(
                f"from the given noise all {num_candidates} candidates would be the same video; leave out latents or "
                "num_candidates"
            )
        return num_candidates

    def choose(
        self, tokens: Tensor, known: KnownPixels, condition: Condition, size: VideoSize, candidates: int
    ) -> tuple[Tensor, KnownPixels]:
        """Of each `candidates` successive rows the most plausible one, and the known pixels of those that stay.

        A run that was interrupted is not judged: its first candidates stay.
        """
        if candidates == 1:
            return tokens, known
        first = torch.arange(0, len(tokens), candidates, device=tokens.device)
        best = first
        if not self.interrupt:
            best = first + self.judged(self.to_latents(tokens, size), condition).view(-1, candidates).argmax(dim=1)
        return tokens[best], None if known is None else (known[0][::candidates], known[1][::candidates])

    def judged(self, latents: Latents, condition: Condition) -> Tensor:
        """`b`: plausibility under noise that is the same for all, so that only what they show makes a difference."""
        bring_onto_device(self.transformer)
        latents = latents.to(condition.states.device, self.transformer.dtype)
        return self.transformer.plausibility(latents, condition, generators=seeded([0] * len(latents)))
