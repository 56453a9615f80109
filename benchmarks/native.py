"""llama.cpp's own tools, built once from the tree that the installed llama-cpp-python was built from."""

from __future__ import annotations

from ammd.runtime.llama_tools import native_tool as build_tool
from ammd.runtime.llama_tools import run_command as run

__all__ = ["build_tool", "run"]
