#!/usr/bin/env python3
"""Small random teachers of every family and task, each with what transformers gives; data/golden/README.md describes them.

    target/venv-transformers/bin/python data/scripts/make_teachers.py            # writes data/golden/teachers
    target/venv-transformers/bin/python data/scripts/make_teachers.py --check    # makes them anew and compares with what is there
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from golden.files import GOLDEN
from safetensors.numpy import load_file

from teachers.language import make_language_models
from teachers.tasks import make_tasks
from teachers.witness import difference, verify

TEACHERS = GOLDEN / "teachers"
SUMS = "SHA256SUMS"


def sums(root: Path) -> str:
    """A line for each file below `root`, as `sha256sum` writes and checks them."""
    names = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file() and path.name != SUMS)
    return "".join(f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n" for name in names)


def check(made: Path) -> list[str]:
    """The committed files are those made now: expectations within rounding, other texts to the byte. Exports are compared by what they answer:
    another processor draws the weights of a random model differently in the last digit."""
    names = {path.relative_to(root) for root in (made, TEACHERS) for path in root.rglob("*") if path.is_file()}
    complaints, same = [] if (TEACHERS / SUMS).read_text() == sums(TEACHERS) else [f"{SUMS}: not those of the committed files"], 0
    for name in sorted(names - {Path(SUMS)}):
        now, committed = made / name, TEACHERS / name
        if not (now.is_file() and committed.is_file()):
            complaints.append(f"{name}: {'not made any more' if committed.is_file() else 'not there'}")
        elif now.read_bytes() == committed.read_bytes():
            same += 1
        elif name.suffix == ".safetensors":
            ours, theirs = load_file(now), load_file(committed)
            equal = set(ours) == set(theirs) and all(difference(ours[key], theirs[key], ours["attention_mask"]) <= 1e-5 for key in ours)
            complaints += [] if equal else [f"{name}: not what transformers gives"]
        elif ".onnx" not in name.name:
            complaints.append(f"{name}: another text")
    print(f"{same} of {len(names) - 1} files are the same to the byte")
    return complaints


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "teachers" if arguments.check else TEACHERS
        shutil.rmtree(out, ignore_errors=True)
        cases = make_language_models(out) + make_tasks(out)
        lines = ",\n".join(json.dumps(facts) for facts in cases)
        (out / "index.json").write_text(f"[\n{lines}\n]\n")
        (out / SUMS).write_text(sums(out))
        complaints = verify(out, cases) + (check(out) + verify(TEACHERS, cases) if arguments.check else [])
    print("\n".join(complaints) or "every teacher gives what transformers gives")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
