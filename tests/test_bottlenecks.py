"""Does every bottleneck of the table keep its promises: ids and codes agree, gradients flow, dtypes are safe?"""

import copy
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from needed import absent
from small_bottlenecks import CASES, OPTIONS, SHARED
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vidgen.bottlenecks import (
    BOTTLENECKS,
    BSQ,
    FSQ,
    KL,
    LFQ,
    VQ,
    AdaCode,
    Bottleneck,
    Bottlenecked,
    Gumbel,
    Product,
    Quantizer,
    Residual,
    SimVQ,
    StochasticVQ,
    build_bottleneck,
)
from vidgen.bottlenecks.base import rotated
from vidgen.bottlenecks.entropy import EntropyTerm
from vidgen.generators.embedding import TokenEmbedding
from vidgen.generators.head_choice import chosen_head
from vidgen.latents import LatentPart, LatentSpec
from vidgen.nn.random import seeded
from vidgen.schedulers.sampling import SamplingRule


def built(case: str) -> Bottleneck:
    torch.manual_seed(0)
    return build_bottleneck(*CASES[case])


def features(bottleneck: Bottleneck, *, batch: int = 2, count: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(batch, count, bottleneck.in_channels, generator=torch.Generator().manual_seed(seed))


def some_ids(bottleneck: Bottleneck, *, count: int = 60) -> Tensor:
    """`1 n q` without repetition: all ids of a small codebook, else some."""
    if len(bottleneck.codebooks) == 1 and bottleneck.codebooks[0] <= 2 * count:
        return torch.arange(bottleneck.codebooks[0]).view(1, -1, 1)
    uniform = torch.rand(count, len(bottleneck.codebooks), generator=torch.Generator().manual_seed(3))
    ids = (uniform.double() * torch.tensor(bottleneck.codebooks)).long()
    return ids.unique(dim=0).unsqueeze(0)


DISCRETE = [case for case in CASES if built(case).codebooks]
DISTINCT = [case for case in DISCRETE if getattr(built(case), "distinct", False)]
# Those whose training draws from generators (a posterior, a code, how many ids are kept), and k-means, which looks
# whether it has run: no graph of `torch.compile` holds that.
SEVERAL_GRAPHS = [
    *("kl", "kl, fixed deviation", "stochastic-vq", "gumbel", "gumbel, cooling", "residual vq", "adacode, kept"),
    "vq, euclidean, k-means, rotation",
]
each = pytest.mark.parametrize("case", CASES)
each_discrete = pytest.mark.parametrize("case", DISCRETE)
each_distinct = pytest.mark.parametrize("case", DISTINCT)
each_continuous = pytest.mark.parametrize("case", [case for case in CASES if case not in DISCRETE])


def test_every_bottleneck_of_the_table_is_tested_here():
    assert OPTIONS.keys() == BOTTLENECKS.keys()


@each
def test_a_bottleneck_gives_what_its_attributes_say(case: str):
    bottleneck = built(case).eval()
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
def test_a_tokens_result_does_not_depend_on_its_neighbours(case: str):
    bottleneck = built(case).eval()
    x = features(bottleneck)
    alone = bottleneck(x[1:, 7:8])
    together = bottleneck(x)
    assert torch.allclose(alone.vectors, together.vectors[1:, 7:8], atol=1e-6)
    if alone.ids is not None and together.ids is not None:
        assert torch.equal(alone.ids, together.ids[1:, 7:8])


@each_discrete
@pytest.mark.parametrize("training", [False, True])
def test_vectors_to_ids_to_vectors_is_the_identity(case: str, training: bool):
    bottleneck = built(case).train(training)
    if isinstance(bottleneck, Residual):  # what comes out is a prefix of what the ids say
        bottleneck.dropout = 0.0
    before = copy.deepcopy(bottleneck)  # a codebook may move right after it was used
    if isinstance(bottleneck, VQ) and training:
        bottleneck.codebook.started.fill_(True)
    result = bottleneck(features(bottleneck), sample=True, generators=seeded([0, 1]))
    assert torch.equal(before.lookup(result.ids), result.vectors)


@each_distinct
def test_every_id_is_the_nearest_one_to_its_own_vector(case: str):
    bottleneck = built(case).eval()
    ids = some_ids(bottleneck)
    vectors = bottleneck.lookup(ids)
    assert torch.equal(bottleneck.nearest(vectors), ids)
    assert torch.equal(bottleneck.nearest(vectors.to(torch.bfloat16)), ids)
    assert len(vectors[0].unique(dim=0)) == ids.shape[1]


@each_distinct
def test_a_vector_near_a_code_is_taken_for_that_code(case: str):
    bottleneck = built(case).eval()
    ids = some_ids(bottleneck)
    vectors = bottleneck.lookup(ids)
    between = torch.cdist(vectors[0], vectors[0]).fill_diagonal_(math.inf).min()
    if "bits" in CASES[case][1]:
        between = vectors.abs().min() * 2  # ids are far apart by chance, codes are not
    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    noise = 0.2 * between * F.normalize(noise, dim=-1)
    assert torch.equal(bottleneck.nearest(vectors + noise), ids)


@each_discrete
def test_the_vectors_of_any_ids_come_back_nearly_from_their_nearest_ids(case: str):
    """Several residual ids may stand for almost one vector: the vector counts."""
    bottleneck = built(case).eval()
    vectors = bottleneck.lookup(some_ids(bottleneck))
    again = bottleneck.lookup(bottleneck.nearest(vectors))
    assert (again - vectors).norm() < 0.5 * vectors.norm()


@each_discrete
def test_nearest_gives_valid_ids_for_any_vector(case: str):
    bottleneck = built(case).eval()
    far = 100.0 * torch.randn(1, 50, bottleneck.channels, generator=torch.Generator().manual_seed(0))
    ids = bottleneck.nearest(far)
    assert (ids >= 0).all()
    assert (ids < torch.tensor(bottleneck.codebooks)).all()


@each_continuous
def test_a_continuous_bottleneck_refuses_ids(case: str):
    bottleneck = built(case)
    with pytest.raises(ValueError, match="continuous and has no ids"):
        bottleneck.lookup(torch.zeros(1, 1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="continuous and has no ids"):
        bottleneck.nearest(torch.zeros(1, 1, bottleneck.channels))


@each
def test_gradients_flow_from_the_vectors_to_the_features(case: str):
    bottleneck = built(case).train()
    x = features(bottleneck).requires_grad_()
    result = bottleneck(x, sample=True, generators=seeded([0, 1]))
    weight = torch.randn(result.vectors.shape, generator=torch.Generator().manual_seed(1))
    (result.vectors * weight).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (x.grad.abs().sum(dim=-1) > 0).all()


@pytest.mark.parametrize("case", [case for case in DISCRETE if "gumbel" not in case])
def test_the_gradient_passes_through_the_rounding(case: str):
    """A step along the gradient of a linear function of the vectors must not lower it: positive inner product."""
    bottleneck = built(case).train()
    x = features(bottleneck).requires_grad_()
    vectors = bottleneck(x, generators=seeded([0, 1])).vectors
    weight = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((vectors * weight).sum(), x)
    assert F.cosine_similarity(gradient.flatten(), weight.flatten(), dim=0) > 0.3


@each
@pytest.mark.parametrize("spread", [1.0, 0.0, 30.0])
def test_training_losses_are_finite_for_ordinary_constant_and_wide_features(case: str, spread: float):
    bottleneck = built(case).train()
    x = (0.3 + spread * features(bottleneck)).requires_grad_()
    for step in range(3):
        result = bottleneck(x, sample=True, generators=seeded([step, step + 9]))
        assert all(loss.ndim == 0 and loss.isfinite() and loss >= -1e-4 for loss in result.losses.values())
    sum(result.losses.values(), result.vectors.square().mean()).backward()
    assert x.grad is not None and x.grad.isfinite().all()
    weights = [weight.grad for weight in bottleneck.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in weights)
    assert all(buffer.isfinite().all() for buffer in bottleneck.buffers())


@each
def test_bf16_features_under_autocast_give_the_ids_of_their_exact_values(case: str):
    bottleneck = built(case).eval()
    x = features(bottleneck).to(torch.bfloat16)
    exact = bottleneck(x.float())
    nearest = None if exact.ids is None else bottleneck.nearest(exact.vectors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = bottleneck(x)
        if exact.ids is not None:
            assert torch.equal(bottleneck.lookup(exact.ids), exact.vectors)
            assert torch.equal(bottleneck.nearest(exact.vectors), nearest)
    assert torch.allclose(low.vectors.float(), exact.vectors, atol=1e-2)
    if exact.ids is not None:
        assert torch.equal(low.ids, exact.ids)


@each
def test_bf16_autocast_trains(case: str):
    bottleneck = built(case).train()
    x = features(bottleneck).to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = bottleneck(x, sample=True, generators=seeded([0, 1]))
        (result.vectors.float().square().mean() + sum(result.losses.values(), torch.zeros(()))).backward()
    assert x.grad is not None and x.grad.isfinite().all()


@each
def test_a_bottleneck_cast_to_bf16_still_agrees_with_itself(case: str):
    bottleneck = built(case).eval().to(torch.bfloat16)
    result = bottleneck(features(bottleneck).to(torch.bfloat16))
    if result.ids is not None:
        assert torch.equal(bottleneck.lookup(result.ids).float(), result.vectors.float())
    if case in DISTINCT:
        assert torch.equal(bottleneck.nearest(result.vectors), result.ids)


@each
def test_without_gradients_train_mode_changes_nothing_and_gives_the_eval_result(case: str):
    bottleneck = built(case).train()
    before = copy.deepcopy(bottleneck.state_dict())
    expected = copy.deepcopy(bottleneck).eval()(features(bottleneck))
    with torch.no_grad():
        for _ in range(3):
            result = bottleneck(features(bottleneck))
    assert torch.equal(result.vectors, expected.vectors)
    assert all(torch.equal(value, before[key]) for key, value in bottleneck.state_dict().items())


@each
def test_options_survive_json_and_weights_survive_a_state_dict(case: str):
    name, options = CASES[case]
    bottleneck = built(case).train()
    for step in range(3):
        bottleneck(features(bottleneck).requires_grad_(), sample=True, generators=seeded([step, step]))
    again = build_bottleneck(name, json.loads(json.dumps(options)))
    again.load_state_dict(bottleneck.state_dict())
    x = features(bottleneck, seed=5)
    one, other = bottleneck.eval()(x), again.eval()(x)
    assert torch.equal(one.vectors, other.vectors)
    assert (one.ids is None) == (other.ids is None)
    if one.ids is not None:
        assert torch.equal(one.ids, other.ids)


@each
def test_every_bottleneck_feeds_the_head_and_the_embedding_of_a_generator(case: str):
    bottleneck = built(case).eval()
    part = LatentPart("grid", "thw", (4, 8, 8), bottleneck.channels, bottleneck.codebooks)
    spec = LatentSpec((part,), causal=True, streamable=True)
    result = bottleneck(features(bottleneck, count=6))
    tokens = result.vectors if result.ids is None else result.ids
    embedding, head = TokenEmbedding(spec, 16), chosen_head(spec, 16, "auto")
    hidden = embedding(tokens)
    assert head.loss(hidden, tokens, generators=seeded([0, 1])).shape == (2, 6)
    drawn, _ = head.sample(hidden, None, 1.0, generators=seeded([0, 1]), rule=SamplingRule())
    assert drawn.shape == tokens.shape
    if result.ids is not None:
        assert bottleneck.lookup(drawn).shape == result.vectors.shape


def as_in_training(bottleneck: Bottleneck, x: Tensor) -> Bottlenecked:
    torch.manual_seed(7)  # codes that restart are drawn from the global generator
    return bottleneck(x.clone().requires_grad_(), sample=True, generators=seeded([0, 1]))


def assert_equal_training(one: Bottleneck, other: Any) -> None:
    """Two training steps give the same vectors, ids, losses and codes."""
    x = features(one)
    for _ in range(2):
        expected, result = as_in_training(one, x), as_in_training(other, x)
        assert torch.allclose(result.vectors, expected.vectors, rtol=0, atol=1e-6)
        torch.testing.assert_close(result.losses, expected.losses, rtol=1e-5, atol=1e-6)
        assert expected.ids is None or torch.equal(result.ids, expected.ids)
    torch.testing.assert_close(other.state_dict(), one.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if case not in SEVERAL_GRAPHS])
def test_a_training_step_is_one_graph(case: str):
    bottleneck = built(case).train()
    torch.compiler.reset()
    compiled = copy.deepcopy(bottleneck)
    compiled.compile(fullgraph=True, backend="eager")
    assert_equal_training(bottleneck, compiled)


@pytest.mark.parametrize("case", SEVERAL_GRAPHS)
def test_a_training_step_that_is_no_one_graph_computes_the_same_in_several(case: str):
    bottleneck = built(case).train()
    torch.compiler.reset()
    whole, parts = copy.deepcopy(bottleneck), copy.deepcopy(bottleneck)
    whole.compile(fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        as_in_training(whole, features(whole))
    parts.compile(backend="eager")
    assert_equal_training(bottleneck, parts)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "atol"), [("fsq", 1e-7), ("fsq, entropy", 5e-5)])
def test_fsq_compiled_to_machine_code_gives_the_same_codes_and_gradients(case: str, atol: float):
    """Gradients of up to 0.006, and of up to 0.04 with an entropy, whose logarithms Inductor rounds 400 times worse."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        absent("Inductor needs a C++ compiler for the CPU; install g++ or set CXX")
    bottleneck = built(case).train()
    torch.compiler.reset()
    compiled = copy.deepcopy(bottleneck)
    compiled.compile(fullgraph=True, backend="inductor")
    assert_equal_training(bottleneck, compiled)
    gradients = []
    for module in (bottleneck, compiled):
        x = features(bottleneck).requires_grad_()
        result = module(x, sample=True, generators=seeded([0, 1]))
        sum(result.losses.values(), result.vectors.square().mean()).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=atol)


@each
def test_an_unknown_option_is_refused_with_those_that_exist(case: str):
    name = CASES[case][0]
    with pytest.raises(ValueError, match=rf"bottleneck '{name}' has no option colour; it takes \w+"):
        build_bottleneck(name, {"colour": 3})


def test_an_unknown_bottleneck_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match=f"unknown bottleneck 'vqq'; one of {', '.join(BOTTLENECKS)}"):
        build_bottleneck("vqq", {})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kl", {"channels": 0}, "at least 1 channel"),
        ("kl", {"deviation": 0.0}, "the bottleneck without noise is 'ae'"),
        ("kl", {"weight": math.nan}, "weight of bottleneck 'kl' is of type float; got nan"),
        ("kl", {"channels": 4.0}, "channels of bottleneck 'kl' is of type int; got 4.0"),
        ("vq", {"codes": True}, "of type int; got True"),
        ("vq", {"cosine": 1}, "of type bool; got 1"),
        ("fsq", {"levels": 8}, "of type .*; got 8"),
        ("fsq", {"levels": (8.5, 5)}, r"got \(8.5, 5\)"),
        ("adacode", {"kept": 1.5}, r"of type int \| None; got 1.5"),
        ("residual", {"inner": "lfq", "options": {"bits": 18.0}}, "bits of bottleneck 'lfq' is of type int; got 18.0"),
        ("gumbel", {"temperature": 0.05, "cooling_steps": 9}, "which is warmer"),
        ("gumbel", {"last_temperature": 0.5}, "reached after cooling_steps, and there are none"),
        ("ae", {"channels": 0}, "at least 1 channel"),
        ("vq", {"codes": 1}, "at least 2 codes"),
        ("vq", {"channels": 0}, "at least 1 channel"),
        ("vq", {"channels": 1}, "use cosine false or 2 channels"),
        ("vq", {"decay": 1.0}, "a decay between 0 and 1"),
        ("simvq", {"codes": 1}, "at least 2 codes"),
        ("simvq", {"commitment": -1.0}, "must not be negative"),
        ("stochastic-vq", {"channels": 1}, "at least 2 channels"),
        ("stochastic-vq", {"temperature": 0.0}, "temperature above 0"),
        ("joint-vq", {"pixel_channels": 1}, "at least 2 channels of each kind"),
        ("fsq", {"levels": ()}, "at least 3 levels"),
        ("fsq", {"levels": (8, 2)}, "at least 3 levels"),
        ("fsq", {"levels": (1024, 1024, 2048)}, r"fewer than 2\^31 codes"),
        ("fsq", {"levels": (8,) * 9, "entropy": 0.1}, "set entropy to 0"),
        ("fsq", {"entropy": 0.1, "entropy_boost": 0.5}, "a boost of at least 1"),
        ("lfq", {"bits": 18, "groups": 4}, "36 bits in 2 groups"),
        ("lfq", {"bits": 80}, "ids of 1 to 62 bits"),
        ("bsq", {"temperature": -1.0}, "BSQ needs a temperature above 0"),
        ("residual", {"inner": "fsq", "count": 1}, "use fsq alone"),
        ("residual", {"inner": "vq"}, r'vq with \{"cosine": false\}'),
        ("residual", {"inner": "bsq"}, "codes of 'bsq' have a fixed length"),
        ("residual", {"inner": "kl"}, "cannot be made of 'kl'"),
        ("residual", {"inner": "gumbel"}, "cannot be made of 'gumbel'"),
        ("gumbel", {"codes": 1}, "at least 2 codes"),
        ("gumbel", {"temperature": 0.0}, "temperatures above 0"),
        ("gumbel", {"cooling_steps": -1}, "must not be negative"),
        ("vq", {"codes": 2**15, "balance": 0.1}, "at most 16384 codes"),
        ("residual", {"inner": "fsq", "options": {"codes": 8}}, "'fsq' has no option codes; it takes levels"),
        ("residual", {"dropout": 2.0}, "between 0 and 1"),
        ("product", {"inner": "vqq"}, "unknown bottleneck 'vqq'"),
        ("product", {"disentangle": -0.1}, "0 or more"),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build_bottleneck(name, options)


# memory: neither a table of all codes nor a matrix of tokens and codes


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor holds that anything inside computes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize(
    ("name", "options", "tokens", "numbers"),
    [
        ("vq", {"codes": 2**15, "channels": 2}, 2**11, 2**22),
        ("simvq", {"codes": 2**15, "channels": 2}, 2**11, 2**22),
        ("stochastic-vq", {"codes": 2**13, "channels": 2}, 2**11, 2**22),
        ("fsq", {"levels": (8, 8, 8, 8, 8, 8), "entropy": 0.1}, 2**12, 2**21),
        ("lfq", {"bits": 18}, 2**12, 2**22),
        ("bsq", {"bits": 36, "groups": 2}, 2**11, 2**22),
        ("bsq", {"bits": 62}, 2**11, 2**22),
        ("product", {"inner": "vq", "options": {"codes": 2**9, "channels": 2}, "count": 3}, 2**12, 2**21),
    ],
)
def test_training_holds_nothing_as_large_as_tokens_times_codes(name: str, options: dict, tokens: int, numbers: int):
    bottleneck = build_bottleneck(name, options).train()
    x = features(bottleneck, batch=1, count=tokens).requires_grad_()
    with LargestTensor() as largest:
        result = bottleneck(x, sample=True, generators=seeded([0]))
        (result.vectors.sum() + sum(result.losses.values(), torch.zeros(()))).backward()
    assert largest.numel <= numbers < tokens * math.prod(bottleneck.codebooks)


def test_ids_of_62_bits_are_exact():
    bottleneck = BSQ(bits=62)
    ids = torch.tensor([0, 1, 2**53 + 1, 2**61 + 2**30 + 1, 2**62 - 1]).view(1, -1, 1)
    assert torch.equal(bottleneck.nearest(bottleneck.lookup(ids)), ids)


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


def test_a_fixed_deviation_is_what_the_samples_have():
    bottleneck = KL(channels=2, weight=0.5, deviation=0.3)
    x = torch.tensor([3.0, -1.0]).expand(1, 4000, 2)
    result = bottleneck(x, sample=True, generators=seeded([0]))
    assert torch.allclose((result.vectors - x).std(), torch.tensor(0.3), atol=0.02)
    posterior, prior = torch.distributions.Normal(x, 0.3), torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(posterior, prior).sum(-1).mean()
    assert torch.allclose(result.losses["kl"], 0.5 * expected, rtol=1e-5)


def test_an_extreme_log_variance_stays_finite():
    x = torch.tensor([0.0, 1e6]).expand(1, 3, 2)
    result = KL(channels=1)(x, sample=True, generators=seeded([0]))
    assert result.vectors.isfinite().all()
    assert result.losses["kl"].isfinite()


# VQ and its kin


@pytest.mark.parametrize("cosine", [False, True])
def test_vq_learns_as_the_library_does(cosine: bool):
    from vector_quantize_pytorch import VectorQuantize

    torch.manual_seed(0)
    ours = VQ(codes=16, channels=4, cosine=cosine, decay=0.9, restart_below=0.0).train()
    theirs = VectorQuantize(
        dim=4,
        codebook_size=16,
        decay=0.9,
        commitment_weight=0.25,
        threshold_ema_dead_code=0,
        use_cosine_sim=cosine,
        rotation_trick=False,
    ).train()
    table = ours.codebook.vectors.clone()
    theirs._codebook.embed.data.copy_(table)
    theirs._codebook.embed_avg.data.copy_(table)
    for seed in range(6):
        x = features(ours, seed=seed).requires_grad_()
        result = ours(x)
        vectors, ids, loss = theirs(x)
        assert torch.equal(result.ids.squeeze(-1), ids)
        assert torch.allclose(result.vectors, vectors, atol=1e-5)
        assert torch.allclose(result.losses["commitment"], loss, atol=1e-5)
    assert torch.allclose(ours.codebook.vectors, theirs._codebook.embed[0], atol=1e-5)


def test_the_rotation_trick_is_the_librarys():
    from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

    codes, weight = torch.randn(50, 4), torch.randn(50, 4)
    x = torch.randn(50, 4).requires_grad_()
    gradients = [torch.autograd.grad((turn(x, codes) * weight).sum(), x)[0] for turn in (rotated, rotate_to)]
    assert torch.allclose(*gradients, atol=1e-5)
    assert torch.equal(rotated(x, codes), codes)


def test_simvq_agrees_with_the_library():
    from vector_quantize_pytorch import SimVQ as LibrarySimVQ

    torch.manual_seed(0)
    ours, theirs = SimVQ(codes=32, channels=4).train(), LibrarySimVQ(dim=4, codebook_size=32).train()
    theirs.frozen_codebook.copy_(ours.table)
    theirs.code_transform.load_state_dict(ours.turn.state_dict())
    x = features(ours)
    result = ours(x)
    vectors, ids, loss = theirs(x)
    assert torch.equal(result.ids.squeeze(-1), ids)
    assert torch.allclose(result.vectors, vectors, atol=1e-5)
    assert torch.allclose(sum(result.losses.values()), loss, atol=1e-6)


def test_a_training_step_moves_the_codebook_and_pulls_features_to_their_codes():
    torch.manual_seed(0)
    bottleneck = VQ(codes=16, channels=4).train()
    before = bottleneck.codebook.vectors.clone()
    x = features(bottleneck).requires_grad_()
    bottleneck(x).losses["commitment"].backward()
    assert not torch.equal(bottleneck.codebook.vectors, before)
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_unused_codes_restart_on_the_data():
    torch.manual_seed(0)
    bottleneck = VQ(codes=64, channels=4, decay=0.5).train()
    centres = F.normalize(torch.randn(64, 4), dim=-1)
    for _ in range(40):
        x = centres[torch.randint(64, (1, 256))] + 0.01 * torch.randn(1, 256, 4)
        ids = bottleneck(x).ids
    assert ids is not None
    assert ids.unique().numel() > 32


@pytest.mark.parametrize("cosine", [True, False])
def test_codes_without_members_stay_where_they_are_when_none_restarts(cosine: bool):
    torch.manual_seed(0)
    bottleneck = VQ(codes=16, channels=4, decay=0.5, restart_below=0.0, cosine=cosine).train()
    x = bottleneck.codebook.vectors[:3].expand(2, 3, 4).clone()
    before = bottleneck.codebook.vectors.norm(dim=-1)
    for _ in range(200):
        bottleneck(x)
    assert torch.allclose(bottleneck.codebook.vectors.norm(dim=-1), before, rtol=0.01)
    found = bottleneck(bottleneck.lookup(torch.tensor([[[9]]]))).ids
    assert found is not None and found.item() == 9


def test_more_dead_codes_than_tokens_restart_without_twins():
    torch.manual_seed(0)
    bottleneck = VQ(codes=64, channels=4, decay=0.01, restart_below=0.5).train()
    for seed in range(3):
        bottleneck(features(bottleneck, batch=1, count=20, seed=seed))
    codes = bottleneck.codebook.vectors
    assert len(codes.unique(dim=0)) == 64


def test_a_balanced_assignment_shares_a_batch_out_to_all_codes():
    torch.manual_seed(0)
    plain = VQ(codes=16, channels=4, restart_below=0.0).train()
    balanced = VQ(codes=16, channels=4, restart_below=0.0, balance=0.05).train()
    x = F.normalize(torch.tensor([1.0, 0.5, 0.0, 0.0]) + 0.1 * torch.randn(1, 320, 4), dim=-1)
    counts = [torch.bincount(bottleneck(x).ids.flatten(), minlength=16) for bottleneck in (plain, balanced)]
    assert (counts[0] == 0).sum() > 8
    assert counts[1].min() >= 5 and counts[1].max() <= 45  # 20 each would be even
    assert torch.equal(balanced.eval()(x).ids, balanced.nearest(balanced.enter(x)))


def test_gumbel_draws_by_its_logits_and_its_term_is_the_divergence_from_uniform():
    torch.manual_seed(0)
    bottleneck = Gumbel(codes=5, channels=3, sharpness=1.0, weight=1.0).train()
    logits = torch.tensor([0.5, -1.0, 2.0, 0.0, 0.3])
    result = bottleneck(logits.expand(1, 20000, 5), sample=True, generators=seeded([0]))
    assert result.ids is not None
    drawn = torch.bincount(result.ids.flatten(), minlength=5) / 20000
    chances = logits.softmax(dim=0)
    assert torch.allclose(drawn, chances, atol=0.02)
    assert torch.allclose(result.losses["kl"], (chances * (5 * chances).log()).sum(), atol=1e-5)
    assert (bottleneck(logits.expand(1, 3, 5)).ids == 2).all()


def test_gumbels_temperature_falls_in_training_alone_and_goes_on_after_loading():
    bottleneck = Gumbel(codes=5, channels=3, temperature=2.0, last_temperature=0.5, cooling_steps=4).train()
    seen = []
    for _ in range(6):
        seen.append(float(bottleneck._cooled()))
        with torch.no_grad():
            bottleneck._cooled()
    assert seen == pytest.approx([2.0, 1.25 + 0.75 * 0.5**0.5, 1.25, 1.25 - 0.75 * 0.5**0.5, 0.5, 0.5])
    resumed = Gumbel(codes=5, channels=3, temperature=2.0, last_temperature=0.5, cooling_steps=4)
    resumed.load_state_dict(bottleneck.state_dict())
    assert float(resumed._cooled()) == 0.5
    assert "updates" not in Gumbel(codes=5, channels=3).state_dict()


def test_k_means_begins_with_the_centres_of_the_first_batch():
    torch.manual_seed(0)
    bottleneck = VQ(codes=8, channels=3, cosine=False, kmeans_steps=10, restart_below=0.0).train()
    centres = 5 * torch.eye(3)[torch.arange(8) % 3] * torch.tensor([1.0, -1.0])[torch.arange(8) // 3 % 2, None]
    x = centres[torch.randint(6, (1, 600))] + 0.01 * torch.randn(1, 600, 3)
    error = (bottleneck(x).vectors - x).square().mean()
    assert error < 0.5  # random codes: about 8
    assert bottleneck.codebook.started


def test_stochastic_vq_draws_by_the_softmax_of_similarity():
    torch.manual_seed(0)
    bottleneck = StochasticVQ(codes=5, channels=3, temperature=0.5)
    x = torch.tensor([0.2, 0.5, -1.0]).expand(1, 20000, 3)
    result = bottleneck(x, sample=True, generators=seeded([0]))
    logits = F.normalize(x[0, 0], dim=0) @ F.normalize(bottleneck.table.detach(), dim=-1).T / 0.5
    drawn = torch.bincount(result.ids.flatten(), minlength=5) / 20000
    assert torch.allclose(drawn, logits.softmax(dim=0), atol=0.02)
    assert (bottleneck(x).ids == logits.argmax()).all()
    with pytest.raises(ValueError, match="one per sample"):
        bottleneck(x, sample=True)


def test_joint_vq_weighs_the_distances_of_both_codes():
    torch.manual_seed(0)
    bottleneck = build_bottleneck("joint-vq", {**OPTIONS["joint-vq"], "pixel_weight": 3.0}).eval()
    assert isinstance(bottleneck, VQ)
    x = features(bottleneck)
    table = bottleneck.codebook.vectors
    semantic = torch.cdist(F.normalize(x[..., :3], dim=-1), table[:, :3]).square()
    pixel = torch.cdist(F.normalize(x[..., 3:], dim=-1), table[:, 3:] / 3**0.5).square()
    assert torch.equal(bottleneck(x).ids.squeeze(-1), (semantic + 3.0 * pixel).argmin(dim=-1))


# FSQ


def test_fsq_agrees_with_the_library():
    from vector_quantize_pytorch import FSQ as LibraryFSQ

    levels = (8, 5, 5, 5)
    x = 3 * torch.randn(2, 2000, 4, generator=torch.Generator().manual_seed(0))
    library = LibraryFSQ(list(levels))
    expected = x.clone().requires_grad_()
    vectors, ids = library(expected)
    found = x.clone().requires_grad_()
    ours = FSQ(levels=levels)(found)
    assert torch.equal(ours.vectors, library.indices_to_codes(ids))
    assert torch.allclose(ours.vectors, vectors, atol=1e-6)
    assert ours.ids is not None
    assert torch.equal(ours.ids.squeeze(-1), ids.long())
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    gradients = [
        torch.autograd.grad((out * weight).sum(), to)[0] for out, to in ((ours.vectors, found), (vectors, expected))
    ]
    assert torch.allclose(*gradients, atol=1e-5)


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


def test_the_entropy_of_fsq_is_that_of_the_softmax_over_all_codes():
    bottleneck = FSQ(levels=(5, 4, 3), entropy=1.0, temperature=0.5).train()
    x = features(bottleneck).requires_grad_()
    half_widths = torch.tensor([2.0, 2.0, 1.0])
    codes = bottleneck.lookup(torch.arange(60).view(1, -1, 1))[0] * half_widths
    placed = (bottleneck.enter(x) * half_widths).flatten(0, 1)
    chances = (-(placed[:, None] - codes).square().sum(-1) / 0.5).softmax(dim=-1)
    entropy = lambda p: -(p * p.clamp(min=1e-30).log()).sum(-1)  # noqa: E731
    expected = entropy(chances).mean() + math.log(60) - entropy(chances.mean(0))
    assert torch.allclose(bottleneck(x).losses["entropy"], expected, atol=1e-5)


# bits


def test_lfq_agrees_with_the_library():
    from vector_quantize_pytorch import LFQ as LibraryLFQ

    ours = LFQ(bits=6, entropy=0.1, entropy_boost=1.0, commitment=0.25, diversity=0.7, temperature=0.05).train()
    theirs = LibraryLFQ(
        codebook_size=64, dim=6, entropy_loss_weight=0.1, commitment_loss_weight=0.25, diversity_gamma=0.7
    ).train()
    x = 0.1 * features(ours)
    result = ours(x)
    vectors, ids, loss = theirs(x, inv_temperature=20.0)
    assert torch.equal(result.ids.squeeze(-1), ids.long())
    assert torch.allclose(result.vectors, vectors, atol=1e-6)
    shift = 0.1 * 0.7 * math.log(64)  # keeps our term from going below zero
    assert torch.allclose(sum(result.losses.values()), loss + shift, atol=1e-4)


def test_the_codes_of_bsq_lie_on_the_unit_sphere():
    bottleneck = BSQ(bits=7)
    vectors = bottleneck(features(bottleneck)).vectors
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(2, 40))
    assert torch.equal(bottleneck(3 * features(bottleneck)).ids, bottleneck(features(bottleneck)).ids)


def test_the_entropy_of_bsq_is_that_of_the_softmax_over_all_codes():
    bottleneck = BSQ(bits=6, entropy=1.0, entropy_boost=1.0, temperature=0.3).train()
    x = features(bottleneck)
    codes = bottleneck.lookup(torch.arange(64).view(1, -1, 1))[0]
    placed = F.normalize(x, dim=-1).flatten(0, 1)
    chances = (-(placed[:, None] - codes).square().sum(-1) / 0.3).softmax(dim=-1)
    entropy = lambda p: -(p * p.clamp(min=1e-30).log()).sum(-1)  # noqa: E731
    expected = entropy(chances).mean() + math.log(64) - entropy(chances.mean(0))
    assert torch.allclose(bottleneck(x).losses["entropy"], expected, atol=1e-5)


def test_the_entropy_weight_falls_from_its_boost_with_the_training_steps():
    term = EntropyTerm(0.1, boost=3.0, steps=4).train()
    one, none = torch.ones(()), torch.zeros(())
    weights = [float(term(one, none, codes=(1,))) for _ in range(6)]
    assert weights == pytest.approx([0.2 + 0.1 + 0.0, 0.25, 0.2, 0.15, 0.1, 0.1])
    resumed = EntropyTerm(0.1, boost=3.0, steps=4)
    resumed.load_state_dict(term.state_dict())
    assert float(resumed(one, none, codes=(1,))) == pytest.approx(0.1)


# compositions


@pytest.mark.parametrize("case", ["residual", "residual lfq"])
def test_each_residual_layer_comes_closer_and_a_prefix_of_the_ids_decodes(case: str):
    bottleneck = built(case).eval()
    assert isinstance(bottleneck, Residual)
    x = 0.8 * features(bottleneck, count=400)
    target, ids = bottleneck.enter(x), bottleneck(x).ids
    errors = [float((bottleneck.lookup(ids[..., :count]) - target).abs().mean()) for count in (1, 2, 3)]
    assert errors[2] < 0.75 * errors[1] < 0.75**2 * errors[0]


def test_residual_codes_of_residual_codes_go_on_to_refine():
    inner = {"inner": "fsq", "options": {"levels": [5, 5]}, "count": 2}
    bottleneck = Residual(inner="residual", options=inner, count=2).eval()
    x = features(bottleneck, count=400)
    target, ids = bottleneck.enter(x), bottleneck(x).ids
    assert ids is not None
    one, two = (float((bottleneck.lookup(ids[..., :count]) - target).abs().mean()) for count in (2, 4))
    assert two < 0.1 * one


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_part_of_a_residual_layers_ids_is_refused(count: int):
    bottleneck = Residual(inner="lfq", options={"bits": 4, "groups": 2}, count=3)
    with pytest.raises(ValueError, match=f"1 to 3 quantizers, 2 a token and quantizer, got {count}"):
        bottleneck.lookup(torch.zeros(1, 5, count, dtype=torch.long))


def test_a_product_is_as_its_quantizers_are():
    assert Product(inner="adacode", options={"codes": 8, "channels": 2, "count": 2}).fixed == (2, 3, 6, 7)
    with pytest.raises(ValueError, match="'product' learns from the gradient"):
        Residual(inner="product", options={"inner": "adacode"})
    options = {"codes": 16, "channels": 4, "cosine": False, "rotation": True}
    torch.manual_seed(0)
    product = Product(inner="vq", options=options, count=2)
    vectors, codes = torch.randn(1, 5, 8, requires_grad=True), torch.randn(1, 5, 8)
    pull = torch.randn(1, 5, 8)
    (whole,) = torch.autograd.grad((product.passed(vectors, codes) * pull).sum(), vectors)
    for half in (slice(0, 4), slice(4, 8)):
        passed = rotated(vectors[..., half], codes[..., half])
        (own,) = torch.autograd.grad((passed * pull[..., half]).sum(), vectors)
        assert torch.equal(own[..., half], whole[..., half])


def test_bits_that_share_no_divisor_have_the_entropy_of_their_few_runs():
    torch.manual_seed(0)
    bottleneck = LFQ(bits=31, entropy=1.0, entropy_boost=1.0, temperature=1.0).train()
    x = torch.randn(2, 300, 31)
    runs = [LFQ(bits=bits, entropy=1.0, entropy_boost=1.0, temperature=1.0).train() for bits in (16, 15)]
    parts = [run(part).losses["entropy"] for run, part in zip(runs, x.split([16, 15], dim=-1))]
    assert torch.allclose(bottleneck(x).losses["entropy"], torch.stack(parts).sum(), rtol=1e-5)


def test_residual_codes_pass_gradients_as_their_quantizers_do():
    options = {"codes": 16, "channels": 4, "cosine": False, "rotation": True}
    grads = {}
    for rotation in (True, False):
        torch.manual_seed(0)
        residual = Residual(inner="vq", options={**options, "rotation": rotation}, count=2).train()
        x = features(residual).requires_grad_()
        result = residual(x)
        pull = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        (grads[rotation],) = torch.autograd.grad((result.vectors * pull).sum(), x)
    assert torch.equal(grads[False], pull)
    assert not torch.allclose(grads[True], pull)


def test_residual_codes_refuse_what_learns_from_the_gradient_of_each_code():
    with pytest.raises(ValueError, match="'adacode' learns from the gradient"):
        Residual(inner="adacode")


def test_residual_fsq_with_odd_levels_is_a_finer_fsq():
    """Three layers of 3 levels cut a channel into 27 equal cells."""
    bottleneck = Residual(inner="fsq", options={"levels": [3]}, count=3)
    vectors = bottleneck.lookup(torch.cartesian_prod(*[torch.arange(3)] * 3).unsqueeze(0)).flatten().sort().values
    assert torch.allclose(vectors.diff(), torch.full((26,), 1 / 9), atol=1e-6)


def test_quantizer_dropout_decodes_some_clips_from_their_first_ids():
    torch.manual_seed(0)
    bottleneck = Residual(inner="fsq", options={"levels": [5, 5]}, count=3, dropout=1.0).train()
    x = features(bottleneck, batch=32)
    result = bottleneck(x, generators=seeded(range(32)))
    kept = []
    for number in range(32):
        prefixes = [bottleneck.lookup(result.ids[number : number + 1, :, :count]) for count in (1, 2, 3)]
        kept.append([torch.equal(prefix[0], result.vectors[number]) for prefix in prefixes].index(True))
    assert set(kept) == {0, 1, 2}
    with pytest.raises(ValueError, match="one per sample"):
        bottleneck(x)


def test_a_product_is_its_parts_side_by_side():
    bottleneck = built("product")
    assert isinstance(bottleneck, Product)
    assert bottleneck.codebooks == (16, 16)
    x = features(bottleneck)
    result = bottleneck.eval()(x)
    for number, (layer, part) in enumerate(zip(bottleneck.quantizers, x.chunk(2, dim=-1))):
        assert torch.equal(layer(part).vectors, result.vectors.chunk(2, dim=-1)[number])


def test_disentangling_is_zero_for_orthogonal_sub_codes_and_drives_equal_ones_apart():
    bottleneck = Product(inner="vq", options={"codes": 4, "channels": 4}, count=2, disentangle=1.0).train()
    for layer in bottleneck.quantizers:
        assert isinstance(layer, VQ)
        layer.codebook.vectors.copy_(torch.eye(4))
    apart = torch.cat([torch.eye(4), torch.eye(4).roll(1, dims=0)], dim=-1).unsqueeze(0)
    same = torch.cat([torch.eye(4), torch.eye(4)], dim=-1).unsqueeze(0)
    with torch.no_grad():  # the codes stay where they are
        assert bottleneck(apart).losses["disentangle"] == 0
        assert bottleneck(same).losses["disentangle"] == 1


@each_discrete
def test_a_bottleneck_says_whether_its_codes_are_distinct(case: str):
    bottleneck = built(case)
    assert isinstance(bottleneck, Quantizer | Gumbel)
    assert bottleneck.distinct == (case in DISTINCT)


# several processes

LEARN_TOGETHER = """
import sys, torch
from vidgen.bottlenecks import VQ
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
vectors = torch.load(f"{folder}/vectors.pt", weights_only=True)
torch.manual_seed(0)
bottleneck = VQ(codes=16, channels=4, decay=0.5, restart_below=0.0).train()
restarting = VQ(codes=64, channels=4, decay=0.1, restart_below=0.9, kmeans_steps=2).train()
torch.manual_seed(100 + rank)
for batch in vectors:
    bottleneck(batch[rank::2])
    restarting(batch[rank::2])
tables = {"learned": bottleneck.codebook.vectors, "restarted": restarting.codebook.vectors}
torch.save(tables, f"{folder}/rank{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_a_codebook_learns_from_all_processes_as_from_one(tmp_path: Path):
    vectors = torch.randn(4, 6, 10, 4, generator=torch.Generator().manual_seed(1))
    torch.save(vectors, tmp_path / "vectors.pt")
    processes = [
        subprocess.Popen([sys.executable, "-c", LEARN_TOGETHER, str(rank), str(tmp_path)]) for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first["learned"], second["learned"])
    assert torch.equal(first["restarted"], second["restarted"])
    torch.manual_seed(0)
    alone = VQ(codes=16, channels=4, decay=0.5, restart_below=0.0).train()
    for batch in vectors:
        alone(batch)
    assert torch.allclose(alone.codebook.vectors, first["learned"], atol=1e-5)


SHARED_BATCH = """
import sys, torch
from small_bottlenecks import SHARED
from vidgen.bottlenecks import build_bottleneck
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
saved = torch.load(f"{folder}/inputs.pt", weights_only=True)
gradients = {}
for case, (name, options) in SHARED.items():
    weight = saved[f"{case} weight"].requires_grad_()
    losses = build_bottleneck(name, options).train()(saved[f"{case} features"][rank::2] @ weight).losses
    sum(losses.values()).backward()
    torch.distributed.all_reduce(weight.grad)
    gradients[case] = weight.grad / 2
torch.save(gradients, f"{folder}/rank{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one_with_the_whole_batch(tmp_path: Path):
    """Entropies of a batch are those of the tokens of all processes, not the mean of each one's own."""
    inputs, alone, apart = {}, {}, {}
    for case, (name, options) in SHARED.items():
        bottleneck = build_bottleneck(name, options).train()
        channels = bottleneck.in_channels
        generator = torch.Generator().manual_seed(2)
        inputs[f"{case} features"] = torch.randn(4, 5, channels, generator=generator)
        inputs[f"{case} weight"] = torch.randn(channels, channels, generator=generator)

        def gradient(features: Tensor) -> Tensor:
            weight = inputs[f"{case} weight"].clone().requires_grad_()  # noqa: B023
            losses = build_bottleneck(name, options).train()(features @ weight).losses  # noqa: B023
            return torch.autograd.grad(sum(losses.values(), torch.zeros(())), weight)[0]

        alone[case] = gradient(inputs[f"{case} features"])
        apart[case] = (gradient(inputs[f"{case} features"][0::2]) + gradient(inputs[f"{case} features"][1::2])) / 2
    torch.save(inputs, tmp_path / "inputs.pt")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    processes = [
        subprocess.Popen([sys.executable, "-c", SHARED_BATCH, str(rank), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    for rank in range(2):
        together = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for case, wanted in alone.items():
            assert torch.allclose(together[case], wanted, rtol=1e-4, atol=1e-6), case
            assert not torch.allclose(together[case], apart[case], rtol=1e-2, atol=1e-5), case


def test_simvq_takes_the_words_of_another_model_for_codes():
    bottleneck = SimVQ(codes=32, channels=4)
    words = 5.0 + 3.0 * torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    bottleneck.adopt(words)
    assert bottleneck.table.square().mean() == pytest.approx(0.25, rel=1e-3)
    distances, expected = torch.pdist(bottleneck.table), torch.pdist(words)
    assert torch.allclose(distances / distances.mean(), expected / expected.mean(), atol=1e-4)
    ids = torch.arange(32).view(1, -1, 1)
    assert torch.equal(bottleneck.nearest(bottleneck.lookup(ids)), ids)
    with pytest.raises(ValueError, match=r"expected a table of shape \(32, 4\), got \(32, 5\)"):
        bottleneck.adopt(torch.zeros(32, 5))


# AdaCode


def adacode(**options) -> AdaCode:
    torch.manual_seed(0)
    return AdaCode(**{"codes": 32, "channels": 4, "count": 3, "levels": 8, **options})


def adacode_that_learns(*logits: float) -> tuple[AdaCode, list[Tensor]]:
    """With the same weights for every token, the softmax of `logits`, and its codes as they are."""
    bottleneck = adacode(decay=0.5, restart_below=0.0).train()
    with torch.no_grad():
        bottleneck.to_weights.weight.zero_()
        bottleneck.to_weights.bias.copy_(torch.tensor(logits))
    return bottleneck, [table.vectors.clone() for table in bottleneck.table_modules]


def test_adacode_learns_to_mix_codes_and_every_codebook_kept_lowers_the_error():
    bottleneck = adacode(dropout=0.5).train()
    optimiser = torch.optim.Adam(bottleneck.parameters(), lr=1e-2)
    for step in range(150):
        x = features(bottleneck, batch=4, count=200, seed=step)
        result = bottleneck(x.requires_grad_(), generators=seeded(range(4 * step, 4 * step + 4)))
        optimiser.zero_grad()
        ((result.vectors - x.detach()).square().mean() + sum(result.losses.values())).backward()
        optimiser.step()
    bottleneck.eval()
    x = features(bottleneck, batch=4, count=200, seed=999)
    ids = bottleneck(x).ids
    assert ids is not None
    errors = [(bottleneck.lookup(bottleneck.masked(ids, kept)) - x).square().mean() for kept in (1, 2, 3)]
    assert errors[2] < 0.5 * x.square().mean()
    assert errors[0] > errors[1] > errors[2]


def test_adacode_keeps_the_largest_weights_and_says_nothing_of_the_others():
    bottleneck = adacode()
    ids = bottleneck(features(bottleneck)).ids
    assert ids is not None
    some = bottleneck.masked(ids, 2)
    assert ((some[..., 3:] > 0).sum(dim=-1) <= 2).all()
    assert (some[..., :3][some[..., 3:] == 0] == 0).all()
    assert torch.equal(bottleneck.masked(ids, 3), ids)
    assert torch.equal(bottleneck.masked(some, 2), some)
    kept = adacode(kept=1)(features(bottleneck)).ids
    assert kept is not None and ((kept[..., 3:] > 0).sum(dim=-1) == 1).all()
    with pytest.raises(ValueError, match="a token keeps 1 to 3 codebooks, got 0"):
        bottleneck.masked(ids, 0)


def test_adacode_codes_learn_from_a_token_as_much_as_their_weight_says():
    bottleneck, before = adacode_that_learns(1.5, 0.0, -99.0)
    bottleneck(features(bottleneck).requires_grad_())
    moved = [(table.vectors - old).norm() for table, old in zip(bottleneck.table_modules, before, strict=True)]
    assert moved[0] > 1.2 * moved[1] > 0
    assert moved[2] < 1e-3 * moved[1]


def test_adacode_codes_that_a_token_leaves_out_learn_nothing_from_it_and_their_weights_from_the_nearest():
    """A weight that rounds to 0 gives id 0, which is no choice of code 0."""
    bottleneck, before = adacode_that_learns(9.0, 0.0, -99.0)
    x = features(bottleneck).requires_grad_()
    result = bottleneck(x)
    assert result.ids is not None and not result.ids[..., 4:].any()
    kept, out = (
        (table.vectors - old).norm() for table, old in zip(bottleneck.table_modules[:2], before[:2], strict=True)
    )
    assert out < 1e-3 * kept
    (grad,) = torch.autograd.grad(result.vectors.sum(), bottleneck.to_weights.bias)
    nearest = before[1][torch.cdist(x.detach(), before[1]).argmin(dim=-1)]
    weights = bottleneck.to_weights.bias.softmax(dim=0)
    first = before[0][torch.cdist(x.detach(), before[0]).argmin(dim=-1)]
    expected = (weights[0] * weights[1] * (nearest - first)).sum()
    assert torch.allclose(grad[1], expected, rtol=1e-3)


@pytest.mark.parametrize("options", [{"levels": 3}, {"count": 1}, {"kept": 4}, {"dropout": 2.0}])
def test_adacode_refuses_what_cannot_be(options: dict):
    with pytest.raises(ValueError, match="AdaCode needs"):
        adacode(**options)
