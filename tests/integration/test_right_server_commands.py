"""Every command that is given a database works with the server that has what the node in its data folder has seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from click.testing import CliRunner, Result

import spotledger
from servers import postgres
from servers.missing import ServerMissing, skip_or_fail
from spotledger.archive.copying import copy_ledger
from spotledger.cli.main import program
from spotledger.storage.postgres.store import PostgresStore
from spotledger.storage.seen_head import SEEN_FILE, SeenHead, ServerId, read_seen
from support_archive import MASTER_KEY
from support_commands import COMMANDS, call_of
from support_core import fill, seed
from support_put_back import keep_state, named, swap

pytestmark = pytest.mark.xdist_group("right server commands")

LEDGER: Final = "ledger"
ENVIRON: Final = {"SPOTLEDGER_MASTER_KEY": MASTER_KEY}
#: Commands that take the settings of a database and connect to none.
WITHOUT_DATABASE: Final = {"demo", "settings"}
WITH_DATABASE: Final = [
    name
    for name, command in COMMANDS.items()
    if "database" in [param.name for param in command.params] and name not in WITHOUT_DATABASE
]


class Histories(NamedTuple):
    """Two servers with one ledger, of which the first lacks the last three of eight entries."""

    old: str
    right: str
    #: A data folder whose node has seen the last entry.
    folder: Path

    def both(self, database: str = LEDGER) -> str:
        """Return the address of a database on both, the wrong one first."""
        old, right = urlsplit(self.old), urlsplit(self.right)
        return urlunsplit(old._replace(netloc=f"{old.netloc},{right.hostname}:{right.port}", path=f"/{database}"))


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Histories]:
    """Copy a ledger to two servers, go on with one of them, and have a node see that."""
    folder = tmp_path_factory.mktemp("histories")
    with spotledger.open(folder / "embedded") as ledger:
        seed(ledger)
    try:
        old, right = postgres.new_cluster(), postgres.new_cluster()
    except ServerMissing as problem:
        skip_or_fail(problem)
    for cluster in (old, right):
        cluster.start()
        with psycopg.connect(cluster.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {LEDGER}")
            connection.execute(f"ALTER ROLE {postgres.ROLE} PASSWORD '{old.password}'")
        cluster.password = old.password
        copy_ledger(folder / "embedded", cluster.url(LEDGER))
    with spotledger.open(right.url(LEDGER)) as ledger:
        fill(ledger, 3)
    see(folder / "node", right.url(LEDGER))
    yield Histories(old.url(LEDGER), right.url(LEDGER), folder / "node")
    for cluster in (old, right):
        cluster.stop()
        shutil.rmtree(cluster.folder)


@pytest.fixture
def node(histories: Histories, tmp_path: Path) -> Path:
    """Give a data folder of its own to a test, with what was seen."""
    folder = tmp_path / "node"
    shutil.copytree(histories.folder, folder)
    return folder


def see(folder: Path, url: str, *, timelines: int = 0) -> None:
    """Have a node with the data *folder* see the head at *url*, and so many *timelines* later, and stop."""
    folder.mkdir(exist_ok=True)
    seen = SeenHead(folder)
    PostgresStore(url, seen=seen).close()
    assert seen.seen is not None
    seen.note_server(ServerId(seen.seen.system, seen.seen.timeline + timelines))
    seen.close()


def run(*arguments: str | Path) -> Result:
    """Run a command in this process."""
    return CliRunner(env=ENVIRON).invoke(program, [*map(str, arguments)], prog_name="spotledger")


def call(name: str, node: Path, database: str, tmp_path: Path) -> Result:
    """Run the command *name* on *database* as on the machine of the *node*."""
    given = {"data": str(node), "database": database}
    if name == "copy":
        (node / "journal.db").touch()  # it only has to be there
    if name in ("backup", "export journal"):
        given["file"] = str(tmp_path / "made")
    if name in ("batch", "import balances", "settle"):
        given["file"] = str(tmp_path / "given")
        (tmp_path / "given").write_text("{}")
    if name == "post":
        given["file"] = str(tmp_path / "given")
        (tmp_path / "given").write_text("customer,coin,amount\nann,btc,1\nann,btc,-1\n")
    return run(*call_of(name, **given))


def content_of(url: str) -> str:
    """Return a digest of all that is in the database."""
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1"
        ).fetchall()
        rows = [
            connection.execute(f"SELECT t::text FROM {name} t ORDER BY 1".encode()).fetchall() for (name,) in tables
        ]
    return sha256(repr((tables, rows)).encode()).hexdigest()


@pytest.mark.parametrize("name", WITH_DATABASE)
def test_command_refuses_a_server_that_lacks_what_the_node_has_seen(
    histories: Histories, node: Path, tmp_path: Path, name: str
) -> None:
    """It says what was found and what would pass, reports nothing of that server, and writes nothing there."""
    before = content_of(histories.old)
    done = call(name, node, histories.old, tmp_path)
    told = done.stdout if name == "audit" else done.stderr
    assert done.exit_code == 3, (done.stdout, done.stderr, done.exception)
    assert "is not the right one: its journal ends at entry 5 of epoch 1, and this node has seen entry 8" in told
    assert "Start the server again that has it" in told
    assert content_of(histories.old) == before
    assert not (tmp_path / "made").exists()
    if name == "audit":
        assert "INCOMPLETE" in told
        assert "  0 entries" in told
    else:
        assert done.stdout == ""


@pytest.mark.parametrize("name", [name for name in WITH_DATABASE if name != "serve"])
def test_command_passes_over_a_wrong_server_that_stands_first_in_the_address(
    histories: Histories, node: Path, tmp_path: Path, name: str
) -> None:
    """It works with the next server, as a node does, and the first one stays as it is."""
    before = content_of(histories.old)
    done = call(name, node, histories.both(), tmp_path)
    assert done.exit_code in (0, 1), (done.stdout, done.stderr, done.exception)
    assert "is not the right one" not in done.stderr + done.stdout
    assert content_of(histories.old) == before
    if name in ("audit", "export journal", "migrate", "balances", "feed", "token list", "clock show"):
        assert done.exit_code == 0, done.stderr
    if name in ("audit", "export journal"):
        assert " 5 entries" not in done.stdout


def test_command_without_what_a_node_has_seen_says_nothing_of_it(histories: Histories, tmp_path: Path) -> None:
    """A folder that is not there, or is no node's, knows nothing; then the server of the address is the right one."""
    for folder in (tmp_path / "missing", tmp_path):
        done = run("audit", "--data", folder, "--database", histories.old, "--json")
        assert done.exit_code == 0, done.stdout
        assert json.loads(done.stdout)["audited_to"] == 5
    assert [path.name for path in tmp_path.iterdir()] == []


