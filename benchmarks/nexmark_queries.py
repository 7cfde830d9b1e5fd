"""The Nexmark queries as jobs. What each one means is the SQL of the same name in ``nexmark_sql``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import millstream as ms
import numpy as np
import pyarrow as pa
from millstream import Expr, Stream, col, when
from millstream.benchmarks.nexmark_events import PLACES, ROUND
from millstream.benchmarks.nexmark_files import events_file
from millstream.engine.source import Source
from millstream.torture.pace import paced


class Events:
    """The three streams; each is read only by the queries that ask for it.

    Args:
        folder: where ``person.parquet``, ``auction.parquet`` and ``bid.parquet`` are.
        delay: how much later than a newer row an older one may come.
        rate: events a second, of all three streams together; None: as fast as they are read.
        most: after about so many events, counted likewise, nothing more comes, and no end; only with a rate.
        max_ahead: how much further on in event time a stream may be read than the slowest of those it meets.
    """

    def __init__(
        self,
        job: ms.Job,
        folder: Path,
        delay: str = "4s",
        rate: float | None = None,
        most: int | None = None,
        max_ahead: str | None = None,
    ) -> None:
        self._job = job
        self._folder = folder
        self._delay = delay
        self._rate = rate
        self._most = most
        self._max_ahead = max_ahead

    def in_step(self, max_ahead: str) -> Events:
        """Return the same streams, none of them further ahead of another than so much."""
        return Events(self._job, self._folder, self._delay, self._rate, self._most, max_ahead)

    @property
    def person(self) -> Stream:
        """Who sells and bids."""
        return self._read("person")

    @property
    def auction(self) -> Stream:
        """What is for sale."""
        return self._read("auction")

    @property
    def bid(self) -> Stream:
        """What is offered for it."""
        return self._read("bid")

    def _read(self, stream: str) -> Stream:
        source: Source = ms.files(str(events_file(self._folder, stream)))
        if self._rate is not None:
            first, last = PLACES[stream]
            part = (last - first) / ROUND
            source = paced(source, self._rate * part, most=None if self._most is None else self._most * part)
        return self._job.read(
            source, event_time="date_time", max_delay=self._delay, max_ahead=self._max_ahead, name=stream
        )


Query: TypeAlias = Callable[[Events], Stream]


SIDE_KEYS: Final = 10_000
"""How many rows the side input of q13 has."""

_DAY: Final = col("date_time").dt.strftime("%Y-%m-%d")
_RANKS: Final[dict[str, Any]] = {
    "total": ms.count(),
    "rank1": ms.count(where=col("price") < 10_000),
    "rank2": ms.count(where=(col("price") >= 10_000) & (col("price") < 1_000_000)),
    "rank3": ms.count(where=col("price") >= 1_000_000),
}
_DISTINCT: Final[dict[str, Any]] = {"bidders": ms.count_distinct("bidder"), "auctions": ms.count_distinct("auction")}


def bids_in_time(events: Events) -> Stream:
    """Each auction with each of its bids that came while it was open: what q4, q6 and q9 begin with.

    The columns are those of the auction, and those of the bid as ``bid_...`` where a name would clash.
    """
    bids = events.bid.rename({"date_time": "bid_time", "extra": "bid_extra"})
    return events.auction.join(bids, on={"id": "auction"}, between=(col("date_time"), col("expires")))


def q0(events: Events) -> Stream:
    """Pass through."""
    return events.bid.select("auction", "bidder", "price", "date_time", "extra")


def q1(events: Events) -> Stream:
    """Currency conversion."""
    return events.bid.select("auction", "bidder", (0.908 * col("price")).alias("price"), "date_time", "extra")


def q2(events: Events) -> Stream:
    """Selection."""
    return events.bid.filter(col("auction") % 123 == 0).select("auction", "price")


def q3(events: Events) -> Stream:
    """Local item suggestion: who sells in some states, and what."""
    persons = events.person.filter(col("state").is_in(["or", "id", "ca"]))
    auctions = events.auction.filter(col("category") == 10)
    return auctions.join(persons, on={"seller": "id"}).select("name", "city", "state", "id")


def q4(events: Events) -> Stream:
    """Average winning price of each category, as it changes."""
    winning = bids_in_time(events).group_by("id", "category").agg(final=ms.max("price"))
    return winning.group_by("category").agg(avg_final=ms.mean("final")).changes()


def q5(events: Events) -> Stream:
    """Hot items: of every 10 s, each 2 s, the auctions with the most bids; ties are all kept."""
    counts = events.bid.group_by("auction").window(ms.sliding("10s", "2s")).agg(num=ms.count())
    # A result happens at the end of its window: there is one such end in every 2 s.
    hottest = counts.window(ms.tumbling("2s")).top(1, by="num", ties=True)
    return hottest.select("auction", "num", _micros("window_end"))


def q6(events: Events) -> Stream:
    """Average winning price of each seller's last ten auctions, as it changes."""
    winning = bids_in_time(events).group_by("id", "seller", "expires").agg(final=ms.max("price"))
    last = winning.group_by("seller").top(10, by=["expires", "id"])
    return last.group_by("seller").agg(avg_price=ms.mean("final")).changes()


def q7(events: Events) -> Stream:
    """Highest bid of every 10 s; ties are all kept."""
    highest = events.bid.window(ms.tumbling("10s")).top(1, by="price", ties=True)
    return highest.select("auction", "bidder", "price", "date_time")


