"""Fail points: the n-th hit, and nothing before or after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from millstream.engine import failpoints
from millstream.engine.errors import JobError


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.disarm()


def test_only_the_nth_hit_raises() -> None:
    failpoints.arm("sink.commit=raise@3")
    outcomes = []
    for _ in range(5):
        try:
            failpoints.hit("sink.commit")
            outcomes.append("passed")
        except failpoints.FailpointError:
            outcomes.append("raised")
    assert outcomes == ["passed", "passed", "raised", "passed", "passed"]
    assert failpoints.hits("sink.commit") == 5


@pytest.mark.parametrize("text", ["nowhere=raise", "sink.commit=explode", "sink.commit=kill@soon"])
def test_a_wrong_word_is_refused(text: str) -> None:
    with pytest.raises(JobError, match="fail point"):
        failpoints.arm(text)


def test_kill_is_sigkill() -> None:
    code = "from millstream.engine.failpoints import hit; hit('store.begin'); hit('store.begin'); print('no')"
    environment = {**os.environ, failpoints.ENVIRONMENT: "store.begin=kill@2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert "no" not in done.stdout
