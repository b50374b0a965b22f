"""`report.summary()` and `str(report)`: plain lines."""

from dataclasses import replace

import deconvfix
from tests.support.onnx_files import net


def test_a_summary_has_the_verdict_and_each_layer():
    report = deconvfix.convert(net(), exclude="up1").report
    assert report.summary().splitlines() == [
        "ModelProto: 2 transposed convolutions found: 1 replaced, 1 kept; verified.",
        "  up1: kept, not selected",
        "  up2: replaced (subpixel), the same function",
    ]
    assert str(report) == report.summary()
    assert report.summary(most=0) == report.summary().splitlines()[0]


def test_many_layers_are_cut_and_files_are_named():
    report = deconvfix.convert(net()).report
    report = replace(report, layers=report.layers * 6, input="a.onnx", output="b.onnx")
    lines = report.summary().splitlines()
    assert lines[0].startswith("a.onnx -> b.onnx: 12 transposed convolutions found")
    assert len(lines) == 1 + 8 + 1
    assert lines[-1] == "  and 4 more layers"
    assert len(report.summary(most=12).splitlines()) == 13


def test_an_intended_change_is_told():
    report = deconvfix.convert(net(), to="equalized", init="fit").report
    assert report.change() in str(report)


def test_a_strangers_name_is_shown_and_not_obeyed():
    report = deconvfix.convert(net()).report
    layer = replace(report.layers[0], name="up\x1b[31m")
    assert "up\\x1b[31m" in str(replace(report, layers=(layer,)))
