"""What can go wrong, as exceptions. A task's own exception is raised as itself, with its remote traceback as the cause;
everything here is what the task could not raise by itself. Used by the whole package and by its users."""
import concurrent.futures
from typing import Any, Dict, Optional


class PilotfishError(Exception):
    """Base of this package's errors. ``hint`` says what to do next, if there is something to say."""

    hint: Optional[str] = None

    def __str__(self) -> str:
        text = super().__str__()
        return "%s (hint: %s)" % (text, self.hint) if self.hint else text


class ApiError(PilotfishError):
    """The broker refused a request. ``code`` is its short word, ``status`` the HTTP status."""

    def __init__(self, message: str, code: str = "", status: int = 0, hint: Optional[str] = None, retryable: bool = False) -> None:
        super().__init__(message)
        self.code, self.status, self.hint, self.retryable = code, status, hint, retryable


class ExecutorBroken(concurrent.futures.BrokenExecutor, PilotfishError):
    """The broker of this executor is gone for good; its unfinished futures have this exception."""


class PayloadTooLarge(PilotfishError, ValueError):
    """The arguments of a call are larger than what the broker takes."""


class TaskError(PilotfishError):
    """A task ended without a value. The fields hold what is known of its end; those that do not apply are None."""

    kind = "other"

    def __init__(self, message: str = "", task: Optional[str] = None, node: Optional[str] = None,
                 exit_code: Optional[int] = None, signal: Optional[int] = None, remote_traceback: Optional[str] = None,
                 stderr_tail: Optional[str] = None, hint: Optional[str] = None) -> None:
        super().__init__(message)
        self.task, self.node, self.exit_code, self.signal = task, node, exit_code, signal
        self.remote_traceback, self.stderr_tail, self.hint = remote_traceback, stderr_tail, hint


class TaskException(TaskError):
    """The function raised an exception that cannot be brought here; message and traceback are all there is."""

    kind = "exception"


class TaskExit(TaskError):
    """The function called ``sys.exit`` (``exit_code``), or a command ended with another exit code than 0."""

    kind = "exit"


class TaskSignal(TaskError):
    """Ended by ``signal``."""

    kind = "signal"


class TaskTimeLimit(TaskError):
    """Killed at its own time limit."""

    kind = "time_limit"


class TaskOutOfMemory(TaskError):
    """Killed for want of memory."""

    kind = "out_of_memory"


class WorkerLost(TaskError):
    """The worker process ended under the task: ``exit_code`` or ``signal`` say how."""

    kind = "worker_lost"


class NodeLost(TaskError):
    """Its node was lost."""

    kind = "node_lost"


class TaskLost(TaskError):
    """Lost, and the job says not to run it again (``on_lost="fail"``)."""

    kind = "lost"


class TaskRefused(TaskError):
    """It could not be started: the function or its arguments cannot be read there, or the wrong Python met."""

    kind = "refused"


class ResultTooLarge(TaskError):
    """Its result is over the limit."""

    kind = "too_large"


class RemoteTraceback(Exception):
    """The traceback on the worker, as the ``__cause__`` of a task's exception."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return '\n"""\n%s"""' % self.text


# By the number of the outcome's kind; 9 (cancelled) is concurrent.futures.CancelledError.
BY_KIND: Dict[int, Any] = {
    1: TaskException, 2: TaskExit, 3: TaskSignal, 4: TaskTimeLimit, 5: TaskOutOfMemory, 6: WorkerLost, 7: NodeLost,
    8: TaskLost, 10: TaskRefused, 11: ResultTooLarge}
