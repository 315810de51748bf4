#!/usr/bin/env python3
"""Stands in for the binary ``pf`` in tests of the embedded chain: ``serve`` with a fake broker behind it."""
import json
import os
import sys
from typing import List

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tests.fake_broker import FakeBroker  # noqa: E402


def main(arguments: List[str]) -> int:
    """``serve --private --dir DIR --parent-pid PID --workers N``: until stdin closes."""
    if os.environ.get("FAKE_PF_FAILS"):
        print("error: no disk today", file=sys.stderr)
        return 1
    assert arguments[0] == "serve" and "--private" in arguments, arguments
    given = dict(zip(arguments[2::2], arguments[3::2]))
    assert int(given.get("--workers", "1")) > 0 and int(given["--parent-pid"]) == os.getppid(), arguments
    broker = FakeBroker(os.path.join(given["--dir"], "broker.sock"))
    broker.start()
    print(json.dumps({"socket": broker.path, "nodes": 1}), flush=True)
    sys.stdin.buffer.read()
    broker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
