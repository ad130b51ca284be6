"""Fields that all corpora share: how text becomes training, validation and test, and how training goes through it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from model.section import Decay, NonNegative, Section

ORDER_FIELDS = frozenset({"layout", "drop_documents", "shuffle_documents", "curriculum"})
"""Fields that say how training goes through the prepared text, which is the same whatever they are."""

TRAINING_FIELDS = ORDER_FIELDS | {"synthetic", "synthetic_order"}
"""Fields that leave the tokens of the validation text as they are: nats per token can be compared across them."""


# at most a third each, so that three documents always suffice for three splits
HeldOut = Annotated[float, Field(ge=0, le=0.33)]
NotEmpty = Annotated[str, Field(min_length=1)]


class CorpusBase(Section):
    """How a corpus becomes training, validation and test text; shared by all corpora."""

    layout: Literal["stream", "documents"] = "stream"
    """What a row of a batch is: a window of the endless text, or one document from its beginning."""

    val_fraction: HeldOut = 0.04
    """Fraction of the documents held out for validation, at least one."""

    test_fraction: HeldOut = 0.04
    """Fraction of the documents held out for the final test, at least one."""

    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the draw that assigns documents to splits."""

    max_documents: Annotated[int, Field(ge=0)] = 0
    """Number of distinct documents to keep, drawn at random by split_seed; 0 keeps all."""

    drop_documents: Decay = 0.0
    """Share of the training documents left out of each epoch, drawn anew each epoch; above 0 at least one."""

    shuffle_documents: bool = False
    """Whether the documents of a stream are joined in a new order in each epoch."""

    curriculum: Literal["none", "short", "easy"] = "none"
    """Order of the first epoch: random, by document length, or by mean nats per token under the unigram table."""

    synthetic: NonNegative = 0.0
    """Documents drawn from an n-gram model of the training tokens and added, as a fraction of its documents."""

    synthetic_order: Annotated[int, Field(ge=2, le=5)] | None = None
    """n of that n-gram model; none: 3."""

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

    def ngram(self) -> int:
        """Return the n of the model that synthetic documents are drawn from."""
        return self.synthetic_order or 3

    def preparation(self) -> dict[str, Any]:
        """Return the fields that decide what is prepared."""
        return self.model_dump(exclude=set(ORDER_FIELDS))
