"""Does a saved model come back bit by bit, in a fresh interpreter too, and is what cannot be loaded explained?"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from small_autoencoders import small_autoencoder
from tiny_models import FAMILIES, OPTIONS, PAIRS, clip, pipeline, tokenizer

import vidgen
from vidgen import loading
from vidgen.generators import (
    AutoregressiveTransformer,
    DiffusionTransformer,
    FrameMaskedTransformer,
    MaskedTransformer,
)
from vidgen.matchers import MATCHERS
from vidgen.matchers.presets import MATCHER_PRESETS
from vidgen.pipelines import PIPELINES, VideoPipeline
from vidgen.pipelines.cascade_presets import CASCADE_PRESETS
from vidgen.pipelines.presets import PIPELINE_PRESETS
from vidgen.tokenizers import TOKENIZERS
from vidgen.tokenizers.presets import TOKENIZER_PRESETS

WEIGHTS = "diffusion_pytorch_model.safetensors"


def call(pipe: VideoPipeline):
    return pipe(prompt="a red circle", generator=torch.Generator().manual_seed(0), output_type="latent").frames.tokens


def public(config) -> dict:
    return {name: value for name, value in config.items() if not name.startswith("_")}


@pytest.fixture
def saved(tmp_path) -> Path:
    """A saved pipeline."""
    pipeline("masked", "fsq").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------------------------------------- what comes back


@pytest.mark.parametrize(("family", "bottleneck"), PAIRS)
def test_every_way_to_load_a_saved_pipeline_gives_the_same_video(family, bottleneck, tmp_path):
    pipe = pipeline(family, bottleneck)
    pipe.save_pretrained(tmp_path)
    expected = call(pipe)
    for load in (type(pipe).from_pretrained, DiffusionPipeline.from_pretrained, vidgen.load):
        again = load(tmp_path)
        again.set_progress_bar_config(disable=True)
        assert type(again) is type(pipe)
        assert again.config.defaults == pipe.config.defaults
        assert public(again.scheduler.config) == public(pipe.scheduler.config)
        assert torch.equal(call(again), expected)


@pytest.mark.parametrize("bottleneck", OPTIONS)
def test_a_saved_tokenizer_comes_back(bottleneck, tmp_path):
    model = tokenizer(bottleneck)
    model.save_pretrained(tmp_path)
    again = vidgen.load(str(tmp_path))
    assert not again.training
    assert torch.equal(again.encode(clip()).tokens, model.encode(clip()).tokens)


def test_looking_for_diffusers_before_it_is_imported_loses_no_name():
    script = """
