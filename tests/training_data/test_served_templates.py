"""What the served file's template writes, in our Jinja; llama.cpp's is asked in tests/worker/steps."""

import pytest

from training_data.chat_templates import OWN_MODELS, ChatTemplate
from training_data.served_templates import (
    PROBES,
    UNSET,
    served_template,
    unwanted_variables,
    without_generation_tags,
)

DATED = "{{ date_string or 'no day' }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
THINKS_UNLESS_TOLD = (
    "{{ messages[0]['content'] }}{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
)
THINKS_WHEN_TOLD = (
    "{{ messages[0]['content'] }}{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}"
)


class TestWithoutGenerationTags:
    def test_renders_as_the_training_template_does(self) -> None:
        tokens = {"eos_token": "<|im_end|>"}
        trained = ChatTemplate(OWN_MODELS.template, tokens)
        served = ChatTemplate(without_generation_tags(OWN_MODELS.template), tokens)
        assert "generation %" not in served.source
        for prompt in (False, True):
            for chat in PROBES:
                expected = trained.render(chat, add_generation_prompt=prompt)
                assert served.render(chat, add_generation_prompt=prompt) == expected

    def test_a_comment_that_speaks_of_them_stays_one(self) -> None:
        template = (
            "{#- Puts {% generation %} / {% endgeneration %}\naround answers. -#}{{ messages[0]['content'] }}"
        )
        assert ChatTemplate(without_generation_tags(template)).render(PROBES[0]) == "Hello"


class TestServedTemplate:
    @pytest.mark.parametrize(
        ("template", "name"), [(DATED, "date_string"), (THINKS_WHEN_TOLD, "enable_thinking")]
    )
    def test_a_variable_of_the_server_s_that_changes_the_text_is_taken_away(
        self, template: str, name: str
    ) -> None:
        assert served_template(template) == f"{{%- set {name} = {UNSET} -%}}{template}"
        expected = ChatTemplate(template).render(PROBES[0])
        for value in ("true", "'today'"):
            given = f"{{%- set {name} = {value} -%}}{served_template(template)}"
            assert ChatTemplate(given).render(PROBES[0]) == expected

    def test_one_that_changes_nothing_is_left_to_requests(self) -> None:
        assert served_template(THINKS_UNLESS_TOLD) == THINKS_UNLESS_TOLD

    def test_again_is_the_same(self) -> None:
        once = served_template(DATED)
        assert unwanted_variables(once) == []
        assert served_template(once) == once
