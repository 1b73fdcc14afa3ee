"""The documentation: links lead somewhere, code runs, and every public name is in it once."""

import ast
import gzip
import importlib
import inspect
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
import transformers
import typer
import yaml
from markdown.extensions.toc import slugify
from typer.core import TyperGroup as Group

import lens_lang
from lens_lang.cli.program import app
from lens_lang.models import PACKAGED

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    page for page in DOCS.rglob("*.md") if "notebooks" not in page.relative_to(DOCS).parts
)
TEXTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "notebooks" / "README.md", *PAGES]
RUN = [DOCS / "index.md", *sorted((DOCS / "recipes").glob("*.md"))]
"""Pages whose Python is run, on a tiny model under the packaged one's name."""
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    code: str
    line: int
    not_run: str | None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, with the line that their code begins on."""
    found: list[Block] = []
    held: list[str] | None = None
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if held is None and line.startswith("```"):
            held, language, first = [], line.strip("` "), number + 1
            marked = NOT_RUN.fullmatch(lines[number - 2]) if number > 1 else None
        elif held is not None and line == "```":
            code = "\n".join(held) + "\n"
            found.append(Block(language, code, first, marked.group(1) if marked else None))
            held = None
        elif held is not None:
            held.append(line)
    assert held is None, f"{short(page)} has a block without an end"
    return found


def prose(text: str) -> str:
    """A page without its code."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", text)


# --- links ---


