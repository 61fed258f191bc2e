"""What a pipeline is told in words: prompts, class labels or embeddings, their checks, and the states they become."""

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from vidgen.conditioning import ClassEncoder, TextEncoder, TextStates
from vidgen.conditioning.timeline import Timeline, check_timeline, is_timeline, side_by_side
from vidgen.pipelines.offload import bring_onto_device

Prompt = str | list[str] | Timeline


class PromptedVideo:
    """What lets a pipeline listen to prompts."""

    text_encoder: TextEncoder
    transformer: Any
    _execution_device: torch.device
    default: Any

    def check_prompts(
        self,
        prompt: Prompt | None,
        negative_prompt: Prompt | None,
        prompt_embeds: Tensor | None,
        negative_prompt_embeds: Tensor | None,
        prompt_attention_mask: Tensor | None,
        negative_prompt_attention_mask: Tensor | None,
        *,
        num_frames: int,
    ) -> int:
        """How many prompts a call has; ValueError that says what was expected, what came and what to do."""
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("give exactly one of prompt and prompt_embeds; use prompt='' for no text")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("give negative_prompt or negative_prompt_embeds, not both")
        for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            if name == "prompt" and is_timeline(text):
                check_timeline(text, num_frames)
            else:
                check_prompt(name, text)
            if text is not None and self.text_encoder is None:
                raise ValueError(f"this pipeline has no text encoder; give {name}_embeds instead of {name}")
        self._check_embeds("prompt", prompt_embeds, prompt_attention_mask)
        self._check_embeds("negative_prompt", negative_prompt_embeds, negative_prompt_attention_mask)
        prompts = count_prompts(prompt, prompt_embeds)
        if not isinstance(negative_prompt, str) and (negative_prompt is not None or negative_prompt_embeds is not None):
            negatives = count_prompts(negative_prompt, negative_prompt_embeds)
            if negatives != prompts:
                raise ValueError(f"{prompts} prompts need as many negative prompts or one str, got {negatives}")
        return prompts

    def _check_embeds(self, name: str, embeds: Tensor | None, mask: Tensor | None) -> None:
        if embeds is None:
            if mask is not None:
                raise ValueError(f"{name}_attention_mask belongs to {name}_embeds; give them as well")
            return
        width = self.transformer.config.text_width
        if embeds.ndim != 3 or embeds.shape[2] != width:
            raise ValueError(f"{name}_embeds must be `b l {width}`, got {tuple(embeds.shape)}")
        if mask is not None and mask.shape != embeds.shape[:2]:
            raise ValueError(f"{name}_attention_mask must be {tuple(embeds.shape[:2])}, got {tuple(mask.shape)}")

    def checked_guidance(self, scale: float | None, negative: Prompt | Tensor | None, *, otherwise: float) -> float:
        """The strength of guidance: as called, else of this model's defaults, else `otherwise`.

        A model that was never trained without text has nothing to steer away from but a negative prompt: without one
        its default is 1, no guidance, and more is a ValueError.
        """
        one_sided = self.transformer.config.text_dropped == 0 and not says_something(negative)
        if scale is None:
            return 1.0 if one_sided else self.default("guidance_scale", None, otherwise)
        if not isinstance(scale, Real) or not 0 <= scale < math.inf:
            raise ValueError(f"guidance_scale must be a number of at least 0, 1 for no guidance, got {scale!r}")
        if scale > 1 and one_sided:
            raise ValueError(
                f"guidance of {scale:g} steers away from no text, and this model was trained with text alone "
                "(text_dropped is 0 in its config); use guidance_scale=1, give a negative_prompt, or train with "
                "--drop-text 0.1"
            )
        return scale

    def encode_prompt(
        self,
        prompt: Prompt | None,
        negative_prompt: Prompt | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        device: torch.device | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """States and masks of the prompts and, with guidance, of the negative prompts: `b l d`, bool `b l`, twice.

        Without a negative prompt the other branch of guidance sees no text at all, as in training.
        """
        device = device or self._execution_device
        positive = self._states(prompt, prompt_embeds, prompt_attention_mask, device)
        count = len(positive.states)
        positive = repeated(positive, num_videos_per_prompt)
        prompt_embeds, prompt_attention_mask = positive.states, positive.mask
        if not do_classifier_free_guidance:
            negative_prompt_embeds, negative_prompt_attention_mask = None, None
        elif negative_prompt is None and negative_prompt_embeds is None:
            negative_prompt_embeds = torch.zeros_like(prompt_embeds)
            negative_prompt_attention_mask = torch.zeros_like(prompt_attention_mask)
        else:
            texts = [negative_prompt] * count if isinstance(negative_prompt, str) else negative_prompt
            negative = self._states(texts, negative_prompt_embeds, negative_prompt_attention_mask, device)
            negative = repeated(negative, num_videos_per_prompt)
            negative_prompt_embeds, negative_prompt_attention_mask = negative.states, negative.mask
        return prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask

    def class_prompt(self, class_label: int | list[int], prompt: Prompt | None = None) -> Prompt:
        """Names of classes, which are the prompts of a pipeline that is told classes."""
        if prompt is not None:
            raise ValueError("give a class_label or a prompt, not both")
        if not isinstance(self.text_encoder, ClassEncoder):
            raise ValueError(f"class_label needs a ClassEncoder, this pipeline has {type(self.text_encoder).__name__}")
        if isinstance(class_label, int):
            return self.text_encoder.name(class_label)
        return [self.text_encoder.name(label) for label in class_label]

    def _states(
        self, prompt: Prompt | None, embeds: Tensor | None, mask: Tensor | None, device: torch.device
    ) -> TextStates:
        dtype = (self.text_encoder if self.transformer is None else self.transformer).dtype
        if embeds is not None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
            return TextStates(embeds.to(device, dtype), mask.to(device))
        assert prompt is not None
        bring_onto_device(self.text_encoder)
        timeline = is_timeline(prompt)
        texts: Any = [entry for _, entry in prompt] if timeline else [prompt] if isinstance(prompt, str) else prompt
        self.text_encoder.warn_of_strange_words(texts)
        text = self.text_encoder.encode(texts)
        text = side_by_side(text) if timeline else text
        return TextStates(text.states.to(device, dtype), text.mask.to(device))


def check_prompt(name: str, text: Prompt | None) -> None:
    if text is None or isinstance(text, str):
        return
    if not isinstance(text, list) or not text or not all(isinstance(one, str) for one in text):
        raise ValueError(f"{name} must be a str or a list of at least one str, got {text!r}")


def says_something(text: Prompt | Tensor | None) -> bool:
    """Whether there is a word in it, or states in place of words."""
    texts: Any = [text] if isinstance(text, str) else text
    return text is not None and (isinstance(text, Tensor) or any(one.strip() for one in texts))


def count_prompts(text: Prompt | None, embeds: Tensor | None) -> int:
    if embeds is not None:
        return len(embeds)
    if is_timeline(text):
        return 1
    return len(text) if isinstance(text, list) else 1


def repeated(text: TextStates, times: int) -> TextStates:
    return TextStates(text.states.repeat_interleave(times, 0), text.mask.repeat_interleave(times, 0))
