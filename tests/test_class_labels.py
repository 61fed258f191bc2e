"""Is a class label heard by every family, and is it the name of its class?"""

import pytest
import torch
from test_pipelines import each_family, sample
from tiny_models import FAMILIES, shake, tokenizer

from vidgen.conditioning import ClassEncoder, WordTextEncoder
from vidgen.pipelines import VideoPipeline
from vidgen.pipelines.presets import PIPELINE_PRESETS


def class_pipeline(family: str) -> VideoPipeline:
    torch.manual_seed(0)
    preset = PIPELINE_PRESETS[FAMILIES[family]].tiny()
    built = preset.build(tokenizer(), ClassEncoder(("cat", "dog", "horse"), width=16))
    shake(built.transformer)
    built.transformer.eval()
    built.set_progress_bar_config(disable=True)
    return built


@each_family
def test_a_class_label_is_heard_and_is_the_name_of_its_class(family):
    pipe = class_pipeline(family)
    dog = sample(pipe, prompt=None, class_label=1)
    assert torch.equal(dog, sample(pipe, prompt="dog"))
    assert not torch.equal(dog, sample(pipe, prompt=None, class_label=2))


@each_family
def test_a_label_that_is_no_class_is_refused(family):
    with pytest.raises(ValueError, match="3"):
        sample(class_pipeline(family), prompt=None, class_label=3)
    with pytest.raises(ValueError, match="not both"):
        sample(class_pipeline(family), prompt="dog", class_label=1)


def test_classes_begin_as_the_words_of_their_names():
    words = WordTextEncoder(width=24, layers=1, heads=2)
    encoder = ClassEncoder(("3", "3 7", "7"), width=24)
    encoder.begin_as_words(words)
    for name in encoder.class_names:
        told = words.encode([name])
        assert torch.allclose(encoder.encode([name]).states[0, 0], told.states[0][told.mask[0]].mean(dim=0), atol=1e-6)


def test_classes_of_several_parts_share_the_states_of_their_parts():
    encoder = ClassEncoder(("3", "7", "3 3", "3 7"), width=24, separator=" ")
    encoder.begin_as_words(WordTextEncoder(width=24, layers=1, heads=2))
    told = encoder.encode(["3", "3 3", "3 7", "7", ""])
    three, pair, mixed, seven, _ = told.states
    assert told.mask.tolist() == [[True, False], [True, True], [True, True], [True, False], [False, False]]
    assert torch.equal(three[0], pair[0]) and torch.equal(pair[0], mixed[0])
    assert torch.allclose(mixed[1] - mixed[0], seven[0] - three[0] + pair[1] - pair[0], atol=1e-6)
    assert not torch.equal(pair[0], pair[1])  # else attention would take `3 3` for `3`
    assert len(encoder.embedding.weight) == 2


def test_parts_of_classes_are_saved(tmp_path):
    encoder = ClassEncoder(("3", "3 7"), width=24, separator=" ")
    encoder.save_pretrained(tmp_path)
    again = ClassEncoder.from_pretrained(tmp_path)
    assert torch.equal(encoder.encode(["3 7"]).states, again.encode(["3 7"]).states)
