from __future__ import annotations

import shlex
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.__main__ import bind
from service.errors import SettingsInvalid
from service.settings import Settings
from tests.service.api.clients import LSTM, write_repository
from tests.service.api.processes import serve, start

PREDICT = b'{"sequences": [{"inputs": [[1, 2, 3]]}], "return_state": false}'


def open_call(address: str) -> socket.socket:
    """A call whose body is still under way."""
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST /v1/models/{LSTM}/predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(PREDICT)}\r\n\r\n"
    connection.sendall(head.encode() + PREDICT[:10])
    return connection


def test_the_banner_names_the_address_and_a_curl_line_that_works(repository: Path) -> None:
    with serve(repository) as served:
        assert httpx.get(served.banner[1].split()[1]).status_code == 200
        command = shlex.split(served.banner[2].split(maxsplit=1)[1])
        url = next(part for part in command if part.startswith("http://"))
        headers = dict([command[command.index("-H") + 1].split(": ")])
        answer = httpx.post(url, content=command[command.index("-d") + 1], headers=headers)
        assert answer.json()["sequences"][0]["steps"] == 1
        assert command[:2] == ["curl", "-s"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_call_end_while_readiness_is_503(repository: Path, number: int) -> None:
    with serve(repository) as served, open_call(served.address) as connection, httpx.Client() as client:
        ready = f"{served.address}/health/ready"
        # the server has read the open call's head by the time it answers a later one
        while (
            'carousel_http_requests_total{method="GET",route="/metrics"'
            not in client.get(f"{served.address}/metrics").text
        ):
            pass
        served.process.send_signal(number)
        while client.get(ready).status_code == 200:
            pass
        assert client.get(ready).json()["code"] == "draining"
        assert client.post(f"{served.address}/v1/models/{LSTM}/predict", content=PREDICT).status_code == 503
        connection.sendall(PREDICT[10:])
        received = b"".join(iter(lambda: connection.recv(65536), b""))
        assert received.startswith(b"HTTP/1.1 200 OK")
        assert served.process.wait(30) == 0


def test_a_call_that_takes_longer_than_the_drain_is_hung_up_on(repository: Path) -> None:
    with serve(repository, CAROUSEL_DRAIN_SECONDS="0.1") as served, open_call(served.address) as connection:
        httpx.get(f"{served.address}/health/live")  # by now the server has read the open call's head
        served.process.send_signal(signal.SIGTERM)
        _, logs = served.process.communicate(timeout=10)
        assert served.process.returncode == 0
        assert "Traceback" not in logs
        assert connection.recv(1) == b"", "nothing is told that might be taken for an answer"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"CAROUSEL_MODEL_REPOSITORY": "/no/such/folder"}, "CAROUSEL_MODEL_REPOSITORY=/no/such/folder"),
        ({"CAROUSEL_PORT": "many"}, "CAROUSEL_PORT"),
        ({"CAROUSEL_HOST": "0.0.0.0"}, "CAROUSEL_API_KEYS"),
        ({"CAROUSEL_PROVIDER": "cuda"}, "CUDA"),
    ],
)
def test_what_keeps_it_from_starting_is_one_clear_line(repository: Path, settings: dict[str, str], says: str) -> None:
    with start(repository, **settings) as process:
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == 2, complaint
    assert complaint.splitlines()[-1].startswith("carousel: ")
    assert says in complaint
    assert "Traceback" not in complaint


def test_a_misspelt_setting_is_named_at_the_start(tmp_path: Path) -> None:
    with start(tmp_path / "none", CAROUSEL_API_KEY="x") as process:
        _, logs = process.communicate(timeout=60)
    (line,) = [line for line in logs.splitlines() if "unknown_setting" in line]
    assert "variable=CAROUSEL_API_KEY" in line
    assert "nearest=CAROUSEL_API_KEYS" in line


def test_a_port_that_is_taken_is_named(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with start(repository, CAROUSEL_PORT=port) as process:
            _, complaint = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"127.0.0.1:{port} cannot be listened on" in complaint


def test_a_port_that_another_server_starts_on_is_taken(repository: Path) -> None:
    with bind(Settings(port=0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(SettingsInvalid, match=f"127.0.0.1:{port} cannot be listened on"):
            bind(Settings(port=port))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_models_load_is_obeyed(tmp_path: Path, number: int) -> None:
    write_repository(tmp_path)
    with start(tmp_path) as process:
        assert process.stderr is not None
        line = ""
        while "model_ready" not in line and "model_failed" not in line:  # one of several
            line = process.stderr.readline()
        process.send_signal(number)
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == 0, complaint
    assert "Traceback" not in complaint


def test_head_is_no_error(repository: Path) -> None:
    with serve(repository) as served:
        with httpx.Client() as client:
            for path in ("/health/live", "/v1/models", "/docs", "/nothing"):
                head, get = client.head(served.address + path), client.get(served.address + path)
                assert (head.status_code, head.content) == (get.status_code, b"")
                assert head.headers["content-length"] == str(len(get.content))
            page = client.get(f"{served.address}/metrics").text
        assert 'carousel_http_requests_total{method="HEAD",route="/v1/models",status="200"} 1.0' in page
        assert "internal_error" not in page
        served.process.send_signal(signal.SIGTERM)
        _, logs = served.process.communicate(timeout=60)
    assert "Traceback" not in logs


def test_logs_never_hold_payloads_or_keys(repository: Path) -> None:
    settings: dict[str, Any] = {"CAROUSEL_API_KEYS": "alice:alices-key", "CAROUSEL_LOG_FORMAT": "json"}
    with start(repository, CAROUSEL_LOG_LEVEL="debug", **settings) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[1]
        url = f"{address}/v1/models/{LSTM}/predict"
        for key in ("alices-key", "a-wrong-key"):
            httpx.post(url, content=PREDICT.replace(b"3", b"31415.5"), headers={"x-api-key": key})
        process.send_signal(signal.SIGTERM)
        _, logs = process.communicate(timeout=60)
    assert '"status": 200' in logs
    assert '"status": 401' in logs
    assert "31415" not in logs
    assert "-key" not in logs


def test_the_caller_gone_is_no_error(repository: Path) -> None:
    with serve(repository) as served:
        open_call(served.address).close()
        assert httpx.get(f"{served.address}/health/live").status_code == 200
        served.process.send_signal(signal.SIGTERM)
        _, logs = served.process.communicate(timeout=60)
        assert served.process.returncode == 0
        assert [line for line in logs.splitlines() if "model_failed" not in line] == []
