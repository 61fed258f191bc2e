"""Does a spec describe every kind of token honestly, and do latents survive joining, splitting, saving and misuse?"""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import vidgen
from vidgen.latents import ID_TYPES, NO_PLACE, LatentPart, Latents, LatentSpec

CAUSAL = LatentSpec(
    (LatentPart("grid", "thw", (4, 8, 8), 3, (64,), first_frame_alone=True),), causal=True, streamable=True
)
CONTINUOUS = LatentSpec((LatentPart("grid", "thw", (2, 8, 8), 4),), causal=False, streamable=False)
STRUCTURE_AND_DYNAMICS = LatentSpec(  # VidTwin: one part without time, one without space
    (LatentPart("structure", "hw", (16, 16), 6), LatentPart("dynamics", "t", (2,), 2, count=3)),
    causal=False,
    streamable=False,
)
PLANES = LatentSpec(  # CoordTok
    (
        LatentPart("plane_xy", "hw", (8, 8), 4),
        LatentPart("plane_yt", "th", (4, 8), 4),
        LatentPart("plane_xt", "tw", (4, 8), 4),
    ),
    causal=False,
    streamable=False,
)
QUERIES = LatentSpec((LatentPart("query", "", (), 5, (8, 16), count=7),), causal=False, streamable=False)  # LARP
SPECS = {
    "causal": CAUSAL,
    "continuous": CONTINUOUS,
    "structure+dynamics": STRUCTURE_AND_DYNAMICS,
    "planes": PLANES,
    "queries": QUERIES,
}
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def made(spec: LatentSpec, size: tuple[int, int, int] = (9, 20, 17), *, batch: int = 2, start: int = 0) -> Latents:
    """Random latents of `spec`."""
    generator = torch.Generator().manual_seed(0)
    count = spec.num_tokens(size, start=start)
    tokens = torch.randn(batch, count, spec.channels, generator=generator)
    books = [torch.randint(codes, (batch, count), generator=generator) for codes in spec.parts[0].codebooks]
    return Latents(tokens, torch.stack(books, dim=-1) if books else None, size, spec, start=start)


def assert_same(one: Latents, other: Latents):
    assert torch.equal(one.tokens, other.tokens)
    assert (one.ids is None) == (other.ids is None)
    if one.ids is not None and other.ids is not None:
        assert torch.equal(one.ids, other.ids)
    assert (one.size, one.spec, one.start) == (other.size, other.spec, other.start)


# what a spec says


@pytest.mark.parametrize(
    ("frames", "rows"), [(1, 1), (2, 2), (4, 2), (5, 2), (6, 3), (9, 3), (10, 4), (17, 5), (20, 6)]
)
def test_a_lone_first_frame_has_a_row_of_its_own_and_the_rest_round_up(frames: int, rows: int):
    assert CAUSAL.grid((frames, 64, 64)) == (rows, 8, 8)


def test_sizes_that_do_not_divide_round_up():
    assert CAUSAL.grid((5, 65, 1)) == (2, 9, 1)
    assert CONTINUOUS.grid((3, 8, 9)) == (2, 1, 2)


def test_each_part_has_the_axes_that_it_says():
    size = (8, 32, 48)
    assert [STRUCTURE_AND_DYNAMICS.grid(size, part) for part in (0, 1)] == [(2, 3), (4,)]
    assert STRUCTURE_AND_DYNAMICS.num_tokens(size) == 2 * 3 + 4 * 3
    assert [PLANES.grid(size, part) for part in range(3)] == [(4, 6), (2, 4), (2, 6)]
    assert (QUERIES.grid(size), QUERIES.num_tokens(size)) == ((), 7)
    assert (STRUCTURE_AND_DYNAMICS.channels, QUERIES.num_codebooks, PLANES.unit) == (6, 2, (4, 8, 8))
    assert [spec.is_grid for spec in SPECS.values()] == [True, True, False, False, False]


@every_spec
def test_slices_cover_all_tokens_in_order(spec: LatentSpec):
    size = (9, 20, 17)
    covered = [index for part in spec.slices(size) for index in range(part.start, part.stop)]
    assert covered == list(range(spec.num_tokens(size)))


