"""Which characters a language is written with, as far as that decides which tokens to keep for it.

A language of the Latin script is the letters a to z and its own further ones, so that German does not bring
every word of Polish along; one of another script is that whole script. ASCII's digits, signs and white space,
and punctuation and spaces of every script, belong to all of them. Letters are compared in lower case.

Sources: the letters are those of the languages' alphabets in the Unicode CLDR's main exemplar sets, written out;
scripts go by the first word of a character's Unicode name, which is how the standard's names are built.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping

_ASCII_LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Further letters beside a to z.
_LATIN: Mapping[str, str] = {
    "cs": "áčďéěíňóřšťúůýž",
    "da": "æøå",
    "de": "äöüß",
    "en": "",
    "es": "áéíñóúü",
    "fi": "åäö",
    "fr": "àâæçéèêëîïôœùûüÿ",
    "hu": "áéíóöőúüű",
    "id": "",
    "it": "àéèìòù",
    "nl": "áäéëíïóöúü",
    "no": "æøå",
    "pl": "ąćęłńóśźż",
    "pt": "áâãàçéêíóôõú",
    "ro": "ăâîșşțţ",
    "sv": "åäöé",
    "tr": "çğıöşü",
    "vi": "ăâđêôơưáàảãạắằẳẵặấầẩẫậéèẻẽẹếềểễệíìỉĩịóòỏõọốồổỗộớờởỡợúùủũụứừửữựýỳỷỹỵ",
}
# First words of the Unicode names of a script's characters.
_SCRIPTS: Mapping[str, frozenset[str]] = {
    "ar": frozenset({"ARABIC", "ARABIC-INDIC"}),
    "bg": frozenset({"CYRILLIC"}),
    "el": frozenset({"GREEK"}),
    "fa": frozenset({"ARABIC", "EXTENDED"}),  # EXTENDED ARABIC-INDIC DIGIT
    "he": frozenset({"HEBREW"}),
    "hi": frozenset({"DEVANAGARI"}),
    "ja": frozenset({"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK"}),
    "ko": frozenset({"HANGUL"}),
    "ru": frozenset({"CYRILLIC"}),
    "th": frozenset({"THAI"}),
    "uk": frozenset({"CYRILLIC"}),
    "zh": frozenset({"CJK"}),
}
LANGUAGES: tuple[str, ...] = tuple(sorted([*_LATIN, *_SCRIPTS]))
"""ISO 639-1 codes of the languages whose characters are known here."""


class Alphabet:
    """The characters that some languages are written with."""

    def __init__(self, languages: Iterable[str]) -> None:
        """Take codes out of `LANGUAGES`."""
        codes = list(languages)
        latin = [code for code in codes if code in _LATIN]
        self._letters = frozenset(
            "".join([_ASCII_LETTERS, *(_LATIN[code] for code in latin)]) if latin else ""
        )
        self._scripts = frozenset().union(*(_SCRIPTS[code] for code in codes if code in _SCRIPTS))

    def spells(self, text: str) -> bool:
        """Return whether every character of `text` is one of them."""
        return all(map(self._has, text))

    def _has(self, character: str) -> bool:
        if character.lower() in self._letters:
            return True
        if character.isascii():
            return not character.isalpha()
        if unicodedata.category(character)[0] in "PZ":
            return True
        return unicodedata.name(character, "").partition(" ")[0] in self._scripts
