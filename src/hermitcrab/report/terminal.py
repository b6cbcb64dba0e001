"""What `crab` prints for people: plain lines that can be pasted into a message.

Every function returns text. Strings that come from files hold no control characters (`words.plain`) and are never read
as markup.
"""

from __future__ import annotations

import io
import os
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.report import summary, words
from hermitcrab.report.charts import sparkline
from hermitcrab.report.classes import classes

if TYPE_CHECKING:
    from hermitcrab.lineage.verify import Verification

WIDEST = 110


def render(facts: Mapping[str, Any]) -> str:
    """A run in short: worth, compressed forms, classes, built on, added, ledger, cost, and how to verify."""
    head = " · ".join(str(x) for x in (facts["name"], facts["task"], facts["finished"], facts["license"]) if x)
    parts = [head]
    if value := facts["value"]:
        parts.append(_wrap(value["sentence"]))
        parts.append(_models(value))
        parts += _classes(classes(value["classes"], "derived"))
    if facts["trials"]:
        parts.append(render_trials(facts["trials"]))
    if facts["compressed"]:
        parts.append(_compressed(facts["compressed"]))
    if base := facts["base"]:
        added = facts["added"]
        parts.append(_pairs([
            ("built on", summary.built_on(base, added)),
            ("digest", base["digest"]),
            *([("added", summary.added(added, facts["data"])), ("loss", _loss(facts["curve"], added))] if added else []),
            *_ledger(facts["ledger"]),
            ("cost", _cost(facts["cost"])),
        ]))  # fmt: skip
    if profile := facts["profile"]:
        where, names = near(Path(profile["folder"])), ", ".join(profile["files"])
        parts.append(f"profile {where}: {names}\n        tensorboard --logdir {where}, or chrome://tracing")
    folder = near(Path(facts["folder"]))
    key = " --key PUBLIC-KEY.pem" if facts["signed"] else ""
    parts.append(f"report  {folder / 'report.html'}\nverify  crab verify {folder / 'package'}{key}")
    return "\n\n".join(parts)


def _models(value: Mapping[str, Any]) -> str:
    """Every model: the deciding metric with its interval, derived minus this model, then the other metrics."""
    name = value["metric"] or next(iter(value["metrics"]), None)
    differences = {p["b"]: p for p in value["pairs"] if p["metric"] == name}
    others = [m for m in value["metrics"] if m != name][:3]
    rows = []
    for model in value["models"]:
        figures = model["figures"]
        if name not in figures:
            continue
        pair = differences.get(model["model"])
        rows.append([
            model["model"],
            words.number(figures[name]["value"]),
            words.interval(figures[name]["low"], figures[name]["high"]),
            f"{words.signed(pair['difference'])}  ({words.signed_interval(pair['low'], pair['high'])})" if pair else "",
            *(words.number(figures[m]["value"]) if m in figures else words.DASH for m in others),
        ])  # fmt: skip
    return _table(
        ["model", str(name), f"{value['confidence']:.0%} interval", "derived minus this", *others],
        rows,
        right=(1, 4, 5, 6),
    )


def render_trials(trials: Sequence[Mapping[str, Any]]) -> str:
    """Every setting that was tried, with its figure on validation rows."""
    paths, first = list(trials[0]["settings"]), trials[0]
    rows = [
        [*(str(trial["settings"][path]) for path in paths), words.number(trial["value"], 4),
         words.narrow_interval(trial["low"], trial["high"]) if trial["low"] is not None else "", words.fate(trial)]
        for trial in trials
    ]  # fmt: skip
    head = [*paths, f"{first['name']}, {first['n']:,} validation rows", "interval", ""]
    return _table(head, rows, right=(*range(len(paths)), len(paths)))


def _compressed(entries: Sequence[Mapping[str, Any]]) -> str:
    """Every smaller form: size, its distance from the model that it was made from, and its speed where that was measured."""
    rows = []
    for entry in entries:
        parity = entry["parity"]
        limits = words.signed_interval(parity["low"], parity["high"])
        rows.append([
            f"{entry['format']} {entry['type']}", words.size(entry["size"]), f"{words.signed(parity['difference'])}  ({limits})",
            "yes" if parity["within_margin"] else "not shown", words.turned(parity), words.number(parity.get("mean_kl")),
            words.percent(parity.get("top1_agreement")), words.pace(entry.get("speed")),
        ])  # fmt: skip
    name = entries[0]["parity"]["metric"]
    margin = entries[0]["parity"]["margin"]
    return _table(["compressed", "size", f"{name}, minus uncompressed", f"within {margin:g}", "changed", "mean KL", "same token", "speed"],
                  rows, right=(1, 5, 6, 7))  # fmt: skip


