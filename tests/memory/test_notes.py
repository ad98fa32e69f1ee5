import re
import time

import pytest

from crucible_core.limits import NOTE_READ_CHARS
from crucible_memory.notes.note import is_note, parse


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
        ("#हिन्दी #தமிழ் #ภาษาผู้ใช้ #cafe\u0301", ["#हिन्दी", "#தமிழ்", "#ภาษาผู้ใช้", "#café"]),
        ("#২০২৪-মে #ລາວ #ខ្មែរ #မြန်မာ #ტესტი #አማርኛ", ["#২০২৪-মে", "#ລາວ", "#ខ្មែរ", "#မြန်မာ", "#ტესტი", "#አማርኛ"]),
        ("#می\u200cخواهم #col·lecció #ビッグ・データ", ["#می\u200cخواهم", "#col·lecció", "#ビッグ・データ"]),
        (
            "#2024-05 #2024/05 #🎉 #work/🚀 #❤️ #👩‍💻 #👍🏽",
            ["#2024-05", "#2024/05", "#🎉", "#work/🚀", "#❤️", "#👩‍💻", "#👍🏽"],
        ),
        ("#1984 #١٩٨٤ #½ #__ #- #/", []),
        ("終わり。#日本語、（#次）", ["#日本語", "#次"]),
        ("#Proj #proj #PROJ/a", ["#Proj", "#PROJ/a"]),
        ("#ff0000 #c0ffee", ["#ff0000", "#c0ffee"]),
        ("&#39; &#x27; a&#b", []),
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
    assert note.problems == []
    assert note.metadata == {"aliases": ["VC", "vclock"], "date": "2024-01-02", "n": 1.5}


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ("tags: one", ["#one"]),
        ("tags: one, two", ["#one", "#two"]),
        ("tags: one two", ["#one", "#two"]),
        ("tag: one", ["#one"]),
        ("tags:\n  - one\n  - ' #two '", ["#one", "#two"]),
        ("tags: [one, [two], {three: 3}, '', '#']", ["#one"]),
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
    ("head", "title", "tags", "metadata"),
    [
        (
            "title: No\ntags: [no, 007]\nat: 12:30\nphone: 0123456",
            "No",
            ["#no", "#007"],
            {"at": "12:30", "phone": "0123456"},
        ),
        ("title: 1.10\ntag: on, 1.10", "1.10", ["#on", "#1.10"], {}),
        ("title: true\ntags: [true, 1e3, ~]", "true", ["#true", "#1e3", "#~"], {}),
        (
            "due: 2024-02-30\nv: 1_000\nid: 99999999999999999999",
            "n",
            [],
            {"due": "2024-02-30", "v": "1_000", "id": "99999999999999999999"},
        ),
        ("aliases: [no, 12:30]", "n", [], {"aliases": ["no", "12:30"]}),
        ("1984: x\nno: y", "n", [], {"1984": "x", "no": "y"}),
        ("<<: {a: 1}", "n", [], {"<<": {"a": 1}}),
    ],
)
def test_front_matter_stays_as_it_is_written(
    head: str, title: str, tags: list[str], metadata: dict[str, object]
) -> None:
    note = parse(f"---\n{head}\n---\ntext", "n.md")
    assert (note.title, note.tags, note.metadata, note.problems) == (title, tags, metadata, [])


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ('up: "[[Parent Note]]"\nrelated: ["[[Sibling A]]"]', {"up": ["Parent Note"], "related": ["Sibling A"]}),
        ("up: [[Parent Note]]\nsee:\n  - [[A]]\n  - [[B|b]]", {"up": ["Parent Note"], "see": ["A", "B"]}),
        ('rel: {down: "![[C#part]]", deep: [{x: "[[D]] and [[E|e]]"}]}', {"down": ["C"], "x": ["D", "E"]}),
        ('up: "[[Cafe\u0301]]"\nUp: "[[cafe]]"', {"up": ["Café"], "Up": ["cafe"]}),
        ('a: "[[#self]] [[]] [[ ]]"\nm: [[1, 2], [3, 4]]\ntags: ["[[no]]"]\ntitle: "[[no]]"', {}),
    ],
)
def test_wikilinks_in_front_matter_are_links_of_their_key(head: str, found: dict[str, list[str]]) -> None:
    links: dict[str, list[str]] = {}
    for link in parse(f"---\n{head}\n---\ntext", "n.md").links:
        links.setdefault(link.type, []).append(link.target)
    assert links == found


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ("title: Plan: part two", 'line 2: .*: put a value that contains ": " in quotes'),
        ("a: 1\n\tb: 2", "line 3: .*: indent with spaces, not tabs"),
        ("title: {{title}}", "line 2: .*quotes"),
        ("a: 1\nauthor: @sam", "line 3: .*: put the value in quotes"),
        ("status: *Draft*", "line 2: .*: put the value in quotes"),
        ('a: "open', "line 2: .*: close the quote"),
        ("a: 1\nb: 2\na: 3", "line 4: the key 'a' stands twice .first in line 2.: keep one"),
        ("a: [1", "line [23]: .*: close the bracket"),
        ("a: !!python/object/apply:os.system ['true']", "line 2: the tag"),
        ("a: &a [*a]", r"line 2: \*a names nothing"),
        ("a: " + "[" * 5000, "line"),
        ("? {a: 1}\n: 1", "line 2: .*no key"),
        ("a: '\x00'", "line 2"),
        (
            "\n".join(["a0: &a0 [x,x]", *(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]),
            "line",
        ),
    ],
)
def test_front_matter_that_does_not_parse_is_told_and_the_text_is_kept(head: str, told: str) -> None:
    started = time.perf_counter()
    note = parse(f"---\n{head}\n---\ntext #own [[other]]", "n.md")
    assert (note.content, note.tags, [link.target for link in note.links]) == (
        "text #own [[other]]",
        ["#own"],
        ["other"],
    )
    [problem] = note.problems
    assert re.search(f"^front matter, {told}", problem)
    assert time.perf_counter() - started < 5


