"""Does the efficient masked transformer encode each visible token once, exactly, and at a fraction of the cost?"""

import pytest
import torch
from tiny_models import SPECS, clip, random_latents, shake, tokenizer

from vidgen.conditioning import Condition, TokenState, WordTextEncoder
from vidgen.eval.flops import count_flops
from vidgen.generators import EfficientMaskedTransformer, MaskedTransformer
from vidgen.generators.masked_efficient import EncodedTokens, Few
from vidgen.nn.random import seeded
from vidgen.pipelines import MaskedVideoPipeline
from vidgen.schedulers import AbsorbingScheduler, MaskedTokenScheduler

COUNT = 8  # tokens of the tiny grid


def network(name: str = "grid of ids", **config) -> EfficientMaskedTransformer:
    torch.manual_seed(0)
    built = EfficientMaskedTransformer(SPECS[name].to_json(), text_width=8, width=24, layers=2, heads=2, **config)
    shake(built)
    return built.eval()


def text(batch: int = 2) -> Condition:
    states = torch.randn(batch, 3, 8, generator=torch.Generator().manual_seed(0))
    return Condition(states, torch.ones(batch, 3, dtype=torch.bool))


def inputs(model, latents, condition=None) -> dict:
    coordinates = latents.spec.coordinates(latents.size)
    return {"coordinates": coordinates, **model.condition_inputs(condition or text(len(latents)), coordinates)}


def masks(*rows: str) -> torch.Tensor:
    """Bool `b n`; "x" is masked."""
    return torch.tensor([[letter == "x" for letter in row] for row in rows])


@torch.no_grad()
@pytest.mark.parametrize("name", SPECS)
def test_every_kind_of_tokens_is_served_whatever_is_masked(name):
    model, latents = network(name), random_latents(SPECS[name])
    tokens = latents.tokens if latents.ids is None else latents.ids
    for share in (0.0, 0.5, 1.0):
        masked = torch.arange(tokens.shape[1]).expand(2, -1) < share * tokens.shape[1]
        hidden = model(tokens, masked, **inputs(model, latents))
        assert hidden.shape == (*tokens.shape[:2], 24)
        assert hidden.isfinite().all()


@torch.no_grad()
def test_masked_tokens_are_never_seen_and_visible_features_do_not_depend_on_them():
    model, latents = network(), random_latents(SPECS["grid of ids"])
    masked = masks("xxoxxoox", "oxxxxxxx")
    other = torch.where(masked[..., None], (latents.ids + 1) % 32, latents.ids)
    plain = model(latents.ids, masked, **inputs(model, latents))
    assert torch.equal(plain, model(other, masked, **inputs(model, latents)))
    fewer = masks("xxoxxooo", "oxxxxxxo")
    fewer_hidden = model(latents.ids, fewer, **inputs(model, latents))
    assert (plain - fewer_hidden)[masked].abs().max() > 1e-4


@torch.no_grad()
def test_a_sample_does_not_depend_on_how_many_tokens_the_others_show():
    model, latents = network(), random_latents(SPECS["grid of ids"], batch=3)
    masked = masks("xxoxxoox", "xxxxxxxx", "oooooooo")
    together = model(latents.ids, masked, **inputs(model, latents))
    for index in range(3):
        told = text(3).states[index : index + 1]
        condition = Condition(told, torch.ones(1, 3, dtype=torch.bool))
        alone = model(
            latents.ids[index : index + 1], masked[index : index + 1], **inputs(model, latents[:1], condition)
        )
        assert (together[index] - alone[0]).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("known", [False, True])
def test_reuse_between_steps_is_what_was_trained(known):
    """Encoding in two steps with a memory = one pass whose first generation did not see the second."""
    model, latents = network(), random_latents(SPECS["grid of ids"])
    condition = text()
    if known:
        state = torch.full((2, COUNT), int(TokenState.PARTIAL))
        condition = Condition(condition.states, condition.mask, None, random_latents(latents.spec, seed=5), state)
    first, second = masks("xxoxxoox", "xxxxoxxx"), masks("xxoxoooo", "oxxxoxox")
    memory = EncodedTokens()
    model(latents.ids, first, memory=memory, **inputs(model, latents, condition))
    kept = memory.keys[1].clone()
    reused = model(latents.ids, second, memory=memory, **inputs(model, latents, condition))
    once = model(latents.ids, second, earlier=~first, **inputs(model, latents, condition))
    assert (reused - once).abs().max() < 1e-5
    unchanged = ~first
    assert torch.equal(memory.keys[1].transpose(1, 2)[unchanged], kept.transpose(1, 2)[unchanged])
    fresh = model(latents.ids, second, **inputs(model, latents, condition))
    assert (reused - fresh).abs().max() > 1e-4, "seeing less must make a difference"


