"""Does every bottleneck of the table keep its promises: ids and codes agree, gradients flow, dtypes are safe?"""

import copy
import math

import pytest
import torch
from torch import Tensor

from vidgen.bottlenecks import BOTTLENECKS, FSQ, KL, VQ, Bottleneck, build_bottleneck
from vidgen.nn.random import seeded

SMALL = {"kl": {"channels": 4}, "vq": {"codes": 32, "channels": 4}, "fsq": {"levels": (5, 4, 3)}}


def built(name: str) -> Bottleneck:
    torch.manual_seed(0)
    return build_bottleneck(name, SMALL[name])


def features(bottleneck: Bottleneck, *, batch: int = 2, count: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(batch, count, bottleneck.in_channels, generator=torch.Generator().manual_seed(seed))


def discrete() -> list[str]:
    return [name for name in BOTTLENECKS if built(name).codebooks]


each = pytest.mark.parametrize("name", BOTTLENECKS)
each_discrete = pytest.mark.parametrize("name", discrete())
each_continuous = pytest.mark.parametrize("name", [name for name in BOTTLENECKS if name not in discrete()])


def test_every_bottleneck_of_the_table_is_tested_here():
    assert SMALL.keys() == BOTTLENECKS.keys()


@each
def test_a_bottleneck_gives_what_its_attributes_say(name: str):
    bottleneck = built(name).eval()
    result = bottleneck(features(bottleneck))
    assert result.vectors.shape == (2, 40, bottleneck.channels)
    assert result.losses == {}
    if bottleneck.codebooks:
        assert result.ids is not None
        assert result.ids.shape == (2, 40, len(bottleneck.codebooks))
        assert result.ids.dtype == torch.long
        assert (result.ids >= 0).all()
        assert (result.ids < torch.tensor(bottleneck.codebooks)).all()
    else:
        assert result.ids is None


@each
def test_a_tokens_result_does_not_depend_on_its_neighbours(name: str):
    bottleneck = built(name).eval()
    x = features(bottleneck)
    alone = bottleneck(x[1:, 7:8])
    together = bottleneck(x)
    assert torch.allclose(alone.vectors, together.vectors[1:, 7:8], atol=1e-6)
    if alone.ids is not None and together.ids is not None:
        assert torch.equal(alone.ids, together.ids[1:, 7:8])


@each_discrete
def test_vectors_to_ids_to_vectors_is_the_identity(name: str):
    bottleneck = built(name).eval()
    result = bottleneck(features(bottleneck))
    assert torch.equal(bottleneck.lookup(result.ids), result.vectors)


@each_discrete
def test_every_id_is_the_nearest_one_to_its_own_vector(name: str):
    bottleneck = built(name).eval()
    ids = torch.arange(bottleneck.codebooks[0]).view(1, -1, 1)
    vectors = bottleneck.lookup(ids)
    assert torch.equal(bottleneck.nearest(vectors), ids)
    assert torch.equal(bottleneck.nearest(vectors.to(torch.bfloat16)), ids)
    assert len(vectors[0].unique(dim=0)) == ids.numel()


@each_discrete
def test_a_vector_near_a_code_is_taken_for_that_code(name: str):
    bottleneck = built(name).eval()
    ids = torch.arange(bottleneck.codebooks[0]).view(1, -1, 1)
    vectors = bottleneck.lookup(ids)
    between = torch.cdist(vectors[0], vectors[0]).fill_diagonal_(math.inf).min()
    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    noise = 0.2 * between * torch.nn.functional.normalize(noise, dim=-1)
    assert torch.equal(bottleneck.nearest(vectors + noise), ids)


@each_discrete
def test_nearest_gives_valid_ids_for_any_vector(name: str):
    bottleneck = built(name).eval()
    far = 100.0 * torch.randn(1, 50, bottleneck.channels, generator=torch.Generator().manual_seed(0))
    ids = bottleneck.nearest(far)
    assert (ids >= 0).all()
    assert (ids < torch.tensor(bottleneck.codebooks)).all()


@each_continuous
def test_a_continuous_bottleneck_refuses_ids(name: str):
    bottleneck = built(name)
    with pytest.raises(ValueError, match="continuous and has no ids"):
        bottleneck.lookup(torch.zeros(1, 1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="continuous and has no ids"):
        bottleneck.nearest(torch.zeros(1, 1, bottleneck.channels))


@each
def test_gradients_flow_from_the_vectors_to_the_features(name: str):
    bottleneck = built(name).train()
    x = features(bottleneck).requires_grad_()
    result = bottleneck(x, sample=True, generators=seeded([0, 1]))
    weight = torch.randn(result.vectors.shape, generator=torch.Generator().manual_seed(1))
    (result.vectors * weight).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (x.grad.abs().sum(dim=-1) > 0).all()


@each_discrete
def test_the_gradient_passes_straight_through_the_rounding(name: str):
    """A step along the gradient of a linear function of the vectors must not lower it: positive inner product."""
    bottleneck = built(name).train()
    x = features(bottleneck).requires_grad_()
    vectors = bottleneck(x).vectors
    weight = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((vectors * weight).sum(), x)
    assert torch.nn.functional.cosine_similarity(gradient.flatten(), weight.flatten(), dim=0) > 0.3


@each
def test_training_losses_are_finite_scalars(name: str):
    bottleneck = built(name).train()
    losses = bottleneck(features(bottleneck), sample=True, generators=seeded([0, 1])).losses
    assert all(loss.ndim == 0 and loss.isfinite() and loss >= 0 for loss in losses.values())


@each
def test_bf16_features_under_autocast_give_the_ids_of_their_exact_values(name: str):
    bottleneck = built(name).eval()
    x = features(bottleneck).to(torch.bfloat16)
    exact = bottleneck(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = bottleneck(x)
    assert torch.allclose(low.vectors.float(), exact.vectors, atol=1e-2)
    if exact.ids is not None:
        assert torch.equal(low.ids, exact.ids)


@each
def test_a_bottleneck_cast_to_bf16_still_agrees_with_itself(name: str):
    bottleneck = built(name).eval().to(torch.bfloat16)
    result = bottleneck(features(bottleneck).to(torch.bfloat16))
    if result.ids is not None:
        assert torch.equal(bottleneck.lookup(result.ids).float(), result.vectors.float())
        assert torch.equal(bottleneck.nearest(result.vectors), result.ids)


@each
def test_without_gradients_train_mode_changes_nothing_and_gives_the_eval_result(name: str):
    bottleneck = built(name).train()
    before = copy.deepcopy(bottleneck.state_dict())
    expected = copy.deepcopy(bottleneck).eval()(features(bottleneck))
    with torch.no_grad():
        for _ in range(3):
            result = bottleneck(features(bottleneck))
    assert torch.equal(result.vectors, expected.vectors)
    assert all(torch.equal(value, before[key]) for key, value in bottleneck.state_dict().items())


@each
def test_an_unknown_option_is_refused_with_those_that_exist(name: str):
    with pytest.raises(ValueError, match=rf"bottleneck '{name}' has no option colour; it takes \w+"):
        build_bottleneck(name, {"colour": 3})


def test_an_unknown_bottleneck_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match=f"unknown bottleneck 'vqq'; one of {', '.join(BOTTLENECKS)}"):
        build_bottleneck("vqq", {})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kl", {"channels": 0}, "at least 1 channel"),
        ("vq", {"codes": 1}, "at least 2 codes"),
        ("vq", {"channels": 0}, "at least 1 channel"),
        ("fsq", {"levels": ()}, "at least 3 levels"),
        ("fsq", {"levels": (8, 2)}, "at least 3 levels"),
        ("fsq", {"levels": (1024, 1024, 2048)}, r"fewer than 2\^31 codes"),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build_bottleneck(name, options)


# KL


def test_a_kl_sample_follows_the_posterior_and_belongs_to_its_sample():
    bottleneck = KL(channels=2)
    mean, log_variance = torch.tensor([3.0, -1.0]), torch.tensor([0.0, -2.0])
    x = torch.cat([mean, log_variance]).expand(2, 4000, 4)
    drawn = bottleneck(x, sample=True, generators=seeded([0, 1])).vectors
    assert torch.allclose(drawn.mean(dim=(0, 1)), mean, atol=0.05)
    assert torch.allclose(drawn.std(dim=(0, 1)), (log_variance / 2).exp(), atol=0.05)
    assert torch.equal(bottleneck(x[1:], sample=True, generators=seeded([1])).vectors, drawn[1:])
    with pytest.raises(ValueError, match="one per sample"):
        bottleneck(x, sample=True)


def test_the_kl_term_is_the_divergence_from_the_unit_normal():
    x = features(KL(channels=4))
    losses = KL(channels=4, weight=0.5)(x, sample=True, generators=seeded([0, 1])).losses
    mean, log_variance = x.chunk(2, dim=-1)
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(-1).mean()
    assert torch.allclose(losses["kl"], 0.5 * expected, rtol=1e-5)


def test_an_extreme_log_variance_stays_finite():
    x = torch.tensor([0.0, 1e6]).expand(1, 3, 2)
    result = KL(channels=1)(x, sample=True, generators=seeded([0]))
    assert result.vectors.isfinite().all()
    assert result.losses["kl"].isfinite()


# VQ


def test_a_training_step_moves_the_codebook_and_pulls_features_to_their_codes():
    torch.manual_seed(0)
    bottleneck = VQ(codes=16, channels=4).train()
    before = bottleneck.quantizer.codebook.clone()
    x = features(bottleneck).requires_grad_()
    bottleneck(x).losses["commitment"].backward()
    assert not torch.equal(bottleneck.quantizer.codebook, before)
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_unused_codes_restart_on_the_data():
    torch.manual_seed(0)
    bottleneck = VQ(codes=64, channels=4, decay=0.5).train()
    centres = torch.nn.functional.normalize(torch.randn(64, 4), dim=-1)
    for _ in range(40):
        x = centres[torch.randint(64, (1, 256))] + 0.01 * torch.randn(1, 256, 4)
        ids = bottleneck(x).ids
    assert ids is not None
    assert ids.unique().numel() > 32


# FSQ


def test_fsq_agrees_with_the_library_that_it_stands_on():
    from vector_quantize_pytorch import FSQ as LibraryFSQ

    levels = (8, 5, 5, 5)
    x = 3 * torch.randn(2, 200, 4, generator=torch.Generator().manual_seed(0))
    vectors, ids = LibraryFSQ(list(levels))(x)
    ours = FSQ(levels=levels)(x)
    assert torch.equal(ours.vectors, vectors)
    assert ours.ids is not None
    assert torch.equal(ours.ids.squeeze(-1), ids.long())


def test_ids_stay_exact_where_float32_skips_integers():
    bottleneck = FSQ(levels=(1001, 1001, 1001))
    ids = torch.tensor([0, 1, 2**24 + 1, 2**29 + 7, 1001**3 - 1]).view(1, -1, 1)
    assert torch.equal(bottleneck.nearest(bottleneck.lookup(ids)), ids)


def test_wide_features_reach_every_level():
    bottleneck = FSQ(levels=(5, 4, 3))
    x = 4 * torch.randn(1, 20000, 3, generator=torch.Generator().manual_seed(0))
    ids = bottleneck(x).ids
    assert ids is not None
    assert ids.unique().numel() == 60
