import pytest

from training_data.chat_templates import (
    CHATML,
    PLAIN,
    ChatTemplate,
    ChatTemplateError,
    merge_system_turn,
    own_template,
)

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Second."},
]
# As Gemma's: it knows no system role, and calls the assistant a model.
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
    "{{ m['content'] | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)


def answers(template: ChatTemplate, chat: list[dict[str, str]]) -> list[str]:
    rendered = template.render_with_answers(chat)
    return [rendered.text[start:end] for start, end in rendered.answers]


class TestOwnTemplate:
    def test_is_chatml(self):
        assert own_template().render(CHAT[:2], add_generation_prompt=True) == (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n"
            "<|im_start|>assistant\n"
        )

    def test_marks_the_words_and_the_end_of_each_answer(self):
        assert answers(own_template(), CHAT) == ["First.<|im_end|>", "Second.<|im_end|>"]

    def test_shows_an_answer_after_exactly_the_generation_prompt(self):
        prompt = own_template().render(CHAT[:4], add_generation_prompt=True)
        assert own_template().render(CHAT).startswith(prompt)

    def test_agrees_with_transformers(self):
        from transformers.utils.chat_template_utils import render_jinja_template

        theirs, _ = render_jinja_template([CHAT], chat_template=CHATML)
        assert own_template().render(CHAT) == theirs[0]


class TestPlainTemplate:
    @pytest.mark.parametrize("add_prefix_space", [True, False])
    def test_answers_are_tokens_of_their_own_after_the_prompt(self, add_prefix_space):
        """Byte-level BPE puts a space before a word into the word's token."""
        from tokenizers import pre_tokenizers

        split = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space).pre_tokenize_str
        template = ChatTemplate(PLAIN, {"eos_token": "</s>"})
        prompt = split(template.render(CHAT[:4], add_generation_prompt=True))
        assert split(template.render(CHAT))[: len(prompt)] == prompt


class TestForeignTemplates:
    def test_masks_answers_without_generation_marks(self):
        bare = CHATML.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
        assert answers(ChatTemplate(bare), CHAT) == ["First.<|im_end|>\n", "Second.<|im_end|>\n"]

    def test_masks_answers_that_the_template_trims(self):
        chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": " padded \n"}]
        assert answers(ChatTemplate(NO_SYSTEM), chat) == ["padded<end>\n"]

    def test_reports_what_the_template_says(self):
        with pytest.raises(ChatTemplateError, match="System role not supported"):
            ChatTemplate(NO_SYSTEM).render(CHAT)

    def test_refuses_one_that_hides_the_answer(self):
        hidden = ChatTemplate("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}")
        with pytest.raises(ChatTemplateError, match="as they are"):
            hidden.render_with_answers(CHAT)

    @pytest.mark.parametrize(
        "attack",
        ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% for i in range(10**9) %}{% endfor %}"],
    )
    def test_runs_in_a_sandbox(self, attack):
        with pytest.raises(ChatTemplateError):
            ChatTemplate(attack).render(CHAT)

    def test_reports_one_that_does_not_compile(self):
        with pytest.raises(ChatTemplateError, match="does not compile"):
            ChatTemplate("{% if %}")


class TestSystemRole:
    @pytest.mark.parametrize(
        ("template", "has"),
        [(CHATML, True), (PLAIN, True), (NO_SYSTEM, False), ("{{ messages[-1]['content'] }}", False)],
    )
    def test_is_detected(self, template, has):
        assert ChatTemplate(template, {"eos_token": "</s>"}).has_system_role is has

    def test_is_merged_into_the_first_user_turn(self):
        merged = merge_system_turn(CHAT)
        assert merged[0] == {"role": "user", "content": "Be brief.\n\nOne?"}
        assert merged[1:] == CHAT[2:]

    def test_leaves_a_chat_without_one_alone(self):
        assert merge_system_turn(CHAT[1:]) == CHAT[1:]
