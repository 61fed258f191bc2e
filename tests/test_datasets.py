"""A user's folder of videos as a training set: captions, classes, clip choice, and what is wrong with it."""

import json

import numpy as np
import pytest
import torch

from vidgen.data.decode import VideoError
from vidgen.data.folder import VideoFolder
from vidgen.data.video import to_frames
from vidgen.data.write import write_video

CLIP = {"num_frames": 4, "height": 16, "width": 24}


def write_clip(path, *, num_frames=12, level=0):
    """Frame k has gray level `level + 10 k`, so that a clip tells where it was taken from."""
    frames = (np.full((16, 24, 3), level + 10 * number, np.uint8) for number in range(num_frames))
    return write_video(path, frames, fps=10)


def levels(item):
    return to_frames(item["video"]).mean((1, 2, 3)).round().astype(int)


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("a.mp4", "b.webm", "deep/c.mp4")):
        write_clip(tmp_path / name, level=number)
    return tmp_path


def test_an_item_is_a_function_of_the_files_and_seed_and_index(folder):
    first, second = (VideoFolder(folder, **CLIP, clips_per_video=5) for _ in range(2))
    assert len(first) == 15
    for index in (14, 0, 7):
        assert torch.equal(first[index]["video"], second[index]["video"])
    assert len({first[index]["id"] for index in range(15)}) == 15
    starts = {int(levels(first[index])[0]) // 10 for index in range(0, 15, 3)}
    assert len(starts) > 1
    assert first[0]["id"] == "a.mp4#0" and first[5]["id"] == "deep/c.mp4#1"


def test_clips_are_consecutive_frames_in_range(folder):
    item = VideoFolder(folder, **CLIP)[0]
    assert item["video"].shape == (3, 4, 16, 24) and item["video"].dtype == torch.float32
    assert item["video"].abs().max() <= 1
    assert np.abs(np.diff(levels(item)) - 10).max() <= 2
    assert "class_label" not in item


def test_stride_and_rate_choose_which_frames_are_taken(folder):
    assert np.abs(np.diff(levels(VideoFolder(folder, **CLIP, stride=3)[0])) - 30).max() <= 2
    assert np.abs(np.diff(levels(VideoFolder(folder, **CLIP, fps=5)[0])) - 20).max() <= 2


def test_every_allowed_place_occurs_and_the_last_frame_is_reached(folder):
    world = VideoFolder(folder, **CLIP, clips_per_video=40)
    starts = {int(levels(world[index])[0] + 5) // 10 for index in range(0, 120, 3)}
    assert starts == set(range(9))


def test_zoom_takes_other_places_of_larger_frames_and_mirrors_some(tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 250, 96, dtype=np.uint8)[None, None, :, None], (4, 64, 96, 3))
    write_video(tmp_path / "ramp", iter(ramp), fps=10)
    world = VideoFolder(tmp_path, num_frames=4, height=16, width=24, clips_per_video=40, zoom=2.0)
    clips = [world[index]["video"] for index in range(40)]
    assert {tuple(clip.shape) for clip in clips} == {(3, 4, 16, 24)}
    assert all(torch.equal(clip, world[index]["video"]) for index, clip in enumerate(clips))
    rises = torch.stack([clip[0, 0, 8, -1] - clip[0, 0, 8, 0] for clip in clips])
    whole = torch.tensor(250 / 127.5)
    assert 10 < (rises < 0).sum() < 30
    assert rises.abs().min() < 0.6 * whole and rises.abs().max() > 0.9 * whole  # half the frame, nearly all of it
    assert torch.equal(clips[0][:, 0], clips[0][:, 3])  # one place for all frames
    with pytest.raises(ValueError, match="zoom must be at least 1"):
        VideoFolder(tmp_path, num_frames=4, height=16, width=24, zoom=0.5)


@pytest.mark.parametrize("column", ["text", "caption"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_captions_come_from_a_table_and_only_listed_files_are_used(folder, kind, column):
    rows = [{"file_name": "deep/c.mp4", column: 'a "gray", one'}, {"file_name": "a.mp4", column: "another"}]
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    else:
        text = f'file_name,{column}\ndeep/c.mp4,"a ""gray"", one"\na.mp4,another\n'
        (folder / "metadata.csv").write_text(text)
    world = VideoFolder(folder, **CLIP, captions_required=True)
    assert [world[index]["caption"] for index in range(len(world))] == ['a "gray", one', "another"]


def test_captions_come_from_text_files_beside_the_videos(folder):
    (folder / "a.txt").write_text("first clip\n")
    (folder / "b.txt").write_text("second clip")
    world = VideoFolder(folder, **CLIP)
    assert [video.caption for video in world.videos] == ["first clip", "second clip", None]
    assert world[2]["caption"] == ""
    with pytest.raises(ValueError, match=r"1 of 3 have none.*c\.mp4"):
        VideoFolder(folder, **CLIP, captions_required=True)


def test_class_folders_give_labels_and_names(tmp_path):
    for name in ("walk/1.mp4", "jump/1.mp4", "jump/2.mp4"):
        write_clip(tmp_path / name)
    world = VideoFolder(tmp_path, **CLIP)
    assert world.class_names == ("jump", "walk")
    assert [(world[index]["caption"], world[index]["class_label"]) for index in range(3)] == [
        ("jump", 0),
        ("jump", 0),
        ("walk", 1),
    ]


def test_a_split_shares_no_video_and_does_not_depend_on_order(folder):
    world = VideoFolder(folder, **CLIP, clips_per_video=2)
    training, validation = world.split(0.34)
    assert len(training) == 4 and len(validation) == 2 and len(world) == 6
    assert not {video.path for video in training.videos} & {video.path for video in validation.videos}
    assert [video.path for video in world.split(0.34)[1].videos] == [video.path for video in validation.videos]
    with pytest.raises(ValueError, match="share"):
        world.split(1.0)


def test_a_short_video_is_an_error_that_names_it_unless_its_last_frame_may_repeat(tmp_path):
    write_clip(tmp_path / "short.mp4", num_frames=3)
    with pytest.raises(VideoError, match=r"gives 4 frames; .*short\.mp4 gives 3"):
        VideoFolder(tmp_path, **CLIP)[0]
    repeated = levels(VideoFolder(tmp_path, **CLIP, repeat_last_frame=True)[0])
    assert repeated[3] == repeated[2] and abs(repeated[2] - 20) <= 2


def test_a_video_that_ends_before_its_header_says_gives_its_last_frames(folder):
    webm = write_clip(folder / "b.webm", num_frames=24).read_bytes()
    (folder / "b.webm").write_bytes(webm[: int(len(webm) * 0.8)])
    world = VideoFolder(folder, **CLIP, clips_per_video=8)
    with pytest.warns(UserWarning, match="lost"):
        clips = [levels(world[index]) for index in range(1, 24, 3)]
    assert all(np.abs(np.diff(clip) - 10).max() <= 2 for clip in clips)


def test_an_undecodable_video_is_an_error_that_names_it(folder):
    (folder / "b.webm").write_bytes(b"not a video at all")
    with pytest.raises(VideoError, match=r"b\.webm"):
        VideoFolder(folder, **CLIP)[1]


def test_a_video_too_long_and_narrow_for_the_clips_may_give_way_too(folder):
    write_video(folder / "ribbon", (np.zeros((2, 8000, 3), np.uint8) for _ in range(4)), fps=10)
    world = VideoFolder(folder, num_frames=4, height=256, width=256, allow_missing=True)
    with pytest.warns(UserWarning, match=r"ribbon is 8000x2 .*; the next video is taken"):
        assert world[3]["id"] == "a.mp4#0"


def test_what_cannot_be_read_may_give_way_to_the_next_video(folder):
    (folder / "b.webm").write_bytes(b"not a video at all")
    world = VideoFolder(folder, **CLIP, clips_per_video=2, allow_missing=True)
    with pytest.warns(UserWarning, match=r"b\.webm.*; the next video is taken") as said:
        items = [world[index] for index in (1, 4)]
    assert len(said) == 1  # once for each video
    assert [item["id"] for item in items] == ["deep/c.mp4#0", "deep/c.mp4#1"]
    for name in ("a.mp4", "deep/c.mp4"):
        (folder / name).write_bytes(b"nor this")
    with pytest.warns(UserWarning), pytest.raises(VideoError, match="expected a video that can be read"):
        VideoFolder(folder, **CLIP, allow_missing=True)[0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", "file,text\na.mp4,hello\n", "file_name"),
        ("metadata.csv", "file_name,text\ngone.mp4,hello\n", "does not exist"),
        ("metadata.csv", "file_name,text\n", "at least one row"),
        ("metadata.csv", "file_name,text\n/etc/hostname,hello\n", "below it in row 1"),
        ("metadata.jsonl", '{"file_name": "deep/../../a.mp4"}\n', "below it in row 1"),
        ("metadata.jsonl", '{"file_name": "a.mp4"}\nnot json\n', "line 2"),
        ("metadata.jsonl", '["a.mp4"]\n', "JSON object"),
    ],
)
def test_a_broken_table_is_an_error_that_says_where(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        VideoFolder(folder, **CLIP)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(VideoError, match="found none"):
        VideoFolder(tmp_path, **CLIP)
