"""The command line: help that needs no manual, and every user mistake in one line with exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vidgen.cli import ENTRIES, main

COMMANDS = [entry.words for entry in ENTRIES]


@pytest.fixture
def vidgen(capsys):
    """Runs `vidgen` in this process; gives back exit code, output and error lines."""

    def call(*arguments: object) -> tuple[int, str, list[str]]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as left:
            code = left.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return call


def assert_is_a_clear_mistake(result: tuple[int, str, list[str]], *words: str) -> None:
    code, _, errors = result
    assert code == 2
    assert len(errors) == 1, errors
    assert errors[0].startswith("vidgen: ")
    for word in words:
        assert word in errors[0]


def test_help_lists_every_command_without_importing_torch():
    code = "import sys, vidgen.cli; vidgen.cli.main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for words in COMMANDS:
        assert words in done.stdout


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_explains_itself(vidgen, words):
    code, output, errors = vidgen(*words.split(), "--help")
    assert code == 0 and not errors
    assert f"usage: vidgen {words}" in output
    options = [line for line in output.splitlines() if line.lstrip("│ ").startswith("-") and "--help" not in line]
    assert options, "a command without options needs no entry"


def test_the_installed_script_ends_with_the_exit_code(tmp_path):
    script = Path(sys.executable).with_name("vidgen")
    done = subprocess.run([script, "fly"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"vidgen: there is no command 'fly'; there are: {', '.join(COMMANDS)}"]


def test_a_mistyped_command_names_the_nearest(vidgen):
    assert_is_a_clear_mistake(vidgen("recontruct"), "'recontruct'", "reconstruct")


def test_half_a_command_asks_for_the_other_half(vidgen):
    assert_is_a_clear_mistake(vidgen("eval"), "eval recon")


def test_a_missing_option_is_one_line_that_names_it(vidgen):
    assert_is_a_clear_mistake(vidgen("reconstruct", "clip.mp4"), "--tokenizer", "--output", "vidgen reconstruct --help")


def test_an_unknown_option_is_one_line_that_names_it(vidgen):
    assert_is_a_clear_mistake(vidgen("models", "--colour"), "--colour")


ARGUMENTS = {
    "a prompt without quotes": (
        "generate a large red circle -o e.mp4",
        "no option takes 'large', 'red', 'circle'; put PROMPT in quotes if it has several words;",
    ),
    "a part of a name": (
        "generate x -o e.mp4 --frames 17",
        "there is no option --frames; nearest: --num-frames, --start-frames;",
    ),
    "initials": (
        "train-tokenizer shapes-fsq --output-dir run --lr 1e-4",
        "there is no option --lr; nearest: --learning-rate, --discriminator-optimiser.learning-rate;",
    ),
    "a shortened name": ("generate x -o e.mp4 --neg=blue", "there is no option --neg; nearest: --negative-prompt;"),
    "two misspelled names": (
        "train-tokenizer shapes-fsq --output_dir run --batchsize 3 --step=4 --num_frames 5",
        "there is no option --batchsize; nearest: --batch-size; there is no option --step; nearest: --steps;",
    ),
    "an option for what has none": (
        "generate --prompt x -o e.mp4",
        "there is no option --prompt; PROMPT stands by itself, without one;",
    ),
    "words in place of options": (
        "eval fvd a b",
        "missing: --real DIR, --fake DIR; no option takes 'a', 'b'; see `vidgen eval fvd --help`",
    ),
    "nothing": ("generate", "missing: PROMPT, --output FILE; see `vidgen generate --help`"),
    "no value": (
        "train-tokenizer x --output-dir y --steps",
        "Missing value for argument",
    ),
}


@pytest.mark.parametrize("columns", [60, 250])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_cannot_be_read_are_named_with_what_was_meant(name, columns, vidgen, monkeypatch):
    """However wide the terminal is, which changes what tyro writes."""
    monkeypatch.setenv("COLUMNS", str(columns))
    words, message = ARGUMENTS[name]
    result = vidgen(*words.split())
    assert_is_a_clear_mistake(result)
    assert result[2][0].startswith(f"vidgen: {message}")


@pytest.mark.parametrize("words", ["train-tokenizer", "train-generator", "train-matcher"])
def test_help_of_a_training_imports_nothing_heavy(words):
    heavy = "{'torch', 'diffusers', 'torch._dynamo'} & set(sys.modules)"
    code = f"import sys, vidgen.cli\ntry: vidgen.cli.main(['{words}', '--help'])\nexcept SystemExit: sys.exit({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stderr.strip() == "set()"
    assert "--output-dir" in done.stdout


@pytest.mark.parametrize("words", COMMANDS)
def test_no_flag_that_turns_something_off_says_that_it_is_on(vidgen, words):
    assert "(default: True)" not in " ".join(vidgen(*words.split(), "--help")[1].replace("│", " ").split())


def test_a_flag_that_turns_something_off_says_so(vidgen):
    said = " ".join(vidgen("train-tokenizer", "--help")[1].replace("│", " ").split())
    for flag in ("--no-adaptive-weight", "--no-fit-statistics"):
        assert f"(default: on; {flag} turns it off)" in said


@pytest.mark.parametrize("words", [["models"], ["train-tokenizer", "--help"]])
def test_output_into_a_closed_pipe_ends_quietly(words):
    command = [sys.executable, "-m", "vidgen", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_the_package_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "vidgen", "fly"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith("vidgen: there is no command 'fly'")


def test_what_the_packages_load_late_is_listed_and_found():
    import vidgen as library
    from vidgen import training
    from vidgen.training import tokenizer_training

    assert {"build", "load"} <= set(dir(library))
    assert set(training.__all__) <= set(dir(training))
    assert training.train_tokenizer is tokenizer_training.train_tokenizer
    assert all(getattr(training, name).__name__ == name for name in training.__all__)


@pytest.mark.parametrize("command", ["train-tokenizer", "train-generator", "train-matcher"])
def test_a_gpu_that_is_not_there_ends_a_training_before_it_begins(command, vidgen, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    preset = {"train-tokenizer": "shapes-fsq", "train-generator": "shapes-masked", "train-matcher": "shapes-matcher"}
    result = vidgen(command, preset[command], "--output-dir", tmp_path / "run", "--device", "cuda")
    assert_is_a_clear_mistake(result, "--device cuda needs a CUDA device", "--device cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda:1", "set CUDA_VISIBLE_DEVICES=1 and give --device cuda"), ("gpu", "one of auto, cpu, cuda, got 'gpu'")],
)
def test_a_training_says_which_devices_it_takes(device, message, vidgen, tmp_path):
    result = vidgen("train-tokenizer", "shapes-fsq", "--output-dir", tmp_path / "run", "--device", device)
    assert_is_a_clear_mistake(result, message)


def test_a_missing_clip_is_named(vidgen, tmp_path):
    missing = tmp_path / "nothing.mp4"
    result = vidgen("reconstruct", missing, "--tokenizer", "shapes-fsq", "-o", tmp_path / "back.mp4")
    assert_is_a_clear_mistake(result, str(missing))
    assert not (tmp_path / "back.mp4").exists()


def test_a_file_that_is_no_video_is_named(vidgen, tmp_path):
    letter = tmp_path / "letter.mp4"
    letter.write_text("dear sir or madam")
    result = vidgen("reconstruct", letter, "--tokenizer", "shapes-fsq", "-o", tmp_path / "back.mp4")
    assert_is_a_clear_mistake(result, str(letter))


def test_a_file_with_sound_only_is_named(vidgen, tmp_path):
    import wave

    sound = tmp_path / "sound.wav"
    with wave.open(str(sound), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.zeros(8000, np.int16).tobytes())
    result = vidgen("reconstruct", sound, "--tokenizer", "shapes-fsq", "-o", tmp_path / "back.mp4")
    assert_is_a_clear_mistake(result, str(sound))


def test_an_empty_folder_of_clips_is_named(vidgen, tmp_path):
    result = vidgen("tokenize", tmp_path, "--tokenizer", "shapes-fsq", "-o", tmp_path / "tokens")
    assert_is_a_clear_mistake(result, str(tmp_path))


def test_debug_shows_where_the_mistake_came_from(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.mp4"):
        main(
            ["reconstruct", str(tmp_path / "nothing.mp4"), "--tokenizer", "x", "-o", str(tmp_path / "o.mp4"), "--debug"]
        )


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Five frames of 21x35 on disk."""
    from vidgen.data import write_video

    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    video = torch.rand(3, 5, 21, 35, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_video(path, video, fps=10)
    return path


@pytest.fixture(scope="module")
def saved_tokenizer(tmp_path_factory) -> Path:
    """A folder with a tiny untrained tokenizer."""
    from vidgen.tokenizers.presets import TOKENIZER_PRESETS

    folder = tmp_path_factory.mktemp("models") / "tokenizer"
    TOKENIZER_PRESETS["shapes-fsq"].tiny().build().save_pretrained(folder)
    return folder


def test_a_reconstruction_has_the_frames_size_and_rate_of_its_clip(vidgen, clip, saved_tokenizer, tmp_path):
    from vidgen.data import iter_frames, probe

    back = tmp_path / "back.mp4"
    code, output, errors = vidgen("reconstruct", clip, "--tokenizer", saved_tokenizer, "-o", back)
    assert (code, errors) == (0, [])
    assert [frame.shape for frame in iter_frames(back)] == [(21, 35, 3)] * 5
    assert probe(back).fps == 10
    assert f"wrote {back} (5 frames of 35x21 at 10 frames/s)" in output


def test_a_clip_is_not_written_over_itself(vidgen, clip, saved_tokenizer, tmp_path):
    own = tmp_path / "own.mp4"
    own.write_bytes(clip.read_bytes())
    (tmp_path / "link.mp4").symlink_to(own)
    for name in ("own.mp4", "link.mp4"):
        result = vidgen("reconstruct", own, "--tokenizer", saved_tokenizer, "-o", tmp_path / name)
        assert_is_a_clear_mistake(result, name, "is the clip itself, which would be lost; choose another name")
    assert own.read_bytes() == clip.read_bytes()


def test_sound_that_is_left_out_is_said(vidgen, saved_tokenizer, tmp_path):
    import av

    with av.open(str(tmp_path / "loud.mp4"), "w") as container:
        video, sound = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=16000)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        for _ in range(5):
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(video.encode(picture))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        samples.rate = 16000
        container.mux(sound.encode(samples))
        container.mux([*video.encode(None), *sound.encode(None)])
    words = ("reconstruct", tmp_path / "loud.mp4", "--tokenizer", saved_tokenizer, "-o", tmp_path / "back.mp4")
    code, _, errors = vidgen(*words)
    assert code == 0 and [line for line in errors if "loud.mp4 is left out" in line and "sound" in line]


