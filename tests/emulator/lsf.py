"""OpenLava 4.0, and IBM's LSF 10.1 as far as `bjobs -o` goes."""
import os
import sys
import time

from queue_ import ctime, directives, numbers, seconds_of_clock, wrapped
from replies import Kind, Recorded, raw, say

KINDS = {
    "bsub": Kind("lsf/bsub.txt#success, named queue", "Job <{id}> is submitted to queue <{queue}>.\n"),
    "bsub default": Kind("lsf/bsub.txt#success, default queue", "Job <{id}> is submitted to default queue <normal>.\n"),
    "bsub no queue": Kind("lsf/bsub.txt#no such queue", err="{queue}: No such queue. Job not submitted.\n", exit=255),
    "bsub limit": Kind(
        "lsf/bsub.txt#run limit above the queue limit (RUNLIMIT 0:30)",
        err="RUNLIMIT: Cannot exceed queue's hard limit(s). Job not submitted.\n",
        exit=255,
    ),
    "bsub slots": Kind(
        "lsf/bsub.txt#more slots than the queue allows", err="Too many processors requested. Job not submitted.\n", exit=255
    ),
    "bsub empty": Kind("lsf/bsub.txt#empty stdin", err="No command is specified. Job not submitted.\n", exit=255),
    "away": Kind(
        "lsf/lsf-down.txt#mbatchd is down: bjobs waits (cut after 12 s)",
        err="batch system daemon not responding ... still trying\n",
        exit=124,
    ),
    "line": Kind(
        "lsf/bjobs-forms.txt#no header",
        "{id:<7} {user:<7} {stat:<5} {queue:<10} {head:<11} {hosts:<11} {name:<10} {when}\n",
    ),
    "line by fields": Kind(
        "lsf/ibm-bjobs-fields.txt#all states and ends; an unset value is \"-\"; one unknown id",
        "{id}|{stat}|{code}|{hosts}|{ran} second(s)|{limit}.0|{reason}|{name}|{why}\n",
        exit=255,
    ),
    "not found": Kind("lsf/bjobs-forms.txt#unknown id", err="Job <{id}> is not found\n", exit=255),
    "none": Kind("lsf/bjobs-forms.txt#other user with no job", err="No unfinished job found\n", exit=255),
    "no -o": Kind(
        "lsf/bjobs-forms.txt#-o is not known to OpenLava",
        err="bjobs: invalid option -- 'o'\nUsage: bjobs [-h] [-V] [-w |-l] [-W] [-a] [-d] [-p] [-s] [-r] [-g job_group]\n",
        exit=255,
    ),
    "bhist none": Kind("lsf/bpeek-bhist.txt#bhist unknown", "No matching job found\n", exit=255),
    "bhist head": Kind(
        "lsf/bpeek-bhist.txt#bhist long DONE",
        "\nJob Id <{id}>, Job Name <{name}>, User <{user}>, Project <default>, Command <#!/\n",
    ),
    "bhist submitted": Kind(
        "lsf/bpeek-bhist.txt#bhist long DONE", "{at}: Submitted from host <{head}> to Queue <{queue}>, CWD <$HOME>,\n"
    ),
    "bhist started": Kind(
        "lsf/bpeek-bhist.txt#bhist long DONE", "{at}: Dispatched to <{hosts}>;\n{at}: Starting (Pid {pid});\n"
    ),
    "bhist killed": Kind(
        "lsf/bkill-and-states.txt#bhist long", "{at}: Signal <KILL> requested by user or administrator <{user}>\n"
    ),
    "bhist done": Kind(
        "lsf/bpeek-bhist.txt#bhist long DONE", "{at}: Done successfully. The CPU time used is 0.0 seconds;\n"
    ),
    "bhist exit": Kind(
        "lsf/bpeek-bhist.txt#bhist long EXIT", "{at}: Exited with exit code {code}. The CPU time used is 0.0 seconds;\n"
    ),
    "exited": Kind("lsf/bkill-and-states.txt#pending killed", "{at}: Exited\n"),
    "summary": Kind(
        "lsf/bpeek-bhist.txt#bhist long DONE", "\nSummary of time in seconds spent in various states by  {at}\n"
    ),
    "bkill": Kind("lsf/bkill-and-states.txt#kill a running job", "Job <{id}> is being terminated\n"),
    "bkill finished": Kind(
        "lsf/bkill-and-states.txt#kill again, already finished", err="Job <{id}>: Job has already finished\n", exit=255
    ),
    "bkill unknown": Kind("lsf/bkill-and-states.txt#kill unknown", err="Job <{id}>: No matching job found\n", exit=255),
    "bkill in progress": Kind(
        "lsf/bjobs-ssusp-unkwn-zombi.txt#bkill of an UNKWN job", err="Job <{id}>: Operation is in progress\n", exit=255
    ),
    "queues": Recorded("../../../site-profiles/fixtures/lsf-bqueues-l.txt"),
    "lsid": Kind("lsf/lsf-down.txt#all daemons of the master down: lsid (cut after 12 s)", "OpenLava 4.0dev4, Nov 23 2026\n\n", exit=255),
}