def q8(events: Events) -> Stream:
    """New users who opened an auction in the same 10 s."""
    # A batch of persons is three times as long in event time as one of auctions: unchecked, they would pile up.
    events = events.in_step("30s")
    sellers = events.person.join(events.auction, on={"id": "seller"}, how="semi", window=ms.tumbling("10s"))
    return sellers.select("id", "name", _micros("window_start"))


def q9(events: Events) -> Stream:
    """Winning bid of every auction, as it changes."""
    bids = bids_in_time(events).select("id", "seller", "category", "bidder", "price", date_time=col("bid_time"))
    return bids.group_by("id").top(1, by=["price", "date_time"], descending=[True, False]).changes()


def q10(events: Events) -> Stream:
    """Every bid, to files by day, hour and minute."""
    time = col("date_time").dt
    return events.bid.with_columns(day=time.strftime("%Y-%m-%d"), hour=time.hour(), minute=time.minute())


def q11(events: Events) -> Stream:
    """How often each bidder bids before a pause of 10 s."""
    sessions = events.bid.group_by("bidder").window(ms.session("10s")).agg(bid_count=ms.count())
    return sessions.select("bidder", "bid_count", _micros("window_start"), _micros("window_end"))


def q12(events: Events) -> Stream:
    """How often each bidder bids in 10 s of processing time."""
    counts = events.bid.group_by("bidder").window(ms.tumbling("10s", time="processing")).agg(bid_count=ms.count())
    return counts.select("bidder", "bid_count", _micros("window_start"), _micros("window_end"))


def q13(events: Events) -> Stream:
    """Bids with the rows of a bounded side input."""
    keys = np.arange(SIDE_KEYS)
    side = pa.table({"key": keys, "value": np.char.add("value ", keys.astype(np.str_))})
    bid = events.bid.with_columns(key=col("auction") % SIDE_KEYS)
    return bid.join_table(ms.memory_source(side, name="side"), on="key").select(
        "auction", "bidder", "price", "date_time", "value"
    )


def q14(events: Events) -> Stream:
    """Calculation: part of the day, and how often the letter c occurs."""
    price = 0.908 * col("price")
    hour = col("date_time").dt.hour()
    day, night = hour.between(8, 18), (hour <= 6) | (hour >= 20)
    return events.bid.filter((price > 1_000_000) & (price < 50_000_000)).select(
        "auction",
        "bidder",
        price.alias("price"),
        when(day).then("dayTime").when(night).then("nightTime").otherwise("otherTime").alias("bid_time_type"),
        "date_time",
        "extra",
        c_counts=col("extra").str.count("c"),
    )


def q15(events: Events) -> Stream:
    """Statistics of bids per day."""
    bid = events.bid.with_columns(day=_DAY)
    return bid.group_by("day").agg(**_RANKS, **_DISTINCT).changes()


def q16(events: Events) -> Stream:
    """Statistics of bids per channel and day."""
    bid = events.bid.with_columns(day=_DAY)
    return bid.group_by("channel", "day").agg(total=ms.count(), **_DISTINCT).changes()


def q17(events: Events) -> Stream:
    """Statistics of bids per auction and day."""
    by_day = events.bid.with_columns(day=_DAY).group_by("auction", "day")
    return by_day.agg(
        **_RANKS,
        min_price=ms.min("price"),
        max_price=ms.max("price"),
        avg_price=ms.mean("price"),
        sum_price=ms.sum("price"),
    ).changes()


def q18(events: Events) -> Stream:
    """Last bid of every bidder on every auction, as it changes."""
    bids = events.bid.select("auction", "bidder", "price", "channel", "url", "date_time", "extra")
    return bids.deduplicate("bidder", "auction", keep="last").changes()


def q19(events: Events) -> Stream:
    """Top ten bids on every auction, as they change."""
    bids = events.bid.group_by("auction").top(10, by=["price", "date_time"], descending=[True, False])
    return bids.select("auction", "bidder", "price", "date_time").changes()


def q20(events: Events) -> Stream:
    """Bids with the auctions of category 10."""
    auctions = events.auction.filter(col("category") == 10)
    pairs = events.bid.join(auctions, on={"auction": "id"}, suffix="_of_auction")
    return pairs.select("auction", "bidder", "price", "channel", "date_time", "item_name", "category", "seller")


def q21(events: Events) -> Stream:
    """Channel id, by name or from the url."""
    channel = col("channel").str.lower()
    in_url = col("url").str.extract("(&|^)channel_id=([^&]*)", 2)
    known = when(channel == "apple").then("0").when(channel == "google").then("1")
    known = known.when(channel == "facebook").then("2").when(channel == "baidu").then("3")
    return events.bid.filter((in_url != "") | channel.is_in(["apple", "google", "facebook", "baidu"])).select(
        "auction", "bidder", "price", "channel", channel_id=known.otherwise(in_url)
    )


def q22(events: Events) -> Stream:
    """Folders of the url."""
    folders = {f"dir{n}": col("url").str.split_part("/", n + 3) for n in (1, 2, 3)}
    return events.bid.select("auction", "bidder", "price", "channel", **folders)


def _micros(column: str) -> Expr:
    return col(column).cast("int64").alias(column)


QUERIES: Final[dict[str, Query]] = {
    query.__name__: query
    for query in (
        *(q0, q1, q2, q3, q4, q5, q6, q7, q8, q9, q10, q11, q12, q13),
        *(q14, q15, q16, q17, q18, q19, q20, q21, q22),
    )
}

PARTITIONS: Final[Mapping[str, tuple[str, ...]]] = {"q10": ("day", "hour", "minute")}
"""What the files of a query's result are partitioned by, where they are."""