def test_an_image_comes_back_as_an_image(vidgen, saved_tokenizer, tmp_path):
    from vidgen.data import read_video, write_video

    write_video(tmp_path / "one.png", torch.zeros(3, 1, 20, 33), fps=10)
    words = ("--tokenizer", saved_tokenizer, "-o")
    code, _, errors = vidgen("reconstruct", tmp_path / "one.png", *words, tmp_path / "b.png")
    assert (code, errors) == (0, [])
    assert read_video(tmp_path / "b.png").frames.shape == (1, 20, 33, 3)
    write_video(tmp_path / "two.mp4", torch.zeros(3, 2, 20, 33), fps=10)
    result = vidgen("reconstruct", tmp_path / "two.mp4", *words, tmp_path / "c.png")
    assert_is_a_clear_mistake(result, "c.png can hold one frame, and there are more")
    assert not (tmp_path / "c.png").exists()


def test_damaged_clips_are_refused_unless_they_are_allowed(vidgen, saved_tokenizer, tmp_path):
    from vidgen.data import write_video

    video = torch.rand(3, 40, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_video(tmp_path / "whole.webm", video, fps=10)
    content = (tmp_path / "whole.webm").read_bytes()
    cut = tmp_path / "cut.webm"
    cut.write_bytes(content[: len(content) // 2])
    words = ("reconstruct", cut, "--tokenizer", saved_tokenizer, "-o", tmp_path / "back.webm")
    assert_is_a_clear_mistake(vidgen(*words), "cut.webm: damaged after", "frames")
    assert not (tmp_path / "back.webm").exists()
    code, output, errors = vidgen(*words, "--allow-damaged")
    assert code == 0 and "wrote" in output and "damaged after" in errors[0]
    words = ("tokenize", cut, "--tokenizer", saved_tokenizer, "-o", tmp_path / "tokens")
    code, _, errors = vidgen(*words)
    assert code == 2 and "damaged after" in errors[0] and errors[1].endswith("could not be read (named above)")
    assert vidgen(*words, "--allow-damaged")[0] == 0


def test_a_folder_in_the_way_is_found_before_anything_is_made(vidgen, clip, saved_tokenizer, tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    words = ("--tokenizer", saved_tokenizer, "-o", tmp_path / "folder.mp4")
    assert_is_a_clear_mistake(vidgen("reconstruct", clip, *words), "a folder has that name")
    (tmp_path / "letter.txt").write_text("dear sir or madam")
    words = ("--tokenizer", saved_tokenizer, "--data", clip, "--html", tmp_path / "letter.txt" / "page.html")
    assert_is_a_clear_mistake(vidgen("eval", "recon", *words), "page.html", "cannot be a folder")


@pytest.mark.parametrize("name", ["page.pth", "page.safetensors", "empty.pth"])
def test_a_file_that_holds_no_weights_is_named(name, vidgen, clip, saved_tokenizer, tmp_path):
    (tmp_path / name).write_text("" if name == "empty.pth" else "<html>404: not found</html>")
    words = ("--tokenizer", saved_tokenizer, "--data", clip, "--squeezenet-weights", tmp_path / name)
    assert_is_a_clear_mistake(vidgen("eval", "recon", *words), name, "is damaged or no file of weights; get it again")


def test_tokens_on_disk_decode_to_what_the_tokenizer_gives(vidgen, clip, saved_tokenizer, tmp_path):
    import vidgen as library
    from vidgen.data import read_video, to_tensor
    from vidgen.latents import Latents

    code, _, errors = vidgen("tokenize", clip.parent, "--tokenizer", saved_tokenizer, "-o", tmp_path)
    assert (code, errors) == (0, [])
    tokenizer = library.load(str(saved_tokenizer)).eval()
    stored = Latents.load(tmp_path / "clip.mp4.safetensors", tokenizer)
    with torch.inference_mode():
        expected = tokenizer.encode(to_tensor(read_video(clip).frames)[None])
    assert stored.size == (5, 21, 35)
    assert stored.ids is not None and expected.ids is not None
    assert torch.equal(stored.ids, expected.ids)


def test_unreadable_clips_are_named_and_the_others_are_tokenized(vidgen, clip, saved_tokenizer, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "good.mp4").write_bytes(clip.read_bytes())
    (folder / "letter.mp4").write_text("dear sir or madam")
    code, _, errors = vidgen("tokenize", folder, "--tokenizer", saved_tokenizer, "-o", tmp_path / "tokens")
    assert code == 2
    assert "letter.mp4" in errors[0] and "1 of 2 clips" in errors[1]
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["good.mp4.safetensors"]


def test_scores_are_printed_and_written(vidgen, clip, saved_tokenizer, tmp_path):
    arguments = ("--tokenizer", saved_tokenizer, "--data", clip, "-o", tmp_path / "scores.json")
    code, output, errors = vidgen("eval", "recon", *arguments)
    assert (code, errors) == (0, [])
    assert "psnr.rgb.frame_mean.cap100" in output and "lpips.alex" in output
    total = json.loads((tmp_path / "scores.json").read_text())["subjects"][0]["total"]
    assert total["frames"] == 5
    assert (tmp_path / "scores.csv").read_text().count("\n") == 3


def test_an_unknown_model_lists_the_nearest_names(vidgen, clip, tmp_path):
    result = vidgen("reconstruct", clip, "--tokenizer", "shapes-fsk", "-o", tmp_path / "back.mp4")
    assert_is_a_clear_mistake(result, "'shapes-fsk'", "shapes-fsq")


def test_a_folder_that_is_no_model_is_named(vidgen, clip, tmp_path):
    result = vidgen("reconstruct", clip, "--tokenizer", tmp_path, "-o", tmp_path / "back.mp4")
    assert_is_a_clear_mistake(result, str(tmp_path))


def test_a_tokenizer_cannot_generate(vidgen, saved_tokenizer, tmp_path):
    result = vidgen("generate", "a star", "--model", saved_tokenizer, "-o", tmp_path / "star.mp4")
    assert_is_a_clear_mistake(result, "expected a pipeline", "CausalConvTokenizer")


def test_a_cascade_generates_and_refuses_what_belongs_to_one_pipeline(vidgen, small_clip, tmp_path):
    from vidgen.data import read_video
    from vidgen.pipelines.cascade_presets import CASCADE_PRESETS

    CASCADE_PRESETS["shapes-cascade"].tiny().build().save_pretrained(tmp_path / "chain")
    words = ("generate", "a star", "--model", tmp_path / "chain", "--steps", 1, "--num-frames", 3, "--height", 16)
    code, output, _ = vidgen(*words, "--width", 16, "--num-videos", 2, "-o", tmp_path / "a.gif")
    assert code == 0
    shown = [read_video(tmp_path / name).frames for name in ("a-1.gif", "a-2.gif")]
    frames, height, width = shown[0].shape[:3]
    assert (frames, height, width) > (3, 16, 16) and shown[0].shape == shown[1].shape
    assert f"({frames} frames of {width}x{height})" in output
    assert (shown[0] != shown[1]).any()
    result = vidgen(*words, "--start", small_clip, "-o", tmp_path / "b.gif")
    assert_is_a_clear_mistake(result, "--start is a matter of one pipeline", "is a cascade of several")
    result = vidgen("eval", "generation", "--models", tmp_path / "chain", "-o", tmp_path / "scores.json")
    assert_is_a_clear_mistake(result, "is a cascade of several; `vidgen generate` runs it")


def test_a_device_that_is_not_there_is_a_clear_mistake(vidgen, clip, tmp_path):
    result = vidgen("reconstruct", clip, "--tokenizer", "shapes-fsq", "-o", tmp_path / "back.mp4", "--device", "gpu")
    assert_is_a_clear_mistake(result, "--device", "'gpu'")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("train-tokenizer", "shapes-masked"),
            "'shapes-masked' is a preset of another kind of model; train",
        ),
        (("train-generator", "shapes-fsq"), "train it by `vidgen train-tokenizer`"),
        (("train-generator", "shapes-cascade"), "'shapes-cascade' is a chain of pipelines"),
        (
            ("train-generator", "shapes-masked", "--tokenizer", "runs/nothere/model"),
            "there is no folder runs/nothere/model",
        ),
    ],
)
def test_a_name_of_another_kind_is_explained(words, said, vidgen, tmp_path):
    assert_is_a_clear_mistake(vidgen(*words, "--output-dir", tmp_path / "run"), said)


def test_a_protocol_of_another_kind_is_explained(vidgen, clip):
    result = vidgen("eval", "fvd", "--real", clip.parent, "--fake", clip.parent, "--protocol", "recon.v1")
    assert_is_a_clear_mistake(result, "protocol recon.v1 is to score reconstructions (vidgen eval recon)")


def test_an_unknown_preset_lists_the_nearest_names(vidgen, tmp_path):
    result = vidgen("train-tokenizer", "shapes-fsk", "--output-dir", tmp_path / "run")
    assert_is_a_clear_mistake(result, "'shapes-fsk'", "shapes-fsq")


def test_a_training_option_out_of_range_is_one_line(vidgen, tmp_path):
    result = vidgen("train-tokenizer", "shapes-fsq", "--output-dir", tmp_path, "--batch-size", 3, "--accumulation", 2)
    assert_is_a_clear_mistake(result, "batch_size 3", "accumulation 2")


def test_presets_are_listed_with_what_they_are(vidgen):
    code, output, _ = vidgen("models", "--presets")
    assert code == 0
    listed = {line.split()[0]: line.split()[1] for line in output.splitlines()}
    assert listed["base-fsq"] == "tokenizer"
    assert "pipeline" in listed.values()


def test_built_in_models_are_listed_by_the_name_that_loads_them(vidgen):
    code, output, _ = vidgen("models")
    assert code == 0
    names = {line.split()[0] for line in output.splitlines()}
    assert {"shapes-fsq", "shapes-kl", "shapes-masked", "shapes-flow", "shapes-ar"} <= names


@pytest.fixture(scope="module")
def saved_pipeline(tmp_path_factory) -> Path:
    """A folder with a tiny untrained masked pipeline."""
    from vidgen.pipelines.presets import PIPELINE_PRESETS
    from vidgen.tokenizers.presets import TOKENIZER_PRESETS

    folder = tmp_path_factory.mktemp("models") / "pipeline"
    tokenizer = TOKENIZER_PRESETS["shapes-fsq"].tiny().build()
    PIPELINE_PRESETS["shapes-masked"].tiny().build(tokenizer).save_pretrained(folder)
    return folder


def test_generating_writes_exactly_the_frames_and_size_asked_for(vidgen, saved_pipeline, tmp_path):
    from vidgen.data import iter_frames
    from vidgen.latents import Latents

    arguments = ("--num-frames", 6, "--window", 6, "--height", 24, "--width", 33, "--steps", 2, "--num-videos", 2)
    files = ("-o", tmp_path / "star.gif", "--latents", tmp_path / "star.safetensors")
    code, _, _ = vidgen("generate", "a star", "--model", saved_pipeline, *arguments, *files)
    assert code == 0
    for name in ("star-1.gif", "star-2.gif"):
        assert [frame.shape for frame in iter_frames(tmp_path / name)] == [(24, 33, 3)] * 6
    assert Latents.load(tmp_path / "star.safetensors").size == (6, 24, 33)


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory) -> Path:
    """Seven frames of 16x16 on disk."""
    from vidgen.data import write_video

    path = tmp_path_factory.mktemp("clips") / "small"
    return write_video(path, torch.rand(3, 7, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1, fps=8)


GENERATE = {
    "longer than a window": (("--num-frames", 9), 9),
    "longer, with another overlap": (("--num-frames", 8, "--window", 4, "--overlap", 3, "--num-videos", 2), 8),
    "a timeline": (("--then", 2, "a star", 4, "a circle"), 5),
    "a timeline over several windows": (("--num-frames", 9, "--then", 6, "a star"), 9),
    "after a clip longer than a window": (("--start", "CLIP", "--num-frames", 9), 9),
    "after a part of a clip": (("--start", "CLIP", "--start-frames", 2), 5),
    "the best of candidates": (("--candidates", 2, "--num-videos", 2), 5),
    "longer, chosen window by window": (("--candidates", 2, "--num-frames", 9), 9),
    "an edited clip": (("--edit", "CLIP", "--strength", 0.5), 7),
}


@pytest.mark.parametrize("name", GENERATE)
def test_generating_goes_on_changes_its_prompt_and_edits(name, vidgen, saved_pipeline, small_clip, tmp_path):
    from vidgen.data import read_video

    arguments, frames = GENERATE[name]
    words = [small_clip if word == "CLIP" else word for word in arguments]
    code, _, errors = vidgen(
        "generate", "a star", "--model", saved_pipeline, "--steps", 2, *words, "-o", tmp_path / "x"
    )
    assert (code, [line for line in errors if line.startswith("vidgen")]) == (0, [])
    made = [read_video(path).frames for path in sorted(tmp_path.iterdir())]
    assert [video.shape for video in made] == [(frames, 16, 16, 3)] * len(made)
    assert len(made) == (2 if "--num-videos" in arguments else 1)
    if "--start" in arguments:
        given = 2 if "--start-frames" in arguments else 7
        assert (made[0][:given] == read_video(small_clip).frames[:given]).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--strength", 0.5), ("--edit",)),
        (("--edit", "a.mp4", "--num-frames", 9), ("--num-frames",)),
        (("--then", 9, "a star"), ("starts at frame 9",)),
        (("--then", 3, "a star", 2, "a circle"), ("must rise",)),
        (("--num-frames", 9, "--overlap", 5), ("between 1 and 4",)),
        (("--candidates", 0), ("num_candidates", "at least 1")),
    ],
)
def test_flags_of_generate_that_do_not_fit_are_clear_mistakes(arguments, words, vidgen, saved_pipeline, tmp_path):
    result = vidgen("generate", "a star", "--model", saved_pipeline, *arguments, "-o", tmp_path / "x.gif")
    assert_is_a_clear_mistake(result, *words)


