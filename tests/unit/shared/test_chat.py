"""Chat templates: what a conversation becomes, and what a template of a stranger cannot do."""

from typing import Any

import pytest

from outrider_shared.chat import render_chat
from outrider_shared.errors import ConfigError, InputError

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi <b>&</b>"}]


def test_a_conversation_ends_where_the_answer_begins():
    template = (
        "{% for m in messages %}\n"
        "    {{ m.role }}: {{ m['content'] }};\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    # Lines of a template leave no blanks of their own, and text is not escaped for HTML.
    assert render_chat(template, CHAT) == "    system: Be kind.;\n    user: Hi <b>&</b>;\nassistant:"


def test_no_template_is_an_error_of_the_configuration():
    with pytest.raises(ConfigError, match="no chat template"):
        render_chat("", CHAT)


def test_a_template_can_refuse_the_messages_in_its_own_words():
    template = "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}"
    with pytest.raises(InputError, match="refuses the messages: roles must alternate"):
        render_chat(template, CHAT)
    assert render_chat(template, CHAT[1:]) == ""


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("value | tojson", '{"b": 1, "a": "é<&>\'"}'),  # neither sorted, nor ASCII, nor escaped for HTML
        ("value | tojson(indent=1)", '{\n "b": 1,\n "a": "é<&>\'"\n}'),
        ("value | tojson(ensure_ascii=False)", '{"b": 1, "a": "é<&>\'"}'),
        ("value | tojson(ensure_ascii=True)", '{"b": 1, "a": "\\u00e9<&>\'"}'),
    ],
)
def test_tojson_writes_what_transformers_writes(expression: str, text: str):
    messages = [{"role": "user", "content": {"b": 1, "a": "é<&>'"}}]
    assert render_chat("{% set value = messages[0].content %}{{ " + expression + " }}", messages) == text


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ raise_exception.__code__.co_consts }}",
        "{{ cycler.__init__.__globals__.os.popen('true').read() }}",
        "{{ messages | attr('__class__') }}{{ (messages | attr('__class__')).__mro__ }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ messages.clear() }}",
        "{% import 'os' as os %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(template: str):
    messages: list[dict[str, Any]] = [dict(message) for message in CHAT]
    with pytest.raises(InputError, match="template cannot render"):
        render_chat(template, messages)
    assert messages == CHAT


@pytest.mark.parametrize("name", ["__globals__", "__code__", "__class__", "__closure__", "__init__"])
def test_the_inside_of_a_function_is_not_there_for_a_template(name: str):
    assert render_chat("<{{ raise_exception." + name + " }}>", CHAT) == "<>"


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ messages[0].role.no.such.thing }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 / 0 }}",
        "{{ range(10 ** 9) | list }}",
        "{{ messages | tojson(no_such=1) }}",
        "{{ undefined_thing | tojson }}",
        "{{ [1] | sum(start='x') }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_a_template_that_fails_fails_as_an_input_error(template: str):
    with pytest.raises(InputError, match="template cannot render"):
        render_chat(template, CHAT)
