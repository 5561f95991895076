"""The generators and scorers of the evaluation: golden samples, and what every sample must hold."""

from __future__ import annotations

import collections
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import trivium
from trivium import eval as evaluation
from trivium.eval.decoding import found_share
from trivium.eval.scoring import score
from trivium.eval.tasks.ruler import RULER
from trivium.eval.tasks.ruler.counting import COMMON
from trivium.eval.tasks.ruler.fitting import scatter

from tiny_models import build

GOLDEN = Path(__file__).parents[1] / "data" / "eval" / "samples.json"
LENGTH = 9000  # of characters, by the tokenizer below
BOOK = " ".join(
    f"The {a} {b} of {c} {d} at noon, and nobody {e} why."
    for a in ("quiet", "tired", "proud", "hasty") for b in ("miller", "sailor", "teacher") for c in ("Weston", "Highbury")
    for d in ("departed", "whistled", "wandered", "rested") for e in ("asked", "knew", "wondered")
)  # fmt: skip


class Characters:
    """A tokenizer with a token for each character, both ways."""

    eos_token_id = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


TOKENIZER = Characters()
CORPUS = evaluation.Corpus(TOKENIZER, BOOK)


def sample(task: str, index: int = 0, length: int = LENGTH, seed: int = 0) -> evaluation.Sample:
    return evaluation.make_sample(task, TOKENIZER, CORPUS, length, index, seed)


def prompt(task: str, index: int = 0, length: int = LENGTH) -> str:
    return TOKENIZER.decode(sample(task, index, length).ids)


def test_there_are_thirteen_ruler_tasks() -> None:
    assert len(RULER) == 13 == len(evaluation.GROUPS["ruler"])


@pytest.mark.parametrize("task", sorted(evaluation.TASKS))
def test_samples_are_golden(task: str, request: pytest.FixtureRequest) -> None:
    """Prompts of published figures must not drift; write new ones with TRIVIUM_UPDATE=1, and raise prompts.EDITION."""
    import hashlib
    import os

    made = sample(task)
    found = {
        "tokens": len(made.ids), "sha256": hashlib.sha256(json.dumps(made.ids).encode()).hexdigest(), "scored": made.scored,
        "answers": list(made.answers), "rows": hashlib.sha256(json.dumps(made.rows).encode()).hexdigest() if made.rows else "",
        "opens": TOKENIZER.decode(made.ids[:80]), "closes": TOKENIZER.decode(made.ids[-80:]),
    }  # fmt: skip
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("TRIVIUM_UPDATE"):
        GOLDEN.parent.mkdir(parents=True, exist_ok=True)
        GOLDEN.write_text(json.dumps({**golden, task: found}, indent=1, sort_keys=True) + "\n")
    else:
        assert found == golden[task]


@pytest.mark.parametrize("task", sorted(evaluation.TASKS))
@pytest.mark.parametrize("length", [6000, 9000, 20000])
def test_prompts_fill_their_length_and_no_more(task: str, length: int) -> None:
    text = evaluation.Corpus(TOKENIZER, BOOK * 4)
    made = evaluation.make_sample(task, TOKENIZER, text, length, 1, 0)
    used = len(made.ids) + made.new_tokens
    assert used <= length
    exhausted = task == "ruler.cwe"  # this small text has few words, and made-up ones follow
    assert used > 0.9 * length or exhausted
    assert made == evaluation.make_sample(task, TOKENIZER, text, length, 1, 0)
    assert made != evaluation.make_sample(task, TOKENIZER, text, length, 2, 0)
    assert made.ids != evaluation.make_sample(task, TOKENIZER, text, length, 1, 7).ids


@pytest.mark.parametrize("task", evaluation.GROUPS["ruler"])
@pytest.mark.parametrize("index", range(5))
def test_ruler_answers_are_in_the_prompt_and_the_question_is_last(task: str, index: int) -> None:
    made = sample(task, index)
    text = TOKENIZER.decode(made.ids)
    assert made.answers and len(set(made.answers)) == len(made.answers)
    assert all(answer in text for answer in made.answers)
    assert text.endswith(("are", "is", ":"))
    assert found_share(" and ".join(made.answers), made) == 1.0
    assert found_share("nothing of the kind", made) == 0.0


