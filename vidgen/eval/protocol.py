"""What a protocol is: every condition that decides a published number, as immutable data with a hash.

The presets lie in `recon_protocols.py` and `frechet_protocols.py`; `protocols.py` finds them by name.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

Kernel = Literal["torch-bilinear", "torch-bilinear-antialias", "tf1-bilinear", "pil-bicubic", "swscale"]
# squash: both sides scaled to the target; cover: scaled until both sides cover it, then cropped at the centre;
# short-side: the shorter side scaled to `height` (`preprocess.short_side_size`), nothing cropped.
Fit = Literal["squash", "cover", "short-side"]
Quantise = Literal["round", "floor", "none"]


@dataclass(frozen=True, kw_only=True)
class Resize:
    """One change of size; `torch-bilinear` has half-pixel centres, `tf1-bilinear` has not, nor equal corners."""

    height: int
    width: int
    fit: Fit
    kernel: Kernel

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ValueError(f"a frame has at least one pixel a side; got {self.height}x{self.width}")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """From decoded 8-bit frames to what the metric or the network sees; the steps happen in the order of the fields."""

    resizes: tuple[Resize, ...] = ()  # one after the other; none keeps the frames' own size
    quantise: Quantise = "round"  # reconstructed or generated floats to whole levels 0…255 before they are scored
    value_range: tuple[float, float] = (0.0, 255.0)  # where levels 0 and 255 end up


@dataclass(frozen=True, kw_only=True)
class ClipRule:
    """Which frames of a video are scored."""

    frames: int | None = None  # of a clip; None takes the whole video
    max_frames: int | None = None  # of a whole video, where `frames` is None
    fps: float | None = None  # resampled to; None keeps the file's frames
    stride: int = 1  # every n-th frame
    offset: Literal["first", "random", "centre"] = "first"  # where a clip begins
    clips_per_video: int = 1
    short: Literal["error", "drop", "repeat-last"] = "error"  # videos with fewer frames than a clip

    def __post_init__(self) -> None:
        counts = (self.frames, self.max_frames, self.fps, self.stride, self.clips_per_video)
        if any(count is not None and count <= 0 for count in counts):
            raise ValueError(f"frames, max_frames, fps, stride and clips_per_video must be above 0; got {counts}")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The conditions that all kinds of scores share. `version` rises whenever a published preset has to change."""

    name: str
    version: int = 1
    clip: ClipRule
    preprocess: Preprocess
    # where the conditions were read, and what to know about them; not part of the hash
    source: str = field(metadata={"identity": False})
    note: str = field(default="", metadata={"identity": False})

    def identity(self) -> dict[str, Any]:
        """Every field that decides a number, JSON-able."""
        names = [one.name for one in fields(self) if one.metadata.get("identity", True)]
        everything = json.loads(json.dumps(asdict(self)))
        return {"kind": type(self).__name__} | {name: everything[name] for name in names}

    @property
    def sha256(self) -> str:
        """Of the canonical JSON of `identity`: equal exactly when the conditions are."""
        canonical = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The entry `protocol` of a `vidgen.eval/1` result."""
        return {
            "id": self.name,
            "version": self.version,
            "sha256": self.sha256,
            "conditions": self.identity(),
            "source": self.source,
        }

    def differences(self, other: Self) -> list[str]:
        """Dotted names of the conditions in which two protocols differ, with both values."""
        return differing_conditions(self.identity(), other.identity())


@dataclass(frozen=True, kw_only=True)
class ReconstructionProtocol(Protocol):
    """How reconstructions are scored. The convention of each score is in its key (`reconstruction.METRICS`).

    `preprocess` has to say the same of rounding as the keys, and levels stay 0…255: `scores_for` refuses all else.
    """

    metrics: tuple[str, ...]
    # "frame": every frame counts the same; "clip": every clip does, however long
    pooling: Literal["frame", "clip"] = "frame"
    num_videos: int | None = None  # fewer than so many are an error, of more the first in order are taken


@dataclass(frozen=True, kw_only=True)
class FeatureProtocol(Protocol):
    """How two sets of videos are compared in the feature space of a network (Fréchet distance, kernel distance)."""

    metric: str  # what `estimator` gives is called: "fvd", "fid", "kvd", "fd.<extractor>"
    extractor: str
    tap: str  # which layer, pooled how
    weights_sha256: str | None = None  # None: whatever file the user gives; its hash is in the result
    estimator: Literal["frechet", "polynomial-mmd-unbiased", "polynomial-mmd-biased"] = "frechet"
    ddof: int = 1  # of the covariance
    num_real: int | None = None  # videos; fewer are an error; None takes all
    num_fake: int | None = None
    repeats: int = 1  # draws of the fake set, reported as mean and spread
    conditioning_frames: int = 0  # frames at the start of a fake clip that were given to the generator
    small_n: bool = False  # the published number of videos does not exceed the number of features

    def check_weights(self, sha256: str) -> None:
        """ValueError unless the network of that file is the protocol's."""
        if self.weights_sha256 not in (None, sha256):
            raise ValueError(
                f"{self.name} takes {self.extractor} with weights of sha256 {self.weights_sha256}, got {sha256}; give "
                "that file, or choose another protocol"
            )


def differing_conditions(ours: Any, theirs: Any, name: str = "") -> list[str]:
    """`name: ours, theirs` for each leaf in which two JSON-able values differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [*ours, *(key for key in theirs if key not in ours)]
        prefix = f"{name}." if name else ""
        return [
            difference
            for key in keys
            for difference in differing_conditions(ours.get(key), theirs.get(key), f"{prefix}{key}")
        ]
    return [] if ours == theirs else [f"{name}: {ours!r}, {theirs!r}"]
