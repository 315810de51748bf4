"""OpenPBS 23.06.06."""
import os
import time

from queue_ import ctime, directives, hours, numbers, seconds_of_clock, user
from replies import Kind, Recorded, say

SERVER = "pbshead"

RECORD_START = """Job Id: {id}.pbshead
    Job_Name = {name}
    Job_Owner = {user}@pbshead
"""
RECORD_USED = """    resources_used.cput = {used}
    resources_used.ncpus = {nodes}
    resources_used.walltime = {used}
"""
RECORD_REST = """    job_state = {letter}
    queue = workq
    server = pbshead
    Hold_Types = {hold}
    Join_Path = n
    Priority = 0
    Rerunable = {rerun}
    Resource_List.ncpus = {nodes}
    Resource_List.nodect = {nodes}
    Resource_List.place = {place}
    Resource_List.walltime = {walltime}
    substate = {substate}
"""

KINDS = {
    "qsub": Kind("pbs/01-qsub.txt#success, script file", "{id}.pbshead\n"),
    "qsub unknown queue": Kind("pbs/01-qsub.txt#unknown queue", err="qsub: Unknown queue\n", exit=170),
    "qsub limits": Kind(
        "pbs/01-qsub.txt#over queue walltime maximum (resources_max.walltime=1h)",
        err="qsub: Job violates queue and/or server resource limits\n",
        exit=188,
    ),
    "qsub full": Kind(
        "pbs/15-limits-history-nodes.txt#third job in queue with max_queued=[u:PBS_GENERIC=2]",
        err="qsub: would exceed queue generic's per-user limit\n",
        exit=38,
    ),
    "qsub no script": Kind("pbs/01-qsub.txt#missing script", err="qsub: script file:: No such file or directory\n", exit=1),
    "qsub down": Kind(
        "pbs/13-server-down.txt#server down: qsub",
        err="Connection refused\nqsub: cannot connect to server pbshead (errno=15010)\n",
        exit=162,
    ),
    "qstat down": Kind(
        "pbs/13-server-down.txt#server down: qstat",
        err="Connection refused\nqstat: cannot connect to server pbshead (errno=15010)\n",
        exit=255,
    ),
    "qdel down": Kind(
        "pbs/13-server-down.txt#server down: qdel",
        err="Connection refused\nCouldn't connect to cluster: pbshead\n",
        exit=162,
    ),
    "queues": Recorded("pbs/07-exiting-and-signals.txt#qstat -Q -f -F json"),
    "version": Kind("pbs/07-exiting-and-signals.txt#qstat --version", "pbs_version = 23.06.06\n"),
    "unknown": Kind("pbs/02-states.txt#unknown id, text", err="qstat: Unknown Job Id {id}.pbshead\n", exit=153),
    "finished": Kind(
        "pbs/05-finished.txt#plain without -x, finished",
        err="qstat: {id}.pbshead Job has finished, use -x or -H to obtain historical job information\n",
        exit=35,
    ),
    "no history": Kind(
        "pbs/15-limits-history-nodes.txt#history off: finished job, qstat -x -f -F json",
        err="qstat: PBS is not configured to maintain job history {id}\n",
    ),
    "record queued": Kind(
        "pbs/02-states.txt#Q qstat -f|pbs/02-states.txt#Q-can-never-run qstat -f|pbs/12-node-lost.txt",
        RECORD_START + RECORD_REST + "    comment = {comment}\n    project = _pbs_project_default\n\n",
    ),
    "record held": Kind(
        "pbs/02-states.txt#H qstat -f|pbs/12-node-lost.txt",
        RECORD_START + RECORD_REST + "    project = _pbs_project_default\n\n",
    ),
    "record running": Kind(
        "pbs/02-states.txt#R qstat -f|pbs/12-node-lost.txt",
        RECORD_START
        + RECORD_USED
        + RECORD_REST
        + "    exec_host = {hosts}\n    comment = {comment}\n    run_count = 1\n    project = _pbs_project_default\n\n",
    ),
    "record finished": Kind(
        "pbs/05-finished.txt#exit3 full record (text)|pbs/12-node-lost.txt",
        RECORD_START
        + RECORD_USED
        + RECORD_REST
        + "    stime = {stime}\n    exec_host = {hosts}\n    comment = {comment}\n    run_count = 1\n    Exit_status = {status}\n"
        + "    project = _pbs_project_default\n\n",
    ),
    "record never started": Kind(
        "pbs/05-finished.txt#exit3 full record (text)|pbs/12-node-lost.txt",
        RECORD_START + RECORD_REST + "    project = _pbs_project_default\n\n",
    ),
    "qselect": Kind("pbs/07-exiting-and-signals.txt#qselect", "{id}.pbshead\n"),
    "qdel": Kind("pbs/06-qdel.txt#qdel of a running job"),
    "qdel unknown": Kind("pbs/06-qdel.txt#qdel unknown id", err="qdel: Unknown Job Id {id}.pbshead\n", exit=153),
    "qdel finished": Kind("pbs/06-qdel.txt#qdel finished job", err="qdel: Job has finished {id}.pbshead\n", exit=35),
    "qdel foreign": Kind("pbs/06-qdel.txt#other user's job", err="qdel: Unauthorized Request  {id}.pbshead\n", exit=159),
    "qdel no mom": Kind(
        "pbs/12-node-lost.txt#qdel of a job on a silently dead node (link down, server has not noticed)",
        err="qdel: Server could not connect to MOM {id}.pbshead\n",
        exit=222,
    ),
}


