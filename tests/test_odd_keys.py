"""Every keyed operator with keys of every type: nulls, NaN, both zeros, empty texts, the ends of integers and time.

Rows come in disorder, around 1970, cut into batches and slices of any length; ``check_operator`` then runs them row by
row, all at once, restored after every barrier and every row, and on one to three subtasks. DuckDB says what is right.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import partial
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from key_kit import Keyed, bag, keyed
from millstream import col
from millstream.engine.changelog import WEIGHT, weighted
from millstream.operators.final import FinalRows
from millstream.testing import Ended, On, check_operator

BY = st.sampled_from([("a",), ("a", "b")])
MICRO = dt.timedelta(microseconds=1)
KEPT = "a, b, v, t, seq"


def micros(count: int) -> dt.timedelta:
    return count * MICRO


def main_of(given: Keyed, build: Any) -> list[tuple[Any, ...]]:
    """What an operator makes of the first input; of a changelog, what it comes to."""
    found = check_operator(given.spec(build), given.first, schemas=[given.schema])
    assert not found.keys() - {"main"}, "no row was late"
    return settled(found.get("main", []))


def settled(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    assert all(row.get(WEIGHT, 1) > 0 for row in rows), "a row was taken back more often than put out"
    return bag([{n: v for n, v in row.items() if n != WEIGHT} for row in rows for _ in range(row.get(WEIGHT, 1))])


Check = Callable[[Keyed, tuple[str, ...]], None]
CHECKS: dict[str, tuple[Check, int]] = {}
"""What is checked, and how many inputs it has."""


def checked(inputs: int) -> Callable[[Check], Check]:
    def note(check: Check) -> Check:
        CHECKS[check.__name__] = (check, inputs)
        return check

    return note


@checked(1)
def groups(given: Keyed, by: tuple[str, ...]) -> None:
    made = {"n": ms.count(), "total": ms.sum("v"), "last": ms.max("seq"), "different": ms.count_distinct("b")}
    found = main_of(given, lambda s: s.group_by(*by).agg(**made))
    keys = ", ".join(by)
    assert found == given.sql(
        f"select {keys}, count(*), sum(v)::bigint, max(seq), count(distinct b) from l group by {keys}"
    )


@checked(1)
def tumbling_windows(given: Keyed, by: tuple[str, ...]) -> None:
    window = ms.tumbling(micros(10))
    found = main_of(given, lambda s: s.group_by(*by).window(window).agg(n=ms.count(), total=ms.sum("v")))
    start = "(epoch_us(t) - (epoch_us(t) % 10 + 10) % 10)"
    keys = ", ".join(by)
    bounds = f"make_timestamp({start}), make_timestamp({start} + 10)"
    assert found == given.sql(f"select {keys}, {bounds}, count(*), sum(v)::bigint from l group by {keys}, {start}")


@checked(1)
def sliding_windows(given: Keyed, by: tuple[str, ...]) -> None:
    window = ms.sliding(micros(12), micros(4))
    found = main_of(given, lambda s: s.group_by(*by).window(window).agg(n=ms.count(), different=ms.count_distinct("v")))
    windows = "(select unnest(generate_series(-60, 60, 4)) as start)"
    keys = ", ".join(by)
    assert found == given.sql(
        f"""
        select {keys}, make_timestamp(start), make_timestamp(start + 12), count(*), count(distinct v)
        from l join {windows} on epoch_us(t) >= start and epoch_us(t) < start + 12 group by {keys}, start
        """
    )


@checked(1)
def sessions(given: Keyed, by: tuple[str, ...]) -> None:
    found = main_of(given, lambda s: s.group_by(*by).window(ms.session(micros(5))).agg(n=ms.count()))
    keys = ", ".join(by)
    near = f"epoch_us(t) - lag(epoch_us(t)) over (partition by {keys} order by t) < 5"
    number = f"count(*) filter (near is not true) over (partition by {keys} order by t)"
    assert found == given.sql(
        f"""
        select {keys}, min(t), make_timestamp(epoch_us(max(t)) + 5), count(*)
        from (select *, {number} as session from (select *, {near} as near from l)) group by {keys}, session
        """
    )


@checked(1)
def windows_of_rows(given: Keyed, by: tuple[str, ...]) -> None:
    found = main_of(given, lambda s: s.group_by(*by).window(ms.count_window(2)).agg(all=ms.collect("seq")))
    keys = ", ".join(by)
    pair = f"(row_number() over (partition by {keys} order by seq) - 1) // 2"
    assert found == given.sql(
        f"select {keys}, list(seq order by seq) from (select *, {pair} as pair from l) group by {keys}, pair"
    )


@checked(1)
def the_first_row_of_each_key(given: Keyed, by: tuple[str, ...]) -> None:
    found = check_operator(given.spec(lambda s: s.deduplicate(*by)), given.first, schemas=[given.schema])
    first = f"row_number() over (partition by {', '.join(by)} order by seq) = 1"
    assert bag(found["main"]) == given.sql(f"select {KEPT} from l qualify {first}")
    assert bag(found.get("duplicates", [])) == given.sql(f"select {KEPT} from l qualify not {first}")


@checked(1)
def the_last_row_of_each_key(given: Keyed, by: tuple[str, ...]) -> None:
    found = main_of(given, lambda s: s.deduplicate(*by, keep="last"))
    last = f"row_number() over (partition by {', '.join(by)} order by t desc, seq desc) = 1"
    assert found == given.sql(f"select {KEPT} from l qualify {last}")


@checked(1)
def the_best_rows_of_each_key(given: Keyed, by: tuple[str, ...]) -> None:
    found = main_of(given, lambda s: s.group_by(*by).top(2, by=["v", "seq"]))
    best = f"row_number() over (partition by {', '.join(by)} order by v desc, seq desc) <= 2"
    assert found == given.sql(f"select {KEPT} from l qualify {best}")


@checked(1)
def the_best_rows_of_each_key_and_window(given: Keyed, by: tuple[str, ...]) -> None:
    found = main_of(given, lambda s: s.group_by(*by).window(ms.tumbling(micros(10))).top(1, by="v", ties=True))
    group = f"{', '.join(by)}, epoch_us(t) - (epoch_us(t) % 10 + 10) % 10"
    assert found == given.sql(f"select {KEPT} from l qualify rank() over (partition by {group} order by v desc) = 1")


@checked(1)
def rows_before_and_after_a_row(given: Keyed, by: tuple[str, ...]) -> None:
    made = {"number": ms.row_number(), "before": ms.lag("v"), "after": ms.lead("b"), "total": ms.sum("v")}
    found = main_of(given, lambda s: s.group_by(*by).over(**made))
    over = f"(partition by {', '.join(by)} order by t, seq)"
    functions = f"row_number() over {over}, lag(v) over {over}, lead(b) over {over}"
    running = f"sum(v) over (partition by {', '.join(by)} order by t, seq rows unbounded preceding)::bigint"
    assert found == given.sql(f"select {KEPT}, {functions}, {running} from l")


@checked(1)
def patterns(given: Keyed, by: tuple[str, ...]) -> None:
    found = main_of(
        given,
        lambda s: s.group_by(*by).match(
            "low high",
            define={"low": col("v") < 0, "high": col("v") >= 0},
            select={"seqs": ms.collect("seq")},
            within=micros(6),
        ),
    )
    over = f"over (partition by {', '.join(by)} order by t, seq)"
    after = f"lead(seq) {over} as next_seq, lead(v) {over} as next_v, lead(t) {over} as next_t"
    near = "v < 0 and next_v >= 0 and epoch_us(next_t) - epoch_us(t) <= 6"
    wanted = given.sql(f"select {', '.join(by)}, [seq, next_seq] as seqs from (select *, {after} from l) where {near}")
    keys = len(by)
    assert sorted(((*row[:keys], row[-1]) for row in found), key=repr) == wanted


@checked(1)
def python_state(given: Keyed, by: tuple[str, ...]) -> None:
    def numbered(row: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
        state["n"] = state.get("n", 0) + 1
        return {"seq": row["seq"], "n": state["n"]}

    found = main_of(given, lambda s: s.group_by(*by).process(numbered, schema={"seq": int, "n": int}))
    assert found == given.sql(f"select seq, row_number() over (partition by {', '.join(by)} order by seq) from l")


def replacing(given: Keyed, by: tuple[str, ...]) -> list[Any]:
    """The script of the first input as a changelog: of each key, every row takes the place of the one before."""
    schema = weighted(given.schema)
    script: list[Any] = []
    held: dict[str, dict[str, Any]] = {}
    for step in given.first:
        if not isinstance(step, On):
            script.append(step)
            continue
        changes = []
        for row in step.batch.to_pylist():
            (key,) = bag([{name: row[name] for name in by}])
            changes += [{**held[repr(key)], WEIGHT: -1}] if repr(key) in held else []
            changes.append({**row, WEIGHT: 1})
            held[repr(key)] = row
        script.append(On(0, pa.RecordBatch.from_pylist(changes, schema)))
    return script


def last_of(by: tuple[str, ...]) -> str:
    return f"(from l qualify row_number() over (partition by {', '.join(by)} order by seq desc) = 1)"


@checked(1)
def what_is_left_of_a_changelog(given: Keyed, by: tuple[str, ...]) -> None:
    found = check_operator(FinalRows(by), replacing(given, by), schemas=[weighted(given.schema)])
    assert bag(found["main"]) == given.sql(f"select {KEPT} from {last_of(by)}")


@checked(1)
def groups_of_a_changelog(given: Keyed, by: tuple[str, ...]) -> None:
    made = {"n": ms.count(), "least": ms.min("seq"), "different": ms.count_distinct("a")}
    spec = given.spec(lambda s: s._as_changelog().group_by("b").agg(**made))
    found = check_operator(spec, replacing(given, by), schemas=[weighted(given.schema)])
    wanted = f"select b, count(*), min(seq), count(distinct a) from {last_of(by)} group by b"
    assert settled(found.get("main", [])) == given.sql(wanted)


@checked(1)
def the_best_rows_of_a_changelog(given: Keyed, by: tuple[str, ...]) -> None:
    spec = given.spec(lambda s: s._as_changelog().group_by("b").top(2, by=["v", "seq"]))
    found = check_operator(spec, replacing(given, by), schemas=[weighted(given.schema)])
    best = "row_number() over (partition by b order by v desc, seq desc) <= 2"
    assert settled(found.get("main", [])) == given.sql(f"select {KEPT} from {last_of(by)} qualify {best}")


@checked(1)
def lookups(given: Keyed, by: tuple[str, ...]) -> None:
    def every(keys: pa.RecordBatch) -> pa.Table:
        return pa.Table.from_batches([keys]).append_column("name", pa.array(["found"] * len(keys)))

    found = main_of(given, lambda s: s.lookup(every, on=list(by), schema={"name": str}, how="left", cache="1h"))
    known = " and ".join(f"{key} is not null" for key in by)
    assert found == given.sql(f"select {KEPT}, case when {known} then 'found' end from l")


@checked(1)
def samples_keep_all_rows_of_a_key_or_none(given: Keyed, by: tuple[str, ...]) -> None:
    kept = main_of(given, lambda s: s.sample(0.5, by=list(by)))
    keys = ", ".join(by)
    numbers = ", ".join(str(row[-1]) for row in kept) or "-1"
    mixed = f"select {keys} from l group by {keys} having count(distinct seq in ({numbers})) > 1"
    assert given.sql(mixed) == []
    assert set(kept) <= set(given.sql(f"select {KEPT} from l"))


PAIR = "l.v, l.t, l.seq, r.v as v_right, r.t as t_right, r.seq as seq_right"


def pairs_of(given: Keyed, build: Any) -> list[tuple[Any, ...]]:
    """Pairs without the keys: of both zeros a join may show either."""
    found = check_operator(given.spec(build), given.steps, schemas=[given.schema] * 2)
    assert not found.keys() - {"main"}, "no row was late"
    names = ("v", "t", "seq", "v_right", "t_right", "seq_right")
    kept = [{name: row.get(name) for name in names} | {WEIGHT: row.get(WEIGHT, 1)} for row in found.get("main", [])]
    return settled(kept)


def equal(by: tuple[str, ...]) -> str:
    return " and ".join(f"l.{key} = r.{key}" for key in by)


def joins_of_everything(how: str, given: Keyed, by: tuple[str, ...]) -> None:
    found = pairs_of(given, lambda s, r: s.join(r, on=list(by), how=how))
    assert found == given.sql(f"select {PAIR} from l {how} join r on {equal(by)}")


def joins_within_an_interval(how: str, given: Keyed, by: tuple[str, ...]) -> None:
    found = pairs_of(given, lambda s, r: s.join(r, on=list(by), how=how, between=(-micros(9), micros(2))))
    near = "epoch_us(r.t) between epoch_us(l.t) - 9 and epoch_us(l.t) + 2"
    assert found == given.sql(f"select {PAIR} from l {how} join r on {equal(by)} and {near}")


for how in ("inner", "full"):
    CHECKS[f"{how}_joins_of_everything"] = (partial(joins_of_everything, how), 2)
    CHECKS[f"{how}_joins_within_an_interval"] = (partial(joins_within_an_interval, how), 2)


@checked(2)
def joins_with_the_row_of_that_moment(given: Keyed, by: tuple[str, ...]) -> None:
    found = pairs_of(given, lambda s, r: s.join_asof(r, on=list(by), how="left"))
    keys = ", ".join(by)
    last = f"(from r qualify row_number() over (partition by {keys}, t order by seq desc) = 1)"
    assert found == given.sql(f"select {PAIR} from l asof left join {last} r on {equal(by)} and l.t >= r.t")


@checked(2)
def joins_with_a_table(given: Keyed, by: tuple[str, ...]) -> None:
    """The table is read first, to its end."""
    spec = given.spec(lambda s, r: s.join_table(r, on=list(by), how="left"))
    table = [step for step in given.steps if isinstance(step, On) and step.input == 1]
    found = check_operator(spec, [*table, Ended(1), *given.first], schemas=[given.schema] * 2)
    names = ("v", "t", "seq", "v_right", "t_right", "seq_right")
    kept = [{name: row[name] for name in names} for row in found.get("main", [])]
    assert bag(kept) == given.sql(f"select {PAIR} from l left join r on {equal(by)}")


def run(name: str, data: st.DataObject, by: tuple[str, ...]) -> None:
    check, inputs = CHECKS[name]
    check(data.draw(keyed(inputs)), by)


@pytest.mark.parametrize("name", CHECKS)
@settings(max_examples=3, deadline=None)
@given(data=st.data(), by=BY)
def test_keys_of_every_kind(name: str, data: st.DataObject, by: tuple[str, ...]) -> None:
    run(name, data, by)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", CHECKS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), by=BY)
def test_many_keys_of_every_kind(name: str, data: st.DataObject, by: tuple[str, ...]) -> None:
    run(name, data, by)
