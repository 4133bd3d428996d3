"""The servers that are measured: each a process of its own on 127.0.0.1, its data in a folder of the run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psycopg

from benchmarks.queue.errors import BenchmarkFailed
from tools.ports import free_port, listens

START_SECONDS = 60.0
END_SECONDS = 20.0
_PLACES = [
    os.environ.get("PATH", ""),
    "/usr/sbin",
    "/usr/lib/rabbitmq/bin",
    *map(str, Path("/usr/lib/postgresql").glob("*/bin")),
]


def program(name: str) -> str:
    """Return a program's path, also where servers lie that are on nobody's PATH.

    Raises:
        BenchmarkFailed: It is not installed.
    """
    # Debian's /usr/sbin/rabbitmq-server changes to a user of its own; the one below /usr/lib does not.
    places = _PLACES if name != "rabbitmq-server" else _PLACES[2:]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise BenchmarkFailed(f"{name} is not installed; benchmarks/README.md says what is needed")
    return found


def processes_of(root: int) -> list[int]:
    """Return a process and all that descend from it."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parents[int(stat.parent.name)] = int(fields[1])
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def cpu_seconds(root: int) -> float:
    """Return what a process, those that descend from it, and those of them that have ended, have used of CPUs."""
    ticks = 0
    for process in processes_of(root):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


class Process:
    """A server in a session of its own.

    Attributes:
        log: Where its output goes.
    """

    def __init__(
        self, command: list[str], log: Path, environment: dict[str, str] | None = None
    ) -> None:
        """Start it."""
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(os.environ) | (environment or {}),
                cwd="/",
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until it is ready.

        Raises:
            BenchmarkFailed: It ended, or took too long; the message has its last words.
        """
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self.log.read_text(errors="replace")[-2000:]
                raise BenchmarkFailed(f"{self._process.args!r} did not start; it said:\n{said}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ask it to end, and end it and its session after a while."""
        family = processes_of(self.pid)
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in family:
            try:
                if os.getsid(process) == self.pid:
                    os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue


class Postgres:
    """A PostgreSQL server with the settings that it is shipped with.

    Attributes:
        url: Its first database.
        pid: Its process.
    """

    def __init__(self, folder: Path, running: ExitStack) -> None:
        """Make its data in an empty folder, and start it."""
        folder.mkdir()
        # It refuses to run as root.
        other = ["setpriv", "--reuid=nobody", "--clear-groups"] if os.getuid() == 0 else []
        if other:
            shutil.chown(folder, "nobody")
        data = folder / "data"
        subprocess.run(
            [*other, program("initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8",
             "--locale=C.UTF-8"],
            check=True, capture_output=True, cwd="/",
        )  # fmt: skip
        port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        server = Process(
            [*other, program("postgres"), "-D", str(data), "-p", str(port), "-k", str(folder),
             "-c", "listen_addresses=127.0.0.1"],
            folder.parent / f"{folder.name}.log",
        )  # fmt: skip
        running.callback(server.stop)
        server.wait_until(self._is_up)
        self.pid = server.pid

    def _is_up(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def new_database(self, name: str) -> str:
        """Make an empty database and return its URL."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url.rpartition("/")[0] + "/" + name

    def settings(self) -> str:
        """Return its version, and the settings that decide what a commit is worth."""
        names = ("server_version", "fsync", "synchronous_commit", "full_page_writes")
        with psycopg.connect(self.url) as connection:
            values = [connection.execute(f"SHOW {name}").fetchone() for name in names]
        shown = [str(value[0]) for value in values if value is not None]
        return f"{shown[0]} (fsync {shown[1]}, synchronous_commit {shown[2]}, full_page_writes {shown[3]})"


class Service:
    """A Results Service as it is shipped.

    Attributes:
        url: Where it answers.
        pid: Its process.
    """

    def __init__(self, folder: Path, running: ExitStack, database: str | None = None) -> None:
        """Start one; without a database's URL its own is SQLite."""
        folder.mkdir(exist_ok=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        settings = {"DATA": str(folder), "PORT": str(port), "LOG_LEVEL": "warning"}
        if database is not None:
            settings["DATABASE"] = database
        server = Process(
            [sys.executable, "-m", "clara_results", "serve"],
            folder / f"service-{port}.log",
            {f"CLARA_RESULTS_{name}": value for name, value in settings.items()},
        )
        running.callback(server.stop)
        server.wait_until(lambda: listens(port))
        self.pid = server.pid


class RabbitMQ:
    """A RabbitMQ of one node, without plugins, with the settings that it is shipped with.

    Attributes:
        url: Where it takes AMQP.
        pid: Its process.
    """

    def __init__(self, folder: Path, running: ExitStack) -> None:
        """Start one whose data, logs, cookie and port mapper are all in an empty folder."""
        folder.mkdir()
        port, node_port, mapper_port = free_port(), free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{port}/"
        environment = {"HOME": str(folder), "ERL_EPMD_PORT": str(mapper_port)}
        # A mapper of its own, or Erlang would leave one behind.
        mapper = Process(
            [program("epmd"), "-port", str(mapper_port), "-address", "127.0.0.1"],
            folder / "epmd.log",
            environment,
        )
        running.callback(mapper.stop)
        mapper.wait_until(lambda: listens(mapper_port))
        (folder / "plugins").write_text("[].\n")
        (folder / "rabbitmq.conf").write_text(f"listeners.tcp.default = 127.0.0.1:{port}\n")
        server = Process(
            [program("rabbitmq-server")],
            folder / "server.log",
            environment
            | {
                "RABBITMQ_CONF_ENV_FILE": "/dev/null",
                "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
                "RABBITMQ_NODENAME": f"benchmark{node_port}@localhost",
                "RABBITMQ_NODE_PORT": str(port),
                "RABBITMQ_DIST_PORT": str(node_port),
                "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
                "RABBITMQ_LOG_BASE": str(folder),
                "RABBITMQ_PID_FILE": str(folder / "server.pid"),
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            },
        )
        running.callback(server.stop)
        server.wait_until(lambda: listens(port))
        self.pid = server.pid
        self._folder = folder

    def version(self) -> str:
        """Return its version, as its log tells it."""
        for log in self._folder.glob("*.log"):
            for line in log.read_text(errors="replace").splitlines():
                _, found, version = line.partition("Starting RabbitMQ ")
                if found:
                    return version.split()[0]
        return "of unknown version"
