"""One training step of a generator: latents of clips under their text or class, and some of their pixels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from vidgen.conditioning import (
    CONTROLS,
    ClassEncoder,
    Condition,
    TokenState,
    known_from_video,
    known_mask,
    known_prefix,
    task_numbers,
)
from vidgen.conditioning.tasks import chosen_tasks, draw_tasks
from vidgen.conditioning.timeline import Timeline, encode_prompts, is_timeline
from vidgen.latents import Latents
from vidgen.nn.random import Generators, rand
from vidgen.pipelines.base import VideoPipeline
from vidgen.training.checkpoint import write_folder
from vidgen.training.latent_cache import latents_of
from vidgen.training.lora import add_lora, merged
from vidgen.training.step import Batch, TrainingStep


class GeneratorStep(TrainingStep):
    """Trains the transformer of a pipeline, and its text encoder where that one is trained jointly.

    Args:
        pipeline: its video tokenizer and a frozen text encoder help, but are not trained.
        drop_text: share of the samples that are trained without text.
        known_frames: share of the samples whose first frames are known; needs a causal tokenizer.
        tasks: names of the tasks that are drawn in place of that, or "all"; they need the clips' pixels.
        task_frames: frames that prediction tasks give, and interpolation at either end.
    """

    def __init__(
        self,
        pipeline: VideoPipeline,
        *,
        drop_text: float,
        known_frames: float,
        tasks: Sequence[str] = (),
        task_frames: int = 1,
    ) -> None:
        super().__init__()
        if not tasks and known_frames > 0 and not pipeline.video_tokenizer.spec.causal:
            raise ValueError(
                "known_frames needs a tokenizer whose first tokens depend on the first frames alone, and this one is "
                "not causal; set --known-frames 0"
            )
        self.pipeline = pipeline
        self.transformer = pipeline.transformer
        dropped_before = self.transformer.config.text_dropped or 0.0
        self.transformer.register_to_config(text_dropped=max(drop_text, dropped_before))
        self.transformer.register_to_config(_knows_partial=bool(tasks) or self.transformer.knows_partial)
        if pipeline.text_encoder.trained_jointly:
            self.text_encoder = pipeline.text_encoder
        self.drop_text, self.known_frames, self.control, self.references = drop_text, known_frames, None, 0
        self.tasks, self.task_frames = chosen_tasks(tasks), task_frames
        for idle in ("control_branch", "reference_embedding"):  # of an earlier run: idle weights stop two processes
            if hasattr(self.transformer, idle):
                getattr(self.transformer, idle).requires_grad_(False)
        pipeline.set_progress_bar_config(disable=True)

    def adapt(self, rank: int) -> None:
        """Train LoRA adapters alone."""
        self.requires_grad_(False)
        add_lora(self.transformer, rank)

    def add_control(self, layers: int, kind: str) -> None:
        """Train a control branch alone, a new one where there is none, on what `CONTROLS[kind]` makes of the clips."""
        if kind not in CONTROLS:
            raise ValueError(f"control must be one of {', '.join(CONTROLS)}, got {kind!r}")
        self.requires_grad_(False)
        if self.transformer.config.control_layers != layers:
            self.transformer.add_control(layers)
        self.transformer.control_branch.requires_grad_(True)
        self.control = CONTROLS[kind]

    def add_references(self, images: int) -> None:
        """Show so many frames of each clip beside its text; all weights are trained."""
        if not self.transformer.config.has_references:
            self.transformer.add_references()
        self.transformer.reference_embedding.requires_grad_(True)
        self.references = images

    def compile_blocks(self) -> None:
        """`torch.compile` the blocks that the transformer and its head repeat, in place: names of weights stay."""
        self.transformer.compile_repeated_blocks()
        for block in getattr(self.transformer.proj_out, "blocks", ()):
            block.compile()

    def forward(self, batch: Batch, generators: Generators) -> dict[str, Tensor]:
        latents = self.latents(batch)
        condition = self.drop(self.condition(batch), generators)
        if self.references > 0:
            condition = self.drop(self.refer(condition, batch, generators), generators)
        if self.tasks:
            self.give_task(condition, batch, generators)
        elif self.known_frames > 0:
            condition.known, condition.token_state = latents, self.random_prefix(latents, generators)
        return self.transformer.losses(latents, condition, generators=generators)

    def evaluate(self, batch: Batch, generators: Generators) -> dict[str, Tensor]:
        condition = self.condition(batch)
        if self.references > 0:
            condition = self.refer(condition, batch, generators)
        if self.tasks:
            self.give_task(condition, batch, generators)
        return self.transformer.losses(self.latents(batch), condition, generators=generators)

    def latents(self, batch: Batch) -> Latents:
        """Latents of the batch: encoded now, or from the cache."""
        return latents_of(batch, self.pipeline.video_tokenizer)

    def condition(self, batch: Batch) -> Condition:
        if "text" in batch:
            return Condition(batch["text"], batch["text_mask"])
        text, frames = encode_prompts(self.pipeline.text_encoder, self.prompts(batch))
        control = None if self.control is None else self.latents({"video": self.control(batch["video"])})
        return Condition(text.states, text.mask, frames, control=control)

    def drop(self, condition: Condition, generators: Generators) -> Condition:
        """The condition without the states of a share of the samples: text alone, or text and images together."""
        dropped = rand((len(condition.mask),), generators) < self.drop_text
        return condition.without_text(dropped.to(condition.mask.device))

    def refer(self, condition: Condition, batch: Batch, generators: Generators) -> Condition:
        """The condition with frames of each clip, drawn by chance, as its reference images."""
        video = batch["video"]
        chosen = (rand((len(video), self.references), generators) * video.shape[2]).long().to(video.device)
        images = torch.stack([clip[:, frames] for clip, frames in zip(video, chosen, strict=True)])
        latents = self.latents({"video": rearrange(images, "b c r h w -> (b r) c 1 h w")})
        return self.transformer.with_references(condition, latents, samples=len(video))

    def prompts(self, batch: Batch) -> list[str | Timeline]:
        """Captions of the batch, some of which may be timelines, or the names of its classes."""
        encoder = self.pipeline.text_encoder
        if not isinstance(encoder, ClassEncoder):
            return batch["caption"]
        if "class_label" not in batch:
            raise ValueError(
                "this model is told classes, and the clips have no class_label; the built-in worlds have one with "
                "--objects 1"
            )
        return [encoder.name(label) for label in batch["class_label"]]

    def give_task(self, condition: Condition, batch: Batch, generators: Generators) -> None:
        """Draw a task for each sample and give its pixels away."""
        if "video" not in batch:
            raise ValueError("tasks give away pixels, which encoded clips no longer have; set --cached-clips 0")
        video, tokenizer = batch["video"], self.pipeline.video_tokenizer
        names = draw_tasks(self.tasks, generators)
        masks = [known_mask(name, tuple(video.shape[2:]), frames=self.task_frames) for name in names]
        mask = torch.cat(masks).to(video.device)
        with torch.no_grad(), torch.autocast(tokenizer.device.type, enabled=False):  # as exact as at inference
            condition.known, condition.token_state = known_from_video(tokenizer, video, mask)
        condition.task = task_numbers(names).to(video.device)

    def random_prefix(self, latents: Latents, generators: Generators) -> Tensor:
        """`b n` states: for a share of the samples the first 1…t-1 frames are known, for the others none."""
        draws = rand((len(latents), 2), generators).to(latents.tokens.device)
        frames = 1 + (draws[:, 1] * (latents.size[0] - 1)).long()
        told = (draws[:, 0] < self.known_frames) & (frames < latents.size[0])
        return torch.where(told[:, None], known_prefix(latents, frames), int(TokenState.UNKNOWN))

    def samples(self, batch: Batch, generators: Generators) -> Tensor:
        frames, height, width = batch["size"] if "size" in batch else batch["video"].shape[2:]
        prompts, sources = self.prompts(batch), list(generators)
        calls: list[Any] = [(prompts, sources)]
        if any(is_timeline(prompt) for prompt in prompts):  # a call takes one of them, or many texts
            calls = [
                (prompt if is_timeline(prompt) else [prompt], [source])
                for prompt, source in zip(prompts, sources, strict=True)
            ]
        videos = []
        with torch.compiler.set_stance("force_eager"):  # sampling has other shapes at every step
            for prompt, generator in calls:
                output = self.pipeline(  # pyright: ignore[reportCallIssue]
                    prompt=prompt,
                    num_frames=frames,
                    height=height,
                    width=width,
                    generator=generator,
                    output_type="pt",
                    num_candidates=1,
                )
                videos.append(rearrange(output.frames, "b t c h w -> b c t h w") * 2 - 1)
        return torch.cat(videos)

    def export(self, folder: Path) -> None:
        """The pipeline; with LoRA the merged one, and the adapter beside it."""
        adapted = hasattr(self.transformer, "peft_config")
        write_folder(folder, self._save_adapted if adapted else self.pipeline.save_pretrained)

    def _save_adapted(self, folder: Path) -> None:
        components = {**self.pipeline.components, "transformer": merged(self.transformer)}
        kind: Any = type(self.pipeline)
        kind(**components, defaults=self.pipeline.config.defaults).save_pretrained(folder)
        self.pipeline.save_lora_weights(folder)
