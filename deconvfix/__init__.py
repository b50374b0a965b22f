"""Model surgery for transposed convolutions: replaced, exported, and proven to be the same.

The functions are imported when they are first used: `import deconvfix` imports neither torch nor onnx.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deconvfix.conversion import Conversion as Conversion
    from deconvfix.conversion import convert as convert
    from deconvfix.conversion import inspect as inspect
    from deconvfix.conversion import verify as verify
    from deconvfix.core.spec import ConvTransposeSpec as ConvTransposeSpec
    from deconvfix.curves.samples import samples_curve as samples_curve
    from deconvfix.curves.strength import strength_curve as strength_curve
    from deconvfix.diagnose.inspection import Inspection as Inspection
    from deconvfix.errors import CheckpointError as CheckpointError
    from deconvfix.errors import DeconvfixError as DeconvfixError
    from deconvfix.errors import ExportError as ExportError
    from deconvfix.errors import MissingPackageError as MissingPackageError
    from deconvfix.errors import ModelError as ModelError
    from deconvfix.errors import OptionError as OptionError
    from deconvfix.errors import ParityError as ParityError
    from deconvfix.errors import RefusedError as RefusedError
    from deconvfix.errors import RuntimeCrashError as RuntimeCrashError
    from deconvfix.errors import SpecError as SpecError
    from deconvfix.fit.tuning import Tuning as Tuning
    from deconvfix.fixing.fix import Fix as Fix
    from deconvfix.fixing.fix import fix as fix
    from deconvfix.fixing.report import FixReport as FixReport
    from deconvfix.frontends.torch.checkpoint import load as load
    from deconvfix.frontends.torch.export import ExportReport as ExportReport
    from deconvfix.frontends.torch.export import export_onnx as export_onnx
    from deconvfix.parity.bounds import ParityReport as ParityReport
    from deconvfix.plan import Plan as Plan
    from deconvfix.report.curves import SamplesCurve as SamplesCurve
    from deconvfix.report.curves import SamplesPoint as SamplesPoint
    from deconvfix.report.curves import StrengthCurve as StrengthCurve
    from deconvfix.report.curves import StrengthPoint as StrengthPoint
    from deconvfix.report.report import ConversionReport as ConversionReport

__version__ = "0.1.0"

_HOMES = {
    "CheckpointError": "errors",
    "Conversion": "conversion",
    "ConversionReport": "report.report",
    "ConvTransposeSpec": "core.spec",
    "DeconvfixError": "errors",
    "ExportError": "errors",
    "ExportReport": "frontends.torch.export",
    "Fix": "fixing.fix",
    "FixReport": "fixing.report",
    "Inspection": "diagnose.inspection",
    "MissingPackageError": "errors",
    "ModelError": "errors",
    "OptionError": "errors",
    "ParityError": "errors",
    "ParityReport": "parity.bounds",
    "Plan": "plan",
    "RefusedError": "errors",
    "RuntimeCrashError": "errors",
    "SamplesCurve": "report.curves",
    "SamplesPoint": "report.curves",
    "SpecError": "errors",
    "StrengthCurve": "report.curves",
    "StrengthPoint": "report.curves",
    "Tuning": "fit.tuning",
    "convert": "conversion",
    "export_onnx": "frontends.torch.export",
    "fix": "fixing.fix",
    "inspect": "conversion",
    "load": "frontends.torch.checkpoint",
    "samples_curve": "curves.samples",
    "strength_curve": "curves.strength",
    "verify": "conversion",
}

__all__ = [
    "CheckpointError",
    "ConvTransposeSpec",
    "Conversion",
    "ConversionReport",
    "DeconvfixError",
    "ExportError",
    "ExportReport",
    "Fix",
    "FixReport",
    "Inspection",
    "MissingPackageError",
    "ModelError",
    "OptionError",
    "ParityError",
    "ParityReport",
    "Plan",
    "RefusedError",
    "RuntimeCrashError",
    "SamplesCurve",
    "SamplesPoint",
    "SpecError",
    "StrengthCurve",
    "StrengthPoint",
    "Tuning",
    "convert",
    "export_onnx",
    "fix",
    "inspect",
    "load",
    "samples_curve",
    "strength_curve",
    "verify",
]


# What is done is logged there at INFO; who wants to read it gives it a handler.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'deconvfix' has no attribute {name!r}")
    from deconvfix.extras import needs

    with needs("torch", f"deconvfix.{name}"):
        value = getattr(importlib.import_module(f"deconvfix.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
