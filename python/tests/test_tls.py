"""A broker elsewhere: TLS with its pinned certificate, and a token."""
import os
import shutil
import ssl
import subprocess
import tempfile
import unittest
import unittest.mock
from typing import Any

import pilotfish

from .fake_broker import FakeBroker

OPENSSL = shutil.which("openssl")


@unittest.skipIf(OPENSSL is None, "openssl is not installed: no certificate to test with")
class TlsTest(unittest.TestCase):
    """The fake broker on 127.0.0.1 with a certificate of its own."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.config = os.path.join(folder.name, "pilotfish")
        os.makedirs(self.config)
        self.certificate(os.path.join(self.config, "broker.crt"), os.path.join(folder.name, "key"))
        with open(os.path.join(self.config, "token"), "w") as file:
            file.write("pft_abc\n")
        os.chmod(file.name, 0o600)
        self.broker = FakeBroker(os.path.join(folder.name, "broker.sock"))
        self.addCleanup(self.broker.close)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(os.path.join(self.config, "broker.crt"), os.path.join(folder.name, "key"))
        self.url = "https://127.0.0.1:%d" % self.broker.start_tls(context, "Bearer pft_abc")
        patch = unittest.mock.patch.dict(os.environ, XDG_CONFIG_HOME=folder.name)
        patch.start()
        self.addCleanup(patch.stop)
        os.environ.pop("PILOTFISH_DIR", None)
        os.environ.pop("PILOTFISH_TOKEN", None)

    def certificate(self, certificate: str, key: str) -> None:
        """A self-signed certificate."""
        subprocess.run([str(OPENSSL), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                        "-subj", "/CN=elsewhere", "-keyout", key, "-out", certificate], check=True, stderr=subprocess.DEVNULL)

    def executor(self, **options: Any) -> pilotfish.Executor:
        """An executor over TLS."""
        return pilotfish.Executor("here", broker=self.url, trust_results=True, **options)

    def test_it_works_and_says_the_token(self) -> None:
        with self.executor() as ex:
            self.assertEqual([f.result(20) for f in [ex.submit(abs, -i) for i in range(50)]], list(range(50)))

    def test_another_certificate_and_another_token_are_refused(self) -> None:
        with unittest.mock.patch.dict(os.environ, PILOTFISH_TOKEN="pft_other"):
            with self.assertRaisesRegex(pilotfish.ApiError, "token"):
                self.executor()
        self.certificate(os.path.join(self.config, "broker.crt"), os.path.join(self.config, "key"))
        with self.assertRaisesRegex(OSError, "certificate"):
            self.executor()

    def test_an_open_token_file_is_refused(self) -> None:
        os.chmod(os.path.join(self.config, "token"), 0o644)
        with self.assertRaisesRegex(pilotfish.PilotfishError, "open to others"):
            self.executor()


if __name__ == "__main__":
    unittest.main()
