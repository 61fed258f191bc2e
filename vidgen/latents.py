"""What passes between tokenizers and generators: `LatentSpec` says what the tokens are, `Latents` carries them."""

import json
import math
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vidgen.files import save_tensors

VideoSize = tuple[int, int, int]  # frames, height, width

AXES = "thw"
ID_TYPES = (torch.uint8, torch.int16, torch.int32, torch.long)  # of ids in files; in memory they are long
NO_PLACE = -1  # coordinate of a token along an axis that its part does not have


@dataclass(frozen=True)
class LatentPart:
    """One regular block of tokens.

    Args:
        name: `"grid"`, `"plane_xt"`, `"structure"`, `"motion"`, `"query"`…
        axes: the video axes that the block has, a subsequence of `"thw"`; `""` for holistic tokens without a place.
        stride: pixels (frames for t) per token along each of those axes.
        channels: length of a token's vector.
        codebooks: size of each codebook of a discrete part, in the order of `ids[..., q]`; `()` = continuous.
        count: tokens at each place (learned queries: `axes=""`, `count=1024`).
        first_frame_alone: the first frame of a video has a row of tokens by itself (causal tokenizers), so that
            `frames` gives `1 + ceil((frames - 1) / stride)` rows.
    """

    name: str
    axes: str
    stride: tuple[int, ...]
    channels: int
    codebooks: tuple[int, ...] = ()
    count: int = 1
    first_frame_alone: bool = False

    def __post_init__(self):
        if [axis for axis in AXES if axis in self.axes] != list(self.axes):
            raise ValueError(f"axes must be a subsequence of 'thw' in that order, got {self.axes!r}")
        if len(self.stride) != len(self.axes):
            raise ValueError(f"axes {self.axes!r} need {len(self.axes)} strides, got {self.stride}")
        if min((self.channels, self.count, *self.stride)) < 1 or min(self.codebooks, default=2) < 2:
            raise ValueError(
                f"part {self.name!r} needs strides, channels and count of at least 1 and codebooks of at least 2, got "
                f"strides {self.stride}, {self.channels} channels, count {self.count}, codebooks {self.codebooks}"
            )
        if self.first_frame_alone and "t" not in self.axes:
            raise ValueError(f"part {self.name!r} has no time axis, so first_frame_alone must be False")

    def grid(self, size: VideoSize, *, start: int = 0) -> tuple[int, ...]:
        """Tokens along each axis for `size`; `start` > 0 when the frames continue a stream."""
        rows = []
        for axis, stride in zip(self.axes, self.stride, strict=True):
            extent = size[AXES.index(axis)]
            if axis == "t" and self.first_frame_alone and start == 0:
                rows.append(1 + math.ceil((extent - 1) / stride))
            else:
                rows.append(math.ceil(extent / stride))
        return tuple(rows)

    def num_tokens(self, size: VideoSize, *, start: int = 0) -> int:
        return self.count * math.prod(self.grid(size, start=start))


