"""Is a masked transformer that makes one frame after the other taught exactly what its sampler meets?"""

import pytest
import torch
from tiny_models import SPECS, clip, random_latents, shake, tokenizer

from vidgen.conditioning import Condition, TokenState, WordTextEncoder
from vidgen.generators import FrameMaskedTransformer
from vidgen.generators.masked_frames import WholeFrames
from vidgen.nn.random import seeded
from vidgen.pipelines import MaskedVideoPipeline
from vidgen.schedulers import MaskedTokenScheduler

SPEC = SPECS["grid of ids"]  # 2 frames of 2×2 tokens from 4×8×8 pixels
FRAMES = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])


def network(name: str = "grid of ids", **config) -> FrameMaskedTransformer:
    torch.manual_seed(0)
    built = FrameMaskedTransformer(SPECS[name].to_json(), text_width=8, width=24, layers=2, heads=2, **config)
    shake(built)
    return built.eval()


def text(batch: int = 2, *, timeline: bool = False) -> Condition:
    states = torch.randn(batch, 3, 8, generator=torch.Generator().manual_seed(0))
    frames = torch.tensor([[0, 2], [2, 4], [0, 6]]).expand(batch, -1, -1) if timeline else None
    return Condition(states, torch.ones(batch, 3, dtype=torch.bool), frames)


def inputs(model, latents, condition=None) -> dict:
    coordinates = latents.spec.coordinates(latents.size)
    return {"coordinates": coordinates, **model.condition_inputs(condition or text(), coordinates)}


def three_frames(name: str = "grid of ids"):
    return random_latents(SPECS[name], size=(6, 8, 8))


@torch.no_grad()
@pytest.mark.parametrize("name", ["grid of ids", "grid of reals", "two codebooks"])
@pytest.mark.parametrize("timeline", [False, True])
def test_all_frames_at_once_are_taught_what_each_meets_in_sampling(name, timeline):
    model, latents = network(name), three_frames(name)
    tokens = latents.tokens if latents.ids is None else latents.ids
    given = inputs(model, latents, text(timeline=timeline))
    masked = torch.rand(2, 12, generator=torch.Generator().manual_seed(1)) < 0.6
    together = model(tokens, masked, **given, teacher_forced=True)
    for frame in range(3):
        own = frame == FRAMES
        ahead = torch.where(own, masked, frame < FRAMES)  # of the frame what is masked, and all that comes after it
        hidden = model(torch.where(ahead[..., None], 0, tokens), ahead, **given)
        assert torch.allclose(hidden[:, own], together[:, own], atol=1e-5)
        assert not torch.allclose(hidden[:, own], model(tokens, own.expand(2, -1), **given)[:, own], atol=1e-3)


@torch.no_grad()
def test_later_frames_change_nothing_and_a_frame_sees_itself_and_all_before():
    model, latents = network(), three_frames()
    given, nothing_masked = inputs(model, latents), torch.zeros(2, 12, dtype=torch.bool)
    before = model(latents.ids, nothing_masked, **given)
    for frame in range(3):
        changed = latents.ids.clone()
        changed[:, frame * 4] = (changed[:, frame * 4] + 1) % 32
        moved = (model(changed, nothing_masked, **given) != before).any(dim=-1)
        assert torch.equal(moved.any(dim=0), frame <= FRAMES)


@torch.no_grad()
@pytest.mark.parametrize("timeline", [False, True])
def test_whole_frames_are_kept_and_computed_once(timeline, monkeypatch):
    model, latents = network(), three_frames()
    given = inputs(model, latents, text(timeline=timeline))
    computed, blocks = [], model.blocks
    monkeypatch.setattr(model, "blocks", lambda x, *others: computed.append(x.shape[1]) or blocks(x, *others))
    memory = WholeFrames()
    for shown in ([0, 0], [2, 3], [4, 5], [4, 6], [8, 7], [8, 8], [11, 10]):  # tokens that are decided, of each sample
        masked = torch.arange(12) >= torch.tensor(shown)[:, None]
        tokens = torch.where(masked[..., None], 0, latents.ids)
        hidden = model(tokens, masked, **given, memory=memory)
        first = torch.arange(12) >= 12 - computed[-1]
        assert torch.allclose(hidden[:, first], model(tokens, masked, **given)[:, first], atol=1e-5)
        assert not hidden[:, ~first].any()
        del computed[-1]
    assert computed == [12, 12, 12, 8, 8, 8, 4]  # a frame is kept from the step on that sees it whole


