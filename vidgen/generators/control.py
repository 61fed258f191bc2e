"""What steers a generator beside text: a control video (depth, edges, sketch), reference images, actions."""

import math

import torch
from torch import Tensor, nn

from vidgen.generators.embedding import SCALE
from vidgen.latents import LatentSpec
from vidgen.nn.llama import LlamaBlock
from vidgen.nn.positions import positions, rotary, sine_features


class ControlBranch(nn.Module):
    """Tokens of a control video to features that are added to the generator's, zero at first (ControlNet's way in,
    arXiv 2302.05543, section 3.1): a generator with a new branch is exactly the one without.

    The branch sees the whole control video, also beside an autoregressive generator, and runs once for a whole
    sampling, whatever the number of steps.

    Args:
        layers: blocks over the control tokens.
    """

    def __init__(self, spec: LatentSpec, width: int, heads: int, *, layers: int) -> None:
        super().__init__()
        self.unit, self.head_channels = spec.unit, width // heads
        self.from_tokens = nn.Linear(spec.channels, width)
        nn.init.normal_(self.from_tokens.weight, std=SCALE / math.sqrt(spec.channels))
        self.blocks = nn.ModuleList(LlamaBlock(width, heads) for _ in range(layers))
        self.to_features = nn.Linear(width, width)
        nn.init.zeros_(self.to_features.weight)
        nn.init.zeros_(self.to_features.bias)

    def forward(self, tokens: Tensor, coordinates: Tensor) -> Tensor:
        """`b n c`, `n 5 -> b n d`."""
        x = self.from_tokens(tokens)
        turns = rotary(positions(coordinates, self.unit), self.head_channels)
        for block in self.blocks:
            x = block(x, None, turns)
        return self.to_features(x)


class ReferenceEmbedding(nn.Module):
    """Tokens of reference images to condition states: the generator attends to them as to words."""

    def __init__(self, spec: LatentSpec, text_width: int) -> None:
        super().__init__()
        self.unit, self.text_width = spec.unit, text_width
        self.project = nn.Linear(spec.channels, text_width)
        self.marker = nn.Parameter(torch.randn(text_width) * SCALE)

    def forward(self, tokens: Tensor, coordinates: Tensor) -> Tensor:
        """Tokens `b r n c` of r images, places `n 5` of each -> `b (r n) d`; image i stands at time i."""
        images = tokens.shape[1]
        places = positions(coordinates, self.unit).repeat(images, 1)
        places[:, 0] = torch.arange(images, device=places.device).repeat_interleave(len(coordinates))
        features = sine_features(places, self.text_width // 2 * 2)
        features = nn.functional.pad(features, (0, self.text_width % 2))
        return self.project(tokens).flatten(1, 2) + self.marker + features.to(self.marker.dtype)


class ActionEmbedding(nn.Module):
    """What an agent does at each frame to condition states, which the tokens of that frame attend to."""

    def __init__(self, spec: LatentSpec, channels: int, text_width: int) -> None:
        super().__init__()
        in_time = {(part.stride[0], part.first_frame_alone) for part in spec.parts if part.axes.startswith("t")}
        if len(in_time) > 1:
            raise ValueError(
                f"actions need parts of one stride in time, got (stride, first frame alone) {sorted(in_time)}; leave "
                "action_channels 0"
            )
        self.stride, self.first_alone = next(iter(in_time), (1, False))
        self.text_width = text_width
        self.project = nn.Linear(channels, text_width)

    def forward(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Actions `b t a` -> states `b t d` and, `t 2`, from and before which coordinates tokens cover that frame."""
        if actions.ndim != 3 or actions.shape[2] != self.project.in_features:
            raise ValueError(f"actions must be `b t {self.project.in_features}`, got {tuple(actions.shape)}")
        frame = torch.arange(actions.shape[1], device=actions.device)
        places = torch.stack([frame, torch.zeros_like(frame), torch.zeros_like(frame)], dim=1)
        features = nn.functional.pad(sine_features(places, self.text_width // 2 * 2), (0, self.text_width % 2))
        first = frame if self.first_alone else frame - self.stride + 1
        return self.project(actions) + features.to(actions.dtype), torch.stack([first, first + self.stride], dim=1)
