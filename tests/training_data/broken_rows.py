"""Rows that nobody should train on, in files that are read well: values, conversations, pairs, tables."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.parquet

USER = {"role": "user", "content": "Who?"}
SHE = {"role": "assistant", "content": "She."}
HUMAN, GPT = {"from": "human", "value": "Who?"}, {"from": "gpt", "value": "She."}
HEADER = "question,answer\n"

Cases = Iterator[tuple[str, str, bytes, str]]


def lines(*records: Any) -> bytes:
    """JSON lines; a text stands as it is."""
    return "".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in records).encode()


def third(good: Any, bad: Any) -> bytes:
    return lines(good, good, bad)


def parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out, **options)
    return out.getvalue()


WRONG_VALUES = (
    ("null", "null", "is missing: fill it in, or leave the row out"),
    ("empty", '""', "is empty: fill it in, or leave the row out"),
    ("blank", '" \\n "', "is empty"),
    ("NaN", "NaN", "is nan, and no text"),
    ("infinite", "-Infinity", "is -inf, and no text"),
    ("a number", "42", "is the value 42, and no text: write it in quotes"),
    ("true", "true", "is the value true, and no text"),
    ("an object", '{"text": "a"}', "is an object, and no text"),
    ("half a pair", r'"oh \ud83d"', "holds half of a character .*: write the whole one"),
    ("a NUL", r'"a\u0000b"', "holds a NUL character: remove it"),
)


def values() -> Cases:
    forms = (
        ("question and answer", '{"question": "a?", "answer": VALUE}', "Line 3: answer "),
        ("input and output", '{"input": VALUE, "output": "A."}', "Line 3: input "),
        ("instruction", '{"instruction": "a?", "output": VALUE}', "Line 3: output "),
        ("text", '{"text": VALUE}', "Line 3: text "),
        (
            "messages",
            '{"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": VALUE}]}',
            "Line 3, message 2: content ",
        ),
        (
            "ShareGPT",
            '{"conversations": [{"from": "human", "value": VALUE}, {"from": "gpt", "value": "A."}]}',
            "Line 3, message 1: value ",
        ),
    )  # fmt: skip
    for form, record, place in forms:
        good = record.replace("VALUE", '"fine"')
        for name, value, says in WRONG_VALUES:
            expected = "is (an object, and no text|not a list)" if name == "an object" else says
            yield (
                f"{form}: {name}",
                "rows.jsonl",
                third(good, record.replace("VALUE", value)),
                place + expected,
            )


def conversations() -> Cases:
    def of(*turns: Any) -> bytes:
        return third({"messages": [USER, SHE]}, {"messages": list(turns)})

    yield "no answer", "rows.jsonl", of(USER), "Line 3: the last message must be the assistant's"
    yield "the wrong way round", "rows.jsonl", of(SHE, USER), "Line 3: the last message must be"
    yield "no turns", "rows.jsonl", of(), "Line 3: messages is not a list with turns"
    yield (
        "a system turn later",
        "rows.jsonl",
        of(USER, {"role": "system", "content": "x"}, SHE),
        "can only come first",
    )
    yield (
        "two system turns",
        "rows.jsonl",
        of(*[{"role": "system", "content": "x"}] * 2, USER, SHE),
        "only come first",
    )
    yield "the system alone", "rows.jsonl", of({"role": "system", "content": "x"}), "the last message must be"
    yield (
        "an unknown role",
        "rows.jsonl",
        of({"role": "robot", "content": "x"}, SHE),
        "message 1: the role 'robot'",
    )
    yield "no role", "rows.jsonl", of({"content": "x"}, SHE), "message 1: the role 'None' is none of"
    yield "a role that is a number", "rows.jsonl", of({"role": 1, "content": "x"}, SHE), "the role '1'"
    yield "a role in capitals", "rows.jsonl", of({"role": "USER", "content": "x"}, SHE), "the role 'USER'"
    yield "a tool's turn", "rows.jsonl", of(USER, {"role": "tool", "content": "x"}, SHE), "the role 'tool'"
    yield (
        "a call of a tool",
        "rows.jsonl",
        of(USER, {**SHE, "tool_calls": [{"id": "1"}]}),
        "tool_calls cannot be learnt",
    )
    yield (
        "a call of a function",
        "rows.jsonl",
        of(USER, {**SHE, "function_call": {"name": "f"}}),
        "function_call cannot",
    )
    yield "no object", "rows.jsonl", of("Who?", "She."), "message 1 is no object with role and content"
    yield "null for a turn", "rows.jsonl", of(None, SHE), "message 1 is no object"
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    yield (
        "a picture",
        "rows.jsonl",
        of({"role": "user", "content": image}, SHE),
        "part 1 is no text \\('image_url'\\)",
    )
    yield (
        "parts that are numbers",
        "rows.jsonl",
        of({"role": "user", "content": [1]}, SHE),
        "part 1 is no text",
    )
    yield (
        "an object for messages",
        "rows.jsonl",
        lines({"messages": {"role": "user"}}),
        "not a list with turns",
    )
    yield "a text for messages", "rows.jsonl", lines({"messages": "Who? She."}), "messages is no JSON"
    yield "a weight of 2", "rows.jsonl", of(USER, {**SHE, "weight": 2}), "a weight is 0 or 1"
    yield (
        "a weight of the user",
        "rows.jsonl",
        of({**USER, "weight": 1}, SHE),
        "a weight is 0 or 1, and the assis",
    )
    yield (
        "nothing to learn",
        "rows.jsonl",
        of(USER, {**SHE, "weight": 0}),
        "every answer has weight 0.*Give one",
    )


def shares() -> Cases:
    def of(turns: Any, **more: Any) -> bytes:
        return third({"conversations": [HUMAN, GPT]}, {"conversations": turns, **more})

    yield (
        "the wrong way round",
        "rows.json",
        json.dumps([{"conversations": [GPT, HUMAN]}]).encode(),
        "must be the assis",
    )
    yield "no answer", "rows.jsonl", of([HUMAN]), "Line 3: the last message must be the assistant's"
    yield (
        "an observation",
        "rows.jsonl",
        of([HUMAN, {"from": "observation", "value": "x"}]),
        "role 'observation'",
    )
    yield "nobody speaks", "rows.jsonl", of([{"value": "x"}, GPT]), "Line 3, message 1: the role 'None'"
    yield (
        "two system turns",
        "rows.jsonl",
        of([{"from": "system", "value": "x"}, HUMAN, GPT], system="y"),
        "keep one",
    )
    yield "null", "rows.jsonl", of(None), "Line 3: conversations is not a list with turns"


def pairs() -> Cases:
    good = {"prompt": "Who?", "chosen": "She.", "rejected": "He."}
    for name, change, says in (
        ("the same", {"rejected": " She. "}, "both answers are the same"),
        ("no better one", {"chosen": ""}, "chosen is empty"),
        ("no worse one", {"rejected": None}, "rejected is missing"),
        ("ends with an answer", {"prompt": [SHE]}, "must end with the user"),
        ("two answers", {"chosen": [SHE, SHE]}, "chosen must be one message, the assistant's"),
        ("the user's answer", {"rejected": [USER]}, "rejected must be one message"),
        ("a weight", {"chosen": [{**SHE, "weight": 1}]}, "a weight means nothing here.*Leave it out"),
        ("a number", {"rejected": 7}, "rejected is the value 7"),
    ):  # fmt: skip
        yield name, "rows.jsonl", third(good, good | change), f"Line 3.*{says}"
    other = {"role": "user", "content": "Why?"}
    yield (
        "two conversations",
        "rows.jsonl",
        lines({"chosen": [USER, SHE], "rejected": [other, SHE]}),
        "the same convers",
    )
    yield (
        "OpenAI's without messages",
        "rows.jsonl",
        lines({"input": {"tools": []}, "preferred_output": [SHE], "non_preferred_output": [SHE]}),
        "Line 1: input is not a list with turns",
    )


def labels() -> Cases:
    good = {"prompt": "Who?", "completion": "She.", "label": True}
    for name, change, says in (
        ("no label", {"label": None}, "label is 'none': give true for a good answer"),
        ("a word", {"label": "maybe"}, "label is 'maybe'"),
        ("a grade", {"label": 5}, "label is '5'"),
        ("a list", {"label": [True]}, "label is"),
        ("no answer", {"completion": ""}, "completion is empty"),
        ("no prompt", {"prompt": ""}, "prompt is empty"),
        ("two answers", {"completion": [SHE, SHE]}, "completion must be one message"),
    ):
        yield name, "rows.jsonl", third(good, good | change), f"Line 3: {says}"


def alpaca() -> Cases:
    good = {"instruction": "Who?", "input": "", "output": "She."}
    for name, change, says in (
        ("input is a number", {"input": 3}, "input is the value 3"),
        ("history is a text", {"history": "before"}, "history is no list of pairs"),
        ("history of one", {"history": [["a?"]]}, "history, turn 1, is no pair"),
        ("history of numbers", {"history": [["a?", "A."], [1, 2]]}, "history, turn 2, is no pair"),
        ("system is a list", {"system": ["x"]}, "system is a list, and no text"),
    ):
        yield name, "rows.jsonl", third(good, good | change), f"Line 3: {says}"


def parquet_files() -> Cases:
    rows = [{"question": f"{n}?", "answer": f"{n}."} for n in range(3000)]
    whole = parquet(rows, row_group_size=500, compression="none", use_dictionary=False)
    for share in (0.1, 0.5, 0.9):
        yield (
            f"cut at {share:.0%}",
            "rows.parquet",
            whole[: int(len(whole) * share)],
            "is cut off: its end is missing",
        )
    yield "cut before its mark", "rows.parquet", whole[:-1], "is cut off: its end is missing. Upload it again"
    yield (
        "the end of another",
        "rows.parquet",
        whole[: len(whole) // 2] + whole[-300:],
        "no whole Parquet|cannot be read",
    )
    damaged = bytearray(whole)
    damaged[len(whole) // 3 : len(whole) // 3 + 4000] = b"\xff" * 4000
    yield "damaged amid", "rows.parquet", bytes(damaged), "cannot be read after row"
    footer = bytearray(whole)
    footer[-40:-8] = b"\xff" * 32
    yield "a damaged footer", "rows.parquet", bytes(footer), "is no whole Parquet file"
    yield (
        "an enormous footer",
        "rows.parquet",
        whole[:-8] + b"\xff\xff\xff\x7fPAR1",
        "is no whole Parquet file",
    )
    for name, bad, says in (
        ("a missing answer", {"question": "a?", "answer": None}, "Row 3: answer is missing"),
        ("an empty answer", {"question": "a?", "answer": ""}, "Row 3: answer is empty"),
        ("a NUL", {"question": "a?", "answer": "\0"}, "Row 3: answer holds a NUL"),
    ):
        yield name, "rows.parquet", parquet([*rows[:2], bad]), says
    yield (
        "numbers",
        "rows.parquet",
        parquet([{"question": "a?", "answer": 42}]),
        "Row 1: answer is the value 42",
    )
    yield "NaN", "rows.parquet", parquet([{"question": "a?", "answer": float("nan")}]), "Row 1: answer is nan"
    yield "bytes", "rows.parquet", parquet([{"question": "a?", "answer": b"A."}]), "Row 1: answer is bytes"
    yield "no rows", "rows.parquet", parquet(rows)[:0] + parquet_of_none(), "has no rows"
    yield "other columns", "rows.parquet", parquet([{"q": "a"}]), "no set that can be trained on"
    yield "turns of the wrong kind", "rows.parquet", parquet([{"messages": [1, 2]}]), "message 1 is no object"


def parquet_of_none() -> bytes:
    out = io.BytesIO()
    schema = pyarrow.schema([("question", pyarrow.string()), ("answer", pyarrow.string())])
    pyarrow.parquet.write_table(schema.empty_table(), out)
    return out.getvalue()


def nothing() -> Cases:
    yield "no bytes", "rows.csv", b"", "rows.csv is empty"
    yield "no bytes, JSONL", "rows.jsonl", b"", "rows.jsonl is empty"
    yield "white space", "rows.csv", b" \r\n\t\n", "is empty"
    yield "a mark alone", "rows.csv", b"\xef\xbb\xbf", "is empty"
    yield "marks of UTF-16 alone", "rows.csv", b"\xff\xfe", "is empty"
    yield (
        "a header alone",
        "rows.csv",
        HEADER.encode(),
        "rows.csv has no rows: there is nothing to learn from",
    )
    yield "a header and blank lines", "rows.tsv", b"question\tanswer\n\n\n", "has no rows"
    yield "an empty array", "rows.json", b"[]", "has no rows: its array is empty"
    yield "blank lines", "rows.jsonl", b"\n\n\n", "is empty"
    empty = HEADER.encode() + b"a?,\n" * 50
    yield "all answers empty", "rows.csv", empty, "Line 2: answer is empty"
    yield (
        "all answers empty, JSONL",
        "rows.jsonl",
        lines(*[{"prompt": "a", "completion": ""}] * 50),
        "Line 1: completion",
    )
    yield (
        "all answers null",
        "rows.json",
        json.dumps([{"prompt": "a", "completion": None}] * 9).encode(),
        "Row 1 ",
    )


BROKEN_ROWS = (values, conversations, shares, pairs, labels, alpaca, parquet_files, nothing)
