"""Opening balances from CSV: what is read, and what is refused by line before anything is booked."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import pytest

from spotledger.archive import imports
from spotledger.archive.imports import OpeningBalance, Plan, read_balances
from spotledger.domain.operations import Deposit
from spotledger.errors import FileUnusable, InvalidRequest

COINS = {"btc": 8, "usdt": 8, "whole": 0, "shib": 18}
CUSTOMERS = {"alice", "bob"}


def read(folder: Path, content: str | bytes, **options: Any) -> Plan:
    """Read *content* as a file of opening balances."""
    file = folder / "balances.csv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_balances(file, COINS, CUSTOMERS, **options)


def refused(folder: Path, content: str | bytes, **options: Any) -> list[tuple[int, str | None]]:
    """Read a file that must be refused, and return the line and the field of each bad line."""
    with pytest.raises(InvalidRequest) as refusal:
        read(folder, content, **options)
    assert "othing was booked" in refusal.value.message
    return [(bad["line"], bad["field"]) for bad in refusal.value.details["lines"]]


def deposit_of(balance: OpeningBalance) -> Deposit:
    """Return the deposit of what is available."""
    assert balance.available is not None
    return balance.available


@pytest.mark.parametrize("own", [":frozen", ":hold"])
@pytest.mark.parametrize("turned", [False, True])
def test_imports_refuse_a_key_that_another_line_has_for_what_is_frozen(
    tmp_path: Path, own: str, *, turned: bool
) -> None:
    """Both lines would be one deposit, and the second of them a repeat that books nothing."""
    lines = ["alice,usdt,1,2,k", f"alice,usdt,2,0,k{own}"]
    content = "\n".join(["customer,coin,available,freeze,key", *(reversed(lines) if turned else lines)])
    assert refused(tmp_path, content) == [(3, "key")]
    assert len(read(tmp_path, content.replace("2,k", "0,k")).balances) == 2


PLAIN = "customer,coin,amount\nalice,usdt,100.50\nbob,btc,0.00000001\n"


def test_imports_of_plain_lines_become_deposits_in_order(tmp_path: Path) -> None:
    """Each line is a deposit onto spot with the amount as it is written."""
    plan = read(tmp_path, PLAIN)
    assert [(balance.line, *_of(balance)) for balance in plan.balances] == [
        (2, "alice", "usdt", "100.5", "spot", None),
        (3, "bob", "btc", "0.00000001", "spot", None),
    ]
    assert plan.new_customers == []


def _of(balance: OpeningBalance) -> tuple[str | None, ...]:
    deposit = deposit_of(balance)
    return deposit.customer, deposit.coin, deposit.amount, deposit.account, deposit.reference


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + PLAIN.encode(),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace("\n", "\r").encode(),
        PLAIN.rstrip("\n").encode(),
        b"\n" + PLAIN.replace("\n", "\n\n").encode(),
        b'"customer","coin","amount"\n"alice","usdt","100.50"\n"bob","btc","0.00000001"\n',
        b"amount,customer,account,coin,key,reference\n100.50,alice,,usdt,,\n0.00000001,bob,spot,btc,,\n",
    ],
)
def test_imports_of_one_content_in_other_clothes_are_the_same(tmp_path: Path, content: bytes) -> None:
    """A byte order mark, other line ends, quotes, empty lines and another order of columns change no deposit."""
    expected = [balance.available for balance in read(tmp_path, PLAIN).balances]
    assert [balance.available for balance in read(tmp_path, content).balances] == expected


def test_imports_keep_references_with_commas_quotes_and_other_scripts(tmp_path: Path) -> None:
    """A reference is taken as it is written between its quotes."""
    plan = read(tmp_path, 'customer,coin,amount,reference\nalice,usdt,1,"a, ""b"" 余额"\n')
    assert deposit_of(plan.balances[0]).reference == 'a, "b" 余额'


def test_imports_make_keys_from_what_a_line_is_about_and_not_from_its_amount(tmp_path: Path) -> None:
    """Another amount has the same key, so it is a conflict and not a second deposit; anything else is another key."""
    header = "customer,coin,amount,account,reference\n"

    def key(line: str, **options: Any) -> str:
        return deposit_of(read(tmp_path, header + line, **options).balances[0]).key

    first = key("alice,usdt,1,,")
    assert first == key("alice,usdt,1.0,spot,") == key("alice,usdt,2,,") == key("alice,usdt,1,,r")
    others = [key("bob,usdt,1,,"), key("alice,btc,1,,"), key("alice,usdt,1,wallet,")]
    assert len({first, *others, key("alice,usdt,1,,", key_prefix="again")}) == 5
    assert first.startswith("opening:")
    assert len(first) <= 64


def test_imports_take_a_given_key_as_it_is(tmp_path: Path) -> None:
    """A key of the file is used unchanged; an empty one is made."""
    plan = read(tmp_path, "customer,coin,amount,key\nalice,usdt,1,old-7\nalice,usdt,2,old-8\nbob,usdt,3,\n")
    keys = [deposit_of(balance).key for balance in plan.balances]
    assert keys[:2] == ["old-7", "old-8"]
    assert keys[2].startswith("opening:")


def test_imports_of_frozen_amounts_deposit_and_freeze_them_together(tmp_path: Path) -> None:
    """What is frozen is a deposit and a hold with the line's reference, beside the deposit of what is available."""
    header = "customer,coin,available,freeze,reference\n"
    plan = read(tmp_path, header + "alice,usdt,100,25.50,order-7\nbob,btc,0,1,\nbob,usdt,3,,\n")
    alice, bob, other = plan.balances
    assert deposit_of(alice).amount == "100"
    assert alice.frozen is not None
    deposit, freeze = alice.frozen
    assert (deposit.amount, freeze.amount, freeze.reference) == ("25.5", "25.5", "order-7")
    assert len({deposit_of(alice).key, deposit.key, freeze.key}) == 3
    assert bob.available is None
    assert bob.frozen is not None
    assert other.frozen is None


