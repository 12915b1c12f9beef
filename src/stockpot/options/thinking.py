"""The options of the commands around a supervised start, and around thinking at budgets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Budget:
    """Accuracy against the budget of thinking tokens: full responses are stored once, their thinking cut, answered."""

    model: Annotated[Positional[str], arg(metavar="RUN|MODEL")]
    """A run folder, or a model folder or hub id."""
    recipe: str = "countdown"
    """For a model that is no run: the recipe, by name or .py file, whose task and room for a response are used."""
    budgets: str = ""
    """Thinking tokens allowed, with commas between; default powers of two from 8, and the room for a response."""
    steps: str = "all"
    """In a run: the checkpoints of these steps, with commas between; default all that are kept."""
    how: str = "summariser"
    """Who answers from cut thinking: summariser (a separate model, as in the paper), self (the policy closes its
    own thinking), or both with a comma between."""
    summariser: Annotated[str | None, arg(metavar="MODEL")] = None
    """The separate model; default the one that the run started from. One of another vocabulary reads the thinking as
    text, encoded anew; budgets stay in the policy's tokens."""
    samples: int | None = None
    """Samples per prompt; default as in the run."""
    prompts: int | None = None
    """Held-out prompts; default as in the run."""
    temperature: float | None = None
    """Sampling temperature of the full responses; default as in the run's evaluation."""
    top_p: float | None = None
    """Nucleus sampling of the full responses; default as in the run's evaluation."""
    answer_temperature: float | None = None
    """Sampling temperature of the answers behind cut thinking; default that of the full responses."""
    max_tokens: int | None = None
    """Room for a full response, which no budget can exceed; default as in the run."""
    answer_tokens: int = 32
    """Room for an answer behind cut thinking."""
    closing: str | None = None
    """The words that close the thinking and begin the answer, such as </think>; default the task's."""
    seed: int = 0
    """Seed of the samples."""
    store: Path | None = None
    """Folder that keeps what is written, for later calls; default RUN/budgets, for a model runs/budgets-MODEL."""
    json: Path | None = None
    """Also write the result to this file."""
    picture: Path | None = None
    """Where to draw accuracy against budget; default budget.png in the store."""


@dataclass(frozen=True)
class SftData:
    """Data for a supervised start: traces of trial and error, made of several attempts at each training prompt.

    Besides these it takes the recipe, --out FILE.jsonl, and every option of `stockpot train`: the task is the recipe's.
    """

    attempts: str = ""
    """Who attempts, with commas between: model folders or hub ids, and JSONL files with prompt and completion."""
    samples: int = 4
    """Attempts of each model at each prompt."""
    prompts: int = 0
    """Training prompts used, from the head of the split; 0 uses all of them."""
    traces: int = 1
    """Traces of each prompt at most."""
    wrong: int = 2
    """Wrong attempts that a trace begins with at most; how many of them is drawn evenly."""
    critic: str = "task"
    """Who explains the attempts: task (its own checker), plain (fixed sentences), an endpoint's http address such as
    http://localhost:8000/v1, or a model."""
    writer: str = "task"
    """Who merges attempts and critiques: task, plain, an endpoint's http address, or a model."""
    rewriter: str = ""
    """Who writes each merged trace anew as one train of thought, in a step of its own as in the paper: an endpoint's
    http address, or a model; default nobody. What the reward then judges wrong is dropped for the merged trace."""
    rewrite_least: float = 0.5
    """A rewrite that has a smaller share of the merged trace's letters is dropped too: it leaves attempts out."""
    endpoint_model: str = ""
    """The name of the model to use at an endpoint."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the endpoint's key, if it needs one."""
    answer_tokens: int = 512
    """Room for what a critic, writer or rewriter that is a model says."""
    answer_temperature: float = 0.7
    """Sampling temperature of critics, writers and rewriters that are models."""
    timeout: float = 60.0
    """Seconds that one call to an endpoint may take."""
    tries: int = 4
    """Calls for one question, the first one included, before it is left out."""
    pause: float = 1.0
    """Seconds before the second try; each further pause is twice as long, unless the endpoint names one."""
    max_calls: int = 0
    """Calls in all of critic, writer and rewriter each, earlier runs into the same store included; 0 is no limit."""
    max_total_tokens: int = 0
    """Tokens that each of them may use in all, as its endpoint counts them; 0 is no limit."""
    patience: int = 20
    """Calls in a row that may fail before an endpoint is asked nothing more."""
    parallel: int = 4
    """Calls to an endpoint at a time."""
    store: Path | None = None
    """Folder that keeps attempts and answers, for a call that was stopped or changed; default OUT with .store added."""


@dataclass(frozen=True)
class Sft:
    """The supervised start alone: a Hugging Face folder. Besides these it takes the recipe and every option of train.

    Without --data an embedded task's own demonstrations are taught, as at the start of `stockpot train`. With --data
    and --learner.lora.rank an adapter of --model is taught, and the folder holds it in peft's format.
    """

    data: Path | None = None
    """JSONL file with prompt and completion, such as `stockpot sft-data` makes; loss on the completion alone."""
    epochs: float = 3.0
    """Times round the data; start.batch and start.learning-rate are the recipe's, start.steps is not used."""
    pack: int = 512
    """Tokens of a row that several examples share, none of them seeing another; 0 gives each a row of its own."""
    checkpoint: int = 50
    """Updates between checkpoints: killed and begun again by the same words, it ends in the same bits."""
