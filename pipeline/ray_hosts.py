"""The nodes of a Ray cluster as hosts of a sweep: one actor on each makes the stages that the sweep sends there.

Ray finds the nodes, starts the actors, carries jobs and answers and notices a node that is lost. What runs where and
when is said by `places.py`, as on one machine. The runs folder, models and data files lie on a disk that all nodes see
under the same path; only names, settings and numbers travel.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ammd.errors import AmmdError, EngineError, RecipeError
from ammd.event_log import EventLog
from ammd.machine import available_cpus, available_memory_bytes, library_versions
from ammd.scratch import scratch_folder
from ammd.settings import Settings

from .launch import Outcome, run_in_child
from .places import Host, HostLostError, divide
from .process_group import ProcessGroups, Share
from .run_log import sampled_memory
from .stages import Stage

_LAST_PORT = 65535
_CONNECT_S = 10.0
_READY_S = 120.0  # for an actor to start on a node that has its cores free


class Node:
    """Runs on a node, in an actor's process."""

    def facts(self, folder: str) -> dict[str, Any]:
        """Return what decides whether and how the node takes part; `folder` is the one that all have to see."""
        return {
            "cpus": available_cpus(),
            "memory_bytes": available_memory_bytes(),
            "versions": library_versions(),
            "sees_folder": Path(folder).is_dir(),
        }

    def make(
        self,
        stage: Stage,
        *,
        cpus: tuple[int, ...],
        quiet: bool,
        log_level: int,
        inputs: dict[str, Any],
        settings: Settings,
        folder: Path,
        log: Path,
    ) -> Outcome | AmmdError:
        """Make a stage; what it could not do is returned, so that the error arrives in its own class."""
        logging.getLogger("ammd").setLevel(log_level)
        groups = ProcessGroups()
        share = Share(cpus=cpus, quiet=quiet, groups=groups)
        try:
            with sampled_memory(EventLog(log), groups):
                return run_in_child(
                    stage, inputs=inputs, settings=settings, folder=folder, log=log, share=share
                )
        except AmmdError as exc:
            return exc


@contextmanager
def ray_hosts(
    address: str, *, jobs: int, memory_bytes: int | None, runs_dir: Path
) -> Iterator[Sequence[Host]]:
    """Give a host for each node of a cluster that is up, and let go of their cores afterwards.

    Args:
        address: `auto`, or `HOST:PORT` of its head.
        jobs: Stages that are made at once on a node.
        memory_bytes: That they may take together there; None takes what is free.
        runs_dir: Folder of all runs.

    Raises:
        RecipeError: `address` is none.
        EngineError: Ray is not installed, there is no cluster, or a node cannot take part.
    """
    _check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported
    try:
        import ray
    except ImportError as exc:
        raise EngineError("ray is not installed", hint="`pip install 'ammd[ray]'`") from exc
    try:
        # Ray lets its workers import from the current folder first; no file there must stand in for a library.
        with scratch_folder() as empty, chdir(empty):
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as exc:
        raise EngineError(
            f"no Ray cluster at `{address}`: {_last_line(exc)}", hint="`ray start --head` begins one"
        ) from exc
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        here = ray.get_runtime_context().get_node_id()
        actors = [_start(ray, node, jobs=jobs) for node in nodes]
        yield [
            _host(
                _NodeRef(
                    ray=ray, actor=actor, name=node["NodeManagerHostname"], is_here=node["NodeID"] == here
                ),
                jobs=jobs,
                memory_bytes=memory_bytes,
                runs_dir=runs_dir,
            )
            for node, actor in zip(nodes, actors, strict=True)
        ]
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Check that somebody listens there: Ray itself asks a silent address for many minutes.

    Raises:
        RecipeError: It is no address.
        EngineError: Nobody listens.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > _LAST_PORT:
        raise RecipeError(f"`--ray` = `{address}`: should be `auto` or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as exc:
        raise EngineError(
            f"no Ray cluster at `{address}`: {exc.strerror or exc}", hint="`ray start --head` begins one"
        ) from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class _NodeRef:
    """A node as this process sees it."""

    ray: Any  # the module
    actor: Any
    name: str
    is_here: bool


def _start(ray: Any, node: dict[str, Any], *, jobs: int) -> Any:
    """Start the actor of a node; it holds all cores, so that nothing else of the cluster runs beside a measurement."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    resources = node["Resources"]
    return (
        ray.remote(Node)
        .options(
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            max_concurrency=jobs + 1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        .remote()
    )


def _host(node: _NodeRef, *, jobs: int, memory_bytes: int | None, runs_dir: Path) -> Host:
    """Return a node as a host of the sweep.

    Raises:
        EngineError: It does not answer, sees another disk, or has other versions of what decides results.
    """
    folder = runs_dir.resolve()
    try:
        facts = node.ray.get(node.actor.facts.remote(str(folder)), timeout=_READY_S)
    except node.ray.exceptions.RayError as exc:
        hint = "its cores must be free, and ammd installed there"
        raise EngineError(f"node `{node.name}` does not answer: {_last_line(exc)}", hint=hint) from exc
    if not facts["sees_folder"]:
        hint = "`--runs-dir` names a folder on a disk that all nodes share"
        raise EngineError(f"node `{node.name}` does not see `{folder}`", hint=hint)
    if different := {name for name, _ in facts["versions"].items() ^ library_versions().items()}:
        raise EngineError(
            f"node `{node.name}` has other versions than this one: {', '.join(sorted(different))}",
            hint="results depend on them: install the same everywhere",
        )
    return Host(
        shares=divide(facts["cpus"], jobs),
        memory_bytes=memory_bytes or facts["memory_bytes"],
        run=partial(_make, node),
        end=partial(node.ray.kill, node.actor),  # the stages end with the actor's process
        is_here=node.is_here,
    )


def _make(node: _NodeRef, stage: Stage, *, share: Share, lock: int, **options: Any) -> Outcome:  # noqa: ARG001
    """Make a stage on a node; the run's lock stays with this process, without which the actors end.

    Raises:
        HostLostError: The node is gone.
        AmmdError: What the stage could not do.
    """
    level = logging.getLogger("ammd").getEffectiveLevel()
    call = node.actor.make.remote(stage, cpus=share.cpus, quiet=share.quiet, log_level=level, **options)
    try:
        answer = node.ray.get(call)
    except node.ray.exceptions.RayError as exc:
        raise HostLostError(
            f"node `{node.name}` was lost with stage `{stage.name}`: {_last_line(exc)}",
            hint="`ammd run` again continues with this stage",
        ) from exc
    if isinstance(answer, AmmdError):
        raise answer
    found: Outcome = answer
    return found


def _last_line(exc: Exception) -> str:
    return next(filter(None, reversed(str(exc).splitlines())), type(exc).__name__).strip()
