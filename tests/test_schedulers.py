"""Do the step rules end where they must, decide something at every step, and leave known tokens alone?"""

import math
from itertools import pairwise

import pytest
import torch

from vidgen.nn.random import categorical, gumbel, rand, seeded
from vidgen.schedulers import AbsorbingScheduler, AutoregressiveScheduler, MaskedTokenScheduler, SamplingRule
from vidgen.schedulers.mask_schedule import SCHEDULES

each_schedule = pytest.mark.parametrize("schedule", [*SCHEDULES, "pow2.5"])
FORMULAS = {  # MaskGIT's mask_schedule.schedule of progress r and the number of unknown tokens
    "cosine": lambda r, n: math.cos(r * math.pi / 2),
    "linear": lambda r, n: 1 - r,
    "square": lambda r, n: 1 - r * r,
    "cube": lambda r, n: 1 - r * r * r,
    "sqrt": lambda r, n: 1 - math.sqrt(r),
    "pow2.5": lambda r, n: 1 - r**2.5,
    "log": lambda r, n: min(1.0, -math.log2(r) / math.log2(n)),
    "exp": lambda r, n: 1 - 2 ** (-math.log2(n) * (1 - r)),
}


def decode(scheduler, *, steps, unknown, confidence=None, seed=0, predictions=None):
    """Run a scheduler on constant predictions; the tokens and what was masked after each step."""
    batch, count = unknown.shape
    generators = seeded([seed + index for index in range(batch)])
    predictions = torch.full((batch, count, 1), 7) if predictions is None else predictions
    sample = torch.zeros_like(predictions)
    masked, history = unknown.clone(), []
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        step = scheduler.step(
            predictions,
            timestep,
            sample,
            masked=masked,
            confidence=confidence,
            unknown=unknown,
            generators=generators,
        )
        sample, masked = step.prev_sample, step.masked
        history.append(masked)
    return sample, history


@each_schedule
def test_a_schedule_falls_from_all_masked_to_none(schedule):
    scheduler = MaskedTokenScheduler(schedule)
    shares = [scheduler.masked_share(step / 100, 1024) for step in range(101)]
    assert shares[0] == pytest.approx(1, abs=1 / 1024)
    assert abs(shares[-1]) < 1e-12
    assert all(before > after for before, after in pairwise(shares))


@each_schedule
@pytest.mark.parametrize("order", ["confidence", "random"])
@pytest.mark.parametrize(("steps", "count"), [(1, 5), (4, 30), (12, 30), (30, 30), (50, 7)])
def test_each_step_decides_a_token_until_none_is_left(schedule, order, steps, count):
    unknown = torch.ones(3, count, dtype=torch.bool)
    confidence = torch.randn(3, count, generator=torch.Generator().manual_seed(0))
    sample, history = decode(MaskedTokenScheduler(schedule, order), steps=steps, unknown=unknown, confidence=confidence)
    left = [count] + [int(masked.sum(dim=1).max()) for masked in history]
    assert all(after < before or before == 0 for before, after in pairwise(left))
    assert left[-1] == 0
    assert (sample == 7).all()


@each_schedule
@pytest.mark.parametrize("steps", [8, 12, 18])
def test_the_number_of_masked_tokens_follows_the_published_formula_at_every_step(schedule, steps):
    unknown = torch.ones(2, 1000, dtype=torch.bool)
    unknown[1, :300] = False
    _, history = decode(MaskedTokenScheduler(schedule), steps=steps, unknown=unknown)
    for sample, total in ((0, 1000), (1, 700)):
        expected, left = [], total
        for step in range(1, steps):
            wanted = total * FORMULAS[schedule](step / steps, total)
            left = min(math.floor(wanted + 1e-4), left - 1)
            expected.append(left)
        assert [int(masked[sample].sum()) for masked in history] == [*expected, 0]


