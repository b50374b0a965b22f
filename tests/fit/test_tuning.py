"""Budgets of a distillation."""

import pytest

from deconvfix import Tuning
from deconvfix.errors import OptionError


@pytest.mark.parametrize("name", ["seconds", "steps", "learning_rate", "batch_size"])
def test_budgets_are_above_zero(name):
    with pytest.raises(OptionError, match=f"tuning.{name}: the value is 0; a number above 0"):
        Tuning(**{name: 0})
