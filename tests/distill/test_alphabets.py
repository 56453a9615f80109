"""Which text each language's alphabet spells."""

from __future__ import annotations

import pytest

from ammd.distill.alphabets import LANGUAGES, Alphabet

PANGRAMS = {
    "cs": "Nechť již hříšné saxofony ďáblů rozezvučí síň úděsnými tóny waltzu, tanga a quickstepu.",
    "de": "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
    "el": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "en": "The quick brown fox jumps over the lazy dog — “really”, 100 %.",
    "es": "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia. ¡Año! ¿Sí?",
    "fr": "Voix ambiguë d’un cœur qui, au zéphyr, préfère les jattes de kiwis, où naît l'île.",
    "ar": "نص حكيم له سر قاطع وذو شأن عظيم، ١٢٣",
    "fa": "پژوهش گچ ۱۲۳",
    "he": "דג סקרן שט בים מאוכזב",
    "hi": "ऋषियों को सताने वाले दुष्ट १२३",
    "hu": "Árvíztűrő tükörfúrógép",
    "ja": "いろはにほへと、カタカナー。漢字",
    "ko": "키스의 고유조건은 입술끼리 만나야 하고",
    "pl": "Zażółć gęślą jaźń",
    "ro": "Gheorghe, obezul, a reuşit să obţină jucându-se un flux în Quebec",
    "ru": "Съешь ещё этих мягких французских булок, да выпей чаю",
    "sv": "Flygande bäckasiner söka hwila på mjuka tuvor, idé",
    "th": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "tr": "Pijamalı hasta yağız şoföre çabucak güvendi",
    "uk": "Жебракують філософи при ґанку церкви в Гадячі, ще й шатро їхнє п’яне знаємо",
    "vi": "Tiếng Việt giàu đẹp, những người bạn ở xứ sở",
    "zh": "视野无限广，窗外有蓝天。",
}


@pytest.mark.parametrize("code", PANGRAMS)
def test_a_language_spells_its_own_sentence(code: str) -> None:
    assert Alphabet([code]).spells(PANGRAMS[code])


@pytest.mark.parametrize("code", sorted(set(PANGRAMS) - {"en"}))
def test_english_spells_no_other(code: str) -> None:
    assert not Alphabet(["en"]).spells(PANGRAMS[code])


def test_several_languages_spell_what_each_does_and_mixtures() -> None:
    both = Alphabet(["de", "ru"])
    assert both.spells("größer булок")
    assert not both.spells("été")
    assert not Alphabet(["ru"]).spells("булок x")  # Latin letters are no part of the Cyrillic script
    assert not Alphabet(["de"]).spells("part of a character: �")


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_language_has_ascii_signs_and_digits(code: str) -> None:
    assert Alphabet([code]).spells(' 0123456789\n\t!"#$%&()*+,-./:;<=>?@[]^_`{|}~')
