"""What a training run is: frozen dataclasses that the command line, `run.json` and the trainer share."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from tyro.conf import OmitArgPrefixes, Positional, arg

Precision = Literal["fp32", "bf16", "fp16"]
PerceptualNetwork = Literal["squeezenet", "lpips-alex", "lpips-vgg", "lpips-squeeze"]
WORLDS = ("shapes", "digits")


def check_positive(config: Any, *names: str) -> None:
    """ValueError that names the first of these fields that is not above zero."""
    for name in names:
        if getattr(config, name) <= 0:
            raise ValueError(f"{name} must be above 0, got {getattr(config, name)}")


def check_not_negative(config: Any, *names: str) -> None:
    """ValueError that names the first of these fields that is below zero."""
    for name in names:
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must be 0 or more, got {getattr(config, name)}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which clips are trained on, and how large they are."""

    source: Annotated[str, arg(name="data", metavar="shapes|digits|DIR")] = "shapes"
    """Built-in world `shapes` or `digits`, or a folder of videos."""
    num_frames: int = 17
    """Frames of a clip."""
    height: int = 64
    """Pixel rows of a clip."""
    width: int = 64
    """Pixel columns of a clip."""
    fps: float | None = 8.0
    """Frames a second that videos of a folder are sampled at; None takes every frame."""
    clips_per_video: int = 16
    """Places in each video of a folder that clips are cut from."""
    repeat_last_frame: bool = False
    """Lengthen videos of a folder that are too short; otherwise they are an error."""
    objects: tuple[int, ...] = (1, 2)
    """Allowed numbers of objects in the built-in worlds; a number named twice is drawn twice as often."""
    digits_dir: Path | None = None
    """Folder with the MNIST files, for `digits`."""
    data_seed: int = 0
    """Which clips a built-in world draws."""
    validation_clips: int = 64
    """Clips of the validation split: other clips of the world, or held-out files of the folder; 0 for none."""

    def __post_init__(self) -> None:
        check_positive(self, "num_frames", "height", "width", "clips_per_video")
        if self.fps is not None:
            check_positive(self, "fps")
        check_not_negative(self, "validation_clips", "data_seed")

    @property
    def is_world(self) -> bool:
        """Clips are made on the fly and never run out."""
        return self.source in WORLDS


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW with linear warm-up, then a cosine down to `final_rate` of the learning rate."""

    learning_rate: float = 3e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of AdamW's two moving averages."""
    weight_decay: float = 0.01
    """Weight decay of parameters with two or more dimensions."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    final_rate: float = 0.05
    """Share of the learning rate that is left at the last step."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them alone."""

    def __post_init__(self) -> None:
        check_positive(self, "learning_rate")
        check_not_negative(self, "weight_decay", "warmup_steps", "final_rate", "clip_norm")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every training run says."""

    preset: Annotated[Positional[str], arg(metavar="PRESET")]
    """Name of a preset; `vidgen models --presets` lists them."""
    output_dir: Path
    """Run folder: run.json, checkpoints/, model/, best/, samples/, TensorBoard files."""
    data: OmitArgPrefixes[DataConfig] = field(default_factory=DataConfig)
    """Training clips."""
    optimiser: OmitArgPrefixes[OptimiserConfig] = field(default_factory=OptimiserConfig)
    """Optimiser of the model."""
    tiny: bool = False
    """Train the preset's small twin (to try a recipe out)."""
    steps: int = 10_000
    """Optimiser steps in all."""
    batch_size: int = 8
    """Clips of a step, over all processes and accumulated micro-batches."""
    accumulation: int = 1
    """Micro-batches that a step is cut into, to save memory."""
    precision: Precision = "fp32"
    """Number format of the forward pass; weights stay fp32. fp16 needs a GPU."""
    ema_decay: float = 0.999
    """Decay of the weights' moving average, which is what is validated and exported; 0 turns it off."""
    seed: int = 0
    """Seed of initial weights, data order and noise."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """How many of the newest checkpoints stay on disk; the best one stays as well."""
    validate_every: int = 500
    """Steps between validations; 0 for none."""
    sample_every: int = 1000
    """Steps between sample videos; 0 for none."""
    log_every: int = 20
    """Steps between entries of the log and TensorBoard."""
    init_from: str | None = None
    """Start from the weights of this model (folder or built-in name) in place of fresh ones."""
    freeze: tuple[str, ...] = ()
    """Parameters whose name starts so stay as they are, e.g. `encoder`."""
    resume: bool = False
    """Go on from the newest checkpoint of the run folder."""
    workers: int = 0
    """Processes that load clips; 0 loads them in the training process."""
    device: Literal["auto", "cpu"] = "auto"
    """`cpu` leaves a GPU alone."""

    def __post_init__(self) -> None:
        check_positive(self, "steps", "batch_size", "accumulation", "checkpoint_every", "keep", "log_every")
        check_not_negative(self, "validate_every", "sample_every", "workers", "seed")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide by accumulation {self.accumulation}; "
                "each micro-batch needs the same number of clips"
            )

    def save(self, path: Path) -> None:
        """Write the resolved config as JSON; `load` reads it back equal."""
        path.write_text(json.dumps(asdict(self), indent=2, default=str) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """The run that `save` wrote."""
        return cls(**restored(cls, json.loads(path.read_text())))


@dataclass(frozen=True, kw_only=True)
class TokenizerRun(Run):
    """Train a video tokenizer."""

    perceptual_weight: float = 0.0
    """Weight of the perceptual distance; above 0 needs `perceptual_weights`."""
    perceptual_weights: Path | None = None
    """File with the weights of the image network that measures the perceptual distance."""
    perceptual_network: PerceptualNetwork = "squeezenet"
    """Which network that file holds: ImageNet SqueezeNet 1.0 features, or LPIPS on a torchvision trunk."""
    perceptual_frames: int = 0
    """Frames a clip whose perceptual distance is taken, drawn anew each step; 0 for all."""
    adversarial_weight: float = 0.0
    """Weight of the adversarial term, on top of its adaptive balance; 0 for no discriminator."""
    discriminator_start: int = 2000
    """Step at which the discriminator and the adversarial term begin."""
    discriminator_width: int = 32
    """Channels of the discriminator's first layer."""
    discriminator_axes: Literal["frames", "video"] = "video"
    """Judge patches of single frames (2D) or of the video (3D)."""
    discriminator_optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(learning_rate=1e-4, betas=(0.5, 0.9), weight_decay=0.0)
    )
    """Optimiser of the discriminator."""
    fit_statistics: bool = True
    """Measure the latents' mean and deviation at export; off keeps those of `init_from`, which its generators need."""
    statistics_clips: int = 64
    """Clips that the latent statistics are measured on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "perceptual_weight", "perceptual_frames", "adversarial_weight", "discriminator_start")
        check_positive(self, "discriminator_width", "statistics_clips")
        if self.perceptual_weight > 0 and self.perceptual_weights is None:
            raise ValueError(
                f"perceptual_weight {self.perceptual_weight} needs the weights of an image network: "
                "give their file (--perceptual-weights FILE --perceptual-network NAME) or set --perceptual-weight 0"
            )
        if self.perceptual_weights is not None and self.perceptual_weight == 0:
            raise ValueError("perceptual_weights were given, but perceptual_weight is 0; set --perceptual-weight 1")


@dataclass(frozen=True, kw_only=True)
class GeneratorRun(Run):
    """Train a video generator on the tokens of a tokenizer."""

    tokenizer: str | None = None
    """Folder or built-in name of the video tokenizer, which stays as it is; None is the one that the preset names."""
    text_encoder: str | None = None
    """Folder or hub id of a transformers text encoder, which stays as it is; None trains the preset's own along."""
    drop_text: float = 0.1
    """Share of the clips that are trained without their text, for classifier-free guidance."""
    known_frames: float = 0.1
    """Share of the clips whose first frames are given, for image to video and continuation."""
    cached_clips: int = 0
    """Clips that are encoded once and kept on disk (a folder has no more than it has); 0 encodes every batch anew."""
    cache_dir: Path | None = None
    """Where encoded clips are kept, by the tokenizer's hash; None is `cache` in the run folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "drop_text", "known_frames", "cached_clips")
        for name in ("drop_text", "known_frames"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is a share between 0 and 1, got {getattr(self, name)}")


def restored(config: type, values: dict[str, Any]) -> dict[str, Any]:
    """JSON values as the constructor arguments of a config: lists to tuples, strings to paths, dicts to configs."""
    arguments = {}
    for item in fields(config):
        if item.name not in values:
            continue
        value = values[item.name]
        kind = str(item.type)
        if isinstance(value, dict):
            nested = DataConfig if item.name == "data" else OptimiserConfig
            value = nested(**restored(nested, value))
        elif isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, str) and "Path" in kind:
            value = Path(value)
        arguments[item.name] = value
    return arguments
