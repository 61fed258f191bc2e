"""Control videos made from videos: what a control branch is trained on when there is no depth or sketch at hand."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def edges(video: Tensor) -> Tensor:
    """Brightness edges of each frame (Sobel): `b 3 t h w -> b 3 t h w`, -1 where flat, up to 1 at full contrast."""
    gray = video.mean(dim=1).flatten(0, 1).unsqueeze(1)
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(gray) / 8
    kernels = torch.stack([across, across.T]).unsqueeze(1)
    slopes = F.conv2d(F.pad(gray, (1, 1, 1, 1), mode="replicate"), kernels)
    strength = slopes.square().sum(dim=1).sqrt().clamp(max=1.0) * 2 - 1
    return strength.unflatten(0, (video.shape[0], video.shape[2])).unsqueeze(1).expand(-1, 3, -1, -1, -1)


def resized(video: Tensor, factor: float) -> Tensor:
    """Frames `factor` times as large (bicubic), within [-1, 1]; `factor` below 1 averages pixels."""
    frames = video.transpose(1, 2).flatten(0, 1)
    mode = {"mode": "bicubic", "antialias": factor < 1, "align_corners": False}
    frames = F.interpolate(frames, scale_factor=factor, **mode).clamp(-1, 1)
    return frames.unflatten(0, (video.shape[0], video.shape[2])).transpose(1, 2)


def small(video: Tensor, factor: int) -> Tensor:
    """What super-resolution by `factor` is given: frames made smaller and, to fit the branch, as large again."""
    height, width = video.shape[3:]
    if height % factor or width % factor:
        raise ValueError(
            f"frames of {height}x{width} pixels do not divide by {factor}; use another --height or --width"
        )
    return resized(resized(video, 1 / factor), factor)


# Ways to make the control videos that a branch is trained on.
CONTROLS: dict[str, Callable[[Tensor], Tensor]] = {
    "edges": edges,
    "half-size": lambda video: small(video, 2),
    "quarter-size": lambda video: small(video, 4),
}
