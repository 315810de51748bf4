#!/usr/bin/env python3
"""Batch schedulers that are not there: qsub, qstat, bsub, bjobs, ... keep a queue in a folder and run its jobs as processes of this machine.

The program is called by the name of a command (a link to this file); the folder $PF_EMULATOR_DIR says in its file `mode` which scheduler it
plays: openpbs, openlava, ibm or cobalt. Everything that it says is a reply of a kind that names the record it was copied from; `--check`
holds all kinds against those records. Files in the folder make it misbehave: see `moods` in queue_.py.

Standard library only. Used by tests/src/emulated.rs.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import cobalt  # noqa: E402
import lsf  # noqa: E402
import pbs  # noqa: E402
import queue_  # noqa: E402
import replies  # noqa: E402

SCHEDULERS = {"openpbs": pbs, "openlava": lsf, "ibm": lsf, "cobalt": cobalt}


def main(argv):
    name = os.path.basename(argv[0])
    if argv[1:2] == ["--check"]:
        return replies.check(argv[2], [pbs.KINDS, lsf.KINDS, cobalt.KINDS])
    if argv[1:2] == ["--run"]:
        return queue_.Queue(argv[2]).run(int(argv[3]))
    queue = queue_.Queue(os.environ["PF_EMULATOR_DIR"])
    scheduler = SCHEDULERS[queue.mode]
    queue.note(name, argv[1:])
    queue.mood(name)
    return scheduler.COMMANDS[name](queue, argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
