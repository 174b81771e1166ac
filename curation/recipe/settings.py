"""The `mine:` and `train:` sections of a manifest: how negatives are mined and how the embedding model is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from curation.core.record import NEGATIVES
from curation.recipe.yaml import Section

Prompt = Literal["auto", "instruct", "none"]
Dtype = Literal["auto", "float32", "bfloat16"]
Searched = Literal["positives", "all"]


class Prompts(Section):
    """Texts put before queries and passages, such as "query: " and "passage: " of E5, instead of the model's own prompts."""

    query: str = Field("", description="put before each query, exactly as written here; the quotes keep a space at the end")
    passage: str = Field("", description="put before each passage, exactly as written here")

    @staticmethod
    def by_name(prompts: Prompts | None) -> dict[str, str] | None:
        """Return the prompts as a dict; None if there are none."""
        return prompts.model_dump() if prompts else None


OFF: dict[str, object] = {"range_min": 0, "max_score": None, "relative_margin": None}
SAME: dict[str, object] = {"exclude_query": True, "exclude_group": True, "containment": 0.8, "distinct": True}
PRESETS: dict[str, dict[str, object]] = {  # what each preset changes in the defaults of `Mine`
    "f2llm": {"dtype": "float32"},  # the rows of sentence-transformers in float32
    "nv-retriever": {**OFF, "relative_margin": 0.05, **SAME},  # arXiv 2407.15831: below 95 % of the positive, top k
    "clean": {**OFF, "relative_margin": 0.05, **SAME, "max_similarity": "auto", "similarity_median": 0.5},
}


class Promote(Section):
    """Candidates that are positives nobody labelled."""

    margin: float = Field(
        ge=0,
        description="a candidate becomes a positive of the tuple if the reranker scores it higher than each positive by more than this",
    )
    min_score: float | None = Field(
        None,
        description="and only if the reranker scores it at least this, so that a positive it scores low does not promote whatever is above. Other candidates above the positives are only dropped from the negatives. Off if empty",
    )
    depth: int = Field(
        20,
        ge=1,
        description="number of nearest candidates of each query that can be promoted. The reranker scores all of them, and of farther ones those that could be negatives",
    )


class Uncertain(Section):
    """Candidates that are neither clearly positive nor clearly negative."""

    margin: float = Field(
        ge=0, description="drop a candidate if the reranker scores it above `positive - margin` and it was not promoted"
    )


