"""The imbalance of a kernel."""

from deconvfix.core.phases import phase_of_taps, phase_sums
from deconvfix.forms import form

EQUALIZED = form("equalized")


def unequal(kernel, stride, dilation):
    """What each phase sum departs from the mean of all, (C_in, C_out / groups, *stride)."""
    sums = phase_sums(kernel, phase_of_taps(kernel.shape[2:], stride, dilation), stride)
    return sums - sums.mean(tuple(range(2, sums.ndim)), keepdims=True)
