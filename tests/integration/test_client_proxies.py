"""Where the clients and the command line send credentials: to the service, or to a proxy that was named for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from spotledger.cli.main import program
from spotledger.client import AsyncOperatorLedger, AsyncSpotClient, OperatorLedger, SignedRequestAPI, SpotClient
from support_json_server import JsonServer

TOKEN = "ab" * 32
ACCESSKEY, SECRETKEY = "11111111-2222-4333-8444-555555555555", "0123456789abcdef0123456789abcdef01234567"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


def empty_success() -> dict[str, object]:
    """Return an answer with nothing in it."""
    return {"code": 200, "data": {}, "info": "success", "seq": 1, "epoch": 1, "coins": []}


@pytest.fixture
def service() -> Iterator[JsonServer]:
    with JsonServer(empty_success) as started:
        yield started
        started.shutdown()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[JsonServer]:
    """Start what the environment names as the proxy for everything."""
    with JsonServer(empty_success) as started:
        for name in VARIABLES:
            monkeypatch.setenv(name, started.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        yield started
        started.shutdown()


def _command(*arguments: str) -> None:
    found = CliRunner(env={"SPOTLEDGER_SECRETKEY": SECRETKEY}).invoke(program, [*arguments])
    assert found.exit_code == 0, found.output


def _operator(url: str, proxy: str | None, folder: Path) -> None:
    with OperatorLedger(url, TOKEN, proxy=proxy) as ledger:
        ledger.coins()


def _async_operator(url: str, proxy: str | None, folder: Path) -> None:
    async def ask() -> None:
        async with AsyncOperatorLedger(url, TOKEN, proxy=proxy) as ledger:
            await ledger.coins()

    asyncio.run(ask())


def _spot(url: str, proxy: str | None, folder: Path) -> None:
    with SpotClient(ACCESSKEY, SECRETKEY, url, proxy=proxy) as client:
        client.balances()


def _async_spot(url: str, proxy: str | None, folder: Path) -> None:
    async def ask() -> None:
        async with AsyncSpotClient(ACCESSKEY, SECRETKEY, url, proxy=proxy) as client:
            await client.balances()

    asyncio.run(ask())


def _documents_class(url: str, proxy: str | None, folder: Path) -> None:
    with SignedRequestAPI(ACCESSKEY, SECRETKEY, url, proxy=proxy) as api:
        assert api.get_balance()[0]


def _operator_command(url: str, proxy: str | None, folder: Path) -> None:
    file = folder / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    _command(
        *("coin", "list", "--operator-url", url, "--token-file", str(file)),
        *(() if proxy is None else ("--proxy", proxy)),
    )


def _trader_command(url: str, proxy: str | None, folder: Path) -> None:
    _command(*("get-balance", "--accesskey", ACCESSKEY, "--url", url), *(() if proxy is None else ("--proxy", proxy)))


WAYS = (_operator, _async_operator, _spot, _async_spot, _documents_class, _operator_command, _trader_command)


@pytest.mark.parametrize("way", WAYS)
def test_proxy_of_the_environment_gets_nothing(
    way: Callable[..., None], service: JsonServer, proxy: JsonServer, tmp_path: Path
) -> None:
    """A token or a signed URL goes to the address that was given, whatever the environment names."""
    way(service.url, None, tmp_path)
    assert (len(service.asked), proxy.asked) == (1, [])


@pytest.mark.parametrize("way", WAYS)
def test_proxy_that_was_named_is_used(
    way: Callable[..., None], service: JsonServer, proxy: JsonServer, tmp_path: Path
) -> None:
    """A proxy can be named with a parameter or an option."""
    way(service.url, proxy.url, tmp_path)
    assert (len(service.asked), len(proxy.asked)) == (0, 1)
    assert proxy.asked[0].startswith(service.url)


@pytest.mark.parametrize("proxy", ["", "h:1", "ftp://h:1", "http://", "http://h", "http://a:secret@h:x", "http://h :1"])
def test_proxy_of_another_form_raises_value_error_without_it(proxy: str) -> None:
    """The message says what would pass, and does not repeat what may hold a password."""
    with pytest.raises(ValueError, match=r"\Aproxy must look like http://host:port or") as raised:
        OperatorLedger("http://h", TOKEN, proxy=proxy)
    assert "secret" not in str(raised.value)
    assert raised.value.__context__ is None


def test_proxy_without_operator_url_is_refused(tmp_path: Path) -> None:
    """A proxy that would not be used is not taken silently."""
    found = CliRunner().invoke(program, ["coin", "list", "--data", str(tmp_path), "--proxy", "http://h:1"])
    assert found.exit_code == 1
    assert "--proxy needs --operator-url" in found.output
