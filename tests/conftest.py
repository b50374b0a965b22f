"""Settings that all tests share. Tests of core, fit, grid and forms run without torch, so nothing here
imports it."""

import os
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# Sums are ordered by the number of threads, and metrics are compared to three decimals. torch reads this
# when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest

# Assertions in helpers are explained like those of tests.
pytest.register_assert_rewrite("tests.support")

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


class _SkipsWithoutTorch:
    """While tests are collected, a module that imports torch is skipped where torch is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "safetensors", "onnxscript"):
            pytest.skip(f"{name} is not installed", allow_module_level=True)


def pytest_collection(session):
    # Last in the list: it is asked only for what nothing else finds.
    sys.meta_path.append(_SkipsWithoutTorch())


def pytest_collection_finish(session):
    sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, _SkipsWithoutTorch)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The random numbers of torch, for tests whose module has imported it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    """The longest test first: at the end, one process would wait for it alone."""
    items.sort(key=lambda item: item.name != "test_pages_run_in_order")
