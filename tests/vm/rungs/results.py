"""Results: kept as JSON, and shown as tables."""

import json

from .guest import FILE, HIDDEN, SHOWN, WAYS
from .machines import HERE

BEGIN = "<!-- kernels: tests/vm/matrix --write-table writes from here -->"
END = "<!-- kernels: to here -->"

# The prefix of each of the library's lines.
SAID = "libtcpEvent: error: "
CANNOT = "cannot watch TCP connections: "
NO_REMEDY = "; set TCPEVENT_LOG=debug to see what the kernel refused"


def load(path):
    """Results of earlier runs, by the kernel's name."""
    if path is None or not path.exists():
        return {}
    return {found["kernel"]: found for found in json.loads(path.read_text(encoding="utf-8"))["kernels"]}


def save(path, found):
    path.write_text(json.dumps({"kernels": list(found.values())}, indent=1) + "\n", encoding="utf-8")


def in_order(found, kernels):
    """The same, in the order of the kernels; those that never ran are untested."""
    return [found.get(kernel, {"kernel": kernel, "rungs": [], "untested": "not run"}) for kernel in kernels]


def counts(entry):
    """Tests that passed, and those that did not."""
    groups = entry["groups"].values()
    return sum(group["passed"] for group in groups), [test for group in groups for test in group["failed"]]


def reason(entry):
    """Why a rung was not tested, or None."""
    why = entry.get("refused", entry.get("untested"))
    if why is None:
        return None
    return why.removeprefix(SAID).removeprefix(CANNOT).removeprefix(f"{entry['rung']}: ").removesuffix(NO_REMEDY)


def is_unknown(entry):
    """Whether the library has no such rung, which says nothing about the kernel."""
    return "TCPEVENT_PROBE=" in entry.get("refused", "")


def name_of(found):
    release = found.get("release")
    if found["kernel"] == HERE:
        return f"{release or '?'}, this machine's"
    return release or found["kernel"]


def btf_of(found, btf):
    return "none" if btf == HIDDEN and not found.get("btf", True) else btf


# ------------------------------------------------------------------------------------------------- for a terminal


def lines_of(found):
    """Rows: kernel, BTF, rung, passed, failed, and remarks."""
    name = name_of(found)
    for entry in found["rungs"]:
        row = [name, btf_of(found, entry["btf"]), entry["rung"]]
        if "groups" in entry:
            passed, failed = counts(entry)
            yield [*row, str(passed), str(len(failed)), "; ".join(words_of_groups(entry["groups"]))]
        elif is_unknown(entry) or "untested" in entry:
            yield [*row, "", "", f"untested: {reason(entry)}"]
        else:
            yield [*row, "", "", f"refused: {reason(entry)}"]
    if "untested" in found:
        yield [name, "", "", "", "", f"untested: {found['untested']}"]


def words_of_groups(groups):
    """The groups that failed, with their tests, then the others."""
    for name, group in groups.items():
        if group["failed"] or "why" in group:
            why = f", {group['why']}" if "why" in group else ""
            yield (
                f"{name} FAILED {len(group['failed'])} of {group['passed'] + len(group['failed'])} ("
                f"{', '.join(test.split('::', 1)[1] for test in group['failed'])}{why})"
            )
    passed = [
        f"{name} {group['passed']}" for name, group in groups.items() if not group["failed"] and "why" not in group
    ]
    if passed:
        yield "passed " + ", ".join(passed)


def table(all_found):
    rows = [["kernel", "BTF", "rung", "passed", "failed", "groups of tests, or why not"]]
    rows += [row for found in all_found for row in lines_of(found)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join("  ".join([*(f"{cell:{width}}" for cell, width in zip(row, widths)), row[5]]) for row in rows)


# ---------------------------------------------------------------------------------------------------- for docs/kernels.md

HEADINGS = {SHOWN: "shown", HIDDEN: "hidden", FILE: "`TCPEVENT_BTF`", "none": "none"}


class Notes:
    """Numbered, each text once."""

    def __init__(self):
        self.texts = []

    def mark(self, text):
        if text not in self.texts:
            self.texts.append(text)
        return f"[{self.texts.index(text) + 1}]"

    def lines(self):
        return [f"{number}. {text}" for number, text in enumerate(self.texts, 1)]


def cell(entry, notes):
    if entry is None:
        return "untested"
    if is_unknown(entry):
        return "untested " + notes.mark("The library has no such rung.")
    for word in ("refused", "untested"):
        if word in entry:
            return f"{word} {notes.mark(reason(entry))}"
    passed, failed = counts(entry)
    if not passed and not failed:
        return "untested"
    if not failed:
        return f"{passed} passed"
    tests = ", ".join(f"`{test}`" for test in failed)
    deaths = {group["why"] for group in entry["groups"].values() if "why" in group}
    return f"{passed} passed, {len(failed)} failed {notes.mark('; '.join([f'Failed: {tests}', *sorted(deaths)]))}"


def markdown(all_found, rungs):
    """A row for each kernel and source of its type information; each reason once, below."""
    notes = Notes()
    rows = [["kernel", "BTF", *rungs], ["---"] * (2 + len(rungs))]
    for found in all_found:
        entries = {(entry["btf"], entry["rung"]): entry for entry in found["rungs"]}
        name = name_of(found)
        for btf in WAYS:
            if any(known == btf for known, _ in entries):
                cells = [cell(entries.get((btf, rung)), notes) for rung in rungs]
                rows.append([name, HEADINGS[btf_of(found, btf)], *cells])
                name = ""
        if "untested" in found:
            rows.append([name, "", *([f"untested {notes.mark(found['untested'])}"] * len(rungs))])
    return "\n".join(["| " + " | ".join(row) + " |" for row in rows] + ["", *notes.lines()])


def write_table(path, text):
    document = path.read_text(encoding="utf-8")
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{path} has no line {BEGIN} with a line {END} behind it")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
