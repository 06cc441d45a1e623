"""The small tokenizers and the hard texts that make_text.py and check_text.py share."""

import io
import json
import os
import random
import tempfile
import unicodedata

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT4O = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK_LLM = [r"[\r\n]", r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-Ֆ]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
                r"\s+$", "[一-龥ࠀ-一가-퟿]+"]

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 1,234.50 dollars, isn't it? I'LL SEE; we've been.",
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72 clips.\n#### 72",
    "def main():\n\tfor i in range(10):\n\t\tprint(i)\n\n\n    return None\r\n",
    "Größe, naïve café, Ångström, e\u0301te\u0301, Việt Nam, Łódź, İstanbul, straße",
    "日本語のテキスト、漢字とかな。 中文字符 한국어 텍스트 ภาษาไทย हिन्दी العربية עברית Русский Ελληνικά",
    "😀 👨‍👩‍👧‍👦 🏳️‍🌈 ½ ² Ⅷ ٣٤٥ ४५६ ①②",
] * 4


def bpe(size, **options):
    return Tokenizer(models.BPE(**options)), trainers.BpeTrainer(
        vocab_size=size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[])


CHAT = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def smollm():
    t, trainer = bpe(620)
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)])
    trainer.special_tokens = CHAT
    t.train_from_iterator(CORPUS, trainer)
    t.decoder = decoders.ByteLevel()
    return t


def gpt2():
    """A space before every piece, bytes missing from the vocabulary, an unknown token, fused."""
    t, trainer = bpe(560, unk_token="<unk>", fuse_unk=True)
    trainer.initial_alphabet = [c for c in pre_tokenizers.ByteLevel.alphabet() if c not in "àáâãäåæçèéÃ"]
    trainer.limit_alphabet = 200
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    trainer.special_tokens = ["<unk>"]
    t.train_from_iterator(CORPUS[:2], trainer)
    t.post_processor = processors.ByteLevel(trim_offsets=True)
    t.decoder = decoders.ByteLevel()
    t.add_tokens([AddedToken("  left", lstrip=True), AddedToken("right", rstrip=True, normalized=False),
                  AddedToken("word", single_word=True), AddedToken("words"), AddedToken("wor")])
    t.add_special_tokens([AddedToken("<both>", lstrip=True, rstrip=True, single_word=False)])
    return t


def llama3():
    t, trainer = bpe(700, ignore_merges=True)
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.train_from_iterator(CORPUS, trainer)
    t.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"])
    t.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[
            ("<|begin_of_text|>", t.token_to_id("<|begin_of_text|>"))])])
    t.decoder = decoders.ByteLevel()
    return t


def qwen2():
    t, trainer = bpe(640)
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.train_from_iterator(CORPUS, trainer)
    t.add_special_tokens(CHAT)
    t.add_tokens([AddedToken("e\u0301clair"), AddedToken("<tool_call>", normalized=False)])
    t.decoder = decoders.ByteLevel()
    return t


