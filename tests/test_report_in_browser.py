"""Do the HTML reports work in a real browser: nothing fetched, no error, all drawn, a division that can be moved?"""

import base64
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from vidgen.cli import main

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 120_000  # milliseconds: the machine may have other work
COMMANDS = {
    "recon": ["--tokenizers", "shapes-fsq", "shapes-kl", "--protocol", "recon.quick"],
    "rd": ["--tokenizers", "shapes-fsq", "--codecs", "x264", "--crf", "20", "40"],
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window, in a profile of its own; `.ci/run` installs it."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        reason = f"no browser found (looked for {', '.join(BROWSERS)}): apt-get install chromium"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=QUIET, timeout=PATIENCE)
        yield started
        started.close()


@pytest.fixture(scope="module", params=COMMANDS)
def report(request, browser, tmp_path_factory) -> Path:
    """What the command writes for two clips of the shapes world."""
    path = tmp_path_factory.mktemp(request.param) / "report.html"
    options = ["--data", "shapes", "--num-clips", "2", "--device", "cpu", "--html", str(path)]
    assert main(["eval", request.param, *COMMANDS[request.param], *options]) == 0
    return path


class Visit(NamedTuple):
    """An opened page, what it wrote to the console, and every address that it asked for."""

    page: Page
    messages: list[str]
    addresses: list[str]


@pytest.fixture
def visit(browser, report) -> Iterator[Visit]:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(PATIENCE)
    messages: list[str] = []
    addresses: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(report.as_uri())
    yield Visit(page, messages, addresses)
    page.close()


def pair_of(page: Page) -> Locator:
    """The two pictures under the first slider, wholly in the window."""
    pair = page.locator(".pair").first
    pair.scroll_into_view_if_needed()
    return pair


def picture(image: Locator, width: int, height: int) -> np.ndarray:
    """The pixels of an `img`, scaled as the page scales them: ``h w 3``."""
    encoded = str(image.get_attribute("src")).partition(",")[2]
    scaled = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB").resize((width, height), Image.NEAREST)
    return np.asarray(scaled, dtype=np.float64)


def division(pair: Locator) -> float:
    """Share of the width that belongs to the left picture, as the page says; the screen has to show just that."""
    share = pair.evaluate("pair => parseFloat(getComputedStyle(pair).getPropertyValue('--cut'))") / 100
    shown = np.asarray(Image.open(io.BytesIO(pair.screenshot())).convert("RGB"), dtype=np.float64)
    height, width, _ = shown.shape
    unlike_left, unlike_right = (
        np.abs(shown - picture(pair.locator("img").nth(place), width, height)).sum((0, 2)) for place in (0, 1)
    )
    for_left = unlike_right - unlike_left  # positive in a column that shows the left picture
    cut = round(share * width)
    left, right = for_left[: max(0, cut - 4)], for_left[cut + 4 :]  # but for the line between them and its shadow
    astray = -left[left < 0].sum() + right[right > 0].sum()
    assert astray < 0.05 * np.abs(for_left).sum(), "one division, left beside right"
    return share


def test_the_page_asks_for_nothing_else_and_reports_no_error(visit, report):
    assert [address for address in visit.addresses if not address.startswith("data:")] == [report.as_uri()]
    visit.page.locator("select").last.select_option(index=0)
    assert visit.messages == []


def test_tables_charts_and_pictures_are_drawn(visit):
    page = visit.page
    assert page.locator("table").first.locator("tbody tr").count() > 3
    for table in page.locator("table").all():
        assert table.is_visible()
    charts = page.locator(".charts svg").all()
    assert len(charts) >= 2
    for chart in charts:
        box = chart.bounding_box()
        assert box is not None and box["width"] > 300 and box["height"] > 50
    loaded = "images => images.map(image => image.complete && image.naturalWidth > 0 && image.clientWidth >= 64)"
    assert page.locator("img").evaluate_all(loaded) == [True] * page.locator("img").count()


def test_words_in_charts_lie_inside_and_never_on_each_other(visit):
    overlaps = """svgs => svgs.flatMap(svg => {
        const frame = svg.getBoundingClientRect();
        const words = [...svg.querySelectorAll("text")];
        const boxes = words.map(word => word.getBoundingClientRect());
        const outside = words.filter((_, i) => boxes[i].left < frame.left - 1 || boxes[i].right > frame.right + 1
            || boxes[i].top < frame.top - 1 || boxes[i].bottom > frame.bottom + 1);
        const meeting = words.filter((_, i) => boxes.some((box, j) => j > i && box.left < boxes[i].right
            && boxes[i].left < box.right && box.top + 3 < boxes[i].bottom && boxes[i].top + 3 < box.bottom));
        return [...outside, ...meeting].map(word => word.textContent);
    })"""
    assert visit.page.locator(".charts svg").evaluate_all(overlaps) == []


def test_the_mouse_drags_the_division_along(visit):
    pair = pair_of(visit.page)
    box = pair.bounding_box()
    assert box is not None
    assert division(pair) == pytest.approx(0.5, abs=0.01)

    def move_to(share: float) -> None:
        visit.page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2, steps=3)

    move_to(0.5)
    visit.page.mouse.down()
    for share in (0.25, 0.05, 0.8):
        move_to(share)
        assert division(pair) == pytest.approx(share, abs=0.01)
    visit.page.mouse.up()
    move_to(0.3)
    assert division(pair) == pytest.approx(0.8, abs=0.01), "only a pressed button drags"


def test_keys_move_the_division(visit):
    pair = pair_of(visit.page)
    slider = pair.locator("input")
    slider.press("ArrowLeft")
    assert division(pair) == pytest.approx(0.49, abs=0.002)
    slider.press("PageUp")
    assert division(pair) == pytest.approx(0.59, abs=0.01)
    slider.press("Home")
    assert division(pair) == pytest.approx(0, abs=0.01)
    slider.press("End")
    assert division(pair) == pytest.approx(1, abs=0.01)


def test_the_lists_choose_the_pictures_by_name(visit):
    section = visit.page.locator(".beside").first
    for place, name in enumerate(section.locator(".strip img").evaluate_all("images => images.map(i => i.alt)")[:2]):
        section.locator("select").nth(1 - place).select_option(name)
        image = section.locator(".pair img").nth(1 - place)
        assert image.get_attribute("alt") == name
        assert image.get_attribute("src") == section.locator(f'.strip img[alt="{name}"]').get_attribute("src")


@pytest.mark.parametrize("width", [360, 800])
def test_a_narrow_window_never_scrolls_sideways_and_still_compares(visit, width):
    page = visit.page
    page.set_viewport_size({"width": width, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert division(pair_of(page)) == pytest.approx(0.5, abs=0.02)
