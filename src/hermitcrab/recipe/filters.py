"""Options of the filters that look at one text at a time, as they stand in `data.clean`: `{unicode: {form: NFKC}}`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hermitcrab.recipe.parts import Count, Part

Fraction = Annotated[float, Field(ge=0, le=1)]
Ratio = Annotated[float, Field(ge=0)]
Rule = Literal["length", "gopher", "repetition", "c4", "fineweb", "ratios"]
Kind = Literal[
    "e-mail", "ip-address", "mobile-cn", "identity-card-cn", "credit-code-cn", "passport-cn", "plate-cn", "bank-card",
    "token", "private-key", "high-entropy", "phone", "iban", "us-ssn", "crypto-wallet",
]  # fmt: skip
Entity = Literal["person", "location", "organization", "date"]


class Unicode(Part):
    form: Literal["NFC", "NFKC", "none"] = "NFC"
    """Normal form (Unicode Standard Annex 15). Line ends become \\n, control characters but \\n and \\t go, and so does outer
    whitespace, whatever the form."""
    mojibake: bool = True
    """Mend UTF-8 that was once read as Latin-1, Windows-1252 and the like (`cafÃ©`)."""
    chinese: Literal["keep", "simplified", "traditional"] = "keep"
    """Write Chinese so. Texts with kana are left as they are."""


class Language(Part):
    keep: list[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]] = []
    """ISO 639 codes of the languages that stay. Empty: languages are counted, nothing goes."""
    confidence: Fraction = 0.5
    """A text whose language is less certain than this is `unsure`."""
    unsure: Literal["keep", "drop"] = "keep"
    """What becomes of texts that are too short, or whose language is not certain."""


class Length(Part):
    """How long a text is, in words; a Han character is a word."""

    min_words: Annotated[int, Field(ge=0)] = 50
    max_words: Count = 100_000


class Gopher(Part):
    """Rules of MassiveText for a document's words and lines (arXiv:2112.11446, appendix A.1.1)."""

    min_word_length: Ratio = 3.0
    """Mean characters a word, of words that are not Han characters."""
    max_word_length: Ratio = 10.0
    max_symbols_per_word: Ratio = 0.1
    """`#` and ellipses, each by words."""
    max_bullet_lines: Fraction = 0.9
    max_ellipsis_lines: Fraction = 0.3
    min_alphabetic_words: Fraction = 0.8
    min_stop_words: Annotated[int, Field(ge=0)] = 2
    """Different ones of: the be to of and that have with; of Chinese: 的 一 是 不 了 在 有 和."""


class Repetition(Part):
    """Most that may be repetition (arXiv:2112.11446, table A1)."""

    duplicate_lines: Fraction = 0.30
    duplicate_paragraphs: Fraction = 0.30
    duplicate_line_characters: Fraction = 0.20
    duplicate_paragraph_characters: Fraction = 0.20
    top_ngram: list[Fraction] = [0.20, 0.18, 0.16]
    """Characters in the most frequent 2-, 3-, 4-gram of words."""
    duplicate_ngrams: list[Fraction] = [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]
    """Characters in 5-, 6-, … 10-grams of words that stand there more than once."""


class C4(Part):
    """Rules of the Colossal Clean Crawled Corpus (arXiv:1910.10683, section 2.2). Its list of bad words is left out."""

    end_marks: bool = True
    """Lines that do not end in a terminal punctuation mark or a quotation mark go."""
    min_line_words: Annotated[int, Field(ge=0)] = 5
    """Lines with fewer words go (a Han character is a word)."""
    min_sentences: Annotated[int, Field(ge=0)] = 3
    """Texts with fewer sentences go."""
    boilerplate: bool = True
    """Lines with `javascript` or words of cookie and privacy notices go, and so do citation marks such as [1]."""
    placeholders: bool = True
    """Texts with `lorem ipsum` go."""
    braces: bool = True
    """Texts with a curly bracket go: they are more likely code."""


class FineWeb(Part):
    """Rules of FineWeb for a document's lines (arXiv:2406.17557, section 3.5)."""

    min_punctuated_lines: Fraction = 0.12
    """Texts go where so few lines, or fewer, end in punctuation."""
    max_duplicate_line_characters: Fraction = 0.1
    max_short_lines: Fraction = 0.67
    short_line: Count = 30
    """Characters of a line that is short; of Han characters a third of that, as each says as much as three letters."""


class Ratios(Part):
    """Most characters of a kind, of those that are no whitespace. Thresholds of hermitcrab."""

    digits: Fraction = 0.3
    symbols: Fraction = 0.3
    """Neither letters nor digits."""


class Quality(Part):
    rules: Annotated[list[Rule], Field(min_length=1)] = ["length", "gopher", "repetition"]
    """Which rules are asked, in this order; the first that a text breaks is its reason."""
    length: Length = Length()
    gopher: Gopher = Gopher()
    repetition: Repetition = Repetition()
    c4: C4 = C4()
    fineweb: FineWeb = FineWeb()
    ratios: Ratios = Ratios()

    @model_validator(mode="after")
    def _options_are_of_rules(self) -> Quality:
        for name in sorted(self.model_fields_set - {"rules"} - set(self.rules)):
            if getattr(self, name) != type(self).model_fields[name].default:  # a recipe as recorded has every default
                raise ValueError(f"{name} has options but is not among rules. Received: rules={self.rules}")
        return self


class Personal(Part):
    policy: Literal["replace", "mask", "hash", "drop"] = "replace"
    """`replace`: by the name of its kind (`<e-mail>`). `mask`: each letter and digit by `*`. `hash`: by a keyed digest, so that
    equal values stay equal. `drop`: the whole text goes."""
    key: Annotated[str, Field(pattern=r"^env:[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """For `hash`: `env:NAME`, the environment variable that holds the key."""
    find: Annotated[list[Kind], Field(min_length=1)] = [
        "e-mail", "ip-address", "mobile-cn", "identity-card-cn", "credit-code-cn", "passport-cn", "plate-cn", "bank-card",
        "token", "private-key", "high-entropy",
    ]  # fmt: skip
    """Kinds of values, by patterns and checksums."""
    entities: list[Entity] = []
    """Names of these kinds too, by a model of spaCy's that you install."""
    model: str | None = None
    """The spaCy model, such as `en_core_web_sm` or `zh_core_web_sm`. Needed for `entities`."""

    @model_validator(mode="after")
    def _parts_go_together(self) -> Personal:
        if (self.policy == "hash") != (self.key is not None):
            raise ValueError(
                f"key is for policy: hash, which needs one. Received: policy={self.policy}, key={self.key}"
            )
        if bool(self.entities) != (self.model is not None):
            raise ValueError(f"entities and model go together. Received: entities={self.entities}, model={self.model}")
        return self


OPTIONS: dict[str, type[Part]] = {"unicode": Unicode, "language": Language, "quality": Quality, "personal": Personal}
"""Name of a filter of `data.filters` → its options."""
