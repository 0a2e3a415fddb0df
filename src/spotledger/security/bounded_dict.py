"""A dictionary of bounded size that drops what was not used recently."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(Generic[K, V]):
    """
    Hold at most twice *generation_limit* items; every operation is O(1).

    Items live in two generations. An item that is put, or found in the older generation, goes to the younger one. When
    the younger one is full, it becomes the older one, whose items are dropped at once.
    """

    __slots__ = ("forgotten", "generation_limit", "older", "younger")

    def __init__(self, generation_limit: int) -> None:
        if generation_limit < 1:
            raise ValueError(f"generation_limit is {generation_limit}; 1 or more would pass")
        self.generation_limit = generation_limit
        self.younger: dict[K, V] = {}
        self.older: dict[K, V] = {}
        #: How many items were dropped to make room.
        self.forgotten = 0

    def get(self, key: K) -> V | None:
        """Return the value of *key*, or None."""
        found = self.younger.get(key)
        if found is None and self.older:
            found = self.older.pop(key, None)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: K, value: V) -> None:
        """Set the value of *key*, which must not be None."""
        if len(self.younger) >= self.generation_limit and key not in self.younger:
            self.rotate()
        self.older.pop(key, None)
        self.younger[key] = value

    def rotate(self) -> None:
        """Begin a new generation, and drop the items of the older one."""
        self.forgotten += len(self.older)
        self.older = self.younger
        self.younger = {}

    def drop(self, key: K) -> None:
        """Remove *key*, if it is there."""
        self.younger.pop(key, None)
        self.older.pop(key, None)

    def clear(self) -> None:
        """Remove all items."""
        self.younger = {}
        self.older = {}

    def __len__(self) -> int:
        return len(self.younger) + len(self.older)
