"""Generators train on any tokenizer, on encoded clips as on fresh ones, and come out as pipelines that load."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from shutil import which

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file

from vidgen.conditioning import TextEncoder, TextStates, TokenState, WordTextEncoder
from vidgen.generators import AutoregressiveTransformer, DiffusionTransformer, MaskedTransformer
from vidgen.nn.random import seeded
from vidgen.pipelines import AutoregressiveVideoPipeline, DiffusionVideoPipeline, MaskedVideoPipeline, VideoPipeline
from vidgen.schedulers import AutoregressiveScheduler, MaskedTokenScheduler
from vidgen.tokenizers import CausalConvTokenizer
from vidgen.training import DataConfig, GeneratorRun, OptimiserConfig, train_generator
from vidgen.training.checkpoint import CheckpointFolder
from vidgen.training.clips import collate, training_clips
from vidgen.training.earlier_weights import take_weights
from vidgen.training.generator_step import GeneratorStep
from vidgen.training.latent_cache import HEADER, cache_key, collate_encoded, encoded_clips

FAMILIES = {
    "masked": (MaskedVideoPipeline, MaskedTransformer, MaskedTokenScheduler),
    "flow": (DiffusionVideoPipeline, DiffusionTransformer, FlowMatchEulerDiscreteScheduler),
    "ar": (AutoregressiveVideoPipeline, AutoregressiveTransformer, AutoregressiveScheduler),
}


def tiny_tokenizer(bottleneck: str = "fsq", *, seed: int = 0) -> CausalConvTokenizer:
    torch.manual_seed(seed)
    return CausalConvTokenizer(bottleneck, stride=(2, 8, 8), patch=4, widths=(8, 8), depth=1, decoder_depth=1).eval()


def tiny_pipeline(family: str = "masked", bottleneck: str = "fsq", *, seed: int = 0) -> VideoPipeline:
    tokenizer = tiny_tokenizer(bottleneck)
    torch.manual_seed(seed)
    kind, network, scheduler = FAMILIES[family]
    transformer = network(tokenizer.spec.to_json(), text_width=16, width=32, layers=1, heads=2)
    return kind(tokenizer, WordTextEncoder(width=16, layers=1, heads=2, buckets=64), transformer, scheduler())


def tiny_run(folder: Path, **changes) -> GeneratorRun:
    run = GeneratorRun(
        preset="tiny",
        tokenizer="given",
        output_dir=folder,
        data=DataConfig(num_frames=5, height=16, width=16, validation_clips=4, objects=(1,)),
        optimiser=OptimiserConfig(learning_rate=3e-3, warmup_steps=2),
        steps=6,
        batch_size=4,
        checkpoint_every=3,
        validate_every=3,
        sample_every=0,
        log_every=100,
        device="cpu",
    )
    return replace(run, **changes)


def batch_of(clips, count: int = 4) -> dict:
    return {**collate([clips[index] for index in range(count)]), "step": 0}


@pytest.mark.parametrize(("family", "bottleneck"), [("masked", "fsq"), ("flow", "kl"), ("ar", "vq")])
def test_loss_falls_and_the_pipeline_loads(family, bottleneck, tmp_path):
    pipeline = tiny_pipeline(family, bottleneck)
    run = tiny_run(tmp_path, steps=40, checkpoint_every=40, validate_every=20, cached_clips=8, ema_decay=0.5)
    model = train_generator(run, pipeline=pipeline)
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=9)
    assert folder.header(40)["validation"] < folder.header(20)["validation"]
    loaded = type(pipeline).from_pretrained(model)
    assert loaded.config.defaults["num_frames"] == 5
    assert loaded.transformer.spec == pipeline.video_tokenizer.spec


def test_a_trained_pipeline_knows_its_words_and_warns_of_others(tmp_path):
    model = train_generator(tiny_run(tmp_path, steps=1, checkpoint_every=1), pipeline=tiny_pipeline())
    pipeline = MaskedVideoPipeline.from_pretrained(model)
    assert {"red", "circle", "spinning", "background"} < set(pipeline.text_encoder.config.vocabulary)
    with pytest.warns(UserWarning, match="'cat'"):
        pipeline([(0, "a small red circle"), (3, "a small red cat")], num_frames=5, num_inference_steps=1)


def test_samples_come_from_the_captions_of_validation_clips(tmp_path):
    train_generator(tiny_run(tmp_path, steps=2, checkpoint_every=2, sample_every=2), pipeline=tiny_pipeline())
    assert (tmp_path / "samples" / "step-00000002.gif").read_bytes().startswith(b"GIF89a")


@pytest.mark.slow
@pytest.mark.skipif(which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize(("family", "bottleneck"), [("masked", "fsq"), ("flow", "kl")])
def test_compiled_blocks_train_and_sample_as_plain_ones(family, bottleneck, tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    weights = []
    for compiled in (False, True):
        run = tiny_run(tmp_path / str(compiled), steps=3, known_frames=0.5, sample_every=3, compile=compiled)
        pipeline = tiny_pipeline(family, bottleneck)
        train_generator(run, pipeline=pipeline)
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) == compiled
        weights.append(CheckpointFolder(run.output_dir / "checkpoints", keep=9).load(3).weights)
        assert (run.output_dir / "samples" / "step-00000003.gif").is_file()
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)


def test_the_tokenizer_and_a_frozen_text_encoder_never_change(tmp_path):
    pipeline = tiny_pipeline()
    before = {name: tensor.clone() for name, tensor in pipeline.video_tokenizer.state_dict().items()}
    step = GeneratorStep(pipeline, drop_text=0.1, known_frames=0.1)
    assert {name.split(".")[0] for name, _ in step.named_parameters()} == {"transformer", "text_encoder"}
    train_generator(tiny_run(tmp_path, steps=3, freeze=("text_encoder",)), pipeline=pipeline)
    after = load_file(tmp_path / "model" / "video_tokenizer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_resumed_generator_ends_bit_equal_to_an_uninterrupted_one(tmp_path):
    run = tiny_run(tmp_path / "whole", drop_text=0.5, known_frames=0.5, precision="bf16")
    train_generator(run, pipeline=tiny_pipeline())
    halves = replace(run, output_dir=tmp_path / "halves")
    train_generator(replace(halves, steps=6, checkpoint_every=3), pipeline=tiny_pipeline())
    folder = CheckpointFolder(tmp_path / "halves" / "checkpoints", keep=9)
    for path in folder.path(6).iterdir():
        path.unlink()
    folder.path(6).rmdir()
    train_generator(replace(halves, resume=True), pipeline=tiny_pipeline(seed=4))
    one, other = CheckpointFolder(tmp_path / "whole" / "checkpoints", keep=9).load(6), folder.load(6)
    assert all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())
    assert all(torch.equal(tensor, other.averages[name]) for name, tensor in one.averages.items())


def test_a_generator_is_not_resumed_on_another_tokenizer(tmp_path):
    run = tiny_run(tmp_path, steps=3, validate_every=0)
    train_generator(run, pipeline=tiny_pipeline())
    other = tiny_pipeline()
    other.video_tokenizer = tiny_tokenizer(seed=1)
    with pytest.raises(ValueError, match="weights of its tokenizer were"):
        train_generator(replace(run, steps=6, resume=True), pipeline=other)
    described = tmp_path / "checkpoints" / "step-00000003" / "checkpoint.json"
    header = json.loads(described.read_text())
    del header["frozen_weights"]  # as checkpoints were before
    described.write_text(json.dumps(header))
    train_generator(replace(run, steps=6, resume=True), pipeline=other)


@pytest.mark.parametrize("bottleneck", ["kl", "vq", "fsq"])
def test_encoded_clips_are_the_latents_of_the_clips(bottleneck, tmp_path):
    pipeline = tiny_pipeline(bottleneck=bottleneck)
    clips = training_clips(tiny_run(tmp_path).data)
    step = GeneratorStep(pipeline, drop_text=0.0, known_frames=0.0)
    encoded = encoded_clips(
        tmp_path, clips, count=4, key="k", tokenizer=pipeline.video_tokenizer, text_encoder=None, say=print
    )
    fresh = step.latents(batch_of(clips))
    kept = step.latents({**collate_encoded([encoded[index] for index in range(4)]), "step": 0})
    torch.testing.assert_close(kept.tokens, fresh.tokens)
    assert kept.size == fresh.size == (5, 16, 16)
    assert kept.ids is None or torch.equal(kept.ids, fresh.ids)
    assert encoded[1]["caption"] == clips[1]["caption"]


def test_clips_are_encoded_alike_whoever_loads_them_and_shards_are_full(tmp_path, monkeypatch):
    monkeypatch.setattr("vidgen.training.latent_cache.SHARD_CLIPS", 16)
    clips, said = training_clips(tiny_run(tmp_path).data), []
    arguments = {"count": 35, "tokenizer": tiny_tokenizer(), "text_encoder": None, "say": said.append}
    here = encoded_clips(tmp_path, clips, key="h" * 40, **arguments)
    by_others = encoded_clips(tmp_path, clips, key="o" * 40, workers=2, **arguments)
    assert said == 2 * [f"encoded {done} of 35 clips" for done in (16, 32, 35)]
    assert len(here) == len(by_others) == 35 and here.header["captions"] == by_others.header["captions"]
    for index in (0, 15, 16, 34):
        assert torch.equal(here[index]["ids"], by_others[index]["ids"])
        assert here[index]["caption"] == clips[index]["caption"]


class CountedText(TextEncoder):
    """A frozen encoder whose states are the lengths of the words."""

    trained_jointly = False
    width = 3

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def encode(self, prompts) -> TextStates:
        words = [prompt.split() for prompt in prompts]
        mask = torch.tensor([[place < len(row) for place in range(30)] for row in words])
        lengths = torch.tensor([[len((row + [""] * 30)[place]) for place in range(30)] for row in words])
        return TextStates(lengths[..., None].expand(-1, -1, 3) * self.scale.detach(), mask)


def test_states_of_a_frozen_text_encoder_are_kept_with_the_clips(tmp_path):
    clips = training_clips(replace(tiny_run(tmp_path).data, objects=(1, 2)))
    text = CountedText()
    encoded = encoded_clips(tmp_path, clips, count=6, key="k", tokenizer=tiny_tokenizer(), text_encoder=text, say=print)
    batch = collate_encoded([encoded[index] for index in range(6)])
    states = text.encode([clips[index]["caption"] for index in range(6)])
    assert batch["text_mask"].sum(dim=1).tolist() == states.mask.sum(dim=1).tolist()
    assert len(set(batch["text_mask"].sum(dim=1).tolist())) > 1, "the captions should differ in length"
    assert torch.equal(batch["text"][batch["text_mask"]], states.states[states.mask].float())


def test_another_tokenizer_or_other_clips_are_another_cache(tmp_path):
    keys = {
        cache_key(tiny_tokenizer(), None, clips={"count": 4}),
        cache_key(tiny_tokenizer(seed=1), None, clips={"count": 4}),
        cache_key(tiny_tokenizer("vq"), None, clips={"count": 4}),
        cache_key(tiny_tokenizer(), CountedText(), clips={"count": 4}),
        cache_key(tiny_tokenizer(), None, clips={"count": 5}),
    }
    assert len(keys) == 5
    assert cache_key(tiny_tokenizer(), None, clips={"count": 4}) in keys


def test_a_tokenizer_has_one_cache_wherever_it_lies(tmp_path):
    keys = set()
    for place in ("here", "there"):
        tiny_tokenizer().save_pretrained(tmp_path / place)
        keys.add(cache_key(CausalConvTokenizer.from_pretrained(tmp_path / place), None, clips={}))
    assert keys == {cache_key(tiny_tokenizer(), None, clips={})}


def test_a_cache_is_used_again_only_when_its_hash_is_right(tmp_path):
    clips, said = training_clips(tiny_run(tmp_path).data), []
    arguments = {"count": 2, "key": "a" * 64, "tokenizer": tiny_tokenizer(), "text_encoder": None, "say": said.append}
    first = encoded_clips(tmp_path, clips, **arguments)
    again = encoded_clips(tmp_path, clips, **arguments)
    assert [line.split()[0] for line in said] == ["encoded", "2"]
    assert torch.equal(first[1]["ids"], again[1]["ids"])
    header = tmp_path / ("a" * 32) / HEADER
    header.write_text(header.read_text().replace("a" * 64, "b" * 64))
    encoded_clips(tmp_path, clips, **arguments)
    assert said[-1] == "encoded 2 of 2 clips"


def test_two_runs_that_want_the_same_cache_make_it_once(tmp_path):
    clips, said = training_clips(tiny_run(tmp_path).data), []
    arguments = {"count": 24, "key": "a" * 64, "tokenizer": tiny_tokenizer(), "text_encoder": None, "say": said.append}
    with ThreadPoolExecutor(2) as runs:
        first, second = runs.map(lambda _: encoded_clips(tmp_path, clips, **arguments), range(2))
    assert sorted(line.split()[0] for line in said) == ["24", "encoded"]
    assert torch.equal(first[23]["ids"], second[23]["ids"])


@pytest.mark.parametrize(("family", "others"), [("masked", "vq"), ("flow", "kl"), ("ar", "vq")])
def test_other_tokens_take_the_trunk_of_a_generator_and_not_its_ends(family, others):
    earlier, pipeline = tiny_pipeline(family, seed=1), tiny_pipeline(family, others, seed=2)
    taken, fresh = earlier.transformer.state_dict(), deepcopy(pipeline.transformer.state_dict())
    take_weights(pipeline.transformer, earlier.transformer, source="somewhere")
    for name, tensor in pipeline.transformer.state_dict().items():
        of_the_tokens = name.startswith(("token_embedding.", "known_embedding.", "proj_in.", "proj_out."))
        assert torch.equal(tensor, (fresh if of_the_tokens else taken)[name]), name


@pytest.mark.parametrize("network", [MaskedTransformer, AutoregressiveTransformer])
def test_another_head_takes_the_trunk_of_a_generator(network):
    spec = tiny_tokenizer("product").spec.to_json()
    size = {"text_width": 16, "width": 32, "layers": 1, "heads": 2}
    earlier, later = network(spec, **size), network(spec, head_type="depth", head_options={"inner_width": 8}, **size)
    take_weights(later, earlier, source="somewhere")
    trunk = "transformer_blocks.0.attn.to_out.weight"
    assert torch.equal(later.get_parameter(trunk), earlier.get_parameter(trunk))


@pytest.mark.parametrize(("family", "bottleneck"), [("masked", "fsq"), ("flow", "kl"), ("ar", "fsq")])
def test_more_layers_begin_as_the_same_function_and_all_of_them_learn(family, bottleneck):
    pipeline = tiny_pipeline(family, bottleneck)
    batch = batch_of(training_clips(tiny_run(Path("unused")).data))
    earlier = pipeline.transformer
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in earlier.parameters():  # a fresh flow model has gates of zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    step = GeneratorStep(pipeline, drop_text=0.0, known_frames=0.0)
    before = sum(step.evaluate(batch, seeded(range(4))).values())
    spec = pipeline.video_tokenizer.spec.to_json()
    later = FAMILIES[family][1](spec, text_width=16, width=32, layers=3, heads=2)
    take_weights(later, earlier, source="somewhere")
    pipeline.transformer = later
    step = GeneratorStep(pipeline, drop_text=0.0, known_frames=0.0)
    after = sum(step.evaluate(batch, seeded(range(4))).values())
    torch.testing.assert_close(after, before)
    after.backward()
    outputs = [weight for name, weight in later.named_parameters() if name.endswith("to_out.weight")]
    assert all(weight.grad.abs().max() > 0 for weight in outputs)
    with pytest.raises(ValueError, match="its layers is 3"):
        take_weights(earlier, later, source="somewhere")


def test_more_layers_before_single_streams_begin_as_the_same_function_and_leave_those_their_weights():
    spec = tiny_tokenizer("kl").spec.to_json()
    sizes = {"text_width": 16, "width": 32, "heads": 2, "text_path": "joint", "single_layers": 2}
    earlier, later = (DiffusionTransformer(spec, layers=layers, **sizes) for layers in (2, 5))
    pipeline = tiny_pipeline("flow", "kl")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in earlier.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    take_weights(later, earlier, source="somewhere")
    assert later.transformer_blocks[6].state_dict().keys() == earlier.transformer_blocks[3].state_dict().keys()
    for number in (2, 3):
        moved = later.transformer_blocks[number + 3].state_dict()
        assert all(
            torch.equal(moved[name], own) for name, own in earlier.transformer_blocks[number].state_dict().items()
        )
    batch = batch_of(training_clips(tiny_run(Path("unused")).data))
    losses = []
    for network in (earlier, later):
        pipeline.transformer = network
        step = GeneratorStep(pipeline, drop_text=0.0, known_frames=0.0)
        losses.append(sum(step.evaluate(batch, seeded(range(4))).values()))
    torch.testing.assert_close(losses[1], losses[0])
    losses[1].backward()
    outputs = {name: weight for name, weight in later.named_parameters() if name.endswith("to_out.weight")}
    resting = {name for name in outputs if name.startswith("transformer_blocks.6.") and "text" in name}
    assert all(weight.grad.abs().max() > 0 for name, weight in outputs.items() if name not in resting)


RESTING = """
import sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from test_training_generator import tiny_run, tiny_tokenizer
from vidgen.pipelines.presets import PIPELINE_PRESETS
from vidgen.training import train_generator
pipeline = PIPELINE_PRESETS[sys.argv[3]].tiny().build(tiny_tokenizer(sys.argv[4]), None)
train_generator(tiny_run(Path(sys.argv[2]), steps=4, checkpoint_every=4, validate_every=0), pipeline=pipeline)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bottleneck"), [("mm-dit", "kl"), ("maskvit", "fsq"), ("shapes-enat", "fsq")])
def test_generators_with_weights_that_rest_train_in_two_processes(name, bottleneck, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(RESTING)
    tests = Path(__file__).parent
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    launcher += ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(tests), str(tmp_path / "run"), name, bottleneck],
        env={**os.environ, "PYTHONPATH": str(tests.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_text_is_dropped_and_frames_are_known_for_their_shares_of_the_samples():
    pipeline = tiny_pipeline()
    step = GeneratorStep(pipeline, drop_text=0.3, known_frames=0.4)
    seen = []
    pipeline.transformer.losses = lambda latents, condition, *, generators: seen.append(condition) or {}
    batch = batch_of(training_clips(tiny_run(Path("unused")).data))
    for start in range(0, 400, 4):
        step(batch, seeded(range(start, start + 4)))
    dropped = torch.cat([~condition.mask.any(dim=1) for condition in seen]).float().mean()
    states = torch.cat([condition.token_state for condition in seen])
    told = (states == TokenState.KNOWN).any(dim=1).float().mean()
    assert dropped == pytest.approx(0.3, abs=0.08)
    assert told == pytest.approx(0.4, abs=0.08)
    assert (states == TokenState.UNKNOWN).any(dim=1).all(), "something must be left to generate"


def test_samples_of_a_batch_train_alike_however_the_batch_is_cut():
    pipeline = tiny_pipeline("flow", "kl")
    step = GeneratorStep(pipeline, drop_text=0.5, known_frames=0.5)
    clips = training_clips(tiny_run(Path("unused")).data)
    together = sum(step(batch_of(clips), seeded(range(4))).values())
    apart = [collate([clips[index]]) | {"step": 0} for index in range(4)]
    losses = [sum(step(batch, seeded([index])).values()) for index, batch in enumerate(apart)]
    torch.testing.assert_close(together, torch.stack(losses).mean())