@torch.no_grad()
def test_masked_copies_show_nothing_of_what_they_hide():
    model, latents = network(), three_frames()
    masked = torch.zeros(2, 12, dtype=torch.bool)
    masked[:, [1, 2, 9]] = True
    plain = model(latents.ids, masked, **inputs(model, latents), teacher_forced=True)
    other = torch.where(masked[..., None], (latents.ids + 1) % 32, latents.ids)
    changed = model(other, masked, **inputs(model, latents), teacher_forced=True)
    moved = (changed != plain).any(dim=-1).any(dim=0)
    assert not moved[FRAMES == 0].any()
    assert moved[FRAMES == 1].all()  # frames after it see it whole
    only_last = torch.where((masked & (FRAMES == 2))[..., None], (latents.ids + 1) % 32, latents.ids)
    assert torch.equal(plain, model(only_last, masked, **inputs(model, latents), teacher_forced=True))


def test_each_frame_hides_a_share_of_its_own_and_always_a_token():
    model, condition = network(), text(batch=400)
    condition.token_state = torch.full((400, 12), int(TokenState.UNKNOWN))
    condition.token_state[:, :6] = TokenState.KNOWN
    masked, asked = model.random_mask(condition, FRAMES, 400, seeded(range(400)))
    assert torch.equal(masked, asked)
    assert not masked[:, :6].any()
    per_frame = masked.unflatten(1, (3, 4)).sum(dim=2)
    assert torch.equal(per_frame[:, 1].unique(), torch.tensor([1, 2]))
    assert torch.equal(per_frame[:, 2].unique(), torch.tensor([1, 2, 3, 4]))
    assert all(80 < (per_frame[:, 2] == count).sum() < 120 for count in (1, 2, 3, 4))  # evenly
    assert (per_frame[:, 1] == 1).any() and (per_frame[:, 1] == 2).any()
    assert torch.corrcoef(per_frame[:, 1:].T.float())[0, 1].abs() < 0.15  # frames do not share their ratio


def test_every_weight_is_trained_and_known_tokens_have_no_part():
    model, latents = network(), three_frames()
    sum(model.losses(latents, text(), generators=seeded([0, 1])).values()).backward()
    unused = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert unused == {name for name, _ in model.named_parameters() if name.startswith("known_embedding")}


@pytest.mark.parametrize("bottleneck", ["fsq", "kl"])
def test_frames_that_are_known_come_first_and_come_back(bottleneck):
    torch.manual_seed(0)
    video_tokenizer = tokenizer(bottleneck)
    spec = video_tokenizer.spec.to_json()
    model = FrameMaskedTransformer(spec, text_width=16, width=24, layers=2, heads=2).eval()
    shake(model)
    scheduler = MaskedTokenScheduler("square", choice_order="frame")
    text_encoder = WordTextEncoder(width=16, layers=1, heads=2, buckets=64).eval()
    pipe = MaskedVideoPipeline(video_tokenizer, text_encoder, model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    call = {"num_frames": 9, "height": 16, "width": 16, "num_inference_steps": 5, "output_type": "pt"}
    first = clip(5)[0]
    made = pipe("a circle", video=first, generator=torch.Generator().manual_seed(3), **call).frames
    assert made.shape == (1, 9, 3, 16, 16)
    assert torch.allclose(made[0, :5], (first.movedim(0, 1) + 1) / 2, atol=1e-5)
    again = pipe("a circle", video=first, generator=torch.Generator().manual_seed(3), **call).frames
    assert torch.equal(made, again)


def test_it_is_saved_and_loaded_without_what_it_does_not_take(tmp_path):
    model, latents = network(), three_frames()
    model.save_pretrained(tmp_path)
    loaded = FrameMaskedTransformer.from_pretrained(tmp_path).eval()
    assert not {"windows", "time_order_share", "spectral_attention"} & set(loaded.config)
    masked = torch.ones(2, 12, dtype=torch.bool)
    given = inputs(model, latents)
    assert torch.equal(loaded(latents.ids, masked, **given), model(latents.ids, masked, **given))


def test_a_grid_is_asked_for_by_name():
    model, latents = network(), three_frames()
    given = {**inputs(model, latents), "grid": None}
    with pytest.raises(ValueError, match="give grid"):
        model(latents.ids, torch.ones(2, 12, dtype=torch.bool), **given)