def test_a_single_frame_is_generated_as_an_image(vidgen, saved_pipeline, tmp_path):
    from vidgen.data import read_video

    words = ("generate", "a star", "--model", saved_pipeline, "--steps", 1, "-o", tmp_path / "star.png")
    assert_is_a_clear_mistake(vidgen(*words), "star.png can hold one frame; add --num-frames 1")
    code, _, _ = vidgen(*words, "--num-frames", 1, "--height", 16, "--width", 24)
    assert code == 0 and read_video(tmp_path / "star.png").frames.shape == (1, 16, 24, 3)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["shapes-masked", "shapes-flow", "shapes-ar"])
def test_every_built_in_model_takes_the_flags_of_generate(model, vidgen, tmp_path):
    from vidgen.data import read_video

    def made(name: str, *arguments: object):
        words = ("generate", "a large red circle moving left on a navy background", "--model", model, "--steps", 2)
        code, _, errors = vidgen(*words, *arguments, "-o", tmp_path / name)
        assert code == 0, errors
        return read_video(tmp_path / name).frames

    story = made("story", "--then", 9, "a large red circle moving right on a navy background")
    assert story.shape == (17, 64, 64, 3)
    edited = made("edited", "--edit", tmp_path / "story", "--strength", 0.3)
    assert edited.shape == story.shape
    longer = made("longer", "--start", tmp_path / "story", "--start-frames", 9, "--num-frames", 24)
    assert longer.shape == (24, 64, 64, 3)
    assert (longer[:9] == story[:9]).all()


def test_a_start_of_another_size_is_a_clear_mistake(vidgen, clip, saved_pipeline, tmp_path):
    result = vidgen("generate", "x", "--model", saved_pipeline, "--start", clip, "-o", tmp_path / "x.gif")
    assert_is_a_clear_mistake(result, "(5, 21, 35)")


@pytest.mark.slow
def test_long_clips_are_reconstructed_in_constant_memory(saved_tokenizer, tmp_path):
    """The peak of a process grows by at most 40 MB from 100 to 1,000 frames of 128x128 (the frames alone: 44 MB)."""
    from vidgen.data import write_video

    def peak(frames: int) -> int:
        source, back = tmp_path / f"{frames}.mp4", tmp_path / f"{frames}-back.mp4"
        write_video(source, (np.full((128, 128, 3), i % 250, np.uint8) for i in range(frames)), fps=25)
        code = (
            "import resource, sys, vidgen.cli\n"
            f"code = vidgen.cli.main(['reconstruct', {str(source)!r}, '--tokenizer', {str(saved_tokenizer)!r}, "
            f"'-o', {str(back)!r}])\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
            "sys.exit(code)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return int(done.stdout.split()[-1])  # KiB

    assert peak(1000) - peak(100) < 40 * 1024
