"""Where the broker is: the embedded chain (a ``pf serve`` of this executor's own), the user's daemon, or one far away."""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from pathlib import Path
from typing import IO, Dict, List, Optional

from ._http import Address
from .errors import ExecutorBroken, PilotfishError

START_TIMEOUT_S = 60.0  # pf is up in a fraction of a second; a slow shared file system may need more
STOP_TIMEOUT_S = 20.0  # managers end their workers within seconds; then it is killed
DIR_CHARS_MAX = 80  # Unix socket paths have 107 bytes at the most, and pf puts its own names below the folder
LOG_TAIL_BYTES = 4096


def find_pf() -> str:
    """The binary ``pf``: PILOTFISH_PF, beside this package, on PATH, or in the source tree's target folder."""
    said = os.environ.get("PILOTFISH_PF")
    if said:
        if not os.access(said, os.X_OK):
            raise PilotfishError("PILOTFISH_PF=%s is not an executable file" % said)
        return os.path.abspath(said)
    here = Path(__file__).resolve().parent
    for beside in (here / "pf", here / "bin" / "pf"):
        if os.access(str(beside), os.X_OK):
            return str(beside)
    on_path = shutil.which("pf")
    if on_path:
        return on_path
    for build in ("release", "debug"):
        built = here.parent.parent / "target" / build / "pf"
        if os.access(str(built), os.X_OK):
            return str(built)
    error = PilotfishError("the program pf is not found")
    error.hint = "put it on PATH, or set PILOTFISH_PF to its path"
    raise error


