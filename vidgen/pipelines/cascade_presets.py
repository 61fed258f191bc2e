"""Named cascades: which pipeline presets follow each other, and how much larger each makes the video."""

from dataclasses import dataclass, field, replace
from typing import Any

from vidgen.pipelines.cascade import Cascade
from vidgen.pipelines.cascade_stages import Interpolation, Stage, SuperResolution
from vidgen.pipelines.diffusion_presets import DIFFUSION_PRESETS
from vidgen.pipelines.preset import PipelinePreset
from vidgen.pipelines.presets import PIPELINE_PRESETS
from vidgen.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class StagePreset:
    """A stage around a pipeline preset; `options` are the other arguments of `kind`."""

    kind: type[Stage]
    pipeline: PipelinePreset
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CascadePreset:
    """A base and stages.

    Args:
        about: one line for people.
        base: preset of the first pipeline; `None` where a given video is refined.
        stages: what follows.
    """

    about: str
    base: PipelinePreset | None
    stages: tuple[StagePreset, ...]

    def build(self, tokenizer: Tokenizer | None = None) -> Cascade:
        """The cascade, freshly initialised from the global generator, with one tokenizer for all if one is given."""
        stages = [
            stage.kind(pipeline=stage.pipeline.build(tokenizer), **stage.options)  # pyright: ignore[reportCallIssue]
            for stage in self.stages
        ]
        return Cascade(None if self.base is None else self.base.build(tokenizer), stages)

    def tiny(self) -> "CascadePreset":
        """The same chain, small enough to train in a test."""
        small = {"tile": (9, 48, 48), "overlap": (1, 16, 16)}
        stages = [
            replace(
                stage,
                pipeline=stage.pipeline.tiny(),
                options={**stage.options, **(small if "tile" in stage.options else {})},
            )
            for stage in self.stages
        ]
        base = None if self.base is None else self.base.tiny()
        return replace(self, about=f"tiny twin: {self.about}", base=base, stages=tuple(stages))


def controlled(preset: PipelinePreset, *, layers: int) -> PipelinePreset:
    """A preset with a control branch, and windows in the place of full attention."""
    return replace(preset, config={"attention": "windows", **preset.config, "control_layers": layers})


SHAPES = PIPELINE_PRESETS["shapes-flow"]
LATTE = DIFFUSION_PRESETS["latte-t2v"]
SEEDVR = controlled(DIFFUSION_PRESETS["seedvr"], layers=2)

CASCADE_PRESETS: dict[str, CascadePreset] = {
    "shapes-cascade": CascadePreset(
        about="17 frames of 64×64 to 65 of 128×128, the shapes world",
        base=SHAPES,
        stages=(
            StagePreset(kind=Interpolation, pipeline=SHAPES, options={"factor": 4}),
            StagePreset(
                kind=SuperResolution,
                pipeline=controlled(SHAPES, layers=2),
                options={"factor": 2, "tile": (17, 64, 64), "overlap": (4, 16, 16)},
            ),
        ),
    ),
    "lavie": CascadePreset(
        about="text to video, three new frames between two, four times the rows and columns (LaVie)",
        base=LATTE,
        stages=(
            StagePreset(kind=Interpolation, pipeline=LATTE, options={"factor": 4}),
            StagePreset(
                kind=SuperResolution,
                pipeline=SEEDVR,
                options={"factor": 4, "tile": (17, 256, 256), "overlap": (4, 64, 64)},
            ),
        ),
    ),
    "seedvr-restoration": CascadePreset(
        about="a given video of any size and length restored, in windows (SeedVR)",
        base=None,
        stages=(
            StagePreset(
                kind=SuperResolution,
                pipeline=SEEDVR,
                options={"factor": 1, "tile": (17, 256, 256), "overlap": (4, 64, 64)},
            ),
        ),
    ),
}
