"""README tells the truth: a row a script, links and commands that work, numbers with a record.

    python tests/test_readme.py --fix     write the cells that are taken from scripts and records

In the table of diffs the lines are counted. In that of scripts the columns idea, proven against and
the paper's number are written by hand; paper, lines, smoke bar and result are generated. A new
script gets a row with "?" to fill.
"""

import ast
import json
import re
import shlex
import sys

from house import ROOT, SCRIPTS, code_sha256, constants, flags, load, name
from test_siblings import PAIRS, changed_lines

README, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"
COLUMNS = ["script", "paper", "idea", "lines", "proven against", "smoke bar"]
COLUMNS += ["on real data", "the paper's"]
DIFF = r"(\| `diff (\S+) (\S+)` \| )\d+ \|"
BY_HAND = ["idea", "proven against", "the paper's"]
START, END = "<!-- scripts: made by python tests/test_readme.py --fix -->", "<!-- end -->"


def paper(doc):
    """Authors, year and arXiv link of the first paper in a script's docstring."""
    text = re.search(r"^Papers?: (.*?)(?:;|\n\n)", doc, re.DOTALL | re.MULTILINE)[1]
    text = " ".join(text.split())
    authors = text.split(', "')[0].strip()
    if authors.count(",") > 1:
        authors = f"{authors.split(',')[0]} et al."
    year = re.search(r"\b(?:19|20)\d\d\b", text.split('"')[2])[0]
    arxiv = re.search(r"\d{4}\.\d{5}", text)
    link = f", [{arxiv[0]}](https://arxiv.org/abs/{arxiv[0]})" if arxiv else ""
    return f"{authors} {year}{link}"


def lines(source):
    """Lines between the imports and the plumbing, blank ones aside: those that budgets count."""
    last = [n for n in ast.parse(source).body if isinstance(n, (ast.Import, ast.ImportFrom))][-1]
    rows = source.splitlines()[last.end_lineno :]
    end = next(at for at, row in enumerate(rows) if row.startswith("# --- plumbing"))
    return sum(bool(row.strip()) for row in rows[:end])


def bar(source):
    """BARS in words: the sides of each interval that can be missed."""
    words = []
    for key, (low, high) in constants(source)["BARS"].items():
        if low == 0 or low <= -1e9:
            words.append(f"{key} <= {high:g}")
        elif high in (1, 10) or high >= 1e9:
            words.append(f"{key} >= {low:g}")
        else:
            words.append(f"{key} {low:g} to {high:g}")
    return ", ".join(words)


