"""The files in `tests/cases/opening-balances`, in the forms that other systems give, and what comes of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from spotledger.archive.imports import Plan, read_balances
from spotledger.errors import InvalidRequest

CASES = Path(__file__).parents[2] / "cases" / "opening-balances"
BOOKED = {
    "01_plain": {("alice", "usdt"): "100.5", ("bob", "btc"): "0.5"},
    "02_bom_crlf": {("alice", "usdt"): "100.5", ("bob", "btc"): "0.5"},
    "03_cr_mac": {("alice", "usdt"): "100.5", ("bob", "btc"): "0.5"},
    "05_sep_line": {("alice", "usdt"): "100.5", ("bob", "btc"): "0.5"},
    "06_header_caps": {("alice", "usdt"): "100.5"},
    "07_header_spaces": {("alice", "usdt"): "100.5"},
    "13_trailing_blank": {("alice", "usdt"): "100.5", ("bob", "btc"): "0.5"},
    "14_trailing_commas": {("alice", "usdt"): "100.5", ("bob", "btc"): "0.5"},
    "18_zero_rows": {("alice", "usdt"): "1"},
    "19_mysql_decimal_32_16": {("alice", "usdt"): "100.5", ("bob", "btc"): "0.1"},
    "31_quoted_all": {("alice", "usdt"): "7.25"},
    "32_tsv": {("alice", "usdt"): "1"},
    "33_house": {("@fees", "usdt"): "10"},
}
#: What a refusal has to say: the line, what was found, and what would pass.
REFUSED = {
    "04_semicolon_bom": ("line 2", "'100,50'", "--decimal-comma"),
    "08_utf16le_bom": ("line 1", "UTF-16", "save it as UTF-8"),
    "10_decimal_comma_quoted": ("line 2", "amount", "'100,50'", "'100.50' would pass"),
    "11_thousands_quoted": ("line 2", "amount", "'1,000.50'", "'1000.50'"),
    "12_sci": ("line 2", "line 3", "amount", "'1E-05'", "'0.00001'", "'1.0E-8'", "'0.000000010'"),
    "16_dups": ("line 2", "line 3", "a balance stands once", "column key"),
    "17_same_twodiff": ("line 2", "line 3", "a balance stands once", "column key"),
    "20_coin_caps": ("line 2", "'USDT' is not listed", "'usdt' is"),
    "21_latin1_reference": ("line 2", "0xdc", "not UTF-8"),
    "22_gbk_reference": ("line 2", "0xc6", "not UTF-8"),
    "24_nul": ("line 2", "zero byte"),
    "27_locked_col": ("line 1", "'locked' is no column", "'freeze' is"),
    "29_nbsp": ("line 2", "amount", r"'1\xa0000'", "'1000'"),
    "34_negative": ("line 2", "amount", "'-5'"),
    "35_empty": ("line 1", "customer,coin,available would pass"),
}


def read(name: str, *, decimal_comma: bool = False) -> Plan:
    """Read a case with the coins and the option that its table names."""
    file = CASES / f"{name}.csv"
    return read_balances(file, {"usdt": 8, "btc": 8}, {"alice", "@fees"}, register=True, decimal_comma=decimal_comma)


def booked(plan: Plan) -> dict[tuple[str, str], str]:
    """Return the deposits of *plan*."""
    deposits = [balance.available for balance in plan.balances]
    return {(deposit.customer, deposit.coin): deposit.amount for deposit in deposits if deposit is not None}


def test_every_case_has_an_outcome() -> None:
    """No file is left out."""
    assert {file.stem for file in CASES.glob("*.csv")} == BOOKED.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", BOOKED)
def test_case_that_can_be_read_is_booked(name: str) -> None:
    """What the file means is booked to the unit."""
    assert booked(read(name)) == BOOKED[name]


@pytest.mark.parametrize("name", REFUSED)
def test_case_that_is_ambiguous_or_wrong_is_refused_in_words(name: str) -> None:
    """The refusal names the line, what was found and what would pass, and nothing that a screen cannot show."""
    with pytest.raises(InvalidRequest) as refusal:
        read(name)
    message = refusal.value.message
    assert "othing was booked" in message
    assert [part for part in REFUSED[name] if part not in message] == []
    message.encode()
    lines = len(refusal.value.details["lines"])
    assert message.count("\n") == (lines if lines > 1 else 0)


def test_case_with_decimal_commas_is_booked_where_they_are_meant() -> None:
    """The option that the refusal names makes the file pass."""
    assert booked(read("04_semicolon_bom", decimal_comma=True)) == {("alice", "usdt"): "100.5", ("bob", "btc"): "0.5"}


def test_case_with_zeros_counts_them() -> None:
    """The lines of zero are skipped and counted, and register nobody."""
    plan = read("18_zero_rows")
    assert (plan.zeros, plan.new_customers) == (2, [])
