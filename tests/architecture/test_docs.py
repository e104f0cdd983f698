"""The guide says what the product does: every setting, path, command and reason, in both languages, and no dead link."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from pydantic import BaseModel
from pydantic_settings import BaseSettings

from services.api.app import bare_app
from services.api.settings import ApiSettings
from services.gpu_agent.settings import AgentSettings
from services.reward.settings import RewardSettings
from services.scheduler.main import SchedulerSettings
from shared.jobs.reasons import REASONS, Reason
from shared.rewards.scores import ScoreRequest
from shared.settings import Settings
from shared.specs import parse_job_spec
from trainyard import client as python_client
from trainyard.cli.job_file import read_job
from trainyard.cli.main import app as cli
from trainyard.cli.reward import KEY_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GUIDE = (DOCS / "guide", DOCS / "zh-CN" / "guide")
READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "datasets" / "README.md"])
PAIRS = [
    READMES,
    (DOCS / "architecture" / "overview.md", DOCS / "zh-CN" / "architecture" / "overview.md"),
    *((page, GUIDE[1] / page.name) for page in sorted(GUIDE[0].glob("*.md"))),
]
SETTINGS: tuple[type[BaseSettings], ...] = (
    Settings, ApiSettings, AgentSettings, SchedulerSettings, RewardSettings,
)  # fmt: skip
FOLDERS = "benchmarks|datasets|deploy|docs|scripts|services|shared|tests|trainyard"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(path: Any) -> str:
    return str(path.relative_to(ROOT)) if isinstance(path, Path) else str(path)


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", text(path))


def headings(path: Path) -> list[tuple[int, str]]:
    found = re.findall(r"^(#+) (.+)$", prose(path), re.MULTILINE)
    return [(len(marks), title) for marks, title in found]


def anchor(title: str) -> str:
    """GitHub's rule: lower case, punctuation away, blanks to hyphens."""
    kept = re.sub(r"[^\w\- ]", "", title.strip().lower())
    return kept.replace(" ", "-")


