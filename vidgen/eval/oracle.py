"""A pipeline that draws what its prompt says and passes it through a tokenizer: what a perfect generator would reach.

It answers every question of the obedience suites, so that each has its ceiling; without a tokenizer it is ground truth.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vidgen.data.shapes import parse_caption
from vidgen.data.shapes_timelines import NATURAL_FRAMES, render_timeline
from vidgen.tokenizers.base import Tokenizer


class Oracle:
    """Renders prompts and timelines of the shapes world at 64×64; ``tokenizer`` then encodes and decodes each video."""

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        self.tokenizer = tokenizer
        self.device = torch.device("cpu") if tokenizer is None else tokenizer.device

    def set_progress_bar_config(self, **options: Any) -> None:
        """There is no bar."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: Any,
        *,
        generator: Any,
        output_type: str = "pt",
        num_frames: int = NATURAL_FRAMES,
        video: Tensor | None = None,
    ) -> Any:
        """As a pipeline's call, for ``output_type="pt"``. First frames in ``video`` are put back, as pipelines do."""
        assert output_type == "pt"
        timelines = [prompt] if isinstance(prompt[0], tuple) else [[(0, text)] for text in prompt]
        sources = generator if isinstance(generator, list) else [generator] * len(timelines)
        videos = torch.stack(
            [
                render_timeline(
                    [(first, parse_caption(text)) for first, text in timeline], num_frames, generator=source
                )
                for timeline, source in zip(timelines, sources, strict=True)
            ]
        )
        if self.tokenizer is not None:
            videos = self.tokenizer.decode(self.tokenizer.encode(videos.to(self.device))).float().cpu().clamp(-1, 1)
        if video is not None:
            videos[:, :, : video.shape[2]] = video
        return SimpleNamespace(frames=(videos.transpose(1, 2) + 1) / 2)

    def extend(self, prompt: Any, *, num_frames: int, generator: torch.Generator, output_type: str = "pt", **_: Any):
        """A long video, drawn and coded in one piece."""
        timeline = [(0, prompt)] if isinstance(prompt, str) else prompt
        return self(timeline, num_frames=num_frames, generator=generator, output_type=output_type)
