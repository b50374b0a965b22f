"""What the report draws: pictures by themselves, pictures of evidence, and the page around them."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from deconvfix.diagnose.evidence import Evidence, Pair, Spectrum
from deconvfix.diagnose.fidelity import Fidelity, OutputChange, Tone
from deconvfix.frontends.base import Kernel
from deconvfix.grid.flat_field import FlatField
from deconvfix.parity.bounds import ParityReport
from deconvfix.report import plots as pictures
from deconvfix.report.curves import SamplesCurve, SamplesPoint
from deconvfix.report.pictures import AMPLIFIED, draw
from deconvfix.report.plots import Mark
from deconvfix.report.report import ConversionReport, LayerReport

# A step of 8 bits, and the rounding to it.
STEP = 1 / 255


def content_of(uri, media):
    head, _, data = uri.partition(",")
    assert head == f"data:{media};base64"
    return base64.b64decode(data)


def pixels_of(uri):
    """(H, W, 3) in [0, 1]."""
    with Image.open(io.BytesIO(content_of(uri, "image/png"))) as picture:
        return np.asarray(picture.convert("RGB")) / 255


def texts_of(uri):
    """The words of an SVG, each with the place where it stands."""
    root = ElementTree.fromstring(content_of(uri, "image/svg+xml"))
    return ["".join(each.itertext()).strip() for each in root.iter() if each.tag.endswith("}text")]


# --- pictures by themselves ---------------------------------------------------------------------


def test_an_image_is_the_array_with_its_pixels_enlarged():
    array = np.random.default_rng(0).random((3, 8, 12))
    got = pixels_of(pictures.image(array, 0, 1))
    assert got.shape == (192, 288, 3)
    np.testing.assert_allclose(got[12::24, 12::24], array.transpose(1, 2, 0), atol=STEP)
    assert (got[:24, :24] == got[0, 0]).all()


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_channels_that_are_no_colours(channels):
    """One or two: the first in gray; more: the first three as colours."""
    array = np.random.default_rng(0).random((channels, 200, 200))
    got = pixels_of(pictures.image(array, 0, 1))
    want = array[:3] if channels >= 3 else array[[0, 0, 0]]
    np.testing.assert_allclose(got, want.transpose(1, 2, 0), atol=STEP)


def test_what_is_beyond_the_contrast_is_black_or_white():
    got = pixels_of(pictures.image(np.array([[[-9.0, 0.5, 9.0]]]), 0, 1))
    np.testing.assert_allclose(np.unique(got.round(1)), [0, 0.5, 1])


def test_a_constant_is_a_picture_too():
    assert np.ptp(pixels_of(pictures.image(np.full((1, 4, 4), 7.0)))) == 0


def test_the_same_curves_give_the_same_bytes():
    x = np.arange(50.0)
    first, second = (
        pictures.curves(x, [("before", x), ("after", -x)], x_label="Hz", y_label="dB")
        for _ in range(2)
    )
    assert first == second
    assert {"Hz", "dB", "before", "after"} <= set(texts_of(first))


def test_marks_are_named_and_names_are_no_markup():
    x = np.linspace(0, 1, 50)
    marks = [Mark(0.25, ("<b>&up", "$x^2$", "上采样")), Mark(0.75, tuple("abcde"))]
    uri = pictures.curves(x, [("before", x)], x_label="x", y_label="y", marks=marks)
    words = " ".join(texts_of(uri))
    for name in ("<b>&up", "$x^2$", "上采样", "c +2"):
        assert name in words, "others than the third are a number"
    assert "d" not in texts_of(uri)
    bare = pictures.curves(x, [("before", x)], x_label="x", y_label="y")
    assert "<b>&up" not in " ".join(texts_of(bare))


def test_long_names_keep_their_ends():
    name = "decoder.up_blocks.3.upsamplers.0.conv"
    x = np.linspace(0, 1, 50)
    uri = pictures.curves(x, [("a", x)], x_label="x", y_label="y", marks=[Mark(0.5, (name,))])
    assert any(each.endswith("upsamplers.0.conv"[-15:]) for each in texts_of(uri))
    assert not any(name in each for each in texts_of(uri))


def test_names_do_not_stand_on_each_other():
    marks = [Mark(each / 64, (str(each),), strength=-abs(each - 20)) for each in range(33)]
    chosen = pictures.labelled(marks, 0.05)
    places = sorted(each.position for each in chosen)
    assert min(np.diff(places)) >= 0.05
    assert chosen[0].names == ("20",), "the strongest has its name"
    assert len(pictures.labelled(marks, 0.0)) == len(marks)


@pytest.mark.parametrize("shape", [(5,), (4, 6)])
def test_kernels_share_one_scale(shape):
    """Twice the kernel is the stronger one: what differs is seen."""
    kernel = np.random.default_rng(0).standard_normal(shape)
    same = pixels_of(pictures.kernels(kernel, kernel))
    other = pixels_of(pictures.kernels(kernel, kernel / 4))
    half = same.shape[1] // 2
    assert same.shape == other.shape
    assert (same[:, :half] == other[:, :half]).all()
    assert (same[:, half:] != other[:, half:]).any()
    pictures.kernels(np.zeros(shape), np.zeros(shape))


# --- pictures of evidence -----------------------------------------------------------------------


def grid(size, height, level=0.0):
    """A checkerboard of three channels, each on a level of its own."""
    board = height * (-1.0) ** np.add.outer(np.arange(size), np.arange(size))
    return board + level + np.arange(3)[:, None, None]


def drawn(**parts):
    return draw(Evidence(**{"flat": None, "sample": None, **parts}))


@pytest.mark.parametrize("left", [1.0, 0.5, 0.1, 0.0])
def test_flat_pictures_share_one_contrast(left):
    """What is left of a grid must be seen in its proportion; the level may move."""
    before, after = drawn(flat=Pair("a constant", grid(40, 0.01), grid(40, 0.01 * left, level=5)))
    old, new = (pixels_of(each.uri) for each in (before, after))
    assert np.ptp(old) == 1
    assert np.ptp(new) == pytest.approx(left, abs=2 * STEP)
    assert before.title.startswith("before; black to white: 0.02 around")
    assert after.title.removeprefix("after") == before.title.removeprefix("before")


def test_rounding_is_not_enlarged_to_a_grid():
    """A grid of one part in ten million is that of float32, and nothing."""
    before, after = drawn(flat=Pair("a constant", grid(40, 1e-7), grid(40, 0.0)))
    assert np.ptp(pixels_of(before.uri)) < 0.2
    assert np.ptp(pixels_of(after.uri)) == 0


def test_the_difference_is_enlarged_as_it_says():
    rng = np.random.default_rng(0)
    old = rng.random((3, 24, 24))
    old[0, 0, :2] = 0, 1  # the contrast
    new = old + 0.02 * rng.standard_normal(old.shape)
    pair = Pair("the example input", old, new)
    before, after, difference = drawn(sample=pair)
    assert difference.title == f"difference x{AMPLIFIED:g}"
    shown = pixels_of(difference.uri)[4::8, 4::8] - 0.5
    want = (AMPLIFIED * (new - old)).transpose(1, 2, 0).clip(-0.5, 0.5)
    np.testing.assert_allclose(shown, want, atol=STEP)
    plain = pixels_of(after.uri) - pixels_of(before.uri)
    assert np.abs(plain).max() < np.abs(shown).max() / 2


def test_equal_outputs_differ_by_gray():
    [*_, difference] = drawn(sample=Pair("x", grid(16, 1.0), grid(16, 1.0)))
    np.testing.assert_allclose(pixels_of(difference.uri), 0.5, atol=STEP)


def test_signals_are_curves_and_volumes_are_shown_through_their_middle():
    rng = np.random.default_rng(0)
    signal = rng.random((1, 400))
    [curve] = drawn(sample=Pair("x", signal, signal))
    assert curve.wide
    assert {"before", "after", "sample"} <= set(texts_of(curve.uri))
    volume = rng.random((1, 5, 32, 32))
    first, *_ = drawn(sample=Pair("x", volume, volume))
    plane, *_ = drawn(sample=Pair("x", volume[:, 2], volume[:, 2]))
    assert first.uri == plane.uri


def tone(frequency, layers, before=20.0, after=1.0, hz=None):
    return Tone(frequency, hz, layers, before, after)


def spectrum(tones, axes=2, axis=1, sample_rate=None):
    frequency = np.arange(65) / 128
    power = 1 + np.zeros(65)
    peaked = power.copy()
    for each in tones:
        peaked[round(each.frequency[axis] * 128)] = 100
    return Spectrum(0, axis, axes, frequency, peaked, power, tuple(tones), sample_rate)


def test_a_spectrum_names_the_layers_at_their_tones():
    tones = [tone((0.0, 0.25), ("up1",)), tone((0.0, 0.5), ("up2", "up1"))]
    [picture] = drawn(spectra=(spectrum(tones),))
    words = " ".join(texts_of(picture.uri))
    assert words.count("up1") == 2
    assert words.count("up2") == 1
    assert "cycles per pixel" in words
    assert picture.title.startswith("along the horizontal axis")
    assert picture.wide
    [bare] = drawn(spectra=(spectrum([]),))
    assert "up1" not in " ".join(texts_of(bare.uri))


def test_a_spectrum_of_sound_is_in_hz():
    tones = [tone((0.125,), ("up2", "up1"), hz=1000.0)]
    [picture] = drawn(spectra=(spectrum(tones, axes=1, axis=0, sample_rate=8000.0),))
    words = texts_of(picture.uri)
    assert "Hz" in words
    assert "4000" in words
    [without] = drawn(spectra=(spectrum(tones, axes=1, axis=0),))
    assert "cycles per sample" in texts_of(without.uri)


# --- the page -----------------------------------------------------------------------------------

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
        "The grid on a constant input fell from -4.0 dB to -137.0 dB; the outputs agree with the "
        "original to 34.4 dB PSNR on samples that the fit has seen. "
        "On samples that it has not seen: 31.5 dB."
    )
    assert told in words
    assert words.index(told) < words.index("Layers")
    exact = report(fidelity=None, evidence=None, samples_curve=None).to_html()
    assert "The grid" not in exact
    assert "<img" not in exact


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "The grid on a constant input fell from -4.0 dB to -137.0 dB; the outputs agree with "
             "the original to 34.4 dB PSNR."),
        ({"network_ripple_db_after": -2.0}, "The grid on a constant input went from -4.0 dB to "
             "-2.0 dB; the outputs agree with the original to 34.4 dB PSNR."),
        ({"network_ripple_db_before": None, "psnr_db": None}, "The strongest grid of a layer on a "
             "constant input fell from 8.0 dB to -144.0 dB; how close the outputs stay was not "
             "measured."),
        ({"network_ripple_db_after": -300.0, "psnr_db": 20.0}, "The grid on a constant input fell "
             "from -4.0 dB to none at all; the outputs agree with the original to 20.0 dB PSNR."),
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
        "The tone on a constant input fell from an rms of 0.05 to 2e-08; the outputs agree"
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
        words.index("Spectrum of") < words.index("Tones of the grids") < words.index("Answers of")
    )
    assert "several together" in words, "a tone that no layer has alone"
    assert "below 10 dB" in words
    assert "12 28.0 dB 48 31.5 dB" in words
