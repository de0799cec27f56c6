"""A SLURM cluster on this host: munged, slurmctld and several slurmd, all state in one folder."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo")
PATIENCE = 120.0  # seconds, for anything that takes one on an idle machine

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SrunPortRange={first}-{last}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={dir}/run/munge.sock,cred_expire=15
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool.%n
SlurmctldPidFile={dir}/run/slurmctld.pid
SlurmdPidFile={dir}/run/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=30
KillWait={kill_wait}
GresTypes=gpu
NodeName=DEFAULT CPUs={cpus} RealMemory=1000 Gres=gpu:2 State=UNKNOWN
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=small Nodes=node1 MaxTime=10 MaxNodes=1 State=UP
PartitionName=closed Nodes=node1 State=DOWN
"""


def missing() -> list[str]:
    """Programs of SLURM that this machine lacks."""
    return [name for name in PROGRAMS if _program(name) is None]


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def poll(what: str, look: Callable[[], T | None], patience: float = PATIENCE) -> T:
    """What `look` returns as soon as it is true; an assertion error after `patience` seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {patience:.0f} s in vain for: {what}")


class Cluster:
    """The cluster; a context manager that ends every process it started.

    Attributes:
        folder: Its state and logs.
        names: Names of its nodes.
        env: Environment of commands that talk to it.
    """

    def __init__(self, nodes: int = 3, cpus: int = 8, kill_wait: int = 30) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short socket paths
        self.names = [f"node{i + 1}" for i in range(nodes)]
        self.env = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            self.env.pop(name, None)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._configure(cpus, kill_wait)

    def _configure(self, cpus: int, kill_wait: int) -> None:
        folder, port = self.folder, _free_ports()
        folder.chmod(0o755)
        for name in ("state", "log", "run", *(f"spool.{n}" for n in self.names)):
            (folder / name).mkdir(mode=0o755)
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        host = socket.gethostname().split(".")[0]
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + 1 + i}"
            for i, name in enumerate(self.names)
        ]
        text = CONF.format(
            host=host,
            port=port,
            first=port + 20,
            last=port + 220,
            user=_user(),
            dir=folder,
            kill_wait=kill_wait,
            cpus=cpus,
            nodes="\n".join(lines),
        )
        (folder / "slurm.conf").write_text(text, encoding="utf-8")
        (folder / "gres.conf").write_text(
            "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n", encoding="utf-8"
        )
        cgroup = f"CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nCgroupMountpoint={folder}/run\n"
        (folder / "cgroup.conf").write_text(cgroup, encoding="utf-8")

    def __enter__(self) -> Cluster:
        try:
            run = self.folder / "run"
            self._start(
                "munged",
                "--foreground",
                f"--key-file={self.folder}/munge.key",
                f"--socket={run}/munge.sock",
                f"--pid-file={run}/munged.pid",
                f"--log-file={self.folder}/log/munged.daemon",
                f"--seed-file={run}/munged.seed",
            )
            poll("munged", lambda: (run / "munge.sock").exists())
            self.start_controller()
            for name in self.names:
                self.start_node(name)
            poll("idle nodes", lambda: self.idle() == len(self.names))
        except BaseException as error:
            error.add_note(self.logs())
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- daemons -----------------------------------------------------------------------------

    def _start(self, name: str, *args: str, key: str = "") -> None:
        """Start a daemon in the foreground; it ends with the process that runs the tests."""
        program = _program(name)
        assert program
        with (self.folder / "log" / f"{key or name}.log").open("ab") as log:
            self._daemons[key or name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", program, *args],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_controller(self) -> None:
        """Start slurmctld, from its saved state where there is one."""
        self._start("slurmctld", "-D")
        poll("slurmctld", lambda: "is UP" in self.ask("scontrol", "ping", check=False))

    def start_node(self, name: str) -> None:
        """Start the slurmd of a node."""
        self._start("slurmd", "-D", "-N", name, key=name)

    def kill(self, key: str) -> None:
        """kill -9 of a daemon: "slurmctld", or a node's name for its slurmd."""
        daemon = self._daemons.pop(key)
        daemon.kill()
        daemon.wait()

    def close(self) -> None:
        """Cancel all jobs, end all daemons and what is left of the jobs."""
        if self._daemons.get("slurmctld"):
            self.ask("scancel", "--full", "--signal=KILL", "--user", _user(), check=False)
            self.ask("scancel", "--user", _user(), check=False)
        for key in reversed(list(self._daemons)):
            daemon = self._daemons.pop(key)
            if key == "munged":
                self._end_orphans()
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end_orphans(self) -> None:
        """Kill what jobs of this cluster left; its configuration's path marks them."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        daemons = {daemon.pid for daemon in self._daemons.values()}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in daemons:
                try:
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        os.kill(int(entry.name), signal.SIGKILL)
                except OSError:
                    continue

    def logs(self) -> str:
        """The last lines of every daemon's log."""
        files = sorted((self.folder / "log").glob("*.log"))
        return "\n".join(f"{f.name}:\n{f.read_text('utf-8')[-2000:]}" for f in files)

    # --- commands ----------------------------------------------------------------------------

    def ask(self, *command: str, check: bool = True) -> str:
        """Run a command against the cluster and return its stdout."""
        done = subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        if check:
            assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def idle(self) -> int:
        """Nodes without work."""
        said = self.ask("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D", check=False).strip()
        return int(said) if said.isdigit() else 0

    def job(self, number: int) -> dict[str, str]:
        """What SLURM says about a job."""
        said = self.ask("scontrol", "--oneliner", "show", "job", str(number), check=False)
        pairs = (word.partition("=") for word in said.split())
        return {key: value for key, sign, value in pairs if sign}

    def wait(self, number: int, *states: str, patience: float = PATIENCE) -> dict[str, str]:
        """Wait until a job is in one of `states`."""

        def look() -> dict[str, str] | None:
            fields = self.job(number)
            return fields if fields.get("JobState") in states else None

        try:
            return poll(f"job {number} {'/'.join(states)}", look, patience)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.job(number)}") from None


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _free_ports(count: int = 20) -> int:
    """The first of `count` ports in a row that are free now, below those of rendezvous."""
    for _ in range(100):
        first = random.SystemRandom().randrange(10000, 19500)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("0.0.0.0", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")
