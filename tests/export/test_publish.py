"""Publishing, with real processes: a reader never sees half a model, and no two publishers get one number."""

import multiprocessing
import os
from pathlib import Path

import pytest

from export import publish as publishing
from export.publish import PublishError, check_writable, publish

SIZE = 400_000
PROCESSES, EACH = 4, 12


def model_bytes(mark):
    return bytes([mark]) * SIZE


def publish_many(repository, mark, start, results):
    start.wait()
    for _ in range(EACH):
        results.put((mark, publish(repository, "model", model_bytes(mark)).name))


def read_until(repository, done, faults):
    """Every number that is there must hold one whole model, at every look."""
    looks = 0
    while not done.is_set():
        for version in (Path(repository) / "model").glob("[0-9]*"):
            data = (version / "model.onnx").read_bytes()
            looks += 1
            if len(data) != SIZE or data != data[:1] * SIZE:
                faults.put(str(version))
                return
    faults.put(None if looks else "never saw a model")


def test_concurrent_publishers_and_a_reader(tmp_path):
    context = multiprocessing.get_context("spawn")  # a fork would carry the test's threads along
    start, done = context.Event(), context.Event()
    results, faults = context.Queue(), context.Queue()
    reader = context.Process(target=read_until, args=(tmp_path, done, faults))
    writers = [context.Process(target=publish_many, args=(tmp_path, mark, start, results)) for mark in range(PROCESSES)]
    for process in [reader, *writers]:
        process.start()
    start.set()
    published = [results.get(timeout=60) for _ in range(PROCESSES * EACH)]
    for process in writers:
        process.join(60)
    done.set()
    assert faults.get(timeout=60) is None
    reader.join(60)
    assert sorted(int(version) for _, version in published) == list(range(1, PROCESSES * EACH + 1))
    for mark, version in published:
        assert (tmp_path / "model" / version / "model.onnx").read_bytes() == model_bytes(mark)
    assert len(os.listdir(tmp_path / "model")) == PROCESSES * EACH


def test_versions_count_up_and_are_never_used_again(tmp_path):
    versions = [publish(tmp_path, "model", b"x") for _ in range(11)]
    assert [version.name for version in versions] == [str(number) for number in range(1, 12)]
    (versions[3] / "model.onnx").unlink()
    versions[3].rmdir()
    assert publish(tmp_path, "model", b"x").name == "12"


def test_a_number_taken_in_between_is_left_to_its_owner(tmp_path, monkeypatch):
    first = publish(tmp_path, "model", b"first")
    stale_looks = iter([1, 1, 2])
    monkeypatch.setattr(publishing, "next_version", lambda folder: next(stale_looks))
    assert publish(tmp_path, "model", b"second").name == "2"
    assert (first / "model.onnx").read_bytes() == b"first"


def test_what_is_no_version_is_left_alone(tmp_path):
    for name in ("notes", "007", ".publishing-killed"):
        (tmp_path / "model" / name).mkdir(parents=True)
    assert publish(tmp_path, "model", b"x").name == "1"


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing.os, "fsync", full_disk)
    with pytest.raises(PublishError, match="No space left"):
        publish(tmp_path, "model", b"x")
    assert os.listdir(tmp_path / "model") == []


def test_another_user_may_read_it(tmp_path):
    version = publish(tmp_path, "model", b"x")
    assert version.stat().st_mode & 0o755 == 0o755
    assert (version / "model.onnx").stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a b", "x" * 129])
def test_a_name_the_service_would_not_find_is_refused(tmp_path, name):
    for refused in (lambda: publish(tmp_path, name, b"x"), lambda: check_writable(tmp_path, name)):
        with pytest.raises(PublishError, match="model name"):
            refused()
    assert not list(tmp_path.iterdir())


def test_a_repository_that_is_a_file_is_refused_before_and_after(tmp_path):
    repository = tmp_path / "repository"
    repository.write_text("")
    for refused in (lambda: publish(repository, "model", b"x"), lambda: check_writable(repository, "model")):
        with pytest.raises(PublishError, match="cannot write to"):
            refused()
