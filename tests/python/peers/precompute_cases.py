"""`precompute`, the bare session run on the batches it makes, and the Python peer."""

import argparse
import json
import shutil
from dataclasses import dataclass
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


# Rows of 128 tokens, of which nothing is padded, and shards that end often enough for what happens beside the teacher to happen in a short run.
BASE = ["--min-tokens", "128", "--shard-sequences", "16"]
SMALL = ["--min-tokens", "128", "--shard-sequences", "64"]
NO_STATES = ["--hidden-layers", "none"]
# So many times as many documents for a GPU.
GPU_DOCUMENTS = 100
CASES = {
    "base": Case("models/base", "models/long.txt", BASE, 5),
    "small": Case("models/small", "models/long.txt", SMALL, 40),
    "demo": Case("data/teacher", "data/corpus/train.txt", ["--shard-sequences", "256"], 1500),
    # The hidden states of the last layer, which a masked language model's students learn from by default, are most of what is written.
    "base-no-states": Case("models/base", "models/long.txt", [*BASE, *NO_STATES], 5, peer=False),
    "small-no-states": Case("models/small", "models/long.txt", [*SMALL, *NO_STATES], 40, peer=False),
    "demo-no-states": Case("data/teacher", "data/corpus/train.txt", ["--shard-sequences", "256", *NO_STATES], 1500, peer=False),
    # Lengths of natural text.
    "small-lines": Case("models/small", "models/lines.txt", ["--shard-sequences", "256"], 800, peer=False),
    # The masked 15 % asked, beside the bare run that computes the logits of every position.
    "base-masked": Case("models/base", "models/long.txt", [*BASE, "--positions", "masked"], 5, peer=False),
    "small-masked": Case("models/small", "models/long.txt", [*SMALL, "--positions", "masked"], 40, peer=False),
    # Without hidden states of the last layer, all of it but its attention is left to the asked positions too.
    "base-masked-no-states": Case("models/base", "models/long.txt", [*BASE, *NO_STATES, "--positions", "masked"], 5, peer=False),
    "small-masked-no-states": Case("models/small", "models/long.txt", [*SMALL, *NO_STATES, "--positions", "masked"], 40, peer=False),
}


def precompute(options: argparse.Namespace):
    for name in options.only or CASES:
        yield name, measure(name, CASES[name], options)


def measure(name: str, case: Case, options: argparse.Namespace) -> dict:
    teacher, corpus = (path if (path := options.work / part).exists() else Path(part) for part in (case.teacher, case.corpus))
    work = options.work / "precompute" / name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    documents = max(1, round(case.documents * (GPU_DOCUMENTS if options.device == "cuda" else 1) * options.seconds / 10))
    common = ["--teacher", teacher, "--corpus", corpus, "--limit", documents, "--threads", options.threads]
    provider = ["--provider", options.device] if options.device == "cuda" else []
    common += provider

    def command(out: Path, flags: list) -> list:
        return [options.bin / "precompute", "--quiet", *common, *flags, "--out", out]

    # The first run is the peers' too: its rows are what the bare session is asked about, in the batches that it made of them.
    first = work / "first"
    run_program(command(first, case.flags))
    plan = work / "plan.json"
    run_program([options.bin / "examples" / "batch_plan", first, plan])
    budget = json.loads((first / "manifest.json").read_text())["settings"]["batch-tokens"]

    def ours(flags: list) -> dict:
        out = work / "ours"
        shutil.rmtree(out, ignore_errors=True)
        # The same batches in every round, whatever a measurement at the start would say this time.
        peak = run_program(command(out, [*flags, "--batch-tokens", budget]))
        timing = json.loads((out / "timing.json").read_text())
        return timing | {"peak_mb": peak}

    arguments = ["--teacher", teacher, "--cache", first, "--plan", plan, "--corpus", corpus, "--out", work / "peer", "--threads", options.threads, *provider]
    peers = [Peer("precompute_onnxruntime.py", arguments, options.threads)]
    # A process of its own, so that its peak of memory is its own.
    contenders = [
        Contender("precompute", lambda: ours(case.flags), " ".join(map(str, command(Path("OUT"), case.flags)))),
        Contender("bare session.run", lambda: peers[0].ask("bare"), " ".join(peers[0].command)),
    ]
    if case.peer:
        peers.append(Peer("precompute_onnxruntime.py", arguments, options.threads))
        contenders.append(Contender("Python peer", lambda: peers[1].ask("pipeline"), " ".join(peers[1].command)))
    for peer, word in zip(peers, ("bare", "pipeline")):
        # Loads the model, and the session finds out how much memory it needs.
        peer.ask(word)
    try:
        others = interleave(contenders, options.rounds, peers)
    finally:
        for peer in peers:
            peer.end()
    result = compare(contenders, others) | {"batch_tokens": budget, "documents": documents}
    bare = result["contenders"]["bare session.run"]["last_round"]
    result["padding"] = 1 - bare["tokens"] / bare["padded"]
    return result
