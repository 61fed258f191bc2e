"""Is the digit reader right on handwriting that it never saw, and does it judge digits and motions each by itself?"""

import json

import pytest
import torch

from vidgen.data.digits import DigitScene, MovingDigits, parse_digits
from vidgen.eval.digit_reader import WEIGHTS, compare_digits, read_digits


@pytest.mark.parametrize("digits", [1, 2])
def test_held_out_handwriting_is_read_right(shared, digits):
    world = MovingDigits(shared / "mnist", "test", digits=(digits,), seed=3)
    items = [world[index] for index in range(60)]
    judged = [compare_digits(read_digits(item["video"]), parse_digits(item["caption"])) for item in items]
    assert sum(one.count for one in judged) >= 57
    assert sum(one.digit for one in judged) >= (57 if digits == 1 else 55)
    assert sum(one.motion for one in judged) >= 57


def test_the_result_file_shows_98_of_100_single_digits_read_right(repository):
    result = json.loads((repository / "eval" / "results" / "digit_reader.json").read_text())
    assert result["one_digit"]["digit"]["share"] >= 0.98
    made = json.loads(WEIGHTS.with_name("made.json").read_text())
    assert made["command"] and made["trained_on"] and made["commit"]
    assert WEIGHTS.stat().st_size < 500_000


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_an_empty_video_shows_no_digit(value):
    assert read_digits(torch.full((3, 5, 64, 64), value)).objects == ()
    with pytest.raises(ValueError, match="3 t h w"):
        read_digits(torch.zeros(1, 3, 5, 64, 64))


def test_other_sizes_are_read_too(shared):
    world = MovingDigits(shared / "mnist", "test", digits=(1,), num_frames=9, height=128, width=160, seed=4)
    items = [world[index] for index in range(12)]
    right = sum(compare_digits(read_digits(item["video"]), parse_digits(item["caption"])).all_right for item in items)
    assert right >= 9


def test_two_digits_are_judged_in_either_order_and_each_by_its_own_motion():
    wanted = parse_digits("a 3 moving left and a 7 moving up")
    assert compare_digits(parse_digits("a 7 moving up and a 3 moving left"), wanted).all_right
    swapped = compare_digits(parse_digits("a 7 moving left and a 3 moving up"), wanted)
    assert swapped.count and not swapped.all_right
    assert not compare_digits(parse_digits("a 3 moving left"), wanted).count
    assert not compare_digits(DigitScene(()), wanted).digit
