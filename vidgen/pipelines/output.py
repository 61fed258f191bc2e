"""What a pipeline call returns."""

from dataclasses import dataclass

import numpy as np
from diffusers.utils import BaseOutput
from PIL.Image import Image
from torch import Tensor

from vidgen.latents import Latents

Frames = list[list[Image]] | np.ndarray | Tensor | Latents


@dataclass
class VideoPipelineOutput(BaseOutput):
    """`frames`: one video per prompt and repetition, in the order of the prompts.

    By `output_type`: "pil" lists of images; "np" float array `b t h w 3` in [0, 1]; "pt" tensor `b t 3 h w` in [0, 1];
    "latent" the `Latents` before decoding, for `pipe.decode` or `Latents.save`.
    """

    frames: Frames