def test_what_parses_of_broken_front_matter_counts() -> None:
    head = 'title: Plan: part two\ntags: [a, 007]\nup: "[[P]]"\nauthor: @sam\nlist:\n  - x: y: z\nn: 1'
    note = parse(f"---\n{head}\n---\ntext", "n.md")
    assert (note.title, note.tags, note.metadata) == (
        "Plan: part two",
        ["#a", "#007"],
        {"up": "[[P]]", "author": "@sam", "n": 1},
    )
    assert [(link.target, link.type) for link in note.links] == [("P", "up")]


def test_lines_of_old_macs_are_lines() -> None:
    note = parse("---\rtags: a\r---\r# T\rtext", "n.md")
    assert (note.tags, note.title, note.content) == (["#a"], "T", "# T\ntext")


@pytest.mark.parametrize("unit", ["[[", "[", "*a ", "`a", "> ", "- ", "![[", "[a](", "\\#", "- a\n", "[a]: x\n", "<a "])
def test_hostile_text_is_read_in_bounded_time(unit: str) -> None:
    started = time.perf_counter()
    parse(unit * (1_000_000 // len(unit)), "n.md")
    assert time.perf_counter() - started < 20


def test_only_the_beginning_of_a_huge_note_is_read_for_tags() -> None:
    note = parse("#first " + "word " * NOTE_READ_CHARS + "#last", "n.md")
    assert note.tags == ["#first"]
    assert note.content.endswith("#last")


def test_more_tags_and_links_than_a_memory_may_have_are_cut_and_told() -> None:
    note = parse(" ".join(f"#t{i}x [[n{i}]]" for i in range(1500)), "n.md")
    assert (len(note.tags), len(note.links)) == (100, 1000)
    assert note.problems == ["1500 tags: the first 100 count", "1500 links: the first 1000 count"]


def test_only_markdown_files_are_notes() -> None:
    assert [is_note(path) for path in ("a.md", "b/A.MD", "c.markdown", "d.txt", "md", "e.md.bak")] == [
        *[True] * 3,
        *[False] * 3,
    ]
