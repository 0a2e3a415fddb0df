"""The v4 answers: every error has its code."""

from __future__ import annotations

import json

import pytest

from spotledger import errors
from spotledger.http import wire
from spotledger.http.public import v4


@pytest.mark.parametrize("kind", list(wire.TABLE))
def test_every_leaf_has_a_v4_code(kind: type[errors.SpotledgerError]) -> None:
    """Whatever is raised, a v4 refusal has its mc."""
    said = json.loads(v4.v4_refusal(kind()))
    assert said["rc"] == 1
    assert said["mc"]
