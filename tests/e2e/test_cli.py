"""The command line, with and without a server, for people and for programs."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click import Context
from click.testing import CliRunner

import support_service
from spotledger.cli.main import program
from spotledger.client import SignedRequestAPI
from support_service import Service

StartService = Callable[..., Service]


def spotledger(data: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command on the data folder *data*, within this process: starting Python takes longer than the command."""
    result = CliRunner().invoke(
        program,
        arguments,
        prog_name="spotledger",
        env={"SPOTLEDGER_DATA": str(data), **(env or {})},
        catch_exceptions=False,
    )
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def told(data: Path, *arguments: str) -> Any:
    """Run a command that must succeed, and return its JSON document."""
    done = spotledger(data, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


SESSION = [
    ("coin", "add", "usdt", "--scale", "8"),
    ("coin", "add", "shib", "--scale", "18"),
    ("coin", "add", "usdt", "--scale", "8"),
    ("coin", "list"),
    ("customer", "add", "alice"),
    ("customer", "add", "bob"),
    ("customer", "list"),
    ("deposit", "alice", "usdt", "100.50", "--key", "d1", "--reference", "tx 1"),
    ("deposit", "alice", "usdt", "100.50", "--key", "d1", "--reference", "tx 1"),
    ("deposit", "alice", "shib", "589000000000000.123456789012345678", "--key", "d2", "--account", "wallet"),
    ("freeze", "alice", "usdt", "30", "--reference", "order-7", "--key", "f1"),
    ("unfreeze", "7", "10", "--key", "u1"),
    ("withdraw", "--hold", "7", "5", "--key", "w1"),
    ("withdraw", "alice", "usdt", "5", "--key", "w2", "--account", "spot"),
    ("transfer", "alice", "bob", "usdt", "1", "--key", "t1"),
    ("transfer", "alice", "alice", "shib", "0.000000000000000001", "--key", "t2", "--from-account", "wallet"),
    ("holds", "alice"),
    ("holds", "alice", "--state", "closed"),
    ("unfreeze", "7", "--key", "u2"),
    ("balances", "alice"),
    ("balances", "alice", "--account", "wallet", "--all"),
    ("balances", "@external"),
    # refusals
    ("balances", "nobody"),
    ("deposit", "alice", "usdt", "1e5", "--key", "x1"),
    ("deposit", "alice", "doge", "1", "--key", "x2"),
    ("withdraw", "alice", "usdt", "1000", "--key", "x3"),
    ("deposit", "alice", "usdt", "101", "--key", "d1"),
    ("unfreeze", "999", "--key", "x4"),
    ("unfreeze", "x/../y", "--key", "x5"),
    ("key", "revoke", "nobody"),
    ("coin", "add", "usdt", "--scale", "9"),
    ("coin", "add", "USDT", "--scale", "8"),
    ("customer", "add", ".."),
]


def normal(text: str) -> str:
    """Take out of an output what differs from run to run: times, ages, request ids, and who asked."""
    lines = []
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            lines.append(re.sub(r"\b[0-9]+s\s*\Z", "AGE", line))
            continue
        for part in (found, found.get("entry", {}), *found.get("holds", [])):
            for name in ("booked_ms", "request_id", "opened_ms", "age_ms", "actor", "actor_label"):
                part.pop(name, None)
        lines.append(json.dumps(found))
    return "\n".join(lines)


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["table", "json"])
def test_cli_says_the_same_with_and_without_a_server(
    service: StartService, tmp_path: Path, form: tuple[str, ...]
) -> None:
    """A whole session, refusals too, gives the same output and exit codes whether a server owns the folder or none."""
    running = service()
    for command in SESSION:
        alone = spotledger(tmp_path / "alone", *command, *form)
        served = spotledger(running.folder, *command, *form)
        assert normal(alone.stdout) == normal(served.stdout), command
        assert normal(alone.stderr) == normal(served.stderr), command
        assert alone.returncode == served.returncode, command
        refused = SESSION.index(command) >= SESSION.index(("balances", "nobody"))
        assert alone.returncode == int(refused), (command, alone.stderr)
        assert "Traceback" not in alone.stderr
        if refused:
            assert alone.stdout == ""
            assert alone.stderr.count("\n") == 1


def test_cli_alone_and_then_served_is_one_ledger(service: StartService, tmp_path: Path) -> None:
    """What was written without a server is there for one, and the other way round."""
    data = tmp_path / "data"
    told(data, "coin", "add", "usdt", "--scale", "8")
    told(data, "customer", "add", "alice")
    told(data, "deposit", "alice", "usdt", "7", "--key", "k1")
    running = service(folder=data)
    assert told(data, "deposit", "alice", "usdt", "7", "--key", "k1")["replayed"] is True
    told(data, "deposit", "alice", "usdt", "8", "--key", "k2")
    running.stop()
    assert told(data, "balances", "alice")["balances"]["usdt"]["available"] == "15.00"


