"""Rows of a cache as numpy arrays, for the peers that train on it or ask its teacher again."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet


def manifest(cache: Path) -> dict:
    return json.loads((cache / "manifest.json").read_text())


def shards(cache: Path, columns: list[str]):
    """Per shard, a table of those of `columns` that its files have; logits and hidden states side by side, since their rows are the same."""
    for entry in manifest(cache)["shards"]:
        table = None
        for kind in ("logits", "hidden"):
            if not entry.get(kind):
                continue
            file = parquet.ParquetFile(cache / entry[kind]["name"])
            part = file.read(columns=[name for name in file.schema_arrow.names if name in columns])
            if table is None:
                table = part
            else:
                for name in part.column_names:
                    if name not in table.column_names:
                        table = table.append_column(name, part.column(name))
        yield table.combine_chunks()


def lists(table, name: str) -> list[np.ndarray]:
    """A column of lists, one array a row; lists of lists become matrices."""
    column = table.column(name).chunk(0)
    ends, values = column.offsets.to_numpy(), column.values
    if hasattr(values, "offsets"):
        inner = values.offsets.to_numpy()
        width = int(inner[1] - inner[0])
        flat = values.values.to_numpy(zero_copy_only=False).reshape(-1, width)
    else:
        flat = values.to_numpy(zero_copy_only=False)
    return [flat[start:end] for start, end in zip(ends[:-1], ends[1:])]
