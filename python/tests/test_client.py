"""The client against a fake broker: what it promises, and what it does when connections break."""
import concurrent.futures
import functools
import os
import pickle
import sys
import tempfile
import threading
import unittest
import unittest.mock
from typing import Any, Callable, List

import pilotfish
from pilotfish import _functions
from pilotfish._codec import OutcomeReader, encode_tasks
from pilotfish._lane import to_ranges

from .fake_broker import FakeBroker, encode_outcomes

CLOUDPICKLE = _functions.cloudpickle


class ClientTest(unittest.TestCase):
    """One fake broker and one executor a test."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "broker.sock")
        self.broker = FakeBroker(self.path)
        self.addCleanup(self.broker.close)
        self.broker.start()
        patch = unittest.mock.patch.object(_functions, "cloudpickle", None)  # what is installed here must not matter
        patch.start()
        self.addCleanup(patch.stop)

    def executor(self, **options: Any) -> pilotfish.Executor:
        """An executor that is shut down at the end."""
        made = pilotfish.Executor("here", broker=self.path, **options)
        self.addCleanup(made.shutdown, wait=False)
        return made

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait for a state of the broker."""
        with self.broker.lock:
            self.assertTrue(self.broker.lock.wait_for(condition, 20))

    def test_submit_results_and_standard_helpers(self) -> None:
        def f(x: int, y: int = 1) -> int:
            return x * y
        with self.executor() as ex:
            futures = [ex.submit(f, i, y=3) for i in range(500)]
            self.assertEqual([future.result(20) for future in futures], [3 * i for i in range(500)])
            self.assertEqual(len(list(concurrent.futures.as_completed(futures))), 500)
            self.assertRegex(futures[7].task or "", r"^j1\.7$")
        self.assertEqual(self.broker.calls.count("PUT /v1/functions/ID"), 1)
        self.assertEqual(self.broker.calls.count("PUT /v1/jobs/ID"), 1)
        self.assertFalse(self.broker.jobs[1]["open"])
        self.assertLess(sum(call.endswith("/tasks") for call in self.broker.calls), 200)
        with self.assertRaises(RuntimeError):
            ex.submit(f, 1)

    def test_map_in_chunks_and_alone(self) -> None:
        def f(a: int, b: int) -> int:
            return a + b
        with self.executor() as ex:
            self.assertEqual(list(ex.map(f, range(5000), [1] * 5000)), [i + 1 for i in range(5000)])
            self.assertEqual(list(ex.map(f, iter([1, 2]), (3, 4, 5), chunksize=1)), [4, 6])
            self.assertEqual(list(ex.map(f, [], [])), [])
            self.assertEqual(list(ex.map(functools.partial(f, 10), range(3), chunksize=2)), [10, 11, 12])
            self.assertEqual(list(ex.map(functools.partial(int, base=2), ["1", "10", "11"], chunksize=2)), [1, 2, 3])
        self.assertEqual(self.broker.jobs[1]["count"], 1002)

    def test_large_chunks_are_halved_and_large_arguments_refused(self) -> None:
        with self.executor() as ex:
            self.assertEqual(list(ex.map(len, [bytes(300_000)] * 2 + [bytes(i) * 1000 for i in range(600)], chunksize=602))[:3],
                             [300_000, 300_000, 0])
            with self.assertRaises(pilotfish.PayloadTooLarge):
                ex.submit(len, bytes(9 << 20))

    def test_large_arguments_are_put_once_and_large_results_are_fetched(self) -> None:
        def back(x: bytes) -> bytes:
            return x
        large = os.urandom(1_000_000)
        with self.executor() as ex:
            futures = [ex.submit(back, large) for _ in range(3)] + [ex.submit(back, b"small")]
            self.assertEqual([future.result(20) for future in futures], [large] * 3 + [b"small"])
        puts = [c for c in self.broker.calls if c.startswith("PUT /v1/jobs/1/payloads")]
        self.assertEqual(len(puts), 1, puts)

    def test_a_broker_that_lost_a_payload_gets_it_again(self) -> None:
        with self.executor() as ex:
            large = os.urandom(1_000_000)
            self.assertEqual(ex.submit(len, large).result(20), 1_000_000)
            with self.broker.lock:
                self.broker.payloads.clear()
            self.assertEqual(ex.submit(len, large).result(20), 1_000_000)

    def test_a_result_that_is_gone_is_an_error(self) -> None:
        with self.executor() as ex:
            self.broker.forgets_values = True
            with self.assertRaises(pilotfish.ApiError):
                ex.submit(bytes, 400_000).result(20)
            self.assertEqual(ex.submit(abs, -1).result(20), 1)

    def test_exceptions_carry_the_remote_traceback(self) -> None:
        def f(x: int) -> float:
            return 1 / x

        def leave(code: int) -> None:
            import sys
            sys.exit(code)
        with self.executor() as ex:
            error = ex.submit(f, 0).exception(20)
            self.assertIsInstance(error, ZeroDivisionError)
            self.assertIn("return 1 / x", str(error.__cause__))
            left = ex.submit(leave, 4).exception(20)
            self.assertIsInstance(left, pilotfish.TaskExit)
            self.assertEqual((left.exit_code, left.node, left.kind), (4, "n1", "exit"))  # type: ignore[union-attr]
            self.assertIsInstance(pickle.loads(pickle.dumps(left)), pilotfish.TaskExit)
            results = ex.map(f, [2, 1, 0, 4], chunksize=4)
            self.assertEqual([next(results), next(results)], [0.5, 1.0])
            with self.assertRaises(ZeroDivisionError) as caught:
                next(results)
            self.assertIn("1 / x", str(caught.exception.__cause__))
            interrupted = ex.submit(exec, "raise KeyboardInterrupt").exception(20)
            self.assertIsInstance(interrupted, pilotfish.TaskException)

    def test_cancel_only_what_is_queued(self) -> None:
        with self.executor() as ex:
            self.broker.hold(True)
            futures = [ex.submit(abs, -i) for i in range(5)]
            self.wait_for(lambda: len(self.broker.queue) == 5)
            self.assertTrue(futures[3].cancel())
            self.assertTrue(futures[3].cancel())
            self.assertTrue(futures[3].cancelled())
            self.assertEqual(concurrent.futures.wait(futures, 0).done, {futures[3]})
            self.broker.hold(False)
            self.assertEqual(futures[4].result(20), 4)
            self.assertFalse(futures[4].cancel())
            with self.assertRaises(concurrent.futures.CancelledError):
                futures[3].result()

    def test_cancel_before_it_is_sent_and_at_shutdown(self) -> None:
        ex = self.executor()
        ex.submit(abs, 1).result(20)
        self.broker.stop()
        futures = [ex.submit(abs, -i) for i in range(3000)]
        self.assertTrue(futures[2999].cancel())
        self.broker.hold(True)
        self.broker.start()
        self.wait_for(lambda: len(self.broker.queue) == 2999)
        ex.shutdown(cancel_futures=True)
        self.assertTrue(all(future.cancelled() for future in futures))

    def test_stopping_a_map_early_cancels_the_rest(self) -> None:
        with self.executor() as ex:
            self.broker.hold(True)
            results = ex.map(abs, range(10), chunksize=1, timeout=0.05)
            with self.assertRaises(concurrent.futures.TimeoutError):
                next(results)
            self.wait_for(lambda: len(self.broker.queue) <= 1)
            self.broker.hold(False)

    def test_a_broker_that_restarts_is_found_again(self) -> None:
        with self.executor() as ex:
            self.assertEqual(ex.submit(abs, -1).result(20), 1)
            for _ in range(3):
                self.broker.stop()
                futures = [ex.submit(abs, -i) for i in range(50)]
                self.broker.start()
                self.assertEqual([future.result(20) for future in futures], list(range(50)))
        self.assertEqual(self.broker.jobs[1]["count"], 151)

    def test_an_append_without_an_answer_is_not_done_twice(self) -> None:
        with self.executor() as ex:
            self.broker.cut_after_append = 2
            self.assertEqual([f.result(20) for f in [ex.submit(abs, -i) for i in range(20)]], list(range(20)))
        self.assertEqual(self.broker.jobs[1]["count"], 20)
        self.assertEqual(len(self.broker.outcomes), 20)

    def test_a_broker_with_another_log(self) -> None:
        with self.executor() as ex:
            self.assertEqual(ex.submit(abs, -1).result(20), 1)
            self.broker.hold(True)
            lost = ex.submit(abs, -2)
            self.wait_for(lambda: len(self.broker.queue) == 1)
            self.broker.new_log()
            self.broker.hold(False)
            self.assertIsInstance(lost.exception(20), pilotfish.ExecutorBroken)
            self.assertIn("new log", str(lost.exception()))
            self.assertEqual(ex.submit(abs, -3).result(20), 3)

    def test_a_refused_job_fails_its_futures_and_no_others(self) -> None:
        with self.executor() as ex:
            self.broker.refuse_jobs = (422, {"code": "can_never_run", "message": "it asks for 99 cores, the node has 2",
                                             "hint": "ask for less", "retryable": False})
            error = ex.with_options(cores=99).submit(abs, 1).exception(20)
            self.assertIsInstance(error, pilotfish.ApiError)
            self.assertIn("99 cores", str(error))
            self.broker.refuse_jobs = None
            self.assertEqual(ex.submit(abs, -1).result(20), 1)

    def test_options_reach_the_job(self) -> None:
        with self.executor(time_limit=2.5) as ex:
            view = ex.with_options(cores=2, gpus=0.25, memory="2G", retries=2, name="sweep", env={"A": 1}, labels={"k": "v"})
            view.submit(abs, 1).result(20)
            spec = self.broker.jobs[1]["spec"]
            self.assertEqual(spec["resources"]["gpus_milli"], 250)
            self.assertEqual((spec["resources"]["cores"], spec["resources"]["memory_bytes"]), (2, 2 << 30))
            self.assertEqual((spec["time_limit_ms"], spec["max_attempts"], spec["name"]), (2500, 3, "sweep"))
            self.assertEqual((spec["env"]["vars"], spec["labels"], spec["endpoints"]), ({"A": "1"}, {"k": "v"}, ["here"]))
            with self.assertRaisesRegex(TypeError, "cpus"):
                ex.with_options(cpus=1)
            for wrong in ({"memory": "much"}, {"retries": -1}, {"on_lost": "cry"}, {"by": "mail"}, {"time_limit": 0}):
                with self.assertRaises(ValueError):
                    ex.with_options(**wrong)

    def test_a_long_name_of_a_function_is_cut(self) -> None:
        def f(x: int) -> int:
            return x
        f.__qualname__ = "x" * 300
        with self.executor() as ex:
            ex.submit(f, 1).result(20)
            self.assertEqual(len(self.broker.jobs[1]["spec"]["name"]), 200)

    def test_attach(self) -> None:
        def f(x: int) -> int:
            return x + 1
        first = self.executor()
        first.submit(f, 1).result(20)
        chunked = first.map(f, range(10), chunksize=3)
        next(chunked)
        with self.executor() as ex:
            again = ex.attach("j1")
            self.assertEqual([future.result(20) for future in again], [2])
            self.assertEqual(list(ex.attach(2).results()), list(range(1, 11)))
            self.assertFalse(self.broker.jobs[1]["open"])
            with self.assertRaisesRegex(pilotfish.ApiError, "j99"):
                ex.attach("j99")
            with self.assertRaises(ValueError):
                ex.attach("seven")

    def test_state_of_methods_and_callables_is_taken_at_submit(self) -> None:
        values: List[int] = []
        with self.executor() as ex:
            counts = []
            for i in range(3):
                values.append(5)
                counts.append(ex.submit(values.count, 5))
            self.assertEqual([future.result(20) for future in counts], [1, 2, 3])
            self.assertEqual(len(self.broker.jobs), 1)

    def test_clear_errors_before_anything_is_sent(self) -> None:
        with self.assertRaisesRegex(pilotfish.ApiError, "nowhere"):
            pilotfish.Executor("nowhere", broker=self.path)
        for odd in ("a b/c", "a\r\nX: y", "\u00e9"):
            with self.assertRaisesRegex(pilotfish.ApiError, "there is no endpoint"):
                pilotfish.Executor(odd, broker=self.path)
        with self.assertRaisesRegex(OSError, "no.sock"):
            pilotfish.Executor("here", broker=self.path + "no.sock")
        with self.assertRaisesRegex(ValueError, "workers"):
            pilotfish.Executor("here", broker=self.path, workers=3)
        with self.assertRaisesRegex(ValueError, "trust_results"):
            pilotfish.Executor("here", broker="https://h:1", **{}) if self.know_broker("h", 1) else None
        with self.executor() as ex:
            with self.assertRaises(TypeError):
                ex.submit("no function")  # type: ignore[arg-type]
            with self.assertRaises((TypeError, pickle.PicklingError)):
                ex.submit(abs, threading.Lock())
            local = 3
            with self.assertRaisesRegex(TypeError, "closure"):
                ex.submit(lambda: local)
            with self.assertRaises(ValueError):
                ex.map(abs, [1], chunksize=0)

    def know_broker(self, host: str, port: int) -> bool:
        """Put a certificate and a token where the client looks for them."""
        config = os.path.join(os.path.dirname(self.path), "config")
        folder = os.path.join(config, "pilotfish", "brokers", "%s_%d" % (host, port))
        os.makedirs(folder)
        for name in ("broker.crt", "token"):
            with open(os.path.join(folder, name), "w") as file:
                file.write("x")
            os.chmod(file.name, 0o600)
        old = os.environ.get("XDG_CONFIG_HOME")
        os.environ["XDG_CONFIG_HOME"] = config
        self.addCleanup(lambda: os.environ.pop("XDG_CONFIG_HOME") if old is None else os.environ.update(XDG_CONFIG_HOME=old))
        return True

    def test_a_forked_child_is_refused(self) -> None:
        ex = self.executor()
        ex.submit(abs, 1).result(20)
        pid = os.fork()
        if pid == 0:
            try:
                ex.submit(abs, 1)
            except RuntimeError as error:
                os._exit(0 if "fork" in str(error) else 2)
            os._exit(3)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        self.assertEqual(ex.submit(abs, -2).result(20), 2)

    def test_many_threads(self) -> None:
        with self.executor() as ex:
            def work(base: int) -> None:
                self.assertEqual([f.result(30) for f in [ex.submit(abs, -base - i) for i in range(300)]],
                                 [base + i for i in range(300)])
            threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(self.broker.jobs[1]["count"], 1800)
        self.assertEqual(len(self.broker.jobs), 1)

    def test_callbacks_may_submit(self) -> None:
        seen: "concurrent.futures.Future[int]" = concurrent.futures.Future()
        with self.executor() as ex:
            ex.submit(abs, -1).add_done_callback(
                lambda f: ex.submit(abs, -f.result() - 1).add_done_callback(lambda g: seen.set_result(g.result())))
            self.assertEqual(seen.result(20), 2)

    @unittest.skipIf(CLOUDPICKLE is None, "cloudpickle is not installed")
    def test_by_cloudpickle(self) -> None:
        base = 40
        with unittest.mock.patch.object(_functions, "cloudpickle", CLOUDPICKLE), self.executor() as ex:
            self.assertEqual(ex.submit(lambda x: base + x, 2).result(20), 42)
            self.assertEqual(list(ex.map(lambda x: base + x, range(3), chunksize=2)), [40, 41, 42])


