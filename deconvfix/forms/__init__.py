"""The forms that a transposed convolution can be written in. A new form is a file and a line here."""

from collections.abc import Callable

from deconvfix.forms.base import Form
from deconvfix.forms.equalized import EQUALIZED
from deconvfix.forms.notch import NOTCH
from deconvfix.forms.resize import RESIZE
from deconvfix.forms.subpixel import SUBPIXEL

__all__ = ["FORMS", "form"]

FORMS: tuple[Form, ...] = (SUBPIXEL, RESIZE, EQUALIZED, NOTCH)

# The form of a name; KeyError if there is none.
form: Callable[[str], Form] = {known.name: known for known in FORMS}.__getitem__
