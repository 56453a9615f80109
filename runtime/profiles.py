"""What is known of phones and boards that are not here: `profiles.toml`, read and checked.

Every number in the file has a source. What a profile implies (how many threads a model is given, what an app may use)
is worked out here.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ammd.errors import RecipeError

_GB = 10**9
_GIB = 2**30
_FAST_SHARE = 0.7  # of the fastest core's clock: a thread on a slower one holds up the others

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cluster(_Record):
    """Cores of one kind."""

    name: str
    count: int
    ghz: Positive
    little: bool


class App(_Record):
    """What an app on any phone is given."""

    context_tokens: int
    memory_share: float
    source: str


class Calibration(_Record):
    """What the published figures say of the share of a device's peak that engines reach, and how far devices differ.

    An interval is `projected / factor` to `projected * factor` and is meant to hold 80 % of what is measured.
    """

    decode_devices: int  # with published rates
    prefill_devices: int
    decode_4bit: Positive  # share of the peak bandwidth
    decode_8bit: Positive  # with more than `CLASS_BITS` bits a weight
    decode_factor: Positive
    decode_anchored_factor: Positive  # after one measurement on the same device
    decode_anchored_class_factor: Positive  # after one of a file of the other class
    prefill_block: Positive  # operations a cycle of a core
    prefill_k_quant: Positive
    prefill_factor: Positive
    prefill_anchored_factor: Positive
    prefill_anchored_class_factor: Positive
    small_low: Positive  # published decode rates of small models, as shares of what is projected: the lowest
    small_high: Positive


class Profile(_Record):
    """A phone or board."""

    device: str
    soc: str
    cores: tuple[Cluster, ...]
    memory: str
    bandwidth_gb_s: Positive
    ram_gb: Positive
    features: tuple[str, ...]
    sources: Mapping[str, str]

    @property
    def threads(self) -> int:
        """Threads that a model is given: one for each core that is neither little nor much slower than the fastest."""
        fastest = max(cluster.ghz for cluster in self.cores)
        fast = [one for one in self.cores if not one.little and one.ghz >= _FAST_SHARE * fastest]
        return sum(cluster.count for cluster in fast)

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """Peak of the memory."""
        return self.bandwidth_gb_s * _GB

    def cycles_per_s(self, threads: int) -> float:
        """Return the clocks of the fastest `threads` cores together."""
        clocks = sorted((cluster.ghz for cluster in self.cores for _ in range(cluster.count)), reverse=True)
        return sum(clocks[:threads]) * 1e9

    def app_memory_bytes(self, app: App) -> int:
        """Return what an app may use."""
        return int(self.ram_gb * _GIB * app.memory_share)


class Profiles(_Record):
    """The whole file."""

    app: App
    calibration: Calibration
    profile: Mapping[str, Profile]


@functools.cache
def load_profiles() -> Profiles:
    """Return all that is known."""
    text = resources.files(__package__).joinpath("profiles.toml").read_text(encoding="utf-8")
    return Profiles.model_validate(tomllib.loads(text))


def find_profile(name: str) -> Profile:
    """Return a profile by its name.

    Raises:
        RecipeError: There is none of that name.
    """
    import difflib

    known = load_profiles().profile
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    start = f"did you mean `{near[0]}`? " if near else ""
    raise RecipeError(
        f"no profile `{name}`", hint=f"{start}`ammd bench --profile list` prints all", name=name
    )
