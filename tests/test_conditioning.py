"""Do conditions say what they mean: which pixels a token knows, which prompt it hears, what a text encoder gives?"""

import warnings

import pytest
import torch
from tiny_models import SPECS, clip, tokenizer

from vidgen.conditioning import Condition, TokenState, WordTextEncoder, known_from_video, known_prefix
from vidgen.conditioning.known import fill_unknown, last_frames, token_states
from vidgen.latents import LatentPart, Latents, LatentSpec

UNKNOWN, PARTIAL, KNOWN = TokenState.UNKNOWN, TokenState.PARTIAL, TokenState.KNOWN
CAUSAL = LatentSpec((LatentPart("grid", "thw", (4, 8, 8), 3, first_frame_alone=True),), causal=True, streamable=True)


def mask_of(frames: int, height: int = 8, width: int = 8, *, known: slice | None = None):
    mask = torch.zeros(1, 1, frames, height, width, dtype=torch.bool)
    if known is not None:
        mask[:, :, known] = True
    return mask


# ---------------------------------------------------------------------------------------------------- token states


@pytest.mark.parametrize(
    ("known", "states"),
    [
        (0, [UNKNOWN, UNKNOWN, UNKNOWN]),
        (1, [KNOWN, UNKNOWN, UNKNOWN]),
        (3, [KNOWN, PARTIAL, UNKNOWN]),
        (5, [KNOWN, KNOWN, UNKNOWN]),
        (8, [KNOWN, KNOWN, PARTIAL]),
        (9, [KNOWN, KNOWN, KNOWN]),
    ],
)
def test_with_a_lone_first_frame_known_frames_make_rows_known(known, states):
    assert token_states(mask_of(9, known=slice(0, known)), CAUSAL).tolist() == [states]


def test_without_a_lone_first_frame_rows_begin_at_frame_zero():
    spec = LatentSpec((LatentPart("grid", "thw", (4, 8, 8), 3),), causal=False, streamable=False)
    assert token_states(mask_of(8, known=slice(0, 5)), spec).tolist() == [[KNOWN, PARTIAL]]


def test_pixels_that_only_pad_the_video_do_not_count():
    mask = mask_of(3, 11, 5, known=slice(None))  # rows 1 + 4, heights 8 + 8, widths 8: all padded
    assert token_states(mask, CAUSAL).tolist() == [[KNOWN] * 4]
    mask[:, :, 2, 10, 4] = False
    assert token_states(mask, CAUSAL).tolist() == [[KNOWN, KNOWN, KNOWN, PARTIAL]]
    only_one = mask_of(3, 11, 5)
    only_one[:, :, 0, 10, 4] = True
    assert token_states(only_one, CAUSAL).tolist() == [[UNKNOWN, PARTIAL, UNKNOWN, UNKNOWN]]


def test_one_unknown_pixel_in_a_million_is_seen():
    spec = LatentSpec((LatentPart("query", "", (), 4, count=2),), causal=False, streamable=False)
    mask = torch.ones(1, 1, 4, 512, 512, dtype=torch.bool)
    assert token_states(mask, spec).tolist() == [[KNOWN, KNOWN]]
    mask[0, 0, 3, 511, 511] = False
    assert token_states(mask, spec).tolist() == [[PARTIAL, PARTIAL]]
    assert token_states(~mask, spec).tolist() == [[PARTIAL, PARTIAL]]


def test_a_token_without_a_place_on_an_axis_covers_the_whole_axis():
    states = token_states(mask_of(4, known=slice(0, 2)), SPECS["two parts of ids"])
    assert states.tolist() == [[PARTIAL] * 4 + [KNOWN, UNKNOWN]]


@pytest.mark.parametrize("name", SPECS)
def test_there_is_one_state_for_every_token_and_samples_have_their_own(name):
    mask = torch.cat([mask_of(4, known=slice(None)), mask_of(4)])
    states = token_states(mask, SPECS[name])
    assert states.shape == (2, SPECS[name].num_tokens((4, 8, 8)))
    assert (states[0] == KNOWN).all()
    assert (states[1] == UNKNOWN).all()


