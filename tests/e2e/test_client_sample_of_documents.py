"""The sample test of the API's documents, in its shape, against a service that spells it ``Success``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spotledger.client import SignedRequestAPI
from support_client_service import Service, started_service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service as the documents' sample expects it."""
    with started_service(tmp_path_factory.mktemp("documents") / "data", success_info="Success") as started:
        yield started


def test_get_balance_as_the_documents_test_it(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the credentials and the address, nothing has to be changed in the documents' test."""
    monkeypatch.setenv("SPOTLEDGER_URL", service.public_url)

    sra = SignedRequestAPI(service.accesskey, service.secretkey)
    status, data, response = sra.get_balance()
    assert status is True
    assert isinstance(data, dict)
    assert data["info"] == "Success"
    assert data["data"]
    assert "forth" in data["data"]
    assert "usdt" in data["data"]

    assert response is not None
    assert data["data"]["usdt"] == {"freeze": "3062.17437341", "available": "3867.43650012"}
