"""Does a split by source keep recordings together, and are pieces what training and scoring can read?"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidgen.data import VideoFolder, probe, write_video
from vidgen.data.pieces import Cutting, cut_by_source
from vidgen.data.sources import read_families, source_of, split_by_source

ROOT = Path(__file__).resolve().parents[1]
OF_THIS_PROJECT = ROOT / "tokenizers" / "families.json"
ASL = {"asl": ("asl_*",)}
CUTTING = Cutting(num_frames=4, height=16, width=16, pieces=3, zooms=(1, 2), unseen=0.4)


def moving_bars(count: int, *, shift: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    columns = np.arange(width)
    frames = [((columns + shift + number) * 5 % 256).astype(np.uint8) for number in range(count)]
    return [np.broadcast_to(row[None, :, None], (height, width, 3)).copy() for row in frames]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(("asl_a", "asl_b", "cars", "dog", "dog_90", "sea")):
        write_video(folder / f"{name}.mp4", iter(moving_bars(9, shift=11 * number)), fps=10)
    write_video(folder / "asl_short.mp4", iter(moving_bars(2, shift=0)), fps=10)
    return folder


def test_format_pairs_rotated_twins_and_families_are_one_source():
    assert source_of("a/rabbit.mp4") == source_of("b/rabbit.webm")
    assert len({source_of(f"video_{turn}.mov") for turn in (0, 90, 180, 270)}) == 1
    assert source_of("output_270_rotated.mp4") == source_of("output.mp4")
    assert source_of("asl_milk.mkv", ASL) == source_of("a/asl_no.mkv", ASL) == "asl" != source_of("milk.mkv", ASL)
    assert source_of("dog.mp4") != source_of("blocks.mp4")


def test_files_are_of_one_family_only_where_somebody_says_so():
    names = ("asl_milk.mkv", "media_bbb_1.mp4", "learning_area_pig.webm", "media_sample_portrait.mp4")
    assert [source_of(name) for name in names] == [Path(name).stem for name in names]
    mine = ("asl_wedding.mp4", "media_bbb_1.mp4", "learning_area_my_school.mp4")
    families = read_families(OF_THIS_PROJECT)  # names its clips one by one
    assert [source_of(name, families) for name in mine] == [Path(name).stem for name in mine]


@pytest.mark.parametrize("content", ["[1]", '{"talk": "talk_*"}', '{"talk": [1]}', "talk", None])
def test_what_names_no_families_is_refused(content: str | None, tmp_path: Path):
    path = tmp_path / "families.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"expected|must say"):
        read_families(path)


@pytest.mark.parametrize("table", ["tokenizers_compare", "tokenizers_beside_wan"])
def test_the_splits_of_committed_results_come_out_again(table: str):
    found = json.loads((ROOT / "eval" / "results" / f"{table}.json").read_text())["real_clips"]
    split = split_by_source(
        found["cutting"]["videos"], unseen=found["cutting"]["unseen"], families=read_families(OF_THIS_PROJECT)
    )
    assert (split.train_sources, split.unseen_sources) == (found["train_sources"], found["unseen_sources"])
    for side, paths in (("train", split.train), ("unseen", split.unseen)):
        assert set(found["pieces"][side]) == {str(path) for path in paths} - set(found["excluded"])


def test_no_source_lies_on_both_sides_and_no_file_is_lost(shared: Path):
    files = [path for path in (shared / "clips").iterdir() if path.suffix in (".mp4", ".mkv", ".webm", ".mov", ".avi")]
    families = read_families(OF_THIS_PROJECT)
    split = split_by_source(files, unseen=0.3, families=families)
    assert sorted(split.train + split.unseen) == sorted(files)
    assert not {source_of(path, families) for path in split.train} & {
        source_of(path, families) for path in split.unseen
    }
    assert len({path in split.train for path in files if path.name.startswith("asl_")}) == 1
    assert 4 <= len(split.unseen_sources) < len(split.train_sources)


def test_more_files_of_known_sources_do_not_move_a_source():
    few = split_by_source(["asl_a.mp4", "cars.mp4", "dog.mp4", "sea.mp4"], unseen=0.5, families=ASL)
    files = ["asl_a.mp4", "asl_b.mp4", "cars.mp4", "cars.webm", "dog.mp4", "sea.mp4"]
    more = split_by_source(files, unseen=0.5, families=ASL)
    assert few.unseen_sources == more.unseen_sources


def test_a_split_that_leaves_a_side_empty_is_refused():
    with pytest.raises(ValueError, match="2 sources"):
        split_by_source(["asl_a.mp4", "asl_b.mp4"], unseen=0.5, families=ASL)


def test_pieces_have_one_size_and_keep_the_split(videos: Path, tmp_path: Path):
    found = cut_by_source(videos, tmp_path, CUTTING, families=ASL)
    for side in ("train", "unseen"):
        folder = VideoFolder(tmp_path / side, num_frames=4, height=16, width=16)
        assert len(folder) == sum(found["pieces"][side].values())
        assert folder[0]["video"].shape == (3, 4, 16, 16)
        assert {source_of(name, ASL) for name in found["pieces"][side]} <= set(found[f"{side}_sources"])
    assert "asl_short.mp4" in found["excluded"]
    assert json.loads((tmp_path / "pieces.json").read_text()) == found


def test_pieces_are_cut_once_and_other_pieces_need_another_folder(videos: Path, tmp_path: Path):
    found = cut_by_source(videos, tmp_path, CUTTING, families=ASL)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert cut_by_source(videos, tmp_path, CUTTING, families=ASL) == found
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == before
    with pytest.raises(ValueError, match="cut otherwise"):
        cut_by_source(videos, tmp_path, Cutting(num_frames=5, height=16, width=16, unseen=0.4), families=ASL)
    with pytest.raises(ValueError, match="cut otherwise"):
        cut_by_source(videos, tmp_path, CUTTING)  # three sources where there was one


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_cutting_never_removes_what_it_did_not_cut(videos: Path, tmp_path: Path):
    mine = tmp_path / "mine"
    shutil.copytree(videos, mine / "train")
    before = tree(mine)
    for sources in (mine, mine / "train", videos):
        with pytest.raises(ValueError, match="choose"):
            cut_by_source(sources, mine, CUTTING)
    with pytest.raises(ValueError, match="outside"):
        cut_by_source(mine, mine / "pieces", CUTTING)
    assert tree(mine) == before


@pytest.mark.parametrize("stop_at", ["cars-mp4-00", ".pieces.unfinished", "train", "unseen", "pieces.json"])
def test_a_cut_that_was_stopped_leaves_nothing_under_its_names_and_is_taken_up(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: str
):
    whole = cut_by_source(videos, tmp_path / "whole", CUTTING)
    folder = tmp_path / "stopped"
    for step in (Path.rename, Path.replace):

        def stopped(path: Path, target: Path, step: Any = step) -> Path:
            if stop_at in (path.name, target.name):
                raise KeyboardInterrupt
            return step(path, target)

        monkeypatch.setattr(Path, step.__name__, stopped)
    with pytest.raises(KeyboardInterrupt):
        cut_by_source(videos, folder, CUTTING)
    assert not (folder / "pieces.json").exists()
    monkeypatch.undo()
    assert cut_by_source(videos, folder, CUTTING) == whole
    assert tree(folder) == tree(tmp_path / "whole")


def test_videos_of_one_name_in_two_folders_are_both_cut(videos: Path, tmp_path: Path):
    for number, name in enumerate(("cars", "dog", "sea")):
        for folder in ("x", "y"):
            write_video(tmp_path / f"in/{folder}/{name}.mp4", iter(moving_bars(9, shift=number)), fps=10)
    found = cut_by_source(tmp_path / "in", tmp_path / "out", CUTTING)
    names = {name for side in found["pieces"].values() for name in side}
    assert names == {f"{folder}/{name}.mp4" for folder in "xy" for name in ("cars", "dog", "sea")}
    assert len(list((tmp_path / "out").glob("*/*-00"))) == 6
    write_video(tmp_path / "in/x-cars.mp4", iter(moving_bars(9, shift=0)), fps=10)
    with pytest.raises(ValueError, match="would have the same name"):
        cut_by_source(tmp_path / "in", tmp_path / "other", CUTTING)


def test_what_was_cut_when_names_had_no_folders_is_still_taken(tmp_path: Path):
    for name in ("x/cars", "y/dog", "y/sea"):
        write_video(tmp_path / f"in/{name}.mp4", iter(moving_bars(9, shift=0)), fps=10)
    cutting = json.loads(json.dumps(asdict(CUTTING)))
    before = {
        "cutting": {"videos": ["cars.mp4", "dog.mp4", "sea.mp4"], **cutting},
        "train_sources": ["dog", "sea"],
        "unseen_sources": ["cars"],
    }
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pieces.json").write_text(json.dumps(before))
    assert cut_by_source(tmp_path / "in", tmp_path / "out", CUTTING) == before


def test_pieces_keep_the_names_of_their_videos(videos: Path, tmp_path: Path):
    cut_by_source(videos, tmp_path, CUTTING, families=ASL)
    names = {path.name for path in tmp_path.glob("*/*")}
    assert {"asl_a-mp4-00", "asl_a-mp4-01", "cars-mp4-00"} <= names


@pytest.mark.parametrize("stride", [1, 2])
def test_pieces_carry_the_rate_at_which_their_frames_follow_each_other(videos: Path, tmp_path: Path, stride: int):
    cutting = Cutting(num_frames=4, height=16, width=16, stride=stride, pieces=1, unseen=0.4)
    cut_by_source(videos, tmp_path, cutting)
    rates = {round(probe(piece).fps, 3) for piece in tmp_path.glob("*/*-00")}
    assert rates == {10 / stride}


def test_zooms_that_do_not_nest_are_refused():
    with pytest.raises(ValueError, match="divide the largest"):
        Cutting(zooms=(2, 3))
