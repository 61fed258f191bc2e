"""What the three pipelines share: prompts, known pixels, sizes, noise, decoding. Each has its own step loop."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.video_processor import VideoProcessor
from PIL.Image import Image
from torch import Tensor, nn

from vidgen.conditioning import ClassEncoder, Condition, TextEncoder, TextStates, TokenState, known_from_video
from vidgen.conditioning.known import check_polarity
from vidgen.generators.base import Generator
from vidgen.latents import Latents, VideoSize
from vidgen.nn.memory import own_memory
from vidgen.nn.random import seeded
from vidgen.pipelines.extension import LongVideo
from vidgen.pipelines.lora import LoraVideo
from vidgen.pipelines.output import Frames
from vidgen.pipelines.timeline import Timeline, check_timeline, is_timeline, side_by_side
from vidgen.tokenizers.base import Tokenizer

Prompt = str | list[str] | Timeline
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
DEFAULTABLE = ("num_frames", "height", "width", "num_inference_steps", "guidance_scale")
StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks
VideoInput = Tensor | np.ndarray | list[Image] | list[list[Image]]


class VideoPipeline(LongVideo, LoraVideo, DiffusionPipeline):
    """Base of the pipelines: components, inputs and outputs."""

    model_cpu_offload_seq = "text_encoder->transformer->video_tokenizer"
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds", "negative_prompt_embeds"]

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
        """Keep the components; `defaults` are values for arguments that a call leaves out.

        As in diffusers, components that a use does not need may be `None` (the text encoder beside embeddings).
        """
        unknown = sorted(set(defaults or {}) - set(DEFAULTABLE))
        if unknown:
            raise ValueError(f"defaults may hold {', '.join(DEFAULTABLE)}; got {', '.join(unknown)}")
        self.register_modules(
            video_tokenizer=video_tokenizer, text_encoder=text_encoder, transformer=transformer, scheduler=scheduler
        )
        self.register_to_config(defaults=dict(defaults or {}))
        self.video_processor = VideoProcessor(do_resize=False)
        for component in self.components.values():
            if isinstance(component, nn.Module):
                own_memory(component)
        if transformer is not None and video_tokenizer is not None:
            transformer.check_spec(video_tokenizer.spec)
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._current_timestep: Any = None
        self._interrupt = False

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> "VideoPipeline":
        """As diffusers', which leaves components behind whose class is not exactly the annotated one."""
        names = ["video_tokenizer", "text_encoder", *(["transformer"] if isinstance(pipeline, cls) else [])]
        kept = {name: pipeline.components[name] for name in names if name not in kwargs}
        return super().from_pipe(pipeline, **kept, **kwargs)  # pyright: ignore[reportReturnType]

    # diffusers' properties

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1.0

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
        prompt_attention_mask: Tensor | None,
        negative_prompt_attention_mask: Tensor | None,
        size: VideoSize,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
        video: VideoInput | None,
        mask: Tensor | None,
        num_videos_per_prompt: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents_path: str | Path | None,
    ) -> None:
        """ValueError that says what was expected, what came and what to do."""
        self.transformer.check_spec(self.video_tokenizer.spec)  # either may have been exchanged since
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("give exactly one of prompt and prompt_embeds; use prompt='' for no text")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("give negative_prompt or negative_prompt_embeds, not both")
        for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            if name == "prompt" and is_timeline(text):
                check_timeline(text, size[0])
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
        for name, extent in zip(("num_frames", "height", "width"), size, strict=True):
            if not isinstance(extent, int) or extent < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {extent!r}")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
        if not isinstance(num_videos_per_prompt, int) or num_videos_per_prompt < 1:
            raise ValueError(f"num_videos_per_prompt must be an int of at least 1, got {num_videos_per_prompt!r}")
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has {unknown}; it may hold {self._callback_tensor_inputs}"
            )
        if mask is not None and video is None:
            raise ValueError("mask says which pixels of video are known; give the video as well")
        if isinstance(generator, list) and len(generator) != prompts * num_videos_per_prompt:
            raise ValueError(
                f"expected one generator for each of {prompts * num_videos_per_prompt} videos, got {len(generator)}; "
                "a single generator serves all"
            )
        if latents_path is not None and not Path(latents_path).absolute().parent.is_dir():
            raise ValueError(f"latents_path {latents_path} lies in a folder that does not exist; create it first")

    def checked_guidance(self, scale: float | None, negative: Prompt | Tensor | None, *, otherwise: float) -> float:
        """The strength of guidance: as called, else of this model's defaults, else `otherwise`.

        A model that was never trained without text has nothing to steer away from but a negative prompt: without one
        its default is 1, no guidance, and more is a ValueError.
        """
        has_negative = negative is not None and not (isinstance(negative, str) and not negative.strip())
        one_sided = self.transformer.config.text_dropped == 0 and not has_negative
        if scale is None:
            return 1.0 if one_sided else self.default("guidance_scale", None, otherwise)
        if scale > 1 and one_sided:
            raise ValueError(
                f"guidance of {scale:g} steers away from no text, and this model was trained with text alone "
                "(text_dropped is 0 in its config); use guidance_scale=1, give a negative_prompt, or train with "
                "--drop-text 0.1"
            )
        return scale

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
        if is_timeline(prompt):
            text = side_by_side(self.text_encoder.encode([entry for _, entry in prompt]))
        else:
            texts: Any = [prompt] if isinstance(prompt, str) else prompt
            text = self.text_encoder.encode(texts)
        return TextStates(text.states.to(device, dtype), text.mask.to(device))

    def prepare_generators(
        self, generator: torch.Generator | list[torch.Generator] | None, count: int
    ) -> list[torch.Generator]:
        """One generator per video. The i-th video of a call has the same noise however many videos the call makes."""
        sources = generator if isinstance(generator, list) else [generator or torch.default_generator] * count
        return seeded([draw_seed(source) for source in sources])

    def prepare_known(
        self, video: VideoInput | None, mask: Tensor | None, size: VideoSize, count: int, *, of_task: bool = False
    ) -> tuple[Tensor, Tensor] | None:
        """The known pixels of all frames, `b 3 t h w` in [-1, 1], and where they are, bool `b 1 t h w`.

        A video without a mask is known whole: given fewer frames than asked for, it is continued. The mask `of_task`
        may say that nothing is known; one that a person gives may not.
        """
        if video is None:
            return None
        pixels = self.video_tensor(video)
        if pixels.shape[2] > size[0] or pixels.shape[3:] != size[1:]:
            raise ValueError(
                f"the known video has {tuple(pixels.shape[2:])} (frames, height, width), which does not fit into "
                f"{size}; resize it or ask for another size"
            )
        if count % pixels.shape[0]:
            raise ValueError(f"{pixels.shape[0]} known videos do not fit {count} videos to make; give one or one each")
        shape = (pixels.shape[0], 1, *pixels.shape[2:])
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
        repeats = count // pixels.shape[0]
        device = self._execution_device
        return known.repeat_interleave(repeats, 0).to(device), where.repeat_interleave(repeats, 0).to(device)

    def encode_whole(self, video: VideoInput, size: VideoSize, count: int) -> Latents:
        """Latents of a video of exactly `size`, for each of `count` videos to make."""
        known = self.prepare_known(video, None, size, count)
        assert known is not None
        pixels, where = known
        if not where.all():
            raise ValueError(
                f"a video to edit or to follow must have all {size[0]} frames; give num_frames as many as it has"
            )
        bring_onto_device(self.video_tokenizer)
        return self.video_tokenizer.encode(pixels.to(self.video_tokenizer.dtype))

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
        if known is None:
            return Condition(states, mask)
        pixels, where = known
        bring_onto_device(self.video_tokenizer)
        latents, token_state = known_from_video(self.video_tokenizer, pixels, where)
        return Condition(states, mask, known=latents.to(self.transformer.dtype), token_state=token_state)

    def steer(
        self, condition: Condition, control: VideoInput | None, references: VideoInput | None, size: VideoSize
    ) -> Condition:
        """The condition with a control video and reference images (`r 3 h w`, or such frames), which serve all."""
        if control is not None:
            condition = replace(condition, control=self.encode_whole(control, size, len(condition.states)))
        if references is not None:
            images = references.unsqueeze(2) if isinstance(references, Tensor) else self.image_clips(references)
            bring_onto_device(self.video_tokenizer)
            pixels = self.video_tensor(images).to(self._execution_device, self.video_tokenizer.dtype)
            condition = self.transformer.with_references(condition, self.video_tokenizer.encode(pixels))
        return condition

    def image_clips(self, images: Any) -> Tensor:
        """PIL or NumPy images as videos of one frame, `r 3 1 h w`."""
        return self.video_processor.preprocess_video(images)[0].transpose(0, 1).unsqueeze(2)

    def unknown_tokens(self, condition: Condition, batch: int, size: VideoSize) -> Tensor:
        """`b n` bool: the tokens to generate."""
        if condition.token_state is None:
            shape = (batch, self.video_tokenizer.spec.num_tokens(size))
            return torch.ones(shape, dtype=torch.bool, device=self._execution_device)
        return condition.token_state != TokenState.KNOWN

    def given_tokens(self, latents: Tensor) -> Tensor:
        """Tokens that a caller gives, on the right device, in the right type; ValueError if they cannot be tokens."""
        spec = self.video_tokenizer.spec
        last = spec.num_codebooks if spec.discrete else spec.channels
        if latents.ndim != 3 or latents.shape[2] != last or latents.is_floating_point() == spec.discrete:
            kind = "ids" if spec.discrete else "reals"
            raise ValueError(f"latents must be {kind} `b n {last}`, got {latents.dtype} {tuple(latents.shape)}")
        largest = [max(sizes) for sizes in zip(*(part.codebooks for part in spec.parts), strict=True)]
        if spec.discrete and (latents.cpu() >= torch.tensor(largest)).any():
            raise ValueError(f"latents hold ids up to {int(latents.max())}; the codebooks have {largest} codes")
        dtype = torch.long if spec.discrete else self.transformer.dtype
        return latents.to(self._execution_device, dtype)

    # steps

    def call_back(
        self,
        callback: StepCallback,
        wanted: Sequence[str],
        step: int,
        timestep: Any,
        latents: Tensor,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The three tensors after a callback has seen those that it wants and changed what it likes."""
        tensors = (latents, prompt_embeds, negative_prompt_embeds)
        by_name = dict(zip(self._callback_tensor_inputs, tensors, strict=True))
        changed = callback(self, step, timestep, {name: by_name[name] for name in wanted})
        latents, prompt_embeds, negative_prompt_embeds = (changed.get(name, by_name[name]) for name in by_name)
        return latents, prompt_embeds, negative_prompt_embeds

    # outputs

    def to_latents(self, tokens: Tensor, size: VideoSize) -> Latents:
        """Tokens of a finished sampling (ids `b n q` or reals `b n c`) as `Latents`."""
        spec = self.video_tokenizer.spec
        if not spec.discrete:
            return Latents(tokens, None, size, spec)
        bring_onto_device(self.video_tokenizer)
        ids = tokens if not tokens.is_floating_point() else self.video_tokenizer.ids_from_reals(tokens, size)
        return Latents(self.video_tokenizer.reals_from_ids(ids, size), ids, size, spec)

    def decode_stream(self, latents: Latents) -> Iterator[Tensor]:
        """Video chunks `b 3 t h w` in [-1, 1] in order, in constant memory where the tokenizer streams."""
        bring_onto_device(self.video_tokenizer)
        latents = latents.to(self._execution_device, self.video_tokenizer.dtype)
        yield from self.video_tokenizer.decode_chunks([latents])

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


def check_prompt(name: str, text: Prompt | None) -> None:
    if text is None or isinstance(text, str):
        return
    if not isinstance(text, list) or not text or not all(isinstance(one, str) for one in text):
        raise ValueError(f"{name} must be a str or a list of at least one str, got {text!r}")


def count_prompts(text: Prompt | None, embeds: Tensor | None) -> int:
    if embeds is not None:
        return len(embeds)
    if is_timeline(text):
        return 1
    return len(text) if isinstance(text, list) else 1


def bring_onto_device(module: nn.Module) -> None:
    """Run the offload hook of a component whose encode or decode comes next: diffusers runs it for `forward` alone."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)


def draw_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (1,), generator=generator, device=generator.device).item())


def repeated(text: TextStates, times: int) -> TextStates:
    return TextStates(text.states.repeat_interleave(times, 0), text.mask.repeat_interleave(times, 0))
