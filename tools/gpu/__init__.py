"""Prove on an NVIDIA GPU what docs/engines.md claims, and measure how fast models run on it.

    python -m tools.gpu --report gpu-report.md

from the root of the repository, with ffd installed (`pip install -e '.[export,cuda,tensorrt]'`, or
`rtx` for `tensorrt`; without either, their claims are skipped). The report is one Markdown file.
Exit codes: 0 every claim that could be checked holds, 1 one does not, 2 usage, 77 there is no GPU.
"""
