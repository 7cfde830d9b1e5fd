-- A row is late if its window had fired: its end lies 30 s or more before the newest row of the batches before.
create view timed as
select *, time_bucket(interval 1 minute, "at", timestamp '1970-01-01') as start, "row" // 80 as batch
from 'input/readings.parquet';
create view batches as
select batch, max(max("at")) over (order by batch rows between unbounded preceding and 1 preceding) as newest
from timed group by batch;
create view judged as
select timed.*, coalesce(start + interval 1 minute <= newest - interval 30 second, false) as is_late
from timed join batches using (batch);
create view minutes as
select sensor, start as window_start, start + interval 1 minute as window_end, count(*) as rows,
    sum(value)::bigint as total, min(value) as lowest, avg(value) as mean
from judged where not is_late group by sensor, start;
create view late as select "row", sensor, value, "at" from judged where is_late;
