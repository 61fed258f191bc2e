"""Is token reduction exact where it promises to be, and does it keep what differs most?"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vidgen.kernels.token_reduction import Matching, MatchingCache, match

GRID = (3, 5, 4)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prefix", [0, 3])
def test_ratio_zero_changes_nothing(prefix):
    x = drawn(2, 2, prefix + 60, 8)
    reduction = match(x, GRID, prefix=prefix).reduction(0.0)
    for reduced in (reduction.reduce(x), reduction.average(x), reduction.restore(x)):
        assert torch.equal(reduced, x)
    assert (reduction.sizes() == 1).all()


def test_the_ratio_says_how_many_tokens_go_and_prefix_and_lattice_always_stay():
    x = drawn(2, 2, 63, 8)
    reduction = match(x, GRID, prefix=3).reduction(0.5)
    assert reduction.reduce(x).shape == (2, 2, 63 - 30, 8)
    corners = 3 + torch.arange(60).view(GRID)[::2, ::2, ::2].flatten()
    for kept in reduction.kept.flatten(0, 1):
        assert set(range(3)) | set(corners.tolist()) <= set(kept.tolist())
        assert torch.equal(kept, kept.sort().values)
    assert torch.equal(reduction.sizes().sum(dim=2), torch.full((2, 2), 63))


def test_restoring_gives_kept_tokens_themselves_and_others_their_nearest_destination():
    x = drawn(1, 1, 60, 8)
    destinations = torch.arange(60).view(GRID)[::2, ::2, ::2].flatten()
    reduction = match(x, GRID).reduction(0.7)
    restored = reduction.restore(reduction.reduce(x))[0, 0]
    kept = set(reduction.kept.flatten().tolist())
    for token in range(60):
        nearest = destinations[torch.cdist(x[0, 0, token : token + 1], x[0, 0, destinations])[0].argmin()]
        expected = x[0, 0, token] if token in kept else x[0, 0, nearest]
        assert torch.equal(restored[token], expected)


def test_the_tokens_nearest_to_their_stand_in_go_first():
    x = drawn(1, 1, 60, 8)
    destinations = torch.arange(60).view(GRID)[::2, ::2, ::2].flatten()
    distance = torch.cdist(x[0, 0], x[0, 0, destinations]).min(dim=1).values
    distance[destinations] = torch.inf
    kept = match(x, GRID).reduction(0.3).kept.flatten()
    gone = [token for token in range(60) if token not in set(kept.tolist())]
    assert sorted(gone) == sorted(distance.argsort()[:18].tolist())


def test_averages_are_the_mean_of_all_that_a_token_stands_for():
    x = drawn(1, 2, 60, 8)
    reduction = match(x, GRID).reduction(0.6)
    average = reduction.average(x)
    for head in range(2):
        for place in (0, 5, 11):
            members = x[0, head, reduction.stands_in[0, head] == place]
            torch.testing.assert_close(average[0, head, place], members.mean(dim=0))


def test_attention_over_repeated_tokens_loses_nothing():
    corner = drawn(1, 2, 1, 3, 1, 2, 1, 8)
    x = corner.expand(1, 2, 2, 3, 2, 2, 2, 8).reshape(1, 2, 48, 8)  # grid 2 6 4, each 2x2x2 cell one value
    reduction = match(x, (2, 6, 4)).reduction(7 / 8)
    q, k, v = reduction.reduce(x), reduction.reduce(x), reduction.reduce(x)
    assert q.shape[2] == 6
    torch.testing.assert_close(
        reduction.restore(F.scaled_dot_product_attention(q, k, v)), F.scaled_dot_product_attention(x, x, x)
    )


def test_weighting_keys_by_size_is_as_good_as_repeating_them():
    x = drawn(1, 1, 12, 8)
    reduction = match(x, (1, 3, 4), cell=(1, 2, 2)).reduction(0.5)
    k = reduction.reduce(x)
    repeated = F.scaled_dot_product_attention(x, reduction.restore(k), reduction.restore(k))
    bias = reduction.sizes().float().log().unsqueeze(2).expand(1, 1, 12, -1)
    torch.testing.assert_close(F.scaled_dot_product_attention(x, k, k, attn_mask=bias), repeated)


def test_gradients_flow_through_reduction_and_restoration():
    x = drawn(1, 1, 60, 4).requires_grad_()
    reduction = match(x, GRID).reduction(0.5)
    (gradient,) = torch.autograd.grad(reduction.restore(reduction.reduce(x)).sum(), x)
    assert gradient.sum() == x.numel()


def test_chunks_of_sources_change_nothing(monkeypatch):
    x = drawn(2, 2, 60, 8)
    whole = match(x, GRID)
    monkeypatch.setattr("vidgen.kernels.token_reduction.SIMILARITIES", 200)
    chunked = match(x, GRID)
    assert torch.equal(whole.nearest, chunked.nearest) and torch.equal(whole.by_distance, chunked.by_distance)


def test_every_cell_has_exactly_one_destination_wherever_it_lies():
    for place in ((0, 0, 0), (1, 1, 2), (0, 1, 1)):
        matching = match(drawn(1, 1, 60, 4), GRID, cell=(2, 2, 3), place=place)
        assert matching.by_distance.shape[2] == 60 - 2 * 3 * 2


def test_the_cache_matches_anew_only_every_few_steps():
    cache, made = MatchingCache(reuse_steps=3), []

    def make() -> Matching:
        made.append(1)
        return match(drawn(1, 1, 60, 4), GRID)

    for step in range(7):
        cache.matching(("block 0", "q"), step, make)
    assert len(made) == 3  # steps 0, 3, 6
    cache.matching(("block 0", "v"), 6, make)
    cache.matching(("block 0", "q"), 0, make)  # a new sampling loop
    assert len(made) == 5


def test_impossible_requests_are_refused_with_what_would_do():
    x = drawn(1, 1, 60, 4)
    with pytest.raises(ValueError, match=r"use 0 to 0\.8"):
        match(x, GRID).reduction(0.9)
    with pytest.raises(ValueError, match="3x5x3 = 45 tokens"):
        match(x, (3, 5, 3))
    with pytest.raises(ValueError, match="outside the cell"):
        match(x, GRID, place=(0, 2, 0))
    with pytest.raises(ValueError, match="reuse_steps"):
        MatchingCache(reuse_steps=0)
