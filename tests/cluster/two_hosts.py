"""Two hosts on one machine: each a network, process, mount and name space with an own sshd, joined
by a cable.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

TOOLS = ("ip", "ssh", "sshd", "ssh-keygen", "pdsh", "unshare", "nsenter", "mount")
NET = "10.77.0"


def missing() -> str:
    """Why there can be no two hosts here; empty where there can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    absent = [tool for tool in TOOLS if not which(tool)]
    if absent:
        return f"needs {', '.join(absent)} (Debian: iproute2 openssh-server openssh-client pdsh)"
    name = f"lk{os.getpid()}x"
    tried = subprocess.run([which("ip"), "netns", "add", name], capture_output=True, text=True)
    subprocess.run([which("ip"), "netns", "del", name], capture_output=True)
    return f"no network namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


def which(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def quietly(*words: str) -> None:
    subprocess.run([which(words[0]) or words[0], *words[1:]], capture_output=True, timeout=20)


def must(*words: str) -> None:
    done = subprocess.run(
        [which(words[0]) or words[0], *words[1:]], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, f"{words}: {done.stderr}"


class Hosts:
    """`node1` and `node2`; `run` and `start` log in to one of them, `cut` takes its power and cable
    away.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spaces = {n: f"lk{os.getpid()}n{n}" for n in (1, 2)}
        self.config = folder / "ssh_config"
        self._powered: dict[int, subprocess.Popen] = {}

    def __enter__(self) -> "Hosts":
        try:
            self._write()
            for space in self.spaces.values():
                must("ip", "netns", "add", space)
            ends = [f"{self.spaces[n]}v" for n in (1, 2)]
            cable = [
                "link",
                "add",
                ends[0],
                "netns",
                self.spaces[1],
                "type",
                "veth",
                "peer",
                "name",
                ends[1],
            ]
            must("ip", *cable, "netns", self.spaces[2])
            for n, space in self.spaces.items():
                must("ip", "-n", space, "link", "set", f"{space}v", "name", "eth0")
                must("ip", "-n", space, "addr", "add", f"{NET}.{n}/24", "dev", "eth0")
                must("ip", "-n", space, "link", "set", "lo", "up")
                self.power(n)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for n in list(self._powered):
            self._unpower(n)
        for space in self.spaces.values():
            quietly("ip", "netns", "del", space)

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        for key in ("id", "host_key"):
            must("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key))
        (self.folder / "etc_hosts").write_text(
            f"127.0.0.1 localhost\n{NET}.1 node1\n{NET}.2 node2\n"
        )
        self.config.write_text(
            f"Host *\n User root\n IdentityFile {self.folder}/id\n IdentitiesOnly yes\n "
            "StrictHostKeyChecking no\n"
            " UserKnownHostsFile /dev/null\n LogLevel ERROR\n"
        )
        (self.folder / "sshd_config").write_text(
            f"HostKey {self.folder}/host_key\nAuthorizedKeysFile {self.folder}/id.pub\nPidFile "
            "none\nUsePAM no\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nStrictModes "
            "no\nMaxStartups 50\n"
        )

    def power(self, n: int, also: str = ":") -> None:
        """Starts the host; `also` is done in its mount space first."""
        must("ip", "-n", self.spaces[n], "link", "set", "eth0", "up")
        inside = (
            f"hostname node{n}; mount --bind {self.folder}/etc_hosts /etc/hosts; {also}; "
            f"exec {which('sshd')} -D -e -f {self.folder}/sshd_config"
        )
        words = [
            "nsenter",
            f"--net=/run/netns/{self.spaces[n]}",
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
        ]
        words += ["--mount", "--mount-proc", "--uts", "bash", "-c", inside]
        with (self.folder / f"sshd{n}.log").open("a") as log:
            self._powered[n] = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 20
        while self.run("true", on=n, seconds=10).returncode:
            assert time.monotonic() < deadline, (self.folder / f"sshd{n}.log").read_text()
            time.sleep(0.1)

    def cut(self, n: int) -> None:
        """No power and no network: nobody hears a last word of it."""
        must("ip", "-n", self.spaces[n], "link", "set", "eth0", "down")
        self._unpower(n)

    def _unpower(self, n: int) -> None:
        """The first process of a process space takes all others with it."""
        process = self._powered.pop(n)
        process.kill()
        process.wait(20)

    def _login(
        self, words: tuple[str, ...], on: int, environment: dict[str, str] | None
    ) -> list[str]:
        variables = [f"{k}={v}" for k, v in (environment or {}).items()]
        ssh = [
            "ip",
            "netns",
            "exec",
            self.spaces[1],
            "ssh",
            "-F",
            str(self.config),
            "-o",
            "ConnectTimeout=5",
        ]
        return [*ssh, f"{NET}.{on}", shlex.join(["env", *variables, *words])]

    def run(
        self, *words: str, on: int = 1, environment=None, seconds: float = 150
    ) -> subprocess.CompletedProcess:
        command = self._login(words, on, environment)
        return subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL
        )

    @contextlib.contextmanager
    def start(
        self, *words: str, said: Path, on: int = 1, environment=None
    ) -> Iterator[subprocess.Popen]:
        """The same without waiting; what is said goes to a file."""
        with said.open("w") as file:
            process = subprocess.Popen(
                self._login(words, on, environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait(20)

    def processes(self, n: int) -> list[str]:
        """Command lines of everything of ours that runs on the host."""
        found = self.run("ps", "-eo", "args", on=n).stdout.splitlines()
        return [
            line
            for line in found
            if "lookalike" in line or "deepspeed" in line or "torch.distributed" in line
        ]