class Mine(Section):
    """How hard negatives are found."""

    model: str = Field(
        "",
        description="embedding model that scores the candidates: a Hub id, a folder, or `package:NAME` for a model inside an installed Python package. Required, except with `candidates: given`",
    )
    preset: Literal["f2llm", "nv-retriever", "clean"] = Field(
        "f2llm",
        description="default values for the other keys of this section; a key that you set yourself always wins. `f2llm`: the settings of F2LLM for the filters of sentence-transformers' mine_hard_negatives. `nv-retriever`: candidates that score below 95 % of the positive, without copies of the query or a positive. `clean`: like `nv-retriever`, and drops candidates that resemble a positive too much (`max_similarity: auto`, `similarity_median: 0.5`)",
    )
    negatives: int = Field(NEGATIVES["retrieval"], ge=1, le=1000, description="hard negatives per query")
    candidates: Literal["dense", "bm25", "both", "given"] = Field(
        "dense",
        description="where candidates come from. `dense`: nearest passages by the model. `bm25`: best passages by words (needs `tuplesmith[bm25]`). `both`: the two rankings fused. Scores are cosine similarities of the model in all three. `given`: no search; each tuple keeps the negatives and scores that its source came with",
    )
    corpus: Searched | dict[str, Searched] = Field(
        "positives",
        description="the passages in which a source's negatives are searched. `positives`: the source's distinct positives, as in F2LLM. `all`: all its passages, which are also the rest of a qrels corpus and given negatives. Or by source, `{NAME: all}`; sources without an entry keep `positives`",
    )
    index: Literal["exact", "ivf"] = Field(
        "exact",
        description="how passages are searched. `exact`: each query is compared with every passage. `ivf`: faster on the CPU for sources with 100,000 passages or more, by searching only the clusters that hold about 95 % of the nearest passages; the receipt reports the recall that was measured",
    )
    range_min: int = Field(
        5, ge=0, description="number of nearest candidates to skip; they are the most likely to be unlabelled positives"
    )
    range_max: int = Field(100, ge=1, description="rank of the last candidate to look at, counted from the nearest")
    rank_basis: Literal["surviving", "raw"] = Field(
        "surviving",
        description="how `range_min` and `range_max` count. `surviving`: only candidates that passed the other filters. `raw`: all candidates that the search found",
    )
    exclude_query: bool = Field(False, description="drop candidates whose text is the query itself")
    exclude_group: bool = Field(
        False,
        description="drop candidates that are a duplicate of a positive, or a positive of another query in the same near-duplicate group",
    )
    containment: float | None = Field(
        None,
        gt=0,
        le=1,
        description="drop a candidate if at least this fraction of its word 3-grams also occurs in a positive, or this fraction of a positive's in it. Off if empty",
    )
    exclude_answer: bool = Field(
        False,
        description="drop passages that contain an answer of the query word for word; answers come from `fields: {answer: ...}` of the source",
    )
    exclude_document: bool = Field(
        True,
        description="drop passages of the same document as a positive. For pairs with a `corpus` whose `fields: {positive_id: ...}` names the document of each positive",
    )
    max_score: float | None = Field(0.8, description="drop candidates that score higher than this. Off if empty")
    min_score: float | None = Field(None, description="drop candidates that score lower than this. Off if empty")
    absolute_margin: float | None = Field(
        None, ge=0, description="drop candidates that score above `positive - absolute_margin`. Off if empty"
    )
    relative_margin: float | None = Field(
        0.05,
        ge=0,
        le=1,
        description="drop candidates that score above `positive - abs(positive) * relative_margin`. Off if empty",
    )
    margin_reference: Literal["min", "max", "mean"] = Field(
        "min",
        description="if a query has several positives, whether the margins start from the lowest of their scores (`min`), the highest (`max`) or the mean (`mean`)",
    )
    max_similarity: float | Literal["auto"] | None = Field(
        None,
        description="drop candidates whose cosine similarity to a positive is this or more. `auto`: a threshold is calibrated for each source, see `target_yield`. Off if empty",
    )
    similarity_median: float = Field(
        0.0,
        ge=0,
        le=1,
        description="subtract this fraction of the query's own median similarity (over its candidates, to the positive) before comparing with `max_similarity`, so that one threshold fits queries of all levels",
    )
    target_yield: float = Field(
        0.9,
        gt=0,
        le=1,
        description="`max_similarity: auto`: choose the threshold that keeps this fraction of the negatives that would be chosen without it",
    )
    target_false_negatives: float | None = Field(
        None,
        ge=0,
        le=1,
        description="`max_similarity: auto`, for sources whose queries have several positives: some known positives are hidden among the candidates; choose the threshold that lets through this fraction of them",
    )
    reranker: str | None = Field(
        None,
        description="model that scores candidates again: a cross-encoder, or a language model such as Qwen3-Reranker. Named like `model`. Only the candidates that matter for the choice are scored",
    )
    reranker_max_score: float | None = Field(
        None, description="drop candidates that the reranker scores higher than this. Off if empty"
    )
    reranker_margin: float | None = Field(
        None, description="drop candidates that the reranker scores above `positive - reranker_margin`. Off if empty"
    )
    promote: Promote | None = Field(
        None,
        description="turn a candidate into a further positive of the tuple if the reranker scores it more than `margin` above every positive: `{margin: 1.0, min_score: 0.0}`. They get the origin `promoted`, come after the other positives, and are no negatives. Off if empty",
    )
    uncertain: Uncertain | None = Field(
        None,
        description="drop candidates that the reranker scores above `positive - margin` and that are not promoted: `{margin: 1.0}`. Off if empty",
    )
    positive_rank: int | None = Field(
        None,
        ge=1,
        description="drop a tuple unless its first positive is among this many nearest passages, not counting its other positives. Off if empty",
    )
    positive_min_score: float | None = Field(
        None,
        description="drop a tuple if the cosine similarity of its query and its first positive is lower than this. Off if empty",
    )
    positive_reranker_min: float | None = Field(
        None, description="drop a tuple if the reranker scores its first positive lower than this. Off if empty"
    )
    reranker_scores: bool = Field(
        False,
        description="store the reranker's scores with the tuples instead of cosine similarities; `train: {distill: ...}` learns from them",
    )
    distinct: bool = Field(False, description="among duplicate negatives of a query, keep only the highest-ranked one")
    pick: Literal["top", "random", "stratified"] = Field(
        "top",
        description="how to choose among the candidates that passed all filters. `top`: the nearest. `random`: at random. `stratified`: one from each of as many equal stretches of the ranking as negatives are needed",
    )
    classes: Literal["random", "hard"] = Field(
        "random",
        description="negatives of clustering sources with labels. `random`: random texts of other classes. `hard`: the nearest texts of other classes",
    )
    shortage: Literal["drop", "keep", "relax", "random"] = Field(
        "drop",
        description="what to do with a tuple that has fewer negatives than `negatives`. `drop`: drop the tuple. `keep`: keep it with fewer. `relax`: fill it by switching off range_min, then similarity, then scores and margins. `random`: fill it with random passages",
    )
    prompt: Prompt = Field(
        "auto",
        description="what is put before texts. `auto`: the `prompts` below if given; else the model's own prompts, as encode_query and encode_document of sentence-transformers use them; else `instruct` for decoder models and `none` for encoders. `instruct`: queries as `Instruct: INSTRUCTION`, new line, `Query: QUERY`. `none`: nothing",
    )
    prompts: Prompts | None = Field(
        None,
        description='texts to put before each query and passage, such as `{query: "query: ", passage: "passage: "}` for E5; requires `prompt: auto`',
    )
    dtype: Dtype = Field(
        "auto",
        description="number format of the encoder. `auto`: bfloat16 where the GPU or processor computes it, several times as fast on a GPU, and some rows differ; else float32. `preset: f2llm` sets float32, which gives the rows of sentence-transformers",
    )
    max_tokens: int | None = Field(None, ge=4, description="cut longer texts to this many tokens. The model's own limit if empty")
    store: Literal["float32", "float16"] = Field(
        "float32", description="number format of the stored vectors. `float16` takes half the disk space and changes some ranks"
    )

    @field_validator("corpus", mode="before")
    @classmethod
    def _corpora(cls, given: object) -> object:
        for one in given.values() if isinstance(given, dict) else [given]:
            if one not in ("positives", "all"):
                raise ValueError(f"mine.corpus: '{one}' is not one of positives or all")
        return given

    def corpus_of(self, source: str) -> Searched:
        """Return the corpus of a source."""
        return self.corpus.get(source, "positives") if isinstance(self.corpus, dict) else self.corpus

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
            raise ValueError("`preset: f2llm` requires `store: float32`, because float16 changes ranks")
        if self.prompts is not None and self.prompt != "auto":
            raise ValueError(f"'prompts' requires `prompt: auto`, but it is '{self.prompt}'")
        if not self.model and self.candidates != "given":
            raise ValueError("'model' is missing in mine; only `candidates: given` works without one")
        keys = ("reranker_max_score", "reranker_margin", "promote", "uncertain", "positive_reranker_min")
        used = [key for key in keys if getattr(self, key) is not None] + ["reranker_scores"] * self.reranker_scores
        if used and not self.reranker:
            raise ValueError(f"'{used[0]}' requires a 'reranker'")
        if self.reranker and self.candidates == "given":
            raise ValueError("'reranker' scores what a search finds, and `candidates: given` makes no search")
        if self.reranker and not used:
            others = ", ".join(f"'{key}'" for key in keys)
            raise ValueError(f"'reranker' has no effect without {others} or `reranker_scores: yes`")
        return self


