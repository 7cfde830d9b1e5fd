create view flights as select carrier, flight, dest, dep_delay_min from 'input/flights/*.parquet';
create view late as from flights where dep_delay_min > 15;
create view early as from flights where dep_delay_min < 0;
create view rest as from flights where dep_delay_min is null or dep_delay_min between 0 and 15;
