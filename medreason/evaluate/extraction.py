"""Which option a written answer commits to: a strict rule, and a generous one for comparison with published scores.

strict_choice reads the answer part alone (prompts.parse_answer has split off the reasoning). The first of these that
says anything decides; where it says several things, there is no answer:

1. The whole answer is an option's letter ("B", "(b).") or its text.
2. A statement: "the answer is B", "Ans: (b)", "Final answer - metformin", {"answer": "B"}, "\\boxed{B}", "I choose B",
   "It's B.", "option B is correct"; 答案是选项B, 正确的选项是B, 【答案】B, 我选择B, 故选B, 应该是B。, B选项正确. A
   later statement of another letter counts as a revision alone ("Actually, ...", "Wait, ...", 其实, 更正); without that
   word the answer contradicts itself.
3. A label: a line that begins "B.", B、 or "(B) ", a bold "**B**", a letter beside its own text ("metformin (B)").
   A listing of several options is none, unless one letter stands on a line of its own or opens the answer.
4. The text of one option and of no other; within a longer option's text it does not count.

No letter is the article "a", the pronoun "I", a part of a word or name ("vitamin A", "hepatitis B", "B cells",
"E. coli", "D-dimer", B超), or one denied ("not B", "B is incorrect", 排除B, B选项错误), supposed ("if the answer is B",
若选B) or asked about. Words as common as yes, no and maybe are an option's text in a statement or as the answer's first
word, not in passing ("no evidence"). A letter that is no option, or that another option's text follows, is no answer.
"""

import difflib
import re
import unicodedata
from collections.abc import Mapping

from medreason.data.normalize import normal

