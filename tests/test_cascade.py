"""Do the stages of a cascade fit together, keep what they are given, and work in pieces as in one?"""

from itertools import pairwise
from typing import Any, ClassVar, cast, get_args, get_type_hints

import pytest
import torch
from test_training_generator import tiny_run
from tiny_models import clip, pipeline, shake, tokenizer
from torch import Tensor

import vidgen
from vidgen.conditioning import CONTROLS, ClassEncoder
from vidgen.conditioning.control import resized, small
from vidgen.generators import DiffusionTransformer
from vidgen.nn.random import seeded
from vidgen.pipelines import Cascade, DiffusionVideoPipeline, Interpolation, SuperResolution
from vidgen.pipelines.cascade_presets import CASCADE_PRESETS
from vidgen.pipelines.cascade_stages import spans, time_windows
from vidgen.tokenizers.presets import TOKENIZER_PRESETS
from vidgen.training import GeneratorRun, train_generator

TEXT = "a red circle"


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def enlarger(**changes: Any) -> DiffusionVideoPipeline:
    """A pipeline with windows of attention and a branch that says something."""
    base: Any = pipeline("diffusion", "kl")
    options = {"window": (1, 2, 2)}
    torch.manual_seed(0)
    config = {name: value for name, value in base.transformer.config.items() if not name.startswith("_")}
    config |= {"attention": "windows", "attention_options": options, "control_layers": 1, **changes}
    network: Any = DiffusionTransformer(**config)
    shake(network)
    built = DiffusionVideoPipeline(
        base.video_tokenizer, base.text_encoder, network.eval(), base.scheduler, base.config.defaults
    )
    built.set_progress_bar_config(disable=True)
    return built


class Echo(SuperResolution):
    """In the place of a sampling the control video itself, and a list of prompts and noises that were asked for."""

    asked: ClassVar[list[tuple[Any, Tensor]]] = []

    def make(self, prompt: Any, size: Any, generators: Any, **inputs: Any) -> Tensor:
        self.asked.append((prompt, inputs["latents"]))
        return inputs["control_video"]


def cascade() -> Cascade:
    few = {"num_inference_steps": 2}
    larger = SuperResolution(pipeline=enlarger(), tile=(5, 24, 24), overlap=(2, 8, 8), arguments=few)
    return Cascade(pipeline("diffusion", "kl"), [Interpolation(pipeline=pipeline(), factor=2, arguments=few), larger])


# ----------------------------------------------------------------------------------------------------- the whole chain


def test_three_stages_give_the_size_that_their_factors_say():
    chain = cascade()
    video: Any = chain(TEXT, generator=seed(), output_type="pt").frames
    assert chain.size((5, 16, 16)) == (9, 32, 32)
    assert video.shape == (1, 9, 3, 32, 32)
    assert video.isfinite().all()


def test_a_sample_depends_neither_on_its_batch_nor_on_how_far_other_stages_are():
    chain = cascade()
    alone: Any = chain(TEXT, generator=seed(), output_type="pt").frames
    both: Any = chain([TEXT, "a blue star"], generator=seed(), output_type="pt").frames
    assert (both[:1] - alone).abs().max() <= 1e-3
    in_order = list(chain.stream(TEXT, generator=seed()))
    assert len(in_order) > 1
    assert torch.equal(torch.cat(in_order, dim=2).transpose(1, 2) / 2 + 0.5, alone)


