"""Video codecs as subjects: clips through x264, x265, SVT-AV1 or VP9 in memory, the bytes of their packets counted.

PyAV brings the encoders; no ffmpeg program is needed. One thread each, so that the bits do not depend on the number of
cores; on some clips of 64×64 x264 and x265 still vary by up to 1 % of their bytes from call to call.
The container is not counted, nor the line of text in which x264 names itself (about 600 bytes, which would be a tenth
of a short clip at low quality). Frames become BT.709 in the studio range, as players expect, at a nominal 25 frames/s.
"""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from torch import Tensor

from vidgen.data import to_frames, to_tensor
from vidgen.data.video import EXACT_COLOUR
from vidgen.eval.clips import Clip, Exclusion
from vidgen.eval.codebook import CodebookUsage
from vidgen.eval.subjects import Counts, Pair, Subject

FRAME_RATE = 25
KEY_FRAME_DISTANCE = 250
USER_DATA = b"\0\0\1\6\5"  # start code, SEI, user_data_unregistered (H.264, 7.3.2.3 and D.1)
START_CODE = b"\0\0\1"


@dataclass(frozen=True, kw_only=True)
class Codec:
    """An encoder with its settings, and the decoder that reads it.

    Args:
        chroma: pixels across which a sample of colour extends, 2 for 4:2:0; sides have to divide by it.
        crfs: constant qualities from good to poor that draw a useful curve.
        low_delay: options that take the place of `options` where no frame may wait for a later one.
    """

    encoder: str
    decoder: str
    pixel_format: str = "yuv420p"
    chroma: int = 2
    crfs: tuple[int, ...]
    worst_crf: int
    options: dict[str, str] = field(default_factory=dict)
    low_delay: dict[str, str] = field(default_factory=dict)


_X264: dict[str, Any] = {
    "decoder": "h264",
    "crfs": (23, 28, 33, 38),
    "worst_crf": 51,
    "options": {"preset": "medium"},
    "low_delay": {"preset": "medium", "bf": "0"},
}
_X265_QUIET = "log-level=none:info=0:pools=none:frame-threads=1"
_X265: dict[str, Any] = {
    "encoder": "libx265",
    "decoder": "hevc",
    "crfs": (23, 28, 33, 38),
    "worst_crf": 51,
    "options": {"preset": "medium", "x265-params": _X265_QUIET},
    "low_delay": {"preset": "medium", "x265-params": f"{_X265_QUIET}:bframes=0"},
}
_VP9: dict[str, Any] = {
    "encoder": "libvpx-vp9",
    "decoder": "vp9",
    "crfs": (31, 39, 47, 55),
    "worst_crf": 63,
    "options": {"b": "0", "cpu-used": "2"},
    "low_delay": {"b": "0", "cpu-used": "2", "lag-in-frames": "0"},
}
CODECS: dict[str, Codec] = {
    "x264": Codec(encoder="libx264", **_X264),
    "x264-444": Codec(encoder="libx264", pixel_format="yuv444p", chroma=1, **_X264),
    "x264-rgb": Codec(encoder="libx264rgb", pixel_format="rgb24", chroma=1, **_X264),
    "x265": Codec(**_X265),
    "x265-444": Codec(pixel_format="yuv444p", chroma=1, **_X265),
    "svtav1": Codec(
        encoder="libsvtav1",
        decoder="libdav1d",
        crfs=(31, 39, 47, 55),
        worst_crf=63,
        options={"preset": "8", "svtav1-params": "lp=1"},
        low_delay={"preset": "8", "svtav1-params": "lp=1:pred-struct=1"},
    ),
    "vp9": Codec(**_VP9),
    "vp9-444": Codec(pixel_format="yuv444p", chroma=1, **_VP9),
}


class CodecSubject(Subject):
    """A codec at one constant quality (`crf`).

    Args:
        name: of an entry of `CODECS`.
        key_frame_distance: most frames from one key frame to the next; shorter clips have the one they begin with.
        low_delay: without frames that refer to later ones.

    Raises:
        ValueError: no such codec, an encoder that this PyAV lacks, a quality out of its range.
    """

    device = torch.device("cpu")

    def __init__(
        self, name: str, crf: int, *, key_frame_distance: int = KEY_FRAME_DISTANCE, low_delay: bool = False
    ) -> None:
        if name not in CODECS:
            raise ValueError(f"there is no codec {name!r}; there are {', '.join(CODECS)}")
        self.codec, self.crf, self.key_frame_distance, self.low_delay = CODECS[name], crf, key_frame_distance, low_delay
        if not can_encode(self.codec):
            raise ValueError(f"{name} needs the encoder {self.codec.encoder}, which PyAV {av.__version__} lacks here")
        if not 0 <= crf <= self.codec.worst_crf:
            raise ValueError(f"the crf of {name} goes from 0 (best) to {self.codec.worst_crf}, got {crf}")
        if key_frame_distance < 1:
            raise ValueError(f"key frames are at least 1 frame apart, got {key_frame_distance}")
        self.family = f"{name} low delay" if low_delay else name
        self.name = f"{self.family} crf {crf}"

    def identity(self) -> dict[str, Any]:
        return {
            "class": "codec",
            "encoder": self.codec.encoder,
            "crf": self.crf,
            "pixel_format": self.codec.pixel_format,
            "options": self.options,
            "key_frame_distance": self.key_frame_distance,
            "frame_rate": FRAME_RATE,
            "av": av.__version__,
            "libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
        }

    @property
    def options(self) -> dict[str, str]:
        return self.codec.low_delay if self.low_delay else self.codec.options

    def check(self, clips: Sequence[Clip]) -> list[Exclusion]:
        for clip in clips:
            first = next(clip.chunks(), None)
            if first is None:
                raise ValueError(f"clip {clip.name} has no frames")
            height, width = first.shape[-2:]
            if height % self.codec.chroma or width % self.codec.chroma:
                raise ValueError(
                    f"{self.name} halves the resolution of colours and cannot code {height}x{width} of {clip.name}; "
                    "choose even sides with --size, or a codec that ends in -444"
                )
            try:
                self.coding(height, width).encoder.open()
            except av.FFmpegError as error:
                raise ValueError(
                    f"{self.name} cannot code {height}x{width} of {clip.name}: {error.strerror}; choose another --size"
                ) from None
        return []

    def coding(self, height: int, width: int) -> "Coding":
        return Coding(self, height, width)

    def pairs(self, clip: Clip, counts: Counts, usage: CodebookUsage | None) -> Iterator[Pair]:
        coding, waiting = None, deque[Tensor]()  # frames ``3 h w`` that have not come back yet
        for chunk in clip.chunks():
            coding = coding or self.coding(*chunk.shape[-2:])
            waiting.extend(chunk.unbind(1))
            yield from _paired(coding.push(to_frames(chunk)), waiting, counts)
        if coding is None:
            return
        yield from _paired(coding.finish(), waiting, counts)
        if waiting:
            raise ValueError(f"{self.name} gave back {counts.frames} frames of {clip.name}, {len(waiting)} too few")
        counts.bits = 8 * coding.size
        counts.encode_seconds, counts.decode_seconds = coding.encode_seconds, coding.decode_seconds


