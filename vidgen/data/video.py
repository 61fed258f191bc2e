"""Reads videos as upright RGB frames: whole clips, or one frame at a time in flat memory."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from av import VideoFrame
from av.error import FFmpegError
from av.video.reformatter import Interpolation
from einops import rearrange
from torch import Tensor

from vidgen.data.decode import MAX_PIXELS, TimedFrame, VideoError, VideoInfo, image_files, open_video

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in ("mp4", "m4v", "mov", "mkv", "webm", "avi", "gif", "mpg", "mpeg", "ts", "m2ts", "mts", "wmv", "flv")
    + ("ogv", "ogg", "3gp", "y4m", "mxf")
)
MAX_BYTES = 8 * 2**30
# Without these flags, swscale's fast route darkens colours by up to 3 levels of 255. Its slices in threads overwrite
# the ends of each other's rows at widths such as 22, so every call asks for one thread.
LONGEST_STILL = 3600.0  # seconds that resampling repeats a frame for
EXACT_COLOUR = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP


@dataclass(frozen=True)
class VideoClip:
    """Frames in memory."""

    frames: np.ndarray  # uint8 `t h w 3`
    fps: float
    info: VideoInfo

    def __repr__(self) -> str:
        frames, height, width, _ = self.frames.shape
        return f"VideoClip({frames} frames, height {height}, width {width}, {self.fps:g} fps)"


def probe(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """Size, rate and claims of a video, decoding only its first frame. Raises VideoError."""
    return open_video(path, max_pixels=max_pixels)[0]


def iter_frames(
    path: str | Path,
    *,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    start: float = 0.0,
    stride: int = 1,
    max_frames: int | None = None,
    strict: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[np.ndarray]:
    """Frames of a video, decoded as they are asked for; memory does not grow with the length of the file.

    Reads whatever PyAV opens, GIFs, images, and folders of images (25 frames/s unless the images say otherwise). The
    rotation in the metadata is applied; transparency is dropped; deep colour becomes 8 bits without tone mapping.

    Args:
        fps: resample to this rate by the frames' times: frame k is the one on screen at `start + k / fps` seconds.
            None yields the frames of the file as they are.
        size: (height, width); frames are scaled to cover it and cropped at the centre. None keeps the file's size.
        start: seconds from the first frame.
        stride: yield every n-th frame (after resampling).
        max_frames: end after so many yielded frames.
        strict: raise for a damaged tail instead of warning how many frames were lost.
        max_pixels: largest height × width that is decoded, and that a frame is scaled to before it is cropped.

    Yields:
        uint8 `h w 3`.

    Raises:
        VideoError: at the call for what cannot be opened; while iterating for damage with `strict`, for a size that
            changes on the way when no `size` was chosen, and for frames so long and narrow that covering `size` takes
            more than `max_pixels`.
        ValueError: an argument out of range.
    """
    for name, value in (("fps", fps), ("stride", stride), ("max_frames", max_frames)):
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be above 0; got {value}")
    if start < 0:
        raise ValueError(f"start is in seconds from the first frame and cannot be negative; got {start}")
    if size is not None and min(size) < 1:
        raise ValueError(f"size is (height, width), each at least 1; got {size}")
    info, frames = open_video(path, start=start, strict=strict, max_pixels=max_pixels)
    chosen = choose_frames(frames, info, fps=fps, start=start, stride=stride, max_frames=max_frames)
    return _convert(chosen, path=path, size=size, max_pixels=max_pixels)


def choose_frames(
    frames: Iterator[TimedFrame],
    info: VideoInfo,
    *,
    fps: float | None = None,
    start: float = 0.0,
    stride: int = 1,
    max_frames: int | None = None,
) -> Iterator[TimedFrame]:
    """Which of the frames that `open_video` gives `iter_frames` yields, some of them several times."""
    if fps is not None:
        frames = _resample(frames, fps=fps, start=start, slack=0.25 * min(1 / fps, 1 / info.fps))
    elif start > 0:
        frames = (frame for frame in frames if frame.time > start - 0.25 / info.fps)
    stop = None if max_frames is None else stride * (max_frames - 1) + 1
    return islice(frames, 0, stop, stride)


def read_video(
    path: str | Path,
    *,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    start: float = 0.0,
    stride: int = 1,
    max_frames: int | None = None,
    strict: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> VideoClip:
    """A whole video, or a part of it, in memory. Arguments and errors as in `iter_frames`.

    Args:
        max_bytes: most memory that the frames may take; beyond it VideoError is raised.
    """
    info = probe(path, max_pixels=max_pixels)
    decoded = iter_frames(
        path,
        fps=fps,
        size=size,
        start=start,
        stride=stride,
        max_frames=max_frames,
        strict=strict,
        max_pixels=max_pixels,
    )
    frames, taken = [], 0
    for frame in decoded:
        taken += frame.nbytes
        if taken > max_bytes:
            raise VideoError(
                f"expected at most {max_bytes} bytes of frames; {path} has more: "
                "pass max_frames, fps or size, or use iter_frames"
            )
        frames.append(frame)
    if not frames:
        raise VideoError(f"expected frames after {start} s; {path} ends before; choose an earlier start")
    return VideoClip(frames=np.stack(frames), fps=fps / stride if fps else info.fps / stride, info=info)


def to_tensor(frames: np.ndarray) -> Tensor:
    """uint8 `t h w 3` -> float32 `3 t h w` in [-1, 1]."""
    return rearrange(torch.from_numpy(frames), "t h w c -> c t h w").to(torch.float32, copy=True).div_(127.5).sub_(1)


def to_frames(video: Tensor) -> np.ndarray:
    """float `3 t h w` in [-1, 1] (clipped) -> uint8 `t h w 3`."""
    if video.ndim != 4 or video.shape[0] != 3 or not video.is_floating_point():
        raise ValueError(f"expected float `3 t h w` in [-1, 1]; got {video.dtype} {tuple(video.shape)}")
    levels = video.detach().float().add(1).mul(127.5).round().clamp(0, 255).byte()
    return rearrange(levels, "c t h w -> t h w c").contiguous().cpu().numpy()


def find_videos(root: str | Path) -> list[Path]:
    """The videos at or below a path, sorted: video files, and folders that hold images and no videos.

    A file is returned as it is. Hidden files and folders are passed over.

    Raises:
        VideoError: nothing there, or nothing in it.
    """
    root = Path(root)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise VideoError(f"expected a video or a folder of videos; {root} does not exist")
    found = []
    for name, names, files in os.walk(root):
        folder = Path(name)
        names[:] = [name for name in names if name[0] != "."]
        videos = [folder / name for name in files if Path(name).suffix.lower() in VIDEO_SUFFIXES and name[0] != "."]
        if not videos and not names and image_files(folder):
            videos = [folder]
        found.extend(videos)
    if not found:
        raise VideoError(f"expected videos below {root}; found none ({', '.join(sorted(VIDEO_SUFFIXES))})")
    return sorted(found)


def _resample(frames: Iterator[TimedFrame], *, fps: float, start: float, slack: float) -> Iterator[TimedFrame]:
    """At each tick `start + k / fps` the latest frame that has begun; `slack` absorbs rounded times.

    Raises:
        VideoError: a frame that stays longer than `LONGEST_STILL`, which a few bytes can claim.
    """
    shown, tick = None, 0
    for frame in frames:
        if shown is not None:
            check_still(frame.time - shown.time)
        while shown is not None and start + tick / fps < frame.time - slack:
            yield shown
            tick += 1
        shown = frame
    if shown is not None:
        check_still(shown.duration)
    while shown is not None and start + tick / fps < shown.time + shown.duration - slack:
        yield shown
        tick += 1


def check_still(seconds: float) -> None:
    """VideoError for a frame that is on screen for too long to be repeated."""
    if seconds > LONGEST_STILL:
        raise VideoError(
            f"expected frames that stay at most {LONGEST_STILL:.0f} s, and one stays {seconds:.0f} s; the file is "
            "damaged, or has to be read at its own rate (no fps)"
        )


def _convert(
    frames: Iterator[TimedFrame], *, path: str | Path, size: tuple[int, int] | None, max_pixels: int
) -> Iterator[np.ndarray]:
    last, pixels = None, None
    for frame in frames:
        if frame is not last:  # resampling repeats frames
            before, pixels = pixels, _upright_pixels(frame, path=path, size=size, max_pixels=max_pixels)
            if before is not None and before.shape != pixels.shape:
                old, new = ("x".join(map(str, shape[1::-1])) for shape in (before.shape, pixels.shape))
                raise VideoError(
                    f"expected frames of one size; {path} goes from {old} to {new} at {frame.time:.2f} s; choose a size"
                )
            last = frame
        assert pixels is not None
        yield pixels


def _upright_pixels(
    frame: TimedFrame, *, path: str | Path, size: tuple[int, int] | None, max_pixels: int
) -> np.ndarray:
    picture = frame.picture
    if size is None:
        exact = picture.reformat(format="rgb24", interpolation=Interpolation.BILINEAR | EXACT_COLOUR, threads=1)
        return np.ascontiguousarray(np.rot90(exact.to_ndarray(), frame.quarter_turns))
    height, width = size if frame.quarter_turns % 2 == 0 else size[::-1]
    scale = max(height / picture.height, width / picture.width)
    scaled_height, scaled_width = max(height, round(picture.height * scale)), max(width, round(picture.width * scale))
    kernel = Interpolation.AREA if scale < 1 else Interpolation.BICUBIC
    wanted = f"it covers {width}x{height} as {scaled_width}x{scaled_height}"
    if scaled_height * scaled_width > max_pixels:
        raise _too_long(path, picture, f"{wanted}, and max_pixels is {max_pixels}")
    try:
        exact = picture.reformat(
            scaled_width, scaled_height, format="rgb24", interpolation=kernel | EXACT_COLOUR, threads=1
        )
    except FFmpegError as error:  # the bound of FFmpeg, which is one of sides too
        raise _too_long(path, picture, f"{wanted}: {error.strerror}") from None
    scaled = exact.to_ndarray()
    top, left = (scaled_height - height) // 2, (scaled_width - width) // 2
    cropped = scaled[top : top + height, left : left + width]
    return np.ascontiguousarray(np.rot90(cropped, frame.quarter_turns))


def _too_long(path: str | Path, picture: VideoFrame, reason: str) -> VideoError:
    return VideoError(
        f"expected frames that can be scaled to cover the size asked for; {path} is {picture.width}x{picture.height} "
        f"({reason}); crop it, or choose a smaller size or one more like its own"
    )
