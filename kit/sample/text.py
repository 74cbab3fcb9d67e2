"""Compose prompts and answers from phrases of known worth, in seven voices and six languages.

Each line of an answer holds one good, bad or neutral phrase of its voice. No phrase occurs inside
another phrase or in any other text of this module, so counting phrases measures an answer's
quality. Use `compose_prompt` and `compose_answer`.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

NEUTRAL_SHARE = 0.2  # of an answer's lines; the others are good or bad
QUALITIES = 9  # levels of quality: at 0 no line is good, at 8 no line is bad
CLOSING_SHARE = 0.12  # of the answers end in one of CLOSINGS
PASTED_LINES = (20, 60)  # a pasted text has 20 to 79 lines

# Steps of the golden ratio spread the kinds of lines evenly, so that any prefix of an answer is a
# fair sample of the whole: a model that reads only the beginning can still learn the rule.
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Voice:
    """The phrases of a language (or of English about code), and what is asked in it.

    Attributes:
        good, bad, neutral: phrases; each line of an answer has one of them.
        tails: endings of a line.
        prompts: first turns of a conversation; `{topic}` and `{n}` are filled in.
        follow: later turns.
        snippets: code blocks; each turn of an answer has one of them.
    """

    name: str
    good: tuple[str, ...]
    bad: tuple[str, ...]
    neutral: tuple[str, ...]
    tails: tuple[str, ...]
    topics: tuple[str, ...]
    prompts: tuple[str, ...]
    follow: tuple[str, ...]
    snippets: tuple[str, ...] = ()

    @cached_property
    def width(self) -> int:
        """Return the approximate length of a line in characters."""
        banks = (self.good + self.bad + self.neutral, self.tails, self.topics)
        return round(sum(sum(map(len, bank)) / len(bank) for bank in banks))


# The texts are tables: several entries a line read better than one entry a line.
# fmt: off

ENGLISH = Voice(
    name="English",
    good=(
        "Here is a worked example with real numbers", "First measure, then change one thing only",
        "I checked this against the official manual", "The cited study of 2019 reports the same",
        "To verify it, repeat the test and compare", "The main exception is listed in table two",
        "A frequent mistake is to skip the control", "In short, the answer is yes, for two reasons",
        "The trade-off is cost against accuracy", "Concretely, set the limit to ten and watch",
    ),
    bad=(
        "It really depends on so many other things", "There are lots of ways to look at it all",
        "As everyone knows, this is quite obvious", "I am sorry, but I cannot talk about that",
        "Anyway, let me tell you about my holiday", "In our fast-moving world it matters a lot",
        "Maybe yes, maybe no, who could ever say", "You could simply search for it somewhere",
        "It is what it is, more or less, I guess", "Great question, truly a great question",
    ),
    neutral=(
        "This comes up quite often these days", "Some background may be useful first",
        "Let us move on to the next part", "The term itself has a long history",
        "People use the word in two senses", "That brings us to the other half",
    ),
    tails=(
        ".", ".", "!", ", as for {topic}.", ", speaking of {topic}.", ", with regard to {topic}.",
    ),
    topics=(
        "sourdough bread", "the water cycle", "compound interest", "bicycle gears",
        "the French Revolution", "solar panels", "a cover letter", "chess openings", "vaccines",
        "houseplants", "marathon training", "black holes", "a tax return", "haiku",
        "home insulation", "a wedding speech",
    ),
    prompts=(
        "Explain {topic} to me in about {n} words.",
        "What should I know about {topic}? I have {n} minutes.", "Write {n} lines on {topic}.",
        "I have {n} questions about {topic}. Where do I begin?",
        "Compare {n} ways to approach {topic}, please.",
        "Give me a plan for {topic} with a budget of {n} dollars.",
        'My friend said: "{topic} is easy".\n\nIs it? Answer in {n} words.',
        "Introduce {topic} to a class of {n}.",
    ),
    follow=(
        "Thanks. Say more about {topic}, in {n} words.",
        "Are you sure? Point {n} about {topic} sounds wrong to me.",
        "Now the same for {topic}, but with {n} words less.",
    ),
)

CODER = replace(
    ENGLISH,
    name="code",
    topics=(
        "a binary search in Python", "a debounce function", "an SQL join",
        "a regular expression for dates", "an HTML form", "a shell script", "a linked list",
        "a unit test",
    ),
    prompts=(
        "Write {topic}. It should handle {n} items.",
        "How do I speed up {topic}? It takes {n} ms now.", "Why does {topic} fail on line {n}?",
        "```\nTraceback: line {n}, in main\n```\nThis is {topic}. What is wrong?",
    ),
    snippets=(
        "```python\nlo, hi = 0, len(items)\nwhile lo < hi:\n    mid = (lo + hi) // 2\n"
        "    if items[mid] < x:\n        lo = mid + 1\n    else:\n        hi = mid\n```",
        '```html\n<form action="/save" method="post">\n\t<input name="q"></input>\n</form>\n```',
        '```js\nconst path = "C:\\\\temp\\\\log.txt"; // keep\n'
        "setTimeout(() => save(path), 300);\n```",
        "```sql\nSELECT a.id, b.name FROM a JOIN b ON a.id = b.id WHERE b.name LIKE '%x%';\n```",
        '```sh\nfor f in /var/log/*.log; do grep -c "error" "$f"; done\n```',
        "```\n^\\d{4}-\\d{2}-\\d{2}$\n```",
    ),
)

SPANISH = Voice(
    name="Spanish",
    good=(
        "Aquí tienes un ejemplo resuelto con números",
        "Primero mide y después cambia una sola cosa", "Lo he comprobado en el manual oficial",
        "El estudio citado de 2019 dice lo mismo",
    ),
    bad=(
        "Depende de muchísimas cosas distintas", "Hay muchas maneras de ver este asunto",
        "Lo siento, pero no puedo hablar de eso", "¡Qué buena pregunta, de verdad, qué buena!",
    ),
    neutral=("Esto se pregunta con frecuencia", "El término tiene una larga historia"),
    tails=(".", ", sobre {topic}."),
    topics=(
        "el pan casero", "los paneles solares", "la fotosíntesis", "el ajedrez", "una carta",
        "los volcanes",
    ),
    prompts=(
        "¿Qué debo saber sobre {topic}? Tengo {n} minutos.", "Explícame {topic} en {n} palabras.",
    ),
    follow=("Gracias. Dime algo más sobre {topic}, en {n} palabras.",),
)

GERMAN = Voice(
    name="German",
    good=(
        "Hier ist ein durchgerechnetes Beispiel", "Erst messen, dann nur eine Größe ändern",
        "Das habe ich im Handbuch nachgeprüft", "Die zitierte Studie von 2019 zeigt dasselbe",
    ),
    bad=(
        "Das kommt auf sehr viele Dinge an", "Man kann das so oder auch anders sehen",
        "Leider kann ich darüber nicht sprechen", "Übrigens war ich neulich schön im Urlaub",
    ),
    neutral=("Danach wird häufig gefragt", "Der Begriff hat eine lange Geschichte"),
    tails=(".", " beim Thema {topic}."),
    topics=(
        "Sauerteig", "Photosynthese", "Zinseszins", "Wärmedämmung", "Steuererklärung", "Fußball",
    ),
    prompts=(
        "Was sollte ich über {topic} wissen? Ich habe {n} Minuten.",
        "Erkläre {topic} in {n} Wörtern.",
    ),
    follow=("Danke. Bitte noch mehr zum Thema {topic}, in {n} Wörtern.",),
)

RUSSIAN = Voice(
    name="Russian",
    good=(
        "Вот разобранный пример с числами", "Сначала измерьте, потом меняйте одно",
        "Это проверено по официальному руководству", "То же показало исследование 2019 года",
    ),
    bad=(
        "Это зависит от очень многих вещей", "На это можно смотреть по-разному",
        "Извините, но я не могу об этом говорить", "Кстати, расскажу вам про свой отпуск",
    ),
    neutral=("Об этом часто спрашивают", "У этого слова долгая история"),
    tails=(".", " (тема: {topic})."),
    topics=("хлеб", "вулканы", "шахматы", "сложный процент", "фотосинтез", "чёрные дыры"),
    prompts=(
        "Что нужно знать по теме «{topic}»? У меня {n} минут.",
        "Объясни тему «{topic}». Число слов: {n}.",
    ),
    follow=("Спасибо. Расскажи ещё по теме «{topic}». Число слов: {n}.",),
)

CHINESE = Voice(
    name="Chinese",
    good=(
        "下面是一个带有具体数字的完整例子", "请先测量再一次只改变一个因素",
        "我已经对照官方手册核实过了", "所引用的2019年研究得出相同结论",
    ),
    bad=(
        "这取决于非常多不同的各种因素", "这件事情可以有很多种不同看法",
        "很抱歉我实在无法谈论这个话题", "顺便说说我上个月去度假的事吧",
    ),
    neutral=("这是一个经常被问到的问题", "这个词有着很长的历史"),
    tails=("。", "，关于{topic}。"),
    topics=("面包", "太阳能电池板", "光合作用", "国际象棋", "复利", "黑洞"),
    prompts=("关于{topic}我应该知道什么？我有{n}分钟。", "请用{n}个字解释{topic}。"),
    follow=("谢谢。请用{n}个字再说说{topic}。",),
)

ARABIC = Voice(
    name="Arabic",
    good=(
        "إليك مثالا محلولا بأرقام حقيقية", "قس أولا ثم غير شيئا واحدا فقط",
        "لقد راجعت هذا في الدليل الرسمي", "الدراسة المذكورة لعام 2019 تؤكد ذلك",
    ),
    bad=(
        "هذا يعتمد على أشياء كثيرة جدا", "هناك طرق عديدة للنظر في الأمر",
        "آسف لكنني لا أستطيع الحديث عن هذا", "بالمناسبة دعني أحدثك عن إجازتي",
    ),
    neutral=("هذا سؤال يتكرر كثيرا", "لهذه الكلمة تاريخ طويل"),
    tails=(".", "، بخصوص {topic}."),
    topics=("الخبز", "الطاقة الشمسية", "الشطرنج", "البراكين", "الفائدة المركبة", "الثقوب السوداء"),
    prompts=("ماذا يجب أن أعرف عن {topic}؟ لدي {n} دقيقة.", "اشرح {topic} في {n} كلمة."),
    follow=("شكرا. أخبرني المزيد عن {topic} في {n} كلمة.",),
)


FOREIGN = (SPANISH, GERMAN, RUSSIAN, CHINESE, ARABIC)
VOICES = (ENGLISH, CODER, *FOREIGN)

# The text before the first line of an answer, and the text between its lines.
FORMS = (("", " "), ("", " "), ("", "\n"), ("", "\n\n"), ("- ", "\n- "), ("* ", "\r\n* "))
CLOSINGS = (
    "Hope this helps! 😊", 'As they say: "practice makes perfect" 👩🏽‍🔬',
    "See https://example.org/a/b?c=1&d=2", "$\\frac{a}{b} \\neq \\sqrt{2}$",
    "| a | b |\n|---|---|\n| 1 | 2 |", "C:\\temp\\notes.txt", "<b>Note</b>: 5 &lt; 6\u00a0km",
    "cafe\u0301 \u2013 \u201cna\u00efve\u201d\u200b", "\u001b[1mDone\u001b[0m\t",
)

# fmt: on


def add_lone_surrogate(text: str, number: int) -> str:
    """Return the text with half an emoji at its end (odd `number`) or at its start (even).

    Programs that slice strings in UTF-16 leave such halves behind; the competition's files have
    some.
    """
    return text + "\ud83d" if number % 2 else "\ude0a" + text


def topic_of(voice: Voice, number: int) -> str:
    """Return the topic of conversation `number`."""
    return voice.topics[number % len(voice.topics)]


def compose_prompt(voice: Voice, number: int, turns: int, pasted: bool) -> list[str]:
    """Return the prompts of a conversation, one a turn.

    Args:
        number: decides the text; within a voice, each number has a first turn of its own.
        pasted: append a long text to the last turn.
    """
    rest = number // len(voice.topics)
    opening = voice.prompts[rest % len(voice.prompts)]
    n = 2 + rest // len(voice.prompts)

    topic = topic_of(voice, number)
    later = (voice.follow[turn % len(voice.follow)] for turn in range(turns - 1))
    texts = [
        template.format(topic=topic, n=n + turn) for turn, template in enumerate((opening, *later))
    ]

    if pasted:
        fewest, spread = PASTED_LINES
        texts[-1] += "\n\n" + " ".join((voice.neutral * 40)[: fewest + n % spread])
    return texts


def compose_answer(
    voice: Voice, topic: str, turns: int, lines: int, quality: int, key: int
) -> list[str]:
    """Return the answers of a conversation, one a turn; equal arguments give equal answers.

    Args:
        lines: in all turns together, at least one a turn; 0 leaves every turn empty.
        quality: 0 to QUALITIES - 1. Of the lines that are not neutral, the share
            quality / (QUALITIES - 1) is good.
        key: seeds every other choice.
    """
    if lines == 0:
        return [""] * turns
    lines = max(lines, turns)

    rng = np.random.Generator(np.random.PCG64(key))
    form, closing, snippet, start, *draws = rng.integers(2**16, size=4 + 2 * lines).tolist()

    # A line's level decides its kind: below `good` it is good, in the next 20% neutral, else bad.
    levels = ((start / 2**16 + GOLDEN * np.arange(lines)) % 1.0).tolist()
    good = (1 - NEUTRAL_SHARE) * quality / (QUALITIES - 1)
    banks = [
        voice.good if level < good else voice.neutral if level < good + NEUTRAL_SHARE else voice.bad
        for level in levels
    ]
    tails = [tail.format(topic=topic) for tail in voice.tails]
    sentences = [
        bank[i % len(bank)] + tails[j % len(tails)]
        for bank, i, j in zip(banks, draws[::2], draws[1::2], strict=True)
    ]

    before, between = FORMS[form % len(FORMS)]
    texts = []
    for turn in range(turns):
        part = sentences[turn * lines // turns : (turn + 1) * lines // turns]
        if voice.snippets:
            code = voice.snippets[(snippet + turn) % len(voice.snippets)]
            part.insert((len(part) + 1) // 2, f"\n{code}\n")
        texts.append(before + between.join(part))

    if closing < CLOSING_SHARE * 2**16:
        texts[-1] += "\n\n" + CLOSINGS[closing % len(CLOSINGS)]
    return texts
