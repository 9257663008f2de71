"""The examples of client/README.md, run as they stand there against a server with the bundled models."""

from __future__ import annotations

import doctest
from pathlib import Path

from tests.service.api.processes import serve

ROOT = Path(__file__).parents[2]


def test_examples_do_what_they_show() -> None:
    text = (ROOT / "client" / "README.md").read_text()
    with serve(ROOT / "model_repository") as served:
        text = text.replace("http://127.0.0.1:8000", served.address)
        examples = doctest.DocTestParser().get_doctest(text, {}, "README", "client/README.md", 0)
        assert len(examples.examples) > 20
        told: list[str] = []
        runner = doctest.DocTestRunner(verbose=False)
        runner.run(examples, out=told.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(told)
