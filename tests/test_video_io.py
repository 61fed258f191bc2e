"""Videos in and out: every real clip reads as its manifest says or fails clearly; what is written reads back."""

import csv
import subprocess
import sys
import warnings
from itertools import islice

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from vidgen.data.decode import DamagedVideoWarning, VideoError
from vidgen.data.shapes import parse_caption, render
from vidgen.data.video import find_videos, iter_frames, probe, read_video, to_frames, to_tensor
from vidgen.data.write import write_video

BROKEN = {"media_sample_with_invalid_nalu.mp4": (26, 30), "decord_corrupted.mp4": (28, 50)}


def scene(num_frames=9, height=64, width=64):
    generator = torch.Generator().manual_seed(0)
    caption = "a large red star moving left and a small cyan square spinning on a navy background"
    return render(parse_caption(caption), num_frames=num_frames, height=height, width=width, generator=generator)


def manifest(shared):
    with (shared / "clips" / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


def upright_size(row):
    height, width = int(row["height"]), int(row["width"])
    return (width, height) if abs(int(row["rotation"])) == 90 else (height, width)


# Real clips


def test_every_clip_opens_with_the_size_and_rate_of_the_manifest_or_fails_clearly(shared):
    rows = manifest(shared)
    assert len(rows) == 48
    for row in rows:
        path = shared / "clips" / row["file"]
        if row["frames_decoded"] == "0":
            with pytest.raises(VideoError, match="no video stream"):
                probe(path)
            continue
        info = probe(path)
        assert (info.height, info.width) == upright_size(row), row["file"]
        assert info.fps == pytest.approx(float(row["fps"]), abs=1e-3), row["file"]


@pytest.mark.slow
def test_every_clip_decodes_to_the_frames_of_the_manifest(shared):
    for row in manifest(shared):
        if row["frames_decoded"] == "0":
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            shapes = [frame.shape for frame in iter_frames(shared / "clips" / row["file"])]
        assert len(shapes) == int(row["frames_decoded"]), row["file"]
        assert set(shapes) == {(*upright_size(row), 3)}, row["file"]
        damaged = [str(warning.message) for warning in caught if warning.category is DamagedVideoWarning]
        assert len(damaged) == (row["file"] in BROKEN), row["file"]


@pytest.mark.parametrize("name", list(BROKEN))
def test_frames_before_damage_are_used_and_the_loss_is_told(shared, name):
    used, total = BROKEN[name]
    path = shared / "clips" / name
    with pytest.warns(DamagedVideoWarning, match=f"after {used} frames, {total - used} of {total} frames lost"):
        assert len(read_video(path, size=(16, 16)).frames) == used
    with pytest.raises(VideoError, match=f"after {used} frames.*strict=False"):
        read_video(path, size=(16, 16), strict=True)


@pytest.mark.parametrize("name", ["learning_area_rabbit320.mp4", "learning_area_rabbit320.webm", "media_sample.avi"])
def test_a_file_cut_in_half_is_damaged_even_where_the_container_does_not_notice(shared, tmp_path, name):
    whole = (shared / "clips" / name).read_bytes()
    cut = tmp_path / name
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(DamagedVideoWarning, match="lost"):
        assert 20 < len(read_video(cut, size=(8, 8)).frames) < 130


def test_rotation_is_applied_counterclockwise(shared):
    path = shared / "clips" / "decord_video_90.mov"
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    upright = next(iter_frames(path))
    assert upright.shape == (568, 320, 3)
    assert np.abs(upright.astype(int) - np.rot90(stored, -1)).mean() < 3  # the file says -90: a quarter clockwise


def test_of_several_video_streams_the_first_with_frames_is_read(shared, tmp_path):
    info = probe(shared / "clips" / "torchcodec_nasa_13013.mp4")
    assert (info.height, info.width) == (180, 320)
    assert len(list(islice(iter_frames(shared / "clips" / "media_sample_empty_track.mp4"), 2))) == 2


def test_resampling_follows_time_stamps(shared):
    path = shared / "clips" / "learning_area_rabbit320.webm"  # 30 fps in stamps rounded to milliseconds
    every = [frame.copy() for frame in iter_frames(path, size=(24, 32), max_frames=30)]
    same = list(iter_frames(path, size=(24, 32), fps=30, max_frames=30))
    third = list(iter_frames(path, size=(24, 32), fps=10, max_frames=10))
    double = list(iter_frames(path, size=(24, 32), fps=60, max_frames=60))
    assert all(np.array_equal(a, b) for a, b in zip(every, same, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(every[::3], third, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(every, double[::2], strict=True))


def test_starting_late_gives_the_same_frames_as_decoding_up_to_there(shared):
    path = shared / "clips" / "learning_area_rabbit320.mp4"
    everything = read_video(path, size=(24, 32)).frames
    assert np.array_equal(read_video(path, size=(24, 32), start=2.0, max_frames=4).frames, everything[60:64])
    sampled = read_video(path, size=(24, 32), start=2.05, fps=10, max_frames=4).frames
    assert np.array_equal(sampled, everything[[61, 64, 67, 70]])


@pytest.mark.slow
def test_memory_stays_flat_on_a_long_file(tmp_path):
    frames = (np.full((240, 320, 3), number % 256, np.uint8) for number in range(3000))
    path = write_video(tmp_path / "long.mp4", frames, fps=30)
    code = (
        "import resource, sys; from itertools import islice; from vidgen.data.video import iter_frames\n"
        "frames = iter_frames(sys.argv[1]); sum(1 for _ in islice(frames, 300))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; count = 300 + sum(1 for _ in frames)\n"
        "print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    output = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    count, growth = map(int, output.split())
    assert count == 3000
    assert growth <= 20 * 1024  # KiB; all frames would be 675 MiB


# Made up clips


def variable_rate_clip(path, stamps):
    """One gray level per frame, shown from the given milliseconds on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=1000)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "gray"
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16), 10 * number, np.uint8), format="gray")
            frame.pts, frame.time_base = stamp, stream.time_base or av.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_variable_frame_rates_become_the_chosen_rate(tmp_path):
    path = variable_rate_clip(tmp_path / "variable.mkv", [0, 100, 200, 700, 800])
    levels = [round(frame.mean() / 10) for frame in iter_frames(path, fps=10)]
    assert levels[:9] == [0, 1, 2, 2, 2, 2, 2, 3, 4]


def test_a_frame_that_claims_to_stay_for_years_is_not_repeated_for_years(tmp_path):
    path = variable_rate_clip(tmp_path / "still.mkv", [0, 10**11])
    assert sum(1 for _ in iter_frames(path)) == 2
    with pytest.raises(VideoError, match="stay at most 3600 s, and one stays 100000000 s"):
        next(iter_frames(path, fps=30))


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuva420p", "bgra", "gray", "yuv444p", "rgb48le"])
def test_alpha_deep_colour_and_gray_become_rgb(tmp_path, pixel_format):
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.height, stream.width, stream.pix_fmt = 18, 22, pixel_format
        gray = av.VideoFrame.from_ndarray(np.full((18, 22, 3), 100, np.uint8), format="rgb24")
        container.mux(stream.encode(gray.reformat(format=pixel_format, threads=1)))
        container.mux(stream.encode(None))
    frame = next(iter_frames(tmp_path / "clip.mkv"))
    assert frame.shape == (18, 22, 3) and frame.dtype == np.uint8
    assert np.abs(frame.astype(int) - 100).max() <= 2


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.gif", "clip"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (66, 50), (31, 17), (1, 1)])
def test_what_is_written_reads_back_with_its_size_length_rate_and_colours(tmp_path, name, height, width):
    video = scene(height=height, width=width)
    clip = read_video(write_video(tmp_path / name, video, fps=10))
    assert clip.frames.shape == (9, height, width, 3)
    assert clip.fps == pytest.approx(10)
    error = np.abs(clip.frames.astype(int) - to_frames(video))
    assert error.mean() <= {"clip.gif": 1, "clip": 0}.get(name, 6)
    assert np.abs(np.median(clip.frames, (0, 1, 2)) - np.median(to_frames(video), (0, 1, 2))).max() <= 3
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_still_clip_keeps_all_its_frames_in_every_format(tmp_path):
    still = scene(1).expand(-1, 6, -1, -1)
    for name in ("still.gif", "still.mp4", "still.webm", "still"):
        assert len(read_video(write_video(tmp_path / name, still, fps=8)).frames) == 6, name


def test_frames_stream_to_disk_as_they_come(tmp_path):
    frames = (np.full((16, 16, 3), 20 * number, np.uint8) for number in range(10))
    clip = read_video(write_video(tmp_path / "new" / "folder" / "clip.mp4", frames, fps=29.97))
    assert np.abs(clip.frames.mean((1, 2, 3)) - np.arange(0, 200, 20)).max() <= 2
    assert clip.fps == pytest.approx(29.97)


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = write_video(tmp_path / "clip.mp4", scene(2), fps=8)
    before = path.read_bytes()

    def failing():
        yield np.zeros((16, 16, 3), np.uint8)
        raise RuntimeError("generation stopped")

    for name in ("clip.mp4", "folder"):
        with pytest.raises(RuntimeError, match="generation stopped"):
            write_video(tmp_path / name, failing(), fps=8)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_clip_is_shown_in_a_few_words(tmp_path):
    path = write_video(tmp_path / "clip", scene(num_frames=4, height=32, width=48), fps=12)
    assert repr(read_video(path)) == "VideoClip(4 frames, height 32, width 48, 12 fps)"


def test_pixels_survive_the_way_to_a_tensor_and_back_exactly():
    frames = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    video = to_tensor(frames)
    assert video.shape == (3, 1, 16, 16) and video.min() == -1 and video.max() == 1
    assert np.array_equal(to_frames(video), frames)


def test_image_folders_are_read_in_counting_order_and_single_images_are_one_frame(tmp_path):
    for number in (1, 2, 10):
        Image.new("RGB", (6, 4), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    clip = read_video(tmp_path)
    assert clip.frames[:, 0, 0, 0].tolist() == [1, 2, 10] and clip.fps == 25
    for suffix in ("png", "jpg", "webp", "bmp"):
        Image.new("RGBA" if suffix in ("png", "webp") else "RGB", (5, 3)).save(tmp_path / f"one.{suffix}")
        assert read_video(tmp_path / f"one.{suffix}").frames.shape == (1, 3, 5, 3)


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "abc", "1e-320"])
def test_an_image_that_says_no_rate_is_an_error_that_names_it(tmp_path, rate):
    text = PngInfo()
    text.add_text("vidgen:fps", rate)
    Image.new("RGB", (4, 4)).save(tmp_path / "still.png", pnginfo=text)
    with pytest.raises(VideoError, match=rf"vidgen:fps of .*still\.png, got '{rate}'"):
        probe(tmp_path / "still.png")


def test_text_in_an_image_is_no_duration(tmp_path):
    text = PngInfo()
    text.add_text("duration", "long")
    Image.new("RGB", (4, 4)).save(tmp_path / "still.png", pnginfo=text)
    assert probe(tmp_path / "still.png").fps == 25


def test_every_page_of_an_image_is_bounded_before_it_is_unpacked(tmp_path):
    small, large = Image.new("RGB", (4, 4)), Image.new("RGB", (64, 64))
    small.save(tmp_path / "pages.tiff", save_all=True, append_images=[large])
    frames = iter_frames(tmp_path / "pages.tiff", max_pixels=100)
    assert next(frames).shape == (4, 4, 3)
    with pytest.raises(VideoError, match=r"at most 100 pixels .*pages\.tiff is 64x64"):
        next(frames)


@pytest.mark.parametrize(("height", "width", "size"), [(2, 8000, 256), (8000, 4, 256), (1, 200_000, 16)])
def test_frames_too_long_to_cover_a_size_are_an_error_that_names_the_file(height, width, size, tmp_path):
    path = tmp_path / "ribbon.png"
    Image.new("RGB", (width, height)).save(path)
    with pytest.raises(VideoError, match=rf"ribbon.png is {width}x{height} \(it covers {size}x{size} as .*crop it"):
        list(iter_frames(path, size=(size, size)))
    assert next(iter_frames(path)).shape == (height, width, 3)


def test_a_long_frame_within_the_bound_is_scaled_and_cropped_at_its_centre(tmp_path):
    ribbon = np.zeros((2, 400, 3), np.uint8)
    ribbon[:, 199:201] = 255
    Image.fromarray(ribbon).save(tmp_path / "ribbon.png")
    (frame,) = iter_frames(tmp_path / "ribbon.png", size=(16, 16))
    assert frame.shape == (16, 16, 3) and frame.min() > 100
    assert np.array_equal(frame, frame[:, ::-1])


def test_a_value_that_an_image_may_not_have_is_an_error_that_names_it(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "still.png")

    def refuse(image: Image.Image):
        raise ValueError("bad value")

    monkeypatch.setattr(ImageOps, "exif_transpose", refuse)
    with pytest.raises(VideoError, match=r"expected an image; .*still\.png cannot be read \(bad value\)"):
        probe(tmp_path / "still.png")


def test_a_camera_image_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    Image.new("RGB", (8, 4)).save(tmp_path / "photo.jpg", exif=exif)
    assert read_video(tmp_path / "photo.jpg").frames.shape == (1, 8, 4, 3)


def test_size_covers_and_crops_without_stretching(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert read_video(tmp_path / "wide.png", size=(10, 10)).frames[0, :, 1:-1].min() > 250


# Bad input


def bad_files(folder):
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "notes.txt").write_text("not a video\n" * 50)
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 20)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
    (folder / "nothing").mkdir()
    return [*folder.iterdir(), folder / "missing.mp4"]


def test_unreadable_files_fail_with_one_line_that_names_them(tmp_path):
    for path in bad_files(tmp_path):
        for attempt in (probe, read_video, iter_frames):
            with pytest.raises(VideoError) as caught:
                attempt(path)
            message = str(caught.value)
            assert message.startswith("expected") and str(path) in message and "\n" not in message


def test_hostile_sizes_and_lengths_are_bounded(tmp_path):
    path = write_video(tmp_path / "clip.mp4", scene(4), fps=8)
    with pytest.raises(VideoError, match="pixels per frame"):
        read_video(path, max_pixels=64 * 63)
    with pytest.raises(VideoError, match="max_frames"):
        read_video(path, max_bytes=3 * 64 * 64 * 3)
    Image.new("1", (3000, 3000)).save(tmp_path / "bomb.png")
    with pytest.raises(VideoError, match="pixels per frame"):
        probe(tmp_path / "bomb.png", max_pixels=10**6)


@pytest.mark.parametrize(
    "arguments", [{"fps": 0}, {"stride": 0}, {"max_frames": -1}, {"start": -1.0}, {"size": (0, 4)}]
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments):
    path = write_video(tmp_path / "clip.gif", scene(2), fps=10)
    with pytest.raises(ValueError, match=next(iter(arguments))):
        iter_frames(path, **arguments)


def test_what_cannot_be_written_is_refused_before_anything_is_touched(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    cases = [("clip.xyz", scene(1), 8, "ends in"), ("clip.mp4", scene(1), 0, "fps"), ("a.gif", scene(1), 60, "GIF")]
    cases += [("clip.mp4", iter(()), 8, "at least one frame"), ("full", scene(1), 8, "empty folder")]
    cases += [("clip.mp4", scene(1)[:2], 8, "3 t h w"), ("clip.mp4", [np.zeros((2, 2))], 8, "expected frames")]
    cases += [("clip.mp4", [np.full((2, 2, 3), 7.0)], 8, r"floats in \[0, 1\]")]
    cases += [("full/mine.txt/a.mp4", scene(1), 8, "no folder")]
    for name, video, fps, message in cases:
        with pytest.raises(ValueError, match=message):
            write_video(tmp_path / name, video, fps=fps)
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]


def test_what_pipelines_give_can_be_written(tmp_path):
    levels = to_frames(scene(3))
    given = {"array": levels / np.float32(255), "images": [Image.fromarray(frame) for frame in levels], "bytes": levels}
    for name, video in given.items():
        assert np.array_equal(read_video(write_video(tmp_path / name, video, fps=8)).frames, levels), name


def test_videos_are_found_at_any_depth_in_a_fixed_order_without_hidden_files(tmp_path):
    (tmp_path / "b" / "frames").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "b" / "frames" / "0.png")
    for name in ("z.mp4", "b/a.webm", ".hidden.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert find_videos(tmp_path) == [tmp_path / "b" / "a.webm", tmp_path / "b" / "frames", tmp_path / "z.mp4"]
    assert find_videos(tmp_path / "z.mp4") == [tmp_path / "z.mp4"]
    with pytest.raises(VideoError, match="does not exist"):
        find_videos(tmp_path / "nowhere")
