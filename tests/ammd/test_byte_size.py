import pytest

from ammd.byte_size import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("90 MB", 90_000_000), ("85MiB", 85 << 20), (" 1.5 gb ", 1_500_000_000), ("0.5 GiB", 1 << 29)],
)
def test_sizes_are_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["90", "90 kB", "-1 MB", "MB", "1e3 MB", "९ MB", ""])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a number with MB, MiB, GB or GiB"):
        parse_size(text)
