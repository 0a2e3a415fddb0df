"""Settings: where each value comes from, what passes, and what the reference page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from spotledger.errors import FileUnusable, SettingInvalid
from spotledger.http.public.app import PublicSettings
from spotledger.ops.settings import (
    RULES,
    Address,
    Settings,
    flag_of,
    load_settings,
    markdown,
    plain,
    shown,
    variable_of,
)

ROOT = Path(__file__).resolve().parents[3]


def test_settings_with_nothing_given_are_the_defaults() -> None:
    """Where nothing is given each setting has its default, and says so."""
    in_force = load_settings({}, {})
    assert in_force.settings == Settings()
    assert set(in_force.sources.values()) == {"default"}


def test_settings_flag_before_variable_before_file_before_default(tmp_path: Path) -> None:
    """The flag beats the variable, the variable the file, the file the default; each source is known."""
    file = tmp_path / "spotledger.toml"
    file.write_text("lock_seconds = 1\nnonce_past_ms = 10001\nqueue_limit = 11\n")
    environ = {"SPOTLEDGER_LOCK_SECONDS": "2", "SPOTLEDGER_NONCE_PAST_MS": "10002"}
    settings, sources = load_settings({"lock_seconds": "3"}, environ, file)
    assert (settings.lock_seconds, settings.nonce_past_ms, settings.queue_limit) == (3, 10002, 11)
    assert settings.group_limit == Settings().group_limit
    assert sources["lock_seconds"] == "--lock-seconds"
    assert sources["nonce_past_ms"] == "SPOTLEDGER_NONCE_PAST_MS"
    assert sources["queue_limit"] == str(file)
    assert sources["group_limit"] == "default"


def test_settings_file_named_by_the_variable_is_read(tmp_path: Path) -> None:
    """SPOTLEDGER_CONFIG names a file just as --config does."""
    file = tmp_path / "spotledger.toml"
    file.write_text('success_info = "Success"\ntrusted_proxies = ["10.0.0.1", "10.1.0.0/16"]\n')
    settings, _ = load_settings({}, {"SPOTLEDGER_CONFIG": str(file)})
    assert settings.success_info == "Success"
    assert settings.trusted_proxies == ("10.0.0.1/32", "10.1.0.0/16")


@pytest.mark.parametrize("name", list(RULES))
def test_setting_has_a_flag_a_variable_and_a_line(name: str, tmp_path: Path) -> None:
    """Every setting can be given in each of the three places, with the same result."""
    values = {
        "data": "/srv/x",
        "listen": "[::1]:80",
        "operator_listen": "0.0.0.0:0",
        "master_key_file": "/run/key",
        "next_master_key_file": "/run/key.next",
        "tls_cert": "/run/cert.pem",
        "tls_key": "/run/key.pem",
        "success_info": "Success",
        "replay": "strict",
        "trusted_proxies": "10.0.0.1,10.1.0.0/16",
        "log_level": "debug",
        "database": "postgresql://spot:pass@db1:5432,db2/ledger?target_session_attrs=read-write",
        "database_connect_seconds": "7",
        "database_network_ms": "2000",
        "read_database": "postgresql://standby/ledger",
        "read_age_limit_ms": "2000",
        "connections_per_address": "2000",
        "workers": "4",
        "standby": "required",
        "redis": "rediss://:pass@cache:6380/1",
        "redis_down": "refuse",
    }
    needed = {} if name not in ("read_database", "standby", "workers") else {"database": "postgresql:///ledger"}
    text = values.get(name, "1000")
    file = tmp_path / "spotledger.toml"
    file.write_text(f"{name} = {text}\n" if name not in values else f'{name} = "{text}"\n')
    expected = getattr(load_settings({name: text, **needed}, {}).settings, name)
    assert expected != getattr(Settings(), name) or name in ("group_limit", "address_limit_per_minute")
    assert getattr(load_settings(needed, {variable_of(name): text}).settings, name) == expected
    assert getattr(load_settings(needed, {}, file).settings, name) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((name, text) for name in ("nonce_past_ms", "nonce_future_ms") for text in ("999", "60001")),
        *(
            ("nonce_past_ms", text)
            for text in ("", "1e4", "10_000", "１０００", "10000.0", " 10000", "10000\n", "0x2710")
        ),
        *(("queue_limit", text) for text in ("0", "-1", "1000001", "99999999999999999999")),
        *(("replay", text) for text in ("", "Address", "none")),
        *(("log_level", text) for text in ("INFO", "trace")),
        *(("success_info", text) for text in ("", "a\nb", "x" * 65)),
        *(("data", text) for text in ("", "a\0b")),
        *(("trusted_proxies", text) for text in ("10.0.0.1/8", "example.org", "10.0.0.0/33")),
        *(("listen", text) for text in ("", "8080", ":8080", "127.0.0.1", "127.0.0.1:65536", "127.0.0.1:-1")),
        *(("listen", text) for text in ("::1:80", "[10.0.0.1]:80", "[::1:80", "127.0.0.1:http", "a b:80", "h:８０")),
    ],
)
def test_setting_out_of_bounds_is_refused_and_says_what_would_pass(name: str, text: str) -> None:
    """A value that cannot be is refused with the setting, its place, what was found and what would pass."""
    with pytest.raises(SettingInvalid) as refusal:
        load_settings({name: text}, {})
    assert refusal.value.message.startswith(f"The setting {name} ({flag_of(name)}) is ")
    assert refusal.value.message.endswith(" would pass.")
    assert RULES[name].passes in refusal.value.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ledger",
        "host=db password=hidden",
        "mysql://db/ledger",
        "postgresql:/db/ledger",
        "postgresql://spot:hid@den@db/ledger",
        "postgresql://spot:hid/den@db/ledger",
        "postgresql://spot:hidden@db/led ger",
        "postgresql://spot:hidden@db/ledger\n",
        "postgresql://spot:hidden@db/ledger#x",
    ],
)
def test_database_address_of_the_wrong_form_is_refused_without_its_password(text: str) -> None:
    """What is no address of a PostgreSQL database is refused, and not said again: there may be a password in it."""
    with pytest.raises(SettingInvalid, match=r"database \(--database\) is not the URL") as refusal:
        load_settings({"database": text}, {})
    assert "hid" not in str(refusal.value.message) + repr(refusal.value.details)


@pytest.mark.parametrize(
    "text", ["", "cache:6379", "http://cache", "redis://:hid@den@cache", "redis://", "redis://cache/one", "redis://c a"]
)
def test_redis_address_of_the_wrong_form_is_refused_without_its_password(text: str) -> None:
    """What is no address of a Redis is refused, and not said again either."""
    with pytest.raises(SettingInvalid, match=r"redis \(--redis\) is not the URL") as refusal:
        load_settings({"redis": text}, {})
    assert "hid" not in str(refusal.value.message) + repr(refusal.value.details)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("redis://cache", "redis://cache"),
        ("redis://:hidden@cache:6379/0", "redis://:***@cache:6379/0"),
        ("rediss://name:hidden@[::1]:6379", "rediss://name:***@[::1]:6379"),
        ("unix:///run/redis.sock?password=hidden", "unix:///run/redis.sock?password=***"),
    ],
)
def test_redis_password_is_in_nothing_that_is_shown(text: str, said: str) -> None:
    """The address of Redis hides its password like that of the database."""
    settings = load_settings({"redis": text}, {}).settings
    assert settings.redis is not None
    assert (settings.redis.secret, shown(settings.redis)) == (text, said)
    assert "hidden" not in f"{settings}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("postgresql://spot:hidden@db1:5432,db2/ledger", "postgresql://spot:***@db1:5432,db2/ledger"),
        ("postgresql://spot@db/ledger?password=hidden&x=1", "postgresql://spot@db/ledger?password=***&x=1"),
        ("postgres://db/l?sslpassword=hidden", "postgres://db/l?sslpassword=***"),
        ("postgresql://[::1]:5432/ledger", "postgresql://[::1]:5432/ledger"),
        ("postgresql:///ledger?host=/run/postgresql", "postgresql:///ledger?host=/run/postgresql"),
    ],
)
def test_database_password_is_in_nothing_that_is_shown(text: str, said: str) -> None:
    """Every form of the setting hides the password; only what is handed to the driver has it."""
    settings = load_settings({"database": text}, {}).settings
    assert settings.database is not None
    assert settings.database.secret == text
    assert shown(settings.database) == plain(settings.database) == said
    assert "hidden" not in f"{settings} {settings.database} {settings.database!r}"


@pytest.mark.parametrize(
    ("name", "text"),
    [("workers", "2"), ("standby", "required"), ("read_database", "postgresql://standby/ledger")],
)
def test_setting_of_a_fleet_without_a_database_is_refused(name: str, text: str) -> None:
    """An embedded ledger has one process and no standby."""
    with pytest.raises(SettingInvalid, match=f"{name} is given without a database"):
        load_settings({name: text}, {})


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("nonce_window_ms = 5", "has a line 'nonce_window_ms'"),
        ("queue_limit = true", "queue_limit (in "),
        ("queue_limit = 10.0", "queue_limit (in "),
        ('queue_limit = ["10"]', "queue_limit (in "),
        ("success_info = 5", "success_info (in "),
        ("trusted_proxies = 5", "trusted_proxies (in "),
        ("data = 5", "data (in "),
        ("listen = 8080", "listen (in "),
        ("queue_limit 10", "is not TOML"),
        ("[serve]\nqueue_limit = 10", "has a line 'serve'"),
    ],
)
def test_settings_file_with_a_wrong_line_is_refused(line: str, told: str, tmp_path: Path) -> None:
    """A line that no setting reads, or of the wrong type, is refused: it is never passed over."""
    file = tmp_path / "spotledger.toml"
    file.write_text(line)
    with pytest.raises(SettingInvalid) as refusal:
        load_settings({}, {}, file)
    assert told in refusal.value.message


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_settings_file_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    """A file that is missing or is no text is named."""
    file = tmp_path / "spotledger.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises((FileUnusable, SettingInvalid), match=r"spotledger\.toml"):
        load_settings({}, {}, file)


def test_settings_with_one_address_for_both_listeners_are_refused() -> None:
    """Two listeners cannot share a port; port 0 is a free one for each."""
    with pytest.raises(SettingInvalid, match="two different ports"):
        load_settings({"listen": "127.0.0.1:9000", "operator_listen": "127.0.0.1:9000"}, {})
    free = load_settings({"listen": "127.0.0.1:0", "operator_listen": "127.0.0.1:0"}, {}).settings
    assert free.listen == free.operator_listen == Address("127.0.0.1", 0)


def test_settings_page_of_the_docs_is_current() -> None:
    """docs/reference/settings.md is what `spotledger settings --markdown` prints."""
    assert (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8") == markdown()


def test_settings_cover_those_of_the_public_listener_with_the_same_defaults() -> None:
    """What the public listener can be set to is a setting of the service, with the same default."""
    public, settings = PublicSettings(), Settings()
    for name in PublicSettings.__dataclass_fields__:
        assert getattr(settings, name) == getattr(public, name)
