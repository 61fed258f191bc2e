"""Does the shapes-world judge read what was rendered, refuse wrong prompts, and bear blur, noise and fading?"""

import pytest
import torch
from torch.nn import functional

from vidgen.data.shapes import MOTIONS, SHAPES, Scene, ShapeObject, ShapesWorld, render
from vidgen.eval.detector import compare, detect, judge


def blurred(video: torch.Tensor, sigma: float = 1.2) -> torch.Tensor:
    taps = torch.arange(-4.0, 5.0)
    kernel = torch.softmax(-(taps**2) / (2 * sigma**2), dim=0).expand(3, 1, 1, 9)
    frames = functional.pad(video.transpose(0, 1), (4, 4, 4, 4), mode="replicate")
    frames = functional.conv2d(functional.conv2d(frames, kernel, groups=3), kernel.transpose(2, 3), groups=3)
    return frames.transpose(0, 1)


def noisy(video: torch.Tensor) -> torch.Tensor:
    return video + 0.1 * torch.randn(video.shape, generator=torch.Generator().manual_seed(0))


def faded(video: torch.Tensor) -> torch.Tensor:
    return video * 0.92 + torch.tensor([0.03, -0.02, 0.02]).view(3, 1, 1, 1)


def shares(world: ShapesWorld, count: int, change=lambda video: video) -> tuple[float, float]:
    """Share of videos read all right, and share that would also pass for the next scene's prompt."""
    right = wrong = 0
    for index in range(count):
        seen = detect(change(world[index]["video"]))
        right += compare(seen, world.scene(index)).all_right
        wrong += compare(seen, world.scene(index + 1)).all_right
    return right / count, wrong / count


@pytest.mark.parametrize("objects", [1, 2])
def test_rendered_videos_are_read_right_and_wrong_prompts_fail(objects):
    right, wrong = shares(ShapesWorld(objects=(objects,), seed=11), 25)
    assert right >= 0.96
    assert wrong == 0


@pytest.mark.slow
@pytest.mark.parametrize(("objects", "count"), [(1, 500), (2, 300)])
def test_at_least_99_of_100_rendered_videos_are_read_right(objects, count):
    right, wrong = shares(ShapesWorld(objects=(objects,), seed=12), count)
    assert right >= 0.99
    assert wrong <= 0.005


@pytest.mark.parametrize("change", [blurred, noisy, faded, lambda video: noisy(blurred(faded(video)))])
def test_blur_noise_and_fading_do_not_mislead_the_judge(change):
    right, _ = shares(ShapesWorld(objects=(1,), seed=13), 15, change)
    assert right >= 14 / 15


@pytest.mark.slow
@pytest.mark.parametrize("change", [blurred, noisy, faded, lambda video: noisy(blurred(faded(video)))])
@pytest.mark.parametrize("objects", [1, 2])
def test_blur_noise_and_fading_cost_at_most_three_of_100_readings(change, objects):
    right, _ = shares(ShapesWorld(objects=(objects,), seed=14), 150, change)
    assert right >= 0.97


@pytest.mark.parametrize(("frames", "height", "width"), [(9, 64, 64), (17, 48, 80), (33, 128, 128), (49, 64, 64)])
def test_other_lengths_and_sizes_are_read_too(frames, height, width):
    right, _ = shares(ShapesWorld(frames, height, width=width, objects=(1,), seed=15), 8)
    assert right >= 7 / 8


@pytest.mark.parametrize("motion", MOTIONS)
def test_each_attribute_is_judged_by_itself(motion):
    wanted = Scene((ShapeObject("large", "cyan", "square", motion),), "brown")
    video = render(wanted, num_frames=17, height=64, width=64, generator=torch.Generator().manual_seed(3))
    assert judge(video, wanted.caption).all_right
    other_motion = MOTIONS[(MOTIONS.index(motion) + 1) % len(MOTIONS)]
    for changed, attribute in (
        (Scene((ShapeObject("small", "cyan", "square", motion),), "brown"), "size"),
        (Scene((ShapeObject("large", "green", "square", motion),), "brown"), "colour"),
        (Scene((ShapeObject("large", "cyan", "star", motion),), "brown"), "shape"),
        (Scene((ShapeObject("large", "cyan", "square", other_motion),), "brown"), "motion"),
        (Scene((ShapeObject("large", "cyan", "square", motion),), "gray"), "background"),
    ):
        judged = judge(video, changed)
        wrong = [
            name for name in ("count", "size", "colour", "shape", "motion", "background") if not getattr(judged, name)
        ]
        assert wrong == [attribute]
        assert not judged.all_right
        assert judged.colour_motion_background == (attribute in ("size", "shape"))


def test_the_order_of_two_objects_in_the_caption_does_not_matter():
    first = ShapeObject("small", "red", "star", "moving up")
    second = ShapeObject("large", "white", "circle", "staying still")
    video = render(
        Scene((first, second), "navy"), num_frames=17, height=64, width=64, generator=torch.Generator().manual_seed(5)
    )
    assert judge(video, Scene((second, first), "navy")).all_right
    # Attributes that are all there but on the wrong object are wrong.
    swapped = Scene(
        (ShapeObject("small", "white", "star", "moving up"), ShapeObject("large", "red", "circle", "staying still")),
        "navy",
    )
    assert not judge(video, swapped).colour_motion_background


def test_a_missing_or_additional_object_is_never_all_right():
    one = Scene((ShapeObject("small", "red", "star", "moving up"),), "navy")
    two = Scene((*one.objects, ShapeObject("large", "white", "circle", "staying still")), "navy")
    generator = torch.Generator().manual_seed(5)
    video = render(two, num_frames=17, height=64, width=64, generator=generator)
    assert not judge(video, one).count and not judge(video, one).colour_motion_background
    video = render(one, num_frames=17, height=64, width=64, generator=generator)
    assert not judge(video, two).count and not judge(video, two).all_right


def test_two_objects_of_one_colour_are_told_apart_by_place():
    scene = Scene(
        (
            ShapeObject("small", "green", "circle", "moving right"),
            ShapeObject("large", "green", "square", "staying still"),
        ),
        "black",
    )
    right = 0
    for seed in range(6):
        video = render(scene, num_frames=17, height=64, width=64, generator=torch.Generator().manual_seed(seed))
        right += judge(video, scene).all_right
    assert right >= 4  # where their ways cross, one colour is one blob


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_an_empty_video_has_no_objects(value):
    assert detect(torch.full((3, 17, 64, 64), value)).objects == ()


@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (3, 1, 64, 64), (3, 5, 3, 7), (3, 2, 64, 64)])
def test_pure_noise_of_any_size_gets_some_reading(shape):
    seen = detect(torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    assert all(item.shape in SHAPES for item in seen.objects)


def test_a_diagonal_motion_is_no_direction():
    first = render(
        Scene((ShapeObject("small", "red", "circle", "staying still"),), "black"),
        num_frames=17, height=32, width=32, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    video = (torch.tensor([16, 16, 16]) / 127.5 - 1).view(3, 1, 1, 1).repeat(1, 17, 64, 64)
    for frame in range(17):
        video[:, frame, 2 * frame : 2 * frame + 32, 2 * frame : 2 * frame + 32] = first[:, frame]
    (seen,) = detect(video).objects
    assert seen.motion == "unclear"


def test_broken_input_is_refused():
    with pytest.raises(ValueError, match="3 t h w"):
        detect(torch.zeros(1, 3, 17, 64, 64))
    with pytest.raises(ValueError, match="NaN"):
        detect(torch.full((3, 2, 8, 8), float("nan")))