class Embedded:
    """A ``pf serve`` of our own: broker, relay and a block on this machine or, without ``workers``, on all nodes of the
    batch job in which we run. It ends when our end of its stdin closes, so it cannot outlive this process, and its folder
    is removed with it."""

    def __init__(self, workers: Optional[int]) -> None:
        pf = find_pf()
        cores = [] if workers is None else ["--workers", str(workers)]
        self.nodes = 1
        base = tempfile.gettempdir()
        self.dir = tempfile.mkdtemp(prefix="pilotfish-", dir=base if len(base) < DIR_CHARS_MAX - 20 else "/tmp")
        self.log_path = os.path.join(self.dir, "serve.log")
        try:
            with open(self.log_path, "wb") as log:
                self.process = subprocess.Popen(
                    [pf, "serve", "--private", "--dir", self.dir, "--parent-pid", str(os.getpid())] + cores,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=child_environment(), start_new_session=True)
        except OSError as error:
            shutil.rmtree(self.dir, ignore_errors=True)
            raise PilotfishError("%s cannot be started: %s" % (pf, error)) from error
        self.lock = threading.Lock()
        try:
            self.address = Address(socket=self._ready())
        except BaseException:
            self.stop()
            raise

    def _ready(self) -> str:
        """The socket's path, once pf has said it."""
        timer = threading.Timer(START_TIMEOUT_S, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            line = stream(self.process.stdout).readline()
        finally:
            timer.cancel()
        try:
            ready = json.loads(line)
            self.nodes = int(ready["nodes"])
            return str(ready["socket"])
        except (ValueError, KeyError, TypeError):
            raise ExecutorBroken("pf serve did not start: %s" % (self.log_tail() or line.decode("utf-8", "replace") or "no word"))

    def log_tail(self) -> str:
        """The last lines of its log."""
        try:
            with open(self.log_path, "rb") as log:
                log.seek(max(0, os.path.getsize(self.log_path) - LOG_TAIL_BYTES))
                return log.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def died(self) -> Optional[str]:
        """Why it is gone; None while it runs."""
        code = self.process.poll()
        return None if code is None else "pf serve ended with %d: %s" % (code, self.log_tail() or "no word")

    def stop(self) -> None:
        """End it in order, and remove its folder. Harmless when done twice."""
        with self.lock:
            stream(self.process.stdin).close()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            stream(self.process.stdout).close()
            shutil.rmtree(self.dir, ignore_errors=True)

    def forget_in_child(self) -> None:
        """After a fork, in the child: the parent's pf must see its stdin close when the parent ends."""
        try:
            os.close(stream(self.process.stdin).fileno())
        except (OSError, ValueError):
            pass


def stream(pipe: Optional[IO[bytes]]) -> IO[bytes]:
    """A pipe that is there, for the type checker."""
    assert pipe is not None
    return pipe


def child_environment() -> Dict[str, str]:
    """Our environment, with our ``sys.path`` for the workers, so that modules beside the script are found there too."""
    environ = dict(os.environ)
    first = sys.path[0] if sys.path and sys.path[0] else os.getcwd()
    paths: List[str] = [first] + [p for p in environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    if os.path.isdir(first):
        environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return environ


def local_socket() -> str:
    """The socket of this user's daemon on this host: in the place that the configuration names, else in the usual one."""
    return os.path.join(configured_place("local") or default_local(), "broker.sock")


def default_local() -> str:
    """The local place where nothing is configured."""
    root = os.environ.get("PILOTFISH_DIR")
    if root:
        return os.path.join(root, "local")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime):
        return os.path.join(runtime, "pilotfish")
    return "/tmp/pilotfish-%d" % os.getuid()


def configured_place(name: str) -> Optional[str]:
    """The folder of ``places.NAME``, by the word of ``pf``, which is asked only where there is some configuration."""
    user = os.environ.get("PILOTFISH_CONFIG") or os.path.join(config_folder(), "config.toml")
    variable = "PILOTFISH_PLACES_%s" % name.upper()
    if variable not in os.environ and not any(map(os.path.exists, (user, "/etc/pilotfish/config.toml"))):
        return None
    done = subprocess.run([find_pf(), "config", "show", "--json"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        raise PilotfishError("pf config show failed: %s" % done.stderr.decode("utf-8", "replace").strip())
    return os.path.expanduser(json.loads(done.stdout.decode())["places.%s" % name]["value"])


def config_folder() -> str:
    """Where pf's configuration, certificates and tokens of this user are."""
    return os.environ.get("PILOTFISH_DIR") or os.path.join(
        os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config"), "pilotfish")


def start_daemon() -> None:
    """``pf broker start``: harmless when it runs."""
    pf = find_pf()
    done = subprocess.run([pf, "broker", "start", "--quiet"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        raise PilotfishError("pf broker start failed: %s" % done.stderr.decode("utf-8", "replace").strip())


def resolve(broker: Optional[str]) -> Address:
    """The address that ``broker`` names: None, a socket's path, ``unix:PATH``, or ``https://HOST:PORT``."""
    if broker is None:
        return Address(socket=local_socket())
    if broker.startswith("https://"):
        return remote(broker)
    path = broker[len("unix:"):] if broker.startswith("unix:") else broker
    if not path.startswith(("/", ".")):
        raise ValueError("broker=%r is neither a socket's path nor https://HOST:PORT" % broker)
    return Address(socket=os.path.abspath(path))


def remote(url: str) -> Address:
    """A broker on another host. Its certificate and our token are ``broker.crt`` and ``token`` in pf's configuration folder,
    or, where one has several brokers, in ``brokers/HOST_PORT/`` there; PILOTFISH_TOKEN is taken before the file."""
    parts = urllib.parse.urlsplit(url)
    if not parts.hostname or not parts.port:
        raise ValueError("broker=%r is not written like https://HOST:PORT" % url)
    config = config_folder()
    own = os.path.join(config, "brokers", "%s_%d" % (parts.hostname, parts.port))
    folder = own if os.path.isdir(own) else config
    certificate = os.path.join(folder, "broker.crt")
    if not os.path.isfile(certificate):
        error = PilotfishError("the certificate of %s is not known: there is no %s" % (url, certificate))
        error.hint = "write what `pf broker cert` prints on the broker's host there"
        raise error
    token = os.environ.get("PILOTFISH_TOKEN") or read_token(os.path.join(folder, "token"))
    return Address(host=parts.hostname, port=parts.port, certificate=certificate, token=token)


def read_token(path: str) -> str:
    """The token in a file that only we can read."""
    try:
        if os.stat(path).st_mode & 0o077:
            raise PilotfishError("token file %s is open to others; chmod 600 it, and better make a new token" % path)
        with open(path) as lines:
            return lines.read().strip()
    except OSError as error:
        made = PilotfishError("no token: %s" % error)
        made.hint = "write what `pf broker token add NAME` prints on the broker's host there, with mode 0600"
        raise made from error