def test_choice_noise_is_annealed_linearly_to_zero():
    """At the last step but one the noise of temperature 4.5 is scaled by what is left of the steps."""
    confidence = torch.zeros(1, 50)
    unknown = torch.ones(1, 50, dtype=torch.bool)
    for left, steps in ((3, 4), (1, 4)):
        scheduler = MaskedTokenScheduler("linear")
        scheduler.set_timesteps(steps)
        step = scheduler.step(
            torch.zeros(1, 50, 1, dtype=torch.long),
            left,
            torch.zeros(1, 50, 1, dtype=torch.long),
            masked=unknown,
            confidence=confidence + torch.arange(50.0) * 0.3,
            unknown=unknown,
            generators=seeded([0]),
        )
        score = torch.arange(50.0) * 0.3 + 4.5 * left / steps * gumbel((1, 50), seeded([0]))
        stays = score.argsort(dim=1)[:, : int(50 * left / steps)]
        assert set(stays[0].tolist()) == set(step.masked[0].nonzero()[:, 0].tolist())


def test_the_order_of_time_decides_early_tokens_first():
    scheduler = MaskedTokenScheduler("linear", choice_order="time")
    scheduler.set_timesteps(4)
    times = torch.tensor([0, 0, 0, 1, 1, 5, 5, 9])
    sample, unknown = torch.zeros(30, 8, 1, dtype=torch.long), torch.ones(30, 8, dtype=torch.bool)
    call = {"masked": unknown, "confidence": torch.randn(30, 8), "unknown": unknown, "generators": seeded(range(30))}
    step = scheduler.step(sample, 3, sample, times=times, **call)  # two of eight tokens are decided
    assert not step.masked[:, :3].all(dim=1).any() and step.masked[:, 3:].all()
    assert len({tuple(row) for row in step.masked[:, :3].tolist()}) == 3  # any two of the first three
    with pytest.raises(ValueError, match="needs the times"):
        scheduler.step(sample, 3, sample, **call)


@pytest.mark.parametrize("schedule", ["linear", "square", "cosine"])
@pytest.mark.parametrize("steps", [3, 4, 7, 30])
def test_the_order_of_frames_decides_no_two_in_one_step(steps, schedule):
    scheduler = MaskedTokenScheduler(schedule, choice_order="frame")
    scheduler.set_timesteps(steps)
    times = torch.tensor([0, 0, 0, 1, 1, 1, 5, 5, 5, 9, 9, 9])
    sample, unknown = torch.zeros(2, 12, 1, dtype=torch.long), torch.ones(2, 12, dtype=torch.bool)
    unknown[1, :4] = False
    masked = unknown
    for left in scheduler.timesteps:
        call = {"masked": masked, "unknown": unknown, "generators": seeded([1, 2]), "times": times}
        step = scheduler.step(sample, left, sample, confidence=torch.randn(2, 12), **call)
        for before, after in zip(masked, step.masked, strict=True):
            decided = times[before & ~after]
            assert len(decided) > 0 or not before.any()
            assert len(decided.unique()) <= 1 or (left == 0 and steps < 5)
            assert not before.any() or decided.min() == times[before].min()
        masked = step.masked
    assert not masked.any()


@pytest.mark.parametrize("order", ["random", "time", "frame"])
@pytest.mark.parametrize("left", [3, 1, 0])
def test_places_are_the_tokens_that_a_step_decides(order, left):
    scheduler = MaskedTokenScheduler("linear", choice_order=order)
    scheduler.set_timesteps(4)
    unknown = torch.ones(5, 8, dtype=torch.bool)
    unknown[2, :6] = False
    masked = unknown.clone()
    masked[:, 7] = False
    state = {"masked": masked, "unknown": unknown, "times": torch.arange(8)}
    places = scheduler.places(left, generators=seeded(range(5)), **state)
    assert places.any(dim=1).all() and not (places & ~masked).any()
    assert left > 0 or places.equal(masked)
    sample, drawn = torch.zeros(5, 8, 1, dtype=torch.long), torch.full((5, 8, 1), 7)
    call = {"confidence": torch.randn(5, 8), "generators": seeded(range(5)), **state}
    itself = scheduler.step(drawn, left, sample, **call)
    told = scheduler.step(torch.where(places[..., None], drawn, sample), left, sample, places=places, **call)
    assert itself.masked.equal(told.masked) and told.masked.equal(masked & ~places)
    assert told.prev_sample[..., 0].eq(7).equal(places)