class PartsTest(unittest.TestCase):
    """Parts that need no broker."""

    def test_ids_are_those_of_the_protocol(self) -> None:
        function = _functions.Function(_functions.REFERENCE, b"m:f", "f")
        self.assertEqual(function.id, "5f36c82691a31878679695fb8f0595b140875bd42c17138af2d3a38a3662915b")

    def test_by_reference_needs_a_name(self) -> None:
        self.assertEqual(_functions.encode(os.path.join, "reference").bytes, b"posixpath:join")
        with self.assertRaises(TypeError):
            _functions.encode(lambda: 0, "reference")

    def test_ranges(self) -> None:
        self.assertEqual(to_ranges([3, 1, 2, 7]), [[1, 3], [7, 1]])
        self.assertEqual(to_ranges([]), [])

    def test_columns(self) -> None:
        self.assertEqual(b"".join(encode_tasks([b"ab", b"", b"c"])),
                         b"PFT1\x03\0\0\0" + b"\x02\0\0\0\0\0\0\0\x01\0\0\0" + b"abc")
        data = encode_outcomes(7, 9, [(1, 2, 0, b"v", b""), (1, 3, 1, b"", b"{}")]) + encode_outcomes(7, 9, [])
        for size in (1, 7, len(data)):
            reader = OutcomeReader()
            frames = [f for at in range(0, len(data), size) for f in reader.feed(data[at:at + size])]
            self.assertEqual([len(f.jobs) for f in frames], [2, 0])
            self.assertEqual((frames[0].cursor, list(frames[0].indexes), bytes(frames[0].blob)), ("7-9", [2, 3], b"v{}"))
        for garbage in (b"GARBAGE!", b"PFO1\xff\xff\xff\xff", data[:4] + b"\x05\0\0\0" + data[8:]):
            with self.assertRaises(ValueError):
                list(OutcomeReader().feed(garbage))

    def test_versions_of_this_python(self) -> None:
        self.assertGreaterEqual(sys.version_info, (3, 8))


if __name__ == "__main__":
    unittest.main()
