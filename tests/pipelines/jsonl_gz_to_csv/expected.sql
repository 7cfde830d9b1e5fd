create view notes as
select id, "user", note, coalesce(amount, -1) as amount, length(note) > 5 as long
from read_json('input/notes/*.jsonl.gz', format = 'newline_delimited', columns = {
    'id': 'bigint', 'user': 'varchar', 'note': 'varchar', 'amount': 'bigint'
});
