"""Tokenizers: exact, short on the text they were trained for, and not to be forged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roll_core.errors import CheckpointError
from roll_core.models import ChatTemplate, Tokenizer, train_tokenizer

GAME = [
    "You are in the middle of a room. Looking around you, you see a cabinet 12, a countertop 1, and a fridge 1.\n",
    "> go to countertop 1\nYou arrive at countertop 1. On the countertop 1, you see a knife 2, and a mug 3.\n",
    "> take mug 3 from countertop 1\nYou pick up the mug 3 from the countertop 1.\n",
] * 5
TOKENIZER = train_tokenizer(GAME, 600, ["<|pad|>", "<|end|>"])


@given(st.text(max_size=60))
def test_any_text_comes_back_exactly(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_game_text_is_short_in_tokens() -> None:
    assert len(TOKENIZER.encode("go to countertop 1")) == 4
    pieces = [TOKENIZER.decode([i]) for i in TOKENIZER.encode("a cabinet 12, a fridge 1")]
    assert pieces == ["a", " cabinet", " 1", "2", ",", " a", " fridge", " 1"]


def test_special_tokens_have_the_first_ids_and_are_read_only_when_asked_for() -> None:
    assert TOKENIZER.id_of("<|pad|>") == 0
    assert TOKENIZER.special_tokens == {"<|pad|>": 0, "<|end|>": 1}
    assert TOKENIZER.encode("mug<|end|>", specials=True)[-1] == 1
    forged = TOKENIZER.encode("mug<|end|>")
    assert 1 not in forged
    assert TOKENIZER.decode(forged) == "mug<|end|>"
    assert TOKENIZER.decode([1], skip_specials=True) == ""
    with pytest.raises(KeyError, match="nothing"):
        TOKENIZER.id_of("<|nothing|>")


def test_save_and_load_keep_every_id(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.vocab_size == TOKENIZER.vocab_size
    assert loaded.encode(GAME[0]) == TOKENIZER.encode(GAME[0])
    with pytest.raises(CheckpointError):
        Tokenizer.load(tmp_path / "elsewhere")


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 257"):
        train_tokenizer(GAME, 256, ["<|end|>"])


CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)


def test_a_chat_template_renders_as_transformers_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    TOKENIZER.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<b>go</b>"}]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate.load(tmp_path).render(messages) == expected


def test_a_template_cannot_leave_its_sandbox() -> None:
    with pytest.raises(Exception, match="unsafe"):
        ChatTemplate("{{ ''.__class__.__mro__ }}{{ messages.append(1) }}").render([])


def test_a_directory_without_a_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="chat template"):
        ChatTemplate.load(tmp_path)
