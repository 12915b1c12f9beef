"""`stockpot eval MODEL --bench ...` and `stockpot grade FOLDER`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stockpot import checkpoints, console
from stockpot.benchmarks import judge, templates
from stockpot.benchmarks.figures import Figures, Graded, figures
from stockpot.benchmarks.generate import Job, generate
from stockpot.benchmarks.load import chosen, fingerprint, load
from stockpot.benchmarks.problem import Kind, Problem
from stockpot.benchmarks.sets import BENCHMARKS
from stockpot.benchmarks.store import Sample, Store
from stockpot.models import load_model, load_tokenizer, pick_device, stop_tokens
from stockpot.options import Eval, Grade
from stockpot.record import Run, surroundings, write_whole
from stockpot.rewards import maths
from stockpot.samplers.torch import TorchSampler
from stockpot.types import Author, Sampling, StockpotError

AT_ONCE = 256
"""Responses handed to a grader in one call."""


@dataclass(frozen=True)
class Asked:
    """A benchmark's problems and the prompts made of them."""

    name: str
    kind: Kind
    problems: list[Problem]
    prompts: list[templates.Asked]


def evaluate(options: Eval) -> dict[str, Figures]:
    """Sample what is missing, grade everything, print the table."""
    check(options)
    assert options.bench is not None
    sets = [(benchmark, source or options.data) for benchmark, source in chosen(options.bench)]
    problems = {benchmark.name: load(benchmark, source, limit=options.limit) for benchmark, source in sets}
    weights, origin = place(options)
    tokenizer, device = load_tokenizer(origin), pick_device(options.device)
    name = "bfloat16" if options.dtype == "auto" and device.type == "cuda" else options.dtype
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)
    model = load_model(weights, device, dtype).eval()
    stops = stop_tokens(model, tokenizer)
    style = templates.pick(options.template, tokenizer, stops)
    asked = [_ask(benchmark.name, benchmark.kind, style, problems[benchmark.name], tokenizer) for benchmark, _ in sets]
    sampling = Sampling(
        temperature=0.6 if options.temperature is None else options.temperature,
        top_p=0.95 if options.top_p is None else options.top_p,
    )
    ends = templates.stop_ids([s for a in asked for s in _template(style, a).stops], tokenizer)
    room = _room(options, asked, model)
    settings: dict[str, Any] = {
        "model": weights, "weights": _print(model), "bench": [a.name for a in asked],
        "problems": {a.name: fingerprint(a.problems) for a in asked},
        "k": options.k, "limit": options.limit, "template": style, "max_tokens": room, "seed": options.seed,
        "temperature": sampling.temperature, "top_p": sampling.top_p, "dtype": str(dtype).partition(".")[2],
        "stop_tokens": sorted({*stops, *ends}),
    }  # fmt: skip
    store = Store(options.out or folder_for(weights))
    with store.locked():
        if not store.begin(settings):
            write_whole(store.folder / "made_with.json", json.dumps(surroundings(), indent=1) + "\n")
            tokenizer.save_pretrained(store.folder / "tokenizer")
        for a in asked:
            store.write_problems(a.name, list(zip(a.problems, (p.text for p in a.prompts), strict=True)))
        sampler = TorchSampler(
            model, author=Author(weights), stop_tokens=settings["stop_tokens"], pad=tokenizer.pad_token_id or 0,
            max_rows=options.rows,
        )  # fmt: skip
        jobs = [
            Job(a.name, problem.key, prompt.tokens, prompt.text)
            for a in asked
            for problem, prompt in zip(a.problems, a.prompts, strict=True)
        ]
        generate(
            store, sampler, jobs, k=options.k, sampling=sampling, max_tokens=room, seed=options.seed, rows=options.rows
        )
        return conclude(store, tokenizer, options.json)


def check(options: Eval) -> None:
    """Refuse what does not go together, before anything is loaded."""
    for name in ("samples", "prompts", "prefix_from"):
        if getattr(options, name) is not None:
            raise StockpotError(f"--{name.replace('_', '-')} is not for --bench: see --k and --limit.")
    if options.recipe != "countdown":
        raise StockpotError("--recipe is not for --bench, which brings its own problems: leave it out.")
    for name in ("k", "rows", "limit", "max_tokens"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise StockpotError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}.")


def place(options: Eval) -> tuple[str, str]:
    """(weights, tokenizer): a run's last checkpoint or that of --step, or the model named."""
    if not (Path(options.model) / "metrics.jsonl").exists():
        if options.step is not None:
            raise StockpotError(f"--step needs a run, and {options.model} is none.")
        return options.model, options.model
    folder = str(checkpoints.find(Run.open(Path(options.model)).checkpoints, options.step, console.tell).folder)
    return folder, folder


def folder_for(weights: str) -> Path:
    """runs/eval-MODEL: the same command finds it again."""
    name = "-".join(Path(weights).resolve().parts[-3:]) if Path(weights).exists() else weights.replace("/", "-")
    return Path("runs") / f"eval-{name.strip('-/')}"


