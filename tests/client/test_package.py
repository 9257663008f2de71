"""The package by itself: installed where nothing else is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.conftest import KEY
from tests.service.api.clients import SUM
from tests.service.api.processes import Served

CLIENT = Path(__file__).parents[2] / "client"
USE = """
import json, sys
from carousel_client import Client

with Client(sys.argv[1], api_key=sys.argv[2]) as client, client.model(sys.argv[3]).stream() as stream:
    step = stream.step("installed", [[1, 2]]).step
    stream.delete("installed")
print(json.dumps({"step": step, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def _run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, check=False)
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command[:4]))}: {done.stderr[-800:]}")
    return done.stdout


@pytest.mark.fetch
def test_it_installs_with_httpx_websockets_and_numpy_alone(served: Served, tmp_path: Path) -> None:
    _run(sys.executable, "-m", "venv", "--without-pip", "fresh", folder=tmp_path)
    python = tmp_path / "fresh" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    shutil.copytree(CLIENT, tmp_path / "client", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    _run(*pip, "install", "--quiet", "--no-compile", "./client", folder=tmp_path)
    listed = json.loads(_run(*pip, "list", "--format=json", folder=tmp_path))
    found = {package["name"].lower() for package in listed}
    theirs = {"anyio", "certifi", "h11", "httpcore", "idna", "typing-extensions", "typing_extensions", "sniffio"}
    assert found - theirs == {"carousel-client", "httpx", "websockets", "numpy"}
    told = json.loads(_run(python, "-I", "-c", USE, served.address, KEY, SUM, folder=tmp_path))
    assert told["step"] == 1
    assert not {"service", "models", "export", "onnxruntime", "fastapi", "starlette"} & set(told["modules"])
    assert list((tmp_path / "fresh" / "lib").rglob("carousel_client/py.typed"))
