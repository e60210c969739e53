"""What every test shares."""

import os

# Two cores are shared by the tests' own processes; results with one thread repeat to the bit.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.references import import_timm, import_torchvision, import_transformers


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
