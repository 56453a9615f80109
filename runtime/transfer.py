"""What came over from the teacher, prompt by prompt, and what the rows amount to.

One row a model and prompt (`scores.jsonl`) holds every number of that prompt; each number of `quality.json` is a ratio
of two sums over the rows that have it, so that two models can be compared on the same prompts and the table's number is
what the rows give. `METRICS` says which sums; docs/fields.md says what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .heldout import HeldOut
from .quality import each_rouge_l, ends_in_loop, repetition

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number: sum(weight x of) / sum(weight x over), over the rows that have all of them.

    `weight` and `over` are 1 where they are empty. Means over tokens weigh each prompt by its tokens.
    """

    key: str
    of: str
    weight: str = ""
    over: str = ""
    higher_is_better: bool | None = None  # None: a fact, no merit

    def terms(self, row: Row) -> tuple[float, float] | None:
        """Return what a row adds to both sums; None where it has no part in this number."""
        fields = [1.0 if not name else row.get(name) for name in (self.weight, self.of, self.over)]
        if any(field is None for field in fields):
            return None
        weight, of, over = map(float, fields)  # type: ignore[arg-type]
        return weight * of, weight * over

    def value(self, rows: Iterable[Row]) -> float | None:
        """Return the number over `rows`; None where no row counts."""
        terms = [found for row in rows if (found := self.terms(row)) is not None]
        total = sum(over for _, over in terms)
        return sum(of for of, _ in terms) / total if total else None


def _metric(key: str, of: str = "", **more: Any) -> Metric:
    return Metric(key=key, of=of or key, **more)


_ON_TEACHERS, _ON_OWN, _SAMPLED = "teacher_text_tokens", "response_tokens", "sampled_tokens"
METRICS = (
    _metric("kl_to_teacher_nats", weight=_ON_TEACHERS, higher_is_better=False),
    _metric("tv_to_teacher", weight=_ON_TEACHERS, higher_is_better=False),
    _metric("top1_agreement", weight=_ON_TEACHERS, higher_is_better=True),
    _metric("agreement_sure", weight="sure_tokens", higher_is_better=True),
    _metric("agreement_unsure", weight="unsure_tokens", higher_is_better=True),
    _metric("teacher_sure_share", of="sure_tokens", over=_ON_TEACHERS),
    _metric("rouge_l", higher_is_better=True),
    _metric("rouge_l_reference", higher_is_better=True),
    _metric(
        "task_score_kept", of="rouge_l_reference", over="teacher_rouge_l_reference", higher_is_better=True
    ),
    _metric("greedy_prefix_tokens", higher_is_better=True),
    _metric("greedy_same_share", of="greedy_same", higher_is_better=True),
    _metric("nll_under_teacher_nats", weight=_ON_OWN, higher_is_better=False),
    _metric("nll_under_teacher_nats_per_byte", weight="response_bytes", higher_is_better=False),
    _metric("kl_on_own_nats", weight=_ON_OWN, higher_is_better=False),
    _metric("tv_on_own", weight=_ON_OWN, higher_is_better=False),
    _metric("exposure_bias_nats", higher_is_better=False),
    _metric("exposure_bias_tv", higher_is_better=False),
    _metric("repetition", higher_is_better=False),
    _metric("teacher_repetition"),
    _metric("looping_share", of="loops", higher_is_better=False),
    _metric("teacher_looping_share", of="teacher_loops"),
    _metric("response_tokens_mean", of="response_tokens"),
    _metric("teacher_response_tokens_mean", of="teacher_response_tokens"),
    _metric("ended_share", of="ended"),
    _metric("teacher_ended_share", of="teacher_ended"),
    _metric("sampled_nll_under_teacher_nats", weight=_SAMPLED, higher_is_better=False),
    _metric("sampled_nll_under_teacher_nats_per_byte", weight="sampled_bytes", higher_is_better=False),
    _metric("sampled_rouge_l", higher_is_better=True),
    _metric("sampled_repetition", higher_is_better=False),
)


