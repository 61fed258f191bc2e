"""Temporal warping error: does the reconstruction keep, along the motion of its original, what the original keeps?

Motion comes from FFmpeg's ``mestimate`` filter through PyAV: exhaustive search for the best match of each 8×8 block of
the original's luma in the frame before, within ±7 pixels. Block motion is coarse, therefore a pixel counts only where
the motion explains the *original* to within 8 levels in every channel: a wrong vector drops pixels, it does not add
error. The idea of the score is Lai et al. 2018 (arXiv 1808.00449), who take a network's flow.
"""

from fractions import Fraction
from typing import Any

import av
import av.filter
import numpy as np
import torch
from av.video.format import VideoFormat
from einops import rearrange
from torch import Tensor

from vidgen.eval.metric import Sums
from vidgen.eval.pixels import in_colour
from vidgen.eval.temporal import TransitionMetric

BLOCK = 8
REACH = 7
EXPLAINED = 8  # levels


class WarpingError(TransitionMetric):
    """``warping_error.rgb.mestimate8r7``: mean absolute change along the original's motion, in levels of 255.

    ``….original`` is the same of the original itself, the floor that no reconstruction needs to go below, and
    ``….coverage`` the share of pixels that count.
    """

    key = "warping_error.rgb.mestimate8r7"
    terms = ("video", "reference", "count", "pixels")
    higher_is_better = False
    smallest_side = 2 * BLOCK

    def count_transitions(self, video: Tensor, reference: Tensor) -> None:
        for of_video, of_reference in zip(video, reference, strict=True):  # c t h w
            sources = backward_sources(of_reference).to(video.device)
            change = (of_reference[:, 1:] - warped(of_reference[:, :-1], sources)).abs_()
            explained = (change <= EXPLAINED).all(dim=0) & (sources >= 0)  # t h w
            error = (of_video[:, 1:] - warped(of_video[:, :-1], sources)).abs_()
            self.sums["video"].add(float((error * explained).sum()))
            self.sums["reference"].add(float((change * explained).sum()))
            self.sums["count"].add(3 * int(explained.sum()))
            self.sums["pixels"].add(3 * explained.numel())

    def scores(self, sums: Sums) -> dict[str, Any]:
        return {
            self.key: sums["video"] / sums["count"],
            f"{self.key}.original": sums["reference"] / sums["count"],
            f"{self.key}.coverage": sums["count"] / sums["pixels"],
        }


def warped(frames: Tensor, sources: Tensor) -> Tensor:
    """Frames ``c t h w`` looked up at ``sources`` ``t h w`` (flat index into h w; unknown places give any pixel)."""
    places = rearrange(sources.clamp(min=0), "t h w -> 1 t (h w)").expand(frames.shape[0], -1, -1)
    return frames.flatten(-2).gather(-1, places).view_as(frames)


def backward_sources(levels: Tensor) -> Tensor:
    """Where each pixel of frames 1… of ``3 t h w`` lay in the frame before: flat ``t-1 h w``, -1 for unknown."""
    height, width = levels.shape[-2:]
    luma = in_colour(levels[None], "grey")[0, 0].round().byte().cpu().numpy()
    # The filter needs a next frame before it lets one go, hence the last one twice.
    motion = torch.from_numpy(np.stack(_block_motion([*luma, luma[-1]])[1 : len(luma)]))  # t-1, (dy, dx), rows, columns
    motion = motion.repeat_interleave(BLOCK, dim=-2).repeat_interleave(BLOCK, dim=-1)
    # Blocks cover whole multiples of their size; what is left over at the far borders stays unknown.
    tall, wide = motion.shape[-2:]
    y, x = torch.meshgrid(torch.arange(tall), torch.arange(wide), indexing="ij")
    y, x = y + motion[:, 0], x + motion[:, 1]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    sources = torch.full((len(motion), height, width), -1, dtype=torch.int64)
    sources[:, :tall, :wide] = torch.where(inside, y * width + x, -1)
    return sources


def _block_motion(luma: list[np.ndarray]) -> list[np.ndarray]:
    """For each frame but the last: displacements (dy, dx) to the frame before, ``2 rows columns`` of blocks, int64."""
    height, width = luma[0].shape
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=VideoFormat("gray"), time_base=Fraction(1, 25))
    estimate = graph.add("mestimate", f"method=esa:mb_size={BLOCK}:search_param={REACH}")
    sink = graph.add("buffersink")
    source.link_to(estimate)
    estimate.link_to(sink)
    graph.configure()
    found = []
    for number, plane in enumerate(luma):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(plane), format="gray")
        frame.pts, frame.time_base = number, Fraction(1, 25)
        graph.push(frame)
        while (estimated := _pull(graph)) is not None:
            vectors: Any = estimated.side_data.get("MOTION_VECTORS")
            blocks = vectors.to_ndarray()
            blocks = blocks[blocks["source"] < 0]
            motion = np.zeros((2, height // BLOCK, width // BLOCK), dtype=np.int64)
            places = blocks["dst_y"] // BLOCK, blocks["dst_x"] // BLOCK
            motion[0][places] = blocks["src_y"] - blocks["dst_y"]
            motion[1][places] = blocks["src_x"] - blocks["dst_x"]
            found.append(motion)
    return found


def _pull(graph: av.filter.Graph) -> Any:
    try:
        return graph.pull()
    except av.BlockingIOError:
        return None
