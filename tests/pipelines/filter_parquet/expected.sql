create view delayed as
select carrier, flight, tailnum, date_trunc('day', scheduled_at)::timestamp as day, dep_delay_min / 60.0::double as hours
from 'input/flights/*.parquet'
where dep_delay_min > 0 and origin <> 'LGA';