class DeepSpeed(Section):
    """DeepSpeed settings, for training in several processes."""

    zero: int = Field(
        2,
        ge=0,
        le=3,
        description="ZeRO stage: what is divided among the processes. 1: optimizer states. 2: gradients too. 3: weights too",
    )
    offload: bool = Field(False, description="keep the optimizer states in CPU memory; with `zero: 3` the weights too")


class DistillVectors(Section):
    """A teacher whose vectors the student learns from."""

    model: str = Field(description="the teacher, named as in `mine embed --model NAME`, which stores its vectors in the build")
    weight: float = Field(200.0, gt=0, description="weight of the term; 200 is that of Stella (arXiv 2412.19048)")


class Lora(Section):
    """LoRA: train small matrices next to the linear layers instead of the model's own weights."""

    rank: int = Field(16, ge=1, description="rank of the matrices")
    alpha: float = Field(32, gt=0, description="scale: what the matrices add is multiplied by alpha / rank")
    targets: Literal["auto"] | list[str] = Field(
        "auto",
        description="names of the linear layers that get such matrices, such as `[q_proj, v_proj]`, or ends of their full names. `auto`: all linear layers of the transformer",
    )

    @field_validator("targets")
    @classmethod
    def _some(cls, given: str | list[str]) -> str | list[str]:
        if not given:
            raise ValueError("'targets' names no layer; give some, or `auto`")
        return given


