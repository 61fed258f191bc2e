"""Moving digits: the caption and label name the digit that moves, and no handwriting is in both splits."""

import gzip
import re
import tracemalloc

import numpy as np
import pytest
import torch

from vidgen.data import digits
from vidgen.data.digits import MovingDigits, digit_classes, parse_digits


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """Forty made-up digits: a filled square whose gray level tells the image."""
    folder = tmp_path_factory.mktemp("mnist")
    images = np.zeros((40, 28, 28), np.uint8)
    images[:, 7:21, 7:21] = (np.arange(40) * 5 + 50)[:, None, None]
    labels = (np.arange(40) % 10).astype(np.uint8)
    for name, data in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, data.ndim]) + np.array(data.shape, ">i4").tobytes()
        (folder / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(header + data.tobytes()))
    return folder


def centroid(frame):
    mass = frame.sum()
    rows, columns = torch.arange(frame.shape[0]) + 0.5, torch.arange(frame.shape[1]) + 0.5
    return float((frame.sum(0) * columns).sum() / mass), float((frame.sum(1) * rows).sum() / mass)


def test_an_item_is_a_function_of_seed_and_index(mnist):
    world, again = MovingDigits(mnist), MovingDigits(mnist)
    assert torch.equal(world[11]["video"], again[11]["video"])
    assert world[11]["caption"] == again[11]["caption"]
    assert not torch.equal(world[11]["video"], MovingDigits(mnist, seed=1)[11]["video"])


def test_single_digits_carry_their_label_and_move_as_the_caption_says(mnist):
    world = MovingDigits(mnist, digits=(1,), height=40, width=56, num_frames=5)
    for index in range(40):
        item = world[index]
        digit, motion = re.fullmatch(r"a (\d) (moving \w+|staying still)", item["caption"]).groups()
        assert item["class_label"] == int(digit)
        video = (item["video"][0] + 1) / 2
        assert video.shape == (5, 40, 56) and video.min() >= 0 and video.max() <= 1
        (x0, y0), (x1, y1) = centroid(video[0]), centroid(video[-1])
        way = {"moving left": (-0.5, 0), "moving right": (0.5, 0), "moving up": (0, -0.5), "moving down": (0, 0.5)}
        expected = way.get(motion, (0, 0))
        assert ((x1 - x0) / 56, (y1 - y0) / 40) == pytest.approx(expected, abs=0.06)
        assert video.sum((1, 2)) == pytest.approx(video[0].sum().item(), rel=0.05)  # never leaves the frame


def test_two_digits_are_joined_in_the_caption_and_their_class_has_no_order(mnist):
    item = MovingDigits(mnist, digits=(2,))[0]
    first, second = re.fullmatch(r"a (\d) [a-z ]+ and a (\d) [a-z ]+", item["caption"]).groups()
    assert digit_classes((2,))[item["class_label"]] == " ".join(sorted((first, second)))
    assert len(digit_classes((1, 2))) == 10 + 55


def test_captions_are_read_back_and_rendered_again(mnist):
    world = MovingDigits(mnist, digits=(1, 2), num_frames=3)
    for index in range(20):
        caption = world[index]["caption"]
        scene = parse_digits(caption)
        assert scene.caption == caption
        assert world.render(scene, generator=torch.Generator().manual_seed(index)).shape == (3, 3, 64, 64)
    for wrong in ("a 12 moving left", "a 3 spinning", "a 1 moving up and a 2 moving up and a 3 moving up", ""):
        with pytest.raises(ValueError, match="DIGIT MOTION"):
            parse_digits(wrong)


def test_no_digit_image_is_in_both_splits(mnist):
    train, test = MovingDigits(mnist), MovingDigits(mnist, "test")
    assert len(train.labels) == 36 and len(test.labels) == 4
    assert not set(train.images.amax((1, 2)).tolist()) & set(test.images.amax((1, 2)).tolist())


def test_real_digits_are_read(shared):
    world = MovingDigits(shared / "mnist", "test", num_frames=2)
    assert len(world.labels) == 1000 and set(world.labels) == set(range(10))
    assert world[0]["video"].max() > 0.5


def test_wrong_files_and_arguments_are_refused(mnist, tmp_path):
    with pytest.raises(ValueError, match="found none"):
        MovingDigits(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"not gzip")
    with pytest.raises(ValueError, match="gzipped idx"):
        MovingDigits(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc"))
    with pytest.raises(ValueError, match="header or length"):
        MovingDigits(tmp_path)
    with pytest.raises(ValueError, match="split"):
        MovingDigits(mnist, "validation")
    with pytest.raises(ValueError, match="digits"):
        MovingDigits(mnist, digits=(3,))


@pytest.mark.parametrize("shape", [(1,), (2**31 - 1, 2**31 - 1), (-1, -1), (0,)])
def test_a_digit_file_is_not_unpacked_beyond_what_it_says(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(digits, "_MOST_BYTES", 1 << 20)
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big", signed=True) for size in shape)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(header + bytes(1 << 26), compresslevel=1))
    tracemalloc.start()
    with pytest.raises(ValueError, match="header or length"):
        MovingDigits(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 23
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(ValueError, match="idx file"):
        MovingDigits(tmp_path)