def anchors(page: Path) -> set[str]:
    """What a link to a page may have behind its #."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#{1,6} (.+)$", text, flags=re.M)
    return {slugify(heading.replace("`", ""), "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Links of a page that lead nowhere, or that no browser would follow safely."""
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if "://" in target or target.startswith("mailto:"):
            if not re.fullmatch(r"https://[a-z0-9.-]+\.[a-z]+(/[^\s]*)?", target):
                wrong.append(target)
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        folder = file.is_dir() and DOCS not in page.parents  # the site has no page for a folder
        if not (file.is_file() or folder) or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", TEXTS, ids=short)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[a](b.md) [c](#c)\n## c", []),
        ("[a](nothing.md)", ["nothing.md"]),
        ("[a](b.md#nothing)", ["b.md#nothing"]),
        ("[a](#nothing)", ["#nothing"]),
        ("[a](http://example.org/)", ["http://example.org/"]),
        ("[a](https://)", ["https://"]),
        ("`[a](nothing.md)`\n```\n[a](nothing.md)\n# x\n```\n[a](https://example.org/a_b)", []),
    ],
)
def test_a_broken_link_would_be_noticed(text: str, wrong: list[str], tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# B\n", encoding="utf-8")
    (tmp_path / "a.md").write_text(text, encoding="utf-8")
    assert broken_links(tmp_path / "a.md", text) == wrong


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=short)
def test_links_of_notebooks_lead_somewhere(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    page = notebook.with_suffix(".md")
    assert broken_links(page, text) == []


def navigation() -> list[str]:
    """The pages named in mkdocs.yml."""
    found, waiting = [], [yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            found.append(part)
        else:
            waiting += part.values() if isinstance(part, dict) else part
    return found


def test_every_page_and_notebook_is_in_the_navigation_once() -> None:
    pages = [page.relative_to(DOCS).as_posix() for page in PAGES]
    pages += [f"notebooks/{path.name}" for path in NOTEBOOKS]
    assert sorted(navigation()) == sorted(pages)


# --- reference ---


def documented_modules() -> Counter[str]:
    """How often each module stands behind ::: in the reference."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    return Counter(re.findall(r"^::: ([\w.]+)$", text, flags=re.M))


def test_every_module_has_one_place_in_the_reference() -> None:
    package = Path(lens_lang.__file__).parent
    files = {
        "lens_lang." + ".".join(path.relative_to(package).with_suffix("").parts)
        for path in package.rglob("*.py")
        if path.name != "__init__.py" and path.parent.name != "cli"
    }
    assert documented_modules() == Counter({*files, "lens_lang.cli"})


def described(module: str) -> set[str]:
    """The names of a module that mkdocstrings shows: defined there, with a docstring."""
    source = Path(str(importlib.import_module(module).__file__)).read_text(encoding="utf-8")
    body = ast.parse(source).body
    found = {
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node)
    }
    for node, after in zip(body, body[1:], strict=False):
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        )
        told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        found |= {each.id for each in targets if isinstance(each, ast.Name) and told}
    return found


def public_names() -> dict[str, str]:
    """Public name to the module that defines it."""
    homes = {name: f"lens_lang.{home}" for name, home in lens_lang._HOME.items()}
    plot, formats, models = lens_lang.plot, lens_lang.formats, lens_lang.models
    homes |= {f"plot.{name}": getattr(plot, name).__module__ for name in plot.__all__}
    for module in (formats, models):
        for name, value in vars(module).items():
            if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__:
                homes[f"{module.__name__.split('.')[1]}.{name}"] = module.__name__
    return homes


def test_every_public_name_is_described_in_one_place() -> None:
    modules = documented_modules()
    for name, home in public_names().items():
        assert modules[home] == 1, f"{name}: {home} is not in the reference once"
        assert name.split(".")[-1] in described(home), f"{name} has no docstring in {home}"


# --- code ---


@pytest.mark.parametrize("page", TEXTS, ids=short)
def test_blocks_say_what_they_are_and_python_compiles(page: Path) -> None:
    for block in blocks(page):
        assert block.language in ("python", "bash", "text", "bibtex"), f"{short(page)}:{block.line}"
        if block.language == "python":
            compile(block.code, short(page), "exec")


def unknown_calls(code: str) -> list[str]:
    """Names under ``ll.`` that do not exist, and keywords that their functions do not take."""
    wrong = []
    for node in ast.walk(ast.parse(code)):
        try:
            value = public_value(node.func if isinstance(node, ast.Call) else node)
        except AttributeError:
            wrong += [ast.unparse(node)] if isinstance(node, ast.Attribute) else []
            continue
        if isinstance(node, ast.Call) and callable(value):
            known = inspect.signature(value).parameters
            named = [each.arg for each in node.keywords if each.arg]
            called = ast.unparse(node.func)
            wrong += [f"{called}({name}=)" for name in named if name not in known]
    return wrong


def public_value(node: ast.AST) -> Any:
    """What ``ll.some.name`` is; None where it does not begin with ``ll``.

    Raises:
        AttributeError: lens_lang has no such thing.
    """
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not (isinstance(node, ast.Name) and node.id == "ll"):
        return None
    value: Any = lens_lang
    for name in reversed(names):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("page", TEXTS, ids=short)
def test_python_names_only_what_exists(page: Path) -> None:
    code = "\n".join(block.code for block in blocks(page) if block.language == "python")
    assert unknown_calls(code) == []


def test_an_unknown_name_or_keyword_would_be_noticed() -> None:
    code = "ll.lope(freq)\nll.plot.nothing(x)\nll.lape(freq, tap=1)\nll.lape(freq, top=1)\nx.lope()"
    assert sorted(unknown_calls(code)) == ["ll.lape(tap=)", "ll.lope", "ll.plot.nothing"]


def commands(script: str) -> Iterator[list[str]]:
    """The words of every command of a shell script; variables stay as they are written."""
    for line in script.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in shlex.split(line, comments=True):
            if word in ("&", "&&", "||", "|", ";", "do"):
                yield words
                words = []
            else:
                words.append(word)
        yield words


def unknown_words(words: list[str]) -> list[str]:
    """Commands and options of lens-lang, and targets of make, that do not exist."""
    while words and re.fullmatch(r"\w+=\S*", words[0]):
        words = words[1:]
    if words[:1] == ["make"]:
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        return [word for word in words[1:] if word not in targets]
    if words[:1] != ["lens-lang"]:
        return []
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while rest and isinstance(command, Group):
        if rest[0] in command.commands:
            command, rest = command.commands[rest[0]], rest[1:]
        elif command.name == "evaluate":  # a run folder: it is perplexity that is meant
            command = command.commands["perplexity"]
        else:
            return rest[:1]
    known = {name for parameter in command.params for name in parameter.opts}
    return [word for word in rest if word.startswith("--") and word.split("=")[0] not in known]


@pytest.mark.parametrize("page", TEXTS, ids=short)
def test_shells_name_only_commands_and_options_that_exist(page: Path) -> None:
    for block in blocks(page):
        if block.language == "bash":
            for words in commands(block.code):
                assert unknown_words(words) == [], f"{short(page)}:{block.line}: {' '.join(words)}"


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("lens-lang collect runs/x --text en=a.txt \\\n --shard 0/2 &", []),
        ("A=1 lens-lang detect lape runs/x --tap 3 | head", ["--tap"]),
        ("lens-lang detect lope runs/x", ["lope"]),
        ("lens-lang evaluate runs/x --neurons plnd", []),
        ("lens-lang evaluate runs/x --strength 2", ["--strength"]),
        ("make test && make tost", ["tost"]),
    ],
)
def test_an_unknown_command_or_option_would_be_noticed(line: str, wrong: list[str]) -> None:
    assert [word for words in commands(line) for word in unknown_words(words)] == wrong


# --- code that is run ---


def tiny_folder(folder: Path) -> Path:
    """Write a random model with a byte tokeniser, as `from_pretrained` reads them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return random_llama(folder, {"vocab_size": len(vocabulary), **ids})


def random_llama(folder: Path, tokens: dict[str, int]) -> Path:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=32,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            **tokens,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.15 if parameter.ndim > 1 else 0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages name: models, texts, files of neurons."""
    here = tmp_path_factory.mktemp("pages")
    packaged = tiny_folder(here / "cache" / PACKAGED)
    (packaged / "NOTICE_SHOWN").touch()
    (here / "models").mkdir()
    (here / "models" / "mine").symlink_to(packaged)
    for folder in ("text", "held"):
        (here / folder).mkdir()
    for lang, lines in lens_lang.sample_sentences().items():
        for folder, some in (("text", lines[:40]), ("held", lines[40:50])):
            file = here / folder / lang
            file.with_suffix(".txt").write_text("\n".join(some), encoding="utf-8")
            frame = pd.DataFrame({"text": some})
            frame.to_json(file.with_suffix(".jsonl"), orient="records", lines=True)
            frame.to_csv(file.with_suffix(".csv.gz"), index=False)
            frame.to_parquet(file.with_suffix(".parquet"))
    generator = torch.Generator().manual_seed(0)
    published = [
        [torch.randperm(11008, generator=generator)[:5].sort().values for _ in range(32)]
        for _ in range(7)
    ]
    torch.save(published, here / "LLaMA-2-7B.neuron.pth")
    shape = (4, 256)
    sets = {
        lang: lens_lang.NeuronSet(
            {lens_lang.MLP_POST: torch.rand(shape, generator=generator) < 0.1}
        )
        for lang in ("en", "fr")
    }
    lens_lang.LanguageNeurons(sets).save(here / "theirs.safetensors")
    return here


@pytest.fixture
def at_work(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("LENS_LANG_CACHE", str(workplace / "cache"))
    return workplace


def run_python(page: Path) -> dict[str, Any]:
    """Run the Python of a page from top to bottom, and return its names."""
    space: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python" and block.not_run is None:
            tree = ast.parse(block.code)
            ast.increment_lineno(tree, block.line - 1)
            exec(compile(tree, str(page), "exec"), space)
    return space


def test_the_tour_runs_from_top_to_bottom(
    gemma: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a random model with Gemma's tokeniser, which has fewer layers, and on little text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LENS_LANG_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / PACKAGED
    random_llama(folder, {"vocab_size": gemma.cfg.d_vocab, "eos_token_id": 1, "bos_token_id": 2})
    gemma.tokenizer.save_pretrained(folder)
    (folder / "NOTICE_SHOWN").touch()
    few = {lang: lines[:10] for lang, lines in lens_lang.sample_sentences().items()}
    monkeypatch.setattr("lens_lang.corpora.sample_sentences", lambda: few)
    Path("fr.txt").write_text("\n".join(few["fr"] * 6), encoding="utf-8")
    with gzip.open("de.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": line}) + "\n" for line in few["de"] * 6)
    smaller = {
        "12, 1542": "2, 154",
        "12.1542": "2.154",
        "(5, 0), (11, 2)": "(1, 0), (3, 2)",
        "layers=9": "layers=2",
        "steps=50": "steps=2",
        "limit(6)": "limit(2)",
        "limit=6": "limit=2",
        "strengths=(0.5, 1, 2, 4)": "strengths=(1, 2)",
        ".show()": ".to_json()",
    }
    page = (DOCS / "tour.md").read_text(encoding="utf-8")
    for large, small in smaller.items():
        assert large in page
        page = page.replace(large, small)
    copy = tmp_path / "tour.md"
    copy.write_text(page, encoding="utf-8")
    space = run_python(copy)
    assert space["card"].missing == ()
    assert set(space["story"].to_frame()["task"]) == {"xquad", "xcsqa"}
    assert {"views.html", "card.html", "french.safetensors"} <= {p.name for p in tmp_path.iterdir()}
    weights = [
        [block.mlp.W_out for block in lens_lang.load_model(name).blocks]
        for name in (PACKAGED, "tuned/")
    ]
    assert any(not torch.equal(plain, tuned) for plain, tuned in zip(*weights, strict=True))


def run_commands(page: Path, number: int, **variables: Any) -> None:
    """Run the lens-lang commands of one of a page's shell blocks in this process."""
    script = [block for block in blocks(page) if block.language == "bash"][number].code
    for words in commands(script):
        if words[:1] == ["lens-lang"]:
            app([Template(word).substitute(variables) for word in words[1:]], standalone_mode=False)


def test_the_start_page_runs(at_work: Path) -> None:
    space = run_python(DOCS / "index.md")
    assert space["neurons"].languages == space["matrix"].languages == ("en", "fr", "ru", "zh")
    assert (at_work / "effect.html").stat().st_size > 10_000


def test_the_recipe_for_models_runs(at_work: Path) -> None:
    space = run_python(DOCS / "recipes" / "models.md")
    assert space["model"].cfg.model_name == "mine, step 4000"
    assert space["freq"].n_tokens.tolist() == [4, 4]


def test_the_recipe_for_text_runs(at_work: Path) -> None:
    space = run_python(DOCS / "recipes" / "text.md")
    assert space["train"].languages == ("en", "fr", "de", "zh")
    assert space["corpora"].languages == ("en", "fr")  # the last ones, in memory


def test_the_recipe_for_machines_runs_and_shares_add_up(at_work: Path) -> None:
    page = DOCS / "recipes" / "machines.md"
    for index in range(2):
        run_commands(page, 0, SLURM_ARRAY_TASK_ID=index, SLURM_ARRAY_TASK_COUNT=2)
    space = run_python(page)
    run_commands(page, 2)
    model = lens_lang.load_model(PACKAGED)
    files = {"en": "text/en.txt", "fr": "text/fr.jsonl"}
    alone = lens_lang.collect(
        model,
        lens_lang.Corpora.from_files(files, model, ctx_len=64),
        lens_lang.ActivationFrequency(),
        lens_lang.MeanActivation(),
        progress=False,
    )
    merged = [
        lens_lang.load(f"runs/whole/{name}.safetensors") for name in ("frequency", "activations")
    ]
    assert len(space["parts"]) == 2
    assert torch.equal(merged[0].count, alone[0].count)
    torch.testing.assert_close(merged[1].sum, alone[1].sum)
    assert (at_work / "runs/whole/report.html").is_file()


def test_the_recipe_for_hooks_runs(at_work: Path) -> None:
    space = run_python(DOCS / "recipes" / "hooks.md")
    assert len(space["neurons"]["fr"]) > 0
    assert (space["change"] > 0).any()
    assert (space["whole"] != space["without"]).any()
    plain = space["model"](space["clean"])
    assert (space["theirs"] - plain).abs().max() > 1e-3  # switching off does something
    torch.testing.assert_close(space["theirs"], space["ours"])


def test_the_recipe_for_files_runs(at_work: Path) -> None:
    space = run_python(DOCS / "recipes" / "files.md")
    assert len(space["published"]["ja"]) == 32 * 5
    for lang, some in space["again"].items():
        assert some.masks.keys() == space["wanted"].masks.keys()
        assert len(some) > 0, lang
    run_commands(DOCS / "recipes" / "files.md", 0)
    back = lens_lang.formats.read("back.neuron.pth", languages=space["published"].languages)
    assert back == space["published"]


def test_the_recipe_for_long_runs_runs(at_work: Path) -> None:
    space = run_python(DOCS / "recipes" / "runs.md")
    assert torch.equal(space["freq"].count, space["again"].count)


def test_every_page_with_code_to_run_is_run() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    for page in RUN:
        assert any(block.language == "python" for block in blocks(page)), short(page)
        assert f'"{page.name}")' in source or f'"{page.name}"\n' in source, short(page)


def test_what_is_not_run_says_why() -> None:
    reasons = {block.not_run for page in RUN for block in blocks(page)} - {None}
    assert all(str(reason).startswith("needs ") for reason in reasons)
    for page in set(PAGES) - set(RUN):
        assert not any(block.not_run for block in blocks(page)), short(page)


# --- the site, the citation ---


def test_a_page_that_fetches_would_be_noticed_and_links_of_notebooks_are_led() -> None:
    sys.path.insert(0, str(DOCS))
    try:
        checks = importlib.import_module("checks")
    finally:
        sys.path.remove(str(DOCS))
    html = (
        '<link rel="canonical" href="https://a.org"><a href="https://b.org">b</a>'
        '<script src="https://c.org/x.js"></script><link rel="stylesheet" href="//d.org/x.css">'
        "<img alt='e' src='http://e.org/x.png'><img src='data:image/png;base64,//8='>"
        '<script src="../x.js"></script>'
    )
    assert checks.fetched(html) == ["https://c.org/x.js", "//d.org/x.css", "http://e.org/x.png"]
    assert checks.at_home("../docs/methods.md") == "methods.md"
    assert checks.at_home("2_next.ipynb") == "notebooks/2_next.ipynb"


def test_the_citation_is_of_this_version_and_of_the_papers() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    required = {"cff-version", "message", "title", "type", "authors", "version", "license"}
    assert required <= cited.keys()
    assert cited["cff-version"] == "1.2.0"
    assert (cited["title"], cited["type"], cited["license"]) == ("lens_lang", "software", "MIT")
    assert cited["version"] == lens_lang.__version__
    assert all(author.keys() & {"name", "family-names"} for author in cited["authors"])
    methods = (DOCS / "methods.md").read_text(encoding="utf-8")
    ids = {"2402.16438", "2402.18815", "2406.09265"}
    assert {each["identifiers"][0]["value"] for each in cited["references"]} == {
        f"arXiv:{each}" for each in ids
    }
    for each in cited["references"]:
        assert each.keys() >= {"type", "title", "authors", "year"}
        assert each["identifiers"][0]["value"] in methods


def test_the_bibtex_of_the_start_page_is_that_of_the_citation() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (entry,) = (block.code for block in blocks(DOCS / "index.md") if block.language == "bibtex")
    said = dict(re.findall(r"^  (\w+) += \{+(.+?)\}+,?$", entry, flags=re.M))
    assert said["version"] == cited["version"]
    assert said["title"].replace("\\", "") == cited["title"]
    assert said["author"] == cited["authors"][0]["name"]


def test_the_start_page_names_every_extra() -> None:
    tables = (DOCS / "index.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", tables, flags=re.M)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")  # 3.10 has no tomllib
    extras = project.split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    assert sorted(rows) == sorted(re.findall(r"^(\w+) = \[", extras, flags=re.M))
