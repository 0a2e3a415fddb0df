"""The operations of the client, and the methods for them: generated from those of the domain, and current."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from spotledger.client import AsyncOperatorLedger, OperatorLedger
from spotledger.client.operator import operations as client
from spotledger.domain import operations as domain
from spotledger.domain.fields import KEY, fields_of
from spotledger.domain.operations import OPERATIONS, Described
from spotledger.http.operator.bodies import decode
from spotledger.http.operator.operation_bodies import BODIES, example_of, path_of
from spotledger.ledger.ledger import Ledger
from support_scripts import load_script

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "generate_operations.py"
GENERATOR = load_script("generate_operations")
EACH = pytest.mark.parametrize("kind", OPERATIONS, ids=lambda kind: kind.kind)


def test_generated_modules_are_current() -> None:
    """The files in the repository are what the script generates; if not, run `make generate`."""
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_module_that_is_stale_fails_the_check_until_it_is_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that was edited by hand is refused with the command that mends it, and left as it is until then."""
    stale = tmp_path / "stale.py"
    stale.write_text("edited = True\n")
    monkeypatch.setattr(GENERATOR, "modules", lambda: {stale: "made = True\n"})
    assert GENERATOR.main(["--check"]) == 1
    assert "stale.py does not match" in capsys.readouterr().err
    assert stale.read_text() == "edited = True\n"
    assert GENERATOR.main([]) == 0
    assert GENERATOR.main(["--check"]) == 0
    assert "make generate" in stale.read_text()


def test_script_with_an_unknown_argument_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped option is refused with the usage."""
    assert GENERATOR.main(["--chekc"]) == 2
    assert "--check" in capsys.readouterr().err


def of_client(value: Any) -> Any:
    """Return what the client has for a *value* of the domain, with its parts."""
    if isinstance(value, list):
        return [of_client(part) for part in value]
    if not (dataclasses.is_dataclass(value) or isinstance(value, domain.HoldKey | domain.CoinAmount)):
        return value
    twin = getattr(client, type(value).__name__)
    if isinstance(value, tuple):
        return twin(*value)
    return twin(*[of_client(getattr(value, field.name)) for field in fields_of(type(value))])


@EACH
def test_body_of_the_client_asks_for_the_operation_that_was_made(kind: type[Described]) -> None:
    """Each operation of the client has the fields of the domain's in their order; its body is read back as the same."""
    body = BODIES[kind]
    operation = body.make("k", decode(json.dumps(example_of(kind)).encode(), body.struct))
    twin = of_client(operation)
    assert (twin.op, twin.path) == (kind.kind, path_of(kind))
    assert body.make("k", decode(json.dumps(twin.body()).encode(), body.struct)) == operation


def test_optional_fields_that_are_none_are_left_out_and_decimals_become_text() -> None:
    """A body has what was given, and amounts as text, within sides and ends as well."""
    side = client.SettleSide("7", client.CoinAmount("btc", Decimal("0.10")), Decimal(5))
    assert client.Settle("k", "btc", "usdt", Decimal("0.5"), "1", side, client.SettleSide("8")).body() == {
        "base": "btc",
        "quote": "usdt",
        "base_amount": "0.5",
        "quote_amount": "1",
        "buyer": {"hold": "7", "fee": {"coin": "btc", "amount": "0.10"}, "release": "5"},
        "seller": {"hold": "8"},
    }
    assert client.Transfer("k", "ann", "bob", "btc", "1", to_account="wallet").body() == {
        "from": {"customer": "ann"},
        "to": {"customer": "bob", "account": "wallet"},
        "coin": "btc",
        "amount": "1",
    }


@EACH
@pytest.mark.parametrize("owner", [Ledger, OperatorLedger, AsyncOperatorLedger])
def test_library_and_clients_have_a_method_with_every_field(kind: type[Described], owner: type[Any]) -> None:
    """Required fields and amounts come first, then the key, the others and ``dry_run`` by name, with equal defaults."""
    parameters = inspect.signature(getattr(owner, kind.kind)).parameters
    by_name = {name: parameter.default for name, parameter in parameters.items() if name != "self"}
    assert by_name.pop("dry_run") is False
    fields = {field.name: field for field in fields_of(kind)}
    assert by_name.keys() == fields.keys()
    for name, default in by_name.items():
        assert (default is inspect.Parameter.empty) == fields[name].is_required
        assert fields[name].is_required or default == fields[name].default
        positional = parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert not positional or fields[name].form is not KEY
    assert inspect.getdoc(getattr(owner, kind.kind))
