create view weather as
from read_csv('input/weather/*.csv', columns = {
    'observed_at': 'timestamp', 'origin': 'varchar', 'temp': 'double', 'wind_gust': 'double'
});
create view measures as
select observed_at as "at", lower(origin) as station, 'celsius' as measure, (temp - 32) * 5 / 9 as value
from weather where temp is not null
union all
select observed_at, lower(origin), 'gust', wind_gust from weather where wind_gust is not null;
