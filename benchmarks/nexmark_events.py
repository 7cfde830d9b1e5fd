"""Nexmark events: persons, auctions and bids, as a pure function of (seed, event numbers).

Every 50 events are 1 person, 3 auctions and 46 bids. Ids, hot keys, prices and sizes follow the public
Nexmark generator. The number of an event is its place in arrival order; with ``disorder`` its event time
is another matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.benchmarks.nexmark_random import Bits, Numbers, below, draw, text, unit

ROUND: Final = 50
"""After so many events the kinds repeat: a person, 3 auctions, 46 bids."""

PLACES: Final = {"person": (0, 1), "auction": (1, 4), "bid": (4, 50)}
"""Which places of a round, ``[first, last)``, each stream has."""

FIRST_ID: Final = 1_000
FIRST_CATEGORY: Final = 10
CATEGORIES: Final = 5
HOT_BATCH: Final = 100  # the first person (auction) of a hundred sells (is bid on) most; the second buys most
LEAD: Final = 10  # so many persons and auctions are named before they exist
AUCTIONS_IN_FLIGHT: Final = 100
ACTIVE_PERSONS: Final = 1_000
CHANNELS: Final = 10_000
HOT_CHANNELS: Final = ("Google", "Facebook", "Baidu", "Apple")
FIRST_TIME: Final = 1_436_918_400_000_000  # 2015-07-15T00:00:00Z

_AUCTIONS: Final = 3
_FIRST_NAMES: Final = (
    "Peter",
    "Paul",
    "Luke",
    "John",
    "Saul",
    "Vicky",
    "Kate",
    "Julie",
    "Sarah",
    "Deiter",
    "Walter",
)
_LAST_NAMES: Final = ("Shultz", "Abrams", "Spencer", "White", "Bartels", "Walton", "Smith", "Jones", "Noris")
_CITIES: Final = (
    "phoenix",
    "los angeles",
    "san francisco",
    "boise",
    "portland",
    "bend",
    "redmond",
    "seattle",
    "kent",
    "cheyenne",
)
_STATES: Final = ("az", "ca", "id", "or", "wa", "wy")

_TIME = pa.timestamp("us")

PERSON: Final = pa.schema(
    [
        ("id", pa.int64()),
        ("name", pa.string()),
        ("email_address", pa.string()),
        ("credit_card", pa.string()),
        ("city", pa.string()),
        ("state", pa.string()),
        ("date_time", _TIME),
        ("extra", pa.string()),
    ]
)
AUCTION: Final = pa.schema(
    [
        ("id", pa.int64()),
        ("item_name", pa.string()),
        ("description", pa.string()),
        ("initial_bid", pa.int64()),
        ("reserve", pa.int64()),
        ("date_time", _TIME),
        ("expires", _TIME),
        ("seller", pa.int64()),
        ("category", pa.int64()),
        ("extra", pa.string()),
    ]
)
BID: Final = pa.schema(
    [
        ("auction", pa.int64()),
        ("bidder", pa.int64()),
        ("price", pa.int64()),
        ("channel", pa.string()),
        ("url", pa.string()),
        ("date_time", _TIME),
        ("extra", pa.string()),
    ]
)
SCHEMAS: Final = {"person": PERSON, "auction": AUCTION, "bid": BID}


@dataclass(frozen=True, slots=True)
class Timing:
    """When events happen.

    Attributes:
        rate: events in a second of event time, at most 1,000,000, so that no two have the same time.
        disorder: microseconds by which a row may be behind the latest one before it.
        first: event time at which the data starts, in microseconds.
    """

    rate: int = 10_000
    disorder: int = 0
    first: int = FIRST_TIME


USUAL: Final = Timing()


def event_numbers(stream: str, start: int, stop: int) -> Numbers:
    """Return the numbers in ``[start, stop)`` of the events that belong to a stream.

    >>> event_numbers("auction", 0, 60).tolist()
    [1, 2, 3, 51, 52, 53]
    """
    numbers = np.arange(start, stop, dtype=np.int64)
    first, last = PLACES[stream]
    place = numbers % ROUND
    return numbers[(place >= first) & (place < last)]


def event_of_row(stream: str, row: int) -> int:
    """Return the number of the event that is a stream's row ``row``.

    >>> event_of_row("bid", 0), event_of_row("bid", 46), event_of_row("person", 2)
    (4, 54, 100)
    """
    first, last = PLACES[stream]
    rounds, place = divmod(row, last - first)
    return rounds * ROUND + first + place


def rows_of(stream: str, events: int) -> int:
    """Return how many of the first ``events`` events belong to a stream.

    >>> [rows_of(stream, 1_000) for stream in ("person", "auction", "bid")]
    [20, 60, 920]
    """
    first, last = PLACES[stream]
    rounds, rest = divmod(events, ROUND)
    return rounds * (last - first) + min(max(rest - first, 0), last - first)


def event_times(seed: int, numbers: Numbers, timing: Timing) -> Numbers:
    """Return event times in microseconds; ``numbers`` ascend.

    With disorder, events change places within blocks that last as long as the disorder: times stay unique,
    and no row is further behind than that.
    """
    slots = numbers
    block = timing.disorder * timing.rate // 1_000_000
    if block > 1 and len(numbers):
        base = int(numbers[0]) // block * block
        blocks = int(numbers[-1]) // block - base // block + 1
        keys = draw(seed, "disorder", np.arange(base, base + blocks * block, dtype=np.int64))
        order = np.argsort(keys.reshape(blocks, block), axis=1, kind="stable")
        shuffled = order + np.arange(base, base + blocks * block, block, dtype=np.int64)[:, None]
        slots = shuffled.ravel()[numbers - base]
    return timing.first + slots * 1_000_000 // timing.rate


def last_person(numbers: Numbers) -> Numbers:
    """Return how many persons came before the last one that exists at each event."""
    return numbers // ROUND


def last_auction(numbers: Numbers) -> Numbers:
    """Return how many auctions came before the last one that exists at each event; -1 when none does."""
    return numbers // ROUND * _AUCTIONS + np.minimum(numbers % ROUND, _AUCTIONS) - 1


def persons(seed: int, start: int, stop: int, timing: Timing = USUAL) -> pa.RecordBatch:
    """Return the persons among events ``[start, stop)``, with the columns of PERSON.

    >>> persons(1, 0, 100).column("id").to_pylist()
    [1000, 1001]
    """
    numbers = event_numbers("person", start, stop)

    def bits(column: str) -> Bits:
        return draw(seed, f"person.{column}", numbers)

    name = _joined(" ", _choice(_FIRST_NAMES, bits("first_name")), _choice(_LAST_NAMES, bits("last_name")))
    email = _joined("", _words(bits("mailbox"), 7), "@", _words(bits("host"), 5), ".com")
    card = _joined(" ", *(_choice(_four_digits(), bits(f"credit_card{group}")) for group in range(4)))
    city = _choice(_CITIES, bits("city"))
    state = _choice(_STATES, bits("state"))
    size = sum((_lengths(column) for column in (name, email, card, city, state)), np.full(len(numbers), 8))
    columns = {
        "id": pa.array(FIRST_ID + last_person(numbers)),
        "name": name,
        "email_address": email,
        "credit_card": card,
        "city": city,
        "state": state,
        "date_time": _timestamps(event_times(seed, numbers, timing)),
        "extra": _extra(bits("extra"), size, 200),
    }
    return pa.record_batch(columns, schema=PERSON)


def auctions(seed: int, start: int, stop: int, timing: Timing = USUAL) -> pa.RecordBatch:
    """Return the auctions among events ``[start, stop)``, with the columns of AUCTION.

    >>> auctions(1, 0, 50).column("id").to_pylist()
    [1000, 1001, 1002]
    """
    numbers = event_numbers("auction", start, stop)

    def bits(column: str) -> Bits:
        return draw(seed, f"auction.{column}", numbers)

    time = event_times(seed, numbers, timing)
    in_flight_ms = AUCTIONS_IN_FLIGHT * ROUND // _AUCTIONS * 1_000 // timing.rate
    lasts_ms = 1 + below(bits("expires"), max(2 * in_flight_ms, 1))
    hot_seller = last_person(numbers) // HOT_BATCH * HOT_BATCH
    seller = np.where(below(bits("hot_seller"), 4) > 0, hot_seller, _some_person(bits("seller"), numbers))
    item_name = _words(bits("item_name"), 20, gap=" ")
    description = _words(bits("description"), 100, gap=" ")
    initial_bid = _prices(bits("initial_bid"))
    columns = {
        "id": pa.array(FIRST_ID + last_auction(numbers)),
        "item_name": item_name,
        "description": description,
        "initial_bid": pa.array(initial_bid),
        "reserve": pa.array(initial_bid + _prices(bits("reserve"))),
        "date_time": _timestamps(time),
        "expires": _timestamps(time + lasts_ms * 1_000),
        "seller": pa.array(FIRST_ID + seller),
        "category": pa.array(FIRST_CATEGORY + below(bits("category"), CATEGORIES)),
        "extra": _extra(bits("extra"), 48 + _lengths(item_name) + _lengths(description), 500),
    }
    return pa.record_batch(columns, schema=AUCTION)


def bids(seed: int, start: int, stop: int, timing: Timing = USUAL) -> pa.RecordBatch:
    """Return the bids among events ``[start, stop)``, with the columns of BID.

    >>> bids(1, 0, 1_000).num_rows
    920
    """
    numbers = event_numbers("bid", start, stop)

    def bits(column: str) -> Bits:
        return draw(seed, f"bid.{column}", numbers)

    hot_auction = last_auction(numbers) // HOT_BATCH * HOT_BATCH
    auction = np.where(below(bits("hot_auction"), 2) > 0, hot_auction, _some_auction(bits("auction"), numbers))
    hot_bidder = last_person(numbers) // HOT_BATCH * HOT_BATCH + 1
    bidder = np.where(below(bits("hot_bidder"), 4) > 0, hot_bidder, _some_person(bits("bidder"), numbers))
    hot = len(HOT_CHANNELS)
    is_hot = below(bits("hot_channel"), 2) > 0
    which = pa.array(np.where(is_hot, below(bits("channel"), hot), hot + below(bits("channel"), CHANNELS)))
    channels, urls = _channels(seed)
    columns = {
        "auction": pa.array(FIRST_ID + auction),
        "bidder": pa.array(FIRST_ID + bidder),
        "price": pa.array(_prices(bits("price"))),
        "channel": channels.take(which),
        "url": urls.take(which),
        "date_time": _timestamps(event_times(seed, numbers, timing)),
        "extra": _extra(bits("extra"), np.full(len(numbers), 32), 100),
    }
    return pa.record_batch(columns, schema=BID)


MAKERS: Final = {"person": persons, "auction": auctions, "bid": bids}


def _some_person(bits: Bits, numbers: Numbers) -> Numbers:
    """Return one of the active persons, or one of the next few."""
    known = last_person(numbers) + 1
    active = np.minimum(known, ACTIVE_PERSONS)
    return known - active + below(bits, active + LEAD)


def _some_auction(bits: Bits, numbers: Numbers) -> Numbers:
    """Return one of the auctions probably in flight, or one of the next few."""
    last = last_auction(numbers)
    oldest = np.maximum(last - AUCTIONS_IN_FLIGHT, 0)
    return oldest + below(bits, last - oldest + 1 + LEAD)


def _prices(bits: Bits) -> Numbers:
    """Return prices in cents whose logarithms are uniform: 1 to 1,000,000 units of money."""
    return np.rint(np.power(10.0, unit(bits) * 6.0) * 100.0).astype(np.int64)


def _extra(bits: Bits, size: Numbers, average: int) -> pa.StringArray:
    """Return padding that makes rows of ``size`` bytes about ``average`` bytes long, a fifth more or less."""
    missing = np.maximum(average - size, 0)
    spread = np.rint(missing * 0.2).astype(np.int64)
    return text(bits, missing - spread + below(bits, np.maximum(2 * spread, 1)))


def _words(bits: Bits, longest: int, gap: str | None = None) -> pa.StringArray:
    """Return texts of at least 3 and less than ``longest`` letters."""
    return text(bits, 3 + below(bits, longest - 3), gap)


def _choice(values: tuple[str, ...], bits: Bits) -> pa.StringArray:
    return pa.array(values).take(pa.array(below(bits, len(values))))


def _joined(between: str, *parts: pa.StringArray | str) -> pa.StringArray:
    return pc.binary_join_element_wise(*parts, between)


def _lengths(column: pa.StringArray) -> Numbers:
    lengths: Numbers = pc.binary_length(column).to_numpy().astype(np.int64)
    return lengths


def _timestamps(micros: Numbers) -> pa.TimestampArray:
    return pa.array(micros).cast(_TIME)


@lru_cache(maxsize=1)
def _four_digits() -> tuple[str, ...]:
    return tuple(f"{number:04d}" for number in range(10_000))


@lru_cache(maxsize=4)
def _channels(seed: int) -> tuple[pa.StringArray, pa.StringArray]:
    """Return the names and urls of all channels, the hot ones first; nine of ten others have a channel id."""
    numbers = np.arange(len(HOT_CHANNELS) + CHANNELS, dtype=np.int64)
    folders = [_words(draw(seed, f"channel.folder{level}", numbers), 5, gap="_") for level in range(3)]
    base = _joined("/", "https://www.nexmark.com", *folders, "item.htm?query=1")
    names = [*HOT_CHANNELS, *(f"channel-{number}" for number in range(CHANNELS))]
    ids = ["", "", "", "", *(f"&channel_id={_channel_id(number)}" for number in range(CHANNELS))]
    has_id = pa.array(below(draw(seed, "channel.has_id", numbers), 10) > 0)
    return pa.array(names), _joined("", base, pc.if_else(has_id, pa.array(ids), ""))


def _channel_id(channel: int) -> int:
    """Return the channel's number with its 32 bits in reverse order, without the sign."""
    reverse = int(f"{channel:032b}"[::-1], 2)
    return reverse if reverse < 2**31 else 2**32 - reverse
