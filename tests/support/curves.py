"""A strength curve and its picture as text."""

import base64


def svg(uri):
    media, _, content = uri.partition(";base64,")
    assert media == "data:image/svg+xml"
    return base64.b64decode(content).decode()