def render_compression(told: Mapping[str, Any]) -> str:
    """Every form that was measured, what spoke against it, and which one is suggested."""
    entries, base = told["candidates"], told["uncompressed"]
    head = (
        f"{told['model']}: {words.size(base['size'])}, {words.pace(base)}; {told['metric']} on {told['on']['rows']:,} "
        f"rows of {told['on']['uri']}"
    )
    lines = [head, _compressed(entries)]
    lines += [f"rejected  {e['format']} {e['type']}: {'; '.join(e['rejected'])}" for e in entries if e["rejected"]]
    lines.append(f"suggested  {told['suggested'] or 'none: nothing is within the budget'}")
    if told["written"]:
        lines.append(
            f"wrote  {', '.join(told['written'])} in {told['folder']}; next: crab verify {told['folder']}/{told['written'][0]}"
        )
    return words.plain("\n".join(lines))


def _classes(found: Mapping[str, Any] | None) -> list[str]:
    """The confusion matrix, or where it has too many labels its largest entries; and the figures by class."""
    if not found:
        return []
    from rich.cells import cell_len, set_cell_size

    if found["matrix"]:
        extra = ["no label"] if found["unparsed"] else []
        names = [*found["labels"], *extra]
        room = (_width() - max(map(cell_len, found["labels"])) - 2) // len(
            names
        ) - 2  # of a column; its label is cut to it
        head = ["right ↓", *(set_cell_size(name, min(cell_len(name), max(2, room))) for name in names)]
        cells = [[*row["cells"], *([row["unparsed"]] if extra else [])] for row in found["matrix"]]
        rows = [
            [row["label"], *(str(c["count"]) for c in each)] for row, each in zip(found["matrix"], cells, strict=True)
        ]
        told = _table(head, rows, right=range(1, len(head)))
    else:
        told = _table(
            ["right label", "answer", "rows"], [[a, b, f"{n:,}"] for a, b, n in found["confusions"]], right=(2,)
        )
    table = [[label, support, *(" ".join(score) for score in scores)] for label, support, scores in found["table"]]
    return [told, _table(["class", "rows", "precision", "recall", "f1"], table, right=(1,))]


def _cost(found: Mapping[str, Any]) -> str:
    return f"{summary.work(found)}; energy {summary.energy(found)}"


def _loss(curve: Mapping[str, Any] | None, added: Mapping[str, Any]) -> str:
    drawn = sparkline([loss for _, loss in curve["train"]]) if curve else ""
    return f"{words.number(added['loss_first'])} {drawn} {words.number(added['loss_last'])}"


