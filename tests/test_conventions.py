"""What every script must look like, read from its source alone: nothing is imported or run.

A check takes a Script and yields its complaints. BREAKS spoils the specimen in one place at a
time and names the complaint that must follow.
"""

import ast
import io
import re
import shlex
import sys
import tokenize
from functools import cache
from pathlib import Path

import house
import pytest
from budgets import LINES, budget
from house import ALL, LAST_FLAGS, PLUMBING, SPECIMEN, constants, name

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings its forerunner along
    import tomli as tomllib

SAME, END = "plumbing, word for word the same in every script", "command line"
VERBS = ["train, evaluate, smoke", "train, sample, evaluate, smoke", "run, smoke"]
VERBS += ["train, predict, evaluate, smoke", "train, sample, predict, evaluate, smoke"]
ORDER = {"model": 0, "the idea": 0, "data": 1, **dict.fromkeys(VERBS, 2), SAME: 3, END: 4}
PLACES = {"load_data": ["data"], "parse_args": [END], "main": [END]}
PLACES |= dict.fromkeys(["build", "train", "run", "generate", "evaluate", "smoke"], VERBS)
PLACES |= {key: [SAME] for key in PLUMBING}
PACKAGES = {"sklearn": "scikit-learn", "PIL": "pillow", "skimage": "scikit-image"}
HEAVY = {"sklearn", "torchvision", "torchaudio", "matplotlib"}
BANNED = {"eval", "exec", "breakpoint", "Variable", "os.system", "np.random.seed"}
DEFS = (ast.FunctionDef, ast.ClassDef)


class Script:
    def __init__(self, source, file):
        self.source, self.file, self.lines = source, file, source.splitlines()
        self.tree = ast.parse(source)
        self.doc = ast.get_docstring(self.tree, clean=False) or ""
        self.defs = {node.name: node for node in self.tree.body if isinstance(node, DEFS)}
        self.trains = "train" in self.defs
        self.flags = house.flags(source)
        numbered = [*enumerate(self.lines, 1)]
        self.banners = {at: row[6:].rstrip(" -") for at, row in numbered if row[:5] == "# ---"}
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        self.comments = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}
        self.imports = []  # the top-level package, "" for a relative one, and the statement
        for node in self.find(ast.Import):
            self.imports += [(alias.name.split(".")[0], node) for alias in node.names]
        for node in self.find(ast.ImportFrom):
            self.imports.append(("" if node.level else node.module.split(".")[0], node))

    def find(self, *kinds, within=None):
        return [node for node in ast.walk(within or self.tree) if isinstance(node, kinds)]

    def section(self, node):
        """Title of the last banner above a node."""
        return next((t for at, t in reversed(self.banners.items()) if at < node.lineno), "")


def sections(s):
    titles = [*s.banners.values()]
    for at, title in s.banners.items():
        if title not in ORDER or s.lines[at - 1] != f"# --- {title} ".ljust(99, "-"):
            yield f"line {at}: not a banner of the style"
    places = [ORDER.get(title, 9) for title in titles]
    if places != sorted(places) or len({*titles}) < len(titles):
        yield f"order of sections: {titles}"
    needed = {"the idea", SAME, END} | ({"model", "data"} if s.trains else set())
    yield from (f"no section {title}" for title in needed - {*titles})
    full = {s.section(node) for node in s.defs.values()}
    yield from (f"nothing in section {title}" for title in titles if title not in full)


def functions(s):
    needed = ["load_data", "train", "evaluate"] if s.trains else ["run"]
    needed += ["smoke", "parse_args", "main"] + ["generate"] * ("sample" in s.flags)
    yield from (f"no function {key}" for key in needed if key not in s.defs)
    for key, node in s.defs.items():
        if key in PLACES and s.section(node) not in PLACES[key]:
            yield f"{key} in section {s.section(node)}"
    plumbing = [key for key, node in s.defs.items() if s.section(node) == SAME]
    if plumbing != [key for key in PLUMBING if key in plumbing]:
        yield f"unknown plumbing, or out of order: {plumbing}"


def module_level(s):
    doc, *body, guard = s.tree.body
    if not isinstance(doc, ast.Expr):
        yield "does not begin with a docstring"
    if ast.unparse(guard) != "if __name__ == '__main__':\n    sys.exit(main())":
        yield "does not end with the main guard"
    for node in body:
        constant = isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign))
        constant &= bool(re.match(r"\(?[A-Z][A-Z0-9_]*[\[ ,:]", ast.unparse(node)))
        if not constant and not isinstance(node, (*DEFS, ast.Import, ast.ImportFrom)):
            yield f"line {node.lineno}: neither import, CONSTANT, def nor class"


