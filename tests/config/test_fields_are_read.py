"""A setting that nothing reads is a promise that nothing keeps."""

import ast
from collections.abc import Iterator
from pathlib import Path

import mixgrpo
from mixgrpo.config.fields import UNION_TAG, item_section, section_of, variants
from mixgrpo.config.schema import Config
from mixgrpo.config.sections import ModelConfig, Section

ROOT = Path(mixgrpo.__file__).parent


def _sections(section: type[Section]) -> Iterator[type[Section]]:
    yield section
    for field in section.model_fields.values():
        inner = section_of(field) or item_section(field)
        for found in [*variants(field).values(), *([inner] if inner else [])]:
            yield from _sections(found)


def _trees() -> Iterator[ast.Module]:
    for path in ROOT.rglob("*.py"):
        if "config" not in path.relative_to(ROOT).parts:
            yield ast.parse(path.read_text(encoding="utf-8"))


def _names_read() -> set[str]:
    """Return every attribute that is read outside `config`, and the arguments of `load_model`, which get a section."""
    nodes = [node for tree in _trees() for node in ast.walk(tree)]
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    loaders = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == "load_model"]
    arguments = {argument.arg for loader in loaders for argument in loader.args.kwonlyargs}
    return attributes | (arguments & set(ModelConfig.model_fields))


def test_every_setting_is_read_somewhere() -> None:
    read = _names_read()
    unread = {
        f"{section.__name__}.{name}"
        for section in _sections(Config)
        for name in section.model_fields
        if name not in read and name != UNION_TAG
    }
    assert unread == set()


def test_every_setting_is_explained() -> None:
    silent = {
        f"{section.__name__}.{name}"
        for section in _sections(Config)
        for name, field in section.model_fields.items()
        if not field.description and section_of(field) is None and not variants(field) and item_section(field) is None
    }
    assert {name for name in silent if not name.endswith(f".{UNION_TAG}")} == set()
