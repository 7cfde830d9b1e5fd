"""A function over whole Arrow batches that drops rows and adds a column."""

import millstream as ms
import pyarrow as pa
import pyarrow.compute as pc


def gained(batch: pa.RecordBatch) -> pa.RecordBatch:
    """How much of the delay was made up in the air; flights that never landed are left out."""
    gain = pc.subtract(batch["dep_delay_min"], batch["arr_delay_min"])
    columns = [batch["carrier"], batch["flight"], batch["dest"], gain]
    whole = pa.RecordBatch.from_arrays(columns, names=["carrier", "flight", "dest", "gained_min"])
    return whole.filter(pc.is_valid(gain))


job = ms.Job("batch_function")
(
    job.read(ms.files("input/flights/*.parquet"))
    .map_batches(gained, name="gained")
    .write(ms.parquet("output/gained", hold_bytes=0))
)
