"""Video from a masked transformer: all tokens at once, the surest ones first (MaskGIT, MAGVIT)."""

from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline  # noqa: F401  diffusers looks the loader up here
from torch import Tensor

from vidgen.conditioning import Condition, TextEncoder, known_mask, task_numbers
from vidgen.conditioning.tasks import check_task
from vidgen.generators import MaskedTransformer
from vidgen.latents import VideoSize
from vidgen.matchers.base import Matcher
from vidgen.pipelines.base import StepCallback, VideoPipeline
from vidgen.pipelines.editing import remasked
from vidgen.pipelines.given import VideoInput
from vidgen.pipelines.output import Frames, VideoPipelineOutput
from vidgen.pipelines.prompting import Prompt
from vidgen.pipelines.request import Request
from vidgen.schedulers import MaskScheduler, SamplingRule
from vidgen.tokenizers import Tokenizer


class MaskedVideoPipeline(VideoPipeline):
    """Text to video by parallel decoding of masked tokens.

    Args:
        video_tokenizer: makes and decodes the tokens.
        text_encoder: encodes prompts.
        transformer: predicts the tokens.
        scheduler: decides which predictions stay.
        defaults: values for arguments that a call leaves out, e.g. {"num_frames": 17, "guidance_scale": 3.0}.
        matcher: helps to choose between candidates.
    """

    def __init__(
        self,
        video_tokenizer: Tokenizer,
        text_encoder: TextEncoder,
        transformer: MaskedTransformer,
        scheduler: MaskScheduler,
        defaults: dict[str, Any] | None = None,
        matcher: Matcher | None = None,
    ) -> None:
        super().__init__()
        self.register(
            video_tokenizer=video_tokenizer,
            text_encoder=text_encoder,
            transformer=transformer,
            scheduler=scheduler,
            defaults=defaults,
            matcher=matcher,
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompt | None = None,
        negative_prompt: Prompt | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        video: VideoInput | None = None,
        mask: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        latents_path: str | Path | None = None,
        strength: float | None = None,
        control_video: VideoInput | None = None,
        reference_images: VideoInput | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        class_label: int | list[int] | None = None,
        task: str | None = None,
        actions: Tensor | None = None,
        num_candidates: int | None = None,
    ) -> VideoPipelineOutput | tuple[Frames]:
        """Make videos.

        Args:
            prompt: what to show, one or many; or a timeline for one video, `[(0, "…"), (24, "…")]`: each prompt holds
                from its frame to the next one's.
            negative_prompt: what guidance steers away from; without it, away from "no text".
            height, width, num_frames: of the videos, exactly; by default those that the model was trained on.
            num_inference_steps: decoding steps; 12 by default.
            guidance_scale: classifier-free guidance; none up to 1.
            num_videos_per_prompt: videos for each prompt.
            generator: one for all videos or one for each. A video's noise does not depend on the others of the call.
            latents: tokens to start from, ids `b n q` with -1 (reals `b n c` with NaN) where undecided.
            video, mask: known pixels: `3 t h w` or `b 3 t h w` in [-1, 1] (or PIL or NumPy frames), and bool
                `t h w` … `b 1 t h w`. A video without a mask is known whole; shorter than num_frames, it is
                continued. Known pixels come back unchanged.
            prompt_embeds, prompt_attention_mask: states `b l d` in place of the prompt, and bool `b l`; likewise
                for the negative prompt.
            output_type: "pil", "np", "pt" or "latent"; see `VideoPipelineOutput`.
            return_dict: a `VideoPipelineOutput`, or else a tuple with the frames.
            callback_on_step_end: called as (pipe, step, timestep, tensors) after each step; returns changed tensors.
            callback_on_step_end_tensor_inputs: names of the tensors that it gets.
            latents_path: write the latents to this file before they are decoded.
            control_video: depth, edges or a sketch of all frames, for a transformer with a control branch.
            reference_images: `r 3 h w` in [-1, 1] or PIL images of what to show, for a transformer that takes them.
            strength: edit the video: this share of its tokens, drawn at random, is made anew. Pixels that a mask says
                are known stay.
            temperature, top_k, top_p: how tokens are drawn, see `SamplingRule`.
            class_label: number of the class in place of a prompt, one or many.
            task: one of `TASK_NAMES`, which a network trained on tasks is told. Of a `video` with all frames and
                without a mask, the task's own region is known.
            actions: `b t a`, what leads to each frame, for a transformer with action_channels.
            num_candidates: videos made for each that comes back, at as many times the time and memory; 1 = no choice.
                The one comes back that the network itself finds most plausible (`Generator.plausibility`) and, where
                there are a matcher and words, that shows best what they say.
        """
        size = self.default_size(num_frames, height, width)
        given = mask
        if task is not None and mask is None and video is not None:
            mask = self.task_mask(task, video, size)
        request = self.prepare(
            prompt,
            negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            class_label=class_label,
            size=size,
            guidance_scale=guidance_scale,
            default_guidance=3.0,
            num_videos_per_prompt=num_videos_per_prompt,
            num_candidates=num_candidates,
            generator=generator,
            latents=latents,
            video=video,
            mask=mask,
            mask_of_task=mask is not given,
            strength=strength,
            control_video=control_video,
            reference_images=reference_images,
            output_type=output_type,
            latents_path=latents_path,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        if task is not None:
            request.condition.task = task_numbers([check_task(task)] * request.batch).to(request.coordinates.device)
        if actions is not None:
            request.condition = self.with_actions(request, actions)
        condition, coordinates, generators = request.condition, request.coordinates, request.generators
        inputs = self.transformer.condition_inputs(condition, coordinates)
        prompt_embeds, negative_prompt_embeds = condition.states, request.negative_embeds

        unknown = condition.unknown(len(coordinates))
        latents = request.latents
        if strength is not None and request.edited_tokens is not None:
            latents = remasked(request.edited_tokens, strength, generators)
        sample = self.prepare_latents(latents, condition, unknown, size)
        unknown = masked = undecided(sample)
        rule = SamplingRule(temperature=temperature, top_k=top_k, top_p=top_p)
        steps = self.default("num_inference_steps", num_inference_steps, 12)
        self.scheduler.set_timesteps(steps, device=coordinates.device)
        self._num_timesteps = len(self.scheduler.timesteps)

        memories, head = self.transformer.empty_memories(), self.transformer.proj_out
        with self.progress_bar(total=self._num_timesteps) as progress:  # pyright: ignore[reportCallIssue]
            for i, t in enumerate(self.scheduler.timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = t
                tokens = sample.nan_to_num() if sample.is_floating_point() else sample.clamp(min=0)
                inputs["encoder_hidden_states"] = prompt_embeds
                hidden = self.transformer(tokens, masked, coordinates, **inputs, **memories[0])
                without = None
                if self.do_classifier_free_guidance and negative_prompt_embeds is not None:
                    other = {**inputs, "encoder_hidden_states": negative_prompt_embeds}
                    other["encoder_attention_mask"] = request.negative_mask
                    without = self.transformer(tokens, masked, coordinates, **other, **memories[1])
                guidance = self.scheduler.guidance_at(t, self.guidance_scale)
                draw = {"generators": generators, "rule": rule, "limits": self.transformer.limits(coordinates)}
                state = {"masked": masked, "unknown": unknown, "generators": generators, "times": coordinates[:, 2]}
                places = realness = confidence = None
                if self.transformer.to_realness is None:
                    places = self.scheduler.places(t, confident=head.confident, **state)
                if places is None:
                    prediction, confidence = head.sample(hidden, without, guidance, **draw)
                else:
                    prediction = head.sample_at(places, tokens, hidden, without, guidance, **draw)
                if self.transformer.to_realness is not None:
                    completed = torch.where(masked.unsqueeze(-1), prediction.to(tokens.dtype), tokens)
                    realness = self.transformer.realness(completed, coordinates, **inputs)
                step = self.scheduler.step(
                    prediction, t, tokens, confidence=confidence, realness=realness, places=places, **state
                )
                sample, masked = step.prev_sample, step.masked
                if callback_on_step_end is not None:
                    tensors = (sample, prompt_embeds, negative_prompt_embeds)
                    changed = self.call_back(callback_on_step_end, request.tensor_inputs, i, t, *tensors)
                    sample, prompt_embeds, negative_prompt_embeds = changed
                    if any(after is not before for after, before in zip(changed, tensors, strict=True)):
                        memories = self.transformer.empty_memories()  # what is kept is of the tensors before
                    if self.interrupt and places is not None:  # what is left comes as this step guesses it
                        sample = head.sample_at(masked, sample, hidden, without, guidance, **draw)
                progress.update()

        sample = self.choose(sample, request)
        frames = self.finish(sample, request)
        return VideoPipelineOutput(frames=frames) if return_dict else (frames,)

    def task_mask(self, task: str, video: VideoInput, size: VideoSize) -> Tensor | None:
        """The region that a task gives of a video with all frames; a shorter one is known whole."""
        frames = self.video_tensor(video).shape[2]
        return known_mask(task, size) if frames == size[0] else None

    def with_actions(self, request: Request, actions: Tensor) -> Condition:
        """The condition of a request with actions `b t a`, which are the same for all candidates of a video."""
        expected = (request.batch // request.candidates, request.size[0])
        if actions.shape[:-1] != expected:
            raise ValueError(f"actions must be `{expected[0]} {expected[1]} a`, got {tuple(actions.shape)}")
        actions = actions.to(request.coordinates.device).repeat_interleave(request.candidates, 0)
        return self.transformer.with_actions(request.condition, actions)

    def prepare_latents(self, latents: Tensor | None, condition: Condition, unknown: Tensor, size: VideoSize) -> Tensor:
        """Tokens to start from: given ones, else undecided ones; known tokens are in place."""
        spec, (batch, count) = self.video_tokenizer.spec, unknown.shape
        if latents is not None:
            latents = self.given_tokens(latents, size)
        elif spec.discrete:
            latents = torch.full((batch, count, spec.num_codebooks), -1, device=unknown.device)
        else:
            shape = (batch, count, spec.channels)
            latents = torch.full(shape, float("nan"), device=unknown.device, dtype=self.transformer.dtype)
        if latents.shape[:2] != unknown.shape:
            raise ValueError(f"latents must be `{batch} {count} …`, got {tuple(latents.shape)}")
        if condition.known is None:
            return latents
        given = condition.known.ids if condition.known.ids is not None else condition.known.tokens
        return torch.where(unknown.unsqueeze(-1), latents, given.to(latents.dtype))


def undecided(latents: Tensor) -> Tensor:
    """`b n` bool: tokens that are -1 (ids) or NaN (reals)."""
    marks = latents.isnan() if latents.is_floating_point() else latents < 0
    return marks.any(dim=-1)
