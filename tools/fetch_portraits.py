"""Fetch public-domain portraits from Python packages, for `make demo`.

Usage: python tools/fetch_portraits.py FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# Photographs of NASA and the US Navy are in the public domain. Path in the wheel, by package.
PORTRAITS = {
    "matplotlib": "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    "scikit-image": "skimage/data/astronaut.png",
}


def fetch(package: str, member: str, folder: Path) -> Path:
    """Copy a file from a package's wheel without installing the package."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q"]
        options = ["--no-deps", "--only-binary", ":all:", "--dest", scratch]
        subprocess.run([*command, *options, package], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        path = folder / Path(member).name
        with zipfile.ZipFile(wheel) as archive:
            path.write_bytes(archive.read(member))
    return path


def main() -> None:
    """Fetch all portraits into the given folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for package, member in PORTRAITS.items():
        print(f"{fetch(package, member, folder)} from {package}")


if __name__ == "__main__":
    main()
