"""`convert --dry-run` as a difference."""

import onnx

from tests.support.command import INPUT, LongNames, OddlyNamed, arch, save
from tests.support.onnx_files import net, run


def test_a_dry_run_shows_what_goes_comes_and_stays(tmp_path):
    onnx.save(net(), tmp_path / "net.onnx")
    result = run("convert", tmp_path / "net.onnx", "--dry-run", "--exclude", "up1")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "  up1: ConvTranspose, kept: not selected"
    assert lines[1] == "  up2"
    assert lines[2] == "-   ConvTranspose"
    assert lines[3].startswith("+   Conv, PixelShuffle, Crop (the same function; x1.78 ")
    assert "1 replaced, 1 kept" in result.stdout
    assert not list(tmp_path.glob("*out*"))


def test_a_refusal_is_shown_with_its_reason(tmp_path):
    path = save(tmp_path)
    result = run("convert", path, *arch("Net"), *INPUT, "--to", "resize", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "up1: ConvTranspose2d, refused: up1: " in result.stdout
    assert "-   " not in result.stdout


def test_names_are_shown_as_they_are_however_long(tmp_path):
    path = save(tmp_path, OddlyNamed())
    shown = run("convert", path, *arch("OddlyNamed"), "--dry-run").stdout
    for name in OddlyNamed.names:
        assert f"  ups.{name}\n-   ConvTranspose1d\n+   Conv" in shown
    path = save(tmp_path, LongNames())
    shown = run("convert", path, *arch("LongNames"), "--dry-run").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "a_long_name_of_a_block_" * 6 in shown.replace("\n", "")