def gpt4o():
    """A pattern that goes through PCRE2."""
    t, trainer = bpe(500)
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(GPT4O), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.train_from_iterator(CORPUS, trainer)
    t.post_processor = processors.TemplateProcessing(
        single="<s> <s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    t.decoder = decoders.ByteLevel()
    return t


def deepseek():
    """Several splits in a row, digits in runs, lower case and compatibility forms."""
    t, trainer = bpe(500)
    t.normalizer = normalizers.Sequence([
        normalizers.NFKD(), normalizers.Lowercase(), normalizers.Replace("``", '"'),
        normalizers.Replace(Regex(r"\p{N}{4,}"), "<num>"), normalizers.NFKC()])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.Split(Regex("[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
        pre_tokenizers.Split(Regex(DEEPSEEK), "isolated"),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.train_from_iterator(CORPUS, trainer)
    t.add_tokens([AddedToken("ÉCLAIR", normalized=True), AddedToken("Fox", normalized=False)])
    t.decoder = decoders.ByteLevel()
    return t


def behaviors():
    """Every way of splitting, inverted or not; what is removed is gone."""
    t, trainer = bpe(420)
    split = pre_tokenizers.Split
    t.normalizer = normalizers.Sequence([
        normalizers.Strip(), normalizers.Prepend("^"), normalizers.NFD()])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        split("x", "removed"),
        split(Regex(r"[,;]"), "merged_with_previous"),
        split(Regex(r"[-+]"), "merged_with_next"),
        split("o", "contiguous"),
        split(Regex(r"q*"), "isolated"),
        split(Regex(r"\s"), "merged_with_previous", invert=True),
        split(Regex(r"(?<=l)l|^t.|u$"), "merged_with_next", invert=True),
        split(".", "contiguous", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)])
    t.train_from_iterator(CORPUS, trainer)
    t.decoder = decoders.ByteLevel()
    return t


def split_bytes(patterns, size=440):
    t, trainer = bpe(size)
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in patterns] + [
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.train_from_iterator(CORPUS, trainer)
    t.decoder = decoders.ByteLevel()
    return t


def cl100k():
    return split_bytes([CL100K])


def tekken():
    return split_bytes([TEKKEN])


def deepseek_llm():
    return split_bytes(DEEPSEEK_LLM)


# ---- over characters: the published files' parts, on small vocabularies ----------------------------

BYTES = ["<0x%02X>" % b for b in range(256)]


def text_bpe(special, size=420, alphabet=70, missing=(), **options):
    """BPE over characters of a text whose spaces are "▁", trained on the commonest ones alone."""
    t, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(
        vocab_size=size, limit_alphabet=alphabet, show_progress=False, special_tokens=[])
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.train_from_iterator(CORPUS, trainer)
    model = json.loads(t.to_str())["model"]
    tokens = special + [b for b in BYTES if b not in missing] + sorted(model["vocab"], key=model["vocab"].get)
    tokens += ["▁▁", "▁▁▁▁"]
    merges = [tuple(m) for m in model["merges"]] + [("▁", "▁"), ("▁▁", "▁▁")]
    return Tokenizer(models.BPE(vocab={x: i for i, x in enumerate(dict.fromkeys(tokens))}, merges=merges,
                                unk_token="<unk>", **options))


SENTENCEPIECE = ["<unk>", "<s>", "</s>"]


def template(t, single):
    names = [x for x in single.split() if x != "$A"]
    return processors.TemplateProcessing(single=single, special_tokens=[
        (x, t.token_to_id(x)) for x in dict.fromkeys(names)])


def llama_decoder(strip=True):
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * strip)


def llama2():
    t = text_bpe(SENTENCEPIECE, fuse_unk=True, byte_fallback=True)
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.add_special_tokens([AddedToken(x, normalized=x == "</s>", special=True) for x in SENTENCEPIECE])
    t.post_processor = template(t, "<s> $A")
    t.decoder = llama_decoder()
    return t


def phi3():
    t = text_bpe(SENTENCEPIECE, fuse_unk=True, byte_fallback=True)
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.add_special_tokens([AddedToken("<unk>", normalized=False), AddedToken("<s>", normalized=False)])
    t.add_tokens([AddedToken("</s>", rstrip=True, normalized=False)])
    t.add_special_tokens([AddedToken(x, normalized=False, rstrip=x != "<|endoftext|>")
                          for x in CHAT + ["<|user|>"]])
    t.decoder = llama_decoder()
    return t


def mistral():
    """A space in front of the text's first piece alone; some bytes missing, and unknown runs not fused."""
    t = text_bpe(SENTENCEPIECE, missing=["<0xE3>", "<0xF0>"], fuse_unk=False, byte_fallback=True)
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    t.add_special_tokens([AddedToken(x, normalized=False) for x in SENTENCEPIECE + ["<both>"]])
    t.post_processor = template(t, "<s> $A </s>")
    t.decoder = llama_decoder()
    return t


def fused():
    """As mistral, but unknown runs are fused, across bytes that are fallen back to."""
    t = text_bpe(SENTENCEPIECE, missing=["<0xE3>", "<0xF0>"], fuse_unk=True, byte_fallback=True,
                 ignore_merges=True)
    t.normalizer = normalizers.Strip()
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    t.add_tokens([AddedToken("word", single_word=True), AddedToken("right", rstrip=True)])
    t.decoder = decoders.Metaspace(prepend_scheme="never")
    return t


