"""A query that a call does not take is refused on writes as on reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support_operator import operator_api


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/deposits", {"customer": "alice", "coin": "usdt", "amount": "1"}, "dryrun"),
        ("/v1/batches", {"operations": []}, "dryrun"),
        ("/v1/keys", {"customer": "alice", "permissions": ["read"]}, "dry_run"),
        ("/v1/tokens", {"scopes": ["ledger:read"]}, "dry_run"),
    ],
)
def test_write_with_an_unknown_query_parameter_is_refused(
    tmp_path: Path, path: str, body: dict[str, object], name: str
) -> None:
    """What it is meant to do is not done: nothing is booked, and the key stays unused. No dry run makes a token."""
    with operator_api(tmp_path) as api:
        api.set_up()
        seq = api.seq
        headers = api.headers() | {"Idempotency-Key": "once"}
        said = api.run(api.http.post(f"{path}?{name}=true", json=body, headers=headers))
        assert (said.status_code, said.json()["field"]) == (422, name)
        assert api.seq == seq
        assert api.run(api.http.post(path, json=body, headers=headers)).status_code == 200


def test_every_call_refuses_a_parameter_that_it_does_not_take(tmp_path: Path) -> None:
    """Before it does anything: a key is not revoked because a dry run of that was asked for."""
    with operator_api(tmp_path) as api:
        api.set_up()
        calls = [
            (endpoint.path, method, call) for endpoint in api.app.routes for method, call in endpoint.calls.items()
        ]
        guarded = [
            (path, method)
            for path, method, call in calls
            if call.guarded and path.startswith("/v1/") and method != "HEAD"
        ]
        assert len(guarded) > 30
        wrong = []
        for path, method in guarded:
            headers = api.headers() | {"Idempotency-Key": "once"}
            content = b"{}" if method == "POST" else None
            url = re.sub(r"\{\w+\}", "alice", path) + "?nonsense=true"
            said = api.request(method, url, content=content, headers=headers)
            if said.status_code != 422 or b'"field":"nonsense"' not in said.content:
                wrong.append((method, path, said.status_code, said.content[:200]))
        assert wrong == []