def test_places_depend_on_what_is_drawn_where_confidence_decides():
    masked = torch.ones(1, 8, dtype=torch.bool)
    state = {"masked": masked, "unknown": masked, "generators": seeded([0])}
    for scheduler in (MaskedTokenScheduler(), AbsorbingScheduler()):
        scheduler.set_timesteps(4)
        assert scheduler.places(3, **state) is None
    unsure = MaskedTokenScheduler()
    unsure.set_timesteps(4)
    assert unsure.places(3, confident=False, **state).sum() >= 1  # of reals without a probability: at random


def test_a_critic_may_mask_decided_tokens_again_and_keeps_the_count():
    unknown = torch.ones(1, 20, dtype=torch.bool)
    unknown[0, :4] = False
    masked = unknown.clone()
    masked[0, :12] = False
    scheduler = MaskedTokenScheduler("linear", choice_temperature=0.0)
    scheduler.set_timesteps(4)
    realness = torch.arange(20.0)[None]  # the first ones are doubted most
    sample = torch.zeros(1, 20, 1, dtype=torch.long)
    step = scheduler.step(
        sample + 7,
        2,
        sample,
        masked=masked,
        confidence=None,
        unknown=unknown,
        generators=seeded([0]),
        realness=realness,
    )
    assert step.masked[0].nonzero()[:, 0].tolist() == list(range(4, 12))
    assert (step.prev_sample.squeeze(-1) == 7).equal(masked)


@pytest.mark.parametrize("kind", [MaskedTokenScheduler, AbsorbingScheduler])
def test_guidance_is_constant_or_grows_from_nearly_one(kind):
    scheduler = kind(guidance_ramp="linear")
    scheduler.set_timesteps(4)
    assert [scheduler.guidance_at(t, 5.0) for t in scheduler.timesteps] == [2.0, 3.0, 4.0, 5.0]
    scheduler = kind()
    scheduler.set_timesteps(4)
    assert [scheduler.guidance_at(t, 5.0) for t in scheduler.timesteps] == [5.0] * 4
    with pytest.raises(ValueError, match="unknown guidance_ramp 'cosine'; one of constant, linear"):
        kind(guidance_ramp="cosine")


# ------------------------------------------------------------------------------------------------------- absorbing


@pytest.mark.parametrize("schedule", ["linear", "cosine", "exp"])
@pytest.mark.parametrize("remask", [0.0, 0.1, 0.9])
def test_the_absorbing_process_masks_the_share_of_its_formula_on_average(schedule, remask):
    unknown = torch.ones(4, 20_000, dtype=torch.bool)
    unknown[:, :2_000] = False
    _, history = decode(AbsorbingScheduler(schedule, remask=remask), steps=5, unknown=unknown)
    for step, masked in enumerate(history[:-1], start=1):
        share = masked.sum().item() / unknown.sum().item()
        assert share == pytest.approx(FORMULAS[schedule](step / 5, 18_000), abs=0.01)
    assert not history[-1].any()
    assert not (torch.stack(history) & ~unknown).any()


def test_without_remasking_decided_tokens_stay_and_with_it_some_are_drawn_again():
    unknown = torch.ones(1, 1000, dtype=torch.bool)
    for remask in (0.0, 0.3):
        _, history = decode(AbsorbingScheduler(remask=remask), steps=6, unknown=unknown)
        again = sum(bool((after & ~before).any()) for before, after in pairwise(history))
        assert (again > 0) == (remask > 0)


