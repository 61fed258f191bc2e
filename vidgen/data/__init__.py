"""Videos in and out, and the datasets that training reads."""

from vidgen.data.decode import DamagedVideoWarning, VideoError, VideoInfo
from vidgen.data.digits import MovingDigits
from vidgen.data.folder import VideoFolder
from vidgen.data.shapes import Scene, ShapeObject, ShapesWorld, parse_caption, render, sample_scene
from vidgen.data.video import VideoClip, find_videos, iter_frames, probe, read_video, to_frames, to_tensor
from vidgen.data.write import write_video

__all__ = [
    "DamagedVideoWarning",
    "MovingDigits",
    "Scene",
    "ShapeObject",
    "ShapesWorld",
    "VideoClip",
    "VideoError",
    "VideoFolder",
    "VideoInfo",
    "find_videos",
    "iter_frames",
    "parse_caption",
    "probe",
    "read_video",
    "render",
    "sample_scene",
    "to_frames",
    "to_tensor",
    "write_video",
]
