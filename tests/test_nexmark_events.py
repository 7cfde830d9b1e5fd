"""The generator: the same events however they are cut, and Nexmark's proportions, references and hot keys."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.benchmarks.nexmark_events import (
    FIRST_TIME,
    MAKERS,
    SCHEMAS,
    Timing,
    event_of_row,
    event_times,
    rows_of,
)
from millstream.benchmarks.nexmark_files import ROW_GROUP, write_events
from millstream.benchmarks.nexmark_random import below, draw, text, unit

STREAMS = tuple(MAKERS)
EVENTS = 50_000
DISORDERLY = Timing(disorder=3_000_000)


@pytest.fixture(scope="module")
def events():
    return {stream: MAKERS[stream](7, 0, EVENTS) for stream in STREAMS}


def column(batch, name):
    values = batch.column(name)
    return (values.cast(pa.int64()) if pa.types.is_timestamp(values.type) else values).to_numpy(zero_copy_only=False)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("timing", [Timing(), DISORDERLY, Timing(rate=7, disorder=60_000_000)])
@given(cuts=st.lists(st.integers(0, 3_000), max_size=5), first=st.sampled_from([0, 1_000_003]))
@settings(max_examples=15, deadline=None)
def test_any_cut_of_a_range_gives_the_same_rows(stream, timing, cuts, first):
    edges = [first, *(first + cut for cut in sorted(cuts)), first + 3_000]
    whole = MAKERS[stream](5, first, first + 3_000, timing)

    pieces = [MAKERS[stream](5, a, b, timing) for a, b in itertools.pairwise(edges)]

    assert pa.Table.from_batches(pieces).combine_chunks().equals(pa.Table.from_batches([whole]))


@pytest.mark.parametrize("stream", STREAMS)
def test_rows_have_the_declared_types_and_no_nulls(events, stream):
    events[stream].validate(full=True)

    assert events[stream].schema == SCHEMAS[stream]
    assert all(values.null_count == 0 for values in events[stream].columns)


def test_another_seed_gives_other_rows(events):
    other = MAKERS["bid"](8, 0, EVENTS)

    same = pc.sum(pc.equal(other.column("price"), events["bid"].column("price"))).as_py()
    assert same < other.num_rows // 50
    assert other.column("date_time").equals(events["bid"].column("date_time"))


def test_fifty_events_are_a_person_three_auctions_and_46_bids(events):
    assert {stream: batch.num_rows for stream, batch in events.items()} == {
        "person": EVENTS // 50,
        "auction": EVENTS * 3 // 50,
        "bid": EVENTS * 46 // 50,
    }


@pytest.mark.parametrize("stream", STREAMS)
@given(row=st.integers(0, 10**9))
def test_a_row_knows_its_event(stream, row):
    number = event_of_row(stream, row)

    assert rows_of(stream, number) == row
    assert rows_of(stream, number + 1) == row + 1


def test_ids_count_up_from_1000(events):
    assert column(events["person"], "id").tolist() == list(range(1_000, 1_000 + EVENTS // 50))
    assert column(events["auction"], "id").tolist() == list(range(1_000, 1_000 + EVENTS * 3 // 50))


def test_references_point_to_what_exists_or_is_about_to(events):
    bids, auctions, persons = events["bid"], events["auction"], events["person"]
    born = column(auctions, "date_time")
    last = np.searchsorted(born, column(bids, "date_time")) - 1 + 1_000
    age = last - column(bids, "auction")
    cold = column(bids, "auction") % 100 != 0
    assert age[cold].min() >= -10
    assert age[cold].max() <= 100
    assert age.min() >= -10
    assert age.max() < 200
    for batch, key in ((bids, "bidder"), (auctions, "seller")):
        last = np.searchsorted(column(persons, "date_time"), column(batch, "date_time")) - 1 + 1_000
        age = last - column(batch, key)
        assert age.min() >= -10
        assert age.max() < 1_000
        assert (age >= 0).mean() > 0.97


def test_hot_keys_have_their_share(events):
    hot_auction = (column(events["bid"], "auction") % 100 == 0).mean()
    hot_bidder = (column(events["bid"], "bidder") % 100 == 1).mean()
    hot_seller = (column(events["auction"], "seller") % 100 == 0).mean()
    hot_channel = pc.mean(pc.is_in(events["bid"].column("channel"), pa.array(["Apple", "Google", "Facebook", "Baidu"])))

    assert hot_auction == pytest.approx(0.5 + 0.5 * 0.01, abs=0.01)
    assert hot_bidder == pytest.approx(0.75 + 0.25 * 0.01, abs=0.01)
    assert hot_seller == pytest.approx(0.75 + 0.25 * 0.01, abs=0.03)
    assert hot_channel.as_py() == pytest.approx(0.5, abs=0.01)


def test_prices_spread_evenly_over_six_orders_of_magnitude(events):
    price = column(events["bid"], "price")
    assert price.min() >= 100
    assert price.max() <= 100_000_000
    share, _ = np.histogram(np.log10(price), bins=6, range=(2, 8))
    assert share / len(price) == pytest.approx(np.full(6, 1 / 6), abs=0.01)


def test_auctions_end_after_they_begin_and_reserve_more_than_the_first_bid(events):
    lasts = column(events["auction"], "expires") - column(events["auction"], "date_time")

    assert lasts.min() >= 1_000
    assert lasts.max() <= 332_000
    assert (column(events["auction"], "reserve") > column(events["auction"], "initial_bid")).all()
    assert set(column(events["auction"], "category").tolist()) == {10, 11, 12, 13, 14}


def test_urls_have_three_folders_and_mostly_a_channel_id(events):
    bids = events["bid"]
    pattern = r"^https://www\.nexmark\.com/[a-z_]{3,4}/[a-z_]{3,4}/[a-z_]{3,4}/item\.htm\?query=1(&channel_id=\d+)?$"
    assert pc.all(pc.match_substring_regex(bids.column("url"), pattern)).as_py()
    cold = bids.filter(pc.starts_with(bids.column("channel"), "channel-"))
    assert pc.mean(pc.match_substring(cold.column("url"), "channel_id=")).as_py() == pytest.approx(0.9, abs=0.02)
    urls = pa.table({"channel": cold.column("channel"), "url": cold.column("url")}).group_by("channel")
    assert pc.max(urls.aggregate([("url", "count_distinct")]).column("url_count_distinct")).as_py() == 1


def test_states_are_the_lower_case_ones_q3_asks_for(events):
    assert set(events["person"].column("state").to_pylist()) == {"az", "ca", "id", "or", "wa", "wy"}


@pytest.mark.parametrize(("stream", "fixed", "average"), [("person", 8, 200), ("auction", 48, 500), ("bid", 32, 100)])
def test_rows_are_padded_to_the_usual_size(events, stream, fixed, average):
    counted = {
        "person": SCHEMAS["person"].names,
        "auction": ["item_name", "description", "extra"],
        "bid": ["extra"],
    }
    sizes = fixed + sum(
        pc.binary_length(events[stream].column(name)).to_numpy().astype(np.int64)
        for name in counted[stream]
        if pa.types.is_string(SCHEMAS[stream].field(name).type)
    )
    assert sizes.mean() == pytest.approx(average, rel=0.02)
    assert sizes.min() >= average * 0.79
    assert sizes.max() <= average * 1.21


def test_events_follow_each_other_at_the_rate():
    times = event_times(1, np.arange(5), Timing(rate=10_000))

    assert times.tolist() == [FIRST_TIME, *(FIRST_TIME + n * 100 for n in range(1, 5))]


@given(first=st.integers(0, 10**8), disorder=st.integers(1, 5_000_000), rate=st.sampled_from([10, 999, 10_000]))
@settings(max_examples=40, deadline=None)
def test_disorder_keeps_times_unique_and_within_bounds(first, disorder, rate):
    timing = Timing(rate=rate, disorder=disorder)
    block = max(disorder * rate // 1_000_000, 1)
    whole_blocks = np.arange(first // block * block, (first // block + 2) * block)

    times = event_times(3, whole_blocks, timing)

    assert sorted(times.tolist()) == event_times(3, whole_blocks, Timing(rate=rate)).tolist()
    assert (np.maximum.accumulate(times) - times).max() <= disorder


def test_disorder_really_disorders():
    times = event_times(3, np.arange(60_000), DISORDERLY)

    assert (np.maximum.accumulate(times) - times).max() > 2_000_000
    assert (np.diff(times) < 0).mean() > 0.4


def test_files_hold_the_same_rows_in_row_groups(tmp_path):
    written = write_events(tmp_path, 150_000, 4, DISORDERLY)

    assert written == {stream: rows_of(stream, 150_000) for stream in STREAMS}
    for stream in STREAMS:
        file = pq.ParquetFile(tmp_path / f"{stream}.parquet")
        assert file.read().equals(pa.Table.from_batches([MAKERS[stream](4, 0, 150_000, DISORDERLY)]))
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        assert groups[:-1] == [ROW_GROUP] * (len(groups) - 1)
        columns = map(file.metadata.row_group(0).column, range(len(file.schema.names)))
        stored = {column.path_in_schema: (column.compression, column.encodings) for column in columns}
        compression, encodings = stored["date_time"]
        assert compression == "UNCOMPRESSED"
        assert "DELTA_BINARY_PACKED" in encodings
        assert stored["extra"][0] == "LZ4"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "auction.parquet",
        "bid.parquet",
        "person.parquet",
    ]


def test_random_numbers_are_even_and_columns_independent():
    numbers = np.arange(100_000)
    first, second = unit(draw(1, "a", numbers)), unit(draw(1, "b", numbers))

    assert np.histogram(first, bins=10, range=(0, 1))[0] == pytest.approx(np.full(10, 10_000), rel=0.05)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.02
    assert np.bincount(below(draw(1, "c", numbers), 7)) == pytest.approx(np.full(7, 100_000 / 7), rel=0.05)


@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=50), gap=st.sampled_from([None, " ", "_"]))
def test_texts_have_their_lengths_letters_and_gaps_only_inside(lengths, gap):
    made = text(draw(1, "t", np.arange(len(lengths))), np.array(lengths), gap).to_pylist()

    assert [len(word) for word in made] == lengths
    assert all(set(word) <= set("abcdefghijklmnopqrstuvwxyz" + (gap or "")) for word in made)
    assert gap is None or all(word == word.strip(gap) for word in made)


def test_every_letter_is_as_likely():
    made = text(draw(1, "t", np.arange(10_000)), np.full(10_000, 50)).to_pylist()

    counts = np.bincount(np.frombuffer("".join(made).encode(), dtype=np.uint8), minlength=128)[97:123]
    assert counts.sum() == 500_000
    assert counts / counts.sum() == pytest.approx(np.full(26, 1 / 26), rel=0.12)