def gemma():
    t = text_bpe(["<pad>", "<eos>", "<bos>", "<unk>"], fuse_unk=True, byte_fallback=True)
    t.normalizer = normalizers.Replace(" ", "▁")
    t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    t.add_special_tokens([AddedToken(x, normalized=False) for x in ["<pad>", "<eos>", "<bos>", "<unk>"]])
    t.add_tokens([AddedToken(x, normalized=False) for x in ["\n\n", "\n\n\n", "<both>"]])
    t.post_processor = template(t, "<bos> $A")
    t.decoder = llama_decoder(False)
    return t


def neox():
    t, trainer = bpe(520)
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    trainer.special_tokens = ["<|endoftext|>", "<|padding|>"]
    t.train_from_iterator(CORPUS, trainer)
    t.add_tokens([AddedToken(" " * n) for n in range(24, 1, -1)] + [AddedToken("é!")])
    t.post_processor = template(t, "$A")
    t.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    return t


def roberta():
    t, trainer = bpe(480)
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer.special_tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    t.train_from_iterator(CORPUS, trainer)
    t.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    t.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    t.decoder = decoders.ByteLevel()
    return t


def sentencepiece_unigram(size, rules=None, **options):
    """Tokens with scores, and the charsmap of SentencePiece's rules `nmt_nfkc` or of `rules`."""
    with tempfile.TemporaryDirectory() as work:
        if rules:
            path = os.path.join(work, "rules.tsv")
            with open(path, "w") as f:
                for a, b in rules:
                    f.write(" ".join("%X" % ord(c) for c in a) + "\t" + " ".join("%X" % ord(c) for c in b) + "\n")
            options["normalization_rule_tsv"] = path
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=size, minloglevel=2,
            hard_vocab_limit=False, num_threads=1, character_coverage=0.98, **options)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    return [(p.piece, round(p.score, 6)) for p in proto.pieces], proto.normalizer_spec.precompiled_charsmap


def scored_bpe():
    """SentencePiece's BPE: [text, score, type as in GGUF] of each token."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS + ["\t\t\tx\t\t" * 9]), model_writer=model, vocab_size=520, minloglevel=2,
        model_type="bpe", byte_fallback=True, num_threads=1, character_coverage=0.98, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        user_defined_symbols=["\n\n", "<both>", "▁▁▁▁"], hard_vocab_limit=False)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    return [[p.piece, p.score, p.type] for p in proto.pieces]


def from_scores(pieces, prefix, generate_merges):
    """What transformers makes of SentencePiece's tokens for Llama and, without a prefix, Gemma."""
    vocab = {text: i for i, (text, _, _) in enumerate(pieces)}
    known = dict(vocab)
    known.setdefault("\t", known["<0x09>"])
    merges = generate_merges(known, [(text, score) for text, score, _ in pieces])
    if "\t" not in vocab:
        # Gemma's has the tab in place of its byte.
        vocab = {"\t" if text == "<0x09>" else text: i for text, i in vocab.items()}
    t = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁")] * prefix + [normalizers.Replace(" ", "▁")])
    t.decoder = llama_decoder(prefix)
    t.add_tokens([AddedToken(text, normalized=False, special=kind != 4)
                  for text, _, kind in pieces if kind in (2, 3, 4)])
    t.post_processor = template(t, "<s> $A")
    return t