def test_imports_of_the_same_file_with_one_more_column_keep_their_deposits(tmp_path: Path) -> None:
    """A column of frozen amounts, or of references, that is added later does not book the rest again."""
    before = deposit_of(read(tmp_path, "customer,coin,available\nalice,usdt,100\n").balances[0])
    after = deposit_of(read(tmp_path, "customer,coin,available,freeze\nalice,usdt,100,25\n").balances[0])
    assert before == after
    named = deposit_of(read(tmp_path, "customer,coin,available,reference\nalice,usdt,100,old\n").balances[0])
    assert named.key == before.key


def test_imports_skip_and_count_lines_of_zeros(tmp_path: Path) -> None:
    """Zeros of any length are skipped, register nobody, and are checked all the same."""
    header = "customer,coin,available,freeze\n"
    plan = read(tmp_path, header + "alice,usdt,0,0.000000000000000000000000\nzoe,usdt,0.00,\n", register=True)
    assert plan == Plan([], [], zeros=2)
    assert refused(tmp_path, header + "alice,doge,0,0\nalice,usdt,1,1\nalice,usdt,0,0\n") == [(2, "coin"), (4, "key")]


def test_imports_with_decimal_commas_read_them_only_where_told(tmp_path: Path) -> None:
    """A comma is never guessed to be a point."""
    content = "customer;coin;amount\nalice;usdt;1000,50\nbob;usdt;7\n"
    assert refused(tmp_path, content) == [(2, "amount")]
    plan = read(tmp_path, content, decimal_comma=True)
    assert [deposit_of(balance).amount for balance in plan.balances] == ["1000.5", "7"]
    assert refused(tmp_path, content.replace("1000", "1,000"), decimal_comma=True) == [(2, "amount")]