def wait_while_down(queue):
    """Its commands retry for ever."""
    if queue.is_("down"):
        say(KINDS["away"])
        while queue.is_("down"):
            time.sleep(0.05)


def bsub(queue, args):
    wait_while_down(queue)
    text = sys.stdin.read()
    words = directives(text, "#BSUB")
    asked = {}
    for option, value in zip(words, words[1:]):
        if option in ("-J", "-q", "-n", "-W", "-o", "-R", "-nnodes"):
            asked[option] = value
    if not any(line and not line.startswith("#") for line in text.splitlines()):
        return say(KINDS["bsub empty"])
    name = asked.get("-q", "normal")
    if name not in queue.settings.get("queues", ["normal"]):
        return say(KINDS["bsub no queue"], queue=name)
    walltime = seconds_of_clock(asked["-W"]) * 60
    if walltime > queue.settings.get("walltime_max_s", 86_400):
        return say(KINDS["bsub limit"])
    per_node = int(asked.get("-R", "span[ptile=1]").split("ptile=")[1].split("]")[0])
    nodes = int(asked["-nnodes"]) if "-nnodes" in asked else int(asked["-n"]) // per_node
    if nodes > len(queue.nodes):
        return say(KINDS["bsub slots"])
    spooled = queue.path("jobs", f"{os.getpid()}.{int(time.time() * 1000)}.shell")
    with open(spooled, "w") as file:
        file.write(text)
    os.chmod(spooled, 0o700)
    number = queue.submit(
        name=asked["-J"],
        nodes=nodes,
        walltime_s=walltime,
        queue=name,
        script=spooled,
        cwd=os.getcwd(),
        output=asked["-o"],
        keeps_environment=True,
        env=environment(queue, name=asked["-J"], queue_name=name),
        kill_steps=["INT", "TERM", "KILL"],
        walltime_steps=["USR2", "KILL"],
    )
    return say(KINDS["bsub" if "-q" in asked else "bsub default"], id=number, queue=name) if number else 0


def environment(queue, name, queue_name):
    """lsf/report-done-env-2hosts.txt; IBM's has a file of hosts too: lsf/ibm-job-environment.txt."""
    env = {"LSB_JOBID": "@ID@", "LSB_JOBNAME": name, "LSB_QUEUE": queue_name, "LSB_JOBINDEX": "0", "LSB_HOSTS": "@NODES@"}
    env.update({"LSB_MCPU_HOSTS": "@SLOTS@", "LS_SUBCWD": os.getcwd()})
    return {**env, "LSB_DJOB_HOSTFILE": "@NODEFILE@"} if queue.mode == "ibm" else env


def stat(job):
    if job["state"] == "ended":
        return "DONE" if job["code"] == 0 and job["end"] != "lost" else "EXIT"
    if job.get("unreachable"):
        return "UNKWN"
    if job.get("suspended"):
        return "SSUSP"
    return {"queued": "PSUSP" if job.get("held") else "PEND", "running": "RUN"}[job["state"]]


def exit_code(job):
    if job["code"] is None or job["end"] == "lost":
        return None
    return job["code"] if job["code"] >= 0 else 128 - job["code"]