@torch.no_grad()
def test_a_token_that_is_masked_again_is_forgotten():
    model, latents = network(), random_latents(SPECS["grid of ids"])
    memory = EncodedTokens()
    model(latents.ids, masks("oooxxxxx", "oooxxxxx"), memory=memory, **inputs(model, latents))
    masked = masks("oxoxxxxx", "oxoxxxxx")
    other = latents.ids.clone()
    other[:, 1] = (other[:, 1] + 3) % 32
    one = model(latents.ids, masked, memory=memory, **inputs(model, latents))
    assert memory.encoded.equal(~masked)
    assert torch.equal(one, model(other, masked, memory=memory, **inputs(model, latents)))


def test_few_tokens_are_taken_and_put_back_where_they_were():
    few = Few(masks("xxoo", "oxoo"))
    x = torch.arange(8.0).view(2, 4, 1)
    assert few.real.tolist() == [[True, True], [True, False]]
    assert few.take(x)[few.real].flatten().tolist() == [0, 1, 5]
    assert few.put(x, few.take(x) * 10).flatten().tolist() == [0, 10, 2, 3, 4, 50, 6, 7]
    heads = x.view(2, 1, 4, 1).expand(2, 3, 4, 1)
    assert torch.equal(few.put(heads, torch.zeros(2, 3, 2, 1))[:, 2], few.put(x, torch.zeros(2, 2, 1)))


def test_both_generations_are_trained_and_gradients_are_numbers():
    model, latents = network(reconstruction_weight=0.5), random_latents(SPECS["grid of ids"])
    for step in range(4):
        losses = model.losses(latents, text(), generators=seeded([step, step + 9]))
        sum(losses.values()).backward()
    grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)
    assert model.transformer_blocks[0].to_kv.weight.grad.abs().sum() > 0
    earlier = model.training_inputs(masks("xxxxoooo", "oooooooo"), seeded([3, 4]))["earlier"]
    assert not earlier[0, :4].any()


def pipeline(network, scheduler) -> MaskedVideoPipeline:
    torch.manual_seed(0)
    built = network.eval()
    pipe = MaskedVideoPipeline(tokenizer(), WordTextEncoder(width=8, layers=1, heads=2, buckets=16), built, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


SIZES = {"num_frames": 17, "height": 64, "width": 64}  # 320 tokens


def flops(pipe: MaskedVideoPipeline) -> int:
    """Of the network, over 12 steps."""
    count = 0
    forward = pipe.transformer.forward

    def counted(*given, **named):
        nonlocal count
        with count_flops() as counter:
            output = forward(*given, **named)
        count += counter.get_total_flops()
        return output

    pipe.transformer.forward = counted
    pipe("red", num_inference_steps=12, guidance_scale=1.0, generator=seeded([0]), output_type="latent", **SIZES)
    del pipe.transformer.forward
    return count


def test_twelve_steps_cost_less_than_a_third_of_the_plain_networks():
    spec, size = tokenizer().spec.to_json(), {"text_width": 8, "width": 32, "heads": 2}
    plain = flops(pipeline(MaskedTransformer(spec, layers=12, **size), MaskedTokenScheduler()))
    efficient = EfficientMaskedTransformer(spec, layers=10, decoder_layers=2, **size)
    assert flops(pipeline(efficient, MaskedTokenScheduler())) < 0.33 * plain


@pytest.mark.parametrize("scheduler", [MaskedTokenScheduler(), AbsorbingScheduler(remask=0.3)])
def test_sampling_keeps_known_pixels_and_a_changing_callback_starts_the_memory_anew(scheduler):
    spec = tokenizer().spec.to_json()
    network = EfficientMaskedTransformer(spec, text_width=8, width=32, layers=2, heads=2)
    shake(network)
    pipe = pipeline(network, scheduler)
    video = clip(frames=1)
    call = {"num_frames": 5, "height": 16, "width": 16, "num_inference_steps": 4, "guidance_scale": 2.0}
    frames = pipe("red", video=video, generator=seeded([0]), output_type="pt", **call).frames
    assert torch.equal(frames[:, 0], (video / 2 + 0.5)[:, :, 0])

    def same(pipe, step, timestep, tensors):
        return tensors

    def copies(pipe, step, timestep, tensors):
        return {name: tensor.clone() for name, tensor in tensors.items()}

    one, two, anew = (
        pipe("red", generator=seeded([0]), output_type="latent", callback_on_step_end=callback, **call).frames.ids
        for callback in (None, same, copies)
    )
    assert torch.equal(one, two)
    assert anew.shape == one.shape


def test_a_saved_network_comes_back_bit_by_bit(tmp_path):
    model, latents = network(tasks=3), random_latents(SPECS["grid of ids"])
    model.save_pretrained(tmp_path)
    loaded = EfficientMaskedTransformer.from_pretrained(tmp_path).eval()
    masked = masks("xxoxxoox", "oxxxxxxx")
    with torch.no_grad():
        one, other = (each(latents.ids, masked, **inputs(each, latents)) for each in (model, loaded))
    assert torch.equal(one, other)
    assert loaded.config.decoder_layers == 2