def t5():
    pieces, charsmap = sentencepiece_unigram(300, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    pieces += [("<extra_id_%d>" % i, 0.0) for i in range(3, -1, -1)]
    t = Tokenizer(models.Unigram(pieces, 2, False))
    t.normalizer = normalizers.Precompiled(charsmap)
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")])
    t.add_special_tokens([AddedToken(x, normalized=False) for x in ["<pad>", "</s>", "<unk>"]])
    t.add_special_tokens([AddedToken("<extra_id_%d>" % i, normalized=False, lstrip=i == 1, rstrip=i == 2)
                          for i in range(3, -1, -1)])
    t.post_processor = template(t, "$A </s>")
    t.decoder = decoders.Metaspace(prepend_scheme="always")
    return t


RULES = ([("a\u0301", "á"), ("ﬁ", "fi"), ("\t", " "), ("\u00a0", " "), ("\u200b", ""), ("①", "1"), ("Å", "AA"),
          ("\x01", ""), ("\u0958", "क"), ("o\u0308x", "ö"), ("\r\n", "\n"), ("\u0600", "#"),
          ("½", "1/2"), ("\u1160", "v"), ("©", "(c)")])


def mt5():
    """Rules of its own, runs of spaces made one, bytes to fall back to."""
    pieces, charsmap = sentencepiece_unigram(
        560, RULES, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, byte_fallback=True)
    t = Tokenizer(models.Unigram(pieces, 2, True))
    t.normalizer = normalizers.Sequence([
        normalizers.Precompiled(charsmap), normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    t.add_special_tokens([AddedToken(x, normalized=False) for x in ["<pad>", "</s>", "<unk>", "<both>"]])
    t.post_processor = processors.BertProcessing(("</s>", 1), ("<pad>", 0))
    t.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    return t


def albert():
    pieces, charsmap = sentencepiece_unigram(260, RULES, pad_id=0, eos_id=-1, unk_id=1, bos_id=2)
    t = Tokenizer(models.Unigram(pieces, 1, False))
    t.normalizer = normalizers.Sequence([
        normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(),
        normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Precompiled(charsmap),
        normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    t.add_special_tokens([AddedToken(x) for x in ["<pad>", "<unk>", "<s>", "<both>"]])
    t.post_processor = template(t, "<s> $A <s>")
    return t


def words():
    """Every pre-tokenizer that names a class of characters, no bytes to fall back to, no decoder."""
    t, trainer = Tokenizer(models.BPE(unk_token="<unk>")), trainers.BpeTrainer(
        vocab_size=300, limit_alphabet=90, show_progress=False, special_tokens=["<unk>"])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.CharDelimiterSplit("x"), pre_tokenizers.Punctuation("merged_with_previous"),
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Whitespace(),
        pre_tokenizers.Punctuation()])
    t.train_from_iterator(CORPUS, trainer)
    return t


TOKENIZERS = {f.__name__: f for f in (
    smollm, gpt2, llama3, qwen2, gpt4o, deepseek, behaviors, llama2, phi3, mistral, fused, gemma, neox,
    cl100k, tekken, deepseek_llm, roberta, t5, mt5, albert, words)}


def hard_texts():
    texts = [
        "", " ", "  ", "\n", "\r\n", "\t", "a", " a", "a ", "a  b", "a\n\nb", "a \n b", "\n\n a", " \n",
        "   leading", "trailing   ", "a" * 300, " " * 100, "\n" * 70, " \n" * 40, "1" * 40, "1 2  3   4",
        "it's It'S I'LL i'll we've WE'VE 'tis 'ſ x'ſ 'd 'D 're'RE'm'M don't DON'T ''s '''",
        "3.14159 1,000,000 2^10 -5 50% $9.99 0x1F 1e-9", "x,y;z;;w--v+-u,", "fooxxbar ooo oxo qqqaqq",
        "hello.world...end..", "ullllul tt tall\ntall\nu\nu", "``quoted'' 12345 123 1234x",
        "\u200d\u200c\u200b\ufeff\u2028\u2029\u0085\u00a0\u180e\u3000\u2003x\u202f\u205f y",
        "\x00\x01\x02\x03\x04\x05\x06\x0b\x0c\x0e\x13\x14\x16\x1c\x1d\x1e\x1f\x7f\x80\x9f",
        "e\u0301 é E\u0301\u0327 \u0327\u0301 a\u0315\u0300\u05ae\u0062 \u1100\u1161\u11a8 각 \uac00\u11a8",
        "ﬁ ﬂ Å Ω K ½ ² ㍍ ㈀ ﷺ ｶﾞ ﾊﾟ ㄱㅏㄱ ﾡￂ 𝐀𝔸 ℌ Ǆ ŉ", "İI ıi ẞß ΑΣ ας Σ \u1c89 \ua7dc",
        "éclair e\u0301clair ÉCLAIR E\u0301CLAIR <tool_call>x</tool_call> Fox fox",
        "日本語テスト。中文，测试！한국어 시험 ภาษาไทย ทดสอบ हिन्दी परीक्षण",
        "שלום עולם مرحبا بالعالم ١٢٣ ۴۵۶ Привет, мир! Γειά σου Κόσμε",
        "👨‍👩‍👧‍👦🏳️‍🌈👍🏽🇩🇪🇯🇵 ☃️☃ 😀😃😄", "𝟘𝟙𝟚 ①②③ ⅣⅤ ½⅓ ²³ ٣ ३ 三 〇 ㊿ 𐒠 🄂",
        "<|endoftext|><|im_start|>user\nhi<|im_end|>\n", "a<|im_end|>b <|im_end|> c<|im_end|", "<|im_start|",
        "<|begin_of_text|>x<|eot_id|> <|start_header_id|>user<|end_header_id|>\n\n", "<s></s> <unk><both>",
        "a  left b   left right   c  <both>  d word words sword wor word_ word! (word)wordwordé word\u0301",
        "\u1171e\u1cf2 \u0897\u1c8a \ua7cb \ua7da 𐵀𐵐𐵰 𑄾 𖵰 𞗱 𱍐 𮯰 \U0001ccf0\U0001cd00 \U00011de0\U00016ff4",
        "\ufffe\uffff\U0010ffff\U000e0001 \ue000\U000f0000 \U00012345\U0001f9ff",
        "Zalgo: Z̷̢͔̫̼a̶͙̋l̸͉̈́g̵̢̛o̴͚͑ and \u0b47\u0b3e \u0d46\u0d3e \u11935\u11930 \U00011935\U00011930",
        "if (a[i] != b[j]) {\n\treturn x->y; // no\n}\r\n\r\n/* c */\n",
        "https://example.com/a?b=c&d=%20#e user@example.org C:\\dir\\file",
        "▁ ▁▁ a▁b ▁ c", "\u200b\x01 lead", "a\u0301 a\u0301\u0327 ﬁ\u0301 Å\u0301 ①\u0301 \u0600a ½\u0301 \u1160\u0301 ©\u200d©",
        "क\u094dक\u0301 \u0958\u094d\u0958\u0301 \u0958\u0301 o\u0308 o\u0308x \r\n\u0301", "x <0x41> <0xE2> <unk> <s>y</s> </s>  z",
        "mixed\ttabs \t and\v\fspaces\r\rend ", "word\u00a0nbsp\u2009thin", "'" * 9 + "s" * 9,
    ]
    chosen = random.Random(7)
    for category in sorted({unicodedata.category(chr(c)) for c in range(0x30000)} - {"Cs"}):
        points = [c for c in range(0x110000) if unicodedata.category(chr(c)) == category]
        some = chosen.sample(points, min(len(points), 14))
        texts.append(" ".join(chr(c) for c in some) + "".join("a%s1" % chr(c) for c in some[:6]))
    return texts


def random_text(r):
    """A few code points from many blocks, with what the patterns look at in between."""
    pools = [
        lambda: chr(r.choice([32, 32, 32, 10, 13, 9, 39, 46, 44])),
        lambda: chr(r.randrange(32, 127)), lambda: chr(r.randrange(0x80)),
        lambda: r.choice("abcdeEXTsSmMrvlLoxquÄé0123456789"),
        lambda: r.choice(["'s", "'LL", "'ſ", "  ", "\r\n", " \n", "word", "right", "<both>", "<|im_end|>", "``"]),
        lambda: chr(r.randrange(0xA0, 0x600)), lambda: chr(r.randrange(0x300, 0x370)),
        lambda: chr(r.randrange(0x900, 0x1200)), lambda: chr(r.randrange(0x1100, 0x1200)),
        lambda: chr(r.randrange(0x2000, 0x2100)), lambda: chr(r.randrange(0x3000, 0x3400)),
        lambda: chr(r.randrange(0xAC00, 0xD7B0)), lambda: chr(r.randrange(0xF900, 0x10000)),
        lambda: chr(r.randrange(0x10000, 0x20000)), lambda: chr(r.randrange(0x1F300, 0x1FB00)),
        lambda: chr(r.choice([r.randrange(0xD800), r.randrange(0xE000, 0x110000)])),
    ]
    chosen = r.sample(pools, r.randrange(1, 6))
    return "".join(r.choice(chosen)() for _ in range(r.randrange(1, 60)))
