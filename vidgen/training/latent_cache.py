"""Clips encoded once and kept on disk, under the hash of everything that went into them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import safe_open
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from vidgen.conditioning import TextEncoder
from vidgen.files import save_tensors
from vidgen.latents import Latents
from vidgen.nn.fingerprint import config_sha256, weights_sha256
from vidgen.tokenizers.base import Tokenizer
from vidgen.training.checkpoint import write_folder
from vidgen.training.clips import collate
from vidgen.training.load_batches import load_batches
from vidgen.training.step import Batch

SHARD_CLIPS = 1024
BATCH_CLIPS = {"cpu": 8, "cuda": 64}  # by device, as many as one call encodes; divide SHARD_CLIPS
HEADER = "cache.json"


def identity(model: Any) -> str:
    """Hash of a model's class, configuration and weights, wherever it lies."""
    return hashlib.sha256(f"{config_sha256(model)} {weights_sha256(model)}".encode()).hexdigest()


def cache_key(tokenizer: Tokenizer, text_encoder: TextEncoder | None, *, clips: dict[str, Any]) -> str:
    """Hash of the networks and of the facts that decide which clips they see."""
    parts = [identity(tokenizer), json.dumps(clips, sort_keys=True, default=str)]
    if text_encoder is not None:
        parts.append(identity(text_encoder))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class EncodedClips(Dataset):
    """Map-style dataset of a finished cache folder.

    Each item is `{"ids": n q}` or `{"tokens": n c}`, with `caption`, `id`, `size` (frames, height, width), with
    `length` for tokenizers of variable rate, with `class_label` where the clips have one, and with `text` (`l d`) for
    a frozen text encoder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.header = json.loads((folder / HEADER).read_text())
        self.size = tuple(self.header["size"])
        self.shards: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.header["captions"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, row = divmod(index, SHARD_CLIPS)
        if number not in self.shards:
            self.shards[number] = safe_open(str(shard_path(self.folder, number)), framework="pt")
        shard = self.shards[number]
        item = {name: shard.get_slice(name)[row] for name in shard.keys()}  # noqa: SIM118  it is no dict
        if "ids" in item:
            item["ids"] = item["ids"].long()
        if "text" in item:
            item["text"] = item["text"][: int(item.pop("text_length"))]
        if self.header.get("class_labels"):
            item["class_label"] = self.header["class_labels"][index]
        caption = self.header["captions"][index]
        if isinstance(caption, list):  # a timeline, whose entries JSON made lists
            caption = [(frame, text) for frame, text in caption]
        return {**item, "caption": caption, "id": self.header["ids"][index], "size": self.size}


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"clips-{number:05d}.safetensors"


def encoded_clips(
    folder: Path,
    clips: Dataset,
    *,
    count: int,
    key: str,
    tokenizer: Tokenizer,
    text_encoder: TextEncoder | None,
    say: Callable[[str], None],
    workers: int = 0,
) -> EncodedClips:
    """The first `count` clips, encoded: from `folder / key` where they are already there, else encoded now.

    Args:
        key: of `cache_key`; another key is another folder, so nothing stale is ever read.
        text_encoder: a frozen one, whose states are kept too; None keeps captions only.
        say: told what happens.
        workers: processes that load clips; 0 loads them here.
    """
    place = folder / key[:32]

    def fill(unfinished: Path) -> None:
        captions, names, labels, size = [], [], [], (0, 0, 0)
        share = BATCH_CLIPS.get(tokenizer.device.type, BATCH_CLIPS["cpu"])
        wanted = [[*range(start, min(start + share, count))] for start in range(0, count, share)]
        rows: list[dict[str, Any]] = []
        for batch in load_batches(clips, wanted, collate, workers=workers):
            rows += encode(batch, tokenizer, text_encoder)
            captions += batch["caption"]
            names += batch["id"]
            labels += batch.get("class_label", [])
            size = tuple(batch["video"].shape[2:])
            if len(rows) == SHARD_CLIPS or len(captions) == count:
                save_tensors(stacked(rows), shard_path(unfinished, (len(captions) - 1) // SHARD_CLIPS))
                say(f"encoded {len(captions)} of {count} clips")
                rows = []
        header = {"key": key, "size": size, "captions": captions, "ids": names, "class_labels": labels}
        (unfinished / HEADER).write_text(json.dumps(header) + "\n")

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):  # two runs on the same clips: one encodes, the other waits
        if (place / HEADER).is_file() and json.loads((place / HEADER).read_text())["key"] == key:
            say(f"{count} encoded clips are in {place}")
        else:
            write_folder(place, fill)
    return EncodedClips(place)


@torch.no_grad()
def encode(batch: Batch, tokenizer: Tokenizer, text_encoder: TextEncoder | None) -> list[dict[str, Tensor]]:
    """The tensors that are kept of each clip of a batch."""
    latents = tokenizer.encode(batch["video"].to(tokenizer.device))
    kept = {"tokens": latents.tokens} if latents.ids is None else {"ids": latents.ids.int()}
    if latents.length is not None:
        kept["length"] = latents.length
    kept = {name: tensor.cpu() for name, tensor in kept.items()}
    rows = [{name: tensor[index] for name, tensor in kept.items()} for index in range(len(batch["caption"]))]
    if text_encoder is not None:
        text = text_encoder.encode(batch["caption"])
        for row, states, mask in zip(rows, text.states.cpu(), text.mask.cpu(), strict=True):
            row["text"] = states[mask]
    return rows


def stacked(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One tensor for each name; text states of different lengths are padded and their lengths kept."""
    tensors = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "text"}
    if "text" in rows[0]:
        tensors["text"] = pad_sequence([row["text"] for row in rows], batch_first=True)
        tensors["text_length"] = torch.tensor([len(row["text"]) for row in rows])
    return tensors


def collate_encoded(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items of `EncodedClips` as one batch; text states are padded, `text_mask` says which are real."""
    first = items[0]
    named = [name for name in ("caption", "id", "class_label") if name in first]
    batch: dict[str, Any] = {name: [item[name] for item in items] for name in named}
    batch["size"] = first["size"]
    for name in ("ids", "tokens", "length"):
        if name in first:
            batch[name] = torch.stack([item[name] for item in items])
    if "text" in first:
        batch["text"] = pad_sequence([item["text"] for item in items], batch_first=True)
        lengths = torch.tensor([len(item["text"]) for item in items])
        batch["text_mask"] = torch.arange(batch["text"].shape[1])[None] < lengths[:, None]
    return batch


def latents_of(batch: dict[str, Any], tokenizer: Tokenizer) -> Latents:
    """Latents of a batch: encoded now, or from the cache."""
    with torch.no_grad(), torch.autocast(tokenizer.device.type, enabled=False):  # as exact as at inference
        if "video" in batch:
            return tokenizer.encode(batch["video"])
        ids = batch.get("ids")
        tokens = batch["tokens"] if ids is None else tokenizer.reals_from_ids(ids, batch["size"])
        return Latents(tokens, ids, batch["size"], tokenizer.spec, batch.get("length"))
