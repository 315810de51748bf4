"""A sweep over models and settings on the digits data, and a few hundred shell tasks beside it. Called by scripts/demo.

Nothing is configured: Executor() and `pf run` each bring broker, relay and workers of their own and take them away again.
"""
import json
import os
import subprocess
import sys
import time
from concurrent.futures import as_completed

# Each worker has one core; a library that starts threads for all of them would only get in its own way.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")

from pilotfish import Executor  # noqa: E402
from pilotfish._daemon import find_pf  # noqa: E402

SHELL_TASKS = 300
SAMPLE = 12  # results that are computed again here, to be compared
BAR = 40


def grid():
    """Every point of the sweep: model and settings."""
    points = [("naive Bayes", {"var_smoothing": 10.0 ** -e}) for e in range(1, 11)]
    points += [("ridge", {"alpha": 10.0 ** (e / 2)}) for e in range(-6, 8)]
    points += [("nearest neighbours", {"n_neighbors": k, "weights": w, "p": p})
               for k in (1, 2, 3, 5, 7, 10, 15, 20) for w in ("uniform", "distance") for p in (1, 2)]
    points += [("decision tree", {"max_depth": d, "min_samples_leaf": m, "criterion": c})
               for d in (4, 6, 8, 10, 14, 18, None) for m in (1, 2, 4, 8, 16) for c in ("gini", "entropy")]
    points += [("support vectors", {"C": 10.0 ** c, "gamma": 10.0 ** g}) for c in range(-1, 5) for g in range(-6, 1)]
    points += [("linear discriminants", {"solver": "lsqr", "shrinkage": s / 20}) for s in range(1, 21)]
    points += [("nearest centroid", {"shrink_threshold": s / 4}) for s in range(1, 16)]
    return points


def score(model, settings):
    """Mean accuracy of three-fold cross-validation on 600 of the 1,797 digits. Runs on a worker."""
    from sklearn.datasets import load_digits
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import cross_val_score
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
    from sklearn.svm import SVC
    from sklearn.tree import DecisionTreeClassifier
    models = {"naive Bayes": GaussianNB, "ridge": RidgeClassifier, "nearest neighbours": KNeighborsClassifier,
              "decision tree": DecisionTreeClassifier, "support vectors": SVC, "linear discriminants": LinearDiscriminantAnalysis,
              "nearest centroid": NearestCentroid}
    if model == "decision tree":
        settings = dict(settings, random_state=0)
    pixels, digits = load_digits(return_X_y=True)
    return float(cross_val_score(models[model](**settings), pixels[:600], digits[:600], cv=3).mean())


def progress(done, total):
    if sys.stderr.isatty():
        filled = BAR * done // total
        sys.stderr.write("\r[%s%s] %d/%d" % ("#" * filled, "." * (BAR - filled), done, total) + ("\n" if done == total else ""))
        sys.stderr.flush()
    elif done == total or done * 4 // total != (done - 1) * 4 // total:
        print("%d of %d points" % (done, total), file=sys.stderr)


def start_shell_tasks(pf):
    """A few hundred commands, run by `pf run`, whose output is checked at the end."""
    command = [pf, "run", "--array", "1-%d" % SHELL_TASKS, "--", "sh", "-c", "echo $(({index} * {index}))"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def where_time_went(pf, folder):
    """Sums over the tasks of the sweep, in seconds, as the broker has them."""
    listed = subprocess.run([pf, "job", "list", "--json"], env=dict(os.environ, PILOTFISH_DIR=folder), stdout=subprocess.PIPE,
                            check=True, text=True)
    jobs = [json.loads(line) for line in listed.stdout.splitlines()]
    return {key: sum(job["times"][key] for job in jobs) / 1e6 for key in ("queued_us", "transferred_us", "held_us", "ran_us")}


def wrong(points, scores):
    """Points whose result is missing, or is not what this process computes."""
    bad = [point for point in points if not isinstance(scores.get(repr(point)), float)]
    for point in points[::len(points) // SAMPLE]:
        if point not in bad and abs(scores[repr(point)] - score(*point)) > 1e-9:
            bad.append(point)
    return bad


def report(points, scores, times, workers, seconds):
    print("\n%-22s %-60s %s" % ("MODEL", "SETTINGS", "ACCURACY"))
    for model, settings in sorted(points, key=lambda point: -scores[repr(point)])[:15]:
        shown = ", ".join("%s=%s" % item for item in settings.items())
        print("%-22s %-60s %.4f" % (model, shown, scores[repr((model, settings))]))
    each = {key: total / len(points) for key, total in times.items()}
    print("\n%d points on %d workers in %.1f s: workers busy %.0f %%" % (
        len(points), workers, seconds, 100 * times["ran_us"] / (workers * seconds)))
    print("a point on average: queued %.3f s, transferred %.3f s, held %.3f s, ran %.3f s" % (
        each["queued_us"], each["transferred_us"], each["held_us"], each["ran_us"]))


def main():
    pf, points, scores = find_pf(), grid(), {}
    workers = len(os.sched_getaffinity(0))
    print("%d points on %d workers, and %d shell tasks beside them" % (len(points), workers, SHELL_TASKS), file=sys.stderr)
    shell = start_shell_tasks(pf)
    with Executor() as executor:
        began = time.monotonic()
        futures = {executor.submit(score, *point): point for point in points}
        for done, future in enumerate(as_completed(futures), 1):
            scores[repr(futures[future])] = future.result()
            progress(done, len(points))
        seconds = time.monotonic() - began
        times = where_time_went(pf, executor.folder)
    out, talk = shell.communicate()
    print(talk.strip(), file=sys.stderr)

    bad = wrong(points, scores)
    if bad:
        print("wrong or missing: %s" % bad, file=sys.stderr)
        return 1
    report(points, scores, times, workers, seconds)
    expected = sorted(n * n for n in range(1, SHELL_TASKS + 1))
    if shell.returncode or sorted(int(line) for line in out.splitlines()) != expected:
        print("the shell tasks are not right: exit code %s, %d lines" % (shell.returncode, len(out.splitlines())), file=sys.stderr)
        return 1
    print("all %d points and %d shell tasks are there and right" % (len(points), SHELL_TASKS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
