"""The real command line on stand-in stages: for tests that kill it, interrupt it or read what it prints."""

import dataclasses
import signal

import ammd.pipeline.run
import ammd.pipeline.sweep_run
from ammd.pipeline.cli import main
from ammd.pipeline.stages import STAGES

stand_ins = {
    name: dataclasses.replace(stage, module="stand_in_stages", inputs="Inputs")
    for name, stage in STAGES.items()
}
# Defaults are bound when a function is defined.
for function in (ammd.pipeline.run.run_recipe, ammd.pipeline.sweep_run.run_sweep):
    function.__kwdefaults__["stages"] = stand_ins

if __name__ == "__main__":
    # A test run started in the background has interrupts switched off, and its children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
