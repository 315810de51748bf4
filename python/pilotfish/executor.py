"""The executor: ``concurrent.futures.Executor`` over Pilotfish. This is what users import."""
import atexit
import concurrent.futures
import os
import sys
import threading
import time
import urllib.parse
import weakref
from collections.abc import Sequence as SequenceABC
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple, Union

from . import _daemon
from ._client import Client
from ._functions import Function, chunk_columns, dumps, encode, plain
from ._http import ConnectionLost
from ._lane import Lane
from ._options import Options
from .errors import PilotfishError
from .future import TaskFuture, calls_of, results_of

CHUNKS_WANTED = 1000  # of a map with no chunksize: enough to spread work over a thousand workers
CHUNKS_A_WORKER = 16  # and to even out calls of unequal length where the workers are known
CHUNK_CALLS_MAX = 10_000  # of a chunk that was sized by us, so that no chunk runs for long
CHUNK_BYTES_MAX = 1 << 20  # of a chunk's arguments; larger chunks are halved
INTERRUPTED_S = 2.0  # after Ctrl-C in a with block, to close jobs in order
EXIT_FLUSH_S = 30.0  # at interpreter exit, to hand unsent tasks to the user's daemon


class Held:
    """Held by an executor and all of its views: when it goes, nobody can submit any more."""


