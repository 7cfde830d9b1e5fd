"""What each Nexmark query means: DuckDB SQL over all events at once; a stream's result must be the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SQL: Final[dict[str, str]] = {
    "q0": """
        select auction, bidder, price, date_time, extra from bid
    """,
    "q1": """
        select auction, bidder, 0.908::double * price as price, date_time, extra from bid
    """,
    "q2": """
        select auction, price from bid where auction % 123 = 0
    """,
    "q3": """
        select p.name, p.city, p.state, a.id from auction a join person p on a.seller = p.id
        where a.category = 10 and p.state in ('or','id','ca')
    """,
    "q4": """
        select category, avg(final) as avg_final from (
            select a.id, a.category, max(b.price) as final from auction a join bid b on a.id = b.auction
            where b.date_time between a.date_time and a.expires group by 1,2
        ) group by 1
    """,
    "q5": """
        with p as (
            select auction, (epoch_us(date_time) // 2000000) as pane, count(*) as c from bid group by 1,2
        ),
        h as (
            select auction, pane + g.i as window_end, sum(c)::bigint as num
            from p, (select unnest([1,2,3,4,5]) as i) g group by 1,2
        )
        select auction, num, window_end * 2000000 as window_end from h
        qualify num = max(num) over (partition by window_end)
    """,
    "q6": """
        select seller, avg(final) as avg_price from (
            select seller, final, row_number() over (partition by seller order by expires desc, id desc) as rn
            from (
                select a.id, a.seller, a.expires, max(b.price) as final
                from auction a join bid b on a.id = b.auction
                where b.date_time between a.date_time and a.expires group by all
            )
        ) where rn <= 10 group by 1
    """,
    "q7": """
        select auction, bidder, price, date_time from bid
        qualify price = max(price) over (partition by (epoch_us(date_time) // 10000000))
    """,
    "q8": """
        select distinct p.id, p.name, (epoch_us(p.date_time) // 10000000) * 10000000 as window_start
        from person p join auction a
        on p.id = a.seller and (epoch_us(p.date_time) // 10000000) = (epoch_us(a.date_time) // 10000000)
    """,
    "q9": """
        select a.id, a.seller, a.category, b.bidder, b.price, b.date_time
        from auction a join bid b on a.id = b.auction where b.date_time between a.date_time and a.expires
        qualify row_number() over (partition by a.id order by b.price desc, b.date_time asc) = 1
    """,
    "q10": """
        select * from bid
    """,
    "q11": """
        with s as (
            select bidder, epoch_us(date_time) as t,
                case when epoch_us(date_time)
                    - lag(epoch_us(date_time)) over (partition by bidder order by date_time) < 10000000
                    then 0 else 1 end as n
            from bid
        ),
        g as (
            select bidder, t, sum(n) over (partition by bidder order by t rows unbounded preceding) as sid
            from s
        )
        select bidder, count(*) as bid_count, min(t) as window_start, max(t) + 10000000 as window_end
        from g group by bidder, sid
    """,
    "q12": """
        select bidder, count(*) as bid_count from bid group by 1
    """,
    "q13": """
        select b.auction, b.bidder, b.price, b.date_time, s.value
        from bid b join (select range as key, 'value ' || range as value from range(10000)) s
        on b.auction % 10000 = s.key
    """,
    "q14": """
        select auction, bidder, 0.908::double * price as price,
            case when extract(hour from date_time) between 8 and 18 then 'dayTime'
                when extract(hour from date_time) <= 6 or extract(hour from date_time) >= 20 then 'nightTime'
                else 'otherTime' end as bid_time_type,
            date_time, extra, length(extra) - length(replace(extra, 'c', '')) as c_counts
        from bid where 0.908::double * price > 1000000 and 0.908::double * price < 50000000
    """,
    "q15": """
        select strftime(date_time, '%Y-%m-%d') as day, count(*) as total,
            count(*) filter (price < 10000) as rank1,
            count(*) filter (price >= 10000 and price < 1000000) as rank2,
            count(*) filter (price >= 1000000) as rank3,
            count(distinct bidder) as bidders, count(distinct auction) as auctions
        from bid group by 1
    """,
    "q16": """
        select channel, strftime(date_time, '%Y-%m-%d') as day, count(*) as total,
            count(distinct bidder) as bidders, count(distinct auction) as auctions
        from bid group by 1,2
    """,
    "q17": """
        select auction, strftime(date_time, '%Y-%m-%d') as day, count(*) as total,
            count(*) filter (price < 10000) as rank1,
            count(*) filter (price >= 10000 and price < 1000000) as rank2,
            count(*) filter (price >= 1000000) as rank3,
            min(price) as min_price, max(price) as max_price, avg(price) as avg_price,
            sum(price)::bigint as sum_price
        from bid group by 1,2
    """,
    "q18": """
        select auction, bidder, price, channel, url, date_time, extra from bid
        qualify row_number() over (partition by bidder, auction order by date_time desc) = 1
    """,
    "q19": """
        select auction, bidder, price, date_time from (
            select *, row_number() over (partition by auction order by price desc, date_time asc) as rn
            from bid
        ) where rn <= 10
    """,
    "q20": """
        select b.auction, b.bidder, b.price, b.channel, b.date_time, a.item_name, a.category, a.seller
        from bid b join auction a on b.auction = a.id where a.category = 10
    """,
    "q21": """
        select auction, bidder, price, channel,
            case when lower(channel) = 'apple' then '0' when lower(channel) = 'google' then '1'
                when lower(channel) = 'facebook' then '2' when lower(channel) = 'baidu' then '3'
                else regexp_extract(url, '(&|^)channel_id=([^&]*)', 2) end as channel_id
        from bid where regexp_extract(url, '(&|^)channel_id=([^&]*)', 2) <> ''
            or lower(channel) in ('apple','google','facebook','baidu')
    """,
    "q22": """
        select auction, bidder, price, channel, split_part(url,'/',4) as dir1, split_part(url,'/',5) as dir2,
            split_part(url,'/',6) as dir3
        from bid
    """,
}
"""The SQL of each query, over the tables ``person``, ``auction`` and ``bid``.

Of q10 the files matter: they are in folders by day, hour and minute.
"""

COMPARED: Final[Mapping[str, str]] = {
    # The windows are those of the clock; over all of them a bidder's counts must sum to that bidder's bids.
    "q12": "select bidder, sum(bid_count)::bigint as bid_count from written group by 1",
}
"""What of a query's result, the view ``written``, its SQL says, where that is not all of it."""
