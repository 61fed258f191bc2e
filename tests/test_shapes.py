"""The shapes world: captions say exactly what the pixels show, and item i depends on (seed, i) alone."""

from collections import Counter

import pytest
import torch

from vidgen.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    Scene,
    ShapeObject,
    ShapesWorld,
    parse_caption,
    render,
    sample_scene,
)


def draw(caption, *, num_frames=17, height=64, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return render(parse_caption(caption), num_frames=num_frames, height=height, width=width, generator=generator)


def coverage(video, colour, background):
    """`t h w` in [0, 1]: how much of each pixel the only object covers."""
    foreground, behind = (torch.tensor(rgb) / 127.5 - 1 for rgb in (COLOURS[colour], BACKGROUNDS[background]))
    direction = (foreground - behind)[:, None, None, None]
    return ((video - behind[:, None, None, None]) * direction).sum(0) / direction.square().sum()


def centroids(mask):
    """`t 2` in pixels: x, y."""
    rows, columns = torch.arange(mask.shape[1]) + 0.5, torch.arange(mask.shape[2]) + 0.5
    area = mask.sum((1, 2))
    return torch.stack([(mask.sum(1) * columns).sum(1) / area, (mask.sum(2) * rows).sum(1) / area], 1)


def widths(mask):
    return mask.amax(1).sum(1)


def test_every_scene_reads_back_from_its_caption():
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        scene = sample_scene(generator=generator)
        assert parse_caption(scene.caption) == scene


def test_captions_follow_the_grammar_to_the_letter():
    one = Scene((ShapeObject("small", "red", "circle", "moving left"),), "black")
    two = Scene((*one.objects, ShapeObject("large", "white", "star", "staying still")), "gray")
    assert one.caption == "a small red circle moving left on a black background"
    expected = "a small red circle moving left and a large white star staying still on a gray background"
    assert two.caption == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle moving left on a black background",
        "a small red circle moving left on a black background.",
        "a small pink circle moving left on a black background",
        "a small red circle moving left on a red background",
        "a small red circle spinning on a black background",
    ],
)
def test_text_outside_the_grammar_is_an_error_that_says_what_is_wrong(text):
    with pytest.raises(ValueError, match=r"grammar|of the form|spinning circle"):
        parse_caption(text)


def test_an_item_is_a_function_of_seed_and_index_alone():
    world, again = ShapesWorld(seed=3), ShapesWorld(seed=3)
    late = again[7]
    assert world[0]["caption"] == again[0]["caption"]
    item = world[7]
    assert item["caption"] == late["caption"] and item["id"] == late["id"]
    assert torch.equal(item["video"], late["video"])
    assert not torch.equal(ShapesWorld(seed=4)[7]["video"], item["video"])


def test_items_are_float_videos_in_range_of_any_size_and_length():
    for num_frames, height, width in ((17, 64, 64), (1, 64, 64), (2, 31, 50), (5, 1, 1), (3, 9, 130)):
        world = ShapesWorld(num_frames, height, width=width)
        video = world[0]["video"]
        assert video.shape == (3, num_frames, height, width) and video.dtype == torch.float32
        assert video.min() >= -1 and video.max() <= 1


def test_reading_past_the_end_is_an_index_error_so_that_iteration_ends():
    assert len(list(ShapesWorld(1, 8, width=8, length=3))) == 3


def test_all_words_of_the_grammar_occur():
    world = ShapesWorld()
    scenes = [world.scene(index) for index in range(400)]
    objects = [item for scene in scenes for item in scene.objects]
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {item.size for item in objects} == set(SIZES)
    assert {item.shape for item in objects} == set(SHAPES)
    assert {item.motion for item in objects} == set(MOTIONS)
    assert {item.colour for item in objects} == set(COLOURS)
    assert {len(scene.objects) for scene in scenes} == {1, 2}


def test_held_out_pairs_never_occur_and_two_objects_differ_in_colour():
    hold_out = frozenset({("red", "star"), ("blue", "circle")})
    world = ShapesWorld(hold_out=hold_out, objects=(2,))
    for index in range(300):
        first, second = world.scene(index).objects
        assert not {(first.colour, first.shape), (second.colour, second.shape)} & hold_out
        assert first.colour != second.colour


