"""The report on a screen of 390 pixels, laid out by a browser."""

import html
import re
import shutil
import subprocess

import pytest

from deconvfix.fixing.report import Candidate, FixReport, GridChange, Measured
from deconvfix.parity.bounds import Comparison, ParityReport
from deconvfix.report.report import ConversionReport, LayerReport
from deconvfix.report.tally import Tallies, Tally

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WIDTH = 390
# Asks the page in a frame of that width what is wider than its place.
OUTER = """<!DOCTYPE html><title>-</title>
<iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<script>onload = () => {{
  const inner = document.querySelector("iframe").contentDocument;
  const places = [inner.documentElement, ...inner.querySelectorAll(".scroll")];
  const wide = places.map(e => e.scrollWidth - e.clientWidth);
  document.title = "beyond:" + wide.join(",");
}}</script>"""
LONG = "a_long_name_of_a_block_" * 6


def fixed_page():
    """What `fix` found: seven columns and a reason in words."""
    found = Measured(0.5, 1.5, 30.2, None, 0.01, truth_db=21.44, flat_db=-43.1)
    change = GridChange(0.5, 1.5, 0.0, 0.3)
    reason = "the match is 31.5 dB, and 35.5 dB is what the original has; in the worst patches it is more"
    tried = Candidate("2 of its layers with larger kernels, trained", found, 1.2, False, (reason,))
    return FixReport(
        fixed=False, reason=reason, nothing_to_fix=False, grid=change, match_db=30.2, colour_shift=0.0,
        cost=1.0, original=found, candidates=(tried,), heldout=8, goal="the mean over all shifts",
    ).to_html()  # fmt: skip


def page():
    words = "calibrated on 64 samples, in words that are long enough for several lines of a phone"
    layer = LayerReport(
        LONG, "ConvTranspose2d", "replaced", "equalized", words, False, 0.5, 4, 4, 8.0, -144.0
    )
    old = Tally({"ConvTranspose": 3, LONG: 1}, 1_234_567, 123_456_789_012, 9_999_999)
    new = Tally({"Conv": 3}, 1_234_567, 123_456_789_012, 9_999_999)
    compared = Comparison(LONG, "noise with DynamicDimension.1=64, as it stands", 1e-7, 0.25, True)
    parity = ParityReport(True, 1e-7, 0.25, "float32", (compared, compared))
    made = ConversionReport(
        "net.onnx", "out.onnx", "subpixel", (layer, layer), parity, tallies=Tallies(old, new)
    )
    return made.to_html()


def beyond(text, folder):
    """Pixels that the page, and then each of its tables, has beyond its place."""
    (folder / "outer.html").write_text(OUTER.format(width=WIDTH, page=html.escape(text)))
    command = [
        *(
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder / 'profile'}",
        ),
        *("--virtual-time-budget=2000", "--dump-dom", (folder / "outer.html").as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return [int(n) for n in re.search(r"<title>beyond:([\d,]+)<", done.stdout)[1].split(",")]


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_nothing_is_wider_than_a_phone(tmp_path):
    found = beyond(page(), tmp_path)
    assert len(found) == 4  # the page, the layers, what the file consists of, what was compared
    assert found == [0, 0, 0, 0]


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_the_page_of_fix_is_not_wider_either(tmp_path):
    assert beyond(fixed_page(), tmp_path) == [0, 0]


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_what_is_too_wide_is_seen(tmp_path):
    spoiled = re.sub(r"(?m)^table\.layers .*$|overflow-wrap: anywhere;", "", page())
    assert spoiled != page()
    assert sum(n > 0 for n in beyond(spoiled, tmp_path)) == 3
