"""Do the claims of a package link up, and does everything else in it say the same?

Evidence first: artifact digests are recomputed from the subjects of each statement, files are those that were hashed,
the license flow is worked out afresh. Then what is merely said (hermitcrab.json, the card's front matter, the bill of
materials) is held against that. Where an unchanged file says another base, other data or another license than the
claims, that is a contradiction, not damage.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from hermitcrab.compress import FOLDERS, FORMS, TENSORS, load_form
from hermitcrab.digest import digest_json, short
from hermitcrab.errors import HermitcrabError
from hermitcrab.lineage import bom, bundle, card
from hermitcrab.lineage.licenses import USES, check, refuse, result_license
from hermitcrab.lineage.sign import CLAIMS, SIGNER
from hermitcrab.lineage.statements import EVALUATED, dependencies_of, files_of, stage_of

if TYPE_CHECKING:
    from hermitcrab.lineage.verify import Folder, Verification

RECORD, CARD, BILL = "hermitcrab.json", "README.md", "ml-bom.cdx.json"
MODEL = ("model/", "adapter/")
SIGNED = {CLAIMS, SIGNER, bundle.NAME}
WORDS = {"license": "license", "base_digest": "digest of the base", "base_name": "base", "base_uri": "uri of the base"}
Claims = dict[str, dict[str, Any]]
INPUTS: dict[str, tuple[str, ...]] = {
    "collect": (),
    "prepare": ("collect",),
    "tune": ("collect", "prepare"),
    "train": ("collect", "prepare"),
    "evaluate": ("collect", "prepare", "train"),
    "compress": ("collect", "prepare", "train", "evaluate"),
    "package": ("collect", "prepare", "tune", "train", "evaluate", "compress"),
}


def check_chain(result: Verification, here: Folder, statements: list[dict[str, Any]] | None) -> None:
    """Every check that needs more than one file. `statements` is None where the claims cannot be read."""
    if CLAIMS in here.changed or any(check.check in ("canonical", "signature", "claims") for check in result.failures):
        here.doubted = True
    claims: Claims = {}
    if statements is not None:
        with result.checking("chain", CLAIMS, "the claims link up, from raw bytes to package"):
            claims = _links(statements)
    record: dict[str, Any] = {}
    with result.checking("record", RECORD, "what the package says it is"):
        found = here.json(RECORD)
        if not isinstance(found, dict) or found["schema"] != 1:
            raise HermitcrabError("not a record of schema 1")
        record = found
    made_of: dict[str, Any] = {}
    if claims:
        with result.checking("subjects", CLAIMS, "the files are those that the package stage left"):
            _subjects(result, here, claims)
        with result.checking("weights", CLAIMS, "the weights are those that were trained and evaluated"):
            _weights(result, here, claims, record)
        with result.checking(
            "licenses", CLAIMS, "the licenses allow the declared use, and the result's follows from them"
        ):
            made_of = _made_of(claims)
    if record:
        with result.checking("parity", RECORD, "the merged model is what was trained, within the recorded tolerance"):
            _parity(record, claims)
        with result.checking(
            "search", RECORD, "the model is the one that the recorded search chose on validation rows"
        ):
            _searched(record, claims)
        with result.checking("parity", RECORD, "the compressed models are those that were compared with the model"):
            _compressed(record, claims)
        _agreement(result, here, record, made_of)
        if claims and not here.doubted and not here.changed:
            with result.checking(
                "figures", RECORD, "record, card and bill say what the signed claims say, to the letter"
            ):
                _rendered(result, here, record, claims)


def _links(statements: list[dict[str, Any]]) -> Claims:
    """Each input of each claim is what an earlier claim left; the last one is the package, and leans on all others."""
    claims: Claims = {}
    digests: dict[str, str] = {}
    inputs: dict[str, str] = {}
    for number, claim in enumerate(statements, 1):
        try:
            stage = stage_of(claim)
        except (KeyError, TypeError, ValueError) as error:
            raise HermitcrabError(f"line {number}: not a statement of a hermitcrab stage") from error
        if stage in claims:
            raise HermitcrabError(f"line {number}: a second claim about the stage {stage}")
        named = dependencies_of(claim, "artifact")
        inputs = {entry["name"]: "sha256:" + entry["digest"]["sha256"] for entry in named}
        if sorted(entry["name"] for entry in named) != sorted(INPUTS.get(stage, ())):
            raise HermitcrabError(
                f"line {number}: {stage} names the inputs {', '.join(sorted(inputs)) or 'none'}, "
                f"expected {', '.join(INPUTS.get(stage, ())) or 'none'}, each once"
            )
        paths = [file["path"] for file in files_of(claim)]
        if len(set(paths)) < len(paths):
            raise HermitcrabError(f"line {number}: {stage} names a file twice")
        _byproducts(claim, stage, number)
        for name, digest in inputs.items():
            if digests.get(name) != digest:
                made = f"left {short(digests[name])}" if name in digests else "has no claim before it"
                raise HermitcrabError(
                    f"line {number}: {stage} names {name} {short(digest)} as its input, but {name} {made}"
                )
        claims[stage], digests[stage] = claim, digest_json(files_of(claim))
    missing = set(INPUTS) - set(claims)
    if missing:
        raise HermitcrabError(f"no claim about the stage {', '.join(sorted(missing))}")
    if list(claims)[-1] != "package":
        raise HermitcrabError("the last claim is not that of a package made from all the others")
    return claims


def _byproducts(claim: dict[str, Any], stage: str, number: int) -> None:
    """What a claim tells of its files has the digests of those files, and of all else the digest of what is told."""
    files = {file["path"]: file["sha256"] for file in files_of(claim)}
    for entry in claim["predicate"]["runDetails"]["byproducts"]:
        name, digest = entry["name"], "sha256:" + entry["digest"]["sha256"]
        if name in files:
            if digest != files[name]:
                raise HermitcrabError(f"line {number}: what {stage} tells of {name} is of another file")
        elif digest != digest_json(entry["annotations"]["value"]):
            raise HermitcrabError(f"line {number}: what {stage} tells of {name} does not have its digest")


def _subjects(result: Verification, here: Folder, claims: Claims) -> None:
    claimed = {file["path"]: file["sha256"].removeprefix("sha256:") for file in files_of(claims["package"])}
    found = {name: digest for name, digest in here.files.items() if name not in SIGNED}
    for name in sorted(claimed.keys() | found.keys()):
        if claimed.get(name) != found.get(name):
            what = "not here" if name not in found else "not in it" if name not in claimed else "other bytes here"
            here.changed.add(name)
            result.fail("subjects", name, f"{name}: the package statement and the folder differ: {what}")


def _weights(result: Verification, here: Folder, claims: Claims, record: dict[str, Any]) -> None:
    """What was trained and evaluated is, file by file, what is packaged; no other weights lie beside it."""
    package = {file["path"]: file["sha256"] for file in files_of(claims["package"])}
    made: dict[str, str] = {}
    for file in files_of(claims["train"]):
        if file["path"].startswith(("model/", "adapter/")):
            made[file["path"].removeprefix("model/")] = file["sha256"]
    for file in files_of(claims["evaluate"]):
        if file["path"] in EVALUATED:
            made[file["path"]] = file["sha256"]
    for file in files_of(claims["compress"]):
        if file["path"].startswith(FOLDERS) or file["path"] == TENSORS:
            made[file["path"]] = file["sha256"]
    for name in sorted(made):
        if package.get(name) != made[name]:
            was = "compressed" if name.startswith(FOLDERS) else "trained or evaluated"
            said = f"{name}: not the file that was {was}"
            result.fail("weights", name, said, name in package and here.sound(name))
    for name in sorted(package.keys() - made.keys() - {RECORD, CARD, BILL}):
        result.fail("weights", name, f"{name}: no stage but the package made it", here.sound(name))
    weights = record.get("weights", {}).get("files", [])
    shipped = {name for name in package if name.endswith(".safetensors") and "/" not in name}
    if any(made.get(file["path"]) != file["sha256"] for file in weights) or not shipped <= {f["path"] for f in weights}:
        result.fail("weights", RECORD, f"{RECORD}: names other weights than those that were trained")
    if record.get("weights", {}).get("digest") != digest_json(weights):
        result.fail("weights", RECORD, f"{RECORD}: its digest of the weights is not that of the files it lists")


def _parity(record: dict[str, Any], claims: Claims) -> None:
    parity = record["parity"]
    if not parity["tolerance"] or parity["ok"] is not True:
        raise HermitcrabError("the recorded parity has no tolerance, or says itself that it failed")
    for name, limit in parity["tolerance"].items():
        value, least = parity[name], "agreement" in name
        if not (value >= limit if least else value <= limit):
            raise HermitcrabError(f"the recorded {name} is {value}, expected at {'least' if least else 'most'} {limit}")
    if claims:
        told = claims["train"]["predicate"]["runDetails"]["byproducts"]
        if parity not in [entry["annotations"]["value"] for entry in told if entry["name"] == "parity.json"]:
            raise HermitcrabError("the recorded parity is not the one that the train stage found")


def _searched(record: dict[str, Any], claims: Claims) -> None:
    """Every trial is told, one of them is chosen, none has a better figure, and what it trained is what was evaluated."""
    if not claims:
        return
    told = claims["tune"]["predicate"]["runDetails"]["byproducts"]
    (trials,) = [entry["annotations"]["value"] for entry in told if entry["name"] == "trials.json"]
    if record["trials"] != trials:
        raise HermitcrabError("the recorded trials are not those that the tune stage made")
    asked = claims["tune"]["predicate"]["buildDefinition"]["externalParameters"]["tune"]
    if not trials and asked is None:
        return
    (chosen,) = [trial for trial in trials if trial["chosen"]]
    if chosen["model"] != digest_json(files_of(claims["train"])):
        raise HermitcrabError("the model that was packaged is not the one that the search chose")
    used = claims["train"]["predicate"]["buildDefinition"]["externalParameters"]
    for path, value in chosen["settings"].items():
        found: Any = used
        for step in path.split("."):
            found = found[step]
        if found != value:
            raise HermitcrabError(f"the search chose {path} {value}, and the training had {card.plain(found, 40)}")
    sign = {"lowest": 1, "highest": -1}[chosen["best"]]
    better = [t for t in trials if t["value"] is not None and sign * t["value"] < sign * chosen["value"]]
    if better or any(trial["split"] != "validation" for trial in trials):
        raise HermitcrabError("a trial that was not chosen has a better figure, or was not measured on validation rows")


def _compressed(record: dict[str, Any], claims: Claims) -> None:
    """Every compressed file has figures, and they are those that the compress stage found."""
    if not claims:
        return
    from hermitcrab.evaluate.metrics import within  # scipy, only where something was measured

    told = claims["compress"]["predicate"]["runDetails"]["byproducts"]
    (found,) = [entry["annotations"]["value"] for entry in told if entry["name"] == "compression.json"]
    if record["compressed"] != found:
        raise HermitcrabError("the recorded compressed models are not those that the compress stage compared")
    files = {file["path"]: file["sha256"] for file in files_of(claims["compress"]) if file["path"].startswith(FOLDERS)}
    if files != {file["path"]: file["sha256"] for entry in found for file in entry["files"]}:
        raise HermitcrabError("the compress stage left other files than those that it gives figures of")
    asked = claims["compress"]["predicate"]["buildDefinition"]["externalParameters"]["compress"]
    for entry in found:
        parity = entry["parity"]
        if parity["within_margin"] != within(parity["metric"], parity["low"], parity["high"], parity["margin"]):
            raise HermitcrabError(f"{entry['file']}: its interval does not say what the record says of its margin")
        if asked.get("target") and not (parity["within_margin"] and parity["margin"] == asked["target"]["max_loss"]):
            raise HermitcrabError(f"{entry['file']}: not shown to lose as little as compress.target asks for")


def _rendered(result: Verification, here: Folder, record: dict[str, Any], claims: Claims) -> None:
    """Card and bill are written again from what is signed; by another version than theirs only their facts are compared."""
    told = {
        (stage, entry["name"]): entry["annotations"]["value"]
        for stage, claim in claims.items()
        for entry in claim["predicate"]["runDetails"]["byproducts"]
    }
    asked = claims["package"]["predicate"]["buildDefinition"]["externalParameters"]
    training = told["train", "training.json"]
    for name, said, true in (
        ("choices", record.get("choices", []), asked["choices"]),
        ("fitted", record.get("fitted", {}), training.get("fitted", {})),
        *((name, record.get(name), training.get(name)) for name in ("template_digest", "preprocessing_digest")),
    ):
        if said != true:
            result.fail("figures", RECORD, f"{RECORD}: names other {name} than the signed claims", here.sound(RECORD))
    for name in (name for name in EVALUATED if ("evaluate", name) in told):
        if here.json(name) != told["evaluate", name]:
            result.fail("figures", name, f"{name}: not what the evaluate claim tells", here.sound(name))
    if record["made_by"]["hermitcrab"] != version("hermitcrab"):
        return
    metrics = here.json("metrics.json")
    loaded = sorted(
        (
            {**f, "path": f["path"].removeprefix("model/")}
            for f in files_of(claims["train"])
            if f["path"].startswith(MODEL)
        ),
        key=lambda f: f["path"],
    )
    blamed = {failure.file for failure in result.failures}
    if RECORD in blamed:
        return
    if BILL not in blamed and here.json(BILL) != bom.bill_of_materials(record, metrics, loaded):
        result.fail("figures", BILL, f"{BILL}: not the bill that follows from record and claims", here.sound(BILL))
    ledgers = [entry for stage in INPUTS["package"] for entry in told[stage, "ledger.json"]]
    card_now = card.model_card(record, metrics, here.json("comparison.json"), ledgers, training)
    if CARD not in blamed and here.read(CARD).decode() != card_now:
        result.fail("figures", CARD, f"{CARD}: not the card that follows from record and claims", here.sound(CARD))


def _made_of(claims: Claims) -> dict[str, Any]:
    """Base, data and license of the model, from the claims alone, in the shape of hermitcrab.json.

    Raises:
        HermitcrabError: where a license forbids the declared use, or the base's files do not add up to its digest.
    """
    (base,) = dependencies_of(claims["collect"], "base")
    told, digest = base["annotations"], "sha256:" + base["digest"]["sha256"]
    files = [
        {"path": entry["name"], "sha256": "sha256:" + entry["digest"]["sha256"], "size": entry["annotations"]["size"]}
        for entry in dependencies_of(claims["collect"], "base file")
    ]
    if told["kind"] != "scratch" and digest_json(files) != digest:
        raise HermitcrabError(f"the base's files do not add up to its digest {short(digest)}")
    data = [
        {
            "uri": entry["uri"],
            "split": entry["annotations"]["split"],
            "sha256": "sha256:" + entry["digest"]["sha256"],
            "license": entry["annotations"]["license"],
        }
        for entry in dependencies_of(claims["collect"], "data")
    ]
    asked = claims["package"]["predicate"]["buildDefinition"]["externalParameters"]
    if asked["use"] not in USES:
        raise HermitcrabError(f"the declared use {card.plain(asked['use'], 40)!r} is none of {', '.join(USES)}")
    if told["license"] is None:
        raise HermitcrabError("the base has no license in the claims")
    collected = claims["collect"]["predicate"]["buildDefinition"]["externalParameters"]
    if collected["base"]["path"] != base["uri"]:
        raise HermitcrabError(
            f"the recipe asked for the base {card.plain(collected['base']['path'])}, recorded is {base['uri']}"
        )
    licenses = [source["license"] for source in data]
    refuse(check(asked["use"], told["license"], licenses))
    return {
        "name": asked["name"],
        "task": asked["task"],
        "use": asked["use"],
        "license": result_license(told["license"], licenses, asked["license"]),
        "base": {
            "kind": told["kind"], "name": base["name"], "uri": base["uri"], "revision": told["revision"],
            "digest": digest, "files": files, "license": told["license"],
        },
        "data": data,
    }  # fmt: skip


def _agreement(result: Verification, here: Folder, record: dict[str, Any], made_of: dict[str, Any]) -> None:
    """Record against claims, then card and bill against the claims (against the record where there are none)."""
    truth, source = (made_of, "the signed claims say") if made_of else (record, f"{RECORD} says")

    def contradict(file: str, what: str, said: Any, true: Any) -> None:
        if isinstance(said, list) and all(isinstance(entry, str) for entry in said[:9]):
            said = ", ".join(said[:9])
        shown = said if isinstance(said, str | int | float | None) else f"another {type(said).__name__}"
        result.fail(
            "agreement", file,
            f"{file}: names the {what} {card.plain(shown, 120)}, but {source} {card.plain(true, 200)}",
            contradiction=here.sound(file),
        )  # fmt: skip

    if made_of:
        with result.checking("agreement", RECORD, "record and claims name the same base, data and license"):
            for name in ("name", "task", "use", "license"):
                if record[name] != truth[name]:
                    contradict(RECORD, name, record[name], truth[name])
            for name, value in truth["base"].items():
                if record["base"][name] != value:
                    contradict(RECORD, f"base {name}", record["base"][name], value)
            if [{field: entry[field] for field in truth["data"][0]} for entry in record["data"]] != truth["data"]:
                contradict(RECORD, "data", record["data"], ", ".join(entry["uri"] for entry in truth["data"]))
    with result.checking("agreement", CARD, "the card names the same base, data and license"):
        front = card.front_matter(here.read(CARD).decode())
        wanted = card.identity(truth)
        for name in ("base_model", "base_model_relation", "license", "license_name", "datasets"):
            said = front.get(name)
            if said != wanted.get(name) and not (name == "base_model" and said == [wanted.get(name)]):
                what = {"base_model": "base", "datasets": "data"}.get(name, name)
                true = ", ".join(wanted[name]) if name == "datasets" else wanted.get(name)
                contradict(CARD, what, said, true)
    with result.checking("agreement", BILL, "the bill of materials names the same base, data and license"):
        said_bill, wanted_bill = bom.identity_of(here.json(BILL)), bom.identity(truth)
        for name in wanted_bill:
            if said_bill[name] != wanted_bill[name]:
                contradict(BILL, name, str(said_bill[name]), wanted_bill[name])
    forms: dict[str, str] = {}
    with result.checking("agreement", RECORD, "every smaller form lies in the folder of its format"):
        forms = {entry["file"]: entry["format"] for entry in record["compressed"]}
        for file, form in forms.items():
            if form not in FORMS or not file.startswith(f"{form}/") or file not in here.files:
                raise HermitcrabError(f"names {card.plain(file, 120)} as {card.plain(form, 40)}, which is not here")
    for file, form in sorted(forms.items()):
        with result.checking("agreement", file, f"{file} names the same base and license"):
            said = load_form(form).said(here.path / file)
            base = truth["base"]
            true = {"license": truth["license"], "base_digest": base["digest"]}
            if base["kind"] != "scratch":
                true |= {"base_name": base["name"], "base_uri": base["uri"]}
            for name in true:
                if said.get(name) != true[name]:
                    contradict(file, WORDS[name], said.get(name), true[name])
