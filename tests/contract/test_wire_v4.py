"""The v4 calls (wire-v1, section 7), and the ccxt package as it comes, sync and async, against a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ccxt
import ccxt.async_support
import pytest

from support_public import KEY, NONCE, PEER, SECRET, Listening, Service, document, header, service, sign

PATH = "/v4/balances"
VECTOR = "00467965fd19add565e28bf4f37b2ad8f6b88b879b4c76081600155e6fb1c7da"


@pytest.fixture
def public(tmp_path: Path) -> Iterator[Service]:
    """Run a listener without a limit for the account."""
    with service(tmp_path, asset_limit_per_second=0) as made:
        yield made


def headers(**changed: str | None) -> list[tuple[str, str]]:
    """Return the headers of the vector, with *changed* ones (None drops one)."""
    sent = {
        "algorithms": "HmacSHA256",
        "appkey": KEY,
        "recvwindow": "5000",
        "timestamp": str(NONCE),
        "signature": VECTOR,
        **changed,
    }
    return [(f"xt-validate-{name}", value) for name, value in sent.items() if value is not None]


def signed(query: str = "", path: str = PATH, secret: str = SECRET, **changed: str) -> list[tuple[str, str]]:
    """Return headers that are signed afresh over *changed* ones."""
    sent = dict(headers(**changed))
    names = ("algorithms", "appkey", "recvwindow", "timestamp")
    text = "&".join(f"xt-validate-{name}={sent[f'xt-validate-{name}']}" for name in names) + f"#GET#{path}"
    return headers(**changed, signature=sign(text + (f"#{query}" if query else ""), secret))


def mc(public: Service, sent: list[tuple[str, str]], query: str = "", **how: Any) -> str:
    """Send the request; check the shape of the answer and return its ``mc``."""
    answer = public.ask(query, PATH, headers=sent, **how)
    said = document(answer)
    assert answer.status == 200
    assert said.keys() == {"rc", "mc", "ma", "result"}
    assert (said["rc"] == 0) == (said["mc"] == "SUCCESS") == (said["result"] is not None)
    return str(said["mc"])


def test_vector_of_section_7_is_answered_in_v4_shape(public: Service) -> None:
    """The published vector holds, and every listed coin is in the answer as plain decimals."""
    assert document(public.ask(path=PATH, headers=headers())) == {
        "rc": 0,
        "mc": "SUCCESS",
        "ma": [],
        "result": {
            "assets": [
                {"currency": "btc", "frozenAmount": "0.00", "availableAmount": "0.00", "totalAmount": "0.00"},
                {
                    "currency": "usdt",
                    "frozenAmount": "3062.17437341",
                    "availableAmount": "3867.43650012",
                    "totalAmount": "6929.61087353",
                },
            ]
        },
    }


def test_success_has_the_headers_of_r19(tmp_path: Path) -> None:
    """The headers of rule R19 are on v4 answers too."""
    with service(tmp_path) as public:
        answer = public.ask(path=PATH, headers=headers())
    assert header(answer, "cache-control") == "no-store"
    assert header(answer, "x-ledger-seq") == "6"
    assert header(answer, "ratelimit") == '"assets";r=2;t=1'


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"appkey": None}, "AUTH_001"),
        ({"timestamp": None}, "AUTH_002"),
        ({"recvwindow": None}, "AUTH_003"),
        ({"recvwindow": "0"}, "AUTH_004"),
        ({"recvwindow": "60001"}, "AUTH_004"),
        ({"recvwindow": "٥000"}, "AUTH_004"),
        ({"algorithms": None}, "AUTH_005"),
        ({"algorithms": "HmacMD5"}, "AUTH_006"),
        ({"signature": None}, "AUTH_007"),
        ({"signature": "zz"}, "AUTH_103"),
        ({"signature": "0" * 64}, "AUTH_103"),
        ({"timestamp": "1562919832184"}, "AUTH_103"),
        ({"recvwindow": "5001"}, "AUTH_103"),
        ({"timestamp": "now"}, "AUTH_105"),
        ({"appkey": "22222222-2222-4333-8444-555555555555"}, "AUTH_101"),
    ],
)
def test_refused_headers_have_their_code(public: Service, changed: dict[str, Any], expected: str) -> None:
    """Each header that is missing or wrong is named by the code that stock clients know."""
    assert mc(public, headers(**changed)) == expected


@pytest.mark.parametrize("name", [name for name, _ in headers()])
def test_header_of_the_signature_that_is_sent_twice_is_refused(public: Service, name: str) -> None:
    """R6: only one of two headers of a name would be in the text that is signed, so neither is taken."""
    sent = signed()
    assert mc(public, sent) == "SUCCESS"
    assert mc(public, [*sent, (name, dict(sent)[name])]).startswith("AUTH_00")


def test_keys_that_may_not_have_their_code(public: Service) -> None:
    """Revoked, expired, wrong address, wrong permission: 102, 102, 104, 106; and outdated 105."""
    public.add_key("revoked", revoked_ms=1)
    public.add_key("expired", expires_ms=NONCE)
    public.add_key("address", addresses=("203.0.113.1",))
    public.add_key("trading", permissions=("trade",))
    codes = [mc(public, signed(appkey=key)) for key in ("revoked", "expired", "address", "trading")]
    assert codes == ["AUTH_102", "AUTH_102", "AUTH_104", "AUTH_106"]
    assert mc(public, signed(timestamp=str(NONCE - 5_001))) == "AUTH_105"
    assert mc(public, signed(timestamp=str(NONCE + 5_001))) == "AUTH_105"


def test_receive_window_narrows_the_window_and_never_widens_it(public: Service) -> None:
    """A request may ask for a shorter life than the setting's, not for a longer one."""
    assert mc(public, signed(timestamp=str(NONCE - 1_000), recvwindow="1000")) == "SUCCESS"
    assert mc(public, signed(timestamp=str(NONCE - 1_001), recvwindow="1000")) == "AUTH_105"
    assert mc(public, signed(timestamp=str(NONCE - 30_000), recvwindow="60000")) == "SUCCESS"
    assert mc(public, signed(timestamp=str(NONCE - 30_001), recvwindow="60000")) == "AUTH_105"


