"""Is a report one page that needs nothing else: every table, interval and picture in it, names escaped, tags closed?"""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tokenizer

from vidgen.cli import main
from vidgen.data import to_frames, write_video
from vidgen.data.shapes import ShapesWorld
from vidgen.eval.clips import Clip, ClipSet
from vidgen.eval.frames_shown import LARGEST_SIDE, ORIGINAL, frames_beside, png
from vidgen.eval.html_report import write_reconstruction
from vidgen.eval.protocol import ReconstructionProtocol
from vidgen.eval.protocols import get_protocol
from vidgen.eval.recon_suite import evaluate
from vidgen.eval.subjects import TokenizerSubject

QUICK = get_protocol("recon.quick", ReconstructionProtocol)
VOID = {"meta", "img", "input", "br", "line", "circle", "polyline", "rect"}
NASTY = '<script>alert("x")</script> & co'


class Page(HTMLParser):
    """Elements by tag with their attributes, the text of cells and list items, and whether every tag was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: dict[str, list[dict[str, str | None]]] = {}
        self.open: list[str] = []
        self.words: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.setdefault(tag, []).append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.setdefault(tag, []).append(dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open:
            self.words.setdefault(self.open[-1], []).append(data)


def shapes(count: int) -> list[torch.Tensor]:
    world = ShapesWorld(seed=3, num_frames=5, height=16, width=24)
    return [world[number]["video"] for number in range(count)]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    """Two tokenizers, one of them with a name that is no HTML, on two clips."""
    videos = shapes(2)
    clips = ClipSet([Clip(f"clip {n} {NASTY}", lambda video=video: iter([video])) for n, video in enumerate(videos)])
    subjects = [TokenizerSubject(tokenizer("fsq"), "fsq"), TokenizerSubject(tokenizer("kl"), NASTY)]
    report = evaluate(subjects, clips, protocol=QUICK)
    path = tmp_path_factory.mktemp("report") / "deep" / "report.html"
    write_reconstruction(path, report, frames_beside(report, subjects, clips))
    return Page(path.read_text(encoding="utf-8"))


def test_a_report_loads_nothing_from_elsewhere(page):
    assert not {"link", "iframe", "object", "video"} & page.elements.keys()
    for elements in page.elements.values():
        for attributes in elements:
            assert not {"href", "srcset", "background"} & attributes.keys()
            assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
    style = "".join(page.words["style"])
    assert "url(" not in style and "@import" not in style


def test_names_never_become_elements(page):
    assert len(page.elements["script"]) == 1, "the page's own script"
    assert NASTY in page.words["th"] and NASTY in page.words["figcaption"] and NASTY in page.words["option"]


def test_every_score_stands_in_the_table_and_in_a_chart_of_its_own(page):
    scores = [words for words in page.words["td"] if words.startswith(("psnr.", "ssim."))]
    assert len(scores) == 3 and all(words.endswith("↑") for words in scores)
    assert len(page.elements["svg"]) == 3
    assert {"protocol", "clips", "versions", "commit"} <= set(page.words["dt"])


def test_pictures_are_the_pixels_that_were_scored(page):
    pictures = {}
    for image in page.elements["img"]:
        if image.get("src"):
            content = base64.b64decode(str(image["src"]).partition(",")[2])
            pictures.setdefault(image["alt"], []).append(np.asarray(Image.open(io.BytesIO(content))))
    assert set(pictures) == {ORIGINAL, "fsq", NASTY}
    assert len(pictures[ORIGINAL]) == len(page.elements["section"]) == len(page.elements["input"])
    originals = [frame for video in shapes(2) for frame in to_frames(video)]
    for picture in pictures[ORIGINAL]:
        assert any(np.array_equal(picture, frame) for frame in originals)
    made = to_frames(tokenizer("fsq").decode(tokenizer("fsq").encode(shapes(1)[0][None])).detach()[0].clamp(-1, 1))
    assert any(np.array_equal(picture, frame) for picture in pictures["fsq"] for frame in made)


def test_every_pair_has_a_slider_and_two_lists_that_begin_with_the_original_and_the_first_subject(page):
    sections = len(page.elements["section"])
    assert len(page.elements["select"]) == 2 * sections
    chosen = [bool("selected" in option) for option in page.elements["option"]]
    assert chosen == [True, False, False, False, True, False] * sections
    assert all(slider["type"] == "range" and slider["aria-label"] for slider in page.elements["input"])


def test_frames_that_are_too_large_are_cut_at_their_centre_and_not_scaled():
    frame = torch.zeros(3, 20, LARGEST_SIDE + 100)
    frame[:, :, 50:-50] = 1
    picture = np.asarray(Image.open(io.BytesIO(png(frame))))
    assert picture.shape == (20, LARGEST_SIDE, 3) and (picture == 255).all()


def test_the_command_writes_a_report(tmp_path, capsys):
    tokenizer("fsq").save_pretrained(tmp_path / "fsq")
    write_video(tmp_path / "clips" / "one", shapes(1)[0], fps=10)
    arguments = ["eval", "recon", "--tokenizers", tmp_path / "fsq", "--data", tmp_path / "clips", "--device", "cpu"]
    assert main([str(word) for word in [*arguments, "--protocol", "recon.quick", "--html", tmp_path / "r.html"]]) == 0
    assert f"wrote {tmp_path / 'r.html'}" in capsys.readouterr().out.replace("\n", "")
    assert "Reconstruction" in Page((tmp_path / "r.html").read_text()).words["h1"]
