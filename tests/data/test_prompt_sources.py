"""Prompt sources of every form: what is read from them, what is left out, and what is refused."""

import codecs
import copy
import csv
import io
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given
from hypothesis import strategies as st

from mixgrpo.data.prompts import Prompt, bundled_prompts, load_prompts, prompt_batch, read_prompts, too_long
from mixgrpo.errors import ConfigError, MissingExtraError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip() != "")
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | ANY_TEXT
VALUES = PLAIN | st.lists(PLAIN, max_size=2) | st.dictionaries(ANY_TEXT, PLAIN, max_size=2)


def _file(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_a_prompt_is_its_text() -> None:
    prompt = Prompt("a fox", {"n": 3})
    assert prompt == "a fox"
    assert hash(prompt) == hash("a fox")
    assert {prompt: 1}["a fox"] == 1
    assert prompt == Prompt("a fox", {"n": 4})
    assert json.dumps([prompt]) == '["a fox"]'
    assert type(str(prompt)) is str
    assert Prompt("a fox").columns == {}


def test_the_columns_of_a_prompt_cannot_be_changed() -> None:
    given_columns = {"n": 3}
    prompt = Prompt("a fox", given_columns)
    given_columns["n"] = 4
    assert prompt.columns["n"] == 3
    with pytest.raises(TypeError):
        prompt.columns["n"] = 5  # pyright: ignore[reportIndexIssue]
    with pytest.raises(AttributeError):
        prompt.columns = {}  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_prompt_keeps_its_columns_when_it_is_pickled_or_copied(protocol: int) -> None:
    prompt = Prompt("a fox", {"tags": ["red"]})
    for other in (
        pickle.loads(pickle.dumps(prompt, protocol)),
        copy.copy(prompt),
        copy.deepcopy([prompt])[0],
    ):
        assert type(other) is Prompt
        assert (other, other.columns) == ("a fox", {"tags": ["red"]})
    assert copy.deepcopy(prompt).columns["tags"] is not prompt.columns["tags"]


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    file = _file(tmp_path, "prompts.txt", "# foxes\n  a red fox \n\nan owl\r\n#no\n\na red fox\nan owl, asleep")
    found = read_prompts(file)
    assert found.prompts == ("a red fox", "an owl", "an owl, asleep")
    assert (found.empty, found.duplicates, found.conflicts) == (2, 1, 0)
    assert load_prompts(file) == list(found.prompts)
    assert load_prompts(_file(tmp_path, "prompts", "one\ntwo")) == ["one", "two"]


def test_the_bundled_lists_are_read_by_their_names() -> None:
    counts = {name: len(load_prompts(name)) for name in bundled_prompts()}
    assert counts == {"nano-heldout": 256, "nano-train": 2448, "signs-heldout": 50, "signs-train": 200}


def test_objects_of_a_jsonl_file(tmp_path: Path) -> None:
    lines = (
        '{"prompt": " a fox\\n", "n": 1, "of": {"deep": [2]}}\r\n'
        "\n"
        '{"prompt": "", "n": 2}\n'
        '{"n": 3, "prompt": "an\u2028owl"}\n'
        '{"prompt": " a fox\\n", "n": 1, "of": {"deep": [2]}}\n'
        '{"prompt": "an\u2028owl", "n": 4}\n'
        '{"prompt": "a dog", "negative_prompt": "", "image": null, "image_id": 7, "images": []}'
    )
    found = read_prompts(_file(tmp_path, "prompts.jsonl", lines))
    assert found.prompts == (" a fox\n", "an\u2028owl", "a dog")
    assert [dict(prompt.columns) for prompt in found.prompts] == [
        {"n": 1, "of": {"deep": [2]}},
        {"n": 3},
        {"negative_prompt": "", "image": None, "image_id": 7, "images": []},
    ]
    assert (found.empty, found.duplicates, found.conflicts) == (2, 2, 1)


def test_rows_of_a_csv_file(tmp_path: Path) -> None:
    text = 'n,caption,source_image\n1,"red, ""blue""\nand green",\n\n2, an owl ,\n3,,\n4, an owl ,\n'
    found = read_prompts(_file(tmp_path, "prompts.CSV", text), column="caption")
    assert found.prompts == ('red, "blue"\nand green', " an owl ")
    assert [dict(prompt.columns) for prompt in found.prompts] == [
        {"n": "1", "source_image": ""},
        {"n": "2", "source_image": ""},
    ]
    assert (found.empty, found.duplicates, found.conflicts) == (2, 1, 1)


@given(rows=st.lists(st.tuples(TEXTS, st.dictionaries(TEXTS.map("my {}".format), VALUES))))
def test_what_was_written_as_jsonl_is_read(
    rows: list[tuple[str, dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows.append(("the last one", {}))
    for escape in (True, False):
        lines = [json.dumps({**columns, "prompt": text}, ensure_ascii=escape) for text, columns in rows]
        found = read_prompts(_file(tmp_path_factory.getbasetemp(), "p.jsonl", "\n".join(lines)))
        first = dict(reversed(rows))
        assert list(found.prompts) == list(dict.fromkeys(text for text, _ in rows))
        assert [dict(prompt.columns) for prompt in found.prompts] == [first[text] for text in found.prompts]
        assert found.duplicates == len(rows) - len(first)
        assert found.conflicts == sum(columns != first[text] for text, columns in rows)


@given(
    rows=st.lists(st.tuples(TEXTS, st.text(st.characters(codec="utf-8"))), min_size=1),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_what_was_written_as_csv_is_read(
    rows: list[tuple[str, str]], ending: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    buffer = io.StringIO(newline="")
    # with "\n" alone, Python before 3.13 forgets the quotes that a lone "\r" needs
    writer = csv.writer(buffer, lineterminator=ending, quoting=csv.QUOTE_ALL if ending == "\n" else csv.QUOTE_MINIMAL)
    writer.writerows([("prompt", "note"), *rows])
    found = read_prompts(_file(tmp_path_factory.getbasetemp(), "p.csv", buffer.getvalue()))
    first = dict(reversed(rows))
    assert list(found.prompts) == list(dict.fromkeys(text for text, _ in rows))
    assert [prompt.columns["note"] for prompt in found.prompts] == [first[text] for text in found.prompts]


def test_a_list_in_a_json_file_may_hold_prompts_or_objects(tmp_path: Path) -> None:
    entries = ["a fox", {"prompt": "an owl", "rank": [2, 1]}, {"prompt": "a fox", "rank": []}, "a line\nbreak"]
    found = read_prompts(_file(tmp_path, "test.json", json.dumps(entries, indent=1)))
    assert list(found.prompts) == ["a fox", "an owl", "a line\nbreak"]
    assert [prompt.columns for prompt in found.prompts] == [{}, {"rank": [2, 1]}, {}]
    assert (found.duplicates, found.conflicts) == (1, 1)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.txt", "\n# nothing\n", "holds no prompt"),
        ("p.txt", b"a fox\nan \xe9lan", r"p\.txt, line 2: not UTF-8 text \(.*byte 0xe9"),
        ("p.txt", codecs.BOM_UTF8 + b"a fox", r"p\.txt, line 1: begins with a byte order mark"),
        ("p.txt", "a fox".encode("utf-16"), "byte order mark"),
        ("p.xml", "[]", r"ends in \.xml; it must be \.txt .*\.json .*\.jsonl .*or \.csv"),
        ("p.json", '{"prompt": "a fox"}', "holds an object, not a list"),
        ("p.json", '{"prompt": "a"}\n{"prompt": "b"}', r"line 2: not JSON: Extra data.*name end in \.jsonl"),
        ("p.json", '["a",\n"b" "c"]', r"line 2: not JSON: .*\(character 5\)"),
        ("p.json", '["a", 3]', "entry 1: is a number, neither a prompt nor an object with 'prompt'"),
        ("p.json", '[{"prompt": "a", "n": 1, "n": 2}]', "column 'n' is there twice"),
        ("p.json", '[{"prompt": "a"}, {"text": "b"}]', "entry 1: there is no column 'prompt', only 'text'"),
        ("p.json", "[]", "holds no prompt"),
        ("p.tsv", "prompt\tn", r"ends in \.tsv"),
        ("p.jsonl", codecs.BOM_UTF8 + b"{}", "byte order mark"),
        ("p.jsonl", '{"prompt": "a"}\n["b"]', r'p\.jsonl, line 2: holds a list, not an object such as \{"prompt"'),
        ("p.jsonl", '"a fox"', "line 1: holds a text, not an object"),
        ("p.jsonl", '{"prompt": "a"}\n\n{"prompt": "a" 3}', r"line 3: not JSON: .*\(character 16\)"),
        ("p.jsonl", '{"prompt": "a"}{"prompt": "b"}', r"line 1: not JSON: .*\(character 16\)"),
        ("p.jsonl", '{"prompt": "a", "n": 1, "n": 2}', "line 1: column 'n' is there twice"),
        ("p.jsonl", '{"text": "a", "n": 1}', "line 1: there is no column 'prompt', only 'text', 'n'.*prompts.column"),
        ("p.jsonl", "{}", "no column 'prompt', only nothing"),
        ("p.jsonl", '{"prompt": 3}', "line 1, column 'prompt': a prompt must be a text, but this is a number"),
        ("p.jsonl", '{"prompt": null}', "column 'prompt': .*this is nothing"),
        ("p.jsonl", '{"prompt": "\\ud83d"}', "line 1, column 'prompt': is no valid text"),
        ("p.jsonl", '{"prompt": "a", "negative_prompt": ["ugly"]}', "column 'negative_prompt': a negative .*is a list"),
        ("p.jsonl", '{"prompt": "a", "negative_prompt": "\\ud83d"}', "column 'negative_prompt': is no valid text"),
        ("p.jsonl", '{"prompt": "a", "image": "a.png"}', "column 'image': image conditions are not supported yet"),
        ("p.jsonl", '{"prompt": "a", "source_image": {"path": "a"}}', "'source_image': image conditions are not supp"),
        ("p.csv", "", "holds no prompt"),
        ("p.csv", "prompt,n\n", "holds no prompt"),
        ("p.csv", "a fox\nan owl", "line 1: there is no column 'prompt', only 'a fox'. The first line must name"),
        ("p.csv", "prompt,n,n\n", "line 1: the header has the column 'n' twice"),
        ("p.csv", 'prompt,n\n"a\nb",1\nred, blue, 2', "line 4: has 3 values, but the header has 2 .*double quotes"),
        ("p.csv", "prompt,n\na", "line 2: has 1 value, but the header has 2"),
        ("p.csv", 'prompt\na\n"b\nc\n', "line 3: not CSV: unexpected end of data"),
        ("p.csv", 'prompt\n"a"b', "line 2: not CSV"),
        ("p.csv", "prompt,control_images\na,b.png", "line 2, column 'control_images': image conditions"),
    ],
)
def test_a_source_with_a_mistake_is_refused_by_file_line_and_column(
    name: str, content: str | bytes, said: str, tmp_path: Path
) -> None:
    file = _file(tmp_path, name, content)
    with pytest.raises(ConfigError, match=said) as raised:
        read_prompts(file)
    assert file in str(raised.value)


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    for source in ("nowhere.jsonl", str(tmp_path)):
        with pytest.raises(ConfigError, match=r"is not a file, nor one .*\(nano-heldout, .*\), nor hub:owner/name"):
            read_prompts(source)
    for source in ("hub:name", "hub:owner/name/more", "hub:owner/name:", "hub:"):
        with pytest.raises(
            ConfigError, match="must be of the form hub:owner/name, hub:owner/name:split or, for one file"
        ):
            read_prompts(source)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stand-in for the package `datasets` whose hub has one dataset, `owner/name`."""
    package = tmp_path / "packages" / "datasets"
    package.mkdir(parents=True)
    (package / "exceptions.py").write_text("class DatasetsError(Exception): ...\n")
    (package / "__init__.py").write_text(
        "from datasets import exceptions\n"
        "ROWS = {'train': [{'text': 'a fox', 'n': 1}, {'text': 'an owl', 'n': 2}], 'test': [{'text': 'a dog'}],\n"
        "        'bad': [{'text': 'a'}, {'text': None}]}\n"
        "def load_dataset(name, *, split):\n"
        "    if name == 'owner/script':\n"
        "        raise RuntimeError('scripts are not supported')\n"
        "    if name != 'owner/name':\n"
        "        raise exceptions.DatasetsError(f'no dataset {name}')\n"
        "    if split not in ROWS:\n"
        "        raise ValueError(f'unknown split {split}')\n"
        "    return ROWS[split]\n"
    )
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    monkeypatch.syspath_prepend(package.parent)
    yield
    for name in ("datasets", "datasets.exceptions"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("hub")
def test_a_dataset_of_the_hub_is_read() -> None:
    prompts = load_prompts("hub:owner/name", column="text")
    assert prompts == ["a fox", "an owl"]
    assert [prompt.columns["n"] for prompt in prompts] == [1, 2]
    assert load_prompts("hub:owner/name:test", column="text") == ["a dog"]
    for source, said in {
        "hub:owner/name:nope": "hub:owner/name:nope' cannot be read: unknown split nope",
        "hub:owner/other": "cannot be read: no dataset owner/other",
        "hub:owner/script": "scripts are not supported",
        "hub:owner/name:bad": "hub:owner/name:bad, row 1, column 'text': a prompt must be a text",
    }.items():
        with pytest.raises(ConfigError, match=said):
            load_prompts(source, column="text")
    with pytest.raises(ConfigError, match="row 0: there is no column 'prompt', only 'text', 'n'"):
        load_prompts("hub:owner/name")


def test_one_file_of_a_dataset_on_the_hub_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HPDv2 has it, whose script `datasets` does not run."""
    published = _file(tmp_path, "abc123.json", json.dumps([{"prompt": "a fox", "rank": [1]}]))
    asked: list[tuple[str, str, str]] = []

    def download(dataset: str, name: str, *, repo_type: str) -> str:
        asked.append((dataset, name, repo_type))
        if name == "there/test.json":
            return published
        raise LocalEntryNotFoundError("An error happened.\nMore of it.")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    found = read_prompts("hub:owner/some.name/there/test.json")
    assert list(found.prompts) == ["a fox"]
    assert found.prompts[0].columns == {"rank": [1]}
    assert asked == [("owner/some.name", "there/test.json", "dataset")]
    with pytest.raises(
        ConfigError, match=r"cannot be downloaded: An error happened\. .*dataset owner/n test\.json --local-dir"
    ):
        read_prompts("hub:owner/n/test.json")
    with pytest.raises(ConfigError, match=r"hub:owner/some\.name/there/test\.json, entry 0: there is no column 'text'"):
        read_prompts("hub:owner/some.name/there/test.json", column="text")


def test_without_the_package_the_command_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "datasets").mkdir()  # a folder of one's own that Python would import
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'mixgrpo\[datasets\]'"):
        load_prompts("hub:owner/name")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mixgrpo\[datasets\]'"):
        load_prompts("hub:owner/name")


def test_prompts_are_counted_as_too_long_above_the_limit() -> None:
    prompts = [Prompt("a b c"), Prompt("a b"), Prompt("a b c d")]
    assert too_long(prompts, lambda texts: [len(text.split()) for text in texts], 2) == ["a b c", "a b c d"]


def test_the_order_of_prompts_is_the_one_it_always_was() -> None:
    """Recorded before prompts had columns: a run that is resumed or compared must get the same ones."""
    assert [prompt_batch(0, iteration, count=3, total=7) for iteration in range(3)] == [[4, 0, 5], [3, 1, 2], [6, 0, 4]]
    assert prompt_batch(5, 100, count=6, total=2448) == [1266, 2127, 1147, 1901, 2010, 1581]
