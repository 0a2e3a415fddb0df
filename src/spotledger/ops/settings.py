"""
Every setting: its flag, its environment variable, its line in the TOML file, its default and its bounds.

A value is looked for in this order: the flag, the variable ``SPOTLEDGER_…``, the file, the default. Where each
value came from is kept, so that ``spotledger settings`` can say it. The master key itself is a secret and no
setting: it is a file in the data folder, or ``SPOTLEDGER_MASTER_KEY``.
"""
# ruff: noqa: RUF009 - the functions called for defaults below return dataclasses.field(...)

from __future__ import annotations

import dataclasses
import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from spotledger.errors import SettingInvalid
from spotledger.storage.folder import VARIABLE_PREFIX

CONFIG_VARIABLE: Final = "SPOTLEDGER_CONFIG"
TEXT_MAX_CHARACTERS: Final = 64

_NUMBER = re.compile(r"\A-?[0-9]{1,12}\Z")
_DATABASE = re.compile(
    r"\Apostgres(?:ql)?://(?P<login>[^:@/?#]*(?::[^:@/?#]*)?@)?[^@/?#]*(?:/[^@/?#]*)?(?:\?(?P<more>[^?#]*))?\Z"
)
_REDIS = re.compile(
    r"\A(?:rediss?://(?:[^:@/?#]*(?::[^:@/?#]*)?@)?(?:[A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?(?:/[0-9]*)?"
    r"|unix://(?:[^:@/?#]*(?::[^:@/?#]*)?@)?/[^@?#]+)(?:\?[^?#]*)?\Z"
)
_HOST = re.compile(r"\A[A-Za-z0-9._-]{1,253}\Z")


