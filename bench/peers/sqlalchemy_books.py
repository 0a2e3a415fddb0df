"""
The books of an exchange with SQLAlchemy's ORM, as most people write them.

A row for each balance, hold, entry and posting; a request is one session: look for the idempotency key, load what is
touched with SELECT … FOR UPDATE where the database has it, change the objects, commit. It keeps idempotency, double
entry, holds and balances after each posting; it has no hash chain and cannot say a balance as of an earlier entry
without adding postings up.

Called as: python sqlalchemy_books.py DATABASE_URL WORK.jsonl SECONDS; prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from decimal import Decimal
from pathlib import Path

from sqlalchemy import JSON, ForeignKey, Integer, Numeric, String, UniqueConstraint, create_engine, event, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.types import TypeDecorator


class Units(TypeDecorator):
    """Whole units: NUMERIC where the database has exact ones, text in SQLite, which has not."""

    impl = Numeric(38, 0)
    cache_ok = True

    def load_dialect_impl(self, dialect):
        return dialect.type_descriptor(String(40) if dialect.name == "sqlite" else Numeric(38, 0))

    def process_bind_param(self, value, dialect):
        return str(value) if dialect.name == "sqlite" else Decimal(value)

    def process_result_value(self, value, dialect):
        return int(value)


class Base(DeclarativeBase):
    """The tables."""


class Balance(Base):
    __tablename__ = "balance"
    __table_args__ = (UniqueConstraint("customer", "coin"),)
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    customer: Mapped[str] = mapped_column(String(64))
    coin: Mapped[str] = mapped_column(String(20))
    available: Mapped[int] = mapped_column(Units, default=0)
    frozen: Mapped[int] = mapped_column(Units, default=0)


class Hold(Base):
    __tablename__ = "hold"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    key: Mapped[str] = mapped_column(String(64), unique=True)
    customer: Mapped[str] = mapped_column(String(64), index=True)
    coin: Mapped[str] = mapped_column(String(20))
    amount: Mapped[int] = mapped_column(Units)
    remaining: Mapped[int] = mapped_column(Units)
    reference: Mapped[str] = mapped_column(String(256))


class Entry(Base):
    __tablename__ = "entry"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    key: Mapped[str] = mapped_column(String(64), unique=True)
    request: Mapped[dict] = mapped_column(JSON)
    refusal: Mapped[str | None] = mapped_column(String(40))
    booked_ms: Mapped[int] = mapped_column(Numeric(15, 0))
    postings: Mapped[list[Posting]] = relationship(back_populates="entry")


class Posting(Base):
    __tablename__ = "posting"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    entry_id: Mapped[int] = mapped_column(ForeignKey("entry.id"), index=True)
    balance_id: Mapped[int] = mapped_column(ForeignKey("balance.id"), index=True)
    side: Mapped[str] = mapped_column(String(10))
    units: Mapped[int] = mapped_column(Units)
    after: Mapped[int] = mapped_column(Units)
    entry: Mapped[Entry] = relationship(back_populates="postings")


class Refused(Exception):
    """The operation does nothing; the reason is kept with the key."""


class Books:
    """One operation at a time, each in a session of its own."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url)
        if url.startswith("sqlite"):
            event.listen(self.engine, "connect", make_durable)
        Base.metadata.create_all(self.engine)

    def do(self, request: dict) -> int:
        """Do what *request* says, once; return the entry's id."""
        with Session(self.engine) as session, session.begin():
            kept = session.scalars(select(Entry).where(Entry.key == request["key"])).one_or_none()
            if kept is not None:
                return kept.id
            entry = Entry(key=request["key"], request=request, booked_ms=int(time.time() * 1000))
            session.add(entry)
            try:
                getattr(self, request["op"])(session, entry, request)
            except Refused as refused:
                entry.refusal = str(refused)
            session.flush()
            return entry.id

    def fund(self, pairs: list[tuple[str, str]], units: int) -> None:
        """Make balances with *units* available."""
        with Session(self.engine) as session, session.begin():
            session.add_all(Balance(customer=c, coin=coin, available=units, frozen=0) for c, coin in pairs)

    def balance(self, session: Session, customer: str, coin: str) -> Balance:
        query = select(Balance).where(Balance.customer == customer, Balance.coin == coin).with_for_update()
        balance = session.scalars(query).one_or_none()
        if balance is None:
            balance = Balance(customer=customer, coin=coin, available=0, frozen=0)
            session.add(balance)
            session.flush()
        return balance

    def hold(self, session: Session, key: str) -> Hold:
        return session.scalars(select(Hold).where(Hold.key == key).with_for_update()).one()

    def post(self, session: Session, entry: Entry, customer: str, coin: str, side: str, units: int) -> None:
        if not units:
            return
        balance = self.balance(session, customer, coin)
        after = getattr(balance, side) + units
        if after < 0 and not customer.startswith("@"):
            raise Refused("insufficient")
        setattr(balance, side, after)
        session.add(Posting(entry=entry, balance_id=balance.id, side=side, units=units, after=after))

    def deposit(self, session: Session, entry: Entry, request: dict) -> None:
        self.post(session, entry, "@external", request["coin"], "available", -request["units"])
        self.post(session, entry, request["customer"], request["coin"], "available", request["units"])

    def withdraw(self, session: Session, entry: Entry, request: dict) -> None:
        self.post(session, entry, request["customer"], request["coin"], "available", -request["units"])
        self.post(session, entry, "@external", request["coin"], "available", request["units"])

    def freeze(self, session: Session, entry: Entry, request: dict) -> None:
        customer, coin, units = request["customer"], request["coin"], request["units"]
        self.post(session, entry, customer, coin, "available", -units)
        self.post(session, entry, customer, coin, "frozen", units)
        session.add(
            Hold(
                key=request["key"],
                customer=customer,
                coin=coin,
                amount=units,
                remaining=units,
                reference=request["reference"],
            )
        )

    def unfreeze(self, session: Session, entry: Entry, request: dict) -> None:
        hold = self.hold(session, request["hold"])
        self.use(session, entry, hold, hold.remaining)
        left = entry.postings[-1].units
        self.post(session, entry, hold.customer, hold.coin, "available", -left)

    def use(self, session: Session, entry: Entry, hold: Hold, units: int) -> None:
        if not 0 < units <= hold.remaining:
            raise Refused("hold")
        hold.remaining -= units
        self.post(session, entry, hold.customer, hold.coin, "frozen", -units)

    def settle(self, session: Session, entry: Entry, request: dict) -> None:
        buyer, seller = self.hold(session, request["buyer"]), self.hold(session, request["seller"])
        released = buyer.remaining - request["quote_units"] if request["release"] else 0
        self.use(session, entry, buyer, request["quote_units"] + released)
        self.use(session, entry, seller, request["base_units"])
        for customer, coin, units, fee in (
            (buyer.customer, seller.coin, request["base_units"], request["base_fee"]),
            (seller.customer, buyer.coin, request["quote_units"], request["quote_fee"]),
        ):
            self.post(session, entry, customer, coin, "available", units - fee)
            self.post(session, entry, "@fees", coin, "available", fee)
        self.post(session, entry, buyer.customer, buyer.coin, "available", released)


def make_durable(connection, _) -> None:
    """Have every commit synced, as SQLite does by itself without a write-ahead log."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def main() -> None:
    """Fund, then do the work for so many seconds; print what came of it."""
    url, path, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    with Path(path).open(encoding="utf-8") as lines:
        funded, *requests = [json.loads(line) for line in lines]
    books = Books(url)
    books.fund([tuple(pair) for pair in funded["pairs"]], funded["units"])
    done, processor, started = 0, time.process_time(), time.perf_counter()
    for request in requests:
        books.do(request)
        done += 1
        if time.perf_counter() - started > seconds:
            break
    passed = time.perf_counter() - started
    processor = time.process_time() - processor
    print(json.dumps({"operations": done, "seconds": passed, "processor_us": processor / done * 1e6}))


if __name__ == "__main__":
    main()
