"""Fields that all corpora share: the split into training, validation and test text, and the order of training."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from model.section import Decay, NonNegative, Section

ORDER_FIELDS = frozenset({"layout", "drop_documents", "shuffle_documents", "curriculum"})
"""Fields that select the order of training. The prepared data does not depend on them."""

TRAINING_FIELDS = ORDER_FIELDS | {"synthetic", "synthetic_order"}
"""Fields that do not change the validation tokens. Losses in nats per token are comparable between their values."""

# At most a third each, so that three documents are enough for three splits.
HeldOut = Annotated[float, Field(ge=0, le=0.33)]
NotEmpty = Annotated[str, Field(min_length=1)]


class CorpusBase(Section):
    """Split of a corpus into training, validation and test text, and order of training; shared by all corpora."""

    has_rows: ClassVar[bool] = False  # whether each document is a row of a table, so that a blank one lacks its text

    layout: Literal["stream", "documents"] = "stream"
    """What a sequence of a batch is. stream: a window of the concatenated documents, which may cross from one document
    to the next. documents: one document from its beginning, padded; a longer document fills several sequences."""

    val_fraction: HeldOut = 0.04
    """Fraction of the documents in the validation split; at least one document."""

    test_fraction: HeldOut = 0.04
    """Fraction of the documents in the test split; at least one document."""

    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random assignment of documents to splits."""

    max_documents: Annotated[int, Field(ge=0)] = 0
    """Number of distinct documents to use, selected at random by split_seed. 0 uses all documents."""

    drop_documents: Decay = 0.0
    """Fraction of the training documents that each epoch leaves out, selected again in each epoch. A value above 0
    leaves out at least one document."""

    shuffle_documents: bool = False
    """Whether layout stream concatenates the documents in a new order in each epoch."""

    curriculum: Literal["none", "short", "easy"] = "none"
    """Order of the first epoch. none: random. short: by document length. easy: by mean cross-entropy in nats per token
    under a unigram model of the training tokens."""

    synthetic: NonNegative = 0.0
    """Number of synthetic training documents, as a fraction of the number of training documents. They are sampled from
    an n-gram model of the training tokens."""

    synthetic_order: Annotated[int, Field(ge=2, le=5)] | None = None
    """n of the n-gram model that generates synthetic documents; null means 3."""

    @model_validator(mode="after")
    def _no_field_is_without_effect(self) -> Self:
        problems = []
        if self.shuffle_documents and self.layout == "documents":
            problems.append(
                "shuffle_documents must be false with layout documents, whose rows have a new order in each epoch "
                "anyway, got true"
            )
        if self.synthetic_order is not None and not self.synthetic:
            problems.append(
                f"synthetic_order must be left out where synthetic is 0, got {self.synthetic_order}; set synthetic"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def remark(self) -> str:
        """Return what the user should know about the files although they can be read, "" if nothing."""
        return ""

    def synthetic_n(self) -> int:
        """Return the n of the n-gram model that generates synthetic documents."""
        return self.synthetic_order or 3

    def preparation_fields(self) -> dict[str, Any]:
        """Return the fields on which the prepared data depends."""
        return self.model_dump(exclude=set(ORDER_FIELDS))