# Patterns hold both languages: a shape that one has, the other has (tests/test_answers.py lists them side by side).
SURELY = "(?:most likely|most probably|likely|probably|clearly|definitely|therefore|thus|hence|indeed|still)"
SURELY_ZH = "(?:应该|应当|应|就|即|则|也|会|显然|确实|仍|仍然|只能|必然|很可能|最可能|最有可能)"
FILLER = re.compile(
    rf"(?i)(?:[\s:|\"'(\[]|(?:{SURELY}|either|both|options?|choices?|answers?|letters?|the)\b(?=\W)"
    rf"|选项|选择|{SURELY_ZH}?[是为选])*"
)
LETTER = re.compile(
    r"(?i)[\s(\[\"']*(?:(?:option|choice)\s+|选项\s*)?[(\[\"']*([a-z])(?![a-z0-9]|['-][a-z])[)\]\"']*(?:选?项)?"
)
ALSO = re.compile(
    r"(?i)\s*(,?\s*\b(?:and|or)\b|,|/|&|\||;|、|还是|以及|或者|和|或|及|与|跟)(?:\s*(?:either|possibly|maybe)\b)?"
)
# what may follow a letter; before anything else it is an article, a pronoun or the beginning of a name (B超, C反应蛋白)
ENDS = re.compile(
    r"(?i)\s*(?:$|[.,;:!?)(}|/&\n。、]|-\s|(?:because|since|as|due|based|given|for|which|with|is|are|would"
    r"|must|should|and|or|so|in|but|not|rather|instead|over)\b"
    r"|正确|错|有误|不|是|为|因|由于|所以|故|对|最|符合|而|和|或|还是|以及|及|与|更|才|即|也|吗|呢|吧|被|可以?排除|排除|均|都)"
)
STATEMENT = re.compile(
    r"(?im)(?:\bthe\s+)?(?<![a-z])(?:(?:answer|choice|option)(?:_\w+)?|ans\.?|conclusion|diagnosis"
    r"|(?:correct|right|best) one|(?:correct|response)(?=[\"']?\s*:))(?![a-z])"
    r"(?:\s+(?:to|for|here)\b[^.:\n]{0,80}?)?[\"'\])]*"
    r"(?:\s*(?:[-=]+>|→)|\s*[:=|]|\s+-+\s|-(?=\W*[a-z](?![a-z0-9]))"
    r"|(?:'s|\s+(?:is|was|will be|would be|must be|should be|has to be|remains))\b(?!n't|\s*not\b))"
    r"|^\s*(?:(?:the|my|final|correct|right|best)\s+)*ans(?:wer\b|\b\.?)(?=\s+\(?[a-z]\b)"
    r"|^\s*(?:final\s*:|\[(?:final )?answer\])"
    r"|\b(?:choose|select|pick|go with|going with|opt for|settle on|vote for)\b"
    r"|(?<=not [a-z])\s+but(?:\s+rather)?(?=\s+\(?[a-z]\b)"
    # Chinese: 答案是, 正确的选项为, 最终诊断:, 选, 而是
    r"|(?:答案|(?<!不)正确的?(?:选项|选择|一项|说法|是)|最(?:佳|优|合适|恰当|可能)的?(?:选项|选择)"
    r"|(?:最可能的?|最终|正确的?|本题的?|患者的?)诊断(?=[应是为:])|结论(?=[应是为:])|[回解]?答(?=:)|正解|(?:我的|最终)选择(?=[是为:])"
    r"|选项(?=[:是为]\s*[(\[\"']*[a-z][)\]\"']*(?:[。,!]|\.?\s*$)))"
    rf"[\s\])\"']*{SURELY_ZH}*(?:选项|[是为选择:=|→, ]|-+>?)*"
    r"|(?<![不挑所筛可备任])选(?:择|定|取)?(?:的是)?(?!项)(?=[\s:(\[\"']*(?:选项)?[\s(\[\"']*[a-z])"
    r"|(?:而是|而应?选|(?<=改)[为成])(?=[\s(\[\"']*(?:选项)?[\s(\[\"']*[a-z])"
)
# a letter that opens a clause and is then called right
SUBJECT = re.compile(
    r"(?m)(?:^|[.,:;!?|。、(]|\b(?i:so|thus|therefore|hence|that|options?|choices?|answer|letter)\b"
    r"|选项|因此|所以|故|综上|可知|可见|认为|只有|唯有|仅有?|则|而|显然|判断)"
    r"\s*(?=[(\[]?[A-Z](?![A-Za-z0-9]))"
)
RIGHT = re.compile(
    rf"(?i)[\s,)]*(?:\b(?:is|are|seems|remains|(?:would|must|should|has to) be)\b|\|)\s*(?:{SURELY}\s+)?"
    r"(?:the\s+)?(?:single\s+)?(?:(?:correct|right|best|most (?:likely|appropriate|accurate)|answer)\b|正确)"
    rf"|[\s,)]*(?:选?项)?(?:{SURELY_ZH}|是|为|才|都|均|完全)*(?:唯一的?)?(?:正确|对(?=的|[。,.;!\n]|$)|答案"
    r"|本题的?(?:正确)?答案|最(?:佳|优|合适|恰当|合理|可能|符合)|符合题[意干])"
)
# the letter is all that such a clause says: "It's B.", "Therefore, B.", "应该是B。"
SAID = re.compile(
    r"(?m)(?:\b(?i:(?:it|this|that) (?:is|must be|should be|would be)|it's|that's|(?:i'd|i would|i) say"
    r"|so|thus|therefore|hence),?\s+"
    rf"|(?<![^\s,.;:!。])(?:(?:所以|因此|故|综上|那么|最终|我认为|我觉得)[,:]?\s*)?{SURELY_ZH}*[是为]\s*"
    r"|(?:所以|因此|综上)[,:]?\s*)"
    r"(?:(?i:option|choice)\s+|选项)?[(\[\"']*([A-Z])[)\]\"']*(?:选?项)?"
    r"(?=\s*(?:$|[.;!\n。](?!\s?[a-z])|,\s*(?:\b(?:because|since|as|not|the)\b|因为?|由于|而|不)|\b(?:because|since)\b|因为|由于))"
)
DENIED_BEFORE = re.compile(
    r"(?i)(?:\b(?:not the case that|doubt|not|never|cannot|wrong|incorrect|false|if|whether|unless|initially"
    r"|at first|tempting|without|except|(?:rather|other) than|instead of|unlike|rul(?:es?|ed|ing) out"
    r"|exclud\w+|eliminat\w+)\b|n't\b)\W*(?:[\w-]+\W+){0,2}$"
    r"|(?:不[应该能会可以宜是为选必要认建议推荐考虑]*|[并而绝]非|没有?|[未勿别错误]|(?:排除|除了?|剔除)(?:选项|掉|的是)?)\W*$"
    r"|(?:(?:错误|不正确|不对|有误)的?(?:选项|答案)?[是为]?)\W*$"
    r"|(?:如果|假如|假设|倘若|若|要是|是否|能否|即使|起初|最初|一开始|看似|误以?为?)[^,;。\n]{0,8}$"
)
WRONG = "(?:incorrect|wrong|false|unlikely|less|ruled out|excluded|eliminated|contraindicated|inappropriate)"
WRONG_ZH = "(?:不(?:正确|对|符|成立|合适|恰当|适|是(?:正确|对的|答案|最))|错|有误|(?:可以?|应|被|予以)?(?:排除|除外))"
DENIED_AFTER = re.compile(
    rf"(?i)[\s,)]*(?:(?:is|are|was|were|would be|can be|could be|would|does|do)"
    rf"(?:n't|\s+(?:also\s+)?(?:not|{WRONG})\b)|cannot\b|(?:选?项)?[是为也都均显然明]*{WRONG_ZH})"
)
MARKED_WRONG = re.compile(
    rf"\s*[(|:.、-]*\s*(?:{WRONG}\b|not (?:correct|right|appropriate|indicated)|是?{WRONG_ZH}|[\u00d7✗✘❌])", re.I
)
ASKED = re.compile(r"\s*(?:吗|\?|[呢么]\s*\?)")
REVISED = re.compile(
    r"(?i)\b(?:actually|wait|correction|on second thought|reconsider\w*|correct myself|i was wrong|revis\w+|chang\w+ my"
    r"|no(?=,))\b|更正|修正|纠正|重新|不对|等等|等一下|其实|实际上|事实上|应?改(?=$|[选为成])"
)
LABEL = re.compile(
    r"(?i)\s*(?:[-•|]\s*)?(?:\d+[.)]\s*)?(?:(?:option|choice)\s+|选项\s*)?[(\[]?([a-z])"
    r"([)\]]+[.:、]?|[.:、。]|\s*\||\s-(?=\s)|(?=\s*$)|(?=[\u3400-\u9fff]))(.*)$"
)
BEFORE_TEXT = re.compile(r"(?<![A-Za-z0-9])\(?([A-Z])(?:[).:、]+\s*|\s*\()(?:(?:[Tt]he|[Aa]n)\s)?$")
AFTER_TEXT = re.compile(r"\.?\s*\((?:(?:[Oo]ption|[Cc]hoice)\s+|选项\s*)?([A-Za-z])\)")
BOLD = re.compile(r"\*\*\s*(?:(?:[Oo]ption|[Cc]hoice)\s+|选项\s*)?[(\[\"']*([A-Z])[)\]\"'.:、。]*\s*(?:选?项)?\s*\*\*")
MARKUP = re.compile(r"[*`#$]|\\[()\[\]]|</?\w+>|(?m:^\s*>)")
# dashes, quotes and brackets made alike, and of Chinese the words that patterns know in their traditional form
ALIKE = str.maketrans(
    "\u2013\u2014\u2018\u2019\u201c\u201d【】\u3014\u3015「」『』《》選擇項確應為對錯誤該會顯結論題終認覺決",
    '--\'\'""[][]""""""选择项确应为对错误该会显结论题终认觉决',
)
REACH = 400  # characters that a statement looks back, and on beyond the longest option: texts that repeat take no hours
COMMON = {"yes", "no", "maybe", "true", "false", "none", "all", "both", "neither", "other", "normal"}


