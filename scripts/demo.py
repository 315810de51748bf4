#!/usr/bin/env python3
"""The demo's work: scikit-learn models cross-validated over a grid of settings on the digits data, beside shell tasks, all on one
embedded chain with nothing configured. Called by scripts/demo, which brings the environment. Exit code 0: every result came and is right."""
import argparse
import collections
import concurrent.futures
import itertools
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"  # here too, so that what is recomputed here is the same sum

import numpy as np
from sklearn.datasets import load_digits

import pilotfish

SAMPLES = 600  # of the 1,797 images: enough to rank models, few enough for a demo
FOLDS = 3
SHELL_TASKS = 300
RECOMPUTED = 12  # points of the grid that are computed again here and compared
BEST_SHOWN = 12
DATA = {}  # each worker's copy of the digits, once it has read them


def score(model, settings):
    """One point of the grid: mean accuracy over the folds. Runs on a worker."""
    import importlib
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    if not DATA:
        from sklearn.datasets import load_digits
        images, labels = load_digits(return_X_y=True)
        DATA["images"], DATA["labels"] = images[:SAMPLES] / 16.0, labels[:SAMPLES]
    steps = []
    for path in model.split("+"):
        module, _, cls = path.rpartition(".")
        made = getattr(importlib.import_module("sklearn." + module), cls)
        steps.append(made(**{key: value for key, value in settings.items() if key in made().get_params()}))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    return float(cross_val_score(make_pipeline(*steps), DATA["images"], DATA["labels"], cv=folds, n_jobs=1).mean())


def grid():
    """All (model, settings)."""
    spaces = {
        "neighbors.KNeighborsClassifier": {"n_neighbors": [1, 2, 3, 5, 7, 9, 13], "weights": ["uniform", "distance"], "p": [1, 2]},
        "svm.SVC": {"C": [0.1, 0.3, 1, 3, 10, 30, 100], "gamma": [0.003, 0.01, 0.03, 0.1, 0.3, "scale"]},
        "tree.DecisionTreeClassifier": {"max_depth": [4, 6, 8, 12, None], "min_samples_leaf": [1, 2, 4, 8],
                                        "criterion": ["gini", "entropy"], "random_state": [0]},
        "ensemble.RandomForestClassifier": {"n_estimators": [5, 10, 20], "max_features": ["sqrt", "log2", 0.3],
                                            "min_samples_leaf": [1, 3], "random_state": [0]},
        "ensemble.ExtraTreesClassifier": {"n_estimators": [5, 10, 20], "max_features": ["sqrt", "log2", 0.3],
                                          "min_samples_leaf": [1, 3], "random_state": [0]},
        "linear_model.RidgeClassifier": {"alpha": [10.0 ** e for e in range(-4, 4)], "class_weight": [None, "balanced"]},
        "naive_bayes.GaussianNB": {"var_smoothing": [10.0 ** e for e in range(-9, 0)]},
        "discriminant_analysis.LinearDiscriminantAnalysis": {"solver": ["lsqr"], "shrinkage": [0.01, 0.03, 0.1, 0.2, 0.4, 0.8, "auto"]},
        "decomposition.PCA+neighbors.KNeighborsClassifier": {"n_components": [5, 8, 12, 16, 24, 32], "n_neighbors": [1, 3, 5],
                                                             "random_state": [0]},
        "decomposition.PCA+svm.SVC": {"n_components": [8, 12, 16, 24, 32], "C": [1, 10, 100], "gamma": ["scale"], "random_state": [0]},
    }
    return [(model, dict(zip(space, values))) for model, space in spaces.items() for values in itertools.product(*space.values())]


def words(model, settings):
    """A point for people."""
    names = "+".join(path.rpartition(".")[2] for path in model.split("+"))
    return names, " ".join("%s=%s" % (key, value if isinstance(value, str) or value is None else "%g" % value)
                           for key, value in settings.items() if key != "random_state")


