"""What `ammd bench --device` and `ammd devices` do: ask or measure, and print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from ammd.errors import INTERRUPTED
from ammd.runtime.device_bench import measure_on_device
from ammd.runtime.device_heat import HeatGate
from ammd.runtime.devices import describe_devices, open_device
from ammd.runtime.settings import BenchSettings

from .cli_options import emit
from .table import devices_table, facts_table


def bench_on_device(
    files: Mapping[str, Path],
    settings: BenchSettings,
    *,
    device: str,
    heat: tuple[float, int],
    as_json: bool,
) -> None:
    """Measure GGUF files on a device and print what came of it.

    Args:
        files: By name.
        settings: As for `ammd bench`.
        device: `adb:SERIAL`, `ssh:USER@HOST[:PORT]` or `local`.
        heat: Warmest battery in degrees, and the seconds to wait for it at most.
        as_json: Print the document instead of a table.

    Raises:
        RecipeError: `device` is malformed.
        EngineError: It cannot be reached, has no room, is too warm, or cannot run a file.
    """
    gate = HeatGate(max_celsius=heat[0], cool_down_s=heat[1])
    try:
        with open_device(device) as target:
            document = measure_on_device(target, files, settings, heat=gate)
    except KeyboardInterrupt:  # caught here: no run is waiting to be continued
        click.echo("interrupted; nothing runs on the device any more", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    emit(document, lambda: [facts_table(document["bench"], title=f"bench on {device}")], as_json=as_json)


def list_devices(named: Sequence[str], *, as_json: bool) -> None:
    """Print the devices within reach.

    Raises:
        RecipeError: A name is malformed.
        EngineError: A named device cannot be reached or used.
    """
    document = describe_devices(named)
    emit(document, lambda: [devices_table(document)], as_json=as_json)
