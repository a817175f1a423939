"""List the classes and members of TensorRT's Python API, by version, from its published bindings.

The bindings are a small package. The builder libraries behind them take 2 GB and are not needed to
list names. Each version's bindings are therefore loaded with empty stub libraries, and every class
is listed with its members and the return types of its methods. tests/export/tensorrt_stub.py is
made of these lists. This needs pip's package index, a C compiler and Python 3.11 or newer on x86-64
Linux:

    python tools/tensorrt_api.py tests/export/tensorrt_api
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# JetPack 6 has 10.3. The extra `tensorrt` accepts 10.12 and later.
VERSIONS = {
    "10.3.0": "cu12",
    "10.12.0.36": "cu12",
    "10.13.3.9": "cu13",
    "10.16.1.11": "cu13",
    "11.0.0.114": "cu13",
    "11.4.0.106": "cu13",
}
# Symbols that the bindings need from the libraries.
SYMBOLS = (
    "createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL "
    "createNvOnnxParserRefitter_INTERNAL createNvOnnxParser_INTERNAL getBuilderPluginRegistry "
    "getNvOnnxParserVersion getPluginRegistry initLibNvInferPlugins"
).split()
PARTS = "Builder|Network|OnnxParser|Runtime|Engine|ExecutionContext|Logger|ProgressMonitor"
WANTED = re.compile(
    rf"I?(Cuda)?({PARTS})(Config|Definition|Inspector|CreationFlag|Flag)*|IOptimizationProfile"
    r"|ITimingCache|IHostMemory|ILayer|ITensor|IDequantizeLayer|ParserError|LayerType|DataType"
    r"|MemoryPoolType|HardwareCompatibilityLevel|ComputeCapability|ProfilingVerbosity"
    r"|LayerInformationFormat|EngineCapability|TensorIOMode|ILogger.Severity|Dims|RuntimePlatform"
)


def main() -> None:
    """Install each version's bindings and write `VERSION.json` into the given folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for version, cuda in VERSIONS.items():
        with tempfile.TemporaryDirectory() as scratch:
            package = f"tensorrt-{cuda}-bindings=={version}"
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            subprocess.run([*pip, "--target", scratch, package], check=True)
            # A process cannot load two versions.
            lister = [sys.executable, __file__, "--list", scratch]
            listed = subprocess.run(lister, check=True, capture_output=True, text=True).stdout
        document = {"version": version, "classes": json.loads(listed)}
        (folder / f"{version}.json").write_text(
            json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
        print(f"{version}: {len(document['classes'])} classes")


def list_classes(scratch: Path) -> dict[str, dict[str, str]]:
    """Return the members of each class of the bindings in a folder, with their return types."""
    library = next(scratch.glob("tensorrt*bindings/tensorrt.so"))
    _load_stubs(library, scratch)
    name = "tensorrt_bindings.tensorrt"
    loader = importlib.machinery.ExtensionFileLoader(name, str(library))
    spec = importlib.util.spec_from_file_location(name, library, loader=loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    classes = {}
    for class_name, value in inspect.getmembers(module, inspect.isclass):
        if WANTED.fullmatch(class_name):
            classes[class_name] = _members(value)
            for inner_name, inner in inspect.getmembers(value, inspect.isclass):
                if WANTED.fullmatch(f"{class_name}.{inner_name}"):
                    classes[f"{class_name}.{inner_name}"] = _members(inner)
    return classes


def _load_stubs(library: Path, scratch: Path) -> None:
    dynamic = subprocess.run(
        ["readelf", "-d", str(library)], check=True, capture_output=True, text=True
    ).stdout
    source = scratch / "stub.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    for needed in re.findall(r"\[(libnv[^\]]+)\]", dynamic):
        made = scratch / needed
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{needed}", "-o", str(made), str(source)]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(made), mode=ctypes.RTLD_GLOBAL)


def _members(owner: type[Any]) -> dict[str, str]:
    """Return kind and type of each member: `method IHostMemory`, `property int`, `value`."""
    members = {}
    for name in dir(owner):
        if name.startswith("_"):
            continue
        value = inspect.getattr_static(owner, name)
        kind = "property" if isinstance(value, property) else "method"
        if isinstance(value, owner):
            kind = "value"
        # pybind11 writes a signature into the first line of a docstring.
        getter = value.fget if isinstance(value, property) else value
        document = (getattr(getter, "__doc__", None) or "").split("\n")[0]
        returned = re.search(r"-> (?:\w+[.:]+)*(\w+)$", document) if kind != "value" else None
        members[name] = f"{kind} {returned[1]}" if returned else kind
    return members


if __name__ == "__main__":
    if sys.argv[1] == "--list":
        print(json.dumps(list_classes(Path(sys.argv[2]))))
    else:
        main()
