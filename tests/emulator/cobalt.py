"""Cobalt 1.0.33 with its cluster_system component, as on Cooley."""
import os
import time

from queue_ import ctime, directives, hours, numbers, user
from replies import Kind, Recorded, say

NOISE = 'No handlers could be found for logger "Proxy"\n'

KINDS = {
    "qsub": Kind("cobalt/qsub.txt#all on the command line", "{id}\n"),
    "qsub with words": Kind(
        "cobalt/qsub-site-filter.txt#site filter with messages and warnings: all of them on stderr, the id alone on stdout",
        "{id}\n",
        'Job routed to queue "{queue}".\n',
    ),
    "qsub no queue": Kind(
        "cobalt/qsub.txt#no such queue",
        err=NOISE + "<Fault 1001: \"trying to add job to non-existent queue '{queue}'\">\n",
        exit=1,
    ),
    "qsub too long": Kind(
        "cobalt/qsub.txt#longer than queue maxtime (60)",
        err=NOISE + "<Fault 1001: \"Walltime greater than the '{queue}' queue max walltime of {most}\\n\">\n",
        exit=1,
    ),
    "qsub too short": Kind(
        "cobalt/qsub.txt#time of 1 minute",
        err=NOISE + "component error: XMLRPC failure <Fault 1004: 'Walltime less than minimum'> in system.validate_job\n\n",
        exit=1,
    ),
    "qsub nodes": Kind("cobalt/qsub.txt#too many nodes", err="node count out of realistic range\n", exit=1),
    "qsub mode": Kind("cobalt/qsub.txt#not executable", err="command {script} is not executable\n", exit=1),
    "qsub no file": Kind("cobalt/qsub.txt#no such file", err="command {script} not found, or is not a file\n", exit=1),
    "qsub no options": Kind("cobalt/qsub.txt#directives after a command are ignored", err="No required options provided\n\n", exit=1),
    "qsub down": Kind(
        "cobalt/cobalt-down.txt#service locator not reachable: qsub",
        err=NOISE + "component error: Failed to connect to system: Proxy.py     :L#422:cn:system\n\n",
        exit=1,
    ),
    "qstat down": Kind(
        "cobalt/cobalt-down.txt#service locator not reachable: qstat",
        err=NOISE
        + "component error: Following exception occurred while trying to execute queue-manager.get_queues: "
        + "Proxy.py     :L#422:cn:queue-manager\n\n",
        exit=1,
    ),
    "qdel down": Kind(
        "cobalt/cobalt-down.txt#service locator not reachable: qdel",
        err=NOISE
        + "component error: Following exception occurred while trying to execute queue-manager.del_jobs: "
        + "Proxy.py     :L#422:cn:queue-manager\n\n",
        exit=1,
    ),
    "queues": Recorded("cobalt/qstat.txt#queues"),
    "version": Recorded("cobalt/qsub.txt#version"),
    "table": Kind("cobalt/qstat.txt#custom header, one user|cobalt/lifecycle.txt|cobalt/qstat.txt#full", "{header}\n{line}\n{rows}"),
    "gone": Kind("cobalt/qstat-and-qdel.txt#gone", exit=1),
    "qdel": Kind("cobalt/qstat-and-qdel.txt#delete running", "      Deleted Jobs\nJobID  User     \n================\n{id}     {user}  \n"),
    "qdel unknown": Kind("cobalt/qstat-and-qdel.txt#delete unknown"),
    "log submitted": Kind(
        "cobalt/cobaltlog-exit7.txt",
        "Jobid: {id}\nqsub -n {nodes} -t {minutes} -O {prefix} {script}\n{at} +0000 (UTC) submitted with cwd set to: {cwd}\n",
    ),
    "log ended": Kind(
        "cobalt/cobaltlog-exit7.txt",
        "{at} +0000 (UTC) Info: task completed normally with an exit code of {code}; initiating job cleanup and removal\n",
    ),
    "log walltime": Kind(
        "cobalt/cobaltlog-walltime.txt", "{at} +0000 (UTC) Info: maximum execution time exceeded; initiating job termination\n"
    ),
    "log deleted": Kind(
        "cobalt/cobaltlog-qdel-running.txt",
        "{at} +0000 (UTC) Info: user delete requested with signal SIGTERM by user {user}\n",
    ),
}


