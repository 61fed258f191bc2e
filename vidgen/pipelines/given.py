"""What a pipeline is shown: known pixels, videos to edit, control videos and reference images."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from vidgen.conditioning import Condition, TokenState, known_from_video
from vidgen.conditioning.known import check_polarity
from vidgen.latents import Latents, VideoSize
from vidgen.pipelines.offload import bring_onto_device
from vidgen.tokenizers.base import Tokenizer

VideoInput = Tensor | np.ndarray | list[Image] | list[list[Image]]


class GivenVideo:
    """What lets a pipeline take videos."""

    video_tokenizer: Tokenizer
    transformer: Any
    video_processor: Any
    _execution_device: torch.device

    def prepare_known(
        self,
        video: VideoInput | None,
        mask: Tensor | None,
        size: VideoSize,
        count: int,
        *,
        of_task: bool = False,
        whole: bool = False,
    ) -> tuple[Tensor, Tensor] | None:
        """The known pixels of all frames, `v 3 t h w` in [-1, 1], and where they are, bool `v 1 t h w`.

        Each of the v videos given serves as many successive ones of the `count` to make. A video without a mask is
        known whole: given fewer frames than asked for, it is continued, and there have to be fewer unless `whole`. The
        mask `of_task` may say that nothing is known; one that a person gives may not.
        """
        if video is None:
            return None
        pixels = self.video_tensor(video)
        if pixels.shape[2] > size[0] or pixels.shape[3:] != size[1:]:
            raise ValueError(
                f"the known video has {tuple(pixels.shape[2:])} (frames, height, width), which does not fit into "
                f"{size}; resize it or ask for another size (more frames than the model makes at once: extend)"
            )
        if count % pixels.shape[0]:
            raise ValueError(f"{pixels.shape[0]} known videos do not fit {count} videos to make; give one or one each")
        if mask is None and not whole and pixels.shape[2] == size[0]:
            raise ValueError(
                f"all {size[0]} frames of the video are known, so nothing is left to make; to go on after it ask for "
                "more num_frames (or call extend), to change it give a strength or a mask"
            )
        shape = (pixels.shape[0], 1, *pixels.shape[2:])
        if mask is not None and not isinstance(mask, Tensor):
            mask = torch.as_tensor(np.asarray(mask))
        if mask is not None and not ((mask == 0) | (mask == 1)).all():
            raise ValueError(
                "a mask is true or 1 where pixels are known, false or 0 where they are to be made; this one has values "
                f"from {mask.min().item():g} to {mask.max().item():g}"
            )
        given = mask is not None and not of_task
        mask = torch.ones(shape, dtype=torch.bool) if mask is None else mask.bool()
        mask = mask.reshape(*[1] * (5 - mask.ndim), *mask.shape)
        if any(extent not in (1, wanted) for extent, wanted in zip(mask.shape, shape, strict=True)):
            raise ValueError(
                f"the mask of these known videos must be {shape}, or 1 along an axis, got {tuple(mask.shape)}"
            )
        if given:
            check_polarity(pixels, mask.to(pixels.device), whole=pixels.shape[2] == size[0])
        known = torch.zeros(pixels.shape[0], 3, *size, device=pixels.device)
        where = torch.zeros(pixels.shape[0], 1, *size, dtype=torch.bool, device=pixels.device)
        known[:, :, : pixels.shape[2]] = pixels
        where[:, :, : pixels.shape[2]] = mask.to(pixels.device)
        return known.to(self._execution_device), where.to(self._execution_device)

    def encode_whole(self, video: VideoInput, size: VideoSize, count: int) -> Latents:
        """Latents of a video of exactly `size`, for each of `count` videos to make."""
        known = self.prepare_known(video, None, size, count, whole=True)
        assert known is not None
        pixels, where = known
        if not where.all():
            raise ValueError(
                f"a video to edit or to follow must have all {size[0]} frames; give num_frames as many as it has"
            )
        bring_onto_device(self.video_tokenizer)
        latents = self.video_tokenizer.encode(pixels.to(self.video_tokenizer.dtype))
        return latents.repeat_interleave(count // len(latents))

    def video_tensor(self, video: VideoInput) -> Tensor:
        """`b 3 t h w` in [-1, 1] from such a tensor (a missing batch axis is added), or frames as PIL or NumPy.

        NumPy videos are diffusers': `t h w 3` or `b t h w 3` of floats in [0, 1].
        """
        if isinstance(video, Tensor):
            pixels = video if video.ndim == 5 else video.unsqueeze(0)
            if pixels.ndim != 5 or pixels.shape[1] != 3 or not pixels.is_floating_point():
                raise ValueError(
                    f"a known video must be floats `b 3 t h w` or `3 t h w`, got {video.dtype} {tuple(video.shape)}"
                )
        else:
            pixels = self.video_processor.preprocess_video(video)
        low, high = pixels.min().item(), pixels.max().item()
        if not -1 <= low <= high <= 1:
            raise ValueError(
                "known pixels must lie in [-1, 1] in a tensor and in [0, 1] in a NumPy array; scaled to [-1, 1] "
                f"these reach from {low:g} to {high:g}"
            )
        return pixels.float()

    def build_condition(self, states: Tensor, mask: Tensor, known: tuple[Tensor, Tensor] | None) -> Condition:
        """What the network is told: `b l d`, bool `b l`, and the known pixels that `prepare_known` gave."""
        if known is None:
            return Condition(states, mask)
        pixels, where = known
        bring_onto_device(self.video_tokenizer)
        latents, token_state = known_from_video(self.video_tokenizer, pixels, where)
        if not self.transformer.knows_partial:  # its weights for them are as they were drawn
            token_state = token_state.masked_fill(token_state == TokenState.PARTIAL, int(TokenState.UNKNOWN))
        each = len(states) // len(latents)  # encoded once, however many videos are made of it
        latents = latents.repeat_interleave(each).to(self.transformer.dtype)
        return Condition(states, mask, known=latents, token_state=token_state.repeat_interleave(each, 0))

    def steer(
        self, condition: Condition, control: VideoInput | None, references: VideoInput | None, size: VideoSize
    ) -> Condition:
        """The condition with a control video and reference images (`r 3 h w`, `3 h w`, or frames), which serve all."""
        if control is not None:
            condition = replace(condition, control=self.encode_whole(control, size, len(condition.states)))
        if references is not None:
            images = self.image_clips(references)
            bring_onto_device(self.video_tokenizer)
            pixels = self.video_tensor(images).to(self._execution_device, self.video_tokenizer.dtype)
            encoded = self.video_tokenizer.encode(pixels)
            bring_onto_device(self.transformer)
            condition = self.transformer.with_references(condition, encoded)
        return condition

    def image_clips(self, images: Any) -> Tensor:
        """Images `r 3 h w` or `3 h w`, or as PIL or NumPy, as videos of one frame, `r 3 1 h w`."""
        if isinstance(images, Tensor):
            if images.ndim not in (3, 4):
                raise ValueError(f"reference images must be `r 3 h w` or `3 h w`, got {tuple(images.shape)}")
            return (images if images.ndim == 4 else images.unsqueeze(0)).unsqueeze(2)
        return self.video_processor.preprocess_video(images)[0].transpose(0, 1).unsqueeze(2)
