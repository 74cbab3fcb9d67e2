"""Frame a row as the sequences of a decoder. Use `build_frame` and `FRAMED_LAYOUTS`.

A judge reads prompt and both answers in one sequence, round by round, each text under a heading,
and closes with a question, so that its last token asks for the verdict. Under the shape "siamese" a
sequence has one answer, and the question is how good it is. The texts of the frame are
tokenised once, by themselves, and so are those of the rows: what is cut from a row never changes
the tokens around it, and the question is never cut.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kit.data.truncation import (
    Overhead,
    TruncatedSequence,
    Turns,
    count_kept,
    side_length,
    split_budget,
)
from kit.errors import BackboneError, RecipeError
from kit.recipe.spec import EncodeSpec, Shape
from kit.wording import first_line

INTRODUCTION = "# Two responses to one conversation: A and B"
INSTRUCTION = (
    "Two assistants, A and B, have answered in the conversation below. Judge whose responses "
    "people prefer, or whether it is a tie."
)
HEADINGS = ("\n\n## Prompt\n", "\n\n## Response A\n", "\n\n## Response B\n")
QUESTION = "\n\n## Verdict: do people prefer A, B, or is it a tie?\n"
SIDE_INTRODUCTION = "# A response to a conversation"
SIDE_INSTRUCTION = (
    "An assistant has answered in the conversation below. Judge how much people like its responses."
)
SIDE_HEADING = "\n\n## Response\n"
SIDE_QUESTION = "\n\n## Verdict: how much do people like the response?\n"

# Stands in a chat template for the message, which the rows' texts are part of.
_MESSAGE = "KIT-MESSAGE"

# A budget in which prompt and answers have fewer tokens than this each is taken for a mistake.
_LEAST_TOKENS = 8


@dataclass(frozen=True)
class Frame:
    """The tokens around the texts of a row.

    Attributes:
        kind: "plain" or "chat", as in the recipe.
        start: tokens before everything, the model's own first token included.
        prompt, response_a, response_b: tokens before each text; of a side both answers have the
            same.
        end: tokens after everything.
    """

    kind: str
    start: list[int]
    prompt: list[int]
    response_a: list[int]
    response_b: list[int]
    end: list[int]

    @property
    def digest(self) -> str:
        """A hash of all its tokens."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode()).hexdigest()

    @property
    def parts(self) -> tuple[list[int], ...]:
        """Its pieces, in the order of a sequence."""
        return self.start, self.prompt, self.response_a, self.response_b, self.end

    @property
    def heading(self) -> int:
        """The tokens that a text's heading costs at most; the same for A and B."""
        return max(map(len, (self.prompt, self.response_a, self.response_b)))

    @property
    def size(self) -> int:
        """The tokens of a frame around one round."""
        return len(self.start) + 3 * self.heading + len(self.end)


def build_frame(kind: str, tokenizer: Any, shape: Shape = "judge") -> Frame:
    """Return the frame "plain" or "chat" in the tokens of a fast transformers tokenizer.

    Raises:
        BackboneError: the tokenizer has no chat template, or one that changes the message.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()

    def encode(text: str) -> list[int]:
        return backend.encode(text, add_special_tokens=False).ids

    introduction, instruction, headings, question = INTRODUCTION, INSTRUCTION, HEADINGS, QUESTION
    if shape == "siamese":
        introduction, instruction, question = SIDE_INTRODUCTION, SIDE_INSTRUCTION, SIDE_QUESTION
        headings = (HEADINGS[0], SIDE_HEADING, SIDE_HEADING)

    # In the frame special tokens are structure, whatever they are in the rows' texts.
    backend.encode_special_tokens = False
    prompt, response_a, response_b = map(encode, headings)
    if kind == "plain":
        start = [*_first_tokens(backend), *encode(introduction)]
        return Frame(kind, start, prompt, response_a, response_b, encode(question))

    head, tail = _split_chat_template(tokenizer)
    start = encode(head + instruction)
    return Frame(kind, start, prompt, response_a, response_b, encode(question + tail))


def _first_tokens(backend: Any) -> list[int]:
    """Return the special tokens that the tokenizer puts before a text, such as BOS."""
    ids = backend.encode("a").ids
    plain = backend.encode("a", add_special_tokens=False).ids
    places = [place for place in range(len(ids)) if ids[place : place + len(plain)] == plain]
    return ids[: places[0]] if places else []


def _split_chat_template(tokenizer: Any) -> tuple[str, str]:
    """Return what the model's chat template puts before and after a user's message.

    Raises:
        BackboneError: there is no template, or the message is not in what it makes.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise BackboneError(
            'encode.frame = "chat": the tokenizer has no chat template, as that of a model that '
            "was not trained for chats",
            "Set encode.frame=plain.",
        )
    messages = [{"role": "user", "content": _MESSAGE}]
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=True,
            # Qwen 3 would begin to think aloud; other templates do not look at it.
            enable_thinking=False,
        )
        head, message, tail = text.partition(_MESSAGE)
    # Templates are programs of the model's author, run by jinja2.
    except Exception as error:
        raise BackboneError(
            'encode.frame = "chat": the tokenizer\'s chat template cannot be used: '
            f"{first_line(error)}",
            "Set encode.frame=plain.",
        ) from error
    if not message:
        raise BackboneError(
            'encode.frame = "chat": the chat template drops the message', "Set encode.frame=plain."
        )
    return head, tail


