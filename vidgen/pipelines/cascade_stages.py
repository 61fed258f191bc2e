"""The stages of a cascade after the first: frames between those of a video, and more pixels (or restored ones).

A stage takes chunks of a video and gives chunks of a larger one, so that a whole cascade runs in constant memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidgen.conditioning.control import resized
from vidgen.conditioning.timeline import excerpt, is_timeline
from vidgen.latents import VideoSize
from vidgen.nn.random import Generators, randn
from vidgen.pipelines.base import VideoPipeline
from vidgen.pipelines.diffusion import DiffusionVideoPipeline
from vidgen.pipelines.extension import faded

OWN = ("prompt", "prompt_embeds", "num_frames", "height", "width", "generator", "video", "mask", "latents", "strength")
OWN += ("control_video", "output_type", "return_dict", "latents_path", "num_videos_per_prompt")


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """A pipeline and what it does in a cascade.

    Args:
        pipeline: any of the three kinds.
        factor: how much larger the video gets.
        arguments: of each call of the pipeline, such as `guidance_scale`; JSON values, to be saved.
    """

    kind: ClassVar[str]
    pipeline: VideoPipeline
    factor: int
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = sorted(set(self.arguments) & set(OWN))
        if taken:
            raise ValueError(
                f"{', '.join(taken)} of a stage's calls come from the cascade; leave them out of arguments"
            )

    @property
    @abstractmethod
    def more_frames(self) -> int:
        """Frames made for each frame given."""

    @abstractmethod
    def size(self, size: VideoSize) -> VideoSize:
        """Of the result, from that of the video given."""

    @abstractmethod
    def stream(self, chunks: Iterable[Tensor], prompt: Any, *, generators: Generators) -> Iterator[Tensor]:
        """Chunks `b 3 t h w` in [-1, 1] of the result; a timeline counts the result's frames."""

    def make(self, prompt: Any, size: VideoSize, generators: Generators, **inputs: Any) -> Tensor:
        """`b 3 t h w` in [-1, 1] of one call."""
        pipe: Any = self.pipeline
        frames, height, width = size
        extents = {"num_frames": frames, "height": height, "width": width}
        call = {**self.arguments, **extents, **inputs, "generator": list(generators), "output_type": "latent"}
        latents = pipe(prompt, **call).frames
        return torch.cat([chunk.float() for chunk in pipe.decode_stream(latents)], dim=2).clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class Interpolation(Stage):
    """`factor` - 1 new frames between any two (LaVie's temporal interpolation, arXiv 2309.15103): the given frames are
    known pixels, and come back unchanged.

    Args:
        window_frames: the most frames made at once; by default those that the pipeline was trained on. Windows share
            a given frame, so nothing jumps where they meet.
    """

    kind: ClassVar[str] = "interpolation"
    factor: int = 4
    window_frames: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 2:
            raise ValueError(f"an interpolation makes at least 2 frames of each, got factor {self.factor}")
        if self.window < self.factor + 1:
            raise ValueError(
                f"between two given frames lie {self.factor - 1} new ones: a window needs {self.factor + 1} frames, "
                f"got window_frames {self.window}"
            )

    @property
    def window(self) -> int:
        return self.pipeline.default("num_frames", self.window_frames, 17)

    @property
    def more_frames(self) -> int:
        return self.factor

    def size(self, size: VideoSize) -> VideoSize:
        return ((size[0] - 1) * self.factor + 1, size[1], size[2])

    def stream(self, chunks: Iterable[Tensor], prompt: Any, *, generators: Generators) -> Iterator[Tensor]:
        first = 0
        for given in time_windows(chunks, length=(self.window - 1) // self.factor + 1, overlap=1):
            size = self.size((given.shape[2], given.shape[3], given.shape[4]))
            video = given
            if size[0] > 1:
                known, mask = given.new_zeros(*given.shape[:2], *size), torch.zeros(size[0], 1, 1, dtype=torch.bool)
                known[:, :, :: self.factor], mask[:: self.factor] = given, True
                here = excerpt(prompt, first, first + size[0])
                video = self.make(here, size, generators, video=known, mask=mask)
                video[:, :, :: self.factor] = given.to(video)
            yield video if first == 0 else video[:, :, 1:]
            first += size[0] - 1


@dataclass(frozen=True, kw_only=True)
class SuperResolution(Stage):
    """`factor` times as many rows and columns (LaVie), or with factor 1 the same video restored (SeedVR, arXiv
    2501.01320): the given video, resized, goes through the control branch. With attention "windows" the transformer
    takes any size.

    Args:
        tile: frames, rows and columns of the result that are made at once, for bounded memory; `None` = all.
        overlap: frames, rows and columns that neighbouring tiles share; there one fades into the other. Tiles of a
            frame also share their noise.
    """

    kind: ClassVar[str] = "super_resolution"
    factor: int = 2
    tile: VideoSize | None = None
    overlap: VideoSize = (0, 0, 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 1:
            raise ValueError(f"super-resolution needs a factor of at least 1 (restoration), got {self.factor}")
        if not self.pipeline.transformer.config.control_layers:
            raise ValueError(
                "super-resolution sees the given video through a control branch, and this generator has none; give it "
                "one with pipe.transformer.add_control() and train it on small videos (--control half-size)"
            )
        if self.tile is None:
            if any(self.overlap):
                raise ValueError(f"overlap {self.overlap} is what tiles share; give a tile as well")
            return
        spec = self.pipeline.video_tokenizer.spec
        if not isinstance(self.pipeline, DiffusionVideoPipeline) or not spec.is_grid:
            raise ValueError("tiles share their noise: they need a diffusion pipeline over tokens on one thw grid")
        if any(not 0 <= shared < whole for shared, whole in zip(self.overlap, self.tile, strict=True)):
            raise ValueError(f"tiles overlap by less than their size {self.tile}, got overlap {self.overlap}")
        down, across = spec.parts[0].stride[1:]
        if any(extents[1] % down or extents[2] % across for extents in (self.tile, self.overlap)):
            raise ValueError(
                f"rows and columns of tile {self.tile} and overlap {self.overlap} must be multiples of the "
                f"{down}x{across} pixels of a token"
            )

    @property
    def more_frames(self) -> int:
        return 1

    def size(self, size: VideoSize) -> VideoSize:
        return (size[0], size[1] * self.factor, size[2] * self.factor)

    def stream(self, chunks: Iterable[Tensor], prompt: Any, *, generators: Generators) -> Iterator[Tensor]:
        shared, first, before = self.overlap[0], 0, None
        for given in time_windows(chunks, length=None if self.tile is None else self.tile[0], overlap=shared):
            frames = given.shape[2]
            made = self.window(given, excerpt(prompt, first, first + frames), generators)
            if before is not None:
                made = faded(before, made, kept=0)
            if frames > shared:
                yield made[:, :, : frames - shared]
            before, first = made[:, :, max(0, frames - shared) :], first + frames - shared
        if before is not None and before.shape[2]:
            yield before

    def window(self, given: Tensor, prompt: Any, generators: Generators) -> Tensor:
        """All rows and columns of the result for some frames, tile by tile."""
        frames, height, width = size = self.size((given.shape[2], given.shape[3], given.shape[4]))
        noise = self.noise(size, generators)
        _, tile_height, tile_width = size if self.tile is None else self.tile
        total, weights = given.new_zeros(*given.shape[:2], *size), given.new_zeros(height, width)
        down, across = self.pipeline.video_tokenizer.spec.unit[1:]
        for top, bottom in spans(height, tile=tile_height, overlap=self.overlap[1], unit=down):
            for left, right in spans(width, tile=tile_width, overlap=self.overlap[2], unit=across):
                inputs: dict[str, Any] = {"control_video": self.control(given, (top, bottom), (left, right))}
                if noise is not None:
                    rows, columns = slice(top // down, -(-bottom // down)), slice(left // across, -(-right // across))
                    inputs["latents"] = noise[:, :, rows, columns].flatten(1, 3)
                made = self.make(prompt, (frames, bottom - top, right - left), generators, **inputs)
                if (bottom - top, right - left) == (height, width):
                    return made
                weight = ramp(top, bottom, height, self.overlap[1])[:, None]
                weight = (weight * ramp(left, right, width, self.overlap[2])).to(total)
                total[..., top:bottom, left:right] += weight * made.to(total)
                weights[top:bottom, left:right] += weight
        return total / weights

    def control(self, given: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """A part of the given video as large as that of the result; only that part is enlarged."""
        if self.factor == 1:
            return given[..., rows[0] : rows[1], columns[0] : columns[1]]
        edge = 2  # pixels that bicubic interpolation reads beyond
        (top, above), (left, before) = ((max(0, span[0] // self.factor - edge), span[0]) for span in (rows, columns))
        bottom, right = (-(-span[1] // self.factor) + edge for span in (rows, columns))
        part = resized(given[..., top:bottom, left:right], self.factor)
        above, before = above - top * self.factor, before - left * self.factor
        return part[..., above : above + rows[1] - rows[0], before : before + columns[1] - columns[0]]

    def noise(self, size: VideoSize, generators: Generators) -> Tensor | None:
        """`b t h w c` of tokens, for a pipeline that starts from noise on a grid."""
        spec = self.pipeline.video_tokenizer.spec
        if not isinstance(self.pipeline, DiffusionVideoPipeline) or not spec.is_grid:
            return None
        return randn((len(generators), *spec.grid(size), spec.channels), generators)


STAGES: dict[str, type[Stage]] = {stage.kind: stage for stage in (Interpolation, SuperResolution)}


def time_windows(chunks: Iterable[Tensor], *, length: int | None, overlap: int) -> Iterator[Tensor]:
    """Windows of `length` frames, each of which begins with the last `overlap` ones of the one before; `None` = one.

    The last one may be shorter.
    """
    held = None
    for chunk in chunks:
        held = chunk if held is None else torch.cat([held, chunk.to(held)], dim=2)
        while length is not None and held.shape[2] > length:
            yield held[:, :, :length]
            held = held[:, :, length - overlap :]
    if held is not None:
        yield held


def spans(extent: int, *, tile: int, overlap: int, unit: int) -> Iterator[tuple[int, int]]:
    """Where tiles begin and end along an axis: at multiples of `unit`, at most `tile` long, the last one at the end."""
    start = 0
    while start + tile < extent:
        yield start, start + tile
        start = min(start + tile - overlap, -(-(extent - tile) // unit) * unit)
    yield start, extent


def ramp(start: int, stop: int, extent: int, overlap: int) -> Tensor:
    """Weights of a tile along an axis: rising from where another tile ends to 1, falling to where one begins."""
    place = torch.arange(stop - start)
    rising = (place + 1) / (overlap + 1) if start > 0 else torch.ones(stop - start)
    falling = (stop - start - place) / (overlap + 1) if stop < extent else torch.ones(stop - start)
    return torch.minimum(rising, falling).clamp(max=1)


def slowed(prompt: Any, factor: int) -> Any:
    """A timeline for a video with `factor` frames in the place of one."""
    return [(frame * factor, text) for frame, text in prompt] if is_timeline(prompt) else prompt