@every_spec
def test_every_token_has_its_own_coordinates_and_its_part_lies_where_the_slice_says(spec: LatentSpec):
    size = (9, 20, 17)
    coordinates = spec.coordinates(size)
    assert coordinates.shape == (spec.num_tokens(size), 5)
    assert len({tuple(row) for row in coordinates.tolist()}) == len(coordinates)
    for number, (part, tokens) in enumerate(zip(spec.parts, spec.slices(size), strict=True)):
        block = coordinates[tokens]
        assert (block[:, 0] == number).all()
        assert block[:, 1].tolist() == list(range(part.num_tokens(size)))
        for axis, column in zip("thw", block[:, 2:].T, strict=True):
            if axis not in part.axes:
                assert (column == NO_PLACE).all()
            else:
                assert column.min() == 0
                assert (column % part.stride[part.axes.index(axis)] == 0).all()


def test_coordinates_of_a_stream_continue_those_of_one_shot():
    whole = CAUSAL.coordinates((17, 16, 16))
    parts = [CAUSAL.coordinates((9, 16, 16)), CAUSAL.coordinates((8, 16, 16), start=9)]
    assert torch.equal(torch.cat(parts)[:, 2:], whole[:, 2:])


def test_bits_add_up_over_tokens_and_codebooks():
    assert CAUSAL.bits((9, 16, 16)) == 3 * 2 * 2 * 6
    assert QUERIES.bits((9, 16, 16)) == 7 * (3 + 4)
    assert CONTINUOUS.bits((9, 16, 16)) is None
    assert LatentSpec((LatentPart("q", "", (), 1, (1000,)),), False, False).bits((1, 1, 1)) == math.log2(1000)