def test_a_saved_cascade_comes_back_the_same(tmp_path):
    chain = cascade()
    chain.save_pretrained(tmp_path)
    again: Any = vidgen.load(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.stages[1].overlap == (2, 8, 8)
    one, other = (list(made.stream(TEXT, generator=seed())) for made in (chain, again))
    assert torch.equal(torch.cat(one, dim=2), torch.cat(other, dim=2))


def test_a_cascade_without_a_base_refines_a_given_video_of_any_size_and_length(tmp_path):
    chain = Cascade(None, [SuperResolution(pipeline=enlarger(), factor=1, tile=(4, 16, 16), overlap=(1, 8, 8))])
    given = clip(7, 20, 30, batch=2)
    video: Any = chain(video=given, generator=seed(), output_type="pt").frames
    assert video.shape == (2, 7, 3, 20, 30)
    chain.save_pretrained(tmp_path)
    again: Any = vidgen.load(tmp_path)
    assert again.base is None
    with pytest.raises(ValueError, match="no base pipeline"):
        chain(TEXT)


def test_more_frames_than_the_base_was_trained_on_are_extended():
    chain = Cascade(pipeline("diffusion", "kl"), [Interpolation(pipeline=pipeline("masked"), factor=2)])
    video: Any = chain(TEXT, num_frames=9, generator=seed(), output_type="pt").frames
    assert video.shape[1] == 17


def test_memory_is_that_of_a_window_however_long_the_video():
    """What comes in is asked for chunk by chunk, and no stage makes more at once than its window or tile."""
    chain, sizes, taken = cascade(), [], []
    for stage in chain.stages:
        pipe: Any = stage.pipeline
        decode = pipe.decode_stream
        pipe.decode_stream = lambda latents, decode=decode: sizes.append(latents.size) or decode(latents)

    def frames():
        for index in range(13):
            taken.append(index)
            yield clip(1, 16, 16, seed=index)

    first, second = chain.stages
    stream = second.stream(first.stream(frames(), TEXT, generators=seeded([0])), TEXT, generators=seeded([1]))
    next(stream)
    assert len(taken) <= 6  # of 13
    length = sum(chunk.shape[2] for chunk in stream)
    assert length == 25 - 3  # after the first chunk
    assert max(size[0] for size in sizes) <= 5
    assert max(size[1] * size[2] for size in sizes) <= 24 * 24


# ------------------------------------------------------------------------------------------------------ interpolation


@pytest.mark.parametrize("family", ["masked", "diffusion", "autoregressive"])
def test_given_frames_come_back_unchanged_and_others_are_made_between_them(family):
    stage = Interpolation(pipeline=pipeline(family, "kl"), factor=2)
    given = clip(6)
    chunks = list(stage.stream(given.split(4, dim=2), TEXT, generators=seeded([0])))
    video = torch.cat(chunks, dim=2)
    assert video.shape[2] == 11
    assert torch.equal(video[:, :, ::2], given)
    assert [chunk.shape[2] for chunk in chunks] == [5, 4, 2]  # windows of 5 frames share one


def test_a_single_frame_has_nothing_between():
    stage = Interpolation(pipeline=pipeline("masked"))
    assert torch.equal(next(stage.stream([clip(1)], TEXT, generators=seeded([0]))), clip(1))


# --------------------------------------------------------------------------------------------------- super-resolution


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_tiles_that_give_back_what_they_see_are_the_enlarged_video(factor):
    """Tiles, overlaps in space and time, and windows over ragged chunks leave no seam."""
    pipe, given = enlarger(), clip(11, 20, 28)
    tiled = Echo(pipeline=pipe, factor=factor, tile=(4, 24, 16), overlap=(1, 8, 8))
    video = torch.cat(list(tiled.stream(given.split(3, dim=2), TEXT, generators=seeded([0]))), dim=2)
    expected = given if factor == 1 else resized(given, factor)
    assert video.shape == expected.shape
    assert (video - expected).abs().max() <= 1e-5


def test_a_tile_as_large_as_the_video_is_no_tile_at_all():
    pipe, given = enlarger(), clip(5, 8, 12)
    whole, tiled = (
        torch.cat(list(stage.stream([given], TEXT, generators=seeded([3]))), dim=2)
        for stage in (
            SuperResolution(pipeline=pipe),
            SuperResolution(pipeline=pipe, tile=(5, 16, 24), overlap=(1, 8, 8)),
        )
    )
    assert torch.equal(whole, tiled)


def test_tiles_of_a_frame_share_their_noise_where_they_overlap():
    stage = Echo(pipeline=enlarger(), factor=1, tile=(5, 16, 16), overlap=(0, 8, 8))
    stage.asked.clear()
    list(stage.stream([clip(5, 16, 24)], TEXT, generators=seeded([0])))
    left, right = (noise.unflatten(1, (2, 2, 2)) for _, noise in stage.asked)
    assert torch.equal(left[:, :, :, 1], right[:, :, :, 0])
    assert not torch.equal(left[:, :, :, 0], right[:, :, :, 0])


def test_the_given_video_is_seen():
    stage = SuperResolution(pipeline=enlarger())
    one, other = (next(stage.stream([clip(5, 8, 8, seed=number)], TEXT, generators=seeded([0]))) for number in (1, 2))
    assert (one - other).abs().max() > 1e-3


def test_a_timeline_reaches_the_windows_of_every_stage():
    stage = Echo(pipeline=enlarger(), factor=1, tile=(4, 16, 16), overlap=(1, 0, 0))
    stage.asked.clear()
    chain = Cascade(None, [stage])
    list(chain.stream([(0, "one"), (3, "two"), (7, "three")], video=clip(10), generator=seed()))
    prompts = [prompt for prompt, _ in stage.asked]  # of the frames 0 to 4, 3 to 7, 6 to 10
    assert prompts == [[(0, "one"), (3, "two")], "two", [(0, "two"), (1, "three")]]


@pytest.mark.parametrize("extent", [8, 16, 20, 33, 100])
def test_tiles_cover_everything_within_their_size(extent):
    tiles = list(spans(extent, tile=16, overlap=8, unit=8))
    assert tiles[0][0] == 0
    assert tiles[-1][1] == extent
    assert all(stop - start <= 16 and start % 8 == 0 for start, stop in tiles)
    assert all(after[0] < before[1] or before[1] == after[0] for before, after in pairwise(tiles))


def test_windows_of_frames_overlap_by_what_was_asked():
    video = clip(11)
    windows = list(time_windows(video.split(2, dim=2), length=4, overlap=1))
    assert [window.shape[2] for window in windows] == [4, 4, 4, 2]
    assert torch.equal(torch.cat([windows[0], *(window[:, :, 1:] for window in windows[1:])], dim=2), video)


# ------------------------------------------------------------------------------------------------- presets, training


@pytest.mark.parametrize("name", CASCADE_PRESETS)
def test_the_tiny_twin_of_a_preset_makes_a_video(name):
    torch.manual_seed(0)
    chain = CASCADE_PRESETS[name].tiny().build(tokenizer("kl"))
    chain.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {"num_frames": 2} if chain.base is not None else {"video": clip(2, 20, 16)}
    video: Any = chain(TEXT, generator=seed(), output_type="pt", **given).frames
    size = chain.size((2, 16, 16) if chain.base is not None else (2, 20, 16))
    assert video.shape == (1, size[0], 3, *size[1:])


def test_the_full_presets_are_built_of_the_published_parts():
    for preset in CASCADE_PRESETS.values():
        enlarging = preset.stages[-1].pipeline.config
        assert enlarging["attention"] == "windows"
        assert enlarging["control_layers"] > 0


def test_the_tiny_cascade_trains_stage_by_stage(tmp_path):
    torch.manual_seed(0)
    chain = CASCADE_PRESETS["shapes-cascade"].tiny().build(tokenizer("kl"))
    runs = {
        "base": {},
        "interpolation": {"tasks": ("frame_interpolation",)},
        "super_resolution": {"control_layers": 1, "control": "half-size", "known_frames": 0.0},
    }
    trained = []
    for pipe, (name, options) in zip(chain.pipelines, runs.items(), strict=True):
        before = {key: weight.clone() for key, weight in pipe.transformer.state_dict().items()}
        run = tiny_run(tmp_path / name, steps=3, checkpoint_every=3, **options)
        trained.append(vidgen.load(train_generator(run, pipeline=pipe)))
        after = trained[-1].transformer.state_dict()
        changed = {key for key, weight in after.items() if key in before and not torch.equal(weight, before[key])}
        assert changed
        assert name != "super_resolution" or all(key.startswith("control_branch") for key in changed)
    base, between, larger = trained
    again = Cascade(base, [Interpolation(pipeline=between), SuperResolution(pipeline=larger)])
    again.set_progress_bar_config(disable=True)
    video: Any = again(TEXT, generator=seed(), output_type="pt", num_inference_steps=2).frames
    assert video.shape == (1, 17, 3, 32, 32)


def test_a_small_video_is_one_that_was_made_small():
    video = clip(2, 16, 24)
    assert torch.allclose(small(video, 2), resized(resized(video, 0.5), 2))
    assert (resized(video, 0.5) - torch.nn.functional.avg_pool3d(video, (1, 2, 2))).abs().mean() < 0.2
    with pytest.raises(ValueError, match="do not divide by 4"):
        CONTROLS["quarter-size"](clip(1, 18, 16))
    assert set(get_args(get_type_hints(GeneratorRun)["control"])) == set(CONTROLS)


# -------------------------------------------------------------------------------------------------------- the presets

# Million weights of each pipeline's network at full size. The chain is LaVie's and SeedVR's; their networks are others.
MILLIONS = {"lavie": (609, 609, 4008), "seedvr-restoration": (4008,)}


@pytest.mark.parametrize("name", MILLIONS)
def test_the_networks_of_a_cascade_have_their_full_size_and_a_branch_where_a_video_is_given(name):
    preset = CASCADE_PRESETS[name]
    bases = [] if preset.base is None else [preset.base]
    counts = []
    for made in (*bases, *(stage.pipeline for stage in preset.stages)):
        spec = TOKENIZER_PRESETS[made.tokenizer].tiny().build().spec
        with torch.device("meta"):
            network: Any = made.generator(latent_spec=spec.to_json(), text_width=made.text["width"], **made.config)
        counts.append(network.num_parameters() / 1e6)
        assert hasattr(network, "control_branch") == ("control_layers" in made.config)
    assert counts == pytest.approx(MILLIONS[name], rel=0.005)


# ------------------------------------------------------------------------------------------------------ contradictions


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cascade(None, []), "a base pipeline or a stage"),
        (lambda: Cascade(pipeline(), cast(Any, [pipeline()])), "a stage is an Interpolation or a SuperResolution"),
        (lambda: Interpolation(pipeline=pipeline(), factor=1), "at least 2 frames of each"),
        (lambda: Interpolation(pipeline=pipeline(), factor=8), "needs 9 frames, got window_frames 5"),
        (lambda: Interpolation(pipeline=pipeline(), arguments={"mask": None}), "mask of a stage's calls come from"),
        (lambda: SuperResolution(pipeline=pipeline()), "this generator has none; give it one with"),
        (lambda: SuperResolution(pipeline=enlarger(), factor=0), "factor of at least 1"),
        (lambda: SuperResolution(pipeline=enlarger(), overlap=(1, 8, 8)), "give a tile as well"),
        (lambda: SuperResolution(pipeline=enlarger(), tile=(4, 8, 8), overlap=(1, 8, 0)), "less than their size"),
        (lambda: SuperResolution(pipeline=enlarger(), tile=(4, 12, 8)), "multiples of the 8x8 pixels of a token"),
    ],
)
def test_contradictory_stages_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_tiles_need_noise_on_a_grid():
    masked = pipeline("masked")
    masked.transformer.add_control()
    SuperResolution(pipeline=masked)
    with pytest.raises(ValueError, match="need a diffusion pipeline"):
        SuperResolution(pipeline=masked, tile=(4, 8, 8))


