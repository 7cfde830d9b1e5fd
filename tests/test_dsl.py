"""What a user writes: schemas known while writing, and for every mistake a message that says what to write instead."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream import col, lit

START = dt.datetime(2026, 1, 1)
ROWS = [
    {"id": n, "shop": f"s{n % 2}", "amount": n * 1.5, "paid": n > 1, "at": START + dt.timedelta(seconds=n)}
    for n in range(5)
]


def orders(name: str = "orders", **options: Any) -> ms.Stream:
    return ms.Job("j").read(ms.memory_source(ROWS, name=name), **{"event_time": "at", **options})


def columns(stream: ms.Stream) -> dict[str, str]:
    return {field.name: str(field.type) for field in stream.schema}


def half(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"n": batch["amount"]})


# -- schemas ---------------------------------------------------------------------------------------------------

STEPS: list[tuple[Callable[[ms.Stream], ms.Stream], dict[str, str]]] = [
    (lambda s: s, {"id": "int64", "shop": "string", "amount": "double", "paid": "bool", "at": "timestamp[us]"}),
    (lambda s: s.select("shop", col("id"), x=col("amount") / 2), {"shop": "string", "id": "int64", "x": "double"}),
    (lambda s: s.select(col("id").alias("a"), (col("id") + 1).alias("b")), {"a": "int64", "b": "int64"}),
    (lambda s: s.select("id").with_columns(id=col("id").cast(str), one=1), {"id": "string", "one": "int64"}),
    (
        lambda s: s.select("id").with_columns((col("id") * 2).alias("b"), t="x"),
        {"id": "int64", "b": "int64", "t": "string"},
    ),
    (lambda s: s.drop("at", "paid", "amount"), {"id": "int64", "shop": "string"}),
    (lambda s: s.select("id", "shop").rename({"id": "order"}, place="shop"), {"order": "int64", "place": "string"}),
    (lambda s: s.select("id", "shop").rename({"id": "shop", "shop": "id"}), {"shop": "int64", "id": "string"}),
    (lambda s: s.select("id").filter(col("id") > 1), {"id": "int64"}),
    (lambda s: s.map(lambda row: {"n": 1}, schema={"n": int}), {"n": "int64"}),
    (lambda s: s.flat_map(lambda row: [], schema={"n": "decimal(5, 2)"}), {"n": "decimal128(5, 2)"}),
    (lambda s: s.map_batches(lambda batch: batch.select(["shop"])), {"shop": "string"}),
    (lambda s: s.map_batches(half, schema={"n": float}), {"n": "double"}),
    (lambda s: s.select("id").union(s.select("id")), {"id": "int64"}),
    (lambda s: s.select("id", "paid").split(col("paid"))[1], {"id": "int64", "paid": "bool"}),
    (
        lambda s: s.group_by("shop").window(ms.tumbling("1m")).agg(n=ms.count(), total=ms.sum("amount")),
        {
            "shop": "string",
            "window_start": "timestamp[us]",
            "window_end": "timestamp[us]",
            "n": "int64",
            "total": "double",
        },
    ),
    (
        lambda s: s.window(ms.tumbling("1m")).agg(worst=ms.min(col("id") * -1)),
        {"window_start": "timestamp[us]", "window_end": "timestamp[us]", "worst": "int64"},
    ),
    (lambda s: s.group_by("shop").window(ms.tumbling("1m")).agg(n=ms.count()).late.select("id"), {"id": "int64"}),
]


@pytest.mark.parametrize(("step", "expected"), STEPS, ids=range(len(STEPS)))
def test_the_schema_is_known_while_writing_and_holds_when_it_runs(
    step: Callable[[ms.Stream], ms.Stream], expected: dict[str, str]
) -> None:
    stream, out = step(orders()), ms.memory_sink()
    assert columns(stream) == expected
    assert stream.columns == list(expected)
    assert repr(stream).startswith("Stream(")
    stream.write(out)
    _job_of(stream).run()
    assert {field.name: str(field.type) for field in out.table().schema} == expected


def _job_of(stream: ms.Stream) -> ms.Job:
    job = ms.Job("j")
    job._graph = stream._graph
    return job


def test_streams_do_not_change_in_place() -> None:
    stream, out = orders(), ms.memory_sink()
    before = stream.columns
    stream.drop("at")
    stream.filter(col("id") > 3)
    assert stream.columns == before
    stream.select("id").write(out)
    _job_of(stream).run()
    assert [row["id"] for row in out.rows()] == list(range(5))


def test_event_time_follows_its_column() -> None:
    window = ms.tumbling("1m")
    kept = [
        lambda s: s.select("at", "id"),
        lambda s: s.select(when=col("at")),
        lambda s: s.rename({"at": "paid_at"}),
        lambda s: s.with_columns(id=col("id") + 1),
        lambda s: s.filter(col("id") > 1).drop("shop"),
        lambda s: s.map(lambda row: row, schema=s.schema),
        lambda s: s.union(s),
        lambda s: s.split(col("paid"))[0],
        lambda s: s.window(ms.tumbling("1s")).agg(n=ms.count()),
        lambda s: s.group_by("shop").window(ms.tumbling("1s")).agg(n=ms.count()).late,
        lambda s: s.group_by("shop").window(ms.tumbling("1s")).top(1, by="amount"),
    ]
    for step in kept:
        assert "n" in step(orders()).window(window).agg(n=ms.count()).columns
    lost = [
        lambda s: s.drop("at"),
        lambda s: s.with_columns(at=col("at") + dt.timedelta(days=1)),
        lambda s: s.map(lambda row: {"n": 1}, schema={"n": int}),
        lambda s: s.union(s.rename({"at": "x"}).select("id", "shop", "amount", "paid", at=col("x"))).drop("at"),
    ]
    for step in lost:
        with pytest.raises(ms.JobError, match=r"window\(\) needs event time.*keep that column"):
            step(orders()).window(window)


def test_a_chain_of_windows_counts_what_the_first_made() -> None:
    stream, out = orders(), ms.memory_sink()
    per_second = stream.group_by("shop").window(ms.tumbling("1s")).agg(n=ms.count())
    per_second.window(ms.tumbling("1m")).agg(windows=ms.count(), rows=ms.sum("n")).write(out)
    _job_of(stream).run()
    assert [(row["windows"], row["rows"]) for row in out.rows()] == [(5, 5)]


def test_split_sends_each_row_to_one_stream() -> None:
    rows = [{"n": None if n == 4 else n} for n in range(8)]
    job = ms.Job("parts")
    parts = job.read(ms.memory_source(rows)).split(col("n") > 5, col("n") > 2)
    sinks = [ms.memory_sink(name) for name in ("high", "middle", "rest")]
    for part, sink in zip(parts, sinks, strict=True):
        part.write(sink)
    job.run()
    assert [[row["n"] for row in sink.rows()] for sink in sinks] == [[6, 7], [3, 5], [0, 1, 2, None]]


def test_a_stream_united_with_itself_comes_twice() -> None:
    job, out = ms.Job("twice"), ms.memory_sink()
    numbers = job.read(ms.memory_source([{"n": 1}, {"n": 2}]))
    numbers.union(numbers, numbers.filter(col("n") > 1)).write(out)
    job.run(parallelism=2)
    assert sorted(row["n"] for row in out.rows()) == [1, 1, 2, 2, 2]


# -- mistakes --------------------------------------------------------------------------------------------------

w = ms.tumbling("1m")


def _named_twice(stream: ms.Stream) -> ms.Stream:
    one = stream.map(lambda row: {"n": 1}, schema={"n": int}, name="a")
    return one.map(lambda row: {"n": 1}, schema={"n": int}, name="a")


MISTAKES: list[tuple[str, Callable[[ms.Stream], Any], list[str]]] = [
    (
        "unknown column",
        lambda s: s.select("amout"),
        ["select(): no column 'amout' (did you mean 'amount'?)", "id, shop"],
    ),
    ("unknown in expression", lambda s: s.filter(col("amout") > 1), ["(did you mean 'amount'?)", "(in (amout > 1))"]),
    ("unknown to drop", lambda s: s.drop("amout"), ["drop(): there is no column 'amout'; did you mean 'amount'?"]),
    ("unknown to rename", lambda s: s.rename({"x": "y"}), ["rename(): there is no column 'x'"]),
    ("unknown key", lambda s: s.group_by("shopp"), ["group_by(): there is no column 'shopp'; did you mean 'shop'?"]),
    ("unknown in agg", lambda s: s.window(w).agg(x=ms.sum("amout")), ["no column 'amout' (did you mean 'amount'?)"]),
    ("unknown in top", lambda s: s.window(w).top(1, by="amout"), ["no column 'amout' (did you mean 'amount'?)"]),
    ("text as a number", lambda s: s.with_columns(x=col("shop") * 2), ["with_columns(): (shop * 2)", ".cast('int64')"]),
    ("sum of text", lambda s: s.window(w).agg(x=ms.sum("shop")), ["type string; expected a number"]),
    ("predicate of numbers", lambda s: s.filter(col("id")), ["filter() needs a predicate", "col('price') > 10"]),
    ("parentheses forgotten", lambda s: s.filter(col("id") > 1 & col("id") < 3), ["parentheses around comparisons"]),
    (
        "parentheses forgotten 2",
        lambda s: s.filter(col("paid") & col("id") == 1),
        ["parentheses, as in (a > 1) & (b < 2)"],
    ),
    ("and", lambda s: s.filter(col("paid") and col("id") > 1), ["write & for and"]),
    ("not", lambda s: s.filter(not col("paid")), ["~ for not"]),
    ("filter by a lambda", lambda s: s.filter(lambda row: True), ["filter() takes an expression such as col('price')"]),
    ("filter by text", lambda s: s.filter("id > 1"), ["filter() takes an expression", "got 'id > 1'"]),
    ("no columns", lambda s: s.select(), ["select() needs at least one column"]),
    ("a list of columns", lambda s: s.select(["id", "shop"]), ["separated by commas", "got ['id', 'shop']"]),
    ("no name", lambda s: s.select(col("id") + 1), ["(id + 1) has no name", ".alias('name')"]),
    ("no name in with_columns", lambda s: s.with_columns(col("id") + 1), ["with_columns(name=(id + 1))"]),
    ("one name twice", lambda s: s.select("id", id=col("shop")), ["two columns are called 'id'"]),
    ("one name twice by rename", lambda s: s.rename({"shop": "id"}), ["two columns are called 'id'"]),
    (
        "a column as text",
        lambda s: s.select(x="shop"),
        ["select(x='shop') would write the text", "col('shop')", "lit('shop')"],
    ),
    ("a column as text 2", lambda s: s.with_columns(x="id"), ["with_columns(x='id') would write the text"]),
    ("null alone", lambda s: s.with_columns(x=lit(None)), ["column 'x' is null and nothing else", ".cast('int64')"]),
    ("no .then", lambda s: s.select(x=ms.when(col("paid"))), ["when(paid) has no value yet: go on with .then(...)"]),
    ("nothing left", lambda s: s.select("id").drop("id"), ["drop('id') leaves no column"]),
    ("drop an expression", lambda s: s.drop(col("id")), ["drop() takes names of columns, as in 'price'", "got id"]),
    ("group by an expression", lambda s: s.group_by(col("id")), ["group_by() takes names of columns", "got id"]),
    ("group by a list", lambda s: s.group_by(["id"]), ["group_by() takes names of columns", "got ['id']"]),
    ("group by nothing", lambda s: s.group_by(), ["group_by() needs a column", "stream.agg(...)"]),
    ("agg without window and name", lambda s: s.group_by("shop").agg(ms.count()), ["a name for each aggregate"]),
    ("agg over a key without window", lambda s: s.group_by("id").agg(id=ms.count()), ["two columns called id"]),
    (
        "agg into a file",
        lambda s: s.agg(n=ms.count()).write(ms.memory_sink()),
        ["does not take a changelog", ".changes()"],
    ),
    ("window of text", lambda s: s.window("1m"), ["window() takes a window such as ms.tumbling('1m'), got '1m'"]),
    ("window not called", lambda s: s.window(ms.tumbling), ["window() takes a window such as ms.tumbling('1m')"]),
    (
        "window without time",
        lambda s: s.drop("at").window(w),
        ["needs event time", "job.read(..., event_time='paid_at')"],
    ),
    (
        "agg without name",
        lambda s: s.window(w).agg(ms.count()),
        ["a name for each aggregate", "agg(orders=ms.count())"],
    ),
    ("agg called name", lambda s: s.window(w).agg(name=ms.count()), ["other than 'name'"]),
    ("agg of nothing", lambda s: s.window(w).agg(), ["at least one aggregate, as in agg(orders=ms.count())"]),
    ("agg of text", lambda s: s.window(w).agg(n="count"), ["agg(n=...) takes an aggregate such as ms.sum('amount')"]),
    ("agg of an expression", lambda s: s.window(w).agg(n=col("id")), ["takes an aggregate such as ms.sum", "got id"]),
    (
        "agg over a key",
        lambda s: s.group_by("shop").window(w).agg(shop=ms.count()),
        ["two columns called shop", "rename"],
    ),
    ("lateness", lambda s: s.window(w, lateness="-1s"), ["'-1s' is not a duration"]),
    ("lateness 2", lambda s: s.window(w, lateness=-1), ["a duration cannot be negative, got -1"]),
    ("top none", lambda s: s.window(w).top(0, by="id"), ["top(0, by=...): the number of rows must be a whole number"]),
    ("top by position", lambda s: s.window(w).top("id", by=3), ["top('id', by=...)"]),
    ("top by too few", lambda s: s.window(w).top(1, by=["id"], descending=[True, False]), ["by= has 1 columns and"]),
    ("top by nothing", lambda s: s.group_by("shop").top(1, by=[]), ["by is a column's name, an expression"]),
    ("top descending", lambda s: s.top(1, by="id", descending="no"), ["descending is True, False, or a list"]),
    ("row number", lambda s: s.top(1, by="id", row_number=1), ["row_number is the name of the column to add"]),
    ("keep neither", lambda s: s.deduplicate("id", keep="any"), ["keep is 'first' or 'last'"]),
    ("last within", lambda s: s.deduplicate("id", keep="last", within="1h"), ["(keep='last') has no within="]),
    ("union of others", lambda s: s.union(s.select("id")), ["stream 2 lacks 'shop'", ".select('id', 'shop'"]),
    ("union of nothing", lambda s: s.union(), ["at least two streams together, got 1"]),
    ("union of rows", lambda s: s.union([{"id": 1}]), ["union() takes streams, got [{'id': 1}]"]),
    ("split by nothing", lambda s: s.split(), ["split() needs at least one predicate, as in paid, rest = s.split"]),
    (
        "split by text",
        lambda s: s.split("paid"),
        ["split() takes predicates such as col('status') == 'paid', got 'paid'"],
    ),
    ("split by numbers", lambda s: s.split(col("id")), ["needs a predicate that is true or false; id is int64"]),
    (
        "two arguments",
        lambda s: s.map(lambda row, state: row, schema={"n": int}),
        ["with one argument", "takes (row, state)"],
    ),
    ("map without schema", lambda s: s.map(lambda row: row), ["map() needs schema={...}"]),
    ("flat_map without schema", lambda s: s.flat_map(lambda row: [row]), ["flat_map() needs schema={...}"]),
    (
        "map of an expression",
        lambda s: s.map(col("id") + 1, schema={"n": int}),
        ["map() takes a function, got (id + 1)"],
    ),
    ("one name for two", _named_twice, ["the name 'a' is taken"]),
    ("write a path", lambda s: s.write("out/"), ["write() takes a sink such as ms.parquet('out/'), got 'out/'"]),
    ("write a source", lambda s: s.write(ms.memory_source(ROWS)), ["write() takes a sink such as"]),
    ("a view type", lambda s: s.select(x=col("shop").cast(pa.string_view())), ["'x' is string_view", "pa.string()"]),
]


@pytest.mark.parametrize(("mistake", "parts"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_says_what_to_write_instead(mistake: Callable[[ms.Stream], Any], parts: list[str]) -> None:
    stream = orders()
    nodes = len(stream._graph.nodes)
    with pytest.raises(ms.JobError) as error:
        mistake(stream)
    for part in parts:
        assert part in str(error.value)
    added = len(stream._graph.nodes) - nodes
    assert added <= 1, "what failed must not stay in the job"


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            lambda s: s.group_by("shop").write(ms.memory_sink()),
            r"group_by\(...\)\.write: go on with \.agg\(\.\.\.\), \.top\(3",
        ),
        (lambda s: s.window(w).select("id"), r"window\(...\)\.select: first go on with \.agg\(orders=ms\.count\(\)\)"),
    ],
)
def test_half_of_a_grouping_is_no_stream(mistake: Callable[[ms.Stream], Any], message: str) -> None:
    with pytest.raises(AttributeError, match=message):
        mistake(orders())


# -- jobs ------------------------------------------------------------------------------------------------------


def test_a_job_needs_a_name_a_source_and_a_sink() -> None:
    for name in ("", None, 5):
        with pytest.raises(ms.JobError, match=r"a job needs a name, as in Job\('orders'\)"):
            ms.Job(name)  # type: ignore[arg-type]
    job = ms.Job("empty")
    with pytest.raises(ms.JobError, match=r"job 'empty' reads nothing: start with job\.read\(\.\.\.\)"):
        job.run()
    job.read(ms.memory_source(ROWS)).filter(col("id") > 1)
    with pytest.raises(ms.JobError, match=r"no sink, so it would have no effect: end a stream with \.write"):
        job.run()


def test_two_sinks_or_two_sources_with_one_name() -> None:
    job = ms.Job("twins")
    stream = job.read(ms.memory_source(ROWS))
    stream.write(ms.memory_sink())
    with pytest.raises(ms.JobError, match=r"two sinks are called 'memory': .*ms\.memory_sink\('other'\)"):
        stream.select("id").write(ms.memory_sink())
    with pytest.raises(ms.JobError, match=r"two sources are called 'memory': .*job\.read\(\.\.\., name='other'\)"):
        job.read(ms.memory_source(ROWS))
    other = job.read(ms.memory_source(ROWS), name="other")
    with pytest.raises(ms.JobError, match="two sources are called 'other'"):
        job.read(ms.memory_source(ROWS), name="other")
    other.write(ms.memory_sink("second"))
    assert job.run().outcome == "finished"


def test_streams_of_two_jobs_do_not_mix() -> None:
    here, there = orders(), orders()
    with pytest.raises(ms.JobError, match=r"union\(\) of streams of two jobs: a stream belongs to the job whose read"):
        here.union(there)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"event_time": "att"}, "event_time of source 'orders': there is no column 'att'; did you mean 'at'?"),
        (
            {"event_time": "shop"},
            "column 'shop' is string, expected a timestamp. Read it as one: give the source schema=",
        ),
        ({"event_time": col("at")}, "event_time of source 'orders' takes names of columns, as in 'price'"),
        ({"max_delay": "5 seconds"}, "'5 seconds' is not a duration: write a number and a unit"),
        ({"max_delay": None}, "None is not a duration: write '1m30s', a timedelta or a number of seconds"),
        ({"idle_timeout": -1}, "a duration cannot be negative, got -1"),
    ],
)
def test_reading(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ms.JobError) as error:
        orders(**options)
    assert message in str(error.value)


def test_reading_what_is_no_source() -> None:
    with pytest.raises(ms.JobError, match=r"job\.read\(\) takes a source such as ms\.files\(.*got 'orders\.csv'"):
        ms.Job("j").read("orders.csv")  # type: ignore[arg-type]
    twice = pa.table([[1], [2]], names=["a", "a"])
    with pytest.raises(ms.SchemaError, match="source 'memory': two columns are called 'a'"):
        ms.Job("j").read(ms.memory_source(twice))
    views = pa.table({"a": pa.array(["x"], pa.string_view())})
    assert columns(ms.Job("j").read(ms.memory_source(views))) == {"a": "string"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0: the time between checkpoints must be positive, as in every='1s'"),
        ({"every": "soon"}, "'soon' is not a duration"),
        ({"parallelism": 0}, "parallelism must be at least 1, got 0"),
        ({"exactly_once": True}, "asks for exactly-once, but these paths are not:\n  - orders → print"),
    ],
)
def test_running(options: dict[str, Any], message: str) -> None:
    stream = orders()
    stream.write(ms.print_sink())
    with pytest.raises(ms.JobError) as error:
        _job_of(stream).run(**options)
    assert message in str(error.value)


def test_names_that_are_no_longer_there() -> None:
    with pytest.raises(AttributeError, match="module 'millstream' has no attribute 'tumblin'"):
        ms.tumblin  # noqa: B018
    assert set(dir(ms)) == set(ms.__all__)