def _ledger(ledger: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The ledgers in which something was dropped or changed."""
    told = []
    for entry in ledger:
        if entry["dropped"] or entry["changed"]:
            notes = [f"dropped {words.reasons(entry['dropped'])}"] if entry["dropped"] else []
            notes += [told_of] if (told_of := words.kept_but(entry)) != words.DASH else []
            told.append(
                (
                    f"{entry['stage']}",
                    f"{entry['name']}: {entry['kept']:,} of {entry['taken']:,} kept; {'; '.join(notes)}",
                )
            )
    return told


def render_plan(rows: Sequence[Mapping[str, Any]]) -> str:
    """What would run or be reused, with what it needs."""
    table = []
    for row in [part for stage in rows for part in (stage, *_trials_of(stage))]:
        needs = row["needs"]
        table.append([
            row["stage"], row["action"],
            f"about {words.seconds(needs['seconds'])}" if needs else "",
            words.size(needs["memory"]) if needs else "",
            words.size(needs["disk"]) if needs else "",
            row.get("digest", row.get("why", "")),
        ])  # fmt: skip
    return _table(["stage", "would", "time", "memory", "disk", ""], table, right=(2, 3, 4))


def _trials_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trials of a search as rows below its own."""
    return [
        {**trial, "stage": "  " + ", ".join(f"{path} {value}" for path, value in trial["settings"].items())}
        for trial in row.get("trials", ())
    ]


def render_package(folder: Path, package: Mapping[str, Any]) -> str:
    """What a package says of itself; nothing of it was checked."""
    package = words.plain(package)
    base = package["base"]
    told = [
        ("package", package["name"]),
        ("task", package["task"]),
        ("architecture", package["architecture"]),
        ("license", package["license"]),
        ("built on", f"{base['name']} ({base['license']})"),
        ("from", base["uri"]),
        ("digest", base["digest"]),
        ("searched", summary.searched(package.get("trials", ()))),
        ("compressed", ", ".join(f"{c['file']} ({words.size(c['size'])})" for c in package.get("compressed", ()))),
        ("data", ", ".join(f"{d['uri']} ({d['split']}, {d['license']})" for d in package["data"])),
    ]
    return (
        _pairs([(k, str(v)) for k, v in told if v])
        + f"\n\nThis is what the package says. To check it: crab verify {folder}"
    )


def render_verification(found: Verification) -> str:
    """The failures where there are any, else what was checked; the summary last."""
    shown = found.failures or found.checks
    lines = [f"{'ok  ' if check.ok else 'FAIL'}  {check.message}" for check in shown]
    return "\n".join([*words.plain(lines), "", words.plain(found.summary)])


def render_comparison(told: Mapping[str, Any]) -> str:
    """Two models on the same rows: the verdict, their figures, what was asked of which model."""
    from hermitcrab.report.gather import value_of

    told = words.plain(told)
    return "\n\n".join(
        [_wrap(told["sentence"]), _models(value_of(told, told["metrics"])), _pairs(about_comparison(told))]
    )


def about_comparison(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was compared on what, as rows of two cells."""
    on = told["on"]
    rows = []
    for side in ("derived", "base"):
        model = told["models"][side]
        rows += [
            (side, f"{model['name']} ({model['reference']})"),
            ("digest", model["digest"]),
            ("checked", model["verified"] or "no package: nothing vouches for it"),
            ("template", model["template_digest"] or "none"),
        ]
    return [
        *rows,
        ("rows", f"{on['rows']:,} of {on['uri']}, by {told['asked']}, in {told['precision']}"),
        *((which, _row_ids(told[which])) for which in ("gained", "lost")),
    ]


def _row_ids(ids: Sequence[str]) -> str:
    """How many, and the first few."""
    shown = f": {' '.join(ids[:6])}{'…' if len(ids) > 6 else ''}" if ids else ""
    return f"{len(ids):,} rows{shown}"


def render_answers(answers: Sequence[Mapping[str, Any]]) -> str:
    """One answer a line, with its score where it has one; a single generated answer as it stands."""
    if len(answers) == 1 and answers[0]["score"] is None:
        return words.plain(answers[0]["prediction"])
    lines = []
    for answer in answers:
        text = words.plain(answer["prediction"].replace("\\", "\\\\").replace("\n", "\\n"))
        lines.append(text if answer["score"] is None else f"{text}\t{answer['score']:.3f}")
    return "\n".join(lines)


def render_export(told: Mapping[str, Any]) -> str:
    lines = [f"wrote {words.plain(told['folder'])}/{words.plain(name)}" for name in told["files"]]
    return "\n".join([*lines, *(f"note: {words.plain(note)}" for note in told["notes"])])


def render_push(told: Mapping[str, Any]) -> str:
    """What went out, file by file, and where it now stands."""
    would, where = "would send" if told["dry_run"] else "sent", f"{told['to']}:{told['repository']}"
    lines = [f"{would}  {words.plain(path)}" for path in told["sent"]]
    lines += [f"had   {words.plain(path)} (from an earlier try)" for path in told["skipped"]]
    lines += [f"{'would remove' if told['dry_run'] else 'removed'}  {words.plain(path)}" for path in told["removed"]]
    lines.append(
        f"{where}: {len(told['sent']):,} files {would} ({told['bytes_sent'] / 1e6:,.1f} MB), {len(told['skipped']):,} had arrived "
        f"before ({told['bytes_skipped'] / 1e6:,.1f} MB), {len(told['unchanged']):,} unchanged"
    )
    if told["commit"]:
        audience = "private" if told["private"] else "public"
        lines.append(f"{where}@{told['commit']}: {audience}; every digest was read back and is as it was sent")
    return "\n".join(lines)


def render_doctor(found: Mapping[str, Any]) -> str:
    rows = [
        ("system", f"{found['platform']}, Python {found['python']}"),
        (
            "processor",
            f"{found['processor']}, {found['threads']} threads, bfloat16 {'yes' if found['bfloat16'] else 'no'}",
        ),
        ("devices", ", ".join(found["devices"])),
        ("memory", f"{found['memory_gib']['available']} GiB available of {found['memory_gib']['total']}"),
        ("disk", f"{found['disk_free_gib']} GiB free at the store"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in found["packages"].items())),
    ]
    for name, extra in found["extras"].items():
        missing = [p for p, version in extra["packages"].items() if not version]
        rows.append(
            (f"[{name}]", f"missing {', '.join(missing)}: pip install 'hermitcrab[{name}]'" if missing else "installed")
        )
    problems = [_wrap(f"- {problem}", hang=2) for problem in found["problems"]] or ["nothing is wrong"]
    return _pairs(rows) + "\n\n" + "\n".join(problems)


def near(folder: Path) -> Path:
    """A path as one would type it here."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _width() -> int:
    return min(WIDEST, max(40, shutil.get_terminal_size((WIDEST, 24)).columns))


def _wrap(text: str, hang: int = 0) -> str:
    return textwrap.fill(text, _width(), subsequent_indent=" " * hang, break_on_hyphens=False, break_long_words=False)


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    """A name and a text a line, the texts under each other."""
    indent = max(len(name) for name, _ in rows) + 2
    return "\n".join(_wrap(name.ljust(indent) + " ".join(text.split()), hang=indent) for name, text in rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns under each other, also where characters are two cells wide; never wider than the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, name in enumerate(head):
        table.add_column(Text(name), justify="right" if i in right else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out = io.StringIO()
    Console(file=out, width=_width(), color_system=None, force_terminal=False, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().split(os.linesep))