def variables() -> dict[str, Any]:
    return {
        str(model.model_config["env_prefix"]) + name.upper(): field.default
        for model in SETTINGS
        for name, field in model.model_fields.items()
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, fragment = target.partition("#")
        aim = (page.parent / file).resolve() if file else page
        if not aim.exists() or (
            fragment and fragment not in {anchor(title) for _, title in headings(aim)}
        ):
            dead.append(target)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", prose(page))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_that_a_page_names_are_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", text(ROOT / "Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`|=\S+ )make ([a-z]+)\b", text(page), re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_the_readme_names_every_setting_with_its_default(readme: Path) -> None:
    listed = re.findall(r"^\| `(TRAINYARD_\w+)` \| (.*?) \|", text(readme), re.MULTILINE)
    rows, defaults = dict(listed), variables()
    assert sorted(name for name, _ in listed) == sorted(defaults)
    wrong = {
        name: (rows[name], value)
        for name, value in defaults.items()
        if isinstance(value, int | float)
        and value  # 0 and False have a meaning that the table tells in words
        and rows[name] != f"`{str(value).lower() if isinstance(value, bool) else f'{value:g}'}`"
    }
    assert wrong == {}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_name_no_setting_that_is_not_there(page: Path) -> None:
    known = {*variables(), "TRAINYARD_BIND", "TRAINYARD_", KEY_VARIABLE}
    assert "TRAINYARD_BIND" in text(ROOT / "compose.yaml")
    assert set(re.findall(r"TRAINYARD_[A-Z_]*[A-Z]", text(page))) <= known


def rest_paths() -> set[tuple[str, str]]:
    async def read(_uuid: str, _lang: str) -> dict[str, Any]:
        raise AssertionError("the document is made without reading a job")

    document = bare_app(read).openapi()
    return {
        (verb.upper(), path)
        for path, item in document["paths"].items()
        for verb in item
        if verb in {"get", "post", "put", "patch", "delete"}
    }


@pytest.mark.parametrize("guide", GUIDE, ids=name_of)
def test_the_guide_names_every_rest_path_and_no_other(guide: Path) -> None:
    pattern = r"`(GET|POST|PUT|PATCH|DELETE) (/[\w/{}:.-]*)`"
    listed = set(re.findall(pattern, text(guide / "rest-and-errors.md")))
    assert listed == rest_paths()


def commands(
    command: click.Command, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    group = getattr(command, "commands", None)
    if not group:
        yield path, command
        return
    if getattr(command, "invoke_without_command", False) and path != ("trainyard",):
        yield path, command
    for name, inner in group.items():
        yield from commands(inner, (*path, name))


def all_commands() -> dict[str, click.Command]:
    root: Any = typer.main.get_command(cli)
    return {" ".join(path): command for path, command in commands(root, ("trainyard",))}


def options(command: click.Command) -> set[str]:
    return {o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("-")}


def expanded(cell: str) -> Iterator[str]:
    r"""`a x\|y FILE` as `a x FILE` and `a y FILE`."""
    match = re.search(r"[\w-]+(?:\\\|[\w-]+)+", cell)
    if match is None:
        yield cell
        return
    for word in match[0].split("\\|"):
        yield from expanded(cell[: match.start()] + word + cell[match.end() :])


@pytest.mark.parametrize("guide", GUIDE, ids=name_of)
def test_the_guide_names_every_command_with_options_that_it_has(guide: Path) -> None:
    known = all_commands()
    seen = set()
    for cell in re.findall(r"`(trainyard [^`]+)`", text(guide / "cli.md")):
        for line in expanded(cell):
            fitting = [name for name in known if line == name or line.startswith(name + " ")]
            if not fitting:
                continue
            name = max(fitting, key=len)
            seen.add(name)
            used = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", line.removeprefix(name)))
            assert used <= options(known[name]), f"{line}: {used - options(known[name])}"
    assert seen == set(known)


@pytest.mark.parametrize("page", [*READMES, *(p for g in GUIDE for p in sorted(g.glob("*.md")))], ids=name_of)  # fmt: skip
def test_commands_in_examples_are_there(page: Path) -> None:
    known = all_commands()
    for language, block in FENCE.findall(text(page)):
        if language != "bash":
            continue
        for line in re.findall(
            r"^(?:\w+=\$\()?(trainyard .+?)(?:\s+#.*|\))?$", block, re.MULTILINE
        ):
            plain = line.split(" | ")[0].split(" || ")[0]
            fitting = [name for name in known if plain == name or plain.startswith(name + " ")]
            assert fitting, f"{line}: no such command"
            command = known[max(fitting, key=len)]
            used = set(re.findall(r"(?<=\s)--?[a-z][\w-]*", plain))
            assert used <= options(command), f"{line}: {used - options(command)}"


@pytest.mark.parametrize(("en", "zh"), PAIRS, ids=name_of)
def test_both_languages_have_the_same_shape(en: Path, zh: Path) -> None:
    assert zh.is_file(), f"{name_of(zh)} is missing"
    assert [level for level, _ in headings(zh)] == [level for level, _ in headings(en)]
    assert [language for language, _ in FENCE.findall(text(zh))] == [
        language for language, _ in FENCE.findall(text(en))
    ]
    rows = [len(re.findall(r"^\|", prose(page), re.MULTILINE)) for page in (en, zh)]
    assert rows[0] == rows[1], "tables differ"


def test_no_page_stands_in_one_language_only() -> None:
    assert {p.name for p in GUIDE[0].glob("*.md")} == {p.name for p in GUIDE[1].glob("*.md")}


@pytest.mark.parametrize("guide", GUIDE, ids=name_of)
def test_troubleshooting_has_a_row_for_every_reason(guide: Path) -> None:
    page = text(guide / "troubleshooting.md")
    listed = re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE)
    reasons = [name for name in listed if name in REASONS]
    assert sorted(reasons) == sorted(reason.value for reason in Reason)


@pytest.mark.parametrize("guide", GUIDE, ids=name_of)
def test_troubleshooting_tells_the_verdict_on_a_retry(guide: Path) -> None:
    words = {"yes": "spend", "free": "free", "no": "never", "是": "spend", "不计": "free", "否": "never"}  # fmt: skip
    rows = re.findall(
        r"^\| `([a-z_]+)` \| (\S+) \| .+\|$", text(guide / "troubleshooting.md"), re.MULTILINE
    )
    told = {Reason(name): words[word] for name, word in rows if word in words}
    assert told
    assert {reason: REASONS[reason].retry.value for reason in told} == told


def job_blocks() -> list[Any]:
    found = []
    for page in [*READMES, *(p for guide in GUIDE for p in sorted(guide.glob("*.md")))]:
        for language, block in FENCE.findall(text(page)):
            if language == "yaml":
                found.append(pytest.param("job.yaml", block, id=name_of(page)))
            if language == "bash":
                shown = re.findall(r"-d '(\{.*?\})'", block, re.DOTALL)
                bodies = [b for b in shown if '"items"' not in b]  # those of the reward service
                found += [pytest.param("job.json", body, id=name_of(page)) for body in bodies]
    return found


@pytest.mark.parametrize("page", [g / "rewards.md" for g in GUIDE], ids=name_of)
def test_requests_of_the_reward_guide_are_valid(page: Path) -> None:
    shown = re.findall(r"-d '(\{.*?\n\})'", text(page), re.DOTALL)
    assert [len(ScoreRequest.model_validate_json(body).items) for body in shown] == [3]


@pytest.mark.parametrize(("file", "block"), job_blocks())
def test_jobs_in_the_guide_are_accepted(file: str, block: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(block)
    assert f"algorithm: {parse_job_spec(read_job(tmp_path / file)).algorithm}" in block.replace(
        chr(34), ""
    )


@pytest.mark.parametrize("guide", GUIDE, ids=name_of)
def test_the_python_page_names_every_method_of_the_client(guide: Path) -> None:
    page = text(guide / "python-client.md")
    for group, kind in (("jobs", python_client.Jobs), ("hosts", python_client.Hosts)):
        for name, _ in inspect.getmembers(kind, inspect.isfunction):
            if name.startswith("_") or name in {"act", "join"}:  # `act` is behind the verbs
                continue
            assert re.search(rf"(client\.{group}\.{name}\(|`{name}[(`])", page), f"{group}.{name}"


@pytest.mark.parametrize("page", [*READMES, *(g / "python-client.md" for g in GUIDE)], ids=name_of)
def test_python_examples_are_python(page: Path) -> None:
    blocks = [block for language, block in FENCE.findall(text(page)) if language == "python"]
    assert blocks
    for block in blocks:
        compile(block, page.name, "exec")


def test_models_of_the_client_are_what_the_guide_shows() -> None:
    """The table of the Python page speaks of these types."""
    page = text(GUIDE[0] / "python-client.md")
    models = [
        name
        for name, kind in vars(python_client).items()
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not BaseModel
    ]
    for name in ("Job", "JobPage", "Metrics", "Frame", "Checkpoint"):
        assert name in models
        assert f"`{name}`" in page


RAISERS = {"TrainyardError", "conflict", "unavailable", "_problem", "_bad"}


def codes() -> set[str]:
    """Every code of a problem document that the api's source gives."""
    found = set()
    for path in (ROOT / "services" / "api").rglob("*.py"):
        for node in ast.walk(ast.parse(text(path))):
            name = getattr(getattr(node, "func", None), "id", None)
            if isinstance(node, ast.Call) and name in RAISERS:
                words = [a.value for a in node.args if isinstance(a, ast.Constant)]
                found |= {next(w for w in words if isinstance(w, str))} if words else set()
    return {code for code in found if re.fullmatch(r"[a-z_]+", code)}


@pytest.mark.parametrize("folder", GUIDE, ids=name_of)
def test_every_error_code_is_explained(folder: Path) -> None:
    page = text(folder / "rest-and-errors.md")
    known = codes()
    assert len(known) > 25
    assert {code for code in known if f"`{code}`" not in page} == set()
