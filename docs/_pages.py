"""Writes the pages that docstrings and tables already hold: methods and reference."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import dtp_jax

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "by_kpi": ("KPIs", "that of a fixed weighted sum: one backward pass"),
    "by_loss": ("losses", "that of a fixed weighted sum: one backward pass"),
    "by_norm": (
        "sizes of the gradients",
        "a backward pass per task in the steps in which it looks",
    ),
    "by_gramian": (
        "inner products of the gradients",
        "a backward pass per task, and products",
    ),
    "by_second_batch": (
        "gradients of other batches",
        "a forward pass more for each other batch, and its gradients",
    ),
    "on_weights": ("weights only", "nothing"),
    "combiners": (
        "the gradients of all tasks",
        "a backward pass per task, and T times the memory of the parameters",
    ),
}
KINDS = {
    "links": "a link, no balancer: first in the optimizer's chain",
    "balancers": "a balancer: goes into `balance`",
    "combiners": "a combiner, which is a link: first in the optimizer's chain",
}
# The method that is a link, with its state: first of all, with a page like the others.
FIRST = "dynamic_task_prioritization"
MODULES = [
    *[
        "balancers",
        "combiners",
        "curricula",
        "links",
        "gradients",
        "kpi",
        "diagnostics",
    ],
    *["metrics", "losses", "boxes", "gumbel", "information", "solvers", "compare"],
    *["plot", "nnx", "linen"],
]


def public_names():
    """The full names that users may rely on.

    Returns:
        A list in the order of the file.
    """
    path = ROOT / "tests" / "public_names.txt"
    return path.read_text(encoding="utf-8").split()


def resolve(full):
    """The object of a full name.

    Args:
        full: Such as ``dtp_jax.balancers.upgrad``.

    Returns:
        The object.
    """
    parts = full.split(".")
    for size in range(len(parts), 0, -1):
        try:
            value = import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:]:
            value = getattr(value, part)
        return value
    raise LookupError(full)


def full_name(module, name):
    """The name that users write, which is that of the package where that has it.

    Args:
        module: Such as "balancers".
        name: A public name of it.

    Returns:
        A string.
    """
    at_root = f"dtp_jax.{name}" in public_names()
    same = at_root and resolve(f"dtp_jax.{name}") is resolve(f"dtp_jax.{module}.{name}")
    return f"dtp_jax.{name}" if same else f"dtp_jax.{module}.{name}"


def methods():
    """The methods by name: the folder they stand in, and the names of their file.

    Returns:
        A dict from the name of a method to ``(module, folder, names)``, in the order in
        which they are listed.
    """
    found = {}
    for module in ("balancers", "combiners"):
        shown = getattr(dtp_jax, module)
        files = {}
        for name in shown.__all__:
            files.setdefault(getattr(shown, name).__module__, []).append(name)
        for file, names in files.items():
            main = file.rsplit("._", 1)[-1]
            folder = "combiners" if module == "combiners" else file.split(".")[2]
            found[main] = (module, folder, sorted(names, key=lambda name: name != main))
    first = ("links", "by_kpi", [FIRST, "PrioritizationState"])
    return {FIRST: first, **dict(sorted(found.items()))}


def tables(text):
    """The rows of all Markdown tables of a text, each a list of cells.

    Args:
        text: Markdown.

    Yields:
        Lists of strings, without the lines under the headings.
    """
    for line in text.splitlines():
        if line.startswith("|") and not re.fullmatch(r"[|\-: ]+", line):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def measured_costs():
    """What a step costs with eight tasks, in plain steps, as docs/choosing.md has it.

    Returns:
        A dict from the name of a method to a string.
    """
    costs = {}
    text = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    for cells in tables(text):
        if len(cells) == 5 and cells[1] == "8":
            costs.setdefault(cells[0], cells[3])
    return costs


def sums():
    """What the weights sum to and what that means for the learning rate.

    Returns:
        A dict from the name of a method to ``(sum, learning rate)``.
    """
    # docs/choosing.md has it in the row of `focal`, which it is compared with.
    found = {FIRST: ("T", "that of equal weights")}
    text = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    section = text.split("## What the weights sum to", 1)[1].split("\n## ")[0]
    for cells in tables(section):
        for name in re.findall(r"`(\w+)`", cells[0]):
            found[name] = (cells[1], cells[2])
    return found


def facts(name, module, folder):
    """The lines of the table at the head of a method's page.

    Args:
        name: The method.
        module: "links", "balancers" or "combiners".
        folder: What it reads: a key of `FOLDERS`.

    Returns:
        Pairs of strings.
    """
    function = resolve(full_name(module, name))
    reads, cost = FOLDERS[folder]
    rows = [("kind", KINDS[module]), ("reads", reads), ("cost of a step", cost)]
    costs = measured_costs()
    if name in costs:
        rows.append(("measured, 8 tasks", f"{costs[name]} plain steps"))
    if f"{name}, every 10" in costs:
        every = costs[f"{name}, every 10"]
        rows.append(("measured, refreshed on every tenth step", f"{every} plain steps"))
    if name in sums():
        total, rate = sums()[name]
        rows += [("sum of the weights", total), ("learning rate", rate)]
    text = " ".join((inspect.getdoc(function) or "").split())
    text = text.replace("``", "`")
    described = text.split(" Args: ")[0].split(" Example: ")[0]
    asked = [
        sentence
        for sentence in re.split(r"(?<=[.:]) (?=[A-Z])", described)
        if re.search(r"[Pp]references?\b", sentence) and len(sentence) < 300
    ]
    if asked:
        rows.append(("preferences", " ".join(asked)))
    heads = re.search(r"Heads: (.*?[.`)\]])(?: (?=[A-Z][a-z])|$)", text)
    if heads:
        rows.append(("heads", heads.group(1)))
    return rows


def signature_name(name):
    """The kind of directive for an object.

    Args:
        name: Its full name.

    Returns:
        A directive of sphinx.ext.autodoc.
    """
    value = resolve(name)
    if inspect.ismodule(value):
        return "automodule"
    if inspect.isclass(value):
        return "autoclass"
    return "autofunction" if inspect.isfunction(value) else "autodata"


def fields(value):
    """The fields of a named tuple of ours, with their types and comments.

    Args:
        value: Any object.

    Yields:
        For each field its name and a line of reStructuredText.
    """
    names = getattr(value, "_fields", ()) if inspect.isclass(value) else ()
    if not names or not value.__module__.startswith("dtp_jax"):
        return
    source = inspect.getsource(value)
    for name in names:
        found = re.search(rf"^    {name}: (.+?)(?:  # (.*))?$", source, re.MULTILINE)
        kind, comment = found.groups() if found else ("Any", "")
        # Stars and bars stand for themselves, but for those in code.
        parts = (comment or "").split("`")
        parts[::2] = [re.sub(r"([*|_\\])", r"\\\1", part) for part in parts[::2]]
        line = f"**{name}**" if kind == "Any" else f"**{name}** (``{kind}``)"
        yield name, f"{line}: {'`'.join(parts)}" if comment else line


def directive(full):
    """The lines that let autodoc describe an object.

    Args:
        full: Its name.

    Returns:
        A block of Markdown.
    """
    kind = signature_name(full)
    members = "\n   :members:" if kind == "autoclass" else ""
    hidden = "\n   :no-value:" if kind == "autodata" else ""
    listed = dict(fields(resolve(full)))
    if listed:
        # Python describes each as "Alias for field number 0".
        hidden = f"\n   :exclude-members: {', '.join(listed)}\n\n   :Fields:"
        hidden += "".join(f"\n      * {line}" for line in listed.values())
    return f"```{{eval-rst}}\n.. {kind}:: {full}{members}{hidden}\n```\n"


def first_line(value):
    """The first line of a docstring, as Markdown.

    Args:
        value: What has the docstring.

    Returns:
        A string.
    """
    return (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")


def method_page(name, module, folder, names):
    """The page of a method.

    Args:
        name: The method.
        module: "links", "balancers" or "combiners".
        folder: What it reads: a key of `FOLDERS`.
        names: All public names of its file.

    Returns:
        Markdown.
    """
    first, *rows = facts(name, module, folder)
    head = f"| {first[0]} | {first[1]} |\n| --- | --- |\n"
    head += "".join(f"| {left} | {right} |\n" for left, right in rows)
    body = "\n".join(directive(full_name(module, each)) for each in names)
    return f"# {name}\n\n{head}\n{body}"


def index_page():
    """All methods in one table.

    Returns:
        Markdown.
    """
    costs, totals = measured_costs(), sums()
    lines = []
    for name, (module, folder, _) in methods().items():
        function = resolve(full_name(module, name))
        years = re.findall(r"\b(?:19|20)\d\d\b", inspect.getdoc(function) or "")
        cost = costs.get(name, costs.get(f"{name}, every 10", "-"))
        lines.append(
            f"| [{name}]({name}.md) | {FOLDERS[folder][0]} | {first_line(function)} "
            f"| {cost} | {totals.get(name, ('-',))[0]} | {max(years, default='-')} |"
        )
    listed = "\n".join(methods())
    table = "\n".join(lines)
    return f"""---
