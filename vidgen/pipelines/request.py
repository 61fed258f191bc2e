"""A call's arguments, checked and encoded: what every step loop starts from."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from vidgen.conditioning import Condition
from vidgen.conditioning.timeline import frame_ranges
from vidgen.latents import Latents, VideoSize
from vidgen.nn.random import draw_seed, seeded
from vidgen.pipelines.editing import check_strength
from vidgen.pipelines.given import GivenVideo, VideoInput
from vidgen.pipelines.offload import bring_onto_device
from vidgen.pipelines.prompting import Prompt, PromptedVideo

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class Request:
    """What a call asks for. The batch `b` counts all videos to make, candidates for the same one side by side.

    Args:
        prompt: as called, or the names of the classes asked for.
        size: of the videos.
        candidates: videos to make for each one that comes back.
        condition: of the network in the branch of the prompt.
        negative_embeds: states `b l d` of the other branch of guidance; `None` without guidance.
        negative_mask: bool `b l`, those that exist.
        coordinates: of the tokens, `n 3`.
        generators: one for each video.
        latents: those that the caller gave, a row for each video.
        known: of `prepare_known`.
        edited: latents of the video to edit.
        tensor_inputs: names of the tensors that the callback gets.
        output_type, latents_path: as called.
    """

    prompt: Prompt | None
    size: VideoSize
    candidates: int
    condition: Condition
    negative_embeds: Tensor | None
    negative_mask: Tensor | None
    coordinates: Tensor
    generators: list[torch.Generator]
    latents: Tensor | None
    known: tuple[Tensor, Tensor] | None
    edited: Latents | None
    tensor_inputs: Sequence[str]
    output_type: str
    latents_path: str | Path | None

    @property
    def batch(self) -> int:
        return len(self.generators)

    @property
    def edited_tokens(self) -> Tensor | None:
        """Those of the video to edit, as they are sampled: ids `b n q` where there are ids, else reals `b n c`."""
        if self.edited is None:
            return None
        return self.edited.tokens if self.edited.ids is None else self.edited.ids


class RequestedVideo(PromptedVideo, GivenVideo):
    """What lets a pipeline understand a call."""

    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    latents_are_noise: ClassVar[bool] = False  # or else the tokens to begin with

    config: Any
    do_classifier_free_guidance: bool
    checked_candidates: Any
    _guidance_scale: float
    _interrupt: bool

    def default(self, name: str, value: Any, otherwise: Any) -> Any:
        """The value of an argument: as called, else of this model's defaults, else of all pipelines."""
        return self.config.defaults.get(name, otherwise) if value is None else value

    def default_size(self, num_frames: int | None, height: int | None, width: int | None) -> VideoSize:
        """The size of the videos, from what was called."""
        called = {"num_frames": num_frames, "height": height, "width": width}
        others = {"num_frames": 17, "height": 64, "width": 64}
        frames, rows, columns = (self.default(name, extent, others[name]) for name, extent in called.items())
        return frames, rows, columns

    def prepare(
        self,
        prompt: Prompt | None,
        negative_prompt: Prompt | None,
        *,
        prompt_embeds: Tensor | None,
        negative_prompt_embeds: Tensor | None,
        prompt_attention_mask: Tensor | None,
        negative_prompt_attention_mask: Tensor | None,
        class_label: int | list[int] | None,
        size: VideoSize,
        guidance_scale: float | None,
        default_guidance: float,
        num_videos_per_prompt: int,
        num_candidates: int | None,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None,
        video: VideoInput | None,
        mask: Tensor | None,
        strength: float | None,
        control_video: VideoInput | None,
        reference_images: VideoInput | None,
        output_type: str,
        latents_path: str | Path | None,
        callback_on_step_end: Any,
        callback_on_step_end_tensor_inputs: list[str] | None,
        mask_of_task: bool = False,
    ) -> Request:
        """Check the arguments of a call, encode what it says and shows, and bring the network onto its device.

        They are those of the call but for `size`, which has its defaults, `default_guidance`, the guidance of a model
        whose defaults have none, and `mask_of_task`: the mask comes from a task and may say that nothing is known.
        """
        if class_label is not None:
            prompt = self.class_prompt(class_label, prompt)
        tensor_inputs = callback_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        texts: dict[str, Any] = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "prompt_attention_mask": prompt_attention_mask,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
        }
        self.transformer.check_spec(self.video_tokenizer.spec)  # either may have been exchanged since
        prompts = self.check_prompts(**texts, num_frames=size[0])
        self.check_inputs(
            prompts,
            size=size,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=tensor_inputs,
            video=video,
            mask=mask,
            num_videos_per_prompt=num_videos_per_prompt,
            generator=generator,
            latents_path=latents_path,
        )
        check_strength(strength, video, None if self.latents_are_noise else latents)
        negative = negative_prompt if negative_prompt_embeds is None else negative_prompt_embeds
        self._guidance_scale = self.checked_guidance(guidance_scale, negative, otherwise=default_guidance)
        self._interrupt = False
        candidates = self.checked_candidates(num_candidates, latents, of_noise=self.latents_are_noise)

        states, states_mask, negative_embeds, negative_mask = self.encode_prompt(
            **texts,
            do_classifier_free_guidance=self.do_classifier_free_guidance,
            num_videos_per_prompt=num_videos_per_prompt * candidates,
        )
        batch = len(states)
        generators = self.prepare_generators(generator, batch // candidates, candidates)
        pixels = video if strength is None or mask is not None else None
        known = self.prepare_known(pixels, mask, size, batch, of_task=mask_of_task)
        condition: Condition = self.build_condition(states, states_mask, known)
        condition.frames = frame_ranges(prompt, states)
        condition = self.steer(condition, control_video, reference_images, size)
        edited = None if strength is None or video is None else self.encode_whole(video, size, batch)
        bring_onto_device(self.transformer)
        return Request(
            prompt=prompt,
            size=size,
            candidates=candidates,
            condition=condition,
            negative_embeds=negative_embeds,
            negative_mask=negative_mask,
            coordinates=self.video_tokenizer.spec.coordinates(size).to(self._execution_device),
            generators=generators,
            latents=None if latents is None else latents.repeat_interleave(candidates, 0),
            known=known,
            edited=edited,
            tensor_inputs=tensor_inputs,
            output_type=output_type,
            latents_path=latents_path,
        )

    def check_inputs(
        self,
        prompts: int,
        *,
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
        for name, extent in zip(("num_frames", "height", "width"), size, strict=True):
            if not isinstance(extent, Integral) or extent < 1:
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
        for one in generator if isinstance(generator, list) else [generator]:
            if one is not None and not isinstance(one, torch.Generator):
                raise ValueError(
                    f"generator is a torch.Generator or a list of them, got {one!r}; a seed becomes one by "
                    "torch.Generator().manual_seed(seed)"
                )
        if isinstance(generator, list) and len(generator) != prompts * num_videos_per_prompt:
            raise ValueError(
                f"expected one generator for each of {prompts * num_videos_per_prompt} videos, got {len(generator)}; "
                "a single generator serves all"
            )
        if latents_path is not None and not Path(latents_path).absolute().parent.is_dir():
            raise ValueError(f"latents_path {latents_path} lies in a folder that does not exist; create it first")

    def prepare_generators(
        self, generator: torch.Generator | list[torch.Generator] | None, count: int, candidates: int = 1
    ) -> list[torch.Generator]:
        """One generator for each candidate of each of `count` videos.

        The i-th video of a call has the same noise however many videos the call makes, and so has its j-th candidate.
        """
        source = torch.default_generator if generator is None else generator
        sources = source if isinstance(source, list) else [source] * count
        return seeded([seed for source in sources for seed in candidate_seeds(draw_seed(source), candidates)])

    def given_tokens(self, latents: Tensor, size: VideoSize) -> Tensor:
        """First tokens of a video of `size` as a caller gives them, on the right device, in the right type; ValueError
        if they cannot be tokens.
        """
        spec = self.video_tokenizer.spec
        last = spec.num_codebooks if spec.discrete else spec.channels
        if latents.ndim != 3 or latents.shape[2] != last or latents.is_floating_point() == spec.discrete:
            kind = "ids" if spec.discrete else "reals"
            raise ValueError(f"latents must be {kind} `b n {last}`, got {latents.dtype} {tuple(latents.shape)}")
        for part, place in zip(spec.parts, spec.slices(size), strict=True):
            given = latents[:, place]
            if spec.discrete and (given.cpu() >= torch.tensor(part.codebooks)).any():
                raise ValueError(
                    f"latents hold ids up to {int(given.max())} of part {part.name!r}, whose codebooks have "
                    f"{part.codebooks} codes; give smaller ones"
                )
        dtype = torch.long if spec.discrete else self.transformer.dtype
        return latents.to(self._execution_device, dtype)


def callback_inputs(callback: Any, names: list[str] | None) -> Sequence[str]:
    """Names of the tensors that a callback gets: its own list, the caller's, or the latents alone."""
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        return callback.tensor_inputs
    return ["latents"] if names is None else names


def candidate_seeds(seed: int, candidates: int) -> list[int]:
    """Seeds of the candidates of one video; the first is the seed of the video without a choice."""
    source = torch.Generator().manual_seed(seed)
    return [seed, *(draw_seed(source) for _ in range(candidates - 1))]
