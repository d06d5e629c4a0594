"""Strings from outside: whatever they hold, the card's structure stays and they are shown as they are."""

import doctest
import html
import re
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from hf_proxadam.report import cleaning, data, text
from hf_proxadam.report.card import make_card

from .conftest import write_study

HOSTILE = [
    "<script>alert(1)</script>",
    "a | b\n| c |",
    "![x](http://evil.example/x.png)",
    "[x](javascript:alert(1))",
    "**bold** _it_ `code` ~~no~~",
    "---\nlicense: mit\n---\n# new",
    "1. one\n2) two",
    "- item + item * item",
    "&lt;b&gt; &#60;",
    "http://evil.example www.evil.example a@evil.example",
    "\\| \\` \\\\",
    "``` \n~~~",
    "$$x$$ {{ 7 * 7 }} {% raw %}",
    "\u202eevil\u2028line\x00\x85\ufeff",
    "  spaces   and\ttabs ",
    "名前 é 🤗",
    "key: 'value' \"q\" #c",
    "",
]
ANY = st.one_of(
    st.sampled_from(HOSTILE), st.text(max_size=40), st.text("<>&|`*_[]()!#-+=~\\\n\r\t :/.@w1a$'\"", max_size=40)
)
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def tokens_of(markdown: str) -> list[Token]:
    return [token for outer in PARSER.parse(markdown) for token in (outer, *(outer.children or []))]


def shown(markdown: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", PARSER.render(markdown)))


@given(string=ANY, around=st.sampled_from(["x {} y", "{}", "# {}", "- {}", "**x {} y**"]))
@settings(max_examples=300, deadline=None)
def test_an_escaped_string_is_text_and_nothing_else(string: str, around: str) -> None:
    escaped = text.escape(string)
    expected = {token.type for token in tokens_of(around.format("a b"))} | {"text", "text_special"}
    assert {token.type for token in tokens_of(around.format(escaped))} <= expected
    as_seen = re.sub(" +", " ", text.visible(string)).strip()
    prefix = shown(around.format("Q"))
    assert shown(around.format(escaped)).strip() == prefix.replace("Q", as_seen).strip()


@given(string=ANY)
@settings(max_examples=150, deadline=None)
def test_a_table_keeps_its_cells(string: str) -> None:
    table = text.table(["a", "b"], [[text.escape(string), "end"], ["next", "row"]], "ll")
    kinds = [token.type for token in tokens_of(table)]
    assert kinds.count("td_open") == 4
    assert kinds.count("table_open") == 1
    assert not {"link_open", "image", "html_inline", "code_inline", "em_open"} & set(kinds)


@given(string=st.one_of(ANY, st.text("`~\n ab", max_size=30)))
@settings(max_examples=150, deadline=None)
def test_a_code_block_can_not_be_left(string: str) -> None:
    blocks = PARSER.parse(f"before\n\n{text.code_block(string)}\n\nafter")
    assert [token.type for token in blocks] == [
        *("paragraph_open", "inline", "paragraph_close", "fence", "paragraph_open", "inline", "paragraph_close")
    ]
    assert blocks[3].content == "\n".join(text.visible(line) for line in string.split("\n")) + "\n"


@given(string=ANY)
@example(string="http://evil.example WWW.evil.example a@evil.example")
@settings(max_examples=100, deadline=None)
def test_nothing_is_left_that_renderers_like_to_turn_into_links(string: str) -> None:
    assert not re.search(r"www\.|://|@", text.escape(string), re.IGNORECASE)


def test_the_examples_in_the_docstrings_hold() -> None:
    for module in (text, cleaning):
        assert doctest.testmod(module) == (0, doctest.testmod(module).attempted)
        assert doctest.testmod(module).attempted


def test_ordinary_names_stay_readable_in_the_raw_file() -> None:
    for name in (
        "adamw_scale_free",
        "vit.encoder.layer.0",
        "eps = 1e-08, betas = (0.9, 0.999)",
        "max = -1",
        "2.13.0+cpu",
    ):
        assert text.escape(name) == name


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> data.Contents:
    """A small study of two optimizers and two seeds."""
    folder = write_study(
        tmp_path_factory.mktemp("small"),
        labels=("adam_l2", "other"),
        rates=(0.001,),
        decays=(0.1,),
        seeds=(0, 1),
        scales=False,
    )
    return data.collect(folder)


def with_strings(contents: data.Contents, name: str, label: str, task: str, extra: str) -> data.Contents:
    """The same study, with strings from outside wherever strings can come from."""
    study = {
        **contents.study["study"],
        "name": name,
        "task": task,
        "model": {extra: extra, "list": [extra, {name: extra}]},
    }
    return data.Contents(
        study={
            **contents.study,
            "study": study,
            "command": [extra, name],
            "environment": {extra: extra},
            "live_optimizers": {label: {"class": extra, "defaults": {extra: extra}}},
        },
        runs=contents.runs.assign(optimizer=contents.runs["optimizer"].replace("other", label)),
        curves=contents.curves,
        scales=contents.scales,
    )


@given(name=ANY, label=ANY, task=ANY, extra=ANY)
@example(name="---\nlicense: mit\n---", label="|", task="\n\n# h\n\n", extra="```\n# h")
@example(name="\x85a\u2028", label="x", task="x", extra="x")
@example(name="a\r\nb", label="<b>", task="\x85", extra="' \" : #")
@example(name="<b>", label="<b>", task="<b>", extra="``` \n~~~")
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_string_in_any_field_gives_the_same_card(
    contents: data.Contents, name: str, label: str, task: str, extra: str
) -> None:
    def structure(card: str) -> list[tuple[str, str, int]]:
        body = PARSER.parse(DatasetCard(card).text)
        return [(token.type, token.tag, token.level) for token in body if token.type != "inline"]

    plain = make_card(with_strings(contents, "name", "label", "task", "extra"), ["test_error.png"])
    card = make_card(with_strings(contents, name, label, task, extra), ["test_error.png"])
    assert structure(card) == structure(plain)
    expected = {**DatasetCard(plain).data.to_dict(), "pretty_name": f"Optimizers compared: {name}"}
    assert DatasetCard(card).data.to_dict() == expected
    # As the parser tells code from text: a fence may hold shorter fences.
    assert not any("<" in token.content for token in PARSER.parse(DatasetCard(card).text) if token.type != "fence")


def test_lone_surrogates_which_json_can_carry_are_replaced(tmp_path: Path) -> None:
    folder = write_study(tmp_path, name="LONE", seeds=(0,), scales=False)
    path = folder / "study.json"
    path.write_text(path.read_text().replace("LONE", "a\\ud800b"))
    data.write(data.collect(folder), folder / "report")
    contents = data.read(folder / "report")
    assert DatasetCard(make_card(contents, [])).data.to_dict()["pretty_name"] == "Optimizers compared: a\ufffdb"


def test_numbers_have_a_real_minus_sign_and_no_signed_zero() -> None:
    assert text.number(-0.004, sign=True) == text.number(0.001, sign=True) == "0.00"
    assert text.number(-1.5, ".1f", sign=True) == "\u22121.5"
    assert text.number(1.5, ".1f", sign=True) == "+1.5"
    assert text.interval(float("nan"), 1.0) == text.NONE
    assert text.duration(59.6) == "1 min 0 s"
    assert text.duration(7325) == "2 h 2 min"
