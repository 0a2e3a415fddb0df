"""What happens where a server can't be had: the test is skipped with the reason, or, in a CI run, fails with it."""

from __future__ import annotations

import os
from typing import NoReturn


class ServerMissing(Exception):
    """A server is not there and could not be installed; the text says what was tried."""


def skip_or_fail(problem: ServerMissing) -> NoReturn:
    """Skip the test that needs what is missing; with ``CI=true`` fail it, so that a hole is seen."""
    import pytest  # here, because the drills run without it

    if os.environ.get("CI") == "true":
        pytest.fail(f"CI=true, and {problem}")
    pytest.skip(str(problem))
