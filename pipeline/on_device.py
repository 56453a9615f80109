"""What `ammd bench --device` and `ammd devices` do: ask or measure, and print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ammd.errors import INTERRUPTED
from ammd.runtime.artifact_ref import ArtifactRef, EngineKind
from ammd.runtime.bench_document import BenchDocument
from ammd.runtime.device import Device
from ammd.runtime.device_bench import PYTHON, machine_of, measure_on_device
from ammd.runtime.device_facts import read_facts
from ammd.runtime.device_heat import HeatGate
from ammd.runtime.devices import describe_devices, open_device
from ammd.runtime.settings import BenchSettings

from .alone import named
from .bench_files import Judged, judge, load_baseline
from .cli_options import emit
from .table import devices_table


def bench_on_device(
    files: Sequence[Path],
    settings: BenchSettings,
    *,
    device: str,
    engine: str | None,
    python: str | None,
    heat: tuple[float, int],
    baseline: Path | None,
    max_regression: float,
) -> Judged:
    """Measure files on a device and hold them against a baseline, which is looked at before anything is measured.

    Args:
        files: Models on disk.
        settings: As for `ammd bench`.
        device: `adb:SERIAL`, `ssh:USER@HOST[:PORT]` or `local`.
        engine: That runs them, in Python; None leaves it to their form.
        python: The device's Python; None for the one that its shell finds.
        heat: Warmest battery in degrees, and the seconds to wait for it at most.
        baseline: What an earlier `ammd bench --json` printed.
        max_regression: How much worse is allowed, as a fraction.

    Raises:
        RecipeError: `device` is malformed, or a setting is not to be had there.
        ArtifactError: A file or the baseline is missing or of another kind.
        NotComparableError: The baseline was measured elsewhere or otherwise.
        EngineError: The device cannot be reached, has no room, is too warm, or cannot run a file.
    """
    kind = EngineKind(engine) if engine else None
    artifacts = [
        ArtifactRef(name=str(one["name"]), path=Path(str(one["path"])), engine=kind)
        for one in named(files, engine=engine)
    ]
    gate = HeatGate(max_celsius=heat[0], cool_down_s=heat[1])
    try:
        with open_device(device) as target:
            known = _load_baseline(baseline, settings, target) if baseline else None
            document = measure_on_device(target, artifacts, settings, heat=gate, python=python or PYTHON)
    except KeyboardInterrupt:  # caught here: no run is waiting to be continued
        click.echo("interrupted; nothing runs on the device any more", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    return judge(document, files, baseline=known, max_regression=max_regression)


def _load_baseline(path: Path, settings: BenchSettings, target: Device) -> BenchDocument:
    facts = read_facts(target)
    device = {"name": target.name, "model": facts.model}
    return load_baseline(path, settings, machine=machine_of(facts), device=device)


def list_devices(named: Sequence[str], *, as_json: bool) -> None:
    """Print the devices within reach.

    Raises:
        RecipeError: A name is malformed.
        EngineError: A named device cannot be reached or used.
    """
    document = describe_devices(named)
    emit(document, lambda: [devices_table(document)], as_json=as_json)
