"""A lane: the tasks of one function with one set of options, which are one open job at the broker. Held by the client."""
import os
from collections import deque
from typing import TYPE_CHECKING, Deque, Iterable, List, Optional, Sequence, Set, Tuple

from ._functions import Function
from ._options import Options
from .future import TaskFuture

if TYPE_CHECKING:
    from ._client import Client

BATCH_TASKS_MAX = 16384  # in one append: a few milliseconds of the broker's time, so that its answer comes soon
BATCH_BYTES_MAX = 4 << 20  # in one append: the same for large items


class Batch:
    """Tasks on their way to the broker: sent again as they are until the broker has answered."""

    def __init__(self, first: int, items: List[bytes], futures: List[TaskFuture]) -> None:
        self.first, self.items, self.futures = first, items, futures


class Lane:
    """State of one job. Everything is guarded by the client's lock but ``batch``, which is the uploader's."""

    def __init__(self, client: "Client", function: Optional[Function], options: Options, chunked: bool) -> None:
        self.client, self.function, self.options, self.chunked = client, function, options, chunked
        self.key = os.urandom(16).hex()
        self.job: Optional[int] = None
        self.pending: Deque[Tuple[bytes, TaskFuture]] = deque()
        self.futures: List[Optional[TaskFuture]] = []  # by position; None once it has its outcome
        self.acked = 0  # positions below are the broker's
        self.batch: Optional[Batch] = None
        self.queued = False  # whether the uploader has been told of it
        self.closing = self.closed = False
        self.failed: Optional[BaseException] = None
        self.put: Set[bytes] = set()  # names of the large items that the broker has; the uploader's

    def take_batch(self) -> Optional[Batch]:
        """The next tasks to send, with their positions; None if there are none. Under the lock."""
        items: List[bytes] = []
        futures: List[TaskFuture] = []
        size = 0
        first = len(self.futures)
        while self.pending and len(items) < BATCH_TASKS_MAX and size < BATCH_BYTES_MAX:
            item, future = self.pending.popleft()
            size += len(item)
            if future._dropped:
                continue
            future._index = first + len(items)
            items.append(item)
            futures.append(future)
        self.futures.extend(futures)
        self.batch = Batch(first, items, futures) if items else None
        return self.batch

    def take_future(self, index: int) -> Optional[TaskFuture]:
        """The future at ``index``, which gets its outcome now. Under the lock."""
        if index >= len(self.futures):
            return None
        future = self.futures[index]
        self.futures[index] = None
        return future

    def cancel(self, future: TaskFuture) -> bool:
        """Whether ``future`` was still in the queue and has been taken out of it."""
        return bool(self.client.cancel(self, [future]))

    def kill(self, future: TaskFuture) -> None:
        """Ask the broker to end the task, also if it runs."""
        self.client.kill(self, [future])


def to_ranges(positions: Iterable[int]) -> List[List[int]]:
    """Positions as the API's ranges: sorted, disjoint ``[first, count]``."""
    ranges: List[List[int]] = []
    for position in sorted(positions):
        if ranges and position == ranges[-1][0] + ranges[-1][1]:
            ranges[-1][1] += 1
        else:
            ranges.append([position, 1])
    return ranges


def in_ranges(ranges: Sequence[Sequence[int]], position: int) -> bool:
    """Whether ``position`` is in ``ranges``."""
    return any(first <= position < first + count for first, count in ranges)