class Address(NamedTuple):
    """A host (a name or an address) and a port; port 0 lets the system choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ServerUrl:
    """The address of a PostgreSQL database or a Redis, perhaps with a password: only :attr:`secret` has that."""

    __slots__ = ("secret",)

    def __init__(self, secret: str) -> None:
        #: The whole address, as the driver takes it. Never show it.
        self.secret = secret

    def __str__(self) -> str:
        shown = re.sub(r"\A([a-z]+://[^:@/?#]*):[^@]*@", r"\1:***@", self.secret)
        return re.sub(r"((?:\A|[?&])[a-z_]*password=)[^&]*", r"\1***", shown)

    def __repr__(self) -> str:
        return f"ServerUrl({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ServerUrl) and self.secret == other.secret

    def __hash__(self) -> int:
        return hash(self.secret)


class Rule(NamedTuple):
    """How the value of one setting is read, and what the reference page says about it."""

    read: Callable[[str, object], Any]
    meaning: str
    passes: str
    metavar: str


def _invalid(name: str, value: object, passes: str) -> SettingInvalid:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return SettingInvalid(f"The setting {name} is {shown}; {passes} would pass.", setting=name)


def _number(default: int, least: int, most: int, meaning: str) -> Any:
    passes = f"a whole number from {least} to {most}"

    def read(name: str, value: object) -> int:
        if isinstance(value, str) and _NUMBER.match(value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _invalid(name, value, passes)
        return value

    return field(default=default, metadata={"rule": Rule(read, meaning, passes, "N")})


def _choice(default: str, choices: tuple[str, ...], meaning: str) -> Any:
    passes = ", ".join(choices[:-1]) + " or " + choices[-1]

    def read(name: str, value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise _invalid(name, value, passes)
        return value

    return field(default=default, metadata={"rule": Rule(read, meaning, passes, "|".join(choices))})


def _text(default: str, meaning: str) -> Any:
    passes = f"1 to {TEXT_MAX_CHARACTERS} printable characters"

    def read(name: str, value: object) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= TEXT_MAX_CHARACTERS or not value.isprintable():
            raise _invalid(name, value, passes)
        return value

    return field(default=default, metadata={"rule": Rule(read, meaning, passes, "TEXT")})


def _path(default: Path | None, meaning: str) -> Any:
    passes = "a path"

    def read(name: str, value: object) -> Path:
        if not isinstance(value, str) or not value or "\0" in value:
            raise _invalid(name, value, passes)
        return Path(value).expanduser()

    return field(default=default, metadata={"rule": Rule(read, meaning, passes, "PATH")})


def _address(default: Address, meaning: str) -> Any:
    passes = "HOST:PORT such as 127.0.0.1:8080, [::1]:8080 or 0.0.0.0:0"
    return field(default=default, metadata={"rule": Rule(_read_address(passes), meaning, passes, "HOST:PORT")})


def _read_address(passes: str) -> Callable[[str, object], Address]:
    def read(name: str, value: object) -> Address:
        if not isinstance(value, str):
            raise _invalid(name, value, passes)
        host, colon, port = value.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not colon or not re.match(r"\A[0-9]{1,5}\Z", port) or int(port) > 65535 or not _is_host(host, bare):
            raise _invalid(name, value, passes)
        return Address(bare, int(port))

    return read


def _is_host(host: str, bare: str) -> bool:
    if host == bare:
        return bool(_HOST.match(host))
    try:
        return ipaddress.ip_address(bare).version == 6
    except ValueError:
        return False


def _database(meaning: str) -> Any:
    passes = "postgresql://NAME@HOST:PORT/DATABASE, with several HOST:PORT divided by commas if wished"
    return _server(_DATABASE, "of a PostgreSQL database", passes, meaning)


def _redis(meaning: str) -> Any:
    return _server(_REDIS, "of a Redis", "redis://HOST:PORT/NUMBER, rediss://… or unix:///PATH", meaning)


def _server(pattern: re.Pattern[str], whose: str, passes: str, meaning: str) -> Any:
    def read(name: str, value: object) -> ServerUrl:
        # What was given is not said again: there may be a password in it.
        found = pattern.match(value) if isinstance(value, str) and value.isascii() and value.isprintable() else None
        if found is None or " " in found[0]:
            raise SettingInvalid(
                f"The setting {name} is no address {whose}; {passes} would pass. "
                "A character of a name or password that has a meaning in addresses is written as %40.",
                setting=name,
            )
        return ServerUrl(found[0])

    return field(default=None, metadata={"rule": Rule(read, meaning, passes, "URL")})


def _networks(meaning: str) -> Any:
    passes = "addresses or networks such as 10.0.0.1 or 10.0.0.0/8, divided by commas"

    def read(name: str, value: object) -> tuple[str, ...]:
        parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if not isinstance(parts, list):
            raise _invalid(name, value, passes)
        try:
            return tuple(str(ipaddress.ip_network(str(part))) for part in parts if part)
        except ValueError:
            raise _invalid(name, value, passes) from None

    return field(default=(), metadata={"rule": Rule(read, meaning, passes, "CIDR,…")})


@dataclass(frozen=True, slots=True)
class Settings:
    """What the service runs with. Times and counts say their unit in their name."""

    data: Path = _path(Path("data"), "The data folder: the ledger, the master key, the first operator token.")
    listen: Address = _address(Address("127.0.0.1", 8080), "Where traders are answered: the public listener.")
    operator_listen: Address = _address(
        Address("127.0.0.1", 8081), "Where the exchange's own systems are answered: the operator listener."
    )
    master_key_file: Path | None = _path(
        None, "A file with the master key, 64 hex digits, instead of `master.key` in the data folder."
    )
    success_info: str = _text("success", "The `info` of a public answer that is a success.")
    asset_limit_per_second: int = _number(
        3, 0, 1_000_000, "Public calls about assets, an account and second; 0: no limit."
    )
    account_limit_per_second: int = _number(
        10, 0, 1_000_000, "Other signed public calls, an account and second; 0: no limit."
    )
    address_limit_per_minute: int = _number(1000, 0, 100_000_000, "Public calls, an address and minute; 0: no limit.")
    lock_seconds: int = _number(600, 0, 86_400, "How long who went over a limit is locked out.")
    nonce_past_ms: int = _number(30_000, 1_000, 60_000, "How old a nonce may be.")
    nonce_future_ms: int = _number(5_000, 1_000, 60_000, "How far ahead of the server's time a nonce may be.")
    replay: str = _choice(
        "address",
        ("address", "strict", "off"),
        "What a signed request seen before means: refused from another address, refused always, or nothing.",
    )
    replay_capacity: int = _number(
        1_000_000, 1, 100_000_000, "Signed requests that the replay memory holds; beyond that the oldest is forgotten."
    )
    trusted_proxies: tuple[str, ...] = _networks("Whose `X-Forwarded-For` counts.")
    queue_limit: int = _number(10_000, 1, 1_000_000, "Operations that may wait for the writer; beyond that: 503.")
    group_limit: int = _number(1_000, 1, 100_000, "Operations that are committed, and synced, together.")
    segment_entries: int = _number(
        65_536, 8, 65_536, "Entries of a segment; fixed when a ledger is made. Smaller ones are for tests."
    )
    cache_accounts: int = _number(50_000, 1, 100_000_000, "Accounts that are kept in memory.")
    audit_entries_per_second: int = _number(
        2_000, 0, 1_000_000, "Entries that the continuous audit reads in a second; 0: there is none."
    )
    audit_pause_seconds: int = _number(
        600, 1, 604_800, "How long the continuous audit rests after a pass; its first begins after a minute at most."
    )
    database: ServerUrl | None = _database(
        "The PostgreSQL database that holds the ledger, instead of a file in the data folder. A password in it is "
        "never shown, but a flag can be seen by all of this machine: use the variable, or `PGPASSFILE`."
    )
    database_connect_seconds: int = _number(3, 2, 60, "How long each host of the database may take to answer.")
    database_lock_ms: int = _number(
        5_000, 100, 60_000, "How long a group waits for its turn to write; beyond that: 503."
    )
    database_idle_ms: int = _number(
        3_000, 500, 60_000, "How long a node that froze may keep the turn, before the database takes it away."
    )
    database_network_ms: int = _number(
        5_000,
        1_100,
        60_000,
        "How long the network may hold up what was sent to the database, before it counts as lost.",
    )
    keys_trust_seconds: int = _number(
        30,
        0,
        86_400,
        "How long a node that has lost the database goes on to let in those whom it knows; beyond that: 503.",
    )
    read_database: ServerUrl | None = _database(
        "A standby of the database: this node answers from it, and takes no writes."
    )
    read_staleness_ms: int = _number(
        10_000, 1_100, 3_600_000, "How old what a standby has may be; beyond that its node answers 503."
    )
    redis: ServerUrl | None = _redis(
        "The Redis or Valkey in which all nodes count limits and remember signed requests together."
    )
    redis_down: str = _choice(
        "local",
        ("local", "refuse"),
        "While Redis does not answer: each node goes by its own counts, or public calls are refused.",
    )
    redis_timeout_ms: int = _number(250, 10, 5_000, "How long Redis may take for an answer before it counts as away.")
    workers: int = _number(1, 1, 64, "Processes that serve the same ports of this machine; several need a database.")
    log_level: str = _choice("info", ("debug", "info", "warning", "error"), "What is told on standard error.")


class InForce(NamedTuple):
    """The settings in force, and where each value came from."""

    settings: Settings
    sources: Mapping[str, str]


RULES: Final[Mapping[str, Rule]] = {item.name: item.metadata["rule"] for item in dataclasses.fields(Settings)}


def flag_of(name: str) -> str:
    """Return the flag of the setting *name*: ``--nonce-past-ms`` for ``nonce_past_ms``."""
    return "--" + name.replace("_", "-")


def variable_of(name: str) -> str:
    """Return the environment variable of the setting *name*: ``SPOTLEDGER_NONCE_PAST_MS`` for ``nonce_past_ms``."""
    return VARIABLE_PREFIX + name.upper()


def load_settings(
    flags: Mapping[str, str | None], environ: Mapping[str, str], config: str | Path | None = None
) -> InForce:
    """
    Put together the settings in force.

    Args:
        flags: Values from the command line by setting; None where a flag was not given.
        environ: The environment.
        config: The TOML file; where None, the one that ``SPOTLEDGER_CONFIG`` names, if it names one.

    Raises:
        SettingInvalid: A value is out of bounds, or the file cannot be read or has a line that no setting reads.
    """
    file = Path(config) if config else Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None
    lines = _read_file(file) if file else {}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, rule in RULES.items():
        flag, variable = flag_of(name), variable_of(name)
        if flags.get(name) is not None:
            values[name], sources[name] = rule.read(f"{name} ({flag})", flags[name]), flag
        elif variable in environ:
            values[name], sources[name] = rule.read(f"{name} ({variable})", environ[variable]), variable
        elif name in lines:
            values[name], sources[name] = rule.read(f"{name} (in {file})", lines[name]), str(file)
        else:
            sources[name] = "default"
    settings = Settings(**values)
    _check_together(settings)
    return InForce(settings, sources)


def _check_together(settings: Settings) -> None:
    if settings.database is None:
        for name, given in (("workers", settings.workers > 1), ("read_database", settings.read_database is not None)):
            if given:
                raise SettingInvalid(
                    f"{name} is given without a database; name one with {flag_of('database')}, or leave {name} out.",
                    setting=name,
                )
    if settings.listen.port and settings.listen == settings.operator_listen:
        raise SettingInvalid(
            f"listen and operator_listen are both {settings.listen}; two different ports would pass.",
            setting="operator_listen",
        )


def _read_file(file: Path) -> dict[str, Any]:
    try:
        lines = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as problem:
        raise SettingInvalid(f"The settings file {file} cannot be read: {problem.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise SettingInvalid(f"The settings file {file} is not TOML: {problem}.") from None
    for name in lines:
        if name not in RULES:
            raise SettingInvalid(
                f"The settings file {file} has a line {name!r}; these would pass: {', '.join(RULES)}.", setting=name
            )
    return lines


def plain(value: object) -> object:
    """Return the value of a setting in a form that JSON has: numbers, texts, lists of texts, or None."""
    if isinstance(value, Address | ServerUrl | Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def shown(value: object) -> str:
    """Return the value of a setting as a line of a table shows it; a dash for none."""
    form = plain(value)
    return (", ".join(form) if isinstance(form, list) else "" if form is None else str(form)) or "–"


def markdown() -> str:
    """Return the reference page of all settings (``docs/reference/settings.md``)."""
    rows = [
        "| setting | flag and variable | default | passes | meaning |",
        "|---|---|---|---|---|",
    ]
    for item in dataclasses.fields(Settings):
        rule = RULES[item.name]
        rows.append(
            f"| `{item.name}` | `{flag_of(item.name)}`<br>`{variable_of(item.name)}` | {shown(item.default)} "
            f"| {rule.passes} | {rule.meaning} |"
        )
    return _PAGE.format(table="\n".join(rows))


_PAGE: Final = """\
# Settings