@pytest.mark.parametrize(("task", "answers", "new_tokens"), [
    ("niah_single_1", 1, 128), ("niah_single_2", 1, 128), ("niah_single_3", 1, 128), ("niah_multikey_1", 1, 128),
    ("niah_multikey_2", 1, 128), ("niah_multikey_3", 1, 128), ("niah_multivalue", 4, 128), ("niah_multiquery", 4, 128),
    ("vt", 5, 30), ("cwe", 10, 120), ("fwe", 3, 50), ("qa_1", 1, 32), ("qa_2", 1, 32),
])  # fmt: skip
def test_ruler_settings_are_the_papers(task: str, answers: int, new_tokens: int) -> None:
    made = sample(f"ruler.{task}")
    assert (len(made.answers), made.new_tokens) == (answers, new_tokens)


def test_each_needle_is_hidden_once() -> None:
    for task in ("niah_single_2", "niah_multikey_1", "niah_multivalue", "niah_multiquery", "niah_multikey_2"):
        text = prompt(f"ruler.{task}")
        needles = re.findall(r"One of the special magic numbers for ([a-z]+-[a-z]+) is: (\d{7})\.", text)
        keys = collections.Counter(key for key, _ in needles)
        want = {"niah_single_2": (1, 1), "niah_multikey_1": (4, 1), "niah_multivalue": (1, 4), "niah_multiquery": (4, 1)}
        if task in want:
            assert (len(keys), max(keys.values())) == want[task]
        else:
            assert len(keys) == len(needles) > 50
        answer = sample(f"ruler.{task}").answers
        assert set(answer) <= {value for _, value in needles}


def test_the_chain_can_be_followed() -> None:
    made = sample("ruler.vt")
    text = TOKENIZER.decode(made.ids).split("\n\n", 2)[2]
    value = re.search(r"assigned the value (\d+) in the text", text)
    assert value
    known = {value.group(1)}
    for new, old in re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)", text):
        if old in known:
            known.add(new)
    assert known - {value.group(1)} == set(made.answers)


def test_common_words_are_the_commonest() -> None:
    made = sample("ruler.cwe", length=20000)
    listed = TOKENIZER.decode(made.ids).split("often.\n")[-1].split("\nQuestion")[0]
    counts = collections.Counter(re.findall(r"\d+\. (\S+)", listed))
    assert {word for word, _ in counts.most_common(COMMON)} == set(made.answers)
    assert {counts[word] for word in made.answers} == {30}
    assert set(counts.values()) == {30, 3}


def test_frequent_words_are_the_most_frequent_after_the_dots() -> None:
    made = sample("ruler.fwe")
    context = TOKENIZER.decode(made.ids).split("coded words. ")[1].split("\nQuestion")[0]
    (dots, _), *rest = collections.Counter(context.split()).most_common(5)
    assert dots == "...."
    assert [word for word, _ in rest[:3]] == list(made.answers)
    assert rest[2][1] > rest[3][1]


def test_two_hops_need_both_documents() -> None:
    made = sample("ruler.qa_2")
    text = TOKENIZER.decode(made.ids)
    place = re.search(r"archive of (\w+) born\?", text)
    assert place
    person = re.search(rf"The archive of {place.group(1)} is kept by (\w+ \w+)\.", text)
    assert person
    assert f"{person.group(1)} was born in the town of {made.answers[0]}." in text
    documents = text.split("Document ")
    assert not any(place.group(1) in d and f"town of {made.answers[0]}" in d for d in documents)


def test_an_asked_pair_is_among_the_pairs() -> None:
    for index in range(4):
        made = sample("keyvalue", index)
        text, answer = TOKENIZER.decode(made.ids[: -made.scored]), TOKENIZER.decode(made.ids[-made.scored :])
        pairs = dict(re.findall(r'"([0-9a-f-]{36})": "([0-9a-f-]{36})"', text))
        asked = re.search(r'Key: "(\S+)"\nCorresponding value: "$', text)
        assert asked and pairs[asked.group(1)] == answer
        assert len(pairs) == made.about["pairs"]


def test_a_needle_is_told_from_the_others_by_its_city_alone() -> None:
    made = sample("needle", 3)
    text, answer = TOKENIZER.decode(made.ids[: -made.scored]), TOKENIZER.decode(made.ids[-made.scored :])
    numbers = dict(re.findall(r"The lucky number of (\w+) is (\d{7})\.", text))
    asked = re.search(r"The lucky number of (\w+) is$", text)
    assert asked and len(numbers) == 4 and f" {numbers[asked.group(1)]}" == answer
    at = text.index(numbers[asked.group(1)]) / len(text)
    assert at == pytest.approx(made.about["depth"], abs=0.05)


