"""A character tokenizer in which every fixed phrase of the task is one token.

It is a plain Hugging Face fast tokenizer with a chat template, so that veRL, the rollout engine and the self-teacher
treat the quickstart like any other model. White space carries no meaning in the task: spaces are dropped, and so is
any white space around the fixed phrases, which keeps the tokens the same however a teacher prompt is laid out. A
newline elsewhere stays one token, because veRL's handling of Qwen chats asks for one.
"""

from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from recipes.quickstart.task import DEMONSTRATION_PHRASE, RETRY_PHRASE, SEPARATORS, SYSTEM_PROMPT

PAD_TOKEN = "<|pad|>"
EOS_TOKEN = "<|im_end|>"  # the name that veRL looks up for Qwen chats
UNK_TOKEN = "<|unk|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
PHRASES = (SYSTEM_PROMPT, DEMONSTRATION_PHRASE, RETRY_PHRASE)
CHARACTERS = (*"0123456789*+=#", *SEPARATORS, "\n")

# Turns need no closing token, because the next role token closes them; only what the model writes itself ends in eos.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] | trim -}}"
    "{%- if message['role'] == 'assistant' -%}{{- '<|im_end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def build_tokenizer(
    phrases: Sequence[str] = PHRASES, characters: Iterable[str] = CHARACTERS, words: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """The tokenizer, by default the quickstart's 27 tokens; `save_pretrained` of it is what `AutoTokenizer` loads.

    Args:
        phrases: texts that are one token each, together with the white space around them.
        characters: the other tokens; a newline has to be among them.
        words: texts that are one token each, and leave newlines around them alone.
    """
    special = (PAD_TOKEN, EOS_TOKEN, UNK_TOKEN, *ROLE_TOKENS)
    vocabulary = {token: index for index, token in enumerate((*special, *phrases, *words, *characters))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK_TOKEN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\s*\n\s*"), "\n"), normalizers.Replace(Regex(r"[^\S\n]+"), "")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    # Not special: decoding a response must show a phrase that the model should not have written.
    tokenizer.add_tokens([AddedToken(phrase, lstrip=True, rstrip=True, normalized=False) for phrase in phrases])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        unk_token=UNK_TOKEN,
        additional_special_tokens=list(ROLE_TOKENS),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=1024,
    )
