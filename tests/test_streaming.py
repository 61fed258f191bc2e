"""Is a stream exactly one shot, does the past never see the future, and does memory stay flat?"""

import gc
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from small_autoencoders import small_autoencoder
from small_bottlenecks import OPTIONS
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vidgen.bottlenecks import BOTTLENECKS
from vidgen.latents import Latents
from vidgen.nn.causal_conv import CausalConv3d, Downsample, StreamCache, Upsample
from vidgen.tokenizers import CausalConvTokenizer, DiffusersAutoencoderTokenizer, Tokenizer
from vidgen.tokenizers.causal_conv import halvings
from vidgen.tokenizers.presets import TOKENIZER_PRESETS

BLOCK = 8

each_bottleneck = pytest.mark.parametrize("bottleneck", BOTTLENECKS)


def small(bottleneck: str = "kl", **changes) -> CausalConvTokenizer:
    torch.manual_seed(0)
    config = {"stride": (4, 8, 8), "patch": 4, "widths": (8, 8, 8), "depth": 1, "decoder_depth": 1}
    config |= {"bottleneck_type": bottleneck, "bottleneck_options": OPTIONS[bottleneck], "block_frames": BLOCK}
    tokenizer = CausalConvTokenizer(**{**config, **changes}).eval()
    with torch.no_grad():
        tokenizer.encoder.conv_out.conv.weight.mul_(3.0)
    return tokenizer


def tiny(preset: str) -> Tokenizer:
    torch.manual_seed(0)
    return TOKENIZER_PRESETS[preset].tiny().build().eval()


def streaming(name: str) -> Tokenizer:
    """A tiny preset, or a small autoencoder of diffusers."""
    kind, _, model = name.rpartition(":")
    return DiffusersAutoencoderTokenizer.around(small_autoencoder(model)) if kind else tiny(model)


STREAMING = [name for name in TOKENIZER_PRESETS if tiny(name).spec.streamable]
WHOLE_CLIP = [name for name in TOKENIZER_PRESETS if name not in STREAMING]


