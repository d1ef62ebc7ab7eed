#!/usr/bin/env python3
"""What a cache's two large columns take in other encodings: bytes per token and writing speed on one thread, as a markdown table and JSON.

    target/venv-readers/bin/python tests/python/encodings.py CACHE [--shards N] [--json FILE]

Writes `top_ids` and `top_logits` of the first N shards (default 2) with pyarrow, one column and one encoding at a time, and adds what the order of the
values is worth: the same lists sorted by id, and as differences to the value before. The last lines are no encodings but bounds: the entropy of the
values one by one, which an ideal coder without a model of their context would need, and the cost of a permutation of k.
"""

import argparse
import io
import json
import math
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

ROW_GROUP_POSITIONS = 8192


def nested(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """[position, k] as a list column, one list for each position."""
    positions, k = values.shape
    return pa.ListArray.from_arrays(np.arange(0, (positions + 1) * k, k, dtype=np.int32), pa.array(values.ravel(), type=kind))


def written(values: np.ndarray, kind: pa.DataType, encoding: str, codec: str, level: int) -> tuple[int, float]:
    """Bytes of the column's pages, and seconds of processor time to write them."""
    table = pa.table({"column": nested(values, kind)})
    dictionary = encoding == "DICTIONARY"
    options = {} if dictionary else {"column_encoding": {"column.list.element": encoding}}
    buffer, began = io.BytesIO(), time.process_time()
    parquet.write_table(table, buffer, row_group_size=ROW_GROUP_POSITIONS, compression=codec, compression_level=level,
                        use_dictionary=dictionary, write_statistics=False, **options)
    seconds = time.process_time() - began
    metadata = parquet.ParquetFile(buffer).metadata
    return sum(metadata.row_group(i).column(0).total_compressed_size for i in range(metadata.num_row_groups)), seconds


def entropy(values: np.ndarray) -> float:
    """Bits per value."""
    counts = np.unique(values, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def read(cache: Path, shards: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Tokens, and ids and logits as [position, k]."""
    tokens, ids, logits = 0, [], []
    for path in sorted(cache.glob("logits-*.parquet"))[:shards]:
        table = parquet.read_table(path, columns=["input_ids", "top_ids", "top_logits"])
        tokens += len(table["input_ids"].combine_chunks().flatten())
        for name, into in (("top_ids", ids), ("top_logits", logits)):
            lists = table[name].combine_chunks().flatten()
            into.append(lists.flatten().to_numpy().reshape(len(lists), -1))
    return tokens, np.concatenate(ids), np.concatenate(logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tokens, ids, logits = read(arguments.cache, arguments.shards)
    k = ids.shape[1]
    by_id = np.argsort(ids, axis=1)
    sorted_ids = np.take_along_axis(ids, by_id, 1)
    sorted_logits = np.take_along_axis(logits, by_id, 1)
    codes = logits.astype(np.float16).view(np.uint16) & 0x7FFF
    id_steps = np.diff(sorted_ids.astype(np.int64), axis=1, prepend=0)
    code_steps = np.diff(codes.astype(np.int64), axis=1, prepend=0)
    logit_steps = np.diff(logits, axis=1, prepend=np.float32(0))
    id_type = pa.uint16() if ids.dtype == np.uint16 else pa.uint32()
    split = "BYTE_STREAM_SPLIT"
    # pyarrow splits the bytes of INT32 and not of UINT16, which Parquet stores as one; so these columns are written as int32 here.
    whole = pa.int32()
    cases = [("top_ids", "by rank", ids, kind, *how) for kind, *how in [
        (id_type, "PLAIN", "zstd", 1), (id_type, "DICTIONARY", "zstd", 1), (id_type, "DELTA_BINARY_PACKED", "zstd", 1), (whole, split, "zstd", 1),
        (whole, split, "zstd", 9), (whole, split, "brotli", 5)]]
    cases += [("top_ids", "by id", sorted_ids, kind, *how) for kind, *how in [
        (id_type, "DELTA_BINARY_PACKED", "zstd", 1), (id_type, "PLAIN", "zstd", 9), (whole, split, "zstd", 1), (whole, split, "zstd", 9)]]
    cases += [("top_ids", "by id, steps", id_steps, whole, split, "zstd", level) for level in (1, 9)]
    cases += [("top_logits", "by rank", logits, pa.float32(), *how) for how in [
        ("PLAIN", "zstd", 1), ("DICTIONARY", "zstd", 1), *((split, "zstd", level) for level in (1, 3, 5, 9, 19)), (split, "brotli", 5)]]
    cases += [
        ("top_logits", "by rank", logits.astype(np.float16), pa.float16(), split, "zstd", 1),
        ("top_logits", "by id", sorted_logits, pa.float32(), split, "zstd", 5),
        ("top_logits", "by rank, steps", logit_steps, pa.float32(), split, "zstd", 5),
        ("top_logits", "by rank, steps of float16 codes", code_steps, whole, split, "zstd", 1),
    ]
    rows = []
    for column, order, values, kind, encoding, codec, level in cases:
        size, seconds = written(values, kind, encoding, codec, level)
        rows.append({"column": column, "order": order, "type": str(kind), "encoding": encoding, "codec": f"{codec} {level}",
                     "bytes_per_token": size / tokens, "tokens_per_second": tokens / seconds})
    bounds = {"ids, one by one": entropy(ids), "steps of ids by id": entropy(id_steps), "float16 codes, one by one": entropy(codes),
              "steps of float16 codes by rank": entropy(code_steps[:, 1:]), "permutation of k": math.log2(math.factorial(k)) / k}
    bounds = {name: bits * k / 8 * len(ids) / tokens for name, bits in bounds.items()}
    print(f"{tokens} tokens, {len(ids)} positions, k = {k}; pyarrow {pa.__version__}\n")
    print("| column | order | type | encoding | codec | bytes per token | tokens per second |\n| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        *words, size, speed = row.values()
        print("| " + " | ".join(words) + f" | {size:.1f} | {speed:,.0f} |")
    print("\n| bound | bytes per token |\n| --- | --- |")
    for name, size in bounds.items():
        print(f"| entropy of {name} | {size:.1f} |" if "permutation" not in name else f"| {name} | {size:.1f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"tokens": tokens, "positions": len(ids), "k": k, "encodings": rows, "bounds": bounds}, indent=1))


if __name__ == "__main__":
    main()
