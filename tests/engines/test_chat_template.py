"""Chat templates come with a model and are programs: they get little time, memory and reach."""

import pytest

from memaudit.engines.chat_template import TemplateProcess
from memaudit.errors import ModelError

MESSAGES = [{"role": "user", "content": "secret"}]


@pytest.fixture
def start():
    """Starts processes, and ends them after the test."""
    started = []

    def start(template, **settings):
        process = TemplateProcess(template, {"bos_token": "<s>"}, **settings)
        started.append(process)
        return process

    yield start
    for process in started:
        process.close()


def test_many_conversations_go_through_one_process(start):
    """Starting a process for each row would take longer than scoring it."""
    process = start("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")

    texts = [process.render([{"role": "user", "content": f"{i}\n\u2028é"}]) for i in range(20)]

    assert texts == [f"<s>{i}\n\u2028é" for i in range(20)]


def test_json_is_not_escaped_for_html(start):
    """Templates write tool calls as JSON."""
    process = start("{{ messages | tojson }}{{ messages[0] | tojson(indent=1) }}")

    text = process.render([{"role": "<user>"}])

    assert text == '[{"role": "<user>"}]{\n "role": "<user>"\n}'


def test_a_text_has_no_date_of_today(start):
    """The same corpus must give the same text tomorrow."""
    template = "{% if strftime_now is defined %}today{% else %}never{% endif %}"

    assert start(template).render(MESSAGES) == "never"


def test_a_refused_conversation_is_a_bad_row_and_the_next_one_works(start):
    """One odd row must not end the audit; its text must not reach the message."""
    process = start(
        "{% if messages[0].role != 'user' %}{{ raise_exception(messages[0].content) }}{% endif %}ok"
    )

    with pytest.raises(ValueError, match="refuses the messages: TemplateError") as caught:
        process.render([{"role": "tool", "content": "secret"}])
    assert "secret" not in str(caught.value)
    assert process.render(MESSAGES) == "ok"


@pytest.mark.parametrize("template", ["{% for %}", "{{ x | no_such_filter }}", "{% endif %}"])
def test_a_broken_template_is_refused_at_once(template):
    """It belongs to the model, not to a row."""
    with pytest.raises(ModelError, match="chat template is broken"):
        TemplateProcess(template, {})


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 2000000000 }}",
        "{% set ns = namespace(s='x' * 1000000) %}{% for i in range(20) %}"
        "{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    ],
    ids=["endless", "large", "doubling"],
)
def test_a_template_without_end_is_ended(start, template):
    """The sandbox of jinja2 bounds neither time nor memory."""
    process = start(template, time_limit=1.0)

    with pytest.raises((ModelError, ValueError), match="template"):
        process.render(MESSAGES)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__ }}",
    ],
)
def test_a_template_cannot_reach_out_of_its_sandbox(start, template):
    """It is a program of a stranger."""
    process = start(template)

    try:
        text = process.render(MESSAGES)
    except ValueError:
        text = ""

    assert text == ""
