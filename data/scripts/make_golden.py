#!/usr/bin/env python3
"""Reference numbers from PyTorch and transformers for the Rust tests; data/golden/README.md says what each tensor means.

    target/venv-transformers/bin/python data/scripts/make_golden.py            # writes data/golden
    target/venv-transformers/bin/python data/scripts/make_golden.py --check    # makes them anew and compares with what is there
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from golden.decoders import make_decoders
from golden.demo_student import make_real_student
from golden.families import make_families
from golden.files import GOLDEN, compare
from golden.heads import make_heads
from golden.objectives import make_objectives
from golden.small_student import make_small_student
from golden.teacher import make_teacher


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing them")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) if arguments.check else GOLDEN
        batch, teacher = make_teacher(out)
        make_small_student(out)
        make_real_student(out, batch, teacher)
        torch.set_num_threads(1)  # tensors of a few hundred numbers: threads would only wait for each other
        make_objectives(out / "objectives")
        make_families(out / "families")
        make_heads(out / "heads")
        make_decoders(out / "decoders")
        if not arguments.check:
            return 0
        made = sorted(path for path in out.rglob("*") if path.is_file())
        complaints = [line for path in made for line in compare(path, GOLDEN / path.relative_to(out))]
    print("\n".join(complaints) or "the goldens made anew equal the committed ones within the tolerances")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
