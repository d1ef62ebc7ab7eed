"""Writes the objects of a JSON Lines file as Parquet files, as other programs write them: write_parquet_corpus.py IN.jsonl OUT_DIRECTORY."""

import json
import pathlib
import sys

import pyarrow as pa
import pyarrow.parquet as pq

rows = [json.loads(line) for line in pathlib.Path(sys.argv[1]).read_text().splitlines()]
out = pathlib.Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
table = pa.Table.from_pylist(rows)


def with_type(change):
    """The table with the type of each column as `change` has it."""
    return table.cast(pa.schema([pa.field(field.name, change(field.type)) for field in table.schema]))


def large(kind):
    if pa.types.is_string(kind):
        return pa.large_string()
    return pa.large_list(large(kind.value_type)) if pa.types.is_list(kind) else kind


pq.write_table(table, out / "snappy.parquet", row_group_size=2)
pq.write_table(with_type(large), out / "large.parquet", compression="zstd", data_page_version="2.0")
coded = pa.table({name: column.dictionary_encode() if pa.types.is_string(column.type) else column for name, column in zip(table.column_names, table.columns)})
pq.write_table(coded, out / "dictionary.parquet", compression="gzip")
pq.write_table(table, out / "lz4.parquet", compression="lz4", use_dictionary=False, write_statistics=False)
