"""
The answers of the operator API, as structs: what is encoded is what the OpenAPI document describes.

Amounts are decimal text that can be sent back unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from spotledger.domain.accounts import Balance
from spotledger.domain.amounts import MAX_SCALE, formatter
from spotledger.domain.journal import AVAILABLE, BalanceAfter, Entry, Hold
from spotledger.domain.positions import Epochs
from spotledger.http.operator.actors import ActorLabels
from spotledger.ledger.reads import LedgerReads

Json = dict[str, Any]
#: Signed decimal text: two decimals at least, but never more than the coin has.
AmountText = Annotated[str, Meta(extra_json_schema={"pattern": r"^-?[0-9]+(\.[0-9]+)?$", "examples": ["100.50"]})]
HoldText = Annotated[str, Meta(description="The id of a hold: the position of the entry that opened it.")]
Seq = Annotated[
    int,
    Meta(description="The number of an entry in this journal, without its epoch.", extra_json_schema={"minimum": 0}),
]
HeadSeq = Annotated[int, Meta(description="The position of the journal that this answer stands for.")]
Epoch = Annotated[int, Meta(description="The epoch of seq; each restore from a backup begins a new one.")]
PositionText = Annotated[
    str,
    Meta(
        description="A position: the seq of an entry in epoch 1, and EPOCH-SEQ in later ones.",
        extra_json_schema={"pattern": r"^([1-9][0-9]*-)?[0-9]+$", "examples": ["12", "2-12"]},
    ),
]
NextAfter = Annotated[str | None, Meta(description="The ``after`` of the next page; null if there is none.")]
Next = Annotated[PositionText, Meta(description="The ``after_seq`` of the next page, as a position.")]
TimeMs = Annotated[int, Meta(description="Milliseconds since 1970.")]


class Answer(Struct, gc=False):
    """A JSON object with these fields."""


class ReadAnswer(Answer):
    """An answer that stands for one position of the journal."""

    seq: HeadSeq
    epoch: Epoch


class BalanceAnswer(Answer):
    """Both sides of a balance."""

    available: AmountText
    freeze: AmountText


class PostingAnswer(Answer):
    """One signed line of an entry, with the balance of its side after it."""

    customer: str
    account: str
    coin: str
    side: str
    amount: AmountText
    after: AmountText
    hold: HoldText | UnsetType = UNSET


class HoldAfterAnswer(Answer):
    """What remains of a hold after an entry."""

    hold: HoldText
    remaining: AmountText


class AfterAnswer(Answer):
    """The balance of one account and coin after an entry."""

    customer: str
    account: str
    coin: str
    available: AmountText
    freeze: AmountText


class EntryAnswer(Answer):
    """One entry of the journal: its request, postings and holds; a kept refusal has no postings."""

    seq: Seq
    epoch: Epoch
    kind: str
    key: Annotated[str, Meta(description="The idempotency key; one that starts with a blank is the ledger's own.")]
    booked_ms: TimeMs
    actor: Annotated[str, Meta(description="The credential behind it: token:ID, key:BEGINNING, library or ledger.")]
    request: Annotated[Json, Meta(description="The canonical request, as the journal keeps it.")]
    postings: list[PostingAnswer]
    happened_ms: TimeMs | UnsetType = UNSET
    holds: list[HoldAfterAnswer] | UnsetType = UNSET
    refusal: Json | UnsetType = UNSET
    actor_label: Annotated[str, Meta(description="The label of the token, if the actor is one.")] | UnsetType = UNSET


DryRun = Annotated[bool, Meta(description="True if it was only tried: nothing was booked, and no key was used.")]


class WriteAnswer(Answer):
    """What a write did: its position in the journal, its entry, the balances after it, the hold that it opened."""

    seq: Seq
    epoch: Epoch
    entry: EntryAnswer
    balances: list[AfterAnswer]
    hold: HoldText | UnsetType = UNSET
    replayed: Annotated[bool, Meta(description="In a batch: true if an earlier request did this.")] | UnsetType = UNSET
    dry_run: DryRun | UnsetType = UNSET


class HoldAnswer(Answer):
    """One hold, open or closed: whose, why, since when, and which write opened it."""

    hold: HoldText
    customer: str
    account: str
    coin: str
    amount: AmountText
    remaining: AmountText
    state: Annotated[str, Meta(extra_json_schema={"enum": ["open", "closed"]})]
    reference: str | None
    expires_ms: TimeMs | None
    opened_ms: TimeMs
    closed_seq: Seq | None
    age_ms: Annotated[int, Meta(description="How long ago it was opened.")]
    key: Annotated[str, Meta(description="The idempotency key that opened it.")] | UnsetType = UNSET
    due: Annotated[bool, Meta(description="True if it is past its time, and cannot be used.")] | UnsetType = UNSET


class CoinAnswer(Answer):
    """A listed coin."""

    coin: str
    scale: Annotated[int, Meta(description="Decimal places.")]


class CoinsAnswer(ReadAnswer):
    """The listed coins."""

    coins: list[CoinAnswer]


class CustomersAnswer(ReadAnswer):
    """A page of customers."""

    customers: list[str]
    next_after: NextAfter


class HouseAccountAnswer(Answer):
    """A house account."""

    name: Annotated[str, Meta(description="The name with its @.", examples=["@treasury"])]
    may_be_negative: Annotated[bool, Meta(description="Whether its balances may be below zero.")]


class HouseAccountsAnswer(ReadAnswer):
    """The house accounts by name; what each customer owes is in a receivable of its own, which is not listed."""

    house_accounts: list[HouseAccountAnswer]


class BalancesAnswer(ReadAnswer):
    """The balances of an account in each listed coin, and what the customer owes the house, if anything."""

    customer: str
    account: str
    balances: dict[str, BalanceAnswer]
    owes: dict[str, AmountText] | UnsetType = UNSET


class HoldsAnswer(ReadAnswer):
    """A page of holds."""

    holds: list[HoldAnswer]
    next_after: NextAfter


class HoldReadAnswer(ReadAnswer):
    """One hold."""

    hold: HoldAnswer


class EntriesAnswer(ReadAnswer):
    """A page of the journal; ``next`` is the ``after_seq`` of the next one, and ``next_after_seq`` its number."""

    entries: list[EntryAnswer]
    next_after_seq: Seq
    next: Next


class EntryReadAnswer(ReadAnswer):
    """One entry, and the entry that reversed it, or null."""

    entry: EntryAnswer
    reversed_by: Seq | None


class StatementAnswer(ReadAnswer):
    """A page of the entries of a customer, with the balances that they touch, before the first and after the last."""

    customer: str
    opening: list[AfterAnswer]
    entries: list[EntryAnswer]
    closing: list[AfterAnswer]
    next_after_seq: Seq
    next: Next


class TrialCoinAnswer(Answer):
    """The sums of one coin: of all customers, of each house account, and in total, which is zero."""

    customers: BalanceAnswer
    house: Annotated[dict[str, AmountText], Meta(description="What each house account has available.")]
    total: AmountText
    house_freeze: Annotated[
        dict[str, AmountText], Meta(description="What is frozen of house accounts; those without are left out.")
    ] = {}


class TrialBalanceAnswer(ReadAnswer):
    """The trial balance as of one entry."""

    balanced: Annotated[bool, Meta(description="Whether the total of every coin is zero.")]
    coins: dict[str, TrialCoinAnswer]


class KeyAnswer(Answer):
    """An access key, without its secret."""

    accesskey: str
    customer: str
    permissions: list[str]
    label: str
    addresses: list[str]
    created_ms: TimeMs
    expires_ms: TimeMs | None
    revoked_ms: TimeMs | None
    last_used_ms: TimeMs | None


class KeysAnswer(Answer):
    """A page of access keys."""

    keys: list[KeyAnswer]
    next_after: NextAfter


class KeyMadeAnswer(KeyAnswer):
    """A new access key with its secret, which is null in a repeated answer."""

    secretkey: str | None = None
    replaces: str | UnsetType = UNSET


class TokenMadeAnswer(Answer):
    """A new operator token; the token itself is null in a repeated answer."""

    token_id: str
    token: str | None
    scopes: list[str]
    label: str
    addresses: list[str]
    created_ms: TimeMs
    expires_ms: TimeMs | None


class TokenAnswer(Answer):
    """An operator token, without the token itself."""

    token_id: str
    fingerprint: Annotated[str, Meta(description="The first 16 hex digits of the token's SHA-256.")]
    scopes: list[str]
    label: str
    addresses: list[str]
    created_ms: TimeMs
    expires_ms: TimeMs | None
    revoked_ms: TimeMs | None
    last_used_ms: TimeMs | None


class TokensAnswer(Answer):
    """A page of operator tokens."""

    tokens: list[TokenAnswer]
    next_after: NextAfter


class AliveAnswer(Answer):
    """The service runs."""

    status: str


class SealingAnswer(Answer):
    """How far sealing is behind the journal of an embedded ledger."""

    lag_entries: Annotated[int, Meta(description="Entries of full segments that are not read from the books yet.")]


class ReadyAnswer(Answer):
    """
    The service accepts writes; an embedded ledger says how far sealing is behind.

    While the books are made again, writes that need them are not accepted.
    """

    status: str
    seq: HeadSeq
    sealing: SealingAnswer | UnsetType = UNSET
    rebuilding: Annotated[str, Meta(description="How far the books have been made again.")] | UnsetType = UNSET


#: Formats units of one coin as text.
Texts: TypeAlias = Callable[[int], str]

#: By scale: at least two decimals, but never more than the coin has.
TEXTS: Final = tuple(formatter(scale, min(2, scale)) for scale in range(MAX_SCALE + 1))


def amount_text(units: int, scale: int) -> str:
    """Return *units* as text with at least two decimals, but never more than the coin has."""
    return TEXTS[scale](units)


class CoinTexts(dict[str, Texts]):
    """The formatters of amounts by coin, the epochs of positions, and the labels of actors, of one ledger."""

    __slots__ = ("_ledger", "labels")

    def __init__(self, ledger: LedgerReads, labels: ActorLabels) -> None:
        super().__init__()
        self._ledger = ledger
        self.labels = labels

    def __missing__(self, coin: str) -> Texts:
        texts = self[coin] = TEXTS[self._ledger.coins[coin].scale]
        return texts

    @property
    def epochs(self) -> Epochs:
        """The epochs of the journal."""
        return self._ledger.epochs


def balance_answer(balance: Balance, scale: int) -> BalanceAnswer:
    """Return the answer for one balance."""
    return BalanceAnswer(amount_text(balance.available, scale), amount_text(balance.freeze, scale))


def entry_answer(entry: Entry, texts: CoinTexts) -> EntryAnswer:
    """Return the answer for one entry, whose actor's label was learned."""
    return _entry_and_balances(entry, texts)[0]


