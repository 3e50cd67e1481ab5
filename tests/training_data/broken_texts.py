"""Files that are no rows at all, or cannot be told apart into rows: bytes, encodings, CSV and JSON."""

import gzip
import io
import json
import zipfile

from tests.training_data.broken_rows import HEADER, Cases, lines, third

GOOD_CSV = HEADER + "a?,A.\nb?,B.\n"


def no_text() -> Cases:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("rows.csv", GOOD_CSV)
    yield "a spreadsheet", "rows.xlsx", archive.getvalue(), "a ZIP archive or a spreadsheet: export it as CSV"
    yield "a spreadsheet called CSV", "rows.csv", archive.getvalue(), "spreadsheet: export it"
    yield "gzip", "rows.csv.gz", gzip.compress(GOOD_CSV.encode()), "compressed by gzip: unpack it"
    yield "gzip called JSONL", "rows.jsonl", gzip.compress(b"{}"), "compressed by gzip: unpack it"
    yield "Zstandard", "rows.jsonl", b"\x28\xb5\x2f\xfd" + bytes(20), "compressed by Zstandard: unpack it"
    yield "a program", "rows.csv", b"\x7fELF\x02\x01\x01" + bytes(9), "is no text file: line 1 holds a NUL"
    yield "a picture", "rows.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(40), "is no text file"
    yield "NUL bytes alone", "rows.csv", bytes(5000), "is empty"
    yield "a NUL byte in line 3", "rows.csv", f"{GOOD_CSV}c\0,C.\n".encode(), "line 4 holds a NUL byte"
    yield (
        "a mark of Parquet alone",
        "rows.parquet",
        b"PAR1",
        "is cut off: its end is missing. Upload it again",
    )
    yield "a CSV called Parquet", "rows.parquet", GOOD_CSV.encode(), "is no Parquet file"


def encodings() -> Cases:
    greek = HEADER + "Πού είναι το κλειδί;,Το έχει ο μυλωνάς και το φυλάει.\n" * 3
    russian = HEADER + "Где ключ от мельницы?,У мельника. Он его бережёт.\n" * 3
    japanese = HEADER + "鍵はどこですか、粉屋さん。,粉屋が持っています。\n" * 3
    korean = HEADER + "열쇠는 어디에 있습니까?,방앗간 주인이 가지고 있습니다.\n" * 3
    chinese = HEADER + "钥匙在哪里?,磨坊主人把它带在身上了。\n" * 3
    for encoding, text in (
        ("iso-8859-7", greek), ("cp1251", russian), ("koi8-r", russian), ("shift_jis", japanese),
        ("euc-jp", japanese), ("euc-kr", korean), ("gb18030", chinese), ("big5", chinese.replace("钥", "")
         .replace("里", "裡").replace("带", "帶").replace("身上了", "身上")),
    ):  # fmt: skip
        content = text.encode(encoding, "ignore")
        yield encoding, "rows.csv", content, "Line 2.*(not Windows-1252|Windows-1252 either|neither).*UTF-8"
    for encoding in ("utf-16-le", "utf-16-be"):
        says = "looks like UTF-16 without the mark that says so: save it as UTF-8"
        yield f"{encoding} without a mark", "rows.csv", GOOD_CSV.encode(encoding), says
        yield (
            f"{encoding} without a mark, JSONL",
            "rows.jsonl",
            lines({"text": "a"}).decode().encode(encoding),
            says,
        )
    cut = GOOD_CSV.encode("utf-16")[:-1]
    yield "UTF-16 cut in a character", "rows.csv", cut, "Line .* is not UTF-16.*Save the file as UTF-8"
    yield "UTF-16 with half a pair", "rows.csv", GOOD_CSV.encode("utf-16") + b"\x3d\xd8\n\0", "is not UTF-16"
    yield "UTF-32 cut in a character", "rows.csv", GOOD_CSV.encode("utf-32")[:-2], "is not UTF-32"
    mixed = (HEADER + "Wo?,Köln\n").encode() + "Wo?,Köln\n".encode("latin-1")
    yield "two encodings", "rows.csv", mixed, "Line 3 of rows.csv is not UTF-8.*mixes encodings"
    yield (
        "two encodings, JSONL",
        "rows.jsonl",
        ('{"prompt": "ö", "completion": "ö"}\n'.encode() + '{"prompt": "ö"}'.encode("latin-1")),
        "Line 2 of rows.jsonl is not UTF-8",
    )
    yield "UTF-8 cut in a character", "rows.csv", f"{GOOD_CSV}Wo in Köln?,Bö".encode()[:-1], "or is cut off"
    yield (
        "a byte that no Windows writes",
        "rows.csv",
        GOOD_CSV.encode() + b"c?,\x81\x8d C.\n",
        ("is not CP1252.*Save the file as UTF-8"),
    )
    yield "an overlong NUL", "rows.csv", f"{GOOD_CSV}ö?,".encode() + b"\xc0\x80\n", "Line 4.*is not UTF-8"
    yield (
        "half a pair in UTF-8",
        "rows.csv",
        f"{GOOD_CSV}ö?,".encode() + b"\xed\xa0\xbd\n",
        "Line 4.*not UTF-8",
    )