def require_room(frame: Frame, spec: EncodeSpec) -> None:
    """Raise RecipeError if the frame leaves no room for prompt and answers in the token budget."""
    least = frame.size + 3 * _LEAST_TOKENS
    if spec.max_tokens < least:
        raise RecipeError(
            f"encode.max_tokens = {spec.max_tokens}, but the {frame.kind} frame alone takes "
            f"{frame.size}",
            f"Set encode.max_tokens to {least} at least; 1024 is usual.",
        )


def judge_sequences(
    prompt: Turns, answers: Sequence[Turns], spec: EncodeSpec, frame: Frame
) -> Iterator[TruncatedSequence]:
    """Yield the whole row as one framed sequence, once in each order of the answers.

    The early rounds go first; what is kept of each text is the same in both orders.
    """
    kept, kept_answers, lost = _split_framed(prompt, answers, spec, frame)
    for order in ((0, 1), (1, 0)):
        texts = [(frame.prompt, kept, len(prompt))]
        for heading, answer in zip((frame.response_a, frame.response_b), order, strict=True):
            texts.append((heading, kept_answers[answer], len(answers[answer])))
        own = order[0]
        whole = side_length(prompt, answers[own])
        retention = count_kept(prompt, kept, answers[own], kept_answers[own])
        yield TruncatedSequence(_by_rounds(texts, frame), [], whole, lost, retention)


def framed_sides(
    prompt: Turns, answers: Sequence[Turns], spec: EncodeSpec, frame: Frame
) -> Iterator[TruncatedSequence]:
    """Yield one framed sequence for each answer, with the prompt and that answer."""
    for answer in answers:
        kept, (kept_answer,), lost = _split_framed(prompt, [answer], spec, frame)
        texts = [
            (frame.prompt, kept, len(prompt)),
            (frame.response_a, kept_answer, len(answer)),
        ]
        whole = side_length(prompt, answer)
        retention = count_kept(prompt, kept, answer, kept_answer)
        yield TruncatedSequence(_by_rounds(texts, frame), [], whole, lost, retention)


FRAMED_LAYOUTS: dict[str, Callable[..., Iterator[TruncatedSequence]]] = {
    "judge": judge_sequences,
    "siamese": framed_sides,
}


def _split_framed(
    prompt: Turns, answers: Sequence[Turns], spec: EncodeSpec, frame: Frame
) -> tuple[Turns, list[Turns], bool]:
    """Return the turns that fit between start and end, each with its heading."""
    room = spec.max_tokens - len(frame.start) - len(frame.end)
    overhead = Overhead(first=frame.heading, further=frame.heading)
    return split_budget(prompt, answers, room, spec, overhead)


def _by_rounds(texts: Sequence[tuple[list[int], Turns, int]], frame: Frame) -> list[int]:
    """Return the tokens of a sequence: the kept turns of all texts, round by round.

    Args:
        texts: of each its heading, its kept turns, and the number of its turns before the cut.
            Rounds are counted from the first one of the conversation, kept or not.
    """
    pieces = [
        (count - len(turns) + place, position, heading + turn)
        for position, (heading, turns, count) in enumerate(texts)
        for place, turn in enumerate(turns)
    ]
    pieces.sort(key=lambda piece: piece[:2])

    tokens = [*frame.start]
    for _, _, piece in pieces:
        tokens += piece
    return tokens + frame.end
