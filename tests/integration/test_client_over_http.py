"""The v1 clients over real HTTP, against a server that answers as documented, or misbehaves."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

import support_client as support
from spotledger import errors
from spotledger.client import AsyncSpotClient, Balances, SignedRequestAPI, SpotClient
from spotledger.client.transport import BODY_LIMIT_BYTES
from support_client import ACCESSKEY, OTHER_ACCESSKEY, OTHER_SECRETKEY, SECRETKEY, Behaviour, Reply

HTML = Reply("<html><body>Bad day</body></html>", 500, {"Content-Type": "text/html"})
SECRETS = (ACCESSKEY, SECRETKEY, "signature=")


@pytest.fixture
def server() -> Iterator[support.ScriptedServer]:
    """A server of this test alone."""
    with support.ScriptedServer() as started:
        yield started


@pytest.fixture
def api(server: support.ScriptedServer) -> Iterator[SignedRequestAPI]:
    """The documents' client, sending each call once, and not waiting long."""
    with SignedRequestAPI(ACCESSKEY, SECRETKEY, server.url, attempts=1, read_timeout_s=0.5) as made:
        yield made


@pytest.fixture
def spot(server: support.ScriptedServer) -> Iterator[SpotClient]:
    """The typed client, sending each call once, and not waiting long."""
    with SpotClient(ACCESSKEY, SECRETKEY, server.url, attempts=1, read_timeout_s=0.5) as made:
        yield made


def async_balances(server: support.ScriptedServer) -> Balances:
    async def run() -> Balances:
        async with AsyncSpotClient(ACCESSKEY, SECRETKEY, server.url, attempts=1, read_timeout_s=0.5) as client:
            return await client.balances()

    return asyncio.run(run())


# --- answers as documented ------------------------------------------------------------------------


def test_get_balance_gives_status_data_and_response(api: SignedRequestAPI) -> None:
    """A good answer is (True, the decoded body, the HTTP response)."""
    status, data, response = api.get_balance()
    assert status is True
    assert data == {"code": 200, "data": support.DATA, "info": "success"}
    assert response is not None
    assert response.status_code == 200
    assert response.json() == data
    assert response.headers["x-ledger-seq"] == "42"


def test_every_call_of_the_documents_class_is_answered(api: SignedRequestAPI) -> None:
    """The other calls answer in the same form."""
    for status, data, response in (
        api.get_funds(1),
        api.get_accounts(),
        api.get_server_time(),
        api.get("getFunds", {"account": 3}),
    ):
        assert status is True
        assert data is not None
        assert data["code"] == 200
        assert response is not None


def test_spot_client_reads_every_call(spot: SpotClient, server: support.ScriptedServer) -> None:
    """The typed client gives exact balances, names of accounts and the server's time."""
    assert spot.balances()["usdt"].total == Decimal("6929.61087353")
    assert spot.funds(2)["forth"].available == Decimal("12.50")
    assert server.calls("getFunds")[0].params["account"] == "2"
    assert spot.accounts()[2] == "trading account"
    assert abs(spot.server_time() - server.now_ms()) < 60_000


def test_async_client_reads_every_call(server: support.ScriptedServer) -> None:
    """The async twin gives the same."""

    async def run() -> tuple[Balances, Balances, dict[int, str], int]:
        async with AsyncSpotClient(ACCESSKEY, SECRETKEY, server.url) as client:
            return (
                *await asyncio.gather(client.balances(), client.funds(1)),
                await client.accounts(),
                await client.server_time(),
            )

    balances, funds, accounts, server_ms = asyncio.run(run())
    assert balances == funds
    assert balances["usdt"].freeze == Decimal("3062.17437341")
    assert accounts[3] == "fiat account"
    assert server_ms > 10**12


