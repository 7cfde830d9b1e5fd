create view made as
select n, 'b' || (n * n % 11) as button,
    make_timestamp(n * 2500000 - (n * 7919 % 13) * 1000000 + 12000000) as "at"
from range(1500) as numbers(n);
create view clicks as
select button, time_bucket(interval 2 minute, "at", timestamp '1970-01-01') as window_start,
    window_start + interval 2 minute as window_end, count(*) as clicks, max(n) as newest, sum(n)::bigint as total
from made group by button, window_start;
