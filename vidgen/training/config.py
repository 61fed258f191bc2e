"""What a training run is: frozen dataclasses that the command line, `run.json` and the trainer share."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from tyro.conf import OmitArgPrefixes, Positional, arg

Precision = Literal["fp32", "bf16", "fp16"]
PerceptualNetwork = Literal["squeezenet", "lpips-alex", "lpips-vgg", "lpips-squeeze"]
PixelLoss = Literal["own", "l1", "l2", "charbonnier"]
AdversarialLoss = Literal["hinge", "non-saturating", "hinge-non-saturating", "non-saturating-smooth"]
SHAPES_WORLDS = ("shapes", "shapes+digits")
DEVICES = ("auto", "cpu", "cuda")
WORLDS = (*SHAPES_WORLDS, "digits")


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

    source: Annotated[str, arg(name="data", metavar="shapes|digits|shapes+digits|DIR")] = "shapes"
    """Built-in world `shapes` or `digits`, or both in turn, or a folder of videos."""
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
    allow_missing: bool = False
    """Take the next video where one of a folder cannot be read or is too short; otherwise that ends the run."""
    zoom: float = 1.0
    """Above 1, training clips of a folder are scaled by a random factor up to this one, cropped anywhere, mirrored."""
    objects: tuple[int, ...] = (1, 2)
    """Allowed numbers of objects in the built-in worlds; a number named twice is drawn twice as often."""
    hold_out: bool = False
    """Leave 20 of the 32 pairs of colour and shape (`HELD_OUT_PAIRS`) out of all clips of `shapes`."""
    favour: tuple[str, ...] = ()
    """Words of objects that the training clips of `shapes` show more often: twice as often if named once, and so on."""
    timelines: float = 0.0
    """Share of the training clips of `shapes` whose text changes at a frame, in one word, and what it shows with it."""
    digits_dir: Path | None = None
    """Folder with the MNIST files, for `digits`."""
    data_seed: int = 0
    """Which clips a built-in world draws, and which places of the videos a folder gives."""
    validation_clips: int = 64
    """Clips of the validation split: other clips of the world, or held-out files of the folder; 0 for none."""

    def __post_init__(self) -> None:
        check_positive(self, "num_frames", "height", "width", "clips_per_video")
        if self.fps is not None:
            check_positive(self, "fps")
        check_not_negative(self, "validation_clips", "data_seed")
        if self.zoom < 1 or (self.zoom > 1 and self.is_world):
            raise ValueError(f"zoom is 1 or more, and 1 for built-in worlds; got {self.zoom} for {self.source}")
        if self.hold_out and self.source not in SHAPES_WORLDS:
            raise ValueError(f"hold_out leaves pairs of the shapes world out, and the data are {self.source}; drop it")
        if self.favour and self.source not in SHAPES_WORLDS:
            raise ValueError(f"favour names words of the shapes world, and the data are {self.source}; drop it")
        if not 0 <= self.timelines <= 1 or (self.timelines > 0 and self.source != "shapes"):
            raise ValueError(
                f"timelines is a share of the clips of shapes, 0 to 1; got {self.timelines} for {self.source}"
            )

    @property
    def is_world(self) -> bool:
        """Clips are made on the fly and never run out."""
        return self.source in WORLDS


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """An optimiser with linear warm-up, then a cosine down to `final_rate` of the learning rate."""

    algorithm: Literal["adamw", "muon"] = "adamw"
    """AdamW, or Muon for the matrices of a transformer's blocks and AdamW for the rest."""
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
    changed: Annotated[tuple[str, ...], arg(name="set", metavar="NAME=VALUE")] = ()
    """Constructor arguments of the network to be other than the preset's: `layers=10`, `widths=[64,128,160]`,
    `bottleneck_options={"channels":8}`. Values are JSON or plain words."""
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
    switch_ema_every: int = 0
    """Steps between copies of the moving average into the trained weights (Switch EMA); 0 for none."""
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
    """Parameters whose name starts so stay as they are, e.g. `encoder`; for a tokenizer `tokens` is all that makes them
    (with --no-fit-statistics, which are part of them)."""
    resume: bool = False
    """Go on from the newest checkpoint of the run folder."""
    workers: int = 0
    """Processes that load clips; 0 loads them in the training process."""
    device: Annotated[str, arg(metavar="auto|cpu|cuda")] = "auto"
    """`cuda` insists on a GPU, `cpu` leaves it alone; which one is said by CUDA_VISIBLE_DEVICES."""

    def __post_init__(self) -> None:
        check_positive(self, "steps", "batch_size", "accumulation", "checkpoint_every", "keep", "log_every")
        check_not_negative(self, "validate_every", "sample_every", "workers", "seed", "switch_ema_every")
        if self.switch_ema_every and self.ema_decay == 0:
            raise ValueError("switch_ema_every needs a moving average, and ema_decay is 0; set --ema-decay 0.999")
        if self.device.startswith("cuda:"):
            number = self.device.removeprefix("cuda:")
            raise ValueError(
                f"device {self.device}: a training run takes the GPUs that its environment shows it; set "
                f"CUDA_VISIBLE_DEVICES={number} and give --device cuda"
            )
        if self.device not in DEVICES:
            raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {self.device!r}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide by accumulation {self.accumulation}; "
                "each micro-batch needs the same number of clips"
            )

    def save(self, path: Path) -> None:
        """Write the resolved config as JSON, whole or not at all; `load` reads it back equal."""
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.write_text(json.dumps(asdict(self), indent=2, default=str) + "\n")
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The run that `save` wrote."""
        return cls(**restored(cls, json.loads(path.read_text())))


@dataclass(frozen=True, kw_only=True)
class TokenizerRun(Run):
    """Train a video tokenizer."""

    recipe: str | None = None
    """Published losses by name (vidtok, omnitokenizer, larp, open-sora, wf-vae…): its values take the place of all
    options that are left at their defaults."""
    recipe_without: tuple[str, ...] = ()
    """Options that the recipe leaves alone all the same, e.g. `perceptual_weight` where there are no weights for it."""
    around: str | None = None
    """Train the preset's decoder behind this tokenizer (folder or built-in name), which stays as it is: for presets
    that decode the tokens of another one, such as epsilon-vae and tooncrafter-decoder."""
    pixel_loss: PixelLoss = "own"
    """Error of pixels in place of the tokenizer's own (absolute and squared)."""
    pixel_weight: float = 1.0
    """Weight of `pixel_loss`, where that is not `own`; 0 with a teacher alone."""
    learned_variance: bool = False
    """Divide pixel and perceptual terms by a learned variance."""
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
    adversarial_loss: AdversarialLoss = "hinge"
    """Game between tokenizer and discriminator."""
    adaptive_weight: Annotated[bool, arg(help_behavior_hint="(default: on; --no-adaptive-weight turns it off)")] = True
    """Balance the adversarial term's gradient against that of the pixel and perceptual terms."""
    adversarial_warmup: int = 0
    """Steps over which the adversarial weights grow from 0 after `discriminator_start`."""
    feature_weight: float = 0.0
    """Weight of the matching of the discriminator's features; needs an adversarial weight above 0."""
    r1_weight: float = 0.0
    """Weight of the discriminator's gradient penalty on real clips, taken at every 16th step; 0 for none."""
    lecam_weight: float = 0.0
    """Weight that keeps the discriminator's verdicts near the other side's moving average; 0 for none."""
    discriminator_start: int = 2000
    """Step at which the discriminator and the adversarial term begin."""
    discriminator_every: int = 1
    """Steps of the tokenizer to one of the discriminator."""
    discriminator_kind: Literal["patches", "transformer"] = "patches"
    """Verdicts on overlapping patches, from convolutions, or one on each clip, from a transformer (LARP)."""
    discriminator_width: int = 32
    """Channels of the discriminator's first layer, or of its transformer."""
    discriminator_layers: int = 3
    """Halvings of height and width in the discriminator, or blocks of its transformer."""
    discriminator_axes: Literal["frames", "video", "both"] = "video"
    """Judge patches of single frames (2D), of the video (3D), or both with a discriminator each."""
    discriminator_optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(learning_rate=1e-4, betas=(0.5, 0.9), weight_decay=0.0)
    )
    """Optimiser of the discriminator; its warm-up begins at `discriminator_start`."""
    distillation_weight: float = 0.0
    """Weight of the distance to a teacher's features; needs `train_tokenizer(run, teacher=…)`."""
    distillation_channels: int = 0
    """How many of the first channels of a token have to tell the teacher's features; 0 for all."""
    frame_masking: float = 0.0
    """Share of a training clip's frames that the tokenizer does not see and has to give back all the same."""
    image_share: float = 0.0
    """Share of the training steps whose clips are single frames, drawn at random."""
    images_until: int = 0
    """All steps before this one train on single frames: images first, then video."""
    sides: tuple[int, ...] = ()
    """Shorter sides, in pixels, that the training clips are scaled down to, one drawn each step; () leaves them."""
    sides_from: int = 0
    """All steps before this one train on the smallest of `sides`: images, then video, then several resolutions."""
    fit_statistics: Annotated[bool, arg(help_behavior_hint="(default: on; --no-fit-statistics turns it off)")] = True
    """Measure the latents' mean and deviation at export; off keeps those of `init_from`, which its generators need."""
    statistics_clips: int = 64
    """Clips that the latent statistics are measured on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "perceptual_weight", "perceptual_frames", "adversarial_weight", "discriminator_start")
        check_not_negative(self, "pixel_weight", "adversarial_warmup", "feature_weight", "r1_weight", "lecam_weight")
        check_not_negative(self, "distillation_weight", "distillation_channels", "frame_masking", "image_share")
        check_not_negative(self, "images_until", "sides_from")
        check_positive(self, "discriminator_width", "discriminator_layers", "discriminator_every", "statistics_clips")
        for name in ("frame_masking", "image_share"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is a share between 0 and 1, got {getattr(self, name)}")
        if self.adversarial_weight == 0:
            for name in ("feature_weight", "r1_weight", "lecam_weight"):
                if getattr(self, name) > 0:
                    raise ValueError(f"{name} is a matter of the discriminator; set --adversarial-weight above 0")
        if self.discriminator_kind == "transformer" and (self.discriminator_axes != "video" or self.r1_weight > 0):
            raise ValueError(
                "a transformer judges whole clips, and its attention has no second derivative for a gradient penalty; "
                "set --discriminator-axes video --r1-weight 0 or --discriminator-kind patches"
            )
        faithless = self.pixel_loss != "own" and self.pixel_weight == self.perceptual_weight == 0
        if self.adversarial_weight > 0 and self.adaptive_weight and faithless:
            raise ValueError(
                "the adversarial term is weighed against the pixel and perceptual terms, and there are none; set "
                "--pixel-weight or --perceptual-weight above 0, or --no-adaptive-weight"
            )
        if self.sides_from and not self.sides:
            raise ValueError("sides_from says when several resolutions begin, and there are none: give --sides 64 128")
        smallest = min(self.data.height, self.data.width)
        if self.sides and not 1 <= min(self.sides) <= max(self.sides) <= smallest:
            raise ValueError(
                f"sides {self.sides} must be at most the clips' shorter side, {smallest}: clips are only scaled down; "
                "raise --height and --width"
            )
        if self.perceptual_weight > 0 and self.perceptual_weights is None:
            raise ValueError(
                f"perceptual_weight {self.perceptual_weight} needs the weights of an image network: "
                "give their file (--perceptual-weights FILE --perceptual-network NAME) or set --perceptual-weight 0"
            )
        if self.perceptual_weights is not None and self.perceptual_weight == 0 and self.recipe is None:
            raise ValueError("perceptual_weights were given, but perceptual_weight is 0; set --perceptual-weight 1")


@dataclass(frozen=True, kw_only=True)
class LatentRun(Run):
    """What runs on the tokens of a tokenizer say."""

    tokenizer: str | None = None
    """Folder or built-in name of the video tokenizer, which stays as it is; None is the one that the preset names."""
    cached_clips: int = 0
    """Clips that are encoded once and kept on disk (a folder has no more than it has); 0 encodes every batch anew."""
    cache_dir: Path | None = None
    """Where encoded clips are kept, by the tokenizer's hash; None is `cache` in the run folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "cached_clips")


