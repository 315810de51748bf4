"""The worker by its protocol: docs/worker-protocol.md, clause by clause."""
import hashlib
import os
import pickle
import signal
import struct
import sys
import tempfile
import time
import unittest

from .harness import ManagerEnd, Named, call

EXCEPTION, EXIT, REFUSED, TOO_LARGE, OTHER = 1, 2, 10, 11, 12


class WorkerTest(unittest.TestCase):
    """One fresh worker a test."""

    def setUp(self) -> None:
        self.m = ManagerEnd()
        self.addCleanup(self.m.close)

    def one(self, source: str, *args: object) -> object:
        """Run ``f`` of ``source`` once."""
        self.m.source(0, source)
        return self.m.run(call(*args))[0]

    def still_works(self) -> None:
        """The worker lives on and gives right answers."""
        self.m.source(9, "def f(a, b=0): return a + b")
        self.assertEqual(self.m.run(call(1, b=2), slot=9)[0].result(), 3)

    def test_hello_names_python_and_pid(self) -> None:
        self.assertEqual(self.m.hello["python"], "%d.%d.%d" % sys.version_info[:3])
        self.assertEqual(self.m.hello["pid"], self.m.process.pid)

    def test_values_come_in_order_and_none_is_empty(self) -> None:
        self.m.source(0, "def f(x, y=1): return None if x == 3 else x * y")
        rows = self.m.run(*[call(i, y=2) for i in range(6)])
        self.assertEqual([r.seq for r in rows], list(range(6)))
        self.assertEqual([r.result() for r in rows], [0, 2, 4, None, 8, 10])
        self.assertEqual(rows[3].value, b"")
        self.assertEqual(self.m.end(), 0)

    def test_reference_and_text_items(self) -> None:
        self.m.job(0, 1, b"os.path:basename")
        self.assertEqual(self.m.run(call("/a/b"), "/c/dé".encode())[1].result(), "dé")
        self.m.source(1, "def f(): return 'nothing'")
        self.assertEqual(self.m.run(b"", slot=1)[0].result(), "nothing")

    def test_exception_has_pickle_message_and_trimmed_traceback(self) -> None:
        row = self.one("def g(x):\n    raise KeyError(x)\ndef f(x):\n    return g(x)", "lost")
        self.assertEqual(row.status, EXCEPTION)
        self.assertIsInstance(row.result(), KeyError)
        self.assertEqual(row.error["message"], "KeyError: 'lost'")
        self.assertIn("raise KeyError(x)", row.error["traceback"])
        self.assertNotIn("worker.py", row.error["traceback"])
        self.still_works()

    def test_exceptions_that_cannot_be_pickled_or_shown(self) -> None:
        row = self.one("class E(Exception):\n def __str__(self): raise ValueError\n def __reduce__(self): raise ValueError\n"
                       "def f(): raise E('x')")
        self.assertEqual((row.status, row.value), (EXCEPTION, b""))
        self.assertIn("E", row.error["message"])
        self.assertIn("traceback", row.error)
        self.still_works()

    def test_what_is_no_utf_8_comes_as_text_that_every_reader_takes(self) -> None:
        row = self.one("import os\ndef f(): open(os.fsdecode(b'/none/\\xe9'))")
        self.assertEqual(row.status, EXCEPTION)
        for part in ("message", "traceback"):
            self.assertIn("\\udce9", row.error[part])
            row.error[part].encode()
        self.still_works()

    def test_unpicklable_result(self) -> None:
        row = self.one("import threading\ndef f(): return threading.Lock()")
        self.assertEqual(row.status, EXCEPTION)
        self.assertIn("cannot be pickled", row.error["message"])
        self.still_works()

    def test_exits_interrupts_and_recursion_leave_the_worker_alive(self) -> None:
        row = self.one("import sys\ndef f(): sys.exit(3)")
        self.assertEqual((row.status, row.error["exit"]), (EXIT, 3))
        row = self.one("import sys\ndef f(): sys.exit('no input')")
        self.assertEqual((row.status, row.error["exit"]), (EXIT, 1))
        self.assertIn("no input", row.error["message"])
        row = self.one("def f(): return f()")
        self.assertIsInstance(row.result(), RecursionError)
        row = self.one("import os, signal, time\ndef f():\n os.kill(os.getpid(), signal.SIGINT)\n time.sleep(60)")
        self.assertIsInstance(row.result(), KeyboardInterrupt)
        row = self.one("class B(BaseException): pass\ndef f(): raise B()")
        self.assertEqual(row.status, EXCEPTION)
        os.kill(self.m.process.pid, signal.SIGINT)  # between tasks: nobody's business
        self.still_works()

    def test_death_shows_by_markers(self) -> None:
        self.m.source(0, "import os\ndef f(i):\n print('at', i)\n if i == 2: os._exit(7)")
        self.m.tasks([call(i) for i in range(4)])
        self.assertEqual(self.m.wait(), 7)
        out = self.m.out()
        self.assertEqual(out[0], b"at 0\n")
        self.assertEqual(out[1], b"at 1\n")
        self.assertEqual(out[-1], b"at 2\n")
        self.assertNotIn(2, out)

    def test_output_is_split_by_task_also_of_children(self) -> None:
        self.m.source(0, "import os, sys\ndef f(i):\n print('py', i, end='')\n os.system('echo child')\n print('e', file=sys.stderr)")
        self.m.run(call(0), call(1))
        self.assertEqual(self.m.end(), 0)
        self.assertIn(b"child\n", self.m.out()[0])
        self.assertIn(b"py 1", self.m.out()[1])
        self.assertEqual(self.m.out(1)[1], b"e\n")

    def test_refusals_say_why(self) -> None:
        self.m.job(0, 1, b"no_such_module:f", name="no_such_module.f")
        row = self.m.run(call())[0]
        self.assertEqual(row.status, REFUSED)
        self.assertIn("no_such_module", row.error["message"])
        self.assertIn("PYTHONPATH", row.error["hint"])
        self.m.job(1, 2, b"garbage", client=(2, 7))
        row = self.m.run(call(), slot=1)[0]
        self.assertEqual(row.status, REFUSED)
        self.assertIn("Python 2.7", row.error["message"])
        self.assertIn("%d.%d" % sys.version_info[:2], row.error["message"])
        self.m.source(2, "def f(x): return x")
        row = self.m.run(b"\x80\x05garbage", slot=2)[0]
        self.assertEqual(row.status, REFUSED)
        self.assertIn("arguments", row.error["message"])
        self.m.source(3, "import sys\nsys.exit(1)")
        self.assertEqual(self.m.run(call(), slot=3)[0].status, REFUSED)
        self.still_works()

    def test_too_large(self) -> None:
        row = self.one("def f(n): return bytes(n)", 300 << 10)
        self.assertEqual((row.status, row.value), (TOO_LARGE, b""))
        self.assertIn("262144 are allowed", row.error["message"])
        self.assertEqual(len(self.m.run(call(200 << 10))[0].result()), 200 << 10)

    def test_many_answers_do_not_burst_a_frame(self) -> None:
        self.m.source(0, "def f(n): return bytes(n)")
        self.assertEqual([len(r.result()) for r in self.m.run(*[call(200 << 10)] * 100)], [200 << 10] * 100)

    def test_large_payloads_are_in_files(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            files = os.path.join(folder, "j7-")
            self.m.source(0, "def f(x): return x + b'!'", files=os.fsencode(files))
            item = call(bytes(400_000))
            hashed = hashlib.blake2b(item, digest_size=32)
            named = Named(hashed.digest() + struct.pack("<Q", len(item)))
            with open("%s%s.item" % (files, hashed.hexdigest()), "wb") as file:
                file.write(item)
            row, small = self.m.run(named, call(b"x"))
            self.assertEqual((row.status, small.result()), (0, b"x!"))
            self.assertIsInstance(row.value, Named)
            with open("%s%s.value" % (files, row.value[:32].hex()), "rb") as file:
                value = file.read()
            self.assertEqual(hashlib.blake2b(value, digest_size=32).digest() + struct.pack("<Q", len(value)), row.value)
            self.assertEqual(pickle.loads(value), bytes(400_000) + b"!")
            self.assertEqual(len(os.listdir(folder)), 2)

    def test_a_file_that_cannot_be_read_or_written_is_told(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            files = os.path.join(folder, "none", "j7-")
            self.m.source(0, "def f(n): return bytes(n)", files=os.fsencode(files))
            row, left = self.m.run(Named(bytes(40)), call(300_000))
            self.assertEqual(row.status, REFUSED)
            self.assertIn("cannot be read from", row.error["message"])
            self.assertEqual(left.status, OTHER)
            self.assertIn("cannot be written", left.error["message"])
            with open(os.path.join(folder, "j8-%s.item" % bytes(32).hex()), "wb") as file:
                file.write(b"cut")
            self.m.source(1, "def f(x): return x", files=os.fsencode(os.path.join(folder, "j8-")))
            row = self.m.run(Named(bytes(32) + struct.pack("<Q", 9)), slot=1)[0]
            self.assertEqual(row.status, REFUSED)
            self.assertIn("cut: 3 bytes", row.error["message"])

    def test_what_a_task_changes_is_put_back(self) -> None:
        self.m.source(0, "import os, signal, sys, io\ndef f():\n os.chdir('/')\n sys.stdout = io.StringIO()\n"
                         " signal.signal(signal.SIGTERM, signal.SIG_IGN)\n signal.signal(signal.SIGALRM, print); signal.alarm(1)")
        self.m.source(1, "import os, signal, sys\ndef f():\n print('seen')\n"
                         " return os.getcwd(), signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, signal.getitimer(0)[0]")
        self.m.run(call())
        self.assertEqual(self.m.run(call(), slot=1)[0].result(), (os.getcwd(), True, 0.0))
        self.m.source(2, "import signal\ndef f(): signal.alarm(1)")  # with no handler of its own
        self.m.run(call(), slot=2)
        self.assertEqual(self.m.run(call(), slot=1)[0].result(), (os.getcwd(), True, 0.0))
        self.m.end()
        self.assertEqual(self.m.out()[1], b"seen\n")

    def test_closed_streams_are_survived(self) -> None:
        for spoil in ("sys.stdout.close()", "sys.stderr.close()"):
            row = self.one("import sys, os\ndef f():\n %s" % spoil)
            self.assertEqual(row.status, 0, spoil)
            self.m.source(1, "def f(): print('well')")
            self.assertEqual(self.m.run(call(), slot=1)[0].status, 0, spoil)
        self.assertEqual(self.one("import os\ndef f(): os.close(1); os.close(2)").status, 0)
        self.still_works()
        self.assertEqual(self.m.end(), 0)
        self.assertIn(b"well\n", self.m.out()[1])

    def test_a_forked_child_that_returns_answers_nothing(self) -> None:
        row = self.one("import os\ndef f():\n pid = os.fork()\n if pid: os.waitpid(pid, 0)\n return pid")
        self.assertGreater(row.result(), 0)
        self.still_works()

    def test_children_and_threads_left_behind_do_not_hold_the_end(self) -> None:
        self.one("import threading, time\ndef f():\n threading.Thread(target=time.sleep, args=(600,)).start()")
        self.assertEqual(self.m.end(), 0)

    def test_tasks_are_taken_back(self) -> None:
        self.m.source(0, "import time\ndef f(path):\n import os\n while path and not os.path.exists(path): time.sleep(.002)")
        with tempfile.TemporaryDirectory() as folder:
            gate, began = os.path.join(folder, "gate"), os.path.join(folder, "began")
            self.m.source(1, "def f(path): open(path, 'w').close()")
            first, second = self.m.tasks([call(began)], slot=1), self.m.tasks([call(gate), call(None), call(None)])
            while not os.path.exists(began):
                time.sleep(.002)
            self.assertEqual([r.seq for r in self.m.answers(1)], first)
            back = self.m.take_back()
            self.assertEqual(back[-2:], second[1:])  # the first of them may just have begun, or not
            later = self.m.tasks([call(None)])
            with open(gate, "w"):
                pass
            told = [seq for seq in second + later if seq not in back]
            self.assertEqual([(r.seq, r.status) for r in self.m.answers(len(told))], [(seq, 0) for seq in told])
        self.still_works()

    def test_a_worker_that_waits_for_what_was_taken_back_ends(self) -> None:
        self.m.source(0, "import os, signal\ndef f(): os.kill(os.getpid(), signal.SIGSTOP)")
        seqs = self.m.tasks([call(), call(), call()])
        os.waitpid(self.m.process.pid, os.WUNTRACED)
        self.assertEqual(self.m.take_back(), seqs[1:])
        self.m.process.send_signal(signal.SIGCONT)
        self.assertEqual([r.seq for r in self.m.answers(1)], seqs[:1])
        self.assertEqual(self.m.end(), 0)

    def test_an_answer_does_not_wait_for_a_long_task_behind_it(self) -> None:
        self.m.source(0, "import time\ndef f(path):\n import os\n while path and not os.path.exists(path): time.sleep(.002)")
        with tempfile.TemporaryDirectory() as folder:
            gate = os.path.join(folder, "gate")
            self.m.run(call(None))
            self.m.tasks([call(None), call(None), call(gate)])
            self.m.answers(2)  # would hang if they waited
            with open(gate, "w"):
                pass
            self.m.answers(1)

    def test_the_end_of_the_manager_ends_a_running_task(self) -> None:
        self.m.source(0, "import time\ndef f(): time.sleep(600)")
        self.m.tasks([call()])
        began = time.monotonic()
        self.m.close()
        self.assertLess(time.monotonic() - began, 20)

    def test_wrong_version_and_garbage_end_the_worker_with_a_word(self) -> None:
        self.m.send(2, b"", version=9)
        self.assertEqual(self.m.wait(), 3)
        self.assertIn(b"version 9", self.m.out(1)[-1])
        other = ManagerEnd()
        other.data.sendall(struct.pack("<I", 1 << 30))
        self.assertEqual(other.wait(), 3)

    def test_environment_and_main_are_clean(self) -> None:
        self.m.source(0, "import os, sys\ndef f(): return 'PF_WORKER_FDS' in os.environ, "
                         "sorted(n for n in vars(sys.modules['__main__']) if not n.startswith('__'))")
        self.assertEqual(self.m.run(call())[0].result(), (False, []))

    def test_chunks(self) -> None:
        self.m.source(0, "def f(a, b=1):\n if a == 3: raise ValueError('three')\n if a == 5: raise StopIteration\n"
                         " if a == 6: return lambda: 0\n if a == 7: raise SystemExit(4)\n return a * b", chunked=True)
        first, second, third = self.m.run(pickle.dumps([range(3)]), pickle.dumps([[1, 2], [10, 20]]), pickle.dumps([range(9)]))
        self.assertEqual(first.result(), [0, 1, 2])
        self.assertEqual(second.result(), [10, 40])
        self.assertEqual(third.status, 0)
        values, errors = third.result()
        self.assertEqual(values[:3] + values[4:5] + values[8:], [0, 1, 2, 4, 8])
        self.assertEqual(len(values), 9)
        self.assertEqual(sorted(set(errors) - {6}), [3, 5, 7])
        self.assertIsInstance(pickle.loads(errors[3][1]), ValueError)
        self.assertEqual(errors[7][0], EXIT)
        self.assertEqual(self.m.run(pickle.dumps([]))[0].status, REFUSED)


if __name__ == "__main__":
    unittest.main()
