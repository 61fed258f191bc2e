"""A result as one HTML page without any other file: tables, charts, and frames under a slider that can be dragged.

The frame of it is `report.html` beside this file. Pictures are PNGs and charts SVG within the page, so it can be
mailed, opened from a disk, and read without a network.
"""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from PIL import Image
from rich.table import Table

from vidgen.eval.charts import Whisker, interval_chart
from vidgen.eval.frames_shown import ORIGINAL, ShownFrame
from vidgen.eval.rate_distortion import RateDistortionReport
from vidgen.eval.recon_report import ReconstructionReport

TEMPLATE = Path(__file__).with_name("report.html")
LARGEST_PAIR = 512  # pixels on the screen, of the longer side of the pictures under a slider


def write_reconstruction(path: Path, report: ReconstructionReport, frames: Sequence[ShownFrame]) -> None:
    """Every score of every subject with its interval, cost, and the frames."""
    judged = [metric.key for metric in report.subjects[0].metrics if metric.higher_is_better is not None]
    charts = []
    for key in judged:
        rows = [
            Whisker(subject.name, found[key].value, found[key].low, found[key].high)
            for subject, found in zip(report.subjects, report.estimates, strict=True)
            if key in found
        ]
        if rows:
            charts.append(interval_chart(rows, label=key))
    _write(path, "Reconstruction", report, [report.table()], charts, report.notes(), frames)


def write_rate_distortion(path: Path, report: RateDistortionReport, frames: Sequence[ShownFrame]) -> None:
    """Points, curves, comparisons with the anchor, and the frames."""
    _write(path, "Rate and distortion", report.scored, report.tables(), report.charts(), report.notes(), frames)


def _write(
    path: Path,
    title: str,
    report: ReconstructionReport,
    tables: Sequence[Table],
    charts: Sequence[str],
    notes: Sequence[str],
    frames: Sequence[ShownFrame],
) -> None:
    body = [f"<h1>{escape(title)}</h1>", *(_table(table) for table in tables)]
    body.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>")
    body.append(f'<h2>Charts</h2>\n<div class="charts">{"".join(charts)}</div>')
    if frames:
        body += ["<h2>Frames</h2>", *(_beside(frame) for frame in frames)]
    body.append("<h2>Conditions</h2>\n" + _conditions(report))
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(title=escape(title), body="\n".join(body))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(str(column.header))}</th>" for column in table.columns)
    rows = zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    caption = f"<caption>{escape(str(table.title))}</caption>"
    return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _beside(shown: ShownFrame) -> str:
    """Two pictures under one slider, chosen out of the strip of all below them."""
    names = list(shown.pictures)
    width, height = Image.open(io.BytesIO(shown.pictures[ORIGINAL])).size
    wide = width * max(1, LARGEST_PAIR // max(width, height))  # whole pixels on the screen for each of the picture
    label = f"{shown.clip}, frame {shown.frame}"
    figures = "".join(
        f'<figure><img alt="{escape(name)}" src="{_data_uri(picture)}"><figcaption>{escape(name)}</figcaption></figure>'
        for name, picture in shown.pictures.items()
    )
    return f"""<section class="beside">
<h3>{escape(label)}</h3>
<label>left {_choice(names, ORIGINAL)}</label><label>right {_choice(names, names[1])}</label><br>
<div class="pair" style="--wide: {wide}px"><img alt="left"><img alt="right">
<input type="range" min="0" max="100" step="any" value="50" aria-label="share of the left picture"></div>
<div class="strip">{figures}</div>
</section>"""


def _choice(names: Sequence[str], chosen: str) -> str:
    options = (f"<option{' selected' if name == chosen else ''}>{escape(name)}</option>" for name in names)
    return f"<select>{''.join(options)}</select>"


def _conditions(report: ReconstructionReport) -> str:
    environment = report.environment
    facts = {
        "protocol": f"{report.protocol.name}, sha256 {report.protocol.sha256}",
        "conditions": report.protocol.source,
        "clips": f"{report.inputs['clips']}, manifest sha256 {report.inputs['manifest_sha256']}",
        "intervals": f"{report.bootstrap.level:.0%}, {report.bootstrap.to_json()['method']}",
        "device": environment["device"],
        "versions": ", ".join(f"{name} {number}" for name, number in environment["versions"].items() if number),
        "commit": environment["commit"] or "unknown",
    }
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items()) + "</dl>"


def _data_uri(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
