"""Photographs of scikit-image and scikit-learn, (1, 3, H, W) in [0, 1]."""

import numpy as np
import skimage.data

NAMES = ("astronaut", "chelsea", "coffee", "rocket")


def load(name, height=256, width=384):
    """The middle of a photograph."""
    picture = getattr(skimage.data, name)().astype(np.float64) / 255
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width].transpose(2, 0, 1)[None]
