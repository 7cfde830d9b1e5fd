"""The measurements over Kafka, with few messages: they do all of the work, and say what they are to say."""

import re
import subprocess
import sys

import click
import numpy as np
import pytest
from millstream.benchmarks.kafka_latency import Stream, result_of
from servers.kafka import kafka_broker

kafka = kafka_broker()

RATES = [r"plain +[\d,]+ messages/s +[\d,]+ a second of processor time",
         r"job   +[\d,]+ messages/s +[\d,]+ a second of processor time",
         r"job/plain +\d+\.\d\d +\d+\.\d\d"]  # fmt: skip

FEW = ("--messages", 2_000, "--partitions", 2, "--runs", 1)


def printed(name, *words):
    command = [sys.executable, "-m", f"millstream.benchmarks.{name}", *map(str, words)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.splitlines()


def check_rates(lines):
    assert lines[0] == "2,000 messages of 200 bytes, 2 partitions, best of 1"
    assert len(lines) == 1 + len(RATES)
    for line, expected in zip(lines[1:], RATES, strict=True):
        assert re.fullmatch(expected, line), line


def test_reading_is_printed_beside_the_plain_client(kafka):
    check_rates(printed("kafka_source", "--brokers", kafka.address, *FEW))


def test_copying_is_printed_beside_the_plain_client_and_copies_are_whole(kafka):
    before = set(kafka.admin.list_topics(timeout=10).topics)

    check_rates(printed("kafka_copy", "--brokers", kafka.address, *FEW))

    made = set(kafka.admin.list_topics(timeout=10).topics) - before
    source = next(topic for topic in made if re.fullmatch(r"millstream-benchmark-\w+", topic))
    whole = sorted(message.value() for message in kafka.consume(source))
    assert len(whole) == 2_000
    for copy in [f"{source}-{way}-{turn}" for way in ("plain", "job") for turn in (0, 1)]:
        assert sorted(message.value() for message in kafka.consume(copy)) == whole


def test_latencies_are_printed_beside_those_of_the_plain_client(kafka):
    few = ("--rate", 1_000, "--seconds", 0.5, "--warm", 0.2, "--partitions", 2, "--every", "50ms")

    first, *lines = printed("kafka_latency", "--brokers", kafka.address, *few)

    assert first == "1,000 events of 200 bytes a second, 0.5 s, 2 partitions, every 50ms"
    assert [line.split()[0] for line in lines] == ["plain", "job", "ratio"]
    for line in lines[:2]:
        shown = [float(number) for number in re.findall(r"(?:p\d\d|max) +([\d.]+) ms", line)]
        assert len(shown) == 4
        assert shown == sorted(shown)
        assert re.search(r" at [\d,]+ events/s, \d+\.\d\d s of processor time a second$", line)


STREAM = Stream("", "", "", partitions=1, rate=10, warm=0.2, seconds=0.3, every=0.1)


def seen(*numbers):
    """Events produced a millisecond apart, each visible after as many milliseconds as its number says."""
    return np.array([(n, n * 1_000_000, n * 2_000_000) for n in numbers], np.int64)


def test_only_events_after_the_first_ones_count_in_whatever_order_they_come():
    result = result_of(STREAM, seen(4, 0, 3, 1, 2), 0.5)

    assert [latency / 1e6 for latency in result.latencies] == [2, 3, 4]
    assert result.at(50) == 3
    assert result.rate == pytest.approx(1_000)
    assert result.cpu_s == 0.5


@pytest.mark.parametrize("numbers", [(0, 1, 2, 3), (0, 1, 2, 3, 3), (0, 1, 2, 3, 4, 4), (0, 1, 2, 3, 5)])
def test_events_that_are_lost_or_come_twice_are_no_result(numbers):
    with pytest.raises(click.ClickException, match="of 5 events not each one came once"):
        result_of(STREAM, seen(*numbers), 0.5)
