"""
All settings: their flags, environment variables, lines in the TOML file, defaults and bounds.

A value comes from the first of these that has it: the flag, the variable ``SPOTLEDGER_…``, the file, the default.
``spotledger settings`` shows where each value came from. The master key is a secret and not a setting: it is a file in
the data folder, or ``SPOTLEDGER_MASTER_KEY``.
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
from spotledger.os_errors import unusable_file
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
_ADDRESS = re.compile(r"\A(?:(?P<host>[A-Za-z0-9._-]{1,253})|\[(?P<ipv6>[^\]]*)\]):(?P<port>[0-9]{1,5})\Z")


class Address(NamedTuple):
    """A host (a name or an address) and a port; with port 0, the system chooses one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ServerUrl:
    """The URL of a PostgreSQL database or of Redis; a password in it is only in :attr:`secret`."""

    __slots__ = ("secret",)

    def __init__(self, secret: str) -> None:
        #: The whole URL, as the driver takes it. Never show it.
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
    """How the value of a setting is read, and what the reference page says about it."""

    read: Callable[[str, object], Any]
    meaning: str
    passes: str
    metavar: str


class _Found(ValueError):
    """Says what was found, if not just the value as given; that may contain a password."""


def _setting(default: object, convert: Callable[[Any], Any], meaning: str, passes: str, metavar: str) -> Any:
    """
    Return the field of a setting.

    Args:
        default: The default.
        convert: Returns the value of a text, or of a value in the TOML file; raises ValueError if it is not valid.
        meaning: What the setting means.
        passes: Which values pass.
        metavar: The value as it is shown in the help of a command.
    """

    def read(name: str, given: object) -> Any:
        try:
            return convert(given)
        except _Found as problem:
            found = str(problem)
        except ValueError:
            found = _cut(given)
        raise SettingInvalid(f"The setting {name} is {found}; {passes} would pass.", setting=name)

    return field(default=default, metadata={"rule": Rule(read, meaning, passes, metavar)})


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _number(default: int, least: int, most: int, meaning: str) -> Any:
    def convert(given: object) -> int:
        number = int(given) if isinstance(given, str) and _NUMBER.match(given) else given
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
            raise _Found(_cut(number))
        return number

    return _setting(default, convert, meaning, f"a whole number from {least} to {most}", "N")


def _choice(default: str, choices: tuple[str, ...], meaning: str) -> Any:
    def convert(given: str) -> str:
        if given not in choices:
            raise ValueError
        return given

    passes = ", ".join(choices[:-1]) + " or " + choices[-1]
    return _setting(default, convert, meaning, passes, "|".join(choices))


def _text(default: str, meaning: str) -> Any:
    def convert(given: object) -> str:
        if not isinstance(given, str) or not 1 <= len(given) <= TEXT_MAX_CHARACTERS or not given.isprintable():
            raise ValueError
        return given

    return _setting(default, convert, meaning, f"1 to {TEXT_MAX_CHARACTERS} printable characters", "TEXT")


def _path(default: Path | None, meaning: str) -> Any:
    def convert(given: object) -> Path:
        if not isinstance(given, str) or not given or "\0" in given:
            raise ValueError
        return Path(given).expanduser()

    return _setting(default, convert, meaning, "a path", "PATH")


def _address(default: Address, meaning: str) -> Any:
    passes = "HOST:PORT such as 127.0.0.1:8080, [::1]:8080 or 0.0.0.0:0"
    return _setting(default, _read_address, meaning, passes, "HOST:PORT")


def _read_address(given: object) -> Address:
    match = _ADDRESS.match(given) if isinstance(given, str) else None
    if match is None or int(match["port"]) > 65535:
        raise ValueError
    if match["ipv6"] is not None:
        ipaddress.IPv6Address(match["ipv6"])
    return Address(match["ipv6"] or match["host"], int(match["port"]))


def _database(meaning: str) -> Any:
    passes = "postgresql://NAME@HOST:PORT/DATABASE, or several HOST:PORT separated by commas"
    return _server(_DATABASE, "a PostgreSQL database", passes, meaning)


def _redis(meaning: str) -> Any:
    return _server(_REDIS, "Redis", "redis://HOST:PORT/NUMBER, rediss://… or unix:///PATH", meaning)


def _server(pattern: re.Pattern[str], server: str, passes: str, meaning: str) -> Any:
    def convert(given: object) -> ServerUrl:
        found = pattern.match(given) if isinstance(given, str) and given.isascii() and given.isprintable() else None
        if found is None or " " in found[0]:
            raise _Found(f"not the URL of {server} (special characters in a password are written like %40)")
        return ServerUrl(found[0])

    return _setting(None, convert, meaning, passes, "URL")


