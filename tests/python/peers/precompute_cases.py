"""`precompute`, the bare session run on the batches it makes, and the Python peer."""

import argparse
import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from rounds import Contender, Peer, compare, interleave, run_program


@dataclass
class Case:
    teacher: str
    corpus: str
    flags: list
    # Documents for ten seconds of work; the run takes as many as its --seconds want.
    documents: int
    # Whether the Python peer, which asks about every position, does the same work.
    peer: bool = True
    bare_flags: list = field(default_factory=list)


FULL_ROWS = ["--min-tokens", "128", "--shard-sequences", "32"]
CASES = {
    # Rows of 128 tokens, nothing padded.
    "base": Case("models/base", "models/long.txt", FULL_ROWS, 5),
    "small": Case("models/small", "models/long.txt", ["--min-tokens", "128", "--shard-sequences", "128"], 40),
    # Lengths of natural text.
    "base-lines": Case("models/base", "models/lines.txt", ["--shard-sequences", "64"], 100),
    "small-lines": Case("models/small", "models/lines.txt", ["--shard-sequences", "256"], 800),
    "demo": Case("data/teacher", "data/corpus/train.txt", ["--shard-sequences", "256"], 1500),
    # The masked 15 % asked, beside the bare run that computes the logits of every position.
    "base-masked": Case("models/base", "models/long.txt", [*FULL_ROWS, "--positions", "masked"], 5, peer=False),
    "small-masked": Case("models/small", "models/long.txt", ["--min-tokens", "128", "--shard-sequences", "128", "--positions", "masked"], 40, peer=False),
}


def precompute(options: argparse.Namespace):
    for name in options.only or CASES:
        yield name, measure(name, CASES[name], options)


def measure(name: str, case: Case, options: argparse.Namespace) -> dict:
    teacher, corpus = (path if (path := options.work / part).exists() else Path(part) for part in (case.teacher, case.corpus))
    work = options.work / "precompute" / name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    documents = max(1, round(case.documents * options.seconds / 10))
    common = ["--teacher", teacher, "--corpus", corpus, "--limit", documents, "--threads", options.threads]

    def command(out: Path, flags: list) -> list:
        return [options.bin / "precompute", "--quiet", *common, *flags, "--out", out]

    # The first run is the peers' too: its rows are what the bare session is asked about, in the batches that it made of them.
    first = work / "first"
    run_program(command(first, case.flags))
    plan = work / "plan.json"
    example = ["cargo", "run", "--quiet", "--release", "--locked", "--package", "precompute", "--example", "batch_plan", "--", first, plan]
    subprocess.run([str(part) for part in example], check=True)
    budget = json.loads((first / "manifest.json").read_text())["settings"]["batch-tokens"]

    def ours(flags: list) -> dict:
        out = work / "ours"
        shutil.rmtree(out, ignore_errors=True)
        # The same batches in every round, whatever a measurement at the start would say this time.
        peak = run_program(command(out, [*flags, "--batch-tokens", budget]))
        timing = json.loads((out / "timing.json").read_text())
        return timing | {"peak_mb": peak}

    arguments = ["--teacher", teacher, "--cache", first, "--plan", plan, "--corpus", corpus, "--out", work / "peer", "--threads", options.threads]
    peers = [Peer("precompute_onnxruntime.py", arguments, options.threads)]
    # A process of its own, so that its peak of memory is its own.
    contenders = [
        Contender("precompute", lambda: ours(case.flags), " ".join(map(str, command(Path("OUT"), case.flags)))),
        Contender("bare session.run", lambda: peers[0].ask("bare"), " ".join(peers[0].command)),
    ]
    if case.peer:
        peers.append(Peer("precompute_onnxruntime.py", arguments, options.threads))
        contenders.append(Contender("Python peer", lambda: peers[1].ask("pipeline"), " ".join(peers[1].command)))
        contenders.append(
            Contender(
                "precompute, no hidden states", lambda: ours([*case.flags, "--hidden-layers", "none"]), "the same with --hidden-layers none"
            )
        )
    for contender in contenders[1:3]:
        contender.round()
    try:
        others = interleave(contenders, options.rounds, peers)
    finally:
        for peer in peers:
            peer.end()
    result = compare(contenders, others) | {"batch_tokens": budget, "documents": documents}
    bare = result["contenders"]["bare session.run"]["last_round"]
    result["padding"] = 1 - bare["tokens"] / bare["padded"]
    return result