def test_command_that_changes_what_it_cannot_tell_apart_asks_for_one_server(
    histories: Histories, tmp_path: Path
) -> None:
    """Without what a node has seen, none of two servers that take writes is changed, and both are named."""
    before = content_of(histories.old), content_of(histories.right)
    for arguments in (["migrate"], ["epoch", "begin", "--reason", "r"]):
        done = run(*arguments, "--data", tmp_path / "missing", "--database", histories.both())
        assert done.exit_code == 1
        ports = [urlsplit(url).port for url in (histories.old, histories.right)]
        assert f"take writes: 127.0.0.1:{ports[0]}, 127.0.0.1:{ports[1]}" in done.stderr
    assert (content_of(histories.old), content_of(histories.right)) == before


@pytest.mark.parametrize("name", WITH_DATABASE)
def test_command_makes_nothing_in_an_empty_database(
    histories: Histories, node: Path, tmp_path: Path, postgres_url: str, name: str
) -> None:
    """A node that has seen a ledger is not given a new one by the way; the message says how one is meant to be made."""
    done = call(name, node, postgres_url, tmp_path)
    assert done.exit_code == 3
    told = done.stdout if name == "audit" else done.stderr
    assert "has no ledger, and this node has seen entry 8 of epoch 1" in told
    assert f"give it a data folder without {SEEN_FILE}" in told
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT to_regclass('schema_version')").fetchall() == [(None,)]


def test_command_makes_nothing_on_an_empty_server_that_stands_first_in_the_address(
    histories: Histories, tmp_path: Path
) -> None:
    """Not even the schema is made on the way to the right server."""
    empty, right = named(histories.old, "other"), named(histories.right, "other")
    for url in (histories.old, histories.right):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE other")
    with spotledger.open(right) as ledger:
        seed(ledger)
    see(tmp_path / "node", right)
    done = run(*call_of("customer add", customer="carl", data=str(tmp_path / "node"), database=histories.both("other")))
    assert done.exit_code == 0, done.stderr
    with psycopg.connect(empty) as connection:
        assert connection.execute("SELECT to_regclass('schema_version')").fetchall() == [(None,)]


def test_command_with_what_was_seen_unreadable_is_refused(node: Path, histories: Histories) -> None:
    """What cannot be read is not taken for nothing."""
    (node / SEEN_FILE).write_bytes(b"x" * 8192)
    done = run("migrate", "--data", node, "--database", histories.right)
    assert done.exit_code == 1
    assert "both slots of" in done.stderr
    (node / SEEN_FILE).unlink()
    (node / SEEN_FILE).mkdir()
    done = run("migrate", "--data", node, "--database", histories.right)
    assert done.exit_code == 3
    assert "cannot be read: Is a directory" in done.stderr


# --- the operator's word that entries are lost ---------------------------------------------------------------


