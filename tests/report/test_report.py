"""The page: self-contained, escaped, and what it says."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from deconvfix.diagnose.evidence import Evidence, Pair
from deconvfix.diagnose.fidelity import Fidelity, OutputChange
from deconvfix.frontends.base import Kernel
from deconvfix.grid.flat_field import FlatField
from deconvfix.parity.bounds import ParityReport
from deconvfix.report.curves import SamplesCurve, SamplesPoint
from deconvfix.report.report import ConversionReport, LayerReport
from tests.support.pages import content_of, spectrum, tone

FLAT_BEFORE = FlatField(-4.0, 0.1, 0.16, 0.3)

FLAT_AFTER = FlatField(-137.0, 1e-8, 0.16, 3e-8)


def report(**changes):
    change = OutputChange(
        0,
        (2, 2),
        FLAT_BEFORE,
        FLAT_AFTER,
        (tone((0.0, 0.5), ("<script>x", "up1")), tone((0.5, 0.5), (), 12.0, None)),
    )
    fidelity = Fidelity(34.4, 8.0, -144.0, -4.0, -137.0, 8, True, 64, (change,))
    layer = LayerReport(
        "<script>x", "ConvTranspose2d", "replaced", "equalized", "calibrated", False, 0.5, 4, 4,
        8.0, -144.0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    picture = rng.random((3, 16, 16))
    evidence = Evidence(
        Pair("a constant input", picture, picture),
        Pair("the example input", picture, picture),
        (Kernel("<script>x", picture[0], picture[0]),),
        (spectrum([tone((0.0, 0.5), ("<script>x", "up1"))]),),
    )
    made = ConversionReport(
        input="<b>net.pt",
        output="out.pt",
        to="equalized",
        layers=(layer,),
        parity=ParityReport(True, 0.0, 0.0, "float64"),
        fidelity=fidelity,
        evidence=evidence,
        samples_curve=SamplesCurve(16, (SamplesPoint(12, 28.0), SamplesPoint(48, 31.5))),
    )
    return replace(made, **changes)


class Page(HTMLParser):
    """What a page loads, runs and shows."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.words, self.styles, self.images = [], [], [], [], []
        self.open, self.unbalanced = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        for key, value in attrs:
            if key.startswith("on"):
                self.loads.append(f"{tag} {key}")
            if key in ("src", "href", "srcset", "data", "action", "poster", "background"):
                self.loads.append(value)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        (self.styles if self.open and self.open[-1] == "style" else self.words).append(data)

    @property
    def foreign(self):
        """Everything that would come from elsewhere, or run."""
        found = [each for each in self.loads if not each.startswith("data:image/")]
        found += [
            tag for tag in self.tags if tag in ("script", "iframe", "object", "embed", "link")
        ]
        found += re.findall(r"@import|url\(|https?:", " ".join(self.styles))
        return found


def test_the_page_is_self_contained():
    page = Page(report().to_html())
    assert page.foreign == []
    assert page.images
    assert all(each["src"].startswith("data:image/") and each["alt"] for each in page.images)
    assert page.unbalanced == []


@pytest.mark.parametrize(
    "bad",
    [
        '<img src="https://example.org/x.png">',
        "<script>1</script>",
        "<style>@import 'x';</style>",
        "<style>a { background: url(x.png) }</style>",
        '<link href="x.css">',
        '<p onclick="x()">',
        '<img src="data:text/html,x">',
        "<iframe></iframe>",
    ],
)
def test_a_page_that_is_not_self_contained_is_seen(bad):
    assert Page(report().to_html().replace("</body>", f"{bad}</body>")).foreign != []


def test_pictures_in_the_page_load_nothing_either():
    page = Page(report().to_html())
    drawings = [each["src"] for each in page.images if "svg" in each["src"][:20]]
    assert drawings
    for each in drawings:
        root = ElementTree.fromstring(content_of(each, "image/svg+xml"))
        for element in root.iter():
            assert not element.tag.endswith(("}script", "}image", "}foreignObject"))
            loads = [v for k, v in element.attrib.items() if k.endswith(("href", "src"))]
            assert all(value.startswith("#") for value in loads)


