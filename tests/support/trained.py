"""The trained networks of `fixtures`, with their held-out inputs."""

import importlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import fixtures

FOLDER = Path(fixtures.__file__).parent

MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))


def load(name):
    module, _, builder = MANIFEST[name]["builder"].partition(":")
    model = getattr(importlib.import_module(module), builder)()
    model.load_state_dict(load_file(FOLDER / MANIFEST[name]["file"]))
    return model.eval()


def heldout(name):
    """The inputs, and what the outputs are to be measured against."""
    arrays = np.load(FOLDER / MANIFEST[name]["heldout"]["file"])
    (argument,) = MANIFEST[name]["inputs"]
    return torch.from_numpy(arrays[argument]), torch.from_numpy(arrays["target"])
