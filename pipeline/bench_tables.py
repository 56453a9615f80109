"""The benchmark on the screen and in the report: first what was to be expected, then what was measured, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .table import build_table, escape

if TYPE_CHECKING:
    from rich.table import Table

_MIB, _KIB = 2**20, 2**10
UNKNOWN = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Number:
    key: str
    title: str
    unit: str
    per_unit: float = 1
    digits: int = 0
    spread: bool = False  # with its interval


EXPECTED = (
    _Number(key="weight_bytes_per_token", title="weights read", unit="MiB/token", per_unit=_MIB, digits=1),
    _Number(key="kv_bytes_per_token", title="KV", unit="KiB/token", per_unit=_KIB, digits=1),
    _Number(key="kv_cache_bytes", title="KV cache", unit="MiB", per_unit=_MIB, digits=1),
    _Number(key="bandwidth_bytes_per_s", title="memory", unit="GB/s", per_unit=1e9, digits=1),
    _Number(key="decode_ceiling_tokens_per_s", title="ceiling", unit="tok/s"),
    _Number(key="decode_tokens_per_s", title="decode", unit="tok/s", digits=1, spread=True),
    _Number(key="decode_of_ceiling", title="of ceiling", unit="%", per_unit=0.01),
)
MEASURED = (
    _Number(key="prefill_tokens_per_s", title="prefill", unit="tok/s", digits=0, spread=True),
    _Number(key="ttft_s", title="TTFT", unit="ms", per_unit=1e-3, digits=1),
    _Number(key="token_p50_s", title="p50", unit="ms", per_unit=1e-3, digits=2),
    _Number(key="token_p99_s", title="p99", unit="ms", per_unit=1e-3, digits=2),
    _Number(key="load_cold_s", title="load cold", unit="s", digits=2),
    _Number(key="load_warm_s", title="load warm", unit="s", digits=2),
    _Number(key="peak_rss_bytes", title="peak RSS", unit="MiB", per_unit=_MIB),
    _Number(key="rss_anon_bytes", title="anonymous", unit="MiB", per_unit=_MIB),
    _Number(key="rss_file_bytes", title="file", unit="MiB", per_unit=_MIB),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One table."""

    title: str
    headings: tuple[tuple[str, str], ...]  # word and unit
    keys: tuple[str, ...]  # the field of each heading
    rows: tuple[tuple[str, ...], ...]


def bench_blocks(bench: Mapping[str, Mapping[str, Any] | None]) -> tuple[Block, ...]:
    """Return both tables; a column that nobody has is left out."""
    rows = list(_rows(bench))
    blocks = []
    for title, numbers in (
        ("what the architecture implies, and what is reached", EXPECTED),
        ("speed, start and memory", MEASURED),
    ):
        used = [number for number in numbers if any(row.get(number.key) is not None for _, row in rows)]
        blocks.append(
            Block(
                title=title,
                headings=(
                    ("threads", ""),
                    ("depth", "tokens"),
                    ("proofs", ""),
                    *((number.title, number.unit) for number in used),
                ),
                keys=("threads", "prompt_tokens", "proofs", *(number.key for number in used)),
                rows=tuple(
                    (
                        name,
                        str(row["threads"]),
                        str(row.get("prompt_tokens", UNKNOWN)),
                        row.get("proofs") or UNKNOWN,
                        *(_show(row, number) for number in used),
                    )
                    for name, row in rows
                ),
            )
        )
    return tuple(blocks) if rows else ()


def bench_tables(bench: Mapping[str, Mapping[str, Any]], *, where: str = "") -> list[Table]:
    """Return them for the screen, with notes about what could not be measured; `where` is a device's name."""
    tables = []
    for block in bench_blocks(bench):
        headings = [f"{word}\n{unit}" if unit else word for word, unit in block.headings]
        title = f"{block.title}, on {where}" if where else block.title
        table = build_table(title, "model", headings)
        for row in block.rows:
            table.add_row(*map(escape, row))
        tables.append(table)
    if tables and (notes := notes_of(bench)):
        tables[-1].caption = "\n".join(map(escape, notes))
        tables[-1].caption_justify = "left"
    return tables


def notes_of(bench: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """Return the best thread count of each model that has several, and why there is no cold time."""
    notes = []
    for name, record in bench.items():
        if not record:
            continue
        best = record.get("best")
        if best and len({row["threads"] for row in record["rows"]}) > 1:
            alike = ", ".join(map(str, best["not_told_apart"]))
            notes.append(
                f"{name}: {best['threads']} thread{'s decode' if best['threads'] > 1 else ' decodes'} fastest"
                + (f", hardly told from {alike}" if alike else "")
            )
        if note := record.get("load_note"):
            notes.append(f"{name}: no cold start: {note}")
    return notes


def _rows(bench: Mapping[str, Mapping[str, Any] | None]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, record in bench.items():
        rows: Sequence[Mapping[str, Any]] = record.get("rows", ()) if record else ()
        yield from ((name, row) for row in rows)


def _show(row: Mapping[str, Any], number: _Number) -> str:
    value = row.get(number.key)
    if value is None:
        return UNKNOWN
    ends = [row.get(f"{number.key}_{end}") for end in ("low", "high")] if number.spread else []
    texts = [f"{one / number.per_unit:,.{number.digits}f}" for one in (value, *ends) if one is not None]
    return f"{texts[0]} ({texts[1]} to {texts[2]})" if len(texts) == 3 else texts[0]
