"""The embedded chain's life, with a stand-in for ``pf``: start, end, failure, interpreter exit."""
import gc
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest
import unittest.mock
from typing import Any

import pilotfish

HERE = os.path.dirname(os.path.abspath(__file__))
FAKE_PF = os.path.join(HERE, "fake_pf.py")


def read(path: str) -> str:
    """A small file."""
    with open(path) as file:
        return file.read()


class EmbeddedTest(unittest.TestCase):
    """``Executor()`` with no endpoint."""

    def setUp(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="pf-")
        self.addCleanup(self.folder.cleanup)
        patch = unittest.mock.patch.dict(os.environ, PILOTFISH_PF=FAKE_PF, TMPDIR=self.folder.name)
        patch.start()
        self.addCleanup(patch.stop)
        tempfile.tempdir = None
        self.addCleanup(setattr, tempfile, "tempdir", None)

    def script(self, text: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """Run a client script to its end."""
        return subprocess.run([sys.executable, "-c", textwrap.dedent(text)], env=dict(os.environ, PYTHONPATH=os.path.dirname(HERE), **env),
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=60)

    def assert_nothing_is_left(self) -> None:
        """No folder of an embedded chain."""
        self.assertEqual(os.listdir(self.folder.name), [])

    def test_it_runs_and_leaves_nothing(self) -> None:
        with pilotfish.Executor(workers=2) as ex:
            self.assertEqual(ex.submit(abs, -4).result(20), 4)
            process = ex._client.embedded.process  # type: ignore[union-attr]
        self.assertEqual(process.returncode, 0)
        self.assert_nothing_is_left()

    def test_a_start_that_fails_says_why(self) -> None:
        with unittest.mock.patch.dict(os.environ, FAKE_PF_FAILS="1"):
            with self.assertRaisesRegex(pilotfish.ExecutorBroken, "no disk today"):
                pilotfish.Executor()
        with unittest.mock.patch.dict(os.environ, PILOTFISH_PF="/nowhere/pf"):
            with self.assertRaisesRegex(pilotfish.PilotfishError, "/nowhere/pf"):
                pilotfish.Executor()
        self.assert_nothing_is_left()

    def test_its_death_breaks_the_executor(self) -> None:
        ex = pilotfish.Executor(workers=1)
        ex.submit(abs, -4).result(20)
        embedded: Any = ex._client.embedded
        embedded.process.send_signal(signal.SIGSTOP)
        waiting = ex.submit(abs, -5)
        embedded.process.kill()
        self.assertIsInstance(waiting.exception(20), pilotfish.ExecutorBroken)
        with self.assertRaises(pilotfish.ExecutorBroken):
            ex.submit(abs, 1)
        ex.shutdown()
        self.assert_nothing_is_left()

    def test_the_interpreter_waits_for_the_work(self) -> None:
        done = self.script("""
            from pilotfish import Executor
            ex = Executor(workers=1)
            ex.submit(abs, -7).add_done_callback(lambda f: print("done", f.result(), flush=True))
            ex.shutdown(wait=False)
            Executor(workers=1).submit(abs, -8).add_done_callback(lambda f: print("done", f.result(), flush=True))
            """)
        self.assertEqual((sorted(done.stdout.split("\n")), done.stderr, done.returncode), (["", "done 7", "done 8"], "", 0))
        self.assert_nothing_is_left()

    def test_a_dropped_executor_ends_when_its_work_is_done(self) -> None:
        for shut_down in (False, True):
            ex = pilotfish.Executor(workers=1)
            process = ex._client.embedded.process  # type: ignore[union-attr]
            view = ex.with_options(name="view")
            if shut_down:
                future = view.submit(abs, -3)
                ex.shutdown(wait=False)
            del ex
            gc.collect()
            if not shut_down:
                future = view.submit(abs, -3)  # a view is enough to hold it
            del view
            gc.collect()
            self.assertEqual(future.result(20), 3)
            del future
            self.assertEqual(process.wait(20), 0)
            while os.listdir(self.folder.name):
                time.sleep(0.01)

    def test_an_interrupt_ends_it_at_once(self) -> None:
        done = self.script("""
            import time
            from pilotfish import Executor
            with Executor(workers=1) as ex:
                futures = [ex.submit(time.sleep, 600) for _ in range(3)]
                raise KeyboardInterrupt
            """)
        self.assertIn("KeyboardInterrupt", done.stderr)
        self.assert_nothing_is_left()

    def test_it_ends_with_a_client_that_is_killed(self) -> None:
        done = self.script("""
            import os, signal, time
            from pilotfish import Executor
            ex = Executor(workers=1)
            print(ex._client.embedded.process.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
            """)
        path = "/proc/%d/stat" % int(done.stdout)
        while os.path.exists(path) and read(path).rsplit(")", 1)[1].split()[0] != "Z":
            pass

    def test_modules_beside_the_script_are_found(self) -> None:
        with tempfile.TemporaryDirectory() as beside:
            with open(os.path.join(beside, "beside_the_script.py"), "w") as module:
                module.write("def f(x):\n    return x + 1\n")
            with open(os.path.join(beside, "script.py"), "w") as script:
                script.write("import beside_the_script as m\nfrom pilotfish import Executor\n"
                             "with Executor(workers=1, by='reference') as ex: print(ex.submit(m.f, 1).result(20))\n")
            done = subprocess.run([sys.executable, script.name], env=dict(os.environ, PYTHONPATH=os.path.dirname(HERE)),
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        self.assertEqual((done.stdout, done.stderr), (b"2\n", b""))


if __name__ == "__main__":
    unittest.main()
