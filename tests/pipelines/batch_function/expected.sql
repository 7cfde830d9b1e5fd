create view gained as
select carrier, flight, dest, dep_delay_min - arr_delay_min as gained_min
from 'input/flights/*.parquet' where gained_min is not null;
