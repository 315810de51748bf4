"""The Python client as a peer of a benchmark: ``setup(workers)`` gives an object with ``submit``, ``submit_many``, ``wait``, ``close``.

``scripts/bench`` uses it, and any harness that takes a module of this shape. It runs the embedded chain, sync on."""
import os
import sys
from typing import Any, Callable, List, Sequence

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "python"))

import pilotfish  # noqa: E402


class Peer:
    """An executor over the embedded chain with ``workers`` workers."""

    def __init__(self, workers: int) -> None:
        self.version = "pilotfish " + pilotfish.__version__
        self.executor = pilotfish.Executor(workers=workers)
        self.submit = self.executor.submit

    def submit_many(self, fn: Callable[[Any], Any], args: Sequence[Any]) -> List[pilotfish.TaskFuture]:
        """One task for each of ``args``."""
        submit = self.submit
        return [submit(fn, arg) for arg in args]

    def wait(self, futures: Sequence[pilotfish.TaskFuture]) -> None:
        """Until all have results."""
        for future in futures:
            future.result()

    def close(self) -> None:
        """End the chain."""
        self.executor.shutdown()


def setup(workers: int) -> Peer:
    """Start."""
    return Peer(workers)
