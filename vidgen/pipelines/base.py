"""What the three pipelines share: components, sizes, noise, decoding. Each has its own step loop."""

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
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
from vidgen.nn.random import draw_seed, seeded
from vidgen.pipelines.candidates import ChosenVideo
from vidgen.pipelines.extension import LongVideo
from vidgen.pipelines.given import GivenVideo, VideoInput
from vidgen.pipelines.lora import LoraVideo
from vidgen.pipelines.offload import bring_onto_device
from vidgen.pipelines.output import Frames
from vidgen.pipelines.prompting import Prompt, PromptedVideo
from vidgen.tokenizers.base import Tokenizer

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
DEFAULTABLE = ("num_frames", "height", "width", "num_inference_steps", "guidance_scale", "num_candidates")
StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks


class VideoPipeline(PromptedVideo, GivenVideo, ChosenVideo, LongVideo, LoraVideo, DiffusionPipeline):
    """Base of the pipelines: components, inputs and outputs."""

    model_cpu_offload_seq = "text_encoder->transformer->video_tokenizer->matcher"
    _optional_components: ClassVar[list[str]] = ["matcher"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds", "negative_prompt_embeds"]

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

    # inputs

    def default(self, name: str, value: Any, otherwise: Any) -> Any:
        """The value of an argument: as called, else of this model's defaults, else of all pipelines."""
        return self.config.defaults.get(name, otherwise) if value is None else value

    def check_inputs(
        self,
        prompt: Prompt | None,
        negative_prompt: Prompt | None,
        *,
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
        prompts = self.check_prompts(
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
            num_frames=size[0],
        )
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


def candidate_seeds(seed: int, candidates: int) -> list[int]:
    """Seeds of the candidates of one video; the first is the seed of the video without a choice."""
    source = torch.Generator().manual_seed(seed)
    return [seed, *(draw_seed(source) for _ in range(candidates - 1))]
