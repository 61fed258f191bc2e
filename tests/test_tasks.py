"""Are the ten tasks the published regions, drawn evenly, and do class names and labels stand for each other?"""

import pytest
import torch

from vidgen.conditioning import NO_TASK, TASK_NAMES, TASKS, ClassEncoder, known_mask, task_numbers
from vidgen.conditioning.tasks import chosen_tasks, draw_tasks
from vidgen.nn.random import seeded

SIZE = (5, 16, 12)
SHARES = {  # of the pixels that are given: 1 of 5 frames; halves of height and width
    "frame_prediction": 1 / 5,
    "frame_interpolation": 2 / 5,
    "central_outpainting": 1 / 4,
    "vertical_outpainting": 1 / 2,
    "horizontal_outpainting": 1 / 2,
    "dynamic_outpainting": 1 / 2,
    "central_inpainting": 3 / 4,
    "dynamic_inpainting": 3 / 4,
    "class_generation": 0,
    "class_prediction": 1 / 5,
}


def test_there_are_the_ten_tasks_of_magvit():
    assert set(TASK_NAMES) == set(SHARES)
    assert [name for name in TASKS if TASKS[name].takes_class] == ["class_generation", "class_prediction"]


@pytest.mark.parametrize("name", TASKS)
def test_each_task_gives_its_published_share_of_every_clip(name):
    for size in (SIZE, (9, 32, 32), (2, 8, 8)):
        if name == "frame_interpolation" and size[0] == 2:
            continue
        share = known_mask(name, size).float().mean().item()
        frames = {"frame_prediction": 1, "class_prediction": 1, "frame_interpolation": 2}.get(name)
        assert share == pytest.approx(SHARES[name] if frames is None else frames / size[0])
        assert known_mask(name, size).shape == (1, 1, *size)


def test_the_regions_lie_where_the_paper_puts_them():
    rows, columns = slice(4, 12), slice(3, 9)
    central = known_mask("central_outpainting", SIZE)[0, 0]
    assert central[:, rows, columns].all()
    assert torch.equal(~central, known_mask("central_inpainting", SIZE)[0, 0])
    vertical = known_mask("vertical_outpainting", SIZE)[0, 0]
    assert vertical[:, :, columns].all()
    assert not vertical[:, :, :3].any()
    horizontal = known_mask("horizontal_outpainting", SIZE)[0, 0]
    assert horizontal[:, rows].all()
    assert not horizontal[:, :4].any()


@pytest.mark.parametrize("name", ["dynamic_outpainting", "dynamic_inpainting"])
def test_a_dynamic_region_glides_from_the_left_border_to_the_right_one(name):
    given = known_mask(name, (9, 16, 16))[0, 0, :, 8]
    strip = given if name == "dynamic_outpainting" else ~given
    first = [int(row.nonzero()[0]) for row in strip]
    assert first[0] == 0
    assert first[-1] == 8
    assert first == sorted(first)
    assert (strip.sum(dim=1) == 8).all()


def test_more_frames_can_be_given_and_a_task_without_anything_to_do_is_refused():
    assert known_mask("frame_prediction", SIZE, frames=3)[0, 0, :, 0, 0].tolist() == [True] * 3 + [False] * 2
    assert known_mask("frame_interpolation", SIZE, frames=2)[0, 0, :, 0, 0].tolist() == [True, True, False, True, True]
    for frames in (0, 5):
        with pytest.raises(ValueError, match="give at least 1 and leave some"):
            known_mask("frame_prediction", SIZE, frames=frames)
    with pytest.raises(ValueError, match="there is no task 'prediction'; there are: frame_prediction"):
        known_mask("prediction", SIZE)


def test_tasks_are_drawn_evenly_and_by_each_samples_own_generator():
    names = draw_tasks(TASK_NAMES, seeded(range(2000)))
    counts = [names.count(name) for name in TASK_NAMES]
    assert min(counts) > 150
    assert draw_tasks(TASK_NAMES, seeded([7])) == names[7:8]
    assert chosen_tasks(["all"]) == TASK_NAMES
    assert chosen_tasks(["class_generation"]) == ("class_generation",)
    with pytest.raises(ValueError, match="no task 'every'"):
        chosen_tasks(["every"])


def test_a_sample_without_a_task_has_the_number_for_none():
    assert task_numbers(["frame_interpolation", None]).tolist() == [1, NO_TASK]


def test_a_class_has_one_state_and_no_class_has_none(tmp_path):
    torch.manual_seed(0)
    encoder = ClassEncoder(["zero", "one", "two"], width=8)
    text = encoder.encode(["two", "", "zero"])
    assert text.states.shape == (3, 1, 8)
    assert text.mask.tolist() == [[True], [False], [True]]
    assert torch.equal(text.states[0, 0], encoder.embedding.weight[2])
    encoder.save_pretrained(tmp_path)
    again = ClassEncoder.from_pretrained(tmp_path)
    assert [again.label(again.name(label)) for label in range(3)] == [0, 1, 2]
    assert torch.equal(again.embedding.weight, encoder.embedding.weight)


def test_classes_that_do_not_exist_are_refused():
    encoder = ClassEncoder(["zero", "one"], width=8)
    with pytest.raises(ValueError, match="no class 'zeroo'; nearest: zero"):
        encoder.encode(["zeroo"])
    with pytest.raises(ValueError, match="class_label 2 is none of the 2 classes"):
        encoder.name(2)