# ---------------------------------------------------------------------------------------------------- known pixels


def test_unknown_pixels_take_the_nearest_known_frame_before_else_after_else_gray():
    video = torch.arange(1.0, 6.0).reshape(1, 1, 5, 1, 1).expand(1, 3, 5, 1, 2) / 10
    mask = torch.zeros(1, 1, 5, 1, 2, dtype=torch.bool)
    mask[:, :, [1, 3], :, 0] = True
    filled = fill_unknown(video, mask)
    assert filled[0, 0, :, 0, 0].tolist() == pytest.approx([0.2, 0.2, 0.2, 0.4, 0.4])
    assert filled[0, 0, :, 0, 1].tolist() == [0] * 5


def test_filling_one_video_does_not_depend_on_the_others():
    videos = clip(batch=2)
    masks = torch.rand(2, 1, 5, 16, 16, generator=torch.Generator().manual_seed(1)) < 0.3
    together = fill_unknown(videos, masks)
    assert torch.equal(together[:1], fill_unknown(videos[:1], masks[:1]))


def test_tokens_of_known_first_frames_do_not_depend_on_what_follows():
    model, video = tokenizer("fsq"), clip(9)
    mask = mask_of(9, 16, 16, known=slice(0, 5))
    latents, states = known_from_video(model, video, mask)
    whole = model.encode(video)
    known = states[0] == KNOWN
    assert known.sum() == 8
    assert torch.equal(latents.ids[:, known], whole.ids[:, known])


@pytest.mark.parametrize("first_frame_alone", [True, False])
@pytest.mark.parametrize("total", [6, 9])
def test_a_known_prefix_marks_the_tokens_whose_frames_are_all_known(first_frame_alone, total):
    part = LatentPart("grid", "thw", (4, 8, 8), 3, first_frame_alone=first_frame_alone)
    spec = LatentSpec((part,), causal=True, streamable=True)
    size = (total, 8, 8)
    frames = torch.arange(total + 1)
    latents = Latents(torch.zeros(total + 1, spec.num_tokens(size), 3), None, size, spec)
    masks = torch.cat([mask_of(total, known=slice(0, int(count))) for count in frames])
    expected = token_states(masks, spec) == KNOWN
    assert torch.equal(known_prefix(latents, frames) == KNOWN, expected)
    assert last_frames(spec, size).max() == total - 1


def test_a_known_prefix_needs_a_causal_tokenizer():
    latents = Latents(torch.zeros(1, 8, 3), None, (4, 8, 8), SPECS["grid of reals"])
    with pytest.raises(ValueError, match="causal"):
        known_prefix(latents, torch.tensor([2]))


# ------------------------------------------------------------------------------------------------------ the prompts


def test_known_tokens_and_their_states_come_together():
    latents = Latents(torch.zeros(1, 8, 3), None, (4, 8, 8), SPECS["grid of reals"])
    with pytest.raises(ValueError, match="come together"):
        Condition(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.bool), known=latents)


def test_a_timeline_shows_each_token_the_prompts_of_its_frames():
    frames = torch.tensor([[[0, 4], [4, 99]]])
    condition = Condition(torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.bool), frames=frames)
    seen = condition.mask_for(torch.tensor([0, 3, 4, 8, -1]))
    assert seen.tolist() == [[[True, False], [True, False], [False, True], [False, True], [True, True]]]
    dropped = condition.without_text().mask_for(torch.tensor([0, 8]))
    assert not dropped.any()


def test_dropping_text_touches_only_the_dropped_samples():
    condition = Condition(torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))
    kept = condition.without_text(torch.tensor([True, False])).mask
    assert kept.tolist() == [[False] * 3, [True] * 3]


# ------------------------------------------------------------------------------------------------- the text encoder


