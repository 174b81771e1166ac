"""What a manifest may say of models: how negatives are mined, how the embedding model is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from curation.recipe.yaml import Section

Prompt = Literal["auto", "instruct", "none"]
Dtype = Literal["auto", "float32", "bfloat16"]


class Prompts(Section):
    """What is put before texts, such as E5's "query: " and "passage: ", instead of the model's own prompts."""

    query: str = Field("", description="put before each query, as it stands")
    passage: str = Field("", description="put before each passage, as it stands")

    @staticmethod
    def by_name(prompts: Prompts | None) -> dict[str, str] | None:
        """Return them as a dict, or None."""
        return prompts.model_dump() if prompts else None


OFF: dict[str, object] = {"range_min": 0, "max_score": None, "relative_margin": None}
SAME: dict[str, object] = {"exclude_query": True, "exclude_group": True, "containment": 0.8, "distinct": True}
PRESETS: dict[str, dict[str, object]] = {  # what a preset sets otherwise than F2LLM
    "f2llm": {},
    "nv-retriever": {**OFF, "relative_margin": 0.05, **SAME},  # arXiv 2407.15831: below 95 % of the positive, top k
    "clean": {**OFF, "relative_margin": 0.05, **SAME, "max_similarity": "auto", "similarity_median": 0.5},
}


class Mine(Section):
    """How hard negatives are found."""

    model: str = Field(
        "",
        description="Hub id, folder, or `package:NAME` of an installed package that carries a model; needless with `candidates: given`",
    )
    preset: Literal["f2llm", "nv-retriever", "clean"] = Field(
        "f2llm",
        description="sets the keys below, as far as you do not. f2llm: the filters of sentence-transformers' miner with F2LLM's "
        "settings; nv-retriever: below 95 % of the positive's score, copies excluded; clean: also `max_similarity: auto`, from each query's own level",
    )
    negatives: int = Field(24, ge=1, le=1000, description="negatives a query")
    candidates: Literal["dense", "bm25", "both", "given"] = Field(
        "dense",
        description="found by the model, by BM25 (needs `tuplesmith[bm25]`), or by both, their ranks fused; scores are cosines. "
        "given: nothing is searched, and tuples keep the negatives and scores that they came with",
    )
    index: Literal["exact", "ivf"] = Field(
        "exact",
        description="ivf: of sources with 100,000 passages or more only a part is searched for each query, the lists that hold "
        "95 % of the nearest, on the CPU; the receipt tells the recall measured",
    )
    range_min: int = Field(5, ge=0, description="nearest candidates to skip")
    range_max: int = Field(100, ge=1, description="nearest candidates to look at")
    rank_basis: Literal["surviving", "raw"] = Field(
        "surviving", description="whether the range counts candidates that passed the other filters, or all that were found"
    )
    exclude_query: bool = Field(False, description="the query's own text is no negative")
    exclude_group: bool = Field(
        False, description="texts that count as the same as a positive, or are one of a query of the same group, are no negatives"
    )
    containment: float | None = Field(
        None, gt=0, le=1, description="candidates sharing this much of their, or a positive's, word 3-grams are dropped"
    )
    exclude_answer: bool = Field(
        False, description="passages that hold an answer of the query, `fields: {answer: ...}`, word for word are no negatives"
    )
    max_score: float | None = Field(0.8, description="candidates scoring higher are dropped")
    min_score: float | None = Field(None, description="candidates scoring lower are dropped")
    absolute_margin: float | None = Field(None, ge=0, description="candidates scoring above positive - margin are dropped")
    relative_margin: float | None = Field(
        0.05, ge=0, le=1, description="candidates scoring above positive - |positive| * margin are dropped"
    )
    margin_reference: Literal["min", "max", "mean"] = Field(
        "min", description="the score of several positives that both margins count from"
    )
    max_similarity: float | Literal["auto"] | None = Field(
        None, description="candidates with this cosine, or more, to a positive are dropped; auto: calibrated for each source"
    )
    similarity_median: float = Field(
        0.0,
        ge=0,
        le=1,
        description="this share of the median of that cosine, over the query's own candidates, is taken off first; 0.5 in `clean`",
    )
    target_yield: float = Field(
        0.9, gt=0, le=1, description="`max_similarity: auto` keeps this share of what would be chosen without it"
    )
    target_false_negatives: float | None = Field(
        None,
        ge=0,
        le=1,
        description="`max_similarity: auto` allows this share of known positives, hidden, among negatives; in sources with several",
    )
    reranker: str | None = Field(
        None,
        description="a cross-encoder, or a language model as Qwen3-Reranker, named as `model` is, that scores again the candidates a "
        "choice rests on",
    )
    reranker_max_score: float | None = Field(None, description="candidates that the reranker scores higher are dropped")
    reranker_margin: float | None = Field(
        None, description="candidates that the reranker scores above positive - margin are dropped"
    )
    reranker_scores: bool = Field(
        False, description="tuples carry the reranker's scores in place of cosines: what `train: {distill: ...}` learns from"
    )
    distinct: bool = Field(False, description="of negatives that count as the same text only the nearest is taken")
    pick: Literal["top", "random", "stratified"] = Field(
        "top", description="of the candidates that are left: the nearest, any, or one of each stretch of ranks"
    )
    classes: Literal["random", "hard"] = Field(
        "random", description="negatives of labelled clustering: any texts of other classes, or the nearest ones"
    )
    shortage: Literal["drop", "keep", "relax", "random"] = Field(
        "drop",
        description="a tuple with fewer negatives: dropped, kept short, or filled, by letting go of range_min, similarity, scores "
        "and margins in this order, or at random",
    )
    prompt: Prompt = Field(
        "auto",
        description="auto: `prompts`, else the model's own prompts as sentence-transformers' encode_query and encode_document use "
        "them, else instruct for decoders, none for encoders",
    )
    prompts: Prompts | None = Field(
        None, description='what texts begin with, such as `{query: "query: ", passage: "passage: "}` for E5; needs `prompt: auto`'
    )
    dtype: Dtype = Field("float32", description="float32, bfloat16, or auto: bfloat16 where the processor has it")
    max_tokens: int | None = Field(None, ge=4, description="longer texts are cut; the model's own limit by default")
    store: Literal["float32", "float16"] = Field(
        "float32", description="how vectors are kept; float16 halves the disk and changes some ranks"
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        preset = given.get("preset", "f2llm")
        return {**PRESETS.get(preset, {}), **given} if isinstance(preset, str) else given

    @model_validator(mode="after")
    def _window(self) -> Mine:
        if self.range_min >= self.range_max:
            raise ValueError(f"'range_min' ({self.range_min}) must be below 'range_max' ({self.range_max})")
        if self.preset == "f2llm" and self.store != "float32":
            raise ValueError("preset 'f2llm' takes 'store: float32', for float16 changes ranks")
        if self.prompts is not None and self.prompt != "auto":
            raise ValueError(f"'prompts' needs `prompt: auto`, and it is '{self.prompt}'")
        if not self.model and self.candidates != "given":
            raise ValueError("'mine' needs 'model', but for `candidates: given`")
        uses = self.reranker_max_score is not None or self.reranker_margin is not None or self.reranker_scores
        if uses and not self.reranker:
            raise ValueError("'reranker_max_score', 'reranker_margin' and 'reranker_scores' need a 'reranker'")
        if self.reranker and self.candidates == "given":
            raise ValueError("'reranker' scores what a search found, and `candidates: given` searches for nothing")
        if self.reranker and not uses:
            raise ValueError("'reranker' needs a use: 'reranker_max_score', 'reranker_margin' or 'reranker_scores: true'")
        return self


class DeepSpeed(Section):
    """Training in several processes, started with torchrun or deepspeed."""

    zero: int = Field(2, ge=0, le=3, description="what the processes share out: 1 optimizer, 2 gradients too, 3 weights too")
    offload: bool = Field(False, description="keep the optimizer in the machine's memory, with `zero: 3` the weights too")


class OfSource(Section):
    """How one source is trained on, where it differs from the others."""

    weight: float = Field(1.0, gt=0, description="multiplies the source's share of the steps, whose number stays")
    negatives: int | None = Field(None, ge=0, description="hard negatives a tuple, instead of the recipe's")
    in_batch: bool | None = Field(
        None,
        description="whether other tuples' positives, but those of its group or class, are negatives too; absent, those of retrieval are",
    )


class Train(Section):
    """How the model is trained. Where the paper (arXiv 2510.02294) is silent, its released configuration speaks."""

    model: str = Field(description="Hub id, folder, or `package:NAME`: the foundation model or encoder to train")
    max_tokens: int = Field(1024, ge=4, description="longer texts are cut")
    batch: int = Field(512, ge=1, description="tuples a step, over all processes")
    positives: Literal["first", "all", "sampled"] = Field(
        "first",
        description="of a query with several positives: first, the one with the highest grade, or of equal ones the first in the "
        "file; all, each in a tuple of its own; sampled, one drawn for each epoch",
    )
    negatives: int = Field(7, ge=0, description="hard negatives a tuple, redrawn each epoch")
    loss: Literal["f2llm", "infonce"] = Field(
        "f2llm",
        description="f2llm: hard negatives, and for retrieval other rows' positives, apart; infonce: all of them together",
    )
    temperature: float = Field(0.05, gt=0, description="divides cosine similarities in the loss")
    lr: float = Field(1e-5, gt=0, description="highest learning rate")
    min_lr: float = Field(1e-7, ge=0, description="learning rate at the last step")
    warmup: int = Field(500, ge=0, description="steps of linear warm-up")
    epochs: int = Field(2, ge=1, description="times each tuple is seen")
    steps: int | None = Field(None, ge=1, description="stop after this many steps; the schedule ends there")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's, on matrices only")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW's")
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    pooling: Literal["auto", "mean", "cls", "last"] = Field(
        "auto", description="auto: the model's own, else last for decoders, mean for encoders"
    )
    prompt: Prompt = Field("auto", description="as in `mine`")
    prompts: Prompts | None = Field(None, description="as in `mine`; saved as the trained model's prompts")
    dtype: Dtype = Field("auto", description="of the matrix products; weights stay float32")
    mask_false_negatives: bool = Field(True, description="a passage that is a query's positive is no in-batch negative of it")
    mask_margin: float | None = Field(
        None,
        ge=0,
        description="a passage of another tuple that scores above the own positive by more than this is no in-batch negative",
    )
    symmetric: bool = Field(False, description="f2llm: the in-batch term also for passages among queries")
    matryoshka: list[int] = Field(
        [],
        description="leading dimensions that are to serve alone too, such as `[128, 256]`: the loss is the mean over them and all",
    )
    distill: float = Field(0.0, ge=0, description="weight of the divergence from the miner's scores of a tuple's candidates")
    evenness: float = Field(
        1.0, ge=1, description="T: a source has a share of size^(1/T) of the steps; 1 takes every tuple once an epoch"
    )
    sources: dict[str, OfSource] = Field({}, description="settings of single sources, by their names")
    reproduce_f2llm: bool = Field(
        False,
        description="with several processes, passages get no gradient from the in-batch term, as in F2LLM's released trainer; "
        "by default the gradient is that of one process",
    )
    token_budget: int | None = Field(
        None,
        ge=1,
        description="tokens a forward may hold: a batch with more takes two passes (GradCache); by default all at once",
    )
    checkpointing: bool = Field(False, description="keep only the layers' inputs and compute the rest again: less memory, slower")
    deepspeed: DeepSpeed | None = Field(None, description="train with DeepSpeed, in as many processes as torchrun starts")
    save_every: int = Field(200, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints to keep")
    evaluate_every: int | None = Field(
        None, ge=1, description="steps between measurements of nDCG@10 on the build's held-out queries, the mean over sources"
    )
    patience: int | None = Field(None, ge=1, description="end after this many measurements without a better one")
    export: Literal["last", "best"] = Field(
        "last",
        description="the model that is written: of the last step, or of the best measurement, whose checkpoint is kept too",
    )
    log_every: int = Field(10, ge=1, description="steps between lines on the screen; the log has every step")

    def of(self, source: str) -> OfSource:
        """Return the settings of a source."""
        return self.sources.get(source, OfSource())

    @model_validator(mode="after")
    def _goes_together(self) -> Train:
        if self.prompts is not None and self.prompt != "auto":
            raise ValueError(f"'prompts' needs `prompt: auto`, and it is '{self.prompt}'")
        if self.symmetric and self.loss != "f2llm":
            raise ValueError("'symmetric' belongs to `loss: f2llm`")
        if self.reproduce_f2llm and (self.symmetric or self.loss != "f2llm"):
            raise ValueError("'reproduce_f2llm' belongs to `loss: f2llm` without 'symmetric'")
        if self.positives == "all" and not self.mask_false_negatives:
            raise ValueError("`positives: all` needs 'mask_false_negatives': positives of one query may meet in a batch")
        if min(self.matryoshka, default=1) < 1:
            raise ValueError("'matryoshka' names dimensions, which are 1 or more")
        if self.evaluate_every is None and (self.patience is not None or self.export == "best"):
            raise ValueError("'patience' and `export: best` need 'evaluate_every'")
        return self
