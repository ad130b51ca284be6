"""Tokenizers. A configuration section selects one; training it on documents returns a vocabulary.

To add a tokenizer, write a section with a `name` and a `train` method, a vocabulary and its case in
`load_vocabulary`, and add the section to the union `Tokenizer` at the end of this file.
"""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from model.section import Section

if TYPE_CHECKING:  # reading a configuration does not import the library
    import tokenizers

END = 0
"""Id of the end token `<|end|>` in every vocabulary. It precedes each document and follows the last one."""

UNKNOWN = 1
"""Id of unknown characters in CharVocabulary. The other vocabularies encode every text."""

Ids: TypeAlias = NDArray[np.int64]


class UnknownCharacter(ValueError):
    """A text contains a character that is not in the vocabulary, which has no id for unknown characters."""


class Vocabulary(Protocol):
    """A trained tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, the end token included."""

    def encode_batch(self, documents: list[str]) -> list[Ids]:
        """Return the ids of each document, without end tokens."""

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Return the text of the ids. End tokens are skipped."""

    def count_unknown(self, ids: Ids) -> int:
        """Return the number of ids that stand for unknown characters."""

    def to_json(self) -> str:
        """Return a description from which `load_vocabulary` builds the vocabulary again."""


class ByteVocabulary:
    """The 256 byte values. The id of a byte is its value + 1."""

    vocab_size = 257

    def encode_batch(self, documents: list[str]) -> list[Ids]:
        """Return the id of each UTF-8 byte of each document."""
        return [np.frombuffer(d.encode(), np.uint8).astype(np.int64) + 1 for d in documents]

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Return the text of the ids. Bytes that are not valid UTF-8 become U+FFFD."""
        return bytes(int(i) - 1 for i in ids if i != END).decode(errors="replace")

    def count_unknown(self, ids: Ids) -> int:
        """Return 0, because every text can be encoded."""
        return 0

    def to_json(self) -> str:
        """Return the name of the vocabulary as JSON."""
        return json.dumps({"name": "bytes"})


class CharVocabulary:
    """A sorted list of characters. The first id is 2, or 1 if there is no id for unknown characters."""

    def __init__(self, chars: str, unknown: bool = True) -> None:
        """Build the vocabulary.

        chars: distinct characters in order of code point. unknown: whether other characters have an id.
        """
        self.chars = chars
        self._codes = _code_points(chars)
        self._has_unknown = unknown
        self._first = 2 if unknown else 1
        self.vocab_size = len(chars) + self._first

    def encode_batch(self, documents: list[str]) -> list[Ids]:
        """Return the id of each character of each document, UNKNOWN for a character that is not in the vocabulary.

        Raises:
            UnknownCharacter: a character is not in the vocabulary, and there is no id for unknown characters.
        """
        return [self._encode(_code_points(d)) for d in documents]

    def _encode(self, codes: NDArray[np.uint32]) -> Ids:
        index = np.searchsorted(self._codes, codes)
        known = self._codes[np.minimum(index, len(self.chars) - 1)] == codes
        if not self._has_unknown and not known.all():
            code = int(codes[~known][0])
            raise UnknownCharacter(f"the character {chr(code)!r} (U+{code:04X})")
        return np.where(known, index + self._first, UNKNOWN).astype(np.int64)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Return the text of the ids. Unknown characters become U+FFFD."""
        return "".join("\ufffd" if i < self._first else self.chars[i - self._first] for i in ids if i != END)

    def count_unknown(self, ids: Ids) -> int:
        """Return the number of ids that stand for unknown characters."""
        return int((ids == UNKNOWN).sum()) if self._has_unknown else 0

    def to_json(self) -> str:
        """Return the characters as JSON."""
        flags = {} if self._has_unknown else {"unknown": False}
        return json.dumps({"name": "chars", "chars": self.chars} | flags)


class BPEVocabulary:
    """Byte-level byte-pair encoding by the `tokenizers` library. An id is the library's id + 1.

    The library does not know the end token, so `<|end|>` inside a text is encoded as text.
    """

    def __init__(self, tokenizer: "tokenizers.Tokenizer") -> None:
        """Wrap a trained tokenizer of the library."""
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size() + 1

    def encode_batch(self, documents: list[str]) -> list[Ids]:
        """Return the ids of each document, without end tokens."""
        return [np.array(e.ids, np.int64) + 1 for e in self._tokenizer.encode_batch_fast(documents)]

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Return the text of the ids. Bytes that are not valid UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode([int(i) - 1 for i in ids if i != END]))

    def count_unknown(self, ids: Ids) -> int:
        """Return 0, because the alphabet contains all bytes."""
        return 0

    def to_json(self) -> str:
        """Return the library's description of the tokenizer as JSON."""
        return json.dumps({"name": "bpe", "tokenizer": json.loads(self._tokenizer.to_str())})


def load_vocabulary(text: str) -> Vocabulary:
    """Return the vocabulary that `to_json` described.

    text: JSON, as `to_json` returns it.
    """
    saved: dict[str, Any] = json.loads(text)
    if saved["name"] == "bytes":
        return ByteVocabulary()
    if saved["name"] == "chars":
        return CharVocabulary(saved["chars"], saved.get("unknown", True))
    from tokenizers import Tokenizer as Trained

    return BPEVocabulary(Trained.from_str(json.dumps(saved["tokenizer"])))


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


class Bytes(Section):
    """UTF-8 bytes: 257 ids, no training."""

    name: Literal["bytes"] = "bytes"

    def train(self, documents: Iterable[str]) -> Vocabulary:
        """Return the vocabulary of bytes, which does not depend on the documents."""
        return ByteVocabulary()


class Chars(Section):
    """The distinct characters of the training text. Other characters are unknown."""

    name: Literal["chars"] = "chars"

    unknown: bool = True
    """Whether unknown characters have an id. If false, an unknown character in any split is an error."""

    def train(self, documents: Iterable[str]) -> Vocabulary:
        """Return a vocabulary of the distinct characters of the documents."""
        chars: set[str] = set()
        for document in documents:
            chars.update(document)
        return CharVocabulary("".join(sorted(chars)), self.unknown)


class BPE(Section):
    """Byte-level byte-pair encoding, trained on the training text.

    Source: Sennrich et al. 2016, arXiv:1508.07909.
    """

    name: Literal["bpe"] = "bpe"

    vocab_size: Annotated[int, Field(ge=257, le=2**20)] = 512
    """Number of ids: the end token, 256 bytes and the merges. Fewer if the text has no more pairs to merge."""

    split_urls: bool = False
    """Whether URLs are split from the surrounding text before pairs are counted, so that no merge crosses the border of
    a URL."""

    def train(self, documents: Iterable[str]) -> Vocabulary:
        """Return a vocabulary of the most frequent pairs of the documents."""
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers

        tokenizer = tokenizers.Tokenizer(models.BPE())
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        urls = pre_tokenizers.Split(tokenizers.Regex(r"(?i)https?://\S+"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([urls, words]) if self.split_urls else words
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size - 1,
            min_frequency=2,  # a merge of a pair that occurs once shortens no text
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(documents, trainer)
        return BPEVocabulary(tokenizer)


Tokenizer = Annotated[Bytes | Chars | BPE, Field(discriminator="name")]
