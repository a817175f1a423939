"""Fetch public-domain portraits out of the Python packages that carry them, for `make demo`.

Usage: python tools/fetch_portraits.py FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# NASA and US Navy photographs: in the public domain. Package to the picture's place in its wheel.
PORTRAITS = {
    "matplotlib": "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    "scikit-image": "skimage/data/astronaut.png",
}


def fetch(package: str, member: str, folder: Path) -> Path:
    """Take one file out of a package's wheel, without installing the package."""
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
    """Fetch every portrait into the folder named on the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for package, member in PORTRAITS.items():
        print(f"{fetch(package, member, folder)} from {package}")


if __name__ == "__main__":
    main()