class View(concurrent.futures.Executor):
    """An executor's face with options of its own. ``Executor`` is one too; ``with_options`` makes more."""

    def __init__(self, client: Client, options: Options, held: Held) -> None:
        self._client = client
        self._options = options
        self._held = held
        self._lanes: Dict[Tuple[Any, bool], Lane] = {}

    def with_options(self, **options: Any) -> "View":
        """The same executor with other options for what is submitted through the view:

        ``cores`` (1), ``gpus`` (0; 0.25 is a quarter), ``memory`` (bytes or ``"4G"``), ``features``;
        ``time_limit`` (seconds; a task that runs longer is killed), ``time_needed`` (seconds of walltime that must be left);
        ``retries`` (0; after exceptions, exits and out of memory), ``on_lost`` (``"rerun"``, ``"fail"``, ``"wait"``);
        ``priority``, ``max_running``, ``max_fails``; ``name``, ``labels``, ``account``;
        ``env`` (variables of the tasks), ``python`` (interpreter), ``by`` (``"cloudpickle"``, ``"reference"``, ``"source"``).
        """
        return View(self._client, self._options.changed(options), self._held)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Run ``fn(*args, **kwargs)`` as a task of its own. The arguments are pickled now: an error of theirs is raised here."""
        fn, args, kwargs = plain(fn, args, kwargs)
        return self._client.submit(self._lane(fn, False), dumps((args, kwargs)))

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: Optional[float] = None,
            chunksize: Optional[int] = None) -> Iterator[Any]:
        """As ``concurrent.futures.Executor.map``: all iterables are read now, results come in order. ``chunksize`` calls are
        one task (1: each call is a task of its own); None: about a thousand tasks, however many calls there are."""
        if not iterables:
            return iter(())
        if chunksize is not None and chunksize < 1:
            raise ValueError("chunksize=%r is less than 1" % (chunksize,))
        end = None if timeout is None else time.monotonic() + timeout
        columns: List[Sequence[Any]] = [column if isinstance(column, (list, tuple, range)) else list(column) for column in iterables]
        count = min(map(len, columns))
        size = chunksize or self._auto_chunksize(count)
        if size == 1:
            futures = [self.submit(fn, *row) for row in zip(*columns)]
            return self._results(futures, False, end)
        return self._results(self._submit_chunks(fn, columns, count, size), True, end)

    def attach(self, job: Union[int, str], close: bool = True) -> "AttachedJob":
        """The futures of a job that an earlier client submitted, by position: after a restart, give it the id that
        ``future.task`` or ``pf job list`` showed. ``close``: end the job's being open, since its client is gone."""
        return AttachedJob(self._client, parse_job(job), close)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks; wait until all futures are done; end threads, and an embedded chain with its folder.
        ``cancel_futures``: cancel what has not started. Without ``wait`` it returns at once, and the rest is done in the
        background, as for an executor that is dropped (an embedded chain is waited for when the interpreter ends)."""
        shut_down(self._client, wait, cancel_futures)

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> Optional[bool]:
        interrupted = exc_type is not None and not issubclass(exc_type, Exception)
        shut_down(self._client, not interrupted, interrupted)
        if interrupted:
            self._client.wait(self._client.all_sent, INTERRUPTED_S)
            end_now(self._client)
        return None

    def _lane(self, fn: Any, chunked: bool) -> Lane:
        """The lane for ``fn``, which is serialized when it is first seen."""
        lane = self._lanes.get((fn, chunked))
        if lane is None or lane.failed is not None:
            function: Function = encode(fn, self._options.by)
            lane = self._lanes[fn, chunked] = self._client.lane(function, self._options, chunked)
        return lane

    def _auto_chunksize(self, count: int) -> int:
        chunks = max(CHUNKS_WANTED, CHUNKS_A_WORKER * (self._client.workers or 0))
        return min(CHUNK_CALLS_MAX, -(-count // chunks)) or 1

    def _submit_chunks(self, fn: Callable[..., Any], columns: List[Sequence[Any]], count: int, size: int) -> List[TaskFuture]:
        function, first, keywords = plain(fn, (), {})
        if keywords:  # of a partial: they have no place in columns
            function, first, keywords = None, (fn,), {}
        columns = [[value] * count for value in first] + columns  # pickled once a chunk: all are the same object
        lane = self._lane(function, True)
        futures: List[TaskFuture] = []
        todo = [(start, min(start + size, count)) for start in range(0, count, size)]
        todo.reverse()
        while todo:
            start, stop = todo.pop()
            item = dumps(chunk_columns(columns, start, stop))
            if len(item) > CHUNK_BYTES_MAX and stop - start > 1:
                middle = (start + stop) // 2
                todo += [(middle, stop), (start, middle)]
            else:
                futures.append(self._client.submit(lane, item))
        return futures

    def _results(self, futures: List[TaskFuture], chunked: bool, end: Optional[float]) -> Iterator[Any]:
        """Results in order; those not yet taken are cancelled when the caller stops early or one fails."""
        futures.reverse()
        try:
            while futures:
                future = futures.pop()
                value = future.result(None if end is None else end - time.monotonic())
                if not chunked:
                    yield value
                elif isinstance(value, list):
                    yield from value
                else:
                    for one, failure in calls_of(value, future.task):
                        if failure is not None:
                            raise failure
                        yield one
        finally:
            if futures and not self._client.stopped.is_set():
                for cancelled in self._client.cancel(futures[0]._lane, futures):
                    cancelled.mark_cancelled()


class Executor(View):
    """Runs functions on the workers of an endpoint.

    ``Executor()``                                a chain of its own with one worker a core: on this machine, or on all
                                                  nodes of the batch job in which the program runs
    ``Executor(workers=8)``                       one on this machine with eight workers
    ``Executor("polaris")``                       an endpoint of the user's daemon, which is started if need be
    ``Executor("polaris", broker="https://..")``  an endpoint of a broker elsewhere (``trust_results=True`` needed)

    Options (``cores=2, time_limit=60, ..``; see ``with_options``) hold for all its tasks. Thread-safe; not usable in a forked child.
    """

    def __init__(self, endpoint: Optional[str] = None, *, workers: Optional[int] = None, broker: Optional[str] = None,
                 trust_results: bool = False, **options: Any) -> None:
        chosen = Options().changed(options)
        embedded: Optional[_daemon.Embedded] = None
        if endpoint is None and broker is None:
            if workers is not None and workers < 1:
                raise ValueError("workers=%r is less than 1" % (workers,))
            embedded = _daemon.Embedded(workers)
            if workers is None and embedded.nodes == 1:
                workers = len(os.sched_getaffinity(0))
            address = embedded.address
            if chosen.python is None:
                chosen = chosen.changed({"python": sys.executable})
        else:
            if workers is not None:
                raise ValueError("workers is for the embedded chain; an endpoint's workers are its own")
            address = _daemon.resolve(broker)
            if address.socket is None and not trust_results:
                raise ValueError("results of a broker elsewhere are pickles, which can run code here when they are read: "
                                 "say trust_results=True if endpoint and broker are yours or trusted")
        super().__init__(Client(address, endpoint, embedded, workers), chosen, Held())
        try:
            self._check_broker(broker, endpoint)
        except BaseException:
            self._client.stop()
            raise
        LIVE.add(self._client)
        threading.Thread(target=keep, args=(self._client,), name="pilotfish-keep", daemon=True).start()
        # Of all that could be done while garbage is collected, this takes no lock.
        weakref.finalize(self._held, self._client.ends.put, True).atexit = False

    @property
    def folder(self) -> Optional[str]:
        """The folder of an embedded chain: ``PILOTFISH_DIR=FOLDER pf status`` looks into it. None with a daemon."""
        return self._client.embedded.dir if self._client.embedded is not None else None

    def _check_broker(self, broker: Optional[str], endpoint: Optional[str]) -> None:
        """Reach the broker, starting the user's daemon if it is not there, and learn its limits and whether it has the endpoint."""
        client = self._client
        try:
            limits = client.call("GET", "/v1/limits")
        except ConnectionLost:
            if broker is not None or client.embedded is not None:
                raise
            _daemon.start_daemon()
            limits = client.call("GET", "/v1/limits")
        client.item_bytes_max = int(limits["payload_bytes_max"])
        client.inline_bytes_max = int(limits.get("inline_bytes_max", client.item_bytes_max))
        if endpoint is not None:
            client.call("GET", "/v1/endpoints/" + urllib.parse.quote(endpoint, safe=""))


