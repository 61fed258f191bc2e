"""Sample videos of a run: a GIF in the run folder and an animated image in TensorBoard."""

import io
from pathlib import Path

from einops import rearrange
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

FRAMES_PER_SECOND = 8


def gif_bytes(videos: Tensor) -> tuple[bytes, int, int]:
    """Videos `b 3 t h w` in [-1, 1] side by side as an endless GIF; also its height and width."""
    pixels = ((videos.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    frames = [Image.fromarray(frame) for frame in rearrange(pixels, "b c t h w -> t h (b w) c").numpy()]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, format="GIF", save_all=True, append_images=frames[1:], duration=1000 // FRAMES_PER_SECOND, loop=0
    )
    return buffer.getvalue(), frames[0].height, frames[0].width


def save_gif(path: Path, videos: Tensor) -> None:
    """Write videos `b 3 t h w` in [-1, 1] side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gif_bytes(videos)[0])


def add_video(writer: SummaryWriter, name: str, videos: Tensor, *, step: int) -> None:
    """Show videos in TensorBoard; its own add_video would need another package to make the same GIF."""
    encoded, height, width = gif_bytes(videos)
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
