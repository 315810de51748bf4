"""What stands between an executor and its broker: threads that upload tasks and take in outcomes, and their recovery.

One uploader thread sends what has gathered while its last request was under way; one listener thread reads the
stream of outcomes and settles futures. Both start again after a broken connection: an append says its first position and
the stream has a cursor, so nothing is lost or done twice. Used by ``executor``.
"""
import logging
import os
import queue
import random
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from ._codec import TASKS_TYPE, Named, OutcomeReader, Outcomes, encode_tasks, name_of
from ._daemon import Embedded
from ._functions import KINDS, Function
from ._http import Address, Connection, ConnectionLost, check
from ._lane import Batch, Lane, in_ranges, to_ranges
from ._options import Options
from .errors import ApiError, ExecutorBroken, PayloadTooLarge
from .future import TaskFuture, settle

log = logging.getLogger("pilotfish")

UNSENT_TASKS_MAX = 500_000  # submit() waits above it: about 1 GB of futures and items
UNSENT_BYTES_MAX = 256 << 20  # the same for large items
DELAY_S_MIN, DELAY_S_MAX = 0.02, 2.0  # between attempts to reach a broker
SILENCE_S = 60.0  # the stream has a heartbeat every 15 s
CANCEL_WAIT_S = 30.0  # for an append under way before its tasks can be cancelled
ITEM_BYTES_DEFAULT = 8 << 20  # until the broker has told its own limits
SEND_BYTES = 1 << 20  # of a large item in one go: each has the time limit of a reply for itself


