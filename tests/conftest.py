"""Settings that all tests share."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import hypothesis
import pytest
import torch

# Sums are ordered by the number of threads, and metrics are compared to three decimals.
torch.set_num_threads(1)

# derandomize: the same examples on every run, so that a failure is a change of the code.
# The profile "long" draws new ones: pytest --hypothesis-profile=long.
hypothesis.settings.register_profile(
    "default",
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("long", max_examples=10_000, deadline=None)
hypothesis.settings.load_profile("default")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
