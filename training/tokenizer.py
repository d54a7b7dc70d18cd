"""One word, one token: the tokenizers of the starter model.

Fillers and punctuation are dropped by the normalizer, so ``a red apple on a blue background`` and ``red apple, blue
background`` are the same tokens. Trap: transformers' ``T5Tokenizer`` and ``CLIPTokenizer`` rebuild their backend
when loaded and lose a custom normalizer; ``PreTrainedTokenizerFast`` keeps ``tokenizer.json`` as it is.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from training.models import PROMPT_TOKENS
from training.vocabulary import ALIASES, COMPOUNDS, FILLERS, GROUNDS, WORDS, all_aliases, ground_word

SPECIAL = ("<pad>", "</s>", "<unk>", "<s>")


def token_ids() -> dict[str, int]:
    """Every token: special ones, trained words, words that share their rows, and one for each ground."""
    return {
        token: number for number, token in enumerate((*SPECIAL, *WORDS, *all_aliases(), *map(ground_word, GROUNDS)))
    }


def alias_rows() -> list[tuple[int, int]]:
    """Pairs (row of the alias, row of the trained word) to copy in both embedding tables."""
    ids = token_ids()
    return [(ids[alias], ids[word]) for alias, word in all_aliases().items()]


def _ground_rules() -> list[normalizers.Replace]:
    """``blue background`` anywhere, and ``on blue`` at the end, become one word."""
    rules = []
    for colour in GROUNDS:
        said = "|".join([colour, *(alias for alias, word in ALIASES.items() if word == colour)])
        for pattern in (rf"\b({said}) (background|backdrop|ground)\b", rf"\bon (a )?({said}) ?$"):
            rules.append(normalizers.Replace(Regex(pattern), ground_word(colour)))
    return rules


def _backend() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel(token_ids(), unk_token="<unk>"))
    fillers = "|".join(FILLERS)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[^\p{L}\p{N}<>]+"), " "),
            *_ground_rules(),
            normalizers.Replace(Regex(rf"\b({fillers})\b"), " "),
            normalizers.Replace(Regex(r"\s+"), " "),
            *(normalizers.Replace(Regex(rf"\b{two}(s|es)?\b"), one) for two, one in COMPOUNDS.items()),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _wrap(template: str, specials: list[tuple[str, int]], length: int) -> PreTrainedTokenizerFast:
    backend = _backend()
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<s>",
        model_max_length=length,
        padding_side="right",
    )


def build_clip_tokenizer() -> PreTrainedTokenizerFast:
    """``<s> words </s>``, padded with a token that pooling never looks at."""
    return _wrap("<s> $A </s>", [("<s>", 3), ("</s>", 1)], PROMPT_TOKENS)


def build_t5_tokenizer() -> PreTrainedTokenizerFast:
    """``words </s>``."""
    return _wrap("$A </s>", [("</s>", 1)], 512)
