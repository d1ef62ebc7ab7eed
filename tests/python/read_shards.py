#!/usr/bin/env python3
"""Reads a cache with pyarrow, DuckDB, Polars and pandas, and prints as JSON what each of them saw.

    target/venv-readers/bin/python tests/python/read_shards.py CACHE

{"readers": {NAME: {"version", "rows", "types": {column: text}, "sums": {column: number}, "digests": {column: sha256},
"first_row": {column: value}}}}. Sums of integer columns are exact integers, of float columns sums in double precision. A digest covers the lengths
of every list and every value (integers as int64, floats as float32), so two readers with equal digests saw the same column. Exit code 1, with a
line per difference on standard error, where the four disagree.
"""

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as parquet


class Column:
    """A column as flat values and, for each nesting, the lengths of its lists; grows file by file."""

    def __init__(self):
        self.digest, self.sum, self.first = hashlib.sha256(), 0, None

    def add(self, lengths: list[np.ndarray], values: np.ndarray) -> None:
        whole = np.issubdtype(values.dtype, np.integer)
        if not whole and values.dtype != np.float32:
            raise TypeError(f"values of type {values.dtype}")
        if self.first is None:
            self.first = first_value(lengths, values)
        for counts in lengths:
            self.digest.update(counts.astype("<i8").tobytes())
        self.digest.update(values.astype("<i8" if whole else "<f4").tobytes())
        self.sum += int(values.astype(np.int64).sum()) if whole else float(values.astype(np.float64).sum())


def first_value(lengths: list[np.ndarray], values: np.ndarray):
    """The first row's value; of a nested list the first inner list alone."""
    if not lengths:
        return values[0].item()
    return values[: int(lengths[-1][0])].tolist()


def flatten(array: pa.Array) -> tuple[list[np.ndarray], np.ndarray]:
    """Lengths per nesting and the flat values of an Arrow array without nulls."""
    lengths = []
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        lengths.append(np.diff(array.offsets.to_numpy()))
        array = array.flatten()
    if array.null_count:
        raise ValueError(f"{array.null_count} nulls")
    return lengths, array.to_numpy(zero_copy_only=False)


def flatten_objects(values: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The same of a pandas column: arrays of arrays."""
    lengths = []
    while values.dtype == object:
        lengths.append(np.array([len(value) for value in values], dtype=np.int64))
        values = np.concatenate(list(values))
    return lengths, values


def by_pyarrow(path: Path):
    table = parquet.read_table(path)
    return {field.name: str(field.type) for field in table.schema}, arrow_columns(table)


def by_duckdb(path: Path):
    relation = duckdb.connect().read_parquet(str(path))
    return dict(zip(relation.columns, map(str, relation.types))), arrow_columns(relation.to_arrow_table())


def by_polars(path: Path):
    frame = polars.read_parquet(path)
    return {name: str(kind) for name, kind in frame.schema.items()}, arrow_columns(frame.to_arrow())


def by_pandas(path: Path):
    frame = pandas.read_parquet(path)
    return {name: str(frame[name].dtype) for name in frame}, {name: flatten_objects(frame[name].to_numpy()) for name in frame}


def arrow_columns(table: pa.Table):
    return {name: flatten(table.column(name).combine_chunks()) for name in table.column_names}


READERS = {"pyarrow": by_pyarrow, "duckdb": by_duckdb, "polars": by_polars, "pandas": by_pandas}


def view(cache: Path, name: str) -> dict:
    """What one reader sees in all shards. Columns of the hidden files are added to those of the logits files, row by row."""
    rows, types, columns = 0, {}, {}
    for path in sorted(cache.glob("logits-*.parquet")):
        kinds, read = READERS[name](path)
        identifiers = read["sequence_id"][1]
        rows += len(identifiers)
        hidden = path.with_name(path.name.replace("logits-", "hidden-"))
        if hidden.exists():
            more_kinds, more = READERS[name](hidden)
            if not np.array_equal(more.pop("sequence_id")[1], identifiers):
                sys.exit(f"{hidden} holds other sequences than {path}")
            kinds, read = {**more_kinds, **kinds}, {**read, **more}
        types.update(kinds)
        for column, (lengths, values) in read.items():
            columns.setdefault(column, Column()).add(lengths, values)
    if not columns:
        sys.exit(f"{cache} holds no logits-*.parquet")
    return {
        "version": version(name),
        "rows": rows,
        "types": types,
        "sums": {name: column.sum for name, column in columns.items()},
        "digests": {name: column.digest.hexdigest() for name, column in columns.items()},
        "first_row": {name: column.first for name, column in columns.items()},
    }


def differences(views: dict[str, dict]) -> list[str]:
    """Where a reader saw something else than the first one."""
    (witness, expected), *others = views.items()
    lines = []
    for name, found in others:
        if found["rows"] != expected["rows"]:
            lines.append(f"{name} sees {found['rows']} rows, {witness} {expected['rows']}")
        for part in ("sums", "digests", "first_row"):
            wrong = [column for column in {**expected[part], **found[part]} if expected[part].get(column) != found[part].get(column)]
            lines += [f"{part} of {column}: {name} {found[part].get(column)}, {witness} {expected[part].get(column)}" for column in wrong]
    return lines


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    views = {name: view(Path(sys.argv[1]), name) for name in READERS}
    print(json.dumps({"readers": views}))
    lines = differences(views)
    print("\n".join(lines), file=sys.stderr, end="\n" if lines else "")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