def _paired(frames: list[np.ndarray], waiting: deque[Tensor], counts: Counts) -> Iterator[Pair]:
    if not frames:
        return
    originals = torch.stack([waiting.popleft() for _ in frames], dim=1)
    yield Pair(counts.frames, to_tensor(np.stack(frames))[None], originals[None])
    counts.frames += len(frames)
    counts.pixels += len(frames) * originals.shape[-2] * originals.shape[-1]


class Coding:
    """One clip on its way through an encoder and at once through its decoder."""

    def __init__(self, subject: CodecSubject, height: int, width: int) -> None:
        codec = subject.codec
        os.environ.setdefault("SVT_LOG", "1")  # its only way to be told that errors are enough
        self.pixel_format = codec.pixel_format
        self.encoder: Any = av.CodecContext.create(codec.encoder, "w")
        self.encoder.height, self.encoder.width, self.encoder.pix_fmt = height, width, codec.pixel_format
        self.encoder.time_base, self.encoder.framerate = Fraction(1, FRAME_RATE), Fraction(FRAME_RATE)
        self.encoder.gop_size, self.encoder.thread_count = subject.key_frame_distance, 1
        self.encoder.options = {"crf": str(subject.crf)} | subject.options
        if self.is_yuv:
            self.encoder.colorspace = self.encoder.color_primaries = self.encoder.color_trc = 1  # BT.709
            self.encoder.color_range = ColorRange.MPEG
        self.decoder: Any = av.CodecContext.create(codec.decoder, "r")
        self.decoder.thread_count = 1
        self.count = self.size = 0  # frames pushed, bytes that count
        self.encode_seconds = self.decode_seconds = 0.0

    @property
    def is_yuv(self) -> bool:
        return self.pixel_format.startswith("yuv")

    def push(self, frames: np.ndarray) -> list[np.ndarray]:
        """uint8 ``t h w 3`` -> the frames that are decoded by now, uint8 ``h w 3`` each."""
        decoded = []
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if self.is_yuv:
                picture = picture.reformat(
                    format=self.pixel_format,
                    dst_colorspace=Colorspace.ITU709,
                    dst_color_range=ColorRange.MPEG,
                    interpolation=Interpolation.BICUBIC | EXACT_COLOUR,
                    threads=1,
                )
            picture.pts, picture.time_base = self.count, Fraction(1, FRAME_RATE)
            self.count += 1
            decoded += self._decode(self._encode(picture))
        return decoded

    def finish(self) -> list[np.ndarray]:
        """What is left."""
        return self._decode([*self._encode(None), None])

    def _encode(self, picture: av.VideoFrame | None) -> list[av.Packet]:
        start = time.perf_counter()
        packets = self.encoder.encode(picture)
        self.encode_seconds += time.perf_counter() - start
        for packet in packets:
            self.size += packet.size - (greeting_size(bytes(packet)) if self.decoder.name == "h264" else 0)
        return packets

    def _decode(self, packets: Sequence[av.Packet | None]) -> list[np.ndarray]:
        start = time.perf_counter()
        pictures = [picture for packet in packets for picture in self.decoder.decode(packet)]
        self.decode_seconds += time.perf_counter() - start
        return [
            picture.reformat(format="rgb24", interpolation=Interpolation.BICUBIC | EXACT_COLOUR, threads=1).to_ndarray()
            for picture in pictures
        ]


def greeting_size(packet: bytes) -> int:
    """Bytes of an H.264 packet in which the encoder names itself and its options; no decoder needs them."""
    start = packet.find(USER_DATA)
    if start < 0:
        return 0
    end = packet.find(START_CODE, start + len(USER_DATA))
    return (len(packet) if end < 0 else end) - start


def can_encode(codec: Codec) -> bool:
    """Whether PyAV has the encoder and the decoder."""
    return codec.encoder in av.codecs_available and codec.decoder in av.codecs_available