class Backoff:
    """Growing, jittered pauses while the broker does not answer; says so once."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self.reset()

    def reset(self) -> None:
        """It answered."""
        self.delay, self.said = DELAY_S_MIN, ""

    def pause(self, error: BaseException) -> None:
        """Wait before the next attempt; ends early when the client stops."""
        if str(error) != self.said:
            self.said = str(error)
            log.log(logging.WARNING if self.delay > 0.3 else logging.INFO, "%s; trying again", error)
        self.stop.wait(self.delay * random.uniform(0.5, 1.0))
        self.delay = min(self.delay * 2, DELAY_S_MAX)


class Client:
    """Connections, threads and lanes of one executor and its views."""

    def __init__(self, address: Address, endpoint: Optional[str], embedded: Optional[Embedded], workers: Optional[int]) -> None:
        self.address, self.endpoint, self.embedded, self.workers = address, endpoint, embedded, workers
        self.group = int.from_bytes(os.urandom(8), "little") >> 1
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.lanes: Dict[Tuple[str, Options, bool], Lane] = {}
        self.by_job: Dict[int, Lane] = {}
        self.outstanding = 0
        self.unsent_tasks = self.unsent_bytes = 0
        self.refusing: Optional[str] = None  # why no more tasks are taken
        self.broken: Optional[BaseException] = None
        self.ready: "queue.SimpleQueue[Optional[Lane]]" = queue.SimpleQueue()
        self.stopped = threading.Event()
        self.ends: "queue.SimpleQueue[bool]" = queue.SimpleQueue()  # to the thread that waits for an end: whether it is to bring it about
        self.registered: Set[str] = set()
        self.control = Connection(address)
        self.control_lock = threading.Lock()
        self.listeners: List[Listener] = []
        self.uploader: Optional[threading.Thread] = None
        self.uploads = Connection(address)
        self.item_bytes_max = ITEM_BYTES_DEFAULT
        self.inline_bytes_max = ITEM_BYTES_DEFAULT  # larger items are put before the append that names them
        self.downloads = Connection(address)
        self.downloads_lock = threading.Lock()

    # --- submitting ------------------------------------------------------------------------------------------

    def lane(self, function: Function, options: Options, chunked: bool) -> Lane:
        """The lane of these tasks; a new one if the last has failed."""
        key = (function.id, options, chunked)
        with self.lock:
            self.refuse_late()
            if self.uploader is None:
                self.start()
            lane = self.lanes.get(key)
            if lane is None or lane.failed is not None:
                lane = self.lanes[key] = Lane(self, function, options, chunked)
            return lane

    def refuse_late(self) -> None:
        """Raise if no more tasks are taken. Under the lock."""
        if self.broken is not None:
            raise ExecutorBroken("the executor is broken: %s" % self.broken) from self.broken
        if self.refusing is not None:
            raise RuntimeError(self.refusing)

    def submit(self, lane: Lane, item: bytes) -> TaskFuture:
        """A task of ``lane``. Waits while too much has gathered unsent."""
        if len(item) > self.item_bytes_max:
            error = PayloadTooLarge("the arguments have %d bytes pickled, %d are allowed" % (len(item), self.item_bytes_max))
            error.hint = "write large data to a file and pass its path"
            raise error
        future = TaskFuture(lane)
        with self.lock:
            if self.refusing is not None or self.broken is not None:
                self.refuse_late()
            if lane.failed is not None:
                raise lane.failed
            while self.unsent_tasks >= UNSENT_TASKS_MAX or self.unsent_bytes >= UNSENT_BYTES_MAX:
                self.changed.wait()
                self.refuse_late()
            lane.pending.append((item, future))
            self.outstanding += 1
            self.unsent_tasks += 1
            self.unsent_bytes += len(item)
            if lane.queued:
                return future
            lane.queued = True
        self.ready.put(lane)
        return future

    # --- uploading -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads. Under the lock."""
        self.uploader = threading.Thread(target=self.upload, name="pilotfish-upload", daemon=True)
        self.uploader.start()
        self.listen("group=%d" % self.group)

    def listen(self, query: str) -> "Listener":
        """Start to read one stream of outcomes. Under the lock."""
        listener = Listener(self, query)
        self.listeners.append(listener)
        listener.start()
        return listener

    def upload(self) -> None:
        """The uploader thread: serve lanes in the order in which they asked."""
        backoff = Backoff(self.stopped)
        while True:
            lane = self.ready.get()
            if lane is None or self.stopped.is_set():
                return
            try:
                self.serve(self.uploads, lane)
                backoff.reset()
            except (OSError, ApiError) as error:
                if isinstance(error, ApiError) and error.code == "unknown_function" and self.registered:
                    self.registered.clear()  # a broker with a new log: register again
                elif isinstance(error, ApiError) and error.code == "unknown_payload" and lane.put:
                    lane.put.clear()  # a broker that lost what was not synced: put them again
                elif isinstance(error, ApiError) and not error.retryable:
                    self.fail_lane(lane, error)
                elif not self.gone():
                    backoff.pause(error)
            except Exception as error:  # a bug of ours must not leave futures waiting for ever
                log.exception("uploading failed")
                self.fail_lane(lane, error)
            with self.lock:
                more = lane.failed is None and (lane.batch or lane.pending or (lane.closing and not lane.closed))
                lane.queued = bool(more)
            if more:
                self.ready.put(lane)

    def serve(self, connection: Connection, lane: Lane) -> None:
        """Send what ``lane`` has: its job first, then one batch, then its end."""
        with self.lock:
            batch = lane.batch or lane.take_batch()
        if batch is not None:
            if lane.job is None:
                self.open_job(connection, lane)
            self.append(connection, lane, batch)
        elif lane.closing and not lane.closed:
            if lane.job is not None:
                connection.call("POST", "/v1/jobs/%d/close" % lane.job)
            with self.lock:
                lane.closed = True
                self.changed.notify_all()

    def open_job(self, connection: Connection, lane: Lane) -> None:
        """Register the function and the job of ``lane``. Both can be repeated."""
        function = lane.function
        assert function is not None
        if function.id not in self.registered:
            name = function.name.encode("ascii", "replace").decode().replace("\n", " ").replace("\r", " ")[:200]
            check(connection.request("PUT", "/v1/functions/" + function.id, [function.bytes],
                                     "X-Pilotfish-Kind: %s\r\nX-Pilotfish-Name: %s\r\n" % (KINDS[function.kind], name)))
            self.registered.add(function.id)
        spec = lane.options.spec(function.id, lane.chunked, self.group, self.endpoint, function.name)
        reply = connection.call("PUT", "/v1/jobs/" + lane.key, {"spec": spec, "count": 0, "open": True})
        with self.lock:
            lane.job = int(reply["job"])
            self.by_job[lane.job] = lane

    def append(self, connection: Connection, lane: Lane, batch: Batch) -> None:
        """Send ``batch``, which the broker recognises if it has it already. Large items go before it, each in a request of its own."""
        items = [self.put(connection, lane, item) if len(item) > self.inline_bytes_max else item for item in batch.items]
        check(connection.request("POST", "/v1/jobs/%d/tasks?first=%d" % (lane.job or 0, batch.first),
                                 encode_tasks(items), "Content-Type: %s\r\n" % TASKS_TYPE))
        with self.lock:
            lane.batch = None
            lane.acked = batch.first + len(batch.items)
            self.unsent_bytes -= sum(map(len, batch.items))
            self.count_unsent()

    def put(self, connection: Connection, lane: Lane, item: bytes) -> Named:
        """See to it that the broker has ``item``, once for each job, and return what names it."""
        name = name_of(item)
        if name not in lane.put:
            view = memoryview(item)
            parts = [view[at:at + SEND_BYTES] for at in range(0, len(view), SEND_BYTES)]
            check(connection.request("PUT", "/v1/jobs/%d/payloads/%s" % (lane.job or 0, name.hash), parts))
            lane.put.add(name)
        return name

    def count_unsent(self) -> None:
        """Tell submitters that wait how much is unsent now. Under the lock."""
        self.unsent_tasks = sum(len(lane.pending) for lane in self.lanes.values())
        if not self.unsent_tasks:
            self.unsent_bytes = 0
        self.changed.notify_all()

    def fail_lane(self, lane: Lane, error: BaseException, sent_too: bool = False) -> None:
        """End the futures that the broker does not have, or all, with ``error``; the next submit makes a new lane."""
        with self.lock:
            lane.failed = error
            first = 0 if sent_too else lane.acked
            victims = [future for future in lane.futures[first:] if future is not None]
            lane.futures[first:] = [None] * (len(lane.futures) - first)
            victims += [future for _item, future in lane.pending if not future._dropped]
            lane.pending.clear()
            lane.batch = None
            lane.closed = True
            self.outstanding -= len(victims)
            self.count_unsent()
        for future in victims:
            if not future.done():
                future.set_exception(error)

    # --- outcomes --------------------------------------------------------------------------------------------

    def fetch(self, job: int, name: Named) -> Any:
        """The value that ``name`` names; an ApiError if the broker says that it cannot be had. Raises ConnectionLost."""
        with self.downloads_lock:
            reply = self.downloads.request("GET", "/v1/jobs/%d/payloads/%s" % (job, name.hash))
        try:
            check(reply)
        except ApiError as error:
            if error.retryable:
                raise
            return error
        if name_of(reply.body) != name:
            raise ConnectionLost("the value %s of job j%d did not come whole" % (name.hash, job))
        return memoryview(reply.body)

    def fetch_large(self, frame: Outcomes) -> Dict[int, Any]:
        """The large values of a frame, by place: all of them before any future is taken, so that a broken connection loses none."""
        fetched: Dict[int, Any] = {}
        for place in frame.large:
            with self.lock:
                known = frame.jobs[place] in self.by_job
            if known:
                at = sum(frame.value_lens[:place])
                fetched[place] = self.fetch(frame.jobs[place], Named(frame.blob[at:at + frame.value_lens[place]]))
        return fetched

    def dispatch(self, frame: Outcomes) -> None:
        """Settle the futures of a frame."""
        fetched = self.fetch_large(frame) if frame.large else {}
        futures: List[Optional[TaskFuture]] = []
        last, lane = -1, None
        with self.lock:
            for job, index in zip(frame.jobs, frame.indexes):
                if job != last:
                    last, lane = job, self.by_job.get(job)
                futures.append(lane.take_future(index) if lane is not None else None)
        value_at, error_at = 0, sum(frame.value_lens)
        blob = frame.blob
        settled = 0
        for place, (future, kind, value_len, error_len) in enumerate(
                zip(futures, frame.kinds, frame.value_lens, frame.error_lens)):
            if future is not None:
                settled += 1
                value = fetched.get(place, blob[value_at:value_at + value_len]) if fetched else blob[value_at:value_at + value_len]
                if isinstance(value, ApiError):
                    future.set_exception(value)
                else:
                    settle(future, kind, value, blob[error_at:error_at + error_len])
            value_at += value_len
            error_at += error_len
        with self.lock:
            self.outstanding -= settled
            if self.outstanding <= 0:
                self.changed.notify_all()

    def jobs_after_new_log(self) -> None:
        """The broker has another log than before: jobs that it does not know are lost, and their futures say so."""
        with self.lock:
            lanes = dict(self.by_job)
            self.registered.clear()
        for job, lane in lanes.items():
            try:
                known = self.call("GET", "/v1/jobs/%d" % job).get("key") == lane.key
            except ApiError as error:
                if error.status != 404:
                    raise
                known = False
            if not known:
                with self.lock:
                    self.by_job.pop(job, None)
                self.fail_lane(lane, ExecutorBroken("the broker at %s has a new log, which does not know job j%d" % (self.address, job)),
                               sent_too=True)

    def gone(self) -> bool:
        """Whether the broker is gone for good (an embedded one that died). Then everything ends with an exception."""
        if self.broken is None and self.embedded is not None and not self.stopped.is_set():
            why = self.embedded.died()
            if why is not None:
                self.break_down(ExecutorBroken(why))
        return self.broken is not None

    def break_down(self, error: BaseException) -> None:
        """End all futures with ``error``; nothing more is taken."""
        with self.lock:
            self.broken = self.broken or error
            lanes = set(self.lanes.values()) | set(self.by_job.values())
        for lane in lanes:
            self.fail_lane(lane, error, sent_too=True)
        with self.lock:
            self.changed.notify_all()

    # --- control ---------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """A control call on its own connection; repeated once if the connection was stale."""
        with self.control_lock:
            try:
                return self.control.call(method, path, body)
            except ConnectionLost:
                return self.control.call(method, path, body)

    def sent(self, lane: Lane, futures: List[TaskFuture]) -> List[TaskFuture]:
        """Those of ``futures`` that the broker has; waits for an append under way. Others are dropped from ``lane``."""
        deadline = time.monotonic() + CANCEL_WAIT_S
        with self.lock:
            wanted = [future for future in futures if future._index is not None]
            top = max((future._index or 0 for future in wanted), default=-1)
            while lane.acked <= top and lane.failed is None and time.monotonic() < deadline:
                self.changed.wait(deadline - time.monotonic())
            return [future for future in wanted if (future._index or 0) < lane.acked and not future.done()]

    def drop_unsent(self, futures: List[TaskFuture]) -> List[TaskFuture]:
        """Take those of ``futures`` that have not been sent out of their lane."""
        with self.lock:
            dropped = [f for f in futures if f._index is None and not f._dropped and not f.done()]
            for future in dropped:
                future._dropped = True
            self.outstanding -= len(dropped)
            self.changed.notify_all()
        return dropped

    def cancel(self, lane: Lane, futures: List[TaskFuture]) -> List[TaskFuture]:
        """Cancel what has not left the broker's queue, in one call; returns those that were. They are not marked yet."""
        cancelled = self.drop_unsent(futures)
        sent = self.sent(lane, futures)
        if sent and self.broken is None:
            try:
                reply = self.call("POST", "/v1/jobs/%d/cancel" % (lane.job or 0),
                                  {"tasks": to_ranges({f._index or 0 for f in sent}), "queued_only": True})
            except (OSError, ApiError) as error:
                log.warning("cancel of %d tasks of j%s: %s", len(sent), lane.job, error)
                return cancelled
            cancelled += [f for f in sent if in_ranges(reply["cancelled"], f._index or 0)]
        return cancelled

    def kill(self, lane: Lane, futures: List[TaskFuture]) -> None:
        """Ask for the end of tasks that may be running. Raises ApiError or ConnectionLost."""
        sent = self.sent(lane, futures)
        if sent:
            self.call("POST", "/v1/jobs/%d/cancel" % (lane.job or 0),
                      {"tasks": to_ranges({f._index or 0 for f in sent}), "kill": True})

    # --- the end ---------------------------------------------------------------------------------------------

    def refuse(self, why: str) -> None:
        """Take no more tasks; jobs are closed once theirs are sent."""
        with self.lock:
            self.refusing = self.refusing or why
            waking = [lane for lane in self.lanes.values() if not lane.closing]
            for lane in waking:
                lane.closing = True
            unqueued = [lane for lane in waking if not lane.queued]
            for lane in unqueued:
                lane.queued = True
            self.changed.notify_all()
        for lane in unqueued:
            self.ready.put(lane)

    def cancel_everything(self) -> None:
        """Cancel whatever has not left the broker's queue."""
        with self.lock:
            lanes = [(lane, [f for _item, f in lane.pending] + [f for f in lane.futures if f is not None])
                     for lane in self.lanes.values()]
        for lane, futures in lanes:
            for future in self.cancel(lane, futures):
                future.mark_cancelled()

    def wait(self, condition: Callable[[], bool], seconds: Optional[float] = None) -> bool:
        """Wait until ``condition`` holds (asked under the lock), the client is broken, or time is over."""
        with self.lock:
            return self.changed.wait_for(lambda: self.broken is not None or condition(), seconds)

    def all_sent(self) -> bool:
        """Whether the broker has all tasks and knows that no more come."""
        return all(lane.closed for lane in self.lanes.values())

    def all_done(self) -> bool:
        """Whether all futures are settled and all jobs closed."""
        return self.outstanding <= 0 and self.all_sent()

    def stop(self) -> None:
        """End threads, connections and an embedded broker. Futures that are not settled stay so."""
        self.stopped.set()
        self.ready.put(None)
        self.ends.put(False)
        with self.lock:
            self.changed.notify_all()
        self.uploads.shut()
        self.downloads.shut()
        for listener in self.listeners:
            listener.stop()
        here = threading.current_thread()
        for thread in [self.uploader] + [listener.thread for listener in self.listeners]:
            if thread is not None and thread is not here:
                thread.join()
        with self.control_lock:
            self.control.shut()
        if self.embedded is not None:
            self.embedded.stop()


    def forget_in_child(self) -> None:
        """After a fork, in the child: threads and connections are the parent's. Refuse with a clear word; never hang."""
        self.lock = threading.Lock()  # a thread of the parent's may have held the old one
        self.changed = threading.Condition(self.lock)
        self.refusing = "this executor was made before a fork: make a new one in the child"
        self.stopped.set()
        if self.embedded is not None:
            self.embedded.forget_in_child()


