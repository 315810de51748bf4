"""The queue of a scheduler, in a folder, and the life of its jobs. Every job has a process of its own (`emulator.py --run`) that waits for
its turn, runs the script and keeps the clock; commands only read and mark records, under one lock.

moods: files in the folder that make the scheduler misbehave.
  down          its server is away: every command says so, in its words
  hang.COMMAND  that command hangs while the file is there
  banner        text that the site prints on standard output before every reply
  late          a submit ends without a word, and its job comes up only once the file is taken away
  full          submits are refused: as many jobs as may be
  missing       ids that the next listing leaves out (then the file goes)
  empty         the next listing says nothing at all (then the file goes)
  cut           one reply of the next listing is cut off in mid-line, and what follows stands behind it (then the file goes)
  foreign       listings also have a job of another user
"""
import contextlib
import fcntl
import json
import os
import pwd
import re
import shlex
import signal
import subprocess
import sys
import time

import replies

TICK_S = 0.02


def user():
    return pwd.getpwuid(os.geteuid()).pw_name


class Queue:
    def __init__(self, folder):
        self.folder = folder
        with open(self.path("settings.json")) as file:
            self.settings = json.load(file)
        self.mode = self.settings["mode"]
        self.nodes = self.settings["nodes"]

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def note(self, name, args):
        """One line a call, for the tests to count."""
        with open(self.path("calls"), "a") as file:
            file.write(shlex.join([name, *args]) + "\n")

    def is_(self, mood):
        return os.path.exists(self.path(mood))

    def once(self, mood):
        """The text of a mood that passes with this call; None without it."""
        try:
            with open(self.path(mood)) as file:
                text = file.read()
            os.unlink(self.path(mood))
            return text
        except FileNotFoundError:
            return None

    def mood(self, name):
        while self.is_("hang." + name):
            time.sleep(TICK_S)
        if self.is_("banner"):
            with open(self.path("banner")) as file:
                replies.raw(file.read())

    @contextlib.contextmanager
    def lock(self):
        with open(self.path("lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def jobs(self):
        found = []
        for name in os.listdir(self.path("jobs")):
            if name.endswith(".json"):
                with open(self.path("jobs", name)) as file:
                    found.append(json.load(file))
        return sorted(found, key=lambda job: job["id"])

    def job(self, number):
        try:
            with open(self.path("jobs", f"{number}.json")) as file:
                return json.load(file)
        except (FileNotFoundError, ValueError):
            return None

    def save(self, job):
        path = self.path("jobs", f"{job['id']}.json")
        with open(path + ".new", "w") as file:
            json.dump(job, file)
        os.replace(path + ".new", path)

    def change(self, number, **fields):
        with self.lock():
            job = self.job(number)
            if job:
                job.update(fields)
                self.save(job)
            return job

    def submit(self, **job):
        """Takes a job, and starts the process that runs it; its number, unless the mood is to say nothing."""
        late = self.is_("late")
        with self.lock():
            number = max([j["id"] for j in self.jobs()] + [self.settings.get("first_id", 100)]) + 1
            asked = dict(id=number, state="late" if late else "queued", code=None, end=None, kill=None, started=None, ended=None)
            self.save({**asked, "user": user(), "at": time.time(), **job})
        me = os.path.join(os.path.dirname(os.path.realpath(__file__)), "emulator.py")
        quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        env = {k: v for k, v in os.environ.items() if k != "PF_EMULATOR_DIR"}
        subprocess.Popen([sys.executable, me, "--run", self.folder, str(number)], start_new_session=True, env=env, **quiet)
        return None if late else number

    def listed(self, which):
        """Jobs of a listing, as the mood is; None: it says nothing at all."""
        missing = (self.once("missing") or "").split()
        if self.once("empty") is not None:
            return None
        found = [j for j in self.jobs() if which(j) and j["state"] != "late"]
        return [j for j in found if str(j["id"]) not in missing]

    def whole_or_cut(self, kind, **places):
        """A reply of a listing, the last third of which a mood may cut off."""
        if self.is_("cut"):
            self.once("cut")
            text = kind.out.format(**places)
            replies.raw(text[: len(text) * 2 // 3])
            return kind.exit
        return replies.say(kind, **places)

    # The life of a job.

    def run(self, number):
        while True:
            with self.lock():
                job = self.job(number)
                if job["state"] == "late" and not self.is_("late"):
                    job["state"] = "queued"
                if job["state"] == "queued" and job["kill"]:
                    job.update(state="ended", end="cancelled", ended=time.time())
                elif job["state"] == "queued" and not job.get("held") and not self.is_("down"):
                    nodes = self.free(job["nodes"])
                    if nodes:
                        job.update(state="running", on=nodes, started=time.time())
                self.save(job)
            if job["state"] == "ended":
                return 0
            if job["state"] == "running":
                break
            time.sleep(TICK_S)
        code, end = self.carry_out(job)
        self.change(number, state="ended", code=code, end=end, ended=time.time())
        return 0

    def free(self, count):
        taken = {n for j in self.jobs() if j["state"] == "running" for n in j["on"]}
        down = (self.settings.get("down_nodes") or [])
        free = [n for n in self.nodes if n not in taken and n not in down]
        return free[:count] if len(free) >= count else None

    def carry_out(self, job):
        """Runs the script to its end, or ends it; its raw exit code (negative: a signal) and why it was ended."""
        nodefile = self.path("jobs", f"{job['id']}.nodes")
        with open(nodefile, "w") as file:
            file.writelines(node + "\n" for node in job["on"])
        env = {k: os.environ[k] for k in ("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "PILOTFISH_DIR") if k in os.environ}
        if job.get("keeps_environment"):
            env = dict(os.environ)
        known = {
            "@NODEFILE@": nodefile,
            "@NODES@": " ".join(job["on"]),
            "@SLOTS@": "".join(f"{node} 1 " for node in job["on"]),
            "@ID@": str(job["id"]),
            "@END@": str(int(job["started"] + job["walltime_s"])),
        }
        for name, value in job["env"].items():
            for word, meaning in known.items():
                value = value.replace(word, meaning)
            env[name] = value
        env["PF_EMULATED_JOB"] = f"{self.folder}/{job['id']}"
        with open(job["output"], "a") as output:
            try:
                process = subprocess.Popen(
                    [job["script"]], cwd=job["cwd"], env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
            except OSError:
                return 254, None
        end, steps, step_at, stopped = None, [], None, False
        while process.poll() is None:
            now = time.time()
            seen = self.job(job["id"])
            if bool(seen.get("suspended")) != stopped:
                stopped = not stopped
                self.tell(process, "STOP" if stopped else "CONT", job)
            if seen["kill"] and end is None:
                end, steps, step_at = seen["kill"], list(job["kill_steps"]), now
                if end == "lost":
                    steps = ["KILL"]
                elif end == "walltime":
                    steps = list(job["walltime_steps"])
            elif end is None and now >= job["started"] + job["walltime_s"]:
                end, steps, step_at = "walltime", list(job["walltime_steps"]), now
            if seen["kill"] == "forced" and end != "lost" and steps != []:
                end, steps, step_at = "cancelled", ["KILL"], now
            if steps and now >= step_at:
                self.tell(process, steps.pop(0), job)
                step_at = now + self.settings.get("kill_delay_s", 3)
            time.sleep(TICK_S)
        self.tell(process, "KILL", job)
        return process.returncode, "cancelled" if end == "forced" else end

    def tell(self, process, name, job):
        """To the script's process group, by LSF to all of the job's (`mykillpg`); what ends or stops, to all processes of the job: a mark in
        their environment finds those of other sessions."""
        number = getattr(signal, "SIG" + name)
        if name not in ("KILL", "STOP", "CONT") and self.mode not in ("openlava", "ibm"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            return
        mark = f"PF_EMULATED_JOB={self.folder}/{job['id']}".encode()
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{entry}/environ", "rb") as file:
                    mine = mark in file.read().split(b"\0")
                if mine or os.getsid(int(entry)) == process.pid:
                    os.kill(int(entry), number)


def directives(text, prefix, only_first=False):
    """The words of a script's directive lines: for OpenLava anywhere, for PBS before the first command, for Cobalt directly after line 1."""
    words = []
    for line in text.splitlines()[1:]:
        if line.startswith(prefix + " "):
            words += shlex.split(line[len(prefix) :].split(" # ")[0])
        elif only_first and (only_first == "strict" or (line.strip() and not line.startswith("#"))):
            break
    return words


def hours(seconds):
    seconds = int(seconds)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def seconds_of_clock(text):
    total = 0
    for part in text.split(":"):
        total = total * 60 + int(part)
    return total


def ctime(at, form="%a %b %d %H:%M:%S %Y"):
    return time.strftime(form, time.localtime(at))


def wrapped(text, width=80, indent=21):
    """As LSF breaks lines: in mid-word, the rest after 21 blanks, a blank at the margin lost."""
    lines = []
    for line in text.split("\n"):
        lines.append(line[:width])
        rest = line[width:]
        while rest:
            lines.append(" " * indent + rest.lstrip(" ")[: width - indent])
            rest = rest.lstrip(" ")[width - indent :]
    return "\n".join(lines)


def numbers(args):
    """Operands that are numbers of jobs, as `7` or `7.server`."""
    found = [re.fullmatch(r"(\d+)(\.[\w.-]+)?", a) for a in args]
    return [int(m.group(1)) for m in found if m]
