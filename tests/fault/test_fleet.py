"""The bad days of a fleet, with real processes: no acknowledged write lost, none doubled, and it goes on by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fleet import database_drills, frozen_node, networks, node_drills, patroni, primary_drills, standby_drills
from fleet.drills import Report
from servers.missing import ServerMissing, skip_or_fail

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("fleet")]


#: Enough for a node to lag behind, and written in two seconds.
FEW_ENTRIES = 6_000


def drilled(drill: Callable[..., Report], **options: int) -> Report:
    """Run *drill*, which checks the books itself; skip where what it needs is missing."""
    try:
        report = drill(**options)
    except ServerMissing as problem:
        skip_or_fail(problem)
    assert report.acknowledged > 0
    return report


def test_primary_killed_standby_promoted_loses_and_doubles_nothing() -> None:
    """The primary is killed with -9 and the standby promoted; the nodes follow by themselves."""
    assert drilled(primary_drills.primary_killed).details["promoted_seconds"] > 0


def test_old_primary_that_returns_gets_no_write_and_stops_no_node() -> None:
    """It comes back without its standby setting, alone and then beside the new primary."""
    drilled(primary_drills.old_primary_returns)


def test_node_killed_loses_and_doubles_nothing() -> None:
    """A node is killed with -9; callers go on through the others, and it comes back."""
    drilled(node_drills.node_killed)


def test_node_stopped_in_its_turn_lets_the_others_go_on_and_does_no_harm_when_it_wakes() -> None:
    """A node stopped while it holds the head row loses its turn, and what it does on waking changes nothing."""
    assert drilled(node_drills.node_stopped).details["tries_to_hit_its_turn"] > 0


def test_node_frozen_while_another_writes_says_nothing_mixed_or_old_when_it_wakes() -> None:
    """Each read fits the journal at the entry it stands for, and money that is spent is not spent again."""
    report = drilled(frozen_node.node_frozen, entries=FEW_ENTRIES)
    assert report.details["reads_that_were_compared"] > 20


def test_redis_killed_stops_neither_reads_nor_writes() -> None:
    """Without Redis the nodes go by their own counts, and come back to it by themselves."""
    assert drilled(node_drills.redis_killed).reads > 0


def test_standby_gone_makes_writes_wait_where_the_primary_waits_for_it() -> None:
    """No write is acknowledged that no standby has, until there is a standby again."""
    drilled(standby_drills.standby_gone_and_waited_for)


def test_standby_gone_lets_writes_go_on_where_the_operator_decides_so() -> None:
    """With no standby to wait for, the primary goes on alone."""
    drilled(standby_drills.standby_gone_and_not_waited_for)


def test_start_on_a_database_in_latin1_is_refused_with_a_cure_that_works() -> None:
    """Nothing is made in it."""
    drilled(database_drills.database_in_latin1)


def test_server_that_does_not_sync_commits_loses_nothing_that_was_acknowledged() -> None:
    """The setting is made for the server, the role and the database; a session that follows it does lose rows."""
    drilled(database_drills.synchronous_commit_off)


def test_node_cut_off_in_its_turn_lets_the_others_go_on_and_comes_back() -> None:
    """All packets of a node vanish while it holds the head row; the others go on, and it returns when mended."""
    drilled(networks.node_cut_off)


def test_primary_lost_under_patroni_loses_and_doubles_nothing() -> None:
    """Patroni promotes the standby of a lost primary, the nodes follow, and the lost member rejoins."""
    assert drilled(patroni.primary_lost_with_patroni).details["promoted_seconds"] > 0
