"""`train` and the PyTorch peer in each of its modes, on the same shards."""

import argparse
import json
import shutil
import statistics
import sys
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from machine import vectors
from rounds import Contender, Peer, compare, interleave, run_program

# Steps before those that are timed: memory settles, and a compiled step has seen a second number of masked tokens.
WARM_UP = 4
# A mode that is slower than this many times the fastest so far is not timed any longer: it cannot be the best.
HOPELESS = 3.0


@dataclass
class Case:
    teacher: str
    corpus: str
    layers: int
    rows: int
    length: int
    # Documents whose sequences of full length make the cache.
    documents: int
    flags: list = field(default_factory=list)


CASES = {
    "base": Case("models/base", "models/long.txt", 6, 4, 128, 5),
    "small": Case("models/small", "models/long.txt", 4, 16, 128, 40),
    "demo": Case("data/teacher", "data/corpus/train.txt", 6, 23, 89, 2000, ["--long-documents", "truncate"]),
}
# Batches of a size that a GPU is given.
GPU_CASES = {
    "base": Case("models/base", "models/long.txt", 6, 64, 128, 160),
    "small": Case("models/small", "models/long.txt", 4, 128, 128, 320),
    "demo": Case("data/teacher", "data/corpus/train.txt", 6, 92, 89, 2000, ["--long-documents", "truncate"]),
}
MODES = list(product(["fp32", "bf16"], ["eager", "compile"], [True, False]))


def precisions(options: argparse.Namespace) -> list[str]:
    """bf16 is refused by ours, and emulated by PyTorch, where the processor has no instructions for it."""
    return ["fp32", "bf16"] if options.device == "cuda" or "avx512_bf16" in vectors() else ["fp32"]


def train(options: argparse.Namespace):
    cases = GPU_CASES if options.device == "cuda" else CASES
    for name in options.only or [*cases, "base-masked", "small-masked"]:
        base, _, masked = name.partition("-")
        yield name, (masked_against_all if masked else against_torch)(base, cases[base], options)


def cache_of(name: str, case: Case, options: argparse.Namespace, positions: str) -> Path:
    """Rows of one length, so that nobody pads: what packing saves on other rows comes on top."""
    out = options.work / f"train-{options.device}" / f"{name}-{positions}-cache"
    teacher, corpus = (path if (path := options.work / part).exists() else Path(part) for part in (case.teacher, case.corpus))
    full = ["--min-tokens", case.length, "--max-length", case.length, "--limit", case.documents, "--positions", positions, *case.flags]
    full += ["--provider", "cuda"] if options.device == "cuda" else []
    run_program([options.bin / "precompute", "--quiet", "--teacher", teacher, "--corpus", corpus, *full, "--out", out])
    return out


def command(options: argparse.Namespace, case: Case, cache: Path, out: Path, steps: int, flags: list) -> list:
    shape = ["--layers", case.layers, "--batch-tokens", case.rows * case.length, "--steps", steps, "--dropout", 0]
    return [options.bin / "train", "--cache", cache, "--out", out, *shape, "--eval-fraction", 0, "--log-every", 1, "--threads", options.threads, *on_device(options), *flags]


def on_device(options: argparse.Namespace) -> list:
    return ["--device", "cuda"] if options.device == "cuda" else []


def ours(options: argparse.Namespace, case: Case, cache: Path, steps: int, flags: list) -> dict:
    """A whole run of the program; timed are the steps after the first ones, by the clock of its own log, everything between two steps included."""
    out = options.work / f"train-{options.device}" / "student"
    shutil.rmtree(out, ignore_errors=True)
    peak = run_program([*command(options, case, cache, out, steps + WARM_UP, flags), "--quiet"])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["kind"] == "step"]
    seconds = logged[-1]["elapsed_seconds"] - logged[WARM_UP - 1]["elapsed_seconds"]
    timed = logged[WARM_UP:]
    phases = {key: sum(line[key] for line in timed) / len(timed) for key in ("data_wait_ms", "forward_ms", "backward_ms", "update_ms")}
    return {"tokens": steps * case.rows * case.length, "seconds": seconds, "peak_mb": peak, "loss": timed[-1]["loss"]} | phases


def torch_peer(options: argparse.Namespace, case: Case, cache: Path, mode: str, dtype: str, tuned: bool) -> Peer:
    arguments = ["--cache", cache, "--layers", case.layers, "--rows", case.rows, "--mode", mode, "--dtype", dtype, "--threads", options.threads, *on_device(options)]
    return Peer("train_torch.py", arguments, options.threads, tuned)