def test_an_absorbing_step_of_a_sample_depends_on_its_own_generator_alone():
    unknown = torch.ones(3, 50, dtype=torch.bool)
    _, together = decode(AbsorbingScheduler(), steps=4, unknown=unknown)
    _, alone = decode(AbsorbingScheduler(), steps=4, unknown=unknown[:1])
    assert all(torch.equal(one[:1], two) for one, two in zip(together, alone, strict=True))
    with pytest.raises(ValueError, match="remask"):
        AbsorbingScheduler(remask=1.0)


@each_schedule
def test_tokens_that_are_known_or_decided_never_change(schedule):
    unknown = torch.rand(2, 40, generator=torch.Generator().manual_seed(1)) < 0.5
    unknown[1] = False
    sample, history = decode(MaskedTokenScheduler(schedule), steps=5, unknown=unknown)
    assert (sample.squeeze(-1) == 7).equal(unknown)
    for before, after in zip([unknown, *history[:-1]], history, strict=True):
        assert not (after & ~before).any(), "a decided token is masked again"


def test_without_noise_the_surest_tokens_are_decided_first():
    confidence = torch.arange(20.0).flip(0)[None]
    scheduler = MaskedTokenScheduler("linear", "confidence", choice_temperature=0.0)
    _, history = decode(scheduler, steps=4, unknown=torch.ones(1, 20, dtype=torch.bool), confidence=confidence)
    for masked, decided in zip(history, [5, 10, 15, 20], strict=True):
        assert (~masked[0, :decided]).all()
        assert masked[0, decided:].all()


@pytest.mark.parametrize("with_confidence", [True, False])
def test_the_order_of_a_sample_depends_on_its_own_generator_alone(with_confidence):
    unknown = torch.ones(3, 30, dtype=torch.bool)
    confidence = torch.randn(3, 30, generator=torch.Generator().manual_seed(0)) if with_confidence else None
    _, together = decode(MaskedTokenScheduler(), steps=5, unknown=unknown, confidence=confidence)
    alone_confidence = None if confidence is None else confidence[:1]
    _, alone = decode(MaskedTokenScheduler(), steps=5, unknown=unknown[:1], confidence=alone_confidence)
    _, other = decode(MaskedTokenScheduler(), steps=5, unknown=unknown[:1], confidence=alone_confidence, seed=9)
    assert all(torch.equal(one[:1], two) for one, two in zip(together, alone, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(alone, other, strict=True))


def test_reals_keep_the_type_of_the_sample():
    predictions = torch.randn(1, 6, 3)
    scheduler = MaskedTokenScheduler()
    scheduler.set_timesteps(2)
    step = scheduler.step(
        predictions,
        1,
        torch.zeros(1, 6, 3, dtype=torch.bfloat16),
        masked=torch.ones(1, 6, dtype=torch.bool),
        confidence=None,
        unknown=torch.ones(1, 6, dtype=torch.bool),
        generators=seeded([0]),
    )
    assert step.prev_sample.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "wrong", [{"schedule": "cubic"}, {"schedule": "pow0"}, {"choice_order": "best"}, {"choice_temperature": -1.0}]
)
def test_unknown_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MaskedTokenScheduler(**wrong)


@pytest.mark.parametrize("kind", [MaskedTokenScheduler, AutoregressiveScheduler])
def test_a_saved_scheduler_comes_back(kind, tmp_path):
    changed = {"schedule": "linear"} if kind is MaskedTokenScheduler else {"guidance_until": 0.25}
    kind(**changed).save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in changed} == changed


# --------------------------------------------------------------------------------------------------- token by token


def test_an_autoregressive_step_appends_the_given_token_where_it_is_known():
    scheduler = AutoregressiveScheduler()
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == [0, 1, 2]
    sample = torch.tensor([[[1]], [[2]]])
    predicted, given = torch.tensor([[[8]], [[8]]]), torch.tensor([[[5]], [[5]]])
    unknown = torch.tensor([[True], [False]])
    appended = scheduler.step(predicted, 1, sample, given=given, unknown=unknown).prev_sample
    assert appended.tolist() == [[[1], [8]], [[2], [5]]]
    with pytest.raises(ValueError, match="expected the token at position 1"):
        scheduler.step(predicted, 2, sample, given=given, unknown=unknown)