def show(queue, job, by_fields):
    places = dict(
        id=job["id"],
        user=job["user"],
        stat=stat(job),
        queue=job["queue"],
        head="lsfm",
        name=job["name"],
        when=ctime(job["at"], "%b %d %H:%M"),
        hosts=":".join(job.get("on", [])) or "-",
    )
    if by_fields:
        reasons = {
            "walltime": "TERM_RUNLIMIT: job killed after reaching LSF run time limit",
            "cancelled": "TERM_OWNER: job killed by owner",
        }
        code = exit_code(job)
        places.update(
            code="-" if code in (None, 0) else code,
            ran=int((job["ended"] or time.time()) - job["started"]) if job["started"] else 0,
            limit=job["walltime_s"] // 60,
            reason=reasons.get(job["end"], "-") if places["stat"] == "EXIT" else "-",
            why="Job's resource requirements not satisfied: 2 hosts;" if job["state"] == "queued" else "-",
        )
    queue.whole_or_cut(KINDS["line by fields" if by_fields else "line"], **places)


def bjobs(queue, args):
    wait_while_down(queue)
    by_fields = "-o" in args
    if by_fields and queue.mode == "openlava":
        return say(KINDS["no -o"])
    if args[:1] == ["-l"]:
        return history(queue, args[1:], "not found")
    asked = numbers(args)
    name = args[args.index("-J") + 1] if "-J" in args else None
    listed = queue.listed(lambda job: job["id"] in asked or job["name"] == name)
    if listed is None:
        return 0
    kept = [j for j in listed if not (j["ended"] and time.time() - j["ended"] > queue.settings.get("clean_period_s", 3_600))]
    for job in kept:
        show(queue, job, by_fields)
    if queue.is_("foreign"):
        other = dict(id=1, name="theirs", user="eve", at=0, queue="normal", walltime_s=60, started=None, ended=None, end=None, code=None)
        show(queue, {**other, "state": "queued"}, by_fields)
    code = 0
    for number in asked:
        if not any(j["id"] == number for j in kept):
            code = say(KINDS["not found"], id=number)
    if not asked and not kept:
        code = say(KINDS["none"])
    return code


def history(queue, args, unknown):
    asked = numbers(args)
    # The number of log files is no job.
    if "-n" in args:
        asked = numbers(args[args.index("-n") + 2 :])
    job = queue.job(asked[0])
    if not job or job["state"] == "late" or queue.settings.get("forgets"):
        return say(KINDS[unknown], id=asked[0])
    places = dict(job, head="lsfm", hosts="> <".join(job.get("on", [])), pid=job["id"], code=exit_code(job))
    parts = [("bhist head", job["at"]), ("bhist submitted", job["at"])]
    if job["started"]:
        parts.append(("bhist started", job["started"]))
    if job["state"] == "ended":
        if job["end"] == "cancelled" and job["started"]:
            parts.append(("bhist killed", job["ended"]))
        done, bare = places["code"] == 0, places["code"] is None
        parts.append(("bhist done" if done else "exited" if bare else "bhist exit", job["ended"]))
    parts.append(("summary", time.time()))
    text = "".join(KINDS[kind].out.format(**{**places, "at": ctime(at, "%a %b %d %H:%M:%S")}) for kind, at in parts)
    # The heading breaks where the record's does, which is not where the text of this one would.
    raw(wrapped(text.replace("Command <#!/\n", "Command <#!/bin/sh>\n").replace("CWD <$HOME>,\n", "CWD <$HOME>;\n")))
    return 0


def bhist(queue, args):
    wait_while_down(queue)
    return history(queue, args, "bhist none")


def bkill(queue, args):
    wait_while_down(queue)
    code = 0
    for number in numbers(args):
        if number == 0:
            for job in queue.jobs():
                queue.change(job["id"], kill="cancelled")
            continue
        job = queue.job(number)
        if not job or job["state"] == "late":
            code = say(KINDS["bkill unknown"], id=number)
        elif job["state"] == "ended":
            code = say(KINDS["bkill finished"], id=number)
        elif job.get("unreachable") and "-r" not in args:
            code = say(KINDS["bkill in progress"], id=number)
        else:
            queue.change(number, kill="forced" if "-r" in args else "cancelled")
            say(KINDS["bkill"], id=number)
    return code


def lsid(queue, args):
    return say(KINDS["lsid"])


def bqueues(queue, args):
    return say(KINDS["queues"])


COMMANDS = {"bqueues": bqueues, "bsub": bsub, "bjobs": bjobs, "bhist": bhist, "bkill": bkill, "lsid": lsid}
