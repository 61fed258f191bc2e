"""What the ten tasks have to beat: simple fillings of the unknown pixels, and the error inside the generated region."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def nearest_known_frame(video: Tensor, mask: Tensor) -> Tensor:
    """`3 t h w`, bool `1 t h w` -> each unknown frame is the nearest known one, the earlier of two equally near."""
    known = mask[0].flatten(1).all(dim=1).nonzero()[:, 0]
    if len(known) == 0:
        raise ValueError("no frame is known whole, so there is no nearest one; use another baseline")
    frames = torch.arange(video.shape[1], device=video.device)
    nearest = known[(frames[:, None] - known).abs().argmin(dim=1)]
    return torch.where(mask, video, video[:, nearest])


def edge_extension(video: Tensor, mask: Tensor) -> Tensor:
    """`3 t h w`, bool `1 t h w` -> each frame's known rectangle, its border pixels repeated outwards."""
    frames = []
    for frame, known in zip(video.unbind(1), mask[0], strict=True):
        rows, columns = known.any(dim=1).nonzero()[:, 0], known.any(dim=0).nonzero()[:, 0]
        if known.sum() == 0 or known.sum() != len(rows) * len(columns):
            raise ValueError("the known pixels of each frame must be one rectangle; use another baseline")
        y = torch.arange(known.shape[0], device=video.device).clamp(rows[0], rows[-1])
        x = torch.arange(known.shape[1], device=video.device).clamp(columns[0], columns[-1])
        frames.append(frame[:, y][:, :, x])
    return torch.stack(frames, dim=1)


def mean_of_surround(video: Tensor, mask: Tensor) -> Tensor:
    """`3 t h w`, bool `1 t h w` -> unknown pixels have the mean colour of their frame's known pixels."""
    count = mask.sum(dim=(2, 3), keepdim=True)
    if (count == 0).any():
        raise ValueError("every frame needs a known pixel to take the mean of; use another baseline")
    mean = (video * mask).sum(dim=(2, 3), keepdim=True) / count
    return torch.where(mask, video, mean)


BASELINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "frame_prediction": nearest_known_frame,
    "frame_interpolation": nearest_known_frame,
    "central_outpainting": edge_extension,
    "vertical_outpainting": edge_extension,
    "horizontal_outpainting": edge_extension,
    "dynamic_outpainting": edge_extension,
    "central_inpainting": mean_of_surround,
    "dynamic_inpainting": mean_of_surround,
    "class_prediction": nearest_known_frame,
}
"""Of each task whose generated pixels have a right answer; that of `class_generation` is its class alone."""


def region_error(video: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Mean squared error over the pixels outside `mask`, on the scale [0, 1]; videos `3 t h w` in [-1, 1]."""
    unknown = ~mask.expand_as(truth)
    return ((video - truth)[unknown] / 2).square().mean().item()


class DigitJudge:
    """Reads a moving digit: its mean picture along its way, against the nearest handwritten one.

    Args:
        images: `n 28 28` in [0, 1].
        labels: of the images.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = F.normalize(images.flatten(1), dim=1)
        self.labels = labels

    def read(self, video: Tensor) -> int:
        """The digit in `3 t h w` in [-1, 1] with one digit on black."""
        light = (video.mean(dim=0) + 1) / 2
        light = light * (light > 0.25)
        height, width = light.shape[1:]
        side = 0.44 * min(height, width)  # of a digit's box in the world of moving digits
        mass = light.sum(dim=(1, 2)).clamp(min=1e-6)
        y = (light.sum(dim=2) * (torch.arange(height) + 0.5)).sum(dim=1) / mass
        x = (light.sum(dim=1) * (torch.arange(width) + 0.5)).sum(dim=1) / mass
        steps = (torch.arange(28) + 0.5) / 28 - 0.5
        rows = (y[:, None] + side * steps) / height * 2 - 1
        columns = (x[:, None] + side * steps) / width * 2 - 1
        shape = (len(light), 28, 28)
        places = torch.stack([columns[:, None].expand(shape), rows[:, :, None].expand(shape)], dim=-1)
        picture = F.grid_sample(light[:, None], places, align_corners=False).mean(dim=0).flatten()
        return int(self.labels[(self.images @ picture).argmax()])
