"""The Pilotfish worker: one process bound to a slot, running Python tasks one after another.

A manager starts it as ``python worker.py`` with ``PF_WORKER_FDS=DATA,CONTROL`` in its environment and speaks
``docs/worker-protocol.md`` with it. This file stands alone: it is embedded in ``pf``, written to a node's local folder
and run by the user's Python (3.8 or newer), so it imports the standard library only and nothing of its own package.
Modules that are slow to import (json, traceback, linecache, typing) are imported when they are first needed, or not at all.
It is longer than other files here since it must be one.
"""
from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the signal module wraps its answers in enums: 14 times slower
import _thread
import os
import pickle
import select
import struct
import sys
import time
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Deque, Dict, NoReturn, Optional, Set, Tuple
    Failure = Tuple[int, bytes, bytes]  # status, pickled exception or nothing, error JSON

VERSION = 3
JOB, TASKS, END, HELLO, ANSWERS = 1, 2, 3, 10, 11
VALUE, EXCEPTION, EXIT, REFUSED, TOO_LARGE, OTHER = 0, 1, 2, 10, 11, 12  # numbers of OutcomeKind
REFERENCE, CLOUDPICKLE, SOURCE = 1, 2, 3

# Limits, each with its reason.
FRAME_BYTES_MAX = 16 << 20  # of the protocol; a larger frame is an error of the peer
VALUE_BYTES_MAX = 1 << 30  # PAYLOAD_BYTES_MAX of the protocol: files of one's own are the way for more
INLINE_BYTES_MAX = 256 << 10  # of the protocol: a larger value goes into a file, and the answer names it
WRITE_BYTES = 16 << 20  # one write of such a file: Linux writes at most 2 GiB at once, and a signal comes in between
MESSAGE_CHARS_MAX = 4 << 10  # below the protocol's 8 KiB even with escapes
TRACEBACK_CHARS_MAX = 16 << 10  # below the protocol's 32 KiB; the middle is cut, both ends tell most
BATCH_BYTES_MAX = 1 << 20  # answers are flushed before a frame gets near its maximum
BATCH_ANSWERS_MAX = 4096  # as many as a batch has on the links
FLUSH_AFTER_NS = 1_000_000  # an answer waits no longer than this for company
READ_BYTES = 1 << 18  # one read of the data pipe: more than a Unix socket holds by default
OUTPUTS_EVERY_NS = 100_000_000  # looking whether 1 and 2 are still ours costs two calls
REFUSED_FOR_NS = 10_000_000_000  # a function that could not be loaded is not tried again for so long
U32_MAX = (1 << 32) - 1
NEVER = 1 << 64  # no task has this number
LARGE = 1 << 31  # in a length: what stands there names a payload, by hash and length

clock_ns = time.perf_counter_ns
loads = pickle.loads
write = os.write
getsignal = _signal.getsignal
alarm = _signal.alarm