def test_query_is_signed_sorted_and_unescaped(public: Service) -> None:
    """A query is part of the text to sign; an added, changed or dropped parameter breaks the signature."""
    sent = signed("a=1&currency=b c")
    assert mc(public, sent, "currency=b%20c&a=1") == "SUCCESS"
    for query in ("currency=b%20c", "currency=b%20c&a=2", "currency=b%20c&a=1&z=1", ""):
        assert mc(public, sent, query) == "AUTH_103"
    assert mc(public, headers(), "a=1&a=2") == "COMMON_003"


def test_signature_of_another_call_is_refused(public: Service) -> None:
    """Method and path are signed: what was signed for another call is worth nothing here."""
    assert mc(public, signed(path="/v4/order")) == "AUTH_103"
    assert mc(public, headers(), method="POST") == "COMMON_003"


def test_replay_from_another_address_is_refused(public: Service) -> None:
    """The memory of signatures is the one of the v1 wire."""
    assert mc(public, headers()) == "SUCCESS"
    assert mc(public, headers(), peer=PEER) == "SUCCESS"
    assert mc(public, headers(), peer="198.51.100.1:1") == "AUTH_105"


def test_limit_is_shared_with_the_v1_calls(tmp_path: Path) -> None:
    """Three asset calls a second, by whichever API."""
    with service(tmp_path) as public:
        text = f"accesskey={KEY}&nonce={NONCE}"
        for _ in range(2):
            assert public.code(f"{text}&signature={sign(text)}") == 200
        assert mc(public, headers()) == "SUCCESS"
        assert mc(public, headers()) == "429"


def test_unknown_v4_path_has_the_v4_shape(public: Service) -> None:
    """Whatever is asked below /v4/ and /future/ is refused with mc, so that no stock client takes it for success."""
    for path in ("/v4/order", "/v4/", "/future/user/v1/balance/list"):
        assert document(public.ask(path=path)) == {"rc": 1, "mc": "404", "ma": [], "result": None}


def ccxt_urls(url: str) -> dict[str, Any]:
    """Return the option that points the stock class here."""
    return {"api": dict.fromkeys(("spot", "linear", "inverse", "user"), url)}


def ccxt_balance(listening: Listening, secret: str = SECRET, accesskey: str = KEY) -> dict[str, Any]:
    """Fetch a balance with the package's sync class."""
    client = ccxt.xt({"apiKey": accesskey, "secret": secret, "urls": ccxt_urls(listening.url)})
    return dict(client.fetch_balance())


async def ccxt_balance_async(listening: Listening) -> dict[str, Any]:
    """Fetch a balance with the package's async class."""
    client = ccxt.async_support.xt({"apiKey": KEY, "secret": SECRET, "urls": ccxt_urls(listening.url)})
    try:
        return dict(await client.fetch_balance())
    finally:
        await client.close()


@pytest.fixture
def listening(public: Service) -> Iterator[Listening]:
    """Run a real server whose clock goes."""
    public.app._clock_ms = lambda: time.time_ns() // 1_000_000
    with Listening(public) as server:
        yield server


def test_ccxt_as_it_comes_fetches_a_balance(listening: Listening) -> None:
    """The stock class, given only the address, sees free, used and total of every coin."""
    balance = ccxt_balance(listening)
    assert balance["USDT"] == {"free": 3867.43650012, "used": 3062.17437341, "total": 6929.61087353}
    assert balance["BTC"] == {"free": 0.0, "used": 0.0, "total": 0.0}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_ccxt_async_as_it_comes_fetches_a_balance(listening: Listening) -> None:
    """So does its async twin."""
    balance = asyncio.run(ccxt_balance_async(listening))
    assert balance["USDT"] == {"free": 3867.43650012, "used": 3062.17437341, "total": 6929.61087353}


def test_ccxt_reads_coins_and_time(listening: Listening) -> None:
    """The unsigned calls that the class makes first are understood by it."""
    client = ccxt.xt({"urls": ccxt_urls(listening.url)})
    assert client.load_markets() == {}
    assert client.currencies["USDT"]["precision"] == 1e-08
    assert abs(client.fetch_time() - time.time() * 1000) < 60_000


def test_ccxt_raises_its_own_errors(listening: Listening, public: Service) -> None:
    """A wrong secret, an unknown key and a missing permission are errors to it, not an empty balance."""
    public.add_key("trading", permissions=("trade",))
    with pytest.raises(ccxt.AuthenticationError, match="AUTH_103"):
        ccxt_balance(listening, secret="0" * 64)
    with pytest.raises(ccxt.AuthenticationError, match="AUTH_101"):
        ccxt_balance(listening, accesskey="unknown")
    with pytest.raises(ccxt.PermissionDenied, match="AUTH_106"):
        ccxt_balance(listening, accesskey="trading")
