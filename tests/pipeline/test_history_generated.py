"""History files that are broken anywhere: listed or refused by name, never a traceback, never removed."""

import contextlib
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ammd.errors import ArtifactError, RecipeError
from ammd.pipeline.runs_list import list_runs

GENERATED = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# The first page says what the file is and what is in it; the others hold the rows.
places = st.integers(0, 4095) | st.integers(0, 1 << 20)
changes = st.lists(st.tuples(places, st.binary(min_size=1, max_size=64)), min_size=1, max_size=6)
texts = st.text(max_size=12) | st.sampled_from(
    ["state", "best.bytes", "metrics.student.kl", "name", "'", '"', "--"]
)
operators = st.sampled_from(["=", "!=", "~", "!~", "<", "<=", ">", ">=", "", "=="])


@GENERATED
@given(changes=changes, length=st.none() | st.integers(0, 1 << 17))
def test_a_broken_history_is_listed_or_refused_and_stays(released, changes, length):
    _, made, _, _ = released
    contents = bytearray((made / "history.sqlite").read_bytes()[:length])
    for place, piece in changes:
        place %= len(contents) + 1
        contents[place : place + len(piece)] = piece
    with tempfile.TemporaryDirectory() as runs:
        path = Path(runs, "history.sqlite")
        path.write_bytes(contents)
        try:
            list_runs(Path(runs))
        except ArtifactError as error:
            assert str(path) in str(error)
            assert error.hint
            assert path.stat().st_size >= len(contents)  # what may still be saved from it is there
        assert {entry.name for entry in Path(runs).iterdir()} <= {"history.sqlite", "history.sqlite-journal"}


@GENERATED
@given(left=texts, operator=operators, right=texts, sort=st.none() | texts)
def test_any_filter_and_order_is_understood_or_refused(released, left, operator, right, sort):
    _, runs, _, _ = released
    with contextlib.suppress(RecipeError):
        found = list_runs(runs, filters=[f"{left}{operator}{right}"], sort=sort)["runs"]
        assert len(found) <= 1