def test_base_url_from_the_environment_is_used(server: support.ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a base_url the environment names the service; with one, it does not matter."""
    monkeypatch.setenv("SPOTLEDGER_URL", server.url + "/")
    with SignedRequestAPI(ACCESSKEY, SECRETKEY) as api:
        assert api.get_balance()[0] is True
    monkeypatch.setenv("SPOTLEDGER_URL", "http://127.0.0.1:1")
    with SignedRequestAPI(ACCESSKEY, SECRETKEY, server.url) as api:
        assert api.get_balance()[0] is True


def test_base_url_without_any_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """With neither, the service is looked for on this machine."""
    monkeypatch.delenv("SPOTLEDGER_URL", raising=False)
    with SpotClient(ACCESSKEY, SECRETKEY) as client:
        assert repr(client) == "SpotClient('1111…', base_url='http://127.0.0.1:8080')"


@pytest.mark.parametrize(
    "url",
    ["ftp://h", "h:80", "//h", "http://", "http://u:hunter2@h", "http://h?x=1", "http://h#x", "http://h/?", "http://h:x",
     "http://h h", "http://h\n", "javascript:alert(1)", "http://@h"],
)  # fmt: skip
def test_base_url_of_another_form_raises_value_error(url: str) -> None:
    """An address that is not plain http or https is misuse, and a password in it is not repeated."""
    with pytest.raises(ValueError, match="base_url must look like") as raised:
        SignedRequestAPI(ACCESSKEY, SECRETKEY, url)
    assert "hunter2" not in "".join(traceback.format_exception(raised.value, chain=True))


# --- the faults of the original -------------------------------------------------------------------


def test_two_clients_in_one_process_sign_as_themselves(server: support.ScriptedServer) -> None:
    """A second client does not make the first sign with its credentials, in whatever order they are used."""
    first = SignedRequestAPI(ACCESSKEY, SECRETKEY, server.url)
    second = SignedRequestAPI(OTHER_ACCESSKEY, OTHER_SECRETKEY, server.url)
    with first, second:
        for api in (first, second, second, first):
            data = api.get_balance()[1]
            assert data is not None
            assert data["code"] == 200
    keys = [seen.params["accesskey"] for seen in server.calls("getBalance")]
    assert keys == [ACCESSKEY, OTHER_ACCESSKEY, OTHER_ACCESSKEY, ACCESSKEY]


def test_dict_passed_twice_is_unchanged_and_signed_with_a_new_nonce(
    api: SignedRequestAPI, server: support.ScriptedServer
) -> None:
    """The caller's dict is as he left it, and his second call carries no nonce of the first."""
    params: dict[str, str | int] = {"account": 2}
    for _ in range(2):
        data = api.get("getFunds", params)[1]
        assert data is not None
        assert data["code"] == 200
    assert params == {"account": 2}
    first, second = server.calls("getFunds")
    assert first.params["nonce"] != second.params["nonce"]


def test_retry_is_signed_afresh(server: support.ScriptedServer) -> None:
    """After a lost answer the next attempt has a nonce and a signature of its own."""
    server.script += [support.close_at_once, support.close_at_once]
    with SignedRequestAPI(ACCESSKEY, SECRETKEY, server.url) as api:
        status, data, _ = api.get_balance()
    assert status is True
    assert data is not None
    assert data["code"] == 200
    assert len({seen.params["nonce"] for seen in server.seen}) == 3
    assert len({seen.params["signature"] for seen in server.seen}) == 3


def test_success_is_not_followed_by_a_sleep(spot: SpotClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that succeeds at once never sleeps."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    spot.balances()
    assert slept == []


def test_nothing_is_printed(
    api: SignedRequestAPI, server: support.ScriptedServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither success nor failure writes to the terminal: the original printed parameters and signature."""
    api.get_balance()
    server.script += [HTML, support.close_at_once]
    api.get_balance()
    api.get_balance()
    assert capfd.readouterr() == ("", "")


# --- bad days -------------------------------------------------------------------------------------

BAD_ANSWERS: dict[str, tuple[Behaviour, type[Exception]]] = {
    "html 500": (HTML, errors.ProtocolError),
    "html 200": (Reply("<html>", 200), errors.ProtocolError),
    "gateway": (Reply("<html>", 502), errors.Unavailable),
    "busy gateway": (Reply("", 503, {"Retry-After": "9"}), errors.Unavailable),
    "throttled": (Reply("", 429), errors.LimitExceeded),
    "empty": (Reply(b""), errors.ProtocolError),
    "list": (Reply([]), errors.ProtocolError),
    "cut json": (Reply('{"code":200,'), errors.ProtocolError),
    "latin-1": (Reply('{"code":200,"data":{"é":1}}'.encode("latin-1")), errors.ProtocolError),
    "code is text": (Reply({"code": "200", "data": {}}), errors.ProtocolError),
    "code is true": (Reply({"code": True, "data": {}}), errors.ProtocolError),
    "no code": (Reply({"data": {}}), errors.ProtocolError),
    "no data": (Reply({"code": 200}), errors.ProtocolError),
    "bare refusal": (support.refusal(308, ""), errors.SignatureRefused),
    "redirect": (Reply("", 302, {"Location": "/trade/api/v1/getBalance"}), errors.ProtocolError),
    "redirect to nowhere": (Reply("", 308, {"Location": "http://[bad"}), errors.ProtocolError),
    "redirect with code": (support.refusal(307, "unknown", 307, Location="/"), errors.AccessKeyRefused),
    "closed": (support.close_at_once, errors.TransportError),
    "half": (support.answer_half, errors.TransportError),
    "garbage": (support.answer_garbage, errors.TransportError),
    "silence": (support.never_answer, errors.TransportError),
    "too long": (Reply(b" " * (BODY_LIMIT_BYTES + 1)), errors.ProtocolError),
    "unasked gzip": (Reply(zlib.compress(b"{}"), 200, {"Content-Encoding": "gzip"}), errors.ProtocolError),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_bad_answer_raises_its_error_with_no_secret_near(
    kind: str, name: str, server: support.ScriptedServer, spot: SpotClient
) -> None:
    """Each kind of bad answer is one error of the tree, sent once, with nothing secret in it or chained to it."""
    behaviour, expected = BAD_ANSWERS[name]
    server.script.append(behaviour)
    with pytest.raises(errors.SpotledgerError) as raised:
        spot.balances() if kind == "blocking" else async_balances(server)
    assert type(raised.value) is expected
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    shown = "".join(traceback.format_exception(raised.value)) + repr(raised.value)
    assert not [secret for secret in SECRETS if secret in shown]
    assert len(server.seen) == 1


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_bad_answer_to_the_documents_class_never_raises(
    name: str, server: support.ScriptedServer, api: SignedRequestAPI
) -> None:
    """(False, None, response) for what is no JSON object, (False, None, None) for no answer, else the decoded body."""
    behaviour, expected = BAD_ANSWERS[name]
    server.script.append(behaviour)
    status, data, response = api.get_balance()
    if expected is errors.TransportError:
        assert (status, data, response) == (False, None, None)
        return
    assert response is not None
    assert (data is not None) is status
    assert not [secret for secret in SECRETS if secret in f"{response!r} {response.url} {response.request!r}"]


def test_server_that_nobody_runs_gives_false_none_none() -> None:
    """Where nothing listens, no exception comes out of the documents' class."""
    with support.ScriptedServer() as stopped:
        url = stopped.url
    with SignedRequestAPI(ACCESSKEY, SECRETKEY, url, attempts=2) as api:
        assert api.get_balance() == (False, None, None)


def test_redirect_is_not_followed(server: support.ScriptedServer, spot: SpotClient) -> None:
    """A redirect does not carry the signed request to another place."""
    server.script.append(Reply("", 307, {"Location": server.url + "/elsewhere"}))
    with pytest.raises(errors.ProtocolError, match="redirect"):
        spot.balances()
    assert [seen.path for seen in server.seen] == ["/trade/api/v1/getBalance"]


@pytest.mark.parametrize("status", [301, 307, 400, 200])
def test_answer_that_repeats_the_request_is_shown_without_its_secrets(
    status: int, server: support.ScriptedServer, api: SignedRequestAPI
) -> None:
    """Neither a redirect nor any other header, nor a body, hands on the signed URL; a redirect has no target at all."""

    def repeat(handler: support.Handler) -> None:
        body = {"code": 400, "info": f"cannot read {handler.path} signed with {SECRETKEY}"}
        headers = {"Location": "/elsewhere?x", "X-Request": handler.path, "Link": f"<{handler.path}>; rel=next"}
        handler.reply(Reply(body, status, headers | {"Refresh": f"0; url={handler.path}", "X-Kept": "yes"}))

    server.script.extend([repeat, repeat])  # twice, because the text names a nonce
    _, data, response = api.get_balance()
    assert response is not None
    shown = f"{response.headers} {response.text} {data}"
    signatures = [seen.params["signature"] for seen in server.calls("getBalance")]
    assert not [secret for secret in (*signatures, SECRETKEY) if secret in shown]
    assert ACCESSKEY not in str(response.headers)
    assert "location" not in response.headers
    assert response.next_request is None
    assert response.headers["x-kept"] == "yes"


@pytest.mark.parametrize("ahead_ms", [-3_600_000, -40_000, 40_000, 86_400_000])
def test_clock_that_is_wrong_is_corrected_once(ahead_ms: int, server: support.ScriptedServer) -> None:
    """A client whose clock is off by seconds or a day gets its answer, and keeps the correction."""
    server.ahead_ms = ahead_ms
    with SpotClient(ACCESSKEY, SECRETKEY, server.url) as client:
        client.balances()
        client.balances()
    names = [seen.path.rpartition("/")[2] for seen in server.seen]
    assert names == ["getBalance", "getServerTime", "getBalance", "getBalance"]


def test_wrong_credentials_raise_their_own_errors(server: support.ScriptedServer) -> None:
    """An unknown key and a wrong secret are told apart."""
    with (
        SpotClient("no-such-key", SECRETKEY, server.url) as client,
        pytest.raises(errors.AccessKeyRefused),
    ):
        client.balances()
    with SpotClient(ACCESSKEY, "wrong", server.url) as client, pytest.raises(errors.SignatureRefused):
        client.balances()
    assert len(server.seen) == 2


def test_many_threads_share_one_client(server: support.ScriptedServer) -> None:
    """Eight threads on one client all get right answers, with no nonce used twice."""
    failures: list[BaseException] = []

    with SpotClient(ACCESSKEY, SECRETKEY, server.url) as client:

        def read_often() -> None:
            try:
                for _ in range(10):
                    assert client.balances()["usdt"].available == Decimal("3867.43650012")
            except (AssertionError, errors.SpotledgerError) as error:
                failures.append(error)

        threads = [threading.Thread(target=read_often) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len({seen.params["nonce"] for seen in server.seen}) == 80


def test_forgotten_client_leaves_no_connection_open(server: support.ScriptedServer) -> None:
    """A client that is never closed, as in the documents, closes its connections when it is forgotten."""
    api = SignedRequestAPI(ACCESSKEY, SECRETKEY, server.url)
    api.get_balance()
    http = api._http
    del api
    gc.collect()
    assert http.is_closed


# --- nothing secret is shown ----------------------------------------------------------------------


def log_of_everything(action: Callable[[], object]) -> str:
    """Run *action* with the root logger at DEBUG and every logger open; give all that was logged."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s %(args)s"))
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        action()
    finally:
        root.setLevel(before)
        root.removeHandler(handler)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["documents", "blocking", "async"])
@pytest.mark.parametrize("answer", ["success", "echoing redirect", "closed", "half"])
def test_log_at_debug_holds_no_query(kind: str, answer: str, server: support.ScriptedServer) -> None:
    """With every logger at DEBUG, no line holds a query, a signature, a secret or a whole access key."""

    def redirect_to_the_same(handler: support.Handler) -> None:
        handler.reply(Reply("", 302, {"Location": "/elsewhere?" + handler.path.partition("?")[2]}))

    behaviours: dict[str, Behaviour] = {
        "echoing redirect": redirect_to_the_same,
        "closed": support.close_at_once,
        "half": support.answer_half,
    }
    if answer in behaviours:
        server.script.append(behaviours[answer])

    def action() -> None:
        try:
            if kind == "async":
                async_balances(server)
            elif kind == "documents":
                SignedRequestAPI(ACCESSKEY, SECRETKEY, server.url, attempts=1).get_balance()
            else:
                with SpotClient(ACCESSKEY, SECRETKEY, server.url, attempts=1) as client:
                    client.balances()
        except errors.SpotledgerError:
            pass

    logged = log_of_everything(action)
    assert len(server.seen) == 1
    signature = server.seen[0].params["signature"]
    assert not [secret for secret in (*SECRETS, signature, "nonce=") if secret in logged]


def test_log_of_other_code_using_the_same_library_is_kept(server: support.ScriptedServer) -> None:
    """Only this client's requests are silent: the program's own requests are logged as before."""
    import httpx2

    def action() -> None:
        with SpotClient(ACCESSKEY, SECRETKEY, server.url) as client, httpx2.Client() as other:
            client.balances()
            other.get(server.url + "/trade/api/v1/getServerTime")

    logged = log_of_everything(action)
    assert "getServerTime" in logged
    assert "getBalance" not in logged


def everything_within(thing: object, seen: set[int]) -> Iterator[object]:
    """Walk the attributes of *thing* as far as this project's own objects go."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    yield thing
    if not type(thing).__module__.startswith("spotledger"):
        return
    attributes: dict[str, Any] = dict(getattr(thing, "__dict__", {}))
    for attribute in attributes.values():
        yield from everything_within(attribute, seen)


@pytest.mark.parametrize("kind", [SignedRequestAPI, SpotClient, AsyncSpotClient])
def test_repr_of_client_and_parts_shows_no_secret(kind: Callable[..., object]) -> None:
    """Neither a client nor anything it is made of shows a secret or a whole access key in its repr."""
    for part in everything_within(kind(ACCESSKEY, SECRETKEY, "http://h"), set()):
        assert SECRETKEY not in f"{part!r}{part}"
        assert ACCESSKEY not in f"{part!r}{part}"


def test_data_of_the_documents_class_is_the_callers_own(api: SignedRequestAPI) -> None:
    """What a caller does to one answer does not show in the next."""
    first = api.get_balance()[1]
    assert first is not None
    first["data"].clear()
    second = api.get_balance()[1]
    assert second is not None
    assert json.dumps(second["data"]) == json.dumps(support.DATA)
