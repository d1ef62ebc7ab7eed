#!/usr/bin/env python3
"""The benchmark: ours and the peers in turn, round by round, on the same machine and the same data.

    python tests/python/peers/bench.py precompute|train|memory|size|table [--only CASE ...] [--rounds 5] [--device cuda]

`make bench-models` makes what the cases need, `make bench-precompute` and so on run a stage. Each case writes one JSON file, with the rounds, the
commands and the machine, into target/bench/results, and prints its rows of the table; `table` prints those of every file there.
"""

import argparse
import json
import sys
from pathlib import Path

from machine import describe
from memory_and_size import memory, size
from precompute_cases import precompute
from rounds import markdown
from train_cases import train

HEADINGS = {
    "precompute": ["| case | program | tokens/s | ours to this (lowest and highest round) | peak MB |", "| --- | --- | --- | --- | --- |"],
    "train": ["| case | program | tokens/s | ours to this (lowest and highest round) | peak MB |", "| --- | --- | --- | --- | --- |"],
}
STAGES = {"precompute": precompute, "train": train, "memory": memory, "size": size}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=[*STAGES, "table"])
    parser.add_argument("--only", nargs="*", default=[], help="cases of the stage; all of them by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="about how long a round of one program takes")
    parser.add_argument("--tuned-only", action="store_true", help="leave out PyTorch's modes with glibc's own malloc settings, which are slower")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: programs built for it, and peers on the same GPU")
    parser.add_argument("--bin", type=Path, default=Path("target/release"), help="where the two programs are")
    parser.add_argument("--work", type=Path, default=Path("target/bench"), help="models, caches and results")
    return parser.parse_args()


def table(results: Path) -> None:
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text())
        print(f"\n{path.stem}: {result['machine']['processor']}, {' '.join(result['machine']['vectors'])}; commit {result['machine']['commit']}")
        print("\n".join(result["markdown"]))


def main() -> None:
    options = arguments()
    repository = Path(__file__).resolve().parents[3]
    results = options.work / "results"
    if options.stage == "table":
        return table(results)
    results.mkdir(parents=True, exist_ok=True)
    for case, result in STAGES[options.stage](options):
        rows = result.pop("markdown", None) or HEADINGS[options.stage] + markdown(case, result)
        if most := max(result.get("others_at_work", [0])):
            rows.append(f"\nOther programs took up to {most:.1%} of the machine in a round.")
        whole = {"stage": options.stage, "case": case, "machine": describe(repository)} | result | {"markdown": rows}
        (results / f"{options.stage}-{case}.json").write_text(json.dumps(whole, indent=1) + "\n")
        print("\n".join(rows), flush=True)


if __name__ == "__main__":
    sys.exit(main())
