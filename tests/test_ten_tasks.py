"""Are the baselines of the ten tasks what they are called, and does the suite run from one small checkpoint?"""

import csv
import json
import re
import subprocess
import sys

import pytest
import torch
from test_masked_tasks import class_pipeline
from tiny_models import pipeline

from vidgen.conditioning import TASKS, known_mask
from vidgen.data.digits import MovingDigits
from vidgen.eval.task_baselines import (
    BASELINES,
    DigitJudge,
    edge_extension,
    mean_of_surround,
    nearest_known_frame,
    region_error,
)

SIZE = (9, 16, 16)


def clip() -> torch.Tensor:
    return torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("task", BASELINES)
def test_a_baseline_keeps_the_known_pixels_and_never_sees_the_unknown_ones(task):
    video, mask = clip(), known_mask(task, SIZE, frames=2)[0]
    filled = BASELINES[task](video, mask)
    assert torch.equal(filled[mask.expand_as(video)], video[mask.expand_as(video)])
    other = torch.where(mask, video, -video)
    assert torch.equal(BASELINES[task](other, mask), filled)
    assert region_error(filled, video, mask) > 0.01


def test_all_tasks_with_a_right_answer_have_a_baseline():
    assert set(TASKS) - set(BASELINES) == {"class_generation"}


def test_the_nearest_known_frame_is_the_earlier_of_two():
    video, mask = clip(), known_mask("frame_interpolation", SIZE)[0]
    filled = nearest_known_frame(video, mask)
    assert torch.equal(filled[:, :5], video[:, :1].expand(-1, 5, -1, -1))
    assert torch.equal(filled[:, 5:], video[:, -1:].expand(-1, 4, -1, -1))


def test_edges_extend_from_the_nearest_pixel_of_the_rectangle():
    video, mask = clip(), known_mask("central_outpainting", SIZE)[0]
    filled = edge_extension(video, mask)
    assert torch.equal(filled[:, :, 0, 0], video[:, :, 4, 4])
    assert torch.equal(filled[:, :, 7, 15], video[:, :, 7, 11])


def test_the_surround_is_each_frames_own():
    video = torch.arange(9.0).reshape(1, 9, 1, 1).expand(3, *SIZE) / 9
    filled = mean_of_surround(video, known_mask("central_inpainting", SIZE)[0])
    assert (filled - video).abs().max() < 1e-6


def test_baselines_refuse_masks_that_are_not_theirs():
    nothing = known_mask("class_generation", SIZE)[0]
    for baseline in (nearest_known_frame, edge_extension, mean_of_surround):
        with pytest.raises(ValueError, match="use another baseline"):
            baseline(clip(), nothing)


def test_the_error_counts_generated_pixels_alone():
    video, mask = clip(), known_mask("frame_prediction", SIZE)[0]
    assert region_error(torch.where(mask, -video, video), video, mask) == 0
    assert region_error(video + 0.2, video, mask) == pytest.approx(0.01, rel=1e-4)


def test_digits_of_another_hand_are_read_back(shared):
    train = MovingDigits(shared / "mnist", "train", digits=(1,))
    test = MovingDigits(shared / "mnist", "test", digits=(1,), seed=5)
    judge = DigitJudge(train.images, torch.from_numpy(train.labels).long())
    items = [test[index] for index in range(40)]
    assert sum(judge.read(item["video"]) == item["class_label"] for item in items) >= 34


def test_the_suite_writes_a_table_and_a_picture(tmp_path, repository):
    class_pipeline().save_pretrained(tmp_path / "model")
    command = [sys.executable, "eval/ten_tasks.py", str(tmp_path / "model"), "--clips", "2", "--batch-size", "2"]
    command += ["--frames", "1", "--steps", "2", "--output-dir", str(tmp_path), "--pictures", str(tmp_path / "rows")]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = list(csv.DictReader((tmp_path / "ten_tasks_shapes.csv").read_text().splitlines()))
    assert [row["task"] for row in rows] == list(TASKS)
    assert all(float(row["baseline_error"]) > 0 for row in rows if row["task"] in BASELINES)
    assert all(row["class_right"] for row in rows if row["task"].startswith("class"))
    report = json.loads((tmp_path / "ten_tasks_shapes.json").read_text())
    assert len(report["tasks"]) == 10
    assert str(tmp_path) not in json.dumps(report["settings"])
    assert (tmp_path / "ten_tasks_shapes.png").stat().st_size > 1000
    assert sorted(file.stem for file in (tmp_path / "rows").iterdir()) == sorted(TASKS)


def test_a_model_that_is_told_captions_gets_the_tasks_without_a_class(tmp_path, repository):
    pipeline("diffusion", "kl").save_pretrained(tmp_path / "flow")
    command = [sys.executable, "eval/ten_tasks.py", str(tmp_path / "flow"), "--clips", "1", "--batch-size", "1"]
    command += ["--frames", "1", "--steps", "1", "--output-dir", str(tmp_path)]
    asked = ["--tasks", "frame_prediction", "central_inpainting"]
    done = subprocess.run([*command, *asked], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = list(csv.DictReader((tmp_path / "tasks_flow.csv").read_text().splitlines()))
    assert [row["task"] for row in rows] == asked[1:] and all(float(row["error"]) > 0 for row in rows)
    refused = subprocess.run([*command, "--tasks", "class_generation"], cwd=repository, capture_output=True, text=True)
    assert refused.returncode == 2 and "is told captions" in refused.stderr


def test_the_calls_of_the_ten_tasks_run_as_they_are_written(repository):
    section = (repository / "pipelines" / "README.md").read_text().split("## Ten tasks")[1].split("\n## ")[0]
    names: dict[str, object] = {}
    exec(compile(section.split("```python\n")[1].split("```")[0], "README.md", "exec"), names)
    calls = re.findall(r"\| `(pipe\(.*?\))` \| !\[\]\(\.\./(.*?)\)", section)
    assert sorted(re.findall(r'task="(\w+)"', " ".join(call for call, _ in calls))) == sorted(TASKS)
    for call, picture in calls:
        assert len(eval(call, names).frames[0]) == 17
        assert (repository / picture).stat().st_size > 1000
