"""Flow inversion: the noise from which a flow model makes a given video."""

from itertools import pairwise
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from vidgen.conditioning.timeline import check_timeline, frame_ranges, is_timeline
from vidgen.pipelines.offload import bring_onto_device
from vidgen.schedulers import denoising


class FlowInversion:
    """What lets a flow pipeline run backwards."""

    @torch.no_grad()
    def invert(
        self,
        video: Any,
        prompt: Any = "",
        *,
        num_inference_steps: int = 30,
        iterations: int = 4,
    ) -> Tensor:
        """Noise `b n c` from which a call with the same prompt and steps, without guidance, makes `video`.

        With another prompt the call edits the video: `pipe(other, latents=pipe.invert(video, prompt))`.

        Args:
            video: `3 t h w` or `b 3 t h w` in [-1, 1], or PIL or NumPy frames.
            prompt: what the video shows; or a timeline, as in a call.
            num_inference_steps: Euler steps, as in the call that comes after.
            iterations: fixed-point iterations for each step: the velocity that led here is that at the point before,
                which is what is sought (Pan et al. 2023, arXiv 2309.04907).

        Raises:
            ValueError: the scheduler is not the Euler one of flows, or prompts and videos differ in number.
        """
        pipe: Any = self
        if not isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler):
            raise ValueError(
                f"inversion runs the Euler steps of a flow backwards; {type(pipe.scheduler).__name__} has other steps, "
                "use FlowMatchEulerDiscreteScheduler"
            )
        pixels = pipe.video_tensor(video)
        states, mask, _, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        if len(states) not in (1, len(pixels)):
            raise ValueError(f"{len(pixels)} videos need as many prompts or one, got {len(states)}")
        size = (pixels.shape[2], pixels.shape[3], pixels.shape[4])
        if is_timeline(prompt):
            check_timeline(prompt, size[0])
        condition = pipe.build_condition(states.expand(len(pixels), -1, -1), mask.expand(len(pixels), -1), known=None)
        condition.frames = frame_ranges(prompt, condition.states)
        coordinates = pipe.video_tokenizer.spec.coordinates(size).to(states.device)
        inputs = pipe.transformer.condition_inputs(condition, coordinates)
        shift = pipe.resolution_shift(len(coordinates))
        denoising.start(pipe.scheduler, num_inference_steps, shift=shift, device=states.device)
        levels = torch.as_tensor(pipe.scheduler.sigmas)
        bring_onto_device(pipe.video_tokenizer)
        sample = pipe.video_tokenizer.encode(pixels.to(states.device)).tokens.to(pipe.transformer.dtype)
        for after, before in pairwise(levels.flip(0).tolist()):
            found = sample
            timestep = torch.full((len(sample),), before * 1000.0, device=sample.device)
            for _ in range(iterations):
                velocity = pipe.transformer(found, timestep, coordinates, **inputs)
                found = sample + (before - after) * velocity
            sample = found
        return sample
