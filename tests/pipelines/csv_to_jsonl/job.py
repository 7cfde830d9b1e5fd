"""CSV to JSON lines through Python functions: map, then flat_map."""

import millstream as ms
import pyarrow as pa

WEATHER = pa.schema(
    {"observed_at": pa.timestamp("us"), "origin": pa.string(), "temp": pa.float64(), "wind_gust": pa.float64()}
)


def metric(row):
    celsius = None if row["temp"] is None else (row["temp"] - 32) * 5 / 9
    return {"at": row["observed_at"], "station": row["origin"].lower(), "celsius": celsius, "gust": row["wind_gust"]}


def measures(row):
    for measure in ("celsius", "gust"):
        if row[measure] is not None:
            yield {"at": row["at"], "station": row["station"], "measure": measure, "value": row[measure]}


job = ms.Job("csv_to_jsonl")
(
    job.read(ms.files("input/weather/*.csv", schema=WEATHER))
    .map(metric, schema={"at": pa.timestamp("us"), "station": "string", "celsius": "float64", "gust": "float64"})
    .flat_map(measures, schema={"at": pa.timestamp("us"), "station": "string", "measure": "string", "value": "float64"})
    .write(ms.jsonl("output/measures", hold_bytes=0))
)
