"""Licenses: SPDX expressions, what they forbid, what a derived model may carry.

A filter, not legal advice: a small table of what kinds of license exist, enough to stop what a license plainly
forbids and to show what somebody should read. Where several readings are held in good faith (does a data set's
license reach the weights?) it shows and does not judge.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from hermitcrab.errors import HermitcrabError, UsageError

USES = ("commercial", "non-commercial", "research")
LONGEST = 500  # characters of an expression

# The first pattern that fits decides.
KINDS: tuple[tuple[str, str], ...] = (
    ("no derivatives, non-commercial", "CC-BY-NC-ND-*"),
    ("share-alike, non-commercial", "CC-BY-NC-SA-*"),
    ("non-commercial", "CC-BY-NC-* PolyForm-Noncommercial-* LicenseRef-non-commercial LicenseRef-DeepFloyd-IF"),
    ("no derivatives", "CC-BY-ND-*"),
    ("share-alike", "CC-BY-SA-* ODbL-* CDLA-Sharing-*"),
    (
        "permissive",
        "Apache-* MIT MIT-0 MIT-CMU BSD-[1234]-Clause BSD-3-Clause-Clear 0BSD ISC Zlib BSL-1.0 CC0-1.0 CC-BY-[1234].* "
        "CC-PDDC CDLA-Permissive-* ODC-By-1.0 PDDL-1.0 Unlicense WTFPL PostgreSQL NCSA AFL-* ECL-2.0 Artistic-2.0 "
        "MS-PL OFL-1.1 etalab-2.0 OGL-UK-* C-UDA-1.0 OpenMDW-* Python-2.0 PSF-2.0 Unicode-* X11 LPPL-1.3c BlueOak-*",
    ),
    ("weak copyleft", "MPL-* LGPL-* EPL-* CDDL-* MS-RL"),
    ("copyleft", "GPL-* AGPL-* EUPL-* OSL-* GFDL-*"),
    (
        "research-only",
        "LicenseRef-research-only LicenseRef-Apple-AMLR LicenseRef-Intel-Research LicenseRef-H-Research "
        "LicenseRef-FAIR-Noncommercial-Research",
    ),
    ("with terms of its own", "LicenseRef-Llama-* LicenseRef-Gemma LicenseRef-*RAIL* LicenseRef-Grok-2-Community"),
    ("unknown", "LicenseRef-* DocumentRef-*"),
)
FORBIDS = {
    "no derivatives, non-commercial": {"commercial"},
    "share-alike, non-commercial": {"commercial"},
    "non-commercial": {"commercial"},
    "research-only": {"commercial", "non-commercial"},
}
TO_READ = {
    "with terms of its own": "has terms of its own (acceptable use, naming, notices that travel along); read them",
    "unknown": "terms not known to hermitcrab, read them",
    "unclassified": "is an SPDX license that hermitcrab's table does not sort; read it",
    "no derivatives": "does not let changed forms be shared",
    "no derivatives, non-commercial": "does not let changed forms be shared",
}
# Ids of the Hugging Face hub that are no SPDX ids (its documentation, "Licenses").
HUB = {
    "llama2": "LicenseRef-Llama-2", "llama3": "LicenseRef-Llama-3", "llama3.1": "LicenseRef-Llama-3.1",
    "llama3.2": "LicenseRef-Llama-3.2", "llama3.3": "LicenseRef-Llama-3.3", "llama4": "LicenseRef-Llama-4",
    "gemma": "LicenseRef-Gemma", "grok2-community": "LicenseRef-Grok-2-Community", "openrail": "LicenseRef-OpenRAIL",
    "openrail++": "LicenseRef-OpenRAIL-plus-plus", "bigscience-openrail-m": "LicenseRef-BigScience-OpenRAIL-M",
    "creativeml-openrail-m": "LicenseRef-CreativeML-OpenRAIL-M", "bigcode-openrail-m": "LicenseRef-BigCode-OpenRAIL-M",
    "bigscience-bloom-rail-1.0": "LicenseRef-BigScience-BLOOM-RAIL-1.0", "apple-amlr": "LicenseRef-Apple-AMLR",
    "intel-research": "LicenseRef-Intel-Research", "h-research": "LicenseRef-H-Research",
    "fair-noncommercial-research-license": "LicenseRef-FAIR-Noncommercial-Research",
    "deepfloyd-if-license": "LicenseRef-DeepFloyd-IF", "odc-by": "ODC-By-1.0", "pddl": "PDDL-1.0", "odbl": "ODbL-1.0",
    "gpl-2.0": "GPL-2.0-only", "gpl-3.0": "GPL-3.0-only", "agpl-3.0": "AGPL-3.0-only", "lgpl-2.1": "LGPL-2.1-only",
    "lgpl-3.0": "LGPL-3.0-only", "openmdw-1.0": "OpenMDW-1.0",
}  # fmt: skip
# SPDX ids that the hub takes in lower case.
HUB_SPDX = (
    "apache-2.0 mit afl-3.0 artistic-2.0 bsl-1.0 bsd-2-clause bsd-3-clause bsd-3-clause-clear cc0-1.0 cc-by-2.0 "
    "cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 "
    "cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 isc "
    "lppl-1.3c ms-pl mpl-2.0 osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib"
)


@dataclass(frozen=True)
class Finding:
    level: str
    """`stop`: the license forbids the declared use. `warn`: somebody has to read it. `note`: good to know."""
    subject: str
    """`base` or `data`."""
    license: str
    message: str

    @property
    def stops(self) -> bool:
        return self.level == "stop"


@lru_cache(maxsize=1)
def _spdx() -> Any:
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()


@lru_cache(maxsize=256)
def _parse(expression: str) -> Any:
    """The parsed expression, every id in it known.

    Raises:
        UsageError: for what is no SPDX expression, with the nearest valid id.
    """
    text = HUB.get(expression.strip().lower(), expression.strip())
    try:
        parsed = _spdx().parse(text) if 0 < len(text) <= LONGEST else None
    except Exception:  # noqa: BLE001 - the parser raises IndexError and others on odd input; none of it is an expression
        parsed = None
    if parsed is None:
        raise UsageError(
            f"the license `{expression[:80]}` is no SPDX expression{_suggest(text)}; expected an id such as "
            "Apache-2.0, ids joined by AND or OR, or LicenseRef-… for terms that have no id"
        )
    for key in _spdx().license_keys(parsed):
        if not _known(key):
            raise UsageError(
                f"the license id `{key}` is not known{_suggest(key)}; SPDX ids are listed at "
                "https://spdx.org/licenses, and LicenseRef-… stands for terms that have none"
            )
    return parsed


def _known(key: str) -> bool:
    if key in _spdx().known_symbols or key in HUB.values():
        return True
    return re.fullmatch(r"(DocumentRef-[A-Za-z0-9.-]+:)?LicenseRef-[A-Za-z0-9.-]+", key) is not None


def _suggest(text: str) -> str:
    names = {n.lower(): n for n in [*_spdx().known_symbols, *HUB.values()] if not n.startswith("LicenseRef-scancode")}
    close = get_close_matches(text.lower(), names, n=1, cutoff=0.7)
    return f"; did you mean `{names[close[0]]}`?" if close else ""


def canonical(expression: str) -> str:
    """The expression in SPDX spelling (`apache-2.0` → `Apache-2.0`, `llama3.2` → `LicenseRef-Llama-3.2`).

    Raises:
        UsageError: with the nearest valid id.
    """
    return _parse(expression).render()


def kind(license_id: str) -> str:
    """`permissive`, `weak copyleft`, `copyleft`, `share-alike`, `non-commercial`, `research-only`, … of one id."""
    for name, patterns in KINDS:
        if any(fnmatchcase(license_id.lower(), pattern.lower()) for pattern in patterns.split()):
            return name
    return "unclassified"


def _leaf(node: Any) -> str:
    """The id of a leaf; of `X WITH exception` the id of X."""
    return getattr(node, "license_symbol", node).key


def _holds(node: Any, test: Callable[[str], bool], any_of: str) -> bool:
    """`test` over the leaves; `any_of` names the operator (AND or OR) of which one branch is enough."""
    if not node.args or hasattr(node, "license_symbol"):
        return test(_leaf(node))
    results = [_holds(arg, test, any_of) for arg in node.args]
    return any(results) if node.operator.strip() == any_of else all(results)


def _leaves(node: Any) -> list[str]:
    if not node.args or hasattr(node, "license_symbol"):
        return [_leaf(node)]
    return [leaf for arg in node.args for leaf in _leaves(arg)]


def allows(expression: str, use: str) -> bool:
    """Whether one who may choose among OR and must heed all of AND may use it so."""
    return _holds(_parse(expression), lambda leaf: use not in FORBIDS.get(kind(leaf), ()), any_of="OR")


def check(use: str, base_license: str | None, data_licenses: Sequence[str]) -> list[Finding]:
    """What the licenses say about the declared use. `base_license` is None where the model starts from scratch.

    Raises:
        UsageError: for what is no SPDX expression, with the nearest valid id.
    """
    found: dict[Finding, None] = {}
    given = [("base", base_license)] if base_license is not None else []
    for subject, expression in [*given, *(("data", text) for text in data_licenses)]:
        name = canonical(expression)
        if not allows(name, use):
            found[Finding("stop", subject, name, _forbidden(use, subject, name))] = None
        for leaf in _leaves(_parse(name)):
            group = kind(leaf)
            if group in TO_READ:
                found[Finding("warn", subject, name, f"the {subject}'s license {leaf}: {TO_READ[group]}")] = None
            elif group in ("copyleft", "share-alike", "weak copyleft", "share-alike, non-commercial"):
                derived = "a model derived from it keeps this license"
                what = derived if subject == "base" else "read what it asks of works made from it"
                found[Finding("note", subject, name, f"the {subject}'s license {leaf} is {group}: {what}")] = None
    return list(found)


def _forbidden(use: str, subject: str, name: str) -> str:
    possible = [f"`use: {other}`" for other in USES if allows(name, other)]
    instead = "another base" if subject == "base" else "other data"
    return (
        f"the {subject}'s license {name} forbids {use} use, and the recipe's `use` is {use}; "
        f"where that is true of this model, declare {' or '.join(possible)}; else take {instead}"
    )


def refuse(findings: Sequence[Finding]) -> None:
    """Raise what stops.

    Raises:
        HermitcrabError: with a line for each license that forbids the declared use.
    """
    stops = [finding.message for finding in findings if finding.stops]
    if stops:
        raise HermitcrabError("\n".join(stops))


def result_license(base: str | None, data: Sequence[str], declared: str | None = None) -> str:
    """The license that the derived model carries.

    Declared, it must keep what the base's license asks for. Not declared, it follows: the base's, joined by AND with
    those of the data that are not permissive, so that nothing asked for is lost.

    Raises:
        UsageError: where the declared license drops the base's, or nothing says what it should be.
    """
    if declared is not None:
        chosen = _parse(declared)
        if base is not None:
            _keeps(_parse(base), chosen)
        return chosen.render()
    kept = [canonical(base)] if base is not None else []
    for name in sorted({canonical(text) for text in data}):
        if not all(kind(leaf) == "permissive" for leaf in _leaves(_parse(name))) and name not in kept:
            kept.append(name)
    if not kept:
        raise UsageError("a model from scratch on permissive data has no license by itself; set package.license")
    return kept[0] if len(kept) == 1 else " AND ".join(f"({n})" if " OR " in n else n for n in kept)


def _keeps(base: Any, declared: Any) -> None:
    def asks(leaf: str) -> bool:
        return kind(leaf) == "permissive" or _holds(declared, lambda given: _satisfies(leaf, given), any_of="AND")

    if not _holds(base, asks, any_of="OR"):
        name = base.render()
        raise UsageError(
            f"package.license: {declared.render()} does not keep the license of the base, {name}; "
            f"expected {name}, or {name} AND another, or nothing (then it follows from base and data)"
        )


def _satisfies(asked: str, given: str) -> bool:
    """Whether `given` keeps what `asked` wants: the same id, a later version where allowed, or as strict a use."""
    if asked == given:
        return True
    if kind(asked) == "non-commercial":
        return "commercial" in FORBIDS.get(kind(given), ())
    or_later = asked.endswith("-or-later") or kind(asked).startswith("share-alike")
    first, second = _version(asked), _version(given)
    return bool(or_later and first and second and first[0] == second[0] and first[1] <= second[1])


def _version(license_id: str) -> tuple[str, float] | None:
    found = re.fullmatch(r"(.+?)-(\d+\.\d+)(?:-only|-or-later)?", license_id)
    return (found[1], float(found[2])) if found else None


def hub_license(expression: str) -> tuple[str, str | None, str | None]:
    """`(license, license_name, license_link)` of a Hugging Face card; the last two only where the first is `other`."""
    name = canonical(expression)
    for hub, spdx in HUB.items():
        if spdx == name:
            return hub, None, None
    if name.lower() in HUB_SPDX.split():
        return name.lower(), None, None
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
    link = f"https://spdx.org/licenses/{name}.html" if name in _spdx().known_symbols and "Ref-" not in name else None
    return "other", slug, link


# What a license asks of whoever passes on what was made: by kind, and by id where terms of their own say more.
OBLIGATIONS: tuple[tuple[str, str], ...] = (
    ("attribution", "CC-BY-* ODC-By-* ODbL-* Apache-* MIT* BSD-* ISC Zlib MPL-* OGL-UK-* etalab-* AFL-* ECL-* PSF-* PostgreSQL NCSA"),
    ("notice of the license travels along",
     "Apache-* MIT* BSD-* ISC MPL-* GPL-* LGPL-* AGPL-* EPL-* ODbL-* CDLA-* LicenseRef-Llama-* LicenseRef-Gemma *RAIL*"),
    ("changes are marked", "Apache-* CC-BY-[234]* CC-BY-SA-[234]* CC-BY-NC-[234]* CC-BY-NC-SA-[234]* GPL-* AGPL-* LicenseRef-Gemma *RAIL*"),
    ("share-alike", "CC-BY-SA-* CC-BY-NC-SA-* ODbL-* CDLA-Sharing-* GPL-* AGPL-* LGPL-* MPL-* EUPL-* OSL-* GFDL-*"),
    ("source is offered", "GPL-* AGPL-* LGPL-* MPL-* EPL-* EUPL-* OSL-*"),
    ("non-commercial", "CC-BY-NC-* PolyForm-Noncommercial-* LicenseRef-non-commercial LicenseRef-DeepFloyd-IF"),
    ("no changed forms are shared", "CC-BY-ND-* CC-BY-NC-ND-*"),
    ("research only", "LicenseRef-research-only LicenseRef-Apple-AMLR LicenseRef-Intel-Research LicenseRef-H-Research LicenseRef-FAIR-*"),
    ("acceptable use policy is passed on", "LicenseRef-Llama-* LicenseRef-Gemma *RAIL* LicenseRef-Grok-2-Community"),
    ("the name of what is made begins with Llama", "LicenseRef-Llama-3* LicenseRef-Llama-4"),
    ("`Built with Llama` is shown", "LicenseRef-Llama-3* LicenseRef-Llama-4"),
    ("above 700 million monthly users a license of its own is needed", "LicenseRef-Llama-*"),
)  # fmt: skip


def obligations(expressions: Sequence[str]) -> dict[str, list[str]]:
    """What the licenses ask for together: obligation → the ids that ask for it. Of OR all branches count, as nobody has chosen yet.

    Raises:
        UsageError: for what is no SPDX expression, with the nearest valid id.
    """
    leaves = sorted({leaf for expression in expressions for leaf in _leaves(_parse(expression))})
    found = {}
    for name, patterns in OBLIGATIONS:
        asking = [leaf for leaf in leaves if any(fnmatchcase(leaf.lower(), p.lower()) for p in patterns.split())]
        if asking:
            found[name] = asking
    if unknown := [leaf for leaf in leaves if kind(leaf) in ("unknown", "unclassified")]:
        found["terms that hermitcrab does not know: read them"] = unknown
    return found


def admit(expressions: Sequence[tuple[str, str]], allow: Sequence[str], deny: Sequence[str]) -> list[str]:
    """What a recipe's own policy stops, one line each. A pattern is an id, or with `*`: `CC-BY-*`.

    Denied is denied, whatever else; with `allow`, what is not in it is stopped too. One who may choose among OR takes what the
    policy lets in, and must heed all of AND.

    Args:
        expressions: source and its SPDX expression.
    """
    stops = []
    for source, expression in expressions:
        parsed = _parse(expression)

        def fits(leaf: str) -> bool:
            denied = any(fnmatchcase(leaf.lower(), p.lower()) for p in deny)
            return not denied and (not allow or any(fnmatchcase(leaf.lower(), p.lower()) for p in allow))

        if not _holds(parsed, fits, any_of="OR"):
            wrong = [leaf for leaf in _leaves(parsed) if not fits(leaf)]
            why = (
                "denied by"
                if any(fnmatchcase(w.lower(), p.lower()) for w in wrong for p in deny)
                else "not among those allowed by"
            )
            stops.append(f"{source}: its license {canonical(expression)} is {why} data.licenses ({', '.join(wrong)})")
    return stops