def test_positions_are_spread_over_the_window() -> None:
    made = sample("perplexity_by_position")
    assert len(made.rows) == 16 * 64 and max(made.rows) < LENGTH - 1
    parts = [row * 16 // (LENGTH - 1) for row in made.rows]
    assert parts == sorted(parts) and set(collections.Counter(parts).values()) == {64}


@pytest.mark.parametrize(("answers", "any_answer", "text", "want"), [
    (("1234567",), False, "the number is 1234567.", 1.0),
    (("ABCDE", "FGHIJ"), False, "abcde only", 0.5),
    (("ABCDE", "FGHIJ"), True, "abcde only", 1.0),
    (("ABCDE", "FGHIJ"), True, "", 0.0),
])  # fmt: skip
def test_found_share(answers: tuple[str, ...], any_answer: bool, text: str, want: float) -> None:
    made = evaluation.Sample([1], kind="generate", answers=answers, any_answer=any_answer)
    assert found_share(text, made) == want


def test_scatter_keeps_everything_in_order() -> None:
    draw = random.Random(0)
    for _ in range(50):
        units = [str(n) for n in range(draw.randrange(20))]
        needles = [(draw.random(), f"n{n}") for n in range(draw.randrange(5))]
        made = scatter(units, needles)
        assert [m for m in made if not m.startswith("n")] == units
        assert [m for m in made if m.startswith("n")] == [n for _, n in sorted(needles)]


# Scorers, each against a plain computation of the same thing from the full logits.


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama")


def ids(length: int = 80) -> list[int]:
    return torch.randint(2, 97, (length,), generator=torch.Generator().manual_seed(5)).tolist()


def full_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens])).logits[0].float()  # type: ignore[no-any-return]


def test_rows_are_scored_where_they_are(model: Any) -> None:
    rows = (3, 10, 40, 78)
    made = score(model, evaluation.Sample(ids(), kind="rows", rows=rows, bins=2))
    log_p = full_logits(model, ids()).log_softmax(-1)
    want = [-float(log_p[row, ids()[row + 1]]) for row in rows]
    assert made.curves["nll"] == pytest.approx([sum(want[:2]) / 2, sum(want[2:]) / 2], abs=1e-5)
    assert made.scores["nll"] == pytest.approx(sum(want) / 4, abs=1e-5)


def test_divergence_is_from_the_baseline(model: Any) -> None:
    rows = (20, 50, 78)
    own, other = full_logits(model, ids())[list(rows)], full_logits(build("llama", seed=1), ids())[list(rows)]
    p, q = other.log_softmax(-1).exp(), own.log_softmax(-1).exp()
    found = score(model, evaluation.Sample(ids(), kind="compare", rows=rows), baseline=other).scores
    assert found["kl"] == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)
    want = [-float(own[n].log_softmax(-1)[ids()[row + 1]]) for n, row in enumerate(rows)]
    assert found["nll"] == pytest.approx(sum(want) / 3, abs=1e-5)
    assert found["agreement"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()))
    same = score(model, evaluation.Sample(ids(), kind="compare", rows=rows)).scores
    assert (same["agreement"], same["kl"]) == (1.0, 0.0)


def test_generation_is_greedy_and_stops_when_everything_was_found(model: Any) -> None:
    tokens = ids()
    for _ in range(6):
        tokens.append(int(full_logits(model, tokens)[-1].argmax()))
    made = [chr(token) for token in tokens[80:]]
    for arm in (evaluation.Arm("torch", evaluation.TORCH), evaluation.Arm("dense", "dense")):
        with evaluation.attending(model, arm):
            never = score(model, evaluation.Sample(ids(), kind="generate", new_tokens=6, answers=("\0",)), tokenizer=TOKENIZER)
            soon = score(model, evaluation.Sample(ids(), kind="generate", new_tokens=6, answers=(made[2],)), tokenizer=TOKENIZER)
        assert (never.answer, never.scores) == ("".join(made), {"score": 0.0})
        assert (soon.answer, soon.scores) == ("".join(made[: made.index(made[2]) + 1]), {"score": 1.0})


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_answers_decoded_together_are_those_decoded_alone(family: str) -> None:
    """Prefills that differ, of which some end early: each row goes its own way."""
    from trivium.eval.decoding import decode
    from trivium.eval.scoring import start

    model = build(family)
    arms = [evaluation.Arm("dense", "dense"), *(
        evaluation.Arm(f"streaming {recent}", {"strategy": "streaming", "sink": 16, "recent": recent, "block_size": 16}) for recent in (16, 32)
    )]  # fmt: skip
    asked = evaluation.Sample(ids(), kind="generate", new_tokens=7, answers=("\0",))

    def begin() -> list[Any]:
        begun = []
        for arm in arms:
            with evaluation.attending(model, arm):
                begun.append(start(model, asked))
        return begun

    with evaluation.attending(model, arms[0]):
        alone = [decode(model, TOKENIZER, asked, [each], 7)[0] for each in begin()]
        assert len(set(alone)) > 1 and all(len(text) == 7 for text in alone)
        assert decode(model, TOKENIZER, asked, begin(), 7) == alone
        assert decode(model, TOKENIZER, asked, begin(), 3) == [text[:3] for text in alone]
        soon = evaluation.Sample(ids(), kind="generate", new_tokens=7, answers=(alone[0][1],))
        found = decode(model, TOKENIZER, soon, begin(), 7)
        assert found == [text[: text.index(alone[0][1]) + 1] if alone[0][1] in text else text for text in alone]