def qsub(queue, args):
    if args == ["--version"]:
        return say(KINDS["version"])
    if queue.is_("down"):
        return say(KINDS["qsub down"])
    script = args[-1]
    if not os.path.isfile(script):
        return say(KINDS["qsub no file"], script=script)
    if not os.access(script, os.X_OK):
        return say(KINDS["qsub mode"], script=script)
    with open(script) as file:
        words = directives(file.read(), "#COBALT", only_first="strict")
    asked = {}
    for option, value in zip(words, words[1:]):
        if option in ("-n", "-t", "-q", "--jobname", "--cwd", "-O", "-e", "--attrs", "-A"):
            asked[option] = value
    if "-n" not in asked or "-t" not in asked:
        return say(KINDS["qsub no options"])
    name, minutes = asked.get("-q", "default"), int(asked["-t"])
    if name not in queue.settings.get("queues", ["default"]):
        return say(KINDS["qsub no queue"], queue=name)
    if minutes * 60 > queue.settings.get("walltime_max_s", 86_400):
        return say(KINDS["qsub too long"], queue=name, most=hours(queue.settings["walltime_max_s"]))
    if minutes < 5:
        return say(KINDS["qsub too short"])
    if int(asked["-n"]) > len(queue.nodes):
        return say(KINDS["qsub nodes"])
    prefix = asked["-O"]
    number = queue.submit(
        name=asked.get("--jobname", "N/A"),
        nodes=int(asked["-n"]),
        walltime_s=minutes * 60,
        minutes=minutes,
        prefix=prefix,
        queue=name,
        script=script,
        cwd=asked["--cwd"],
        output=asked.get("-e", prefix + ".error"),
        env={"COBALT_JOBID": "@ID@", "COBALT_NODEFILE": "@NODEFILE@", "COBALT_PARTSIZE": asked["-n"], "COBALT_JOBSIZE": asked["-n"], "COBALT_ENDTIME": "@END@"},
        kill_steps=["TERM", "KILL"],
        walltime_steps=["TERM", "KILL"],
    )
    if not number:
        return 0
    log(queue.job(number), "log submitted")
    return say(KINDS["qsub with words" if queue.settings.get("talks") else "qsub"], id=number, queue=name)


def log(job, kind, **places):
    """The launcher adds to the log; here it is the next command, which is the first that can see the end."""
    with open(job["prefix"] + ".cobaltlog", "a") as file:
        file.write(KINDS[kind].out.format(**{**job, "at": ctime(job["ended"] or job["at"]), **places}))


def log_ends(queue):
    with queue.lock():
        for job in queue.jobs():
            if job["state"] != "ended" or job.get("logged"):
                continue
            kinds = {"walltime": "log walltime", "cancelled": "log deleted"}
            if job["end"] in kinds and job["started"]:
                log(job, kinds[job["end"]])
            elif job["started"] and job["end"] is None:
                code = job["code"] if job["code"] >= 0 else 128 - job["code"]
                log(job, "log ended", code=code)
            job["logged"] = True
            queue.save(job)


def state(job):
    if job["state"] == "queued":
        return "user_hold" if job.get("held") else "queued"
    return "killing" if job["kill"] else "running"


def table(queue, header, jobs):
    values = {
        "JobID": lambda j: str(j["id"]),
        "State": state,
        "TimeRemaining": lambda j: hours(j["started"] + j["walltime_s"] - time.time()) if j["started"] else "N/A",
        "Admin_Hold": lambda j: "False",
        "JobName": lambda j: j["name"],
    }
    rows = [[values[column](job) for column in header] for job in jobs]
    ids = max([len(row[0]) for row in rows] + [0])
    rows = [[row[0].rjust(ids), *row[1:]] for row in rows]
    widths = [max([len(h)] + [len(row[n]) for row in rows]) for n, h in enumerate(header)]

    def line(cells):
        return "".join(cell.ljust(width) + "  " for cell, width in zip(cells, widths))

    text = "".join(line(row) + "\n" for row in rows)
    return queue.whole_or_cut(KINDS["table"], header=line(header), line="=" * (sum(widths) + 2 * len(widths) - 1), rows=text)


def qstat(queue, args):
    if queue.is_("down"):
        return say(KINDS["qstat down"])
    if args == ["-Q"]:
        return say(KINDS["queues"])
    log_ends(queue)
    header = args[args.index("--header") + 1].split(":")
    asked = numbers(a for n, a in enumerate(args) if args[n - 1] not in ("-u", "--header"))
    whose = args[args.index("-u") + 1] if "-u" in args else None
    listed = queue.listed(lambda job: job["state"] != "ended" and (job["id"] in asked if asked else job["user"] == whose))
    if listed is None:
        return 0
    if asked and not listed:
        return say(KINDS["gone"])
    if queue.is_("foreign"):
        listed.append(dict(id=1, name="theirs", state="queued", held=True, kill=None, started=None))
    return table(queue, header, listed)


def qdel(queue, args):
    if queue.is_("down"):
        return say(KINDS["qdel down"])
    number = numbers(args)[0]
    job = queue.job(number)
    if not job or job["state"] in ("late", "ended") or job["user"] != user():
        return say(KINDS["qdel unknown"])
    queue.change(number, kill="cancelled")
    return say(KINDS["qdel"], id=number, user=job["user"])


COMMANDS = {"qsub": qsub, "qstat": qstat, "qdel": qdel}