def mallocs(options: argparse.Namespace) -> list[bool]:
    """Whether to tune glibc's malloc, which serves nothing of a step on a GPU."""
    return [False] if options.device == "cuda" else [True] if options.tuned_only else [True, False]


def name_of(mode: str, dtype: str, tuned: bool) -> str:
    return f"PyTorch {mode} {dtype}" + (", malloc tuned" if tuned else "")


def survey(options: argparse.Namespace, name: str, case: Case, cache: Path) -> dict:
    """Milliseconds of a step in each mode, alone on the machine: which mode is the best of its precision. Kept, and read again by later runs."""
    kept = options.work / f"train-{options.device}" / f"{name}-modes.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for dtype, mode, tuned in MODES:
        label = name_of(mode, dtype, tuned)
        if label in found or dtype not in precisions(options) or tuned not in mallocs(options):
            continue
        peer = torch_peer(options, case, cache, mode, dtype, tuned)
        # The second step of a compiled mode may compile again.
        peer.ask("steps 2")
        answer = peer.ask("steps 1")
        if answer["step_ms"] < HOPELESS * min((each["step_ms"] for each in found.values()), default=answer["step_ms"]):
            answer = peer.ask("steps 5")
        peer.end()
        found[label] = {"mode": [mode, dtype, tuned], "step_ms": answer["step_ms"], "peak_mb": answer["peak_mb"]}
        kept.write_text(json.dumps(found, indent=1))
        print(f"  {label}: {answer['step_ms']:.0f} ms a step", file=sys.stderr, flush=True)
    return found


def against_torch(name: str, case: Case, options: argparse.Namespace) -> dict:
    cache = cache_of(name, case, options, "tokens")
    modes = survey(options, name, case, cache)
    best = {dtype: min((each for each in modes.values() if each["mode"][1] == dtype), key=lambda each: each["step_ms"]) for dtype in precisions(options)}
    peers, contenders = [], []
    steps = max(2, round(options.seconds * 1e3 / best["fp32"]["step_ms"]))
    for dtype in precisions(options):
        flags = ["--dtype", dtype] if dtype != "fp32" else []
        contenders.append(
            Contender(
                f"train {dtype}",
                lambda flags=flags: ours(options, case, cache, steps, flags),
                " ".join(map(str, command(options, case, cache, Path("OUT"), steps, flags))),
            )
        )
    for dtype in precisions(options):
        peer = torch_peer(options, case, cache, *best[dtype]["mode"])
        slower = best[dtype]["step_ms"] / best["fp32"]["step_ms"]
        count = max(2, round(steps / slower))
        peer.ask(f"steps {WARM_UP}")
        peers.append(peer)
        shown = f"{peer.environment} {' '.join(peer.command)}".strip()
        contenders.append(Contender(name_of(*best[dtype]["mode"]), lambda peer=peer, count=count: peer.ask(f"steps {count}"), shown))
    try:
        others = interleave(contenders, options.rounds, peers)
    finally:
        for peer in peers:
            peer.end()
    result = compare(contenders, others)
    ours_and_theirs = list(zip(contenders[: len(peers)], contenders[len(peers) :]))
    for single, peer in ours_and_theirs[:1]:
        result["memory_of_fp32_peer"] = single.peak_mb / peer.peak_mb
    for pair in ours_and_theirs[1:]:
        result["bf16"] = compare(list(pair), others)
    result["modes_ms"] = modes
    return result


def masked_against_all(name: str, case: Case, options: argparse.Namespace) -> dict:
    """The same step where the masked positions alone have targets: with the hidden states' part of the loss, which asks for every row of the last
    layer, and without it. The first contender's ratios are to the others."""
    caches = {positions: cache_of(name, case, options, positions) for positions in ("tokens", "masked")}
    contenders = []
    for loss, flags in (("", []), (", no hidden states", ["--loss", "ce=5,mlm=2"])):
        for positions, cache in reversed(caches.items()):
            steps = max(2, round(options.seconds / 0.7))
            shown = " ".join(map(str, command(options, case, cache, Path("OUT"), steps, flags)))
            run = lambda cache=cache, steps=steps, flags=flags: ours(options, case, cache, steps, flags)
            contenders.append(Contender(f"train, {positions} asked{loss}", run, shown))
    result = compare(contenders, interleave(contenders, options.rounds, []))
    for masked, every in (contenders[:2], contenders[2:]):
        cost = statistics.median(every.rates) / statistics.median(masked.rates)
        result[f"cost_of_{masked.name}"] = cost
        print(f"  {masked.name}: {cost:.2f} of a step with every position asked", file=sys.stderr, flush=True)
    return result