def qsub(queue, args):
    if queue.is_("down"):
        return say(KINDS["qsub down"])
    if queue.is_("full"):
        return say(KINDS["qsub full"])
    script = args[-1]
    if not os.path.exists(script):
        return say(KINDS["qsub no script"])
    with open(script) as file:
        words = directives(file.read(), "#PBS", only_first=True)
    asked = {"place": "free"}
    for option, value in zip(words, words[1:]):
        if option == "-l":
            asked.update(pair.split("=", 1) for pair in value.split(",") if "=" in pair)
        elif option in ("-N", "-q", "-o", "-r", "-A"):
            asked[option] = value
    if asked.get("-q", "workq") not in queue.settings.get("queues", ["workq"]):
        return say(KINDS["qsub unknown queue"])
    walltime = seconds_of_clock(asked["walltime"])
    if walltime > queue.settings.get("walltime_max_s", 86_400):
        return say(KINDS["qsub limits"])
    number = queue.submit(
        name=asked["-N"],
        nodes=int(asked["select"].split(":")[0]),
        walltime_s=walltime,
        place=asked["place"],
        rerun="False" if asked.get("-r") == "n" else "True",
        script=script,
        cwd=os.path.expanduser("~"),
        output=asked["-o"],
        env={"PBS_JOBID": "@ID@.pbshead", "PBS_ENVIRONMENT": "PBS_BATCH", "PBS_JOBNAME": asked["-N"], "PBS_NODEFILE": "@NODEFILE@", "PBS_O_QUEUE": "workq", "PBS_O_WORKDIR": os.getcwd()},
        kill_steps=["TERM", "KILL"],
        walltime_steps=["TERM", "KILL"],
    )
    return say(KINDS["qsub"], id=number) if number else 0


