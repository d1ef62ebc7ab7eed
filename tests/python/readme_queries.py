#!/usr/bin/env python3
"""Runs the README's DuckDB queries on a cache and compares with the output that the README shows.

    target/venv-readers/bin/python tests/python/readme_queries.py CACHE              # compares; exit code 1 where they differ
    target/venv-readers/bin/python tests/python/readme_queries.py CACHE --update     # writes the outputs into README.md
    target/venv-readers/bin/python tests/python/readme_queries.py CACHE --run        # only runs them: the cache is not the demo's

A query is a ```sql block under a comment `<!-- query: NAME -->`; the ```text block after it is its output, columns two spaces apart. The queries
name the cache's files without a folder, so they run inside the cache directory. A whole number or a text must be the same; a number with a point
may differ by 2 % or 0.002, since another processor rounds the teacher's logits otherwise; so may a whole number that counts bytes (a column whose
name starts with `bytes`).
"""

import argparse
import os
import re
import sys
from pathlib import Path

import duckdb

README = Path(__file__).resolve().parent.parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- query: (?P<name>\S+) -->\n+```sql\n(?P<sql>.*?)```\n)(\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)
RELATIVE, ABSOLUTE = 0.02, 0.002


def run(sql: str) -> list[list[str]]:
    """The header and the rows, every cell as text."""
    answer = duckdb.connect().execute(sql)
    header = [column[0] for column in answer.description]
    return [header, *([str(cell) for cell in row] for row in answer.fetchall())]


def layout(table: list[list[str]]) -> str:
    """Columns two spaces apart, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table)]
    numbers = [all(number(cell) is not None for cell in column[1:]) for column in zip(*table)]
    lines = []
    for row in table:
        cells = [cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, numbers)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def parse(output: str) -> list[list[str]]:
    return [re.split(r"  +", line.strip()) for line in output.splitlines() if line.strip()]


def number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def same(expected: str, found: str, column: str) -> bool:
    if expected == found:
        return True
    first, second = number(expected), number(found)
    inexact = column.startswith("bytes") or "." in expected or "." in found
    if first is None or second is None or not inexact:
        return False
    return abs(first - second) <= ABSOLUTE + RELATIVE * abs(first)


def differences(name: str, expected: list[list[str]], found: list[list[str]]) -> list[str]:
    if len(expected) != len(found) or expected[:1] != found[:1]:
        return [f"{name}: README.md shows {len(expected) - 1} rows of {expected[:1]}, the query gives {len(found) - 1} of {found[:1]}"]
    lines = []
    for place, (shown, given) in enumerate(zip(expected, found)):
        if len(shown) != len(given) or not all(map(same, shown, given, found[0])):
            lines.append(f"{name}, row {place}: README.md shows {shown}, the query gives {given}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="the demo's held-out cache: target/demo/heldout-cache")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--update", action="store_true", help="write the outputs into README.md")
    mode.add_argument("--run", action="store_true", help="run the queries without comparing")
    arguments = parser.parse_args()
    text = README.read_text()
    blocks = list(BLOCK.finditer(text))
    if not blocks:
        sys.exit(f"{README} holds no <!-- query: NAME --> block")
    os.chdir(arguments.cache)
    tables = {block["name"]: run(block["sql"]) for block in blocks}
    if arguments.update:
        README.write_text(BLOCK.sub(lambda block: f"{block[1]}\n```text\n{layout(tables[block['name']])}```\n", text))
        return 0
    if arguments.run:
        print("\n".join(f"{name}\n{layout(table)}" for name, table in tables.items()))
        empty = [name for name, table in tables.items() if len(table) == 1]
        return 1 if empty else 0
    lines = [line for block in blocks for line in differences(block["name"], parse(block["output"] or ""), tables[block["name"]])]
    print("\n".join(lines) or f"{len(blocks)} queries give what README.md shows")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
