"""The forms that a transposed convolution can be written in. A new form is a file and a line here."""

from collections.abc import Callable

from deconvfix.forms.base import Form
from deconvfix.forms.equalized import EQUALIZED
from deconvfix.forms.notch import NOTCH
from deconvfix.forms.resize import RESIZE
from deconvfix.forms.subpixel import SUBPIXEL

__all__ = ["AUTO", "DECONV", "FORMS", "form"]

FORMS: tuple[Form, ...] = (SUBPIXEL, RESIZE, EQUALIZED, NOTCH)

# What a conversion may be asked for beside a form: the exact one, where a measurement says that it is faster.
AUTO = "auto"
# And the way back: a transposed convolution for what is one in other words.
DECONV = "deconv"

# The form of a name; KeyError if there is none.
_EXACT = dict.fromkeys((AUTO, DECONV), SUBPIXEL)
form: Callable[[str], Form] = {**_EXACT, **{known.name: known for known in FORMS}}.__getitem__
