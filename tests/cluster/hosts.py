"""Hosts on one machine: network namespaces on a bridge, each with an address and ports of its own.

As on machines that are apart, a host's link can be cut, and `/tmp/ray` is its own; other folders are shared, as an NFS
mount is. Linux, root and `ip` of iproute2 are needed.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INTERFACE = "eth0"
"""Each host's, by which it reaches the others."""
_ISOLATED = 'mount --bind "$0" /tmp/ray && exec "$@"'


def why_not() -> str | None:
    """What keeps this machine from having hosts; None: nothing does."""
    if shutil.which("ip") is None:
        return "there is no `ip`: install iproute2"
    probe = f"probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not permitted: {made.stderr.strip()}"
    _ip("netns", "del", probe)
    return None


@dataclass
class Host:
    """One host, at the end of a link that can be cut."""

    name: str
    address: str
    link: str
    """The bridge's end of it."""
    disk: Path
    """What it has for itself, as /tmp/ray."""
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *command: str, log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """A process there, whose output goes to `log`; it ends with the host."""
        isolated = ["ip", "netns", "exec", self.name, "unshare", "--mount", "sh", "-c", _ISOLATED, str(self.disk)]
        with log.open("ab") as output:
            process = subprocess.Popen([*isolated, *command], env=dict(environment), stdout=output, stderr=output)
        self.started.append(process)
        return process

    def pids(self) -> list[int]:
        """Of all processes there."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def runs(self, name: str) -> bool:
        """Whether Ray says of some process there that it runs `name`."""
        for pid in self.pids():
            try:
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(f"ray::{name}".encode()):
                    return True
            except OSError:  # it has just ended
                continue
        return False

    def cut(self) -> None:
        """Nothing arrives there any more, and nothing says so."""
        _ip("link", "set", self.link, "down")

    def close(self) -> None:
        """Kills all that runs there, and removes it."""
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.wait(timeout=30)
        _ip("netns", "del", self.name)


@dataclass
class Network:
    """A bridge, to which this machine and the hosts are linked."""

    bridge: str
    prefix: str
    """First three numbers of all addresses."""
    disks: Path
    hosts: list[Host] = field(default_factory=list)

    def host(self) -> Host:
        """One more."""
        number = len(self.hosts) + 1
        name = link = f"{self.bridge}-{number}"
        disk = self.disks / name
        disk.mkdir()
        Path("/tmp/ray").mkdir(exist_ok=True)  # to mount it over
        _ip("netns", "add", name)
        host = Host(name, f"{self.prefix}.{number}", link, disk)
        self.hosts.append(host)
        _ip("link", "add", link, "type", "veth", "peer", "name", INTERFACE, "netns", name)
        _ip("link", "set", link, "master", self.bridge, "up")
        for command in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{host.address}/24", "dev", INTERFACE),
            ("link", "set", INTERFACE, "up"),
            ("route", "add", "default", "via", f"{self.prefix}.254"),
        ):
            _ip("-n", name, *command)
        return host


@contextmanager
def network(disks: Path) -> Iterator[Network]:
    """A network of no hosts yet; those that it gets are gone at the end. disks: for what each has for itself."""
    number = os.getpid() % 200 + 20
    made = Network(f"dp{number}", f"10.77.{number}", disks)
    _ip("link", "add", made.bridge, "type", "bridge")
    try:
        _ip("addr", "add", f"{made.prefix}.254/24", "dev", made.bridge)
        _ip("link", "set", made.bridge, "up")
        yield made
    finally:
        for host in made.hosts:
            host.close()
        _ip("link", "del", made.bridge)


def _ip(*arguments: str) -> str:
    done: Any = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()}"
    return str(done.stdout)
