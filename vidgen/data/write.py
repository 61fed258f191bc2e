"""Writes videos: mp4, webm, GIF and folders of PNGs; from tensors or from a stream of frames, whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from vidgen.data.video import EXACT_COLOUR, to_frames

_FORMATS = {".mp4": "libx264", ".webm": "libvpx-vp9", ".gif": "gif"}
_IMAGE = ".png"
_QUALITY = {
    ".mp4": {"crf": "16", "preset": "medium"},
    ".webm": {"crf": "18", "b": "0", "cpu-used": "4", "row-mt": "1"},
    ".gif": {},
}
_MAX_GIF_FPS = 50  # delays are whole hundredths of a second, and viewers slow a delay of one down to ten


def write_video(path: str | Path, video: Tensor | Iterable[np.ndarray | Image.Image], *, fps: float) -> Path:
    """Write a video; the suffix of the path says how, and no suffix means a folder of PNGs, .png an image of one frame.

    mp4 is h264 and webm is vp9, near lossless for the eye, BT.709; sizes are kept exactly (an odd side makes the mp4
    4:4:4, which some hardware players refuse). A GIF has 256 colours per frame and hundredths of a second. PNGs
    are lossless and carry the rate, which `read_video` finds. Missing parent folders are made. The file appears under
    its name when it is complete; an existing file is replaced, an existing folder with content is refused.

    Args:
        video: float `3 t h w` in [-1, 1] (clipped); or frames, one at a time in flat memory: uint8 `h w 3`, floats in
            [0, 1] (diffusers' "np"), or PIL images ("pil").
        fps: frames per second.

    Returns:
        The path.

    Raises:
        ValueError: unknown suffix, fps out of range, no frames, frames of another shape, several frames for an image, a
            folder in the way.
    """
    path = check_writable(path, fps=fps)
    frames = _checked(iter(to_frames(video)) if isinstance(video, Tensor) else map(_levels, video))
    first = next(frames, None)
    if first is None:
        raise ValueError(f"expected at least one frame to write to {path}; got none")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        if path.suffix == "":
            _write_images(partial, chain([first], frames), fps=fps)
        elif path.suffix.lower() == _IMAGE:
            if next(frames, None) is not None:
                raise ValueError(
                    f"{path} can hold one frame, and there are more; leave the suffix out for a folder of PNGs"
                )
            _write_image(partial, first, fps=fps)
        else:
            _encode(partial, chain([first], frames), fps=fps)
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)
        raise
    return path


def check_writable(path: str | Path, *, fps: float) -> Path:
    """The path, if `write_video` could write to it; ValueError as there, before any frame is made."""
    path = Path(path)
    if path.suffix.lower() not in {*_FORMATS, _IMAGE, ""}:
        raise ValueError(
            f"cannot write {path.name}: choose a name that ends in {', '.join(_FORMATS)} or, for one frame, {_IMAGE}; "
            "or no suffix for PNGs"
        )
    if path.suffix and path.is_dir():
        raise ValueError(f"cannot write {path}: a folder has that name; choose another one")
    if not 0 < fps <= 1000 or (path.suffix.lower() == ".gif" and fps > _MAX_GIF_FPS):
        raise ValueError(f"fps must be above 0 and at most 1000 ({_MAX_GIF_FPS} for a GIF); got {fps}")
    if path.suffix == "" and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists and is not an empty folder; choose another name or remove it")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"cannot write {path}: {above} is no folder that may be written to; choose another place")
    return path


def _levels(frame: np.ndarray | Image.Image) -> np.ndarray:
    """A frame as uint8 `h w 3`; what is neither an image nor floats in [0, 1] stays as it is."""
    if isinstance(frame, Image.Image):
        return np.asarray(frame.convert("RGB"))
    if np.issubdtype(frame.dtype, np.floating) and 0 <= frame.min() <= frame.max() <= 1:
        return (frame * 255).round().astype(np.uint8)
    return frame


def _checked(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    shape = None
    for number, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or shape not in (None, frame.shape):
            raise ValueError(
                f"expected frames {shape or '(h, w, 3)'}, uint8 or floats in [0, 1]; frame {number} is {frame.dtype} "
                f"{frame.shape}"
            )
        shape = frame.shape
        yield frame


def _write_images(folder: Path, frames: Iterable[np.ndarray], *, fps: float) -> None:
    folder.mkdir()
    for number, frame in enumerate(frames):
        _write_image(folder / f"{number:06d}.png", frame, fps=fps)


def _write_image(path: Path, frame: np.ndarray, *, fps: float) -> None:
    rate = PngInfo()
    rate.add_text("vidgen:fps", repr(float(fps)))
    Image.fromarray(frame).save(path, pnginfo=rate)


def _encode(path: Path, frames: Iterator[np.ndarray], *, fps: float) -> None:
    suffix = path.suffix.lower()
    rate = Fraction(fps).limit_denominator(1001)
    first = next(frames)
    height, width = first.shape[:2]
    odd = height % 2 or width % 2
    with av.open(str(path.resolve()), "w", format=suffix[1:]) as container:
        stream = container.add_stream(_FORMATS[suffix], rate=rate, options=_QUALITY[suffix])
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = height, width
        if suffix == ".gif":
            stream.pix_fmt = "pal8"
        else:
            stream.pix_fmt = "yuv444p" if odd and suffix == ".mp4" else "yuv420p"
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
            context.color_range = ColorRange.MPEG
        for frame in chain([first], frames):
            picture = _palette_picture(frame) if suffix == ".gif" else _yuv_picture(frame, stream.pix_fmt)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _yuv_picture(frame: np.ndarray, pixel_format: str) -> av.VideoFrame:
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    return picture.reformat(
        format=pixel_format,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=Interpolation.BICUBIC | EXACT_COLOUR,
        threads=1,
    )


def _palette_picture(frame: np.ndarray) -> av.VideoFrame:
    image = Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE)
    colours = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 4), dtype=np.uint8)
    palette[:, 0] = 255
    palette[: len(colours), 1:] = colours
    indexed: Any = (np.asarray(image), palette)  # PyAV takes the pair; its type stub does not know
    return av.VideoFrame.from_ndarray(indexed, format="pal8")
