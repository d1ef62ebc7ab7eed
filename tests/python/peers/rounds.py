"""Programs timed in turn, round by round, so that whatever the machine does meanwhile meets all of them; and what the rounds say."""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from machine import OthersAtWork

HERE = Path(__file__).resolve().parent
# glibc gives large freed blocks back to the system and clears their pages again at the next use; with these it keeps them.
TUNED_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


class Peer:
    """A Python peer that waits, its model loaded, until it is asked for a round."""

    def __init__(self, script: str, arguments: list, threads: int, tuned: bool = False):
        self.command = ["python", f"tests/python/peers/{script}", *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"} | (TUNED_MALLOC if tuned else {})
        self.environment = " ".join(f"{name}={value}" for name, value in TUNED_MALLOC.items()) if tuned else ""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, HERE / script, *map(str, arguments)], env=environment, text=True, **pipes)

    def ask(self, line: str) -> dict:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{' '.join(self.command)} ended with {self.process.wait()} when asked for `{line}`; its own words are above")
        return json.loads(answer)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def run_program(command: list) -> float:
    """Runs one of ours to its end. Gives its peak resident memory in MB.

    Raises RuntimeError where it fails; its own words are on standard error.
    """
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}")
    return usage.ru_maxrss * 1.024e-3


@dataclass
class Contender:
    """One of the programs of a comparison."""

    name: str
    # Runs one round and gives at least {"tokens", "seconds"}, and where it knows it {"peak_mb"}.
    round: object
    command: str
    rates: list = field(default_factory=list)
    peak_mb: float = 0.0
    last: dict = field(default_factory=dict)


def interleave(contenders: list[Contender], rounds: int, peers: list[Peer]) -> list[float]:
    """Fills in every contender's rates. Gives, for each round, the share of the machine's time that others took."""
    others = []
    for number in range(rounds):
        watch = OthersAtWork(lambda: [peer.process.pid for peer in peers])
        # Each round starts with another, so that nobody always follows the same one.
        shift = number % len(contenders)
        for contender in contenders[shift:] + contenders[:shift]:
            contender.last = contender.round()
            contender.rates.append(contender.last["tokens"] / contender.last["seconds"])
            contender.peak_mb = max(contender.peak_mb, contender.last.get("peak_mb", 0.0))
            print(f"  round {number + 1}, {contender.name}: {contender.rates[-1]:.0f} tokens/s", file=sys.stderr, flush=True)
        others.append(watch.share())
    return others


def compare(contenders: list[Contender], others: list[float]) -> dict:
    """Medians, and the ratio of the first contender's to each other's with the spread of the rounds' own ratios."""
    ours = contenders[0]
    table = {}
    for contender in contenders:
        paired = [mine / theirs for mine, theirs in zip(ours.rates, contender.rates)]
        table[contender.name] = {
            "tokens_per_second": statistics.median(contender.rates),
            "rounds": contender.rates,
            "peak_mb": contender.peak_mb,
            "command": contender.command,
            "ours_to_this": statistics.median(ours.rates) / statistics.median(contender.rates),
            "lowest": min(paired),
            "highest": max(paired),
            "last_round": contender.last,
        }
    return {"rounds": len(others), "others_at_work": others, "contenders": table}


def markdown(case: str, result: dict) -> list[str]:
    """Rows of a table: case, who, tokens/s, ours to this with the spread, MB."""
    rows = []
    for name, each in result["contenders"].items():
        ratio = "" if name == next(iter(result["contenders"])) else f"{each['ours_to_this']:.2f} ({each['lowest']:.2f}-{each['highest']:.2f})"
        peak = f"{each['peak_mb']:.0f}" if each["peak_mb"] else ""
        rows.append(f"| {case} | {name} | {each['tokens_per_second']:.0f} | {ratio} | {peak} |")
    return rows