@every_spec
def test_a_spec_comes_back_from_json_equal(spec: LatentSpec):
    assert LatentSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"axes": "ht", "stride": (1, 1)}, "subsequence"),
        ({"axes": "thw", "stride": (4, 8)}, "3 strides"),
        ({"axes": "hw", "stride": (8, 8), "first_frame_alone": True}, "no time axis"),
        ({"axes": "hw", "stride": (8, 0)}, "at least 1"),
        ({"axes": "", "stride": (), "channels": 0}, "at least 1"),
        ({"axes": "", "stride": (), "codebooks": (1,)}, "at least 2"),
    ],
)
def test_a_part_that_contradicts_itself_is_refused(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        LatentPart(**{"name": "part", "channels": 4, **fields})


def test_discrete_and_continuous_parts_do_not_mix():
    with pytest.raises(ValueError, match="all parts or none"):
        LatentSpec((CAUSAL.parts[0], CONTINUOUS.parts[0]), causal=False, streamable=False)
    with pytest.raises(ValueError, match="same number of codebooks"):
        LatentSpec((CAUSAL.parts[0], QUERIES.parts[0]), causal=False, streamable=False)
    with pytest.raises(ValueError, match="at least one part"):
        LatentSpec((), causal=False, streamable=False)


# latents


@pytest.mark.parametrize("rows", [1, 2, 3, 10])
@pytest.mark.parametrize("spec", [CAUSAL, CONTINUOUS], ids=["causal", "continuous"])
@pytest.mark.parametrize("frames", [1, 2, 9, 11])
def test_joining_what_was_split_gives_the_same_latents(spec: LatentSpec, rows: int, frames: int):
    latents = made(spec, (frames, 20, 17))
    chunks = latents.split(rows)
    assert sum(chunk.size[0] for chunk in chunks) == frames
    assert_same(Latents.join(chunks), latents)
    continued = made(spec, (frames, 20, 17), start=9 if spec is CAUSAL else 8)
    assert_same(Latents.join(continued.split(rows)), continued)


def test_chunks_join_only_in_their_order_and_size():
    first, second, third = made(CAUSAL, (13, 16, 16)).split(2)[:1] + made(CAUSAL, (13, 16, 16)).split(1)[2:]
    assert_same(Latents.join([first, second, third]), made(CAUSAL, (13, 16, 16)))
    with pytest.raises(ValueError, match="begins at frame 5, got one that begins at frame 9"):
        Latents.join([first, third])
    with pytest.raises(ValueError, match="same spec, height, width"):
        Latents.join([first, made(CAUSAL, (4, 16, 24), start=5)])
    with pytest.raises(ValueError, match="at least one chunk"):
        Latents.join([])
    with pytest.raises(ValueError, match="leading time axis"):
        Latents.join([made(PLANES)])
    with pytest.raises(ValueError, match="leading time axis"):
        made(QUERIES).split(1)


@every_spec
def test_collated_samples_come_apart_again(spec: LatentSpec):
    batch = made(spec, batch=3)
    samples = [batch[index : index + 1] for index in range(3)]
    assert len(samples[0]) == 1
    assert_same(Latents.collate(samples), batch)


def test_only_equal_sizes_collate():
    with pytest.raises(ValueError, match="group the clips by size"):
        Latents.collate([made(CAUSAL, (5, 16, 16)), made(CAUSAL, (9, 16, 16))])
    with pytest.raises(ValueError, match="all have a length or none has"):
        whole = made(CAUSAL, (5, 16, 16))
        Latents.collate([whole, replace(whole, length=torch.ones(len(whole), dtype=torch.long))])
    with pytest.raises(ValueError, match="at least one sample"):
        Latents.collate([])


def test_the_grid_is_a_view_with_time_first_and_width_last():
    latents = made(CAUSAL, (9, 20, 17))
    grid = latents.grid()
    assert grid.shape == (2, 3, 3, 3, 3)
    t, h, w = 2, 1, 0
    assert torch.equal(grid[:, :, t, h, w], latents.tokens[:, (t * 3 + h) * 3 + w])
    assert grid.data_ptr() == latents.tokens.data_ptr()
    for spec in (STRUCTURE_AND_DYNAMICS, QUERIES):
        with pytest.raises(ValueError, match="only a 'thw' part"):
            made(spec).grid()


def test_a_dtype_reaches_the_tokens_and_leaves_the_ids():
    moved = made(CAUSAL).to(torch.bfloat16)
    assert moved.tokens.dtype == torch.bfloat16
    assert moved.ids is not None
    assert moved.ids.dtype == torch.long


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.zeros(2, 26, 3)}, r"shape \(batch, 27, 3\)"),
        ({"tokens": torch.zeros(2, 27, 4)}, r"shape \(batch, 27, 3\)"),
        ({"tokens": torch.zeros(27, 3)}, r"shape \(batch, 27, 3\)"),
        ({"ids": None}, "exactly when"),
        ({"ids": torch.zeros(2, 27, 2, dtype=torch.long)}, "ids must have the shape"),
        ({"size": (0, 20, 17)}, "at least 1"),
        ({"length": torch.zeros(3, dtype=torch.long)}, "one entry a sample"),
        ({"start": -1}, "start at least 0"),
    ],
)
def test_latents_that_do_not_fit_their_spec_are_refused(change: dict, message: str):
    latents = made(CAUSAL)
    fields = {"tokens": latents.tokens, "ids": latents.ids, "size": latents.size, "spec": latents.spec}
    with pytest.raises(ValueError, match=message):
        Latents(**{**fields, **change})


# files


@every_spec
def test_latents_come_back_from_a_file_with_their_metadata(spec: LatentSpec, tmp_path):
    latents = made(spec)
    latents.length = torch.tensor([3, 5])
    latents.metadata = {"prompt": "a small red circle"}
    latents.save(tmp_path / "clip.safetensors")
    loaded = Latents.load(tmp_path / "clip.safetensors")
    assert_same(loaded, latents)
    assert loaded.length is not None
    assert torch.equal(loaded.length, latents.length)
    assert loaded.metadata == latents.metadata
    assert [path.name for path in tmp_path.iterdir()] == ["clip.safetensors"]