def test_guidance_ends_at_its_share_of_the_sequence():
    scheduler = AutoregressiveScheduler(guidance_until=0.5)
    scheduler.set_timesteps(10)
    assert [scheduler.guidance_at(position, 3.0) for position in (0, 4, 5, 9)] == [3.0, 3.0, 1.0, 1.0]
    scheduler.register_to_config(guidance_from=0.2)
    assert [scheduler.guidance_at(position, 3.0) for position in (1, 2, 4, 5)] == [1.0, 3.0, 3.0, 1.0]
    with pytest.raises(ValueError, match="guidance_until"):
        AutoregressiveScheduler(guidance_until=2.0)


# ------------------------------------------------------------------------------------------------------ the drawing


def test_top_k_keeps_k_codes_and_top_p_the_smallest_set_with_that_probability():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert SamplingRule(top_k=2).filter(logits).isfinite().tolist() == [True, True, False, False]
    for top_p, kept in ((0.4, 1), (0.6, 2), (0.79, 2), (0.9, 3), (0.99, 4), (1.0, 4)):
        assert SamplingRule(top_p=top_p).filter(logits).isfinite().sum() == kept, top_p
    shuffled = SamplingRule(top_p=0.6).filter(logits[[3, 1, 2, 0]])
    assert shuffled.isfinite().tolist() == [False, True, False, True]


def test_temperature_divides_the_logits():
    logits = torch.tensor([1.0, 2.0])
    assert SamplingRule(temperature=0.5).filter(logits).tolist() == [2.0, 4.0]
    assert SamplingRule(temperature=0.0).filter(logits).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"flow_steps": 0}])
def test_impossible_rules_are_refused(wrong):
    with pytest.raises(ValueError, match="expected temperature"):
        SamplingRule(**wrong)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noise_in_half_precision_is_that_of_single_precision_rounded(dtype):
    shape, like = (1, 300_000), torch.zeros((), dtype=dtype)
    assert torch.equal(gumbel(shape, seeded([0]), like=like), gumbel(shape, seeded([0])).to(dtype))
    uniform = rand(shape, seeded([0]), like=like)
    assert uniform.dtype == dtype
    assert uniform.min() >= 0
    assert uniform.max() < 1


def test_gumbel_noise_draws_each_code_as_often_as_its_probability():
    probability = torch.tensor([0.5, 0.3, 0.15, 0.05])
    noise = gumbel((1, 40_000, 4), seeded([0]))
    assert noise.isfinite().all()
    drawn = (probability.log() + noise).argmax(dim=-1)
    shares = torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()
    assert (shares - probability).abs().max() < 0.01
    assert abs(noise.mean().item() - 0.5772) < 0.02


def test_categorical_draws_each_code_as_often_as_its_probability():
    probability = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05, 0.0])
    drawn = categorical(probability.log().expand(1, 40_000, 6), seeded([0]))
    shares = torch.bincount(drawn.flatten(), minlength=6) / drawn.numel()
    assert (shares - probability).abs().max() < 0.01
    assert shares[1] == 0 and shares[5] == 0


def test_categorical_never_draws_a_forbidden_code_and_takes_large_codebooks():
    logits = torch.full((1, 64, 2**18), float("-inf"))
    logits[..., 5::7] = torch.randn(1, 64, len(range(5, 2**18, 7)))
    drawn = categorical(logits, seeded([0]))
    assert (drawn % 7 == 5).all() and drawn.unique().numel() > 60
    together = categorical(logits.expand(2, -1, -1), seeded([3, 0]))
    assert torch.equal(together[1:], drawn)


def test_noise_of_a_sample_does_not_depend_on_the_batch():
    together, alone = rand((3, 5), seeded([1, 2, 3])), rand((1, 5), seeded([2]))
    assert torch.equal(together[1:2], alone)
    with pytest.raises(ValueError, match="one generator per sample"):
        rand((3, 5), seeded([1]))