def test_the_page_is_made_for_light_dark_and_narrow_screens():
    style = " ".join(Page(report().to_html()).styles)
    assert "color-scheme: light dark" in style
    assert "prefers-color-scheme: dark" in style
    assert re.search(r"@media \(max-width", style)


def test_the_verdict_says_what_became_of_the_grid():
    words = " ".join(Page(report().to_html()).words)
    told = (
        "On a constant input, the grid fell from -4.0 dB to -137.0 dB; the outputs match the "
        "original's at 34.4 dB PSNR on samples that the fit has seen. "
        "On samples that the fit has not seen: 31.5 dB."
    )
    assert told in words
    assert words.index(told) < words.index("Layers")
    exact = report(fidelity=None, evidence=None, samples_curve=None).to_html()
    assert "The grid" not in exact
    assert "<img" not in exact


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "On a constant input, the grid fell from -4.0 dB to -137.0 dB; the outputs match the "
             "original's at 34.4 dB PSNR."),
        ({"network_ripple_db_after": -2.0}, "On a constant input, the grid changed from -4.0 dB to "
             "-2.0 dB; the outputs match the original's at 34.4 dB PSNR."),
        ({"network_ripple_db_after": -4.01}, "On a constant input, the grid stayed at -4.0 dB; the "
             "outputs match the original's at 34.4 dB PSNR."),
        ({"network_ripple_db_before": None, "psnr_db": None}, "On a constant input, the strongest "
             "grid of a layer fell from 8.0 dB to none; how well the outputs match the original's "
             "was not measured."),
        ({"network_ripple_db_after": -300.0, "psnr_db": 20.0}, "On a constant input, the grid fell "
             "from -4.0 dB to none; the outputs match the original's at 20.0 dB PSNR."),
    ],
)  # fmt: skip
def test_the_change_in_words(changes, sentence):
    fidelity = Fidelity(34.4, 8.0, -144.0, -4.0, -137.0, 8)
    assert replace(fidelity, **changes).sentence() == sentence


def test_sound_has_no_level_to_compare_with():
    change = OutputChange(
        0, (8,), FlatField(40, 0.05, 5e-4, 0.1), FlatField(-90, 2e-8, 5e-4, 0), ()
    )
    fidelity = Fidelity(20.0, 8.0, -144.0, 40.0, -90.0, 8, outputs=(change,))
    assert fidelity.sentence().startswith(
        "On a constant input, the tone fell from an rms of 0.05 to 2e-08; the outputs match"
    )


@pytest.mark.parametrize(
    ("points", "told"),
    [
        ([(3, 20.0), (12, 26.0)], "From 3 to 12 samples: +6.0 dB; more would help."),
        ([(3, 20.0), (12, 20.1)], "From 3 to 12 samples: +0.1 dB; more would change little."),
        ([(3, None), (12, None)], "There is no output to compare."),
    ],
)
def test_the_curve_in_words(points, told):
    assert SamplesCurve(4, tuple(SamplesPoint(*each) for each in points)).sentence() == told


def test_the_page_escapes_what_strangers_named():
    text = report().to_html()
    assert "<script" not in text
    assert "<b>net" not in text
    assert text.count("&lt;script&gt;x") >= 3


def test_the_page_tells_tones_with_their_layers():
    words = " ".join(" ".join(Page(report().to_html()).words).split())
    assert "(0, 0.5) per pixel" in words
    assert (
        words.index("Spectrum of")
        < words.index("Tones of the grids")
        < words.index("Impulse responses")
    )
    assert "several together" in words, "a tone that no layer has alone"
    assert "below 10 dB" in words
    assert "12 28.0 dB 48 31.5 dB" in words