def _entry_and_balances(entry: Entry, texts: CoinTexts) -> tuple[EntryAnswer, list[AfterAnswer]]:
    """Return the answers for an entry and for the balances after it, of which each amount is formatted once."""
    holds: list[HoldAfterAnswer] | UnsetType = UNSET
    epochs = texts.epochs
    if entry.holds:
        coin_of = {hold: entry.balances[place][1] for place, _, _, hold in entry.moves}
        holds = [HoldAfterAnswer(epochs.text(hold), texts[coin_of[hold]](remaining)) for hold, remaining in entry.holds]
    balances: list[AfterAnswer] = []
    sides: list[list[Any]] = []
    for account, coin, available, freeze in entry.balances:
        text = texts[coin]
        after = AfterAnswer(*account, coin, text(available), text(freeze))
        balances.append(after)
        sides.append([available, freeze, after.available, after.freeze])
    answer = EntryAnswer(
        entry.seq,
        epochs.of(entry.seq),
        entry.kind,
        entry.key,
        entry.booked_ms,
        entry.actor,
        _request_json(entry.request, texts),
        _postings(entry, sides, texts, epochs),
        UNSET if entry.happened_ms is None else entry.happened_ms,
        holds,
        UNSET if entry.refusal is None else entry.refusal,
        texts.labels.of(entry.actor),
    )
    return answer, balances


