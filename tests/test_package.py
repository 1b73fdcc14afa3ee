"""The package's public names are what they say, and its modules import only downwards."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lens_lang

ROOT = Path(lens_lang.__file__).parent
NAME = "lens_lang"

# A module imports from lower levels, or from its own folder; a new module takes its place here.
LEVELS: dict[str, int] = {
    "errors": 0,
    "key_values": 0,
    "languages": 1,
    "sites": 1,
    "storage": 1,
    "texts": 1,
    "batches": 1,
    "documents": 1,
    "corpora": 2,
    "neurons": 2,
    "specs": 2,
    "saved": 2,
    "questions": 2,
    "tables": 2,
    "items": 3,
    "tasks": 4,
    "task_reading": 5,
    "relations": 3,
    "parallel": 3,
    "run_folder": 3,
    "passes": 4,
    "attention": 2,
    "concepts": 2,
    "identification": 2,
    "spelling": 2,
    "readout": 2,
    "positions": 1,
    "fingerprint": 2,
    "progress": 0,
    "regions": 3,
    "single_neurons": 3,
    "energy": 3,
    "removal": 3,
    "removal_check": 3,
    "stats": 3,
    "patterns": 4,
    "vectors": 4,
    "weights": 3,
    "collection": 5,
    "formats": 3,
    "models": 3,
    "delta": 4,
    "first_order": 4,
    "fused": 4,
    "importance": 4,
    "intervene": 5,
    "vocabulary": 4,
    "curves": 5,
    "heads": 5,
    "contexts": 4,
    "signs": 4,
    "token_readings": 7,
    "scoring": 5,
    "exporting": 5,
    "continuing": 4,
    "decoding": 5,
    "likelihood": 6,
    "detect.baselines": 5,
    "detect.lape": 5,
    "detect.plnd": 5,
    "detect.sharing": 5,
    "evaluate.nll": 5,
    "evaluate.perplexity": 6,
    "evaluate.significance": 1,
    "evaluate.metrics": 1,
    "tuning": 7,
    "lens": 6,
    "latent": 7,
    "rows": 6,
    "parts": 6,
    "evaluate.generation": 6,
    "evaluate.answering": 7,
    "evaluate.task_scores": 6,
    "evaluate.runs": 7,
    "evaluate.solving": 8,
    "evaluate.story": 8,
    "evaluate.mwork": 9,
    "attribute.card": 7,
    "attribute.cards": 7,
    "attribute.categories": 7,
    "attribute.effect": 7,
    "attribute.gradients": 7,
    "attribute.markup": 7,
    "attribute.neighbourhood": 7,
    "attribute.promotion": 7,
    "attribute.scores": 7,
    "attribute.telling": 7,
    "attribute.writing": 7,
    "evaluate.categories": 8,
    "evaluate.judging": 8,
    "evaluate.per_example": 8,
    "evaluate.answers": 8,
    "plot.cards": 9,
    "plot.effect": 9,
    "plot.generation": 9,
    "plot.layers": 9,
    "plot.neurons": 9,
    "plot.categories": 9,
    "plot.style": 9,
    "plot.tasks": 9,
    "plot.text": 9,
    "plot.views": 9,
    "harness_settings": 8,
    "harness": 9,
    "results": 10,
    "sections.cards": 10,
    "sections.caption": 10,
    "sections.cells": 10,
    "sections.changes": 10,
    "sections.contexts": 10,
    "sections.record": 10,
    "sections.scores": 10,
    "sections.vocabulary": 10,
    "sections.effect": 10,
    "sections.floor": 10,
    "sections.generation": 10,
    "sections.layers": 10,
    "sections.measured": 10,
    "sections.neurons": 10,
    "sections.section": 10,
    "sections.sharing": 10,
    "sections.tasks": 10,
    "page": 12,
    "page_parts": 11,
    "demo": 13,
    "cli.__main__": 14,
    "cli.cards": 14,
    "cli.detecting": 14,
    "cli.generating": 14,
    "cli.judging": 14,
    "cli.keeping": 14,
    "cli.layers": 14,
    "cli.measuring": 14,
    "cli.options": 14,
    "cli.printing": 14,
    "cli.program": 14,
    "cli.reporting": 14,
    "cli.sharing": 14,
    "cli.solving": 14,
}
NEVER_IMPORT = {"detect": ("collection", "corpora"), "intervene": ("collection", "corpora")}
ONLY_INSIDE_FUNCTIONS = ("transformer_lens", "plotly", "circuitsvis", "ray", "py3langid", "lingua")


def module_name(path: Path, root: Path = ROOT) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts)


def modules(root: Path = ROOT) -> dict[str, ast.Module]:
    """Every module of the package by its name inside it, parsed; the folders' inits left out."""
    return {
        module_name(path, root): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(root.rglob("*.py"))
        if path.name != "__init__.py"
    }