class Listener:
    """A thread that reads one stream of outcomes until the client stops."""

    def __init__(self, client: Client, query: str) -> None:
        self.client, self.query = client, query
        self.connection = Connection(client.address)
        self.cursor: Optional[str] = None
        self.seq = -1
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, name="pilotfish-outcomes", daemon=True)

    def start(self) -> None:
        """Start it."""
        self.thread.start()

    def stop(self) -> None:
        """Make it end soon."""
        self.ended.set()
        self.connection.shut()

    def run(self) -> None:
        """Read, and start again after the last cursor when the stream breaks."""
        backoff = Backoff(self.client.stopped)
        while not self.ended.is_set():
            try:
                self.read(backoff)
                error: Exception = ConnectionLost("the broker at %s ended the stream" % (self.client.address,))
            except (OSError, ApiError, ValueError) as raised:
                error = raised
            self.connection.close()
            if self.ended.is_set() or self.client.gone():
                return
            if isinstance(error, ApiError) and error.status == 410:
                self.cursor, self.seq = None, -1
                try:
                    self.client.jobs_after_new_log()
                    continue
                except (OSError, ApiError) as raised:
                    error = raised
            if isinstance(error, ApiError) and not error.retryable:
                self.client.break_down(error)
                return
            backoff.pause(error)

    def read(self, backoff: Backoff) -> None:
        """One connection's worth of outcomes."""
        path = "/v1/outcomes?%s&follow=1&format=columns" % self.query
        if self.cursor is not None:
            path += "&after=" + self.cursor
        reader = OutcomeReader()
        for piece in self.connection.stream(path, SILENCE_S):
            for frame in reader.feed(piece):
                backoff.reset()
                self.client.dispatch(frame)
                if frame.jobs or frame.seq > self.seq:
                    self.cursor, self.seq = frame.cursor, frame.seq