def test_favoured_words_come_as_often_as_they_are_named_and_the_rest_stays():
    favour = ("star", "star", "spinning", "small")
    scenes = [ShapesWorld(objects=(1,), favour=favour).scene(index) for index in range(3000)]
    shown = Counter(getattr(scene.objects[0], name) for scene in scenes for name in ("size", "shape", "motion"))
    assert shown["small"] / len(scenes) == pytest.approx(2 / 3, abs=0.03)
    assert shown["star"] / len(scenes) == pytest.approx(3 / 6, abs=0.03)  # three of it, one of each other shape
    assert shown["square"] / len(scenes) == pytest.approx(1 / 6, abs=0.03)
    assert shown["spinning"] / shown["growing"] == pytest.approx(2 * 5 / 6, abs=0.3)  # circles (one in six) never spin
    assert ShapesWorld(objects=(1,)).scene(7) == ShapesWorld(objects=(1,), favour=()).scene(7)


@pytest.mark.parametrize(
    "arguments",
    [
        {"objects": (3,)},
        {"objects": ()},
        {"hold_out": frozenset({("pink", "star")})},
        {"favour": ("pink",)},
        {"favour": ("navy",)},  # a background is no word of an object
    ],
)
def test_impossible_worlds_are_refused(arguments):
    with pytest.raises(ValueError, match=r"objects|hold_out|favour"):
        ShapesWorld(**arguments)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_a_size_word_is_the_width_of_the_shape(size, shape):
    mask = coverage(draw(f"a {size} red {shape} staying still on a black background"), "red", "black")
    assert widths(mask)[0].item() == pytest.approx(SIZES[size] * 64, abs=1.5)


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [("moving left", 0, -1), ("moving right", 0, 1), ("moving up", 1, -1), ("moving down", 1, 1)],
)
@pytest.mark.parametrize("seed", range(5))
def test_moving_crosses_about_half_of_the_frame_in_the_direction_said(motion, axis, sign, seed):
    video = draw(f"a large cyan triangle {motion} on a brown background", height=48, width=80, seed=seed)
    places = centroids(coverage(video, "cyan", "brown"))
    way = (places[-1] - places[0]) / torch.tensor([80, 48])
    assert 0.44 < sign * way[axis].item() < 0.56 and abs(way[1 - axis].item()) < 0.01


@pytest.mark.parametrize(("motion", "factor"), [("growing", 2.0), ("shrinking", 0.5)])
def test_growing_and_shrinking_change_the_width_twofold_around_the_nominal_width(motion, factor):
    width = widths(coverage(draw(f"a large white square {motion} on a navy background"), "white", "navy"))
    assert (width[-1] / width[0]).item() == pytest.approx(factor, rel=0.05)
    assert width.log().mean().exp().item() == pytest.approx(SIZES["large"] * 64, rel=0.03)


def test_spinning_turns_in_place_and_staying_still_does_not_move():
    spinning = coverage(draw("a large yellow star spinning on a black background"), "yellow", "black")
    assert (centroids(spinning) - centroids(spinning)[0]).abs().max() < 0.3
    assert (spinning[0] - spinning[1]).abs().max() > 0.5
    still = draw("a large yellow star staying still on a black background")
    assert torch.equal(still, still[:, :1].expand_as(still))


@pytest.mark.parametrize("seed", range(8))
def test_objects_stay_whole_inside_the_frame(seed):
    for shape in SHAPES:
        still = coverage(draw(f"a large green {shape} staying still on a gray background"), "green", "gray")[0].sum()
        for motion in ("moving up", "moving left"):
            video = draw(f"a large green {shape} {motion} on a gray background", seed=seed)
            assert (coverage(video, "green", "gray").sum((1, 2)) / still - 1).abs().max() < 0.02


def test_edges_are_anti_aliased_so_that_area_does_not_jump():
    video = draw("a small red circle moving right on a black background")
    mask = coverage(video, "red", "black")
    area = mask.sum((1, 2))
    assert ((mask > 0.02) & (mask < 0.98)).flatten(1).sum(1).min() >= 8
    radius = SIZES["small"] * 32
    assert (area / (torch.pi * radius**2) - 1).abs().max() < 0.02


def test_two_objects_both_stay_visible_throughout():
    world = ShapesWorld(objects=(2,))
    smallest = 1.0
    for index in range(30):
        video, scene = world[index]["video"], world.scene(index)
        for item in scene.objects:
            colour = torch.tensor(COLOURS[item.colour]) / 127.5 - 1
            pure = ((video - colour[:, None, None, None]).abs().amax(0) < 0.02).flatten(1).sum(1)
            smallest = min(smallest, (pure / pure.max()).median().item())
            assert pure.max() > 10
    assert smallest > 0.3


def test_impossible_frames_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        draw("a small red circle moving right on a black background", num_frames=0)
