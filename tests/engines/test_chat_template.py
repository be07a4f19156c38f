"""Chat templates come with a model and are programs: they get little time, memory and reach."""

import os
import signal
import threading

import pytest
from support.compare_templates import CONVERSATIONS, SPECIAL_TOKENS, by_transformers

from memaudit.corpus import Conversation
from memaudit.engines.chat_template import TemplateProcess
from memaudit.errors import ModelError

MESSAGES = [{"role": "user", "content": "secret"}]
CHAT = [
    {"role": "system", "content": "sys"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
]
PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<end>{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
)
THINKING = (
    "{% for m in messages %}<{{ m.role }}>{% if loop.last %}<think>{% endif %}{{ m.content }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant><think>plan{% endif %}"
)


def render(process, messages):
    """Return the text that a template makes of messages."""
    return process.render(Conversation(messages)).text


@pytest.fixture
def start():
    """Starts processes, and ends them after the test."""
    started = []

    def start(template, **settings):
        process = TemplateProcess(template, SPECIAL_TOKENS, **settings)
        started.append(process)
        return process

    yield start
    for process in started:
        process.close()


def test_many_conversations_go_through_one_process(start):
    """Starting a process for each row would take longer than scoring it."""
    process = start("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")

    texts = [render(process, [{"role": "user", "content": f"{i}\n\u2028é"}]) for i in range(20)]

    assert texts == [f"<s>{i}\n\u2028é" for i in range(20)]


def test_json_is_not_escaped_for_html(start):
    """Templates write tool calls as JSON."""
    process = start("{{ messages | tojson }}{{ messages[0] | tojson(indent=1) }}")

    text = render(process, [{"role": "<user>"}])

    assert text == '[{"role": "<user>"}]{\n "role": "<user>"\n}'


def test_a_text_has_no_date_of_today(start):
    """The same corpus must give the same text tomorrow: today is a date that is given."""
    process = start("{{ strftime_now('%d %b %Y') }}")

    assert process.render(Conversation(MESSAGES)).text == "26 Jul 2024"
    assert process.render(Conversation(MESSAGES, date="2026-01-31")).text == "31 Jan 2026"


@pytest.mark.parametrize("template", ["{{ ['a', 'b'] | random }}", "{{ lipsum() }}"])
def test_a_template_that_draws_lots_is_refused(template, start):
    """Its texts would be others in each run, and the manifest could not vouch for them."""
    with pytest.raises((ModelError, ValueError)):
        start(template).render(Conversation(MESSAGES))


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (PLAIN, ["two<end>\n", "four<end>\n"]),
        (MARKED, ["two<end>", "four<end>"]),
        (THINKING, ["two", "four<end>\n"]),
    ],
    ids=["by what precedes", "marked", "by content"],
)
def test_the_answers_of_a_conversation_are_found(start, template, answers):
    """They are what a student is trained on, whatever the template writes around them."""
    found = start(template).render(Conversation(CHAT))

    assert [found.text[a:b] for a, b in found.answers] == answers


def test_what_follows_a_prompt_is_the_answer(start):
    """A completion of two messages is trained on as a whole, roles included, as TRL does it."""
    found = start(PLAIN).render(Conversation(CHAT, n_context=2))

    (answer,) = [found.text[a:b] for a, b in found.answers]
    assert answer == "two<end>\n<user>three<end>\n<assistant>four<end>\n"


def test_everything_in_a_message_reaches_the_template(start):
    """A call that is dropped makes different texts equal."""
    calls = [{"function": {"name": "f"}}]
    process = start("{{ messages | tojson }}{{ tools | tojson }}{{ documents is none }}")
    message = {"role": "assistant", "content": None, "tool_calls": calls, "reasoning": "r"}

    found = process.render(Conversation([message], {"tools": [{"name": "f"}]}))

    assert found.text == (
        '[{"thinking": "r", "role": "assistant", "tool_calls": [{"function": {"name": "f"}}], '
        '"reasoning": "r", "reasoning_content": "r"}][{"name": "f"}]True'
    )


TOOLS = (
    "{{ bos_token }}{% for t in tools or [] %}{{ t.function | tojson(indent=2) }}{% endfor %}"
    "{% for d in documents or [] %}{{ d.title }}{% endfor %}{% for m in messages %}{{ m.role }}:"
    "{%- if m.tool_calls is defined %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}"
    "{% endfor %}{% endif %}{{ m.reasoning_content }}{{ m.content }}{{ m.name }}\n{% endfor %}"
    "{{ strftime_now('%Y') }}"
)
STRICT = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}"
    "{{ raise_exception('no ' + m.role) }}{% endif %}{{ m.content | upper }}{% endfor %}"
)


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("template", [PLAIN, MARKED, TOOLS, STRICT])
def test_a_text_is_the_one_that_transformers_makes(start, template, name):
    """It is what a student is trained on: the other engine of templates decides, not this one.

    `support/compare_templates.py` does the same for a folder of templates.
    """
    messages, variables = CONVERSATIONS[name]
    process = start(template)

    expected = by_transformers(template, messages, variables)
    try:
        found = process.render(Conversation(messages, variables)).text
    except ValueError:
        found = None

    assert found == expected


def test_a_fault_of_the_template_is_not_blamed_on_a_row(start):
    """No repair of a row would help."""
    with pytest.raises(ModelError, match="fails at every conversation: UndefinedError"):
        render(start("{{ nothing.at_all() }}"), MESSAGES)
    with pytest.raises(ValueError, match="fails at these messages: UndefinedError"):
        render(start("{{ messages[0].content + '' }}"), [{"role": "user", "content": None}])


def test_a_refused_conversation_is_a_bad_row_and_the_next_one_works(start):
    """One odd row must not end the audit; its text must not reach the message."""
    process = start(
        "{% if messages[0].role != 'user' %}{{ raise_exception(messages[0].content) }}{% endif %}ok"
    )

    with pytest.raises(ValueError, match="refuses the messages") as caught:
        render(process, [{"role": "tool", "content": "secret"}])
    assert "secret" not in str(caught.value)
    assert render(process, MESSAGES) == "ok"


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
        render(process, MESSAGES)


def test_a_busy_machine_is_no_fault_of_the_template(start):
    """What counts is what the template computes, not what the clock says meanwhile."""
    process = start("{{ messages[0].content }}", time_limit=0.2)
    os.kill(process._process.pid, signal.SIGSTOP)
    threading.Timer(1.0, os.kill, (process._process.pid, signal.SIGCONT)).start()

    assert render(process, MESSAGES) == MESSAGES[0]["content"]


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
        text = render(process, MESSAGES)
    except (ValueError, ModelError):
        text = ""

    assert text == ""
