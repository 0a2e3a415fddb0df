"""Operator tokens over the operator API: listed and revoked, on both stores, and what a start does after that."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from spotledger.ops.settings import ServerUrl
from spotledger.storage.folder import TOKEN_FILE
from support_operator import Api, operator_api

Open = Callable[[], AbstractContextManager[Api]]


@pytest.fixture(params=["embedded", "postgres"])
def open_api(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Give what opens the operator API over one ledger, again and again, in each store in turn."""
    settings: dict[str, Any] = {}
    if request.param == "postgres":
        settings["database"] = ServerUrl(request.getfixturevalue("postgres_url"))
    return lambda: operator_api(tmp_path / "data", **settings)


@pytest.fixture
def api(open_api: Open) -> Iterator[Api]:
    """Open the operator API over a new ledger."""
    with open_api() as opened:
        yield opened


def made(api: Api, *scopes: str, label: str = "") -> tuple[str, str]:
    """Make a token; return its id and itself."""
    answer = api.must("/v1/tokens", {"scopes": list(scopes), "label": label})
    return answer["token_id"], answer["token"]


def listed(api: Api, token: str | None = None) -> dict[str, dict[str, Any]]:
    """Return all tokens by their ids."""
    answer = api.request("GET", "/v1/tokens", headers=api.headers(None, token))
    assert answer.status_code == 200, answer.text
    return {found["token_id"]: found for found in answer.json()["tokens"]}


def test_tokens_are_listed_without_themselves(api: Api) -> None:
    """Each token has its scopes, its label and the start of its hash; the token itself is not in the answer."""
    token_id, token = made(api, "ledger:write", "ledger:read", label="engine")
    first, other = sorted(listed(api).values(), key=lambda found: found["created_ms"])
    assert (first["label"], first["revoked_ms"]) == (TOKEN_FILE, None)
    created_ms = other.pop("created_ms")
    assert created_ms >= first["created_ms"]
    assert other == {
        "token_id": token_id,
        "fingerprint": hashlib.sha256(token.encode()).hexdigest()[:16],
        "scopes": ["ledger:read", "ledger:write"],
        "label": "engine",
        "addresses": [],
        "expires_ms": None,
        "revoked_ms": None,
        "last_used_ms": None,
    }
    text = api.get("/v1/tokens").text
    assert token not in text
    assert hashlib.sha256(token.encode()).hexdigest() not in text


def test_tokens_come_in_pages_each_once(api: Api) -> None:
    """Pages follow one another by their cursor until there is none, and a strange cursor does no harm."""
    ids = {made(api, "ledger:read")[0] for _ in range(4)} | set(listed(api))
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = api.get("/v1/tokens", after=after, limit=2).json()
        assert len(page["tokens"]) <= 2
        seen += [found["token_id"] for found in page["tokens"]]
        after = page["next_after"]
    assert seen == sorted(ids)
    assert api.get("/v1/tokens", after="\0").status_code == 200
    assert api.get("/v1/tokens", after="~").json() == {"tokens": [], "next_after": None}


def test_token_is_revoked_at_once_and_again_changes_nothing(api: Api) -> None:
    """The next call with it is refused; a repeat of the revocation answers as the first did."""
    token_id, token = made(api, "ledger:read")
    assert api.request("GET", "/v1/coins", headers=api.headers(None, token)).status_code == 200
    first = api.delete(f"/v1/tokens/{token_id}")
    assert first.status_code == 200
    assert first.json()["revoked_ms"] is not None
    refused = api.request("GET", "/v1/coins", headers=api.headers(None, token))
    assert (refused.status_code, refused.json()["code"]) == (401, "token_refused")
    api.clock.ahead_ms += 5_000
    again = api.delete(f"/v1/tokens/{token_id}")
    assert again.json() == first.json() == listed(api)[token_id]


@pytest.mark.parametrize("token_id", ["nobody", "x%00y", "00000000-0000-0000-0000-000000000000", "%C3%A9"])
def test_token_that_is_not_there_is_not_found(api: Api, token_id: str) -> None:
    """An id of no token is a 404, and revokes nothing."""
    answer = api.delete(f"/v1/tokens/{token_id}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert [found["revoked_ms"] for found in listed(api).values()] == [None]


def test_token_may_revoke_itself_where_another_admin_is_left(api: Api) -> None:
    """A token can revoke itself: that call is answered, and no later one."""
    token_id, token = made(api, "admin")
    done = api.delete(f"/v1/tokens/{token_id}", token)
    assert (done.status_code, done.json()["token_id"]) == (200, token_id)
    refused = api.delete(f"/v1/tokens/{token_id}", token)
    assert (refused.status_code, refused.json()["code"]) == (401, "token_refused")
    assert api.get("/v1/tokens").status_code == 200


def test_last_admin_token_is_kept_until_another_is_there(api: Api) -> None:
    """Revoking the last admin token is refused; with another one in use it works."""
    (first,) = listed(api)
    made(api, "ledger:read", "keys:write")
    refused = api.delete(f"/v1/tokens/{first}")
    assert (refused.status_code, refused.json()["code"]) == (422, "last_admin_token")
    _, other = made(api, "admin")
    assert api.delete(f"/v1/tokens/{first}").status_code == 200
    assert listed(api, other)[first]["revoked_ms"] is not None


def test_making_a_token_repeated_after_its_revocation_makes_none(api: Api) -> None:
    """The same request under the same key answers as it did, without the token, and brings nothing back to life."""
    body = {"scopes": ["ledger:read"], "label": "engine"}
    answer = api.must("/v1/tokens", body, "make-1")
    api.delete(f"/v1/tokens/{answer['token_id']}")
    again = api.post("/v1/tokens", body, "make-1")
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == {**answer, "token": None}
    assert listed(api)[answer["token_id"]]["revoked_ms"] is not None
    assert len(listed(api)) == 2


def test_first_token_revoked_stays_so_after_a_start(
    open_api: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file operator.token is left unchanged and its token is refused; a start logs that, and makes no new file."""
    with open_api() as api:
        _, other = made(api, "admin")
        (first,) = (token_id for token_id, found in listed(api).items() if found["label"] == TOKEN_FILE)
        assert api.delete(f"/v1/tokens/{first}").status_code == 200
    file = tmp_path / "data" / TOKEN_FILE
    left = file.read_bytes()
    with open_api() as api, caplog.at_level(logging.WARNING):
        api.runtime.check_token_file()
        assert f"the token in {file} was revoked" in caplog.text
        assert api.token not in caplog.text
        assert file.read_bytes() == left
        assert api.get("/v1/coins").status_code == 401
        assert len(listed(api, other)) == 2
    file.unlink()
    with open_api() as api:
        assert len(listed(api, other)) == 2
    assert not file.exists()


@pytest.mark.parametrize(
    ("text", "said"), [("0" * 64, "is unknown to this ledger"), ("secret-no-token", "contains no operator token")]
)
def test_token_file_that_lets_nobody_in_is_said(
    api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, said: str
) -> None:
    """A file with something else in it is named in the log, without what is in it; one that is right is not."""
    with caplog.at_level(logging.WARNING):
        api.runtime.check_token_file()
        assert caplog.text == ""
        (tmp_path / "data" / TOKEN_FILE).write_text(text)
        api.runtime.check_token_file()
    assert said in caplog.text
    assert text not in caplog.text
