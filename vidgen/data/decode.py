"""Opens anything that holds pictures (video, GIF, image, folder of images) and yields frames with their times."""

import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from PIL import Image, ImageOps, ImageSequence

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
IMAGE_FPS = 25.0  # rate of pictures that carry no times
MAX_PIXELS = 2**26  # per frame; 8K video has 2**25
_TEXT_CODECS = frozenset({"ansi", "bintext", "xbin", "idf"})  # FFmpeg would draw any text or binary file as a terminal


class VideoError(ValueError):
    """A file that cannot be read as a video; the message is one line for the user."""


class DamagedVideoWarning(UserWarning):
    """The tail of a file is damaged or missing; the frames before it are used."""


@dataclass(frozen=True)
class VideoInfo:
    """What the header says, except height and width: those are the first frame's, upright."""

    height: int
    width: int
    fps: float  # average rate
    num_frames: int | None  # as claimed, often wrong; None when the file does not say
    duration: float | None  # seconds, as claimed
    codec: str
    rotation: int  # degrees counterclockwise that reading applies
    has_sound: bool = False


@dataclass(frozen=True)
class TimedFrame:
    """One decoded frame."""

    time: float  # seconds since the first frame
    duration: float  # seconds
    picture: av.VideoFrame
    quarter_turns: int  # counterclockwise turns that make it upright


@dataclass(frozen=True)
class _Stream:
    index: int
    fps: float
    num_frames: int | None
    duration: float | None
    codec: str


def open_video(
    path: str | Path, *, start: float = 0.0, strict: bool = False, max_pixels: int = MAX_PIXELS
) -> tuple[VideoInfo, Iterator[TimedFrame]]:
    """Open a video and decode its first frame; the others follow as the iterator is used.

    Of several video streams the first that gives a frame is read; cover art is not a video. Times always rise: a frame
    whose stamp is missing or not later than the one before it follows it at the average rate.

    Args:
        start: seconds; reading may begin at the last key frame before it, so the first frames can be earlier.
        strict: raise when the tail is damaged, instead of warning and ending there.
        max_pixels: largest height × width of a frame.

    Raises:
        VideoError: missing file, not a video, audio only, no frame, too large; with `strict` also a damaged tail.
    """
    path = Path(path)
    if not path.exists():
        raise VideoError(f"expected a video file, an image or a folder of images; {path} does not exist")
    if path.is_dir():
        return _open_images(image_files(path), name=path, max_pixels=max_pixels)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _open_images([path], name=path, max_pixels=max_pixels)
    return _open_container(path, start=start, strict=strict, max_pixels=max_pixels)


def image_files(folder: Path) -> list[Path]:
    """The images directly in a folder, in counting order (frame2 before frame10)."""

    def counting(path: Path) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]

    found = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    return sorted(found, key=counting)


