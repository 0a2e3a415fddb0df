"""A dictionary of bounded size that forgets what was not asked for lately."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(Generic[K, V]):
    """
    Remember at most twice *generation_limit* items, each step O(1).

    Items live in two generations. What is put, or found in the older one, goes to the younger; when
    that is full it becomes the older, and what the older held is forgotten at once.
    """

    __slots__ = ("forgotten", "generation_limit", "older", "younger")

    def __init__(self, generation_limit: int) -> None:
        if generation_limit < 1:
            raise ValueError(f"generation_limit is {generation_limit}; it is at least 1")
        self.generation_limit = generation_limit
        self.younger: dict[K, V] = {}
        self.older: dict[K, V] = {}
        #: How many items were forgotten for want of room.
        self.forgotten = 0

    def get(self, key: K) -> V | None:
        """Return what is kept for *key*, or None."""
        found = self.younger.get(key)
        if found is None and self.older:
            found = self.older.pop(key, None)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: K, value: V) -> None:
        """Keep *value* (not None) for *key*."""
        if len(self.younger) >= self.generation_limit and key not in self.younger:
            self.rotate()
        self.older.pop(key, None)
        self.younger[key] = value

    def rotate(self) -> None:
        """Begin a new generation: what is in the older one is forgotten."""
        self.forgotten += len(self.older)
        self.older = self.younger
        self.younger = {}

    def drop(self, key: K) -> None:
        """Forget *key*."""
        self.younger.pop(key, None)
        self.older.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self.younger = {}
        self.older = {}

    def __len__(self) -> int:
        return len(self.younger) + len(self.older)