def unused(s):
    read = {node.id for node in s.find(ast.Name) if isinstance(node.ctx, ast.Load)}
    top = [node for node in s.tree.body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    made = {node.id for part in top for node in s.find(ast.Name, within=part)}
    yield from (f"{key} is never used" for key in (made | {*s.defs}) - read)


def docstring(s):
    for word in ("Papers?", "Shapes"):
        if not re.search(rf"^{word}: ", s.doc, re.M):
            yield f"no {word}: in the docstring"
    rows = re.findall(r"^ {4,}(\S.* \((\d+)\)(?: {2,}.*)?)$", s.doc, re.M)
    yield from (f"not ASCII: {row}" for row, _ in rows if not row.isascii())
    defined, cited = [number for _, number in rows], set()
    for at, comment in s.comments.items():
        for group in re.findall(r"eq\. (\(\d+\)(?:, \(\d+\))*)", comment):
            numbers = {*re.findall(r"\d+", group)}
            yield from (f"line {at}: no ({n}) in the docstring" for n in numbers - {*defined})
            if comment.endswith(group) and s.lines[at - 1].strip() != comment:
                cited |= numbers
    if not defined or len({*defined}) < len(defined):
        yield f"numbers of the equations: {defined}"
    yield from (f"no line of code ends in eq. ({n})" for n in {*defined} - cited)


def command_lines(s):
    if not any("--smoke" in row for row in house.commands(s.doc)):
        yield "the docstring does not show --smoke"
    for row in house.commands(s.doc):
        _, file, after = row.partition(f" {Path(s.file).name}")
        if not file:
            yield f"names another file: {row}"
        typed = {word[2:] for word in shlex.split(after) if word.startswith("--")}
        yield from (f"no flag --{key}: {row}" for key in typed - {*s.flags})


def imports(s):
    siblings = {path.stem for path in house.SCRIPTS} | {*house.FAMILIES, ""}
    siblings -= {*sys.stdlib_module_names, *PACKAGES}
    for key, node in s.imports:
        if key in siblings:
            yield f"imports a sibling: {ast.unparse(node)}"
        if key in HEAVY and node in s.tree.body:
            yield f"belongs into the function that uses it: {ast.unparse(node)}"
        if node.names[0].name == "*":
            yield f"takes all names: {ast.unparse(node)}"


def inline_metadata(s):
    block = re.match(r"# /// script\n((?:#.*\n)+?)# ///\n", s.source)
    values = tomllib.loads(re.sub(r"^# ?", "", block[1] if block else "", flags=re.M))
    if values.get("requires-python") != ">=3.10":
        yield "PEP 723: requires-python is not >=3.10"
    listed = set()
    for text in values.get("dependencies", []):
        listed.add(re.match(r"[\w-]*", text)[0])
        if not re.fullmatch(r"[\w-]+>=[\d.]+,<[\d.]+", text):
            yield f"PEP 723: {text} has no lower and upper bound"
    used = {key for key, _ in s.imports} - sys.stdlib_module_names
    used = {PACKAGES.get(key, key.replace("_", "-")) for key in used}
    yield from (f"PEP 723: {key} is not imported" for key in listed - used)
    yield from (f"PEP 723: {key} is missing" for key in used - listed)


def length(s):
    first = max(node.end_lineno for _, node in s.imports if node in s.tree.body)
    last = next((at for at, title in s.banners.items() if title == SAME), len(s.lines))
    count, limit = sum(map(bool, s.lines[first : last - 1])), budget(LINES, s.file)
    if count > limit:
        yield f"{count} lines between imports and plumbing, {limit} are allowed"


def flag_style(s):
    odd = [key for key in s.flags if not re.fullmatch(r"[a-z][a-z0-9_]*", key)]
    yield from (f"--{key} is not a_b" for key in odd)
    last = [key for key in LAST_FLAGS if key in s.flags]
    if "smoke" not in last or s.flags[-len(last) :] != last:
        yield f"the last flags are not {LAST_FLAGS}"
    calls = s.find(ast.Call, within=s.defs["parse_args"])
    for call in [call for call in calls if ast.unparse(call.func) == "add"]:
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        kind, text = given.get("type", ""), ast.unparse(call)
        typed = kind.startswith("at_least(") or (kind and "choices" in given)
        if (kind or re.match(r"[\[-]?[\d.]", given.get("default", ""))) and not typed:
            yield f"type is not at_least: {text}"
        if given.get("action", "'store_true'") != "'store_true'":
            yield f"action is not store_true: {text}"
        if "help" not in given:
            yield f"no help: {text}"


def flags_are_read(s):
    typing = s.find(ast.Attribute, within=s.defs["parse_args"])
    used = {*re.findall(r'(?<=getattr\(args, ")\w+|(?<=CONFIGS\[typed\.)config', s.source)}
    for node in s.find(ast.Attribute):
        if getattr(node.value, "id", "") in ("args", "typed"):
            if node.attr not in s.flags:
                yield f"line {node.lineno}: args.{node.attr} is no flag"
            if isinstance(node.ctx, ast.Load) and node not in typing:
                used.add(node.attr)
    yield from (f"--{key} is never read" for key in s.flags if key not in used)


def tables(s):
    values = constants(s.source)
    configs = [*values.get("CONFIGS", {"": {}}).values()]
    if configs[0]:
        yield "CONFIGS: the first one is not {}"
    for key in {key for table in [values.get("SMOKE", {}), *configs] for key in table}:
        if key not in s.flags:
            yield f"SMOKE or CONFIGS: {key} is no flag"
    for key, bar in values.get("BARS", {"": None}).items():
        if not (isinstance(bar, tuple) and len(bar) == 2 and bar[0] <= bar[1]):
            yield f"BARS: {key} is not (lowest, highest)"


def documented(s):
    for key, node in s.defs.items():
        code = s.lines[node.body[0].lineno - 1 : node.end_lineno]
        short = len(node.body) == 1 and any("eq. (" in row for row in code)
        if s.section(node) == "the idea" and not ast.get_docstring(node) and not short:
            yield f"{key} has no docstring"


def banned(s):
    for call in s.find(ast.Call):
        function, text = ast.unparse(call.func), ast.unparse(call)
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        mode = given.get("mode", ast.unparse(call.args[1]) if call.args[1:] else "")
        reads = function.endswith((".read_text", ".write_text"))
        reads |= function == "open" and "b" not in mode
        if function in BANNED or function.endswith((".cuda", ".Variable")):
            yield text
        if function == "torch.load" and given.get("weights_only") != "True":
            yield f"{text} without weights_only=True"
        if reads and given.get("encoding") != "'utf-8'":
            yield f"{text} without encoding='utf-8'"
    for node in s.find(ast.Attribute):
        if ast.unparse(node) == "sys.path":
            yield "sys.path"
        if node.attr == "data" and s.section(node) != "data":  # where it may be a data set's
            yield f"{ast.unparse(node)}: use detach() or no_grad()"
    made = [node for node in s.find(ast.Assign) if ast.unparse(node.value)[:5] == "tqdm("]
    bars = [ast.unparse(node.targets[0]) for node in made]
    for loop in s.find(ast.For):
        if ast.unparse(loop.iter)[:5] == "tqdm(" or ast.unparse(loop.iter) in bars:
            syncs = [n for n in s.find(ast.Attribute, within=loop) if n.attr == "item"]
            yield from (f"{ast.unparse(node)}() in the inner loop" for node in syncs)
    yield from (f"line {node.lineno}: assert" for node in s.find(ast.Assert))
    yield from (c for c in s.comments.values() if re.search(r"\b(TODO|FIXME|XXX)\b", c))


def constructors(s):
    for node in s.find(ast.FunctionDef):
        if node.name == "__init__" and "args" in [arg.arg for arg in node.args.args]:
            yield f"line {node.lineno}: a constructor takes numbers, never args"


def save_first(s):
    """A checkpoint is written before the evaluation of the same epoch, which may be killed."""
    for loop in s.find(ast.While, within=s.defs["train"]) if s.trains else []:
        calls = [(call.lineno, ast.unparse(call.func)) for call in s.find(ast.Call, within=loop)]
        calls = sorted(pair for pair in calls if pair[1] in ("save", "log", "evaluate"))
        if calls and calls[0][1] != "save":
            yield f"line {calls[0][0]}: {calls[0][1]} before save"


CHECKS = [sections, functions, module_level, unused, docstring, command_lines, imports]
CHECKS += [inline_metadata, length, flag_style, flags_are_read, tables, documented, banned]
CHECKS += [constructors, save_first]


@cache
def read(path):
    return Script(path.read_text(encoding="utf-8"), name(path))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", ALL, ids=name)
def test_script(path, check):
    assert not [*check(read(path))]


def test_bounds_of_a_package_are_the_same_everywhere():
    heads = [path.read_text(encoding="utf-8").split('"""')[0] for path in ALL]
    bounds = {*re.findall(r'"([\w-]+)([^"\w-].*?)"', "".join(heads))}
    assert len(bounds) == len({package for package, _ in bounds}), sorted(bounds)


EQUATION = "    z = W2 h + b2                      (2)  class scores\n"
BREAKS = [
    (sections, "# --- data ------", "# --- the data ------", "not a banner"),
    (sections, "# --- data ------", "# --- data -----", "not a banner"),
    (sections, "# --- model ------", "# --- the idea ------", "order of sections"),
    (sections, "def cross_entropy(z, y):", "if True:", "nothing in section the idea"),
    (functions, "def load_data(", "def load_set(", "no function load_data"),
    (functions, "def cross_entropy(", "def generate(", "generate in section the idea"),
    (functions, "def line(", "def row(", "unknown plumbing"),
    (module_level, '"""Multilayer', 'import os\n\n"""Multilayer', "begin with a docstring"),
    (module_level, "sys.exit(main())\n", "main()\n", "end with the main guard"),
    (module_level, "SMOKE =", "smoke =", "neither"),
    (module_level, "BARS =", "print(1)\nBARS =", "neither"),
    (unused, "return report(", "return dict(", "report is never used"),
    (unused, "SMOKE =", "SPARE = SMOKE =", "SPARE is never used"),
    (docstring, "Paper: ", "By ", "no Papers?:"),
    (docstring, "Shapes: ", "Sizes: ", "no Shapes:"),
    (docstring, "= log(sum_k", "= log(Σ_k", "not ASCII"),
    (docstring, EQUATION, "", "no (2) in the docstring"),
    (docstring, EQUATION, 2 * EQUATION, "numbers of the equations"),
    (docstring, "  eq. (2)", "", "ends in eq. (2)"),
    (docstring, "  eq. (2)", "  eq. (2) here", "ends in eq. (2)"),
    (command_lines, "mlp.py --smoke ", "mlp.py ", "does not show --smoke"),
    (command_lines, "mlp.py --smoke ", "gan.py --smoke ", "another file"),
    (command_lines, "mlp.py --dataset ", "mlp.py --data ", "no flag --data"),
    (imports, "import torch\n", "import torch\nfrom gan import wgan\n", "sibling"),
    (imports, "import torch\n", "import torch\nfrom .wgan import d_loss\n", "sibling"),
    (imports, "import torch\n", "import torch\nimport matplotlib\n", "belongs into"),
    (imports, "import nn\n", "import *\n", "takes all names"),
    (inline_metadata, "# /// script\n", "", "requires-python"),
    (inline_metadata, "torch>=2.7,<2.12", "torch>=2.7", "no lower and upper bound"),
    (inline_metadata, '"tqdm', '"numpy>=1,<3", "tqdm', "numpy is not imported"),
    (inline_metadata, "scikit-learn>", "sklearn>", "scikit-learn is missing"),
    (length, "# --- model", "X = 0\n" * 250 + "# --- model", "lines between"),
    (flag_style, "--batch_size", "--batch-size", "--batch-size is not a_b"),
    (flag_style, '"--resume"', '"--again"', "the last flags"),
    (flag_style, "at_least(0.0), default=2e-3", "float, default=2e-3", "type is not at_least"),
    (flag_style, "type=at_least(0.0), default=2e-3", "default=2e-3", "type is not at_least"),
    (flag_style, ', help="folder of the data sets"', "", "no help"),
    (flag_style, '"--resume", action="store_true"', '"--resume", action="count"', "store_true"),
    (flags_are_read, "lr=args.lr", "lr=1e-3", "--lr is never read"),
    (flags_are_read, "lr=args.lr", "lr=args.rate", "args.rate is no flag"),
    (tables, '"hidden": 32', '"width": 32', "width is no flag"),
    (tables, "(0.90, 1.0)", "0.90", "test_acc is not"),
    (tables, "(0.90, 1.0)", "(1.0, 0.90)", "test_acc is not"),
    (tables, "BARS =", 'CONFIGS = {"small": {"lr": 1}}\nBARS =', "the first one is not {}"),
    (documented, '"""Mean loss', 'z, y\n    """Mean loss', "cross_entropy has no docstring"),
    (banned, "model.train()", "model.cuda()", "model.cuda()"),
    (banned, "model.train()", "eval('model')", "eval("),
    (banned, "model.train()", "assert model", "assert"),
    (banned, "model.train()", "sys.path.append('.')", "sys.path"),
    (banned, "model.train()", "model.train()  # TODO", "TODO"),
    (banned, "loss.detach()", "loss.data", "loss.data: use detach()"),
    (banned, "loss.detach()", "loss.item()", "item() in the inner loop"),
    (banned, ", weights_only=True", "", "weights_only=True"),
    (banned, '"a", encoding="utf-8"', '"a"', "encoding="),
    (banned, 'read_text(encoding="utf-8")', "read_text()", "encoding="),
    (constructors, "def __init__(self, n_in", "def __init__(self, args, n_in", "never args"),
    (save_first, "            save(", "            evaluate(", "evaluate before save"),
]


@pytest.mark.parametrize(
    "check, old, new, complaint", BREAKS, ids=[f"{b[0].__name__}-{b[3]}" for b in BREAKS]
)
def test_check_complains(check, old, new, complaint):
    source = SPECIMEN.read_text(encoding="utf-8")
    assert old in source
    found = [*check(Script(source.replace(old, new, 1), name(SPECIMEN)))]
    assert any(complaint in text for text in found), found


def test_every_check_is_seen_to_complain():
    assert {check for check, *_ in BREAKS} == {*CHECKS}