def result(script):
    """What was measured on real data, from the records of a script."""
    cells = []
    stem = ROOT / "results" / script
    for path in sorted(stem.parent.glob(f"{stem.stem}-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        stale = "" if record["sha256"] == code_sha256(ROOT / script) else " (stale)"
        link = f"[{path.stem.removeprefix(stem.stem + '-')}]({path.relative_to(ROOT)})"
        cells.append(f"{link}{stale}: {summary(record, script)}")
    none = "open" if "data_root" in flags((ROOT / script).read_text(encoding="utf-8")) else "-"
    return "; ".join(cells) or none


def summary(record, script):
    """The sentence that a script or its family has agreed on, or else the first metrics."""
    metrics, std = record["metrics"], record.get("std", {})
    values = metrics | record["settings"] | {"std": std, "n": record["seed"]}
    for key in (script, script.split("/")[0]):
        if key in SENTENCES and {*re.findall(r"{(\w+)", SENTENCES[key])} <= {*values}:
            return SENTENCES[key].format(**values)
    return ", ".join(f"{key} {value:.3g}" for key, value in [*metrics.items()][:3])


SENTENCES = {
    "diffusion/ddim.py": "Frechet {frechet_eta0_5:.1f}, {frechet_eta0_10:.1f}, "
    "{frechet_eta0_20:.1f}, {frechet_eta0_50:.1f}, {frechet_eta0_100:.1f} in 5, 10, 20, 50, 100 "
    "steps; with noise {frechet_eta1_10:.1f}, {frechet_eta1_50:.1f} in 10, 50 (floor "
    "{frechet_floor:.1f})",
    "diffusion": "Frechet {frechet:.2f} (floor {frechet_floor:.2f}), judge sure of "
    "{confident_share:.0%}, {bits_per_dim:.2f} bits/dim at T = {timesteps}",
    "basics/kan.py": "test RMSE {test_rmse_G10:.1g} at G = 10, {test_rmse_G20:.1g} at G = 20",
    "basics/rnn_lm.py": "{bits_per_char:.3f} bits per character, perplexity {perplexity:.2f}",
    "gan/cgan.py": "asked class {asked_class_acc:.1%}, judge sure of {confident_share:.0%}, "
    "Frechet {frechet:.2f} (floor {frechet_floor:.2f})",
    "gan": "judge sure of {confident_share:.0%}, {effective_classes:.1f} of 10 classes, Frechet "
    "{frechet:.2f} (floor {frechet_floor:.2f})",
    "separation": "SI-SNRi {si_snri:.1f} dB after {n_steps} steps",
    "vision": "{test_acc:.2%} after {n_epochs} epochs",
    "nlp/ngram_lm.py": "{order}-gram perplexity {perplexity_modified_kneser_ney:.1f} by modified "
    "Kneser-Ney, {perplexity_kneser_ney:.1f} by Kneser-Ney, {perplexity_jelinek_mercer:.1f} by "
    "Jelinek-Mercer, {perplexity_katz:.1f} by Katz, {perplexity_laplace:.0f} by Laplace",
    "nlp/bilstm_crf.py": "F1 {f1:.1%} of names",
    "classic_ml/crf.py": "F1 {f1:.1%} of spans",
    "ssm/h3_conformer.py": "{ter:.2%} of the digits wrong",
    "gnn": "{test_acc:.1%} +- {std[test_acc]:.1%} over seeds {n[0]} to {n[9]}",
}


def count(*pair):
    return changed_lines(*((ROOT / file).read_text(encoding="utf-8") for file in pair))


def table(text):
    """{script: {column: cell}} of the table between the marks."""
    rows = [row for row in text.split(START)[1].split(END)[0].splitlines() if "](" in row]
    cells = [[cell.strip() for cell in row.strip(" |").split(" | ")] for row in rows]
    return {
        re.search(r"\((.*?)\)", row[0])[1]: dict(zip(COLUMNS, row, strict=True)) for row in cells
    }


def fixed(text):
    """README with every generated cell made anew."""
    known, rows = table(text), []
    for path in SCRIPTS:
        script, source = name(path), path.read_text(encoding="utf-8")
        row = {key: known.get(script, {}).get(key, "?") for key in BY_HAND}
        row |= {"script": f"[{script}]({script})", "paper": paper(load(script).__doc__)}
        row |= {"lines": str(lines(source)), "smoke bar": bar(source)}
        row |= {"on real data": result(script)}
        rows.append("| " + " | ".join(row[key] for key in COLUMNS) + " |")
    head = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    before, rest = text.split(START)
    rest = re.sub(DIFF, lambda row: f"{row[1]}{count(row[2], row[3])} |", rest.split(END)[1])
    return "\n".join([f"{before}{START}", "", *head, *rows, "", END + rest])


def commands(text):
    """Every command in a fenced block that runs one of our scripts: (script, argv)."""
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        for row in block.splitlines():
            for part in row.split("#")[0].split("&&"):
                words = shlex.split(part)
                runs = words[:1] in (["python"], ["torchrun"], ["uv"])
                for at, word in enumerate(words if runs else []):
                    if (ROOT / word) in SCRIPTS:
                        yield word, words[at + 1 :]


def test_table_is_what_the_scripts_say():
    text = README.read_text(encoding="utf-8")
    assert text == fixed(text), "run python tests/test_readme.py --fix"


def test_a_row_that_lies_is_seen():
    text = README.read_text(encoding="utf-8")
    count = table(text)["diffusion/ddpm.py"]["lines"]
    assert fixed(text.replace(f"| {count} |", "| 1 |")) != text.replace(f"| {count} |", "| 1 |")


def test_every_pair_of_siblings_has_its_diff():
    text = README.read_text(encoding="utf-8")
    assert sorted(row[1:] for row in re.findall(DIFF, text)) == sorted(PAIRS)


def test_rows_are_filled_in():
    for script, row in table(README.read_text(encoding="utf-8")).items():
        assert "?" not in row.values(), script
        assert len(row["idea"].split()) <= 8, script


def test_links_exist():
    for page in (README, CHINESE, ROOT / "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (ROOT / link).exists(), link
        for source in re.findall(r'src="([^"]+)"', page.read_text(encoding="utf-8")):
            assert (ROOT / source).exists(), source


def test_commands_parse():
    for page in (README, CHINESE):
        found = [*commands(page.read_text(encoding="utf-8"))]
        assert len({script for script, _ in found}) >= 3
        for script, argv in found:
            load(script).parse_args(argv)


def test_chinese_page_has_every_script_once():
    rows = re.findall(r"^\| \[(\S+)\]\((\S+)\) \| \S", CHINESE.read_text(encoding="utf-8"), re.M)
    assert sorted(rows) == [(name(path), name(path)) for path in SCRIPTS]


def test_records_hold_what_was_promised():
    wanted = {"argv", "seed", "metrics", "wall_seconds", "cpu_seconds", "peak_memory_mb"}
    wanted |= {"device", "versions", "date", "sha256", "script", "settings"}
    for path in (ROOT / "results").glob("*/*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert wanted <= record.keys(), path
        assert (ROOT / record["script"]).exists(), path
        load(record["script"]).parse_args(record["argv"])


def test_pictures_are_small():
    for path in (ROOT / "assets").glob("*"):
        assert path.stat().st_size <= 100_000, path


if __name__ == "__main__":
    if sys.argv[1:] == ["--fix"]:
        README.write_text(fixed(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(__doc__)
