"""The clips of a run: datasets for training and validation that a `DataConfig` names, and how items become batches."""

from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from vidgen.data.shapes import ShapesWorld
from vidgen.training.config import DataConfig
from vidgen.training.order import seed_of

VALIDATION = 11  # keeps a world's validation seed apart from its training seed


def training_clips(data: DataConfig) -> Dataset:
    """Map-style dataset of `{"video": 3 t h w in [-1, 1], "caption": str, "id": str}`."""
    if data.is_world:
        return world(data, seed=data.data_seed)
    folder = video_folder(data)
    held_out = set(held_out_clips(data, len(folder)))  # pyright: ignore[reportArgumentType]
    return Subset(folder, [index for index in range(len(folder)) if index not in held_out])  # pyright: ignore[reportArgumentType]


def validation_clips(data: DataConfig) -> Dataset | None:
    """Clips that training never sees; None when the config wants none."""
    if data.validation_clips == 0:
        return None
    if data.is_world:
        return Subset(world(data, seed=seed_of(data.data_seed, VALIDATION) % 2**31), range(data.validation_clips))
    folder = video_folder(data)
    return Subset(folder, held_out_clips(data, len(folder)))  # pyright: ignore[reportArgumentType]


def held_out_clips(data: DataConfig, count: int) -> list[int]:
    """Which of `count` clips of a folder are for validation: as many as asked for, at most a fifth."""
    if data.validation_clips == 0:
        return []
    if count < 2:
        raise ValueError(
            f"{data.source} holds {count} clip, too few for a training and a validation part; "
            "add clips or set --validation-clips 0"
        )
    wanted = min(data.validation_clips, max(1, count // 5))
    generator = torch.Generator().manual_seed(seed_of(data.data_seed, VALIDATION))
    return sorted(torch.randperm(count, generator=generator)[:wanted].tolist())


def world(data: DataConfig, *, seed: int) -> Dataset:
    """The built-in world that the config names, drawn from `seed`."""
    if data.source == "shapes":
        return ShapesWorld(data.num_frames, data.height, width=data.width, objects=data.objects, seed=seed)
    raise ValueError("the digits world is not there yet")


def video_folder(data: DataConfig) -> Dataset:
    """The user's folder of videos."""
    raise ValueError("folders are not there yet")


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items of a dataset as one batch: `video` `b 3 t h w`, `caption` and `id` lists."""
    return {
        "video": torch.stack([item["video"] for item in items]),
        "caption": [item["caption"] for item in items],
        "id": [item["id"] for item in items],
    }
