"""Text to token ids and back: a thin wrapper over Hugging Face's ``tokenizers``, and training of small ones.

Invariants: no token is added that the text does not ask for; text that merely looks like a special token stays text
unless the caller says otherwise, so that an environment cannot forge the end of a turn; tokenizers trained here give
back exactly the text that went in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from roll_core.errors import CheckpointError

# A word takes the space before it along; digits stand alone, so that "countertop 12" is " countertop", " 1", "2" and
# numbers never merge into names; runs of punctuation and of line breaks stay together.
_PIECES = r" ?\p{L}+| ?\p{N}|\n+| ?[^\s\p{L}\p{N}]+|\s+"
# The same, but a number stays with the word before it: " countertop 12" may become one token.
_PIECES_JOINED = r" ?\p{L}+(?: \p{N}+)?| ?\p{N}+|\n+| ?[^\s\p{L}\p{N}]+|\s+"


class Tokenizer:
    """``Tokenizer.load(path)`` for a tokenizer.json or the directory that holds one. Thread-safe."""

    def __init__(self, content: str) -> None:
        self._content = content
        self._plain = tokenizers.Tokenizer.from_str(content)
        self._special = tokenizers.Tokenizer.from_str(content)
        # The one switch is a property of the whole object: two objects instead of a race.
        self._plain.encode_special_tokens = True
        self._special.encode_special_tokens = False

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            return cls(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} does not exist; expected a tokenizer.json.") from error

    def save(self, directory: Path | str) -> None:
        """Write tokenizer.json, and tokenizer_config.json by which ``transformers`` finds it, into ``directory``."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "tokenizer.json").write_text(self._content, encoding="utf-8")
        config = directory / "tokenizer_config.json"
        if not config.exists():
            config.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}) + "\n", encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included. A model's ``vocab`` may be larger (padded), never smaller."""
        return int(self._plain.get_vocab_size(with_added_tokens=True))

    @property
    def special_tokens(self) -> dict[str, int]:
        added = self._plain.get_added_tokens_decoder()
        return {token.content: int(i) for i, token in added.items() if token.special}

    def differing(self, other: Tokenizer) -> set[str]:
        """Tokens that only one of the two knows, or that have another id there."""
        mine, theirs = (t._plain.get_vocab(with_added_tokens=True) for t in (self, other))
        return {token for token, _ in mine.items() ^ theirs.items()}

    def id_of(self, token: str) -> int:
        """Id of one token by its name, e.g. ``<|im_end|>``. Raises KeyError when there is none."""
        found = self._plain.token_to_id(token)
        if found is None:
            raise KeyError(f"the tokenizer has no token {token!r}; its special tokens are {list(self.special_tokens)}")
        return int(found)

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Ids of ``text``, nothing added. ``specials``: whether special tokens written out in it become their ids."""
        which = self._special if specials else self._plain
        return list(which.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], *, skip_specials: bool = False) -> str:
        return str(self._plain.decode(list(ids), skip_special_tokens=skip_specials))


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = (), *, join_numbers: bool = False
) -> Tokenizer:
    """Byte-level BPE over words with their leading space; special tokens get the first ids, in order.

    Any text round-trips exactly, seen or not. ``vocab_size`` is an upper bound and at least 256 + special tokens.
    ``join_numbers`` lets a word and the number after it become one token, where names are such pairs.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(special_tokens):
        raise ValueError(f"vocab_size={vocab_size} must be at least {len(alphabet) + len(special_tokens)}")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES_JOINED if join_numbers else _PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=alphabet,
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Tokenizer(tokenizer.to_str())