def score_rows(
    name: str, record: Mapping[str, Any], *, rows: Sequence[HeldOut], teacher: Sequence[Row]
) -> list[dict[str, Any]]:
    """Return one row for each prompt that the model answered or whose text it was compared on.

    Args:
        name: Of the model.
        record: What `answers` measured: `teacher_texts` and `own_texts` (distances), `answers` and, of checkpoints,
            `sampled`, each with the teacher's `nats` or, of a model with other tokens, `nats_per_byte`; all from the
            front of `rows`.
        rows: The prompts.
        teacher: The teacher's own greedy text to each, no longer than an answer may be; in the form of `answers`.
    """
    texts, own = record["teacher_texts"], record["own_texts"]
    answers, sampled = record["answers"], record.get("sampled", ())
    rouge = each_rouge_l([one["text"] for one in answers], [row.response for row in rows[: len(answers)]])
    sampled_rouge = each_rouge_l(
        [one["text"] for one in sampled], [row.response for row in rows[: len(sampled)]]
    )
    found = []
    for place in range(max(len(texts), len(answers))):
        line: dict[str, Any] = {"model": name, "prompt": place}
        if place < len(texts):
            line |= _on_teachers_text(texts[place])
        if place < len(answers):
            line |= {"rouge_l": rouge[place]} | _of_answer(answers[place], teacher[place], rows[place])
        if place < len(own):
            line |= {"kl_on_own_nats": own[place]["kl_nats"], "tv_on_own": own[place]["tv"]}
            line["exposure_bias_nats"] = own[place]["kl_nats"] - texts[place]["kl_nats"]
            line["exposure_bias_tv"] = own[place]["tv"] - texts[place]["tv"]
        if place < len(sampled):
            line |= _of_sample(sampled[place]) | {"sampled_rouge_l": sampled_rouge[place]}
        found.append(line)
    return found


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """Return a model's numbers; those that no row has are left out."""
    values = {metric.key: metric.value(rows) for metric in METRICS}
    found: dict[str, Any] = {key: value for key, value in values.items() if value is not None}
    found["prompts"] = sum("rouge_l" in row for row in rows)
    found["kl_positions"] = sum(row.get(_ON_TEACHERS, 0) for row in rows)
    return found


def _on_teachers_text(text: Row) -> dict[str, Any]:
    line = {
        "kl_to_teacher_nats": text["kl_nats"],
        "tv_to_teacher": text["tv"],
        "top1_agreement": text["agreed"] / text["positions"],
        "teacher_text_tokens": text["positions"],
    }
    for part, count in (("sure", text["sure"]), ("unsure", text["positions"] - text["sure"])):
        line[f"{part}_tokens"] = count
        line[f"agreement_{part}"] = text[f"agreed_{part}"] / count if count else None
    return line


def _of_answer(answer: Row, teacher: Row, row: HeldOut) -> dict[str, Any]:
    line: dict[str, Any] = _likelihood("", answer)
    if "nats" in answer:
        line["greedy_prefix_tokens"] = _equal_tokens(answer["ids"], teacher["ids"])
        line["greedy_same"] = int(answer["ids"] == teacher["ids"])
    else:  # other tokens
        line["greedy_same"] = int([answer[key] == teacher[key] for key in ("text", "ended")] == [True, True])
    for prefix, one in (("", answer), ("teacher_", teacher)):
        line[f"{prefix}repetition"] = repetition(one["text"])
        line[f"{prefix}loops"] = int(ends_in_loop(one["text"]))
        line[f"{prefix}response_tokens"] = len(one["ids"])
        line[f"{prefix}ended"] = int(one["ended"])
        if row.reference:
            line[f"{prefix}rouge_l_reference"] = each_rouge_l([one["text"]], [row.reference])[0]
    return line


def _of_sample(sample: Row) -> dict[str, Any]:
    return {
        **_likelihood("sampled_", sample),
        "sampled_repetition": repetition(sample["text"]),
        "sampled_tokens": len(sample["ids"]),
    }


def _likelihood(prefix: str, answer: Row) -> dict[str, Any]:
    """Return how unlikely the teacher finds an answer: a token if both have the same, a byte if a model has others."""
    line: dict[str, Any] = {}
    if "nats" in answer:
        line[f"{prefix}nll_under_teacher_nats"] = answer["nats"]
    if "nats_per_byte" in answer:
        line[f"{prefix}nll_under_teacher_nats_per_byte"] = answer["nats_per_byte"]
        line[f"{prefix or 'response_'}bytes"] = len(answer["text"].encode())
    return line


def _equal_tokens(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next(
        (count for count, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second))
    )