def imported(tree: ast.AST, known: Any) -> Iterator[tuple[str, str]]:
    """(module inside the package, name taken from it) for every import, in functions too.

    The module is ``""`` where a name of the package root is taken.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield "", "." * node.level  # relative imports are not used here
        elif isinstance(node, ast.ImportFrom) and node.module == NAME:
            for alias in node.names:
                yield (alias.name, "") if alias.name in known else ("", alias.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{NAME}."):
            module = (node.module or "").removeprefix(f"{NAME}.")
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield (inner, "") if inner in known else (module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == NAME:
                    yield "", NAME
                elif alias.name.startswith(f"{NAME}."):
                    yield alias.name.removeprefix(f"{NAME}."), ""


def upward_imports(trees: dict[str, ast.Module]) -> list[str]:
    """Imports that break the levels."""
    wrong = []
    for module, tree in trees.items():
        for target, _ in imported(tree, trees):
            if not target:
                continue  # `root_imports` speaks of those
            same_folder = "." in module and module.split(".")[0] == target.split(".")[0]
            if not same_folder and LEVELS[target] >= LEVELS[module]:
                wrong.append(f"{module} imports {target}")
    return wrong


def forbidden_imports(trees: dict[str, ast.Module]) -> list[str]:
    return [
        f"{module} imports {target}"
        for module, tree in trees.items()
        for target, _ in imported(tree, trees)
        if target in NEVER_IMPORT.get(module.split(".")[0], ())
    ]


def root_imports(trees: dict[str, ast.Module]) -> list[str]:
    return [
        f"{module} imports {name} from the package root"
        for module, tree in trees.items()
        for target, name in imported(tree, trees)
        if not target
    ]


def cycles(trees: dict[str, ast.Module]) -> list[str]:
    """Modules that import each other, however far around."""
    graph = {m: {t for t, _ in imported(tree, trees) if t in trees} for m, tree in trees.items()}

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [*graph[start]]
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += graph[module]
        return seen

    return [module for module in graph if module in reachable(module)]


def eager_imports(tree: ast.Module) -> Iterator[str]:
    """Packages imported as soon as the module is: not in functions, nor for type checkers."""
    waiting: list[ast.AST] = [*tree.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0]
        waiting += ast.iter_child_nodes(node)


# --- levels ---


def test_every_module_has_a_level() -> None:
    assert set(modules()) == set(LEVELS)


def test_modules_import_only_from_below() -> None:
    assert upward_imports(modules()) == []
    assert cycles(modules()) == []


def test_detectors_and_interventions_know_neither_text_nor_the_loop() -> None:
    assert forbidden_imports(modules()) == []


def test_nobody_inside_imports_the_package_root() -> None:
    assert root_imports(modules()) == []


def test_folders_are_no_modules_with_code_of_their_own() -> None:
    for folder in ("attribute", "detect", "evaluate", "sections"):
        body = ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8")).body
        assert [type(node) for node in body] == [ast.Expr]  # a docstring


@pytest.mark.parametrize("module", LEVELS)
def test_packages_that_cost_seconds_or_may_be_missing_wait_for_a_function(module: str) -> None:
    assert not set(eager_imports(modules()[module])) & set(ONLY_INSIDE_FUNCTIONS)


def planted(module: str, code: str) -> dict[str, ast.Module]:
    """The package with one line more in one module."""
    trees = modules()
    trees[module] = ast.parse(ast.unparse(trees[module]) + "\n" + code)
    return trees


@pytest.mark.parametrize(
    ("module", "code", "found"),
    [
        ("sites", "from lens_lang.neurons import NeuronSet", "sites imports neurons"),
        ("stats", "def f():\n    from lens_lang.models import bridge", "stats imports models"),
        ("neurons", "import lens_lang.stats", "neurons imports stats"),
        ("detect.lape", "from lens_lang.plot import neurons", "detect.lape imports plot.neurons"),
        ("intervene", "from lens_lang.detect import lape", "intervene imports detect.lape"),
    ],
)
def test_an_upward_import_would_be_noticed(module: str, code: str, found: str) -> None:
    assert upward_imports(planted(module, code)) == [found]


def test_a_cycle_inside_a_folder_would_be_noticed() -> None:
    trees = planted("detect.lape", "import lens_lang.detect.baselines")
    assert upward_imports(trees) == []
    assert cycles(trees) == ["detect.baselines", "detect.lape"]


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("detect.lape", "def f():\n    from lens_lang.corpora import Corpora"),
        ("intervene", "from lens_lang import collection"),
    ],
)
def test_a_forbidden_import_would_be_noticed(module: str, code: str) -> None:
    (found,) = forbidden_imports(planted(module, code))
    assert found.startswith(f"{module} imports co")


@pytest.mark.parametrize(
    "code",
    ["import lens_lang", "from lens_lang import lape", "from . import neurons"],
)
def test_an_import_of_the_root_would_be_noticed(code: str) -> None:
    assert len(root_imports(planted("page", code))) == 1


@pytest.mark.parametrize(
    ("code", "noticed"),
    [
        ("import plotly.graph_objects as go", True),
        ("from transformer_lens import utils", True),
        ("try:\n    import ray\nexcept ImportError:\n    ray = None", True),
        ("class A:\n    import circuitsvis", True),
        ("if True:\n    import plotly", True),
        ("def f():\n    import plotly", False),
        ("class A:\n    def f(self):\n        import plotly", False),
        ("if TYPE_CHECKING:\n    import plotly", False),
        ("import plotlywrapper", False),
    ],
)
def test_an_eager_import_would_be_noticed(code: str, noticed: bool) -> None:
    found = set(eager_imports(ast.parse(code))) & set(ONLY_INSIDE_FUNCTIONS)
    assert bool(found) == noticed


# --- public names ---


def test_public_names_are_sorted_and_distinct() -> None:
    assert lens_lang.__all__ == sorted(set(lens_lang.__all__))
    assert set(dir(lens_lang)) == {*lens_lang.__all__, "__version__"}


@pytest.mark.parametrize("name", lens_lang.__all__)
def test_every_public_name_can_be_imported_and_says_what_it_is(name: str) -> None:
    value = getattr(lens_lang, name)
    assert getattr(lens_lang, name) is value
    assert isinstance(value, ModuleType) == (name in ("formats", "models", "plot"))
    if isinstance(value, type) or callable(value):
        assert value.__module__.startswith(f"{NAME}."), f"{name} is not ours"
        assert value.__doc__


def test_a_star_import_gives_every_public_name() -> None:
    space: dict[str, Any] = {}
    exec("from lens_lang import *", space)
    assert set(lens_lang.__all__) <= set(space)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lens_lang' has no attribute 'lope'"):
        _ = lens_lang.lope  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'lope'"):
        exec("from lens_lang import lope")


def declared_for_type_checkers() -> dict[str, str]:
    """Public name to module, as the TYPE_CHECKING block says it."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (n for n in tree.body if isinstance(n, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    homes = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        module = (node.module or "").removeprefix(NAME).removeprefix(".")
        for alias in node.names:
            assert alias.asname is None
            homes[alias.name] = module
    return homes