class AttachedJob(SequenceABC):  # type: ignore[type-arg]
    """The futures of a job of an earlier client, by position. ``results()`` gives the values of all its calls in order."""

    def __init__(self, client: Client, job: int, close: bool) -> None:
        summary = client.call("GET", "/v1/jobs/%d" % job)
        if close and summary.get("open"):
            client.call("POST", "/v1/jobs/%d/close" % job)
            summary = client.call("GET", "/v1/jobs/%d" % job)
        python = ((summary.get("spec") or {}).get("body") or {}).get("python")
        if python is None:
            raise PilotfishError("job j%d does not run Python functions" % job)
        self.job = "j%d" % job
        self.chunked = bool(python.get("chunked"))
        self._futures = attach_lane(client, job, summary["counts"]["total"], self.chunked)

    def __len__(self) -> int:
        return len(self._futures)

    def __getitem__(self, position: Any) -> Any:
        return self._futures[position]

    def results(self) -> Iterator[Any]:
        """The value of each call, in order, also of calls that were sent in chunks; raises a call's exception in its place."""
        return results_of(self._futures, self.chunked)


def attach_lane(client: Client, job: int, count: int, chunked: bool) -> List[TaskFuture]:
    """Futures for the ``count`` tasks of ``job``, and a listener that settles them."""
    lane = Lane(client, None, Options(), chunked)
    with client.lock:
        client.refuse_late()
        if job in client.by_job:
            raise ValueError("job j%d belongs to this executor already" % job)
        lane.job, lane.acked, lane.closed = job, count, True
        futures = [TaskFuture(lane) for _ in range(count)]
        for index, future in enumerate(futures):
            future._index = index
        lane.futures = list(futures)
        client.by_job[job] = lane
        client.outstanding += count
        client.listen("job=%d" % job)
    return futures


def parse_job(job: Union[int, str]) -> int:
    """``12``, ``"12"``, ``"j12"`` or ``"j12.3"``."""
    digits = str(job).partition(".")[0]
    digits = digits[1:] if digits.startswith("j") else digits
    if not digits.isdigit():
        raise ValueError("%r is not a job, which is written like j12" % (job,))
    return int(digits)


# --- the end of executors, of the interpreter, and forks -------------------------------------------------------

LIVE: "weakref.WeakSet[Client]" = weakref.WeakSet()
ENDING: Set[Client] = set()  # shut down without waiting: kept until the interpreter ends


def shut_down(client: Client, wait: bool, cancel_futures: bool) -> None:
    """Executor.shutdown."""
    if client.stopped.is_set():
        return
    client.refuse("cannot schedule new futures after shutdown")
    if cancel_futures:
        client.cancel_everything()
    if wait:
        client.wait(client.all_done)
        end_now(client)
    else:
        ENDING.add(client)
        client.ends.put(True)


def keep(client: Client) -> None:
    """The thread that ends an executor once its work is done, when it was dropped, or shut down without waiting."""
    if client.ends.get():
        client.refuse("the executor was dropped")
        client.wait(lambda: client.stopped.is_set() or client.all_done())
        end_now(client)


def end_now(client: Client) -> None:
    """Stop threads and an embedded chain. Whoever waits for a future of it gets CancelledError."""
    client.stop()
    ENDING.discard(client)  # not before: the interpreter, if it ends meanwhile, must wait for this
    LIVE.discard(client)
    with client.lock:
        left = [f for lane in set(client.lanes.values()) | set(client.by_job.values())
                for f in lane.futures + [future for _item, future in lane.pending] if f is not None]
    for future in left:
        future.mark_cancelled()


def at_exit() -> None:
    """An embedded chain finishes its work, as other executors do; to a daemon what is unsent is handed over."""
    for client in list(LIVE) + list(ENDING):
        try:
            client.refuse("the interpreter is ending")
            client.wait(client.all_done if client.embedded is not None else client.all_sent,
                        None if client.embedded is not None else EXIT_FLUSH_S)
        finally:
            client.stop()


def after_fork_in_child() -> None:
    """Threads and connections are the parent's: refuse with a clear word instead of hanging."""
    for client in list(LIVE) + list(ENDING):
        client.forget_in_child()
    LIVE.clear()
    ENDING.clear()


atexit.register(at_exit)
os.register_at_fork(after_in_child=after_fork_in_child)