def text_encoder() -> WordTextEncoder:
    torch.manual_seed(0)
    return WordTextEncoder(width=16, layers=2, heads=2, buckets=64, max_words=8).eval()


@torch.no_grad()
def test_states_of_a_prompt_do_not_depend_on_the_other_prompts():
    encoder = text_encoder()
    alone = encoder.encode(["a red circle"])
    both = encoder.encode(["a red circle", "a large blue star moving to the left"])
    assert both.mask.sum(dim=1).tolist() == [3, 8]
    assert (both.states[0, :3] - alone.states[0]).abs().max() <= 1e-5


@torch.no_grad()
def test_word_order_words_and_punctuation_count_and_case_does_not():
    encoder = text_encoder()
    plain = encoder.encode(["red circle"]).states
    assert torch.equal(plain, encoder.encode(["Red CIRCLE"]).states)
    assert not torch.allclose(plain, encoder.encode(["circle red"]).states)
    assert not torch.allclose(plain, encoder.encode(["red square"]).states)
    assert encoder.encode(["red, circle"]).mask.sum() == 3


@torch.no_grad()
def test_an_empty_prompt_has_no_states_and_no_nan():
    text = text_encoder().encode(["", "red"])
    assert text.mask.sum(dim=1).tolist() == [0, 1]
    assert text.states.isfinite().all()


def test_words_that_training_never_showed_draw_a_warning(tmp_path):
    encoder = WordTextEncoder(width=24, layers=1, heads=3)
    encoder.meet(["A red circle", "a blue star!"])
    encoder.meet(["a green star"])
    encoder.save_pretrained(tmp_path)
    again = WordTextEncoder.from_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.warn_of_strange_words(["A blue circle", "", "green star!"])
        WordTextEncoder(width=24, layers=1, heads=3).warn_of_strange_words(["nobody wrote the words down"])
    with pytest.warns(UserWarning, match="on 'cat', 'my', .* 7 words: !, a, blue, circle, green, red, star"):
        again.warn_of_strange_words(["a red star", "my cat"])


def test_a_prompt_that_is_too_long_is_refused_and_says_by_how_much():
    with pytest.raises(ValueError, match=r"9 words.*at most 8"):
        text_encoder().encode(["word " * 9])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["Bert", "T5"])
def test_any_encoder_of_transformers_fits_and_survives_saving(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    from vidgen.conditioning import TransformersTextEncoder

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "circle", "star"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    source = tmp_path / "source"
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(source)
    if kind == "Bert":
        config = transformers.BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    else:
        config = transformers.T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(source)
    encoder = TransformersTextEncoder(str(source)).eval()
    text = encoder.encode(["red circle", "", "star"])
    assert encoder.width == 16
    assert text.states.shape[0] == 3
    assert text.mask.any(dim=1).tolist() == [True, False, True]
    assert not any(weight.requires_grad for weight in encoder.parameters())
    encoder.save_pretrained(tmp_path / "saved")
    for file in source.iterdir():  # a saved encoder stands by itself
        file.unlink()
    again = TransformersTextEncoder.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(again.encode(["red circle", "", "star"]).states, text.states)


@torch.no_grad()
def test_an_encoder_that_cuts_a_prompt_says_what_it_does_not_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    from vidgen.conditioning import TransformersTextEncoder

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "circle", "star"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    encoder = TransformersTextEncoder(str(tmp_path), max_length=4).eval()
    with pytest.warns(UserWarning, match=r"has 6 tokens; this text encoder takes 4 and does not read 'red star'"):
        text = encoder.encode(["circle star red star"])
    assert text.states.shape[1] == 4
    strict = TransformersTextEncoder(str(tmp_path), max_length=4, strict=True).eval()
    with pytest.raises(ValueError, match="shorten it by 'red star'"):
        strict.encode(["circle star red star"])
    assert strict.encode(["circle star"]).states.shape[1] == 4
