"""Features of a set of videos with all that made them: saved, loaded, joined across processes without doubles."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vidgen.eval.protocol import differing_conditions
from vidgen.files import save_tensors

SCHEMA = "vidgen.features/1"
SAME = 1e-5  # of the largest feature: what batching may change


@dataclass(frozen=True)
class FeatureSet:
    """Rows of features, sorted by video. A video has one row for each of its clips, or for each of its frames."""

    features: Tensor  # n d float32
    videos: tuple[str, ...]  # for each row the name of its video
    conditions: dict[str, Any]  # network, clips, preprocessing: equal for sets that may be compared
    inputs: dict[str, Any] = field(default_factory=dict)  # where the videos came from

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or len(self.features) != len(self.videos):
            raise ValueError(
                f"expected features `n d` and a video name for each row, got {tuple(self.features.shape)} and "
                f"{len(self.videos)} names"
            )

    @property
    def num_videos(self) -> int:
        return len(set(self.videos))

    def of_videos(self, names: Sequence[str]) -> "FeatureSet":
        """The rows of some of the videos."""
        wanted = set(names)
        rows = [row for row, name in enumerate(self.videos) if name in wanted]
        return FeatureSet(self.features[rows], tuple(self.videos[row] for row in rows), self.conditions, self.inputs)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with the conditions in its header."""
        header = {"schema": SCHEMA, "videos": self.videos, "conditions": self.conditions, "inputs": self.inputs}
        save_tensors({"features": self.features}, path, metadata={"vidgen": json.dumps(header)})

    @classmethod
    def load(cls, path: str | Path) -> "FeatureSet":
        """Read such a file. ValueError when it is none."""
        advice = f"expected a feature file of `vidgen eval features`, and {path} is none"
        if not Path(path).is_file():
            raise ValueError(f"{advice}: there is no such file")
        try:
            with safe_open(str(path), framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("vidgen", "{}"))
                if header.get("schema") != SCHEMA:
                    raise ValueError(f"{advice}: its schema is {header.get('schema')!r}, not {SCHEMA!r}")
                features = file.get_tensor("features")
        except SafetensorError as error:
            raise ValueError(f"{advice}: {error}") from None
        return cls(features, tuple(header["videos"]), header["conditions"], header["inputs"])


def joined(sets: Sequence[FeatureSet]) -> FeatureSet:
    """All videos of several sets, each once, sorted by name: the same whatever the order and the overlap of the sets.

    Raises:
        ValueError: no set; sets made under different conditions; a video with different features in two of them.
    """
    if not sets:
        raise ValueError("expected at least one set of features to join")
    first, rows = sets[0], {}
    for one in sets:
        check_same_conditions(first, one)
        for name, features in _by_video(one).items():
            known = rows.setdefault(name, features)
            if known.shape != features.shape or not torch.allclose(known, features, rtol=SAME, atol=_tolerance(known)):
                raise ValueError(f"two sets have different features for {name}; are they different videos of one name?")
    names = sorted(rows)
    videos = tuple(name for name in names for _ in rows[name])
    features = torch.cat([rows[name] for name in names]) if names else first.features
    return FeatureSet(features, videos, first.conditions, first.inputs)


def check_same_conditions(one: FeatureSet, other: FeatureSet) -> None:
    """ValueError that names the conditions in which two sets differ."""
    differences = differing_conditions(one.conditions, other.conditions)
    if differences:
        raise ValueError(
            f"features made under different conditions do not compare: {'; '.join(differences[:4])}; extract both alike"
        )


def _by_video(one: FeatureSet) -> dict[str, Tensor]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(one.videos):
        rows.setdefault(name, []).append(row)
    return {name: one.features[places] for name, places in rows.items()}


def _tolerance(features: Tensor) -> float:
    return SAME * float(features.abs().max()) if features.numel() else 0.0
