"""The clips of a run: datasets for training and validation that a `DataConfig` names, and how items become batches."""

from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from vidgen.data.digits import DIGIT_CLASSES, MovingDigits, digit_classes
from vidgen.data.folder import VideoFolder
from vidgen.data.mixture import Mixture
from vidgen.data.shapes import HELD_OUT_PAIRS, SHAPE_CLASSES, ShapesWorld
from vidgen.data.shapes_timelines import ShapesTimelines
from vidgen.training.config import DataConfig
from vidgen.training.order import seed_of

VALIDATION = 11  # keeps a world's validation seed apart from its training seed
ENDLESS = 2**60  # clips of a world: more than anybody trains on, and Python still takes it as the length of a dataset


def training_clips(data: DataConfig, *, captions_required: bool = False) -> Dataset:
    """Map-style dataset of `{"video": 3 t h w in [-1, 1], "caption": str, "id": str}`; a world has any index.

    With `timelines` a caption may be one, `[(0, "…"), (9, "…")]`.
    """
    if data.timelines > 0:
        return ShapesTimelines(shapes_world(data, split="train"), data.timelines)
    if data.is_world:
        return world(data, split="train")
    folder = video_folder(data, clips_per_video=data.clips_per_video, captions_required=captions_required)
    return folder if data.validation_clips == 0 else folder.split(held_out_share(data, folder))[0]


def validation_clips(data: DataConfig) -> Dataset | None:
    """Clips that training never sees; None when the config wants none."""
    if data.validation_clips == 0:
        return None
    if data.is_world:
        return Subset(world(data, split="validation"), range(data.validation_clips))
    folder = video_folder(replace(data, zoom=1.0), clips_per_video=1, captions_required=False)
    held_out = folder.split(held_out_share(data, folder))[1]
    return Subset(held_out, range(min(len(held_out), data.validation_clips)))


def held_out_share(data: DataConfig, folder: VideoFolder) -> float:
    """Share of a folder's videos for validation: as many as there are validation clips, at most a fifth."""
    if len(folder.videos) < 2:
        raise ValueError(
            f"{data.source} holds {len(folder.videos)} video, too few for a training and a validation part; "
            "add videos or set --validation-clips 0"
        )
    return min(0.2, data.validation_clips / len(folder.videos))


def class_names(data: DataConfig) -> tuple[str, ...]:
    """Names of the classes of a built-in world's clips, in the order of their labels."""
    if data.source == "digits":
        return digit_classes(data.objects)
    if not data.is_world or data.objects != (1,):
        raise ValueError(
            "clips have a class in the built-in worlds: --data digits, or --data shapes or shapes+digits with "
            f"--objects 1; got --data {data.source}, --objects {' '.join(str(count) for count in data.objects)}"
        )
    return SHAPE_CLASSES if data.source == "shapes" else SHAPE_CLASSES + DIGIT_CLASSES


def world(data: DataConfig, *, split: str) -> Dataset:
    """The built-in world that the config names, or both in turn: unrelated clips for each split."""
    if data.source == "shapes":
        return shapes_world(data, split=split)
    if data.source == "digits":
        return moving_digits(data, split=split)
    return Mixture([shapes_world(data, split=split), moving_digits(data, split=split)], [0, len(SHAPE_CLASSES)])


def shapes_world(data: DataConfig, *, split: str) -> ShapesWorld:
    """The shapes world; what it favours is favoured in training alone."""
    return ShapesWorld(
        data.num_frames,
        data.height,
        width=data.width,
        objects=data.objects,
        seed=world_seed(data, split=split),
        length=ENDLESS,
        hold_out=HELD_OUT_PAIRS if data.hold_out else frozenset(),
        favour=data.favour if split == "train" else (),
    )


def moving_digits(data: DataConfig, *, split: str) -> MovingDigits:
    """Moving digits; validation has handwriting that training never shows."""
    if data.digits_dir is None:
        raise ValueError(f"--data {data.source} needs the folder with the MNIST files; give it with --digits-dir DIR")
    return MovingDigits(
        data.digits_dir,
        "train" if split == "train" else "test",
        num_frames=data.num_frames,
        height=data.height,
        width=data.width,
        digits=data.objects,
        seed=world_seed(data, split=split),
        length=ENDLESS,
    )


def world_seed(data: DataConfig, *, split: str) -> int:
    """The seed of a world's clips: validation has one of its own."""
    return data.data_seed if split == "train" else seed_of(data.data_seed, VALIDATION) % 2**31


def video_folder(data: DataConfig, *, clips_per_video: int, captions_required: bool) -> VideoFolder:
    """The user's folder of videos."""
    return VideoFolder(
        data.source,
        num_frames=data.num_frames,
        height=data.height,
        width=data.width,
        fps=data.fps,
        seed=data.data_seed,
        clips_per_video=clips_per_video,
        captions_required=captions_required,
        repeat_last_frame=data.repeat_last_frame,
        zoom=data.zoom,
        allow_missing=data.allow_missing,
    )


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items of a dataset as a batch: `video` `b 3 t h w`; lists `caption`, `id` and (where known) `class_label`."""
    batch = {
        "video": torch.stack([item["video"] for item in items]),
        "caption": [item["caption"] for item in items],
        "id": [item["id"] for item in items],
    }
    if "class_label" in items[0]:
        batch["class_label"] = [item["class_label"] for item in items]
    return batch