def test_pipelines_that_are_told_different_things_are_no_cascade():
    base = pipeline()
    base.text_encoder = ClassEncoder(["red", "blue"], width=16)
    with pytest.raises(ValueError, match="some are told classes"):
        Cascade(base, [Interpolation(pipeline=pipeline())])


def test_a_class_label_stands_for_its_name_in_all_pipelines():
    torch.manual_seed(0)
    encoder, pipes = ClassEncoder(["red", "blue"], width=16), [pipeline(), pipeline()]
    for pipe in pipes:
        pipe.text_encoder = encoder
    chain = Cascade(pipes[0], [Interpolation(pipeline=pipes[1], factor=2, arguments={"num_inference_steps": 2})])
    call = {"generator": seed(), "output_type": "pt"}
    by_label = chain(class_label=[1, 0], **call).frames
    assert torch.equal(by_label, chain(["blue", "red"], **{**call, "generator": seed()}).frames)
    given = {"video": clip(), "generator": seed(), "output_type": "pt"}
    assert torch.equal(chain(class_label=1, **given).frames, chain("blue", **{**given, "generator": seed()}).frames)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"video": clip(), "num_frames": 5}, "num_frames belong to the base's call"),
        ({"video": clip(batch=2), "prompt": ["a"] * 3}, "2 videos and 3 prompts"),
        ({"output_type": "latent"}, "one of pil, np, pt"),
        ({"num_videos_per_prompt": 2}, "takes no num_videos_per_prompt"),
        ({"class_label": 1, "prompt": "red star"}, "not both"),
        ({"class_label": 1}, "class_label needs a ClassEncoder"),
    ],
)
def test_calls_that_contradict_themselves_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        cascade()(**call)
