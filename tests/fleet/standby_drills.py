"""Drills in which the standby is away, and nothing waits for it without a bound."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx2

from fleet.drills import AFTER_SECONDS, Fleet, Report, create_database, drill, running
from fleet.nodes import ANSWER_SECONDS, SLACK_SECONDS, Node, balance, post, remove_folders, try_to_write
from fleet.pair import LEDGER, Pair

#: How long a start may take until it answers, or has said why it cannot.
START_SECONDS = 15.0
KEYS = 8
#: A write of a customer that the load does not know.
PROBE = {"customer": "probe", "coin": "usdt", "amount": "1"}


@drill
def standby_gone_and_waited_for() -> Report:
    """Kill the standby where the primary waits for it: no write is acknowledged until a standby is back."""
    with running() as (pair, fleet):
        pair.kill_standby()
        time.sleep(0.5)  # what was on its way when the standby died is answered by now
        moment = time.monotonic()
        time.sleep(3.0)
        meanwhile = fleet.load.since(moment)
        assert meanwhile == 0, f"{meanwhile} writes were acknowledged that no standby has"
        back = time.monotonic()
        pair.rebuild_standby()
        fleet.wait_for_writes(back)
        time.sleep(AFTER_SECONDS)
        return fleet.report("standby_gone_and_waited_for", moment, pair.primary.url(LEDGER))


@drill
def standby_gone_and_not_waited_for() -> Report:
    """Kill the standby, and have the primary go on alone, as an operator may decide: writes go on."""
    with running() as (pair, fleet):
        moment = time.monotonic()
        pair.kill_standby()
        time.sleep(1.0)
        decided = time.monotonic()
        pair.primary.reload(synchronous_standby_names="")
        went_on = fleet.wait_for_writes(decided)
        time.sleep(AFTER_SECONDS)
        details = {"went_on_after_the_decision_seconds": round(went_on, 2)}
        return fleet.report("standby_gone_and_not_waited_for", moment, pair.primary.url(LEDGER), **details)


@drill
def standby_away_at_start() -> Report:
    """Start nodes while the standby is away: on a ledger they answer reads, for a new one they say why they cannot."""
    known, maker = Node("known", {}), Node("maker", {})
    try:
        with running() as (pair, fleet):
            empty = create_database(pair.primary, "empty")
            fleet.post("/v1/customers", {"customer": PROBE["customer"]}, "customer-probe")
            restarted = fleet.nodes[0]
            moment = time.monotonic()
            pair.kill_standby()
            time.sleep(0.5)  # what was on its way when the standby died is answered by now
            restarted.stop()
            starts = [
                _starts_and_reads(fleet, restarted, pair.primary.url(LEDGER)),
                _starts_and_reads(fleet, known, pair.primary.url(LEDGER)),
            ]
            with ThreadPoolExecutor(2) as pool:
                refusals = list(pool.map(lambda node: _refuses_a_write(fleet, node), (restarted, known)))
            maker.settings = {**fleet.settings, "database": empty}
            begun = time.monotonic()
            refused = maker.start_and_end()
            refusal = time.monotonic() - begun
            assert refused.returncode == 3, f"the start ended with {refused.returncode}: {refused.stderr}"
            assert "the standby did not confirm" in refused.stderr, refused.stderr
            assert refusal < START_SECONDS, f"the start gave up after {refusal:.1f} s"
            back = time.monotonic()
            pair.rebuild_standby()
            went_on = fleet.wait_for_writes(back)
            fleet.nodes.append(known)  # it is asked for the balances, too
            fleet.wait_until_ready()
            for node in (restarted, known):
                post(f"http://{node.operator}", fleet.token, "/v1/deposits", PROBE, f"probe-{node.name}")
            found = balance(known, fleet.token, PROBE["customer"])["balances"][PROBE["coin"]]["available"]
            assert found == "2.00", f"two deposits of 1 add up to {found}"
            maker.start()
            time.sleep(AFTER_SECONDS)
            details = {
                "start_seconds": round(max(starts), 2),
                "slowest_refusal_seconds": round(max(refusals), 2),
                "start_of_a_new_ledger_refused_after_seconds": round(refusal, 2),
                "went_on_after_rebuilding_the_standby_seconds": round(went_on, 2),
            }
            return fleet.report("standby_away_at_start", moment, pair.primary.url(LEDGER), **details)
    finally:
        for node in (known, maker):
            node.stop()
        remove_folders([known, maker])


def _starts_and_reads(fleet: Fleet, node: Node, database: str) -> float:
    """Start *node* and assert that it answers reads; return how many seconds it took to answer."""
    begun = time.monotonic()
    fleet.start(node, database, wait=False)
    node.wait_until_alive(START_SECONDS)
    took = time.monotonic() - begun
    assert balance(node, fleet.token, "lane1")["seq"] > 0
    return took


def _refuses_a_write(fleet: Fleet, node: Node) -> float:
    """Assert that *node* answers a write with 503 in time; return how many seconds that took."""
    begun = time.monotonic()
    answer = try_to_write(node, fleet.token, "/v1/deposits", PROBE, f"probe-{node.name}")
    took = time.monotonic() - begun
    assert answer.status_code == httpx2.codes.SERVICE_UNAVAILABLE, f"without a standby a write got {answer.text}"
    assert took < ANSWER_SECONDS + SLACK_SECONDS, f"a write was answered after {took:.1f} s"
    return took


@drill
def standby_away_at_key_write() -> Report:
    """Create and revoke access keys while the standby is frozen, then killed: 503 within 10 s, done once afterwards."""
    with running(node_settings={"standby": "required"}) as (pair, fleet):
        revoked = fleet.post("/v1/keys", {"customer": "lane1", "permissions": ["read"]}, "revoked")["accesskey"]
        moment = time.monotonic()
        pair.freeze_standby()
        frozen = _no_key_write_is_acknowledged(fleet, "frozen", revoked)
        pair.thaw_standby()
        fleet.wait_for_writes(time.monotonic())
        pair.kill_standby()
        killed = _no_key_write_is_acknowledged(fleet, "killed", revoked)
        back = time.monotonic()
        pair.rebuild_standby()
        went_on = fleet.wait_for_writes(back)
        _keys_are_written_once(pair, fleet, revoked)
        time.sleep(AFTER_SECONDS)
        details = {
            "slowest_refusal_while_frozen_seconds": round(frozen, 2),
            "slowest_refusal_while_killed_seconds": round(killed, 2),
            "went_on_after_rebuilding_the_standby_seconds": round(went_on, 2),
        }
        return fleet.report("standby_away_at_key_write", moment, pair.primary.url(LEDGER), **details)


def _no_key_write_is_acknowledged(fleet: Fleet, name: str, revoked: str) -> float:
    """Create and revoke keys at once, through all nodes; assert that each gets 503 in time; return the longest time."""

    def write(number: int) -> float:
        node, begun = fleet.nodes[number % len(fleet.nodes)], time.monotonic()
        answer = _create(fleet, node, f"{name}-{number}") if number < KEYS else _revoke(fleet, node, revoked)
        took = time.monotonic() - begun
        assert answer.status_code == httpx2.codes.SERVICE_UNAVAILABLE, f"a write of a key was answered {answer.text}"
        assert took < ANSWER_SECONDS + SLACK_SECONDS, f"a write of a key was answered after {took:.1f} s"
        return took

    with ThreadPoolExecutor(KEYS + 1) as pool:
        return max(pool.map(write, range(KEYS + 1)))


def _create(fleet: Fleet, node: Node, name: str) -> httpx2.Response:
    return try_to_write(
        node, fleet.token, "/v1/keys", {"customer": "lane1", "permissions": ["read"], "label": name}, name
    )


def _revoke(fleet: Fleet, node: Node, accesskey: str) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {fleet.token}"}
    return httpx2.delete(f"http://{node.operator}/v1/keys/{accesskey}", headers=headers, timeout=30)


def _keys_are_written_once(pair: Pair, fleet: Fleet, revoked: str) -> None:
    """Send the same writes again; assert that each key is there once and the revoked one lets nobody in anywhere."""
    names = [f"{state}-{number}" for state in ("frozen", "killed") for number in range(KEYS)]
    for number, name in enumerate(names):
        answer = _create(fleet, fleet.nodes[number % len(fleet.nodes)], name)
        assert answer.status_code == httpx2.codes.OK, f"the standby is back, and {name} was answered {answer.text}"
    assert _revoke(fleet, fleet.nodes[0], revoked).status_code == httpx2.codes.OK
    for node in fleet.nodes:
        answer = httpx2.get(
            f"http://{node.operator}/v1/keys", params={"customer": "lane1"}, timeout=10,
            headers={"Authorization": f"Bearer {fleet.token}"},
        )  # fmt: skip
        labels = [key["label"] for key in answer.json()["keys"] if key["label"]]
        assert sorted(labels) == sorted(names), f"{node.name} knows other keys than those that were made"
