"""Does a pyramid of scales code each scale's rest, decode from its first scales, stream, and keep sub-codes apart?"""

from typing import Any

import pytest
import torch
from torch import Tensor

from vidgen.bottlenecks import FSQ
from vidgen.latents import Latents
from vidgen.nn.random import seeded
from vidgen.tokenizers import MultiScaleTokenizer
from vidgen.tokenizers.blockwise import BlockwiseTokenizer
from vidgen.tokenizers.multi_scale import ScalePyramid, coarse, pooled

EUCLIDEAN = {"codes": 64, "channels": 4, "cosine": False}
CONV = {
    "_class_name": "CausalConvTokenizer",
    "bottleneck_type": "vq",
    "bottleneck_options": EUCLIDEAN,
    "stride": (2, 4, 4),
    "patch": 2,
    "widths": (8, 8),
    "depth": 1,
    "decoder_depth": 1,
}


def small(*, scales: tuple[int, ...] = (4, 3, 1), dropout: float = 0.0, **trunk: Any) -> Any:
    torch.manual_seed(0)
    return MultiScaleTokenizer({**CONV, **trunk}, scales=scales, dropout=dropout).eval()


def clip(frames: int, height: int = 24, width: int = 20, *, batch: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1


def train(tokenizer: MultiScaleTokenizer, video: Tensor, *, steps: int) -> None:
    optimiser = torch.optim.Adam(tokenizer.train().parameters(), lr=5e-3)
    for step in range(steps):
        losses = tokenizer.training_losses(video, generators=seeded([step * 100 + row for row in range(len(video))]))
        optimiser.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        optimiser.step()
    tokenizer.eval()


def error(tokenizer: MultiScaleTokenizer, video: Tensor, latents: Latents) -> float:
    return (tokenizer.decode(latents) - video).square().mean().item()


@pytest.mark.parametrize("size", [(1, 4, 4), (1, 24, 20), (9, 17, 30)])
def test_every_scale_has_a_grid_of_its_own(size: tuple[int, int, int]):
    tokenizer = small()
    grids = [tokenizer.spec.grid(size, part) for part in range(3)]
    rows, down, across = grids[-1]
    assert grids[:2] == [(rows, -(-down // scale), -(-across // scale)) for scale in (4, 3)]
    latents = tokenizer.encode(clip(*size))
    assert latents.tokens.shape[1] == sum(t * h * w for t, h, w in grids)
    assert tokenizer.decode(latents).shape == (1, 3, *size)
    coordinates = tokenizer.spec.coordinates(size)
    assert coordinates[:, 0].unique().tolist() == [0, 1, 2]


def test_a_mean_at_the_edge_is_of_the_places_that_are_there():
    rows = torch.arange(15.0).view(1, 1, 1, 3, 5)
    expected = [[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]
    assert torch.allclose(pooled(rows, 2).view(2, 3), torch.tensor(expected))
    assert torch.equal(pooled(rows, 1).flatten(), rows.flatten())


def test_each_scale_codes_what_the_coarser_ones_left_over():
    """With codes fine enough the last scale mends what all others missed, and more scales are never worse."""
    pyramid = ScalePyramid(FSQ(levels=[255] * 2), scales=(4, 2, 1), dropout=0.0).eval()
    features = torch.randn(2, 3 * 8 * 8, 2, generator=torch.Generator().manual_seed(0)) * 0.3
    result = pyramid(features, grid=(3, 8, 8))
    wanted = pyramid.quantizer.enter(features)
    assert (result.vectors - wanted).abs().max() < 0.02
    assert result.ids.shape == (2, 3 * (4 + 16 + 64), 1)
    codes = pyramid.lookup(result.ids)
    parts, first = [], 0
    for number, count in enumerate((3 * 4, 3 * 16, 3 * 64)):
        parts.append(pyramid.spread(number, codes[:, first : first + count], (3, 8, 8)))
        first += count
    made = torch.stack(parts).sum(dim=0).flatten(2).mT
    assert torch.allclose(made, result.vectors, atol=1e-6)


def test_what_decoding_takes_is_what_training_gave_the_decoder():
    tokenizer = small()
    train(tokenizer, clip(5, batch=2), steps=3)  # the smoothing is no identity any more
    video = clip(5)
    with torch.no_grad():
        features = tokenizer.features(tokenizer._padded(video, starts=True), None)
        result = tokenizer.bottlenecked(features, sample=False, generators=None)
    vectors = tokenizer.vectors(tokenizer.encode(video))
    assert torch.allclose(vectors.flatten(2).mT, result.vectors, atol=1e-5)


@pytest.mark.parametrize("kind", ["CausalConvTokenizer", "FrameCausalViTTokenizer"])
def test_streams_equal_one_shot(kind: str):
    transformer = {
        "_class_name": kind,
        "bottleneck_type": "residual",
        "bottleneck_options": {"inner": "fsq", "options": {"levels": [5, 5]}, "count": 2},
        "stride": (2, 4, 4),
        "width": 16,
        "heads": 2,
        "layers": 1,
        "past": 2,
    }
    torch.manual_seed(0)
    tokenizer: Any = small() if kind == CONV["_class_name"] else MultiScaleTokenizer(transformer, scales=(3, 1)).eval()
    assert isinstance(tokenizer, BlockwiseTokenizer)
    assert tokenizer.spec.causal and tokenizer.spec.streamable
    tokenizer.fit_statistics([clip(9, batch=2)])
    video = clip(25)
    latents = tokenizer.encode(video)
    decoded = tokenizer.decode(latents)
    assert torch.equal(tokenizer.reals_from_ids(latents.ids, latents.size), latents.tokens)
    for size in (1, 3, 8, 17):
        chunks = list(tokenizer.encode_stream(video.split(size, dim=2)))
        assert torch.equal(Latents.join(chunks).ids, latents.ids)
        assert torch.equal(Latents.join(chunks).tokens, latents.tokens)
        for chunk in chunks:
            assert torch.equal(tokenizer.reals_from_ids(chunk.ids, chunk.size), chunk.tokens)
        assert torch.equal(torch.cat(list(tokenizer.decode_stream(latents.split(size))), dim=2), decoded)


def test_the_first_scales_alone_decode_and_more_of_them_are_better():
    tokenizer = small(dropout=0.5)
    video = torch.nn.functional.interpolate(clip(3, 6, 6, batch=4), size=(5, 24, 24), mode="trilinear")
    train(tokenizer, video, steps=150)
    latents = tokenizer.encode(video)
    errors = [error(tokenizer, video, coarse(latents, count)) for count in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] == error(tokenizer, video, latents)
    other = latents.ids.clone()
    other[:, latents.spec.slices(latents.size)[1].start :] = 3
    changed = Latents(latents.tokens, other, latents.size, latents.spec)
    assert torch.equal(tokenizer.decode(coarse(latents, 1)), tokenizer.decode(coarse(changed, 1)))
    with pytest.raises(ValueError, match="1 to 3 scales, got 4"):
        coarse(latents, 4)


def test_dropped_scales_belong_to_their_clip():
    tokenizer = small(dropout=1.0, bottleneck_type="fsq", bottleneck_options={"levels": [8, 5]}).train()
    video = clip(5, batch=3)
    features = tokenizer.features(tokenizer._padded(video, starts=True), None).detach()
    with torch.no_grad():  # nothing is dropped outside of training
        whole = tokenizer.bottlenecked(features, sample=True, generators=seeded([0, 1, 2])).vectors
    some = tokenizer.bottlenecked(features, sample=True, generators=seeded([0, 1, 2])).vectors
    alone = tokenizer.bottlenecked(features[1:2], sample=True, generators=seeded([1])).vectors
    assert torch.allclose(some[1:2], alone, atol=1e-6)
    assert not torch.allclose(some, whole)
    with pytest.raises(ValueError, match="one per sample"):
        tokenizer.bottlenecked(features, sample=True, generators=None)


def test_sub_codes_of_a_product_stay_apart():
    """What a teacher is told by the first sub-codes does not depend on the others, at any scale."""
    options = {"inner": "vq", "options": EUCLIDEAN, "count": 2}
    tokenizer = small(bottleneck_type="product", bottleneck_options=options)
    train(tokenizer, clip(5, batch=2), steps=3)
    latents = tokenizer.encode(clip(5))
    other = latents.ids.clone()
    other[..., 1] = 7
    changed = Latents(latents.tokens, other, latents.size, latents.spec)
    one, two = tokenizer.vectors(latents), tokenizer.vectors(changed)
    assert torch.equal(one[:, :4], two[:, :4])
    assert not torch.allclose(one[:, 4:], two[:, 4:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": (4, 2)}, "end with 1"),
        ({"bottleneck_options": {"codes": 64, "channels": 4, "cosine": False, "balance": 0.1}}, "set balance to 0"),
        ({"scales": (2, 4, 1)}, "coarse to fine"),
        ({"scales": ()}, "end with 1"),
        ({"dropout": 1.5}, "between 0 and 1"),
        ({"bottleneck_type": "kl", "bottleneck_options": {"channels": 4}}, "got KL"),
        ({"bottleneck_options": {"codes": 64, "channels": 4}}, '"cosine": false'),
        ({"_class_name": "Nothing"}, "trunk_config needs a _class_name of"),
        ({"_class_name": "MultiScaleTokenizer", "trunk_config": CONV}, "has none"),
    ],
)
def test_contradictory_configurations_fail_with_the_way_out(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_a_pyramid_without_its_grid_says_so():
    with pytest.raises(ValueError, match="grid"):
        small().bottleneck(torch.zeros(1, 4, 4))
