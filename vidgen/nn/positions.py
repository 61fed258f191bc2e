"""Where a token is: sine features that are added to tokens, and 3D rotary embedding for queries and keys."""

import torch
from torch import Tensor

from vidgen.kernels.ops.qk_norm_rope import rotate as rotate
from vidgen.latents import NO_PLACE

BASE = (
    100.0  # longest wavelength is 2π·100 tokens: video grids are short, and 10,000 would leave most channels constant
)


def positions(coordinates: Tensor, unit: tuple[int, int, int]) -> Tensor:
    """`n 5 -> n 3`: (t, y, x) of `LatentSpec.coordinates` in tokens.

    Tokens without a place count along the first axis.
    """
    places = coordinates[:, 2:]
    placed = places / torch.tensor(unit, device=coordinates.device)
    in_tokens = torch.where(places == NO_PLACE, torch.zeros_like(placed), placed)
    nowhere = (places == NO_PLACE).all(dim=1)
    first = torch.where(nowhere, coordinates[:, 1].to(placed.dtype), in_tokens[:, 0])
    return torch.cat([first.unsqueeze(1), in_tokens[:, 1:]], dim=1)


def grid_places(grid: tuple[int, int, int], *, device: torch.device) -> Tensor:
    """`n 3`: (t, y, x) of the tokens of a grid in raster order, in tokens."""
    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in grid)).float()


def axis_channels(channels: int) -> tuple[int, int, int]:
    """Split channels over t, y, x in even shares; what does not divide goes to space."""
    in_time = channels // 3 // 2 * 2
    in_height = (channels - in_time) // 2 // 2 * 2
    return in_time, in_height, channels - in_time - in_height


def angles(places: Tensor, channels: int) -> Tensor:
    """`n 3 -> n channels/2` angles, the channels shared by the axes."""
    parts = []
    for axis, count in enumerate(axis_channels(channels)):
        frequencies = BASE ** -(torch.arange(0, count, 2, device=places.device) / max(count, 1))
        parts.append(places[:, axis, None] * frequencies)
    return torch.cat(parts, dim=1)


def sine_features(places: Tensor, channels: int) -> Tensor:
    """`n 3 -> n channels` (Vaswani et al. 2017), root mean square 0.7: as loud as the tokens, or they stay unheard."""
    angle = angles(places, channels)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def level_features(levels: Tensor, channels: int) -> Tensor:
    """Noise levels `…` in [0, 1] to `… channels` sine features, wavelengths 0.006 to 60 (DDPM's, times 1000)."""
    frequencies = 1000.0 * 10_000.0 ** -(torch.arange(channels // 2, device=levels.device) / (channels // 2))
    angle = levels.float()[..., None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def rotary(places: Tensor, head_channels: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines `n head_channels/2` for `rotate` (Su et al. 2021, one share of the channels per axis)."""
    angle = angles(places, head_channels)
    return angle.cos(), angle.sin()