def csv_rows() -> Cases:
    yield (
        "too many fields",
        "rows.csv",
        f"{GOOD_CSV}c?,C.,D.\n".encode(),
        "Line 4 has 3 fields, the header 2: put",
    )
    yield (
        "too few fields",
        "rows.csv",
        f"{GOOD_CSV}c?\n".encode(),
        "Line 4 has 1 field, the header 2: give it",
    )
    yield "a comma in an answer", "rows.csv", f"{GOOD_CSV}c?,Yes, but no.\n".encode(), "in double quotes"
    yield "ragged by delimiter", "rows.csv", f"{GOOD_CSV}c?;C.\n".encode(), "Line 4 has 1 field"
    yield "a trailing comma", "rows.csv", f"{GOOD_CSV}c?,C.,\n".encode(), "Line 4 has 3 fields"
    yield "ragged TSV", "rows.tsv", b"question\tanswer\na?\tA.\nb?\tB.\tC.\n", "Line 3 has 3 fields"
    yield "ragged semicolons", "rows.csv", b"question;answer\na?;A.\nb?\n", "Line 3 has 1 field"
    yield "ragged pipes", "rows.csv", b"question|answer\na?|A.|B.\n", "Line 2 has 3 fields"
    yield (
        "an open quote",
        "rows.csv",
        f'{GOOD_CSV}c?,"C.\nd?,D.\n'.encode(),
        "Line 4 .*a quote is opened there",
    )
    yield "an open quote at the end", "rows.csv", f'{GOOD_CSV}c?,"'.encode(), "Line 4 .*never closed"
    yield (
        "quotes within quotes",
        "rows.csv",
        f'{GOOD_CSV}c?,"He said "no"."\n'.encode(),
        ("Line 4 is no CSV: .* A quote inside a field is written twice"),
    )
    yield "text after a quote", "rows.csv", f'{GOOD_CSV}"c?" and,C.\n'.encode(), "Line 4 is no CSV"
    yield (
        "quotes escaped by backslashes",
        "rows.csv",
        f'{GOOD_CSV}c?,"say \\"no\\"."\n'.encode(),
        "Line 4 is no",
    )
    yield (
        "the header's quote is open",
        "rows.csv",
        b'"question,answer\na?,A.\n',
        "no set that can be trained on",
    )
    yield (
        "JSON within a field, unquoted",
        "rows.csv",
        b'messages\n[{"role": "user", "content": "a"}]\n',
        ("Line 2 has 2 fields, the header 1"),
    )
    yield (
        "JSON with single quotes",
        "rows.csv",
        b"messages\n\"[{'role': 'user'}]\"\n",
        "Line 2: messages is no JSON",
    )
    yield "no JSON in messages", "rows.csv", b"messages\nhello\n", "Line 2: messages is no JSON"
    yield (
        "deep JSON in a field",
        "rows.csv",
        b"messages\n" + b"[" * 200_000 + b"\n",
        "Line 2: messages is no JSON",
    )
    yield "an empty answer", "rows.csv", f"{GOOD_CSV}c?,\n".encode(), "Line 4: answer is empty: fill it in"
    yield "a blank answer", "rows.csv", f"{GOOD_CSV}c?,   \n".encode(), "Line 4: answer is empty"
    yield "an empty question", "rows.csv", f"{GOOD_CSV},C.\n".encode(), "Line 4: question is empty"
    yield "an answer of tabs", "rows.csv", f"{GOOD_CSV}c?,\t\t\n".encode(), "Line 4: answer is empty"
    yield (
        "a NUL far behind",
        "rows.csv",
        HEADER.encode() + (b"a?," + b"A" * 3000 + b"\n") * 401 + b"c?,C\0.\n",
        "Line 403: answer holds a NUL character: remove it",
    )
    yield (
        "empty after a line break in quotes",
        "rows.csv",
        b'question,answer\n"a\nb?",A.\n"c\nd?",\n',
        "Line 4: ",
    )
    yield "lines ended by CR", "rows.csv", b"question,answer\ra?,A.\rb?,\r", "Line 3: answer is empty"