def _ask(name: str, kind: Kind, style: str, problems: list[Problem], tokenizer: Any) -> Asked:
    return Asked(name, kind, problems, [templates.ask(style, kind, problem, tokenizer) for problem in problems])


def _template(style: str, asked: Asked) -> templates.Template:
    return templates.template(style, asked.kind, asked.problems[0])


def _room(options: Eval, asked: Sequence[Asked], model: Any) -> int:
    """Room for a response: as told, or 4096, or what the context leaves, which is told."""
    longest = max(len(prompt.tokens) for a in asked for prompt in a.prompts)
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", 0) or 0
    if not context:
        return options.max_tokens or 4096
    if longest >= context:
        raise StockpotError(f"a prompt has {longest} tokens, and the model's context is {context}: take another model.")
    if options.max_tokens is None:
        room = min(4096, context - longest)
        if room < 4096:
            console.tell(f"responses have room for {room} tokens: the context is {context}, a prompt has {longest}")
        return room
    if longest + options.max_tokens > context:
        raise StockpotError(
            f"a prompt has {longest} tokens and a response may have {options.max_tokens}, but the model's context is "
            f"{context}: lower --max-tokens."
        )
    return options.max_tokens


def _print(model: Any) -> str:
    """A fingerprint of weights, so that a folder never mixes two models: the sums of all tensors, in order."""
    told = hashlib.sha256()
    for name, parameter in model.named_parameters():
        told.update(f"{name} {float(parameter.detach().double().sum())!r}\n".encode())
    return told.hexdigest()[:16]


# --- grading --------------------------------------------------------------------------------------------------------


def grade(options: Grade) -> dict[str, Figures]:
    """Grade a folder's samples again, without a model."""
    store = Store(options.folder)
    if not (options.folder / "settings.json").is_file():
        store.settings  # noqa: B018 - says what is missing
    with store.locked():
        return conclude(store, load_tokenizer(str(store.folder / "tokenizer")), options.json)


def conclude(store: Store, tokenizer: Any, also: Path | None) -> dict[str, Figures]:
    """Grades, figures, results.json, the table."""
    from stockpot.benchmarks.table import show

    settings = store.settings
    found = {name: _grade(store, name, tokenizer, settings) for name in settings["bench"]}
    results = {**settings, "results": {name: figure.to_json() for name, figure in found.items()}}
    path = store.write_results(results)
    if also is not None:
        write_whole(also, path.read_text())
    show(settings, found)
    console.tell(f"samples, grades and results are in {store.folder}")
    return found


def _grade(store: Store, name: str, tokenizer: Any, settings: dict[str, Any]) -> Figures:
    kind = BENCHMARKS[name].kind
    asked = {problem.key: (problem, prompt) for problem, prompt in store.problems(name)}
    samples = [s for s in store.samples(name) if s.problem in asked]
    wanted = len(asked) * settings["k"]
    if len(samples) < wanted:
        raise StockpotError(
            f"{store.folder} holds {len(samples)} of {wanted} samples of {name}: go on with the same `stockpot eval`."
        )
    stops = templates.template(settings["template"], kind, next(iter(asked.values()))[0]).stops
    reward = judge.grader(kind, bare=settings["template"] != "chat")
    grades: list[judge.Grade] = []
    with console.bar(f"grading {name}", len(samples)) as bar:
        for first in range(0, len(samples), AT_ONCE):
            part = samples[first : first + AT_ONCE]
            texts = tokenizer.batch_decode([list(s.tokens) for s in part], skip_special_tokens=True)
            responses = [
                judge.Response(*asked[s.problem], templates.cut(text, stops))
                for s, text in zip(part, texts, strict=True)
            ]
            grades += judge.grade(kind, responses, reward)
            bar.advance(len(part), right=sum((g.reward or 0.0) > 0.5 for g in grades) / len(grades))
    graded = _counted(kind, samples, grades)
    store.write_grades(
        name,
        [
            {"problem": s.problem, "sample": s.number, "reward": g.reward, "answer": g.answer, "group": one.group}
            for s, g, one in zip(samples, grades, graded, strict=True)
        ],
    )
    return figures(graded, votes=kind == "maths")


def _counted(kind: Kind, samples: Sequence[Sample], grades: Sequence[judge.Grade]) -> list[Graded]:
    """Samples with what figures need; answers of a problem are grouped by what the grader calls the same."""
    places: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        places.setdefault(sample.problem, []).append(i)
    group = [-1] * len(samples)
    if kind == "maths":
        for where in places.values():
            for i, number in zip(where, judge.groups([grades[i].answer for i in where], maths.same), strict=True):
                group[i] = number
    return [
        Graded(
            problem=s.problem, right=(g.reward or 0.0) > 0.5, judged=g.reward is not None, group=group[i],
            length=len(s.tokens), truncated=s.finish == "length", log_prob=s.log_prob,
        )
        for i, (s, g) in enumerate(zip(samples, grades, strict=True))
    ]  # fmt: skip
