"""Do data sets take turns in a mixture, and do both built-in worlds train one model that is told their classes?"""

import pytest
import torch

from vidgen.data.digits import DIGIT_CLASSES
from vidgen.data.mixture import Mixture
from vidgen.data.shapes import HELD_OUT_PAIRS, SHAPE_CLASSES, ShapesWorld
from vidgen.training import DataConfig
from vidgen.training.clips import class_names, training_clips, validation_clips


def test_data_sets_take_turns_and_share_no_label():
    one, other = ShapesWorld(3, 16, width=16, objects=(1,)), ShapesWorld(3, 16, width=16, objects=(1,), length=5)
    mixture = Mixture([one, other], [0, 32])
    assert len(mixture) == 10
    for index in range(10):
        item, source = mixture[index], (one, other)[index % 2][index // 2]
        assert torch.equal(item["video"], source["video"]) and item["id"] == source["id"]
        assert item["class_label"] == source["class_label"] + 32 * (index % 2)
    assert one[0]["class_label"] < 32  # the data set's own item is as it was


def test_a_mixture_refuses_what_it_cannot_give():
    world = ShapesWorld(3, 16, width=16, length=2)
    with pytest.raises(IndexError, match="0…1"):
        Mixture([world], [0])[2]
    with pytest.raises(ValueError, match="got 1 and 2"):
        Mixture([world], [0, 32])


def test_both_worlds_are_one_set_of_clips_and_classes(shared):
    small = {"num_frames": 3, "height": 16, "width": 16, "objects": (1,)}
    data = DataConfig(source="shapes+digits", digits_dir=shared / "mnist", hold_out=True, **small)
    names = class_names(data)
    assert names == SHAPE_CLASSES + DIGIT_CLASSES
    for clips in (training_clips(data), validation_clips(data)):
        for index in range(8):
            name = names[clips[index]["class_label"]]
            assert f"{name} " in clips[index]["caption"]
            assert (name in DIGIT_CLASSES) == (index % 2 == 1)
            assert tuple(name.split()) not in HELD_OUT_PAIRS


def test_classes_of_both_worlds_need_one_object():
    with pytest.raises(ValueError, match=r"shapes\+digits with --objects 1; got .* --objects 1 2"):
        class_names(DataConfig(source="shapes+digits", objects=(1, 2)))
    with pytest.raises(ValueError, match=r"--data shapes\+digits needs the folder with the MNIST files"):
        training_clips(DataConfig(source="shapes+digits"))
