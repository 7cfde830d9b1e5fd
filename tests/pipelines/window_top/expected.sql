create view highest as
select auction, bidder, price, date_time from 'input/bids/*.parquet'
qualify price = max(price) over (partition by epoch_us(date_time) // 10000000);
