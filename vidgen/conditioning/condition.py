"""`Condition`: the one way to tell any generator what to make."""

from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from vidgen.latents import Latents

OPEN_END = torch.iinfo(torch.long).max  # in `Condition.frames`: up to the last token, which may lie beyond the video


class TokenState(IntEnum):
    """How much of a token's pixels is known (COMMIT, MAGVIT, arXiv 2212.05199, section 3.2)."""

    UNKNOWN = 0
    PARTIAL = 1
    KNOWN = 2


@dataclass
class Condition:
    """Conditions of a batch of samples.

    Args:
        states: `b l d`, text, class or reference states; l = 0 for none.
        mask: `b l` bool, the states that exist.
        frames: `b l 2` long, first frame and one past the last frame for which a state holds (a timeline of
            prompts), or `None` = the whole video.
        known: tokens of the condition video at ALL positions (unknown pixels filled in), or `None`.
        token_state: `b n` long of `TokenState`, present exactly with `known`. KNOWN tokens are never changed.
        task: `b` long, index into `TASK_NAMES` (-1 = none was named), or `None` = no sample has one.
        control: tokens of a control video at ALL positions, or `None`.
    """

    states: Tensor
    mask: Tensor
    frames: Tensor | None = None
    known: Latents | None = None
    token_state: Tensor | None = None
    task: Tensor | None = None
    control: Latents | None = None

    def __post_init__(self) -> None:
        if (self.known is None) != (self.token_state is None):
            raise ValueError("known tokens and token_state come together: give both or neither")

    def unknown(self, tokens: int) -> Tensor:
        """`b n` bool: which of so many tokens are to be made, those that are not KNOWN."""
        if self.token_state is None:
            return torch.ones(len(self.states), tokens, dtype=torch.bool, device=self.states.device)
        return self.token_state != TokenState.KNOWN

    def without_text(self, dropped: Tensor | None = None) -> "Condition":
        """The condition with the text of the samples where `dropped` (`b` bool; all by default) taken away."""
        kept = torch.zeros_like(self.mask) if dropped is None else self.mask & ~dropped[:, None]
        return replace(self, mask=kept)

    def mask_for(self, frame_of_token: Tensor) -> Tensor:
        """Which states each token sees: `b l`, or `b n l` with a timeline. `frame_of_token`: `n` (-1 = all)."""
        if self.frames is None:
            return self.mask
        frame = frame_of_token[None, :, None]
        first, end = self.frames[:, None, :, 0], self.frames[:, None, :, 1]
        return self.mask[:, None] & (((first <= frame) & (frame < end)) | (frame < 0))
