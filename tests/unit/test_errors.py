"""The tree of errors: its picture, its codes, and refusals found again by their code."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from spotledger import errors
from spotledger.errors import LedgerCorrupt, Refused, SpotledgerError
from spotledger.ledger.kept_refusals import refusal_of_code


def classes(kind: type[SpotledgerError]) -> Iterator[type[SpotledgerError]]:
    """Give *kind* and all classes of the module below it."""
    yield kind
    for sub in kind.__subclasses__():
        if sub.__module__ == errors.__name__:
            yield from classes(sub)


TREE = list(classes(SpotledgerError))


def test_picture_in_the_docstring_is_the_tree() -> None:
    """What a reader sees at the top of the file is every class, below the class that it is one of."""
    pictured, above = set(), ["Exception"]
    for bars, branch, name in re.findall(r"^ {4}((?:[│ ] {3})*)([├└]── )?(\w+)", errors.__doc__ or "", re.MULTILINE):
        depth = len(bars + branch) // 4
        above[depth + 1 :] = [name]
        pictured.add((above[depth], name))
    assert pictured == {(kind.__bases__[0].__name__, kind.__name__) for kind in [*TREE, LedgerCorrupt]}


def test_codes_are_the_names_of_their_classes() -> None:
    """A code never stands for two errors, and is found from the class without looking it up."""
    renamed = {SpotledgerError: "error"}
    for kind in TREE:
        snake_case = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()
        assert kind.__dict__["code"] == renamed.get(kind, snake_case)


@pytest.mark.parametrize("kind", [kind for kind in TREE if issubclass(kind, Refused)])
def test_refusal_comes_back_from_the_journal_as_it_was(kind: type[Refused]) -> None:
    """A kept refusal is found by its code, with its text and details, whatever its place in the tree."""
    again = refusal_of_code(kind.code, "found this", {"field": "amount"})
    assert (type(again), again.message, again.details) == (kind, "found this", {"field": "amount"})


@pytest.mark.parametrize("code", ["", "no_such_code", "store_busy", "token_refused", "error"])
def test_code_that_no_refusal_has_is_damage(code: str) -> None:
    """Only a refusal is kept in the journal: any other code in it was never written by us."""
    with pytest.raises(LedgerCorrupt):
        refusal_of_code(code, "text", {})
