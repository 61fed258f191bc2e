"""Video from a diffusion transformer: noise to tokens step by step, at once or chunk by chunk of frames."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline  # noqa: F401  diffusers looks the loader up here
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from vidgen.conditioning import TextEncoder, TokenState
from vidgen.generators import DiffusionTransformer
from vidgen.generators.layouts import FrameCausal
from vidgen.latents import VideoSize
from vidgen.matchers.base import Matcher
from vidgen.nn.frame_cache import FrameCache
from vidgen.nn.random import Generators, randn
from vidgen.nn.reduced_attention import ReductionRun, TokenReduction
from vidgen.pipelines.base import StepCallback, VideoPipeline
from vidgen.pipelines.given import VideoInput
from vidgen.pipelines.inversion import FlowInversion
from vidgen.pipelines.output import Frames, VideoPipelineOutput
from vidgen.pipelines.prompting import Prompt
from vidgen.schedulers import denoising
from vidgen.schedulers.guidance import Branch, Guidance
from vidgen.schedulers.objectives import LEVELS, FlowObjective
from vidgen.tokenizers import Tokenizer

TwoTexts = tuple[Tensor, Tensor | None]


class DiffusionVideoPipeline(FlowInversion, VideoPipeline):
    """Text to video by flow matching or denoising diffusion.

    Args:
        video_tokenizer: makes and decodes the tokens.
        text_encoder: encodes prompts.
        transformer: predicts the tokens.
        scheduler: diffusers' Euler steps along the flow, or any that fits what the transformer predicts.
        defaults: values for arguments that a call leaves out, e.g. {"num_frames": 17, "guidance_scale": 3.0}.
        matcher: helps to choose between candidates.
    """

    latents_are_noise: ClassVar[bool] = True

    def __init__(
        self,
        video_tokenizer: Tokenizer,
        text_encoder: TextEncoder,
        transformer: DiffusionTransformer,
        scheduler: SchedulerMixin,
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
        if transformer is not None and scheduler is not None:
            denoising.check_prediction(scheduler, transformer.training_objective.prediction_type)

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
        guidance: Guidance | None = None,
        chunk_frames: int | None = None,
        strength: float | None = None,
        control_video: VideoInput | None = None,
        reference_images: VideoInput | None = None,
        class_label: int | list[int] | None = None,
        token_reduction: TokenReduction | None = None,
        num_candidates: int | None = None,
    ) -> VideoPipelineOutput | tuple[Frames]:
        """Make videos.

        Args:
            prompt: what to show, one or many; or a timeline for one video, `[(0, "…"), (24, "…")]`: each prompt holds
                from its frame to the next one's.
            negative_prompt: what guidance steers away from; without it, away from "no text".
            height, width, num_frames: of the videos, exactly; by default those that the model was trained on.
            num_inference_steps: steps of the scheduler; 30 by default.
            guidance_scale: classifier-free guidance; none up to 1.
            guidance: other guidance than plain classifier-free one, in place of guidance_scale.
            num_videos_per_prompt: videos for each prompt.
            generator: one for all videos or one for each. A video's noise does not depend on the others of the call.
            latents: noise to start from, `b n c` of unit variance.
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
            chunk_frames: make this many latent frames at a time, each chunk from the clean ones before it (ViD-GPT);
                needs a transformer with attention "frame-causal". The cost of a chunk is that of its own frames.
            class_label: number of the class in place of a prompt, one or many.
            control_video: depth, edges or a sketch of all frames, for a transformer with a control branch.
            reference_images: `r 3 h w` in [-1, 1] or PIL images of what to show, for a transformer that takes them.
            strength: edit the video: its tokens start at this noise level (before the scheduler's shift), or, of
                samplers without noise levels, this share of the steps is taken. Pixels that a mask says are known stay.
            token_reduction: leave similar tokens out of full attention, for speed at some loss.
            num_candidates: videos made for each that comes back, at as many times the time and memory; 1 = no choice.
                The one comes back that the network itself finds most plausible (`Generator.plausibility`) and, where
                there are a matcher and words, that shows best what they say.
        """
        size = self.default_size(num_frames, height, width)
        if guidance is not None:
            self.check_guidance(guidance, guidance_scale)
        request = self.prepare(
            prompt,
            negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            class_label=class_label,
            size=size,
            guidance_scale=guidance_scale if guidance is None else guidance.highest,
            default_guidance=3.0,
            num_videos_per_prompt=num_videos_per_prompt,
            num_candidates=num_candidates,
            generator=generator,
            latents=latents,
            video=video,
            mask=mask,
            strength=strength,
            control_video=control_video,
            reference_images=reference_images,
            output_type=output_type,
            latents_path=latents_path,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        guidance = Guidance(scale=self.guidance_scale) if guidance is None else guidance
        condition, coordinates, generators = request.condition, request.coordinates, request.generators
        prompt_embeds, negative_prompt_embeds = condition.states, request.negative_embeds
        noise = self.prepare_latents(request.latents, size, generators)
        steps = self.default("num_inference_steps", num_inference_steps, 30)
        if steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {steps}")
        begin = {"shift": self.resolution_shift(noise.shape[1]), "device": coordinates.device, "first": strength or 1.0}
        self._num_timesteps = len(denoising.start(self.scheduler, steps, **begin))
        edited = None if request.edited is None else request.edited.tokens
        chunks = self.chunks(size, chunk_frames)
        caches: dict[Branch, FrameCache | None] = dict.fromkeys(guidance.all_branches)
        if chunk_frames is not None:
            caches = {branch: self.transformer.empty_cache(size) for branch in guidance.all_branches}
        runs = {
            branch: None if token_reduction is None else ReductionRun(token_reduction)
            for branch in guidance.all_branches
        }
        everything = self.transformer.condition_inputs(condition, coordinates)
        made: list[Tensor] = []

        with self.progress_bar(total=self._num_timesteps * len(chunks)) as progress:  # pyright: ignore[reportCallIssue]
            for chunk in chunks:
                here = coordinates[chunk]
                inputs = part_of(everything, chunk)
                timesteps = denoising.start(self.scheduler, steps, **begin)
                sample = denoising.first_sample(
                    self.scheduler, noise[:, chunk], timesteps, edited=None if edited is None else edited[:, chunk]
                )
                if len(chunks) > 1 and is_known(inputs):
                    timesteps = timesteps[:0]
                levels = (timesteps / LEVELS).tolist()
                for i, (t, level) in enumerate(zip(timesteps, levels, strict=True)):
                    if self.interrupt:
                        continue
                    self._current_timestep = t
                    texts = (prompt_embeds, negative_prompt_embeds)
                    told = denoising.network_input(self.scheduler, sample, t)
                    predictions = {}
                    for branch in guidance.branches(level, i) if self.do_classifier_free_guidance else ("full",):
                        run = runs[branch]
                        with self.transformer.cache_context(branch):
                            predictions[branch] = self.transformer(
                                told,
                                t.expand(request.batch),
                                here,
                                **branch_inputs(inputs, branch, texts, request.negative_mask),
                                cache=caches[branch],
                                reduction=None if run is None else run.at(i, level),
                            )
                    prediction = guidance.combine(predictions, level, i, made=left_to_make(inputs))
                    if "nothing" in guidance.all_branches:  # that branch sees known tokens as noisy as all others
                        prediction = self.towards_known(prediction, noise[:, chunk], inputs, t)
                    sample = denoising.step(self.scheduler, prediction, t, sample, generators=generators)
                    if callback_on_step_end is not None:
                        tensors = (sample, prompt_embeds, negative_prompt_embeds)
                        tensors = self.call_back(callback_on_step_end, request.tensor_inputs, i, t, *tensors)
                        sample, prompt_embeds, negative_prompt_embeds = tensors
                    progress.update()
                made.append(with_known(sample, inputs))
                if len(made) == len(chunks):
                    break
                texts = (prompt_embeds, negative_prompt_embeds)
                for branch, cache in caches.items():
                    self.remember(cache, made[-1], here, branch_inputs(inputs, branch, texts, request.negative_mask))

        sample = self.choose(torch.cat(made, dim=1), request)
        frames = self.finish(sample, request)
        return VideoPipelineOutput(frames=frames) if return_dict else (frames,)

    def check_guidance(self, guidance: Guidance, guidance_scale: float | None) -> None:
        """ValueError unless this network can be guided so, and by nothing else."""
        if guidance_scale is not None:
            raise ValueError("give guidance_scale or guidance, not both; guidance has a scale of its own")
        if guidance.zero_steps and not isinstance(self.transformer.training_objective, FlowObjective):
            raise ValueError(
                "zero_steps are for networks that predict a flow, where 0 is to stand still; leave them out"
            )

    def resolution_shift(self, tokens: int) -> float:
        """How far the transformer was trained to shift noise levels for a video of that many tokens."""
        objective = self.transformer.training_objective
        return objective.shift(tokens) if isinstance(objective, FlowObjective) else 1.0

    def chunks(self, size: VideoSize, chunk_frames: int | None) -> list[slice]:
        """The tokens of each chunk; all at once without `chunk_frames`."""
        spec = self.video_tokenizer.spec
        tokens = spec.num_tokens(size)
        if chunk_frames is None:
            return [slice(0, tokens)]
        layout = self.transformer.layout
        unit = layout.group * self.transformer.patches.size[0] if isinstance(layout, FrameCausal) else 1
        if chunk_frames < 1 or chunk_frames % unit:
            raise ValueError(
                f"chunk_frames must be a multiple of the {unit} frames of a causal group, got {chunk_frames}"
            )
        step = tokens // spec.grid(size)[0] * chunk_frames
        return [slice(first, min(first + step, tokens)) for first in range(0, tokens, step)]

    def remember(self, cache: FrameCache | None, clean: Tensor, coordinates: Tensor, inputs: dict[str, Any]) -> None:
        """Show the finished chunk at noise level 0, for its keys and values."""
        assert cache is not None
        self.transformer._reset_stateful_cache()  # or a step cache would skip the blocks that should remember
        cache.storing = True
        timestep = torch.zeros(len(clean), device=clean.device)
        with self.transformer.cache_context("remember"):
            self.transformer(clean, timestep, coordinates, **inputs, cache=cache)
        cache.storing = False
        self.transformer._reset_stateful_cache()

    def prepare_latents(self, latents: Tensor | None, size: VideoSize, generators: Generators) -> Tensor:
        """Noise to start from, given or drawn for each video on its own."""
        spec = self.video_tokenizer.spec
        shape = (len(generators), spec.num_tokens(size), spec.channels)
        if latents is None:
            latents = randn(shape, generators)
        if latents.shape != shape:
            raise ValueError(f"latents must be {shape}, got {tuple(latents.shape)}")
        return latents.to(self._execution_device, self.transformer.dtype)

    def towards_known(self, prediction: Tensor, noise: Tensor, inputs: dict[str, Any], timestep: Tensor) -> Tensor:
        """The prediction, with the one at known tokens that leads from their noise straight to them."""
        if inputs["known_tokens"] is None:
            return prediction
        clean = inputs["known_tokens"].to(prediction.dtype)
        target = self.transformer.training_objective.target(clean, noise, timestep.expand(len(clean), 1))
        known = inputs["token_state"] == TokenState.KNOWN
        return torch.where(known.unsqueeze(-1), target.to(prediction.dtype), prediction)


def branch_inputs(
    inputs: dict[str, Any], branch: Branch, texts: TwoTexts, negative_mask: Tensor | None
) -> dict[str, Any]:
    """What the transformer is told in one branch of guidance; texts are the prompt's and the negative's."""
    if branch == "full":
        return {**inputs, "encoder_hidden_states": texts[0]}
    told = {**inputs, "encoder_hidden_states": texts[1], "encoder_attention_mask": negative_mask}
    return told if branch == "known" else {**told, "known_tokens": None, "token_state": None}


def part_of(inputs: dict[str, Any], tokens: slice) -> dict[str, Any]:
    """The inputs for some of the tokens, whole frames: what is `b n …` is cut, text for all tokens is not."""
    part = dict(inputs)
    if part["grid"] is not None:
        _, height, width = part["grid"]
        part["grid"] = ((tokens.stop - tokens.start) // (height * width), height, width)
    for name in ("known_tokens", "token_state", "control"):
        part[name] = None if part.get(name) is None else part[name][:, tokens]
    if part["encoder_attention_mask"].ndim == 3:
        part["encoder_attention_mask"] = part["encoder_attention_mask"][:, tokens]
    return part


def left_to_make(inputs: dict[str, Any]) -> Tensor | None:
    """`b n` bool: the tokens that are not known; `None` = all."""
    return None if inputs["token_state"] is None else inputs["token_state"] != TokenState.KNOWN


def is_known(inputs: dict[str, Any]) -> bool:
    """Whether there is nothing left to make."""
    return inputs["token_state"] is not None and bool((inputs["token_state"] == TokenState.KNOWN).all())


def with_known(latents: Tensor, inputs: dict[str, Any]) -> Tensor:
    """Latents with the known tokens in place."""
    if inputs["known_tokens"] is None:
        return latents
    known = inputs["token_state"] == TokenState.KNOWN
    return torch.where(known.unsqueeze(-1), inputs["known_tokens"].to(latents.dtype), latents)
