"""`vidgen generate`: a video from a prompt."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from vidgen.cli.loading import Precision, load_generator

if TYPE_CHECKING:
    import numpy as np
    import torch

    from vidgen.latents import VideoSize
    from vidgen.pipelines import Cascade
    from vidgen.pipelines.base import VideoPipeline

SIZE = {"num_frames": 17, "height": 64, "width": 64}  # of a model that says nothing about its own


@dataclass(frozen=True, kw_only=True)
class Command:
    """Make a video from a prompt.

    The built-in models know the shapes world: a {small|large} {red|green|blue|yellow|purple|orange|cyan|white}
    {circle|square|triangle|star} {moving left|moving right|moving up|moving down|spinning|growing|shrinking|staying
    still} on a {black|gray|navy|brown} background. Two objects are joined by "and".

    Example: vidgen generate "a large red circle moving left on a navy background" --model shapes-masked -o circle.mp4

    A longer video, whose prompt changes: add --num-frames 49 --then 24 "a large red circle moving right on a navy
    background". A video that goes on after a clip: --start clip.mp4. A clip under another prompt: --edit clip.mp4
    --strength 0.6.
    """

    prompt: Annotated[Positional[str], arg(metavar="PROMPT")]
    """What the video should show, in quotes."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="FILE")]
    """The file to write: .mp4, .webm, .gif, .png for a single frame, or a name without a suffix for a folder of PNGs;
    several get numbers."""
    model: str = "shapes-masked"
    """Built-in name (see `vidgen models`), folder, or hub id; of a pipeline, or of a cascade of several."""
    num_videos: int = 1
    """How many videos to make; each has noise of its own, the first the same as when it is the only one."""
    then: Annotated[tuple[tuple[int, str], ...], arg(metavar="FRAME PROMPT …")] = ()
    """Further prompts, each from a frame on: --then 24 "a blue star" 48 "a red star"."""
    num_frames: int | None = None
    """Frames of the video; the model's own number by default. More than --window are made window by window."""
    window: int | None = None
    """Frames made at once; the model's own number by default. Each window continues the one before."""
    overlap: int | None = None
    """Frames that a window shares with the one before; a third of it by default."""
    height: int | None = None
    """Pixel rows; the model's own number by default."""
    width: int | None = None
    """Pixel columns; the model's own number by default."""
    fps: float = 8.0
    """Frames a second of the file."""
    steps: int | None = None
    """Sampling steps; the model's own number by default."""
    guidance: float | None = None
    """Strength of classifier-free guidance, 1 for none; the model's own by default."""
    candidates: int | None = None
    """Videos made for each one that is kept: the most plausible to the model itself and, if it has a matcher, the one
    that shows the prompt best; the model's own number by default."""
    negative_prompt: str | None = None
    """What guidance steers away from; by default, away from no text."""
    start: Annotated[Path | None, arg(metavar="FILE")] = None
    """An image or a clip that the video begins with, of the same size; it comes back unchanged and is continued."""
    start_frames: int | None = None
    """How many frames of --start to take; all of them by default."""
    edit: Annotated[Path | None, arg(metavar="FILE")] = None
    """A clip to change; the video has its frames and its size."""
    strength: float | None = None
    """How much of the clip to --edit is made anew, above 0 to 1; 0.6 by default."""
    latents: Annotated[Path | None, arg(metavar="FILE")] = None
    """Also write the tokens to this safetensors file, before they are decoded."""
    seed: int = 0
    """The same seed gives the same video."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "fp32"
    """Number format of the networks."""

    @property
    def timeline(self) -> Any:
        """The prompt, or all of them with their first frames."""
        return [(0, self.prompt), *self.then] if self.then else self.prompt

    def __post_init__(self) -> None:
        if self.num_videos < 1:
            raise ValueError(f"--num-videos must be at least 1, got {self.num_videos}")
        if self.seed < 0:
            raise ValueError(f"--seed must be 0 or more, got {self.seed}")
        if self.start_frames is not None and self.start is None:
            raise ValueError("--start-frames says how much of --start to take; give --start FILE too")
        if self.strength is not None and self.edit is None:
            raise ValueError("--strength says how much of a clip is made anew; give --edit FILE too")
        if self.latents is not None and self.latents.suffix != ".safetensors":
            raise ValueError(
                f"--latents is a safetensors file: give a name that ends in .safetensors, got {self.latents}"
            )
        if self.output.suffix.lower() == ".png" and self.num_frames != 1:
            raise ValueError(
                f"{self.output} can hold one frame; add --num-frames 1, or leave the suffix out for a folder of PNGs"
            )
        if self.edit is not None and (self.start is not None or self.num_frames is not None):
            raise ValueError("--edit changes all frames of a clip; leave --start and --num-frames out")


def output_files(path: Path, count: int) -> list[Path]:
    """One name for each video: `path` itself, or with several `NAME-1.mp4`, `NAME-2.mp4`…"""
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{number}") for number in range(1, count + 1)]


def run(command: Command) -> None:
    """Do it; errors are for the user."""
    from vidgen.data import read_video, to_tensor, write_video
    from vidgen.data.write import check_writable
    from vidgen.pipelines import Cascade

    paths = output_files(command.output, command.num_videos)
    for path in paths:
        check_writable(path, fps=command.fps)
    if not command.prompt.strip():
        print("vidgen: the prompt is empty: the video is one of any", file=sys.stderr)
    given = None
    if command.start is not None or command.edit is not None:
        path, most = (command.start, command.start_frames) if command.edit is None else (command.edit, None)
        assert path is not None
        given = to_tensor(read_video(path, max_frames=most).frames)
    model = load_generator(command.model, device=command.device, precision=command.precision)
    made = of_cascade(command, model, given) if isinstance(model, Cascade) else of_pipeline(command, model, given)
    size, videos = made
    for path, video in zip(paths, videos, strict=True):
        write_video(path, video, fps=command.fps)
        print(f"wrote {path} ({size[0]} frames of {size[2]}x{size[1]})")


def of_pipeline(
    command: Command, pipeline: "VideoPipeline", given: "torch.Tensor | None"
) -> "tuple[VideoSize, Iterable[Any]]":
    """The size of the videos, and each as `write_video` takes it; longer ones than a window come as they are made."""
    import torch
    from einops import rearrange

    size = {name: pipeline.default(name, getattr(command, name), SIZE[name]) for name in SIZE}
    window = pipeline.default("num_frames", command.window, SIZE["num_frames"])
    call = {
        "negative_prompt": command.negative_prompt,
        "num_inference_steps": command.steps,
        "guidance_scale": command.guidance,
        "num_candidates": command.candidates,
        "generator": torch.Generator().manual_seed(command.seed),
        "video": given,
    }
    if command.latents is not None:
        call["latents_path"] = command.latents
    if command.edit is not None:
        assert given is not None
        call["strength"] = 0.6 if command.strength is None else command.strength
        size = dict(zip(SIZE, given.shape[1:], strict=True))
    extent = (size["num_frames"], size["height"], size["width"])
    if extent[0] <= window or command.edit is not None:
        sampling: Any = pipeline
        made = sampling(
            command.timeline, **size, **call, num_videos_per_prompt=command.num_videos, output_type="pt"
        ).frames
        if command.latents is not None:
            describe_latents(command, pipeline)
        return extent, (rearrange(video, "t c h w -> c t h w") * 2 - 1 for video in made)
    if command.latents is not None:
        raise ValueError(
            f"--latents holds the tokens of one window, and {extent[0]} frames take several of {window}; leave "
            f"--latents out or make them at once: --window {extent[0]}"
        )
    long = {**size, **call, "window_frames": window, "overlap_frames": command.overlap}
    return extent, (streamed(pipeline.extend_stream(command.timeline, **long)) for _ in range(command.num_videos))


def of_cascade(command: Command, chain: "Cascade", given: "torch.Tensor | None") -> "tuple[VideoSize, Iterable[Any]]":
    """As `of_pipeline`; sizes that a call names are those of the base's video, and a clip to edit takes its place."""
    import torch

    for name in ("start", "strength", "latents", "window", "overlap"):
        if getattr(command, name) is not None:
            raise ValueError(
                f"--{name} is a matter of one pipeline, and {command.model} is a cascade of several; leave it out"
            )
    call: dict[str, Any] = {
        "num_frames": command.num_frames,
        "height": command.height,
        "width": command.width,
        "num_inference_steps": command.steps,
        "guidance_scale": command.guidance,
        "num_candidates": command.candidates,
        "negative_prompt": command.negative_prompt,
    }
    call = {name: value for name, value in call.items() if value is not None}
    if given is not None:
        call["video"], size = given, given.shape[1:]
    elif chain.base is None:
        raise ValueError(f"{command.model} has no base pipeline: give the video that it is to refine (--edit FILE)")
    else:
        size = tuple(chain.base.default(name, getattr(command, name), SIZE[name]) for name in SIZE)
    generator = torch.Generator().manual_seed(command.seed)
    videos = (streamed(chain.stream(command.timeline, generator=generator, **call)) for _ in range(command.num_videos))
    return chain.size((size[0], size[1], size[2])), videos


def describe_latents(command: Command, pipeline: "VideoPipeline") -> None:
    """Say in the file of --latents what `vidgen detokenize` wants to know of it."""
    from vidgen.latents import Latents
    from vidgen.nn.fingerprint import weights_sha256

    assert command.latents is not None
    latents = Latents.load(command.latents)
    latents.metadata.update(fps=f"{command.fps:g}", tokenizer=f"the tokenizer of {command.model}")
    if command.precision == "fp32":  # the hash is one of float32 weights
        latents.metadata.update(weights_sha256=weights_sha256(pipeline.video_tokenizer))
    latents.save(command.latents)


def streamed(chunks: "Iterator[torch.Tensor]") -> "Iterator[np.ndarray]":
    """Chunks `1 3 t h w` as frames, one after the other."""
    from vidgen.data import to_frames

    for chunk in chunks:
        yield from to_frames(chunk[0].cpu())