*This page is written by `spotledger settings --markdown`; change `src/spotledger/ops/settings.py` instead.*

Each setting can be given in four places. The first of these that has it counts: its flag on the command line, its
environment variable, its line in the TOML file that `--config FILE` or `SPOTLEDGER_CONFIG` names, its default.
`spotledger settings` prints what is in force and where it comes from; `spotledger settings --json` prints the same for
programs.

{table}

In the file a number is a number, a text a text, and a list a list:

```toml
data = "/var/lib/spotledger"
listen = "0.0.0.0:8080"
success_info = "Success"
nonce_past_ms = 30000
trusted_proxies = ["10.0.0.1", "10.1.0.0/16"]
```

Beside the settings, these variables are read:

| variable | by | meaning |
|---|---|---|
| `SPOTLEDGER_CONFIG` | every command | The settings file. |
| `SPOTLEDGER_MASTER_KEY` | the service | The master key, 64 hex digits, instead of a file. A secret: it has no flag. |
| `SPOTLEDGER_URL` | the clients, `get-balance` | The public listener; else `http://127.0.0.1:8080`. |
| `PGPASSFILE` | the service | A file with the database's password, as libpq reads it (`~/.pgpass` where unset). |
| `SPOTLEDGER_SECRETKEY` | `get-balance` | The secret of the access key. It has no flag either. |
"""
