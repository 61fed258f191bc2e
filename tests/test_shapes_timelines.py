"""Clips whose text changes: do they show their texts, and do generators train on them?"""

from dataclasses import replace

import pytest
import torch
from test_training_generator import FAMILIES, batch_of, tiny_pipeline, tiny_run

from vidgen.conditioning import WordTextEncoder
from vidgen.conditioning.timeline import encode_prompts, frame_ranges, side_by_side
from vidgen.data.shapes import HELD_OUT_PAIRS, ShapesWorld, parse_caption
from vidgen.data.shapes_timelines import ShapesTimelines, draw_timeline, turned_round
from vidgen.eval.timeline_obedience import TOLERANCE, TimelineCase, see_switch
from vidgen.nn.random import seeded
from vidgen.training import DataConfig, MatcherRun, train_generator
from vidgen.training.clips import training_clips, validation_clips
from vidgen.training.generator_step import GeneratorStep
from vidgen.training.latent_cache import EncodedClips

TURN = [
    (0, "a small red star moving left on a navy background"),
    (3, "a small red star moving right on a navy background"),
]


def case_of(item: dict) -> TimelineCase | None:
    """What the judge of timelines is asked of a clip with one object; `None` where the switch is near an end."""
    (_, first), (frame, second) = item["caption"]
    first, second = parse_caption(first), parse_caption(second)
    if not 4 <= frame <= 12:
        return None
    before, after = first.objects[0], second.objects[0]
    changed = "colour" if before.colour != after.colour else "motion" if before.motion != after.motion else "background"
    return TimelineCase(first, second, frame, changed)


def test_a_clip_shows_each_of_its_texts_in_its_time():
    clips = ShapesTimelines(ShapesWorld(objects=(1,), seed=4), share=1.0)
    items = [clips[index] for index in range(90)]
    cases = [(case, item["video"]) for item in items if (case := case_of(item)) is not None]
    assert {case.changed for case, _ in cases} == {"background", "colour", "motion"}
    seen = [see_switch(video, case) for case, video in cases]
    right = [
        one.frame is not None and abs(one.frame - case.frame) <= TOLERANCE
        for one, (case, _) in zip(seen, cases, strict=True)
    ]
    assert sum(right) >= 0.95 * len(right)
    colours = [one.frame == case.frame for one, (case, _) in zip(seen, cases, strict=True) if case.changed != "motion"]
    assert all(colours)


def test_an_item_depends_on_its_index_alone_and_the_rest_is_the_world_as_it_was():
    world = ShapesWorld(5, 16, width=16, objects=(1,), seed=3)
    clips = ShapesTimelines(world, share=0.5)
    items = [clips[index] for index in range(40)]
    again = ShapesTimelines(world, share=0.5)
    for index in (39, 0, 17):
        assert again[index]["caption"] == items[index]["caption"]
        assert torch.equal(again[index]["video"], items[index]["video"])
    changing = [isinstance(item["caption"], list) for item in items]
    assert 10 <= sum(changing) <= 30
    for index, item in enumerate(items):
        assert item.keys() == {"video", "caption", "id"}
        if not changing[index]:
            assert item["caption"] == world[index]["caption"] and torch.equal(item["video"], world[index]["video"])
    assert clips.captions() == world.captions()
    assert not any(isinstance(ShapesTimelines(world, 0.0)[index]["caption"], list) for index in range(20))


def test_a_timeline_changes_one_thing_and_shows_no_pair_that_is_held_out():
    world = ShapesWorld(objects=(1, 2), seed=1, hold_out=HELD_OUT_PAIRS)
    generator = torch.Generator().manual_seed(0)
    kinds = set()
    for index in range(200):
        (zero, first), (frame, second) = draw_timeline(
            world.scene(index), num_frames=17, hold_out=HELD_OUT_PAIRS, generator=generator
        )
        assert zero == 0 and 1 <= frame <= 16
        assert not {(item.colour, item.shape) for item in second.objects} & HELD_OUT_PAIRS
        assert len({item.colour for item in second.objects}) == len(second.objects)
        others = [name for name, a, b in zip("ab", first.objects, second.objects) if a.colour != b.colour]
        kind = (first.background != second.background, len(others), second == turned_round(first))
        assert sum((kind[0], kind[1] == 1, kind[2])) == 1
        kinds.add(kind)
    assert len(kinds) == 3


