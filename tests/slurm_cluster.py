"""A private Slurm of one machine, on loopback, with accounting and two pretend GPUs.

    python tests/slurm_cluster.py start DIR    prints the variables to export
    python tests/slurm_cluster.py stop DIR

Everything lies in DIR; processes are started and stopped by their ids. Needs root and Debian's packages slurmctld slurmd
slurm-client munge slurmdbd mariadb-server.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "mariadb-install-db", "sbatch")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"])
START_S = 60
ARRAY_SIZE = 3  # small, so that chunks are seen

SLURM = """
ClusterName=ci
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge},cred_expire=5
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={accounting_port}
AccountingStoragePass={munge}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
ReturnToService=2
SlurmdTimeout=30
MessageTimeout=10
MaxArraySize={array_size}
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs=8 RealMemory={memory_mib} Gres=gpu:2 State=UNKNOWN
PartitionName=ci Nodes=localhost Default=YES MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=urgent Nodes=localhost MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
"""
GPUS = "NodeName=localhost Name=gpu File=/dev/null\nNodeName=localhost Name=gpu File=/dev/zero\n"
ACCOUNTING = """
AuthType=auth/munge
AuthInfo=socket={munge}
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting_port}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""


def lacking() -> str | None:
    """Why a cluster cannot be started here, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return None if os.geteuid() == 0 else "needs root"


class SlurmCluster:
    """The daemons in `folder`; each can be stopped and started apart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.munge = self.folder / "run" / "munge.socket"
        self.sql = self.folder / "run" / "sql.socket"
        self.config = self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": PATH, "SLURM_CONF": str(self.config), "MYSQL_UNIX_PORT": str(self.sql)}

    # Life

    def start(self) -> None:
        for name in ("run", "log", "state", "spool", "sql"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        ports = dict(zip(("controller_port", "node_port", "accounting_port"), _free_ports(3), strict=True))
        values = {
            "folder": self.folder,
            "munge": self.munge,
            "memory_mib": psutil.virtual_memory().total // 2**20,
            "array_size": ARRAY_SIZE,
            **ports,
        }
        self.config.write_text(SLURM.format(**values))
        (self.folder / "gres.conf").write_text(GPUS)
        accounting = self.folder / "slurmdbd.conf"
        accounting.touch(mode=0o600)
        accounting.write_text(ACCOUNTING.format(**values))
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        self._run(
            "mariadb-install-db",
            "--no-defaults",
            "--user=root",
            f"--datadir={self.folder}/sql",
            "--auth-root-authentication-method=normal",
        )
        for name in ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd"):
            self.start_daemon(name)
        self._until(lambda: "idle" in self._run("sinfo", "--noheader", "--format=%t"), "the node is not idle")

    def stop(self) -> None:
        for name in ("slurmd", "slurmctld", "slurmdbd", "munged", "mariadbd"):
            self.stop_daemon(name)
        for process in self.left_behind():  # jobs outlive their daemons
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def left_behind(self) -> list[psutil.Process]:
        """Processes of jobs of this cluster, and what watches over them."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                watches = process.name().startswith("slurmstepd") and Path(process.cwd()).is_relative_to(self.folder)
                variables = process.environ()
                works = "SLURM_JOB_ID" in variables and variables.get("SLURM_CONF") == str(self.config)
                if watches or works:
                    found.append(process)
        return found

    def start_daemon(self, name: str) -> None:
        run, log = self.folder / "run", self.folder / "log"
        commands = {
            "munged": [
                "--force",
                f"--key-file={self.folder}/munge.key",
                f"--socket={self.munge}",
                f"--pid-file={run}/munged.pid",
                f"--log-file={log}/munged.log",
                f"--seed-file={self.folder}/munge.seed",
            ],
            "mariadbd": [
                "--no-defaults",
                "--user=root",
                "--skip-networking",
                f"--datadir={self.folder}/sql",
                f"--socket={self.sql}",
                f"--pid-file={run}/mariadbd.pid",
            ],
        }
        with (log / f"{name}.out").open("ab") as out:
            subprocess.Popen(
                [shutil.which(name, path=PATH) or name, *commands.get(name, [])],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        ready = {
            "munged": self.munge.exists,
            "mariadbd": self.sql.exists,
            "slurmdbd": lambda: self._answers("sacctmgr", "--noheader", "show", "cluster"),
            "slurmctld": lambda: self._answers("scontrol", "ping"),
            "slurmd": lambda: self.process("slurmd") is not None,
        }
        self._until(ready[name], f"{name} does not answer; see {log}")

    def stop_daemon(self, name: str, kill: bool = False) -> None:
        """With `kill` as in a crash: without a chance to save anything."""
        process = self.process(name)
        if process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill() if kill else process.terminate()
            try:
                process.wait(20)
            except psutil.TimeoutExpired:
                process.kill()

    def process(self, name: str) -> psutil.Process | None:
        try:
            process = psutil.Process(int((self.folder / "run" / f"{name}.pid").read_text()))
            same = process.name().startswith(name) and process.status() != psutil.STATUS_ZOMBIE
            return process if same else None
        except (OSError, ValueError, psutil.NoSuchProcess):
            return None

    # Asking

    def call(self, *command: str) -> str:
        return self._run(*command)

    def _run(self, *command: str) -> str:
        program = shutil.which(command[0], path=PATH) or command[0]
        done = subprocess.run(
            [program, *command[1:]], env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def _answers(self, *command: str) -> bool:
        try:
            return "DOWN" not in self._run(*command)
        except (RuntimeError, subprocess.TimeoutExpired):
            return False

    def _until(self, ready: Callable[[], bool], complaint: str) -> None:
        end = time.monotonic() + START_S
        while not ready():
            if time.monotonic() > end:
                raise RuntimeError(complaint)
            time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("start", "stop"))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    cluster = SlurmCluster(options.folder)
    if options.verb == "stop":
        cluster.stop()
        return 0
    if reason := lacking():
        print(f"no Slurm here: {reason}", file=sys.stderr)
        return 1
    cluster.start()
    print(f"export SLURM_CONF={cluster.config}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