def clip(frames: int, height: int = 16, width: int = 16, *, batch: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1


def in_chunks(video: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    """Chunks of those lengths, over and over."""
    start, turn = 0, 0
    while start < video.shape[2]:
        size = sizes[turn % len(sizes)]
        yield video[:, :, start : start + size]
        start, turn = start + size, turn + 1


def assert_same(one: Latents, other: Latents):
    assert torch.equal(one.tokens, other.tokens)
    assert (one.ids is None) == (other.ids is None)
    if one.ids is not None and other.ids is not None:
        assert torch.equal(one.ids, other.ids)
    assert (one.size, one.spec, one.start) == (other.size, other.spec, other.start)


# a stream is one shot


@each_bottleneck
@pytest.mark.parametrize("sizes", [[1], [2, 3], [7], [8], [9], [16, 1], [100]], ids=str)
@pytest.mark.parametrize("frames", [1, 9, 10, 30])
def test_encoding_chunks_of_any_size_equals_one_shot_bit_by_bit(bottleneck: str, sizes: list[int], frames: int):
    tokenizer = small(bottleneck)
    video = clip(frames, 12, 20)
    chunks = list(tokenizer.encode_stream(in_chunks(video, sizes)))
    assert_same(Latents.join(chunks), tokenizer.encode(video))


@each_bottleneck
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("frames", [1, 9, 10, 30])
def test_decoding_chunks_of_any_size_equals_one_shot_bit_by_bit(bottleneck: str, rows: int, frames: int):
    tokenizer = small(bottleneck)
    latents = tokenizer.encode(clip(frames, 12, 20))
    streamed = torch.cat(list(tokenizer.decode_stream(latents.split(rows))), dim=2)
    assert torch.equal(streamed, tokenizer.decode(latents))


@each_bottleneck
def test_a_stream_of_a_batch_equals_one_shot(bottleneck: str):
    tokenizer = small(bottleneck)
    video = clip(22, batch=2)
    latents = tokenizer.encode(video)
    encoded = tokenizer.encode_stream(in_chunks(video, [5]))
    assert torch.equal(torch.cat(list(tokenizer.decode_stream(encoded)), dim=2), tokenizer.decode(latents))


@pytest.mark.parametrize("preset", STREAMING)
def test_streams_equal_one_shot_for_every_preset_that_streams(preset: str):
    tokenizer = tiny(preset)
    video = clip(45, 12, 20)
    latents = tokenizer.encode(video)
    for sizes in ([1], [3], [8], [17], [16, 1]):
        assert_same(Latents.join(list(tokenizer.encode_stream(in_chunks(video, sizes)))), latents)
    decoded = tokenizer.decode(latents)
    for rows in (1, 2, 5):
        assert torch.equal(torch.cat(list(tokenizer.decode_stream(latents.split(rows))), dim=2), decoded)


@pytest.mark.parametrize("preset", STREAMING)
def test_streams_of_batches_equal_one_shot_in_bf16_and_with_frozen_weights(preset: str):
    """Products of strided views may round in another way than products of contiguous ones."""
    tokenizer = tiny(preset).requires_grad_(False)
    video = clip(29, 12, 20, batch=2)
    for dtype in (torch.float32, torch.bfloat16):
        tokenizer = tokenizer.to(dtype)
        latents = tokenizer.encode(video.to(dtype))
        assert_same(Latents.join(list(tokenizer.encode_stream(in_chunks(video.to(dtype), [3])))), latents)
        decoded = tokenizer.decode(latents)
        for rows in (1, 3):
            assert torch.equal(torch.cat(list(tokenizer.decode_stream(latents.split(rows))), dim=2), decoded)


@pytest.mark.parametrize("preset", STREAMING)
@pytest.mark.parametrize("other", [{"batch": 2}, {"height": 32}])
def test_latents_of_another_batch_or_size_do_not_continue_a_stream(preset: str, other: dict):
    tokenizer = tiny(preset)
    first, second = tokenizer.encode(clip(19)).split(1)[0], tokenizer.encode(clip(19, **other)).split(1)[1]
    with pytest.raises(ValueError, match=r"differ in \(batch, height, width\): first \(1, 16, 16\), then"):
        list(tokenizer.decode_stream([first, second]))


@pytest.mark.parametrize("preset", WHOLE_CLIP)
def test_presets_that_see_the_whole_clip_say_so_and_refuse_to_stream(preset: str):
    tokenizer = tiny(preset)
    assert not tokenizer.spec.causal
    with pytest.raises(ValueError, match="sees the whole clip at once"):
        tokenizer.encode_stream([clip(5)])
    with pytest.raises(ValueError, match="sees the whole clip at once"):
        tokenizer.decode_stream([tokenizer.encode(clip(5))])


@pytest.mark.parametrize("preset", STREAMING)
def test_every_preset_that_streams_refuses_chunks_out_of_order(preset: str):
    tokenizer = tiny(preset)
    first, second, third = tokenizer.encode(clip(19)).split(1)[:3]
    with pytest.raises(ValueError, match="expected latents that begin at frame"):
        list(tokenizer.decode_stream([first, third]))
    with pytest.raises(ValueError, match="expected latents that begin at frame 0"):
        list(tokenizer.decode_stream([second]))


@pytest.mark.parametrize("stride", [(8, 16, 16), (1, 8, 8), (2, 8, 8)])
def test_streams_equal_one_shot_for_every_stride(stride: tuple[int, int, int]):
    tokenizer = small(stride=stride, widths=(4,) * (1 + len(halvings(stride, 4))))
    video = clip(27)
    latents = tokenizer.encode(video)
    assert_same(Latents.join(list(tokenizer.encode_stream(in_chunks(video, [3])))), latents)
    streamed = torch.cat(list(tokenizer.decode_stream(latents.split(1))), dim=2)
    assert torch.equal(streamed, tokenizer.decode(latents))


def test_a_stream_yields_a_block_as_soon_as_the_next_one_begins():
    tokenizer, given = small(), 0

    def frames() -> Iterator[Tensor]:
        nonlocal given
        for frame in clip(40).split(1, dim=2):
            given += 1
            yield frame

    delays = []
    for chunk in tokenizer.encode_stream(frames()):
        delays.append(given - chunk.start - chunk.size[0])
    assert max(delays) == 1


def test_two_streams_through_one_tokenizer_do_not_mix():
    tokenizer = small()
    videos = [clip(30, seed=seed) for seed in (0, 1)]
    streams = [tokenizer.encode_stream(in_chunks(video, [4])) for video in videos]
    pairs = list(zip(*streams, strict=True))
    for number, video in enumerate(videos):
        assert_same(Latents.join([pair[number] for pair in pairs]), tokenizer.encode(video))


def test_an_empty_stream_gives_nothing():
    tokenizer = small()
    assert list(tokenizer.encode_stream([])) == []
    assert list(tokenizer.decode_stream([])) == []


def test_a_stream_out_of_order_or_of_changing_size_is_refused():
    tokenizer = small()
    first, second, third = tokenizer.encode(clip(25)).split(3)
    with pytest.raises(ValueError, match="begin at frame 9, got ones that begin at frame 21"):
        list(tokenizer.decode_stream([first, third]))
    with pytest.raises(ValueError, match="begin at frame 0, got ones that begin at frame 9"):
        tokenizer.decode(second)
    with pytest.raises(ValueError, match=r"first \(1, 16, 16\), then \(1, 16, 24\)"):
        list(tokenizer.decode_stream([first, tokenizer.encode(clip(25, 16, 24)).split(3)[1]]))
    with pytest.raises(ValueError, match="inside a row of tokens"):
        cut = tokenizer.encode(clip(7))
        late = Latents(second.tokens, None, (12, 16, 16), second.spec, start=7)
        list(tokenizer.decode_stream([cut, late]))
    with pytest.raises(ValueError, match="chunks of one stream differ"):
        list(tokenizer.encode_stream([clip(5), clip(5, 16, 24)]))


# the past never sees the future


@pytest.mark.parametrize("changed", [1, 2, 5, 9, 10, 20])
def test_changing_later_frames_never_changes_earlier_latents(changed: int):
    """Exactly 0.0, and the change does arrive where it may."""
    tokenizer = small()
    video, other = clip(25), clip(25)
    other[:, :, changed:] = clip(25, seed=1)[:, :, changed:]
    one, two = tokenizer.encode(video).grid(), tokenizer.encode(other).grid()
    untouched = 1 + (changed - 1) // 4
    assert torch.equal(one[:, :, :untouched], two[:, :, :untouched])
    assert not torch.equal(one[:, :, untouched], two[:, :, untouched])


@pytest.mark.parametrize("changed", [1, 2, 3, 5])
def test_changing_later_latents_never_changes_earlier_frames(changed: int):
    tokenizer = small()
    latents, other = tokenizer.encode(clip(25)), tokenizer.encode(clip(25))
    other.tokens[:, changed * 4 :] += 1.0
    one, two = tokenizer.decode(latents), tokenizer.decode(other)
    untouched = 1 + (changed - 1) * 4
    assert torch.equal(one[:, :, :untouched], two[:, :, :untouched])
    assert not torch.equal(one[:, :, untouched:], two[:, :, untouched:])


@pytest.mark.parametrize("frames", [13, 17, 21])
def test_cutting_the_clip_changes_only_the_cut_block_and_that_by_at_most_1e_minus_5(frames: int):
    tokenizer = small()
    whole, cut = tokenizer.encode(clip(40)), tokenizer.encode(clip(40)[:, :, :frames])
    count = cut.tokens.shape[1]
    complete = (1 + (frames - 1) // BLOCK * BLOCK // 4) * 4  # tokens of the blocks that are the same in both
    assert torch.equal(whole.tokens[:, :complete], cut.tokens[:, :complete])
    assert torch.allclose(whole.tokens[:, :count], cut.tokens, atol=1e-5, rtol=0)
    one, two = tokenizer.decode(whole), tokenizer.decode(cut)
    same = 1 + (frames - 1) // BLOCK * BLOCK
    assert torch.equal(one[:, :, :same], two[:, :, :same])
    assert torch.allclose(one[:, :, :frames], two, atol=1e-5, rtol=0)


# layers


def run_in_blocks(layer: Callable[[Tensor, StreamCache], Tensor], x: Tensor, sizes: list[int]) -> Tensor:
    cache, parts = StreamCache(), x.split(sizes, dim=2)
    outputs = []
    for number, part in enumerate(parts):
        cache.begin_block(final=number == len(parts) - 1)
        outputs.append(layer(part, cache))
    assert cache.num_bytes() == 0  # the last block leaves nothing behind
    return torch.cat(outputs, dim=2)


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [
        (CausalConv3d(3, 5, kernel=(3, 3, 3)), [1, 1, 4, 3]),
        (CausalConv3d(3, 5, kernel=(5, 1, 1)), [1, 1, 4, 3]),
        (CausalConv3d(3, 5, kernel=(1, 3, 3)), [1, 1, 4, 3]),
        (Downsample(3, 5, factor=(2, 2, 2)), [1, 2, 4, 2]),
        (Downsample(3, 5, factor=(1, 2, 2)), [1, 1, 4, 3]),
        (Downsample(3, 5, factor=(2, 1, 1)), [3, 2, 4]),
        (Upsample(3, 5, factor=(2, 2, 2)), [1, 1, 4, 3]),
        (Upsample(3, 5, factor=(1, 2, 2)), [1, 1, 4, 3]),
    ],
    ids=["conv 333", "conv 511", "conv 133", "down 222", "down 122", "down 211", "up 222", "up 122"],
)
@torch.no_grad()
def test_a_layer_in_blocks_equals_the_layer_on_the_whole_clip(layer, sizes: list[int]):
    x = torch.randn(2, 3, 9, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(run_in_blocks(layer, x, sizes), layer(x), atol=1e-5)


@torch.no_grad()
def test_strided_layers_keep_a_lone_first_frame():
    down, up = Downsample(3, 3, factor=(2, 2, 2)), Upsample(3, 3, factor=(2, 2, 2))
    for rows in range(5):
        x = torch.randn(1, 3, 1 + 2 * rows, 4, 4)
        assert down(x).shape == (1, 3, 1 + rows, 2, 2)
        assert up(down(x)).shape == x.shape


def test_a_cache_holds_a_fixed_number_of_bytes():
    tokenizer = small()
    cache, sizes = StreamCache(), []
    with torch.no_grad():
        for number in range(4):
            cache.begin_block(final=number == 3)
            tokenizer.encoder(clip(1 + BLOCK if number == 0 else BLOCK), cache)
            sizes.append(cache.num_bytes())
    assert sizes[0] == sizes[1] == sizes[2] > 0
    assert sizes[3] == 0


# cost


# One preset of every kind that streams, and three bottlenecks.
MEASURED = [
    *("shapes-kl", "shapes-vq", "shapes-fsq", "wf-vae", "omnitokenizer-vq", "bsq-vit", "vitok-s-l", "video-lavit"),
    *("ccvit-centroids", "imagefolder", "epsilon-vae", "put-tokenizer", "diffusers:wan", "diffusers:cogvideox"),
    "diffusers:kvae",
]


def test_the_memory_of_every_class_that_streams_is_measured():
    classes = {TOKENIZER_PRESETS[name].model for name in STREAMING} | {DiffusersAutoencoderTokenizer}
    assert {type(streaming(name)) for name in MEASURED} == classes


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident set from /proc, which is Linux's")
@pytest.mark.parametrize("name", MEASURED)
def test_memory_grows_at_most_20_megabytes_from_100_to_2000_frames(name: str):
    tokenizer = streaming(name)
    side = 32 if name.startswith("diffusers:") else 64  # 2000 frames as floats take 23 and 94 megabytes
    chunk = clip(10, side, side)
    seen, at_100 = 0, 0.0
    for video in tokenizer.decode_stream(tokenizer.encode_stream(chunk for _ in range(200))):
        before, seen = seen, seen + video.shape[2]
        if before < 100 <= seen:
            gc.collect()
            at_100 = resident_megabytes()
    gc.collect()
    assert seen == 2000
    assert resident_megabytes() - at_100 <= 20


@pytest.mark.parametrize("preset", ["shapes-fsq", "base-fsq"])
def test_inference_in_blocks_computes_nothing_twice(preset: str):
    # Operations, because seconds depend on the allocator and the machine: 0.74 to 1.37 of the whole clip's were seen.
    torch.manual_seed(0)
    tokenizer = TOKENIZER_PRESETS[preset].build()
    assert isinstance(tokenizer, CausalConvTokenizer)
    tokenizer.eval()
    video = clip(33, 32, 32)

    def operations(work: Callable[[], object]) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    latents = tokenizer.encode(video)
    in_blocks = operations(lambda: tokenizer.decode(tokenizer.encode(video)))
    at_once = operations(lambda: (tokenizer.features(video, None), tokenizer.pixels(latents.grid(), None)))
    assert 0 < in_blocks == at_once
