"""What every test shares."""

import os

# Two cores are shared by the tests' own processes; results with one thread repeat to the bit.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's workers give way to whatever else runs; tests that wait for them would wait for all of it.
os.environ.setdefault("RAY_worker_niceness", "0")

import hypothesis
import pytest

from tests.references import import_timm, import_torchvision, import_transformers

# A machine may be busy, and examples that nobody asked for again tell nothing of a change.
hypothesis.settings.register_profile(
    "orch",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("orch")


@pytest.fixture(scope="session")
def torchvision():
    """torchvision, importable beside a torch whose build has none of its compiled operators."""
    return import_torchvision()


@pytest.fixture(scope="session")
def timm():
    """timm, which imports torchvision."""
    return import_timm()


@pytest.fixture(scope="session")
def transformers():
    """transformers, which has public weights' layouts of models of text."""
    return import_transformers()
