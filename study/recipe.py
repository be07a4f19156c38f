"""A recipe: which models are trained on which text, as a TOML file."""

import tomllib
from pathlib import Path
from typing import Literal

import msgspec

Family = Literal["gpt-neox", "olmo2", "qwen3", "llama", "gemma3"]
"""The architectures of Pythia, OLMo-2 and Qwen-3; Llama and Gemma for models that were pretrained by others."""

Role = Literal["train", "calibration", "test"]
"""What a cell is for. Nothing is chosen by looking at test cells."""


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How large a model is."""

    hidden: int
    """Width; a multiple of 32, the width of one attention head."""

    layers: int
    """Transformer blocks."""

    def __str__(self) -> str:
        return f"{self.hidden}x{self.layers}"


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long and how fast a model learns."""

    epochs: float
    """Passes over the training rows."""

    learning_rate: float
    """The highest one: warm-up takes 3 % of the steps, a cosine then falls to a tenth."""

    batch_size: int = 32
    """Windows per step."""


class Pretraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text that the base models learn from. No cell uses it."""

    sources: list[str]
    """Each as `file/source`."""

    n_tokens: int
    window: int
    """Tokens per sequence."""

    schedule: Schedule


class Student(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One student of a cell."""

    name: str
    seed: int = 1
    """Decides the order of its training rows. All students start from the same base."""

    temperature: float = 2.0
    """Of the soft labels."""

    divergence: Literal["forward-kl", "reverse-kl", "jsd"] = "forward-kl"
    """Of its soft labels from the teacher's; the mixture of `jsd` is even."""

    top_k: int | None = None
    """Only the teacher's likeliest tokens count, renormalised. None: all."""

    on_policy: float = 0.0
    """Share of the steps, in [0, 1], that learn soft labels of text which the student writes after the
    prefixes. Above 0, the other steps learn those of the suffixes alone."""

    hard_labels: Literal["greedy", "sampled", "text"] | None = None
    """It learns text that the teacher writes after each prefix, at temperature 1 where it is
    sampled, or the text of the corpus itself. None: soft labels."""

    epochs: float | None = None
    """None: as the regime says."""

    later: bool = False
    """Trained when every cell has what is needed to fit and judge a classifier."""

    is_half: bool = False
    """Trained on half of the windows. What it recites of the other half it did not learn there."""

    is_other_half: bool = False
    """Trained on the half that the students of half of the windows do not get."""


class Regime(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes, lengths and schedules that several cells share."""

    teacher: Size
    student: Size
    prefix_len: int
    """Tokens."""

    suffix_len: int
    """Tokens."""

    n_windows: int
    """Distinct windows of a cell before copies are added, at equal shares from its sources."""

    teacher_schedule: Schedule
    student_schedule: Schedule
    """Of the students and the baseline."""

    copies: dict[str, int] = msgspec.field(default_factory=dict)
    """How many windows get how many further copies: `{"3" = 100}` gives 3 copies to 100."""

    copy_noise: float = 0.0
    """Share of the tokens of a copy that are replaced. 0: copies are exact."""

    is_chat: bool = False
    """The suffix is an answer, the prefix a prompt that many rows share but for the words that it
    asks about. Models learn the answer alone."""

    @property
    def length(self) -> int:
        """Tokens in a window."""
        return self.prefix_len + self.suffix_len

    @property
    def first(self) -> int:
        """The first token of a window that is learned."""
        return self.prefix_len if self.is_chat else 1


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One teacher, one baseline and students, all trained on the same windows."""

    name: str
    role: Role
    family: Family
    regime: str
    """Key of the recipe's regimes."""

    students: list[Student]
    """The first one is the one to predict."""

    teacher_saw: Literal["all", "half", "none"] = "all"
    """Of the windows. A teacher that saw none is its base; half is that of the students of half."""

    part: int | None = None
    """Which part of the documents of its sources: cells with other parts share none. None: all."""

    sources: str = ""
    """Key of the recipe's sources. Empty: the role."""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that is needed to repeat the study."""

    vocabulary_size: int
    pretraining: Pretraining
    sources: dict[str, list[str]]
    """Each as `file/source`: the file of the sample data and the `source` of its rows."""

    n_parts: int
    """Into how many parts the documents of a source are split."""

    pretrained: dict[Family, Size] = msgspec.field(default_factory=dict)
    """Bases that others made: they are put into the folder of the bases by hand, and the tokenizer
    into its folder. Bases of another size are cut from them and trained on the pretraining text."""

    regimes: dict[str, Regime]
    cells: list[Cell]
    """In the order in which they are trained."""

    def sources_of(self, cell: Cell) -> list[str]:
        """Return the sources that a cell takes equal shares of."""
        return self.sources[cell.sources or cell.role]


def read_recipe(path: Path) -> Recipe:
    """Return a recipe.

    Raises:
        msgspec.ValidationError: a key is missing, unknown or of another type.
        ValueError: two cells have one name, or a cell names no regime or no sources.
    """
    recipe = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Recipe)
    names = [cell.name for cell in recipe.cells]
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: two cells have the same name")
    for kind, named, known in (
        ("regime", {cell.regime for cell in recipe.cells}, set(recipe.regimes)),
        ("sources", {cell.sources or cell.role for cell in recipe.cells}, set(recipe.sources)),
    ):
        if named - known:
            raise ValueError(f"{path}: no {kind} {', '.join(sorted(named - known))}")
    return recipe
