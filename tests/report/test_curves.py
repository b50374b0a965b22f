"""Curves as pictures and on the page."""

import json
import math
import re

import pytest

from deconvfix import StrengthCurve, StrengthPoint
from deconvfix.report.curves import draw_curve
from deconvfix.report.report import ConversionReport
from tests.support.curves import svg

CURVE = StrengthCurve(
    (
        StrengthPoint(0.0, math.inf, -40.0, 0.2),
        StrengthPoint(0.5, 34.5, -46.0, -6.0),
        StrengthPoint(1.0, 29.25, -145.0, -300.0),
    ),
    "calibrated",
    ("Calibrated fits, <measured>.",),
)


def test_the_picture_names_the_strengths_and_what_is_off_the_scale():
    drawn = svg(draw_curve(CURVE))
    for text in (
        "0 (no difference)",
        ">0.5<",
        "1 (below -80 dB)",
        "match to the original (PSNR), dB",
    ):
        assert text in drawn
    assert drawn == svg(draw_curve(CURVE)), "the same bytes every time"
    assert not re.search("#(0{6}|f{6})", drawn), "legible on dark and light"


@pytest.mark.parametrize("psnr", [None, math.inf])
def test_there_is_no_picture_without_a_distance(psnr):
    assert draw_curve(StrengthCurve((StrengthPoint(0.0, psnr, -40.0, 0.0),), "fit")) is None


def test_the_curve_is_in_the_report_as_data_and_as_a_page():
    report = ConversionReport("in", None, "equalized", (), None, curve=CURVE)
    points = json.loads(report.to_json())["curve"]["points"]
    assert [each["psnr_db"] for each in points] == ["inf", 34.5, 29.25]
    assert points[1] == {
        "strength": 0.5,
        "psnr_db": 34.5,
        "network_ripple_db": -46.0,
        "layer_ripple_db": -6.0,
    }
    page = report.to_html()
    for text in ("no difference", "34.5 dB", "-46.0 dB", "none", "&lt;measured&gt;"):
        assert text in page
    assert "data:image/svg+xml" in page
    without = ConversionReport("in", None, "equalized", (), None)
    assert json.loads(without.to_json())["curve"] is None
    assert "by strength" not in without.to_html()
