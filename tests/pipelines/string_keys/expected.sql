create view visits as
select site, page, time_bucket(interval 10 minute, "at", timestamp '1970-01-01') as window_start,
    window_start + interval 10 minute as window_end, count(*) as visits, count(seconds) as timed,
    sum(seconds)::bigint as seconds, max(seconds) as longest
from read_json('input/visits/*.jsonl', format = 'newline_delimited', columns = {
    'site': 'varchar', 'page': 'varchar', 'seconds': 'bigint', 'at': 'timestamp'
}) group by site, page, window_start;