def _networks(meaning: str) -> Any:
    def convert(given: object) -> tuple[str, ...]:
        parts = [part.strip() for part in given.split(",")] if isinstance(given, str) else given
        if not isinstance(parts, list):
            raise ValueError  # noqa: TRY004 - one kind of error
        return tuple(str(ipaddress.ip_network(str(part))) for part in parts if part)

    passes = "addresses or networks such as 10.0.0.1 or 10.0.0.0/8, separated by commas"
    return _setting((), convert, meaning, passes, "CIDR,…")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of the service. Names of times and counts end with their unit."""

    data: Path = _path(Path("data"), "The data folder, with the ledger, the master key and the first operator token.")
    listen: Address = _address(Address("127.0.0.1", 8080), "The address of the public listener, for traders.")
    operator_listen: Address = _address(
        Address("127.0.0.1", 8081), "The address of the operator listener, for the exchange's own systems."
    )
    tls_cert: Path | None = _path(
        None,
        "A file with the certificate for TLS in PEM form, followed by its chain; SIGHUP reloads it. The public "
        "listener then speaks TLS, and so does the operator listener unless its address is a loopback address.",
    )
    tls_key: Path | None = _path(None, "A file with the key of `tls_cert` in PEM form, not encrypted.")
    master_key_file: Path | None = _path(
        None, "A file with the master key, 64 hex digits, instead of `master.key` in the data folder."
    )
    next_master_key_file: Path | None = _path(
        None,
        "A file with the master key that the next `spotledger master-key rotate` brings into force, 64 hex digits; in a"
        " fleet every node needs it before.",
    )
    success_info: str = _text("success", "The `info` of successful public answers.")
    asset_limit_per_second: int = _number(
        3, 0, 1_000_000, "Public calls about assets per account and second; 0 for no limit."
    )
    account_limit_per_second: int = _number(
        10, 0, 1_000_000, "Other signed public calls per account and second; 0 for no limit."
    )
    address_limit_per_minute: int = _number(
        1000, 0, 100_000_000, "Public calls per address and minute; 0 for no limit."
    )
    lock_seconds: int = _number(
        600, 0, 86_400, "How long an account or address that exceeded a limit is locked out; 0 for no lock."
    )
    nonce_past_ms: int = _number(30_000, 1_000, 60_000, "How old a nonce may be.")
    nonce_future_ms: int = _number(5_000, 1_000, 60_000, "How far ahead of the server's time a nonce may be.")
    replay: str = _choice(
        "address",
        ("address", "strict", "off"),
        "How a repeated signed request is treated: refused from another address, always refused, or accepted.",
    )
    replay_capacity: int = _number(
        10_000,
        2,
        10_000_000,
        "How many signed requests of one access key are remembered; beyond that the oldest are dropped.",
    )
    trusted_proxies: tuple[str, ...] = _networks("The proxies whose `X-Forwarded-For` is trusted.")
    connections: int = _number(
        10_000,
        10,
        1_000_000,
        "Open connections of traders, and a tenth as many of operators; beyond that idle ones make room.",
    )
    connections_per_address: int = _number(
        1_000, 1, 1_000_000, "Open connections of one address on each listener; trusted proxies are left out."
    )
    queue_limit: int = _number(
        10_000, 1, 1_000_000, "How many operations may wait for the writer; beyond that the answer is 503."
    )
    group_limit: int = _number(250, 1, 100_000, "The most operations that are committed, and synced, together.")
    segment_entries: int = _number(
        65_536, 8, 65_536, "Entries in a segment, fixed when the ledger is made. Smaller segments are for tests."
    )
    cache_accounts: int = _number(50_000, 1, 100_000_000, "How many accounts are kept in memory.")
    audit_entries_per_second: int = _number(
        2_000, 0, 1_000_000, "How many entries the continuous audit reads per second; 0 turns it off."
    )
    audit_pause_seconds: int = _number(
        600, 1, 604_800, "How long the continuous audit pauses after a pass; the first begins after a minute at most."
    )
    database: ServerUrl | None = _database(
        "The PostgreSQL database that holds the ledger, instead of a file in the data folder. A password in the URL is "
        "never shown, but everyone on the machine can see a flag: use the variable, or `PGPASSFILE`."
    )
    database_connect_seconds: int = _number(
        3, 2, 60, "How long each host of the database may take to accept a connection."
    )
    database_lock_ms: int = _number(
        5_000, 100, 60_000, "How long a group waits for the write lock; beyond that the answer is 503."
    )
    database_idle_ms: int = _number(
        3_000, 500, 60_000, "How long a frozen node may hold the write lock before the database ends its session."
    )
    database_network_ms: int = _number(
        5_000,
        1_100,
        60_000,
        "How long data sent to the database may stay unacknowledged before the connection counts as lost.",
    )
    keys_trust_seconds: int = _number(
        30,
        0,
        86_400,
        "How long a node without the database accepts the access keys and tokens in its memory; beyond that the answer "
        "is 503.",
    )
    standby: str = _choice(
        "none",
        ("required", "none"),
        "Whether a write is refused while no synchronous standby is connected to the database; with `none` one is "
        "waited for only if the server names it in `synchronous_standby_names`.",
    )
    read_database: ServerUrl | None = _database(
        "A standby of the database: this node answers from it, and takes no writes."
    )
    read_age_limit_ms: int = _number(
        5_000,
        1_100,
        3_600_000,
        "How long a node may not have followed the others, or its standby the primary; beyond that reads get 503.",
    )
    redis: ServerUrl | None = _redis(
        "The Redis or Valkey in which all nodes share limits and the memory of signed requests."
    )
    redis_down: str = _choice(
        "local",
        ("local", "refuse"),
        "While Redis does not answer: each node uses its own counts, or refuses public calls.",
    )
    redis_timeout_ms: int = _number(
        250, 10, 5_000, "How long Redis may take to answer before it counts as unavailable."
    )
    workers: int = _number(
        1, 1, 64, "How many processes serve the ports on this machine; more than one needs a database."
    )
    clock_leap_ms: int = _number(
        2_000,
        100,
        600_000,
        "How far the wall clock may move against the clock that counts since the boot, and in a fleet the database's"
        " clock may differ from the node's; beyond that nothing is booked.",
    )
    clock_idle_days: int = _number(
        7,
        1,
        3_650,
        "A start after a boot that finds the clock further ahead of the noted time waits for `spotledger clock trust`.",
    )
    access_log_days: int = _number(90, 1, 3_650, "How long lines of the access log are kept.")
    access_log_mib: int = _number(
        1_024, 16, 1_000_000, "How large the access log may become; beyond that the oldest lines are removed."
    )
    log_level: str = _choice(
        "info", ("debug", "info", "warning", "error"), "The lowest level of the messages logged to standard error."
    )


class InForce(NamedTuple):
    """The settings in force, and the source of each value."""

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
    Return the settings in force.

    Args:
        flags: Values from the command line by setting; None if a flag was not given.
        environ: The environment.
        config: The TOML file; if None, the one that ``SPOTLEDGER_CONFIG`` names, if there is one.

    Raises:
        SettingInvalid: A value is invalid, or the file cannot be read or has an unknown line.
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
        for name, given in (
            ("workers", settings.workers > 1),
            ("standby", settings.standby == "required"),
            ("read_database", settings.read_database is not None),
        ):
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
        raise unusable_file(problem, file, "settings file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise SettingInvalid(f"The settings file {file} is not TOML: {problem}.") from None
    for name in lines:
        if name not in RULES:
            raise SettingInvalid(
                f"The settings file {file} has a line {name!r}; these would pass: {', '.join(RULES)}.", setting=name
            )
    return lines


def plain(value: object) -> object:
    """Return the value of a setting as a JSON value: a number, a string, a list of strings, or None."""
    if isinstance(value, Address | ServerUrl | Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def shown(value: object) -> str:
    """Return the value of a setting as a table shows it; a dash for none."""
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

The value of a setting comes from the first of these that has it: its flag on the command line, its environment
variable, its line in the TOML file that `--config FILE` or `SPOTLEDGER_CONFIG` names, its default.
`spotledger settings` prints the values in force and where they come from; `spotledger settings --json` prints the same
for programs.

{table}

In the file, numbers, strings and lists are written as TOML has them:

```toml
data = "/var/lib/spotledger"
listen = "0.0.0.0:8080"
success_info = "Success"
nonce_past_ms = 30000
trusted_proxies = ["10.0.0.1", "10.1.0.0/16"]
```

These variables are read too:

| variable | by | meaning |
|---|---|---|
| `SPOTLEDGER_CONFIG` | every command | The settings file. |
| `SPOTLEDGER_MASTER_KEY` | the service | The master key, 64 hex digits, instead of a file. A secret without a flag. |
| `SPOTLEDGER_URL` | the clients, `get-balance` | The URL of the public listener; `http://127.0.0.1:8080` if unset. |
| `PGPASSFILE` | the service | A file with the database's password, as libpq reads it; `~/.pgpass` if unset. |
| `SPOTLEDGER_SECRETKEY` | `get-balance` | The secret of the access key. It has no flag either. |
"""
