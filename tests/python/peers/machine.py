"""What a figure was measured on, and what else the machine did meanwhile."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

# The processor's flags that decide which kernels run.
VECTOR_FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
PACKAGES = ("onnxruntime", "torch", "transformers", "pyarrow", "numpy")


def describe(repository: Path) -> dict:
    """Processor, its vector instructions, memory, versions, and the commit with a `+` where files differ from it."""
    fields = processor()
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    commit = run(["git", "rev-parse", "--short=10", "HEAD"], repository)
    changed = run(["git", "status", "--porcelain", "--untracked-files=no"], repository)
    gpu = run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], repository)
    return {
        "processor": f"{fields.get('model name', platform.machine())}, family {fields.get('cpu family')} model {fields.get('model')}",
        "cores": len(os.sched_getaffinity(0)),
        "vectors": vectors(),
        "memory_gb": round(int(memory.split()[1]) / 1e6, 1),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "rustc": run(["rustc", "--version"], repository),
        "commit": commit + ("+" if changed else ""),
    } | ({"gpu": gpu} if gpu else {})


def processor() -> dict:
    """The first processor's fields."""
    fields = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def vectors() -> list[str]:
    """Which of `VECTOR_FLAGS` the programs find: those of the processor, without what `without_avx512.c` hides where it is preloaded."""
    flags = processor().get("flags", "").split()
    hidden = ("avx512", "amx") if "without_avx512" in os.environ.get("LD_PRELOAD", "") else ()
    return [flag for flag in VECTOR_FLAGS if flag in flags and not flag.startswith(hidden)]


def run(command: list[str], directory: Path) -> str:
    """What a program prints; nothing where this machine has no such program, or it fails."""
    try:
        return subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


class OthersAtWork:
    """The share of the machine's processor time that went to anybody but this process and the children it names, between two moments."""

    def __init__(self, children):
        self.children = children
        self.since = self.moment()

    def moment(self) -> tuple[float, float, float]:
        counts = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        whole, idle = sum(counts), counts[3] + counts[4]
        own = os.times()
        ours = own.user + own.system + own.children_user + own.children_system
        for pid in self.children():
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ours += sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
        ticks = os.sysconf("SC_CLK_TCK")
        return whole / ticks, (whole - idle) / ticks, ours

    def share(self) -> float:
        whole, busy, ours = (now - before for now, before in zip(self.moment(), self.since))
        return max(0.0, busy - ours) / max(whole, 1e-9)