def test_a_chunk_keeps_its_place_in_the_stream_through_a_file(tmp_path):
    chunk = made(CAUSAL, (13, 16, 16)).split(2)[1].to(torch.bfloat16)
    chunk.save(tmp_path / "chunk.safetensors")
    assert_same(Latents.load(tmp_path / "chunk.safetensors"), chunk)


def test_a_file_cut_anywhere_is_refused_with_its_name(tmp_path):
    whole = tmp_path / "whole.safetensors"
    made(CAUSAL).save(whole)
    content = whole.read_bytes()
    for length in (0, 4, 8, 40, len(content) // 2, len(content) - 1):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.safetensors is damaged or no safetensors file"):
            Latents.load(cut)


def header_of(latents: Latents) -> dict[str, str]:
    return {"size": json.dumps(latents.size), "start": "0", "spec": json.dumps(latents.spec.to_json())}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"spec": "{"}, "fits together"),
        ({"spec": "[]"}, "fits together"),
        ({"spec": json.dumps(PLANES.to_json())}, "have the shape"),
        (
            {"spec": json.dumps({**CAUSAL.to_json(), "parts": [{"name": "grid", "stride": [], "codebooks": []}]})},
            "fits",
        ),
        ({"size": "[9, 20]"}, "fits together"),
        ({"size": '"nine"'}, "fits together"),
        ({"size": "[Infinity, 8, 8]"}, "fits together"),
        ({"size": "[9, 20, 1000]"}, "have the shape"),
        ({"size": "[-9, 20, 17]"}, "at least 1"),
        ({"start": "soon"}, "fits together"),
    ],
)
def test_a_header_that_does_not_fit_the_tensors_is_refused(header: dict[str, str], message: str, tmp_path):
    latents = made(CAUSAL)
    assert latents.ids is not None
    complete = {**header_of(latents), **header}
    save_file({"tokens": latents.tokens, "ids": latents.ids}, tmp_path / "other.safetensors", metadata=complete)
    with pytest.raises(ValueError, match=message) as caught:
        Latents.load(tmp_path / "other.safetensors")
    assert "other.safetensors" in str(caught.value)


