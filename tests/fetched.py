"""Models and recordings that others publish, fetched when a test needs them and kept in a folder outside this one.

They are not part of the project: their packages are asked for by name and version, with the ordinary clients.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import wave
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from numpy.typing import NDArray

CACHE = Path(os.environ.get("CAROUSEL_TEST_CACHE", "~/.cache/carousel-tests")).expanduser()
SECONDS = 300


def python_package(requirement: str) -> Path:
    """The files of a wheel, such as `silero-vad==6.2.3`."""
    return _kept(requirement.replace("==", "-"), lambda folder: _download_wheel(requirement, folder))


def debian_package(name: str) -> Path:
    """The files of a Debian package, unpacked and not installed."""
    return _kept(f"{name}.deb", lambda folder: _download_deb(name, folder))


def recording(path: Path) -> NDArray[np.float32]:
    """(samples,) from -1 to 1 of a file with one channel of 16 bits."""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return samples.astype(np.float32) / 32768


def _kept(name: str, fetch: Callable[[Path], None]) -> Path:
    """Fetched whole or not at all, whoever else fetches it at the same time."""
    kept = CACHE / name
    if kept.is_dir():
        return kept
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as unfinished:
        folder = Path(unfinished, "content")
        folder.mkdir()
        fetch(folder)
        try:
            folder.rename(kept)
        except OSError:
            assert kept.is_dir(), f"cannot keep {name} in {CACHE}"
    return kept


def _download_wheel(requirement: str, folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
    _run(requirement, [*pip, "--only-binary", ":all:", "--dest", str(folder), requirement])
    (wheel,) = folder.glob("*.whl")
    with ZipFile(wheel) as content:
        content.extractall(folder)
    wheel.unlink()


def _download_deb(name: str, folder: Path) -> None:
    if not shutil.which("apt-get"):
        pytest.fail(f"this test needs Debian's package {name}, and there is no apt-get here")
    download = ["apt-get", "--quiet", "-o", "APT::Sandbox::User=root", "download", name]
    if subprocess.run(download, cwd=folder, capture_output=True, timeout=SECONDS, check=False).returncode:
        _run(name, ["apt-get", "--quiet", "update"])  # a machine that is new has no list of packages
        _run(name, download, folder)
    (package,) = folder.glob("*.deb")
    _run(name, ["dpkg", "-x", str(package), str(folder)])
    package.unlink()


def _run(name: str, command: list[str], folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split())[-400:]
        pytest.fail(f"this test needs the package {name}, and it could not be had: {' '.join(command[:3])} said {said}")
