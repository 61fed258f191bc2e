"""`--set NAME=VALUE`: a run whose network is the preset's but for some options."""

import pytest
import tyro

import vidgen
from vidgen.generators import AutoregressiveTransformer
from vidgen.tokenizers import CausalConvTokenizer
from vidgen.training import GeneratorRun, TokenizerRun, train_tokenizer
from vidgen.training.changed_options import changed_options
from vidgen.training.models import fresh_pipeline, fresh_tokenizer


def test_values_are_json_or_words():
    settings = ("bottleneck_type=kl", 'bottleneck_options={"channels": 8}', "widths=[16, 16]", "depth=2", "front=null")
    assert changed_options(CausalConvTokenizer, settings) == {
        "bottleneck_type": "kl",
        "bottleneck_options": {"channels": 8},
        "widths": [16, 16],
        "depth": 2,
        "front": None,
    }
    assert changed_options(CausalConvTokenizer, ()) == {}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("layers", "NAME=VALUE"),
        ("lairs=3", "no option 'lairs'; nearest: layers"),
        ("latent_spec=3", "no option 'latent_spec'"),  # the tokenizer's
        ("text_width=3", "no option 'text_width'"),  # the text encoder's
        ("layers=True", "JSON"),
        ("layers=(3)", "JSON"),
    ],
)
def test_what_no_network_takes_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        changed_options(AutoregressiveTransformer, (setting,))


def test_a_tokenizer_is_built_trained_and_loaded_with_its_own_options(tmp_path):
    arguments = ["shapes-kl", "--tiny", "--set", "widths=[16,24,16]", 'bottleneck_options={"channels":3}']
    arguments += ["--output-dir", str(tmp_path), "--steps", "1", "--batch-size", "2", "--device", "cpu"]
    arguments += [
        "--validation-clips",
        "0",
        "--sample-every",
        "0",
        "--num-frames",
        "5",
        "--height",
        "16",
        "--width",
        "16",
    ]
    run = tyro.cli(TokenizerRun, args=arguments)
    tokenizer = vidgen.load(train_tokenizer(run))
    assert tuple(tokenizer.config.widths) == (16, 24, 16) and tokenizer.spec.parts[0].channels == 3
    assert TokenizerRun.load(tmp_path / "run.json") == run


def test_an_encoder_of_real_clips_may_begin_a_narrower_bottleneck(tmp_path):
    run = TokenizerRun(preset="shapes-kl", output_dir=tmp_path, init_from="real-kl", changed=("widths=[64, 128, 160]",))
    tokenizer, earlier = fresh_tokenizer(run).state_dict(), vidgen.load("real-kl").state_dict()
    same = [name for name, value in tokenizer.items() if earlier[name].shape == value.shape]
    assert len(same) > 0.9 * len(earlier)
    assert all(tokenizer[name].equal(earlier[name]) for name in same if not name.startswith(("bottleneck", "latent_")))


def test_a_generator_may_have_more_layers_than_its_preset(tmp_path):
    run = GeneratorRun(preset="shapes-ar", output_dir=tmp_path, tiny=True, changed=("layers=3", "expansion=2.0"))
    network = fresh_pipeline(run).transformer
    assert network.config.layers == 3 == len(network.transformer_blocks) and network.config.expansion == 2.0