BAD_LINES = {
    "nobody,usdt,1": "customer",
    "@fees,usdt,1": "customer",
    "..,usdt,1": "customer",
    ",usdt,1": "customer",
    "alice,doge,1": "coin",
    "alice,USDT,1": "coin",
    "alice,,1": "coin",
    "alice,usdt,": "amount",
    "alice,usdt,-1": "amount",
    "alice,usdt,+1": "amount",
    "alice,usdt,1e5": "amount",
    "alice,usdt,NaN": "amount",
    "alice,usdt,Infinity": "amount",
    'alice,usdt,"1,000"': "amount",
    "alice,usdt,1_000": "amount",
    "alice,usdt,١": "amount",
    "alice,usdt,1.123456789": "amount",
    "alice,whole,1.5": "amount",
    "alice,usdt,=1+1": "amount",
    "alice,usdt,01": "amount",
    "alice,usdt,.5": "amount",
    "alice,usdt,1.": "amount",
    "alice,whole,1.01": "amount",
    "alice,usdt,1.0000000000000000000000001": "amount",
    "alice,usdt," + "9" * 39: "amount",
    "alice,usdt,1" + "0" * 30: "amount",
    "alice,usdt": None,
    "alice,usdt,1,2": None,
    'alice,usdt,"1"x': None,
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_imports_with_a_bad_line_are_refused_by_its_number_and_field(tmp_path: Path, line: str) -> None:
    """One bad line among good ones refuses the file and names the line and what is wrong in it."""
    field = BAD_LINES[line]
    assert refused(tmp_path, f"customer,coin,amount\nalice,usdt,1\n{line}\nbob,usdt,1\n") == [(3, field)]


def test_imports_name_all_bad_lines_at_once(tmp_path: Path) -> None:
    """Every bad line is told in one go, by the line that it begins in, also after a field of several lines."""
    content = (
        "customer,coin,amount,account,reference\n"
        "nobody,usdt,1,,\n"
        'alice,usdt,1,,"two\nlines"\n'
        "alice,usdt,x,,\n"
        "\n"
        "alice,usdt,1,margin,\n"
        "alice,usdt,1,,fine\n"
        f"alice,usdt,1,,{'r' * 257}\n"
    )
    assert refused(tmp_path, content) == [
        (2, "customer"),
        (3, "reference"),
        (5, "amount"),
        (7, "account"),
        (9, "reference"),
    ]


def test_imports_with_many_bad_lines_tell_the_first_and_count_the_others(tmp_path: Path) -> None:
    """A file of another kind does not fill the screen."""
    with pytest.raises(InvalidRequest, match=r"has 2000 bad lines(?s:.*)and 1950 more") as refusal:
        read(tmp_path, "customer,coin,amount\n" + "alice,usdt,x\n" * 2000)
    assert len(refusal.value.details["lines"]) == imports.BAD_LINES_TOLD


def test_imports_with_two_lines_of_one_key_are_refused(tmp_path: Path) -> None:
    """Two lines that would be one deposit are a mistake, never silently one of them."""
    assert refused(tmp_path, PLAIN + "alice,usdt,100.50\n") == [(4, "key")]
    assert refused(tmp_path, PLAIN + "alice,usdt,7\n") == [(4, "key")]
    assert refused(tmp_path, "customer,coin,amount,key\nalice,usdt,1,k\nbob,usdt,1,k\n") == [(3, "key")]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n\n",
        "customer,coin,amount\n",
        "customer,coin\nalice,usdt\n",
        "customer,coin,amount,colour\nalice,usdt,1,red\n",
        "customer,coin,amount,coin\nalice,usdt,1,btc\n",
        "customer;coin;amount\nalice,usdt,1\n",
        "sep=;\ncustomer,coin,amount\nalice,usdt,1\n",
        "sep=,\n",
        "customer,coin,amount,available\nalice,usdt,1,1\n",
        "customer,coin,freeze\nalice,usdt,1\n",
        "x" * 70_000,
        PLAIN.encode("utf-16-le"),
        PLAIN.encode("utf-16-be"),
        PLAIN.encode("utf-32"),
        "customer,coin,amount,\nalice,usdt,1,2\n",
        "alice,usdt,1\n",
        b"\xff\xfe" + PLAIN.encode("utf-16-le"),
        bytes(range(256)),
        b"\x00" * 100,
        "customer,coin,amount\nalice,usdt,1\0\n",
        'customer,coin,amount\nalice,usdt,"1\nbob,usdt,1\n',
        b"customer,coin,amount,reference\nalice,usdt,1,\xff\n",
        "customer,coin,amount,key\nalice,usdt,1,with blank\n",
        "customer,coin,amount,reference\nalice,usdt,1," + "x" * 200_000 + "\n",
    ],
)
def test_imports_of_other_files_are_refused_in_words(tmp_path: Path, content: str | bytes) -> None:
    """Whatever a file holds, it is read or refused with a line; never another error."""
    assert refused(tmp_path, content)


def test_imports_of_what_is_no_file_are_refused(tmp_path: Path) -> None:
    """A missing file and a folder are named."""
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(FileUnusable, match="cannot be used"):
            read_balances(path, COINS, CUSTOMERS)


def test_imports_register_new_customers_only_where_told(tmp_path: Path) -> None:
    """Customers that are not registered are bad lines, or, with register, named once each in the order of the file."""
    content = "customer,coin,amount,reference\nzoe,usdt,1,\nalice,usdt,1,\ncarl,usdt,1,\nzoe,btc,1,more\n"
    assert refused(tmp_path, content) == [(2, "customer"), (4, "customer"), (5, "customer")]
    assert read(tmp_path, content, register=True).new_customers == ["zoe", "carl"]
    assert refused(tmp_path, "customer,coin,amount\n..,usdt,1\n", register=True) == [(2, "customer")]


@pytest.mark.parametrize("prefix", ["", "with blank", "ü", "p" * (imports.PREFIX_MAX_CHARACTERS + 1)])
def test_imports_with_a_prefix_that_makes_no_keys_are_refused(tmp_path: Path, prefix: str) -> None:
    """A prefix has to leave room for the digest and be of the characters that keys are of."""
    with pytest.raises(InvalidRequest) as refusal:
        read(tmp_path, PLAIN, key_prefix=prefix)
    assert refusal.value.details["field"] == "key_prefix"


def test_imports_of_more_lines_than_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that would not fit into memory is to be cut."""
    monkeypatch.setattr(imports, "LINES_LIMIT", 3)
    assert len(read(tmp_path, PLAIN).balances) == 2
    assert refused(tmp_path, PLAIN + "alice,btc,1\n") == [(4, None)]
