"""GGUF files on a device in llama.cpp's own `llama-bench`, which needs nothing there.

What matters is stated and not left to its defaults: the settings of the engine are those of this project's own
(`llama_engine`). It tells neither the time to the first token nor each token's time, and its tokens are decoded from an
empty context on, so a row has none of the former and says so of the latter (`decode_depth_tokens`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ammd.errors import EngineError

from .device import Device
from .device_agent import Agent, Watched
from .device_facts import DeviceFacts
from .device_heat import HeatGate
from .device_host import DeviceHost
from .device_tool import Tool, bring
from .llama_options import asked_options
from .llama_tools import BENCH


class LlamaBenchHost(DeviceHost):
    """A device that runs `llama-bench`. Implements `Host`."""

    def __init__(self, device: Device, facts: DeviceFacts, *, heat: HeatGate, tool: Tool) -> None:
        """Bring the program.

        Raises:
            EngineError: It did not arrive.
        """
        super().__init__(device, facts, heat=heat)
        self._agent = Agent(device, facts)
        self._tool = tool
        self._folder = f"{device.folder}/{tool.isa}"
        for path in (tool.program, *tool.libraries):
            bring(device, path, f"{self._folder}/{path.name}")

    def measure(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Measure a file once.

        Raises:
            EngineError: The process was killed or failed, or printed something else.
        """
        watched = self._agent.run(
            [f'"{self._folder}/{BENCH}"', *self._options(request)],
            label=BENCH,
            threads=request["threads"],
            environment={"LD_LIBRARY_PATH": self._folder} if self._tool.libraries else {},
        )
        measured = parse_rows(watched, device=self._device.name)
        return {**measured, "engine": f"llama.cpp ({BENCH} for {self._tool.isa}, {self._tool.source})"}

    def _options(self, request: Mapping[str, Any]) -> list[str]:
        """Return llama-bench's arguments."""
        llama = asked_options(request)
        options: dict[str, object] = {
            "-m": request["path"],
            "-p": request["prompt_tokens"],
            "-n": request["decode_tokens"],
            "-r": request["repetitions"],
            "-t": request["threads"],
            "-b": llama.batch_tokens,
            "-ub": llama.micro_batch_tokens,
            "-fa": int(llama.flash_attention),
            "-ctk": llama.kv_type.value,
            "-ctv": llama.kv_type.value,
            "-lm": "mmap" if llama.memory_map else "none",
            "-ngl": 0,
            "--repack": int("amx_int8" not in self._facts.features),  # as in `llama_engine`
            "-o": "jsonl",
        }
        words = [str(word) for pair in options.items() for word in pair]
        return [*words, *([] if request["warmup"] else ["--no-warmup"])]


def parse_rows(watched: Watched, *, device: str) -> dict[str, Any]:
    """Return what one process of `llama-bench` printed, under the names that `bench_child` has; None it does not tell.

    Raises:
        EngineError: It printed something else.
    """
    try:
        rows = [json.loads(line) for line in watched.stdout.splitlines() if line.startswith("{")]
        phases = {"prefill" if row["n_gen"] == 0 else "decode": row for row in rows}
        prefill, decode = phases["prefill"], phases["decode"]
        return {
            "measured_at": prefill["test_time"],
            "load_s": None,
            "ttft_s": None,
            "token_s": None,
            "prefill_s": [prefill["n_prompt"] / float(rate) for rate in prefill["samples_ts"]],
            "decode_s": [decode["n_gen"] / float(rate) for rate in decode["samples_ts"]],
            "noise": {},
            "settings": {
                "batch_tokens": prefill["n_batch"],
                "micro_batch_tokens": prefill["n_ubatch"],
                "flash_attention": bool(prefill["flash_attn"]),
                "memory_map": prefill["load_mode"] != "none",
                "weight_repacking": bool(prefill["repack"]),
                "kv_cache_type": prefill["type_k"],
            },
            **watched.memory,
            "memory_samples": watched.samples,
            "llama_bench": [prefill, decode],
        }
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as exc:
        raise EngineError(f"`{BENCH}` on `{device}` printed something else: {exc!r}", device=device) from exc
