#!/usr/bin/env python3
"""Compares what TensorBoard reads of trained students with their metrics.jsonl: every tag, every step, every value.

    target/venv-transformers/bin/python tests/python/tensorboard_reads.py STUDENT...

Exit code 1 where a scalar is missing, not in the log, or another number than the log's rounded to float32.
"""

import json
import sys
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

FOLDERS = {"loss": "loss/total"}
OPTIMISER = {"learning_rate", "gradient_norm", "skipped_steps"}
SPEED = {"tokens_per_second", "data_wait_ms", "forward_ms", "backward_ms", "update_ms"}
NOT_SHOWN = {"kind", "step", "epoch", "elapsed_seconds"}

Scalars = dict[str, list[tuple[int, float]]]


def tag(kind: str, key: str) -> str:
    if kind == "evaluation":
        return f"evaluation/{key}"
    folder = "optimiser" if key in OPTIMISER else "speed" if key in SPEED else "loss"
    return FOLDERS.get(key, f"{folder}/{key}")


def logged(student: Path) -> Scalars:
    """{tag: [(step, value)]} of metrics.jsonl, values as float32 holds them."""
    found: Scalars = {}
    for line in map(json.loads, (student / "metrics.jsonl").read_text().splitlines()):
        for key in line.keys() - NOT_SHOWN:
            found.setdefault(tag(line["kind"], key), []).append((line["step"], float(np.float32(line[key]))))
    return found


def shown(student: Path) -> Scalars:
    """The same from the event files, nothing sampled away."""
    events = EventAccumulator(str(student / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    # TensorBoard may hand plain scalars on as tensors of one number.
    found = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in tags["scalars"]}
    for name in tags["tensors"]:
        found[name] = [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors(name)]
    return found


def main() -> None:
    wrong = 0
    for student in map(Path, sys.argv[1:]):
        expected, found = logged(student), shown(student)
        for name in sorted(expected.keys() | found.keys()):
            log, read = expected.get(name, []), found.get(name, [])
            if log != read:
                wrong += 1
                print(f"{student}: {name}: the log has {log[:3]}..., TensorBoard reads {read[:3]}...")
        print(f"{student}: {len(found)} tags, {sum(map(len, found.values()))} values")
        wrong += not expected
    sys.exit(1 if wrong or len(sys.argv) < 2 else 0)


if __name__ == "__main__":
    main()
