"""Set-up and fixtures for all tests."""

from __future__ import annotations

import pytest
import torch
from factories import random_dictionary
from hypothesis import HealthCheck, settings

from sparse_core.dictionary import SparseDictionary

torch.set_num_threads(1)  # the tensors are tiny: threads cost more than they bring

# Examples take long now and then on a busy machine; that says nothing of the code.
settings.register_profile("sparse-atoms", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sparse-atoms")


@pytest.fixture
def dictionary() -> SparseDictionary:
    """Four atoms on every site of `factories.LAYERS`."""
    return random_dictionary()
