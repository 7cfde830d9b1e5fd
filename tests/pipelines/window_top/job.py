"""The highest bid of every ten seconds, ties included: Nexmark q7."""

import millstream as ms

job = ms.Job("window_top")
(
    job.read(ms.files("input/bids/*.parquet"), event_time="date_time", max_delay="10s")
    .window(ms.tumbling("10s"))
    .top(1, by="price", ties=True)
    .select("auction", "bidder", "price", "date_time")
    .write(ms.parquet("output/highest", hold_bytes=0))
)
