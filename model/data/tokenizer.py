"""Tokenizers: a section says which, training it on documents gives a vocabulary that turns text into ids."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from model.section import Section

if TYPE_CHECKING:  # reading a configuration should not load the library
    import tokenizers

END = 0
"""Id of `<|end|>`, which stands before, between and after documents in every vocabulary."""

UNKNOWN = 1
"""Id of `<unk>` in the vocabulary of characters; the others know every text."""

Ids: TypeAlias = NDArray[np.int64]


class UnknownCharacter(ValueError):
    """A text has a character that a vocabulary without an id for unknown ones does not know."""


class Vocabulary(Protocol):
    """A trained tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, the end token included."""

    def encode_batch(self, documents: list[str]) -> list[Ids]:
        """Return the ids of each document, without end tokens."""

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Return the text; end tokens have none and are left out."""

    def unknown(self, ids: Ids) -> int:
        """Return how many ids stand for characters that the vocabulary does not know."""

    def to_json(self) -> str:
        """Return what `load` needs to build it again."""


class ByteVocabulary:
    """The 256 bytes of UTF-8, id = byte + 1."""

    vocab_size = 257

    def encode_batch(self, documents: list[str]) -> list[Ids]:
        """Return byte + 1 for each byte."""
        return [np.frombuffer(d.encode(), np.uint8).astype(np.int64) + 1 for d in documents]

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Return the text; bytes that are no character become U+FFFD."""
        return bytes(int(i) - 1 for i in ids if i != END).decode(errors="replace")

    def unknown(self, ids: Ids) -> int:
        """Return 0: every text is bytes."""
        return 0

    def to_json(self) -> str:
        """Return its name, all there is to it."""
        return json.dumps({"name": "bytes"})


class CharVocabulary:
    """A sorted list of characters, from id 2, or from id 1 where no id stands for unknown ones."""

    def __init__(self, chars: str, unknown: bool = True) -> None:
        """Take the distinct characters in order of code point, and whether others have an id too."""
        self.chars = chars
        self._codes = _code_points(chars)
        self._has_unknown = unknown
        self._first = 2 if unknown else 1
        self.vocab_size = len(chars) + self._first

    def encode_batch(self, documents: list[str]) -> list[Ids]:
        """Return an id for each character, UNKNOWN where it was not in the training text.

        Raises:
            UnknownCharacter: it was not, and there is no such id.
        """
        return [self._encode(_code_points(d)) for d in documents]

    def _encode(self, codes: NDArray[np.uint32]) -> Ids:
        at = np.searchsorted(self._codes, codes)
        known = self._codes[np.minimum(at, len(self.chars) - 1)] == codes
        if not self._has_unknown and not known.all():
            code = int(codes[~known][0])
            raise UnknownCharacter(f"the character {chr(code)!r} (U+{code:04X})")
        return np.where(known, at + self._first, UNKNOWN).astype(np.int64)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Return the text, U+FFFD for an unknown character."""
        return "".join("\ufffd" if i < self._first else self.chars[i - self._first] for i in ids if i != END)

    def unknown(self, ids: Ids) -> int:
        """Return the number of unknown characters."""
        return int((ids == UNKNOWN).sum()) if self._has_unknown else 0

    def to_json(self) -> str:
        """Return the characters."""
        others = {} if self._has_unknown else {"unknown": False}
        return json.dumps({"name": "chars", "chars": self.chars} | others)


class BPEVocabulary:
    """Byte-level byte-pair encoding by the `tokenizers` library, ids moved up by one for the end token.

    The library never hears of the end token: a text that spells out `<|end|>` stays text.
    """

    def __init__(self, tokenizer: "tokenizers.Tokenizer") -> None:
        """Take a trained tokenizer."""
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size() + 1

    def encode_batch(self, documents: list[str]) -> list[Ids]:
        """Return the ids of each document."""
        return [np.array(e.ids, np.int64) + 1 for e in self._tokenizer.encode_batch_fast(documents)]

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Return the text; bytes that are no character become U+FFFD."""
        return str(self._tokenizer.decode([int(i) - 1 for i in ids if i != END]))

    def unknown(self, ids: Ids) -> int:
        """Return 0: the alphabet has all bytes."""
        return 0

    def to_json(self) -> str:
        """Return the library's own description."""
        return json.dumps({"name": "bpe", "tokenizer": json.loads(self._tokenizer.to_str())})


def load_vocabulary(text: str) -> Vocabulary:
    """Return the vocabulary that `to_json` described."""
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
    """UTF-8 bytes: 257 ids, nothing to train."""

    name: Literal["bytes"] = "bytes"

    def train(self, documents: Iterable[str]) -> Vocabulary:
        """Return the bytes, whatever the documents."""
        return ByteVocabulary()


class Chars(Section):
    """The characters of the training text; others are unknown."""

    name: Literal["chars"] = "chars"

    unknown: bool = True
    """Whether unknown characters have an id; false: text of any split that has one is refused."""

    def train(self, documents: Iterable[str]) -> Vocabulary:
        """Return the distinct characters of the documents."""
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
    """Number of ids: the end token, 256 bytes, merges; fewer where the text has no more pairs to merge."""

    split_urls: bool = False
    """Whether a URL is set apart before pairs are counted, so that no merge crosses its border."""

    def train(self, documents: Iterable[str]) -> Vocabulary:
        """Return the merges of the documents' most frequent pairs."""
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers

        tokenizer = tokenizers.Tokenizer(models.BPE())
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        urls = pre_tokenizers.Split(tokenizers.Regex(r"(?i)https?://\S+"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([urls, words]) if self.split_urls else words
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size - 1,
            min_frequency=2,  # a pair seen once saves nothing
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(documents, trainer)
        return BPEVocabulary(tokenizer)


Tokenizer = Annotated[Bytes | Chars | BPE, Field(discriminator="name")]
