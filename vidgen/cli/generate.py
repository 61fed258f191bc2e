"""`vidgen generate`: a video from a prompt."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from vidgen.cli.loading import Precision, load_pipeline


@dataclass(frozen=True, kw_only=True)
class Command:
    """Make a video from a prompt.

    The built-in models know the shapes world: a {small|large} {red|green|blue|yellow|purple|orange|cyan|white}
    {circle|square|triangle|star} {moving left|moving right|moving up|moving down|spinning|growing|shrinking|staying
    still} on a {black|gray|navy|brown} background. Two objects are joined by "and".

    Example: vidgen generate "a large red circle moving left on a navy background" --model shapes-masked -o circle.mp4
    """

    prompt: Annotated[Positional[str], arg(metavar="PROMPT")]
    """What the video should show, in quotes."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="FILE")]
    """The file to write: .mp4, .webm, .gif, or a name without a suffix for a folder of PNGs; several get numbers."""
    model: str = "shapes-masked"
    """Built-in name (see `vidgen models`), folder, or hub id."""
    num_videos: int = 1
    """How many videos to make; each has noise of its own, the first the same as when it is the only one."""
    num_frames: int | None = None
    """Frames of the video; the model's own number by default."""
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
    negative_prompt: str | None = None
    """What guidance steers away from; by default, away from no text."""
    start: Annotated[Path | None, arg(metavar="FILE")] = None
    """An image or a clip that the video begins with, of the same size; it comes back unchanged and is continued."""
    start_frames: int | None = None
    """How many frames of --start to take; all of them by default."""
    latents: Annotated[Path | None, arg(metavar="FILE")] = None
    """Also write the tokens to this safetensors file, before they are decoded."""
    seed: int = 0
    """The same seed gives the same video."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "fp32"
    """Number format of the networks."""

    def __post_init__(self) -> None:
        if self.num_videos < 1:
            raise ValueError(f"--num-videos must be at least 1, got {self.num_videos}")
        if self.seed < 0:
            raise ValueError(f"--seed must be 0 or more, got {self.seed}")
        if self.start_frames is not None and self.start is None:
            raise ValueError("--start-frames says how much of --start to take; give --start FILE too")


def output_files(path: Path, count: int) -> list[Path]:
    """One name for each video: `path` itself, or with several `NAME-1.mp4`, `NAME-2.mp4`…"""
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{number}") for number in range(1, count + 1)]


def run(command: Command) -> None:
    """Do it; errors are for the user."""
    import torch
    from einops import rearrange

    from vidgen.data import read_video, to_tensor, write_video

    start = None
    if command.start is not None:
        start = to_tensor(read_video(command.start, max_frames=command.start_frames).frames)
    pipeline = load_pipeline(command.model, device=command.device, precision=command.precision)
    videos = pipeline(
        command.prompt,
        negative_prompt=command.negative_prompt,
        num_frames=command.num_frames,
        height=command.height,
        width=command.width,
        num_inference_steps=command.steps,
        guidance_scale=command.guidance,
        num_videos_per_prompt=command.num_videos,
        generator=torch.Generator().manual_seed(command.seed),
        video=start,
        output_type="pt",
        latents_path=command.latents,
    ).frames
    for path, video in zip(output_files(command.output, command.num_videos), videos, strict=True):
        write_video(path, rearrange(video, "t c h w -> c t h w") * 2 - 1, fps=command.fps)
        frames, _, height, width = video.shape
        print(f"wrote {path} ({frames} frames of {width}x{height})")
