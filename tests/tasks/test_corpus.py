"""Text: what a corpus holds, that its parts have nothing in common, and where a batch comes from."""

import re
import warnings

import pytest
import torch

from ssmcourse.tasks.text import (
    ByteTokenizer,
    overlap,
    python_reference,
    random_windows,
    read_text,
    split_text,
)

WORDS = [" ".join(f"word{i} no{i * j}".strip() for j in range(6)) + "." for i in range(60)]


@pytest.fixture(scope="module")
def reference():
    return python_reference()


def text_of(part):
    return bytes(part.tolist()).decode()


def test_the_reference_has_the_size_that_is_said(reference):
    n = len(reference.training) + len(reference.validation)
    assert 300_000 < n < 500_000
    assert 0.08 < len(reference.validation) / n < 0.101


def test_under_one_percent_of_validation_stands_in_training(reference):
    assert overlap(reference) < 0.01
    assert overlap(reference, 50) < 0.01  # nor do passages of half that length


def test_overlap_counts_windows():
    corpus = split_text("\n\n".join(WORDS), "words")
    together = torch.cat([corpus.training, corpus.validation])
    mixed = type(corpus)("mixed", together, corpus.validation)
    assert overlap(mixed) == 1.0
    half = type(corpus)(
        "half", torch.arange(150, dtype=torch.uint8), torch.arange(50, 250, dtype=torch.uint8)
    )
    assert overlap(half, 100) == pytest.approx(1 / 101)  # of 101 windows only the first is known


def test_a_paragraph_is_kept_once(reference):
    whole = text_of(reference.training) + "\n\n" + text_of(reference.validation)
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", whole)]
    assert len(paragraphs) == len(set(paragraphs))


def test_paragraphs_that_share_a_passage_stay_together():
    same = "these five words are shared"
    kin = [f"{i} {same} {i * 7}" for i in range(10)]
    for seed in range(5):
        corpus = split_text("\n\n".join(WORDS + kin), "kin", seed=seed, validation=0.5)
        sides = [same in text_of(part) for part in (corpus.training, corpus.validation)]
        assert sum(sides) == 1


def test_the_seed_decides(reference):
    assert python_reference().sha256 == reference.sha256
    assert python_reference(seed=1).sha256 != reference.sha256
    shorter = type(reference)("x", reference.training[:-1], reference.validation)
    moved = torch.cat([reference.training[-1:], reference.validation])
    assert type(reference)("x", reference.training[:-1], moved).sha256 != shorter.sha256 != reference.sha256


def test_bytes_there_and_back():
    tokenizer = ByteTokenizer()
    text = "Ā = exp(ΔA), naïve, 日本語, 🐍\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(torch.tensor(tokenizer.encode(text))) == text
    assert max(tokenizer.encode(text)) < tokenizer.vocab_size == 256
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"


def test_a_file_of_paragraphs_or_of_lines(tmp_path):
    for name, between in (("paragraphs", "\n\n"), ("lines", "\n"), ("windows", "\r\n\r\n")):
        path = tmp_path / name
        path.write_bytes(between.join(WORDS).encode())
        corpus = read_text(path)
        found = re.split("\n+", (text_of(corpus.training) + text_of(corpus.validation)).strip())
        assert sorted(found) == sorted(WORDS)


def test_a_folder_is_read_in_order_and_binary_files_are_named(tmp_path):
    (tmp_path / "b.txt").write_text("\n\n".join(WORDS[30:]))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("\n\n".join(WORDS[:30]))
    (tmp_path / ".hidden").write_text("\n\n".join(f"hidden {w}" for w in WORDS))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    with pytest.warns(UserWarning, match=r"left out: picture\.png$"):
        corpus = read_text(tmp_path)
    assert "hidden" not in text_of(corpus.training) + text_of(corpus.validation)
    assert all(word in text_of(corpus.training) + text_of(corpus.validation) for word in WORDS)
    (tmp_path / "picture.png").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_text(tmp_path).sha256 == corpus.sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\0\0", "is not text: it has a zero byte at 4"),
        ("naïve".encode("latin-1"), "is not UTF-8 text \\(byte 0xef at 2\\)"),
        (b"one\n\ntwo\n\nthree", "got 3 paragraphs or lines that differ, expected 20 or more"),
        (b"", "got 0 paragraphs"),
    ],
)
def test_what_is_no_text_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_text(path)
    assert "\n" not in str(error.value)


def test_nothing_there():
    with pytest.raises(FileNotFoundError, match="path: no/such/file does not exist"):
        read_text("no/such/file")


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="holds no text file"):
        read_text(tmp_path)


def test_a_share_out_of_range():
    for share in (0, 1, -0.1):
        with pytest.raises(ValueError, match="validation: got"):
            split_text("\n\n".join(WORDS), "words", validation=share)


def test_windows_are_passages_and_what_follows():
    data = torch.arange(250, dtype=torch.uint8)
    tokens, targets = random_windows(data, 500, 7, torch.Generator().manual_seed(0))
    assert tokens.shape == targets.shape == (500, 7)
    assert tokens.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, tokens + 1)
    assert torch.equal(tokens, tokens[:, :1] + torch.arange(7))
    assert tokens[:, 0].min() == 0  # both ends are reached, and nothing beyond
    assert targets.max() == 249
    again = random_windows(data, 500, 7, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], tokens)
    with pytest.raises(ValueError, match="length: got 250 with a text of 250 bytes"):
        random_windows(data, 1, 250, torch.Generator())
