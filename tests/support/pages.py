"""Pictures read back from the report."""

import base64
import io
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from deconvfix.diagnose.evidence import Spectrum
from deconvfix.diagnose.fidelity import Tone

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


def tone(frequency, layers, before=20.0, after=1.0, hz=None):
    return Tone(frequency, hz, layers, before, after)


def spectrum(tones, axes=2, axis=1, sample_rate=None):
    frequency = np.arange(65) / 128
    power = 1 + np.zeros(65)
    peaked = power.copy()
    for each in tones:
        peaked[round(each.frequency[axis] * 128)] = 100
    return Spectrum(0, axis, axes, frequency, peaked, power, tuple(tones), sample_rate)