@pytest.mark.parametrize("header", [None, {"size": "[9, 20, 17]"}])
def test_a_safetensors_file_of_something_else_is_refused(header: dict[str, str] | None, tmp_path):
    save_file({"tokens": made(CAUSAL).tokens}, tmp_path / "weights.safetensors", metadata=header)
    with pytest.raises(ValueError, match=r"weights\.safetensors is not a latents file: expected the tensors"):
        Latents.load(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("ids", [64, -1])
def test_ids_outside_the_codebook_are_refused_on_load(ids: int, tmp_path):
    latents = made(CAUSAL)
    assert latents.ids is not None
    latents.ids[1, 5] = ids
    with pytest.raises(ValueError, match=f"1 ids outside them, such as {ids}"):
        latents.save(tmp_path / "clip.safetensors")
    tensors = {"tokens": latents.tokens, "ids": latents.ids}
    save_file(tensors, tmp_path / "clip.safetensors", metadata=header_of(latents))
    with pytest.raises(ValueError, match=f"1 ids outside them, such as {ids}"):
        Latents.load(tmp_path / "clip.safetensors")


@pytest.mark.parametrize("codes", [256, 257, 32_768, 32_769, 2**31])
def test_ids_take_as_few_bytes_as_their_codebook_allows(codes: int, tmp_path):
    part = LatentPart("grid", "thw", (4, 8, 8), 3, (codes,))
    spec = LatentSpec(parts=(part,), causal=False, streamable=False)
    ids = torch.arange(codes - 8, codes).view(1, 8, 1)
    Latents(torch.zeros(1, 8, 3), ids, (4, 16, 32), spec).save(tmp_path / "clip.safetensors")
    stored = load_file(tmp_path / "clip.safetensors")["ids"].dtype
    smaller = [kind for kind in ID_TYPES[: ID_TYPES.index(stored)] if torch.iinfo(kind).max >= codes - 1]
    assert torch.iinfo(stored).max >= codes - 1 and smaller == []
    loaded = Latents.load(tmp_path / "clip.safetensors").ids
    assert loaded is not None and loaded.dtype == torch.long and torch.equal(loaded, ids)


def test_a_file_of_ids_only_is_small_and_needs_the_tokenizer_that_made_it(tmp_path):
    torch.manual_seed(0)
    tokenizer: Any = vidgen.build("shapes-fsq").eval()
    latents = tokenizer.encode(torch.rand(1, 3, 9, 33, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    latents.save(tmp_path / "whole.safetensors")
    latents.save(tmp_path / "ids.safetensors", ids_only=True)
    whole, small = (load_file(tmp_path / name) for name in ("whole.safetensors", "ids.safetensors"))
    assert small.keys() == {"ids"} and small["ids"].nbytes * 4 < sum(tensor.nbytes for tensor in whole.values())
    assert_same(Latents.load(tmp_path / "ids.safetensors", tokenizer), latents)
    with pytest.raises(ValueError, match=r"holds ids only, .*Latents\.load\(path, tokenizer\)"):
        Latents.load(tmp_path / "ids.safetensors")
    other: Any = vidgen.build("shapes-vq")
    with pytest.raises(ValueError, match="holds ids of another kind of tokenizer"):
        Latents.load(tmp_path / "ids.safetensors", other)
    chunk = latents.split(2)[1]
    with pytest.raises(ValueError, match="a chunk of a stream is saved with its vectors"):
        chunk.save(tmp_path / "chunk.safetensors", ids_only=True)


@pytest.mark.parametrize(
    ("size", "channels"), [([10**9, 10**6, 10**6], 5), ([9, 20, 1000], 5), ([9, 20, 17], 10**12), ([9, 20, 17], 2**62)]
)
def test_a_header_cannot_ask_for_memory_that_the_file_does_not_fill(size: list[int], channels: int, tmp_path):
    torch.manual_seed(0)
    tokenizer: Any = vidgen.build("shapes-fsq")
    latents = made(CAUSAL)
    assert latents.ids is not None
    (part,) = CAUSAL.to_json()["parts"]
    spec = {**CAUSAL.to_json(), "parts": [{**part, "channels": channels}]}
    header = {"size": json.dumps(size), "start": "0", "spec": json.dumps(spec)}
    save_file({"ids": latents.ids}, tmp_path / "clip.safetensors", metadata=header)
    with pytest.raises(ValueError, match=r"fits together|another kind of tokenizer"):
        Latents.load(tmp_path / "clip.safetensors", tokenizer)


def test_real_tokens_are_never_left_out(tmp_path):
    latents = made(CONTINUOUS)
    latents.save(tmp_path / "clip.safetensors", ids_only=True)
    assert_same(Latents.load(tmp_path / "clip.safetensors"), latents)


def test_vectors_that_are_no_numbers_are_refused(tmp_path):
    latents = made(CAUSAL)
    latents.tokens[0, 3, 1] = float("nan")
    latents.save(tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match="1 numbers of its vectors are NaN or infinite"):
        Latents.load(tmp_path / "clip.safetensors")


def test_whoever_may_read_a_new_file_may_read_a_file_of_tokens(tmp_path):
    (tmp_path / "new").touch()
    made(CAUSAL).save(tmp_path / "clip.safetensors")
    assert (tmp_path / "clip.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_a_file_without_tokens_or_with_float_ids_is_refused(tmp_path):
    latents = made(CAUSAL)
    assert latents.ids is not None
    save_file({"length": torch.ones(2)}, tmp_path / "clip.safetensors", metadata=header_of(latents))
    with pytest.raises(ValueError, match="expected the tensors 'tokens' or 'ids'"):
        Latents.load(tmp_path / "clip.safetensors")
    tensors = {"tokens": latents.tokens, "ids": latents.ids.float()}
    save_file(tensors, tmp_path / "clip.safetensors", metadata=header_of(latents))
    with pytest.raises(ValueError, match="ids must be of type"):
        Latents.load(tmp_path / "clip.safetensors")


def test_a_missing_file_is_reported_as_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Latents.load(tmp_path / "nothing.safetensors")
