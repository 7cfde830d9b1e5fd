create view by_origin as select scheduled_at, carrier, flight, origin from 'input/flights/*.parquet';