@pytest.fixture
def put_back(postgres_url: str, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Give a database that was put back by three entries, and the data folder of a node that has seen them."""
    with spotledger.open(postgres_url) as ledger:
        seed(ledger)
        kept = keep_state(postgres_url)
        fill(ledger, 3)
    see(tmp_path / "node", postgres_url)
    swap(postgres_url, kept)
    yield postgres_url, tmp_path / "node"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {urlsplit(kept).path.lstrip('/')} WITH (FORCE)".encode())


def test_epoch_is_begun_on_a_database_that_was_put_back_once_the_loss_is_accepted(put_back: tuple[str, Path]) -> None:
    """The command says what is given up; afterwards every command works there again."""
    url, node = put_back
    begin = ("epoch", "begin", "--reason", "put back", "--data", node, "--database", url, "--json")
    refused = run(*begin)
    assert refused.exit_code == 3
    assert "--accept-loss" in json.loads(refused.stderr)["detail"]
    done = run(*begin, "--accept-loss")
    assert done.exit_code == 0, done.stderr
    begun: dict[str, Any] = json.loads(done.stdout)
    assert (begun["epoch"], begun["seq"], begun["given_up"]) == (2, 6, "1-8")
    audited = run("audit", "--data", node, "--database", url, "--json")
    assert (audited.exit_code, json.loads(audited.stdout)["counts"]) == (0, {})


def test_epoch_is_begun_above_every_one_that_the_node_has_seen(put_back: tuple[str, Path]) -> None:
    """A database of an earlier epoch gets the next one that is new to the node; a number that is not is refused."""
    url, node = put_back
    seen = SeenHead(node)
    assert seen.seen is not None
    seen._write(seen.seen._replace(epoch=4))
    seen.close()
    begin = ("epoch", "begin", "--reason", "put back", "--data", node, "--database", url, "--accept-loss")
    refused = run(*begin, "--epoch", "4")
    assert refused.exit_code == 1
    assert "has seen epoch 4; --epoch 5 would pass" in refused.stderr
    done = run(*begin)
    assert done.exit_code == 0, done.stderr
    assert "epoch 5 of ledger" in done.stdout
    assert "given up: what followed up to entry 4-8" in done.stdout


def test_epoch_is_not_begun_in_another_ledger(put_back: tuple[str, Path], histories: Histories) -> None:
    """A loss that is accepted is one of this ledger."""
    before = content_of(histories.old)
    begin = ("epoch", "begin", "--reason", "r", "--data", put_back[1], "--database", histories.old, "--accept-loss")
    done = run(*begin)
    assert done.exit_code == 3
    assert "has the ledger" in done.stderr
    assert content_of(histories.old) == before


def test_loss_of_an_embedded_ledger_is_accepted_by_another_command(tmp_path: Path) -> None:
    """The flag is about a database; for a folder the message names the command that has it."""
    spotledger.open(tmp_path / "data").close()
    done = run("epoch", "begin", "--reason", "r", "--data", tmp_path / "data", "--accept-loss")
    assert done.exit_code == 1
    assert "spotledger recover takes it for a folder" in done.stderr


# --- audits ----------------------------------------------------------------------------------------------------


def test_entries_that_are_gone_from_the_server_are_named_though_all_that_is_left_fits(
    put_back: tuple[str, Path],
) -> None:
    """On the very server that had them, on the same timeline, what a node has seen is the one trace of them."""
    url, node = put_back
    done = run("audit", "--data", node, "--database", url, "--json")
    report = json.loads(done.stdout)
    assert (done.exit_code, report["verdict"], report["counts"]) == (1, "damaged", {"known_head_differs": 1})
    [finding] = report["findings"]
    assert (finding["seq"], finding["found"]) == (8, "it ends at entry 5")
    seen = read_seen(node)
    assert seen is not None
    assert finding["expected"] == seen.hash.hex()
    assert run("audit", "--data", node.parent / "missing", "--database", url).exit_code == 0


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("DELETE FROM entry WHERE seq = 8", "known_head_differs"),
        ("DELETE FROM ledger", "ledger_row_missing"),
        ("ALTER TABLE ledger DROP COLUMN epoch_seq", "schema_changed"),
    ],
)
def test_server_on_which_the_entry_was_seen_is_audited_whatever_became_of_it(
    postgres_url: str, tmp_path: Path, damage: str, found: str
) -> None:
    """A server that is too damaged to say what it has is no other server."""
    with spotledger.open(postgres_url) as ledger:
        seed(ledger)
        fill(ledger, 3)
    see(tmp_path / "node", postgres_url)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(damage.encode())
    done = run("audit", "--data", tmp_path / "node", "--database", postgres_url, "--json")
    report = json.loads(done.stdout)
    assert (done.exit_code, report["verdict"]) == (1, "damaged"), report
    assert found in report["counts"]


def test_old_primary_is_known_by_its_timeline_and_not_audited(put_back: tuple[str, Path]) -> None:
    """The same entries are missing there as on a server that lost them, but it is another one."""
    url, node = put_back
    seen = read_seen(node)
    assert seen is not None
    note = SeenHead(node)
    note.note_server(ServerId(seen.system, seen.timeline + 1))
    note.close()
    done = run("audit", "--data", node, "--database", url)
    assert done.exit_code == 3
    assert "INCOMPLETE" in done.stdout
    assert "not checked: the rest: the server" in done.stdout
