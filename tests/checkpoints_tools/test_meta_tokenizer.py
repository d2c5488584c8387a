"""Meta's ``tokenizer.model``: what is not one, or would take all time, is refused."""

from __future__ import annotations

import base64
import io

import pytest
import sentencepiece

from checkpoints_tools.meta_tokenizer import write_tokenizer_json
from data.errors import UserError


def ranks(tokens: list[bytes], first: int = 0) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % (first + i) for i, token in enumerate(tokens))


BYTES = [bytes([b]) for b in range(256)]


def without_bos() -> bytes:
    out = io.BytesIO()
    words = iter(["abc abd abe b c d e"] * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=words, model_writer=out, vocab_size=300, bos_id=-1, model_type="bpe", hard_vocab_limit=False,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=9,
    )  # fmt: skip
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(lambda: b"", "does not have all bytes|do not have all bytes|neither", id="empty"),
        pytest.param(lambda: b"no tokenizer", "neither a rank file nor a SentencePiece model", id="text"),
        pytest.param(lambda: b"YQ== " + b"9" * 5000, "neither a rank file nor", id="rank of 5,000 digits"),
        pytest.param(lambda: ranks(BYTES[1:]), "incomplete: 255 tokens", id="a byte is missing"),
        pytest.param(lambda: ranks(BYTES, 1), "whose ranks are not 0 to 255", id="ranks from 1"),
        pytest.param(lambda: ranks([*BYTES, b"a" * 10**6]), "length 1,000,000; the limit is 512", id="long token"),
        pytest.param(lambda: b"a" * (2**24 + 1), "larger than 16,777,216 bytes", id="large"),
        pytest.param(without_bos, "bos piece is None", id="no beginning"),
    ],
)  # fmt: skip
def test_what_is_refused(content, message, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(content())
    with pytest.raises(UserError, match=f"tokenizer.model.*({message})"):
        write_tokenizer_json(tmp_path, 8)
