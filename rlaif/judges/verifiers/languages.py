"""Which language a text is written in, by its script and, where several share one, by their commonest words.

A small detector without training data or draws, so the same text always gives the same language. Its limits: a
language that is not listed is taken for none or for a neighbour that shares its script and words (Norwegian for
Danish, Serbian for Bulgarian, Arabic script for one of three); a text has one language, by the script of most of its
letters; a few words, names alone, or a language written in another script than its own cannot be told.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

LEAST_WORDS = 1.5  # that must be its language's commonest; one that several share counts for a part of each
LEAST_SHARE = 0.06  # of all words
LEAD = 1.15  # how many times the next language's share it must have

# The code points at which the letters of a script stand: first and last, as many pairs as it needs.
_SCRIPTS = {
    "latin": "AZaz\u00c0\u024f\u1e00\u1eff",
    "cyrillic": "\u0400\u052f",
    "arabic": "\u0600\u06ff\u0750\u077f\ufb50\ufdff\ufe70\ufeff",
    "devanagari": "\u0900\u097f",
    "bn": "\u0980\u09ff",
    "pa": "\u0a00\u0a7f",
    "gu": "\u0a80\u0aff",
    "ta": "\u0b80\u0bff",
    "te": "\u0c00\u0c7f",
    "kn": "\u0c80\u0cff",
    "ml": "\u0d00\u0d7f",
    "th": "\u0e00\u0e7f",
    "el": "\u0370\u03ff\u1f00\u1fff",
    "he": "\u0590\u05ff",
    "ko": "\u1100\u11ff\uac00\ud7a3",
    "kana": "\u3040\u30ff",
    "han": "\u3400\u9fff",
}
# One of these letters says as much as about three of an alphabet.
_DENSE = {"ko": 3, "kana": 3, "han": 3}

# The commonest words of each language, in small letters; those that tell it from its neighbours are what matters.
_WORDS = {
    "latin": {  # without those of one letter, which tables and formulas are full of
        "en": "the of and to in is that it for you with on as are be this was have from or by not but what all we "
        "can your which their there will if my they has more so an at do how when he his me she her no who "
        "too out up about than them then its into could other were only also over after most some time would "
        "these been like just now any very much get make know take well because even our us did does had "
        "where may such through each those",
        "de": "der die das und ist nicht ein eine zu in den mit sich auf für von dem im es auch wird sind ich sie "
        "wir dass als an wie bei oder aber nach werden einen einer zum zur kann ihre haben hat durch noch nur "
        "ihr du",
        "fr": "le la les de des et est un une que qui dans pour pas sur au aux avec ce cette il elle nous vous je "
        "ne se par plus ou mais sont du en son sa leur comme tout être fait très",
        "es": "el la los las de en que un una es por con para no se del al lo su como más pero sus le este esta si "
        "son muy sin sobre también hay ser fue me mi todo yo está ha",
        "pt": "os as de em que um uma por com para não se do da dos das no na nos nas ao mais mas seu sua foi como "
        "ou ser são está também muito eu você pelo pela isso este quando tem",
        "it": "il la lo gli le di che un una per con non si del della dei delle nel nella al alla da in sono come "
        "più ma anche questo questa sul sulla suo sua ho hai ha dal dalla mi ti ci se essere dello degli",
        "nl": "de het een en van is dat niet in op te voor met zijn die aan er ook als maar om bij naar uit wordt "
        "of dit deze je ik we hebben heeft kan door over nog wat worden was",
        "sv": "och att det som en är av för på den med inte till har de ett om jag vi kan från men så var eller du "
        "ska nu när han hon sig din vår dig mig vara mycket",
        "da": "og at det som en er af for på den med ikke til har de et om jeg vi kan fra men så var eller du skal "
        "nu når han hun sig din vores dig mig være meget",
        "fi": "ja on ei se että mutta kun voi ovat sinä minä hän he ne tämä niin kuin tai myös jos oli olla joka "
        "mitä sinun minun sen voit ole hyvin kanssa sitten nyt vain mikä tapahtuu",
        "pl": "na do nie się jest to że jak po co ale dla za od jego tak przez czy jako być są może tym oraz ma "
        "który które już tylko ich",
        "tr": "ve bir bu için ile de da ne çok ama gibi daha olarak var ben sen olan kadar mi her en sonra biz bana "
        "değil veya olduğu şey nasıl",
        "vi": "là và của có không cho một các được trong với những này để người tôi bạn chúng đã sẽ khi đó cũng như "
        "vì nhiều ra thể từ về cách phải nhất con",
        "id": "yang dan di dengan untuk dari ini itu tidak pada dalam adalah ke akan saya anda kami kita bisa ada "
        "juga atau sebagai karena oleh mereka dapat lebih telah sudah seperti tersebut",
        "sw": "ya wa na kwa ni katika la za cha kuwa hii huo hiyo yake kama lakini au ili pia sana mtu watu wake "
        "yangu si hakuna nini kwamba sababu moja huu hizi vya zaidi baada wewe mimi yako kila hata",
    },
    "cyrillic": {
        "ru": "и в не на что с это как по но он к из у за вы так же от для мы или бы его они был этот "
        "если только можно чтобы который может очень я ты еще ещё",
        "uk": "і в не на що з це як та до але він за у ви так від для ми або б його вони був цей "
        "якщо тільки можна щоб який може дуже є їх й ще",
        "bg": "и в не на че с това като по но той към от за се да е са си ще или го те беше този ако само "
        "може който много аз ти още има при до със във година",
    },
    "arabic": {
        "ar": "في من على إلى أن إن هذا هذه التي الذي عن مع كان لا ما أو كل قد ذلك هو هي لم بين بعد ثم يا أنا كما",
        "fa": "و در به از که این را با است برای آن یک خود تا بر هم می نیز بود شد من ما آنها یا اما هر او شما بی",
        "ur": "کے میں کی ہے اور سے کا کو ہیں یہ نے پر کہ ہو اس بھی نہیں ایک کر تھا جو وہ کیا گیا ان ہم آپ تو",
    },
    "devanagari": {
        "hi": "है के में की और से का को हैं यह ने पर कि हो इस भी नहीं एक कर था जो वह क्या गया हम आप तो लिए",
        "mr": "आहे आणि या ते ती तो हे ही हा नाही आहेत किंवा पण तर मी आपण होते होता करून असे काय साठी असते झाले त्या "
        "मला तुम्ही आम्ही येथे वेळ",
        "ne": "छ र हो मा लाई ले छन् भएको गर्न पनि यो त्यो म हामी तपाईं थियो भन्ने कुनै धेरै हुन्छ छैन मेरो संग देखि",
    },
}
# How other words of a language end; such a word counts for half of a common one.
_ENDINGS = {
    "en": ("ing", "'s"),
    "de": ("ung", "ungen", "lich", "keit"),
    "fr": ("eux", "euse", "ité"),
    "es": ("ción", "ciones", "dad"),
    "pt": ("ção", "ções", "dade"),
    "it": ("zione", "zioni", "tà"),
    "nl": ("lijk", "lijke", "heid"),
    "pl": ("ych", "ości"),
    "fi": ("ssa", "ssä", "sta", "stä"),
}
LANGUAGES = tuple(
    sorted({*(name for words in _WORDS.values() for name in words), *(s for s in _SCRIPTS if len(s) == 2), "ja", "zh"})
)


def language_of(text: str) -> str | None:
    """The language of `text` as an ISO 639-1 code, one of LANGUAGES; None where it cannot be told."""
    import regex

    words: list[str] = regex.findall(r"[\p{L}\p{M}]+(?:'[\p{L}\p{M}]+)*", text.casefold().replace("\u2019", "'"))
    letters: Counter[str] = Counter()
    for letter, times in Counter("".join(words)).items():
        if script := _script_of(letter):
            letters[script] += times * _DENSE.get(script, 1)
    if letters["kana"]:
        letters["kana"] += letters.pop("han", 0)
    if not letters:
        return None
    script = letters.most_common(1)[0][0]
    if script not in _WORDS:
        return {"kana": "ja", "han": "zh"}.get(script, script)
    return _told_by_words([word for word in words if _script_of(word[0]) == script], script)


@cache
def _script_of(letter: str) -> str | None:
    for script, ends in _SCRIPTS.items():
        if any(first <= letter <= last for first, last in zip(ends[::2], ends[1::2], strict=True)):
            return script
    return None


def _told_by_words(words: list[str], script: str) -> str | None:
    """The language most of whose commonest words are in `words`; one that several share counts for a part of each."""
    counts = dict.fromkeys(_WORDS[script], 0.0)
    for word in words:
        sharing = _owners(script).get(word, ())
        for name in sharing:
            counts[name] += 1 / len(sharing)
        if not sharing and script == "latin":
            for name, endings in _ENDINGS.items():
                counts[name] += 0.5 if word.endswith(endings) else 0.0
    best, other = sorted(counts, key=lambda name: -counts[name])[:2]
    least = max(LEAST_WORDS, LEAST_SHARE * len(words), LEAD * counts[other])
    return best if counts[best] >= least else None


@cache
def _owners(script: str) -> dict[str, tuple[str, ...]]:
    """Each common word of a script, with the languages that have it."""
    lists = {name: set(words.split()) for name, words in _WORDS[script].items()}
    return {word: tuple(n for n in lists if word in lists[n]) for word in set().union(*lists.values())}
