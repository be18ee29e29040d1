"""What tests of indexes without a record begin with."""

from __future__ import annotations

import pytest
from torch import nn

from influence_engine import Run
from tests.influence_engine.vectors import make_network


@pytest.fixture
def base(vector_run: Run) -> nn.Module:
    return vector_run.load_base(make_network())
