"""A pipeline that draws what its prompt says and passes it through a tokenizer: what a perfect generator would reach.

It answers every question of the obedience suites, so that each has its ceiling; without a tokenizer it is ground truth.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vidgen.data.shapes import Scene, parse_caption, render
from vidgen.tokenizers.base import Tokenizer

OPPOSITES = {
    "moving left": "moving right",
    "moving right": "moving left",
    "moving up": "moving down",
    "moving down": "moving up",
    "growing": "shrinking",
    "shrinking": "growing",
    "staying still": "staying still",
    "spinning": "spinning",
}
NATURAL_FRAMES = 17  # frames over which the world's motions take place


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
        is_story = isinstance(prompt[0], tuple)
        stories = [prompt] if is_story else [[(0, text)] for text in prompt]
        sources = generator if isinstance(generator, list) else [generator] * len(stories)
        videos = torch.stack(
            [
                render_story([(first, parse_caption(text)) for first, text in story], num_frames, generator=source)
                for story, source in zip(stories, sources, strict=True)
            ]
        )
        if self.tokenizer is not None:
            videos = self.tokenizer.decode(self.tokenizer.encode(videos.to(self.device))).float().cpu().clamp(-1, 1)
        if video is not None:
            videos[:, :, : video.shape[2]] = video
        return SimpleNamespace(frames=(videos.transpose(1, 2) + 1) / 2)

    def extend(self, prompt: Any, *, num_frames: int, generator: torch.Generator, output_type: str = "pt", **_: Any):
        """A long video, drawn and coded in one piece."""
        story = [(0, prompt)] if isinstance(prompt, str) else prompt
        return self(story, num_frames=num_frames, generator=generator, output_type=output_type)


def render_story(story: list[tuple[int, Scene]], num_frames: int, *, generator: torch.Generator) -> Tensor:
    """Render ``3 t 64 64`` of scenes that hold from a frame on; the motions are the first scene's or opposite to them.

    All scenes go the same way to and fro, so that nothing jumps where the prompt changes.
    """
    first = story[0][1]
    seed = int(torch.randint(2**62, (1,), generator=generator))
    holds = [max(index for index, (start, _) in enumerate(story) if start <= frame) for frame in range(num_frames)]
    place, places = 0, [0]
    for number in holds[1:]:
        motions = [item.motion for item in story[number][1].objects]
        forward = motions == [item.motion for item in first.objects]
        if not forward and motions != [OPPOSITES[item.motion] for item in first.objects]:
            raise ValueError(f"a story keeps its motions or turns them round; got {first.caption}, then {motions}")
        place += 1 if forward else -1
        places.append(place)
    length = max(NATURAL_FRAMES, max(places) - min(places) + 1)
    clips = []
    for _, scene in story:
        objects = tuple(
            replace(item, motion=begun.motion) for item, begun in zip(scene.objects, first.objects, strict=True)
        )
        source = torch.Generator().manual_seed(seed)
        clips.append(render(replace(scene, objects=objects), num_frames=length, height=64, width=64, generator=source))
    return torch.stack([clips[number][:, place - min(places)] for number, place in zip(holds, places, strict=True)], 1)