def test_cli_many_commands_at_once_without_a_server_all_succeed(tmp_path: Path) -> None:
    """Commands that open the ledger at the same moment wait for one another."""
    told(tmp_path, "coin", "add", "usdt", "--scale", "8")
    told(tmp_path, "customer", "add", "alice")
    command = [*support_service.PROGRAM, "deposit", "alice", "usdt", "1", "--data", str(tmp_path)]
    started = [
        subprocess.Popen(
            [*command, "--key", f"k{number}"], env=support_service.environment(), stdout=subprocess.DEVNULL
        )
        for number in range(6)
    ]
    assert [process.wait(60) for process in started] == [0] * 6
    assert told(tmp_path, "balances", "alice")["balances"]["usdt"]["available"] == "6.00"


def test_cli_with_url_and_token_file_needs_no_data_folder(service: StartService, tmp_path: Path) -> None:
    """Another machine calls the server by its address, with a token of its own and its scopes."""
    running = service()
    running.list_coins(btc=8)
    made = told(running.folder, "token", "create", "--scope", "ledger:read", "--label", "reader")
    (tmp_path / "token").write_text(made["token"])
    (tmp_path / "token").chmod(0o600)
    there = ("--operator-url", running.operator_url, "--token-file", str(tmp_path / "token"))
    listed = support_service.run("coin", "list", "--json", *there)
    assert json.loads(listed.stdout)["coins"] == [{"coin": "btc", "scale": 8}]
    refused = support_service.run("customer", "add", "alice", "--json", *there)
    assert refused.returncode == 1
    assert json.loads(refused.stderr)["code"] == "scope_missing"


