"""Where goldens are written, and how those made anew are compared with the committed ones."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

DATA = Path(__file__).resolve().parent.parent.parent
GOLDEN = DATA / "golden"

# --check: |made - committed| <= absolute + relative * |committed|. Double precision differs between machines by the order of sums alone;
# single precision by more, and the ten steps carry it on: a key's bias has a zero gradient, whose rounding Adam enlarges. Integers must be equal.
TOLERANCE = {"float64": (1e-9, 1e-7), "float32": (1e-4, 2e-3), "float32.after": (1e-3, 2e-3)}


def save(tensors: dict[str, np.ndarray], path: Path) -> None:
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    print(f"{path}: {len(tensors)} tensors, {path.stat().st_size:,} bytes")


def compare(made: Path, committed: Path) -> list[str]:
    """One line for each tensor that differs by more than its tolerance; a file of text must be the same."""
    if not committed.exists():
        return [f"{committed}: not there"]
    if made.suffix != ".safetensors":
        return [] if made.read_bytes() == committed.read_bytes() else [f"{committed}: another text"]
    expected, found, complaints = load_file(committed), load_file(made), []
    if set(expected) != set(found):
        return [f"{committed}: other tensors: {sorted(set(expected) ^ set(found))}"]
    for name, value in expected.items():
        other = found[name]
        if value.shape != other.shape or value.dtype != other.dtype:
            complaints.append(f"{committed}: {name}: {value.dtype}{value.shape} committed, {other.dtype}{other.shape} made")
            continue
        kind = "float32.after" if value.dtype == np.float32 and "after" in name.split(".") else str(value.dtype)
        absolute, relative = TOLERANCE.get(kind, (0.0, 0.0))
        limit = absolute + relative * np.abs(value)
        off = np.argwhere(~(np.abs(value - other) <= limit))
        if len(off):
            first = ", ".join(f"{tuple(map(int, at))}: {value[tuple(at)]} committed, {other[tuple(at)]} made" for at in off[:3])
            complaints.append(f"{committed}: {name}: {len(off)} of {value.size} elements differ: {first}")
    return complaints
