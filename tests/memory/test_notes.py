import time

import pytest

from crucible_core.errors import InvalidError
from crucible_memory.notes import MAX_READ, is_note, parse


def tags(text: str) -> list[str]:
    return parse(text, "n.md").tags


def targets(text: str) -> list[str]:
    return [link.target for link in parse(text, "n.md").links]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("#one and #two/three, (#four) “#five”", ["#one", "#two/three", "#four", "#five"]),
        ("**#bold** _#it_ ~~#gone~~", ["#bold", "#it", "#gone"]),
        ("#ünïcode #日本 #with-dash #under_score", ["#ünïcode", "#日本", "#with-dash", "#under_score"]),
        ("#1984 is a number, #y1984 is not", ["#y1984"]),
        ("# Heading\n## Second #todo", ["#todo"]),
        ("- #item\n> #quote\n\n| a | #cell |", ["#item", "#quote", "#cell"]),
        ("#twice #twice", ["#twice"]),
        ("#end/ #stop.", ["#end", "#stop"]),
        ("a#no C# # #! ##no \\#no &#35;no", []),
        ("`#no` ``#no ` #no``", []),
        ("```\n#no\n```\n~~~\n#no\n~~~\n\n    #no", []),
        ("https://x.org/#no http://x.org/a#no <https://x.org/?q=#no>", []),
        ("[a](#no) [b](x.md#no) ![c](#no)", []),
        ("<!-- #no -->\n\n<b title='#no'>x</b>\n\n<div>\n#no\n</div>", []),
        ("[[Note#no]] [[#no]]", []),
        ("#" + "x" * 200, []),
    ],
)
def test_tags_are_those_that_a_reader_sees(text: str, found: list[str]) -> None:
    assert tags(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[[Vector clocks]]", ["Vector clocks"]),
        ("[[a|shown]] [[b#part]] [[c#part|shown]] [[d|shown#x]] [[e#^block]]", ["a", "b", "c", "d", "e"]),
        ("![[embedded]] and [[folder/note.md]]", ["embedded", "folder/note.md"]),
        ("| [[cell\\|shown]] |", ["cell"]),
        ("[[a_b_c]] [[*star*]] **[[bold]]**", ["a_b_c", "*star*", "bold"]),
        ("[[same]] [[same|again]]", ["same"]),
        ("# Heading [[in heading]]\n- [[in list]]", ["in heading", "in list"]),
        ("`[[no]]` \\[[no]] [[]] [[ ]] [[#self]] [[no\nline]] [no] [[no", []),
        ("```\n[[no]]\n```", []),
        ("[[" + "x" * 300 + "]]", []),
    ],
)
def test_wikilinks_are_those_that_a_reader_sees(text: str, found: list[str]) -> None:
    assert targets(text) == found
    assert all(link.type == "wikilink" for link in parse(text, "n.md").links)


def test_front_matter_is_read_and_taken_off() -> None:
    head = "title: Vector clocks\ntags: [research, '#time', 7]\naliases: VC, vclock\ndate: 2024-01-02\nn: 1.5"
    text = f"---\n{head}\n---\n# H\ntext #own\n"
    note = parse(text, "notes/x.md")
    assert note.title == "Vector clocks"
    assert note.content == "# H\ntext #own\n"
    assert note.tags == ["#research", "#time", "#7", "#own"]
    assert note.metadata == {"aliases": ["VC", "vclock"], "date": "2024-01-02", "n": 1.5}


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ("tags: one", ["#one"]),
        ("tags: one, two", ["#one", "#two"]),
        ("tags: one two", ["#one", "#two"]),
        ("tag: one", ["#one"]),
        ("tags:\n  - one\n  - ' #two '", ["#one", "#two"]),
        ("tags: [one, [two], {three: 3}, null, '', '#']", ["#one"]),
        ("tags:", []),
        ("tags: {a: 1}", []),
        ("tags: " + "x" * 200, []),
    ],
)
def test_tags_of_front_matter_are_a_list_or_a_text(head: str, found: list[str]) -> None:
    assert tags(f"---\n{head}\n---\ntext") == found


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("---\ntitle: Front\n---\n# Heading", "Front"),
        ("---\ntitle: 2024\n---\n", "2024"),
        ("---\ntitle: [1]\n---\n# Heading", "Heading"),
        ("text\n\n## The **bold** `code` [link](u) [[Note|shown]]\n# Later", "The bold code link shown"),
        ("Setext\n===", "Setext"),
        ("#nospace\ntext", "a note"),
        ("```\n# code\n```", "a note"),
        ("", "a note"),
    ],
)
def test_title_is_front_matters_or_the_first_headings_or_the_files(text: str, title: str) -> None:
    assert parse(text, "folder/a note.md").title == title


@pytest.mark.parametrize(
    "text",
    [
        "---\njust text\n---\nmore",
        "---\n\nno end",
        "--- x\na: 1\n---\n",
        "text\n---\na: 1\n---\n",
        "----\na: 1\n----\n",
    ],
)
def test_a_line_across_the_page_is_no_front_matter(text: str) -> None:
    note = parse(text, "n.md")
    assert note.content == text
    assert note.metadata == {}


def test_empty_front_matter_windows_lines_and_a_byte_order_mark_are_read() -> None:
    assert parse("---\n---\ntext", "n.md").content == "text"
    note = parse("\ufeff---\r\ntags: a\r\n---\r\n# T\r\n", "n.md")
    assert (note.tags, note.title) == (["#a"], "T")


@pytest.mark.parametrize(
    "head",
    [
        "a: [1",
        "a: b: c",
        "\ta: 1",
        "a: !!python/object/apply:os.system ['true']",
        "date: 2024-13-45",
        "a: &a [*a]",
        "a: " + "[" * 5000,
        "a: &a {x: 1}\nb: {<<: *a}",
        "? {a: 1}\n: 1",
        "a: '\x00'",
        "\n".join(["a0: &a0 [x,x]", *(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]),
    ],
)
def test_front_matter_that_cannot_be_read_is_refused_quickly(head: str) -> None:
    started = time.perf_counter()
    with pytest.raises(InvalidError, match="front matter"):
        parse(f"---\n{head}\n---\ntext", "n.md")
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("unit", ["[[", "[", "*a ", "`a", "> ", "- ", "![[", "[a](", "\\#", "- a\n", "[a]: x\n", "<a "])
def test_hostile_text_is_read_in_bounded_time(unit: str) -> None:
    started = time.perf_counter()
    parse(unit * (1_000_000 // len(unit)), "n.md")
    assert time.perf_counter() - started < 20


def test_only_the_beginning_of_a_huge_note_is_read_for_tags() -> None:
    note = parse("#first " + "word " * MAX_READ + "#last", "n.md")
    assert note.tags == ["#first"]
    assert note.content.endswith("#last")


def test_more_tags_and_links_than_a_memory_may_have_are_cut() -> None:
    note = parse(" ".join(f"#t{i}x [[n{i}]]" for i in range(1500)), "n.md")
    assert (len(note.tags), len(note.links)) == (100, 1000)


def test_only_markdown_files_are_notes() -> None:
    assert [is_note(path) for path in ("a.md", "b/A.MD", "c.markdown", "d.txt", "md", "e.md.bak")] == [
        *[True] * 3,
        *[False] * 3,
    ]


def test_number_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(InvalidError, match="front matter"):
        parse(f"---\na: 0x{'f' * 6000}\n---\ntext", "a.md")
