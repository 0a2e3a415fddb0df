"""A node in a network of its own, whose packets can be made to vanish without a word, and the drill that does so."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from fleet.drills import AFTER_SECONDS, NODES, RECOVERY_SECONDS, Fleet, Report, drill
from fleet.node_drills import stop_in_its_turn
from fleet.nodes import Node
from fleet.pair import LEDGER, Pair
from servers import kept
from servers.missing import ServerMissing
from servers.programs import find_program

NOWHERE = "02:00:00:00:00:01"
CUT_SECONDS = 8.0
#: Waits for its network, then becomes the node.
_WAIT = 'until ip -4 -oneline address show dev eth0 2>/dev/null | grep -q inet; do sleep 0.02; done; exec "$@"'


def check_that_networks_can_be_made() -> None:
    """
    Find out whether this machine lets us make networks.

    Raises:
        ServerMissing: It does not.
    """
    find_program("ip")
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        raise ServerMissing("unshare and nsenter (util-linux) are not installed")
    tried = subprocess.run(
        ["unshare", "--net", "ip", "link", "add", "try0", "type", "veth", "peer", "name", "try1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tried.returncode:
        raise ServerMissing(f"networks can't be made here, which needs root and its rights: {tried.stderr.strip()}")


@dataclass
class Cable:
    """A line between this machine and one node. It goes when the node's process ends, whatever ends it."""

    node: Node
    number: int

    @property
    def here(self) -> str:
        """This machine's address on the line."""
        return f"10.213.{self.number}.1"

    @property
    def there(self) -> str:
        """The node's."""
        return f"10.213.{self.number}.2"

    @property
    def name(self) -> str:
        """The name of this machine's end."""
        return f"sl{self.number}x{os.getpid()}"[:15]

    def lay(self, pid: int) -> None:
        """Lay the line to the process *pid*, which is in a network of its own by now or soon."""
        ours = Path("/proc/self/ns/net").readlink()
        kept.until(lambda: Path(f"/proc/{pid}/ns/net").readlink() != ours, 10, "the node got no network of its own")
        self._ip("link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self._ip("address", "add", f"{self.here}/30", "dev", self.name)
        self._ip("link", "set", self.name, "up")
        for words in ("link set lo up", "link set eth0 up", f"address add {self.there}/30 dev eth0"):
            self._ip(*words.split(), inside=pid)

    def cut(self) -> None:
        """Let every packet vanish, in both directions, with no word to anybody."""
        pid = self._pid()
        self._ip("neighbour", "replace", self.there, "lladdr", NOWHERE, "nud", "permanent", "dev", self.name)
        self._ip("neighbour", "replace", self.here, "lladdr", NOWHERE, "nud", "permanent", "dev", "eth0", inside=pid)

    def mend(self) -> None:
        """Let packets through again."""
        pid = self._pid()
        self._ip("neighbour", "delete", self.there, "dev", self.name)
        self._ip("neighbour", "delete", self.here, "dev", "eth0", inside=pid)

    def _pid(self) -> int:
        assert self.node.process is not None
        return self.node.process.pid

    def _ip(self, *words: str, inside: int | None = None) -> None:
        prefix = ["nsenter", "--target", str(inside), "--net"] if inside is not None else []
        subprocess.run([*prefix, find_program("ip"), *words], check=True, capture_output=True)


class NodeOnCable(Node):
    """A node in a network of its own."""

    def lay(self, number: int) -> Cable:
        """Give it a place on a line; the line itself is laid when it starts."""
        self.cable = Cable(self, number)
        self.host = self.cable.there
        self.prefix = ["unshare", "--net", "sh", "-c", _WAIT, "sh"]
        return self.cable

    def start(self, *, wait: bool = True) -> None:
        """Start the node and lay its line."""
        super().start(wait=False)
        assert self.process is not None
        self.cable.lay(self.process.pid)
        if wait:
            kept.until_ready(self.process, self.is_ready)


@drill
def node_cut_off() -> Report:
    """Let all packets of a node vanish while it holds the write lock: others go on, and it comes back when mended."""
    check_that_networks_can_be_made()
    victim = NodeOnCable("node1", {})
    cable = victim.lay(os.getpid() % 250 + 1)
    with contextlib.ExitStack() as stack:
        pair = Pair(networks=[f"10.213.{cable.number}.0/30"], listen_addresses="*")
        stack.callback(pair.stop)
        hosts = {victim.name: cable.here}
        fleet = Fleet(
            lambda name: pair.url(hosts.get(name, "127.0.0.1"), application_name=name),
            nodes=[victim, *(Node(f"node{number}", {}) for number in range(2, NODES + 1))],
        )
        stack.enter_context(fleet.loaded())
        stop_in_its_turn(pair, victim)
        moment = time.monotonic()
        cable.cut()
        victim.signal(signal.SIGCONT)
        time.sleep(CUT_SECONDS)
        went_on = fleet.wait_for_writes(moment)
        cable.mend()
        kept.until(victim.is_ready, RECOVERY_SECONDS, "the node that was cut off does not write again")
        time.sleep(AFTER_SECONDS)
        details = {"others_went_on_after_seconds": round(went_on, 2)}
        return fleet.report("node_cut_off", moment, pair.primary.url(LEDGER), **details)
