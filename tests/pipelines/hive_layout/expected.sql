create view visits as
from read_json('input/visits/*.jsonl', format = 'newline_delimited', columns = {
    'site': 'varchar', 'page': 'varchar', 'seconds': 'bigint', 'at': 'timestamp'
});
