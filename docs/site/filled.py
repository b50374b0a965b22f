"""An extension of griffe: docstrings as they are once `core.options.documented` has filled them in."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).resolve().parents[2]


class Filled(griffe.Extension):
    """Takes the docstring of the running function where the one in the source has a gap."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Griffe reads sources, in which the options are declared elsewhere."""
        if func.docstring is None or "{options}" not in func.docstring.value:
            return
        if str(ROOT) not in sys.path:
            sys.path.insert(0, str(ROOT))
        function = getattr(importlib.import_module(func.module.path), func.name)
        func.docstring.value = inspect.cleandoc(function.__doc__)
