"""Is codebook usage exact for codebooks of any size, in any order, in any number of parts, over any processes?"""

import pytest
import torch
from torch import Tensor

from vidgen.eval.codebook import CodebookUsage
from vidgen.latents import LatentPart, Latents, LatentSpec

SIZE = (4, 8, 8)


def spec(*codebooks: int) -> LatentSpec:
    return LatentSpec((LatentPart("grid", "thw", (2, 4, 4), 2, codebooks),), causal=False, streamable=False)


def latents(of: LatentSpec, ids: Tensor) -> Latents:
    return Latents(torch.zeros(*ids.shape[:2], of.channels), ids, SIZE, of)


def drawn(*codebooks: int, seed: int = 0, batch: int = 3) -> Tensor:
    uniform = torch.rand(batch, 8, len(codebooks), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (uniform**4 * torch.tensor(codebooks)).long()


@pytest.mark.parametrize("codebooks", [(7,), (2**18,), (2**36, 2**36), (8192, 8192, 5)])
def test_counts_are_those_of_a_dictionary_for_codebooks_of_any_size(codebooks: tuple[int, ...]):
    of = spec(*codebooks)
    usage = CodebookUsage(of)
    expected: list[dict[int, int]] = [{} for _ in codebooks]
    for seed in range(4):
        ids = drawn(*codebooks, seed=seed)
        usage.update(latents(of, ids))
        for number, counts in enumerate(expected):
            for value in ids[..., number].flatten().tolist():
                counts[value] = counts.get(value, 0) + 1
    for number, counts in enumerate(expected):
        found = usage.counts[f"grid.{number}"]
        assert dict(zip(found.ids.tolist(), found.counts.tolist())) == counts
        assert usage.compute()[f"codebook.grid.{number}.usage"] == len(counts) / codebooks[number]


def test_merging_in_any_order_and_through_saved_states_is_bit_equal_to_one_pass():
    of = spec(2**18, 64)
    parts = [drawn(2**18, 64, seed=seed) for seed in range(5)]
    single = CodebookUsage(of)
    for ids in parts:
        single.update(latents(of, ids))
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        merged = CodebookUsage(of)
        for number in order:
            one = CodebookUsage(of)
            one.update(latents(of, parts[number]))
            again = one.empty()
            again.load_state_dict(one.state_dict())
            merged.merge(again)
        assert merged.compute() == single.compute()


def test_bits_per_token_add_up_over_the_codebooks_of_a_token():
    of = spec(4, 2)
    ids = torch.stack([torch.arange(8) % 4, torch.arange(8) % 2], dim=-1).unsqueeze(0)
    usage = CodebookUsage(of)
    usage.update(latents(of, ids))
    assert usage.compute()["codebook.bits_per_token"] == pytest.approx(2 + 1)


def test_bits_per_token_weigh_parts_by_their_tokens():
    of = LatentSpec(
        (LatentPart("structure", "hw", (4, 4), 2, (4,)), LatentPart("motion", "t", (1,), 2, (8,))),
        causal=False,
        streamable=False,
    )
    ids = torch.tensor([0, 1, 2, 3, 5, 5, 5, 5]).view(1, 8, 1)  # four tokens of 2 bits, four of none
    usage = CodebookUsage(of)
    usage.update(latents(of, ids))
    assert usage.compute()["codebook.bits_per_token"] == pytest.approx(1)


def test_codes_that_are_all_alike_have_no_entropy():
    of = spec(2**18)
    usage = CodebookUsage(of)
    usage.update(latents(of, torch.full((2, 8, 1), 12345)))
    scores = usage.compute()
    assert scores["codebook.grid.0.entropy_bits"] == scores["codebook.bits_per_token"] == 0
    assert scores["codebook.grid.0.perplexity"] == 1
