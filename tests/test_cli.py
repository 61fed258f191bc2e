"""The command line: help that needs no manual, and every user mistake in one line with exit code 2."""

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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
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
    done = subprocess.run([script, "fly"], capture_output=True, text=True, timeout=60)
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
        main(["reconstruct", str(tmp_path / "nothing.mp4"), "--tokenizer", "x", "-o", str(tmp_path / "o.mp4"), "--debug"])


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Five frames of 21x35 on disk."""
    from vidgen.data import write_video

    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    video = torch.rand(3, 5, 21, 35, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_video(path, video, fps=10)
    return path