def _container(path: Path) -> InputContainer:
    try:
        # Playlists and the like must not reach into the network; an absolute path is never taken for a protocol.
        return av.open(str(path.resolve()), options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except FFmpegError as error:
        raise VideoError(
            f"expected a video; {path} cannot be opened ({error.strerror}); check that it is complete and is a video"
        ) from None


def _open_container(
    path: Path, *, start: float, strict: bool, max_pixels: int
) -> tuple[VideoInfo, Iterator[TimedFrame]]:
    with _container(path) as container:
        others = sorted({stream.type for stream in container.streams if stream.type != "video"})
        streams = [_describe(stream, container) for stream in container.streams.video if _is_video(stream)]
    if not streams:
        raise VideoError(
            f"expected a video; {path} has no video stream (only {', '.join(others) or 'text'}); pass another file"
        )
    for stream in streams:
        frames = _decode(path, stream, start=start, strict=strict, max_pixels=max_pixels)
        first = next(frames, None)
        if first is not None:
            height, width = first.picture.height, first.picture.width
            if first.quarter_turns % 2:
                height, width = width, height
            rotation = 90 * first.quarter_turns
            claimed = (stream.fps, stream.num_frames, stream.duration, stream.codec)
            info = VideoInfo(height, width, *claimed, rotation, has_sound="audio" in others)
            return info, chain([first], frames)
    raise VideoError(f"expected a video; no frame of {path} can be decoded; it is empty or damaged from the start")


def _is_video(stream: av.VideoStream) -> bool:
    cover_art = bool(stream.disposition & Disposition.attached_pic)
    return not cover_art and stream.codec_context is not None and stream.codec_context.name not in _TEXT_CODECS


def _describe(stream: av.VideoStream, container: InputContainer) -> _Stream:
    if stream.duration is not None and stream.time_base is not None:
        duration = float(stream.duration * stream.time_base)
    else:
        duration = container.duration / av.time_base if container.duration else None
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    fps = float(rate) if rate else IMAGE_FPS
    return _Stream(stream.index, fps, stream.frames or None, duration, stream.codec_context.name)


def _decode(path: Path, described: _Stream, *, start: float, strict: bool, max_pixels: int) -> Iterator[TimedFrame]:
    """Frames of one stream until its end or its damage; nothing at all when the first frame is already damaged."""
    period = 1 / described.fps
    count, time, end, seen_until, damage = 0, -period, 0.0, 0.0, ""
    with _container(path) as container:
        stream = container.streams[described.index]
        assert isinstance(stream, av.VideoStream) and stream.time_base is not None
        _check_pixels(path, stream.codec_context.height, stream.codec_context.width, max_pixels)
        origin = None
        if start > 0 and container.format.name != "gif":  # FFmpeg cannot seek in a GIF
            container.seek(int(start / stream.time_base) + (stream.start_time or 0), stream=stream)
            origin = float((stream.start_time or 0) * stream.time_base)
        # All streams pass by, though one is decoded: their last time tells whether the file was cut.
        packets = container.demux()
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                if packet.pts is not None and packet.time_base is not None:
                    seen_until = max(seen_until, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                pictures = packet.decode() if packet.stream.index == stream.index else []
            except FFmpegError as error:
                damage = error.strerror
                break
            for picture in pictures:
                assert isinstance(picture, av.VideoFrame)
                _check_pixels(path, picture.height, picture.width, max_pixels)
                if origin is None:
                    origin = picture.time or 0.0
                stamp = time if picture.time is None else picture.time - origin
                time = stamp if stamp > time else time + period
                duration = float(picture.duration * stream.time_base) if picture.duration else period
                end, count = time + duration, count + 1
                yield TimedFrame(time, duration, picture, round(picture.rotation / 90) % 4)
        claimed_end = (container.duration or 0) / av.time_base + (container.start_time or 0) / av.time_base
        missing = claimed_end - seen_until
        if container.format.name == "avi" and described.num_frames:
            # An AVI's duration follows from the size of the file, so only the frame count shows a cut.
            missing = max(missing, described.num_frames * period - end)
    # Headers are off by a frame or two in healthy files.
    if not damage and missing > max(3 * period, 0.02 * claimed_end):
        damage = "the file ends before its header says"
    if damage and count:
        used = count if start == 0 else round(end / period)
        total = described.num_frames or (round(described.duration / period) if described.duration else None)
        lost = f"{max(total - used, 1)} of {max(total, used + 1)} frames" if total else "an unknown number of frames"
        message = f"{path}: damaged after {used} frames, {lost} lost ({damage})"
        if strict:
            raise VideoError(f"expected an undamaged video; {message}; repair it, or take what is left (strict=False)")
        warnings.warn(message, DamagedVideoWarning, stacklevel=2)


def _check_pixels(path: Path, height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise VideoError(
            f"expected at most {max_pixels} pixels per frame; {path} is {width}x{height}; shrink it or raise max_pixels"
        )


def _open_images(paths: list[Path], *, name: Path, max_pixels: int) -> tuple[VideoInfo, Iterator[TimedFrame]]:
    if not paths:
        raise VideoError(f"expected images in the folder {name}; it has none ({', '.join(sorted(IMAGE_SUFFIXES))})")
    frames = _image_frames(paths, max_pixels=max_pixels)
    first = next(frames)
    height, width, fps = first.picture.height, first.picture.width, 1 / first.duration
    count = None if len(paths) == 1 else len(paths)
    duration = None if count is None else count / fps
    return VideoInfo(height, width, fps, count, duration, "images", 0), chain([first], frames)


def _image_frames(paths: list[Path], *, max_pixels: int) -> Iterator[TimedFrame]:
    time = 0.0
    for path in paths:
        try:
            with Image.open(path) as image:
                _check_pixels(path, image.height, image.width, max_pixels)
                # `write_video` leaves the rate of a folder in its images; animated ones carry milliseconds.
                rate = _rate(path, image.info.get("vidgen:fps", IMAGE_FPS))
                for page in ImageSequence.Iterator(image):
                    _check_pixels(path, page.height, page.width, max_pixels)
                    milliseconds = page.info.get("duration", 0)
                    timed = isinstance(milliseconds, int | float) and milliseconds > 0  # a PNG's text may say anything
                    duration = milliseconds / 1000 if timed else 1 / rate
                    upright = ImageOps.exif_transpose(page)
                    if upright.mode.startswith("I;16"):
                        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
                    pixels = np.asarray(upright.convert("RGB"))
                    yield TimedFrame(time, duration, av.VideoFrame.from_ndarray(pixels, format="rgb24"), 0)
                    time += duration
        except VideoError:
            raise
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise VideoError(f"expected an image; {path} cannot be read ({error}); replace or delete it") from None


def _rate(path: Path, said: str | float) -> float:
    """The frames per second that an image says; VideoError for what is no rate."""
    try:
        rate = float(said)
    except ValueError:
        rate = math.nan
    if not (0 < rate < math.inf and 1 / rate < math.inf):
        raise VideoError(
            f"expected frames per second above 0 in the text vidgen:fps of {path}, got {str(said)[:40]!r}; remove it"
        )
    return rate