def csv_columns() -> Cases:
    named = "has the columns .*no set that can be trained on.*say by `columns`"
    yield "other names", "rows.csv", b"frage,antwort\na,b\n", named
    yield "no header", "rows.csv", b"What is it?,A lathe.\nWho?,She.\n", named
    yield "one column", "rows.csv", b"answer\nA.\n", named
    yield "a comment first", "rows.csv", b"# my rows\nquestion,answer\na?,A.\n", named
    yield "an Excel separator line", "rows.csv", b"sep=;\nquestion;answer\na?;A.\n", named
    yield (
        "a name twice",
        "rows.csv",
        b"question,answer,answer\na?,A.,B.\n",
        "2 columns called 'answer': keep one",
    )
    yield (
        "a name twice in capitals",
        "rows.csv",
        b"Question,question,answer\na,b,c\n",
        "2 columns called 'question'",
    )
    yield "HTML", "rows.csv", b"<!DOCTYPE html>\n<html><body>Not found</body></html>\n", named
    yield "XML", "rows.csv", b'<?xml version="1.0"?>\n<rows><row>a</row></rows>\n', named
    yield "YAML", "rows.csv", b"- question: a\n  answer: b\n", named
    yield "delimited by colons", "rows.csv", b"question:answer\na?:A.\n", named
    yield (
        "a thousand columns",
        "rows.csv",
        ",".join(f"c{n}" for n in range(1000)).encode() + b"\n",
        "and 980 more",
    )
    yield "a very long name", "rows.csv", b"x" * 100_000 + b",b\n1,2\n", named


