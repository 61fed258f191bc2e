"""What the three pipelines share: components, sizes, noise, decoding. Each has its own step loop."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.video_processor import VideoProcessor
from torch import Tensor, nn

from vidgen.conditioning import TextEncoder
from vidgen.generators.base import Generator
from vidgen.latents import Latents, VideoSize
from vidgen.matchers.base import Matcher
from vidgen.nn.memory import own_memory
from vidgen.pipelines.candidates import ChosenVideo
from vidgen.pipelines.extension import LongVideo
from vidgen.pipelines.lora import LoraVideo
from vidgen.pipelines.offload import bring_onto_device
from vidgen.pipelines.output import Frames
from vidgen.pipelines.request import Request, RequestedVideo
from vidgen.tokenizers.base import Tokenizer

DEFAULTABLE = ("num_frames", "height", "width", "num_inference_steps", "guidance_scale", "num_candidates")
StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks


class VideoPipeline(RequestedVideo, ChosenVideo, LongVideo, LoraVideo, DiffusionPipeline):
    """Base of the pipelines: components, inputs and outputs."""

    model_cpu_offload_seq = "text_encoder->transformer->video_tokenizer->matcher"
    _optional_components: ClassVar[list[str]] = ["matcher"]

    video_tokenizer: Tokenizer
    text_encoder: TextEncoder
    transformer: Generator
    matcher: Matcher | None

    def register(
        self,
        *,
        video_tokenizer: Tokenizer,
        text_encoder: TextEncoder,
        transformer: Generator,
        scheduler: Any,
        defaults: dict[str, Any] | None,
        matcher: Matcher | None = None,
    ) -> None:
        """Keep the components; `defaults` are values for arguments that a call leaves out.

        As in diffusers, components that a use does not need may be `None` (the text encoder beside embeddings).
        """
        unknown = sorted(set(defaults or {}) - set(DEFAULTABLE))
        if unknown:
            raise ValueError(f"defaults may hold {', '.join(DEFAULTABLE)}; got {', '.join(unknown)}")
        self.register_modules(
            video_tokenizer=video_tokenizer,
            text_encoder=text_encoder,
            transformer=transformer,
            scheduler=scheduler,
            matcher=matcher,
        )
        self.register_to_config(defaults=dict(defaults or {}))
        self.video_processor = VideoProcessor(do_resize=False)
        for component in self.components.values():
            if isinstance(component, nn.Module):
                own_memory(component)
        if transformer is not None and video_tokenizer is not None:
            transformer.check_spec(video_tokenizer.spec)
        if matcher is not None and video_tokenizer is not None:
            matcher.check_spec(video_tokenizer.spec)
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._current_timestep: Any = None
        self._interrupt = False

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> "VideoPipeline":
        """As diffusers', which leaves components behind whose class is not exactly the annotated one."""
        names = ["video_tokenizer", "text_encoder", "matcher", *(["transformer"] if isinstance(pipeline, cls) else [])]
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
        yield from self.video_tokenizer.decode_chunks([self.to_tokenizer(latents)])

    def to_tokenizer(self, latents: Latents) -> Latents:
        """Both on the device that decodes, in the tokenizer's number format."""
        bring_onto_device(self.video_tokenizer)
        return latents.to(self._execution_device, self.video_tokenizer.dtype)

    @torch.no_grad()
    def decode(self, latents: Latents, output_type: str = "pil", known: tuple[Tensor, Tensor] | None = None) -> Frames:
        """Frames of latents; pixels that are `known` (of `prepare_known`) come back unchanged, and guide a decoder that
        can be guided.
        """
        if known is None:
            video = torch.cat([chunk.float() for chunk in self.decode_stream(latents)], dim=2)
        else:
            pixels, where = (given.repeat_interleave(len(latents) // len(given), 0) for given in known)
            video = self.video_tokenizer.decode_known(self.to_tokenizer(latents), pixels, where)
        return self.video_processor.postprocess_video(video, output_type=output_type)

    def finish(self, tokens: Tensor, request: Request) -> Frames:
        """Latents of the sampled tokens, saved if asked for before anything can go wrong, then decoded."""
        self._current_timestep = None
        latents = self.to_latents(tokens, request.size)
        if request.latents_path is not None:
            latents.save(request.latents_path)
        if request.output_type == "latent":
            frames = latents
        else:
            frames = self.decode(latents, request.output_type, request.known)
        self.maybe_free_model_hooks()
        return frames
