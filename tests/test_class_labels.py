"""Is a class label heard by every family, and is it the name of its class?"""

import pytest
import torch
from test_pipelines import each_family, sample
from tiny_models import FAMILIES, shake, tokenizer

from vidgen.conditioning import ClassEncoder
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
