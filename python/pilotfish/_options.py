"""What can be said of tasks: resources, limits, policy. Parsed once at the border into the broker's ``JobSpec``."""
import sys
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple, Union

NAME_CHARS_MAX = 200  # of a job, by the broker's limits: names of functions inside functions are long
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Options(NamedTuple):
    """Options of tasks; see ``Executor.with_options`` for their meaning. Equal options share a job."""

    cores: int = 1
    gpus: float = 0
    memory: int = 0
    features: Tuple[str, ...] = ()
    time_limit: Optional[float] = None
    time_needed: Optional[float] = None
    retries: int = 0
    on_lost: str = "rerun"
    priority: int = 0
    max_running: Optional[int] = None
    max_fails: Optional[int] = None
    name: Optional[str] = None
    labels: Tuple[Tuple[str, str], ...] = ()
    env: Tuple[Tuple[str, str], ...] = ()
    account: Optional[str] = None
    python: Optional[str] = None
    by: Optional[str] = None

    def changed(self, given: Mapping[str, Any]) -> "Options":
        """These options with ``given`` put over them. Raises TypeError or ValueError that names the option."""
        unknown = sorted(set(given) - set(self._fields))
        if unknown:
            raise TypeError("unknown option %s; there are %s" % (", ".join(unknown), ", ".join(self._fields)))
        clean = dict(given)
        for name in ("labels", "env"):
            if name in clean:
                pairs = clean[name].items() if isinstance(clean[name], Mapping) else clean[name]
                clean[name] = tuple(sorted((str(k), str(v)) for k, v in pairs))
        if "memory" in clean:
            clean["memory"] = parse_bytes(clean["memory"])
        if "features" in clean:
            clean["features"] = tuple(sorted(clean["features"]))
        made = self._replace(**clean)
        made.validate()
        return made

    def validate(self) -> None:
        """Raise ValueError for what no broker would take."""
        if not (isinstance(self.cores, int) and self.cores >= 0):
            raise ValueError("cores=%r is not a whole number of at least 0" % (self.cores,))
        if self.gpus < 0:
            raise ValueError("gpus=%r is less than 0" % (self.gpus,))
        if not (isinstance(self.retries, int) and self.retries >= 0):
            raise ValueError("retries=%r is not a whole number of at least 0" % (self.retries,))
        for name in ("time_limit", "time_needed"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError("%s=%r is not a time in seconds" % (name, value))
        if self.on_lost not in ("rerun", "fail", "wait"):
            raise ValueError("on_lost=%r is none of 'rerun', 'fail', 'wait'" % (self.on_lost,))
        if self.by not in (None, "cloudpickle", "reference", "source"):
            raise ValueError("by=%r is none of 'cloudpickle', 'reference', 'source'" % (self.by,))

    def spec(self, function_id: str, chunked: bool, group: int, endpoint: Optional[str], name: str) -> Dict[str, Any]:
        """The ``JobSpec`` of tasks of one function."""
        spec: Dict[str, Any] = {
            "name": self.name or name[:NAME_CHARS_MAX],
            "labels": dict(self.labels),
            "group": group,
            "endpoints": [endpoint] if endpoint else [],
            "account": self.account,
            "body": {"python": {"function": function_id, "python": self.python, "chunked": chunked,
                                "client_python": "%d.%d" % sys.version_info[:2]}},
            "env": {"vars": dict(self.env), "clear": False},
            "resources": {"cores": self.cores, "gpus_milli": round(self.gpus * 1000), "memory_bytes": self.memory,
                          "features": list(self.features)},
            "time_limit_ms": milliseconds(self.time_limit),
            "time_needed_ms": milliseconds(self.time_needed),
            "priority": self.priority,
            "max_running": self.max_running,
            "max_fails": self.max_fails,
            "max_attempts": 1 + self.retries,
            "retry": {"failure": self.retries > 0, "out_of_memory": self.retries > 0, "time_limit": False},
            "on_lost": self.on_lost,
        }
        return {key: value for key, value in spec.items() if value is not None}


def milliseconds(seconds: Optional[float]) -> Optional[int]:
    """Seconds as whole milliseconds, at least 1."""
    return None if seconds is None else max(1, round(seconds * 1000))


def parse_bytes(text: Union[int, str, None]) -> int:
    """A number of bytes: a whole number, or text such as ``"4G"``."""
    if text is None:
        return 0
    if isinstance(text, int):
        return text
    digits, unit = text.strip().upper().rstrip("B"), ""
    if digits and digits[-1] in UNITS:
        digits, unit = digits[:-1], digits[-1]
    try:
        return int(float(digits) * UNITS[unit])
    except ValueError:
        raise ValueError("memory=%r is not written like 4G or 512M" % (text,))
