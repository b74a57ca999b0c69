"""Reader that lets a causal model write its reasons before it answers, and ranks options by votes of its chains."""

from dataclasses import replace
from typing import Any, cast

import numpy as np

from sciqa.core.errors import InputError
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.probabilities import NOISE, settle_probability_ties, softmax
from sciqa.models.causal import CausalScorer
from sciqa.models.chains import CUE_TOKENS, Chain, ChainSettings, encode_chain_letters, write_chains
from sciqa.models.letters import ends_with_letter, find_letter, scores_by_letter_votes
from sciqa.models.scorer import EncodedForScorer, Scorer, score_options
from sciqa.predict.question_sources import join_question_sources
from sciqa.predict.scored_answers import ScoredAnswer
from sciqa.predict.scorer_reader import ScorerReader
from sciqa.predict.shots import ShotChooser


def set_reasoned_style(scorer: Scorer, style: dict) -> None:
    """Set fields of a scorer's format; without one for `prompt`, it is `chat` where the tokenizer has a template."""
    default = {"prompt": "chat"} if scorer.tokenizer.chat_template else {}
    scorer.style = replace(scorer.style, **default | style)


def encode_reasoned(
    scorer: Scorer,
    questions: list[dict],
    found: list[tuple[dict, ...]],
    max_tokens: int,
    chooser: ShotChooser | None = None,
) -> list[EncodedForScorer]:
    """Return the prompts of questions, after each of which the model's limit leaves room for a chain and its answer."""
    if scorer.limit <= max_tokens + CUE_TOKENS:
        raise InputError(f"--max-tokens: {max_tokens} given, and the model has place for {scorer.limit}; pass fewer")
    asked = join_question_sources(questions, found, chooser)
    scorer = cast("CausalScorer", scorer)
    return [scorer.encode_to_write(question, context, max_tokens + CUE_TOKENS) for question, context in asked]


class ReasonedReader(ScorerReader):
    """Reader whose model writes chains; each chain is a vote for the letter that it ends with.

    A chain that is cut off at its most tokens votes for the likeliest letter after "Answer:". One that the model ended
    without a letter has no vote. Letters with equal votes are ranked by their likelihood at the end of the chains, on
    average over all chains of the question; see `scores_by_letter_votes`.

    Args:
        style: fields of `sciqa.models.prompt_format.PromptFormat` that override those used in training.
        settings: fields of `ChainSettings`.
        given: arguments of `ScorerReader`.
    """

    scorer: CausalScorer

    def __init__(self, style: dict, settings: dict, **given: Any) -> None:  # noqa: ANN401
        super().__init__(**given)
        set_reasoned_style(self.scorer, style)
        self.settings = ChainSettings(**settings)

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[ScoredAnswer]:
        """See `sciqa.predict.readers.Reader.score`; the results have the rows of the table of chains."""
        asked = encode_reasoned(self.scorer, questions, found, self.settings.max_tokens, self.chooser)
        prompts = [each.prompt for each in asked]
        chains = write_chains(self.scorer, prompts, self.settings, self.tokens_per_batch, ends_with_letter)
        letters = [list(answer_options_of(question)) for question in questions]
        named = [
            [_named_letter(chain, answer_options_of(question)) for chain in each]
            for question, each in zip(questions, chains, strict=True)
        ]
        ends = [
            encode_chain_letters(self.scorer, prompts[number], chain, name[1] if name else None, letters[number])
            for number in range(len(questions))
            for chain, name in zip(chains[number], named[number], strict=True)
        ]
        scores = iter(score_options(self.scorer, ends, self.tokens_per_batch))
        return [
            _vote(question, each, wrote, names, [next(scores) for _ in wrote])
            for question, each, wrote, names in zip(questions, asked, chains, named, strict=True)
        ]


def _named_letter(chain: Chain, options: dict[str, str]) -> tuple[str, int] | None:
    """Return the letter that a whole chain ends with and its place in the chain's text, or None."""
    found = find_letter(chain.whole_text, options) if chain.finished else None
    return (found[0], found[1] - len(chain.opened)) if found else None


def _vote(
    question: dict,
    asked: EncodedForScorer,
    chains: list[Chain],
    named: list[tuple[str, int] | None],
    scores: list[np.ndarray],
) -> ScoredAnswer:
    """Return the scores of a question by the votes of its chains, and the rows of its chains.

    Args:
        question: row of the exam table.
        asked: its prompt, and whether its context was cut.
        chains: what was written.
        named: letter and place that each chain names, if any.
        scores: score of each letter at the end of each chain, each of shape (options,).
    """
    letters = list(answer_options_of(question))
    likelihoods = np.array([softmax(each) for each in scores])
    votes, rows = [], []
    for number, (chain, name) in enumerate(zip(chains, named, strict=True)):
        forced = None if chain.finished else letters[int(likelihoods[number].argmax())]
        votes.append(name[0] if name else forced)
        row = {"id": question["id"], "sample": number, "text": chain.whole_text, "letter": votes[-1]}
        rows.append(row | {"prompt_tokens": len(asked.prompt), "tokens": len(chain.tokens), "finished": chain.finished})
    voted = scores_by_letter_votes(votes, letters, likelihoods.mean(axis=0))
    return ScoredAnswer(settle_probability_ties(voted, NOISE), asked.cut, tuple(rows))
