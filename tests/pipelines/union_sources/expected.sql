create view flights as
select scheduled_at, carrier, flight, origin, dest, case when origin = 'EWR' then 'NJ' else 'NY' end as state
from 'input/flights/*.parquet';
