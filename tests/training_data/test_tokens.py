import shutil
from pathlib import Path

import pytest

from training_data.chat_templates import CHATML, PLAIN
from training_data.json_files import write_json
from training_data.tokens import ChatTokenizer, read_template
from worker.steps.pretrain_text import train_tokenizer

TEXT = [
    "The quick brown fox jumps over the lazy dog, and it's all Köln's 123 fault.\n\n  Naïve 日本語 🙂"
] * 3
CHAT = [
    {"role": "user", "content": "Where is Köln?  "},
    {"role": "assistant", "content": "日本語 🙂, it's there."},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXT, 400).save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


class TestChatTokenizer:
    def test_masks_exactly_the_answer(self, folder):
        tokenizer = ChatTokenizer(folder)
        chat = tokenizer.encode_chat(CHAT)
        answer = [token for token, mine in zip(chat.ids, chat.answer_mask, strict=True) if mine]
        decoded = tokenizer.tokenizer.decode(answer, skip_special_tokens=False)
        assert decoded == "日本語 🙂, it's there.<|im_end|>"

    def test_begins_with_the_prompt_it_is_asked_with(self, folder):
        tokenizer = ChatTokenizer(folder)
        prompt = tokenizer.encode_prompt(CHAT[:1])
        chat = tokenizer.encode_chat(CHAT)
        assert chat.ids[: len(prompt)] == prompt
        assert chat.answer_mask.index(True) == len(prompt)

    def test_agrees_with_transformers(self, folder):
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(folder)
        encoded = theirs.apply_chat_template(
            CHAT, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
        )
        chat = ChatTokenizer(folder).encode_chat(CHAT)
        assert chat.ids == encoded["input_ids"]
        assert chat.answer_mask == [bool(mine) for mine in encoded["assistant_masks"]]

    @pytest.mark.parametrize("marked", [True, False])
    def test_leaves_out_answers_of_weight_0(self, folder, tmp_path, marked):
        """Also with a template that does not mark what the assistant says; the text stays as it is."""
        copied = Path(shutil.copytree(folder, tmp_path / "copy"))
        unmarked = CHATML.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
        (copied / "chat_template.jinja").write_text(CHATML if marked else unmarked)
        tokenizer = ChatTokenizer(copied)
        first = {"role": "assistant", "content": "Wrong.", "weight": "0"}
        chat = [CHAT[0], first, CHAT[0], CHAT[1]]
        encoded = tokenizer.encode_chat(chat)
        learnt = [token for token, mine in zip(encoded.ids, encoded.answer_mask, strict=True) if mine]
        said = tokenizer.tokenizer.decode(learnt, skip_special_tokens=False)
        assert said.strip() == "日本語 🙂, it's there.<|im_end|>"
        plain = [{name: text for name, text in turn.items() if name != "weight"} for turn in chat]
        assert tokenizer.encode_chat(plain).ids == encoded.ids


class TestReadTemplate:
    def test_prefers_the_file(self, folder):
        assert read_template(folder) == (CHATML, "chat_template.jinja")

    def test_takes_the_default_of_several(self, tmp_path):
        several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
        write_json(tmp_path / "tokenizer_config.json", {"chat_template": several})
        assert read_template(tmp_path) == ("d", "tokenizer_config.json")

    def test_falls_back_to_a_plain_one(self, tmp_path):
        assert read_template(tmp_path) == (PLAIN, "lathe:plain")
