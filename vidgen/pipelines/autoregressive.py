"""Video from an autoregressive transformer: one token (or group) after the other, with cached keys and values."""

from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline  # noqa: F401  diffusers looks the loader up here
from torch import Tensor

from vidgen.conditioning import Condition, TextEncoder
from vidgen.generators.sequence import AutoregressiveGenerator, at_positions, stacked, with_negatives
from vidgen.latents import VideoSize
from vidgen.matchers.base import Matcher
from vidgen.pipelines.base import StepCallback, VideoPipeline
from vidgen.pipelines.editing import first_tokens
from vidgen.pipelines.given import VideoInput
from vidgen.pipelines.output import Frames, VideoPipelineOutput
from vidgen.pipelines.prompting import Prompt
from vidgen.schedulers import AutoregressiveScheduler, SamplingRule
from vidgen.tokenizers import Tokenizer


class AutoregressiveVideoPipeline(VideoPipeline):
    """Text to video, token by token.

    Args:
        video_tokenizer: makes and decodes the tokens.
        text_encoder: encodes prompts.
        transformer: predicts the tokens.
        scheduler: the order of the tokens and where guidance acts.
        defaults: values for arguments that a call leaves out, e.g. {"num_frames": 17, "guidance_scale": 3.0}.
        matcher: helps to choose between candidates.
    """

    def __init__(
        self,
        video_tokenizer: Tokenizer,
        text_encoder: TextEncoder,
        transformer: AutoregressiveGenerator,
        scheduler: AutoregressiveScheduler,
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
        class_label: int | list[int] | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        num_candidates: int | None = None,
    ) -> VideoPipelineOutput | tuple[Frames]:
        """Make videos.

        Args:
            prompt: what to show, one or many; or a timeline for one video, `[(0, "…"), (24, "…")]`: each prompt holds
                from its frame to the next one's.
            negative_prompt: what guidance steers away from; without it, away from "no text".
            height, width, num_frames: of the videos, exactly; by default those that the model was trained on.
            num_inference_steps: Euler steps of a flow head, 16 by default; ids take one step a token and ignore it.
            guidance_scale: classifier-free guidance; none up to 1.
            num_videos_per_prompt: videos for each prompt.
            generator: one for all videos or one for each. A video's noise does not depend on the others of the call.
            latents: the first tokens, ids `b m q` or reals `b m c`, m ≤ n, to go on from; known pixels come first.
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
            class_label: number of the class in place of a prompt, one or many.
            control_video: depth, edges or a sketch of all frames, for a transformer with a control branch.
            reference_images: `r 3 h w` in [-1, 1] or PIL images of what to show, for a transformer that takes them.
            strength: edit the video: this share of its tokens, the last ones, is made anew. Pixels that a mask says
                are known stay.
            temperature, top_k, top_p: how tokens are drawn, see `SamplingRule`.
            num_candidates: videos made for each that comes back, at as many times the time and memory; 1 = no choice.
                The one comes back that the network itself finds most plausible (`Generator.plausibility`) and, where
                there are a matcher and words, that shows best what they say.
        """
        size = self.default_size(num_frames, height, width)
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
            default_guidance=2.0,
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
        condition, coordinates, generators = request.condition, request.coordinates, request.generators
        prompt_embeds, negative_prompt_embeds = condition.states, request.negative_embeds
        latents = request.latents
        if strength is not None and request.edited_tokens is not None:
            latents = first_tokens(request.edited_tokens, strength)
        order = self.transformer.order(coordinates)
        inputs = self.transformer.sequence_inputs(condition, coordinates, order)
        branches = 1  # with guidance the batch holds each video twice: weights are read once for both
        if negative_prompt_embeds is not None and request.negative_mask is not None:
            inputs, branches = with_negatives(inputs, negative_prompt_embeds, request.negative_mask), 2

        rule = SamplingRule(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            flow_steps=self.default("num_inference_steps", num_inference_steps, 16),
        )
        unknown = condition.unknown(len(coordinates))
        given, unknown = self.prepare_latents(latents, condition, unknown, size)
        given, unknown = given[:, order.tokens], unknown[:, order.tokens]
        limits = self.transformer.limits(inputs["coordinates"])
        self.scheduler.set_timesteps(len(order.sizes), device=coordinates.device, sizes=order.sizes)
        self._num_timesteps = len(order.sizes)
        states = inputs["encoder_hidden_states"].shape[1]
        caches = self.transformer.empty_caches(branches * request.batch, unknown.shape[1], states=states)
        sample = given[:, :0]

        with self.progress_bar(total=self._num_timesteps) as progress:  # pyright: ignore[reportCallIssue]
            for i, t in enumerate(self.scheduler.timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = t
                start, end = sample.shape[1], sample.shape[1] + order.sizes[i]
                previous = None if i == 0 else sample[:, start - order.sizes[i] : start].repeat(branches, 1, 1)
                # both branches, also while guidance is off: the cache must not have gaps
                hidden = self.transformer(previous, **at_positions(inputs, slice(start, end)), caches=caches)
                hidden, *without = hidden.split(request.batch)
                prediction, _ = self.transformer.proj_out.sample(
                    hidden,
                    without[0] if without else None,
                    self.scheduler.guidance_at(start, self.guidance_scale) if self.do_classifier_free_guidance else 1.0,
                    generators=generators,
                    rule=rule,
                    limits=None if limits is None else limits[start:end],
                )
                sample = self.scheduler.step(
                    prediction, t, sample, given=given[:, start:end], unknown=unknown[:, start:end]
                ).prev_sample
                if callback_on_step_end is not None:
                    tensors = (sample, prompt_embeds, negative_prompt_embeds)
                    tensors = self.call_back(callback_on_step_end, request.tensor_inputs, i, t, *tensors)
                    sample, prompt_embeds, negative_prompt_embeds = tensors
                    inputs["encoder_hidden_states"] = stacked(prompt_embeds, negative_prompt_embeds)
                progress.update()

        sample = torch.cat([sample, given[:, sample.shape[1] :]], dim=1)  # an interrupted run still has a video
        sample = self.choose(sample[:, order.positions], request)
        frames = self.finish(sample, request)
        return VideoPipelineOutput(frames=frames) if return_dict else (frames,)

    def prepare_latents(
        self, latents: Tensor | None, condition: Condition, unknown: Tensor, size: VideoSize
    ) -> tuple[Tensor, Tensor]:
        """Tokens that are given, at all positions, and `b n` bool where they are not."""
        spec, (batch, count) = self.video_tokenizer.spec, unknown.shape
        if spec.discrete:
            given = torch.zeros(batch, count, spec.num_codebooks, dtype=torch.long, device=unknown.device)
        else:
            given = torch.zeros(batch, count, spec.channels, dtype=self.transformer.dtype, device=unknown.device)
        if condition.known is not None:
            known = condition.known.ids if condition.known.ids is not None else condition.known.tokens
            given = known.to(given.dtype)
        if latents is None:
            return given, unknown
        latents = self.given_tokens(latents, size)
        first = latents.shape[1]
        if latents.shape[0] != batch or first > count or (latents.dtype == torch.long and (latents < 0).any()):
            raise ValueError(f"latents must be `{batch} m …` with m ≤ {count} and ids ≥ 0, got {tuple(latents.shape)}")
        begun = torch.where(unknown[:, :first].unsqueeze(-1), latents, given[:, :first])
        given = torch.cat([begun, given[:, first:]], dim=1)
        return given, torch.cat([torch.zeros_like(unknown[:, :first]), unknown[:, first:]], dim=1)
