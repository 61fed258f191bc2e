"""Several candidates for each video, of which the one stays that is plausible and shows what the prompt says."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vidgen.conditioning import Condition
from vidgen.conditioning.condition import OPEN_END
from vidgen.conditioning.timeline import is_timeline
from vidgen.latents import Latents
from vidgen.matchers.base import Matcher, tokens_of_frames
from vidgen.nn.random import seeded
from vidgen.pipelines.offload import bring_onto_device
from vidgen.pipelines.prompting import Prompt
from vidgen.pipelines.request import Request


class ChosenVideo:
    """What lets a pipeline choose between videos."""

    interrupt: bool
    transformer: Any
    matcher: Matcher | None
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

    def choose(self, tokens: Tensor, request: Request) -> Tensor:
        """Of all candidates for the same video, successive rows of tokens, the best one.

        The network that made them judges how plausible they are and, where there are a matcher and words, the matcher
        how well they show what was asked for; each is standardised over the candidates of a video, both count alike.
        A run that was interrupted is not judged: its first candidates stay.
        """
        candidates = request.candidates
        if candidates == 1:
            return tokens
        first = torch.arange(0, len(tokens), candidates, device=tokens.device)
        best = first
        if not self.interrupt:
            latents, texts = self.to_latents(tokens, request.size), texts_of(request.prompt)
            scores = self.judged(latents, request.condition).view(-1, candidates)
            if self.matcher is not None and texts is not None:
                scores = standardised(scores) + standardised(self.matched(latents, texts).view(-1, candidates))
            best = first + scores.argmax(dim=1)
        return tokens[best]

    def judged(self, latents: Latents, condition: Condition) -> Tensor:
        """`b`: plausibility under noise that is the same for all, so that only what they show makes a difference."""
        bring_onto_device(self.transformer)
        latents = latents.to(condition.states.device, self.transformer.dtype)
        return self.transformer.plausibility(latents, condition, generators=seeded([0] * len(latents)))

    def matched(self, latents: Latents, texts: list[list[tuple[int, str]]]) -> Tensor:
        """`b`: log-odds that videos show a text, or log-probability that they show several, each at its time.

        Args:
            texts: (first frame, text) of each prompt; as many successive videos belong to each.
        """
        matcher: Any = self.matcher
        bring_onto_device(matcher)
        each = len(latents) // len(texts)
        return torch.cat(
            [
                shown(matcher, latents[number * each : (number + 1) * each], of_prompt)
                for number, of_prompt in enumerate(texts)
            ]
        )


def standardised(scores: Tensor) -> Tensor:
    """Scores `b k` with mean 0 and variance 1 in each row, or 0 where they are all the same."""
    return (scores - scores.mean(dim=1, keepdim=True)) / scores.std(dim=1, keepdim=True).clamp(min=1e-6)


def shown(matcher: Matcher, latents: Latents, texts: list[tuple[int, str]]) -> Tensor:
    """`b`: how well videos show what one prompt says."""
    if len(texts) == 1:
        return matcher.score(latents, [texts[0][1]] * len(latents))
    ends = [*(frame for frame, _ in texts[1:]), OPEN_END]
    scores = [
        matcher.score(latents, [text] * len(latents), frames=(frame, end))
        for (frame, text), end in zip(texts, ends, strict=True)
        if tokens_of_frames(latents, frame, end).any()  # a token holds several frames: a text may have none of its own
    ]
    return torch.stack([F.logsigmoid(score) for score in scores]).sum(dim=0)


def texts_of(prompt: Prompt | None) -> list[list[tuple[int, str]]] | None:
    """(First frame, text) of each prompt; `None` where one says nothing, as embeddings do."""
    if prompt is None:
        return None
    prompts: Any = [prompt] if isinstance(prompt, str) or is_timeline(prompt) else prompt
    texts = [one if is_timeline(one) else [(0, one)] for one in prompts]
    return texts if all(text.strip() for of_prompt in texts for _, text in of_prompt) else None
