"""A chain of pipelines that make a video larger step by step: base, frames between, more pixels (LaVie)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidgen.conditioning import ClassEncoder
from vidgen.latents import VideoSize
from vidgen.nn.random import Generators, draw_seed, seeded
from vidgen.pipelines.base import VideoPipeline
from vidgen.pipelines.cascade_stages import STAGES, Stage, slowed
from vidgen.pipelines.given import VideoInput
from vidgen.pipelines.output import VideoPipelineOutput
from vidgen.pipelines.prompting import Prompt, count_prompts

DESCRIPTION = "cascade.json"


class Cascade:
    """Pipelines one after the other; each is an ordinary one, which also works alone.

    Args:
        base: makes the first video from a prompt; `None` in a chain that only refines videos.
        stages: what comes after it, in order.
    """

    def __init__(self, base: VideoPipeline | None, stages: Sequence[Stage]) -> None:
        if base is None and not stages:
            raise ValueError("a cascade needs a base pipeline or a stage, got neither")
        for stage in stages:
            if not isinstance(stage, Stage):
                raise ValueError(
                    f"a stage is an Interpolation or a SuperResolution of a pipeline, got {type(stage).__name__}"
                )
        self.base, self.stages = base, tuple(stages)
        self.check_texts()

    @property
    def pipelines(self) -> list[VideoPipeline]:
        own = [] if self.base is None else [self.base]
        return own + [stage.pipeline for stage in self.stages]

    def check_texts(self) -> None:
        """One prompt goes to all pipelines: where some are told classes, all must know the same ones."""
        told = {
            pipe.text_encoder.class_names if isinstance(pipe.text_encoder, ClassEncoder) else "text"
            for pipe in self.pipelines
        }
        if len(told) > 1:
            raise ValueError(
                "all pipelines of a cascade get the same prompt, but some are told classes and the others text or "
                "other classes; train them alike"
            )

    def size(self, size: VideoSize) -> VideoSize:
        """Of the result, from that of the base's video."""
        for stage in self.stages:
            size = stage.size(size)
        return size

    @torch.no_grad()
    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        class_label: int | list[int] | None = None,
        video: VideoInput | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        **arguments: Any,
    ) -> Iterator[Tensor]:
        """Chunks `b 3 t h w` in [-1, 1] of the result, in order; in constant memory where windows and tiles are.

        Args:
            prompt: what to show, for all pipelines, by default no text; the entries of a timeline count frames of the
                base's video.
            class_label: number of the class in place of a prompt, one or many.
            video: a video to refine in place of the base's, as in a pipeline's call.
            generator: one for all videos or one for each; a video's noise does not depend on the others of the call.
            arguments: of the base's call (`num_frames`, `guidance_scale`…). More frames than the base was trained on
                are made window by window, as by `extend_stream`.
        """
        first = self.pipelines[0]
        if "num_videos_per_prompt" in arguments:
            raise ValueError(
                "a cascade takes no num_videos_per_prompt: it makes one video for each prompt; give a prompt as often "
                "as it shall have videos"
            )
        if class_label is not None:
            prompt = first.class_prompt(class_label, prompt)
        prompt = "" if prompt is None else prompt
        given = None if video is None else first.video_tensor(video)
        if given is None and self.base is None:
            raise ValueError("this cascade has no base pipeline: give the video that it is to refine")
        if given is not None and arguments:
            raise ValueError(f"{', '.join(sorted(arguments))} belong to the base's call, which a given video replaces")
        if given is not None and isinstance(prompt, str):
            prompt = [prompt] * len(given)
        count = count_prompts(prompt, None)
        if given is not None and len(given) != count:
            raise ValueError(f"got {len(given)} videos and {count} prompts; give one prompt for all or one for each")
        sources = first.prepare_generators(generator, count)
        # drawn now: what a stage draws must not depend on how far the others are
        own = [seeded([draw_seed(source) for source in sources]) for _ in range(1 + len(self.stages))]
        chunks = self.base_chunks(prompt, own[0], arguments) if given is None else iter([given])
        for stage, generators in zip(self.stages, own[1:], strict=True):
            prompt = slowed(prompt, stage.more_frames)
            chunks = stage.stream(chunks, prompt, generators=generators)
        yield from chunks

    def base_chunks(self, prompt: Prompt, generators: Generators, arguments: dict[str, Any]) -> Iterator[Tensor]:
        pipe: Any = self.base
        trained = pipe.default("num_frames", None, 17)
        frames = arguments.get("num_frames", trained)
        call = {**arguments, "generator": list(generators)}
        if frames > trained:
            yield from pipe.extend_stream(prompt, **call)
        else:
            latents = pipe(prompt, **call, output_type="latent").frames
            for chunk in pipe.decode_stream(latents):
                yield chunk.float().clamp(-1, 1)

    def __call__(
        self, prompt: Prompt | None = None, *, output_type: str = "pil", **arguments: Any
    ) -> VideoPipelineOutput:
        """The whole video of `stream`, in the form of `output_type` ("pil", "np" or "pt")."""
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be one of pil, np, pt for a cascade, got {output_type!r}")
        video = torch.cat([chunk.cpu() for chunk in self.stream(prompt, **arguments)], dim=2)
        processor = self.pipelines[0].video_processor
        return VideoPipelineOutput(frames=processor.postprocess_video(video, output_type=output_type))

    def to(self, *arguments: Any, **named: Any) -> "Cascade":
        """Move all pipelines, as `DiffusionPipeline.to`."""
        for pipe in self.pipelines:
            pipe.to(*arguments, **named)
        return self

    def set_progress_bar_config(self, **options: Any) -> None:
        for pipe in self.pipelines:
            pipe.set_progress_bar_config(**options)

    # folders: one for each pipeline, and a description

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the pipelines and `cascade.json`; `vidgen.load` reads them."""
        names = [f"{number}-{stage.kind}" for number, stage in enumerate(self.stages, 1)]
        description = {
            "base": None if self.base is None else "base",
            "stages": [
                {"kind": stage.kind, "folder": name, **settings(stage)}
                for name, stage in zip(names, self.stages, strict=True)
            ],
        }
        text = json.dumps(description, indent=2) + "\n"  # before anything is written: arguments may be no JSON
        for name, pipe in zip(([] if self.base is None else ["base"]) + names, self.pipelines, strict=True):
            pipe.save_pretrained(Path(folder) / name)
        (Path(folder) / DESCRIPTION).write_text(text)


def settings(stage: Stage) -> dict[str, Any]:
    """What describes a stage beside its pipeline."""
    return {item.name: getattr(stage, item.name) for item in fields(stage) if item.name != "pipeline"}


def stage_from(description: dict[str, Any], pipeline: VideoPipeline) -> Stage:
    """A stage as `save_pretrained` described it."""
    kind = description.get("kind")
    if kind not in STAGES:
        raise ValueError(f"a stage of a cascade is one of {', '.join(STAGES)}, got {kind!r}")
    values: dict[str, Any] = {name: description[name] for name in description if name not in ("kind", "folder")}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return STAGES[kind](pipeline=pipeline, **values)