def test_no_room_means_smaller_batches_and_the_same_answers(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trivium.eval import decoding

    streaming = {"strategy": "streaming", "sink": 16, "recent": 64, "block_size": 16}
    arms = (evaluation.Arm("dense", "dense"), evaluation.Arm("streaming", streaming), evaluation.Arm("again", {**streaming, "sink": 32}))
    plan = evaluation.Plan(arms, ("ruler.niah_single_1",), (600,), samples=2, new_tokens=5)
    answers = []
    for room in (1, 1 << 30):
        monkeypatch.setitem(decoding.BATCH_BYTES, "cpu", room)
        evaluation.run(plan, model, SmallVocabulary(), evaluation.Corpus(SmallVocabulary(), BOOK), tmp_path / str(room))
        lines = [json.loads(line) for line in (tmp_path / str(room) / "records.jsonl").read_text().splitlines()]
        answers.append({tuple(line["cell"]): line["found"]["answer"] for line in lines})
    assert answers[0] == answers[1] and len(answers[0]) == 6
    assert all(len(text) <= 5 for text in answers[0].values())


class SmallVocabulary(Characters):
    """The printable characters, as tokens that the tiny models know."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [max(ord(c), 32) - 30 for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(token + 30) for token in ids)


class Chatty(Characters):
    chat_template = "{{ messages }}"

    def apply_chat_template(self, turns: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize and add_generation_prompt
        return "".join(f"<{turn['role']}>{turn['content']}</>" for turn in turns) + "<assistant>"


@pytest.mark.parametrize("name", sorted(RULER))
def test_questions_of_a_chat(name: str) -> None:
    from trivium.eval.prompts import Prompts

    task = f"ruler.{name}"
    plain = Prompts(Chatty(), CORPUS, 0, chat=False).get(task, LENGTH, 0)
    assert plain == sample(task)
    prompts = Prompts(Chatty(), CORPUS, 0)
    asked = prompts.get(task, LENGTH, 0)
    assert prompts.chat and (asked.answers, asked.new_tokens) == (plain.answers, plain.new_tokens)
    text = TOKENIZER.decode(asked.ids)
    assert LENGTH - 600 < len(asked.ids) + asked.new_tokens <= LENGTH
    assert text.startswith("<user>") and text.count("</><assistant>") == 1 and "\0" not in text
    question, opening = text.split("</><assistant>")
    assert prompt(task).endswith(opening) and opening.startswith(("Answer:", "The special magic"))
    assert prompt(task)[-len(opening) - 40 : -len(opening)].strip().endswith(question[-20:])


def test_text_is_no_chat() -> None:
    from trivium.eval.prompts import Prompts

    assert Prompts(Chatty(), CORPUS, 0).get("perplexity", LENGTH, 0) == sample("perplexity")
    assert not Prompts(TOKENIZER, CORPUS, 0).chat
    with pytest.raises(trivium.InvalidArgument, match="no chat template") as error:
        Prompts(TOKENIZER, CORPUS, 0, chat=True)
    assert "--no-chat" in str(error.value)


def test_a_text_too_short_says_what_to_do() -> None:
    with pytest.raises(trivium.InvalidArgument, match="want a length that fits") as error:
        evaluation.make_sample("perplexity", TOKENIZER, CORPUS, 10**6, 0, 0)
    assert "--text" in error.value.hint
    with pytest.raises(trivium.InvalidArgument, match="shortest prompt of this task needs"):
        sample("ruler.qa_1", length=300)