@dataclass(frozen=True)
class LatentSpec:
    """All that a generator may know about a tokenizer; JSON-able.

    Args:
        parts: blocks of tokens, concatenated in this order. Either all are discrete or none is.
        causal: later frames never change earlier tokens.
        streamable: `encode_stream` and `decode_stream` hold constant memory.
    """

    parts: tuple[LatentPart, ...]
    causal: bool
    streamable: bool

    def __post_init__(self):
        discrete = {bool(part.codebooks) for part in self.parts}
        if len(discrete) != 1:
            raise ValueError("a spec needs at least one part, and either all parts or none have codebooks")
        if self.discrete and len({len(part.codebooks) for part in self.parts}) != 1:
            raise ValueError("all parts of a discrete spec must have the same number of codebooks")

    @property
    def discrete(self) -> bool:
        return bool(self.parts[0].codebooks)

    @property
    def channels(self) -> int:
        """Length of the token vectors; parts with fewer channels are padded with zeros."""
        return max(part.channels for part in self.parts)

    @property
    def num_codebooks(self) -> int:
        return len(self.parts[0].codebooks)

    @property
    def is_grid(self) -> bool:
        """One `thw` part with one token a place: the plain case that windows and patchify need."""
        return len(self.parts) == 1 and self.parts[0].axes == "thw" and self.parts[0].count == 1

    @property
    def unit(self) -> tuple[int, int, int]:
        """Smallest stride over the parts along t, h, w: the unit in which generators measure positions."""
        smallest = []
        for axis in AXES:
            strides = [part.stride[part.axes.index(axis)] for part in self.parts if axis in part.axes]
            smallest.append(min(strides, default=1))
        return smallest[0], smallest[1], smallest[2]

    def grid(self, size: VideoSize, part: int = 0, *, start: int = 0) -> tuple[int, ...]:
        """Token grid of one part; sizes that do not divide round up (encode pads, decode crops)."""
        return self.parts[part].grid(size, start=start)

    def num_tokens(self, size: VideoSize, *, start: int = 0) -> int:
        return sum(part.num_tokens(size, start=start) for part in self.parts)

    def slices(self, size: VideoSize, *, start: int = 0) -> list[slice]:
        """Where each part lies in the token axis."""
        slices, first = [], 0
        for part in self.parts:
            count = part.num_tokens(size, start=start)
            slices.append(slice(first, first + count))
            first += count
        return slices

    def coordinates(self, size: VideoSize, *, start: int = 0) -> Tensor:
        """Place of every token: `n 5` long tensor of (part, ordinal within the part, t, y, x).

        t is in frames and y, x in pixels, `index * stride` along each axis of the part and -1 along an axis that
        the part does not have. With a lone first frame the row of frames 1…s has t = s.
        """
        rows = []
        for number, part in enumerate(self.parts):
            grid = part.grid(size, start=start)
            ticks = [torch.arange(part.count)]
            for axis, stride, extent in zip(part.axes, part.stride, grid, strict=True):
                offset = start + stride - 1 if axis == "t" and start > 0 and part.first_frame_alone else 0
                if axis == "t" and not part.first_frame_alone:
                    offset = start
                ticks.append(torch.arange(extent) * stride + offset)
            mesh = torch.meshgrid(*ticks, indexing="ij")
            places = {axis: plane.reshape(-1) for axis, plane in zip(part.axes, mesh[1:], strict=True)}
            count = mesh[0].numel()
            absent = torch.full((count,), NO_PLACE)
            columns = [torch.full((count,), number), torch.arange(count)]
            rows.append(torch.stack(columns + [places.get(axis, absent) for axis in AXES], dim=1))
        return torch.cat(rows)

    def bits(self, size: VideoSize) -> float | None:
        """Fixed-length bits of the ids of one video, `None` for continuous latents."""
        if not self.discrete:
            return None
        return sum(p.num_tokens(size) * math.log2(math.prod(p.codebooks)) for p in self.parts)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "LatentSpec":
        parts = []
        for part in fields["parts"]:
            parts.append(LatentPart(**{**part, "stride": tuple(part["stride"]), "codebooks": tuple(part["codebooks"])}))
        return cls(parts=tuple(parts), causal=fields["causal"], streamable=fields["streamable"])


class ReadsIds(Protocol):
    """What a tokenizer of ids is to a file of ids."""

    @property
    def spec(self) -> LatentSpec: ...

    @property
    def device(self) -> torch.device: ...

    def reals_from_ids(self, ids: Tensor, size: VideoSize | None = None) -> Tensor: ...


