"""What is logged, and that nobody sees it who did not ask."""

import logging
import subprocess
import sys

from onnx import ModelProto

import deconvfix
from tests.support.onnx_files import net

PROGRAM = """
import deconvfix, logging
from tests.support.onnx_files import net
deconvfix.convert(net())
logging.getLogger("deconvfix").warning("said without a handler")
"""


def test_a_conversion_logs_what_it_found_and_what_was_proven(caplog):
    caplog.set_level(logging.INFO, logger="deconvfix")
    assert isinstance(deconvfix.convert(net(), exclude="up1").model, ModelProto)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told == [
        ("INFO", "2 transposed convolutions found: 1 to replace, 0 refused"),
        (
            "INFO",
            "ModelProto: 2 transposed convolutions found: 1 replaced, 1 kept; verified.",
        ),
    ]
    assert {record.name.split(".")[0] for record in caplog.records} == {"deconvfix"}


def test_without_a_handler_nothing_is_printed():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