class OfSource(Section):
    """Training settings of one source that differ from the recipe's."""

    weight: float = Field(
        1.0, gt=0, description="multiplies this source's share of the training steps; the total number of steps does not change"
    )
    negatives: int | None = Field(None, ge=0, description="hard negatives per tuple, instead of `train: negatives`")
    in_batch: bool | None = Field(
        None,
        description="whether positives of other tuples in the batch are negatives too (except those of the same near-duplicate group or class). If empty: yes for retrieval, no for the other tasks",
    )
    cluster_batches: int | None = Field(
        None, ge=0, description="clusters, instead of `train: cluster_batches`; 0 turns them off for this source"
    )


class Train(Section):
    """How the model is trained. Defaults are those of F2LLM: its paper (arXiv 2510.02294), else its released configuration."""

    model: str = Field(
        description="model to train, a decoder or an encoder: a Hub id, a folder, or `package:NAME` for a model inside an installed Python package"
    )
    max_tokens: int = Field(1024, ge=4, description="cut longer texts to this many tokens")
    batch: int = Field(512, ge=1, description="tuples per step, summed over all processes")
    positives: Literal["first", "all", "sampled"] = Field(
        "first",
        description="which positives to train on if a query has several. `first`: the one with the highest grade (among equal grades, the first in the file). `all`: one tuple for each. `sampled`: a random one, drawn again each epoch",
    )
    negatives: int = Field(7, ge=0, description="hard negatives per tuple, drawn again each epoch")
    loss: Literal["f2llm", "infonce"] = Field(
        "f2llm",
        description="`f2llm`: F2LLM's loss, the sum of one term over the hard negatives and, for retrieval, one over the other positives in the batch. `infonce`: one InfoNCE term over all of them",
    )
    temperature: float = Field(0.05, gt=0, description="cosine similarities are divided by this in the loss")
    lr: float = Field(1e-5, gt=0, description="highest learning rate")
    min_lr: float = Field(1e-7, ge=0, description="learning rate at the last step")
    warmup: int = Field(500, ge=0, description="steps over which the learning rate rises from zero")
    epochs: int = Field(2, ge=1, description="how often each tuple is seen")
    steps: int | None = Field(
        None, ge=1, description="stop after this many steps; the learning rate schedule ends there too. All epochs if empty"
    )
    seed: int | None = Field(
        None,
        ge=0,
        description="seed of the order of tuples and of drawn negatives and positives. If empty, the manifest's `seed`",
    )
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW, on weight matrices only")
    betas: tuple[float, float] = Field((0.9, 0.98), description="beta1 and beta2 of AdamW")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient; larger ones are scaled down")
    pooling: Literal["auto", "mean", "cls", "last"] = Field(
        "auto",
        description="how token vectors become one vector: `mean`, `cls` (first token) or `last` (last token). `auto`: what the model's folder says; else `last` for decoders, `mean` for encoders",
    )
    bidirectional: bool = Field(
        False,
        description="let each token of a decoder attend to the tokens after it too. Saved as `is_causal: false` in config.json, which transformers 5 and sentence-transformers read. Mostly used with `pooling: mean`",
    )
    prompt: Prompt = Field("auto", description="same as in `mine`")
    prompts: Prompts | None = Field(None, description="same as in `mine`; also saved as the prompts of the trained model")
    dtype: Dtype = Field("auto", description="number format of matrix products; weights and optimizer stay float32")
    mask_false_negatives: bool = Field(
        True, description="do not use a passage as an in-batch negative of a query if it is one of that query's positives"
    )
    mask_margin: float | None = Field(
        None,
        ge=0,
        description="do not use a passage of another tuple as an in-batch negative if it scores higher than the query's own positive by more than this. With `query_query` or `passage_passage` this covers every negative, also the tuple's own, as in Qwen3-Embedding, which uses 0.1. Off if empty",
    )
    query_query: bool = Field(
        False,
        description="`loss: infonce`: the other queries in the batch are negatives of a query too, in the same softmax, for sources with in-batch negatives",
    )
    passage_passage: bool = Field(
        False,
        description="`loss: infonce`: the other tuples' passages in the batch are negatives of a positive too, in the same softmax, for sources with in-batch negatives",
    )
    hardness: float = Field(
        0.0,
        ge=0,
        description="weight each of a tuple's hard negatives by exp(hardness * cosine similarity to the query), as EmbeddingGemma does with 5. Off at 0",
    )
    spread_out: float = Field(
        0.0,
        ge=0,
        description="weight of an extra loss term: the mean squared cosine similarity of two different queries in the batch, plus that of two positives, for sources with in-batch negatives. It spreads vectors over all directions, which helps quantisation and approximate search. Off at 0",
    )
    symmetric: bool = Field(
        False, description="`loss: f2llm`: add the in-batch term in the other direction, from passages to queries"
    )
    matryoshka: list[int] = Field(
        [],
        description="numbers of leading dimensions that should work as shorter embeddings, such as `[128, 256]`; the loss is averaged over these and the full size",
    )
    distill: float = Field(
        0.0,
        ge=0,
        description="weight of an extra loss term: the KL divergence from the score distribution of the miner over each tuple's candidates. Off at 0",
    )
    distill_vectors: DistillVectors | None = Field(
        None,
        description="an extra loss term: the mean squared difference between the student's and a teacher's cosine similarities of all pairs of texts in the batch, `{model: NAME}`. The teacher may have another dimension. Off if empty",
    )
    cluster_batches: int | None = Field(
        None,
        ge=2,
        description="make batches of tuples whose queries are alike, for sources with in-batch negatives: the rows of each source are put into this many clusters, by k-means of the vectors that `mine negatives` stored, and batches are cut cluster by cluster. Off if empty",
    )
    evenness: float = Field(
        1.0,
        ge=1,
        description="the temperature T of sampling: a source gets a share of steps proportional to size^(1/T). 1: in proportion to size, so each tuple is seen once per epoch. Larger: small sources are seen more often",
    )
    sources: dict[str, OfSource] = Field({}, description="settings for single sources: `{NAME: {weight: 2}}`")
    reproduce_f2llm: bool = Field(
        False,
        description="with several processes: no gradient from the in-batch term to passages, as in F2LLM's released trainer. Otherwise the gradient is that of one process",
    )
    token_budget: int | None = Field(
        None,
        ge=1,
        description="most tokens in one forward pass. A batch with more is split and trained with gradient caching (GradCache): same result, less memory, one more forward pass. If empty: on a GPU one that fits into its memory, on a CPU no limit",
    )
    checkpointing: bool = Field(
        False, description="gradient checkpointing: store only the layers' inputs and compute the rest again. Less memory, slower"
    )
    lora: Lora | None = Field(
        None,
        description="train with LoRA, such as `{rank: 16, alpha: 32}` (needs `tuplesmith[lora]`). The exported model has the matrices merged; they are also in its folder `adapter`, as peft saves them. Usually with a higher `lr`, such as 1e-4",
    )
    deepspeed: DeepSpeed | None = Field(
        None, description="train with DeepSpeed ZeRO, in as many processes as torchrun or the deepspeed launcher starts"
    )
    save_every: int = Field(200, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="number of checkpoints to keep")
    evaluate_every: int | None = Field(
        None,
        ge=1,
        description="steps between evaluations: nDCG@10 on the build's held-out queries, averaged over sources. No evaluation if empty",
    )
    evaluate_on: list[str] = Field(
        [],
        description="further sets for `evaluate_every`, which count in its mean: what `train evaluate --data` takes, that is folders in BEIR layout, or `NanoBEIR` or one of its sets such as `NanoSciFact`, of which the copy in the Hub's cache on this machine is read",
    )
    patience: int | None = Field(
        None, ge=1, description="stop after this many evaluations without a better score. Never if empty"
    )
    export: Literal["last", "best"] = Field(
        "last",
        description="which weights become the exported model: those of the `last` step, or of the `best` evaluation, whose checkpoint is kept too",
    )
    log_every: int = Field(
        10,
        ge=1,
        description="steps between lines on the screen; the log file has every step. On a GPU the file gets them together, because reading a loss makes the host wait",
    )

    def of(self, source: str) -> OfSource:
        """Return the settings of a source."""
        return self.sources.get(source, OfSource())

    def clusters_in(self, source: str) -> int:
        """Return the number of clusters of a source's rows; 0: none are made."""
        own = self.of(source).cluster_batches
        return (self.cluster_batches or 0) if own is None else own

    @model_validator(mode="after")
    def _goes_together(self) -> Train:
        if self.prompts is not None and self.prompt != "auto":
            raise ValueError(f"'prompts' requires `prompt: auto`, but it is '{self.prompt}'")
        if self.symmetric and self.loss != "f2llm":
            raise ValueError("'symmetric' requires `loss: f2llm`")
        for name in ("query_query", "passage_passage"):
            if getattr(self, name) and self.loss != "infonce":
                raise ValueError(f"'{name}' requires `loss: infonce`, because its scores are in the same softmax")
        if self.reproduce_f2llm and (self.symmetric or self.loss != "f2llm"):
            raise ValueError("'reproduce_f2llm' requires `loss: f2llm` without 'symmetric'")
        if self.positives == "all" and not self.mask_false_negatives:
            raise ValueError(
                "`positives: all` requires `mask_false_negatives: yes`, because two positives of one query can be in the same batch"
            )
        if min(self.matryoshka, default=1) < 1:
            raise ValueError("'matryoshka' is a list of dimensions; each must be 1 or more")
        if len(set(self.matryoshka)) < len(self.matryoshka):
            raise ValueError("'matryoshka' names a dimension twice")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("each of 'betas' must be at least 0 and below 1")
        if self.min_lr > self.lr:
            raise ValueError(f"'min_lr' {self.min_lr:g} is above 'lr' {self.lr:g}, the highest learning rate")
        if self.evaluate_every is None and (self.patience is not None or self.export == "best" or self.evaluate_on):
            raise ValueError("'patience', 'evaluate_on' and `export: best` require 'evaluate_every'")
        return self
