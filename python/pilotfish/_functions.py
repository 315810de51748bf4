"""Functions as they travel: by cloudpickle, by reference, or by source; named by the hash of their content.

Also the arguments of calls. Used by the executor."""
import functools
import hashlib
import importlib
import inspect
import json
import pickle
import textwrap
import types
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from .errors import PilotfishError

try:
    import cloudpickle  # type: ignore[import-untyped,unused-ignore]
except ImportError:
    cloudpickle = None

REFERENCE, CLOUDPICKLE, SOURCE = 1, 2, 3
KINDS = {REFERENCE: "reference", CLOUDPICKLE: "cloudpickle", SOURCE: "source"}
FORMAT_VERSION = 1
PROTOCOL = 5  # of pickle: what Python 3.8 and all later ones read


class FunctionError(PilotfishError, TypeError):
    """A function or its arguments cannot be sent."""


class Function(NamedTuple):
    """A function as it is registered with the broker."""

    kind: int
    bytes: bytes
    name: str

    @property
    def id(self) -> str:
        """BLAKE2b-256 over (format version, kind, bytes), in hexadecimal."""
        return hashlib.blake2b(bytes((FORMAT_VERSION, self.kind)) + self.bytes, digest_size=32).hexdigest()


TRAMPOLINE = Function(SOURCE, json.dumps(
    {"name": "call", "source": "def call(function, *args, **kwargs):\n    return function(*args, **kwargs)\n"}).encode(), "call")


def plain(fn: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tuple[Any, Tuple[Any, ...], Dict[str, Any]]:
    """``fn`` and its arguments such that ``fn`` holds no state that may change between calls: partials and bound methods
    hand theirs to the arguments. What is no function then becomes the first argument of a trampoline (None)."""
    while True:
        if isinstance(fn, functools.partial):
            fn, args, kwargs = fn.func, fn.args + args, {**fn.keywords, **kwargs}
        elif isinstance(fn, types.MethodType):
            fn, args = fn.__func__, (fn.__self__,) + args
        elif isinstance(fn, (types.FunctionType, type)) or is_module_function(fn):
            return fn, args, kwargs
        elif callable(fn):
            return None, (fn,) + args, kwargs
        else:
            raise FunctionError("%r is not callable" % (fn,))


def is_module_function(fn: Any) -> bool:
    """Whether ``fn`` is a function of a module that is written in C."""
    return isinstance(fn, types.BuiltinFunctionType) and (fn.__self__ is None or isinstance(fn.__self__, types.ModuleType))


def encode(fn: Any, by: Optional[str]) -> Function:
    """``fn`` for sending. ``by``: ``"cloudpickle"``, ``"reference"``, ``"source"``, or None: the first of these that can be."""
    if fn is None:
        return TRAMPOLINE
    if by == "cloudpickle" or (by is None and cloudpickle is not None):
        if cloudpickle is None:
            raise FunctionError("cloudpickle is not installed for this Python")
        return Function(CLOUDPICKLE, cloudpickle.dumps(fn, PROTOCOL), name_of(fn))
    if by == "reference" or (by is None and importable(fn)):
        if not importable(fn):
            raise FunctionError("%s cannot be imported by its name, so it cannot be sent by reference" % name_of(fn))
        return Function(REFERENCE, ("%s:%s" % (fn.__module__, fn.__qualname__)).encode(), name_of(fn))
    if by in (None, "source"):
        return by_source(fn)
    raise FunctionError("by=%r is none of 'cloudpickle', 'reference', 'source'" % (by,))


def name_of(fn: Any) -> str:
    """``module.qualname`` for people."""
    return "%s.%s" % (getattr(fn, "__module__", None) or "?", getattr(fn, "__qualname__", type(fn).__name__))


def importable(fn: Any) -> bool:
    """Whether importing ``fn``'s module and taking its name gives ``fn``, elsewhere too."""
    module = getattr(fn, "__module__", None)
    if module in (None, "__main__") or "<" in fn.__qualname__:
        return False
    try:
        found: Any = importlib.import_module(module)
        for part in fn.__qualname__.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return False
    return found is fn


def by_source(fn: Any) -> Function:
    """``fn`` by its source text: no closure, no globals of its module, imports inside."""
    name = getattr(fn, "__name__", "?")
    if getattr(fn, "__closure__", None):
        raise FunctionError("%s has a closure, which its source does not carry; install cloudpickle" % name_of(fn))
    if not name.isidentifier() or "." in fn.__qualname__.rpartition("<locals>.")[2]:
        raise FunctionError("%s cannot be sent by source; make it a plain function, or install cloudpickle" % name_of(fn))
    try:
        source = textwrap.dedent(inspect.getsource(fn))
    except (OSError, TypeError) as error:
        raise FunctionError("the source of %s cannot be found: %s; install cloudpickle" % (name_of(fn), error))
    return Function(SOURCE, json.dumps({"name": name, "source": source}).encode(), name_of(fn))


def dumps(value: Any) -> bytes:
    """Pickle arguments. What lives in ``__main__`` or only cloudpickle can carry is carried by it where it is installed."""
    try:
        data = pickle.dumps(value, PROTOCOL)
    except Exception:
        if cloudpickle is None:
            raise
        return bytes(cloudpickle.dumps(value, PROTOCOL))
    if b"__main__" in data and cloudpickle is not None:
        return bytes(cloudpickle.dumps(value, PROTOCOL))  # a reference to the caller's script would mean the worker's
    return data


def chunk_columns(iterables: Sequence[Sequence[Any]], start: int, stop: int) -> List[Sequence[Any]]:
    """Rows ``start`` to ``stop`` of the columns; a slice of a range stays a range, which pickles to almost nothing."""
    return [column[start:stop] for column in iterables]
