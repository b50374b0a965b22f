"""Tensors compared, and the inputs that models are compared on."""

import math

import pytest
import torch

from deconvfix.frontends.torch.inputs import as_inputs, compare_tensors, input_variants


def comparison(got, want, rounding=1e-6):
    return compare_tensors("y", "x", torch.tensor(got), torch.tensor(want), rounding)


@pytest.mark.parametrize(
    ("got", "want", "ok"),
    [
        ([1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.0 + 5e-6], [1.0, 2.0], True),
        ([1.0, 2.0 + 2e-5], [1.0, 2.0], False),
        ([1.0, math.nan], [1.0, math.nan], True),
        ([1.0, math.nan], [1.0, 2.0], False),
        ([1.0, 2.0], [1.0, math.nan], False),
        ([math.inf], [math.inf], True),
        ([math.inf], [-math.inf], False),
        ([math.inf], [3.0], False),
        ([1, 2], [1, 2], True),
        ([1, 2], [1, 3], False),
        ([[1.0]], [1.0], False),
    ],
    ids=str,
)
def test_comparisons(got, want, ok):
    assert comparison(got, want).ok is ok


def test_empty_tensors_agree():
    assert compare_tensors("y", "x", torch.zeros(0, 3), torch.zeros(0, 3), 1e-6).ok


def test_variants_are_noise_a_constant_and_zeros():
    ids = torch.arange(3)
    variants = dict(input_variants(as_inputs((torch.randn(2, 3), ids))))
    assert list(variants) == ["example inputs", "seeded noise", "a constant", "zeros"]
    assert all(each.args[1] is ids for each in variants.values())
    assert variants["a constant"].args[0].unique().numel() == 1
