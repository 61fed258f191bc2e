"""In which order an autoregressive generator makes the tokens of a video, and how many at once (NTP, NBP, PAR)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidgen.latents import NO_PLACE

GROUPS = ("row", "frame", "regions")
SIDE = 2  # regions along height and along width


@dataclass(frozen=True)
class TokenOrder:
    """Positions of a sequence in groups; the tokens of a group are made at once.

    A position is fed the token as many positions before it as its group has tokens: then each group is fed the tokens
    just before it, none of its own.

    Args:
        tokens: `n` long, index of the token, in the order of the spec, at each position.
        sizes: positions in each group.
    """

    tokens: Tensor
    sizes: tuple[int, ...]

    @property
    def groups(self) -> Tensor:
        """`n` long: the group of each position."""
        sizes = torch.tensor(self.sizes, device=self.tokens.device)
        return torch.arange(len(self.sizes), device=sizes.device).repeat_interleave(sizes)

    @property
    def starts(self) -> list[int]:
        """The first position of each group."""
        starts = [0]
        for size in self.sizes[:-1]:
            starts.append(starts[-1] + size)
        return starts

    @property
    def fed(self) -> Tensor:
        """`n - sizes[0]` long: the position whose token is fed at each position after the first group."""
        sizes = torch.tensor(self.sizes, device=self.tokens.device)
        return (torch.arange(len(self.tokens), device=sizes.device) - sizes[self.groups])[self.sizes[0] :]

    @property
    def positions(self) -> Tensor:
        """`n` long: the position of each token, the inverse of `tokens`."""
        return self.tokens.argsort()


def token_order(coordinates: Tensor, group: int | str) -> TokenOrder:
    """The order for tokens at `coordinates` (`n 5` of `LatentSpec.coordinates`).

    Args:
        group: how many consecutive tokens are made at once; or `"row"` or `"frame"` of the grid (NBP, arXiv
            2502.07737), or `"regions"`: 2×2 regions of the frame side by side, after the first token of each one by
            one (PAR, arXiv 2412.15119).

    Raises:
        ValueError: the tokens do not divide into such groups.
    """
    if group == 1:  # the common case, without a look at the data
        return TokenOrder(torch.arange(len(coordinates), device=coordinates.device), (1,) * len(coordinates))
    raster = torch.arange(len(coordinates), device=coordinates.device)
    if isinstance(group, int):
        if len(raster) % group:
            raise ValueError(f"{len(raster)} tokens do not divide into groups of {group}; choose a divisor")
        return TokenOrder(raster, (group,) * (len(raster) // group))
    if (coordinates[:, 2:] == NO_PLACE).any() or coordinates[:, 0].any():
        raise ValueError(f"group {group!r} needs tokens on one thw grid; these have none: give a number of tokens")
    t, y, x = (coordinates[:, axis].unique(return_inverse=True)[1] for axis in (2, 3, 4))
    frames, height, width = (int(places.max()) + 1 for places in (t, y, x))
    if group == "frame":
        return TokenOrder(raster, (height * width,) * frames)
    if group == "row":
        return TokenOrder(raster, (width,) * (frames * height))
    if height % SIDE or width % SIDE:
        raise ValueError(f"group 'regions' needs an even token grid, got {height}×{width}; choose another video size")
    tall, wide = height // SIDE, width // SIDE
    within = (t * tall + y % tall) * wide + x % wide
    region = (y // tall) * SIDE + x // wide
    count = SIDE * SIDE
    return TokenOrder((within * count + region).argsort(), (1,) * count + (count,) * (len(raster) // count - 1))


def check_group(group: int | str) -> None:
    if (isinstance(group, str) and group not in GROUPS) or (isinstance(group, int) and group < 1):
        raise ValueError(f"group must be a number of tokens or one of {', '.join(GROUPS)}, got {group!r}")
