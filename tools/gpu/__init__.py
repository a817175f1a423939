"""Check the claims of docs/engines.md on an NVIDIA GPU, and measure the speed of models on it.

    python -m tools.gpu --report gpu-report.md

Run this in the root of the repository, with ffd installed (`pip install -e
'.[export,cuda,tensorrt]'`, or `rtx` for `tensorrt`; without either, their claims are skipped). The
report is a Markdown file. Exit codes: 0 if all checked claims hold, 1 if a claim fails, 2 for wrong
usage, 77 without a GPU.
"""
