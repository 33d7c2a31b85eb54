"""Batch files: what is read of each kind, and that whatever is wrong is said with file and line."""

import io
import json
import sys
from pathlib import Path

import pytest

from studio.batch.reading import Entry, UnreadableFile, parse, read_entries


def prompts(kind: str, text: str) -> list[str]:
    return [entry.prompt for entry in parse("f", kind, text.encode())]


def test_text_is_a_prompt_a_line() -> None:
    text = "\ufeffa red mug\r\n\r\n  # a comment\n\ta  blue\tcar \n#x\na ${HOME} {{x}} %s\u2028!"
    assert prompts(".txt", text) == ["a red mug", "a blue car", "a ${HOME} {{x}} %s !"]
    assert [entry.where for entry in parse("f", ".txt", text.encode())] == [f"f, line {n}" for n in (1, 4, 6)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_has_a_header_and_quotes(delimiter: str) -> None:
    rows = [["seed", "prompt", "name", "negative", "steps"], ["7", '"a mug, ""red"""', "cup", "", ""]]
    rows += [["", '"two\nlines"', "", "fog", " 30 "], ["", "", "", "", ""], ["1", "a car"]]
    text = "".join(delimiter.join(row) + "\r\n" for row in rows)
    assert parse("f", ".csv", text.encode()) == [
        Entry("f, line 2", 'a mug, "red"', 7, "cup"),
        Entry("f, line 4", "two lines", None, "", (("negative", "fog"), ("steps", 30))),
        Entry("f, line 6", "a car", 1),
    ]


def test_json_has_the_same_columns() -> None:
    lines = [{"prompt": "a mug", "seed": 3, "method": "VSD"}, {"prompt": "中文 é", "seed": None, "name": ""}]
    text = "\n".join(json.dumps(line) for line in lines) + "\n\n"
    assert parse("f", ".jsonl", text.encode()) == [
        Entry("f, line 1", "a mug", 3, "", (("method", "VSD"),)),
        Entry("f, line 2", "中文 é"),
    ]


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (".txt", "# nothing\n\n", "f holds no prompt."),
        (".txt", "a\nb\x00c", "f, line 2: prompt holds the control character '\\x00'."),
        (".txt", "a\n" + "x" * 20_001, "f, line 2: prompt has 20,001 characters; 20,000 are read."),
        (".csv", "promt,seed\na,1", "f, line 1: no column 'promt'; did you mean 'prompt'?"),
        (".csv", "seed\n1", "f, line 1: there is no column 'prompt'."),
        (".csv", "prompt,prompt\na,b", "f, line 1: the column 'prompt' is there twice."),
        (".csv", "prompt,seed\n\na mug,one", "f, line 3: seed must be a whole number, not 'one'."),
        (".csv", "prompt,seed\na,1,2", "f, line 2: 3 values under 2 columns; put quotes around a prompt with commas."),
        (".csv", 'prompt\n"a', "f, line 2: unexpected end of data"),
        (".csv", "prompt,seed\n,1", "f, line 2: the prompt is empty."),
        (".csv", "prompt,name\na,../../etc", "f, line 2: '../../etc' is no name for a folder of a run."),
        (".csv", "prompt,name\na,.hidden", "f, line 2: '.hidden' is no name for a folder of a run."),
        (".jsonl", "{", "f, line 1: no JSON ("),
        (".jsonl", "[" * 100_000, "f, line 1: no JSON ("),
        (".jsonl", '"a mug"', "f, line 1: wanted an object, such as"),
        (".jsonl", '{"prompt": ["a"]}', "f, line 1: prompt must be text, not ['a']."),
        (".jsonl", '{"prompt": "a", "seed": true}', "f, line 1: seed must be a whole number, not 'True'."),
        (".jsonl", '{"prompt": "a", "seed": 1.5}', "f, line 1: seed must be a whole number, not '1.5'."),
        (".jsonl", '{"prompt": "a \\ud800"}', "f, line 1: prompt holds the control character"),
        (".jsonl", '{"prompt": "a", "prior": "/etc"}', "f, line 1: no column 'prior'"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(kind: str, text: str, words: str) -> None:
    with pytest.raises(UnreadableFile) as problem:
        parse("f", kind, text.encode())
    assert str(problem.value).startswith(words)


def test_other_encodings_are_named() -> None:
    with pytest.raises(UnreadableFile, match="f, line 2: not UTF-8"):
        parse("f", ".txt", "a mug\na caf\xe9".encode("latin-1"))
    with pytest.raises(UnreadableFile, match="f is UTF-16; save it as UTF-8"):
        parse("f", ".txt", "a mug".encode("utf-16"))


def test_files_and_the_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.TXT").write_text("a mug\n")
    assert [entry.prompt for entry in read_entries(str(tmp_path / "a.TXT"))] == ["a mug"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a car\n# no\n")))
    assert read_entries("-") == [Entry("standard input, line 1", "a car")]
    with pytest.raises(UnreadableFile, match=r"a\.doc is none of \*\.txt, \*\.csv, \*\.jsonl"):
        read_entries("a.doc")