def test_share_is_checked():
    with pytest.raises(ValueError, match="between 0 and 1"):
        ShapesTimelines(ShapesWorld(), 1.5)


def test_prompts_and_timelines_of_a_batch_have_the_states_that_each_has_alone():
    encoder = WordTextEncoder(width=16, layers=1, heads=2, buckets=64).eval()
    text, frames = encode_prompts(encoder, ["a red star", TURN])
    assert frames is not None and frames.shape == (*text.mask.shape, 2)
    alone = side_by_side(encoder.encode([entry for _, entry in TURN]))
    assert torch.equal(text.mask[1], alone.mask[0])
    assert torch.allclose(text.states[1][alone.mask[0]], alone.states[0][alone.mask[0]], atol=1e-6)
    wanted = frame_ranges(TURN, alone.states)
    assert wanted is not None and torch.equal(frames[1:], wanted)
    assert int(text.mask[0].sum()) == 3
    assert torch.allclose(text.states[0][:3], encoder.encode(["a red star"]).states[0], atol=1e-6)
    plain, none = encode_prompts(encoder, ["a red star", "a blue star"])
    assert none is None and plain.mask.shape[1] == 3


@pytest.mark.parametrize(("family", "bottleneck"), [("masked", "fsq"), ("flow", "kl"), ("ar", "vq")])
def test_generators_train_on_encoded_timelines_and_sample_them(family, bottleneck, tmp_path):
    run = tiny_run(tmp_path, cached_clips=8, sample_every=6)
    run = replace(run, data=replace(run.data, timelines=0.5))
    pipeline = FAMILIES[family][0].from_pretrained(train_generator(run, pipeline=tiny_pipeline(family, bottleneck)))
    assert len(list((tmp_path / "samples").iterdir())) == 1
    (folder,) = [
        path.parent for path in (tmp_path / "cache").rglob("cache.json") if len(EncodedClips(path.parent)) == 8
    ]
    encoded = EncodedClips(folder)
    clips = training_clips(run.data)
    assert [encoded[index]["caption"] for index in range(8)] == [clips[index]["caption"] for index in range(8)]
    step = GeneratorStep(pipeline, drop_text=0.0, known_frames=0.0)
    batch = batch_of(clips, 6)
    assert 0 < sum(isinstance(caption, list) for caption in batch["caption"]) < 6
    condition = step.condition(batch)
    assert condition.frames is not None and condition.frames.shape[:2] == condition.mask.shape
    losses = step(batch, seeded(range(6)))
    assert all(torch.isfinite(loss).all() for loss in losses.values())
    assert step.samples(batch, seeded(range(6))).shape == batch["video"].shape


def test_in_training_a_token_sees_the_text_that_holds_in_its_frame():
    pipeline = tiny_pipeline()
    step = GeneratorStep(pipeline, drop_text=0.0, known_frames=0.0)
    coordinates = pipeline.video_tokenizer.spec.coordinates((5, 16, 16))
    batch = {"caption": [TURN]}
    seen = step.condition(batch).mask_for(coordinates[:, 2])[0]
    half = seen.shape[1] // 2  # states of each text
    for token, frame in zip(seen, coordinates[:, 2].tolist(), strict=True):
        assert bool(token[:half].any()) == (frame < 3) and bool(token[half:].any()) == (frame >= 3)


def test_validation_has_whole_texts_and_what_does_not_fit_is_refused(tmp_path):
    data = DataConfig(num_frames=5, height=16, width=16, validation_clips=8, timelines=1.0)
    clips = validation_clips(data)
    assert clips is not None and all(isinstance(clips[index]["caption"], str) for index in range(8))
    for source, share in (("digits", 0.5), ("shapes", 1.5), ("shapes", -0.1)):
        with pytest.raises(ValueError, match="timelines is a share"):
            DataConfig(source=source, timelines=share)
    with pytest.raises(ValueError, match="no class"):
        tiny_run(tmp_path, data=data, classes=True)
    with pytest.raises(ValueError, match="one text each"):
        tiny_run(tmp_path, data=data, text_encoder="somewhere", cached_clips=4)
    with pytest.raises(ValueError, match="one text"):
        MatcherRun(preset="shapes-matcher", output_dir=tmp_path, data=data)
