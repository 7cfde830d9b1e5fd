"""The measurements over PostgreSQL, with few rows: they do all of the work, and say what they are to say."""

import re

import click
import psycopg
import pytest
from click.testing import CliRunner
from millstream.benchmarks import postgres_changes, postgres_upsert
from millstream.benchmarks.postgres_upsert import Tables, orders
from servers.postgres import dsn

__all__ = ["dsn"]

RATE = r"{} +[\d,]+ rows/s +[\d,]+ a second of processor time"
RATIO = r"job/{} +\d+\.\d\d +\d+\.\d\d"


def test_upserts_and_appends_are_printed_beside_psycopg_alone(dsn):
    words = ["--dsn", dsn, "--rows", "600", "--runs", "1"]

    ended = CliRunner().invoke(postgres_upsert.main, words, catch_exceptions=False)

    assert ended.exit_code == 0, ended.output
    lines = ended.output.splitlines()
    expected = [RATE.format(way) for way in ("plain", "text", "job")] + [RATIO.format(way) for way in ("plain", "text")]
    whole = [r"600 rows upserted in a transaction, best of 1", *expected]
    whole += [r"600 rows appended in a transaction, best of 1", *expected]
    assert len(lines) == len(whole)
    for line, pattern in zip(lines, whole, strict=True):
        assert re.fullmatch(pattern, line), line
    with psycopg.connect(dsn) as connection:
        left = connection.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 'millstream_%'").fetchall()
    assert left == []


def test_changes_are_printed_beside_psycopg_alone(dsn):
    words = ["--dsn", dsn, "--rows", "200", "--at-once", "70", "--runs", "1"]

    ended = CliRunner().invoke(postgres_changes.main, words, catch_exceptions=False)

    assert ended.exit_code == 0, ended.output
    first, *lines = ended.output.splitlines()
    assert first == "200 rows inserted, 70 in a transaction, 325 rows of changes, best of 1"
    expected = [RATE.format("plain"), RATE.format("source"), r"source/plain +\d+\.\d\d +\d+\.\d\d"]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line
    with psycopg.connect(dsn) as connection:
        left = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
        assert connection.execute(left).fetchall() == []


@pytest.mark.parametrize("upsert", [True, False])
def test_each_way_writes_the_rows(dsn, upsert):
    tables, rows = Tables(dsn, "orders", upsert), orders(50, 0)
    tables.make(["plain", "text", "job"])
    postgres_upsert.plain(tables, list(zip(*rows.to_pydict().values(), strict=True)))
    postgres_upsert.text(tables, postgres_upsert.as_text(rows))
    postgres_upsert.job(tables, rows)

    tables.check(["plain", "text", "job"])

    with psycopg.connect(dsn) as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        found = connection.execute("SELECT * FROM orders_job ORDER BY id").fetchall()
    assert found == [tuple(row.values()) for row in rows.sort_by("id").to_pylist()]


def test_tables_that_differ_are_no_result(dsn):
    tables = Tables(dsn, "orders", upsert=False)
    tables.make(["plain", "job"])
    tables.execute("INSERT INTO orders_job (id) VALUES (1), (1)", "INSERT INTO orders_plain (id) VALUES (1)")

    with pytest.raises(click.ClickException, match="job has 1 rows that plain has not"):
        tables.check(["plain", "job"])