def jsonl() -> Cases:
    good = {"prompt": "a", "completion": "A."}
    yield "no object", "rows.jsonl", third(good, "[]"), "Line 3 is no JSON object: each line holds one"
    yield "a text", "rows.jsonl", third(good, '"hello"'), "Line 3 is no JSON object"
    yield "a number", "rows.jsonl", third(good, "42"), "Line 3 is no JSON object"
    yield "null", "rows.jsonl", third(good, "null"), "Line 3 is no JSON object"
    yield "no JSON", "rows.jsonl", third(good, "hello"), "Line 3 is no JSON: .* at its character 1"
    yield "single quotes", "rows.jsonl", third(good, "{'prompt': 'a'}"), "Line 3 is no JSON"
    yield "a trailing comma", "rows.jsonl", third(good, '{"prompt": "a",}'), "Line 3 is no JSON"
    yield (
        "cut off",
        "rows.jsonl",
        third(good, '{"prompt": "a", "compl'),
        "Line 3 is no JSON: .* character 23",
    )
    yield "two on a line", "rows.jsonl", third(good, f"{json.dumps(good)} {json.dumps(good)}"), "Extra data"
    yield (
        "a comma after each",
        "rows.jsonl",
        third(good, json.dumps(good) + ","),
        "Line 3 is no JSON: Extra data",
    )
    yield "a comment", "rows.jsonl", third(good, "// a comment"), "Line 3 is no JSON"
    yield (
        "Python's True",
        "rows.jsonl",
        third(good, '{"prompt": "a", "completion": True}'),
        "Line 3 is no JSON",
    )
    yield (
        "a line break in a text",
        "rows.jsonl",
        third(good, '{"prompt": "a\nb", "completion": "c"}'),
        ("Line 3 is no JSON: Invalid control character"),
    )
    yield (
        "a bad escape",
        "rows.jsonl",
        third(good, r'{"prompt": "\x41", "completion": "c"}'),
        "Line 3 .*escape",
    )
    yield "nested deep", "rows.jsonl", third(good, "[" * 100_000), "Line 3 is no JSON: it is nested too deep"
    yield (
        "nested deep in a value",
        "rows.jsonl",
        third(good, '{"prompt": "a", "completion": ' + "[" * 50_000 + "]" * 50_000 + "}"),
        "Line 3 .*nested too deep",
    )
    yield (
        "a key twice",
        "rows.jsonl",
        third(good, '{"prompt": "a", "completion": "b", "completion": "c"}'),
        ("Line 3 is no JSON: it has the key 'completion' twice; keep one"),
    )
    yield (
        "a key of a turn twice",
        "rows.jsonl",
        lines('{"messages": [{"role": "user", "role": "assistant", "content": "a"}]}'),
        "Line 1 .* the key 'role' twice",
    )
    yield (
        "a number of 5,000 digits",
        "rows.jsonl",
        third(good, '{"prompt": ' + "9" * 5000 + "}"),
        "Line 3 is no JSON",
    )
    yield "a mark amid the file", "rows.jsonl", third(good, "\ufeff" + json.dumps(good)), "Line 3 is no JSON"
    yield (
        "other keys later",
        "rows.jsonl",
        third(good, {"q": "a", "a": "b"}),
        "Line 3 has the columns 'q', 'a', and not",
    )
    yield (
        "another use later",
        "rows.jsonl",
        third(good, {"text": "a"}),
        "Line 3 has the columns 'text', and not",
    )
    yield (
        "a key is missing later",
        "rows.jsonl",
        third(good, {"prompt": "a"}),
        "Line 3 has the columns 'prompt'",
    )
    yield (
        "an empty object",
        "rows.jsonl",
        lines({}),
        "has no columns, and no set that can be trained on",
    )
    yield "keys that are none", "rows.jsonl", lines({"q": "a", "a": "b"}), "no set that can be trained on"
    yield "a CSV called JSONL", "rows.jsonl", GOOD_CSV.encode(), "Line 1 is no JSON"
    yield "a key with half a pair", "rows.jsonl", lines(r'{"\ud83d": 1}'), r"'\\ud83d'.*no set that can be"


def json_arrays() -> Cases:
    good = {"prompt": "a", "completion": "A."}
    shown = json.dumps([good, good], indent=1)
    yield "not closed", "rows.json", shown[:-1].encode(), "is not closed: the file is cut off after row 2"
    yield "cut in a row", "rows.json", shown[:-20].encode(), "Row 2, which begins in line 6, is no JSON"
    yield "more after the end", "rows.json", f"{shown}\n[]".encode(), "there is more after the array's end"
    yield (
        "no objects",
        "rows.json",
        b"[1, 2, 3]",
        "Row 1, in line 1, is no JSON object: give an array of objects",
    )
    yield "an array of arrays", "rows.json", b'[["a", "b"]]', "Row 1, in line 1, is no JSON object"
    yield (
        "an empty answer",
        "rows.json",
        json.dumps([good, {**good, "completion": ""}], indent=1).encode(),
        (r"Row 2 \(line 6\): completion is empty: fill it in"),
    )
    yield (
        "wrapped in an object",
        "rows.json",
        json.dumps({"data": [good]}).encode(),
        "no set that can be trained on",
    )
    yield "a number alone", "rows.json", b"42", "Row 1, in line 1, is no JSON object"
    yield "a text alone", "rows.json", b'"hello"', "Row 1, in line 1, is no JSON object"
    yield (
        "a key twice",
        "rows.json",
        b'[{"prompt": "a", "prompt": "b", "completion": "c"}]',
        "the key 'prompt' twice",
    )
    yield "deep", "rows.json", b"[" * 100_000, "Row 1, .*nested too deep"
    yield (
        "no colon",
        "rows.json",
        f"[{json.dumps(good)},\n\n{{'a' 1}}]".encode(),
        "Row 2, which begins in line 3",
    )
    yield "Python's list", "rows.json", str([good]).encode(), "Row 1, which begins in line 1, is no JSON"
    yield (
        "columns and not rows",
        "rows.json",
        b'{"prompt": ["a", "b"], "completion": ["c", "d"]}',
        ("Row 1 .*prompt, message 1 is no object with role and content"),
    )


BROKEN_TEXTS = (no_text, encodings, csv_rows, csv_columns, jsonl, json_arrays)
