import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.lineage.licenses import HUB, canonical, check, hub_license, kind, refuse, result_license


@pytest.mark.parametrize(
    ("written", "spdx"),
    [
        ("apache-2.0", "Apache-2.0"),
        ("GPL-3.0", "GPL-3.0-only"),
        ("llama3.2", "LicenseRef-Llama-3.2"),
        ("mit and (cc-by-4.0 or cc0-1.0)", "MIT AND (CC-BY-4.0 OR CC0-1.0)"),
        ("LicenseRef-house-terms", "LicenseRef-house-terms"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "GPL-2.0-only WITH Classpath-exception-2.0"),
    ],
)
def test_expressions_are_brought_to_their_spdx_spelling(written, spdx):
    assert canonical(written) == spdx
    assert canonical(spdx) == spdx


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("Apach-2.0", "did you mean `Apache-2.0`"),
        ("CC-BY-NC", "did you mean `CC-BY-NC-4.0`"),
        ("MIT AND", "is no SPDX expression"),
        ("", "is no SPDX expression"),
        ("(((", "is no SPDX expression"),
        ("own terms", "LicenseRef-"),
        ("MIT OR " * 200 + "MIT", "is no SPDX expression"),
        ("other", "is not known"),
    ],
)
def test_what_is_no_spdx_id_is_refused_with_the_nearest_one(written, message):
    with pytest.raises(UsageError, match=message):
        canonical(written)


@given(st.text(max_size=40))
def test_any_text_is_an_expression_or_refused(text):
    with contextlib.suppress(UsageError):
        assert canonical(canonical(text)) == canonical(text)


@pytest.mark.parametrize(
    ("license_id", "expected"),
    [
        ("Apache-2.0", "permissive"),
        ("MPL-2.0", "weak copyleft"),
        ("AGPL-3.0-only", "copyleft"),
        ("CC-BY-SA-4.0", "share-alike"),
        ("CC-BY-NC-4.0", "non-commercial"),
        ("CC-BY-NC-SA-4.0", "share-alike, non-commercial"),
        ("CC-BY-ND-4.0", "no derivatives"),
        ("LicenseRef-research-only", "research-only"),
        ("LicenseRef-Gemma", "with terms of its own"),
        ("LicenseRef-house-terms", "unknown"),
        ("Watcom-1.0", "unclassified"),
    ],
)
def test_kinds(license_id, expected):
    assert kind(license_id) == expected


@pytest.mark.parametrize(
    ("use", "license_id", "stops"),
    [
        ("commercial", "Apache-2.0", False),
        ("commercial", "CC-BY-NC-4.0", True),
        ("non-commercial", "CC-BY-NC-4.0", False),
        ("commercial", "LicenseRef-research-only", True),
        ("non-commercial", "LicenseRef-research-only", True),
        ("research", "LicenseRef-research-only", False),
        ("commercial", "MIT OR CC-BY-NC-4.0", False),
        ("commercial", "MIT AND CC-BY-NC-4.0", True),
        ("commercial", "LicenseRef-Llama-3.1", False),
    ],
)
def test_a_license_that_forbids_the_use_stops_whether_of_base_or_data(use, license_id, stops):
    for findings in (check(use, license_id, ["MIT"]), check(use, None, ["MIT", license_id])):
        assert any(finding.stops for finding in findings) == stops


def test_the_sentence_says_how_to_go_on():
    (stop,) = [f for f in check("commercial", "Apache-2.0", ["LicenseRef-research-only"]) if f.stops]
    assert stop.subject == "data"
    assert "`use: research`" in stop.message
    assert "`use: non-commercial`" not in stop.message
    with pytest.raises(HermitcrabError, match="LicenseRef-research-only forbids commercial use"):
        refuse([stop])


def test_unknown_terms_are_shown_and_do_not_stop():
    (found,) = check("commercial", "LicenseRef-house-terms", [])
    assert not found.stops
    assert "terms not known to hermitcrab, read them" in found.message


def test_the_same_finding_is_said_once():
    assert len(check("commercial", "MIT", ["CC-BY-SA-4.0", "CC-BY-SA-4.0", "cc-by-sa-4.0"])) == 1


