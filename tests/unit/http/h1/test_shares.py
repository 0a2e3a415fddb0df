"""The counts by which workers share connections."""

from __future__ import annotations

from spotledger.http.h1.shares import ConnectionShares


def workers(count: int) -> list[ConnectionShares]:
    """Return what each of *count* workers has of one memory, as after a fork; none has started."""
    made = [ConnectionShares(count) for _ in range(count)]
    for other in made[1:]:
        other._memory = made[0]._memory
    return made


def is_ahead(worker: ConnectionShares, connections: int) -> bool:
    """Say whether *worker*, with so many connections, leaves the next one to others."""
    worker.note(connections)
    return worker.is_ahead(connections)


def test_worker_is_ahead_of_one_that_has_fewer() -> None:
    """Of workers with as many each, none is ahead; whoever has one more than another is."""
    first, second, third = workers(3)
    for number, worker in enumerate((first, second, third)):
        worker.start_as(number)
    assert not is_ahead(first, 0)
    assert is_ahead(first, 1)
    assert not is_ahead(second, 0)
    third.note(7)
    assert [is_ahead(second, count) for count in (1, 2)] == [False, True]
    assert not is_ahead(first, 2)
    assert is_ahead(third, 3)


def test_worker_that_is_down_is_left_nothing() -> None:
    """Before its start, and after its end, whatever it had; a restart begins without connections."""
    first, second = workers(2)
    first.start_as(0)
    assert not is_ahead(first, 1_000)
    second.start_as(1)
    assert is_ahead(first, 1)
    second.note(3)
    assert [is_ahead(first, count) for count in (3, 4)] == [False, True]
    first.end(1)
    assert not is_ahead(first, 1_000)
    second.start_as(1)
    assert is_ahead(first, 1)
