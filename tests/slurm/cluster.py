#!/usr/bin/env python3
"""A real Slurm on this machine, to test with and to try: controller, accounting, and nodes that can be crashed.

    eval "$(tests/slurm/cluster.py up)"       # sets SLURM_CONF; then sbatch, srun, squeue, sacct, sinfo ...
    tests/slurm/cluster.py crash bdg2         # as if its power were cut; `start bdg2`: it comes back
    tests/slurm/cluster.py down

Needs root and Debian's packages, which `up` installs. No systemd, no container; nothing of /etc/slurm or /etc/munge is used.
Everything lies in the folder --state, so clusters run side by side. Partitions: low (the default; high takes its nodes and its
jobs are requeued) and high. CPUs, memory and GPUs are pretended.

Where namespaces may be made, each node has a network, a host name, processes and /dev/shm of its own (--apart yes). Else
(--apart no) the nodes are processes of this host, with their names in /etc/hosts.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

PACKAGES = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurmdbd": "slurmdbd",
    "sbatch": "slurm-client",
    "mariadbd": "mariadb-server",
    "ip": "iproute2",
}
DATABASE_PLUGIN = "lib/*/slurm*/accounting_storage_mysql.so"  # slurmdbd only recommends its package
DATABASE_MB = 400
LONGEST = 60  # characters of a state folder's path: sockets lie in it
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

SLURM_CONF = """\
ClusterName=bdg
SlurmctldHost={host}({address})
SlurmctldPort={port}
AuthType=auth/munge
CredType=cred/munge
# a requeued job waits for as long as a credential lives
AuthInfo=socket={state}/run/munge.sock,cred_expire=5
SlurmUser=root
SlurmdUser=root
# ports of jobs follow from their numbers, and clusters may share a host
FirstJobId={first_job}
StateSaveLocation={state}/controller
SlurmdSpoolDir={state}/spool/%n
SlurmctldPidFile={state}/run/slurmctld.pid
SlurmdPidFile={state}/run/slurmd-%n.pid
SlurmctldLogFile={state}/logs/slurmctld.log
SlurmdLogFile={state}/logs/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
PropagateResourceLimits=NONE
# nodes have the CPUs and the memory that this file says
SlurmdParameters=config_overrides
ReturnToService=1
# quick to decide, and to notice
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,bf_resolution=1,batch_sched_delay=0,sched_min_interval=0
SlurmdTimeout=10
MessageTimeout=10
BatchStartTimeout=10
KillWait=5
CompleteWait=0
InactiveLimit=0
MinJobAge=900
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# a preempted job gets the signal that it asked for by --signal
SlurmctldParameters=preempt_send_user_signal
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=256
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={accounting_port}
AccountingStoragePass={state}/run/munge.sock
AccountingStorageTRES=gres/gpu
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=high Nodes=ALL MaxTime=INFINITE DefaultTime=60 PriorityTier=10 PreemptMode=OFF
"""
SLURMDBD_CONF = """\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting_port}
AuthType=auth/munge
AuthInfo=socket={state}/run/munge.sock
SlurmUser=root
PidFile={state}/run/slurmdbd.pid
LogFile={state}/logs/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=accounting
"""
NODE = """
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
slurmd -D -N "$1" &
wait
"""
"""What a node does that stands apart: the shell is its first process and takes in orphans."""


class ClusterError(RuntimeError):
    """Something did not start, or cannot; the text says what to do."""


def missing() -> list[str]:
    """The Debian packages that a cluster needs and this machine lacks."""
    packages = [package for program, package in PACKAGES.items() if not shutil.which(program, path=PATH)]
    return packages if list(Path("/usr").glob(DATABASE_PLUGIN)) else [*packages, "slurm-wlm-mysql-plugin"]


def install() -> None:
    if not (packages := missing()):
        return
    if not shutil.which("apt-get"):
        raise ClusterError(f"{', '.join(packages)} missing, and no apt-get to install them: use Debian 12")
    say(f"installing {', '.join(packages)}")
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "-q"]
    with no_services():
        for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run(
                [*apt, *words], env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True
            )
            if done.returncode:
                raise ClusterError(f"apt-get {' '.join(words)} failed:\n{(done.stdout + done.stderr)[-2000:]}")


@contextmanager
def no_services() -> Iterator[None]:
    """Keeps the packages from starting daemons of their own."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