@pytest.mark.parametrize(
    ("base", "data", "result"),
    [
        ("apache-2.0", ["MIT", "CC0-1.0"], "Apache-2.0"),
        ("Apache-2.0", ["LicenseRef-research-only", "MIT"], "Apache-2.0 AND LicenseRef-research-only"),
        ("MIT", ["GPL-3.0-only OR CC-BY-SA-4.0"], "MIT AND (GPL-3.0-only OR CC-BY-SA-4.0)"),
        ("CC-BY-NC-4.0", ["CC-BY-NC-4.0"], "CC-BY-NC-4.0"),
        (None, ["CC-BY-SA-4.0"], "CC-BY-SA-4.0"),
    ],
)
def test_the_license_of_the_result_follows_from_base_and_data(base, data, result):
    assert result_license(base, data) == result
    assert canonical(result) == result


def test_a_model_from_scratch_on_permissive_data_needs_a_declared_license():
    with pytest.raises(UsageError, match=r"package\.license"):
        result_license(None, ["MIT"])
    assert result_license(None, ["MIT"], "apache-2.0") == "Apache-2.0"


@pytest.mark.parametrize(
    ("base", "declared"),
    [
        ("Apache-2.0", "LicenseRef-house-terms"),
        ("GPL-2.0-or-later", "GPL-3.0-only"),
        ("CC-BY-SA-3.0", "CC-BY-SA-4.0"),
        ("CC-BY-NC-4.0", "CC-BY-NC-SA-4.0"),
        ("LicenseRef-Llama-3.2", "LicenseRef-Llama-3.2 AND MIT"),
        ("MIT OR GPL-2.0-only", "MIT"),
    ],
)
def test_a_declared_license_that_keeps_that_of_the_base_is_taken(base, declared):
    assert result_license(base, [], declared) == declared


@pytest.mark.parametrize(
    ("base", "declared"),
    [
        ("LicenseRef-Llama-3.2", "Apache-2.0"),
        ("GPL-2.0-only", "MIT"),
        ("GPL-2.0-only", "GPL-2.0-only OR MIT"),
        ("CC-BY-SA-4.0", "CC-BY-SA-3.0"),
        ("CC-BY-NC-4.0", "Apache-2.0"),
        ("LicenseRef-research-only", "CC-BY-NC-4.0"),
        ("LicenseRef-house-terms", "MIT"),
    ],
)
def test_a_declared_license_that_drops_that_of_the_base_stops(base, declared):
    with pytest.raises(UsageError, match="does not keep the license of the base"):
        result_license(base, [], declared)


def test_hub_licenses():
    assert hub_license("Apache-2.0") == ("apache-2.0", None, None)
    assert hub_license("LicenseRef-Gemma") == ("gemma", None, None)
    assert hub_license("Watcom-1.0") == ("other", "watcom-1.0", "https://spdx.org/licenses/Watcom-1.0.html")
    assert hub_license("MIT AND LicenseRef-research-only") == ("other", "mit-and-licenseref-research-only", None)
    for hub in HUB:
        assert hub_license(hub)[0] == hub


def test_obligations_of_all_licenses_are_told_together():
    from hermitcrab.lineage.licenses import obligations

    found = obligations(["CC-BY-SA-4.0", "apache-2.0", "llama3.1", "MIT OR GPL-2.0-only"])
    assert found["share-alike"] == ["CC-BY-SA-4.0", "GPL-2.0-only"]
    assert found["attribution"] == ["Apache-2.0", "CC-BY-SA-4.0", "MIT"]
    assert found["`Built with Llama` is shown"] == ["LicenseRef-Llama-3.1"]
    assert "non-commercial" not in found
    assert obligations(["CC-BY-NC-4.0"])["non-commercial"] == ["CC-BY-NC-4.0"]
    assert obligations(["LicenseRef-ours"]) == {"terms that hermitcrab does not know: read them": ["LicenseRef-ours"]}
    assert obligations(["CC0-1.0"]) == {}


def test_a_policy_of_the_recipe_lets_in_and_stops():
    from hermitcrab.lineage.licenses import admit

    given = [
        ("a.csv", "MIT"),
        ("b.csv", "CC-BY-SA-4.0"),
        ("c.csv", "GPL-3.0-only OR MIT"),
        ("d.csv", "MIT AND GPL-3.0-only"),
    ]
    assert admit(given, [], []) == []
    assert admit(given, ["MIT", "CC-BY-*"], []) == [
        "d.csv: its license MIT AND GPL-3.0-only is not among those allowed by data.licenses (GPL-3.0-only)"
    ]
    denied = admit(given, [], ["CC-BY-SA-*", "GPL-*"])
    assert [line.split(":")[0] for line in denied] == ["b.csv", "d.csv"]
    assert "denied by data.licenses (CC-BY-SA-4.0)" in denied[0]
    assert admit([("x", "MIT")], ["MIT"], ["MIT"])