html_theme.sidebar_secondary.remove: true
---

# All methods

A click on a heading sorts. "Cost" is that of a step with eight tasks, in plain steps,
from the table of [How to choose](../choosing.md); "-" where that does not list the
method. What the weights sum to is explained
[there](../choosing.md#what-the-weights-sum-to), too. The year is the latest of the
sources.

:::{{container}} sortable

| method | reads | what it does | cost | sum of the weights | year |
| --- | --- | --- | --- | --- | --- |
{table}

:::

```{{toctree}}
:hidden:
:maxdepth: 1

{listed}
```
"""


def reference_page(module):
    """The reference of a module.

    Args:
        module: Its name, "" for the package.

    Returns:
        Markdown.
    """
    full = f"dtp_jax.{module}" if module else "dtp_jax"
    depth = full.count(".") + 1
    names = [
        name
        for name in public_names()
        if name.startswith(f"{full}.") and name.count(".") == depth
    ]
    # A module that is a public name of the package has a page of its own.
    names = [name for name in names if not inspect.ismodule(resolve(name))]
    at_root = {
        id(resolve(name)): name for name in public_names() if name.count(".") == 1
    }
    pages = {
        full_name(part, each): name
        for name, (part, _, all_) in methods().items()
        for each in all_
    }
    described, elsewhere = [], []
    for name in names:
        value, short = resolve(name), name.rsplit(".", 1)[-1]
        root = name if isinstance(value, int) else at_root.get(id(value), name)
        if root in pages:
            where = f"../methods/{pages[root]}.md"
            elsewhere.append(f"| [{short}]({where}) | {first_line(value)} |")
        elif root != name:
            elsewhere.append(f"| `{root}` | {first_line(value)} |")
        else:
            described.append(directive(name))
    text = f"# {full}\n\n```{{eval-rst}}\n.. automodule:: {full}\n```\n\n"
    if elsewhere:
        text += "| name | what it is |\n| --- | --- |\n" + "\n".join(elsewhere) + "\n\n"
    return text + "\n".join(described)


def reference_index():
    """The modules, each with what it is.

    Returns:
        Markdown.
    """
    files = {"package": "dtp_jax", **{each: f"dtp_jax.{each}" for each in MODULES}}
    lines = [
        f"| [{full}]({file}.md) | {first_line(import_module(full))} |"
        for file, full in files.items()
    ]
    table, listed = "\n".join(lines), "\n".join(files)
    return f"""# Reference

Every public name. Each module begins with a list of what is in it.

| module | what it is |
| --- | --- |
{table}

```{{toctree}}
:hidden:
:maxdepth: 1

{listed}
```
"""


def write(folder):
    """Writes the folders "methods" and "api" anew.

    Args:
        folder: Where they go.
    """
    pages = {"methods/index.md": index_page(), "api/package.md": reference_page("")}
    for name, (module, where, names) in methods().items():
        pages[f"methods/{name}.md"] = method_page(name, module, where, names)
    for module in MODULES:
        pages[f"api/{module}.md"] = reference_page(module)
    pages["api/index.md"] = reference_index()
    for part in ("methods", "api"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for path in (folder / part).glob("*.md"):
            if path.relative_to(folder).as_posix() not in pages:
                path.unlink()
    for name, text in pages.items():
        path = folder / name
        # Sphinx reads again what was written again.
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