import importlib.util
import sys
import vidgen
finders = len(sys.meta_path)
assert importlib.util.find_spec("diffusers") is not None
import diffusers
assert len(sys.meta_path) == finders - 1
print(diffusers.MaskedVideoPipeline.__module__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "vidgen.pipelines.masked"


@pytest.mark.slow
def test_a_fresh_interpreter_gives_the_same_videos(tmp_path):
    for family, bottleneck in PAIRS:
        pipe = pipeline(family, bottleneck)
        pipe.save_pretrained(tmp_path / f"{family}-{bottleneck}")
        torch.save(call(pipe), tmp_path / f"{family}-{bottleneck}" / "expected.pt")
    script = f"""
import sys
from pathlib import Path
import torch
import vidgen
from diffusers import DiffusionPipeline

assert "vidgen.pipelines" not in sys.modules, "importing vidgen alone is light"
for folder in sorted(Path({str(tmp_path)!r}).iterdir()):
    expected = torch.load(folder / "expected.pt", weights_only=True)
    for load in (DiffusionPipeline.from_pretrained, vidgen.load):
        pipe = load(folder)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        frames = pipe(prompt="a red circle", generator=generator, output_type="latent").frames
        assert torch.equal(frames.tokens, expected), folder
print("all equal")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("all equal")


def test_precision_is_chosen_at_loading(saved):
    for argument in ("dtype", "torch_dtype"):
        pipe = vidgen.load(saved, **{argument: torch.bfloat16})
        assert {pipe.transformer.dtype, pipe.video_tokenizer.dtype, pipe.text_encoder.dtype} == {torch.bfloat16}


def test_a_pipeline_made_from_the_parts_of_another_gives_the_same_video():
    pipe = pipeline()
    assert torch.equal(call(type(pipe).from_pipe(pipe)), call(pipe))


def test_sharded_and_variant_weights_load(tmp_path):
    pipe = pipeline()
    pipe.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded" / "transformer").glob("*.safetensors"))) > 1
    assert torch.equal(call(vidgen.load(tmp_path / "sharded")), call(pipe))
    pipe.save_pretrained(tmp_path / "variant", variant="bf16")
    assert torch.equal(call(vidgen.load(tmp_path / "variant", variant="bf16")), call(pipe))


def test_a_built_in_pipeline_may_share_the_tokenizer_of_another(saved, tmp_path, monkeypatch):
    expected = call(vidgen.load(saved))
    monkeypatch.setattr(loading, "PRETRAINED", tmp_path / "pretrained")
    shutil.copytree(saved, tmp_path / "pretrained" / "shapes")
    shutil.move(tmp_path / "pretrained" / "shapes" / "video_tokenizer", tmp_path / "pretrained" / "tokens")
    (tmp_path / "pretrained" / "shapes" / "shared.json").write_text('{"video_tokenizer": "tokens"}')
    assert loading.builtin_names() == ["shapes", "tokens"]
    assert torch.equal(call(vidgen.load("shapes")), expected)
    assert vidgen.load("shapes", dtype=torch.bfloat16).video_tokenizer.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="did you mean shapes") as error:
        vidgen.load("shape")
    one_line(error)


# ------------------------------------------------------------------------------------------------ what is refused


def test_an_unknown_name_lists_the_nearest_ones(tmp_path, monkeypatch):
    for name in ("shapes-fsq", "shapes-masked"):
        tokenizer().save_pretrained(tmp_path / name)
    monkeypatch.setattr(loading, "PRETRAINED", tmp_path)
    with pytest.raises(ValueError, match="unknown model 'shapes-fqs'; did you mean shapes-fsq") as error:
        vidgen.load("shapes-fqs")
    one_line(error)
    with pytest.raises(ValueError, match="there are shapes-fsq, shapes-masked"):
        vidgen.load("qqqqqqqqqqqq")
    monkeypatch.setattr(loading, "PRETRAINED", tmp_path / "nothing")
    with pytest.raises(ValueError, match="no built-in models"):
        vidgen.load("qqqqqqqqqqqq")
    with pytest.raises(ValueError, match=r"shapes-fsq is a preset, which has no weights yet: train it .*vidgen.build"):
        vidgen.load("shapes-fsq")


def test_options_are_checked_and_a_component_takes_the_place_of_a_shared_one():
    assert vidgen.load("shapes-fsq", dtype="bf16").dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"load takes no device; move what it gives: vidgen.load\(…\).to\('cpu'\)"):
        vidgen.load("shapes-fsq", device="cpu")
    with pytest.raises(ValueError, match="load has no option 'dtpye'; did you mean dtype"):
        vidgen.load("shapes-fsq", dtpye=torch.bfloat16)
    with pytest.raises(ValueError, match="dtype is a torch type or one of fp32, bf16, fp16, got 'float8'"):
        vidgen.load("shapes-fsq", dtype="float8")
    mine = vidgen.load("shapes-kl")
    assert vidgen.load("shapes-flow", video_tokenizer=mine).video_tokenizer is mine


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a model: expected a folder with model_index.json") as error:
        vidgen.load(tmp_path)
    one_line(error)


@pytest.mark.parametrize("file", ["model_index.json", "config.json"])
def test_a_model_of_another_library_is_refused(file, tmp_path):
    (tmp_path / file).write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(ValueError, match=r"holds a AutoencoderKL, which is not one of vidgen's: .*") as error:
        vidgen.load(tmp_path)
    one_line(error)


@pytest.mark.parametrize("file", ["model_index.json", "transformer/config.json"])
def test_a_damaged_configuration_is_refused(file, saved):
    (saved / file).write_text('{"_class_name": ')
    with pytest.raises(ValueError, match=r"json is damaged") as error:
        vidgen.load(saved)
    one_line(error)


@pytest.mark.parametrize(
    "entry",
    [
        ["vidgen.cli.__main__", "main"],  # to import it would run the command line
        ["antigravity", "fly"],
        ["json", "loads"],
        ["diffusers", "nothing_of_that_name"],
        ["vidgen.generators.masked"],
        [1, 2],
    ],
)
def test_a_file_does_not_decide_what_is_imported(entry, saved):
    index = json.loads((saved / "model_index.json").read_text())
    (saved / "model_index.json").write_text(json.dumps({**index, "transformer": entry}))
    before = set(sys.modules)
    with pytest.raises(
        ValueError, match=r"component 'transformer' of .* import its module first if you trust it"
    ) as error:
        vidgen.load(saved)
    one_line(error)
    assert not {"vidgen.cli.__main__", "antigravity"} & (set(sys.modules) - before)


@pytest.mark.parametrize(
    ("file", "text"), [("model_index.json", "[1]"), ("transformer/config.json", "3"), ("shared.json", "[]")]
)
def test_json_of_another_kind_is_refused(file, text, saved):
    (saved / file).write_text(text)
    with pytest.raises(ValueError, match="json is damaged: it is no object") as error:
        vidgen.load(saved)
    one_line(error)


def test_a_pipeline_cannot_be_a_component_of_itself(saved):
    (saved / "shared.json").write_text(json.dumps({"video_tokenizer": str(saved)}))
    with pytest.raises(ValueError, match=r"expected config.json of a tokenizer or matcher") as error:
        vidgen.load(saved)
    one_line(error)


@pytest.mark.parametrize(
    "described",
    [
        {},
        {"base": None, "stages": 3},
        {"base": 1, "stages": []},
        {"base": None, "stages": [1]},
        {"base": None, "stages": [{}]},
    ],
)
def test_a_damaged_cascade_is_refused(described, tmp_path):
    (tmp_path / "cascade.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"cascade.json does not name a base and the folder of each stage") as error:
        vidgen.load(tmp_path)
    one_line(error)


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_damaged_weights_are_refused(damage, saved):
    file = saved / "transformer" / WEIGHTS
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "garbage": b"x" * 500, "empty": b""}[damage])
    with pytest.raises(ValueError, match="is damaged") as error:
        vidgen.load(saved)
    one_line(error)


@pytest.mark.parametrize("part", ["transformer", "video_tokenizer", "text_encoder"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(part, number, saved):
    def spoil(weights):
        next(tensor for tensor in weights.values() if tensor.is_floating_point()).view(-1)[0] = number

    change_weights(saved / part, spoil)
    with pytest.raises(ValueError, match=rf"{part} has broken weights: 1 of .* NaN or infinite") as error:
        vidgen.load(saved)
    one_line(error)


def test_weights_of_another_model_are_refused(saved, tmp_path):
    other = tokenizer("kl")
    other.save_pretrained(tmp_path / "kl")
    shutil.copy(tmp_path / "kl" / WEIGHTS, saved / "video_tokenizer" / WEIGHTS)
    for folder in (saved, saved / "video_tokenizer"):
        with pytest.raises(ValueError, match=r"are of another model than its config.json") as error:
            vidgen.load(folder)
        one_line(error)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_match_are_refused_not_filled_with_random_numbers(change, saved):
    def spoil(weights):
        name = next(iter(weights))
        tensor = weights.pop(name)
        if change == "unexpected":
            weights |= {name: tensor, "extra": torch.zeros(1)}
        if change == "shape":
            weights[name] = torch.zeros(3, 3)

    change_weights(saved / "transformer", spoil)
    with pytest.raises(ValueError, match="1 tensors differ") as error:
        vidgen.load(saved)
    one_line(error)


def test_a_pipeline_without_one_of_its_parts_is_refused(saved):
    shutil.rmtree(saved / "transformer")
    with pytest.raises(ValueError, match="not a saved MaskedTransformer") as error:
        vidgen.load(saved)
    one_line(error)


def test_weights_that_are_missing_are_refused(saved):
    (saved / "transformer" / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="holds no weights") as error:
        vidgen.load(saved)
    one_line(error)


def test_a_generator_on_the_wrong_tokenizer_is_refused(saved, tmp_path):
    shutil.rmtree(saved / "video_tokenizer")
    tokenizer("kl").save_pretrained(saved / "video_tokenizer")
    with pytest.raises(ValueError, match="use the tokenizer that it was trained with"):
        vidgen.load(saved)


def test_a_hub_model_comes_from_the_revision_and_the_cache_that_were_asked_for(tmp_path):
    small_autoencoder("wan").save_pretrained(tmp_path / "models--someone--wan" / "snapshots" / ("c" * 40))
    for commit, revision, bottleneck in (("a" * 40, "main", "fsq"), ("b" * 40, "v2", "kl")):
        model = tmp_path / "models--someone--model"
        tokenizer(bottleneck).save_pretrained(model / "snapshots" / commit)
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / revision).write_text(commit)
    kept = {"cache_dir": tmp_path, "local_files_only": True}
    assert vidgen.load("someone/model", **kept).spec.discrete
    assert not vidgen.load("someone/model", revision="v2", token="secret", **kept).spec.discrete
    assert vidgen.load("diffusers:someone/wan", revision="c" * 40, **kept).config.autoencoder_config["z_dim"]


# ------------------------------------------------------------------------------------------------------- the presets

# Parameters of the networks alone at full size, so that a preset cannot change by accident.
NETWORKS = {
    "shapes-masked": (FrameMaskedTransformer, 1_679_616),
    "shapes-flow": (DiffusionTransformer, 1_587_744),
    "shapes-ar": (AutoregressiveTransformer, 1_679_616),
    "digits-masked": (FrameMaskedTransformer, 1_679_616),
    "digits-flow": (DiffusionTransformer, 1_587_744),
    "digits-masked-class": (FrameMaskedTransformer, 1_679_616),
    "digits-flow-class": (DiffusionTransformer, 1_587_744),
    "base-masked": (MaskedTransformer, 152_075_002),
    "base-flow": (DiffusionTransformer, 157_357_632),
    "base-ar": (AutoregressiveTransformer, 152_075_002),
}


@pytest.mark.parametrize("name", PIPELINE_PRESETS)
def test_the_tiny_twin_of_every_pipeline_preset_samples(name):
    torch.manual_seed(0)
    pipe = PIPELINE_PRESETS[name].tiny().build()
    pipe.set_progress_bar_config(disable=True)
    prompt = PIPELINE_PRESETS[name].classes[0] if PIPELINE_PRESETS[name].classes else "a red circle"
    frames = pipe(prompt, generator=torch.Generator().manual_seed(0), output_type="pt").frames
    assert frames.shape == (1, 5, 3, 16, 16)
    assert frames.isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_pipeline_preset_names_a_tokenizer_and_fits_it(name):
    preset = PIPELINE_PRESETS[name]
    assert preset.tokenizer in TOKENIZER_PRESETS
    assert preset.about
    with torch.device("meta"):
        network = preset.generator(
            latent_spec=TOKENIZER_PRESETS[preset.tokenizer].tiny().build().spec.to_json(), **preset.config
        )
    kind, parameters = NETWORKS[name]
    assert type(network) is kind
    assert network.num_parameters() == parameters


def test_every_preset_has_a_name_of_its_own():
    tables = (TOKENIZER_PRESETS, PIPELINE_PRESETS, CASCADE_PRESETS, MATCHER_PRESETS)
    assert len(loading.ALL_PRESETS) == sum(len(table) for table in tables)


def test_build_gives_any_preset_and_the_seed_decides(monkeypatch):
    presets = {**TOKENIZER_PRESETS, **PIPELINE_PRESETS, **MATCHER_PRESETS}
    assert loading.ALL_PRESETS.keys() >= presets.keys()
    monkeypatch.setattr(loading, "ALL_PRESETS", {name: preset.tiny() for name, preset in presets.items()})
    for name in presets:
        assert isinstance(vidgen.build(name), (*TOKENIZERS, *PIPELINES, *MATCHERS))
    torch.manual_seed(3)
    one = vidgen.build("shapes-fsq")
    torch.manual_seed(3)
    other = vidgen.build("shapes-fsq")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="unknown preset 'shapes-mask'; did you mean shapes-masked") as error:
        vidgen.build("shapes-mask")
    one_line(error)


# ----------------------------------------------------------------------------------------- what diffusers has to find


@pytest.mark.parametrize("family", FAMILIES)
def test_components_can_be_found_again_by_diffusers(family):
    import diffusers.pipelines

    pipe = pipeline(family)
    pipe.register_modules(matcher=MATCHER_PRESETS["shapes-matcher"].tiny().build(pipe.video_tokenizer))
    for component in (pipe, *pipe.components.values()):
        module = sys.modules[type(component).__module__]
        folder = type(component).__module__.split(".")[-2]
        assert folder == "schedulers" or not hasattr(diffusers.pipelines, folder), folder
        bases = ("ModelMixin", "SchedulerMixin", "DiffusionPipeline")
        assert any(hasattr(module, base) for base in bases), f"{module.__name__} must name its loadable base"


def test_diffusers_knows_our_pipelines_and_still_says_what_it_lacks():
    for kind in PIPELINES:
        assert getattr(diffusers, kind.__name__) is kind
    with pytest.raises(AttributeError):
        diffusers.NoSuchPipeline  # noqa: B018
