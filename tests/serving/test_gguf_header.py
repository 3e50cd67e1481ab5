import random
import struct
import tracemalloc
from pathlib import Path

import pytest

from db.errors import InvalidInput
from serving.gguf_header import read_header
from serving.model_formats import kind_of
from tests.serving.random_gguf import TEMPLATE, write_random_gguf

MUTATIONS = 1000
# A header of this size needs next to nothing; a count that is believed would need gigabytes.
MEMORY_BYTES = 4 * 1024**2


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "sound.gguf"
    write_random_gguf(path)
    return path


def head_of(*, version: int = 3, tensors: int = 1, pairs: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + rest


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        read_header(path, "m.gguf")
    assert caught.value.param == "source"
    return caught.value.message


class TestReadHeader:
    def test_tells_what_the_file_says_of_itself(self, sound: Path) -> None:
        header = read_header(sound, "sound.gguf")
        assert (header.version, header.architecture, header.context_length) == (3, "llama", 2048)
        assert header.chat_template == TEMPLATE
        assert header.special_tokens == {"eos_token": "<|end|>"}
        assert header.quantization == "F32"
        assert sum(header.types.values()) == 12

    def test_a_file_that_is_cut_is_not_whole(self, sound: Path, tmp_path: Path) -> None:
        content = sound.read_bytes()
        assert "not whole" in refused(tmp_path / "cut", content[:-1])
        assert "middle of its header" in refused(tmp_path / "cut", content[:600])
        assert "middle of its header" in refused(tmp_path / "cut", content[:6])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (head_of(tensors=2**60), "claims 1152921504606846976 tensors"),
            (head_of(tensors=0), "claims 0 tensors"),
            (head_of(pairs=2**40), "metadata pairs"),
            (head_of(pairs=1, rest=struct.pack("<Q", 2**62)), "a key claims"),
            (head_of(pairs=1, rest=struct.pack("<Q1sIIQ", 1, b"k", 9, 8, 2**50)), "elements"),
            (head_of(pairs=1, rest=struct.pack("<Q1sIIQ", 1, b"k", 9, 9, 1)), "unknown type 9"),
            (head_of(pairs=1, rest=struct.pack("<Q1sI", 1, b"k", 99)), "unknown type 99"),
        ],
    )
    def test_counts_and_sizes_are_not_believed(self, tmp_path: Path, content: bytes, message: str) -> None:
        assert message in refused(tmp_path / "bad", content + bytes(64))

    def test_tensors_that_overlap_are_refused(self, sound: Path, tmp_path: Path) -> None:
        content = bytearray(sound.read_bytes())
        place = content.index(b"output_norm.weight") + len("output_norm.weight") + 4 + 8 + 4
        content[place : place + 8] = struct.pack("<Q", 0)
        assert "output_norm.weight is at 0" in refused(tmp_path / "overlap", bytes(content))

    def test_a_part_of_a_split_model_is_told(self, tmp_path: Path) -> None:
        pairs = struct.pack("<Q20sIQ1s", 20, b"general.architecture", 8, 1, b"a")
        pairs += struct.pack("<Q11sIH", 11, b"split.count", 2, 3)
        message = refused(tmp_path / "part", head_of(pairs=2, rest=pairs))
        assert "llama-gguf-split --merge" in message

    def test_mutated_headers_are_read_or_refused_and_nothing_else(self, sound: Path, tmp_path: Path) -> None:
        content, path = sound.read_bytes(), tmp_path / "mutated"
        end_of_header = content.index(b"blk.0.ffn_down.weight") + 60
        rng = random.Random(7)  # noqa: S311 - the same mutations each time
        refusals = 0
        tracemalloc.start()
        try:
            for _ in range(MUTATIONS):
                mutated = bytearray(content)
                for _ in range(rng.randint(1, 4)):
                    width = rng.choice([1, 1, 4, 8])
                    place = rng.randrange(4, end_of_header - width)
                    mutated[place : place + width] = rng.choice(
                        [rng.randbytes(width), b"\xff" * width, bytes(width)]
                    )
                path.write_bytes(
                    bytes(mutated[: rng.randrange(4, len(mutated))] if rng.random() < 0.1 else mutated)
                )
                try:
                    read_header(path, "m.gguf")
                except InvalidInput:
                    refusals += 1
            assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES
        finally:
            tracemalloc.stop()
        assert refusals > MUTATIONS // 2


class TestKindOf:
    @pytest.mark.parametrize(
        ("head", "message"),
        [
            (b"lmgg" + bytes(12), "old format GGML,"),
            (b"fmgg\x01\0\0\0" + bytes(8), "old format GGMF v1"),
            (b"tjgg\x01\0\0\0" + bytes(8), "old format GGJT v1"),
            (b"tjgg\x03\0\0\0" + bytes(8), "old format GGJT v3"),
            (b"algg\x01\0\0\0" + bytes(8), "GGLA"),
        ],
    )
    def test_formats_before_gguf_are_named_with_how_to_convert(self, head: bytes, message: str) -> None:
        with pytest.raises(InvalidInput, match="convert_llama_ggml_to_gguf") as caught:
            kind_of(head, "old.bin", param="source.file")
        assert message in caught.value.message
        assert caught.value.param == "source.file"

    @pytest.mark.parametrize(
        ("head", "message"),
        [
            (head_of(version=1), "GGUF v1"),
            (b"GGUF" + struct.pack(">I", 3) + bytes(8), "big-endian"),
            (head_of(version=9), "GGUF v9"),
            (b"\x80\x02", "pickle"),
            (b"%PDF-1.7", "no model"),
            (b"", "no model"),
        ],
    )
    def test_what_else_is_not_taken(self, head: bytes, message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            kind_of(head, "model", param="source")

    def test_a_pickle_in_a_zip_is_told_by_its_name(self) -> None:
        with pytest.raises(InvalidInput, match="pickle"):
            kind_of(b"PK\x03\x04", "pytorch_model.bin", param="source")
