"""Control videos made from videos: what a control branch is trained on when there is no depth or sketch at hand."""

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