@dataclass(frozen=True)
class Cluster:
    """What was decided when the cluster was made, kept in its `state` folder. number: of its ports and network.

    apart: whether each node is a world of its own. database: the folder of accounting's data.
    """

    state: Path
    number: int
    apart: bool
    database: Path
    nodes: int
    cpus: int
    memory_mb: int
    gpus: int

    @property
    def port(self) -> int:
        """Of the controller; accounting has the next one, and the nodes those after."""
        return 20000 + 20 * self.number

    @property
    def bridge(self) -> str:
        return f"bdg-slurm{self.number}"

    @property
    def address(self) -> str:
        """Of the controller."""
        return self.address_of(254) if self.apart else "127.0.0.1"

    def address_of(self, node: int) -> str:
        return f"10.214.{self.number}.{node}"

    def namespace(self, node: int) -> str:
        return f"{self.bridge}-{node}"

    @property
    def conf(self) -> Path:
        return self.state / "slurm.conf"

    @property
    def names(self) -> list[str]:
        return [f"bdg{node}" for node in range(1, self.nodes + 1)]

    # --- up ---

    def up(self) -> None:
        """Starts what does not run, and waits until the nodes take jobs."""
        self._write_files()
        if self.apart:
            self._connect()
        else:
            self._name_in_hosts()
        run_folder = self.state / "run"
        munge = [f"--{key}={self.state}/munge/{key}" for key in ("key-file", "log-file", "seed-file", "pid-file")]
        self._start("munged", ["munged", "--foreground", f"--socket={run_folder}/munge.sock", *munge])
        self._until("munged", lambda: self._ok("munge", "-n", "-S", f"{run_folder}/munge.sock"))
        self._start_database()
        self._start("slurmdbd", ["slurmdbd", "-D"])
        self._until("slurmdbd", lambda: self._ok("sacctmgr", "-n", "show", "cluster"))
        if "bdg" not in self._say("sacctmgr", "-n", "show", "cluster", "format=cluster"):
            self._ok("sacctmgr", "-i", "add", "cluster", "bdg")
        self._start("slurmctld", ["slurmctld", "-D"])
        self._until("slurmctld", lambda: "is UP" in self._say("scontrol", "ping"))
        self.start(*self.names)

    def start(self, *names: str) -> None:
        """Nodes come up, or back from a crash."""
        begun_at = time.time()
        silent = [name for name in names if not self._pid(name)]
        for name in silent:
            if (self.state / "pids" / name).exists():  # or its jobs would be believed to run still
                self._ok("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=crashed")
            self._start_node(name, self._node(name))
        self._until("nodes that take jobs", lambda: self._ready(silent, begun_at), 60)

    def _node(self, name: str) -> int:
        if name not in self.names:
            raise ClusterError(f"no node {name}: there are {', '.join(self.names)}")
        return self.names.index(name) + 1

    def _start_node(self, name: str, node: int) -> None:
        (self.state / "spool" / name).mkdir(parents=True, exist_ok=True)
        (self.state / "run" / f"slurmd-{name}.pid").unlink(missing_ok=True)
        if self.apart:
            network = ["nsenter", f"--net=/run/netns/{self.namespace(node)}"]
            apart = ["unshare", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
            self._start(name, [*network, *apart, "bash", "-c", NODE, "node", name, str(self.state)])
        else:
            self._start(name, ["slurmd", "-D", "-N", name], BDG_NODE=name)

    def _write_files(self) -> None:
        if self.conf.exists():
            return
        for folder, mode in {"run": 0o755, "logs": 0o755, "munge": 0o700, "pids": 0o755, "dev": 0o755}.items():
            (self.state / folder).mkdir(mode=mode)
        (self.state / "munge" / "key-file").write_bytes(random.SystemRandom().randbytes(1024))
        (self.state / "munge" / "key-file").chmod(0o600)
        for gpu in range(self.gpus):  # the number at the end comes into CUDA_VISIBLE_DEVICES
            subprocess.run(["mknod", "-m", "666", f"{self.state}/dev/gpu{gpu}", "c", "1", "3"], check=True)
        devices = f"{self.state}/dev/gpu[0-{self.gpus - 1}]" if self.gpus > 1 else f"{self.state}/dev/gpu0"
        (self.state / "gres.conf").write_text(f"Name=gpu File={devices}\n" if self.gpus else "")
        (self.state / "hosts").write_text(self._hosts())
        database = self.state / "slurmdbd.conf"
        database.write_text(SLURMDBD_CONF.format(state=self.state, accounting_port=self.port + 1))
        database.chmod(0o600)
        host = socket.gethostname().partition(".")[0]
        values = {"state": self.state, "host": host, "address": self.address, "port": self.port}
        nodes = "\n".join(self._node_line(node, name, host) for node, name in enumerate(self.names, start=1))
        self.conf.write_text(
            SLURM_CONF.format(**values, accounting_port=self.port + 1, first_job=1000 * self.number, nodes=nodes)
        )

    def _node_line(self, node: int, name: str, host: str) -> str:
        where = (
            (name, self.address_of(node), self.port + 2) if self.apart else (host, "127.0.0.1", self.port + 1 + node)
        )
        what = f"CPUs={self.cpus} RealMemory={self.memory_mb}" + (f" Gres=gpu:{self.gpus}" if self.gpus else "")
        return f"NodeName={name} NodeHostname={where[0]} NodeAddr={where[1]} Port={where[2]} {what}"

    def _hosts(self) -> str:
        if not self.apart:
            return f"127.0.0.1 {' '.join(self.names)} # {self.state}\n"
        lines = ["127.0.0.1 localhost", f"{self.address} {socket.gethostname()}"]
        return "\n".join([*lines, *(f"{self.address_of(n)} {name}" for n, name in enumerate(self.names, 1))]) + "\n"

    def _name_in_hosts(self) -> None:
        hosts, line = Path("/etc/hosts"), self._hosts()
        if line not in hosts.read_text():
            with hosts.open("a") as file:
                file.write(line)

    def _connect(self) -> None:
        """A network card for each node; all meet at the bridge."""
        for node in range(1, self.nodes + 1):
            name = self.namespace(node)
            if Path("/run/netns", name).exists():
                continue
            outside = f"bdgs{self.number}-{node}"  # 15 characters at most
            for words in (
                f"netns add {name}",
                f"link add {outside} type veth peer name eth0 netns {name}",
                f"link set {outside} master {self.bridge} up",
                f"-n {name} addr add {self.address_of(node)}/24 dev eth0",
                f"-n {name} link set eth0 up",
                f"-n {name} link set lo up",
            ):
                ip(words)

    def _start_database(self) -> None:
        plain = ["--no-defaults", "--user=root", f"--datadir={self.database}", "--innodb-log-file-size=16M"]
        if not (self.database / "mysql").exists():
            root = ["--auth-root-authentication-method=socket", "--auth-root-socket-user=root"]
            made = subprocess.run(
                ["mariadb-install-db", *plain, *root, "--skip-test-db"],
                env=self.environment,
                capture_output=True,
                text=True,
            )
            if made.returncode:
                raise ClusterError(f"mariadb-install-db failed:\n{(made.stdout + made.stderr)[-2000:]}")
        server = ["mariadbd", *plain, f"--socket={self.state}/run/mysql.sock", "--skip-networking", "--skip-log-bin"]
        lean = ["--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0", "--performance-schema=OFF"]
        self._start("mariadbd", [*server, *lean, "--innodb-lock-wait-timeout=900", f"--tmpdir={self.database}"])
        ping = ["mariadb-admin", "--no-defaults", f"--socket={self.state}/run/mysql.sock", "ping"]
        self._until("mariadbd", lambda: self._ok(*ping))

    def _ready(self, names: Sequence[str], since: float) -> bool:
        """Whether they take jobs. A node that came back from a crash is down until somebody says that it is well."""
        for name in names:
            node = dict(
                word.split("=", 1) for word in self._say("scontrol", "-o", "show", "node", name).split() if "=" in word
            )
            if node.get("SlurmdStartTime", "") < time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since)):
                return False
            if node["State"].startswith("DOWN"):
                self._ok("scontrol", "update", f"NodeName={name}", "State=RESUME")
            if node["State"].partition("+")[0] not in ("IDLE", "MIXED", "ALLOCATED"):
                return False
        return True

    # --- down ---

    def down(self) -> None:
        """Stops the daemons that it started, and removes all that it made."""
        for name in self.names:
            self.crash(name)
        for name in ("slurmctld", "slurmdbd", "mariadbd", "munged"):
            self._kill(name)
        if self.apart:
            for node in range(1, self.nodes + 1):
                ip(f"netns del {self.namespace(node)}", check=False)
            ip(f"link del {self.bridge}", check=False)
        else:
            hosts = Path("/etc/hosts")
            hosts.write_text(hosts.read_text().replace(self._hosts(), ""))
        shutil.rmtree(self.database, ignore_errors=True)
        shutil.rmtree(self.state, ignore_errors=True)

    def crash(self, name: str) -> None:
        """Ends every process of the node at once. The controller finds out after SlurmdTimeout, or at the node's start."""
        namespace = self.namespace(self._node(name))
        self._kill(name)
        if self.apart:  # with the first process of its namespace the kernel ends all others
            self._until(f"the end of {name}", lambda: not self._say("ip", "netns", "pids", namespace))
        else:
            for pid in self._processes_on(name):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _processes_on(self, name: str) -> list[int]:
        """Where nodes are not apart: of its slurmd the children know BDG_NODE, of its jobs the SLURMD_NODENAME."""
        marks = {f"BDG_NODE={name}".encode(), f"SLURMD_NODENAME={name}".encode()}
        conf, found = f"SLURM_CONF={self.conf}".encode(), []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit():
                    words = set((entry / "environ").read_bytes().split(b"\0"))
                    found += [int(entry.name)] if conf in words and marks & words else []
        return found

    # --- processes ---

    @property
    def environment(self) -> dict[str, str]:
        """What daemons see, and so what jobs with --export=NONE see."""
        kept = {key: os.environ[key] for key in ("HOME", "LANG", "LC_ALL") if key in os.environ}
        socket_path = f"{self.state}/run/mysql.sock"
        return kept | {"PATH": PATH, "SLURM_CONF": str(self.conf), "MYSQL_UNIX_PORT": socket_path}

    def _start(self, name: str, command: Sequence[str], **environment: str) -> None:
        if self._pid(name):
            return
        with (self.state / "logs" / f"{name}.out").open("a") as log:
            process = subprocess.Popen(
                ["prlimit", "--core=0", *command],  # a rank that aborts would leave its memory beside the run
                env=self.environment | environment,
                cwd=self.state,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (self.state / "pids" / name).write_text(f"{process.pid} {begun(process.pid)}")

    def _pid(self, name: str) -> int | None:
        """The daemon's, while it lives and is ours."""
        with suppress(OSError):
            pid, at = (self.state / "pids" / name).read_text().split()
            return int(pid) if begun(int(pid)) == at else None
        return None

    def _kill(self, name: str) -> None:
        if pid := self._pid(name):
            os.kill(pid, signal.SIGKILL)
            self._until(f"the end of {name}", lambda: not self._pid(name))

    def _until(self, what: str, condition: Callable[[], bool], seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise ClusterError(f"waited {seconds:.0f} s for {what} in vain:\n{self._last_words()}")
            time.sleep(0.05)

    def _last_words(self) -> str:
        logs = [path for folder in ("logs", "munge") for path in (self.state / folder).glob("*")]
        return "\n".join(f"{p}: {line}" for p in logs for line in p.read_text(errors="replace").splitlines()[-3:])

    def _say(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout

    def _ok(self, *command: str) -> bool:
        return subprocess.run(command, env=self.environment, capture_output=True).returncode == 0


def make(options: argparse.Namespace) -> Cluster:
    """Decides on a number that no other cluster has, and writes it down."""
    state: Path = options.state
    state.mkdir(parents=True, exist_ok=True)
    state.chmod(0o755)  # munge refuses sockets that others cannot reach
    apart = options.apart != "no" and can_be_apart()
    if options.apart == "yes" and not apart:
        raise ClusterError("--apart yes: no namespaces can be made here: give --apart no")
    memory = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
    quick = memory and memory.free > DATABASE_MB * 2**20  # a start on a disk takes seconds longer
    database = Path(tempfile.mkdtemp(prefix="bdg-slurm-", dir="/dev/shm" if quick else state))
    sizes = (options.nodes, options.cpus, options.memory_mb, options.gpus)
    for number in random.sample(range(1, 251), 250):
        cluster = Cluster(state, number, apart, database, *sizes)
        if all(free(port) for port in range(cluster.port, cluster.port + 2 + options.nodes)) and (
            not apart or claim(cluster)
        ):
            (state / "cluster.json").write_text(json.dumps(asdict(cluster), default=str))
            return cluster
    raise ClusterError("no ports are free between 20000 and 25000")


def claim(cluster: Cluster) -> bool:
    """Makes the bridge, which only one cluster of this number can, with the controller's address."""
    if not ip(f"link add {cluster.bridge} type bridge", check=False):
        return False
    ip(f"addr add {cluster.address}/24 dev {cluster.bridge}")
    ip(f"link set {cluster.bridge} up")
    return True


def can_be_apart() -> bool:
    name = f"bdg-try-{os.getpid()}"
    worlds = [
        "unshare",
        "--uts",
        "--ipc",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "mount",
        "-t",
        "tmpfs",
        "t",
        "/mnt",
    ]
    try:
        return (
            ip(f"netns add {name}", check=False)
            and subprocess.run(worlds, capture_output=True).returncode == 0
            and ip(f"link add {name} type bridge", check=False)
        )
    finally:
        ip(f"link del {name}", check=False)
        ip(f"netns del {name}", check=False)


def ip(words: str, check: bool = True) -> bool:
    done = subprocess.run(["ip", *words.split()], env=os.environ | {"PATH": PATH}, capture_output=True, text=True)
    if check and done.returncode:
        raise ClusterError(f"ip {words}: {done.stderr.strip()}")
    return done.returncode == 0


def free(port: int) -> bool:
    with socket.socket() as candidate, suppress(OSError):
        candidate.bind(("", port))
        return True
    return False


def begun(pid: int) -> str | None:
    """When a process began, in ticks since the boot, for its number may be given to another; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def load(state: Path) -> Cluster:
    path = state / "cluster.json"
    if not path.exists():
        raise ClusterError(f"no cluster in --state {state}: start one with: {sys.argv[0]} up --state {state}")
    facts = json.loads(path.read_text())
    return Cluster(**facts | {"state": Path(facts["state"]), "database": Path(facts["database"])})


def say(text: str) -> None:
    print(f"slurm: {text}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    about = {
        "up": "install what is missing, start what does not run, print how to use it",
        "down": "stop all of it and remove its folder",
        "crash": "end every process of a node at once",
        "start": "start a crashed node",
        "install": "install the packages only",
    }
    for verb, line in about.items():
        own = verbs.add_parser(verb, help=line, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        own.add_argument("--state", type=Path, default=Path("/tmp/bdg-slurm"), help="the cluster's folder")
        if verb == "up":
            own.add_argument("--nodes", type=int, default=2, help="1 to 16")
            own.add_argument("--cpus", type=int, default=4, help="of each node, pretended")
            own.add_argument("--memory-mb", type=int, default=32000, help="of each node, pretended")
            own.add_argument("--gpus", type=int, default=2, help="of each node, pretended")
            own.add_argument("--apart", choices=["yes", "no", "auto"], default="auto", help="nodes in namespaces")
        if verb in ("crash", "start"):
            own.add_argument("node", help="bdg1, bdg2, ...")
    options = parser.parse_args(argv)
    options.state = options.state.absolute()
    try:
        run(options)
    except ClusterError as error:
        say(f"error: {error}")
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    if os.geteuid() != 0:
        raise ClusterError(f"needs root: sudo {' '.join(sys.argv)}")
    if len(str(options.state)) > LONGEST:
        raise ClusterError(f"--state {options.state} is too long for the sockets in it: {LONGEST} characters at most")
    match options.verb:
        case "install":
            install()
        case "up":
            install()
            cluster = load(options.state) if (options.state / "cluster.json").exists() else make(options)
            cluster.up()
            say(f"{', '.join(cluster.names)} take jobs, each {'apart' if cluster.apart else 'a process of this host'}")
            print(f"export SLURM_CONF={cluster.conf}")
        case "down":
            load(options.state).down()
        case "crash":
            load(options.state).crash(options.node)
        case "start":
            load(options.state).start(options.node)


if __name__ == "__main__":
    sys.exit(main())