def test_cli_with_url_but_no_token_file_says_what_is_missing() -> None:
    """A server is not called without a token."""
    done = support_service.run("coin", "list", "--operator-url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "--token-file" in done.stderr


def test_cli_of_a_server_that_is_not_there_says_so(tmp_path: Path) -> None:
    """No connection is one clear line."""
    (tmp_path / "token").write_text("ab" * 32)
    (tmp_path / "token").chmod(0o600)
    done = support_service.run(
        "coin", "list", "--operator-url", "http://127.0.0.1:9", "--token-file", tmp_path / "token"
    )
    assert done.returncode == 1
    assert "could not connect" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "ab" * 32 not in done.stderr


def test_cli_read_of_a_folder_without_a_ledger_makes_none(tmp_path: Path) -> None:
    """A mistyped folder is named, and not turned into an empty ledger."""
    done = spotledger(tmp_path / "typo", "balances", "alice")
    assert done.returncode == 1
    assert "There is no ledger in" in done.stderr
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("deposit", "alice", "usdt", "1"),
        ("withdraw", "alice", "usdt", "--key", "k"),
        ("withdraw", "alice", "usdt", "1", "--hold", "3", "--key", "k"),
        ("coin", "add", "btc"),
        ("key", "create", "--customer", "alice"),
        ("key", "create", "--customer", "alice", "--permission", "all"),
        ("freeze", "alice", "usdt", "1", "--key", "k", "--expires", "soon"),
        ("transfer", "alice", "bob", "usdt", "1", "--key", "k", "--from-account", "margin"),
        ("nothing",),
        ("get-balance", "--accesskey", "a", "--secret", "s"),
        ("get-balance", "--accesskey", "a", "--secretkey", "s"),
    ],
    ids=" ".join,
)
def test_cli_wrong_usage_exits_with_2(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Wrong usage is told apart from a refusal by the exit code, and never a traceback."""
    told(tmp_path, "coin", "add", "usdt", "--scale", "8")
    done = spotledger(tmp_path, *command)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: spotledger")
    assert "Traceback" not in done.stderr


def test_cli_key_from_creation_to_revocation(service: StartService, tmp_path: Path) -> None:
    """A key made on the command line opens its customer's balances, and stops within a second of being revoked."""
    running = service(asset_limit_per_second=0)
    data = running.folder
    running.list_coins(usdt=8)
    running.trader("alice", {"usdt": ("3867.43650012", "3062.17437341")})
    made = told(data, "key", "create", "--customer", "alice", "--permission", "read", "--expires", "90d")
    assert {"accesskey", "secretkey", "customer", "permissions"} <= made.keys()
    (tmp_path / "secret").write_text(made["secretkey"] + "\n")
    ask = ("get-balance", "--accesskey", made["accesskey"], "--url", running.public_url)
    answer = told(data, *ask, "--secret-file", str(tmp_path / "secret"))
    usdt = {"available": "3867.43650012", "freeze": "3062.17437341"}
    assert answer == {"code": 200, "data": {"usdt": usdt}, "info": "success"}
    shown = spotledger(data, *ask, env={"SPOTLEDGER_SECRETKEY": made["secretkey"]})
    assert shown.stdout.split() == ["coin", "available", "freeze", "total", "usdt", *usdt.values(), "6929.61087353"]
    wallet = told(data, *ask, "--secret-file", str(tmp_path / "secret"), "--account", "wallet")
    assert wallet["data"]["usdt"]["available"] == "0.00"
    keys = told(data, "key", "list", "--customer", "alice")["keys"]
    assert {key["accesskey"]: key["last_used_ms"] is not None for key in keys}[made["accesskey"]]
    told(data, "key", "revoke", made["accesskey"])
    refused = spotledger(data, *ask, "--secret-file", str(tmp_path / "secret"), "--json")
    assert refused.returncode == 1
    assert json.loads(refused.stderr)["code"] == "access_key_refused"
    assert "revoked" in refused.stderr


def test_cli_key_revoked_over_http_is_refused_by_the_next_request(service: StartService, tmp_path: Path) -> None:
    """The public listener refuses a revoked key at once, also one that it holds ready."""
    running = service(asset_limit_per_second=0)
    running.list_coins(usdt=8)
    trader = running.trader("alice")

    with SignedRequestAPI(trader.accesskey, trader.secretkey, running.public_url) as api:
        assert api.get_balance()[1]["code"] == 200  # type: ignore[index]
        told(running.folder, "key", "revoke", trader.accesskey)
        assert api.get_balance()[1]["code"] == 307  # type: ignore[index]


def test_cli_key_rotate_and_expiry_are_shown(tmp_path: Path) -> None:
    """Rotating shows the new secret once; the same key again shows none."""
    told(tmp_path, "customer", "add", "alice")
    first = told(tmp_path, "key", "create", "--customer", "alice", "--permission", "read", "--permission", "trade")
    assert first["permissions"] == ["read", "trade"]
    second = told(tmp_path, "key", "rotate", first["accesskey"], "--key", "r1")
    assert second["secretkey"]
    assert told(tmp_path, "key", "rotate", first["accesskey"], "--key", "r1")["secretkey"] is None
    shown = spotledger(tmp_path, "key", "list").stdout
    assert "revoked" in shown
    assert "in use" in shown
    assert second["secretkey"] not in shown


@pytest.mark.parametrize("secret", [None, ""])
def test_cli_get_balance_without_its_secret_says_how_to_give_it(tmp_path: Path, secret: str | None) -> None:
    """The secret comes from a file or a variable, never from the command line."""
    env = {} if secret is None else {"SPOTLEDGER_SECRETKEY": secret}
    done = spotledger(tmp_path, "get-balance", "--accesskey", "a", env=env)
    assert done.returncode == 1
    assert "--secret-file" in done.stderr


def test_cli_get_balance_with_a_wrong_secret_is_refused_without_a_word_of_it(
    service: StartService, tmp_path: Path
) -> None:
    """The refusal of the public listener is one clear line."""
    running = service()
    trader = running.trader("alice")
    ask = ("get-balance", "--accesskey", trader.accesskey, "--url", running.public_url)
    done = spotledger(tmp_path, *ask, env={"SPOTLEDGER_SECRETKEY": "f0" * 32})
    assert done.returncode == 1
    assert "[signature_refused]" in done.stderr
    assert "f0" * 32 not in done.stderr
    assert trader.accesskey not in done.stderr


def test_cli_settings_say_what_is_in_force_and_from_where(tmp_path: Path) -> None:
    """The settings are shown with their sources."""
    (tmp_path / "s.toml").write_text("lock_seconds = 5\n")
    done = spotledger(
        tmp_path, "settings", "--json", "--config", str(tmp_path / "s.toml"), "--replay", "off",
        env={"SPOTLEDGER_SUCCESS_INFO": "Success"},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["lock_seconds"] == {"value": 5, "source": str(tmp_path / "s.toml")}
    assert found["replay"] == {"value": "off", "source": "--replay"}
    assert found["success_info"] == {"value": "Success", "source": "SPOTLEDGER_SUCCESS_INFO"}
    assert found["nonce_past_ms"] == {"value": 30000, "source": "default"}
    table = spotledger(tmp_path, "settings").stdout
    assert "nonce_past_ms" in table
    assert "SPOTLEDGER_DATA" in table


def test_cli_help_of_every_command_says_what_it_does() -> None:
    """Each command of the agreed outline is there and has its help."""

    commands = {"serve", "demo", "coin", "customer", "key", "token", "deposit", "freeze", "unfreeze", "withdraw"}
    commands |= {"transfer", "balances", "holds", "get-balance", "settings"}
    assert commands <= program.commands.keys()
    for name, command in program.commands.items():
        assert len(command.get_help(Context(command, info_name=name))) > 100
        assert command.help


def test_cli_output_never_holds_the_operator_token(service: StartService) -> None:
    """Neither a command nor the service's log shows the token."""
    running = service(log_level="debug")
    outputs = [spotledger(running.folder, *command) for command in SESSION[:10]]
    httpx2.get(f"{running.operator_url}/v1/coins", headers={"Authorization": f"Bearer {running.token}"})
    running.stop()
    texts = [done.stdout + done.stderr for done in outputs] + [running.stderr.read_text()]
    assert not any((running.folder / "operator.token").read_text().strip() in text for text in texts)
