#!/usr/bin/env python3
"""Puts ONNX Runtime's shared library into a directory, from the wheel that requirements-onnxruntime.txt pins by its hash.

    python3 data/scripts/fetch_onnxruntime.py target/onnxruntime

The wheel is downloaded by pip and unpacked, not installed: the Python it was built for does not matter, since only its library is taken, so
one wheel per system serves every Python. Does nothing where the library of the pinned version is there already.
"""

import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements-onnxruntime.txt")
# The tags of the pinned wheels, by system and processor, the wanted one first; pip does not derive older tags from a newer one.
PLATFORMS = {
    ("Linux", "x86_64"): ["manylinux_2_28_x86_64", "manylinux_2_27_x86_64"],
    ("Linux", "aarch64"): ["manylinux_2_28_aarch64", "manylinux_2_27_aarch64"],
    ("Darwin", "arm64"): ["macosx_14_0_arm64"],
}
LIBRARY = re.compile(r"onnxruntime/capi/libonnxruntime\.(so(\.[0-9.]+)?|([0-9.]+\.)?dylib)")
LICENCES = ("LICENSE", "ThirdPartyNotices.txt", "Privacy.md")


def tags() -> list[str]:
    """pip's options for the wheel of this machine."""
    system, processor = platform.system(), platform.machine()
    if (system, processor) not in PLATFORMS:
        known = ", ".join(" ".join(pair) for pair in PLATFORMS)
        sys.exit(f"no wheel is pinned for {system} {processor} (there are {known}); install onnxruntime yourself and set ORT_DYLIB_PATH")
    return [option for tag in PLATFORMS[system, processor] for option in ("--platform", tag)]


def download(into: Path) -> Path:
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, "--python-version", "3.12", *tags()]
    answer = subprocess.run([*command, "--requirement", str(REQUIREMENTS), "--dest", str(into)], check=False)
    if answer.returncode != 0:
        sys.exit("pip could not fetch the pinned onnxruntime wheel (is pip there, and the network?); its own words are above")
    (wheel,) = into.glob("*.whl")
    return wheel


def unpack(wheel: Path, into: Path) -> Path:
    """The library and its licences; returns the library's path."""
    with zipfile.ZipFile(wheel) as archive:
        members = archive.namelist()
        libraries = [member for member in members if LIBRARY.fullmatch(member)]
        if len(libraries) != 1:
            sys.exit(f"{wheel.name}: expected one ONNX Runtime library, found {libraries}")
        wanted = libraries + [member for member in members if member.startswith("onnxruntime/") and member.endswith(LICENCES)]
        for member in wanted:
            (into / Path(member).name).write_bytes(archive.read(member))
    return into / Path(libraries[0]).name


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    directory = Path(sys.argv[1])
    stamp, pinned = directory / "wheel.txt", REQUIREMENTS.read_text()
    if stamp.is_file() and stamp.read_text() == pinned:
        return
    with tempfile.TemporaryDirectory() as temporary:
        wheel = download(Path(temporary))
        if directory.exists():
            shutil.rmtree(directory)
        directory.mkdir(parents=True)
        library = unpack(wheel, directory)
    stamp.write_text(pinned)  # last, so that an interrupted run is done again
    print(f"{library} ({library.stat().st_size / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()