def _postings(entry: Entry, sides: list[list[Any]], texts: CoinTexts, epochs: Epochs) -> list[PostingAnswer]:
    """Return the postings, worked back from *sides*: available and freeze after all of each balance, units and text."""
    answers = []
    last, last_text, amount = 0, None, ""
    for place, side, units, hold in reversed(entry.moves):
        account, coin, _, _ = entry.balances[place]
        text = texts[coin]
        if units != -last or text is not last_text:
            amount = text(units)
        elif units < 0:  # the opposite of the posting after it, as most are
            amount = "-" + amount
        else:
            amount = amount[1:]
        last, last_text = units, text
        both = sides[place]
        number = 0 if side == AVAILABLE else 1
        after, after_text = both[number], both[number + 2]
        both[number], both[number + 2] = after - units, ""
        held = UNSET if hold is None else epochs.text(hold)
        answers.append(PostingAnswer(*account, coin, side, amount, after_text or text(after), held))
    answers.reverse()
    return answers


#: Of a kept settlement, by coin: the field with units, the caller's field with the amount, and the side that pays it.
_FILLED: Final = {"base": ("base_units", "base_amount", "seller"), "quote": ("quote_units", "quote_amount", "buyer")}


def _request_json(request: Json, texts: CoinTexts) -> Json:
    """Return a kept request with decimal amounts in place of units, under the names of the caller's fields."""
    answer = request.copy()
    answer.pop("format", None)  # a part of a request has none
    units = answer.pop("units", None)
    if units is not None:
        answer["amount"] = texts[answer["coin"]](int(units))
    elif "base" in answer:
        for coin, (units_field, field, side) in _FILLED.items():
            units = answer.pop(units_field, None)
            if units is not None:
                answer[field] = texts[answer[coin]](int(units))
            answer[side] = _side_json(answer[side], answer[coin], texts)
    return answer


