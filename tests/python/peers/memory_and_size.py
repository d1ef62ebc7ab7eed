"""Peak memory at one and at ten times the corpus, sizes of the programs, and how long they take to start."""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path

from rounds import run_program

STEPS = 40


def memory(options: argparse.Namespace):
    work = options.work / "memory"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    held_out = Path("data/corpus/heldout.txt").read_text()
    rows, found = ["| corpus | sequences | cache MB | precompute, peak MB | train, peak MB |", "| --- | --- | --- | --- | --- |"], {}
    for times in (1, 10):
        corpus, cache = work / f"corpus-{times}.txt", work / f"cache-{times}"
        corpus.write_text(held_out * times)
        flags = ["--shard-sequences", 64, "--batch-tokens", 4096, "--threads", options.threads]
        asked = run_program([options.bin / "precompute", "--quiet", "--teacher", "data/teacher", "--corpus", corpus, *flags, "--out", cache])
        shards = json.loads((cache / "manifest.json").read_text())["shards"]
        out = work / "student"
        shutil.rmtree(out, ignore_errors=True)
        flags = ["--steps", STEPS, "--eval-fraction", 0, "--threads", options.threads]
        trained = run_program([options.bin / "train", "--quiet", "--cache", cache, "--out", out, *flags])
        sequences = sum(shard["logits"]["rows"] for shard in shards)
        megabytes = sum(shard["logits"]["bytes"] + shard["hidden"]["bytes"] for shard in shards) / 1e6
        found[f"{times}x"] = {"sequences": sequences, "cache_mb": megabytes, "precompute_peak_mb": asked, "train_peak_mb": trained}
        rows.append(f"| {times}x | {sequences} | {megabytes:.1f} | {asked:.0f} | {trained:.0f} |")
    yield "corpus", {"markdown": rows, "measured": found}


def size(options: argparse.Namespace):
    programs = {name: (options.bin / name).stat().st_size / 1e6 for name in ("precompute", "train")}
    rows = ["| program | MB |", "| --- | --- |", *(f"| {name} | {megabytes:.1f} |" for name, megabytes in programs.items())]
    rows.append(f"| together | {sum(programs.values()):.1f} |")
    starts = [start(options) for _ in range(options.rounds)]
    rows.append(f"\nFrom the start of `precompute` to the demo teacher's first batch: {statistics.median(starts):.2f} s ({min(starts):.2f}-{max(starts):.2f}).")
    yield "programs", {"markdown": rows, "megabytes": programs, "start_seconds": starts}


def start(options: argparse.Namespace) -> float:
    """Seconds of a small run less those from its first question to its last shard."""
    out = options.work / "start"
    shutil.rmtree(out, ignore_errors=True)
    flags = ["--teacher", "data/teacher", "--corpus", "data/corpus/train.txt", "--limit", 64, "--threads", options.threads]
    began = time.perf_counter()
    run_program([options.bin / "precompute", "--quiet", *flags, "--out", out])
    whole = time.perf_counter() - began
    return whole - json.loads((out / "timing.json").read_text())["seconds"]
