"""What the three pipelines share: prompts, known pixels, sizes, noise, decoding. Each has its own step loop."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.video_processor import VideoProcessor
from PIL.Image import Image
from torch import Tensor

from vidgen.conditioning import Condition, TextEncoder, TextStates, TokenState, known_from_video
from vidgen.generators.base import Generator
from vidgen.latents import Latents, VideoSize
from vidgen.nn.random import seeded
from vidgen.pipelines.output import Frames
from vidgen.tokenizers.base import Tokenizer

Prompt = str | list[str]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
VideoInput = Tensor | np.ndarray | list[Image] | list[list[Image]]


class VideoPipeline(DiffusionPipeline):
    """Base of the pipelines: components, inputs and outputs."""

    model_cpu_offload_seq = "text_encoder->transformer->video_tokenizer"
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    video_tokenizer: Tokenizer
    text_encoder: TextEncoder
    transformer: Generator

    def register(
        self,
        *,
        video_tokenizer: Tokenizer,
        text_encoder: TextEncoder,
        transformer: Generator,
        scheduler: Any,
        defaults: dict[str, Any] | None,
    ) -> None:
        """Keep the components; `defaults` are values for arguments that a call leaves out."""
        self.register_modules(
            video_tokenizer=video_tokenizer, text_encoder=text_encoder, transformer=transformer, scheduler=scheduler
        )
        self.register_to_config(defaults=dict(defaults or {}))
        self.video_processor = VideoProcessor(do_resize=False)
        transformer.check_spec(video_tokenizer.spec)
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._current_timestep: Any = None
        self._interrupt = False

    # diffusers' properties

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale != 1.0

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def current_timestep(self) -> Any:
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    # inputs

    def default(self, name: str, value: Any, otherwise: Any) -> Any:
        """The value of an argument: as called, else of this model's defaults, else of all pipelines."""
        return self.config.defaults.get(name, otherwise) if value is None else value

    def check_inputs(
        self,
        prompt: Prompt | None,
        negative_prompt: Prompt | None,
        prompt_embeds: Tensor | None,
        negative_prompt_embeds: Tensor | None,
        size: VideoSize,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
        video: VideoInput | None,
        mask: Tensor | None,
        num_videos_per_prompt: int,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> None:
        """ValueError that says what was expected, what came and what to do."""
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("give exactly one of prompt and prompt_embeds; use prompt='' for no text")
        if prompt is not None and not isinstance(prompt, str | list):
            raise ValueError(f"prompt must be a str or a list of str, got {type(prompt).__name__}")
        if isinstance(prompt, list) and (not prompt or not all(isinstance(text, str) for text in prompt)):
            raise ValueError("a list of prompts must hold at least one prompt and nothing but str")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("give negative_prompt or negative_prompt_embeds, not both")
        if isinstance(prompt, list) and isinstance(negative_prompt, list) and len(negative_prompt) != len(prompt):
            raise ValueError(
                f"{len(prompt)} prompts need as many negative prompts or a single one, got {len(negative_prompt)}"
            )
        for name, extent in zip(("num_frames", "height", "width"), size, strict=True):
            if extent < 1:
                raise ValueError(f"{name} must be at least 1, got {extent}")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
        if num_videos_per_prompt < 1:
            raise ValueError(f"num_videos_per_prompt must be at least 1, got {num_videos_per_prompt}")
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has {unknown}; it may hold {self._callback_tensor_inputs}"
            )
        if mask is not None and video is None:
            raise ValueError("mask says which pixels of video are known; give the video as well")
        if isinstance(generator, list):
            given = 1 if isinstance(prompt, str) else len(prompt if prompt is not None else prompt_embeds)  # pyright: ignore[reportArgumentType]
            if len(generator) != given * num_videos_per_prompt:
                raise ValueError(
                    f"expected one generator for each of {given * num_videos_per_prompt} videos, got {len(generator)}; "
                    "a single generator serves all"
                )

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
        positive = repeated(positive, num_videos_per_prompt)
        if not do_classifier_free_guidance:
            return positive.states, positive.mask, None, None
        if negative_prompt is None and negative_prompt_embeds is None:
            negative = TextStates(torch.zeros_like(positive.states), torch.zeros_like(positive.mask))
            return positive.states, positive.mask, negative.states, negative.mask
        count = len(positive.states) // num_videos_per_prompt
        if isinstance(negative_prompt, str):
            negative_prompt = [negative_prompt] * count
        negative = self._states(negative_prompt, negative_prompt_embeds, negative_prompt_attention_mask, device)
        negative = repeated(negative, num_videos_per_prompt)
        return positive.states, positive.mask, negative.states, negative.mask

    def _states(
        self, prompt: Prompt | None, embeds: Tensor | None, mask: Tensor | None, device: torch.device
    ) -> TextStates:
        if embeds is not None:
            if embeds.ndim != 3 or embeds.shape[2] != self.text_encoder.width:
                raise ValueError(
                    f"prompt embeddings must be `b l {self.text_encoder.width}`, got {tuple(embeds.shape)}"
                )
            mask = torch.ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
            return TextStates(embeds.to(device, self.transformer.dtype), mask.to(device))
        assert prompt is not None
        states = self.text_encoder.encode([prompt] if isinstance(prompt, str) else prompt)
        return TextStates(states.states.to(device, self.transformer.dtype), states.mask.to(device))

    def prepare_generators(
        self, generator: torch.Generator | list[torch.Generator] | None, count: int
    ) -> list[torch.Generator]:
        """One generator per video. The i-th video of a call has the same noise however many videos the call makes."""
        if generator is None:
            seeds = [torch.seed() % 2**63 for _ in range(count)]
        elif isinstance(generator, list):
            seeds = [draw_seed(one) for one in generator]
        else:
            seeds = [draw_seed(generator) for _ in range(count)]
        return seeded(seeds)

    def prepare_known(
        self, video: VideoInput | None, mask: Tensor | None, size: VideoSize, count: int
    ) -> tuple[Tensor, Tensor] | None:
        """The known pixels of all frames, `b 3 t h w` in [-1, 1], and where they are, bool `b 1 t h w`.

        A video without a mask is known whole: given fewer frames than asked for, it is continued.
        """
        if video is None:
            return None
        pixels = self.video_tensor(video)
        if pixels.shape[2] > size[0] or pixels.shape[3:] != size[1:]:
            raise ValueError(
                f"the known video has {tuple(pixels.shape[2:])} (frames, height, width), which does not fit into "
                f"{size}; resize it or ask for another size"
            )
        if mask is None:
            mask = torch.ones(1, 1, *pixels.shape[2:], dtype=torch.bool)
        mask = mask.bool()
        mask = mask if mask.ndim == 5 else mask.view(*[1] * (5 - mask.ndim), *mask.shape)
        mask = mask.expand(pixels.shape[0], 1, *pixels.shape[2:]).to(pixels.device)
        if count % pixels.shape[0]:
            raise ValueError(f"{pixels.shape[0]} known videos do not fit {count} videos to make; give one or one each")
        known = torch.zeros(pixels.shape[0], 3, *size, device=pixels.device)
        where = torch.zeros(pixels.shape[0], 1, *size, dtype=torch.bool, device=pixels.device)
        known[:, :, : pixels.shape[2]] = pixels
        where[:, :, : pixels.shape[2]] = mask
        repeats = count // pixels.shape[0]
        device = self._execution_device
        return known.repeat_interleave(repeats, 0).to(device), where.repeat_interleave(repeats, 0).to(device)

    def video_tensor(self, video: VideoInput) -> Tensor:
        """`b 3 t h w` in [-1, 1] from such a tensor (a missing batch axis is added), or frames as PIL or NumPy."""
        if isinstance(video, Tensor):
            video = video if video.ndim == 5 else video.unsqueeze(0)
            if video.ndim != 5 or video.shape[1] != 3:
                raise ValueError(f"a video tensor must be `b 3 t h w` or `3 t h w`, got {tuple(video.shape)}")
            return video.float()
        videos = video if isinstance(video, list) and isinstance(video[0], list) else [video]
        return torch.cat([self.video_processor.preprocess_video(frames).float() for frames in videos])  # pyright: ignore

    def build_condition(
        self, states: Tensor, mask: Tensor, known: tuple[Tensor, Tensor] | None
    ) -> Condition:
        if known is None:
            return Condition(states, mask)
        pixels, where = known
        latents, token_state = known_from_video(self.video_tokenizer, pixels.to(self.video_tokenizer.dtype), where)
        return Condition(states, mask, known=latents, token_state=token_state)

    def unknown_tokens(self, condition: Condition, batch: int, size: VideoSize) -> Tensor:
        """`b n` bool: the tokens to generate."""
        if condition.token_state is None:
            shape = (batch, self.video_tokenizer.spec.num_tokens(size))
            return torch.ones(shape, dtype=torch.bool, device=self._execution_device)
        return condition.token_state != TokenState.KNOWN

    # outputs

    def to_latents(self, tokens: Tensor, size: VideoSize) -> Latents:
        """Tokens of a finished sampling (ids `b n q` or reals `b n c`) as `Latents`."""
        spec = self.video_tokenizer.spec
        if not spec.discrete:
            return Latents(tokens, None, size, spec)
        ids = tokens if not tokens.is_floating_point() else self.video_tokenizer.ids_from_reals(tokens)
        return Latents(self.video_tokenizer.reals_from_ids(ids), ids, size, spec)

    def decode_stream(self, latents: Latents) -> Iterator[Tensor]:
        """Video chunks `b 3 t h w` in [-1, 1] in order, in constant memory where the tokenizer streams."""
        latents = latents.to(self._execution_device, self.video_tokenizer.dtype)
        if self.video_tokenizer.spec.streamable:
            yield from self.video_tokenizer.decode_stream([latents])
        else:
            yield self.video_tokenizer.decode(latents)

    @torch.no_grad()
    def decode(self, latents: Latents, output_type: str = "pil", known: tuple[Tensor, Tensor] | None = None) -> Frames:
        """Frames of latents; `known` pixels (video, where) are put back unchanged."""
        video = torch.cat([chunk.float() for chunk in self.decode_stream(latents)], dim=2)
        if known is not None:
            pixels, where = known
            video = torch.where(where, pixels, video)
        return self.video_processor.postprocess_video(video, output_type=output_type)

    def finish(
        self,
        tokens: Tensor,
        size: VideoSize,
        *,
        output_type: str,
        known: tuple[Tensor, Tensor] | None,
        latents_path: str | Path | None,
    ) -> Frames:
        """Latents of the sampled tokens, saved if asked for before anything can go wrong, then decoded."""
        latents = self.to_latents(tokens, size)
        if latents_path is not None:
            latents.save(latents_path)
        frames = latents if output_type == "latent" else self.decode(latents, output_type, known)
        self.maybe_free_model_hooks()
        return frames


def draw_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (1,), generator=generator, device=generator.device).item())


def repeated(text: TextStates, times: int) -> TextStates:
    return TextStates(text.states.repeat_interleave(times, 0), text.mask.repeat_interleave(times, 0))