@dataclass(frozen=True, kw_only=True)
class GeneratorRun(LatentRun):
    """Train a video generator on the tokens of a tokenizer."""

    text_encoder: str | None = None
    """Folder or hub id of a transformers text encoder, which stays as it is; None trains the preset's own along."""
    drop_text: float = 0.1
    """Share of the clips that are trained without their text, for classifier-free guidance."""
    known_frames: float = 0.1
    """Share of the clips whose first frames are given, for image to video and continuation."""
    tasks: tuple[str, ...] = ()
    """Tasks to draw for the clips in place of `known_frames`: `all`, or names such as `frame_prediction`."""
    task_frames: int = 1
    """Frames that prediction tasks give at the beginning, and interpolation at either end."""
    classes: bool = False
    """Tell the model the clips' class in place of their captions."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank on a frozen transformer and text encoder; 0 trains all weights."""
    control_layers: int = 0
    """Train a control branch of so many blocks, all else frozen; 0 trains none."""
    control: Literal["edges", "half-size", "quarter-size"] = "edges"
    """What the branch sees of a clip: its `edges`, or it at `half-size` or `quarter-size`, for super-resolution."""
    references: int = 0
    """Show so many frames of each clip, drawn by chance, as reference images; `drop_text` of the clips come with images
    and no text, as many with neither."""
    compile: bool = False
    """Compile the blocks of the transformer (torch.compile): some steps take a minute longer, all others less."""

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("lora_rank", "control_layers", "references")
        check_not_negative(self, "drop_text", "known_frames", *counts)
        check_positive(self, "task_frames")
        if self.tasks and self.cached_clips > 0:
            raise ValueError("tasks give away pixels, which encoded clips no longer have; set --cached-clips 0")
        if self.classes and self.text_encoder is not None:
            raise ValueError("classes take the place of a text encoder; leave one of --classes and --text-encoder out")
        if self.classes and self.data.timelines > 0:
            raise ValueError("a clip whose text changes has no class; set --timelines 0 or leave --classes out")
        if self.text_encoder is not None and self.cached_clips > 0 and self.data.timelines > 0:
            raise ValueError("encoded clips keep the states of one text each; set --cached-clips 0 or --timelines 0")
        if self.control_layers > 0 and (self.cached_clips > 0 or self.lora_rank > 0):
            raise ValueError("a control branch is trained on pixels and alone: set --cached-clips 0 and --lora-rank 0")
        if self.references > 0 and (self.cached_clips > 0 or self.lora_rank > 0 or self.control_layers > 0):
            raise ValueError(
                "reference images are frames of the clips, and new weights for them are trained with all others: set "
                "--cached-clips, --lora-rank and --control-layers to 0"
            )
        for name in ("drop_text", "known_frames"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is a share between 0 and 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class MatcherRun(LatentRun):
    """Train a network that judges whether a video shows what a text says, on the tokens of a tokenizer."""

    near_misses: int = 5
    """Captions that are nearly right which a clip of the shapes world is offered."""
    others: int = 3
    """Captions of other clips of the batch that a clip is offered."""
    broken: float = 0.1
    """Share of the clips some of whose tokens are moved elsewhere, so that no text fits them."""
    shortest: int = 8
    """Frames that are left at least where only a part of a clip is judged; its own length for whole clips alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "shortest")
        check_not_negative(self, "broken", "near_misses", "others")
        if self.broken > 1:
            raise ValueError(f"broken is a share between 0 and 1, got {self.broken}")
        clips = self.batch_size // self.accumulation
        if self.others >= clips:
            raise ValueError(
                f"{self.others} other clips' captions need a micro-batch of {self.others + 1} clips or more, got "
                f"{clips}; raise --batch-size or lower --others"
            )
        if self.data.timelines > 0:
            raise ValueError("a matcher judges a clip by one text; set --timelines 0")
        if self.others == 0 and (self.near_misses == 0 or self.data.source != "shapes"):
            raise ValueError("no texts are left that do not fit; raise --others")


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