def _side_json(side: Json, paid: str, texts: CoinTexts) -> Json:
    answer: Json = {}
    for name, value in side.items():
        if name in ("fee", "dust"):
            answer[name] = _request_json(value, texts)
        elif name == "release_units":
            answer["release"] = texts[paid](int(value))
        else:
            answer["release" if name == "release_amount" else name] = value
    return answer


def after_answer(after: BalanceAfter, texts: CoinTexts) -> AfterAnswer:
    """Return the answer for the balance of one account and coin after an entry."""
    (customer, kind), coin, available, freeze = after
    text = texts[coin]
    return AfterAnswer(customer, kind, coin, text(available), text(freeze))


def write_answer(entry: Entry, hold: int | None, texts: CoinTexts) -> WriteAnswer:
    """Return the answer to a write that made *entry* and opened *hold*, if not None."""
    made, balances = _entry_and_balances(entry, texts)
    return WriteAnswer(entry.seq, made.epoch, made, balances, UNSET if hold is None else texts.epochs.text(hold))


def hold_answer(hold: Hold, position: str, scale: int, key: str | UnsetType, now_ms: int) -> HoldAnswer:
    """Return the answer for one hold, opened at *position* with the idempotency key *key*, at *now_ms*."""
    return HoldAnswer(
        position,
        hold.account.customer,
        hold.account.kind,
        hold.coin,
        amount_text(hold.amount, scale),
        amount_text(hold.remaining, scale),
        hold.state,
        hold.reference,
        hold.expires_ms,
        hold.opened_ms,
        hold.closed_seq,
        now_ms - hold.opened_ms,
        key,
        hold.due or UNSET,
    )