class Refused(Exception):
    """The task cannot be started here: its function or arguments cannot be read. Carries a hint."""

    def __init__(self, message: str, hint: Optional[str] = None, cause: Optional[BaseException] = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.cause = cause


class Named(bytes):
    """What names a large value in an answer: its BLAKE2b-256 and its length."""


class Job:
    """What the manager said of a job in its slot: how to get the function, loaded at the job's first task."""

    def __init__(self, body: memoryview) -> None:
        self.kind, self.chunked, major, minor, length, files = struct.unpack_from("<BBBBHH", body, 4)
        self.client = (major, minor)
        self.name = str(body[12:12 + length], "utf-8", "replace")
        self.files = os.fsdecode(bytes(body[12 + length:12 + length + files]))  # what paths of large payloads begin with
        self.bytes = bytes(body[12 + length + files:])
        self.function: Optional[Callable[..., Any]] = None
        self.refused: Optional[Refused] = None
        self.refused_at = 0

    def read_item(self, name: memoryview) -> memoryview:
        """The item that ``name`` names. Raises Refused."""
        path = "%s%s.item" % (self.files, bytes(name[:32]).hex())
        hint = "the folder of the endpoint's blocks must be the same on all nodes"
        try:
            with open(path, "rb", 0) as file:
                item = file.readall()
        except OSError as error:
            raise Refused("the arguments cannot be read from %s: %s" % (path, error.strerror), hint)
        if len(item) != int.from_bytes(name[32:], "little"):
            raise Refused("the arguments in %s are cut: %d bytes" % (path, len(item)), hint)
        return memoryview(item)

    def leave_value(self, value: bytes) -> Named:
        """Put a large value into a file, whole and synced before it has its name; return what names it. Raises OSError."""
        import hashlib
        digest = hashlib.blake2b(value, digest_size=32)
        path = "%s%s.value" % (self.files, digest.hexdigest())
        draft = "%s.%d.draft" % (path, os.getpid())
        view = memoryview(value)
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                while len(view):
                    view = view[os.write(fd, view[:WRITE_BYTES]):]
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(draft, path)
        except OSError:
            try:
                os.unlink(draft)
            except OSError:
                pass
            raise
        fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        return Named(digest.digest() + struct.pack("<Q", len(value)))

    def load(self) -> Callable[..., Any]:
        """The function. A failure is remembered for a while, so that a million tasks do not each import in vain."""
        if self.refused is not None and clock_ns() - self.refused_at < REFUSED_FOR_NS:
            raise self.refused
        try:
            self.function = load_function(self)
        except Refused as error:
            self.refused, self.refused_at = error, clock_ns()
            raise
        if not callable(self.function):
            raise Refused("function %s is not callable but %s" % (self.name, type(self.function).__name__))
        return self.function


def load_function(job: Job) -> Any:
    """Import, unpickle or execute what ``job`` carries. Raises Refused with the reason."""
    here = "%d.%d" % sys.version_info[:2]
    if job.kind == CLOUDPICKLE and job.client != (0, 0) and job.client != sys.version_info[:2]:
        raise Refused(
            "function %s was pickled by Python %d.%d and this worker runs Python %s" % ((job.name,) + job.client + (here,)),
            "give the endpoint the same Python (python=... of the job), or send the function by source or by reference")
    try:
        if job.kind == REFERENCE:
            import importlib
            module, _, path = job.bytes.decode().partition(":")
            function = importlib.import_module(module)
            for part in path.split("."):
                function = getattr(function, part)
            return function
        if job.kind == CLOUDPICKLE:
            return loads(job.bytes)
        if job.kind == SOURCE:
            import json
            said = json.loads(job.bytes)
            return execute_source(said["source"], said["name"])
    except BaseException as error:  # user code runs here: it may raise anything, SystemExit too
        hint = "import it under %s (%s) to see why" % (sys.executable, here)
        if isinstance(error, ModuleNotFoundError):
            hint = no_module_hint(error)
        raise Refused("function %s cannot be loaded: %s" % (job.name, one_line(error)), hint, error)
    raise Refused("function %s is of kind %d, which this worker does not know" % (job.name, job.kind))


def execute_source(source: str, name: str) -> Any:
    """Execute ``source`` in a module of its own and take ``name`` from it; tracebacks can show its lines."""
    import linecache
    import types
    file = "<pilotfish source of %s>" % name
    module = types.ModuleType("pilotfish_source")
    module.__file__ = file
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    exec(compile(source, file, "exec"), module.__dict__)
    return module.__dict__[name]


def no_module_hint(error: ModuleNotFoundError) -> str:
    """What to do about a module that this Python does not have."""
    name = error.name or "it"
    if name == "cloudpickle":
        return "install cloudpickle for %s, or send the function by source or by reference" % sys.executable
    return ("install %s for %s, set PYTHONPATH in the job's env, or send it by value: "
            "cloudpickle.register_pickle_by_value(%s)" % (name, sys.executable, name))


def one_line(error: BaseException) -> str:
    """``Type: text`` of an exception; survives a ``__str__`` that raises."""
    try:
        text = str(error)
    except BaseException:
        text = "<its text cannot be shown>"
    name = type(error).__name__
    return cut((name + ": " + text) if text else name, MESSAGE_CHARS_MAX)


def cut(text: str, chars: int) -> str:
    """``text`` with its middle left out if it is longer than ``chars``."""
    if len(text) <= chars:
        return text
    return text[:chars // 3] + "\n  ... cut here ...\n" + text[-(chars - chars // 3):]


def trimmed_traceback(error: BaseException) -> str:
    """The traceback as text, without this file's frames."""
    try:
        import traceback
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
            frames = frames.tb_next
        return cut("".join(traceback.format_exception(type(error), error, frames)), TRACEBACK_CHARS_MAX)
    except BaseException as second:  # the user's __str__, or no memory to format with
        return "%s\n(its traceback cannot be formatted: %s)\n" % (one_line(error), type(second).__name__)


def dumps(value: Any) -> bytes:
    """Pickle ``value``; classes that only cloudpickle can carry are carried by it where it is installed."""
    try:
        return pickle.dumps(value, 5)
    except Exception:
        try:
            import cloudpickle  # type: ignore[import-untyped,unused-ignore]
        except ImportError:
            cloudpickle = None
        if cloudpickle is None:
            raise
        return bytes(cloudpickle.dumps(value, 5))


def encode_error(message: str, traceback: Optional[str] = None, hint: Optional[str] = None,
                 exit_code: Optional[int] = None) -> bytes:
    """JSON of the protocol's ``ErrorDetail``."""
    import json
    detail: Dict[str, Any] = {"message": message}
    if traceback is not None:
        detail["traceback"] = traceback
    if hint is not None:
        detail["hint"] = hint
    for name, text in detail.items():  # of a file's name that is not UTF-8 there are halves of characters, which JSON has no place for
        detail[name] = text.encode("utf-8", "backslashreplace").decode()
    if exit_code is not None:
        detail["exit"] = exit_code
    return json.dumps(detail).encode()


def failure(error: BaseException) -> Failure:
    """(status, value, error JSON) of a task or of one call of a chunk that raised ``error``."""
    if isinstance(error, Refused):
        trace = trimmed_traceback(error.cause) if error.cause is not None else None
        return REFUSED, b"", encode_error(str(error), trace, error.hint)
    if isinstance(error, SystemExit):
        code = error.code
        if code is None or code is False:
            code = 0
        if isinstance(code, int):
            return EXIT, b"", encode_error("the function called sys.exit(%d)" % code, exit_code=int(code) & 0xFF)
        text = cut(str(code), MESSAGE_CHARS_MAX)
        return EXIT, b"", encode_error("the function called sys.exit: " + text, exit_code=1)
    try:
        value = dumps(error)
    except BaseException:  # a lock in it, a __reduce__ that raises: message and traceback must do
        value = b""
    if len(value) > INLINE_BYTES_MAX:
        value = b""
    return EXCEPTION, value, encode_error(one_line(error), trimmed_traceback(error))


def unpicklable(value: Any, error: BaseException) -> Failure:
    """The failure of a task whose result cannot be pickled."""
    hint = "return plain data, or install cloudpickle for %s" % sys.executable
    message = "the result, a %s, cannot be pickled: %s" % (type(value).__name__, one_line(error))
    return EXCEPTION, b"", encode_error(cut(message, MESSAGE_CHARS_MAX), hint=hint)


def large_value(job: Job, value: bytes) -> Failure:
    """The outcome of a task whose result is too large for a frame: what names it, if it may be and can be left in a file."""
    most = VALUE_BYTES_MAX if job.files else INLINE_BYTES_MAX  # without a place for files the broker is of an older version
    if len(value) > most:
        hint = "use a smaller chunksize" if job.chunked else "write large results to a file and return its path"
        message = "the result has %d bytes pickled, %d are allowed" % (len(value), most)
        return TOO_LARGE, b"", encode_error(message, hint=hint)
    try:
        return VALUE, job.leave_value(value), b""
    except OSError as error:
        message = "the result of %d bytes cannot be written to %s*: %s" % (len(value), job.files, error.strerror)
        return OTHER, b"", encode_error(message, hint="make room in the folder of the endpoint's blocks")


def arguments_refused(error: BaseException) -> Refused:
    """The refusal of a task whose arguments cannot be read."""
    hint = None
    if isinstance(error, ModuleNotFoundError):
        hint = no_module_hint(error)
    elif "__main__" in str(error):
        hint = "an argument is of a class of the client's script: move it to a module, or install cloudpickle at both ends"
    return Refused("the arguments cannot be read: " + one_line(error), hint, error)


def run_chunk(function: Callable[..., Any], item: memoryview) -> bytes:
    """Run a chunk. ``item`` is a pickle of a list of columns, one for each parameter; the value is a pickle of the list of
    results, or of (results, {position: (status, pickled exception, error JSON)}) when calls failed."""
    try:
        columns = loads(item)
        count = min(map(len, columns))
    except BaseException as error:
        raise arguments_refused(error)
    calls = map(function, *columns)
    results: list[Any] = []
    errors: Dict[int, Failure] = {}
    while len(results) < count:
        try:
            results.extend(calls)  # at C speed; keeps what it has when a call raises
            if len(results) < count:
                raise RuntimeError("the function raised StopIteration")
        except BaseException as error:
            errors[len(results)] = failure(error)
            results.append(None)
    try:
        return dumps((results, errors) if errors else results)
    except BaseException:
        for position, result in enumerate(results):
            try:
                dumps(result)
            except BaseException as error:
                errors[position] = unpicklable(result, error)
                results[position] = None
        return dumps((results, errors))


def run_text(function: Callable[..., Any], item: memoryview) -> Any:
    """Run a task whose item is no pickle: nothing, or text that becomes the only argument (``pf submit --each-line``)."""
    if not len(item):
        return function()
    try:
        text = str(item, "utf-8")
    except UnicodeDecodeError as error:
        raise arguments_refused(error)
    return function(text)


class Worker:
    """The loop: read frames, run tasks, answer."""

    def __init__(self, data: int, control: int) -> None:
        self.data, self.control = data, control
        self.jobs: Dict[int, Job] = {}
        self.permitted: Optional[int] = None  # the task that may start next, once it is known
        self.answers: Deque[Tuple[int, int, int, bytes, bytes]] = deque()
        self.answers_bytes = 0
        self.named = False  # whether any answer ever named its value
        self.oldest_ns = 0
        self.sending = _thread.allocate_lock()
        self.running = False  # whether user code runs: an interrupt is its KeyboardInterrupt, else nothing
        self.forked = False  # set in a child that user code forked off
        self.mark = os.urandom(16)
        self.long_jobs: Set[int] = set()  # slots whose last task was long: answers are flushed before the next one
        self.watching = False  # whether the watcher thread looks at the clock
        self.wake_read, self.wake_write = os.pipe()
        self.out: Any = None
        self.err: Any = None
        self.outputs_seen_ns = 0

    # --- what tasks may have changed -------------------------------------------------------------------------

    def prepare_process(self) -> None:
        """Streams, signals, cwd and fork hooks, so that a task cannot spoil the next one cheaply or the protocol at all."""
        self.output, self.output_err = os.dup(1), os.dup(2)  # survive a task that closes 1 or 2
        self.inodes = [os.fstat(1)[1:3], os.fstat(2)[1:3]]
        stream: Any
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
        self.out, self.err = sys.stdout, sys.stderr
        self.restore_signals()
        self.watch_chdir()
        os.register_at_fork(after_in_child=self.after_fork)

    def restore_signals(self) -> None:
        """The handlers that a task finds: SIGINT raises in tasks only, SIGTERM ends the process, no alarm is left."""
        if _signal.getsignal(_signal.SIGALRM) is not _signal.SIG_DFL:
            _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
        _signal.signal(_signal.SIGINT, self.on_interrupt)
        _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
        self.handlers = [(n, _signal.getsignal(n)) for n in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGALRM)]

    def on_interrupt(self, _signum: int, _frame: Any) -> None:
        """SIGINT: the running task's business; nothing between tasks."""
        if self.running:
            raise KeyboardInterrupt

    def watch_chdir(self) -> None:
        """Know of a changed cwd without a system call a task: ``os.chdir`` and ``os.fchdir`` tell."""
        self.moved = False
        self.cwd = os.getcwd()
        self.chdir = os.chdir
        for name in ("chdir", "fchdir"):
            setattr(os, name, self.telling(name, getattr(os, name)))

    def telling(self, name: str, call: Callable[..., None]) -> Callable[..., None]:
        """``call``, noting that it was called."""
        def changed(*args: Any, **kwargs: Any) -> None:
            self.moved = True
            return call(*args, **kwargs)
        changed.__name__ = changed.__qualname__ = name
        changed.__module__ = "os"
        changed.__doc__ = call.__doc__
        return changed

    def after_fork(self) -> None:
        """In a child that user code forked: the protocol is not its business, and the manager must see our end close."""
        self.forked = True
        for fd in (self.data, self.control, self.wake_read, self.wake_write):
            try:
                os.close(fd)
            except OSError:
                pass

    def restore(self) -> None:
        """After a task: what is cheap to see and to put back."""
        if sys.stdout is not self.out or sys.stderr is not self.err:
            sys.stdout, sys.stderr = self.out, self.err
        if self.moved:
            self.moved = False
            try:
                self.chdir(self.cwd)
            except OSError as error:
                self.note("the worker's folder is gone: %s" % error)
        alarm(0)  # one that the task has left would end the next one
        for number, handler in self.handlers:
            if getsignal(number) is not handler:
                self.restore_signals()
                break

    def reopen_outputs(self) -> None:
        """Put file descriptors 1 and 2 back where a task closed or moved them."""
        for fd, copy, inode in ((1, self.output, self.inodes[0]), (2, self.output_err, self.inodes[1])):
            try:
                if os.fstat(fd)[1:3] == inode:
                    continue
            except OSError:
                pass
            os.dup2(copy, fd)
        if self.out.closed:
            self.out = sys.stdout = open(1, "w", 1, "utf-8", "backslashreplace", closefd=False)
        if self.err.closed:
            self.err = sys.stderr = open(2, "w", 1, "utf-8", "backslashreplace", closefd=False)

    def note(self, text: str) -> None:
        """A word for the manager's log."""
        write(self.output_err, ("pilotfish worker: %s\n" % text).encode())

    # --- answers ---------------------------------------------------------------------------------------------

    def finish_output(self, seq: int) -> None:
        """Flush the task's output and put the marker behind it, on both streams."""
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:  # closed, replaced by something odd, or its file is gone
            sys.stdout, sys.stderr = self.out, self.err
            try:
                self.reopen_outputs()
            except OSError:
                pass
        marker = self.mark + seq.to_bytes(8, "little")
        try:
            write(self.output, marker)  # 24 bytes are atomic on a pipe
        except OSError as error:
            write_again(self.output, marker, error)
        try:
            write(self.output_err, marker)
        except OSError as error:
            write_again(self.output_err, marker, error)

    def flush(self) -> None:
        """Send all answers that are ready, in one frame or more. Called by the loop and by the watcher."""
        with self.sending:
            count = min(len(self.answers), BATCH_ANSWERS_MAX)
            if not count:
                return
            self.answers_bytes = 0
            take = self.answers.popleft
            seqs, statuses, rans, values, errors = zip(*[take() for _ in range(count)])
            lens = list(map(len, values))
            if self.named:
                lens = [length | LARGE if type(value) is Named else length for length, value in zip(lens, values)]
            body = b"".join((
                struct.pack("<BBI", VERSION, ANSWERS, count),
                struct.pack("<%dQ" % count, *seqs), bytes(statuses), struct.pack("<%dI" % count, *rans),
                struct.pack("<%dI" % count, *lens), struct.pack("<%dI" % count, *map(len, errors)),
                *values, *errors))
            self.send(len(body).to_bytes(4, "little") + body)

    def send(self, frame: bytes) -> None:
        """Write all of ``frame`` to the data pipe."""
        view = memoryview(frame)
        while len(view):
            try:
                view = view[os.write(self.data, view):]
            except BlockingIOError:
                wait_for(self.data, select.POLLOUT)
            except OSError:
                os._exit(1)  # the manager is gone: nobody wants what we have

    def watch(self) -> None:
        """The watcher thread: while answers are pending behind a running task it looks every 2 ms and sends what has
        waited; otherwise it sleeps. It also sees the manager's end: then the process ends at once, whatever runs."""
        poll = select.poll()
        poll.register(self.wake_read, select.POLLIN)
        poll.register(self.control, 0)  # the hang-up only: what can be read is the loop's
        while True:
            for fd, _event in poll.poll(2 if self.watching else None):
                if fd == self.wake_read:
                    os.read(self.wake_read, 64)
                else:
                    os._exit(1)
            if self.answers:
                if clock_ns() - self.oldest_ns > FLUSH_AFTER_NS:
                    self.flush()
            else:
                self.watching = False
                self.watching = bool(self.answers)  # one may have come between: the loop saw us watching and did not wake us

    def start_watching(self) -> None:
        """Wake the watcher: answers are pending and a task starts that may be long."""
        self.watching = True
        os.write(self.wake_write, b"w")

    # --- the loop --------------------------------------------------------------------------------------------

    def run_tasks(self, body: memoryview) -> None:
        """Run a frame of tasks, in order."""
        count, = struct.unpack_from("<I", body)
        seqs = struct.unpack_from("<%dQ" % count, body, 4)
        slots = struct.unpack_from("<%dI" % count, body, 4 + 8 * count)
        lens = struct.unpack_from("<%dI" % count, body, 4 + 12 * count)
        at = 4 + 16 * count
        answers = self.answers
        for seq, slot, length in zip(seqs, slots, lens):
            large = length & LARGE
            item = body[at:at + (length ^ large)]
            at += length ^ large
            if not self.may_start(seq):
                continue
            start = clock_ns()
            if answers:
                if slot in self.long_jobs:
                    self.flush()
                elif not self.watching:
                    self.start_watching()
            status, value, error = self.run_one(seq, self.jobs[slot], item, large)
            end = clock_ns()
            ran_ns = end - start
            if ran_ns > FLUSH_AFTER_NS:
                self.long_jobs.add(slot)
            else:
                self.long_jobs.discard(slot)
            if not answers:
                self.oldest_ns = end
            answers.append((seq, status, min(ran_ns // 1000, U32_MAX), value, error))
            self.answers_bytes += len(value) + len(error)
            if (end - self.oldest_ns > FLUSH_AFTER_NS or self.answers_bytes > BATCH_BYTES_MAX
                    or len(answers) >= BATCH_ANSWERS_MAX):
                self.flush()

    def run_one(self, seq: int, job: Job, item: memoryview, large: int) -> Failure:
        """Run one task: (status, value, error JSON). Its output is flushed and marked when this returns."""
        error = b""
        value = None
        status = VALUE
        try:
            self.running = True
            try:
                function = job.function or job.load()
                if large:
                    item = job.read_item(item)
                if job.chunked:
                    value = run_chunk(function, item)
                elif len(item) and item[0] == 0x80:  # a pickle of (args, kwargs): no UTF-8 text begins so
                    try:
                        args, kwargs = loads(item)
                    except BaseException as unreadable:
                        raise arguments_refused(unreadable)
                    value = function(*args, **kwargs)
                else:
                    value = run_text(function, item)
                if value is None:
                    value = b""
                elif not job.chunked:
                    result = value
                    try:
                        value = dumps(result)
                    except BaseException as unpickled:
                        status, value, error = unpicklable(result, unpickled)
                if len(value) > INLINE_BYTES_MAX:
                    self.named = True
                    status, value, error = large_value(job, value)
            finally:
                self.running = False
        except BaseException as raised:
            status, value, error = failure(raised)
        if self.forked:
            self.leave_forked_child()
        self.finish_output(seq)
        self.restore()
        return status, value, error

    def leave_forked_child(self) -> NoReturn:
        """User code forked and its child came back from the function: it ends here, the parent answers."""
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(0)

    def may_start(self, seq: int) -> bool:
        """Wait for the permission of this task, or of a later one: then this one was taken back, and is nobody's here."""
        while self.permitted is None:
            try:
                permission = os.read(self.control, 8)
            except BlockingIOError:
                self.rest()
                wait_for(self.control, select.POLLIN)
                continue
            # nothing: the manager gives no more, and END comes next, or the manager's own end
            self.permitted = int.from_bytes(permission, "little") if permission else NEVER
        if seq != self.permitted:
            return False
        self.permitted = None
        return True

    def handle(self, frame: memoryview) -> bool:
        """One frame of the data pipe (without its length). Returns False at the end."""
        version, kind = frame[0], frame[1]
        body = frame[2:]
        if version != VERSION:
            self.note("the manager speaks version %d, this worker %d" % (version, VERSION))
            os._exit(3)
        if kind == TASKS:
            self.run_tasks(body)
        elif kind == JOB:
            self.jobs[int.from_bytes(body[:4], "little")] = Job(body)
        elif kind == END:
            return False
        else:
            self.note("data frame of kind %d is not understood" % kind)
            os._exit(3)
        return True

    def rest(self) -> None:
        """No task waits: send what is ready and put things in order."""
        while self.answers:
            self.flush()
        now = clock_ns()
        if now - self.outputs_seen_ns > OUTPUTS_EVERY_NS:
            self.outputs_seen_ns = now
            self.reopen_outputs()

    def run(self) -> None:
        """Until END or the manager's end."""
        poll = select.poll()
        poll.register(self.data, select.POLLIN)
        buffer = bytearray()
        need = 4
        while True:
            try:
                piece = os.read(self.data, max(READ_BYTES, need - len(buffer)))
            except BlockingIOError:
                self.rest()
                poll.poll()
                continue
            if not piece:
                os._exit(1)
            buffer += piece
            if len(buffer) < need:
                continue
            view = memoryview(bytes(buffer))
            at = 0
            while len(buffer) - at >= 4:
                length = int.from_bytes(buffer[at:at + 4], "little")
                if not 2 <= length <= FRAME_BYTES_MAX:
                    self.note("frame of %d bytes" % length)
                    os._exit(3)
                need = 4 + length
                if len(buffer) - at < need:
                    break
                if not self.handle(view[at + 4:at + need]):
                    return
                at += need
                need = 4
            del buffer[:at]

    def say_hello(self) -> None:
        """Who we are."""
        try:
            from importlib.util import find_spec
            cloudpickle = find_spec("cloudpickle") is not None
        except Exception:
            cloudpickle = False
        text = '{"python":"%d.%d.%d","pid":%d,"marker":"%s","cloudpickle":%s}' % (
            *sys.version_info[:3], os.getpid(), self.mark.hex(), str(cloudpickle).lower())
        body = bytes((VERSION, HELLO)) + text.encode()
        self.send(len(body).to_bytes(4, "little") + body)


def write_again(fd: int, marker: bytes, error: OSError) -> None:
    """Write a marker to a pipe that a child made non-blocking and that is full."""
    while isinstance(error, BlockingIOError):
        wait_for(fd, select.POLLOUT)
        try:
            write(fd, marker)
            return
        except OSError as again:
            error = again
    # nobody reads any more; the data pipe will tell


def wait_for(fd: int, event: int) -> None:
    """Wait until ``fd`` is ready for ``event``."""
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()


def clean_main_module() -> None:
    """Tasks see an empty ``__main__`` and the folder they run in on ``sys.path``, not this file and its folder."""
    import types
    sys.modules["_pilotfish_worker"] = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = [""]
    if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        sys.path[0] = ""


def main() -> NoReturn:
    """Run until the manager says END or is gone."""
    data, control = map(int, os.environ.pop("PF_WORKER_FDS").split(","))
    for fd in (data, control):
        os.set_inheritable(fd, False)
        os.set_blocking(fd, False)
    worker = Worker(data, control)
    worker.prepare_process()
    clean_main_module()
    worker.say_hello()
    _thread.start_new_thread(worker.watch, ())
    worker.run()
    while worker.answers:
        worker.flush()
    try:
        import atexit
        atexit._run_exitfuncs()  # what libraries want at the end, without waiting for threads that tasks left behind
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
