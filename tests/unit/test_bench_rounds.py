"""Rounds of the benches: what they count, and how aims are computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from bench.harness import Aim, Report, aims_of
from bench.rounds import Round, Row, Usage, check, ratio_aims, ratio_table, ratios, run_groups

from spotledger.errors import InsufficientAvailable, UnknownCustomer

ONE = Round(10, 100.0, 5.0, 1.0, 2.0, 1.5, 0.0)


def row(group: int, *rates: float) -> Row:
    """Make a row with rounds of these rates."""
    return Row("mix", group, 10, [replace(ONE, operations_per_second=rate) for rate in rates])


class Echo:
    """Books that do nothing."""

    def execute(self, operations: Sequence[Any], /) -> Sequence[Any]:
        """Answer with what was asked."""
        return operations


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """Two rounds that follow one another are compared: a slow minute of the machine is in both."""
    own, other = row(100, 50, 10, 40), row(100, 100, 20, 50)
    assert ratios(own, other) == [0.5, 0.5, 0.8]
    table = ratio_table("", ("a", "b"), [own], [other])
    assert table.rows == [["100", 40, 50, 0.5, "0.50, 0.50, 0.80"]]


def test_ratio_of_rounds_that_are_not_pairs_is_refused() -> None:
    """A round without its counterpart is a mistake of the bench."""
    with pytest.raises(ValueError, match="zip"):
        ratios(row(1, 10, 10), row(1, 10))


def test_aims_are_met_or_missed_by_the_figures() -> None:
    """Only the sizes with a limit have an aim, and a limit that is reached is met."""
    own, others = [row(1, 80), row(10, 89), row(100, 100)], [row(group, 100) for group in (1, 10, 100)]
    aims = ratio_aims("library ÷ trial", {1: 0.8, 10: 0.9}, own, others)
    assert [(aim.name, aim.value, aim.met) for aim in aims] == [
        ("library ÷ trial, groups of 1", 0.8, True),
        ("library ÷ trial, groups of 10", 0.89, False),
    ]


def test_all_aims_are_one_table() -> None:
    """Each line names the bench, what was measured, the limit, and the result; what was not measured is said."""
    report = Report("growth", "", {}, aims=[Aim("start, s", 1.5, 2.0, at_most=True), Aim("rate", None, 0.9)])
    lines = aims_of([report])
    assert lines[-3:] == ["| growth | start, s | 1.5 | ≤ 2 | met |", "| growth | rate | – | ≥ 0.9 | not measured |", ""]


def test_round_counts_operations_and_its_longest_group() -> None:
    """The rate is of the calls alone."""
    result = run_groups(Echo(), [[1, 2], [3]])
    assert result.operations == 3
    assert result.operations_per_second > 0
    assert result.longest_group_ms >= 0


def test_usage_leaves_out_what_the_system_does_not_say() -> None:
    """Without a figure for what was written there is no figure for an operation."""
    before, after = Usage(1.0, 0.5, 4.0, None), Usage(2.0, 0.7, 6.0, 100)
    spent = after.since(before)
    assert spent.kib_over(10) is None
    assert spent.others_seconds == 1.0
    assert replace(spent, written_bytes=20_480).kib_over(10) == 2.0


def test_outcome_that_was_not_meant_ends_the_bench() -> None:
    """Too little available is meant to happen; any other refusal is not."""
    refused = InsufficientAvailable("too little")
    check([refused, "a receipt"])
    with pytest.raises(RuntimeError, match="should not be"):
        check([UnknownCustomer("nobody")])
