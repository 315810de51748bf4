"""The client against the real ``pf`` (PILOTFISH_PF): embedded, and with the user's daemon. Skipped loudly without it."""
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import unittest.mock
from concurrent.futures import CancelledError, as_completed
from typing import Any, Callable

import pilotfish

PF = os.environ.get("PILOTFISH_PF")
WAIT_S = 60.0
SKIP = "SKIPPED: the client was not tested against pf: PILOTFISH_PF is not set"
if not PF:
    print(SKIP, file=sys.stderr)


def wait_until(what: str, condition: Callable[[], Any]) -> Any:
    """Wait for a condition."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("waited in vain for " + what)


def touch_and_wait(noted: str, gate: str) -> int:
    """Notes that it runs, and ends when the gate is there."""
    import os
    import time
    with open(noted, "x"):
        pass
    while not os.path.exists(gate):
        time.sleep(0.01)
    return os.getpid()


@unittest.skipUnless(PF, SKIP)
class EmbeddedChainTest(unittest.TestCase):
    """``Executor()``: one chain for all tests of the class."""

    ex: pilotfish.Executor

    @classmethod
    def setUpClass(cls) -> None:
        cls.ex = pilotfish.Executor(workers=2)

    @classmethod
    def tearDownClass(cls) -> None:
        folder = cls.ex._client.embedded.dir  # type: ignore[union-attr]
        cls.ex.shutdown()
        assert not os.path.exists(folder)

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def test_ten_thousand_tasks(self) -> None:
        futures = [self.ex.submit(pow, i, 2) for i in range(10_000)]
        self.assertEqual([future.result(WAIT_S) for future in futures], [i * i for i in range(10_000)])
        self.assertEqual(sum(1 for _ in as_completed(futures)), 10_000)

    def test_map_in_chunks(self) -> None:
        self.assertEqual(list(self.ex.map(pow, range(100_000), [2] * 100_000)), [i * i for i in range(100_000)])
        results = self.ex.map(divmod, [7, 8, 9], [2, 0, 3], chunksize=3)
        self.assertEqual(next(results), (3, 1))
        with self.assertRaises(ZeroDivisionError) as caught:
            next(results)
        self.assertIn("ZeroDivisionError", str(caught.exception.__cause__))

    def test_functions_by_each_way(self) -> None:
        def local(x: int) -> int:
            return x + 1
        self.assertEqual(self.ex.with_options(by="source").submit(local, 1).result(WAIT_S), 2)
        self.assertEqual(self.ex.with_options(by="reference").submit(os.path.basename, "/a/b").result(WAIT_S), "b")
        try:
            import cloudpickle  # noqa: F401
        except ImportError:
            self.skipTest("cloudpickle is not installed")
        base = 5
        self.assertEqual(self.ex.with_options(by="cloudpickle").submit(lambda x: x + base, 1).result(WAIT_S), 6)

    def test_what_goes_wrong_in_a_task(self) -> None:
        submit = self.ex.with_options(by="source").submit

        def run(text: str) -> Any:
            scope: Any = {}
            exec(text, scope)
            return scope.get("value")
        left = submit(run, "import sys; sys.exit(3)").exception(WAIT_S)
        self.assertIsInstance(left, pilotfish.TaskExit)
        self.assertEqual(left.exit_code, 3)  # type: ignore[union-attr]
        self.assertIsInstance(submit(run, "f = lambda: f()\nf()").exception(WAIT_S), (RecursionError, NameError))
        self.assertIsInstance(submit(run, "import threading; value = threading.Lock()").exception(WAIT_S), pilotfish.TaskException)
        killed = submit(run, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)").exception(WAIT_S)
        self.assertIsInstance(killed, pilotfish.WorkerLost)
        self.assertEqual(killed.signal, signal.SIGKILL)  # type: ignore[union-attr]
        ended = submit(run, "import os; os._exit(9)").exception(WAIT_S)
        self.assertIsInstance(ended, pilotfish.WorkerLost)
        self.assertEqual(submit(run, "import subprocess; subprocess.Popen(['sleep', '600']); value = 1").result(WAIT_S), 1)
        self.assertEqual(submit(run, "print('talk'); value = 2").result(WAIT_S), 2)

    def test_large_arguments_and_results(self) -> None:
        submit = self.ex.with_options(by="source").submit

        def back(x: bytes) -> bytes:
            return x
        large = os.urandom(9 << 20)
        same = [submit(back, large) for _ in range(3)]
        others = [submit(back, os.urandom(200_000 + 40_000 * n)) for n in range(6)]
        self.assertTrue(all(future.result(WAIT_S) == large for future in same))
        self.assertEqual([len(future.result(WAIT_S)) for future in others], [200_000 + 40_000 * n for n in range(6)])
        self.assertEqual(submit(back, b"small").result(WAIT_S), b"small")

    def test_time_limit(self) -> None:
        error = self.ex.with_options(time_limit=0.2).submit(time.sleep, 600).exception(WAIT_S)
        self.assertIsInstance(error, pilotfish.TaskTimeLimit)

    def test_more_than_any_node_has_is_refused(self) -> None:
        wait_until("a manager", lambda: self.ex.submit(abs, -1).result(WAIT_S) == 1)
        error = self.ex.with_options(cores=100_000).submit(abs, 1).exception(WAIT_S)
        self.assertIsInstance(error, pilotfish.PilotfishError)
        self.assertIn("100000", str(error).replace(",", ""))

    def test_a_python_that_is_missing(self) -> None:
        error = self.ex.with_options(python="/nowhere/python3").submit(abs, 1).exception(WAIT_S)
        self.assertIsInstance(error, pilotfish.TaskRefused)
        self.assertIn("/nowhere/python3", str(error))

    def test_cancel_and_kill(self) -> None:
        gate = os.path.join(self.folder, "gate")
        runs = [os.path.join(self.folder, "r%d" % i) for i in range(400)]
        futures = [self.ex.submit(touch_and_wait, path, gate) for path in runs]
        wait_until("two tasks to run", lambda: all(map(os.path.exists, runs[:2])))
        self.assertFalse(futures[0].cancel())
        futures[0].kill()
        with self.assertRaises(CancelledError):
            futures[0].result(WAIT_S)
        with open(gate, "w"):
            pass
        cancelled = [future.cancel() for future in futures[300:]]
        for future, was in zip(futures[300:], cancelled):
            if was:
                with self.assertRaises(CancelledError):
                    future.result(WAIT_S)
            else:
                future.result(WAIT_S)
        ran = {path for path in runs if os.path.exists(path)}
        self.assertFalse(ran & {path for path, was in zip(runs[300:], cancelled) if was})
        # None may outlive the folder with the gate: it would wait for ever.
        for future in futures[1:300]:
            future.result(WAIT_S)

    def test_retries(self) -> None:
        noted = os.path.join(self.folder, "n")

        def fails_once(path: str) -> str:
            import os
            if not os.path.exists(path):
                open(path, "w").close()
                raise OSError("the first time")
            return "well"
        self.assertEqual(self.ex.with_options(retries=1, by="source").submit(fails_once, noted).result(WAIT_S), "well")


@unittest.skipUnless(PF, SKIP)
class DaemonTest(unittest.TestCase):
    """The user's daemon, started by the client."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="pf-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        root = os.path.join(folder.name, "root")
        patch = unittest.mock.patch.dict(os.environ, PILOTFISH_DIR=root, HOME=folder.name)
        patch.start()
        self.addCleanup(patch.stop)
        self.addCleanup(self.pf, "broker", "stop")
        self.addCleanup(self.pf, "endpoint", "stop", "--kill", "local")

    def pf(self, *args: str) -> str:
        """Run pf."""
        return subprocess.run([str(PF)] + list(args), check=True, stdout=subprocess.PIPE, universal_newlines=True, timeout=60).stdout

    def executor(self) -> pilotfish.Executor:
        """On the default endpoint."""
        # The daemon does not know our folder: the functions of this module are imported from there.
        here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        return pilotfish.Executor("local", python=sys.executable, env={"PYTHONPATH": here})

    def broker_pid(self) -> int:
        """Of the daemon."""
        import json
        return int(json.loads(self.pf("broker", "status", "--json"))["pid"])

    def test_it_is_started_and_attach_finds_the_job_again(self) -> None:
        ex = self.executor()
        first = ex.submit(pow, 2, 10)
        self.assertEqual(first.result(WAIT_S), 1024)
        chunks = ex.map(pow, range(10), [2] * 10, chunksize=4)
        self.assertEqual(list(chunks), [i * i for i in range(10)])
        job = str(first.task).split(".")[0]
        ex.shutdown()
        with self.executor() as again:
            self.assertEqual([future.result(WAIT_S) for future in again.attach(job)], [1024])

    def test_the_broker_is_killed_while_work_runs(self) -> None:
        gate = os.path.join(self.folder, "gate")
        noted = [os.path.join(self.folder, "n%d" % i) for i in range(3)]
        with self.executor() as ex:
            futures = [ex.submit(touch_and_wait, path, gate) for path in noted]
            wait_until("a task to run", lambda: os.path.exists(noted[0]))
            os.kill(self.broker_pid(), signal.SIGKILL)
            more = [ex.submit(abs, -i) for i in range(100)]
            self.pf("broker", "start", "--quiet")
            with open(gate, "w"):
                pass
            self.assertEqual([future.result(WAIT_S) for future in more], list(range(100)))
            for future in futures:
                self.assertGreater(future.result(WAIT_S), 0)

    def test_an_unknown_endpoint(self) -> None:
        self.executor().shutdown()
        with self.assertRaisesRegex(pilotfish.ApiError, "nowhere"):
            pilotfish.Executor("nowhere")


if __name__ == "__main__":
    unittest.main()