@dataclass
class Latents:
    """Tokens of a batch of equally sized videos.

    Args:
        tokens: `b n c`, about unit variance (the tokenizer's frozen statistics are applied).
        ids: `b n q` long, one index per codebook; present exactly when the spec is discrete.
        size: the (frames, height, width) that `decode` gives back.
        spec: what the tokens are.
        length: `b` long, valid prefix of each sample, for variable-rate tokenizers.
        start: absolute index of the first frame; > 0 for a chunk that continues a stream.
    """

    tokens: Tensor
    ids: Tensor | None
    size: VideoSize
    spec: LatentSpec
    length: Tensor | None = None
    start: int = 0
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if len(self.size) != 3 or min(self.size) < 1 or self.start < 0:
            raise ValueError(
                "size must be (frames, height, width), each at least 1, and start at least 0, "
                f"got size {self.size} and start {self.start}"
            )
        expected = self.spec.num_tokens(self.size, start=self.start)
        if self.tokens.ndim != 3 or self.tokens.shape[1:] != (expected, self.spec.channels):
            raise ValueError(
                f"tokens of a video of size {self.size} have the shape (batch, {expected}, {self.spec.channels}), "
                f"got {tuple(self.tokens.shape)}"
            )
        if (self.ids is not None) != self.spec.discrete:
            raise ValueError("ids must be given exactly when the spec has codebooks")
        batch = self.tokens.shape[0]
        if self.ids is not None and self.ids.shape != (batch, expected, self.spec.num_codebooks):
            raise ValueError(
                f"ids must have the shape {(batch, expected, self.spec.num_codebooks)}, got {tuple(self.ids.shape)}"
            )
        if self.length is not None and self.length.shape != (batch,):
            raise ValueError(f"length must have one entry a sample, {batch} in all, got {tuple(self.length.shape)}")

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, samples: slice) -> "Latents":
        ids = None if self.ids is None else self.ids[samples]
        length = None if self.length is None else self.length[samples]
        return replace(self, tokens=self.tokens[samples], ids=ids, length=length)

    def repeat_interleave(self, times: int) -> "Latents":
        """Each sample `times` times, side by side."""
        ids = None if self.ids is None else self.ids.repeat_interleave(times, 0)
        length = None if self.length is None else self.length.repeat_interleave(times, 0)
        return replace(self, tokens=self.tokens.repeat_interleave(times, 0), ids=ids, length=length)

    def grid(self, part: int = 0) -> Tensor:
        """`b c t h w` view of a part that has all three axes."""
        described = self.spec.parts[part]
        if described.axes != "thw" or described.count != 1:
            raise ValueError(
                f"part {described.name!r} has axes {described.axes!r} and {described.count} tokens a place; "
                "only a 'thw' part with one token a place has a grid"
            )
        tokens = self.tokens[:, self.spec.slices(self.size, start=self.start)[part], : described.channels]
        t, h, w = described.grid(self.size, start=self.start)
        return rearrange(tokens, "b (t h w) c -> b c t h w", t=t, h=h, w=w)

    def to(self, *args: Any, **kwargs: Any) -> "Latents":
        """Move the tensors; a dtype applies to the tokens only."""
        tokens = self.tokens.to(*args, **kwargs)
        ids = None if self.ids is None else self.ids.to(tokens.device)
        length = None if self.length is None else self.length.to(tokens.device)
        return replace(self, tokens=tokens, ids=ids, length=length)

    @staticmethod
    def collate(samples: list["Latents"]) -> "Latents":
        """Stack samples of equal size and spec into one batch."""
        if not samples:
            raise ValueError("expected latents of at least one sample to collate, got none")
        first = samples[0]
        if any(s.size != first.size or s.spec != first.spec or s.start != first.start for s in samples):
            raise ValueError("latents of one batch must have the same size and spec; group the clips by size first")
        if any((s.length is None) != (first.length is None) for s in samples):
            raise ValueError("latents of one batch all have a length or none has; give those without their full length")
        ids = None if first.ids is None else torch.cat([s.ids for s in samples if s.ids is not None])
        length = None if first.length is None else torch.cat([s.length for s in samples if s.length is not None])
        return Latents(torch.cat([s.tokens for s in samples]), ids, first.size, first.spec, length, first.start)

    @staticmethod
    def join(chunks: list["Latents"]) -> "Latents":
        """Concatenate consecutive chunks of a stream along time (all parts of the spec lead with the same t axis)."""
        if not chunks:
            raise ValueError("expected at least one chunk of latents to join, got none")
        first, frames = chunks[0], 0
        first._check_time_leads()
        for chunk in chunks:
            if chunk.spec != first.spec or chunk.size[1:] != first.size[1:] or len(chunk) != len(first):
                raise ValueError(
                    "chunks of one stream must have the same spec, height, width and number of samples; got "
                    f"{len(first)} of {first.size} and {len(chunk)} of {chunk.size}"
                )
            if chunk.start != first.start + frames:
                raise ValueError(
                    f"expected the chunk that begins at frame {first.start + frames}, got one that begins at frame "
                    f"{chunk.start}; join the chunks in the order in which the stream gave them"
                )
            frames += chunk.size[0]
        tokens = _joined([chunk._by_time(chunk.tokens) for chunk in chunks])
        ids = None if first.ids is None else _joined([c._by_time(c.ids) for c in chunks if c.ids is not None])
        return Latents(tokens, ids, (frames, first.size[1], first.size[2]), first.spec, None, first.start)

    def split(self, rows: int) -> list["Latents"]:
        """Cut along time into chunks of `rows` rows of tokens, the last one perhaps shorter; `join` undoes it."""
        self._check_time_leads()
        if rows < 1:
            raise ValueError(f"expected chunks of at least 1 row of tokens, got {rows}")
        part = self.spec.parts[0]
        in_all = self.spec.grid(self.size, start=self.start)[0]
        alone = part.first_frame_alone and self.start == 0

        def frames_before(row: int) -> int:
            return 1 + (row - 1) * part.stride[0] if alone and row > 0 else row * part.stride[0]

        def cut(tensor: Tensor, first_row: int) -> Tensor:
            wanted = slice(first_row, first_row + rows)
            return _joined([[block[:, :, wanted] for block in self._by_time(tensor)]])

        chunks = []
        for row in range(0, in_all, rows):
            first, last = frames_before(row), min(frames_before(row + rows), self.size[0])
            chunks.append(
                replace(
                    self,
                    tokens=cut(self.tokens, row),
                    ids=None if self.ids is None else cut(self.ids, row),
                    size=(last - first, self.size[1], self.size[2]),
                    start=self.start + first,
                )
            )
        return chunks

    def _by_time(self, tensor: Tensor) -> list[Tensor]:
        """Tokens or ids of each part as `b k t s c`: k tokens a place, s places a row."""
        blocks = []
        for part, place in zip(self.spec.parts, self.spec.slices(self.size, start=self.start), strict=True):
            rows = part.grid(self.size, start=self.start)[0]
            blocks.append(rearrange(tensor[:, place], "b (k t s) c -> b k t s c", k=part.count, t=rows))
        return blocks

    def _check_time_leads(self) -> None:
        in_time = {(part.axes[:1], part.stride[:1], part.first_frame_alone) for part in self.spec.parts}
        if len(in_time) != 1 or not self.spec.parts[0].axes.startswith("t") or self.length is not None:
            raise ValueError(
                "only latents without a length whose parts all have a leading time axis of one stride join or split "
                f"along time; these have the parts {[(p.name, p.axes, p.stride) for p in self.spec.parts]}"
            )

    def save(self, path: str | Path, *, ids_only: bool = False) -> None:
        """Write a safetensors file that `load` reads; `metadata` travels along. The file appears when it is whole.

        Ids take as few bytes as their codebooks allow. With `ids_only` the vectors are left out where there are ids:
        a file of a fifth of the size or less, which only the tokenizer that made it can read.
        """
        if ids_only and self.start > 0:
            raise ValueError("a chunk of a stream is saved with its vectors; leave ids_only out, or join the chunks")
        tensors = {}
        if self.ids is not None:
            self.check_ids()  # a narrow type would make others of them
            tensors["ids"] = self.ids.to(_narrowest(self.spec))
        if self.ids is None or not ids_only:
            tensors["tokens"] = self.tokens
        if self.length is not None:
            tensors["length"] = self.length
        header = {"size": json.dumps(self.size), "start": str(self.start), "spec": json.dumps(self.spec.to_json())}
        unfinished = Path(f"{path}.part")
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        on_cpu = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        save_tensors(on_cpu, unfinished, metadata={**self.metadata, **header})
        os.replace(unfinished, path)

    @classmethod
    def load(cls, path: str | Path, tokenizer: ReadsIds | None = None) -> "Latents":
        """Read what `save` wrote.

        Args:
            tokenizer: the one that made the file, for files that hold ids only.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or holds something else, or is of ids only and there is no tokenizer; the
                message says what.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                header = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file ({error}); encode the clip again") from error
        missing = sorted({"size", "start", "spec"} - header.keys())
        if missing or not {"tokens", "ids"} & tensors.keys():
            raise ValueError(
                f"{path} is not a latents file: expected the tensors 'tokens' or 'ids' and a header with size, start "
                f"and spec, got the tensors {sorted(tensors)} and the header entries {sorted(header)}"
            )
        if "tokens" not in tensors and tokenizer is None:
            raise ValueError(f"{path} holds ids only, whose vectors its tokenizer knows: Latents.load(path, tokenizer)")
        try:
            frames, height, width = (int(extent) for extent in json.loads(header.pop("size")))
            start, spec = int(header.pop("start")), LatentSpec.from_json(json.loads(header.pop("spec")))
            size, ids, length = (frames, height, width), tensors.get("ids"), tensors.get("length")
            if ids is not None and ids.dtype in ID_TYPES:
                ids = ids.long()
            tokens = tensors.get("tokens")
            if tokens is None:  # a stand-in without memory: all else is checked before the codebook is looked into
                tokens = torch.zeros(1).expand(len(tensors["ids"]), spec.num_tokens(size, start=start), spec.channels)
            latents = cls(tokens, ids, size, spec, length, start, header)
            latents.check_ids()
            if "tokens" in tensors and not tokens.isfinite().all():
                raise ValueError(f"{int((~tokens.isfinite()).sum())} numbers of its vectors are NaN or infinite")
        except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a latents file that fits together: {error}") from error
        if "tokens" in tensors:
            return latents
        assert tokenizer is not None and latents.ids is not None
        if tokenizer.spec != spec:
            raise ValueError(f"{path} holds ids of another kind of tokenizer; give the one that made them")
        return replace(latents, tokens=tokenizer.reals_from_ids(latents.ids.to(tokenizer.device), size).detach().cpu())

    def check_ids(self) -> None:
        """ValueError for ids that are none of the codebook's."""
        if self.ids is None:
            return
        if self.ids.dtype != torch.long:
            raise ValueError(f"ids must be of type {torch.long}, got {self.ids.dtype}")
        for part, tokens in zip(self.spec.parts, self.spec.slices(self.size, start=self.start), strict=True):
            ids = self.ids[:, tokens]
            outside = (ids < 0) | (ids >= torch.tensor(part.codebooks))
            if outside.any():
                raise ValueError(
                    f"part {part.name!r} has codebooks of {part.codebooks} codes, and there are "
                    f"{int(outside.sum())} ids outside them, such as {int(ids[outside][0])}"
                )


def _narrowest(spec: LatentSpec) -> torch.dtype:
    """The smallest integer type that holds all ids."""
    most = max(codes for part in spec.parts for codes in part.codebooks)
    return next(kind for kind in ID_TYPES if most - 1 <= torch.iinfo(kind).max)


def _joined(chunks: list[list[Tensor]]) -> Tensor:
    """`b k t s c` of each part of each chunk -> `b n c`: chunks along time, then parts one after the other."""
    parts = [torch.cat([chunk[part] for chunk in chunks], dim=2) for part in range(len(chunks[0]))]
    return torch.cat([rearrange(part, "b k t s c -> b (k t s) c") for part in parts], dim=1)
