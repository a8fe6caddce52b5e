"""SLURM on one machine: munged, slurmctld and slurmd in the foreground, as children of the
tests.
"""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "squeue", "scontrol", "srun")


def which(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def missing() -> str:
    """Why there can be no SLURM here; empty where there can."""
    if os.geteuid() != 0:
        return "needs root, for slurmd"
    absent = [tool for tool in TOOLS if not which(tool)]
    return f"needs {', '.join(absent)} (Debian: slurm-wlm munge)" if absent else ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Slurm:
    """A cluster of one node with two processors; `call` runs its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.host = folder, socket.gethostname().split(".")[0]
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> "Slurm":
        try:
            self._write()
            munge = ["--foreground", "--force", f"--key-file={self.folder}/munge/key"]
            munge += [
                f"--{name}-file={self.folder}/munge/{name}" for name in ("pid", "log", "seed")
            ]
            self._daemon("munged", *munge, f"--socket={self.folder}/munge/socket")
            self._until(lambda: (self.folder / "munge/socket").exists())
            self._daemon("slurmctld", "-D")
            self._daemon("slurmd", "-D", "-N", self.host)
            self._until(lambda: "idle" in self.call("sinfo", "-h", "-o", "%T").stdout)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if len(self._daemons) > 1:
            self.call("scancel", "--user=root")
            deadline = time.monotonic() + 15
            while self.call("squeue", "-h").stdout and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(10)

    def _write(self) -> None:
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(parents=True)
        # munged trusts no key below a folder that others may write in, and clients must reach its
        # socket.
        (self.folder / "munge").chmod(0o755)
        (self.folder / "munge/key").write_bytes(os.urandom(128))
        (self.folder / "munge/key").chmod(0o400)
        ports = {"SlurmctldPort": free_port(), "SlurmdPort": free_port()}
        lines = [
            *(f"{name}={port}" for name, port in ports.items()),
            f"ClusterName=tests\nSlurmctldHost={self.host}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root",
            f"AuthType=auth/munge\nAuthInfo=socket={self.folder}/munge/socket\nCredType=cred/munge",
            f"StateSaveLocation={self.folder}/state\nSlurmdSpoolDir={self.folder}/spool/%n",
            f"SlurmctldPidFile={self.folder}/ctld.pid\nSlurmdPidFile={self.folder}/slurmd.pid",
            f"SlurmctldLogFile={self.folder}/ctld.log\nSlurmdLogFile={self.folder}/slurmd.log",
            "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nMpiDefault=none\nSwitchType=switch/none",
            "SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nReturnToService=2\nKillWait=5",
            "SchedulerType=sched/builtin\nSchedulerParameters=sched_interval=2,sched_min_interval=1000000",
            "AccountingStorageType=accounting_storage/none\nJobAcctGatherType=jobacct_gather/none",
            "JobCompType=jobcomp/none\nSlurmdParameters=config_overrides",
            f"NodeName={self.host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN",
            f"PartitionName=tests Nodes={self.host} Default=YES MaxTime=INFINITE State=UP",
        ]
        (self.folder / "slurm.conf").write_text("\n".join(lines) + "\n")

    def _daemon(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.out").open("w") as out:
            self._daemons.append(
                subprocess.Popen(
                    [which(name), *words],
                    env=self.environment,
                    stdout=out,
                    stderr=out,
                    cwd=self.folder,
                )
            )

    def _until(self, true) -> None:
        deadline = time.monotonic() + 30
        while not true():
            said = {path.name: path.read_text()[-500:] for path in self.folder.glob("*.out")}
            assert time.monotonic() < deadline, said
            time.sleep(0.1)

    def call(self, *words: str, **environment: str) -> subprocess.CompletedProcess:
        environment = {**self.environment, **environment}
        return subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        words = self.call("scontrol", "-o", "show", "job", number).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)
