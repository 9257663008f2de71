"""The balancer's nginx before two servers, one of which is restarted under load."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from time import sleep

import httpx
import pytest

from tests.service import onnx_models
from tests.service.api.processes import ROOT, serve

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")
PATH = "/v1/models/running-sum/predict"
BODY = b'{"sequences": [{"inputs": [[1], [2]]}], "return_state": false}'
HEADERS = {"Content-Type": "application/json"}

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@contextmanager
def balancer(folder: Path, ports: list[int]) -> Iterator[str]:
    """nginx with the balancer's own configuration, but for where it listens and how it finds the replicas."""
    port, servers = free_port(), " ".join(f"server 127.0.0.1:{port} max_fails=0;" for port in ports)
    text = (ROOT / "balancer" / "nginx.conf").read_text()
    text, found = re.subn(r"resolver .*;", f"upstream replicas {{ {servers} }}", text)
    text = text.replace("http://replica:8000", "http://replicas").replace("listen 8080", f"listen 127.0.0.1:{port}")
    text = text.replace("/tmp/", f"{folder}/").replace("stderr warn", f"{folder}/log")
    (folder / "nginx.conf").write_text(text)
    assert found == 1
    with subprocess.Popen([str(NGINX), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]) as nginx:
        try:
            while not accepts(port):
                assert nginx.poll() is None, (folder / "log").read_text()
            yield f"127.0.0.1:{port}"
        finally:
            nginx.send_signal(signal.SIGTERM)


class Load:
    """Calls through the balancer without a pause, each checked."""

    def __init__(self, host: str) -> None:
        self.host, self.answered, self.over = host, 0, False

    def run(self) -> None:
        connection = HTTPConnection(self.host, timeout=30)
        while not self.over:
            connection.request("POST", PATH, BODY, HEADERS)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body
            assert json.loads(body)["sequences"][0]["outputs"] == [[1], [3]]
            self.answered += 1
        connection.close()

    def end(self) -> None:
        self.over = True

    def go_on(self, threads: list[Future[None]], calls: int = 50) -> None:
        """Wait for more answers."""
        until = self.answered + calls
        while self.answered < until and not any(thread.done() for thread in threads):
            sleep(0.005)


@contextmanager
def slow_call(address: str) -> Iterator[socket.socket]:
    """A call that the server has begun to read: it keeps it from leaving."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode())
        page = ""
        while 'route="/metrics"' not in page:  # a later call was answered, so this one is read
            page = httpx.get(f"{address}/metrics").text
        yield connection


def test_callers_notice_nothing_of_a_replica_that_is_restarted(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    onnx_models.running_sum(repository)
    ports = [free_port(), free_port()]
    with ExitStack() as stack:
        servers = [stack.enter_context(serve(repository, CAROUSEL_PORT=str(port))) for port in ports]
        load = Load(stack.enter_context(balancer(tmp_path, ports)))
        pool = stack.enter_context(ThreadPoolExecutor(4))
        stack.callback(load.end)
        threads = [pool.submit(load.run) for _ in range(4)]
        load.go_on(threads)
        with slow_call(servers[0].address) as connection:
            servers[0].process.send_signal(signal.SIGTERM)
            load.go_on(threads)  # it drains
            connection.sendall(BODY)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert servers[0].process.wait(30) == 0
        load.go_on(threads)  # it is away
        stack.enter_context(serve(repository, CAROUSEL_PORT=str(ports[0])))
        load.go_on(threads)  # its successor is there
        load.end()
        for thread in threads:
            thread.result(30)
