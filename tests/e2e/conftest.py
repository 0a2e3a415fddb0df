"""What end-to-end tests share: a real service, started as often as they like."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import support_service

StartService = Callable[..., support_service.Service]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[StartService]:
    """
    Start ``spotledger serve`` with the settings that are given by name, such as ``service(success_info="Success")``.

    Each call starts another one; ``folder`` names its data folder, a new one where it is left out.
    """
    started: list[support_service.Service] = []

    def start(folder: Path | None = None, **options: Any) -> support_service.Service:
        one = support_service.start(folder or tmp_path / f"data-{len(started)}", **options)
        started.append(one)
        return one

    yield start
    for one in started:
        one.stop()
