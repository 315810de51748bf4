"""Futures of tasks, and how an outcome becomes a result or an exception. Made by the executor."""
import concurrent.futures
import json
import pickle
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED
from typing import TYPE_CHECKING, Any, Iterator, List, Optional, Tuple

from . import errors

if TYPE_CHECKING:
    from ._lane import Lane

VALUE, EXCEPTION, CANCELLED = 0, 1, 9


class TaskFuture(concurrent.futures.Future):  # type: ignore[type-arg]
    """A future of one task. ``cancel()`` is True only if the task had not left the broker's queue; ``kill()`` ends one that
    may be running. ``running()`` is False until the task has ended: nobody asks the endpoint for it."""

    def __init__(self, lane: "Lane") -> None:
        super().__init__()
        self._lane = lane
        self._index: Optional[int] = None
        self._dropped = False  # cancelled before it was sent

    @property
    def task(self) -> Optional[str]:
        """The task as people see it, ``j12.7``; None while it has not been sent."""
        job, index = self._lane.job, self._index
        return None if job is None or index is None else "j%d.%d" % (job, index)

    def cancel(self) -> bool:
        """Cancel the task unless it has left the broker's queue. Asks the broker if it was sent; False if that fails."""
        if self.cancelled():
            return True
        if self.done() or not self._lane.cancel(self):
            return self.cancelled()
        return self.mark_cancelled()

    def kill(self) -> None:
        """Ask for the end of the task, also if it runs. The future then ends as cancelled, unless its outcome came first."""
        if not self.done() and not self.cancel():
            self._lane.kill(self)

    def mark_cancelled(self) -> bool:
        """Make it cancelled, and tell who waits, in one step. False if it ended before.

        ``Future.cancel`` leaves the second half to an executor's worker, and both halves may come from two threads here:
        so this uses the base class's state, which has been the same from Python 3.2 to 3.13."""
        with self._condition:
            if self._state == FINISHED:
                return False
            if self._state == CANCELLED_AND_NOTIFIED:
                return True
            self._state = CANCELLED_AND_NOTIFIED
            for waiter in self._waiters:
                waiter.add_cancelled(self)
            self._condition.notify_all()
        self._invoke_callbacks()  # type: ignore[attr-defined]
        return True


def settle(future: TaskFuture, kind: int, value: memoryview, error: memoryview) -> None:
    """Give ``future`` its outcome. One that is cancelled or done already keeps what it has."""
    try:
        if kind == VALUE:
            try:
                result = pickle.loads(value) if len(value) else None
            except BaseException as unreadable:
                future.set_exception(cannot_read("the result", future, unreadable))
                return
            future.set_result(result)
        elif kind == CANCELLED:
            future.mark_cancelled()
        else:
            future.set_exception(exception_of(kind, bytes(value), bytes(error), future.task))
    except concurrent.futures.InvalidStateError:
        pass


def cannot_read(what: str, future: TaskFuture, error: BaseException) -> errors.TaskError:
    """The exception of a future whose value came but cannot be unpickled here."""
    made = errors.TaskException("%s of task %s cannot be read here: %s: %s" % (what, future.task, type(error).__name__, error))
    made.__cause__ = error
    return made


def exception_of(kind: int, value: bytes, error: bytes, task: Optional[str]) -> BaseException:
    """The exception for a failed outcome: the task's own where it can be had, with the remote traceback as its cause."""
    try:
        detail = json.loads(error) if error else {}
    except ValueError:
        detail = {"message": error.decode("utf-8", "replace")}
    message = detail.get("message") or "task %s ended without a value (kind %d)" % (task, kind)
    remote = detail.get("traceback")
    made: Optional[BaseException] = None
    if kind == EXCEPTION and value:
        try:
            made = pickle.loads(value)
        except BaseException:  # its class is not here, or its __init__ wants what pickle does not know
            made = None
    if not isinstance(made, Exception):  # a KeyboardInterrupt of the worker's must not look like one of ours
        cls = errors.BY_KIND.get(kind, errors.TaskError)
        made = cls(message, task=task, node=detail.get("node"), exit_code=detail.get("exit"), signal=detail.get("signal"),
                   remote_traceback=remote, stderr_tail=detail.get("stderr_tail"), hint=detail.get("hint"))
    if remote:
        made.__cause__ = errors.RemoteTraceback(remote)
    return made


def calls_of(chunk: Any, task: Optional[str]) -> Iterator[Tuple[Any, Optional[BaseException]]]:
    """(value, exception) of each call of a chunk's value (docs/worker-protocol.md, "Items")."""
    if isinstance(chunk, list):
        for value in chunk:
            yield value, None
        return
    values, failures = chunk
    for position, value in enumerate(values):
        failure = failures.get(position)
        yield value, failure and exception_of(failure[0], failure[1], failure[2], task)


def results_of(futures: List[TaskFuture], chunked: bool) -> Iterator[Any]:
    """The values of all calls of ``futures``, in order; raises the exception of a call in its place."""
    for future in futures:
        value = future.result()
        if not chunked:
            yield value
            continue
        for one, failure in calls_of(value, future.task):
            if failure is not None:
                raise failure
            yield one
