from typing import Any

import pytest

from serving.go_template import derive, matches
from tests.serving.go_interpreter import BadTemplate, parse, render
from training_data.chat_templates import TEMPLATES, ChatTemplate

# In the shapes that well-known families have; the texts between messages are what matters here.
LLAMA_3 = (
    "{{- bos_token }}{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else "
    "m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN_2 = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# What an answer is shown as depends on whether it is the last one.
LATER_TURNS_DIFFER = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and loop.index > 2 %}{{ '<late>' }}{% endif %}"
    "{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

SYSTEM = {"role": "system", "content": "Be brief.\n{{ not an action }}"}
FIRST = [{"role": "user", "content": 'Say "hi" \\ é'}]
LATER = [*FIRST, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "again"}]
CHATS: list[list[dict[str, Any]]] = [FIRST, LATER, [SYSTEM, *FIRST], [SYSTEM, *LATER]]


def chat_template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<bos>", "eos_token": "<eos>"})


@pytest.mark.parametrize("source", [LLAMA_3, QWEN_2, *(row.template for row in TEMPLATES.values())])
class TestDerive:
    def test_go_renders_what_jinja_renders(self, source: str) -> None:
        jinja = chat_template(source)
        derived = derive(lambda chat: jinja.render(chat, add_generation_prompt=True), bos="<bos>")
        assert derived is not None
        go = parse(derived.source)
        for chat in CHATS:
            expected = jinja.render(chat, add_generation_prompt=True).removeprefix("<bos>")
            rows = [{"Role": row["role"], "Content": row["content"]} for row in chat]
            assert render(go, {"Messages": rows}) == expected
            assert derived.render(chat) == expected


class TestDeriveOdd:
    def test_template_without_system_role(self) -> None:
        jinja = chat_template(GEMMA)
        derived = derive(lambda chat: jinja.render(chat, add_generation_prompt=True), bos="<bos>")
        assert derived is not None
        expected = jinja.render(LATER, add_generation_prompt=True).removeprefix("<bos>")
        assert derived.render(LATER) == expected

    def test_template_that_is_more_than_its_steps_is_noticed(self) -> None:
        jinja = chat_template(LATER_TURNS_DIFFER)

        def show(chat: list[dict[str, Any]]) -> str:
            return jinja.render(chat, add_generation_prompt=True)

        derived = derive(show)
        longer = [*LATER, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "more"}]
        assert derived is not None
        assert not matches(derived, show, [longer])

    def test_template_that_shows_nothing_has_no_go_form(self) -> None:
        assert derive(lambda chat: "always the same") is None


class TestTheInterpreterItself:
    @pytest.mark.parametrize(
        "source",
        [
            "{{ if }}",
            "{{- range .Messages }}",
            "{{ end }}",
            "{{ else }}",
            "{{ .Messages",
            "{{ eq .Role 'a' }}",
        ],
    )
    def test_refuses_what_go_refuses(self, source: str) -> None:
        with pytest.raises(BadTemplate):
            parse(source)