def show(queue, job):
    places = dict(job)
    started, nodes = job["started"], job.get("on", [])
    at = ctime(started or job["at"], "%a %b %d at %H:%M")
    ran = f"Job run at {at} on " + "+".join(f"({n}:ncpus=1)" for n in nodes)
    places.update(
        hold="n",
        used=hours((job["ended"] or time.time()) - started) if started else "",
        walltime=hours(job["walltime_s"]),
        hosts="+".join(f"{n}/0" for n in nodes),
        stime=ctime(started) if started else "",
    )
    if job["state"] == "queued":
        impossible = job["nodes"] > len(queue.nodes)
        need = f"ncpus (R: {job['nodes']} A: {len(queue.nodes)} T: {len(queue.nodes)})"
        why = "Can Never Run" if impossible else "Not Running"
        if job.get("held"):
            return queue.whole_or_cut(KINDS["record held"], **{**places, "letter": "H", "substate": 20, "hold": "u"})
        comment = f"{why}: Insufficient amount of resource: {need}"
        return queue.whole_or_cut(KINDS["record queued"], letter="Q", substate=10, comment=comment, **places)
    if job["state"] == "running":
        letter, substate = ("S", 43) if job.get("suspended") else ("R", 42)
        return queue.whole_or_cut(KINDS["record running"], letter=letter, substate=substate, comment=ran, **places)
    if not started:
        return queue.whole_or_cut(KINDS["record never started"], letter="F", substate=91, **places)
    # A signal to the top process is 256 + its number; through the login shell 128 +.
    status = job["code"] if job["code"] >= 0 else 256 - job["code"]
    ends = {
        "walltime": (93, -29, " and exceeded resource walltime"),
        "cancelled": (91, 271, f" and terminated by {job['user']}@pbshead"),
        # pbs/messages.txt: in the scheduler's name.
        "preempted": (91, 271, f" and terminated by Scheduler@{SERVER}"),
        "lost": (93, -20, ""),
        None: (92 if status == 0 else 93, status, " and finished" if status == 0 else " and failed"),
    }
    substate, status, comment = ends[job["end"]]
    return queue.whole_or_cut(
        KINDS["record finished"], letter="F", substate=substate, comment=ran + comment, status=status, **places
    )


def qstat(queue, args):
    if args == ["--version"]:
        return say(KINDS["version"])
    if queue.is_("down"):
        return say(KINDS["qstat down"])
    if args[0] == "-Q":
        return say(KINDS["queues"])
    history, express = "-x" in args, "-E" in args
    asked = numbers(args)
    if history and not queue.settings.get("history", True):
        return max(say(KINDS["no history"], id=f"{n}.{SERVER}") for n in asked)
    listed = queue.listed(lambda job: job["id"] in asked)
    if listed is None:
        return 0
    code, shown = 0, 0
    for number in asked:
        job = next((j for j in listed if j["id"] == number), None)
        if job and (job["state"] != "ended" or history):
            show(queue, job)
            shown += 1
        elif not express:
            known = job and queue.settings.get("history", True)
            code = say(KINDS["finished" if known else "unknown"], id=number)
    if express and not shown and asked:
        code = say(KINDS["unknown"], id=asked[0])
    if queue.is_("foreign"):
        other = dict(id=1, name="theirs", user="eve", at=0, walltime_s=60, nodes=1, place="free", rerun="True", held=True)
        show(queue, {**other, "state": "queued", "started": None, "ended": None, "end": None, "code": None})
    return code


def qselect(queue, args):
    if queue.is_("down"):
        return say(KINDS["qstat down"])
    history = "-x" in args
    if history and not queue.settings.get("history", True):
        return say(KINDS["no history"], id="")
    name = args[args.index("-N") + 1]
    for job in queue.jobs():
        if job["name"] == name and job["state"] != "late" and (history or job["state"] != "ended"):
            say(KINDS["qselect"], id=job["id"])
    return 0


def qdel(queue, args):
    if queue.is_("down"):
        return say(KINDS["qdel down"])
    force = args[:2] == ["-W", "force"]
    ids = numbers(args)
    if len(ids) != 1:
        # Several have crashed a server.
        open(queue.path("down"), "w").close()
        return say(KINDS["qdel down"])
    job = queue.job(ids[0])
    if not job or job["state"] == "late":
        return say(KINDS["qdel unknown"], id=ids[0])
    if job["user"] != user():
        return say(KINDS["qdel foreign"], id=ids[0])
    if job["state"] == "ended":
        return say(KINDS["qdel finished"], id=ids[0])
    if queue.is_("deaf") and not force:
        return say(KINDS["qdel no mom"], id=ids[0])
    queue.change(ids[0], kill="forced" if force else "cancelled")
    return say(KINDS["qdel"])


COMMANDS = {"qsub": qsub, "qstat": qstat, "qselect": qselect, "qdel": qdel}