class Pf:
    """The command line, aimed at the executor's own chain."""

    def __init__(self, folder):
        self.env = {**os.environ, "PILOTFISH_DIR": folder}

    def __call__(self, *args):
        done = subprocess.run([os.environ["PILOTFISH_PF"], *args], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit("pf %s ended with %d: %s" % (shlex.join(args), done.returncode, done.stderr.strip()))
        return done.stdout

    def job(self, job):
        """What the broker says of a job."""
        return json.loads(self("job", "show", job, "--json"))


class Progress:
    """A bar on a terminal; elsewhere a line every five seconds."""

    def __init__(self, total):
        self.total, self.live, self.said, self.began = total, sys.stderr.isatty(), 0.0, time.monotonic()

    def show(self, done, note):
        """Where it stands."""
        now = time.monotonic()
        if not self.live and now - self.said < 5 and done < self.total:
            return
        self.said = now
        if not self.live:
            print("  %d of %d tasks after %.0f s  %s" % (done, self.total, now - self.began, note), file=sys.stderr)
            return
        width = 34
        full = width * done // self.total
        print("\r\x1b[K  %s%s %d/%d  %.0f s  %s" % ("█" * full, "░" * (width - full), done, self.total, now - self.began, note),
              end="", file=sys.stderr, flush=True)

    def end(self):
        """Leave the line."""
        if self.live:
            print(file=sys.stderr)


def shell_tasks(pf, folder):
    """Hand in an awk for each of some images; gives the job and what each task must print."""
    images, labels = load_digits(return_X_y=True)
    images, labels = images[:SHELL_TASKS].astype(int), labels[:SHELL_TASKS]
    table = os.path.join(folder, "digits.txt")
    np.savetxt(table, np.column_stack([labels, images]), fmt="%d")
    program = 'NR == ENVIRON["PF_INDEX"] {for (i = 2; i <= NF; i++) {ink += $i; if ($i > 7) dark++}; printf "%d %d %d\\n", $1, ink, dark}'
    job = pf("submit", "--quiet", "--name", "ink", "--array", "1-%d" % SHELL_TASKS, "--", "awk", program, table).strip()
    expected = {"%s.%d" % (job, i + 1): "%d %d %d\n" % (labels[i], images[i].sum(), (images[i] > 7).sum()) for i in range(len(labels))}
    return job, expected


def work_to_the_end(pf, futures, job, total):
    """Wait for all with a progress bar. Gives when the last one had ended."""
    done = collections.Counter()
    lock = threading.Lock()

    def count(_future):
        with lock:
            done["python"] += 1

    for future in futures:
        future.add_done_callback(count)
    progress = Progress(total)
    try:
        while True:
            waiting = concurrent.futures.wait(futures, timeout=0.5).not_done
            if done["shell"] < SHELL_TASKS:
                counts = pf.job(job)["counts"]
                done["shell"] = counts["ok"] + counts["failed"] + counts["cancelled"]
            progress.show(done["python"] + done["shell"], "python %d, shell %d" % (done["python"], done["shell"]))
            if not waiting and done["shell"] >= SHELL_TASKS:
                return time.monotonic()
    finally:
        progress.end()


def check(pf, points, scores, expected):
    """What is wrong; nothing if all is there and right."""
    wrong = []
    for (model, settings), value in zip(points, scores):
        if not (isinstance(value, float) and 0.05 < value <= 1):
            wrong.append("%s %s: %r is no accuracy" % (*words(model, settings), value))
    for place in random.Random(7).sample(range(len(points)), RECOMPUTED):
        here = score(*points[place])
        if abs(here - scores[place]) > 1e-9:
            wrong.append("%s %s: %r there, %r here" % (*words(*points[place]), scores[place], here))
    with concurrent.futures.ThreadPoolExecutor(4) as readers:
        for task, printed in zip(expected, readers.map(lambda task: pf("logs", task), expected)):
            if printed != expected[task]:
                wrong.append("%s printed %r, not %r" % (task, printed, expected[task]))
    return wrong


def tell_best(points, scores):
    """The ranked table."""
    ranked = sorted(zip(scores, points), key=lambda pair: -pair[0])
    print("\n  %-4s %-9s %-34s %s" % ("rank", "accuracy", "model", "settings"))
    for rank, (value, point) in enumerate(ranked[:BEST_SHOWN], 1):
        print("  %-4d %-9.4f %-34s %s" % (rank, value, *words(*point)))
    print("  ... %d more, down to %.4f" % (len(ranked) - BEST_SHOWN, ranked[-1][0]))


def tell_time(summaries, workers, seconds):
    """Where the time went: waiting at the broker, on the way and waiting at the relay, at the manager, running."""
    def duration(us):
        return "%.2f s" % (us / 1e6) if us >= 1e6 else "%.1f ms" % (us / 1e3)

    print("\n  %-22s %6s %11s %11s %11s %11s   (mean of a task)" % ("where the time went", "tasks", "queued", "relay, wire", "held", "ran"))
    ran_us = 0
    for summary in summaries:
        times = summary["times"]
        count = max(times["tasks"], 1)
        ran_us += times["ran_us"]
        print("  %-22s %6d %11s %11s %11s %11s" % (
            "j%s %s" % (summary["job"], summary["name"]), times["tasks"],
            *(duration(times[key] / count) for key in ("queued_us", "transferred_us", "held_us", "ran_us"))))
    print("  %d workers were busy %.0f %% of %.1f s" % (workers, 100 * ran_us / 1e6 / (workers * seconds), seconds))


def demo(workers):
    """All of it; gives the exit code."""
    points = grid()
    print("%d points of a grid as Python tasks, %d shell tasks, %d workers" % (len(points), SHELL_TASKS, workers), file=sys.stderr)
    with pilotfish.Executor(workers=workers, name="sweep", env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}) as ex:
        pf = Pf(ex.folder)
        began = time.monotonic()
        futures = [ex.submit(score, model, settings) for model, settings in points]
        with tempfile.TemporaryDirectory(prefix="pf-demo-") as folder:
            job, expected = shell_tasks(pf, folder)
            ended = work_to_the_end(pf, futures, job, len(points) + SHELL_TASKS)
        scores = [future.result() for future in futures]
        sweep = futures[0].task.partition(".")[0]
        summaries = [pf.job(sweep), pf.job(job)]
        wrong = check(pf, points, scores, expected)
    tell_best(points, scores)
    tell_time(summaries, workers, ended - began)
    for summary, count in zip(summaries, (len(points), SHELL_TASKS)):
        if (summary["counts"]["ok"], summary["counts"]["total"], summary["times"]["tasks"]) != (count, count, count):
            wrong.append("j%s: %s of %d" % (summary["job"], summary["counts"], count))
    if wrong:
        print("\nWRONG, %d times:" % len(wrong), *wrong[:20], sep="\n  ", file=sys.stderr)
        return 1
    print("\n  all right: %d scores came, %d of them recomputed here alike; %d shell tasks printed what they must"
          % (len(scores), RECOMPUTED, len(expected)))
    return 0


def main():
    """Read the arguments; SIGTERM cleans up as Ctrl-C does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="as many as cores, if not said")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return demo(args.workers)
    except KeyboardInterrupt:
        print("\ninterrupted; nothing is left behind", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