def strict_choice(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer commits to, None for no answer; the rules stand at the top of this file."""
    marked, text = text, plain(text)
    texts = {letter: option_text(option) for letter, option in options.items()}
    whole = option_text(text)
    if letter := re.fullmatch(r"(?:选项\s*)?[(\[\"']*([a-z])[)\]\"'.:!]*(?:选?项)?", whole):
        return only({letter[1].upper()}, options)
    if same := {letter for letter, option in texts.items() if option == whole}:
        return only(same, options)
    stated = statements(text, texts)
    if stated:
        return only(stated, options)
    return only(labels(text, marked, texts) or quoted(text, texts), options)


def only(letters: set[str], options: Mapping[str, str]) -> str | None:
    """The letter where there is just one, and it is an option's."""
    return next(iter(letters)) if len(letters) == 1 and letters <= set(options) else None


def plain(text: str) -> str:
    """Text without Markdown, TeX and tags; what they mark as the answer is introduced by that word."""
    text = alike(text)
    text = re.sub(r"\\(?:text|textbf|mathbf|mathrm|textsf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\boxed\s*\{([^{}]*)\}|<answer>", lambda match: f"\nanswer: {match[1] or ''}", text)
    return re.sub(r"[ \t]+", " ", MARKUP.sub("", text))


def alike(text: str) -> str:
    """Text with full-width letters, and with all kinds of dashes, quotes and brackets, in one form."""
    return unicodedata.normalize("NFKC", text).translate(ALIKE)


def option_text(text: str) -> str:
    """Text to compare with: case, Unicode form, spacing, Markdown, final stop and a first article made alike."""
    return re.sub(r"^(?:the|an) ", "", normal(plain(text)).strip(" .;:,。\"'"))


def statements(text: str, texts: Mapping[str, str]) -> set[str]:
    """The letters of the statement that stands, or of all that contradict each other; none without a statement."""
    found = []
    reach = REACH + max(map(len, texts.values()), default=0)
    for match in STATEMENT.finditer(text):
        found.append((match.start(), match.end(), committed(text[match.end() : match.end() + reach], texts)))
    for match in SUBJECT.finditer(text):
        found.append((match.end(), match.end(), called_right(text[match.end() : match.end() + reach], texts)))
    for match in SAID.finditer(text):
        labels_text = text_at(text[match.end() : match.end() + reach].lstrip(" ."), texts)[0]
        found.append((match.start(), match.end(), set() if labels_text else {match[1]}))
    current: set[str] = set()
    before = 0
    for start, end, letters in sorted(found, key=lambda each: each[:2]):
        if letters and not denied(text, start):
            revised = REVISED.search(text[max(before, start - 80) : start])
            current = letters if revised else current | letters
            before = end
    return current


def denied(text: str, at: int) -> bool:
    """Whether the clause that leads to this place denies or supposes what stands there."""
    before = text[:at][-REACH:]
    return DENIED_BEFORE.search(re.split(r"[.!?;:,\n。]", before)[-1]) is not None


def committed(rest: str, texts: Mapping[str, str]) -> set[str]:
    """The letters that a statement goes on to name, by text or by letter."""
    filler = FILLER.match(rest)
    at = filler.end() if filler else 0
    article = re.match(r"an?\s+", rest[at:], re.I)
    raw = re.match(r"[\s:|\"'(]*", rest)
    starts = [raw.end() if raw else 0, at, at + (article.end() if article else 0)]
    for start in starts:  # an option may itself begin with "both" or an article
        letters, end = text_at(rest[start:], texts)
        if letters:
            also = ALSO.match(rest, start + end)
            return letters | (text_at(rest[also.end() :].lstrip(), texts)[0] if also else set())
    letters, end = letters_at(rest[at:], texts)
    after = rest[at + end :]
    if DENIED_AFTER.match(after) or ASKED.match(after):
        return set()
    following = re.search(r"\n\s*(\S.*)", after)
    if "\n" in rest[:at] and following and LABEL.match(following[1]):
        return set()  # the options are listed
    other, end = text_at(after.lstrip(" .:),-("), texts) if len(letters) == 1 else (set(), 0)
    contradicted = other and not letters & other and re.match(r"\s*(?:[.,)\n]|$)", after.lstrip(" .:),-(")[end:])
    return letters | other if contradicted else letters


def text_at(rest: str, texts: Mapping[str, str]) -> tuple[set[str], int]:
    """The options with the longest text that stands here, and where it ends."""
    low = rest.lower().replace("\n", " ")
    article = re.match("(?:the|an) ", low)  # option_text has removed the option's
    skipped = article.end() if article and not low.startswith(tuple(texts.values())) else 0
    low, rest = low[skipped:], rest[skipped:]
    standing = {letter: option for letter, option in texts.items() if option and low.startswith(option)
                and ends_word(low, len(option)) and option.upper() not in texts
                and (not common(option) or ENDS.match(rest, len(option)))}  # fmt: skip
    end = max(map(len, standing.values()), default=0)
    return {letter for letter, option in standing.items() if len(option) == end}, end + skipped if end else 0


def ends_word(text: str, at: int) -> bool:
    return at >= len(text) or not text[at].isalnum() or text[at - 1] >= "\u3400" or not text[at - 1].isalnum()


def common(option: str) -> bool:
    """Whether a text stands in many sentences that do not mean it: yes, no, a bare number."""
    return option in COMMON or not any(character.isalpha() for character in option) or len(option) == 1


def letters_at(rest: str, texts: Mapping[str, str]) -> tuple[set[str], int]:
    """The letters that are named here ("B", "A or B"), and where they end."""
    found: set[str] = set()
    at = end = 0
    also = None
    while match := LETTER.match(rest, at):
        letter, after = match[1].upper(), rest[match.end() :]
        if letter == "X" and letter not in texts:  # "The answer is X.", from the prompt
            break
        if letter in found or not stands_alone(after, texts.get(letter)):
            break
        if also and (DENIED_AFTER.match(after) or (also[1] == "," and re.match(r"\s*(?:(?:is|was)\b|:)", after))):
            break  # "B, C is wrong", {"answer": "B", "C": "wrong"}
        found.add(letter)
        end = match.end()
        also = ALSO.match(rest, end)
        if also is None:
            break
        at = also.end()
    return found, end


def stands_alone(after: str, own: str | None) -> bool:
    """Whether what follows a letter lets it be one, rather than a word or the beginning of a name."""
    if own and re.match(rf"[\s.:)(,-]*(?:(?:the|an)\s)?{re.escape(own)}", after, re.I):
        return True
    return bool(ENDS.match(after)) and not re.match(r"\.\s?[a-z]", after)  # "E. coli"


def called_right(rest: str, texts: Mapping[str, str]) -> set[str]:
    """The letters here, if what follows calls them right."""
    letters, end = letters_at(rest, texts)
    after = rest[end:].lstrip(" .:,(-")
    own = text_at(after, texts)
    after = after[own[1] :] if own[0] & letters else rest[end:]
    called = RIGHT.match(after)
    return letters if called and not re.match(r"[^.,;!。\n]{0,12}(?:\?|吗)", after[called.end() :]) else set()


def labels(text: str, marked: str, texts: Mapping[str, str]) -> set[str]:
    """The letters that label something; the one that has a line of its own, or opens the answer, if there are more."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    lines = [[label(line, texts) for line in part.split("\n")] for part in paragraphs]
    found = [each for part in lines for each in part if each]
    letters = {each[0] for each in found} | bold_letters(marked) | beside_own_text(text, texts)
    alone = {each[0] for each in found if each[1]}
    if len(letters) > 1 and len(alone) == 1:
        return alone
    first = lines[0][0]
    opens = first and len(lines) > 1 and len(lines[0]) == 1 and not lines[1][0]
    if first and opens and beside_own_text(paragraphs[0], texts) <= {first[0]}:  # no listing
        return {first[0]}
    return letters


def label(line: str, texts: Mapping[str, str]) -> tuple[str, bool] | None:
    """The letter that a line begins with, and whether it is all of the line; None for other lines."""
    match = LABEL.match(line)
    if match is None:
        return None
    letter, mark, rest = match[1].upper(), match[2], match[3].strip(" |")
    there, _ = text_at(rest, texts)
    if rest and letter not in there:
        # a name ("E. coli"), a speaker ("A: It is ..."), another option's text
        if there or not mark or re.match(r"[a-z]", rest) or match[1].islower() or (mark == ":" and letter == "A"):
            return None
        if MARKED_WRONG.match(rest) or re.match(r"[A-Z](?![A-Za-z0-9-])", rest):  # "A、B均可" names two
            return None
    return letter, not rest


def bold_letters(marked: str) -> set[str]:
    marked = alike(marked)
    places = [(match, plain(marked[match.end() :])) for match in BOLD.finditer(marked)]
    return {match[1] for match, after in places if not (denied(plain(marked[: match.start()]) + " ", 10**9)
            or DENIED_AFTER.match(after) or MARKED_WRONG.match(after))}  # fmt: skip


def mentions(text: str, texts: Mapping[str, str]) -> dict[tuple[int, int], set[str]]:
    """Where options' texts stand, and whose; of texts within one another the longest. Denied ones are left out."""
    low = text.lower().replace("\n", " ")
    places: dict[tuple[int, int], set[str]] = {}
    for letter, option in texts.items():
        for match in re.finditer(re.escape(option), low) if option else ():
            if (match.start() == 0 or ends_word(low, match.start())) and ends_word(low, match.end()):
                places.setdefault(match.span(), set()).add(letter)
    return {(start, end): letters for (start, end), letters in places.items()
            if not any(one <= start and end <= other and (one, other) != (start, end) for one, other in places)
            and not denied(text, start) and not DENIED_AFTER.match(text[end:])}  # fmt: skip


def beside_own_text(text: str, texts: Mapping[str, str]) -> set[str]:
    """Letters that stand with an option's text: "metformin (B)", "B) metformin"; both, where they contradict."""
    found: set[str] = set()
    for (start, end), letters in mentions(text, texts).items():
        named = BEFORE_TEXT.search(text[max(0, start - 20) : start]) or AFTER_TEXT.match(text[end:])
        if named and named[1].upper() in texts:
            found |= letters & {named[1].upper()} or letters | {named[1].upper()}
    return found


def quoted(text: str, texts: Mapping[str, str]) -> set[str]:
    """The options whose text is quoted: common ones as the first word alone."""
    first = re.compile(r"\s*(?:$|[.,;:!\n-])")
    return {letter for (start, end), letters in mentions(text, texts).items() for letter in letters
            if not common(texts[letter]) or (start == 0 and first.match(text[end:]))}  # fmt: skip


def huatuo_choice(text: str, options: Mapping[str, str]) -> str:
    """A letter by the rule of HuatuoGPT-o1's public scorer (eval/scorer.py), which always finds one: it flatters.

    After "## Final Response", if there: the last "answer is X"; else the last capital letter of an option between
    non-letters; else the option whose text comes last; else the option most alike (difflib). "Vitamin A" is A to it,
    and an empty answer is the last option. Its authors score first and last match and report the better.
    """
    return huatuo_choices(text, options)[1]


def huatuo_choices(text: str, options: Mapping[str, str]) -> tuple[str, str]:
    """The first and the last match by that rule; a benchmark's published score is the better of the two accuracies."""
    text = text.rpartition("## Final Response\n\n")[2]
    letters = "".join(options)
    between = rf"(?:[\u4e00-\u9fff]|\W|^)(?![aA] )([{letters}])(?:\W|[\u4e00-\u9fff]|$)"
    for pattern in (r"answer is\s*?([A-N])", between):
        named = re.findall(pattern, text)
        if named:
            return named[0], named[-1]
    low = text.lower()
    lowered = {letter: option.lower() for letter, option in options.items()}
    there = [letter for letter in options if lowered[letter] in low]
    if there:
        return (min(there, key=lambda each: low.index(lowered[each])),
                max(there, key=lambda each: low.rindex(lowered[each])))  # fmt: skip
    alike = {letter: difflib.SequenceMatcher(None, option, low).ratio() for letter, option in lowered.items()}
    nearest = max(reversed(list(options)), key=alike.__getitem__)  # the last of equals
    return nearest, nearest