def test_what_type_checkers_see_is_what_is_imported() -> None:
    assert declared_for_type_checkers() == {
        **lens_lang._HOME,
        **dict.fromkeys(lens_lang._MODULES, ""),
    }


def defined_names(tree: ast.Module) -> set[str]:
    """Names that a module itself defines, rather than imports, at its top level."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def test_every_public_name_has_its_home_where_it_is_defined() -> None:
    trees = modules()
    for name, home in lens_lang._HOME.items():
        assert name in defined_names(trees[home]), f"{name} is not defined in {home}"


def test_no_name_has_two_homes() -> None:
    names = [name for names in lens_lang._HOMES.values() for name in names]
    assert len(names) == len(set(names))


def test_no_module_has_the_name_of_a_public_function() -> None:
    """Importing such a module would put it where the function was."""
    files = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert "collection" in files
    assert files & set(lens_lang.__all__) == set(lens_lang._MODULES)


def test_importing_every_module_hides_no_public_name() -> None:
    program = (
        "import importlib, lens_lang\n"
        f"for name in {[*LEVELS]!r}:\n"
        "    importlib.import_module('lens_lang.' + name)\n"
        "names = lens_lang.__all__\n"
        "modules = [n for n in names if isinstance(getattr(lens_lang, n), type(lens_lang))]\n"
        "assert modules == ['formats', 'models', 'plot'], modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


# --- start-up ---


def loaded_by(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after some code."""
    program = f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    heavy = {"torch", "transformer_lens", "transformers", "plotly", "pandas", "datasets"}
    return heavy & set(finished.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import lens_lang; dir(lens_lang); lens_lang.OptionError") == set()


def test_using_statistics_and_neurons_loads_torch_only() -> None:
    """The check above can fail; and a detector needs no model library."""
    code = "import lens_lang as ll; ll.lape, ll.NeuronSet, ll.Frequency, ll.ablate, ll.formats"
    assert loaded_by(code) == {"torch"}


def test_the_version_is_the_distributions() -> None:
    from importlib.metadata import version

    assert lens_lang.__version__ == version("lens-lang")
