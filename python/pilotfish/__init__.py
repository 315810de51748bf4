"""Pilotfish runs Python functions on supercomputers through their batch schedulers.

    from pilotfish import Executor

    with Executor() as ex:                # a chain of its own on this machine; Executor("polaris") for an endpoint
        print(list(ex.map(pow, range(10), range(10))))
"""
from .errors import (ApiError, ExecutorBroken, NodeLost, PayloadTooLarge, PilotfishError, RemoteTraceback, ResultTooLarge,
                     TaskError, TaskException, TaskExit, TaskLost, TaskOutOfMemory, TaskRefused, TaskSignal, TaskTimeLimit,
                     WorkerLost)
from .executor import AttachedJob, Executor, View
from .future import TaskFuture

__version__ = "0.1.0"

__all__ = [
    "ApiError", "AttachedJob", "Executor", "ExecutorBroken", "NodeLost", "PayloadTooLarge", "PilotfishError",
    "RemoteTraceback", "ResultTooLarge", "TaskError", "TaskException", "TaskExit", "TaskFuture", "TaskLost",
    "TaskOutOfMemory", "TaskRefused", "TaskSignal", "TaskTimeLimit", "View", "WorkerLost"]
